"""Trade-off: every router on the entropy–balance plane, and a training replayed on one prompt."""

from __future__ import annotations

from typing import Any

import gradio as gr

from explorer.components.plane_view import PlaneView
from explorer.components.replay_view import ReplayView
from explorer.components.status_line import StatusLine, status
from explorer.page import Page
from explorer.rooms.share import FORMATS as ALL_FORMATS
from explorer.rooms.share import share_and_export
from explorer.rooms.tradeoff.handlers import NO_REPLAY, NOT_INSTALLED, ROOM, TradeoffHandlers
from explorer.running import ticket_number, wire_run
from explorer.stopping import wire_stop

ABOUT = (
    "Each router is one point. To the right: single tokens are **undecided**, every expert gets a share. Up: the "
    "**load** is even over all tokens. A load is never less even than its tokens, so nothing lies below the diagonal. "
    "The gap above it is how **specialised** the experts are. Top left is where a mixture of specialists wants to be; "
    "a pure balance loss is content at the top right."
)

FORMATS = tuple(entry for entry in ALL_FORMATS if entry.key != "npz")

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE: dict[str, Any] = {**PRIVATE, "queue": False}


def build(page: Page) -> None:
    """Components and wiring of the room."""
    handlers = TradeoffHandlers(page.source, tickets=page.handlers.tickets)
    opening = handlers.opening()
    ticket, view, query = ticket_number(), gr.State({}), page.addresses[ROOM]
    has_replays = bool(handlers.replays)
    with gr.Row(elem_classes="room"):
        with gr.Column(elem_id="tradeoff-controls", elem_classes="controls", scale=0, min_width=300):
            gr.Markdown(ABOUT, elem_id="tradeoff-about")
            with gr.Row(elem_classes="buttons-in-row"):
                measure = gr.Button("Measure", variant="primary", elem_id="tradeoff-measure", min_width=80)
                stop = gr.Button("Stop", interactive=False, elem_id="tradeoff-stop", min_width=60)
            room_status = StatusLine(
                status("quiet", "Measure routes the example prompts through every installed router, on this machine."),
                elem_id="tradeoff-status",
            )
            replay = gr.Dropdown(
                handlers.replay_choices(),
                value=NO_REPLAY,
                label="Replay a training",
                info="Recorded: a fixed prompt at many steps.",
                elem_id="tradeoff-replay",
                visible=has_replays,
            )
            StatusLine(status("note", NOT_INSTALLED), elem_id="tradeoff-no-replay", visible=not has_replays)
            with gr.Accordion("Share and export", open=False, elem_id="tradeoff-share", elem_classes="share-fold"):
                gr.HTML(
                    "<p class='note'>Files and Python are of the measured plane, without squares and replays; what is "
                    "on screen is saved below the table.</p>",
                    apply_default_css=False,
                )
                share_and_export(
                    "tradeoff",
                    formats=FORMATS,
                    make_file=lambda kind, values, session: page.exports.figure(
                        session, handlers.figure(), "measured-plane", kind
                    ),
                    make_code=lambda values, session: handlers.code(),
                )
        with gr.Column(elem_classes="view", min_width=0):
            plane = PlaneView(opening, elem_id="plane-view")
            frames = ReplayView(None, elem_id="tradeoff-frames")

    send = [page.tabs, page.wanted, room_status]
    # Through the queue: outside it, a change of a state is not told to those who listen to it.
    plane.open_router(handlers.open_router, None, send, **PRIVATE)  # type: ignore[attr-defined]
    plane.pin_router(handlers.pin_router, None, send, **PRIVATE)  # type: ignore[attr-defined]
    plane.change_view(  # type: ignore[attr-defined]
        handlers.view_query, replay, [view, query], trigger_mode="always_last", **AT_ONCE
    )
    replay.change(handlers.choose_replay, replay, frames, **AT_ONCE)
    replay.input(handlers.query, [view, replay], query, **AT_ONCE)
    buttons = [measure, stop]
    wire_run(
        [measure.click],
        handlers.announce,
        None,
        handlers.measure,
        [ticket],
        [plane, room_status, *buttons],
        handlers.refused,
        ticket=ticket,
        said=[room_status, *buttons],
    )
    wire_stop(stop, [measure], room_status, handlers.tickets, ROOM, "Stopping …")
    page.demo.load(handlers.open_link, None, [plane, view, replay, room_status, query], **AT_ONCE)
