"""Exponentiated-gradient descent on the smoothed objective F_S (paper, A.1): how fast KL shrinks, and where to.

F_S(P) = α Σ_e p̄_e² + λ/n Σ_j Σ_e p_je log p_je, the smooth surrogate s̄ = p̄ of the footnote. Gradients are taken in
the averaged geometry of A.2 (n times the plain gradient of one token's row), where F_S is λ-strongly convex; in the
plain one the rate of A.1 would be 1 − ηλ/n. Pure numpy, seconds.

Three objectives: the one that is printed (``flatten``), whose minimum is known: uniform gates for every token; the
same with a task cost C_je that differs between tokens (``flatten + task``), whose minimum is inside the simplex; and
the one that the text describes (``sharpen``, −λ instead of +λ), which is not convex: the theorem says nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loramixer.evaluation.csv_files import Row, read_csv, write_csv
from loramixer.evaluation.experiments.plan import Experiment
from loramixer.evaluation.experiments.results import Results
from loramixer.metrics import combine_seeds, entropy

NAME = "convergence"


@dataclass(frozen=True)
class Objective:
    """F_S with its coefficients.

    Attributes:
        name: in words.
        balance_weight: α.
        entropy_weight: λ; negative for ``sharpen``.
        cost: ``[n, E]``, linear cost of giving a token to an expert.
    """

    name: str
    balance_weight: float
    entropy_weight: float
    cost: np.ndarray

    def value(self, p: np.ndarray) -> float:
        """F_S + mean task cost."""
        balance = self.balance_weight * np.square(p.mean(axis=0)).sum()
        return float(balance - self.entropy_weight * entropy(p).mean() + (self.cost * p).sum(axis=1).mean())

    def gradient(self, p: np.ndarray) -> np.ndarray:
        """In the averaged geometry, ``[n, E]``."""
        return 2 * self.balance_weight * p.mean(axis=0) + self.entropy_weight * (1 + np.log(p)) + self.cost

    def smoothness(self, smallest: float) -> float:
        """L on the interior p ≥ ε: λ/ε of the entropy and 2α of the balance term (A.1, Lemma 2)."""
        return abs(self.entropy_weight) / smallest + 2 * self.balance_weight


def exponentiated_gradient(p: np.ndarray, objective: Objective, step: float) -> np.ndarray:
    """One step of Eq. 15: p ∝ p ⊙ exp(−η ∇F), every row normalised; ``[n, E]``."""
    logits = np.log(p) - step * objective.gradient(p)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    # Multiplied weights would underflow to an exact 0, from which no step returns and whose log is not finite.
    weights = np.maximum(weights, np.finfo(float).tiny)
    return weights / weights.sum(axis=1, keepdims=True)


def divergence(target: np.ndarray, p: np.ndarray) -> float:
    """Mean over tokens of KL(target ‖ p) in nats."""
    return float((target * (np.log(target) - np.log(p))).sum(axis=1).mean())


def minimiser(objective: Objective, tokens: int, experts: int) -> np.ndarray:
    """P* of a convex objective to machine precision, by the same descent from uniform gates until nothing moves."""
    p = np.full((tokens, experts), 1 / experts)
    step = 1 / (objective.entropy_weight + 2 * objective.balance_weight)
    for _ in range(100_000):
        following = exponentiated_gradient(p, objective, step)
        if np.abs(following - p).max() < 1e-16:
            break
        p = following
    return p


def trajectory(objective: Objective, start: np.ndarray, step: float, steps: int) -> list[Row]:
    """KL to the minimiser, objective and place on the plane at every step; no KL where there is no one minimiser."""
    target = minimiser(objective, *start.shape) if objective.entropy_weight > 0 else None
    rows, p = [], start
    for number in range(steps + 1):
        rows.append(
            {
                "step": number,
                "kl": None if target is None else divergence(target, p),
                "objective": objective.value(p),
                "gap": None if target is None else objective.value(p) - objective.value(target),
                "token_entropy": float(entropy(p).mean()),
                "load_entropy": float(entropy(p.mean(axis=0))),
                "experts": p.shape[1],
            }
        )
        p = exponentiated_gradient(p, objective, step)
    return rows


def objectives(seed: int, tokens: int, experts: int, balance_weight: float, entropy_weight: float) -> list[Objective]:
    """The three objectives of the module's docstring."""
    cost = 0.1 * np.random.default_rng(seed).standard_normal((tokens, experts))
    nothing = np.zeros_like(cost)
    return [
        Objective("flatten", balance_weight, entropy_weight, nothing),
        Objective("flatten + task", balance_weight, entropy_weight, cost),
        Objective("sharpen", balance_weight, -entropy_weight, nothing),
    ]


