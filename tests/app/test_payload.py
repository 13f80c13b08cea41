"""The encoding between server and browser."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from explorer.payload import PayloadEncoder, decode_columns, encode_tokens, encode_trace
from loramixer.aggregate import token_groups
from loramixer.trace import TraceTokens
from tests.app.synthetic import make_trace


def test_columns_come_back_as_the_browser_reads_them() -> None:
    trace = make_trace()
    gates, logits, shares = decode_columns(encode_trace(trace, "recorded"))
    assert np.abs(gates - trace.gates).max() <= 0.5 / 65535 + 1e-7
    assert np.abs(logits - trace.logits).max() <= 0.5 / 256 + 1e-6
    assert shares is not None
    assert np.abs(shares - trace.contribution_shares).max() <= 0.5 / 16384 + 1e-7


def test_a_trace_without_contributions_has_no_third_part() -> None:
    trace = dataclasses.replace(make_trace(), contributions=None, base_norms=None)
    payload = encode_trace(trace, "recorded")
    assert json.loads(payload["head"])["parts"] == ["gates", "logits"]
    assert decode_columns(payload)[2] is None


def test_absent_experts_huge_logits_and_empty_outputs_survive() -> None:
    trace = make_trace()
    trace.logits[0, 0] = [-np.inf, 900.0, -900.0, 0.0]
    trace.base_norms[1, 2] = 0
    trace.contributions[2, 2] = 5.0
    _, logits, shares = decode_columns(encode_trace(trace, "recorded"))
    assert logits[0, 0, 0] == -np.inf
    assert logits[0, 0, 1:3] == pytest.approx([128, -128], abs=0.01)
    assert np.isnan(shares[1, 2]).all()
    assert shares[2, 2] == pytest.approx(65534 / 16384)


def test_payload_is_json_and_describes_every_site() -> None:
    trace = make_trace()
    payload = json.loads(json.dumps(encode_trace(trace, "recorded", {"prompt": "How?", "link": {"k": "3"}})))
    head = json.loads(payload["head"])
    assert payload["schema"] == 2
    assert payload["state"] == "recorded"
    assert len(head["sites"]) == len(trace.sites) == 120
    assert len(rows_of(payload)) == len(trace.tokens)
    assert [expert["letter"] for expert in head["experts"]] == ["A", "B", "C", "D"]
    assert head["request"] == {"prompt": "How?", "link": {"k": "3"}}
    assert json.loads(payload["provenance"])[0]["value"] == "Recorded"
    assert all(isinstance(value, (str, int)) for value in payload.values())


def test_texts_of_a_growing_trace_only_get_longer() -> None:
    encoder = PayloadEncoder()
    first = encoder.encode(make_trace(written=2), "generating")
    second = encoder.encode(make_trace(written=5), "finished")
    assert second["run"] == first["run"]
    assert second["head"] == first["head"]
    assert second["columns"].startswith(first["columns"])
    assert second["tokens"].startswith(first["tokens"])
    assert len(rows_of(second)) == len(rows_of(first)) + 3
    whole = encode_trace(make_trace(written=5), "finished")
    assert whole["columns"] == second["columns"]
    assert whole["tokens"] == second["tokens"] == encode_tokens(make_trace(written=5).tokens)
    assert whole["run"] != second["run"]


def rows_of(payload: dict) -> list[list]:
    return [json.loads(line) for line in payload["tokens"].split("\n")]


def rows_of_tokens(tokens: TraceTokens) -> list[list]:
    return [json.loads(line) for line in encode_tokens(tokens).split("\n")]


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
    rows = rows_of_tokens(tokens_of("of 🦊 ok", [(0, 2), (2, 4), (3, 4), (3, 4), (4, 7)]))
    assert [row[0] for row in rows] == ["of", " 🦊", "🦊", "🦊", " ok"]
    assert [(row[2], row[3]) for row in rows] == [(1, 1), (1, 3), (2, 3), (3, 3), (1, 1)]


def test_equal_neighbours_are_not_parts_of_one_character() -> None:
    rows = rows_of_tokens(tokens_of("the the", [(0, 3), (3, 7)]))
    assert [(row[2], row[3]) for row in rows] == [(1, 1), (1, 1)]


def test_markup_in_a_token_stays_text() -> None:
    rows = rows_of_tokens(tokens_of("<script>", [(0, 8)]))
    assert rows[0][0] == "<script>"


def test_every_token_names_its_word_and_its_sentence() -> None:
    tokens = make_trace().tokens
    rows = rows_of_tokens(tokens)
    assert [row[5] for row in rows] == token_groups(tokens, "word").tolist()
    assert [row[6] for row in rows] == token_groups(tokens, "sentence").tolist()
    assert len({row[5] for row in rows}) > len({row[6] for row in rows}) > 3
