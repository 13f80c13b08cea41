"""How many rows a router needs, with RSL, with load balance alone and with no routing loss (paper, Table 9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.experiments.plan import Experiment, Options, Plan, Run
from loramixer.evaluation.experiments.results import Results
from loramixer.evaluation.verdicts import shipped_gate

NAME = "data-size"
EXAMPLES = 4000
"""The largest number of rows; with its halves 250, 500, 1,000, 2,000 and 4,000."""


def halved(largest: int = EXAMPLES) -> list[int]:
    """Training rows, each twice the one before, up to the largest."""
    return [largest // 2**halvings for halvings in range(4, -1, -1)]


def sizes(options: Options) -> list[int]:
    """Those up to ``examples`` that give every expert a row."""
    return [size for size in halved(options.examples or EXAMPLES) if size >= len(options.experts)]


def without(options: Options, examples: int) -> list[Run]:
    """What RSL is compared with: the paper's text says the auxiliary loss, its table "without RSL"."""
    return [options.load_balance(examples), options.other("none", examples)]


def plan(options: Options) -> Plan:
    """All sizes of the first seed, the small ones first."""
    runs = [run for size in sizes(options) for run in (options.rsl(size), *without(options, size))]
    return Plan(options.with_seeds(runs), ("soft", f"top_{options.top_k}"))


def write(results: Results, folder: Path) -> None:
    """Every number of every size; RSL minus the others at the same size, and with half of their rows."""
    options, summary = results.options, results.plain_rows()
    quantities = dict.fromkeys(("loss", "accuracy"), ("soft", f"top_{options.top_k}"))
    steps = sizes(options)
    for size in steps:
        ours = options.rsl(size)
        for larger in [size, *([2 * size] if 2 * size in steps else [])]:
            for other in without(options, larger):
                summary += results.difference_rows((ours.setting, size), (other.setting, larger), quantities)
    results.write(folder, NAME, summary)


def lines(folder: Path) -> Any:
    """Loss by number of rows."""
    from loramixer.viz.figures import data_size_figure

    rows = read_csv(folder / f"{NAME}-summary.csv")
    return data_size_figure(rows, shipped_gate(rows))


EXPERIMENT = Experiment(NAME, "Rows that a router needs", "Table 9", plan, write, {NAME: lines})
