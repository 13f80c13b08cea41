"""The encoding between server and browser."""

from __future__ import annotations

import json

import numpy as np
import pytest

from explorer.payload import PayloadEncoder, decode_column, encode_column, encode_tokens, encode_trace
from loramixer.trace import TraceTokens
from tests.app.synthetic import make_trace


def test_column_round_trip_keeps_gates_and_logits() -> None:
    trace = make_trace()
    for position in (0, 5, len(trace.tokens) - 1):
        column = encode_column(trace.gates[:, position], trace.logits[:, position])
        gates, logits = decode_column(column, len(trace.sites), len(trace.experts))
        assert np.abs(gates - trace.gates[:, position]).max() <= 0.5 / 65535 + 1e-7
        assert np.abs(logits - trace.logits[:, position]).max() <= 0.5 / 256 + 1e-6


def test_absent_experts_and_huge_logits_survive() -> None:
    gates = np.array([[0.25, 0.75, 0.0]], dtype=np.float32)
    _, logits = decode_column(encode_column(gates, np.array([[-np.inf, 900.0, -900.0]])), 1, 3)
    assert logits[0, 0] == -np.inf
    assert logits[0, 1] == pytest.approx(128, abs=0.01)
    assert logits[0, 2] == pytest.approx(-128, abs=0.01)


def test_payload_is_json_and_describes_every_site() -> None:
    trace = make_trace()
    payload = json.loads(json.dumps(encode_trace(trace, "recorded")))
    assert payload["schema"] == 1
    assert payload["state"] == "recorded"
    assert len(payload["sites"]) == len(trace.sites) == 120
    assert len(payload["columns"]) == len(payload["tokens"]) == len(trace.tokens)
    assert [expert["letter"] for expert in payload["experts"]] == ["A", "B", "C", "D"]
    assert payload["provenance"][0]["value"] == "Recorded"


def test_growing_trace_only_adds_columns() -> None:
    encoder = PayloadEncoder()
    first = encoder.encode(make_trace(written=2), "generating")
    second = encoder.encode(make_trace(written=5), "finished")
    assert second["run"] == first["run"]
    assert second["columns"][: len(first["columns"])] == first["columns"]
    assert len(second["columns"]) == len(first["columns"]) + 3
    whole = encode_trace(make_trace(written=5), "finished")
    assert whole["columns"] == second["columns"]
    assert whole["run"] != second["run"]


def tokens_of(text: str, spans: list[tuple[int, int]]) -> TraceTokens:
    return TraceTokens(
        text=text,
        ids=np.arange(len(spans)),
        spans=np.array(spans),
        roles=("prompt",) * len(spans),
        special=np.zeros(len(spans), dtype=bool),
    )


def test_bytes_of_one_character_are_counted() -> None:
    """A tokenizer gives the first byte token the space before the character as well."""
    rows = encode_tokens(tokens_of("of 🦊 ok", [(0, 2), (2, 4), (3, 4), (3, 4), (4, 7)]))
    assert [row[0] for row in rows] == ["of", " 🦊", "🦊", "🦊", " ok"]
    assert [(row[2], row[3]) for row in rows] == [(1, 1), (1, 3), (2, 3), (3, 3), (1, 1)]


def test_equal_neighbours_are_not_parts_of_one_character() -> None:
    rows = encode_tokens(tokens_of("the the", [(0, 3), (3, 7)]))
    assert [(row[2], row[3]) for row in rows] == [(1, 1), (1, 1)]


def test_markup_in_a_token_stays_text() -> None:
    rows = encode_tokens(tokens_of("<script>", [(0, 8)]))
    assert rows[0][0] == "<script>"
