"""The page: components and wiring, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.routing_view import RoutingView
from explorer.components.status_line import StatusLine
from explorer.examples import EXAMPLES
from explorer.handlers import Handlers, describe_mixer
from explorer.recordings import Recordings
from explorer.registry import ModelSource
from explorer.settings import DEFAULT_K, DEFAULT_NEW_TOKENS, MAX_NEW_TOKENS, default_gate, gate_choices
from loramixer.mixers import MixerInfo

TITLE = "LoRA-Mixer explorer"
_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]


def build(source: ModelSource, recordings: Recordings) -> gr.Blocks:
    """The page over a source of models and a folder of recordings."""
    handlers = Handlers(source, recordings)
    payload, shown_first = handlers.opening()
    mixers = list(source.mixers())
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False) as demo:
        shown = gr.State(shown_first)
        ticket = gr.State(0)
        with gr.Row(elem_id="room"):
            with gr.Column(elem_id="controls", scale=0, min_width=300):
                gr.HTML(
                    f"<h1>{TITLE}</h1><p>Which expert does a router choose for each token, in each layer?</p>",
                    elem_id="masthead",
                    apply_default_css=False,
                )
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
            view = RoutingView(payload, elem_id="routing-view")

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once: dict[str, Any] = {**private, "queue": False}
        buttons = [generate, stop]

        running = gr.on(
            [generate.click, prompt.submit],
            handlers.announce,
            [prompt, new_tokens],
            [ticket, run_status, *buttons],
            **at_once,
        ).then(
            handlers.run,
            [prompt, mixer, gate, new_tokens, ticket],
            [view, run_status, shown, *buttons],
            concurrency_id="model",
            concurrency_limit=1,
            **private,
        )
        running.failure(handlers.refused, None, [run_status, *buttons], **at_once)
        stop.click(handlers.stop, None, [run_status, stop], **at_once)
        for key, button in example_buttons.items():
            button.click(
                handlers.choose_example,
                [gr.State(key), mixer, gate, shown],
                [prompt, view, shown, run_status],
                **at_once,
            )
        backbone.input(handlers.choose_backbone, backbone, mixer, **at_once)
        mixer.change(handlers.choose_mixer, [mixer, gate, shown], [mixer, gate, run_status], **at_once)
        gate.input(handlers.settings_note, [mixer, gate, shown], run_status, **at_once)

        timer = gr.Timer(1.0)
        timer.tick(handlers.poll, shown, [model_status, timer], **at_once)
        # Phones start with the settings folded: the defaults are good and the views are what the page is for.
        narrow = gr.Checkbox(visible=False)
        demo.load(
            lambda is_narrow: gr.Accordion(open=not is_narrow),
            narrow,
            settings,
            js="() => [window.innerWidth < 700]",
            **at_once,
        )
        demo.unload(handlers.leave)
        gr.api(handlers.route, api_name="route", concurrency_id="model", concurrency_limit=1)
        gr.api(handlers.generate, api_name="generate", concurrency_id="model", concurrency_limit=1)
    return demo.queue(max_size=16)


def launch_options() -> dict[str, Any]:
    """What ``launch`` needs so that the page looks and behaves the same everywhere."""
    return {
        "theme": _theme(),
        "css_paths": [Path(__file__).parent / "page.css"],
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
    }


def _theme() -> gr.themes.Base:
    """Plain surfaces and system fonts; the colours are those of ``routing_view/view.css``."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        font=_SANS,
        font_mono=_MONO,
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#0e1116",
        body_text_color="#1a1f26",
        body_text_color_dark="#e6e9ee",
        body_text_color_subdued="#59626f",
        body_text_color_subdued_dark="#a0aab8",
        block_background_fill="#ffffff",
        block_background_fill_dark="#161a21",
        block_border_color="#d8dde4",
        block_border_color_dark="#303844",
        block_info_text_color="#59626f",
        block_info_text_color_dark="#a0aab8",
        input_background_fill="#ffffff",
        input_background_fill_dark="#0e1116",
        input_border_color="#b8c0cc",
        input_border_color_dark="#465060",
        input_border_width="1px",
        button_primary_background_fill="#0072B2",
        button_primary_background_fill_dark="#0072B2",
        button_primary_background_fill_hover="#005f94",
        button_primary_background_fill_hover_dark="#005f94",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#161a21",
        button_secondary_border_color="#b8c0cc",
        button_secondary_border_color_dark="#465060",
        button_border_width="1px",
        slider_color="#0072B2",
        slider_color_dark="#56B4E9",
        checkbox_background_color_selected="#0072B2",
        checkbox_background_color_selected_dark="#0072B2",
        checkbox_border_color_selected="#0072B2",
        checkbox_border_color_selected_dark="#56B4E9",
    )


def _settings(source: ModelSource, mixers: list[MixerInfo]) -> tuple[Any, Any, Any, Any]:
    backbones = list(source.backbones())
    first = mixers[0] if mixers else None
    experts = len(first.experts) if first else DEFAULT_K + 1
    backbone = gr.Dropdown(
        backbones,
        value=first.backbone if first else next(iter(backbones), None),
        label="Backbone",
        info="The frozen model that the experts adapt. It is small: its answers are often wrong.",
        elem_id="backbone",
    )
    mixer = gr.Dropdown(
        [(entry.title, entry.name) for entry in mixers],
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
        0, MAX_NEW_TOKENS, DEFAULT_NEW_TOKENS, step=8, label="Longest answer (tokens)", elem_id="new-tokens"
    )
    return backbone, mixer, gate, new_tokens
