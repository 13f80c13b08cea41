"""Mixtures: shares by rows and by tokens, the same rows for the same seed, and no evaluation row among them."""

import gzip
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramixer.data import (
    Example,
    FolderSource,
    draw_mixture,
    evaluation_examples,
    fingerprint,
    generated_examples,
    mixed_examples,
    token_counter,
    without_overlap,
)
from loramixer.data.mixtures import _merged
from loramixer.errors import DataError
from tests import tiny

FOUR = ("math", "medical", "code", "language")
LENGTHS = {"gsm8k": 60, "medquad": 300, "pubmedqa": 30, "mbpp": 90, "cola": 5, "sst2": 5}
"""Words of the answers in the small folder: long for medicine, short for language, as in the real sets."""


def folder_rows(task, split, count, words):
    return [
        {"id": f"{task}-{split}-{number}", "task": task, "domain": "any", "target": "word " * (words + number % 7),
         "prompt": f"{task} question number {number} of {split}"}
        for number in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for task, words in LENGTHS.items():
        (folder / task).mkdir()
        for split, count in (("train", 40), ("test", 10)):
            with gzip.open(folder / task / f"{split}.jsonl.gz", "wt") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in folder_rows(task, split, count, words))
    return folder


def count_words(row):
    return len(f"{row.prompt} {row.target}".split())


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(4, 300),
    seed=st.integers(0, 5),
    shares=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
)
def test_shares_of_rows_are_kept_to_a_row(small_folder, count, seed, shares):
    given_shares = dict(zip(FOUR, shares, strict=True))
    mixture = draw_mixture(count, seed, FOUR, shares=given_shares, source=small_folder)
    assert len(mixture.rows) == count == sum(mixture.rows_of.values())
    assert mixture.rows_of == {name: sum(row.domain == name for row in mixture.rows) for name in FOUR}
    for name, share in given_shares.items():
        assert abs(mixture.rows_of[name] - count * share / sum(shares)) < 1.5
    again = draw_mixture(count, seed, FOUR, shares=given_shares, source=FolderSource(small_folder))
    assert again.rows == mixture.rows


def test_equal_shares_are_equal_inside_domains_too(small_folder):
    mixture = draw_mixture(250, 3, FOUR, source=small_folder)
    assert mixture.rows_of == {"math": 63, "medical": 63, "code": 62, "language": 62}
    tasks = Counter(row.task for row in mixture.rows)
    assert tasks == {"gsm8k": 63, "medquad": 32, "pubmedqa": 31, "mbpp": 62, "cola": 31, "sst2": 31}
    # 63 rows of 40: each is there once before any is there twice.
    assert max(Counter(row.id for row in mixture.rows if row.domain == "math").values()) == 2
    assert mixture.rows == mixed_examples(250, 3, FOUR, source=small_folder)
    assert fingerprint(mixture.rows) != fingerprint(mixed_examples(250, 4, FOUR, source=small_folder))
    assert mixture.overlap is None
    assert mixture.tokens_of is None


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 20), math=st.floats(0.5, 3))
def test_shares_of_tokens_are_kept_to_a_row(small_folder, seed, math):
    shares = {"math": math, "medical": 1, "code": 1, "language": 1}
    mixture = draw_mixture(
        600, seed, FOUR, shares=shares, balance="tokens", count_tokens=count_words, source=small_folder
    )
    total = sum(mixture.tokens_of.values())
    for name, share in shares.items():
        assert abs(mixture.tokens_of[name] - total * share / sum(shares.values())) < 2 * 312
    assert len(mixture.rows) == 600
    assert mixture.rows_of["language"] > 2 * mixture.rows_of["medical"]
    medical = [sum(count_words(row) for row in mixture.rows if row.task == task) for task in ("medquad", "pubmedqa")]
    assert abs(medical[0] - medical[1]) < 2 * 312
    assert mixture.to_dict()["tokens_of"] == mixture.tokens_of
    assert json.loads(json.dumps(mixture.to_dict()))["fingerprint"] == fingerprint(mixture.rows)


def test_rows_without_tokens_are_passed_over_and_counted(small_folder):
    def count_tokens(row):
        return 0 if row.task == "medquad" and int(row.id.rpartition("-")[2]) % 4 else count_words(row)

    mixture = draw_mixture(100, 0, FOUR, balance="tokens", count_tokens=count_tokens, source=small_folder)
    assert mixture.too_long > 0
    assert all(count_tokens(row) for row in mixture.rows)
    with pytest.raises(DataError, match="No row of medquad fits"):
        draw_mixture(
            100, 0, FOUR, balance="tokens", count_tokens=lambda row: row.task != "medquad", source=small_folder
        )


def test_generated_rows_can_be_weighed_too():
    mixture = draw_mixture(90, 0, balance="tokens", count_tokens=token_counter(tiny.tokenizer()), source="generated")
    assert mixture.origin == "generated"
    assert max(mixture.tokens_of.values()) < 1.3 * min(mixture.tokens_of.values())
    assert mixture.rows_of["sentiment"] != mixture.rows_of["math"]


