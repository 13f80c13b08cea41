"""Which run each browser session waits for, and whether somebody pressed Stop."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any


def session_of(request: Any) -> str:
    """The browser session that a Gradio request belongs to; empty outside a page."""
    return str(getattr(request, "session_hash", None) or "")


@dataclass(frozen=True)
class Ticket:
    """One press of Generate.

    Attributes:
        number: unique within the process, from 1.
        stop: is set when the run shall end.
    """

    number: int
    stop: threading.Event = field(default_factory=threading.Event)


class Tickets:
    """The newest ticket of every session that is waiting or running; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._tickets: dict[str, Ticket] = {}

    def open(self, session: str) -> Ticket:
        """A new ticket; an earlier run of the same session is stopped."""
        with self._lock:
            if earlier := self._tickets.get(session):
                earlier.stop.set()
            self._count += 1
            self._tickets[session] = Ticket(self._count)
            return self._tickets[session]

    def find(self, session: str, number: int) -> Ticket | None:
        """The ticket of that number, if it is still the newest of its session."""
        with self._lock:
            ticket = self._tickets.get(session)
        return ticket if ticket is not None and ticket.number == number else None

    def is_open(self, session: str) -> bool:
        """Whether this session waits or runs."""
        with self._lock:
            return session in self._tickets

    def ahead_of(self, session: str) -> int:
        """How many runs of others have been asked for before this session's."""
        with self._lock:
            own = self._tickets.get(session)
            return sum(own is not None and ticket.number < own.number for ticket in self._tickets.values())

    def stop(self, session: str) -> bool:
        """Ask the session's run to end; False when there is none."""
        with self._lock:
            ticket = self._tickets.get(session)
        if ticket is None:
            return False
        ticket.stop.set()
        return True

    def drop(self, session: str) -> None:
        """The session has left: its run ends, and a ticket that never reached the model is forgotten."""
        with self._lock:
            if ticket := self._tickets.pop(session, None):
                ticket.stop.set()

    def close(self, session: str, number: int) -> None:
        """Forget a run that has ended; a newer one of the same session stays."""
        with self._lock:
            ticket = self._tickets.get(session)
            if ticket is not None and ticket.number == number:
                del self._tickets[session]
