"""Rows of one's own: files and folders whose domains have no recipe, beside those that have one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from loramixer.data import (
    FileSource,
    FolderSource,
    evaluation_examples,
    expert_examples,
    find_source,
    held_out_examples,
    mixed_examples,
)
from loramixer.errors import DataError


def rows_of(task: str, domains: list[str], count: int) -> list[dict[str, str]]:
    """So many rows of one data set, its domains in turn."""
    return [
        {
            "id": str(number), "task": task, "domain": domains[number % len(domains)],
            "prompt": f"{task} {number}?", "target": str(number),
        }
        for number in range(count)
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One data set of two domains, and a second one of the first of them."""
    write(tmp_path / "own/cases/train.jsonl.gz", rows_of("cases", ["law", "poetry"], 80))
    write(tmp_path / "own/cases/test.jsonl.gz", rows_of("cases", ["law", "poetry"], 10))
    write(tmp_path / "own/statutes/train.jsonl.gz", rows_of("statutes", ["law"], 20))
    write(tmp_path / "own/statutes/test.jsonl.gz", rows_of("statutes", ["law"], 4))
    return tmp_path / "own"


def test_a_folder_has_the_domains_that_its_rows_state(folder):
    source = FolderSource(folder)
    assert source.domains() == ("law", "poetry")
    assert source.tasks("law") == ("cases", "statutes")
    assert source.tasks("poetry") == ("cases",)
    assert source.has("poetry")
    assert not source.has("math")
    with pytest.raises(DataError, match="holds no rows of the domain 'cooking'; there are rows of law, poetry"):
        expert_examples("cooking", 0, source)


def test_an_expert_takes_three_quarters_and_routers_begin_with_the_rest(folder):
    law = expert_examples("law", 0, folder)
    assert {row.domain for row in law} == {"law"}
    assert len(law) == 30 + 15
    assert len(expert_examples("poetry", 0, folder)) == 30
    mixed = mixed_examples(20, 0, source=folder)
    assert sorted({row.domain for row in mixed}) == ["law", "poetry"]
    assert sum(row.domain == "law" for row in mixed) == 10
    assert not {(row.task, row.id) for row in mixed} & {(row.task, row.id) for row in law}


@pytest.mark.parametrize("seed", [1, 2])
def test_seeds_choose_rows_of_the_same_two_parts(folder, seed):
    law = expert_examples("law", 0, folder)
    other = expert_examples("law", seed, folder)
    assert set(other) == set(law)
    assert other != law
    mixed = mixed_examples(20, seed, source=folder)
    assert set(mixed) != set(mixed_examples(20, 0, source=folder))
    assert not set(mixed) & set(law)


def test_an_expert_is_not_trained_on_what_it_is_tested_on(folder):
    before = expert_examples("law", 0, folder)
    cases = [row for row in before if row.task == "cases"][:3]
    leaked = [
        {**row, "prompt": found.prompt.upper()} for row, found in zip(rows_of("cases", ["law"], 3), cases, strict=True)
    ]
    write(folder / "cases/validation.jsonl.gz", leaked)
    kept = expert_examples("law", 0, folder, evaluation_examples(["law"], folder, ("validation",)))
    assert set(before) - set(kept) == set(cases)
    assert set(kept) < set(before)


def test_rows_to_test_on_keep_to_their_domain(folder):
    assert {row.domain for row in held_out_examples("poetry", 5, 0, source=folder)} == {"poetry"}
    assert len(held_out_examples("law", 8, 0, source=folder)) == 8
    assert len(evaluation_examples(["poetry"], folder)) == 5
    assert len(evaluation_examples(source=folder)) == 14


def test_a_recipe_stands_where_its_data_sets_are(folder):
    write(folder / "riddles/train.jsonl.gz", rows_of("riddles", ["math"], 8))
    assert FolderSource(folder).tasks("math") == ("riddles",)
    assert len(expert_examples("math", 0, folder)) == 6
    write(folder / "gsm8k/train.jsonl.gz", rows_of("gsm8k", ["math"], 8))
    source = FolderSource(folder)
    assert source.tasks("math") == ("gsm8k",)
    assert len(expert_examples("math", 0, source)) == 8
    assert source.domains() == ("math",)
    assert source.has("law")
    assert [row.task for row in mixed_examples(2, 0, ["math", "poetry"], source)].count("cases") == 1


def test_files_are_a_source_and_all_of_their_rows_may_be_trained_on(tmp_path):
    one = write(tmp_path / "one.jsonl", rows_of("cases", ["law", "poetry"], 8))
    two = write(tmp_path / "two.jsonl.gz", rows_of("statutes", ["law"], 3))
    source = find_source([one, two])
    assert isinstance(source, FileSource)
    assert (source.origin, source.domains(), source.tasks("law")) == (
        "files",
        ("law", "poetry"),
        ("cases", "statutes"),
    )
    assert len(expert_examples("law", 0, source)) == 7
    assert len(mixed_examples(6, 0, source=source)) == 6
    assert find_source(str(one)).domains() == find_source([one]).domains() == ("law", "poetry")
    assert "one.jsonl" in source.describe()
    with pytest.raises(DataError, match="are for training; test on the rows of another file"):
        held_out_examples("law", 2, 0, source=source)
    with pytest.raises(DataError, match="There is no data file"):
        find_source("nowhere.jsonl")


def test_every_row_of_a_file_is_looked_at_a_few_times_however_many_data_sets_there_are(monkeypatch):
    looks = []

    class Row:
        def __init__(self, number: int) -> None:
            self.number, self.domain = number, "law"

        @property
        def task(self) -> str:
            looks.append(self.number)
            return f"task {self.number}"

    monkeypatch.setattr("loramixer.data.local_rows.read_examples", lambda *_: [Row(number) for number in range(200)])
    source = FileSource(["many.jsonl"])
    assert [row.number for row in source.rows("task 7", "train")] == [7]
    assert source.all_tasks() == source.tasks("law") == tuple(f"task {number}" for number in range(200))
    assert len(looks) <= 2 * 200


def test_a_data_set_that_two_recipes_hold_goes_to_the_expert_that_is_there(tmp_path):
    path = write(tmp_path / "cola.jsonl", rows_of("cola", ["nlu"], 4))
    assert find_source(path).domains() == ("language",)
    assert find_source(path, ["sentiment", "acceptability"]).domains() == ("acceptability",)
    path = write(tmp_path / "stated.jsonl", rows_of("cola", ["acceptability"], 4))
    assert find_source(path).domains() == ("acceptability",)


def test_the_variable_may_name_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAMIXER_DATA", str(write(tmp_path / "one.jsonl", rows_of("cases", ["law"], 4))))
    assert len(mixed_examples(4, 0)) == 4


def test_domains_that_share_rows_are_refused_and_those_of_one_data_set_are_not(folder):
    write(folder / "cola/train.jsonl.gz", rows_of("cola", ["language"], 4))
    with pytest.raises(DataError, match="'language' and 'acceptability' both hold the data set cola"):
        mixed_examples(4, 0, ["language", "acceptability"], folder)
    with pytest.raises(DataError, match="'law' and 'law' both hold"):
        mixed_examples(4, 0, ["law", "law"], folder)
    assert len(mixed_examples(4, 0, ["law", "poetry"], folder)) == 4
