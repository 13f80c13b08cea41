"""The RSL routers between the backbone alone and the oracle that gives every row to the expert of its domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.experiments import losses
from loramixer.evaluation.experiments.plan import BASE_GATES, Experiment, Options, Plan
from loramixer.evaluation.experiments.results import Results
from loramixer.evaluation.verdicts import named

NAME = "oracle"
LABELS = {"off": "backbone alone", "uniform": "mean of all experts", "domain": "oracle: the domain's own expert"}


def plan(options: Options) -> Plan:
    """The RSL runs of the comparison of losses, under the shipped gate, beside the gates that ask no router."""
    run = options.rsl(options.examples or losses.EXAMPLES)
    return Plan(options.with_seeds([run]), (*BASE_GATES, f"top_{options.top_k}"))


def write(results: Results, folder: Path) -> None:
    """Losses of all four, and the router minus each of the other three on the same rows."""
    gate = f"top_{results.options.top_k}"
    summary = results.plain_rows()
    for (setting, examples), runs in results.groups().items():
        for base, found in results.base.items():
            for quantity in found.values:
                plain = results.estimate(runs, quantity, base)
                if plain is not None:
                    summary.append(results.summary_row(LABELS[base], None, quantity, base, "", plain))
                apart = results.difference(runs, runs, quantity, gate, base)
                if apart is not None:
                    summary.append(results.summary_row(setting, examples, quantity, gate, LABELS[base], apart))
    results.write(folder, NAME, summary)


def dots(folder: Path) -> Any:
    """Loss of every domain for the four."""
    from loramixer.viz.figures import oracle_figure

    return oracle_figure(named(read_csv(folder / f"{NAME}-summary.csv")))


EXPERIMENT = Experiment(NAME, "The gap to the oracle", "no table of the paper", plan, write, {NAME: dots})
