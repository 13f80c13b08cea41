"""Views in the address: what is written is read again, and what is wrong falls back with a sentence."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pytest

from explorer.link import LinkField, parse, to_query

FIELDS = (
    LinkField("r", "router", "smollm2-135m/rsl"),
    LinkField("k", "k", 3, "int", low=1, high=6),
    LinkField("t", "temperature", 1.0, "float", low=0.1, high=10),
    LinkField("tpl", "template_tokens", False, "flag"),
    LinkField("m", "measure", "top", choices=("top", "entropy")),
)


def test_a_view_comes_back_from_its_address() -> None:
    values = {"router": "a & b/ü", "k": 2, "temperature": 0.5, "template_tokens": True, "measure": "entropy"}
    query = dict(parse_qsl(to_query("explore", values, FIELDS)))
    assert query["room"] == "explore"
    assert parse(query, FIELDS) == (values, [])


def test_defaults_are_left_out() -> None:
    assert to_query("explore", {"k": 3, "measure": "top"}, FIELDS) == "v=1&room=explore"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"k": "7"}, "from 1 to 6"),
        ({"k": "two"}, "a number"),
        ({"t": "nan"}, "from 0.1 to 10"),
        ({"tpl": "yes"}, "0 or 1"),
        ({"m": "<b>"}, "one of top, entropy"),
        ({"v": "9"}, "version 9"),
    ],
)
def test_what_cannot_be_taken_is_said_and_falls_back(query: dict[str, Any], words: str) -> None:
    values, notes = parse(query, FIELDS)
    assert values == {field.name: field.default for field in FIELDS}
    assert len(notes) == 1
    assert words in notes[0]
