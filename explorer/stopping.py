"""The Stop button of every room that runs the model."""

from __future__ import annotations

from typing import Any

import gradio as gr

from explorer.components.status_line import Status, status
from explorer.sessions import Tickets, session_of

_AT_ONCE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


def wire_stop(button: gr.Button, line: gr.HTML, tickets: Tickets, text: str = "Stopping after this token …") -> None:
    """End the run of the visitor's session when the button is pressed; what is on screen stays.

    In two steps, since a run may end the moment it is told to: its last words must not come before those of the
    button, which would then stay for ever.

    Args:
        button: the Stop button.
        line: the status line of the room.
        tickets: of the room's runs.
        text: what the line says until the run has ended.
    """

    def announce(request: gr.Request) -> tuple[Status, Any]:
        line_now = status("busy", text) if tickets.is_open(session_of(request)) else status("quiet")
        return line_now, gr.Button(interactive=False)

    def stop(request: gr.Request) -> Any:
        # A run that has ended meanwhile has said its last words already, under those of the button.
        return gr.skip() if tickets.stop(session_of(request)) else status("quiet")

    button.click(announce, None, [line, button], **_AT_ONCE).then(stop, None, line, **_AT_ONCE)
