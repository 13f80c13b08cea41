"""What experiments write and draw when their files hold several learning rates, sizes or settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.evidence import EVIDENCE
from loramixer.evaluation.experiments import grid, losses, top_k
from loramixer.evaluation.experiments.measure import Measurement
from loramixer.evaluation.experiments.plan import Options, Run
from loramixer.evaluation.experiments.results import Results, limits

OPTIONS = Options(experts=("math", "code"), seeds=(0,), examples=64)
COUNTS = ("top_1", "top_2")


def measurement(value: float) -> Measurement:
    routing = ("token_entropy", "load_entropy", "mutual_information", "own_share", "load_variance")
    names = ("loss", "loss_math", "loss_code", "load_math", "load_code", *routing)
    values = dict.fromkeys(names, value)
    draws = {name: np.full(3, value) + np.arange(3) / 1e3 for name in values}
    return Measurement(values, draws, {"seconds": 1.0}, [])


def results_of(
    runs: dict[Run, float], options: Options = OPTIONS, gates: Sequence[str] = ("soft", "top_1", "top_2")
) -> Results:
    found = Results(options, cast(Any, None), 40, "key", data="generated")
    for run, value in runs.items():
        found.measured[run] = {gate: measurement(value) for gate in gates}
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


@pytest.mark.parametrize("other", [{"balance_weight": 4.0}, {"learning_rate": 1e-3}, {"examples": 8}])
def test_top_k_of_several_settings_is_drawn_listed_and_judged_by_setting(tmp_path: Path, other: dict) -> None:
    run = OPTIONS.rsl(64)
    rest = replace(run, **other)
    names = [run.setting, rest.setting] if run.setting != rest.setting else [
        f"{run.setting}, {count} training rows" for count in (64, 8)
    ]  # fmt: skip
    top_k.write(results_of({run: 0.5, rest: 2.0}, gates=COUNTS), tmp_path)
    figure = top_k.lines(tmp_path)
    assert [trace.name[2:] for trace in figure.data] == names
    assert [(list(trace.x), list(trace.y)) for trace in figure.data] == [([1, 2], [0.5] * 2), ([1, 2], [2.0] * 2)]
    lines = EVIDENCE["top-k"](tmp_path).splitlines()[2:]
    heads = [
        f"| {name}, k = {k} | {value}" for name, value in zip(names, ("0.500", "2.000"), strict=True) for k in "12"
    ]
    assert [line[: len(head)] for line, head in zip(lines, heads, strict=True)] == heads
    claims = EVIDENCE["top-k-verdicts"](tmp_path).splitlines()
    assert [f"– {name}: k = 2 has" in line for name, line in zip(names, claims, strict=True)] == [True, True]


def test_losses_of_two_sizes_have_a_line_each(tmp_path: Path) -> None:
    none = OPTIONS.other("none", 64)
    losses.write(results_of({none: 0.25, replace(none, examples=8): 0.75}), tmp_path)
    lines = EVIDENCE["losses"](tmp_path).splitlines()[2:]
    heads = [line.split("|")[1].strip() for line in lines]
    assert heads == ["none, 64 training rows", "none, 8 training rows"]
    heights = {trace.y[0] for trace in losses.dots(tmp_path).data}
    assert len(heights) == 2


def test_runs_on_other_rows_are_no_pair() -> None:
    """Seeds of two divisions of the data lie in one archive; their difference is not one of equals."""
    ours, other = OPTIONS.rsl(64), OPTIONS.other("none", 64)
    found = results_of({ours: 0.5, other: 0.25})
    assert found.difference([ours], [other], "loss") is not None
    found.logs[ours].settings["rows_fingerprint"] = "a"
    assert found.difference([ours], [other], "loss") is not None  # an older log does not say
    found.logs[other].settings["rows_fingerprint"] = "b"
    assert found.difference([ours], [other], "loss") is None
    half = replace(other, examples=32)
    found = results_of({ours: 0.5, half: 0.25})
    found.logs[ours].settings["rows_fingerprint"], found.logs[half].settings["rows_fingerprint"] = "a", "b"
    assert found.difference([ours], [half], "loss") is not None


def test_the_grid_at_another_rate_has_its_verdict_of_collapse(tmp_path: Path) -> None:
    run = replace(OPTIONS.load_balance(64), learning_rate=1e-3)
    grid.write(results_of({run: 0.5}), tmp_path)
    assert "load balance 4, learning rate 0.001 (K Σ p̄ f̄)" in EVIDENCE["grid-verdicts"](tmp_path)


def test_intervals_of_bounded_numbers_stay_in_their_bounds() -> None:
    ours = OPTIONS.rsl(64)
    found = results_of({ours: 0.99, replace(ours, seed=1): 0.5})
    runs = list(found.measured)
    share = found.estimate(runs, "own_share", "soft")
    loss = found.estimate(runs, "loss", "soft")
    assert share is not None
    assert loss is not None
    assert (share.low, share.high) == (0, 1)  # t of one degree of freedom reaches far
    assert loss.high > 1
    assert loss.low == 0
    apart = found.difference(runs, runs, "loss", "soft")
    assert apart is not None
    assert apart.low <= 0
    assert limits("load_variance", 6) == (0, float("inf"))
    assert limits("mutual_information", 2)[1] == pytest.approx(0.693, abs=1e-3)


def test_top_k_of_one_setting_needs_no_name(tmp_path: Path) -> None:
    top_k.write(results_of({OPTIONS.rsl(64): 0.5}, gates=COUNTS), tmp_path)
    assert [trace.name for trace in top_k.lines(tmp_path).data] == ["all domains", "A math", "B code"]
    assert [line[:5] for line in EVIDENCE["top-k"](tmp_path).splitlines()[2:]] == ["| 1 |", "| 2 |"]
    assert "– k = 2 has" in EVIDENCE["top-k-verdicts"](tmp_path)