def test_generated_mixtures_have_as_many_rows_as_asked_for():
    rows = mixed_examples(21, 0, ["math", "language"], source="generated")
    assert Counter(row.domain for row in rows) == {"math": 11, "language": 10}
    assert rows == generated_examples(21, 0, ["math", "language"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 3}, "at least 6"),
        ({"domains": ["law"]}, "no recipe for the domain 'law'"),
        ({"domains": ["math", "math"]}, "both hold"),
        ({"shares": {"math": 1}}, "one positive number for each of"),
        ({"shares": dict.fromkeys(FOUR, 0)}, "one positive number for each of"),
        ({"balance": "tokens"}, "needs count_tokens"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments, message):
    with pytest.raises(DataError, match=message):
        draw_mixture(**{"count": 8, "seed": 0, "source": "generated", **arguments})


WORDS = [f"w{number}" for number in range(30)]


def row(prompt, task="t", row_id="1"):
    return Example(row_id, task, "math", prompt, "")


def test_equal_prompts_are_found_through_case_spaces_and_punctuation():
    kept, report = without_overlap([row("A  cat,\nsat!"), row("A cat sat up")], [row("a cat (sat)", "other")])
    assert [found.prompt for found in kept] == ["A cat sat up"]
    assert (report.same, report.overlapping, report.kept) == ({"t": 1}, {}, {"t": 1})
    assert "1 of 2 rows left out: 1 are also" in str(report)


def test_reports_of_two_domains_that_share_a_task_add_up():
    _, law = without_overlap([row("a cat"), row("a dog")], [row("a cat", "other")])
    _, tax = without_overlap([row("a cow"), row("a pig"), row("a hen")], [row("a pig", "other")])
    merged = _merged([law, tax])
    assert (merged.same, merged.overlapping, merged.kept) == ({"t": 2}, {}, {"t": 3})


@given(
    before=st.lists(st.sampled_from("abc"), max_size=5),
    after=st.lists(st.sampled_from("abc"), max_size=5),
    start=st.integers(0, 10),
    length=st.integers(8, 18),
)
def test_thirteen_words_in_a_row_overlap_and_twelve_do_not(before, after, start, length):
    training = row(" ".join([*before, *WORDS[start : start + length], *after]))
    kept, report = without_overlap([training], [row(" ".join(WORDS))])
    assert bool(kept) == (length < 13)
    assert sum(report.overlapping.values()) == (length >= 13)


def test_the_wording_of_a_task_is_no_overlap():
    wording = "answer the following question about words with yes or with no and say nothing else at all"
    training = [row(f"{wording}\n{number} is a number", row_id=str(number)) for number in range(20)]
    evaluation = [row(f"{wording}\n{number} is a word", row_id=str(number)) for number in range(20)]
    kept, report = without_overlap(training, evaluation)
    assert kept == training
    assert report.kept == {"t": 20}


def test_evaluation_rows_are_kept_out_of_a_mixture(small_folder, tmp_path):
    for name in LENGTHS:
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.jsonl.gz").write_bytes(
                (small_folder / name / f"{split}.jsonl.gz").read_bytes()
            )
    leaked = folder_rows("gsm8k", "train", 25, 60)
    with gzip.open(tmp_path / "gsm8k/validation.jsonl.gz", "wt") as file:
        file.writelines(f"{json.dumps({**found, 'prompt': found['prompt'].upper()})}\n" for found in leaked)
    evaluation = evaluation_examples(FOUR, source=tmp_path)
    assert len(evaluation) == 6 * 10 + 25
    mixture = draw_mixture(120, 0, FOUR, evaluation=evaluation, source=tmp_path)
    assert not {found["prompt"] for found in leaked} & {found.prompt for found in mixture.rows}
    assert mixture.rows_of["math"] == 30
    assert (mixture.overlap.same, mixture.overlap.kept["gsm8k"], mixture.overlap.kept["sst2"]) == (
        {"gsm8k": 25},
        15,
        40,
    )
    with pytest.raises(DataError, match="Every row of gsm8k"):
        draw_mixture(
            8,
            0,
            FOUR,
            evaluation=[row(f"gsm8k question number {number} of train") for number in range(40)],
            source=tmp_path,
        )


def test_the_real_training_rows_hardly_overlap_with_evaluation(real_data):
    domains = ["math", "code", "science", "acceptability"]
    evaluation = evaluation_examples(domains)
    mixture = draw_mixture(400, 0, domains, evaluation=evaluation)
    assert sum(mixture.overlap.same.values()) <= 5
    kept, dropped = sum(mixture.overlap.kept.values()), sum(mixture.overlap.overlapping.values())
    assert dropped < 0.03 * kept
    assert {found.prompt for found in evaluation}.isdisjoint(found.prompt for found in mixture.rows)
