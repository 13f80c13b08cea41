"""Which runs each browser session waits for, and whether somebody pressed Stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from explorer.registry import ModelSource

Frame = TypeVar("Frame")

Met = Literal["", "waiting", "running"]
"""What Stop met: nothing; a run that had not begun, which is forgotten; or one that ends after its token."""


PATIENCE = 15 * 60.0
"""Seconds for which what a session has is kept once its connection broke: a phone that shows another app for a minute
breaks it, and the page that comes back opens no second one."""

_Forget = Callable[[str], None]
_left: dict[str, list[_Forget]] = {}
_timers: dict[str, threading.Timer] = {}
_left_lock = threading.Lock()


def session_of(request: Any) -> str:
    """The browser session that a Gradio request belongs to; empty outside a page.

    One whose connection broke and that is heard of again keeps its things for as long as at first.
    """
    session = _name(request)
    with _left_lock:
        if session in _left:
            _wait(session)
    return session


def when_gone(request: Any, forget: _Forget) -> None:
    """The connection of a session broke: forget its things, unless it is heard of within :data:`PATIENCE`.

    Args:
        request: of the event.
        forget: takes the session; each is called once.
    """
    session = _name(request)
    if PATIENCE <= 0:
        forget(session)
        return
    with _left_lock:
        _left.setdefault(session, []).append(forget)
        _wait(session)


def _name(request: Any) -> str:
    return str(getattr(request, "session_hash", None) or "")


def _wait(session: str) -> None:
    """Begin to wait, or begin again; with the lock held."""
    if former := _timers.get(session):
        former.cancel()
    timer = _timers[session] = threading.Timer(PATIENCE, _gone, (session,))
    timer.daemon = True
    timer.start()


def _gone(session: str) -> None:
    with _left_lock:
        _timers.pop(session, None)
        forgets = _left.pop(session, [])
    for forget in forgets:
        forget(session)


@dataclass(frozen=True, eq=False)
class Ticket:
    """One press of Generate.

    Attributes:
        number: unique within the process, from 1.
        session: who pressed.
        room: where; its buttons and its status line are the ones that the run speaks with.
        tickets: the open ones, which this one belongs to.
        stop: is set when the run shall end.
        begun: is set when its turn has come.
        outdated: is set when something else was chosen than what the run began with.
    """

    number: int
    session: str
    room: str
    tickets: Tickets = field(repr=False)
    stop: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    outdated: threading.Event = field(default_factory=threading.Event)

    @property
    def is_open(self) -> bool:
        """Whether somebody still waits for the run; not once it is closed, or its session has left."""
        return self in self.tickets.of(self.session)

    @property
    def is_replaced(self) -> bool:
        """Whether a newer run of the same room speaks for it, so that this one has nothing more to say there."""
        return any(other.number > self.number and other.room == self.room for other in self.tickets.of(self.session))

    def close(self) -> None:
        """Forget the run, which has ended."""
        self.tickets.forget(self)

    def last(self, frame: Frame) -> Frame:
        """The last frame of the run, which is closed first: whoever presses Stop now is told that nothing runs."""
        self.close()
        return frame

    def was_cut(self, written: int, asked: int) -> bool:
        """Whether Stop ended the run; after the last of the tokens that were asked for there is nothing to stop."""
        return self.stop.is_set() and written < asked


class Tickets:
    """The tickets of every session that are waiting or running; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._tickets: dict[str, list[Ticket]] = {}

    def open(self, session: str, room: str) -> Ticket:
        """A new ticket; earlier runs of the same session are stopped, whatever room they are of."""
        with self._lock:
            self._count += 1
            ticket = Ticket(self._count, session, room, self)
            mine = self._tickets.setdefault(session, [])
            for earlier in mine:
                earlier.stop.set()
            mine.append(ticket)
        return ticket

    @contextmanager
    def claim(self, session: str, number: float | None) -> Iterator[Ticket | None]:
        """The ticket of that number for as long as the block runs, then it is closed; None when there is none."""
        with self._lock:
            mine = self._tickets.get(session, ())
            if ticket := next((ticket for ticket in mine if ticket.number == number), None):
                ticket.begun.set()
        try:
            yield ticket
        finally:
            if ticket is not None:
                ticket.close()

    def of(self, session: str) -> list[Ticket]:
        """The open tickets of a session, the newest last."""
        with self._lock:
            return list(self._tickets.get(session, ()))

    def is_open(self, session: str) -> bool:
        """Whether this session waits or runs."""
        return bool(self.of(session))

    def ahead_of(self, session: str) -> int:
        """How many runs of others have been asked for before this session's newest; one that is stopped is no wait."""
        with self._lock:
            if not (mine := self._tickets.get(session)):
                return 0
            others = [ticket for tickets in self._tickets.values() if tickets is not mine for ticket in tickets]
            return sum(ticket.number < mine[-1].number and not ticket.stop.is_set() for ticket in others)

    def meets(self, session: str, room: str) -> Met:
        """What Stop in a room would meet now."""
        with self._lock:
            return self._meets(session, room)

    def stop(self, session: str, room: str) -> Met:
        """Ask the runs of a room to end, and forget those whose turn has not come: nobody shall wait for them."""
        with self._lock:
            met = self._meets(session, room)
            mine = [ticket for ticket in self._tickets.get(session, ()) if ticket.room == room]
            for ticket in mine:
                ticket.stop.set()
            self._forget(session, [ticket for ticket in mine if not ticket.begun.is_set()])
            return met

    def outdate(self, session: str, room: str) -> None:
        """Ask the runs of a room to end without showing what they wrote: it belongs to what is no longer chosen."""
        for ticket in self.of(session):
            if ticket.room == room:
                ticket.outdated.set()
                ticket.stop.set()

    def _meets(self, session: str, room: str) -> Met:
        mine = [ticket for ticket in self._tickets.get(session, ()) if ticket.room == room]
        if not mine:
            return ""
        # The newest one speaks for its room.
        return "running" if mine[-1].begun.is_set() else "waiting"

    def drop(self, session: str, room: str = "") -> None:
        """End and forget the runs of a session that has left, or those of one of its rooms, which the queue refused:
        they may never reach the model, where they would be closed."""
        for ticket in self.of(session):
            if room in ("", ticket.room):
                ticket.stop.set()
                ticket.close()

    def forget(self, ticket: Ticket) -> None:
        """Forget one ticket; others of the same session stay."""
        with self._lock:
            self._forget(ticket.session, [ticket])

    def _forget(self, session: str, gone: list[Ticket]) -> None:
        if left := [ticket for ticket in self._tickets.get(session, ()) if ticket not in gone]:
            self._tickets[session] = left
        else:
            self._tickets.pop(session, None)


def waiting_text(tickets: Tickets, session: str, source: ModelSource) -> str:
    """What a status line says until a run begins: what it waits for, and how many were first."""
    text = "Waiting for the model …" if source.status().kind == "ready" else "Waiting until the model is loaded …"
    if ahead := tickets.ahead_of(session):
        text = f"{text} {ahead} {'run was' if ahead == 1 else 'runs were'} asked for before yours."
    return text
