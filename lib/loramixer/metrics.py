"""Numbers that describe routing: entropy, load, mutual information, agreement. Numpy only; entropies are in nats.

``p`` has shape ``[..., E]`` with rows that sum to 1; with N = log E, the entropy–balance plane of a router has
``x = token_entropy / N`` (how undecided single tokens are) and ``y = load_entropy / N`` (how even the load is).
Entropy is concave, so y ≥ x, and y − x is the mutual information between token and expert over N: specialisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def entropy(p: np.ndarray) -> np.ndarray:
    """Shannon entropy of the last axis in nats; 0 log 0 is 0."""
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=-1)


def load(p: np.ndarray) -> np.ndarray:
    """Mean share of each expert over all leading axes, ``[E]``."""
    return p.reshape(-1, p.shape[-1]).mean(axis=0)


def margin(p: np.ndarray) -> np.ndarray:
    """How far the first expert is ahead of the second, in 0…1; over the last axis."""
    ordered = np.sort(p, axis=-1)
    return ordered[..., -1] - ordered[..., -2] if p.shape[-1] > 1 else ordered[..., -1]


@dataclass(frozen=True)
class PlanePoint:
    """One router, or the mean of several, on the entropy–balance plane; all in nats.

    Attributes:
        token_entropy: mean entropy of single tokens.
        load_entropy: entropy of the mean load.
        experts: number of experts; log of it is the largest possible entropy.
    """

    token_entropy: float
    load_entropy: float
    experts: int

    @property
    def mutual_information(self) -> float:
        """Mutual information between token and expert in nats: how much a token says about its expert."""
        return self.load_entropy - self.token_entropy

    @property
    def undecided(self) -> float:
        """Token entropy in 0…1 of its largest value: x of the plane."""
        return self.token_entropy / np.log(self.experts)

    @property
    def balanced(self) -> float:
        """Load entropy in 0…1 of its largest value: y of the plane."""
        return self.load_entropy / np.log(self.experts)


def plane_point(p: np.ndarray) -> PlanePoint:
    """Place routers on the plane: per router first, then the mean over routers, so that routers never cancel.

    Args:
        p: probabilities ``[S, T, E]``.
    """
    return PlanePoint(
        token_entropy=float(entropy(p).mean()),
        load_entropy=float(entropy(p.mean(axis=1)).mean()),
        experts=p.shape[-1],
    )


def mean_interval(values: np.ndarray, seed: int = 0, draws: int = 1000) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval over independent rows.

    Args:
        values: one number per row, ``[n]``; NaN rows are left out.
        seed: of the resampling.
        draws: number of bootstrap samples.

    Returns:
        ``(mean, low, high)``; all NaN when no row counts.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return (float("nan"),) * 3
    samples = np.random.default_rng(seed).choice(values, size=(draws, values.size)).mean(axis=1)
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def ratio_interval(
    numerators: np.ndarray, denominators: np.ndarray, seed: int = 0, draws: int = 1000
) -> tuple[float, float, float]:
    """Σ numerators / Σ denominators with its 95 % bootstrap interval over rows, such as loss per token.

    Args:
        numerators: ``[n]``.
        denominators: ``[n]``, positive.
        seed: of the resampling.
        draws: number of bootstrap samples.
    """
    picks = np.random.default_rng(seed).integers(len(numerators), size=(draws, len(numerators)))
    samples = numerators[picks].sum(axis=1) / denominators[picks].sum(axis=1)
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(numerators.sum() / denominators.sum()), float(low), float(high)
