"""Compare: two traces on one page, A and B, with their difference and their divergence."""

from __future__ import annotations

from typing import Any

import gradio as gr

from explorer.components.compare_view import CompareView
from explorer.components.share_menu import PromptInLink
from explorer.components.status_line import StatusLine, status
from explorer.handlers import describe_mixer
from explorer.page import Page, entering
from explorer.rooms.compare.files import COMPARISON_FORMATS, code_maker, file_maker
from explorer.rooms.compare.handlers import FIRST_STEPS, ROOM, CompareHandlers
from explorer.rooms.compare.link import recording_spec
from explorer.rooms.compare.ready_made import recording_choices
from explorer.rooms.compare.steps import step_control
from explorer.rooms.share import share_and_export
from explorer.running import ticket_number, wire_run
from explorer.settings import DEFAULT_K, DEFAULT_NEW_TOKENS, default_gate, gate_choices, limits
from explorer.stopping import wire_stop

LABEL = "Compare"
"""On the tab of the room."""

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE: dict[str, Any] = {**PRIVATE, "queue": False}


def build(page: Page) -> None:
    """Components and wiring of the room."""
    handlers = CompareHandlers(page.source, page.recordings, page.traces, page.handlers.tickets)
    sides, written, entered = gr.State({}), gr.State({}), gr.State(False)
    with gr.Row(elem_classes="room"):
        with gr.Column(elem_id="compare-controls", elem_classes="controls", scale=0, min_width=300):
            with gr.Row(elem_classes="buttons-in-row", visible=bool(handlers.ready)):
                ready_buttons = [gr.Button(entry.label, size="sm", min_width=60) for entry in handlers.ready]
            lines = [
                StatusLine(status("quiet", f"{side}: not chosen yet"), elem_id=f"compare-{side}") for side in "AB"
            ]
            with gr.Accordion("Choose A and B", open=True, elem_id="compare-choose") as choose:
                side = gr.Radio(["A", "B"], value="A", label="Choose next", elem_id="compare-side")
                take = gr.Button("What Explore shows", size="sm", elem_id="compare-take")
                choices = [(label, recording_spec(key)) for label, key in recording_choices(page.recordings)]
                recording = gr.Dropdown(
                    choices, value=None, label="A recording", elem_id="compare-recording", visible=bool(choices)
                )
                upload = gr.UploadButton(
                    "Open a trace file", size="sm", file_types=[".npz"], type="filepath", elem_id="compare-file"
                )
                with gr.Row(elem_classes="buttons-in-row"):
                    swap = gr.Button("Swap A and B", size="sm", min_width=60, elem_id="compare-swap")
                    clear = gr.Button("Clear", size="sm", min_width=60, elem_id="compare-clear")
            room_status = StatusLine(elem_id="compare-status")
            run_fold, *run_controls = _run_controls(page)
            with gr.Accordion("Share and export", open=False, elem_id="compare-share", elem_classes="share-fold"):
                share_and_export(
                    "compare",
                    formats=COMPARISON_FORMATS,
                    make_file=file_maker(page.exports, handlers.traces_of),
                    make_code=code_maker(handlers.traces_of),
                    inputs=[sides],
                    prompt=PromptInLink("#compare-view .compare-view"),
                )
        view = CompareView("compare", {"waiting": FIRST_STEPS}, elem_id="compare-view", elem_classes="view")

    shown = [sides, view, *lines, side, room_status]
    for index, button in enumerate(ready_buttons):
        button.click(handlers.choose_ready, gr.State(index), shown, **AT_ONCE)
    enter = entering(LABEL, lambda *values: (*handlers.enter(*values), True), len(shown) + 1)
    page.tabs.select(enter, [sides, entered], [*shown, entered], **AT_ONCE)
    take.click(handlers.take_current, [side, page.current, sides], shown, **AT_ONCE)
    page.pinned.change(handlers.take_pinned, [page.pinned, sides], shown, **AT_ONCE)
    # Emptied at once: whoever leaves the control without a choice must not take the former one again.
    recording.input(handlers.take_recording, [side, recording, sides], shown, **AT_ONCE).then(
        lambda: None, None, recording, **AT_ONCE
    )
    upload.upload(handlers.take_file, [side, upload, sides], shown, **AT_ONCE)
    swap.click(handlers.swap, sides, shown, **AT_ONCE)
    clear.click(handlers.clear, None, shown, **AT_ONCE)

    prompt, mixer, step, gate, new_tokens, run, stop = run_controls
    ticket = ticket_number()
    side.change(lambda name: gr.Button(f"Run {name}"), side, run, **AT_ONCE)
    mixer.change(handlers.choose_mixer, [mixer, step, gate], [mixer, step, gate], **AT_ONCE)
    page.wanted.change(handlers.choose_wanted, page.wanted, mixer, **AT_ONCE)
    running = wire_run(
        [run.click, prompt.submit],
        handlers.announce,
        [side, prompt, new_tokens, sides],
        handlers.run,
        [side, prompt, mixer, step, gate, new_tokens, sides, ticket],
        [written, room_status, run, stop],
        handlers.refused,
        ticket=ticket,
        said=[room_status, run, stop],
    )
    running.then(handlers.take_run, [written, sides], [*shown, written], **AT_ONCE)
    wire_stop(stop, [run], room_status, handlers.tickets, ROOM)
    page.folds.extend([choose, run_fold])
    page.demo.load(handlers.open_link, None, [*shown, prompt, mixer, step, gate, new_tokens], **AT_ONCE)


def _run_controls(page: Page) -> tuple[Any, ...]:
    mixers = list(page.source.mixers())
    first = mixers[0] if mixers else None
    experts = len(first.experts) if first else DEFAULT_K + 1
    with gr.Accordion("A new run", open=True, elem_id="compare-run-settings") as fold:
        prompt = gr.Textbox(
            label="Prompt", lines=3, max_lines=8, elem_id="compare-prompt", info="Empty: the prompt of the other side."
        )
        mixer = gr.Dropdown(
            [(entry.title, entry.name) for entry in mixers],
            value=first.name if first else None,
            label="Router",
            info=describe_mixer(first) if first else "No trained router is installed.",
            elem_id="compare-mixer",
        )
        step = step_control(
            page.source.steps(first.name) if first else {},
            label="Training step",
            info="The same experts under the routers as they were at this step of their training.",
            elem_id="compare-step",
        )
        gate = gr.Radio(
            gate_choices(experts),
            value=default_gate(experts),
            label="Gate: experts per token (k)",
            elem_id="compare-gate",
        )
        new_tokens = gr.Slider(
            0,
            limits().new_tokens,
            DEFAULT_NEW_TOKENS,
            step=8,
            label="Longest answer (tokens)",
            elem_id="compare-new-tokens",
        )
        with gr.Row(elem_classes="buttons-in-row"):
            run = gr.Button("Run A", variant="primary", elem_id="compare-run", min_width=80)
            stop = gr.Button("Stop", interactive=False, elem_id="compare-stop", min_width=60)
    return fold, prompt, mixer, step, gate, new_tokens, run, stop
