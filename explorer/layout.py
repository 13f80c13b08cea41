"""The page: its head, its rooms, and what `launch` needs; each room wires itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.api import PublicApi
from explorer.handlers import Handlers
from explorer.link import WRITE, write_if_open
from explorer.page import Page
from explorer.recordings import Recordings
from explorer.registry import ModelSource
from explorer.rooms import ROOMS
from explorer.serving import wants_mcp
from explorer.settings import limits
from explorer.traces_in_memory import TraceStore

TITLE = "LoRA-Mixer explorer"
HIDE = """() => {
  const hidden = new URLSearchParams(window.location.search).get('hide') || '';
  document.body.dataset.hide = hidden.split(',').join(' ');
}"""
"""``?hide=controls,share``: what a teacher's link leaves out; ``page.css`` says what can be named."""

NO_LONE_DOT = "<style>@media (max-width: 640px) { footer .divider.divider { display: none; } }</style>"
"""Gradio hides a link of its foot line on phones and leaves the dot behind it. What is in ``page.css`` does not reach
the foot line."""

_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]


KEPT_SESSIONS = 300
"""Gradio keeps the settings of every component of every session, about 1 MB, until there are more sessions than this.
Whoever comes back after 300 others finds the page as it was at first."""


def build(source: ModelSource, recordings: Recordings) -> gr.Blocks:
    """The page over a source of models and a folder of recordings."""
    traces = TraceStore()
    handlers = Handlers(source, recordings, traces)
    _, shown_first = handlers.opening()
    # Uploaded files and downloads are forgotten after an hour.
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Which expert does a router choose for each token, in each layer?</p>",
            elem_id="masthead",
            apply_default_css=False,
        )
        shown, current, wanted = gr.State(shown_first), gr.State(""), gr.State({})
        pinned = gr.State({})
        addresses = {room.key: gr.Textbox(visible=False) for room in ROOMS}
        with gr.Tabs(elem_id="rooms") as tabs:
            page = Page(demo, tabs, source, recordings, handlers, traces, shown, current, wanted, pinned, addresses)
            demo.unload(page.forget_exports)
            for room in ROOMS:
                with gr.Tab(room.label, id=room.key, elem_id=f"room-{room.key}") as tab:
                    room.build(page)
                # Unlike the event of the tabs together, this one also comes when an event opens the room.
                # A room that was opened before its address was known writes it then.
                address = addresses[room.key]
                for event, write in ((tab.select, WRITE), (address.change, write_if_open(f"room-{room.key}"))):
                    event(None, address, None, js=write, api_visibility="private", show_progress="hidden", queue=False)
        _fold_on_phones(page)
        demo.load(_open_room, None, tabs, js=HIDE, api_visibility="private", show_progress="hidden", queue=False)
        PublicApi(source, handlers.tickets).add()
    return demo.queue(max_size=32)


def _fold_on_phones(page: Page) -> None:
    """Phones start with the controls folded: the defaults are good and the views are what the page is for."""
    page.demo.load(
        lambda narrow: tuple(gr.Accordion(open=not narrow) for _ in page.folds),
        gr.Checkbox(visible=False),
        page.folds,
        js="() => [window.innerWidth < 700]",
        api_visibility="private",
        show_progress="hidden",
        queue=False,
    )


def _open_room(request: gr.Request) -> Any:
    """The room that the address names; an unknown one leaves the first open."""
    key = dict(request.query_params).get("room", "")
    return gr.Tabs(selected=key) if key in {room.key for room in ROOMS} else gr.skip()


def launch_options() -> dict[str, Any]:
    """What ``launch`` needs so that the page looks and behaves the same everywhere.

    Raises:
        LoraMixerError: an MCP server is asked for, but not installed.
    """
    return {
        "theme": _theme(),
        "css_paths": [Path(__file__).parent / "page.css"],
        "head": NO_LONE_DOT,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
        "max_file_size": limits().upload_bytes,
        "state_session_capacity": KEPT_SESSIONS,
        "mcp_server": wants_mcp(),
        # Skips Gradio's look at its own page, which ends the app where that takes longer than three seconds, as it may
        # on a busy machine while the model loads. It asks for nothing else.
        "_frontend": False,
    }


def _theme() -> gr.themes.Base:
    """Plain surfaces and system fonts; the colours are those of ``components/base.css``."""
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
