"""The balance term while routers train, with RSL and without a routing loss (paper, Figure 6), from the run logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramixer.evaluation.csv_files import Row, read_csv, write_csv
from loramixer.evaluation.experiments import losses
from loramixer.evaluation.experiments.plan import Experiment, Options, Plan
from loramixer.evaluation.experiments.results import Results
from loramixer.metrics import combine_seeds

NAME = "balance-curve"
PARTS = 10
"""The training is cut into so many equal parts; the first and the last are compared."""


def plan(options: Options) -> Plan:
    """The runs of the comparison of losses; nothing is measured, since the logs hold the curve."""
    return Plan(losses.plan(options).runs, ())


def curve_rows(results: Results) -> list[Row]:
    """One row per logged step: means over the training rows since the row before."""
    rows = []
    for run, log in results.logs.items():
        last = max((row["step"] for row in log.steps), default=1)
        for row in log.steps:
            rows.append(
                {
                    "run": run.name,
                    "setting": run.setting,
                    "examples": run.examples,
                    "seed": run.seed,
                    "step": row["step"],
                    "share": row["step"] / last,
                    **{name: row.get(name) for name in ("balance", "token_entropy", "load_entropy", "task_loss")},
                    "data": log.settings.get("data"),
                }
            )
    return rows


def write(results: Results, folder: Path) -> None:
    """Every logged step, and the balance term in the first and last tenth of the training."""
    rows = curve_rows(results)
    if not any(row["balance"] is not None for row in rows):
        return
    write_csv(folder / f"{NAME}.csv", rows)
    summary = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        for quantity in ("balance", "token_entropy", "load_entropy"):
            parts: dict[str, list[float]] = {"first": [], "last": [], "last − first": []}
            for run in dict.fromkeys(row["run"] for row in rows if row["setting"] == setting):
                steps = [row for row in rows if row["run"] == run and row[quantity] is not None]
                if not steps:
                    continue
                size = max(1, len(steps) // PARTS)
                first = sum(row[quantity] for row in steps[:size]) / size
                last = sum(row[quantity] for row in steps[-size:]) / size
                for name, value in (("first", first), ("last", last), ("last − first", last - first)):
                    parts[name].append(value)
            for name, values in parts.items():
                if values:
                    found = combine_seeds(values)
                    summary.append(
                        {
                            "setting": setting,
                            "quantity": quantity,
                            "part": name,
                            "value": found.value,
                            "low": found.low,
                            "high": found.high,
                            "seeds": found.seeds,
                            "covers": found.covers,
                            "data": results.data,
                        }
                    )
    write_csv(folder / f"{NAME}-summary.csv", summary)


def lines(folder: Path) -> Any:
    """The balance term by step, mean over seeds."""
    from loramixer.viz.figures import balance_curve_figure

    return balance_curve_figure(read_csv(folder / f"{NAME}.csv"))


EXPERIMENT = Experiment(NAME, "The balance term while training", "Figure 6", plan, write, {NAME: lines},
                        file=losses.NAME)  # fmt: skip
