"""Trace files of visitors: read with limits, drawn only if the browser can draw them."""

from __future__ import annotations

from pathlib import Path

from explorer.settings import MEGABYTE, limits
from loramixer.errors import TraceError
from loramixer.trace import RoutingTrace

MAX_TOKENS = 1024
MAX_NUMBERS = 4_000_000
"""Sites × tokens × experts: a prompt of 1,024 tokens through 120 sites and 32 experts."""


def read_trace_file(path: Path) -> RoutingTrace:
    """The trace of a file.

    Raises:
        TraceError: no trace of this format, a file beyond the limits here, or a trace that is too large to draw.
    """
    size = path.stat().st_size
    if size > limits().trace_bytes:
        raise TraceError(
            f"'{path.name}' has {size / MEGABYTE:,.0f} MB, at most {limits().trace_bytes / MEGABYTE:,.0f} MB can be "
            "opened here."
        )
    trace = RoutingTrace.load(path)
    if len(trace.tokens) > MAX_TOKENS or trace.gates.size > MAX_NUMBERS:
        raise TraceError(
            f"'{path.name}' has {len(trace.tokens):,} tokens at {len(trace.sites):,} routers; at most {MAX_TOKENS:,} "
            f"tokens and {MAX_NUMBERS:,} gates can be drawn here."
        )
    if not len(trace.tokens):
        raise TraceError(f"'{path.name}' is a trace without tokens; there is nothing to draw.")
    return trace
