"""Explore: one prompt, one router, every view of the routing while the model writes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from explorer.components.routing_view import RoutingView
from explorer.components.share_menu import PromptInLink
from explorer.components.status_line import StatusLine
from explorer.examples import EXAMPLES
from explorer.exported_view import VIEWS, figure_arguments
from explorer.handlers import POLL_SECONDS, ROOM, describe_backbone, describe_mixer
from explorer.page import Page
from explorer.provenance import check_loadable
from explorer.registry import ModelSource
from explorer.rooms.share import FORMATS, MakeCode, MakeFile, share_and_export
from explorer.running import ticket_number, wire_run
from explorer.settings import DEFAULT_K, DEFAULT_NEW_TOKENS, default_gate, gate_choices, limits
from explorer.stopping import wire_stop
from loramixer import viz
from loramixer.errors import TraceError
from loramixer.mixers import MixerInfo
from loramixer.trace import RoutingTrace


def build(page: Page) -> None:
    """Components and wiring of the room."""
    source, handlers, shown = page.source, page.handlers, page.shown
    payload, _ = handlers.opening()
    mixers = list(source.mixers())
    ticket = ticket_number()
    with gr.Row(elem_classes="room"):
        with gr.Column(elem_id="controls", elem_classes="controls", scale=0, min_width=300):
            prompt = gr.Textbox(
                label="Prompt", value=EXAMPLES[0].prompt, lines=4, max_lines=10, elem_id="prompt", autofocus=False
            )
            with gr.Row(elem_id="actions"):
                generate = gr.Button("Generate", variant="primary", elem_id="generate", min_width=80)
                stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=60)
            run_status = StatusLine(elem_id="run-status")
            model_status = StatusLine(handlers.model_status(payload is not None), elem_id="model-status")
            with gr.Row(elem_id="examples"):
                example_buttons = {
                    example.key: gr.Button(example.label, size="sm", min_width=60) for example in EXAMPLES
                }
            with gr.Accordion("Router and gate", open=True, elem_id="settings") as settings:
                backbone, mixer, gate, new_tokens = _settings(source, mixers)
                effects = gr.Checkbox(
                    False,
                    label="Record effects",
                    info="Measures what every expert really adds. Writing then takes about a quarter longer.",
                    elem_id="effects",
                )
            with gr.Row(elem_id="view-actions"):
                opened = gr.UploadButton("Open trace file", size="sm", file_types=[".npz"], elem_id="open-trace")
                pin = gr.Button("Pin for Compare", size="sm", min_width=60, elem_id="pin")
            with gr.Accordion("Share and export", open=False, elem_id="explore-share", elem_classes="share-fold"):
                figure = gr.Dropdown(
                    [(label, name) for name, label in VIEWS.items()],
                    value="token_map",
                    label="View to export",
                    elem_id="explore-figure",
                )
                share_and_export(
                    "explore",
                    formats=FORMATS,
                    make_file=_file_maker(page),
                    make_code=_code_maker(page),
                    inputs=[page.current, figure],
                    prompt=PromptInLink("#routing-view .routing-view"),
                )
        view = RoutingView(payload, elem_id="routing-view")

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    at_once: dict[str, Any] = {**private, "queue": False}
    buttons = [generate, stop]

    wire_run(
        [generate.click, prompt.submit],
        handlers.announce,
        [prompt, new_tokens],
        handlers.run,
        [prompt, mixer, gate, new_tokens, ticket, effects],
        [view, run_status, shown, page.current, *buttons],
        handlers.refused,
        ticket=ticket,
        said=[run_status, *buttons],
    )
    # In the queue: Gradio tells nobody that a state has changed after an event outside of it.
    pin.click(handlers.pin, page.current, [page.pinned, run_status], concurrency_limit=None, **private)
    wire_stop(stop, [generate], run_status, handlers.tickets, ROOM)
    for key, button in example_buttons.items():
        button.click(
            handlers.choose_example,
            [gr.State(key), mixer, gate, shown],
            [prompt, view, shown, page.current, run_status],
            **at_once,
        )
    opened.upload(handlers.open_file, opened, [view, shown, page.current, run_status], **at_once)
    settings_now = [mixer, gate, shown]
    backbone.input(
        handlers.choose_backbone, [backbone, *settings_now], [mixer, run_status], trigger_mode="always_last", **at_once
    )
    mixer.change(handlers.choose_mixer, [mixer, gate], [mixer, gate], **at_once)
    mixer.change(handlers.backbone_of, mixer, backbone, **at_once)
    # Of what a visitor chooses only: a link changes the router too, and has a note of its own.
    gr.on(
        [mixer.input, gate.input],
        handlers.note_settings,
        settings_now,
        run_status,
        trigger_mode="always_last",
        **at_once,
    )

    page.wanted.change(handlers.choose_wanted, [page.wanted, gate, shown], [mixer, run_status], **at_once)

    timer = gr.Timer(POLL_SECONDS)
    timer.tick(handlers.poll, shown, [model_status, timer], **at_once)
    page.folds.append(settings)
    page.demo.load(
        handlers.open_link,
        None,
        [prompt, view, shown, page.current, mixer, gate, new_tokens, run_status],
        **at_once,
    )
    page.demo.unload(handlers.leave)


def _file_maker(page: Page) -> MakeFile:
    """Writes files of the chosen view of the trace on screen."""

    def make(kind: Any, values: dict[str, str], session: str, current: str, figure: str) -> str:
        trace = _on_screen(page, session, current)
        arguments = {} if kind == "npz" else figure_arguments(figure, values, trace)
        return page.exports.view(session, trace, figure, arguments, kind)

    return make


def _code_maker(page: Page) -> MakeCode:
    """Writes the script of the chosen view of the trace on screen."""

    def make(values: dict[str, str], session: str, current: str, figure: str) -> str:
        trace = _on_screen(page, session, current)
        check_loadable(trace)
        return viz.recipe(trace, figure, figure_arguments(figure, values, trace))

    return make


def _on_screen(page: Page, session: str, current: str) -> RoutingTrace:
    if not current:
        raise TraceError("There is nothing to export yet; press Generate, or open a trace file.")
    return page.traces.get(session, current)


def _settings(source: ModelSource, mixers: list[MixerInfo]) -> tuple[Any, Any, Any, Any]:
    backbones = list(source.backbones())
    first = mixers[0] if mixers else None
    experts = len(first.experts) if first else DEFAULT_K + 1
    backbone = gr.Dropdown(
        backbones,
        value=first.backbone if first else next(iter(backbones), None),
        label="Backbone",
        info=describe_backbone(first.backbone if first else None),
        elem_id="backbone",
    )
    mixer = gr.Dropdown(
        [(entry.title, entry.name) for entry in mixers if first and entry.backbone == first.backbone],
        value=first.name if first else None,
        label="Router",
        info=describe_mixer(first) if first else "No trained router is installed.",
        elem_id="mixer",
    )
    gate = gr.Radio(
        gate_choices(experts),
        value=default_gate(experts),
        label="Gate: experts per token (k)",
        info="How many experts a router may mix for one token.",
        elem_id="gate",
    )
    new_tokens = gr.Slider(
        0, limits().new_tokens, DEFAULT_NEW_TOKENS, step=8, label="Longest answer (tokens)", elem_id="new-tokens"
    )
    return backbone, mixer, gate, new_tokens
