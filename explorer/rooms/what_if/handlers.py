"""Events of What if: other gates at once from stored scores, and interventions with the model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from explorer.comparison_payload import Side, clip, effect, encode_comparison
from explorer.components.status_line import Status, status
from explorer.examples import EXAMPLES
from explorer.link import parse, to_query
from explorer.payload import Payload, ViewState, encode_trace
from explorer.provenance import short_router_name
from explorer.recordings import Recordings
from explorer.registry import ModelSource
from explorer.rooms.compare.link import parse_spec, recording_spec, run_spec
from explorer.rooms.what_if.changes import CONTROL_LABEL, GateChange, ModelChange, chosen_biases
from explorer.rooms.what_if.link import FIELDS, read_biases, read_names, write_biases
from explorer.running import NOT_BEGUN, begin_run, last_frame, run_buttons
from explorer.sessions import Ticket, Tickets, session_of
from explorer.settings import (
    GateMode,
    RunRequest,
    check_new_tokens,
    check_prompt,
    gate_choice_of,
    gate_choices,
    parse_gate,
)
from explorer.summary import prompt_text
from explorer.traces_in_memory import TraceStore
from loramixer.errors import LoraMixerError, MixerError, TraceError
from loramixer.trace import RoutingTrace
from loramixer.whatif import NOTE

ROOM = "what_if"
SECONDS_BETWEEN_LINES = 0.25
NOTHING_YET = (
    "This room works on the trace that Explore shows. Generate one there, or choose a recording, and come back."
)
CONTROL_HINT = (
    "The same number of experts taken out at random, drawn anew for every token and router, on the same tokens: what "
    "any such change does. An effect counts only as far as it goes beyond this."
)
OUTDATED = "Another trace was chosen meanwhile, so the run for the former one was stopped and is not shown."

logger = logging.getLogger(__name__)

Base = dict[str, str]
"""The trace that is worked on: ``key`` in the store, ``state`` as in a payload, ``spec`` as in an address."""

Result = dict[str, Any]
"""What is shown beside it: ``key`` in the store, empty for gates from scores; ``change`` in words."""


class WhatIfHandlers:
    """All events of the room.

    Args:
        source: what can be run.
        recordings: recorded traces, for addresses.
        traces: finished traces by key.
        tickets: which run each session waits for; shared by all rooms.
        sliders: number of bias sliders that the room has.
    """

    def __init__(
        self, source: ModelSource, recordings: Recordings, traces: TraceStore, tickets: Tickets, sliders: int
    ) -> None:
        self.source = source
        self.recordings = recordings
        self.traces = traces
        self.tickets = tickets
        self.sliders = sliders
        # Of traces that do not change, so that a moved slider encodes only what moved.
        self._encoded: dict[str, Payload] = {}
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ the trace

    def take(self, current: str, request: gr.Request) -> tuple[Any, ...]:
        """The trace that Explore shows becomes the one that is worked on.

        Returns:
            Base, its line, view, result, status; then gate, temperature, mask, experts, and the sliders.
        """
        if not current:
            return self._only_status(status("note", NOTHING_YET))
        try:
            trace = self.traces.get(session_of(request), current)
            return self._open(current, trace, _unchanged(trace), request)
        except LoraMixerError as error:
            return self._only_status(status("error", str(error)))

    def enter(self, current: str, base: Base, request: gr.Request) -> tuple[Any, ...]:
        """The room was opened: it works on what Explore shows, unless that is what it has already."""
        rest = (gr.skip(),) * (8 + self.sliders)
        if not current or base.get("current") == current:
            return gr.skip(), *rest
        if base and not base.get("current"):
            # An address has chosen its own trace; from here on, what Explore shows anew counts.
            return {**base, "current": current}, *rest
        return self.take(current, request)

    # ------------------------------------------------------------------ at once

    def recompute(
        self, request: gr.Request, base: Base, gate: str, temperature: float, mask: list[str], *biases: float
    ) -> tuple[Any, Any, Status]:
        """Other gates from the stored scores: view, result, status."""
        try:
            trace = self._trace(base, request)
            change = GateChange(gate, float(temperature), tuple(mask or ()), chosen_biases(trace.experts, biases))
            return (*self._at_once(base, trace, change), status("quiet"))
        except LoraMixerError as error:
            return gr.skip(), gr.skip(), status("error", str(error))

    # ------------------------------------------------------------------ with the model

    def announce(self, base: Base, request: gr.Request) -> tuple[Any, ...]:
        """The first half of a run, outside the queue: ticket, status, both run buttons, Stop."""

        def check() -> None:
            check_prompt(prompt_text(self._trace(base, request)))

        return begin_run(self.tickets, self.source, session_of(request), ROOM, check, starts=2)

    def regenerate(
        self,
        request: gr.Request,
        base: Base,
        number: int,
        gate: str,
        temperature: float,
        mask: list[str],
        *biases: float,
    ) -> Iterator[tuple[Any, ...]]:
        """The gates of the sliders, with the model: it writes again. View, result, status and buttons."""

        def plan(trace: RoutingTrace) -> _Plan:
            change = GateChange(gate, float(temperature), tuple(mask or ()), chosen_biases(trace.experts, biases))
            mode, k = parse_gate(gate, len(trace.experts))
            note = "The bias was left out: it acts on stored scores only." if change.bias else ""
            kept = GateChange(gate, float(temperature), change.mask, {})
            masked = {"kind": "mask", "experts": change.mask} if change.mask else None
            link = _gate_values(change, trace)
            return _Plan(kept.words(trace) or "written again", masked, None, mode, k, float(temperature), link, note)

        yield from self._run(base, number, plan, request)

    def intervene(
        self,
        base: Base,
        number: int,
        kind: str,
        experts: list[str],
        where: str,
        text: str | None,
        with_control: bool,
        seed: float,
        request: gr.Request,
        marked: list[int] | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """An intervention while the model writes again, then its random control. View, result, status and buttons.

        ``marked`` holds the positions that were marked last, first and one past the last; none when none were.
        """

        def plan(trace: RoutingTrace) -> _Plan:
            chosen = () if kind == "uniform" else tuple(experts or ())
            place = (marked[0], marked[1]) if marked else None
            change = ModelChange(kind, chosen, where, (text or "").strip(), int(seed or 0), place)  # type: ignore[arg-type]
            main, control = change.interventions(trace)
            mode, k = parse_gate(gate_choice_of(trace.provenance, len(trace.experts)), len(trace.experts))
            temperature = float(trace.provenance.get("gate_temperature", 1.0))
            link = {"kind": kind, "experts": ",".join(chosen), "where": where, "seed": change.seed}
            return _Plan(change.words(), main, control if with_control else None, mode, k, temperature, link)

        yield from self._run(base, number, plan, request)

    def refused(self, request: gr.Request) -> tuple[Any, ...]:
        """The queue did not take the run: give the buttons back."""
        self.tickets.drop(session_of(request), ROOM)
        text = "The run did not start: too many visitors are waiting. Try again in a minute."
        return status("error", text), *run_buttons(running=False, starts=2)

    # ------------------------------------------------------------------ addresses

    def open_link(self, current: str, request: gr.Request) -> tuple[Any, ...]:
        """What the address names.

        Returns:
            As :meth:`take`, then kind, where, text and seed.
        """
        query = dict(request.query_params)
        if query.get("room") != ROOM:
            return (gr.skip(),) * (13 + self.sliders)
        values, notes = parse(query, FIELDS)
        found = parse_spec(values["base"])
        key, trace = "", None
        if isinstance(found, tuple) and (trace := self.recordings.trace(*found)) is not None:
            key = self.traces.put(session_of(request), trace, "recorded")
        elif values["base"]:
            notes.append("The trace of this link is no recording, so the link's settings act on what Explore shows.")
        if trace is None:
            # The page may not have said yet what it opens with.
            key = current or self._first_recording(request)
            try:
                trace = self.traces.get(session_of(request), key)
            except LoraMixerError:
                return *self._only_status(status("note", NOTHING_YET)), *(gr.skip(),) * 4
        usual = _unchanged(trace)
        gate = values["gate"] if values["gate"] in gate_choices(len(trace.experts)) else usual.gate
        change = GateChange(
            gate,
            usual.temperature if values["temperature"] is None else values["temperature"],
            tuple(name for name in read_names(values["mask"]) if name in trace.experts),
            {name: value for name, value in read_biases(values["bias"]).items() if name in trace.experts},
        )
        try:
            shown = self._open(key, trace, change, request)
        except LoraMixerError as error:
            notes.append(str(error))
            try:
                shown = self._open(key, trace, usual, request)
            except LoraMixerError as reason:  # nothing follows from these scores, whatever the gates
                return *self._only_status(status("error", str(reason))), *(gr.skip(),) * 4
        experts = [name for name in read_names(values["experts"]) if name in trace.experts]
        shown = (*shown[:8], gr.CheckboxGroup(choices=list(trace.experts), value=experts), *shown[9:])
        if key != current:
            shown = ({**shown[0], "current": ""}, *shown[1:])
        line = status("note", " ".join(notes)) if notes else shown[4]
        return (*shown[:4], line, *shown[5:], values["kind"], values["where"], values["text"], values["seed"])

    # ------------------------------------------------------------------ what other parts of the room need

    def traces_of(self, base: Base, result: Result, session: str) -> tuple[RoutingTrace, RoutingTrace]:
        """The original and what is shown beside it.

        Raises:
            TraceError: nothing is shown, or a trace was forgotten.
        """
        if not base:
            raise TraceError(NOTHING_YET)
        trace = self.traces.get(session, base["key"])
        if key := result.get("key"):
            return trace, self.traces.get(session, key)
        return trace, GateChange(**{**result["gates"], "mask": tuple(result["gates"]["mask"])}).apply(trace)

    # ------------------------------------------------------------------ inside

    def _first_recording(self, request: gr.Request) -> str:
        """Key of the recording that Explore opens with; empty when there is none."""
        found = (self.recordings.trace(example.key) for example in EXAMPLES)
        trace = next((trace for trace in found if trace is not None), None)
        return "" if trace is None else self.traces.put(session_of(request), trace, "recorded")

    def _only_status(self, line: Status) -> tuple[Any, ...]:
        """As :meth:`take`, where all but the status stays as it is."""
        return (*(gr.skip(),) * 4, line, *(gr.skip(),) * (4 + self.sliders))

    def _trace(self, base: Base, request: gr.Request) -> RoutingTrace:
        if not base:
            raise TraceError(NOTHING_YET)
        return self.traces.get(session_of(request), base["key"])

    def _open(self, key: str, trace: RoutingTrace, change: GateChange, request: gr.Request) -> tuple[Any, ...]:
        self.tickets.outdate(session_of(request), ROOM)
        recording = self.recordings.key_of(trace)
        spec = recording_spec(recording) if recording else _spec_of_run(trace)
        state = self.traces.state_of(session_of(request), key)
        base = {"key": key, "state": state, "spec": spec, "current": key}
        view, result = self._at_once(base, trace, change)
        gates = f"{short_router_name(trace.provenance)}, {_gate_words(trace)}"
        line = status("ready", f"{gates}, “{clip(prompt_text(trace), 70)}”")
        note = status("quiet")
        if len(trace.experts) > self.sliders:
            note = status("note", f"The first {self.sliders} of {len(trace.experts)} experts have a bias slider.")
        experts = list(trace.experts)
        sliders = [
            gr.Slider(label=experts[place], value=change.bias.get(experts[place], 0.0), visible=True)
            if place < len(experts)
            else gr.Slider(value=0.0, visible=False)
            for place in range(self.sliders)
        ]
        return (
            base,
            line,
            view,
            result,
            note,
            gr.Radio(choices=gate_choices(len(experts)), value=change.gate),
            change.temperature,
            gr.CheckboxGroup(choices=experts, value=list(change.mask)),
            gr.CheckboxGroup(choices=experts, value=[]),
            *sliders,
        )

    def _at_once(self, base: Base, trace: RoutingTrace, change: GateChange) -> tuple[Payload, Result]:
        words = change.words(trace)
        other = change.apply(trace)
        result = {
            "key": "",
            "change": words,
            "gates": {
                "gate": change.gate,
                "temperature": change.temperature,
                "mask": list(change.mask),
                "bias": change.bias,
            },
        }
        view = encode_comparison(
            Side(trace, base["state"], "original"),  # type: ignore[arg-type]
            Side(other, base["state"], words or "nothing changed yet"),  # type: ignore[arg-type]
            badge=NOTE,
            payload_of_a=self._payload(base, trace),
        )
        values = {"base": base["spec"], **_gate_values(change, trace)}
        return {**view, "query": to_query(ROOM, values, FIELDS)}, result

    def _payload(self, base: Base, trace: RoutingTrace) -> Payload:
        with self._lock:
            known = self._encoded.get(base["key"])
        if known is None:
            known = encode_trace(trace, base["state"])  # type: ignore[arg-type]
            with self._lock:
                # A few sessions at once; who was first goes first.
                while len(self._encoded) >= 8:
                    del self._encoded[next(iter(self._encoded))]
                self._encoded[base["key"]] = known
        return known

    def _run(self, base: Base, number: int, make_plan: Any, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        with self.tickets.claim(session_of(request), number) as ticket:
            if ticket is None:
                yield (gr.skip(),) * 6
                return
            try:
                if ticket.stop.is_set():
                    yield _last(ticket, status("note", NOT_BEGUN))
                    return
                trace = self._trace(base, request)
                plan = make_plan(trace)
                written: RoutingTrace | None = None
                for written in self._stream(trace, plan, plan.main, ticket.stop):
                    if progress := _line("Writing again", written, plan, ticket):
                        yield gr.skip(), gr.skip(), progress, *run_buttons(running=True, starts=2)
                if ticket.outdated.is_set():
                    yield _last(ticket, status("note", OUTDATED))
                    return
                if written is None:
                    yield _last(ticket, status("note", "Stopped before the first token."))
                    return
                if not ticket.is_open or ticket.is_replaced:
                    return
                was_cut = ticket.was_cut(written.tokens.roles.count("generated"), _new_tokens(trace))
                state: ViewState = "stopped" if was_cut else "finished"
                key = self.traces.put(ticket.session, written, state)
                result = {"key": key, "change": plan.words, "control": plan.control}
                view = self._beside(base, trace, written, state, plan, None)
                if plan.control is None or was_cut:
                    yield _last(ticket, plan.end(was_cut), view, result)
                    return
                busy = status("busy", "Now the random control …")
                yield view, result, busy, *run_buttons(running=True, starts=2)
                control: RoutingTrace | None = None
                for control in self._stream(trace, plan, plan.control, ticket.stop):
                    if progress := _line("Random control", control, plan, ticket):
                        yield gr.skip(), gr.skip(), progress, *run_buttons(running=True, starts=2)
                if ticket.outdated.is_set():
                    yield _last(ticket, status("note", OUTDATED))
                    return
                if control is None or ticket.was_cut(control.tokens.roles.count("generated"), _new_tokens(trace)):
                    line = status("note", "The control was stopped, so nothing stands beside the numbers.")
                    yield _last(ticket, line)
                    return
                yield _last(ticket, plan.end(False), self._beside(base, trace, written, state, plan, control), result)
            except LoraMixerError as error:
                yield _last(ticket, status("error", str(error)))
            except Exception as error:
                logger.exception("A run failed")
                text = f"The run ended with an error inside the model ({type(error).__name__}); try again."
                yield _last(ticket, status("error", text))

    def _stream(
        self, trace: RoutingTrace, plan: _Plan, change: dict[str, Any] | None, stop: threading.Event
    ) -> Iterator[RoutingTrace]:
        from loramixer import Intervention

        facts = trace.provenance
        if facts.get("chat") is False:
            raise MixerError(
                "This trace was made without the chat template, which every run here adds, so its words would stand "
                "elsewhere; use the changes at once, or run it from Python with intervene."
            )
        asked = RunRequest(
            prompt_text(trace),
            self.source.find(str(facts.get("mixer") or "")).name,
            plan.mode,
            plan.k,
            check_new_tokens(_new_tokens(trace)),
            seed=int(facts.get("seed") or 0),
            gate_temperature=plan.temperature,
            interventions=() if change is None else (Intervention(**change),),
        )
        return self.source.stream(asked, stop)

    def _beside(
        self,
        base: Base,
        trace: RoutingTrace,
        written: RoutingTrace,
        state: ViewState,
        plan: _Plan,
        control: RoutingTrace | None,
    ) -> Payload:
        numbers = None
        if control is not None:
            numbers = {"label": CONTROL_LABEL, "hint": CONTROL_HINT, **effect(trace, control)}
        view = encode_comparison(
            Side(trace, base["state"], "original"),  # type: ignore[arg-type]
            Side(written, state, plan.words),
            control=numbers,
            payload_of_a=self._payload(base, trace),
        )
        return {**view, "query": to_query(ROOM, {"base": base["spec"], **plan.link}, FIELDS)}


class _Plan:
    """What a run of the model does, its control, and what an address says about it."""

    def __init__(
        self,
        words: str,
        main: dict[str, Any] | None,
        control: dict[str, Any] | None,
        mode: GateMode,
        k: int,
        temperature: float,
        link: dict[str, Any],
        note: str = "",
    ) -> None:
        self.words, self.main, self.control, self.link, self.note = words, main, control, link, note
        self.mode, self.k, self.temperature = mode, k, temperature
        self.due = 0.0

    def end(self, was_stopped: bool) -> Status:
        """The line under a run that has ended."""
        if was_stopped:
            return status("note", f"Stopped; what was written is shown. {self.note}".strip())
        return status("note", self.note) if self.note else status("quiet", "Done.")


def _line(what: str, trace: RoutingTrace, plan: _Plan, ticket: Ticket) -> Status | None:
    """How far it is, or None while the last line is young, or once the last words of the run come next."""
    if time.monotonic() < plan.due or ticket.stop.is_set():
        return None
    plan.due = time.monotonic() + SECONDS_BETWEEN_LINES
    return status("busy", f"{what} … {trace.tokens.roles.count('generated')} tokens")


def _last(ticket: Ticket, line: Status, view: Any = None, result: Any = None) -> tuple[Any, ...]:
    """The last frame of a run; without a view, what is shown stays."""
    shown = (gr.skip(), gr.skip()) if view is None else (view, result)
    return last_frame(ticket, (*shown, line), starts=2)


def _unchanged(trace: RoutingTrace) -> GateChange:
    facts = trace.provenance
    gate = gate_choice_of(facts, len(trace.experts))
    return GateChange(gate, float(facts.get("gate_temperature", 1.0)), (), {})


def _gate_values(change: GateChange, trace: RoutingTrace) -> dict[str, Any]:
    """What an address says about other gates of a trace."""
    changed = change.arguments(trace)
    return {
        "gate": change.gate if "gate" in changed else "",
        "temperature": changed.get("temperature"),
        "mask": ",".join(change.mask),
        "bias": write_biases(change.bias),
    }


def _new_tokens(trace: RoutingTrace) -> int:
    """How much was asked for; a trace that does not say is repeated as long as it is."""
    asked = trace.provenance.get("max_new_tokens")
    return trace.tokens.roles.count("generated") if asked is None else int(asked)


def _gate_words(trace: RoutingTrace) -> str:
    choice = gate_choice_of(trace.provenance, len(trace.experts))
    return f"top {choice}" if choice.isdigit() else "all experts"


def _spec_of_run(trace: RoutingTrace) -> str:
    gate = gate_choice_of(trace.provenance, len(trace.experts))
    return run_spec(str(trace.provenance.get("mixer")), gate, _new_tokens(trace))
