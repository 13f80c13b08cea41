"""A routing trace as a small JSON value for the browser: one base64 string for each token.

Gradio sends the difference between two JSON values, so while a trace grows only its new columns travel. A column holds
the gates, then the logits, of all sites of one token, both in the order ``[site, expert]``, little-endian:

- gates as uint16, ``round(gate * 65535)``: exact to 0.00001;
- logits as int16, ``round(logit * 256)``: exact to 0.002 within ±128; ``ABSENT`` where the site has no such expert.

``components/routing_view/decode.js`` is the other end.
"""

from __future__ import annotations

import base64
import uuid
from typing import Any, Literal

import numpy as np

from explorer.provenance import provenance_items
from loramixer.trace import RoutingTrace, TraceTokens
from loramixer.viz.palette import expert_styles

SCHEMA_VERSION = 1
GATE_SCALE = 65535
LOGIT_SCALE = 256
ABSENT = -32768
"""Stands for a logit of minus infinity: the expert is absent from this site."""

ROLES = ("template", "prompt", "generated")
"""The payload holds the index of a token's role in this tuple."""

ViewState = Literal["recorded", "generating", "finished", "stopped", "failed"]
"""Where the trace on screen comes from, and whether it is whole."""

Payload = dict[str, Any]


class PayloadEncoder:
    """Encodes one run; a trace that has grown since the last call costs only its new tokens."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex
        self._columns: list[str] = []

    def encode(self, trace: RoutingTrace, state: ViewState) -> Payload:
        """The JSON value of a trace of this run."""
        for position in range(len(self._columns), len(trace.tokens)):
            self._columns.append(encode_column(trace.gates[:, position], trace.logits[:, position]))
        return {
            "schema": SCHEMA_VERSION,
            "run": self._run,
            "state": state,
            "experts": [
                {"name": style.name, "letter": style.letter, "colour": style.colour}
                for style in expert_styles(trace.experts)
            ],
            "layers": list(trace.layers),
            "projections": list(trace.projections),
            "sites": [
                [trace.layers.index(site.layer), trace.projections.index(site.projection)] for site in trace.sites
            ],
            "tokens": encode_tokens(trace.tokens),
            "columns": list(self._columns),
            "provenance": provenance_items(trace, state),
        }


def encode_trace(trace: RoutingTrace, state: ViewState) -> Payload:
    """The JSON value of a trace that is whole already."""
    return PayloadEncoder().encode(trace, state)


def encode_column(gates: np.ndarray, logits: np.ndarray) -> str:
    """One token: gates and logits ``[S, E]`` as base64 text."""
    whole_gates = np.round(np.clip(gates, 0, 1) * GATE_SCALE).astype("<u2")
    finite = np.clip(np.round(np.where(np.isfinite(logits), logits, 0) * LOGIT_SCALE), ABSENT + 1, -ABSENT - 1)
    whole_logits = np.where(np.isfinite(logits), finite, ABSENT).astype("<i2")
    return base64.b64encode(whole_gates.tobytes() + whole_logits.tobytes()).decode("ascii")


def decode_column(column: str, sites: int, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of :func:`encode_column`, as the browser does it: gates and logits ``[S, E]`` as float32."""
    data = base64.b64decode(column)
    half = sites * experts * 2
    gates = np.frombuffer(data[:half], "<u2").reshape(sites, experts) / GATE_SCALE
    whole_logits = np.frombuffer(data[half:], "<i2").reshape(sites, experts)
    logits = np.where(whole_logits == ABSENT, -np.inf, whole_logits / LOGIT_SCALE)
    return gates.astype(np.float32), logits.astype(np.float32)


def encode_tokens(tokens: TraceTokens) -> list[list[Any]]:
    """Each token as ``[text, role, part, parts, special]``.

    ``part`` of ``parts`` tells apart tokens that hold bytes of the same character; most tokens are part 1 of 1.
    """
    encoded: list[list[Any]] = []
    for group in _groups_of_overlap(tokens.spans):
        for part, position in enumerate(group, start=1):
            role = ROLES.index(tokens.roles[position])
            encoded.append([tokens[position], role, part, len(group), int(bool(tokens.special[position]))])
    return encoded


def _groups_of_overlap(spans: np.ndarray) -> list[list[int]]:
    """Positions of tokens, those whose spans overlap together: a tokenizer overlaps spans only inside a character."""
    groups: list[list[int]] = []
    end_of_group = 0
    for position, (start, end) in enumerate(spans.tolist()):
        if groups and start < end_of_group:
            groups[-1].append(position)
        else:
            groups.append([position])
        end_of_group = max(end_of_group, end)
    return groups
