"""Finished traces of the sessions, in bounded memory: rooms pass keys to each other and never arrays."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict

from explorer.payload import ViewState
from explorer.settings import limits
from loramixer.errors import TraceError
from loramixer.trace import RoutingTrace

MAX_BYTES = 512 * 1024 * 1024
"""Of all sessions together; the least recently used traces are forgotten first."""


class TraceStore:
    """Traces by key. A key belongs to one session, so nobody can ask for somebody else's trace.

    Recordings are in memory once for everybody, so here they take nothing.

    Args:
        max_bytes: how much all traces together may take; the newest is kept whatever it takes.
        session_bytes: how much the traces of one session may take, likewise; by default as ``limits()`` says.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, session_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._session_bytes = limits().trace_bytes if session_bytes is None else session_bytes
        self._lock = threading.Lock()
        self._traces: OrderedDict[tuple[str, str], tuple[RoutingTrace, ViewState]] = OrderedDict()

    def put(self, session: str, trace: RoutingTrace, state: ViewState = "finished") -> str:
        """Keep a trace; returns its key, which stays the same for a trace that the session has already.

        Args:
            session: whose it is.
            trace: is not copied.
            state: where it comes from; a run that has come to its end unless something else is said.
        """
        with self._lock:
            key = self._key_of(session, trace, state) or uuid.uuid4().hex
            self._traces[session, key] = trace, state
            self._traces.move_to_end((session, key))
            # First the session's own, so that a busy visitor costs the others nothing.
            self._make_room([pair for pair in self._traces if pair[0] == session], self._session_bytes)
            self._make_room(list(self._traces), self._max_bytes)
        return key

    def get(self, session: str, key: str) -> RoutingTrace:
        """The trace of a key.

        Raises:
            TraceError: this session has no such trace, or it was forgotten to make room.
        """
        return self._find(session, key)[0]

    def state_of(self, session: str, key: str) -> ViewState:
        """Where the trace of a key comes from.

        Raises:
            TraceError: as for :meth:`get`.
        """
        return self._find(session, key)[1]

    def _key_of(self, session: str, trace: RoutingTrace, state: ViewState) -> str | None:
        """The key of a trace that the session has already."""
        mine = ((key, kept) for (owner, key), kept in self._traces.items() if owner == session)
        return next((key for key, kept in mine if kept[0] is trace and kept[1] == state), None)

    def _find(self, session: str, key: str) -> tuple[RoutingTrace, ViewState]:
        with self._lock:
            if (session, key) not in self._traces:
                raise TraceError("This trace is no longer in memory; generate it again, or open its saved file.")
            self._traces.move_to_end((session, key))
            return self._traces[session, key]

    def _make_room(self, pairs: list[tuple[str, str]], max_bytes: int) -> None:
        """Drop the least recently used of these traces until they fit; the newest stays."""
        taken = {pair: self._bytes_of(pair) for pair in pairs}
        total = sum(taken.values())
        for pair in pairs[:-1]:
            if total <= max_bytes:
                return
            if taken[pair]:
                total -= taken[pair]
                del self._traces[pair]

    def _bytes_of(self, pair: tuple[str, str]) -> int:
        trace, state = self._traces[pair]
        return 0 if state == "recorded" else trace_bytes(trace)

    def forget(self, session: str) -> None:
        """Drop everything of a session that has left."""
        with self._lock:
            for pair in [pair for pair in self._traces if pair[0] == session]:
                del self._traces[pair]


def trace_bytes(trace: RoutingTrace) -> int:
    """Memory that the arrays of a trace take."""
    arrays = (trace.logits, trace.gates, getattr(trace, "contributions", None), getattr(trace, "base_norms", None))
    return sum(array.nbytes for array in arrays if array is not None)
