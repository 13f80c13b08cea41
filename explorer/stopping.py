"""The Stop button of every room that runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from explorer.components.status_line import status
from explorer.running import NOT_BEGUN, run_buttons
from explorer.sessions import Tickets, session_of

_AT_ONCE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


def wire_stop(
    button: gr.Button,
    starts: Sequence[gr.Button],
    line: gr.HTML,
    tickets: Tickets,
    room: str,
    text: str = "Stopping after this token …",
) -> None:
    """End the room's run of the visitor's session when the button is pressed; what is on screen stays.

    In two steps, since a run may end the moment it is told to: its last words must not come before those of the
    button, which would then stay for ever. A run that still waits for its turn has no last words before that turn, so
    the button speaks for it and gives the buttons back.

    Args:
        button: the Stop button.
        starts: the buttons that start a run.
        line: the status line of the room.
        tickets: of the room's runs.
        room: key of the room.
        text: what the line says until the run has ended.
    """

    def announce(request: gr.Request) -> tuple[Any, Any]:
        met = tickets.meets(session_of(request), room)
        words = {"": status("quiet"), "waiting": gr.skip(), "running": status("busy", text)}
        return words[met], gr.Button(interactive=False)

    def stop(request: gr.Request) -> tuple[Any, ...]:
        met = tickets.stop(session_of(request), room)
        if met == "waiting":
            return status("note", NOT_BEGUN), *run_buttons(running=False, starts=len(starts))
        # A run that has ended meanwhile has said its last words already, under those of the button.
        return status("quiet") if met == "" else gr.skip(), *(gr.skip() for _ in (*starts, button))

    button.click(announce, None, [line, button], **_AT_ONCE).then(stop, None, [line, *starts, button], **_AT_ONCE)
