"""What happens on the page: each method is one event, and takes and returns values of components.

All of them are private; the public endpoints are in ``explorer.api``.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.status_line import Status, status
from explorer.examples import EXAMPLES, find_example
from explorer.files import read_drawable_trace
from explorer.gold import gold_experts
from explorer.link import parse
from explorer.payload import Payload, PayloadEncoder, ViewState, encode_trace
from explorer.provenance import OWN_PREFIX
from explorer.recordings import Recordings
from explorer.registry import ModelSource
from explorer.running import NOT_BEGUN, begin_run, gate_control, run_buttons
from explorer.sessions import Ticket, Tickets, session_of, when_gone
from explorer.settings import (
    ALL_EXPERTS,
    DEFAULT_NEW_TOKENS,
    MAX_PROMPT_CHARACTERS,
    RunRequest,
    check_new_tokens,
    check_prompt,
    describe_gate,
    gate_choice_of,
    gate_choices,
    gate_for,
    parse_gate,
)
from explorer.summary import prompt_text
from explorer.traces_in_memory import TraceStore
from explorer.view_link import FIELDS, run_request
from loramixer.backbones import CATALOGUE
from loramixer.errors import LoraMixerError
from loramixer.mixers import MixerInfo
from loramixer.trace import RoutingTrace

ROOM = "explore"
SECONDS_BETWEEN_FRAMES = 0.1
"""Frames faster than this are dropped: the eye does not need them and two cores do."""

POLL_SECONDS, SLOW_SECONDS = 1.0, 30.0
"""Between looks at the model: while it loads, and after it could not be loaded."""

logger = logging.getLogger(__name__)

Shown = dict[str, str]
"""Router and gate of the trace on screen: ``{"mixer": …, "gate": …}``; empty when nothing is on screen."""


def describe_backbone(name: str | None) -> str:
    """The sentence under the backbone control."""
    known = CATALOGUE.get(name or "")
    return "The frozen model that the experts adapt." + (f" {known.remark}" if known and known.remark else "")


def describe_mixer(mixer: MixerInfo) -> str:
    """The sentence under the router control."""
    return f"Trained with: {mixer.loss}"


class Handlers:
    """All events of the page.

    Args:
        source: what can be run.
        recordings: what is shown before anything has been run.
        traces: receives every finished trace; other rooms find it there.
    """

    def __init__(self, source: ModelSource, recordings: Recordings, traces: TraceStore | None = None) -> None:
        self.source = source
        self.recordings = recordings
        self.traces = traces or TraceStore()
        self.tickets = Tickets()
        self._pins = itertools.count(1)

    # ------------------------------------------------------------------ opening the page

    def opening(self) -> tuple[Any, Shown]:
        """Payload and settings of what is on screen first: the recording of the first example that has one."""
        for example in EXAMPLES:
            if payload := self.recordings.payload(example.key):
                return payload, self._shown_of_recording(example.key)
        return None, {}

    def keep_opening(self, request: gr.Request) -> str:
        """Key of the trace that is on screen first, for the rooms that work on it; empty when nothing is."""
        return next((key for example in EXAMPLES if (key := self._keep_recording(example.key, request))), "")

    def open_link(self, request: gr.Request) -> tuple[Any, ...]:
        """What the address asks for: prompt, view, settings on screen, key, router, gate, length, and a note."""
        values, notes = parse(dict(request.query_params), FIELDS)
        if request.query_params.get("room", "explore") != "explore" or not set(request.query_params) - {"__theme"}:
            return (gr.skip(), gr.skip(), gr.skip(), self.keep_opening(request), *(gr.skip(),) * 4)
        example, prompt = values["example"], values["prompt"][:MAX_PROMPT_CHARACTERS]
        router_of_recording = values["mixer"] if self.recordings.trace(example, values["mixer"]) else ""
        trace = self.recordings.trace(example, router_of_recording)
        if trace is None:
            shown: Any = self.opening()[1]
            view, key = gr.skip(), self.keep_opening(request)
        else:
            shown, view = _shown_of(trace), self.recordings.payload(example, router_of_recording)
            key = self.traces.put(session_of(request), trace, "recorded")
        if example and trace is None:
            notes.append("The link's example has no recording here; press Generate.")
        if values["mixer"] and not example and not prompt and shown:
            notes.append("This link is of a run whose prompt it does not hold; what is shown is a recording.")
        if trace is not None and not prompt:
            prompt = find_example(example).prompt
        router, gate_control, gate = self._linked_controls(values, notes)
        differs = (values["mixer"], gate) != (shown.get("mixer"), shown.get("gate"))
        if prompt and trace is None:
            notes.append("The link's prompt is in the box; press Generate to run it.")
        elif values["mixer"] and gate and shown and differs:
            notes.append(self.settings_note(values["mixer"], gate, shown)["text"])
        line = status("note", " ".join(notes)) if notes else gr.skip()
        length = values["new_tokens"]
        return prompt or gr.skip(), view, shown, key, router, gate_control, length, line

    def _linked_controls(self, values: dict[str, Any], notes: list[str]) -> tuple[Any, Any, str]:
        """Router and gate controls for the names of a link, and the choice of the gate; a wrong name is noted."""
        if not values["mixer"]:
            return gr.skip(), gr.skip(), ""
        try:
            mixer = self._find_mixer(values["mixer"])
        except LoraMixerError as error:
            notes.append(str(error))
            return gr.skip(), gr.skip(), ""
        choices = gate_choices(len(mixer.experts))
        gate = gate_for(mixer, ALL_EXPERTS if values["gate"] == "all" else values["gate"])
        return self._router_control(mixer.name), gr.Radio(choices, value=gate), gate

    def open_file(self, file: str | None, request: gr.Request) -> tuple[Any, ...]:
        """A trace file of the visitor's: view, settings on screen, key, status; no model is needed."""
        if not file:
            return (gr.skip(),) * 4
        if self.tickets.meets(session_of(request), ROOM):
            return gr.skip(), gr.skip(), gr.skip(), status("note", "Stop the run before you open a file.")
        try:
            trace = read_drawable_trace(Path(file))
        except LoraMixerError as error:
            return gr.skip(), gr.skip(), gr.skip(), status("error", str(error))
        shown = _shown_of(trace)
        facts = run_request(prompt_text(trace), shown["mixer"], shown["gate"], DEFAULT_NEW_TOKENS)
        payload = encode_trace(trace, "opened", facts, gold_experts(trace))
        key = self.traces.put(session_of(request), trace, "opened")
        text = f"Opened {Path(file).name}: {len(trace.tokens)} tokens, no model was run."
        return payload, shown, key, status("quiet", text)

    def model_status(self, recording_on_screen: bool) -> Status:
        """The line about the model; says what is on screen meanwhile."""
        current = self.source.status()
        if current.kind == "failed":
            return status("error", current.text)
        if current.kind == "ready":
            return status("ready", current.text)
        if recording_on_screen:
            return status("busy", f"{current.text} You are looking at a recording meanwhile.")
        return status("busy", current.text)

    def poll(self, shown: Shown) -> tuple[Status, Any]:
        """One tick: the line about the model, and a timer that ends once there is nothing more to wait for."""
        line = self.model_status(bool(shown))
        # A model that could not be loaded is tried again by the next run; until then nothing happens soon.
        return line, gr.Timer(
            SLOW_SECONDS if line["kind"] == "error" else POLL_SECONDS, active=line["kind"] != "ready"
        )

    # ------------------------------------------------------------------ choosing

    def choose_backbone(self, backbone: str, mixer: str | None, gate: str, shown: Shown, request: gr.Request) -> Any:
        """The routers of a backbone, for the router control, and the note of :meth:`note_settings`.

        Nothing where the router is of that backbone: Gradio calls it an input too when somebody leaves the control.
        """
        with suppress(LoraMixerError):
            if self.source.find(mixer or "").backbone == backbone:
                return gr.skip(), gr.skip()
        fitting = [mixer for mixer in self.source.mixers() if mixer.backbone == backbone]
        choices = [(mixer.title, mixer.name) for mixer in fitting]
        first = choices[0][1] if choices else None
        return gr.Dropdown(choices=choices, value=first), self.note_settings(first, gate, shown, request)

    def choose_wanted(self, wanted: dict[str, Any], gate: str, shown: Shown, request: gr.Request) -> tuple[Any, Any]:
        """The router control after another room has asked for a router, and the note of :meth:`note_settings`."""
        if wanted.get("room") != "explore":
            return gr.skip(), gr.skip()
        return self._router_control(wanted["mixer"]), self.note_settings(wanted["mixer"], gate, shown, request)

    def _router_control(self, name: str) -> Any:
        """The router control with a router chosen; one of no list joins the choices."""
        found = self.source.find(name)
        choices = [(mixer.title, mixer.name) for mixer in self.source.mixers() if mixer.backbone == found.backbone]
        if found.name not in [name for _, name in choices]:
            choices.append((found.title, found.name))
        return gr.Dropdown(choices=choices, value=found.name)

    def choose_mixer(self, name: str | None, gate: str) -> tuple[Any, Any]:
        """The sentence about the router, and choices of the gate."""
        try:
            mixer = self._find_mixer(name)
        except LoraMixerError:
            return gr.skip(), gr.skip()
        return gr.Dropdown(info=describe_mixer(mixer)), gate_control(mixer, gate)

    def note_settings(self, name: str | None, gate: str, shown: Shown, request: gr.Request) -> Any:
        """The note that the view shows other settings, after a visitor has chosen some; a run keeps its own line."""
        if self.tickets.meets(session_of(request), ROOM):
            return gr.skip()
        try:
            mixer = self._find_mixer(name)
        except LoraMixerError as error:
            return status("error", str(error))
        return self.settings_note(name, gate_for(mixer, gate), shown)

    def backbone_of(self, mixer: str | None) -> Any:
        """The backbone control follows the router, whoever has chosen it."""
        try:
            backbone = self.source.find(mixer or "").backbone
        except LoraMixerError:
            return gr.skip()
        choices = list(dict.fromkeys([*self.source.backbones(), backbone]))  # it may be a visitor's own
        return gr.Dropdown(choices=choices, value=backbone, info=describe_backbone(backbone))

    def settings_note(self, mixer: str | None, gate: str, shown: Shown) -> Status:
        """A quiet note while the view shows other settings than the controls."""
        if not shown or (mixer, gate) == (shown["mixer"], shown["gate"]):
            return status("quiet")
        name = shown["mixer"]
        if name.startswith(OWN_PREFIX):
            with suppress(LoraMixerError):
                name = self.source.find(name).title
        return status(
            "note",
            f"The view still shows {name} with {describe_gate(shown['gate'])}; "
            "press Generate to use the new settings.",
        )

    def choose_example(
        self, key: str, mixer: str | None, gate: str, shown: Shown, request: gr.Request
    ) -> tuple[str, Any, Shown, Any, Status]:
        """The prompt of an example; its recording too, unless a run is filling the view."""
        example = find_example(key)
        payload = self.recordings.payload(key)
        if self.tickets.meets(session_of(request), ROOM):
            return example.prompt, gr.skip(), shown, gr.skip(), gr.skip()
        if payload is None:
            note = status("note", "No recording of this example; press Generate.")
            return example.prompt, gr.skip(), shown, gr.skip(), note
        now_shown = self._shown_of_recording(key)
        current = self._keep_recording(key, request)
        return example.prompt, payload, now_shown, current, self.settings_note(mixer, gate, now_shown)

    # ------------------------------------------------------------------ running

    def announce(self, prompt: str, max_new_tokens: float, request: gr.Request) -> tuple[Any, ...]:
        """The first half of Generate, outside the queue: refuse at once what can be refused, else open a ticket."""

        def check() -> None:
            check_prompt(prompt)
            check_new_tokens(int(max_new_tokens))

        return begin_run(self.tickets, self.source, session_of(request), ROOM, check)

    def run(
        self,
        prompt: str,
        mixer: str | None,
        gate: str,
        max_new_tokens: float,
        number: int,
        request: gr.Request,
        effects: bool = False,
    ) -> Iterator[tuple[Any, ...]]:
        """The second half of Generate, in the queue: streams view, status, settings on screen, key, both buttons.

        ``effects`` records what every expert adds, beside its gate.
        """
        with self.tickets.claim(session_of(request), number) as ticket:
            if ticket is None:
                yield _nothing_new()
                return
            asked_for = run_request(prompt, mixer or "", gate, int(max_new_tokens))
            frames = _Frames({"mixer": mixer or "", "gate": gate}, asked_for, ticket, self.traces)
            try:
                if ticket.stop.is_set():
                    line = status("note", NOT_BEGUN)
                    yield ticket.last(frames.end(line, "stopped"))
                    return
                asked = replace(self._request(prompt, mixer, gate, int(max_new_tokens)), contributions=effects)
                for trace in self.source.stream(asked, ticket.stop):
                    if frame := frames.add(trace):
                        yield frame
                yield ticket.last(frames.finish(asked.max_new_tokens))
            except LoraMixerError as error:
                yield ticket.last(frames.end(status("error", str(error)), "failed"))
            except Exception as error:
                logger.exception("A run failed")
                text = (
                    f"The run ended with an error inside the model ({type(error).__name__}); press Generate to try "
                    "again, and see the log of the server if it happens again."
                )
                yield ticket.last(frames.end(status("error", text), "failed"))

    def refused(self, request: gr.Request) -> tuple[Any, ...]:
        """The queue did not take the run, or the connection broke: give the buttons back."""
        self.tickets.drop(session_of(request), ROOM)
        text = "The run did not start: too many visitors are waiting. Press Generate again in a minute."
        return status("error", text), *run_buttons(running=False)

    def leave(self, request: gr.Request) -> None:
        """The connection of a page broke: nobody waits for its run, and its traces go unless it comes back."""
        self.tickets.drop(str(request.session_hash))
        when_gone(request, self.traces.forget)

    def pin(self, current: str) -> tuple[Any, Status]:
        """The trace on screen becomes A of Compare."""
        if not current:
            return gr.skip(), status("note", "There is no whole trace on screen to pin yet.")
        # The same trace pinned twice is two changes.
        pinned = {"key": current, "number": next(self._pins)}
        return pinned, status("quiet", "Pinned as A of Compare.")

    # ------------------------------------------------------------------ inside

    def _request(self, prompt: str, mixer: str | None, gate: str, max_new_tokens: int) -> RunRequest:
        mode, k = parse_gate(gate, len(self._find_mixer(mixer).experts))
        return RunRequest(prompt, self._find_mixer(mixer).name, mode, k, check_new_tokens(max_new_tokens))

    def _find_mixer(self, name: str | None) -> MixerInfo:
        return self.source.find(name or "")

    def _keep_recording(self, key: str, request: gr.Request) -> str:
        trace = self.recordings.trace(key)
        return "" if trace is None else self.traces.put(session_of(request), trace, "recorded")

    def _shown_of_recording(self, key: str) -> Shown:
        trace = self.recordings.trace(key)
        return _shown_of(trace) if trace else {}


