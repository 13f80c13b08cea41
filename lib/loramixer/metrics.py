"""Numbers that describe routing: entropy, load, mutual information, agreement. Numpy only; entropies are in nats.

``p`` has shape ``[..., E]`` with rows that sum to 1; with N = log E, the entropy–balance plane of a router has
``x = token_entropy / N`` (how undecided single tokens are) and ``y = load_entropy / N`` (how even the load is).
Entropy is concave, so y ≥ x, and y − x is the mutual information between token and expert over N: specialisation.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np


def entropy(p: np.ndarray) -> np.ndarray:
    """Shannon entropy of the last axis in nats; 0 log 0 is 0."""
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=-1)


def load(p: np.ndarray) -> np.ndarray:
    """Mean share of each expert over all leading axes, ``[E]``."""
    return p.reshape(-1, p.shape[-1]).mean(axis=0)


def routers_that_are_on(p: np.ndarray) -> np.ndarray:
    """Gates ``[S, T, E]`` without the routers that give nobody anything; all of them where none is on."""
    routed = p.any(axis=(1, 2))
    return p if routed.all() or not routed.any() else p[routed]


def mutual_information(p: np.ndarray) -> np.ndarray:
    """I(token; expert) = H(p̄) − E[H(p)] of each router in nats: ``[..., T, E] → [...]``; 0 … log E."""
    return entropy(p.mean(axis=-2)) - entropy(p).mean(axis=-1)


def token_awareness(p: np.ndarray) -> np.ndarray:
    """Var(p) = E‖p(x) − p̄‖² of each router (paper, Eq. 10): ``[..., T, E] → [...]``; 0 when all tokens agree."""
    return np.square(p - p.mean(axis=-2, keepdims=True)).sum(axis=-1).mean(axis=-1)


def load_variance(loads: np.ndarray) -> np.ndarray:
    """Variance over the experts of their mean load: ``[..., E] → [...]``; 0 when even, (E − 1) / E² for one expert."""
    return np.var(loads, axis=-1)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen–Shannon divergence of two distributions over the last axis, in nats; 0 … log 2."""
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def margin(p: np.ndarray) -> np.ndarray:
    """How far the first expert is ahead of the second, in 0…1; over the last axis."""
    ordered = np.sort(p, axis=-1)
    return ordered[..., -1] - ordered[..., -2] if p.shape[-1] > 1 else ordered[..., -1]


HIGH_GATE = 0.3
"""Gate from which an expert counts as chosen in :func:`gated_without_effect`."""

NO_EFFECT = 0.05
"""Share of what all experts add, below which an expert counts as without effect there."""


