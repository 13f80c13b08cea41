"""Rows: the schema and its errors, mixtures, generated rows, and loss on the answer only."""

import gzip
import json

import pytest

from loramixer.data import (
    IGNORED_LABEL,
    RECIPES,
    Example,
    encode,
    fingerprint,
    generated_examples,
    held_out_examples,
    mixed_examples,
    read_examples,
)
from loramixer.errors import DataError
from tests import tiny

ROW = {"id": "1", "task": "gsm8k", "domain": "math", "prompt": "2 + 2?", "target": "4", "choices": None, "label": None}


def write(path, *rows):
    with gzip.open(path, "wt") as file:
        file.writelines(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    return path


def test_reads_rows_and_names_the_domain_after_the_expert(tmp_path):
    path = write(tmp_path / "x.jsonl.gz", ROW, {**ROW, "id": "2", "task": "cola", "domain": "nlu"})
    first, second = read_examples(path)
    assert first == Example("1", "gsm8k", "math", "2 + 2?", "4")
    assert second.domain == "language"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "line 2: no valid JSON"),
        ({**ROW, "prompt": None}, "line 2: field 'prompt' is None"),
        ({**ROW, "choices": "yes"}, "line 2: field 'choices'"),
        ({**ROW, "choices": ["yes", "no"], "label": 2}, "line 2: field 'label' is 2"),
        ("[1]", "line 2: a JSON list"),
    ],
)
def test_schema_errors_name_file_line_and_field(tmp_path, row, message):
    path = write(tmp_path / "x.jsonl.gz", ROW, row)
    with pytest.raises(DataError, match=f"x.jsonl.gz, {message}"):
        read_examples(path)


def test_missing_empty_and_damaged_files(tmp_path):
    with pytest.raises(DataError, match="There is no data file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        read_examples(write(tmp_path / "empty.jsonl.gz"))
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "bad.jsonl.gz")


def test_a_wrong_data_folder_is_said(monkeypatch):
    monkeypatch.setenv("LORAMIXER_DATA", "/no/such/folder")
    with pytest.raises(DataError, match="which is no folder"):
        mixed_examples(8, 0)


def test_generated_rows_are_seeded_and_exact(monkeypatch):
    monkeypatch.delenv("LORAMIXER_DATA", raising=False)
    rows = generated_examples(80, seed=1)
    assert rows == generated_examples(80, seed=1) != generated_examples(80, seed=2)
    assert {row.domain for row in rows} == set(RECIPES)
    sums = [row for row in rows if row.domain == "math"]
    for row in sums:
        boxes, each, gone = (int(word) for word in row.prompt.split() if word.isdigit())
        assert row.target.endswith(f"#### {boxes * each - gone}")
    assert all(row.choices and row.choices[row.label] == row.target for row in rows if row.domain == "language")


def test_held_out_generated_rows_are_not_training_rows(monkeypatch):
    monkeypatch.delenv("LORAMIXER_DATA", raising=False)
    trained = {row.id for row in mixed_examples(400, 0)}
    assert not trained & {row.id for row in held_out_examples("math", 50, 0)}


def test_mixtures_have_equal_shares_and_repeat_by_seed(real_data):
    rows = mixed_examples(200, seed=3)
    assert {domain: sum(row.domain == domain for row in rows) for domain in RECIPES} == dict.fromkeys(RECIPES, 50)
    assert fingerprint(rows) == fingerprint(mixed_examples(200, seed=3)) != fingerprint(mixed_examples(200, seed=4))


def test_held_out_rows_share_nothing_with_training_rows(real_data):
    trained = {(row.task, row.prompt) for row in mixed_examples(400, 0)}
    for domain in RECIPES:
        held_out = held_out_examples(domain, 40, 0)
        assert len(held_out) == 40
        assert not trained & {(row.task, row.prompt) for row in held_out}


def test_too_few_rows_for_the_domains():
    with pytest.raises(DataError, match="at least 4"):
        mixed_examples(3, 0)


def test_loss_is_on_the_answer_only():
    tokenizer = tiny.tokenizer()
    example = Example("1", "t", "math", "the dose", "ten")
    row = encode(example, tokenizer, 100)
    answer = [label for label in row["labels"] if label != IGNORED_LABEL]
    assert tokenizer.decode(answer) == "ten</s>"
    assert len(row["labels"]) == len(row["input_ids"]) == len(row["own_tokens"])
    assert row["labels"][: -len(answer)] == [IGNORED_LABEL] * (len(row["labels"]) - len(answer))


def test_long_answers_are_cut_and_long_prompts_left_out():
    tokenizer = tiny.tokenizer()
    example = Example("1", "t", "math", "the dose", "ten " * 50)
    assert len(encode(example, tokenizer, 20)["input_ids"]) == 20
    assert sum(label != IGNORED_LABEL for label in encode(example, tokenizer, 100, max_answer=5)["labels"]) == 5
    assert encode(example, tokenizer, 3) is None