class _Frames:
    """Turns growing traces into outputs of :meth:`Handlers.run`.

    Args:
        shown: router and gate of the run.
        request: what the run was asked for; goes into links.
        ticket: of the run.
        traces: receives the trace when the run has ended.
    """

    def __init__(self, shown: Shown, request: dict[str, Any], ticket: Ticket, traces: TraceStore) -> None:
        self.shown = shown
        self.request = request
        self.ticket = ticket
        self.traces = traces
        self.encoder: PayloadEncoder | None = None
        self.last: RoutingTrace | None = None
        self.due = 0.0

    def add(self, trace: RoutingTrace) -> tuple[Any, ...] | None:
        """A frame for this trace; None when the last one is too young, or the next one will be the last."""
        self.last = trace
        if time.monotonic() < self.due or self.ticket.stop.is_set():
            return None
        self.due = time.monotonic() + SECONDS_BETWEEN_FRAMES
        line = status("busy", f"Generating … {self.written} tokens")
        # Said with every frame, since the last one of an earlier run may have said otherwise meanwhile.
        # No key: what is on screen is in no memory before it is whole, and the key of the last one is another trace.
        return self._encode("generating"), line, self.shown, "", *run_buttons(running=True)

    def finish(self, asked: int) -> tuple[Any, ...]:
        """The last frame of a run without error."""
        if self.ticket.was_cut(self.written, asked):
            return self.end(status("note", f"Stopped after {self.written} tokens."), "stopped")
        text = f"Done: {self.written} tokens written." if asked else "Done: the prompt was routed."
        return self.end(status("quiet", text), "finished")

    def end(self, line: Status, state: ViewState) -> tuple[Any, ...]:
        """The last frame, whatever the reason; without a trace the view keeps what it shows."""
        view = shown = current = gr.skip()
        if self.last is not None:
            view, shown = self._encode(state), self.shown
            # Whoever has left cannot ask for it, and it would stay for nobody.
            if self.ticket.is_open:
                current = self.traces.put(self.ticket.session, self.last, state)
        if self.ticket.is_replaced:
            return view, gr.skip(), shown, current, gr.skip(), gr.skip()
        return view, line, shown, current, *run_buttons(running=False)

    def _encode(self, state: ViewState) -> Payload:
        assert self.last is not None
        if self.encoder is None:
            self.encoder = PayloadEncoder(self.request, gold_experts(self.last))
        return self.encoder.encode(self.last, state)

    @property
    def written(self) -> int:
        """Number of generated tokens so far."""
        return 0 if self.last is None else self.last.tokens.roles.count("generated")


def _shown_of(trace: RoutingTrace) -> Shown:
    facts = trace.provenance
    return {"mixer": str(facts.get("mixer")), "gate": gate_choice_of(facts, len(trace.experts))}


def _nothing_new() -> tuple[Any, ...]:
    return (gr.skip(),) * 6