def gated_without_effect(
    gates: np.ndarray, contributions: np.ndarray, high_gate: float = HIGH_GATE, no_effect: float = NO_EFFECT
) -> np.ndarray:
    """Where an expert is chosen and yet adds next to nothing: its matrices hardly answer to this token.

    Args:
        gates: ``[..., E]``.
        contributions: ``[..., E]``, lengths of what the experts add, ‖g_e s_e B_e A_e x‖.
        high_gate: smallest gate that counts as chosen.
        no_effect: the share of the sum of all experts' lengths that it stays below; where nobody adds anything, every
            chosen expert counts.

    Returns:
        bool ``[..., E]``.
    """
    total = contributions.sum(axis=-1, keepdims=True)
    return (gates >= high_gate) & ((contributions < no_effect * total) | (total == 0))


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

    A router that is off has no place there: sites without any gate are left out. Where no site has one, both
    entropies are 0.

    Args:
        p: probabilities ``[S, T, E]``.
    """
    p = routers_that_are_on(p)
    return PlanePoint(
        token_entropy=float(entropy(p).mean()),
        load_entropy=float(entropy(p.mean(axis=1)).mean()),
        experts=p.shape[-1],
    )


@dataclass(frozen=True)
class PlaneBand:
    """Where a text of ``tokens`` tokens falls when its tokens are drawn at random from all texts; 95 % ranges, nats.

    A text whose point lies outside is routed in another way than the same number of tokens without order or topic.
    H(p̄) of few tokens is below that of many, so a point is to be read against the band of its own n.
    """

    tokens: int
    token_entropy: tuple[float, float]
    load_entropy: tuple[float, float]
    mutual_information: tuple[float, float]


def shuffled_token_band(p: np.ndarray, tokens: int, seed: int = 0, draws: int = 200) -> PlaneBand:
    """Band of the entropy–balance plane for texts of a given length, from tokens shuffled between texts.

    Args:
        p: probabilities ``[S, T, E]`` of all tokens of all texts.
        tokens: length of a text, 1 … T.
        seed: of the shuffling.
        draws: number of random texts; the same tokens are taken at every site.

    Raises:
        ValueError: more tokens are asked for than there are.
    """
    if not 1 <= tokens <= p.shape[1]:
        raise ValueError(f"tokens is {tokens}; there are {p.shape[1]} to draw from, so give 1 to {p.shape[1]}.")
    random = np.random.default_rng(seed)
    points = [plane_point(p[:, random.choice(p.shape[1], tokens, replace=False)]) for _ in range(draws)]

    def middle(values: list[float]) -> tuple[float, float]:
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)

    return PlaneBand(
        tokens=tokens,
        token_entropy=middle([point.token_entropy for point in points]),
        load_entropy=middle([point.load_entropy for point in points]),
        mutual_information=middle([point.mutual_information for point in points]),
    )


def row_resamples(groups: Sequence[Hashable], seed: int = 0, draws: int = 500) -> np.ndarray:
    """How often each row is drawn in each bootstrap sample, ``[draws, n]``; the size of every group stays as it is.

    Two quantities of the same rows that are taken over the same resamples are paired: the interval of their
    difference is that of the differences of rows.

    Args:
        groups: group of each row, such as its domain.
        seed: of the resampling; the same groups and seed give the same samples.
        draws: number of bootstrap samples.
    """
    random = np.random.default_rng(seed)
    counts = np.zeros((draws, len(groups)))
    for group in dict.fromkeys(groups):
        members = np.flatnonzero([found == group for found in groups])
        counts[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return counts


T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""

NORMAL_QUANTILE = 1.96


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t, right to three digits after the point.

    Args:
        freedom: degrees of freedom, 1 or more.
    """
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    # The expansion in powers of 1 / freedom (Abramowitz and Stegun, 26.7.5); with few degrees it is not near enough.
    z = 1.959964
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: mean over seeds.
        low: lower end.
        high: upper end.
        seeds: number of training seeds.
        covers: what would change the number within the interval: ``rows`` (other rows of the same data sets),
            ``seeds`` (another training seed), ``seeds and rows``, or ``nothing`` (one number without a spread).
    """

    value: float
    low: float
    high: float
    seeds: int
    covers: str

    def within(self, smallest: float, largest: float) -> Estimate:
        """The same with an interval that leaves out what cannot be."""
        return replace(self, low=max(self.low, smallest), high=min(self.high, largest))


def combine_seeds(values: Sequence[float], draws: np.ndarray | None = None) -> Estimate:
    """Mean over training seeds with a 95 % interval for another seed and other rows at once.

    The two sources are independent, so their half-widths add in quadrature: Student's t over the seeds (S − 1 degrees
    of freedom), and the normal interval of the bootstrap over rows of the mean over seeds. With one seed the interval
    covers rows only, and says so.

    Args:
        values: one number per seed, or one difference per seed (paired).
        draws: the same numbers on bootstrap samples of the rows, ``[S, B]``, the same samples for every seed.
    """
    count = len(values)
    seed_half = row_half = 0.0
    if count > 1:
        seed_half = t_quantile(count - 1) * float(np.std(values, ddof=1)) / np.sqrt(count)
    if draws is not None:
        row_half = NORMAL_QUANTILE * float(np.std(draws.mean(axis=0), ddof=1))
    covers = " and ".join(name for name, known in (("seeds", count > 1), ("rows", draws is not None)) if known)
    mean, half = float(np.mean(values)), float(np.hypot(seed_half, row_half))
    return Estimate(mean, mean - half, mean + half, count, covers or "nothing")


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


def share_interval(hits: int, of: int) -> tuple[float, float, float]:
    """A share with its 95 % Wilson interval, which is honest for few rows and for none or all right.

    A bootstrap of rows that are all wrong would call 0 % certain.

    Args:
        hits: rows that are right.
        of: rows.

    Returns:
        ``(share, low, high)``; all NaN without rows.
    """
    if of < 1:
        return (math.nan,) * 3
    z = 1.959964
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


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
