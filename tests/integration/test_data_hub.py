"""Data sets from the Hub, against a real server on the loopback interface with tiny Parquet files."""

from __future__ import annotations

import io
import re

import pytest

from loramixer import hub as hub_module
from loramixer.data import (
    HUB_DATASETS,
    HubSource,
    data_origin,
    data_revisions,
    describe_source,
    expert_examples,
    held_out_examples,
    sources,
    task_licenses,
)
from loramixer.errors import DataError
from tests.hub_server import HubServer

GSM8K = HUB_DATASETS["gsm8k"]
REPOSITORY = f"datasets/{GSM8K.hub_id}"


def parquet(rows: list[dict]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def questions(first: int, count: int = 3) -> bytes:
    return parquet(
        [{"question": f" What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(first, first + count)]
    )


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not yet chosen a source, with nothing named."""
    monkeypatch.delenv("LORAMIXER_DATA", raising=False)
    sources._default_source.cache_clear()
    sources._hub_source.cache_clear()


@pytest.fixture
def published(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """gsm8k as a repository, pinned to its only commit, which is returned."""
    files = {
        GSM8K.files["train"]: questions(0),
        GSM8K.files["test"]: questions(10),
        "README.md": b"",
        "gsm8k.py": b"1/0",
    }
    commit = hub.add(REPOSITORY, files)
    pin(monkeypatch, commit)
    return commit


def pin(monkeypatch: pytest.MonkeyPatch, commit: str) -> None:
    from dataclasses import replace

    monkeypatch.setitem(HUB_DATASETS, "gsm8k", replace(GSM8K, revision=commit))


def test_the_hub_is_taken_when_nothing_is_named(hub: HubServer, published: str) -> None:
    assert data_origin() == "hub"
    assert "Hugging Face Hub" in describe_source()
    assert data_revisions() == {}
    rows = expert_examples("math", 0)
    assert sorted((row.id, row.prompt, row.target, row.domain) for row in rows) == [
        (f"gsm8k-train-{n}", f"What is {n} + 1?", f"#### {n + 1}", "math") for n in range(3)
    ]
    assert held_out_examples("math", 1, 0)[0].prompt.startswith("What is 1")
    assert data_revisions() == {"gsm8k": f"openai/gsm8k@{published}"}
    assert task_licenses(["gsm8k", "mbpp"]) == {"gsm8k": "MIT", "mbpp": "CC BY 4.0"}


def test_only_parquet_files_are_fetched_and_once(hub: HubServer, published: str) -> None:
    first = HubSource().rows("gsm8k", "train")
    assert hub.fetched() == {"train-00000-of-00001.parquet"}
    asked = len(hub.requests)
    assert HubSource().rows("gsm8k", "train") == first
    assert len(hub.requests) == asked


def test_what_a_branch_pointed_at_is_recorded(hub: HubServer, published: str) -> None:
    newer = hub.add(REPOSITORY, {GSM8K.files["train"]: questions(5)})
    source = HubSource({"gsm8k": "main"})
    assert source.rows("gsm8k", "train")[0].prompt == "What is 5 + 1?"
    assert source.revisions() == {"gsm8k": f"openai/gsm8k@{newer}"}
    pinned = HubSource()
    assert pinned.rows("gsm8k", "train")[0].prompt == "What is 0 + 1?"
    assert pinned.revisions() == {"gsm8k": f"openai/gsm8k@{published}"}


def test_a_hub_out_of_reach_names_the_other_sources(hub: HubServer, published: str, monkeypatch) -> None:
    hub.faults[REPOSITORY] = "down"
    with pytest.raises(DataError, match=r"gsm8k cannot be had from the Hub \(.*503\).*a folder .*'generated'"):
        HubSource().rows("gsm8k", "train")
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.3)
    hub.faults[REPOSITORY] = "silent"
    assert data_origin() == "generated"
    assert re.search(r"GENERATED rows \(LORAMIXER_DATA is not set, and no answer from the Hub", describe_source())
    # What a process has chosen it keeps, so that all its rows have one origin.
    del hub.faults[REPOSITORY]
    assert data_origin() == "generated"


def test_a_cached_copy_needs_no_hub(hub: HubServer, published: str) -> None:
    HubSource().rows("gsm8k", "train")
    hub.faults[REPOSITORY] = "down"
    assert data_origin() == "hub"
    assert len(expert_examples("math", 0)) == 3


def test_a_damaged_file_is_not_kept(hub: HubServer, published: str) -> None:
    hub.faults[REPOSITORY] = "cut"
    with pytest.raises(DataError, match="cannot be had from the Hub"):
        HubSource().rows("gsm8k", "train")
    del hub.faults[REPOSITORY]
    assert len(HubSource().rows("gsm8k", "train")) == 3


@pytest.mark.parametrize(
    "content", [parquet([{"problem": "2 + 2"}]), b"no parquet", parquet([{"question": None, "answer": "4"}])]
)
def test_a_file_of_another_form_is_said(hub: HubServer, monkeypatch, content: bytes) -> None:
    pin(monkeypatch, hub.add(REPOSITORY, {GSM8K.files["train"]: content}))
    with pytest.raises(DataError, match="has another form than gsm8k is known to have"):
        HubSource().rows("gsm8k", "train")


def test_unknown_tasks_splits_and_files_are_said(hub: HubServer, published: str) -> None:
    with pytest.raises(DataError, match="No data set mmlu is read from the Hub"):
        HubSource({"mmlu": "main"})
    with pytest.raises(DataError, match="no split 'validation' of gsm8k for this package; there are train, test"):
        HubSource().rows("gsm8k", "validation")
    commit = hub.add("datasets/org/empty", {"README.md": b""})
    with pytest.raises(hub_module.HubError, match="give a revision that holds them"):
        hub_module.fetch("org/empty", commit, ["a/b.parquet"], repo_type="dataset")


def test_without_pyarrow_the_generator_is_taken(hub: HubServer, published: str, monkeypatch) -> None:
    monkeypatch.setattr(sources, "_has_pyarrow", lambda: False)
    assert data_origin() == "generated"
    assert "without pyarrow" in describe_source()
    with pytest.raises(DataError, match=r"install loramixer\[eval\]"):
        HubSource().rows("gsm8k", "train")
