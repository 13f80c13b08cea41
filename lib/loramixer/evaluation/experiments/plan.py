"""What an experiment trains and measures: runs, gates and options, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from loramixer.routing import DEFAULT_TOP_K
from loramixer.tuner.config import RoutingLoss

if TYPE_CHECKING:
    from loramixer.evaluation.experiments.results import Results

BASE_GATES = ("off", "uniform", "domain")
"""Gates that ask no router, so that one measurement serves all runs: the backbone alone, the mean of all experts, and
the oracle that gives every row to the expert of its domain."""

PAPER_NAMES = {"ds_moe": "DS-MoE", "gmoe": "GMoE", "aesl": "AESL"}
"""Losses that are known by a name of their own."""


def loss_named(name: str) -> str:
    """The routing loss that settings call by a name."""
    return next((loss for loss, known in PAPER_NAMES.items() if known == name), name.replace(" ", "_"))


@dataclass(frozen=True)
class Run:
    """One router training.

    Attributes:
        loss: routing loss, a name of ``RoutingLoss``.
        balance_weight: α, of K Σ p̄ f̄, or the weight of another loss; 0 where there is none.
        entropy_weight: λ, of E[H(p)] in nats; 0 without.
        entropy: sign of λ.
        examples: mixed training rows.
        seed: of rows, order and initial routers.
        learning_rate: peak learning rate.
    """

    loss: str
    balance_weight: float
    entropy_weight: float
    entropy: str
    examples: int
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        """A folder name that no other run has."""
        return f"{self._loss_slug()}-n{self.examples}-lr{self.learning_rate:g}-s{self.seed}"

    @property
    def setting(self) -> str:
        """What runs of several seeds share, in words; tables and figures show it."""
        rate = "" if self.learning_rate == Options.learning_rate else f", learning rate {self.learning_rate:g}"
        if self.loss == "rsl":
            return f"RSL {self.entropy} {self.balance_weight:g} / {self.entropy_weight:g}{rate}"
        name = PAPER_NAMES.get(self.loss) or self.loss.replace("_", " ")
        # GMoE's two terms have weights of their own, and `balance_weight` is none of them.
        return name + (f" {self.balance_weight:g}" if self.balance_weight and self.loss != "gmoe" else "") + rate

    def _loss_slug(self) -> str:
        if self.loss == "rsl":
            return f"rsl-{self.entropy}-{self.balance_weight:g}-{self.entropy_weight:g}"
        return self.loss.replace("_", "-") + (f"-{self.balance_weight:g}" if self.balance_weight else "")


@dataclass(frozen=True)
class Options:
    """What a user chooses for an experiment.

    Attributes:
        experts: names of the experts, in the order of the gates.
        seeds: training seeds.
        examples: training rows per router; None is the experiment's own number.
        balance_weight: α of what is called ``rsl``.
        entropy_weight: λ of what is called ``rsl``.
        strong_balance: weight of the stronger of the two balance losses that RSL is compared with.
        weak_balance: weight of the weaker one, by default the paper's α taken in the unit form.
        candidates: ``(α, λ)`` of further RSL settings among which the one that ships is chosen.
        learning_rate: of all routers.
        chosen: experts per token, in inference and where the balance term counts their use.
    """

    experts: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    examples: int | None = None
    balance_weight: float = 1.0
    entropy_weight: float = 0.3
    strong_balance: float = 4.0
    weak_balance: float = 0.1
    candidates: tuple[tuple[float, float], ...] = ((4.0, 0.3),)
    learning_rate: float = 5e-3
    chosen: int = DEFAULT_TOP_K

    @property
    def top_k(self) -> int:
        """Experts per token of the shipped gate."""
        return min(self.chosen, len(self.experts))

    @property
    def gates(self) -> tuple[str, ...]:
        """Soft gates, the shipped top-k, top-2 and top-1, as far as there are so many experts."""
        counts = sorted({self.top_k, min(2, self.top_k), 1}, reverse=True)
        return ("soft", *(f"top_{count}" for count in counts))

    def rsl(self, examples: int, entropy: str = "sharpen") -> Run:
        """RSL with the chosen coefficients, of seed 0."""
        return Run("rsl", self.balance_weight, self.entropy_weight, entropy, examples, 0, self.learning_rate)

    def load_balance(self, examples: int, weight: float | None = None) -> Run:
        """Load balance alone, the stronger one unless a weight is given."""
        alpha = self.strong_balance if weight is None else weight
        return Run("load_balance", alpha, 0.0, "sharpen", examples, 0, self.learning_rate)

    def other(self, loss: str, examples: int, weight: float = 0.0) -> Run:
        """Another loss, or ``none``."""
        return Run(loss, weight, 0.0, "sharpen", examples, 0, self.learning_rate)

    def with_seeds(self, settings: Iterable[Run]) -> list[Run]:
        """Every setting with every seed; all settings of the first seed come first, and unknown losses are left out.

        A loss that this version of the package has not got yet is no reason to fail: its line appears with it.
        """
        known = [run for run in dict.fromkeys(settings) if run.loss in get_args(RoutingLoss)]
        return [replace(run, seed=seed) for seed in self.seeds for run in known]


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        runs: router trainings, in order.
        gates: how each is evaluated: ``soft``, ``top_1`` … ``top_E``, or a name of :data:`BASE_GATES`.
    """

    runs: list[Run]
    gates: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """One experiment of the evidence.

    Attributes:
        name: on the command line and of its files.
        title: what it shows.
        mirrors: table or figure of the paper.
        plan: from the options to what is trained and measured; None where nothing is trained.
        write: writes the CSV files from what is measured so far; may be called after every run.
        figures: file stem → function that draws it from the rows of the CSV files in a folder.
        needs_rows: whether anything is measured on test rows, which must then be those of the archive.
        file: the experiment whose file names the runs that are there already, where that is another one.
    """

    name: str
    title: str
    mirrors: str
    plan: Callable[[Options], Plan] | None
    write: Callable[[Results, Path], None]
    figures: dict[str, Callable[[Path], Any]]
    needs_rows: bool = True
    file: str | None = None

    @property
    def runs_file(self) -> str:
        """Name of the CSV file with one row for every run."""
        return f"{self.file or self.name}.csv"
