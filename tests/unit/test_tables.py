"""Result tables are prints of result files, and the README holds the current ones."""

import json
import math
import re
from pathlib import Path

import pytest

from loramixer.accounting import parameter_table
from loramixer.evaluation.csv_files import read_csv, write_csv
from loramixer.evaluation.evidence import EVIDENCE, expert_count_table
from loramixer.evaluation.tables import (
    expert_matrix_table,
    fill,
    overhead_table,
    own_expert_table,
    parameters_table,
    router_loss_table,
    scaling_table,
)

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def row(value: float, **fields: object) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, **fields}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of two experts and two settings."""
    matrix = {"backbone": (2.0, 1.0), "math": (1.0, 1.5)}
    write_csv(
        tmp_path / "expert-matrix.csv",
        [
            {"expert": name, "domain": domain, "loss": loss, "loss_low": loss - 0.1, "loss_high": loss + 0.1}
            for name, losses in matrix.items()
            for domain, loss in zip(("math", "code"), losses, strict=True)
        ],
    )
    settings = {"RSL": (0.5, 1.0), "none": (0.4, 1.1)}
    write_csv(
        tmp_path / "losses-summary.csv",
        [
            row(value, setting=setting, gate=gate, quantity=quantity, against=against, seeds=1, examples=2000)
            for setting, (share, loss) in settings.items()
            for gate, quantity, value, against in (
                ("soft", "own_share_math", share, None),
                ("soft", "loss_math", 9.0, None),
                ("top_1", "loss_math", 8.0, None),
                ("top_3", "loss_math", loss, None),
                ("top_3", "loss_math", loss - 1, "none"),
            )
        ],
    )
    return tmp_path


def test_the_lowest_loss_of_a_domain_is_bold(folder):
    lines = expert_matrix_table(folder).splitlines()
    assert lines[2] == "| backbone alone | 2.000 [1.900, 2.100] | **1.000** [0.900, 1.100] |"
    assert lines[3] == "| math expert | **1.000** [0.900, 1.100] | 1.500 [1.400, 1.600] |"


def test_tables_by_domain_have_a_line_for_each_setting(folder):
    assert own_expert_table(folder).splitlines()[0] == "|  | math |"
    assert own_expert_table(folder).splitlines()[2:] == [
        "| RSL | 0.500 [0.400, 0.600] |",
        "| none | 0.400 [0.300, 0.500] |",
    ]
    assert router_loss_table(folder).splitlines()[2:] == [
        "| RSL | 1.000 [0.900, 1.100] |",
        "| none | 1.100 [1.000, 1.200] |",
    ]


def test_numbers_of_other_sizes_have_a_line_of_their_own(folder):
    path = folder / "losses-summary.csv"
    rows = read_csv(path)
    few = [{**found, "examples": 500, "value": 7.0} for found in rows if found["setting"] == "RSL"]
    for both in ([*few, *rows], [*rows, *few]):
        write_csv(path, both)
        lines = router_loss_table(folder).splitlines()[2:]
        assert "| RSL, 2,000 training rows | 1.000 [0.900, 1.100] |" in lines
        assert sum("| 7.000 [" in line and "500 training rows" in line for line in lines) == 1


def test_numbers_of_experts_stand_beside_each_other_as_shares_of_log_k(folder):
    """Equal shares of log K are equal numbers, whatever K is."""
    two, four = folder / "two-experts", folder / "four-experts"
    two.mkdir()
    four.mkdir()
    for path, experts in (
        (two / "choice-summary.csv", "ab"),
        (four / "choice-summary.csv", "abcd"),
        (folder / "grid-summary.csv", "abcdef"),
    ):
        rows = [
            row(
                value,
                setting=f"RSL sharpen {alpha:g} / 0.3",
                gate="soft",
                quantity=quantity,
                against=None,
                seeds=1,
                examples=500,
            )
            for alpha in (1.0, 0.1)
            for quantity, value in (
                *((f"load_{name}", 0.3) for name in experts),
                ("load_entropy", 0.8 * math.log(len(experts))),
                ("loss", alpha),
            )
        ]
        # The grid has settings that fewer experts were not tried with.
        rows += [{**found, "setting": "RSL flatten 1 / 0.3"} for found in rows if path.parent == folder]
        write_csv(path, rows)
    cells = [[cell.split(" [")[0].strip() for cell in line.split("|")[1:-1]]
             for line in expert_count_table(folder).splitlines()[2:]]  # fmt: skip
    assert cells == [
        ["2", "0.1", "0.2", "–", "0.800", "–", "–", "0.100"],
        ["2", "1", "2", "–", "0.800", "–", "–", "1.000"],
        ["4", "0.1", "0.4", "–", "0.800", "–", "–", "0.100"],
        ["4", "1", "4", "–", "0.800", "–", "–", "1.000"],
        ["6", "0.1", "0.6", "–", "0.800", "–", "–", "0.100"],
        ["6", "1", "6", "–", "0.800", "–", "–", "1.000"],
    ]


def test_a_page_says_what_has_not_been_measured(folder):
    page = "<!-- table grid-state -->\n<!-- end -->\n<!-- table grid -->\n<!-- end -->\n"
    filled = fill(page, folder)
    assert "Not measured yet." in filled
    assert filled.endswith("<!-- table grid -->\n<!-- end -->\n")
    assert fill(filled, folder) == filled


def test_filling_replaces_what_stands_between_the_markers(folder):
    page = "a\n<!-- table own-expert -->\nold\n<!-- end -->\nb\n"
    filled = fill(page, folder)
    assert "old" not in filled
    assert own_expert_table(folder) in filled
    assert fill(filled, folder) == filled
    assert filled.startswith("a\n")
    assert filled.endswith("\nb\n")


def timed(measure: str, ratio: float, goal: str | None, met: bool | None, **fields: object) -> dict:
    interval = {"ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1}
    return {"measure": measure, **interval, "goal": goal, "met": met, "note": "", **fields}


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A folder with one result of each benchmark."""
    common = {
        "machine": {
            "processor": "Some CPU",
            "threads": 2,
            "accelerator": None,
            "versions": {"torch": "2.13.0"},
            "commit": "0123456789abcdef",
        },
        "settings": {"rounds": 9, "shape": "tiny", "real": False, "dtype": "float32"},
    }
    ours, base = {"label": "ours", "reference": "backbone"}, {"label": "LoRA", "reference": "backbone", "note": "slow"}
    overhead = [
        timed("prefill-64", 1.05, "≤ 1.10", True, **ours),
        timed("decode", 1.3, "≤ 1.10", False, **ours),
        timed("decode", 1.2, None, None, **base),
        timed("training", 0.95, "≥ 0.90", True, **ours),
    ]
    scaling = [
        timed("decode", 1.0, None, None, rank=8, k=3, experts=6),
        timed("decode", 1.6, "≤ 1.50", False, rank=8, k=3, experts=192),
    ]
    for name, rows in (("overhead", overhead), ("scaling", scaling)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**common, "rows": rows}))
    return tmp_path


