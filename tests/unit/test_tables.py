"""Result tables are prints of result files, and the README holds the current ones."""

import json
from pathlib import Path

import pytest

from loramixer.evaluation.tables import expert_matrix_table, fill, own_expert_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def row(domain: str, loss: float, share: float | None = None) -> dict:
    return {
        "domain": domain,
        **{f"loss{end}": loss + offset for end, offset in (("", 0), ("_low", -0.1), ("_high", 0.1))},
        **{f"own_expert_share{end}": share for end in ("", "_low", "_high")},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    matrix = {"backbone": [row("math", 2.0), row("code", 1.0)], "math": [row("math", 1.0), row("code", 1.5)]}
    (tmp_path / "expert-matrix.json").write_text(json.dumps(matrix))
    for name in ("rsl", "load-balance"):
        (tmp_path / f"evaluate-{name}.json").write_text(json.dumps({"domains": [row("math", 1.0, 0.5)]}))
    return tmp_path


def test_the_lowest_loss_of_a_domain_is_bold(folder):
    lines = expert_matrix_table(folder).splitlines()
    assert lines[2] == "| backbone alone | 2.000 [1.900, 2.100] | **1.000** [0.900, 1.100] |"
    assert lines[3] == "| math expert | **1.000** [0.900, 1.100] | 1.500 [1.400, 1.600] |"


def test_own_expert_table_has_a_line_for_each_router(folder):
    assert own_expert_table(folder).splitlines()[2:] == [
        "| `rsl` | 0.500 [0.500, 0.500] |",
        "| `load-balance` | 0.500 [0.500, 0.500] |",
    ]


def test_filling_replaces_what_stands_between_the_markers(folder):
    page = "a\n<!-- table own-expert -->\nold\n<!-- end -->\nb\n"
    filled = fill(page, folder)
    assert "old" not in filled
    assert own_expert_table(folder) in filled
    assert fill(filled, folder) == filled
    assert filled.startswith("a\n")
    assert filled.endswith("\nb\n")


def test_the_readme_prints_the_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table ") == 3
    assert fill(text, RESULTS) == text
