"""Training processes: one at a time, each in its own folder, and everything of it goes with it."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from explorer.leftovers import PREFIX, delete_folder, temporary_folder
from explorer.training_job import JobStatus, TrainingJob
from explorer.trainings import KEPT, STOPPING, TrainingBusy, Trainings
from loramixer.errors import LoraMixerError
from loramixer.mixers import ZOO
from tests.app.tiny_training import stand_in_command, tiny_job

SECONDS = 60


@pytest.fixture
def trainings(tmp_path: Path) -> Iterator[Trainings]:
    found = Trainings(stand_in_command(tmp_path))
    yield found
    found.close()


def wait(trainings: Trainings, key: str, state: str, step: int = 0) -> JobStatus:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = trainings.status(key)
        if found.state == state and found.step >= step:
            return found
        time.sleep(0.02)
    raise AssertionError(f"still {trainings.status(key)}")


def finish(trainings: Trainings, key: str) -> JobStatus:
    deadline = time.monotonic() + SECONDS
    while trainings.status(key).state not in ("finished", "failed"):
        (trainings.folder(key) / "go").touch()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return trainings.status(key)


def test_a_training_runs_to_its_end_and_can_be_downloaded(trainings: Trainings, tmp_path: Path) -> None:
    key = trainings.start(tiny_job(tmp_path))
    assert trainings.is_busy()
    with pytest.raises(LoraMixerError, match="no router to download yet"):
        trainings.zip_mixture(key)
    assert finish(trainings, key).step == 4
    with zipfile.ZipFile(trainings.zip_mixture(key)) as archive:
        assert sorted(archive.namelist()) == [
            "router/README.md", "router/adapter_config.json", "router/adapter_model.safetensors",
            "router/run_log.json",
        ]  # fmt: skip
        assert archive.read("router/adapter_model.safetensors") == b"weights"
        experts = json.loads(archive.read("router/adapter_config.json"))["experts"]
    # No folder of this machine leaves it.
    assert experts == {"math": {"source": "local:math"}, "law": {"source": "organisation/law@0123abc"}}


def test_experts_of_a_visitor_stay_until_the_training_goes(trainings: Trainings, tmp_path: Path) -> None:
    """A reload of the page frees what its visitor brought."""
    job = tiny_job(tmp_path)
    job = replace(job, experts={**job.experts, "zoo": str(ZOO / "any"), "far": "organisation/law"})
    key = trainings.start(job)
    weights = {
        name: (Path(job.experts[name]) / "adapter_model.safetensors").read_bytes() for name in ("math", "medical")
    }
    for name in weights:
        shutil.rmtree(job.experts[name])
    kept = TrainingJob.load(trainings.folder(key)).experts
    assert list(kept) == list(job.experts)
    for name, content in weights.items():
        assert (Path(kept[name]) / "adapter_model.safetensors").read_bytes() == content
        assert (Path(kept[name]) / "adapter_config.json").is_file()
    assert (kept["zoo"], kept["far"]) == (job.experts["zoo"], "organisation/law")
    folder = trainings.folder(key)
    trainings.discard(key)
    assert not folder.exists()


def test_one_training_at_a_time(trainings: Trainings, tmp_path: Path) -> None:
    first = trainings.start(tiny_job(tmp_path))
    with pytest.raises(TrainingBusy, match="Another training runs on this machine"):
        trainings.start(tiny_job(tmp_path))
    finish(trainings, first)
    trainings._trainings[first].process.wait(SECONDS)  # type: ignore[union-attr]
    assert trainings.start(tiny_job(tmp_path)) != first


def test_a_stopped_training_goes_on(trainings: Trainings, tmp_path: Path) -> None:
    key = trainings.start(tiny_job(tmp_path))
    (trainings.folder(key) / "go").touch()
    wait(trainings, key, "training", step=1)
    trainings.stop(key)
    assert "Resume goes on" in wait(trainings, key, "stopped").text
    trainings._trainings[key].process.wait(SECONDS)  # type: ignore[union-attr]
    trainings.resume(key)
    assert finish(trainings, key).state == "finished"


def test_the_router_of_a_second_stop_takes_the_place_of_the_first(tmp_path: Path) -> None:
    forgotten: list[str] = []
    names = iter(("first", "second"))
    trainings = Trainings(stand_in_command(tmp_path), forgotten.append)
    key = trainings.start(tiny_job(tmp_path))
    partial = trainings.folder(key) / "partial"
    partial.mkdir()
    weights = partial / "adapter_model.safetensors"

    def look() -> str:
        return trainings.mixer(key, lambda *_: next(names))

    for nanoseconds, name in ((10**18, "first"), (10**18 + 1_000, "second")):
        weights.write_bytes(b"weights")
        os.utime(weights, ns=(nanoseconds, nanoseconds))
        assert look() == look() == name
    deadline = time.monotonic() + SECONDS
    while not forgotten and time.monotonic() < deadline:
        time.sleep(0.01)
    assert forgotten == ["first"]
    trainings.close()


def test_stopping_twice_ends_the_process(trainings: Trainings, tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time\ntime.sleep(600)\n")
    trainings._command = (trainings._command[0], str(sleeper))
    key = trainings.start(tiny_job(tmp_path))
    trainings.stop(key)
    stopping = trainings.status(key)
    assert (stopping.state, stopping.text) == ("stopping", STOPPING)  # whatever the process has said last
    assert trainings.is_busy()
    trainings.stop(key)
    found = trainings.status(key)
    assert found.state == "stopped"
    assert found.text == "Ended before the first step; Resume starts again, for there is no checkpoint yet."
    assert not trainings.is_busy()


def test_a_process_that_vanishes_is_said(trainings: Trainings, tmp_path: Path) -> None:
    key = trainings.start(tiny_job(tmp_path))
    trainings._trainings[key].process.kill()  # type: ignore[union-attr]
    trainings._trainings[key].process.wait(SECONDS)  # type: ignore[union-attr]
    found = trainings.status(key)
    assert found.state == "failed"
    assert "without a word" in found.text


def test_folders_are_deleted(tmp_path: Path) -> None:
    forgotten: list[str] = []
    trainings = Trainings(stand_in_command(tmp_path), forgotten.append)
    key = trainings.start(tiny_job(tmp_path))
    folder = trainings.folder(key)
    finish(trainings, key)
    assert trainings.mixer(key, lambda found, title: f"{found.name}: {title}") == "mixture: RSL, trained here"
    trainings.close()
    assert not folder.exists()
    with pytest.raises(LoraMixerError, match="no longer here"):
        trainings.status(key)
    deadline = time.monotonic() + SECONDS
    while not forgotten and time.monotonic() < deadline:
        time.sleep(0.01)
    assert forgotten == ["mixture: RSL, trained here"]


def test_old_trainings_make_room(tmp_path: Path) -> None:
    trainings = Trainings(("true",))
    keys = []
    for _ in range(KEPT + 1):
        keys.append(trainings.start(tiny_job(tmp_path)))
        trainings._trainings[keys[-1]].process.wait(SECONDS)  # type: ignore[union-attr]
    with pytest.raises(LoraMixerError):
        trainings.folder(keys[0])
    assert all(trainings.folder(key).is_dir() for key in keys[1:])
    trainings.close()


def test_folders_of_killed_servers_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, new = tmp_path / f"{PREFIX}old", tmp_path / f"{PREFIX}new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "status.json").touch()
    long_ago = time.time() - 3 * 24 * 3600
    os.utime(old / "status.json", (long_ago, long_ago))
    os.utime(old, (long_ago, long_ago))
    own = temporary_folder("own")
    os.utime(own, (long_ago, long_ago))
    trainings = Trainings(("true",))
    trainings.start(tiny_job(tmp_path))
    assert not old.exists()
    assert new.exists()
    assert own.exists()  # a visitor of this server, who may be back on Monday
    delete_folder(own)
    trainings.close()