def test_overhead_has_a_line_for_each_form_and_says_what_is_missed(measured):
    lines = overhead_table(measured).splitlines()
    assert lines[0] == "| time / backbone alone | prefill 64 | decode |"
    assert lines[2:5] == [
        "| ours | 1.05 [0.95, 1.15] | 1.30 [1.20, 1.40] (missed) |",
        "| LoRA | – | 1.20 [1.10, 1.30] |",
        "| goal for LoRA-Mixer | ≤ 1.10 | ≤ 1.10 |",
    ]
    assert lines[8] == "| training speed, tokens/s | ours | backbone | 0.95 [0.85, 1.05] | ≥ 0.90 |"
    assert lines[10] == "LoRA: slow."
    assert "Some CPU, 2 thread(s)" in lines[12]
    assert "commit `0123456789`" in lines[12]


def test_scaling_has_a_line_for_each_number_of_experts(measured):
    assert scaling_table(measured).splitlines()[2:5] == [
        "| 8 | 3 | 6 | 1.00 [0.90, 1.10] |",
        "| 8 | 3 | 192 | 1.60 [1.50, 1.70] (missed) |",
        "|  |  | goal for the most | ≤ 1.50 |",
    ]


def test_a_table_without_its_file_stays_as_it_is(measured):
    page = "<!-- table parameters -->\nold\n<!-- end -->\n<!-- table scaling -->\nold\n<!-- end -->\n"
    filled = fill(page, measured)
    assert filled.startswith("<!-- table parameters -->\nold\n<!-- end -->\n")
    assert filled.count("old") == 1
    assert scaling_table(measured) in filled


def test_the_stored_counts_are_what_is_counted_now():
    assert json.loads((RESULTS / "parameters.json").read_text(encoding="utf-8")) == parameter_table()
    assert "| LoRA-Mixer | 8,030.26 | 327.16 | 3.15 | 0.00 | 330.30 |" in parameters_table(RESULTS)


def test_the_page_on_cost_prints_the_result_files():
    text = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    assert text.count("<!-- table ") == 5
    assert fill(text, RESULTS) == text


def test_the_page_of_results_prints_the_result_files():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- table (\S+) -->", text)) == sorted(EVIDENCE)
    assert fill(text, RESULTS) == text


def test_the_readme_prints_the_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table ") == 4
    assert fill(text, RESULTS) == text


def test_the_page_of_backbones_prints_the_result_files():
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    assert re.findall(r"<!-- table (\S+) -->", text) == ["state-space"]
    assert fill(text, RESULTS) == text
    assert "| RSL router, top 2 |" in text
