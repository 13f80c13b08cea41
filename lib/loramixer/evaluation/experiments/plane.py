"""The routers of the comparison of losses on the entropy–balance plane with their training, among all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loramixer.evaluation.csv_files import Row, read_csv, write_csv
from loramixer.evaluation.experiments import balance_curve, choice, data_size, grid, losses
from loramixer.evaluation.experiments.measure import ROUTING_GATE, Measurement
from loramixer.evaluation.experiments.plan import Experiment, Options, Plan, Run
from loramixer.evaluation.experiments.results import Results

NAME = "plane"


def plan(options: Options) -> Plan:
    """The runs of the comparison of losses, under soft gates."""
    return Plan(losses.plan(options).runs, (ROUTING_GATE,))


def point_rows(results: Results) -> list[Row]:
    """One row per setting: its point in 0…1, intervals over seeds and rows, and the shuffled-token band.

    The band is that of the first seed's router for texts of the median length of a test row, ``band_tokens``: where a
    text of so many tokens would fall if its tokens were drawn at random from all texts.
    """
    width = np.log(len(results.options.experts))
    rows = []
    for (setting, examples), runs in results.groups().items():
        x, y = (results.estimate(runs, name) for name in ("token_entropy", "load_entropy"))
        if x is None or y is None:
            continue
        facts = results.measured[runs[0]][ROUTING_GATE].facts
        row: Row = {"setting": setting, "examples": examples}
        for name, found in (("undecided", x), ("balanced", y)):
            row |= {name: found.value / width, f"{name}_low": found.low / width, f"{name}_high": found.high / width}
        row |= {"seeds": x.seeds, "rows": results.rows, "tokens": facts["tokens"], "covers": x.covers}
        row["band_tokens"] = facts["band_tokens"]
        for name, ends in (("undecided", facts["band_token_entropy"]), ("balanced", facts["band_load_entropy"])):
            row |= {f"band_{name}_low": ends[0] / width, f"band_{name}_high": ends[1] / width}
        rows.append({**row, "data": results.data})
    return rows


def other_rows(results: Results) -> list[Row]:
    """One row for each router of another experiment that has been measured: its point, with intervals over rows."""
    width = np.log(len(results.options.experts))
    rows = []
    for run in dict.fromkeys(_other_runs(results.options)):
        path = results.workshop.measurement_file(results.key, run, ROUTING_GATE)
        if run in results.measured or not path.is_file():
            continue
        found = Measurement.load(path)
        row: Row = {"setting": run.setting, "examples": run.examples, "seed": run.seed}
        for name, quantity in (("undecided", "token_entropy"), ("balanced", "load_entropy")):
            low, high = found.interval(quantity)
            row |= {name: found.values[quantity] / width, f"{name}_low": low / width, f"{name}_high": high / width}
        rows.append({**row, "rows": results.rows, "data": results.data})
    return rows


def _other_runs(options: Options) -> Iterator[Run]:
    """Of the experiments with other settings and sizes, as they are by default and as they are chosen."""
    for examples in dict.fromkeys((None, options.examples)):
        for experiment in (choice, data_size, grid):
            yield from experiment.plan(replace(options, examples=examples)).runs


def write(results: Results, folder: Path) -> None:
    """The points, those of other experiments, and the paths: means over the rows of each logged step, over log E."""
    width = np.log(len(results.options.experts))
    write_csv(folder / f"{NAME}.csv", point_rows(results))
    if others := other_rows(results):
        write_csv(folder / f"{NAME}-others.csv", others)
    paths = [
        {
            **{name: row[name] for name in ("setting", "examples", "seed", "step", "share")},
            "undecided": row["token_entropy"] / width,
            "balanced": row["load_entropy"] / width,
        }
        for row in balance_curve.curve_rows(results)
        if row["token_entropy"] is not None and row["load_entropy"] is not None
    ]
    if paths:
        write_csv(folder / f"{NAME}-paths.csv", paths)


def picture(folder: Path) -> Any:
    """The plane with named corners.

    Args:
        folder: of results.

    Raises:
        FileNotFoundError: the comparison of losses has not been measured.
    """
    from loramixer.viz.figures import plane_figure

    files = (folder / f"{NAME}-{part}.csv" for part in ("paths", "others"))
    paths, others = (read_csv(file) if file.is_file() else [] for file in files)
    return plane_figure(read_csv(folder / f"{NAME}.csv"), paths, others)


EXPERIMENT = Experiment(NAME, "The entropy–balance plane", "no figure of the paper", plan, write, {NAME: picture},
                        file=losses.NAME)  # fmt: skip