def measure_convergence(
    seeds: tuple[int, ...] = (0, 1, 2),
    *,
    tokens: int = 64,
    experts: int = 4,
    balance_weight: float = 0.1,
    entropy_weight: float = 0.05,
    smallest: float = 0.02,
    steps: int = 400,
) -> list[Row]:
    """Descend from random gates of every seed, with the largest step that the theorem allows, η = 1/L.

    Args:
        seeds: of the first gates and of the task cost.
        tokens: n.
        experts: K.
        balance_weight: α, of Σ p̄²; A.8's value.
        entropy_weight: λ; A.8's value.
        smallest: ε, smallest probability of the first gates, which L is computed from.
        steps: of the descent.
    """
    rows = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        start = random.dirichlet(np.ones(experts), size=tokens)
        start = smallest + (1 - experts * smallest) * start
        for objective in objectives(seed, tokens, experts, balance_weight, entropy_weight):
            step = 1 / objective.smoothness(smallest)
            rows += [
                {
                    "setting": objective.name,
                    "seed": seed,
                    "balance_weight": balance_weight,
                    "entropy_weight": entropy_weight,
                    "learning_step": step,
                    "bound": 1 - step * entropy_weight,
                    **row,
                }
                for row in trajectory(objective, start, step, steps)
            ]
    return rows


EVERY = 4
"""Steps between the rows of the file."""

FLOOR = 1e-12
"""KL below this is rounding, and its ratios say nothing."""


def ratios(rows: list[Row]) -> np.ndarray:
    """KL of each step over that of the step before, of one seed and objective, above rounding."""
    found = np.array([row["kl"] for row in rows], dtype=float)
    return (found[1:] / found[:-1])[found[1:] > FLOOR]


def summarise(rows: list[Row]) -> list[Row]:
    """Per objective: largest ratio of KL from step to step, the promised bound, and where the descent ends."""
    summary = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        runs = [
            [row for row in rows if row["setting"] == setting and row["seed"] == seed]
            for seed in dict.fromkeys(row["seed"] for row in rows)
        ]
        quantities = {
            "token_entropy": [run[-1]["token_entropy"] / np.log(run[-1]["experts"]) for run in runs],
            "load_entropy": [run[-1]["load_entropy"] / np.log(run[-1]["experts"]) for run in runs],
        }
        if runs[0][0]["kl"] is not None:
            quantities |= {
                "largest_ratio": [float(ratios(run).max()) for run in runs],
                "last_ratio": [float(ratios(run)[-1]) for run in runs],
                "last_kl": [run[-1]["kl"] for run in runs],
            }
        for quantity, values in quantities.items():
            found = combine_seeds(values)
            summary.append(
                {
                    "setting": setting,
                    "quantity": quantity,
                    "value": found.value,
                    "low": found.low,
                    "high": found.high,
                    "seeds": found.seeds,
                    "covers": found.covers,
                    "bound": runs[0][0]["bound"] if quantity.endswith("ratio") else None,
                    "steps": runs[0][-1]["step"],
                }
            )
    return summary


def write(results: Results, folder: Path) -> None:
    """Run it; write every fourth step, and the summary of all steps. Seeds that are there already stay."""
    path = folder / f"{NAME}.csv"
    former = [int(row["seed"]) for row in read_csv(path)] if path.is_file() else []
    rows = measure_convergence(tuple(sorted({*former, *results.options.seeds})))
    write_csv(path, [row for row in rows if row["step"] % EVERY == 0])
    write_csv(folder / f"{NAME}-summary.csv", summarise(rows))


def figure(folder: Path) -> object:
    """KL by step, from the CSV file."""
    from loramixer.viz.figures import convergence_figure

    return convergence_figure(read_csv(folder / f"{NAME}.csv"))


EXPERIMENT = Experiment(
    name=NAME,
    title="Exponentiated-gradient descent on the smoothed objective",
    mirrors="A.1, Theorem 1 (b)",
    plan=None,
    write=write,
    figures={NAME: figure},
    needs_rows=False,
)
