"""What experiments write and draw when their files hold several learning rates, sizes or settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.evidence import EVIDENCE
from loramixer.evaluation.experiments import grid, losses
from loramixer.evaluation.experiments.measure import Measurement
from loramixer.evaluation.experiments.plan import Options, Run
from loramixer.evaluation.experiments.results import Results

OPTIONS = Options(experts=("math", "code"), seeds=(0,), examples=64)


def measurement(value: float) -> Measurement:
    names = ("loss", "token_entropy", "load_entropy", "mutual_information", "own_share", "load_variance")
    values = dict.fromkeys((*names, "load_math", "load_code"), value)
    draws = {name: np.full(3, value) + np.arange(3) / 1e3 for name in values}
    return Measurement(values, draws, {"seconds": 1.0}, [])


def results_of(runs: dict[Run, float], options: Options = OPTIONS) -> Results:
    found = Results(options, cast(Any, None), 40, "key", data="generated")
    for run, value in runs.items():
        found.measured[run] = {gate: measurement(value) for gate in ("soft", "top_1", "top_2")}
        found.logs[run] = cast(Any, SimpleNamespace(settings={}, summary={}))
    return found


@pytest.mark.parametrize("rate", [5e-3, 1e-3])
def test_cells_of_the_grid_are_compared_with_no_loss_at_their_own_rate_and_size(tmp_path: Path, rate: float) -> None:
    none, sharpen = OPTIONS.other("none", 64), OPTIONS.rsl(64)
    here = {replace(none, learning_rate=rate): 1.0, replace(sharpen, learning_rate=rate): 0.5}
    elsewhere = {replace(none, learning_rate=1e-2): 3.0, replace(none, learning_rate=rate, examples=8): 4.0}
    grid.write(results_of({**elsewhere, **here}), tmp_path)
    (found,) = [
        row
        for row in read_csv(tmp_path / "grid-summary.csv")
        if row["against"] and row["quantity"] == "loss" and row["gate"] == "soft"
    ]
    name = "" if rate == 5e-3 else ", learning rate 0.001"
    assert (found["setting"], found["against"]) == (f"RSL sharpen 1 / 0.3{name}", f"none{name}")
    assert found["value"] == pytest.approx(-0.5)
    assert "sharpen lowers the test loss against no routing loss: held in 1" in EVIDENCE["grid-verdicts"](tmp_path)


def test_losses_at_another_rate_have_their_verdicts(tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=1e-3)
    none, sharpen = options.other("none", 64), options.rsl(64)
    losses.write(results_of({none: 0.1, sharpen: 0.5, OPTIONS.other("none", 64): 0.2}, options), tmp_path)
    found = EVIDENCE["losses-verdicts"](tmp_path).splitlines()
    special = [line for line in found if "specialises" in line]
    assert len(special) == 2  # mutual information and own share, each against no loss at this rate alone
    assert all("RSL sharpen 1 / 0.3, learning rate 0.001" in line and "difference 0.400" in line for line in special)
