"""Settings of the training loop that are given one by one, and rows that are too long for them."""

from __future__ import annotations

import pytest

from loramixer.data import Example
from loramixer.errors import DataError, LoraMixerError
from loramixer.training.rows import encode_rows
from loramixer.training.settings import LoopSettings
from tests import tiny

ROWS = [Example(f"r{number}", "t", "math", "the dose " * number, "ten mg") for number in (1, 20, 30)]


def test_what_is_given_replaces_a_setting_and_none_leaves_it():
    settings = LoopSettings(1e-3, batch_size=4, max_length=100)
    assert settings.changed(batch_size=2, max_length=None) == LoopSettings(1e-3, batch_size=2, max_length=100)


@pytest.mark.parametrize("name", ["batch_size", "max_length", "max_answer"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(LoraMixerError, match=f"^{name} is 0; give a whole number of at least 1.$"):
        LoopSettings(1e-3).changed(**{name: 0})


def test_rows_whose_prompt_is_too_long_are_left_out_unless_nothing_is_left():
    found = encode_rows(ROWS, tiny.tokenizer(), LoopSettings(1e-3, max_length=40))
    assert [example.id for example in found.examples] == ["r1"]
    assert found.facts["rows_left_out"] == 2
    assert len(encode_rows(ROWS, tiny.tokenizer(), LoopSettings(1e-3, max_length=400)).rows) == 3
    said = (
        r"^0 of 2 rows leave room for an answer within 40 tokens; raise max_length \(--max-length\), or give shorter"
    )
    with pytest.raises(DataError, match=said):
        encode_rows(ROWS[1:], tiny.tokenizer(), LoopSettings(1e-3, max_length=40))
    with pytest.raises(DataError, match=r"^There are no rows to train on; give at least one"):
        encode_rows([], tiny.tokenizer(), LoopSettings(1e-3))
