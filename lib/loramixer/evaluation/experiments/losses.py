"""Routing losses on the same rows: test loss, accuracy, and how they route (paper, Table 8 and Figures 3 and 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.experiments.plan import Experiment, Options, Plan, Run
from loramixer.evaluation.experiments.results import Results
from loramixer.evaluation.verdicts import named, shipped_gate

NAME = "losses"
EXAMPLES = 2000
PEERS = {"ds_moe": 1.0, "gmoe": 1.0, "aesl": 1.0, "supervised": 1.0}
"""Weight of each peer's loss in its canonical scale."""


def plan(options: Options) -> Plan:
    """No loss, two balance losses, both signs of RSL, and the peers as far as this version has them."""
    return Plan(options.with_seeds(settings(options)), options.gates)


def settings(options: Options) -> list[Run]:
    """Every loss once."""
    examples = options.examples or EXAMPLES
    return [
        options.rsl(examples),
        options.load_balance(examples),
        options.other("none", examples),
        options.rsl(examples, "flatten"),
        options.load_balance(examples, options.weak_balance),
        *(options.other(loss, examples, weight) for loss, weight in PEERS.items()),
    ]


def replayed(options: Options) -> list[Run]:
    """The runs whose routers are kept along the way, so that their training can be replayed."""
    examples = options.examples or EXAMPLES
    return [options.rsl(examples), options.load_balance(examples)]


def write(results: Results, folder: Path) -> None:
    """Every number of every loss; RSL minus each other loss, and each minus none, on the same seeds and rows."""
    options, summary = results.options, results.plain_rows()
    ours = options.rsl(options.examples or EXAMPLES)
    none = options.other("none", ours.examples)
    gates, shipped = options.gates, f"top_{options.top_k}"
    quantities = {
        "loss": gates,
        **{f"loss_{name}": ("soft", shipped) for name in options.experts},
        "accuracy": gates,
        **dict.fromkeys(ROUTING, ("soft",)),
    }
    for group in results.groups():
        if group != (ours.setting, ours.examples):
            summary += results.difference_rows((ours.setting, ours.examples), group, quantities)
    for run in settings(options):
        if run.setting not in (none.setting, ours.setting):
            summary += results.difference_rows((run.setting, run.examples), (none.setting, none.examples), quantities)
    results.write(folder, NAME, summary)


ROUTING = ("token_entropy", "load_entropy", "mutual_information", "domain_information", "own_share", "load_variance")
"""What is said of routing in tables and differences; all on soft gates."""


def dots(folder: Path) -> Any:
    """Loss, own-expert share and mutual information with intervals."""
    from loramixer.viz.figures import losses_figure

    rows = named(read_csv(folder / f"{NAME}-summary.csv"))
    return losses_figure(rows, shipped_gate(rows))


def loads(folder: Path) -> Any:
    """Load of each expert under each loss."""
    from loramixer.viz.figures import loads_figure

    return loads_figure(named(read_csv(folder / f"{NAME}-summary.csv")))


def domain_shares(folder: Path) -> Any:
    """Which experts the tokens of each domain go to, under each loss; files of former versions do not say it."""
    from loramixer.viz.figures import domain_shares_figure

    rows = named(read_csv(folder / f"{NAME}-summary.csv"))
    if not any(str(row["quantity"]).startswith("share_of_") for row in rows):
        raise FileNotFoundError(f"{folder / NAME}-summary.csv has no shares of experts in domains.")
    return domain_shares_figure(rows)


EXPERIMENT = Experiment(
    name=NAME,
    title="Routing losses on the same rows",
    mirrors="Table 8, Figures 3 and 4",
    plan=plan,
    write=write,
    figures={NAME: dots, "loads": loads, "domain-shares": domain_shares},
)
