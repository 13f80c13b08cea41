"""What if: other gates at once from stored scores, and interventions while the model writes again."""

from __future__ import annotations

from typing import Any

import gradio as gr

from explorer.components.compare_view import CompareView
from explorer.components.share_menu import PromptInLink
from explorer.components.status_line import StatusLine, status
from explorer.page import Page, entering
from explorer.rooms.compare.files import COMPARISON_FORMATS, code_maker, file_maker
from explorer.rooms.share import share_and_export
from explorer.rooms.what_if.changes import KINDS, PLACES
from explorer.rooms.what_if.handlers import NOTHING_YET, ROOM, WhatIfHandlers
from explorer.running import ticket_number, wire_run
from explorer.settings import default_gate, gate_choices
from explorer.stopping import wire_stop

LABEL = "What if"
LEAST_SLIDERS = 8
"""Bias sliders at least; more where a router of the zoo has more experts."""

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE: dict[str, Any] = {**PRIVATE, "queue": False}


def build(page: Page) -> None:
    """Components and wiring of the room."""
    mixers = list(page.source.mixers())
    slots = max([LEAST_SLIDERS, *(len(mixer.experts) for mixer in mixers)])
    handlers = WhatIfHandlers(page.source, page.recordings, page.traces, page.handlers.tickets, slots)
    experts = list(mixers[0].experts) if mixers else []
    base, result, marked, ticket = gr.State({}), gr.State({}), gr.State([]), ticket_number()
    with gr.Row(elem_classes="room"):
        with gr.Column(elem_id="what-if-controls", elem_classes="controls", scale=0, min_width=300):
            line = StatusLine(status("quiet", "No trace yet"), elem_id="what-if-base")
            take = gr.Button("Take what Explore shows", size="sm", elem_id="what-if-take")
            with gr.Accordion("Other gates, at once", open=True, elem_id="what-if-gates") as gates_fold:
                temperature, gate, mask, biases, regenerate = _gate_controls(experts, slots)
            with gr.Accordion("With the model", open=True, elem_id="what-if-model") as model_fold:
                kind, chosen, where, text, control, seed, run, stop = _model_controls(experts)
            room_status = StatusLine(elem_id="what-if-status")
            with gr.Accordion("Share and export", open=False, elem_id="what-if-share", elem_classes="share-fold"):
                share_and_export(
                    "what-if",
                    formats=COMPARISON_FORMATS,
                    make_file=file_maker(page.exports, handlers.traces_of),
                    make_code=code_maker(handlers.traces_of),
                    inputs=[base, result],
                    prompt=PromptInLink("#what-if-text :is(textarea, input)", "w", "with the words of the prompt"),
                )
        view = CompareView(
            "what_if",
            {"waiting": NOTHING_YET},
            empty_title="No trace to change yet",
            elem_id="what-if-view",
            elem_classes="view",
        )

    opened = [base, line, view, result, room_status, gate, temperature, mask, chosen, *biases]
    gates = [base, gate, temperature, mask, *biases]
    take.click(handlers.take, page.current, opened, **AT_ONCE)
    page.tabs.select(entering(LABEL, handlers.enter, len(opened)), [page.current, base], opened, **AT_ONCE)
    gr.on(
        [
            gate.input,
            mask.input,
            # The button that takes a slider back to its beginning is a release and no input.
            *(event for slider in (temperature, *biases) for event in (slider.input, slider.release)),
        ],
        handlers.recompute,
        gates,
        [view, result, room_status],
        trigger_mode="always_last",
        **AT_ONCE,
    )
    kind.change(lambda name: gr.CheckboxGroup(visible=name != "uniform"), kind, chosen, **AT_ONCE)
    where.change(lambda place: gr.Textbox(visible=place == "words"), where, text, **AT_ONCE)
    view.mark(_mark, None, [where, text, marked], **AT_ONCE)
    buttons = [regenerate, run, stop]
    for press, handler, inputs in (
        (regenerate.click, handlers.regenerate, gates[1:]),
        (run.click, handlers.intervene, [kind, chosen, where, text, control, seed, marked]),
    ):
        wire_run(
            [press],
            handlers.announce,
            base,
            handler,
            [base, ticket, *inputs],
            [view, result, room_status, *buttons],
            handlers.refused,
            ticket=ticket,
            said=[room_status, *buttons],
        )
    wire_stop(stop, [regenerate, run], room_status, handlers.tickets, ROOM)
    page.folds.extend([gates_fold, model_fold])
    page.demo.load(handlers.open_link, page.current, [*opened, kind, where, text, seed], **AT_ONCE)


def _mark(event: gr.EventData) -> tuple[str, Any, list[int]]:
    """Words that were marked in the text of A: where the change acts, the words, and the positions of their tokens."""
    return "words", gr.Textbox(value=str(event.text), visible=True), [int(event.first), int(event.end)]


def _gate_controls(experts: list[str], slots: int) -> tuple[Any, ...]:
    temperature = gr.Slider(
        0.1, 4, 1, step=0.05, label="Temperature", elem_id="what-if-temperature",
        info="Divides the scores: below 1 decides more sharply, above 1 less.",
    )  # fmt: skip
    gate = gr.Radio(
        gate_choices(max(len(experts), 1)),
        value=default_gate(max(len(experts), 1)),
        label="Gate: experts per token (k)",
        elem_id="what-if-gate",
    )
    mask = gr.CheckboxGroup(experts, label="Without", info="Experts that may not be chosen.", elem_id="what-if-mask")
    with gr.Accordion("Bias of each expert", open=False, elem_id="what-if-biases"):
        gr.HTML(
            "<p class='note'>Added to the score of the expert, in nats: 0.7 doubles its odds, −0.7 halves them.</p>",
            apply_default_css=False,
        )
        biases = [
            gr.Slider(
                -4, 4, 0, step=0.1,
                label=experts[place] if place < len(experts) else "",
                visible=place < len(experts),
                elem_id=f"what-if-bias-{place}",
            )
            for place in range(slots)
        ]  # fmt: skip
    regenerate = gr.Button("Regenerate with these gates", size="md", elem_id="what-if-regenerate")
    return temperature, gate, mask, biases, regenerate


def _model_controls(experts: list[str]) -> tuple[Any, ...]:
    kind = gr.Radio(
        list(KINDS), value="mask", label="What happens", elem_id="what-if-kind",
        info="Mask takes experts out; force gives one all the weight; uniform gives all the same.",
    )  # fmt: skip
    chosen = gr.CheckboxGroup(experts, label="Experts", elem_id="what-if-experts")
    where = gr.Radio(list(PLACES), value="everything", label="Where", elem_id="what-if-where")
    text = gr.Textbox(
        label="Words of the prompt", info="Type them, or mark them in the text of A.", visible=False, max_lines=3,
        elem_id="what-if-text",
    )  # fmt: skip
    control = gr.Checkbox(
        True, label="Random control", elem_id="what-if-control",
        info="Runs once more with as many experts taken out at random, to read the effect against chance.",
    )  # fmt: skip
    seed = gr.Number(0, label="Seed of the control", precision=0, minimum=0, elem_id="what-if-seed")
    with gr.Row(elem_classes="buttons-in-row"):
        run = gr.Button("Run", variant="primary", elem_id="what-if-run", min_width=80)
        stop = gr.Button("Stop", interactive=False, elem_id="what-if-stop", min_width=60)
    return kind, chosen, where, text, control, seed, run, stop
