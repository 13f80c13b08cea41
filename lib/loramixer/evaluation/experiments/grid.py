"""α × λ for both signs of the entropy term (paper, Table 15); λ = 0 is load balance alone, α = λ = 0 no loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.experiments.plan import Experiment, Options, Plan, Run
from loramixer.evaluation.experiments.results import Results

NAME = "grid"
EXAMPLES = 500
"""Few, since there are 29 cells; at these rows the settings already differ."""
BALANCE_WEIGHTS = (0.1, 1.0, 4.0, 16.0)
ENTROPY_WEIGHTS = (0.05, 0.3, 1.0)


def settings(options: Options) -> list[Run]:
    """No loss, and every α without λ and with each λ of both signs."""
    examples, rate = options.examples or EXAMPLES, options.learning_rate
    cells = [
        Run("rsl", balance, entropy, sign, examples, 0, rate)
        for balance in BALANCE_WEIGHTS
        for entropy in ENTROPY_WEIGHTS
        for sign in ("sharpen", "flatten")
    ]
    edges = [options.other("none", examples), *(options.load_balance(examples, alpha) for alpha in BALANCE_WEIGHTS)]
    return [*edges, *cells]


def plan(options: Options) -> Plan:
    """All cells of the first seed, then of the second."""
    return Plan(options.with_seeds(settings(options)), ("soft", f"top_{options.top_k}"))


def write(results: Results, folder: Path) -> None:
    """Every number of every cell, each cell minus no loss, and sharpen minus flatten where both are there.

    Only cells of the same learning rate and number of rows are compared.
    """
    summary = results.plain_rows()
    quantities = {
        "loss": ("soft", f"top_{results.options.top_k}"),
        **dict.fromkeys(("token_entropy", "mutual_information", "own_share", "load_variance"), ("soft",)),
    }
    for group, runs in results.groups().items():
        setting, examples = group
        # Of the group's own learning rate, which its name says where it is not the usual one.
        none = replace(runs[0], loss="none", balance_weight=0.0, entropy_weight=0.0, entropy="sharpen").setting
        if setting != none:
            summary += results.difference_rows(group, (none, examples), quantities)
        if "sharpen" in setting:
            summary += results.difference_rows(group, (setting.replace("sharpen", "flatten"), examples), quantities)
    results.write(folder, NAME, summary)


def maps(folder: Path) -> Any:
    """Heat maps of loss, mutual information, token entropy and load variance for both signs."""
    from loramixer.viz.figures import grid_figure

    return grid_figure(read_csv(folder / f"{NAME}.csv"))


EXPERIMENT = Experiment(NAME, "α × λ for both signs", "Table 15", plan, write, {NAME: maps})
