"""Events of Your own: bring experts, see what fits, and make a mixture of them that only this visitor knows."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.status_line import Status, status
from explorer.page import want
from explorer.registry import ModelSource
from explorer.rooms.own.shelf import Shelf, Shelves
from explorer.rooms.own.table import fit_table
from explorer.rooms.own.uploads import unpack
from explorer.sessions import session_of, when_gone
from explorer.settings import limits
from loramixer.errors import ExpertError, LoraMixerError, MixerError
from loramixer.experts import Expert
from loramixer.fitting import BackboneOutline, Fit, assemble, check_fit, outline_backbone, routers_fit
from loramixer.hub import split_hub_id
from loramixer.mixers import ZOO

UNTRAINED = "untrained"
"""Value of the router control for routers that nobody has trained."""

UNTRAINED_LABEL = "Untrained router: nearly equal weights"

logger = logging.getLogger(__name__)

View = tuple[Any, ...]
"""Table, status, chosen experts, router control, the two buttons."""


@dataclass(frozen=True)
class Checked:
    """A backbone and the experts of a shelf, compared."""

    backbone: BackboneOutline
    fits: tuple[Fit, ...]

    @property
    def usable(self) -> list[str]:
        """Names of the experts that fit."""
        return [fit.name for fit in self.fits if fit.usable]


class OwnHandlers:
    """The events of the room.

    Args:
        source: takes the mixtures.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.shelves = Shelves(source)

    # ------------------------------------------------------------------ bringing

    def add_named(self, text: str, backbone: str, chosen: Sequence[str], request: gr.Request) -> tuple[Any, ...]:
        """An expert from the Hub, or from a folder of this machine where that is allowed; clears the text box."""

        def bring(shelf: Shelf) -> list[str]:
            source = (text or "").strip()
            if not source:
                raise ExpertError("Give a Hub id, such as organisation/name or organisation/name@revision.")
            self._refuse_paths(source, "expert")
            name = source.partition("@")[0].rstrip("/").rpartition("/")[2]
            return [shelf.add(name, source)]

        return self._changed(bring, backbone, chosen, request, "")

    def add_files(
        self, files: Sequence[str] | None, backbone: str, chosen: Sequence[str], request: gr.Request
    ) -> tuple[Any, ...]:
        """Uploaded experts; clears the upload box."""

        def bring(shelf: Shelf) -> list[str]:
            room, before = limits().upload_bytes - shelf.bytes, list(shelf.sources)
            target = shelf.new_folder("upload")
            try:
                return [shelf.add(folder.name, str(folder)) for folder in unpack(files or [], target, room)]
            except Exception:
                # All or nothing, and what is refused takes no room.
                shelf.keep(before)
                shutil.rmtree(target, ignore_errors=True)
                raise

        return self._changed(bring, backbone, chosen, request, None)

    def add_shipped(
        self, wanted: str | None, backbone: str, chosen: Sequence[str], request: gr.Request
    ) -> tuple[Any, ...]:
        """An expert that ships with this package; clears the choice. Nothing is brought where none is chosen."""

        def bring(shelf: Shelf) -> list[str]:
            if wanted is None:
                return []
            folder = shipped_experts().get(wanted)
            if folder is None:
                raise ExpertError("Choose one of the experts in the list.")
            return [shelf.add(folder.name, str(folder))]

        return self._changed(bring, backbone, chosen, request, None)

    # ------------------------------------------------------------------ seeing

    def check(self, backbone: str, chosen: Sequence[str], request: gr.Request) -> View:
        """The table for this backbone and these experts."""

        def ticked(shelf: Shelf) -> tuple[Checked, list[str]]:
            shelf.just_added.clear()
            return self._check(shelf, backbone), list(chosen or [])

        return self._view(ticked, request)

    def keep(self, backbone: str, chosen: Sequence[str], request: gr.Request) -> View:
        """Take away every expert that is not ticked, those that do not fit among them."""
        self.shelves.of(session_of(request)).keep(chosen or [])
        return self.check(backbone, chosen, request)

    def clear(self, backbone: str, request: gr.Request) -> View:
        """Free everything that this session brought."""
        self.shelves.forget(session_of(request))
        return self.check(backbone, [], request)

    # ------------------------------------------------------------------ using

    def explore(
        self, backbone: str, chosen: Sequence[str], routers: str, request: gr.Request
    ) -> tuple[Any, Any, Status]:
        """Make the mixture and go to Explore with it; only this session learns its name."""
        session = session_of(request)
        try:
            name, title = self._mix(session, backbone, chosen, routers)
        except LoraMixerError as error:
            return gr.skip(), gr.skip(), status("error", str(error))
        text = f"{title} is chosen in Explore. After another router, choose it again here; it is freed when you leave."
        return want("explore", name, title), gr.Tabs(selected="explore"), status("note", text)

    def train(self, backbone: str, chosen: Sequence[str], request: gr.Request) -> tuple[Any, Any, Status]:
        """Go to Train with the chosen experts."""
        shelf = self.shelves.of(session_of(request))
        try:
            experts, checked = self._usable(shelf, backbone, chosen)
        except LoraMixerError as error:
            return gr.skip(), gr.skip(), status("error", str(error))
        shelf.training = checked.backbone.pinned_name, {name: shelf.sources[name] for name in experts}
        return want("train", "", ""), gr.Tabs(selected="train"), status("note", "Train has taken these experts.")

    def refused(self) -> Status:
        """The queue took nothing."""
        return status("error", "Nothing was done: too many visitors are waiting. Try again in a minute.")

    def leave(self, request: gr.Request) -> None:
        """The connection of a page broke: what it brought goes, unless it comes back."""
        when_gone(request, self.shelves.forget)

    # ------------------------------------------------------------------ inside

    def _usable(self, shelf: Shelf, backbone: str, chosen: Sequence[str]) -> tuple[dict[str, Expert], Checked]:
        """The chosen experts that fit.

        Raises:
            MixerError: there is none.
        """
        checked = self._check(shelf, backbone)
        experts = {
            fit.name: fit.expert
            for fit in checked.fits
            if fit.usable and fit.name in (chosen or []) and fit.expert is not None
        }
        if not experts:
            raise MixerError("Choose at least one expert that fits.")
        return experts, checked

    def _mix(self, session: str, backbone: str, chosen: Sequence[str], routers: str) -> tuple[str, str]:
        shelf = self.shelves.of(session)
        experts, checked = self._usable(shelf, backbone, chosen)
        if routers == UNTRAINED:
            trained, title = None, f"untrained router · {len(experts)} of your own"
        else:
            if routers not in [mixer.name for mixer in self.source.mixers()]:
                raise MixerError(f"'{routers}' is no router that ships with this package.")
            trained, title = ZOO / routers, f"{routers} · {len(experts)} of your own"
        folder = assemble(shelf.new_folder("mixture"), experts, checked.backbone, title, trained)
        return self.shelves.put_mixture(session, folder, title), title

    def _check(self, shelf: Shelf, backbone: str) -> Checked:
        source = (backbone or "").strip()
        self._refuse_paths(source, "backbone")
        # Those of the list never change, and their shapes take a second.
        find = _outline_once if source in self.source.backbones() else outline_backbone
        outline = find(source, limits().backbone_parameters)
        if outline.revision:
            shelf.fetched.add(outline.name)
        most = limits().upload_bytes
        fits = [check_fit(name, place, outline, most) for name, place in list(shelf.sources.items())]
        return Checked(outline, tuple(without_paths(fit, shelf.folder) for fit in fits))

    def _refuse_paths(self, source: str, what: str) -> None:
        """On a public server nobody may name what lies on its disk."""
        if limits().local_paths or source in self.source.backbones():
            return
        if split_hub_id(source) is None or Path(source).exists():
            raise ExpertError(f"On this server the {what} comes from the Hub, as organisation/name[@revision].")

    def _changed(
        self,
        bring: Callable[[Shelf], list[str]],
        backbone: str,
        chosen: Sequence[str],
        request: gr.Request,
        emptied: Any,
    ) -> tuple[Any, ...]:
        """The view after something was brought, and the control that it came by: emptied, unless it was refused."""

        def work(shelf: Shelf) -> tuple[Checked, list[str]]:
            # Several ways of adding may be on their way at once, and none of them saw the others' ticks.
            shelf.just_added += bring(shelf)
            return self._check(shelf, backbone), [*(chosen or []), *shelf.just_added]

        view = self._view(work, request)
        return *view, gr.skip() if view[1]["kind"] == "error" else emptied

    def _view(self, work: Callable[[Shelf], tuple[Checked, list[str]]], request: gr.Request) -> View:
        """What the components show after ``work``; an expected error leaves all but the status as it is."""
        try:
            shelf = self.shelves.of(session_of(request))
            checked, chosen = work(shelf)
        except LoraMixerError as error:
            return (gr.skip(), status("error", str(error)), *(gr.skip() for _ in range(4)))
        except Exception:
            logger.exception("Checking a visitor's experts failed")
            text = "These files could not be read; see the log of the server."
            return (gr.skip(), status("error", text), *(gr.skip() for _ in range(4)))
        kept = [name for name in checked.usable if name in chosen]
        refused = [fit.name for fit in checked.fits if not fit.usable]
        line = (
            status("note", f"{', '.join(refused)} cannot be used; the table says why.") if refused else status("quiet")
        )
        ready = gr.Button(interactive=bool(kept))
        return (
            fit_table(checked.backbone, checked.fits, kept),
            line,
            gr.CheckboxGroup(choices=checked.usable, value=kept, visible=bool(checked.usable)),
            self._router_control(shelf, checked, kept),
            ready,
            ready,
        )

    def _router_control(self, shelf: Shelf, checked: Checked, chosen: Sequence[str]) -> Any:
        """The routers that fit; the chosen one stays while these are the same."""
        experts = {fit.name: fit.expert for fit in checked.fits if fit.name in chosen and fit.expert is not None}
        fitting = [
            (f"{mixer.title} ({mixer.name}), trained for these experts", mixer.name)
            for mixer in self.source.mixers()
            if (ZOO / mixer.name).is_dir() and routers_fit(ZOO / mixer.name, experts)
        ]
        former, shelf.routers = shelf.routers, tuple(name for _, name in fitting)
        choices = [(UNTRAINED_LABEL, UNTRAINED), *fitting]
        return gr.Radio(choices=choices) if former == shelf.routers else gr.Radio(choices=choices, value=UNTRAINED)


_outline_once = lru_cache(maxsize=8)(outline_backbone)


def shipped_experts() -> dict[str, Path]:
    """The experts of the zoo: ``backbone / expert`` → folder."""
    folders = sorted(path.parent for path in ZOO.glob("*/experts/*/adapter_config.json"))
    return {f"{folder.parents[1].name} / {folder.name}": folder for folder in folders}


def without_paths(fit: Fit, folder: Path) -> Fit:
    """Reasons name files by where they lie; a visitor needs their own names only."""
    reasons = [reason.replace(f"{folder}/", "").replace(f"{ZOO}/", "") for reason in fit.reasons]
    return replace(fit, reasons=tuple(reasons))
