"""Trace files of visitors: read with limits, drawn only if the browser can draw them."""

from __future__ import annotations

from pathlib import Path

from explorer.comparison_payload import clip
from explorer.settings import MEGABYTE, limits
from loramixer.errors import TraceError
from loramixer.trace import RoutingTrace

MAX_TOKENS = 1024
MAX_NUMBERS = 4_000_000
"""Sites × tokens × experts: a prompt of 1,024 tokens through 120 sites and 32 experts."""


def read_trace_file(path: Path) -> RoutingTrace:
    """The trace of an uploaded file. Messages name it as its visitor does, and never where it lies.

    Raises:
        TraceError: no trace of this format, or a file beyond the limits here.
    """
    try:
        # Opened here, since a path would be in the messages.
        with path.open("rb") as content:
            return RoutingTrace.load(content, max_megabytes=limits().trace_bytes / MEGABYTE)
    except OSError as error:
        raise TraceError(f"{clip(path.name)} cannot be read; upload it again.") from error
    except TraceError as error:
        text = str(error).replace("This file", clip(path.name), 1)
        raise TraceError(text.replace(", or allow more with max_megabytes", "")) from error


def read_drawable_trace(path: Path) -> RoutingTrace:
    """The trace of an uploaded file, for the views.

    Raises:
        TraceError: as for :func:`read_trace_file`, or a trace that is too large to draw, or without tokens.
    """
    trace, name = read_trace_file(path), clip(path.name)
    if len(trace.tokens) > MAX_TOKENS or trace.gates.size > MAX_NUMBERS:
        raise TraceError(
            f"{name} has {len(trace.tokens):,} tokens at {len(trace.sites):,} routers; at most {MAX_TOKENS:,} tokens "
            f"and {MAX_NUMBERS:,} gates can be drawn here."
        )
    if not len(trace.tokens):
        raise TraceError(f"{name} is a trace without tokens; there is nothing to draw.")
    return trace
