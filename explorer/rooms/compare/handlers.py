"""Events of Compare: choosing A and B, running one of them, and showing both."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from explorer.comparison_payload import Side, clip, encode_comparison
from explorer.components.status_line import Status, status
from explorer.files import read_drawable_trace
from explorer.link import parse, to_query
from explorer.payload import ViewState
from explorer.provenance import short_router_name
from explorer.recordings import RecordingKey, Recordings
from explorer.registry import ModelSource
from explorer.rooms.compare.link import FIELDS, RunSpec, file_spec, parse_spec, recording_spec, run_spec
from explorer.rooms.compare.ready_made import ready_made
from explorer.rooms.compare.steps import at_step, split_step, step_control
from explorer.running import NOT_BEGUN, begin_run, gate_control, last_frame, run_buttons
from explorer.sessions import Tickets, session_of
from explorer.settings import (
    DEFAULT_NEW_TOKENS,
    RunRequest,
    check_new_tokens,
    check_prompt,
    describe_gate,
    gate_choices,
    parse_gate,
)
from explorer.summary import prompt_text
from explorer.traces_in_memory import TraceStore
from loramixer.errors import LoraMixerError, TraceError
from loramixer.mixers import MixerInfo
from loramixer.trace import RoutingTrace

ROOM = "compare"
SECONDS_BETWEEN_LINES = 0.25
"""The line that counts written tokens changes no faster than this."""

SideName = Literal["A", "B"]
Pinned = dict[str, str]
"""A trace that is A or B: ``key`` in the store, ``state`` as in a payload, ``spec`` as in an address; and ``example``
if nobody chose it, but the room opened with it."""

Sides = dict[str, Pinned]
"""``{"A": …, "B": …}``; a side that is not chosen yet is missing."""

FIRST_STEPS = (
    "Press a ready-made comparison, or choose A, then B: what Explore shows, a recording, a trace file, "
    "or a new run with another prompt, router, training step or gate."
)

_HOW = {"recorded": "recorded", "opened": "from a file", "stopped": "stopped", "failed": "broken off"}
"""State of a trace in its line; the others are live."""

logger = logging.getLogger(__name__)

Shown = tuple[Any, ...]
"""Sides, view, line of A, line of B, which side is chosen for next, status."""


class CompareHandlers:
    """All events of the room.

    Args:
        source: what can be run.
        recordings: what can be compared without running anything.
        traces: finished traces by key.
        tickets: which run each session waits for; shared by all rooms, so that one visitor runs one model at a time.
    """

    def __init__(self, source: ModelSource, recordings: Recordings, traces: TraceStore, tickets: Tickets) -> None:
        self.source = source
        self.recordings = recordings
        self.traces = traces
        self.tickets = tickets
        self.ready = ready_made(recordings)

    # ------------------------------------------------------------------ choosing A and B

    def choose_ready(self, index: int, request: gr.Request) -> Shown:
        """Both sides from recordings, by place in ``ready``."""
        try:
            return self._show(self._ready_sides(index, request), request)
        except LoraMixerError as error:
            return self._refused(error)

    def enter(self, sides: Sides, entered: bool, request: gr.Request) -> Shown:
        """The room is opened: the first time, and while nothing is chosen, with the first ready-made comparison."""
        query = dict(request.query_params)
        asked = query.get("room") == ROOM and {"a", "b"} & set(query)
        if entered or sides or asked or not self.ready:
            return (gr.skip(),) * 6
        try:
            found = self._ready_sides(0, request)
        except LoraMixerError as error:
            return self._refused(error)
        example = {side: {**pinned, "example": "yes"} for side, pinned in found.items()}
        line = status("quiet", "A ready-made comparison to begin with; what you choose takes its place.")
        return (*self._show(example, request)[:5], line)

    def take_current(self, side: SideName, current: str, sides: Sides, request: gr.Request) -> Shown:
        """The trace on screen in Explore becomes A or B."""
        if not current:
            return self._refused(TraceError("Explore shows no trace yet; generate one there, or take a recording."))
        try:
            trace = self.traces.get(session_of(request), current)
        except LoraMixerError as error:
            return self._refused(error)
        return self._show(_chosen(sides, side, self._pin(current, trace, request)), request)

    def take_pinned(self, pinned: dict[str, Any], sides: Sides, request: gr.Request) -> Shown:
        """Pinned in Explore, with its button or the key c: becomes A."""
        return self.take_current("A", pinned.get("key", ""), sides, request)

    def take_recording(self, side: SideName, spec: str | None, sides: Sides, request: gr.Request) -> Shown:
        """A recording becomes A or B; nothing where none is chosen."""
        if not spec:
            return (gr.skip(),) * 6
        found = parse_spec(spec)
        if not isinstance(found, tuple):
            return self._refused(TraceError("Choose one of the recordings."))
        try:
            return self._show(_chosen(sides, side, self._keep_recording(found, request)), request)
        except LoraMixerError as error:
            return self._refused(error)

    def take_file(self, side: SideName, file: str | None, sides: Sides, request: gr.Request) -> Shown:
        """A trace file becomes A or B; it needs no model."""
        if not file:
            return (gr.skip(),) * 6
        try:
            trace = read_drawable_trace(Path(file))
        except LoraMixerError as error:
            return self._refused(error)
        key = self.traces.put(session_of(request), trace, "opened")
        pinned = {"key": key, "state": "opened", "spec": file_spec(clip(Path(file).name))}
        return self._show(_chosen(sides, side, pinned), request)

    def swap(self, sides: Sides, request: gr.Request) -> Shown:
        """A becomes B and B becomes A."""
        if not sides:
            return self._refused(TraceError("There is nothing to swap yet."))
        return self._show({{"A": "B", "B": "A"}[side]: pinned for side, pinned in _accepted(sides).items()}, request)

    def clear(self, request: gr.Request) -> Shown:
        """Neither A nor B."""
        return self._show({}, request)

    # ------------------------------------------------------------------ running one of them

    def choose_mixer(self, name: str | None, step: str | None, gate: str) -> tuple[Any, Any, Any]:
        """The sentence about the router, and the choices of training step and gate; what both offer stays chosen."""
        try:
            mixer = self._find(name)
        except LoraMixerError:
            return gr.skip(), gr.skip(), gr.skip()
        steps = step_control(self.source.steps(mixer.name), step or "")
        return gr.Dropdown(info=f"Trained with: {mixer.loss}"), steps, gate_control(mixer, gate)

    def choose_wanted(self, wanted: dict[str, Any]) -> Any:
        """The router control after another room has asked to compare a router; one of no list joins the choices."""
        if wanted.get("room") != ROOM:
            return gr.skip()
        found = self._find(wanted["mixer"])
        choices = [(mixer.title, mixer.name) for mixer in self.source.mixers()]
        if found.name not in [name for _, name in choices]:
            choices.append((found.title, found.name))
        return gr.Dropdown(choices=choices, value=found.name)

    def announce(
        self, side: SideName, prompt: str, new_tokens: float, sides: Sides, request: gr.Request
    ) -> tuple[Any, ...]:
        """The first half of Run, outside the queue: refuse at once what can be refused, else open a ticket."""

        def check() -> None:
            check_prompt(self._prompt(side, prompt, sides, session_of(request)))
            check_new_tokens(int(new_tokens))

        return begin_run(self.tickets, self.source, session_of(request), ROOM, check)

    def run(
        self,
        side: SideName,
        prompt: str,
        mixer: str | None,
        step: str | None,
        gate: str,
        new_tokens: float,
        sides: Sides,
        number: int,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """The second half of Run, in the queue: what it wrote, once it has ended, as a part of the sides; the status
        line and the buttons.

        It tells nothing of the other side, which may be chosen anew meanwhile: :meth:`take_run` shows both.
        """
        with self.tickets.claim(session_of(request), number) as ticket:
            if ticket is None:
                yield (gr.skip(),) * 4
                return
            trace: RoutingTrace | None = None
            due = 0.0
            try:
                if ticket.stop.is_set():
                    yield last_frame(ticket, (gr.skip(), status("note", NOT_BEGUN)))
                    return
                found = at_step(self.source, mixer or "", step)
                mode, k = parse_gate(gate, len(found.experts))
                typed = self._prompt(side, prompt, sides, ticket.session)
                asked = RunRequest(typed, found.name, mode, k, check_new_tokens(int(new_tokens)))
                for trace in self.source.stream(asked, ticket.stop):
                    if time.monotonic() >= due and not ticket.stop.is_set():
                        due = time.monotonic() + SECONDS_BETWEEN_LINES
                        written = trace.tokens.roles.count("generated")
                        line = status("busy", f"Running {side} … {written} tokens")
                        yield gr.skip(), line, *run_buttons(running=True)
                if trace is None:
                    yield last_frame(ticket, (gr.skip(), status("note", "Stopped before the first token.")))
                    return
                if not ticket.is_open or ticket.is_replaced:
                    return
                was_cut = ticket.was_cut(trace.tokens.roles.count("generated"), asked.max_new_tokens)
                state: ViewState = "stopped" if was_cut else "finished"
                key = self.traces.put(ticket.session, trace, state)
                pinned = {"key": key, "state": state, "spec": run_spec(found.name, gate, asked.max_new_tokens)}
                yield last_frame(ticket, ({side: pinned}, gr.skip()))
            except LoraMixerError as error:
                yield last_frame(ticket, (gr.skip(), status("error", str(error))))
            except Exception as error:
                logger.exception("A run failed")
                text = (
                    f"The run ended with an error inside the model ({type(error).__name__}); press Run to try again."
                )
                yield last_frame(ticket, (gr.skip(), status("error", text)))

    def take_run(self, written: Sides, sides: Sides, request: gr.Request) -> tuple[Any, ...]:
        """What a run wrote becomes A or B, beside the other side as it is by now.

        Returns:
            As :meth:`_show`, then an empty ``written``: it is taken once.
        """
        if not written:
            return (gr.skip(),) * 7
        return *self._show({**_accepted(sides), **written}, request), {}

    def refused(self, request: gr.Request) -> tuple[Any, ...]:
        """The queue did not take the run: give the buttons back."""
        self.tickets.drop(session_of(request), ROOM)
        text = "The run did not start: too many visitors are waiting. Press Run again in a minute."
        return status("error", text), *run_buttons(running=False)

    # ------------------------------------------------------------------ addresses

    def open_link(self, request: gr.Request) -> tuple[Any, ...]:
        """What the address names: both sides if they are recordings, and the run controls of a side that was run.

        Returns:
            As :meth:`_show`, then prompt, router, training step, gate and number of new tokens.
        """
        query = dict(request.query_params)
        if query.get("room") != ROOM:
            return (gr.skip(),) * 11
        values, notes = parse(query, FIELDS)
        sides: Sides = {}
        # There is one set of controls for both sides: the first run of the two has it.
        controls: tuple[Any, ...] = (values["prompt"] or gr.skip(), *(gr.skip(),) * 4)
        is_filled = False
        for side, name in (("A", "a"), ("B", "b")):
            found = parse_spec(values[name])
            if isinstance(found, tuple):
                try:
                    sides[side] = self._keep_recording(found, request)
                except LoraMixerError as error:
                    notes.append(str(error))
            elif isinstance(found, RunSpec):
                words, filled = self._controls_of(found, values["prompt"])
                of_run = f"{side} of this link was a run of {words}"
                if filled is None:
                    notes.append(f"{of_run}, which cannot be filled in here.")
                elif is_filled:
                    notes.append(f"{of_run}; choose these settings after the first run, and press Run {side}.")
                else:
                    controls, is_filled = filled, True
                    notes.append(f"{of_run}; its settings are filled in, press Run {side}.")
            elif isinstance(found, str):
                notes.append(f"{side} of this link was the trace file {clip(found, 40)}; open it again.")
            elif values[name]:
                notes.append(f"The link's {side} is {clip(values[name], 40)!r}, which names no trace.")
        shown = self._show(sides, request) if sides or notes else self.enter({}, False, request)
        line = status("note", " ".join(notes)) if notes else shown[5]
        return (*shown[:5], line, *controls)

    # ------------------------------------------------------------------ what other parts of the room need

    def traces_of(self, sides: Sides, session: str) -> tuple[RoutingTrace, RoutingTrace]:
        """Both traces.

        Raises:
            TraceError: a side is not chosen yet, or its trace was forgotten.
        """
        for side in ("A", "B"):
            if side not in sides:
                raise TraceError(f"{side} is not chosen yet, so there is nothing to compare.")
        return self.traces.get(session, sides["A"]["key"]), self.traces.get(session, sides["B"]["key"])

    # ------------------------------------------------------------------ inside

    def _prompt(self, side: SideName, typed: str, sides: Sides, session: str) -> str:
        """What a side is asked: what was typed, else the prompt of the other side."""
        other = "B" if side == "A" else "A"
        if typed.strip() or other not in sides:
            return typed
        return prompt_text(self.traces.get(session, sides[other]["key"]))

    def _find(self, name: str | None) -> MixerInfo:
        return self.source.find(name or "")

    def _controls_of(self, spec: RunSpec, prompt: str) -> tuple[str, tuple[Any, ...] | None]:
        """What a run in an address was, in words; and prompt, router, step, gate and new tokens, or None where some of
        that is unknown or not allowed here."""
        name, step = split_step(spec.mixer)
        try:
            mixer = self._find(name)
            title = at_step(self.source, name, step).title
            parse_gate(spec.gate, len(mixer.experts))
            tokens = check_new_tokens(int(spec.new_tokens))
        except ValueError:
            return f"{clip(spec.mixer, 60)} with k {clip(spec.gate, 20)}", None
        gate = gr.Radio(choices=gate_choices(len(mixer.experts)), value=spec.gate)
        router = self.choose_wanted({"room": ROOM, "mixer": name})
        controls = prompt or gr.skip(), router, step_control(self.source.steps(name), step), gate, tokens
        return f"{title} with {describe_gate(spec.gate)}", controls

    def _ready_sides(self, index: int, request: gr.Request) -> Sides:
        entry = self.ready[index]
        return {"A": self._keep_recording(entry.a, request), "B": self._keep_recording(entry.b, request)}

    def _keep_recording(self, key: RecordingKey, request: gr.Request) -> Pinned:
        trace = self.recordings.trace(*key)
        if trace is None:
            raise TraceError(f"There is no recording '{recording_spec(key)}' here.")
        return self._pin(self.traces.put(session_of(request), trace, "recorded"), trace, request)

    def _pin(self, key: str, trace: RoutingTrace, request: gr.Request) -> Pinned:
        state = self.traces.state_of(session_of(request), key)
        recording = self.recordings.key_of(trace)
        if recording:
            return {"key": key, "state": state, "spec": recording_spec(recording)}
        facts = trace.provenance
        gate = "all (soft)" if facts.get("gate") == "soft" else str(facts.get("k", ""))
        asked = facts.get("max_new_tokens")  # 0 is a run that reads the prompt only
        spec = run_spec(str(facts.get("mixer")), gate, DEFAULT_NEW_TOKENS if asked is None else int(asked))
        return {"key": key, "state": state, "spec": spec}

    def _show(self, sides: Sides, request: gr.Request) -> Shown:
        session = session_of(request)
        found: dict[str, Side] = {}
        lost = []
        for side, pinned in sides.items():
            try:
                found[side] = Side(self.traces.get(session, pinned["key"]), pinned["state"])  # type: ignore[arg-type]
            except LoraMixerError:
                lost.append(side)
        kept = {side: pinned for side, pinned in sides.items() if side in found}
        query = to_query(ROOM, {side.lower(): pinned["spec"] for side, pinned in kept.items()}, FIELDS)
        line = status("quiet")
        if lost:
            line = status("note", f"{' and '.join(lost)} is no longer in memory; choose it again.")
        if len(found) == 2:
            try:
                view = encode_comparison(found["A"], found["B"])
            except LoraMixerError as error:
                view, line = {"waiting": str(error)}, status("error", str(error))
        else:
            view = {"waiting": _next_step(found)}
        lines = [_line_of(side, found.get(side)) for side in ("A", "B")]
        asked = {
            side: prompt_text(found[side].trace)
            for side, pinned in sorted(kept.items())
            if isinstance(parse_spec(pinned["spec"]), RunSpec)
        }
        # A link has room for one prompt.
        view = {**view, "prompt": next(iter(asked.values()), "")}
        if len(set(asked.values())) > 1:
            view["prompt_note"] = "The prompt of B is another one, and not in the link."
        return kept, {**view, "query": query}, *lines, "B" if "B" not in found and "A" in found else gr.skip(), line

    def _refused(self, error: LoraMixerError) -> Shown:
        return _only_status("error", str(error))


def _chosen(sides: Sides, side: SideName, pinned: Pinned) -> Sides:
    """The sides after a choice: what was only there to begin with makes room, it may not even fit."""
    return {**{name: other for name, other in sides.items() if "example" not in other}, side: pinned}


def _accepted(sides: Sides) -> Sides:
    """The sides of somebody who works with what was only there to begin with: now it is chosen."""
    return {
        side: {name: value for name, value in pinned.items() if name != "example"} for side, pinned in sides.items()
    }


def _next_step(found: dict[str, Side]) -> str:
    if not found:
        return FIRST_STEPS
    chosen, other = ("A", "B") if "A" in found else ("B", "A")
    return f"{chosen} is chosen. Now choose {other}: what Explore shows, a recording, a trace file, or a new run."


def _line_of(side: str, found: Side | None) -> Status:
    if found is None:
        return status("quiet", f"{side}: not chosen yet")
    facts = found.trace.provenance
    count = found.trace.tokens.roles.count("generated")
    how = _HOW.get(found.state, "live")
    gate = f"top {facts['k']}" if facts.get("gate") == "top_k" else str(facts.get("gate", "gate not stated"))
    return status(
        "ready",
        f"{side}: {short_router_name(facts)}, {gate}, {how}, {count} tokens written. "
        f"“{clip(prompt_text(found.trace), 70)}”",
    )


def _only_status(kind: str, text: str) -> Shown:
    return (*(gr.skip(),) * 5, status(kind, text))
