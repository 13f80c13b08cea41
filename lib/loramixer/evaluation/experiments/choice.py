"""Which of several RSL settings ships, by a rule that was written before the numbers were there.

The rule is :data:`loramixer.evaluation.verdicts.CHOICE`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.experiments import losses
from loramixer.evaluation.experiments.measure import ROUTING_GATE, Measurement
from loramixer.evaluation.experiments.plan import Experiment, Options, Plan, Run
from loramixer.evaluation.experiments.results import Results
from loramixer.evaluation.verdicts import named, shipped_gate

NAME = "choice"


def candidates(options: Options) -> list[Run]:
    """What is called ``rsl``, and the other settings that it has to stand against."""
    examples = options.examples or losses.EXAMPLES
    settings = dict.fromkeys([(options.balance_weight, options.entropy_weight), *options.candidates])
    return [Run("rsl", alpha, entropy, "sharpen", examples, 0, options.learning_rate) for alpha, entropy in settings]


def plan(options: Options) -> Plan:
    """Every candidate under soft gates, which record the routing, and under the shipped gate."""
    return Plan(options.with_seeds(candidates(options)), (ROUTING_GATE, f"top_{options.top_k}"))


def write(results: Results, folder: Path) -> None:
    """Every number of every candidate over the seeds that all of its size have, so that no seed favours one."""
    fair: dict[Run, dict[str, Measurement]] = {}
    for size in dict.fromkeys(run.examples for run in results.measured):
        own = {run: found for run, found in results.measured.items() if run.examples == size}
        seeds = [{run.seed for run in runs} for (_, examples), runs in results.groups().items() if examples == size]
        shared = set.intersection(*seeds)
        fair |= {run: found for run, found in own.items() if run.seed in shared} or own
    results.write(folder, NAME, replace(results, measured=fair).plain_rows())


def dots(folder: Path) -> Any:
    """Loss, own-expert share and mutual information of the candidates."""
    from loramixer.viz.figures import choice_figure

    rows = named(read_csv(folder / f"{NAME}-summary.csv"))
    return choice_figure(rows, shipped_gate(rows))


EXPERIMENT = Experiment(NAME, "Which RSL ships", "no table of the paper", plan, write, {NAME: dots})
