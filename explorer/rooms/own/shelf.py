"""What visitors brought: their experts in temporary folders, their mixtures, and when all of that is freed."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from explorer.leftovers import delete_folder, temporary_folder
from explorer.registry import ModelSource
from explorer.settings import is_public, limits
from loramixer.backbones import CATALOGUE
from loramixer.errors import ExpertError
from loramixer.hub import split_hub_id
from loramixer.tuner.config import check_expert_name

MOST_SHELVES = 32
"""Visitors whose files are kept at once; the one that did nothing for longest makes room."""


@dataclass
class Shelf:
    """What one session brought.

    Attributes:
        folder: temporary; everything uploaded or written for this session lies in it.
        sources: expert name → folder or Hub id, in the order of the gates.
        mixture: name of the mixture that the registry holds for it; empty when there is none.
        mixture_folder: where that mixture lies.
        just_added: experts that came since the visitor last ticked or unticked one.
        fetched: Hub ids that this session had fetched.
        routers: trained routers that were offered for its experts.
        training: backbone, with the ``@revision`` that was checked, and experts that Train takes, name → folder or
            Hub id.
    """

    folder: Path
    sources: dict[str, str] = field(default_factory=dict)
    mixture: str = ""
    mixture_folder: Path | None = None
    just_added: list[str] = field(default_factory=list)
    fetched: set[str] = field(default_factory=set)
    routers: tuple[str, ...] = ()
    training: tuple[str, dict[str, str]] = ("", {})

    def new_folder(self, kind: str) -> Path:
        """An empty folder in this shelf."""
        folder = self.folder / f"{kind}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        return folder

    def add(self, name: str, source: str) -> str:
        """Take an expert; returns its name, numbered when it is taken. The same one again is no second one.

        Raises:
            ExpertError: no more room.
        """
        if (here := next((known for known, place in self.sources.items() if place == source), None)) is not None:
            return here
        if len(self.sources) >= (most := limits().experts):
            raise ExpertError(
                f"{most} experts are the most that one mixture can have here; untick one and press “Remove unticked”."
            )
        stem = name.strip().replace(".", "-") or "expert"
        check_expert_name(stem)
        free, number = stem, 2
        while free in self.sources:
            free, number = f"{stem}-{number}", number + 1
        self.sources[free] = source
        if named := split_hub_id(source):
            self.fetched.add(named[0])
        return free

    def keep(self, names: Collection[str]) -> None:
        """Take all other experts away, with their files in this shelf; Train has them no longer either."""
        for name in [name for name in self.sources if name not in names]:
            place = Path(self.sources.pop(name))
            if place.is_relative_to(self.folder):
                shutil.rmtree(place, ignore_errors=True)
        backbone, experts = self.training
        kept = {name: source for name, source in experts.items() if source in self.sources.values()}
        self.training = backbone, kept

    @property
    def bytes(self) -> int:
        """Size of all its files on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


class Shelves:
    """The shelves by session; safe to use from many threads.

    Args:
        source: forgets mixtures that are freed.
    """

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._shelves: OrderedDict[str, Shelf] = OrderedDict()

    def of(self, session: str) -> Shelf:
        """The shelf of a session, made when it is first asked for."""
        with self._lock:
            if session not in self._shelves:
                self._shelves[session] = Shelf(temporary_folder("own"))
            self._shelves.move_to_end(session)
            idle = [key for key in self._shelves if key != session][: max(0, len(self._shelves) - MOST_SHELVES)]
            freed = [self._shelves.pop(key) for key in idle]
            found = self._shelves[session]
        for shelf in freed:
            self._free(shelf)
        return found

    def training_of(self, session: str) -> tuple[str, dict[str, str]]:
        """Backbone and experts that a session wants to train routers over; nothing is made for one that has none."""
        with self._lock:
            shelf = self._shelves.get(session)
        return shelf.training if shelf else ("", {})

    def put_mixture(self, session: str, folder: Path, title: str) -> str:
        """Give a mixture to the registry; an earlier one of this session goes, and of too many the one least run."""
        shelf = self.of(session)
        former, shelf_folder = [shelf.mixture], shelf.mixture_folder
        shelf.mixture, shelf.mixture_folder = self._source.add(folder, title), folder
        with self._lock:
            others = [other for other in self._shelves.values() if other.mixture and other is not shelf]
            others.sort(key=lambda other: self._source.last_use(other.mixture))
            for other in others[: max(0, len(others) + 1 - limits().mixtures)]:
                former.append(other.mixture)
                other.mixture = ""
        for name in filter(None, former):
            self._source.remove(name)
        if shelf_folder is not None:
            shutil.rmtree(shelf_folder, ignore_errors=True)
        return shelf.mixture

    def forget(self, session: str) -> None:
        """The session has left: files, mixture and memory are freed."""
        with self._lock:
            shelf = self._shelves.pop(session, None)
        if shelf is not None:
            self._free(shelf)

    def _free(self, shelf: Shelf) -> None:
        if shelf.mixture:
            self._source.remove(shelf.mixture)
        delete_folder(shelf.folder)
        if is_public():
            self._drop_downloads(shelf.fetched)

    def _drop_downloads(self, hub_ids: set[str]) -> None:
        """On a public server a visitor's downloads go with the visitor, unless another one uses them too."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        with self._lock:
            used = {hub_id for shelf in self._shelves.values() for hub_id in shelf.fetched}
        used |= {entry.hub_id for entry in CATALOGUE.values() if entry.hub_id}
        for hub_id in hub_ids - used:
            folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")
            shutil.rmtree(folder, ignore_errors=True)
