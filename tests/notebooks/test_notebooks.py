"""What every notebook has: its pair, outputs, a question, an exercise, and nothing that a code host cannot show.

That each runs from top to bottom is tested by nbmake, which collects ``notebooks/*.ipynb``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

from explorer.rooms import ROOMS
from loramixer.evaluation.csv_files import read_csv
from notebooks.build import FOLDER, main, refreshed, sources, with_minutes

LARGEST = 2_000_000
"""Bytes of one notebook with its outputs; code hosts stop drawing beyond a few megabytes."""

NAMES = [path.stem for path in sources()]


@pytest.fixture(params=NAMES)
def source(request: pytest.FixtureRequest) -> Path:
    """The ``.py`` of a notebook."""
    return FOLDER / f"{request.param}.py"


@pytest.fixture
def notebook(source: Path) -> Any:
    """The ``.ipynb`` of a notebook."""
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def texts(notebook: Any) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_there_are_notebooks_and_each_is_in_the_table() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert NAMES
    assert not [name for name in NAMES if f"{name}.ipynb" not in table]
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


def test_the_pair_is_equal(source: Path, notebook: Any) -> None:
    written = jupytext.read(source)
    assert [(cell.cell_type, cell.source) for cell in written.cells] == [
        (cell.cell_type, cell.source) for cell in notebook.cells
    ]


def test_it_opens_with_a_question_and_badges(notebook: Any) -> None:
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert "?" in first
    assert "colab.research.google.com/github/" in first
    assert "huggingface.co/spaces/" in first


def test_its_link_opens_a_room_that_exists(notebook: Any) -> None:
    rooms = re.findall(r"[?&]room=([\w-]+)", notebook.cells[0].source)
    assert set(rooms) <= {room.key for room in ROOMS}


def test_it_closes_with_what_was_learnt_and_an_exercise(notebook: Any) -> None:
    last = texts(notebook)[-4000:]
    assert re.search(r"^## What (was|you) learn", last, re.MULTILINE)
    assert re.search(r"^## Exercise", last, re.MULTILINE)


def test_it_has_one_parameters_cell_that_knows_fast(notebook: Any) -> None:
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert "FAST" in tagged[0].source


def test_it_asserts_what_its_text_claims(notebook: Any) -> None:
    assert sum(cell.source.count("assert ") for cell in notebook.cells if cell.cell_type == "code") >= 2


def test_every_code_cell_was_run_and_none_failed(notebook: Any) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [output.output_type for cell in code for output in cell.outputs]
    assert "error" not in kinds


def test_figures_can_be_seen_without_plotly(notebook: Any) -> None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    drawn = [output for output in outputs if "application/vnd.plotly.v1+json" in output.data]
    assert drawn
    assert all("image/png" in output.data for output in drawn)


def test_it_is_small_and_names_no_machine(source: Path) -> None:
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert not re.search(r"/home/|/tmp/|C:\\\\", text)


def test_no_logic_lives_in_a_notebook(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert not re.search(r"^\s*class |^import torch\.nn|\.backward\(\)", text, re.MULTILINE)


def test_a_wrong_name_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["99"]) == 2
    assert "No notebook begins with '99'" in capsys.readouterr().err


def test_outputs_say_what_size_they_are_of(notebook: Any) -> None:
    assert notebook.metadata["loramixer"]["outputs_of"] in ("FAST=1", "the full size")
    assert json.dumps(notebook.metadata)


def test_the_readme_has_the_minutes_of_every_run(source: Path, notebook: Any) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert with_minutes(readme, source.stem, 1234.5) != readme
    assert with_minutes(readme, source.stem, notebook.metadata["loramixer"].get("minutes", "–")) == readme


@pytest.mark.parametrize("size", ["the full size", "FAST=1"])
def test_the_readme_says_which_outputs_are_of_which_size(size: str) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `?{size}`? \|(.*)\|$", readme, re.MULTILINE)
    written = {
        name.split("_")[0].lstrip("0")
        for name in NAMES
        if nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).metadata["loramixer"]["outputs_of"] == size
    }
    assert set(re.findall(r"\d+", row)) == written


@pytest.mark.parametrize("name", ["03_rsl_against_balance", "04_entropy_balance_plane"])
def test_what_it_prints_of_the_results_is_what_the_files_say_today(name: str) -> None:
    def printed(notebook: Any) -> list[str]:
        cells = [cell for cell in notebook.cells if "results" in cell.metadata.get("tags", [])]
        return [output["text"] for cell in cells for output in cell.outputs if "text" in output]

    today = refreshed(FOLDER / f"{name}.py")
    assert printed(today)
    assert printed(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)) == printed(today)


def test_a_notebook_that_prints_no_results_is_left_as_it_is() -> None:
    assert refreshed(FOLDER / "01_routing_tour.py") is None


def test_the_comparison_shows_every_setting_that_has_been_measured() -> None:
    notebook = nbformat.read(FOLDER / "03_rsl_against_balance.ipynb", as_version=4)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    measured = {row["setting"] for row in read_csv(FOLDER.parent / "docs/results/losses-summary.csv")}
    assert not [setting for setting in measured if setting not in printed]
