"""What happens in the room Trade-off: each method is one event, and takes and returns values of components."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.status_line import Status, status
from explorer.examples import EXAMPLES
from explorer.link import LinkField, parse, to_query
from explorer.page import want
from explorer.registry import ModelSource
from explorer.replays import FOLDER, Replay, find_replays
from explorer.rooms.tradeoff.payload import plane_payload, python_of
from explorer.rooms.tradeoff.points import (
    COMMAND,
    LIVE,
    RESULTS,
    Plane,
    PlaneRouter,
    live_router,
    logged_plane,
    measured_plane,
)
from explorer.running import begin_run, last_frame, run_buttons
from explorer.sessions import Tickets, session_of
from explorer.settings import RunRequest
from loramixer.errors import FigureError, LoraMixerError, MixerError
from loramixer.mixers import MixerInfo
from loramixer.viz.palette import expert_styles

ROOM = "tradeoff"
NO_REPLAY = "none"
LINK_FIELDS = (
    LinkField("r", "router", ""),
    LinkField("z", "close", False, "flag"),
    LinkField("h", "hidden", ""),
    LinkField("replay", "replay", NO_REPLAY),
)

NOT_INSTALLED = (
    "No replay is installed. One needs the routers that are kept along a training "
    "(zoo/<backbone>/replay/<router>/step-…); “python -m explorer.record_replay” then records it."
)

logger = logging.getLogger(__name__)


class TradeoffHandlers:
    """All events of the room.

    Args:
        source: what can be run.
        results: folder of the experiments' files.
        replays: folder of the recorded replays.
        tickets: which run each session waits for; the page gives those of all rooms.
    """

    def __init__(
        self,
        source: ModelSource,
        results: Path | None = None,
        replays: Path | None = None,
        tickets: Tickets | None = None,
    ) -> None:
        self.source = source
        self.results = results or RESULTS
        self.replay_folder = replays or FOLDER
        self.tickets = tickets or Tickets()
        self.versions = itertools.count(1)

    @cached_property
    def replays(self) -> dict[str, Replay]:
        """The recorded replays, by name."""
        return find_replays(self.replay_folder)

    # ------------------------------------------------------------------ what is on screen

    def plane(self) -> Plane:
        """The measured plane; without one, the trainings of the installed routers."""
        mixers = self.mixers()
        found = measured_plane(self.results, mixers)
        return found if found.is_measured else logged_plane(mixers)

    def mixers(self) -> list[MixerInfo]:
        """The installed routers of the first backbone: others have other experts, and no common plane."""
        mixers = list(self.source.mixers())
        return [mixer for mixer in mixers if mixer.backbone == mixers[0].backbone]

    def opening(self) -> dict[str, Any]:
        """The plane before anything has been measured live."""
        return self._payload([])

    def _payload(self, live: list[PlaneRouter], view: dict[str, Any] | None = None) -> dict[str, Any]:
        prompts = [example.prompt for example in EXAMPLES]
        return plane_payload(self.plane(), live, next(self.versions), prompts, view)

    def figure(self) -> Any:
        """The plane as a figure of ``loramixer.viz``, as the pages of results have it.

        Raises:
            FigureError: the experiments have not been run.
        """
        from loramixer.evaluation.experiments.plane import picture

        if not (self.results / "plane.csv").is_file():
            raise FigureError(f"There is no measured plane to export yet; “{COMMAND}” makes it.")
        return picture(self.results)

    def code(self) -> str:
        """Python that makes that figure.

        Raises:
            FigureError: the experiments have not been run.
        """
        self.figure()
        return python_of(self.plane(), [], [])

    def replay_choices(self) -> list[tuple[str, str]]:
        """For the replay control."""
        return [
            ("none", NO_REPLAY),
            *((f"{replay.facts.title} ({len(replay.steps)} steps)", name) for name, replay in self.replays.items()),
        ]

    def choose_replay(self, name: str | None) -> Any:
        """The replay of that name, or None."""
        if name not in self.replays:
            return None
        # In the colour that its router has on the plane, where it is there.
        mixer = self.replays[name].facts.mixer
        on_plane = {router["mixer"]: router["colour"] for router in self.opening()["routers"] if router["mixer"]}
        others = {style.name: style.colour for style in expert_styles(list(self.replays))}
        return self.replays[name].to_payload(on_plane.get(mixer, others[name]))

    # ------------------------------------------------------------------ to other rooms

    def open_router(self, event: gr.EventData) -> tuple[Any, Any, Status]:
        """Choose a router in Explore, with the prompt that is there, and go there."""
        return self._send("explore", event)

    def pin_router(self, event: gr.EventData) -> tuple[Any, Any, Status]:
        """Choose a router in Compare, and go there."""
        return self._send("compare", event)

    def _send(self, room: str, event: gr.EventData) -> tuple[Any, Any, Status]:
        try:
            mixer = self.source.find(str(event.mixer))
        except MixerError as error:
            return gr.skip(), gr.skip(), status("error", str(error))
        return gr.Tabs(selected=room), want(room, mixer.name, mixer.title), status("quiet")

    # ------------------------------------------------------------------ measuring

    def announce(self, request: gr.Request) -> tuple[Any, ...]:
        """The first half of Measure, outside the queue."""

        def check() -> None:
            if not self.source.mixers():
                raise MixerError("No trained router is installed, so nothing can be measured.")

        return begin_run(self.tickets, self.source, session_of(request), ROOM, check)

    def measure(self, number: int, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """The second half, in the queue: streams plane, status and both buttons."""
        with self.tickets.claim(session_of(request), number) as ticket:
            if ticket is None:
                yield (gr.skip(),) * 4
                return
            mixers = self.mixers()
            done: list[PlaneRouter] = []
            try:
                for mixer in mixers:
                    if ticket.stop.is_set():
                        break
                    line = status("busy", f"Measuring {mixer.title}, {len(done) + 1} of {len(mixers)} …")
                    yield gr.skip(), line, *run_buttons(running=True)
                    if (found := self._measured(mixer, ticket.stop)) is None:
                        break
                    done.append(found)
                    yield self._payload(done), gr.skip(), gr.skip(), gr.skip()
                was_cut = ticket.was_cut(len(done), len(mixers))
                words = "Stopped" if was_cut else "Measured"
                text = f"{words}: {len(done)} of {len(mixers)} routers on {len(EXAMPLES)} example prompts."
                yield last_frame(ticket, (gr.skip(), status("note" if was_cut else "quiet", text)))
            except LoraMixerError as error:
                yield last_frame(ticket, (gr.skip(), status("error", str(error))))
            except Exception as error:
                logger.exception("Measuring failed")
                text = (
                    f"Measuring ended with an error inside the model ({type(error).__name__}); see the server's log."
                )
                yield last_frame(ticket, (gr.skip(), status("error", text)))

    def _measured(self, mixer: MixerInfo, stop: threading.Event) -> PlaneRouter | None:
        traces = []
        for example in EXAMPLES:
            if stop.is_set():
                return None
            asked = RunRequest(example.prompt, mixer.name, "soft", len(mixer.experts), 0)
            traces += list(self.source.stream(asked, stop))[-1:]
        return live_router(mixer, traces) if len(traces) == len(EXAMPLES) else None

    def refused(self, request: gr.Request) -> tuple[Any, ...]:
        """The queue did not take it: give the buttons back."""
        self.tickets.drop(session_of(request), ROOM)
        text = "Nothing was measured: too many visitors are waiting. Try again in a minute."
        return status("error", text), *run_buttons(running=False)

    # ------------------------------------------------------------------ links

    def view_query(self, replay: str | None, event: gr.EventData) -> tuple[dict[str, Any], str]:
        """What the plane shows now, and its address."""
        view = {"router": str(event.router), "close": bool(event.close), "hidden": str(event.hidden)}
        return view, self.query(view, replay)

    def query(self, view: dict[str, Any], replay: str | None) -> str:
        """The address of a view."""
        return to_query(ROOM, {**view, "replay": replay}, LINK_FIELDS)

    def open_link(self, request: gr.Request) -> tuple[Any, ...]:
        """Plane, view, replay, status and query string of the address that the page was opened with."""
        query = dict(request.query_params)
        if query.get("room") != ROOM:
            return *(gr.skip(),) * 4, self.query({}, NO_REPLAY)
        values, notes = parse(query, LINK_FIELDS)
        replay = values.pop("replay")
        if replay not in (NO_REPLAY, *self.replays):
            notes.append(f"The link's replay {replay!r} is not installed.")
            replay = NO_REPLAY
        plane = self._payload([], values)
        if (asked := values["router"]) and asked not in {router["key"] for router in plane["routers"]}:
            notes.append(
                "The link chooses a router that was measured just now; press Measure to measure it here."
                if asked.startswith(LIVE)
                else f"The link's router {asked!r} is not on this plane."
            )
        line = status("note", " ".join(notes)) if notes else status("quiet")
        return plane, values, replay, line, self.query(values, replay)
