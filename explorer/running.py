"""The two halves of a run, as every room that runs the model wires them: what is said at once, and what waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from explorer.components.status_line import status
from explorer.registry import ModelSource
from explorer.sessions import Ticket, Tickets, waiting_text
from explorer.settings import gate_choices, gate_for
from loramixer.errors import LoraMixerError
from loramixer.mixers import MixerInfo

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_AT_ONCE: dict[str, Any] = {**_PRIVATE, "queue": False}
_MODEL: dict[str, Any] = {**_PRIVATE, "concurrency_id": "model", "concurrency_limit": 1}

NOT_BEGUN = "Stopped before the model began; nothing was lost."


def run_buttons(running: bool, starts: int = 1) -> tuple[Any, ...]:
    """What the buttons that start a run, and Stop behind them, shall be."""
    return (*(gr.Button(interactive=not running) for _ in range(starts)), gr.Button(interactive=running))


def begin_run(
    tickets: Tickets,
    source: ModelSource,
    session: str,
    room: str,
    check: Callable[[], None],
    starts: int = 1,
) -> tuple[Any, ...]:
    """The first half of a run, outside the queue: refuse at once what can be refused, else open a ticket.

    Args:
        tickets: of all visitors.
        source: of the model that the run waits for.
        session: of the visitor.
        room: that the run is for.
        check: raises a LoraMixerError whose sentence says why not.
        starts: how many buttons start a run.

    Returns:
        The number of the ticket, or 0; the status line; the buttons.
    """
    try:
        check()
    except LoraMixerError as error:
        return 0, status("error", str(error)), *(gr.skip() for _ in range(starts + 1))
    ticket = tickets.open(session, room)
    line = status("busy", waiting_text(tickets, session, source))
    return ticket.number, line, *run_buttons(running=True, starts=starts)


def last_frame(ticket: Ticket, shown: Sequence[Any], starts: int = 1) -> tuple[Any, ...]:
    """The last frame of a run: its own values, then the buttons; nothing at all where a newer run of the room speaks.

    Args:
        ticket: of the run; it is closed.
        shown: values of the components before the buttons.
        starts: how many buttons start a run.
    """
    frame = (*shown, *run_buttons(False, starts))
    return ticket.last((gr.skip(),) * len(frame) if ticket.is_replaced else frame)


def ticket_number() -> gr.Number:
    """Where a room keeps the number of its newest ticket.

    No state: the value of a state is read when an event is worked on, and a run that has waited would take the ticket
    of a later press. The value of any other component leaves the browser with the press.
    """
    return gr.Number(0, precision=0, visible=False)


def wire_run(
    triggers: Sequence[Any],
    announce: Callable[..., tuple[Any, ...]],
    asked: Any,
    run: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    refused: Callable[..., tuple[Any, ...]],
    *,
    ticket: gr.Number,
    said: Sequence[Any],
) -> Any:
    """Announce a run at once, then run it when the model is free.

    Args:
        triggers: the presses that begin a run.
        announce: the first half, outside the queue; returns the number of a ticket, or 0, and values of ``said``.
        asked: inputs of ``announce``.
        run: the second half, in the queue; does nothing for the number 0.
        inputs: of ``run``; ``ticket`` is among them.
        outputs: of ``run``.
        refused: what is said when the queue does not take the second half; returns values of ``said``.
        ticket: from :func:`ticket_number`.
        said: the status line and the buttons.

    Returns:
        The second half, for what follows it.
    """
    # Several at once: Gradio would drop the second half of a press while that of an earlier one waits or runs, and
    # the earlier one ends by itself once it is told that there is a newer ticket.
    running = gr.on(triggers, announce, asked, [ticket, *said], **_AT_ONCE).then(
        run, inputs, outputs, trigger_mode="multiple", **_MODEL
    )
    running.failure(refused, None, said, **_AT_ONCE)
    return running


def gate_control(mixer: MixerInfo, gate: str) -> Any:
    """The gate control of a router that was just chosen; its value only where that must be another one.

    Whoever has meanwhile chosen a gate keeps it: the answer to the router's choice comes late on a busy machine.
    """
    choices, usual = gate_choices(len(mixer.experts)), gate_for(mixer, gate)
    return gr.Radio(choices=choices) if usual == gate else gr.Radio(choices=choices, value=usual)
