"""Experts per token in inference, k = 1 … E, of the RSL routers (paper, Figure 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.experiments import losses
from loramixer.evaluation.experiments.plan import Experiment, Options, Plan
from loramixer.evaluation.experiments.results import Results
from loramixer.evaluation.verdicts import setting_names

NAME = "top-k"


def plan(options: Options) -> Plan:
    """The RSL runs of the comparison of losses, which are trained once for both, under every k."""
    run = options.rsl(options.examples or losses.EXAMPLES)
    return Plan(options.with_seeds([run]), tuple(f"top_{k}" for k in range(1, len(options.experts) + 1)))


def write(results: Results, folder: Path) -> None:
    """Every number under every k, each k minus one expert less, and the largest minus one expert."""
    summary = results.plain_rows()
    for (setting, examples), runs in results.groups().items():
        most = len(results.options.experts)
        pairs = dict.fromkeys([*((k, k - 1) for k in range(2, most + 1)), (most, 1)])
        for more, fewer in pairs:
            for quantity in ("loss", "accuracy"):
                gates = f"top_{more}", f"top_{fewer}"
                found = results.difference(runs, runs, quantity, *gates)
                if found is not None:
                    summary.append(results.summary_row(setting, examples, quantity, *gates, found))
    results.write(folder, NAME, summary)


def lines(folder: Path) -> Any:
    """Loss of every domain by k; of several settings, that of all domains together."""
    from loramixer.viz.figures import top_k_figure

    rows = read_csv(folder / f"{NAME}-summary.csv")
    return top_k_figure(rows, setting_names(rows))


EXPERIMENT = Experiment(NAME, "Experts per token", "Figure 5", plan, write, {NAME: lines})
