"""Watching a training: drawn when the log grows, not otherwise, and at the end in any case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loramixer.viz.live import Watch, plane_path, watch


def write_log(folder: Path, steps: int) -> None:
    rows = [
        {"step": 5 * number, "loss": 3.0 - number / 10, "task_loss": 2.0, "token_entropy": 0.5, "load_entropy": 1.0}
        for number in range(1, steps + 1)
    ]
    folder.mkdir(exist_ok=True)
    log = {"settings": {"experts": ["a", "b", "c"]}, "summary": {}, "steps": rows}
    (folder / "run_log.json").write_text(json.dumps(log), encoding="utf-8")


class Places:
    """Remembers what was shown where."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, str]] = []

    def __call__(self, name: str, bundle: dict[str, Any]) -> None:
        assert {"image/png", "application/vnd.plotly.v1+json", "text/plain"} <= set(bundle)
        self.shown.append((name, bundle["text/plain"]))


def test_it_draws_when_the_log_has_grown_and_only_then(tmp_path: Path) -> None:
    places = Places()
    watching = Watch(tmp_path / "run", place=places)
    assert not watching.refresh()  # nothing has been written yet
    write_log(tmp_path / "run", 2)
    assert watching.refresh()
    assert [name for name, _ in places.shown] == ["curves", "plane"]
    assert "step 10" in places.shown[0][1]
    assert not watching.refresh()
    write_log(tmp_path / "run", 3)
    assert watching.refresh()
    assert "step 15" in places.shown[2][1]


def test_a_half_written_log_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "run_log.json").write_text('{"settings": {', encoding="utf-8")
    assert not Watch(tmp_path, place=Places()).refresh()


def test_the_last_state_is_drawn_even_if_the_training_is_quicker_than_the_watch(tmp_path: Path) -> None:
    places = Places()
    with Watch(tmp_path, seconds=3600, place=places):
        write_log(tmp_path, 4)
    assert "step 20" in places.shown[0][1]


def test_an_error_of_the_training_comes_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no disk"), watch(tmp_path, seconds=3600):
        raise RuntimeError("no disk")


def test_the_path_needs_entropies_and_more_than_one_expert() -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0, "token_entropy": 0.2, "load_entropy": 0.6}]
    assert len(plane_path({"settings": {"experts": ["a", "b"]}, "steps": rows})) == 1
    assert plane_path({"settings": {"experts": ["a"]}, "steps": rows}) == []
    assert plane_path({"settings": {}, "steps": rows}) == []
