"""The descent of A.1: one step by hand, its fixed point, its rate, and that sharpening is something else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.experiments.convergence import (
    Objective,
    divergence,
    exponentiated_gradient,
    measure_convergence,
    minimiser,
    ratios,
    write,
)


def test_one_step_by_hand():
    """One token: ∇ = 2 α p + λ (1 + log p); with α = 0 and η λ = 1 one step goes to the uniform point."""
    p = np.array([[0.8, 0.2]])
    nothing = np.zeros_like(p)
    assert exponentiated_gradient(p, Objective("", 0, 0.5, nothing), 2.0) == pytest.approx(np.array([[0.5, 0.5]]))
    # With λ = 0: p ∝ p exp(−2 η α p).
    weights = p * np.exp(-2 * 0.5 * p)
    assert exponentiated_gradient(p, Objective("", 1, 0, nothing), 0.5) == pytest.approx(weights / weights.sum())


def test_the_gradient_is_that_of_the_objective():
    random = np.random.default_rng(0)
    p, cost = random.dirichlet(np.ones(3), size=4), random.normal(size=(4, 3))
    objective, small = Objective("", 0.7, 0.3, cost), 1e-6
    change = np.zeros_like(p)
    change[2] = [small, -small, 0]
    slope = (objective.value(p + change) - objective.value(p - change)) / 2
    assert slope == pytest.approx((objective.gradient(p) * change).sum() / len(p), rel=1e-4)


def test_without_a_task_the_minimum_is_uniform_and_with_one_it_is_stationary():
    assert minimiser(Objective("", 0.1, 0.05, np.zeros((5, 4))), 5, 4) == pytest.approx(np.full((5, 4), 0.25))
    objective = Objective("", 0.1, 0.05, np.random.default_rng(1).normal(size=(5, 4)) * 0.1)
    gradient = objective.gradient(minimiser(objective, 5, 4))
    assert gradient - gradient.mean(axis=1, keepdims=True) == pytest.approx(np.zeros((5, 4)), abs=1e-10)


@settings(max_examples=10, deadline=None)
@given(balance=st.floats(0.01, 1), entropy=st.floats(0.02, 0.5), seed=st.integers(0, 5))
def test_kl_shrinks_at_least_by_the_promised_factor(balance, entropy, seed):
    rows = measure_convergence((seed,), tokens=8, balance_weight=balance, entropy_weight=entropy, steps=60)
    for setting in ("flatten", "flatten + task"):
        own = [row for row in rows if row["setting"] == setting]
        assert ratios(own).max() <= own[0]["bound"] + 1e-6


def test_another_seed_is_added_to_those_that_are_there(tmp_path):
    from types import SimpleNamespace

    for seeds in ((0, 2), (1,)):
        write(SimpleNamespace(options=SimpleNamespace(seeds=seeds)), tmp_path)
    assert {row["seed"] for row in read_csv(tmp_path / "convergence.csv")} == {0, 1, 2}
    assert {row["seeds"] for row in read_csv(tmp_path / "convergence-summary.csv")} == {3}


def test_sharpening_ends_with_decided_tokens():
    rows = [row for row in measure_convergence((0,), steps=400) if row["setting"] == "sharpen"]
    assert rows[-1]["token_entropy"] < 0.1 < rows[0]["token_entropy"]
    assert rows[-1]["kl"] is None


def test_divergence_by_hand():
    target, p = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    assert divergence(target, p) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75))
