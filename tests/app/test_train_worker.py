"""The training process over a tiny model: it follows, stops, resumes bit-equal, and says what went wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from explorer import train_worker
from explorer.rooms.train.files import Record, facts_of
from explorer.rooms.train.payload import probe_payload, progress_text, training_payload
from explorer.train_worker import run
from explorer.training_job import JobStatus, Probe, logged_steps, trained_folder
from loramixer.errors import LoraMixerError
from loramixer.training import routers
from tests.app.tiny_training import tiny_job


@pytest.fixture(autouse=True)
def generated_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMIXER_DATA", "generated")


def folder_of(tmp_path: Path, name: str, **fields: Any) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    tiny_job(tmp_path / "experts", **fields).save(folder)
    return folder


def weights(folder: Path) -> dict[str, Any]:
    found = load_file(folder / "mixture" / "adapter_model.safetensors")
    return {name: value for name, value in found.items() if "router" in name}


class StopAfter(train_worker.Follower):
    """Presses Stop after so many steps."""

    steps = 3

    def step(self, state: Any, control: Any, model: Any, tokenizer: Any) -> None:
        if state.global_step == self.steps:
            (self.folder / "stop").touch()
        super().step(state, control, model, tokenizer)


def test_a_stopped_training_resumes_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = folder_of(tmp_path, "whole")
    ended = run(whole)
    assert (ended.state, ended.step, ended.steps) == ("finished", 6, 6)

    parts = folder_of(tmp_path, "parts")
    with monkeypatch.context() as patch:
        patch.setattr(train_worker, "Follower", StopAfter)
        stopped = run(parts)
    assert (stopped.state, stopped.step) == ("stopped", 3)
    assert trained_folder(parts) == parts / "partial"
    assert list((parts / "mixture" / "checkpoints").glob("checkpoint-*"))
    (parts / "stop").unlink()  # as the explorer does before it starts the process again
    ended = run(parts)
    assert (ended.state, ended.step) == ("finished", 6)
    assert trained_folder(parts) == parts / "mixture"

    first, second = weights(whole), weights(parts)
    assert first
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    assert [row["step"] for row in logged_steps(parts)] == [1, 2, 3, 4, 5, 6]
    # The probe prompt was routed on the way, in both alike, and the repeated step counts once.
    assert Probe.load(whole) == Probe.load(parts)
    assert Probe.load(whole).steps == (0, 1, 2, 3, 4, 5, 6)


def test_a_stop_that_comes_before_the_process_has_begun_is_heard(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "job")
    (folder / "stop").touch()
    ended = run(folder)
    assert (ended.state, ended.step, ended.steps) == ("stopped", 1, 6)


def test_curves_path_and_probe_move(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "job", examples=16)
    ended = run(folder)
    job = tiny_job(tmp_path / "experts", examples=16)
    payload = training_payload("key", job, ended, logged_steps(folder))
    charts = {chart["name"]: chart for chart in payload["curves"]}
    assert {line["name"] for line in charts["Entropies, nats"]["lines"]} == {"tokens", "load", "mutual information"}
    terms = {line["name"] for line in charts["Terms of the routing loss"]["lines"]}
    assert {"balance", "routing loss"} <= terms
    assert all(len(line["points"]) == 2 for chart in payload["curves"] for line in chart["lines"])
    assert all(0 <= x <= y <= 1 for x, y in payload["path"])
    compile(payload["python"], "copied", "exec")
    probe = Probe.load(folder)
    assert "".join(probe.tokens) == "the dose is ten"
    shown = probe_payload("key", job, ended, probe)
    assert shown is not None
    assert (shown["steps"], shown["lastStep"], shown["grows"]) == ([0, 1, 2], 2, True)
    # The first step warms up with a learning rate of 0.
    assert shown["frames"][0] != shown["frames"][-1]


def test_time_that_was_used_before_a_resume_counts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "job", max_minutes=10)
    JobStatus("stopped", "Stopped.", 2, 6, seconds=601).save(folder)
    ended = run(folder)
    assert (ended.state, ended.step) == ("finished", 1)
    assert ended.seconds > 601


def test_rows_that_cannot_be_found_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMIXER_DATA", str(tmp_path / "nowhere"))
    ended = run(folder_of(tmp_path, "job"))
    assert ended.state == "failed"
    assert "LORAMIXER_DATA" in ended.text


def test_the_rows_that_were_taken_are_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "job", examples=16)
    ended = run(folder)
    assert ended.rows == "GENERATED, a toy set"
    assert progress_text(ended) == "Finished: 2 steps. The router is ready. Rows: GENERATED, a toy set."
    training = JobStatus("training", "Training: step 1 of 2", 1, 2, 60, rows=ended.rows)
    assert progress_text(training).endswith("left, measured on the steps so far. Rows: GENERATED, a toy set.")
    assert facts_of(Record.load(folder))["rows"] == "16 (GENERATED, a toy set)"


def test_a_training_ends_when_its_time_is_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "job", max_minutes=0)
    ended = run(folder)
    assert (ended.state, ended.step, ended.steps) == ("finished", 1, 6)
    assert "Ended after 0 minutes, at step 1 of 6" in ended.text
    assert trained_folder(folder) == folder / "mixture"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (LoraMixerError("The loss is nan at step 2, in {folder}/mixture."), "The loss is nan at step 2, in mixture."),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "memory of this machine did not suffice"),
        (ZeroDivisionError("inside"), "ended with an error (ZeroDivisionError)"),
    ],
)
def test_what_went_wrong_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, words: str
) -> None:
    folder = folder_of(tmp_path, "job")
    if fault.args and "{folder}" in str(fault):
        fault = type(fault)(str(fault).format(folder=folder))

    def broken(*_: Any, **__: Any) -> Any:
        raise fault

    monkeypatch.setattr(routers, "load_backbone", broken)
    ended = run(folder)
    assert ended.state == "failed"
    assert words in ended.text
    assert str(folder) not in ended.text
    assert JobStatus.load(folder) == ended


def test_other_domains_than_those_of_the_experts_can_be_trained_on(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "job", domains=("code",), examples=8)
    assert run(folder).state == "finished"
    log = json.loads((folder / "mixture" / "run_log.json").read_text())
    assert sum(log["settings"]["rows"].values()) == 8
    assert os.environ["LORAMIXER_DATA"] == "generated"


def test_rows_of_a_file_are_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"task": "mine", "prompt": "the dose", "target": "ten"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({**row, "id": str(n), "domain": "law"}) for n in range(8)))
    monkeypatch.setenv("LORAMIXER_DATA", str(rows))  # as the explorer starts the process
    folder = folder_of(tmp_path, "job", domains=("law",), examples=8, data="file", file=str(rows))
    assert run(folder).state == "finished"
    assert json.loads((folder / "mixture" / "run_log.json").read_text())["settings"]["rows"] == {"mine": 8}
