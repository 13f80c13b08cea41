"""Files of a training: every number that was logged, pictures of it, and nothing about this machine."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from explorer.exports import Exports
from explorer.rooms.train.files import TRAIN_FORMATS, Record, code_maker, facts_of, figures_of, file_maker
from explorer.rooms.train.payload import python_of
from explorer.training_job import JobStatus, TrainingJob
from loramixer import viz
from loramixer.errors import FigureError

JOB = TrainingJob(
    backbone="smollm2-135m", experts={"math": "/home/secret/math", "medical": "/home/secret/medical"},
    domains=("math", "medical"), data="generated", loss="rsl", balance_weight=1.0, entropy_weight=0.3,
    entropy="sharpen", scale="unit", examples=48, seed=7, top_k=2, probe="Take <b>two</b>", max_minutes=30,
    title="RSL, trained here",
)  # fmt: skip
STEPS = [
    {
        "step": step, "task_loss": 2.5 - step / 1000, "token_entropy": 0.69 - step / 1000, "load_entropy": 0.69,
        "balance": 1.0, "own_expert_share": {"math": 0.5 + step / 2000, "medical": 0.5},
    }
    for step in range(1, 301)
]  # fmt: skip
TOKENS = ["Take", " <b>", "two", "</b>"]


def write(folder: Path, job: TrainingJob = JOB, steps: Any = STEPS, with_probe: bool = True) -> Path:
    """What a training process writes; more steps than the page draws."""
    folder.mkdir(exist_ok=True)
    job.save(folder)
    JobStatus("training", "Training: step 300 of 400", 300, 400).save(folder)
    (folder / "mixture").mkdir()
    log = {"settings": {}, "summary": {}, "steps": steps}
    (folder / "mixture" / "run_log.json").write_text(json.dumps(log))
    if with_probe:
        head = {"tokens": TOKENS, "experts": ["math", "medical"], "layers": [0, 1, 2]}
        (folder / "probe.json").write_text(json.dumps(head))
        lines = []
        for step, first in ((1, 128), (300, 250)):
            frame = base64.b64encode(bytes([first, 255 - first] * 12)).decode()
            lines.append(json.dumps({"step": step, "frame": frame, "point": [0.9 - step / 1000, 0.95]}))
        (folder / "probe.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Any:
    folder = write(tmp_path / "training")
    maker = file_maker(Exports(tmp_path), {"key": folder}.__getitem__)
    return lambda kind, key="key": Path(maker(kind, {}, "one", key))


class Read(HTMLParser):
    """Tags and attributes that could reach out of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_holds_curves_path_and_maps_and_asks_nobody(make: Any) -> None:
    text = make("html").read_text(encoding="utf-8")
    page = Read(text)
    assert page.tags.count("figure") == page.tags.count("svg") == 4
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    for words in ("own share: medical", "entropy–balance plane", "step 1", "step 300", "RSL sharpen", "300 of 400"):
        assert words in text, words
    assert "Take &lt;b&gt;two&lt;/b&gt;" in text


def test_the_folders_of_this_machine_stay_here(make: Any, tmp_path: Path) -> None:
    assert "secret" not in make("html").read_text(encoding="utf-8")
    own = replace(JOB, backbone=str(tmp_path / "hidden" / "backbone"))
    assert facts_of(Record.load(write(tmp_path / "own", own)))["backbone"] == "backbone"


def test_the_table_has_every_step_and_every_column(make: Any) -> None:
    for table in (pd.read_csv(make("csv")), pd.read_parquet(make("parquet"))):
        assert list(table["step"]) == list(range(1, 301))
        assert table["own_expert_share_math"].iloc[-1] == pytest.approx(0.65)
        assert table["task_loss"].iloc[0] == pytest.approx(2.499)


def test_pictures_are_of_the_curves(make: Any) -> None:
    with Image.open(make("png")) as picture:
        assert picture.width > 800
    assert "task loss, nats per token" in make("svg").read_text(encoding="utf-8")


def test_every_offered_file_is_made(make: Any) -> None:
    names = {make(entry.key).name for entry in TRAIN_FORMATS}
    assert names == {f"training.{entry.key}" for entry in TRAIN_FORMATS}


def test_the_map_is_that_of_its_step(tmp_path: Path) -> None:
    *_, first, last = figures_of(Record.load(write(tmp_path / "training")))
    cells = [table.rows for figure in (first, last) for table in viz.figure_tables(figure)]
    assert "A 0.50" in str(cells[0])
    assert "A 0.98" in str(cells[1])
    assert "step 300" in last.layout.title.text


def test_the_path_ends_where_the_log_ends(tmp_path: Path) -> None:
    plane = figures_of(Record.load(write(tmp_path / "training")))[1]
    ends = {trace.name: (trace.x[0], trace.y[0]) for trace in plane.data if trace.mode == "markers+text"}
    width = float(np.log(2))
    assert ends["A training rows"] == pytest.approx((0.39 / width, 0.69 / width))
    assert ends["B probe prompt"] == pytest.approx((0.6, 0.95))


def test_a_training_without_probe_or_entropies_has_curves_alone(tmp_path: Path) -> None:
    steps = [{"step": 1, "task_loss": 2.0}]
    assert len(figures_of(Record.load(write(tmp_path / "training", steps=steps, with_probe=False)))) == 1


def test_what_is_not_there_is_one_sentence(make: Any, tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="press Train first"):
        make("html", "")
    early = write(tmp_path / "early", steps=[])
    with pytest.raises(FigureError, match="No step has been logged"):
        Record.load(early)
    (early / "job.json").unlink()
    with pytest.raises(FigureError, match="can no longer be read"):
        Record.load(early)


def test_python_is_that_of_the_training(tmp_path: Path) -> None:
    folder = write(tmp_path / "training", steps=[])
    code = code_maker({"key": folder}.__getitem__)({}, "one", "key")
    assert 'entropy="sharpen"' in code
    assert "secret" not in code


def test_python_draws_the_rows_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows come from is no argument, so the script says it before all else."""
    monkeypatch.setenv("LORAMIXER_DATA", "of the server")
    code = python_of(replace(JOB, domains=("math",)))
    compile(code, "training.py", "exec")
    exec(code.partition("from loramixer")[0], {})
    assert os.environ["LORAMIXER_DATA"] == "generated"
    assert "LORAMIXER_DATA" not in python_of(replace(JOB, data="default"))
