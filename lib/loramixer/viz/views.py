"""What a view of a trace shows: which tokens, layers and projections, and their numbers; before anything is drawn.

Shapes: L layers, T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from loramixer.aggregate import How, Unit, aggregate, gate_shares
from loramixer.errors import FigureError
from loramixer.metrics import entropy, margin, routers_that_are_on
from loramixer.trace import Role, RoutingTrace, TraceTokens

Roles = Literal["prefill", "generation", "both"]

MEAN = "mean"
"""Stands for the mean over the routed projections of a layer."""

LABEL_LENGTH = 14
"""Longest token label on an axis, in characters."""


@dataclass(frozen=True)
class View:
    """A part of a trace, one router or the mean of several for each layer and token.

    Attributes:
        source: what was asked for.
        trace: what it is a part of: the same, or its words or sentences.
        projection: name of a projection, or ``mean`` over those of the layer.
        layers: indices of the layers, L.
        positions: positions of the tokens in the trace, T.
        labels: short visible names of the tokens, T.
        gates: float32 ``[L, T, E]``.
        logits: float32 ``[L, T, E]``, mean over the projections that have the expert; minus infinity if none has.
        entropies: float32 ``[L, T]``, mean over routers of the entropy of their gates, 0 … 1 of the largest possible.
        sites: for each layer, indices of the sites of the trace that the view takes.
        contributions: float32 ``[L, T, E]`` if the trace has them: length of what each expert added, in lengths of the
            frozen projection's output.
    """

    source: RoutingTrace
    trace: RoutingTrace
    projection: str
    layers: tuple[int, ...]
    positions: np.ndarray
    labels: tuple[str, ...]
    gates: np.ndarray
    logits: np.ndarray
    entropies: np.ndarray
    sites: tuple[tuple[int, ...], ...]
    contributions: np.ndarray | None

    @property
    def experts(self) -> tuple[str, ...]:
        return self.trace.experts

    @cached_property
    def top(self) -> np.ndarray:
        """Index of the expert with the largest gate, ``[L, T]``; −1 where no expert has any."""
        return np.where(self.gates.max(axis=-1) > 0, self.gates.argmax(axis=-1), -1)

    @cached_property
    def margins(self) -> np.ndarray:
        """How far it is ahead of the second, ``[L, T]``."""
        return margin(self.gates)

    @cached_property
    def first_generated(self) -> int | None:
        """Index of the first token that the model wrote, if it is not the first of the view."""
        roles = [self.trace.tokens.roles[position] for position in self.positions]
        return next((index for index, role in enumerate(roles) if role == "generated" and index), None)

    def place_of(self, position: int) -> int:
        """How many tokens of the view begin before a token of :attr:`source`."""
        start = self.source.tokens.spans[position, 0]
        return int((self.trace.tokens.spans[self.positions, 0] < start).sum())

    @cached_property
    def shares(self) -> np.ndarray:
        """What loads are means of, ``[L, T, E]``: the gates, over their sum where they are the largest of a group."""
        shares = gate_shares(self.trace)
        return np.stack(
            [routers_that_are_on(shares[list(sites)][:, self.positions]).mean(axis=0) for sites in self.sites]
        )

    @property
    def words(self) -> str:
        """The part in words, for subtitles."""
        mean = f"mean of {', '.join(_short(name) for name in self.trace.projections)}"
        return f"{self.counts}, {mean if self.projection == MEAN else _short(self.projection)}"

    @property
    def counts(self) -> str:
        """How many tokens and which layers, in words."""
        first, last = self.layers[0], self.layers[-1]
        layers = f"layer {first}" if first == last else f"layers {first}–{last}"
        how = self.trace.provenance.get("aggregation")
        unit = f"{self.trace.provenance.get('unit', 'token')}s" + (f" ({how} of their tokens)" if how else "")
        return f"n = {len(self.positions)} {unit}, {layers}"


def view(
    trace: RoutingTrace,
    *,
    projection: str = MEAN,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    unit: Unit = "subword",
    how: How = "mean",
) -> View:
    """Choose a part of a trace.

    Args:
        trace: a routing trace.
        projection: name of a projection, or ``mean`` over those of each layer.
        layers: first and last layer, both included; None for all.
        roles: ``prefill`` for what was read, ``generation`` for what was written, or both.
        template: whether the tokens of the chat template are shown, and special ones.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.

    Raises:
        FigureError: nothing is left, or a projection that the trace has not got.
    """
    source, trace = trace, aggregate(trace, unit, how)
    positions = chosen_tokens(trace, roles, template)
    if projection != MEAN and projection not in trace.projections:
        raise FigureError(
            f"'{projection}' is no projection of this trace; it has {', '.join(trace.projections)}, or take 'mean'."
        )
    first, last = layers or (trace.layers[0], trace.layers[-1])
    rows, kept = [], []
    for layer in trace.layers:
        sites = [
            index
            for index, site in enumerate(trace.sites)
            if site.layer == layer and first <= layer <= last and projection in (MEAN, site.projection)
        ]
        if sites:
            rows.append(sites)
            kept.append(layer)
    if not rows:
        raise FigureError(
            f"No layer is left between {first} and {last}; the trace has layers {trace.layers[0]} to "
            f"{trace.layers[-1]}."
        )
    widest = np.log(max(2, len(trace.experts)))
    contributions = trace.contribution_shares
    routed = [routers_that_are_on(trace.gates[sites][:, positions]) for sites in rows]
    return View(
        source=source,
        trace=trace,
        projection=projection,
        layers=tuple(kept),
        positions=positions,
        labels=tuple(token_label(trace.tokens, position) for position in positions),
        gates=np.stack([gates.mean(axis=0) for gates in routed]),
        logits=np.stack([_mean_of_finite(trace.logits[sites][:, positions]) for sites in rows]),
        entropies=np.stack([_entropy(gates).mean(axis=0) / widest for gates in routed]),
        sites=tuple(tuple(sites) for sites in rows),
        contributions=None
        if contributions is None
        else np.stack([_mean_of_finite(contributions[sites][:, positions], 0.0) for sites in rows]),
    )


def chosen_tokens(trace: RoutingTrace, roles: Roles = "both", template: bool = False) -> np.ndarray:
    """Positions of the tokens of a view; special ones, such as the end of the answer, are shown with the template.

    Raises:
        FigureError: none is left, or unknown roles.
    """
    wanted: dict[str, tuple[Role, ...]] = {
        "prefill": ("prompt",), "generation": ("generated",), "both": ("prompt", "generated")
    }  # fmt: skip
    if roles not in wanted:
        raise FigureError(f"The roles are '{roles}'; give {', '.join(wanted)}.")
    names: tuple[Role, ...] = wanted[roles]
    if template and roles != "generation":
        names = (*names, "template")
    kept = trace.select(roles=names)[1]
    positions = np.flatnonzero(kept if template else kept & ~np.asarray(trace.tokens.special, dtype=bool))
    if not len(positions):
        part = {"prefill": "prompt", "generation": "generated"}.get(roles, "")
        raise FigureError(f"The trace has no {part} tokens to show; choose another part of it.".replace("  ", " "))
    return positions


def expert_index(experts: Sequence[str], name: str) -> int:
    """Index of an expert.

    Raises:
        FigureError: there is none of that name.
    """
    if name not in experts:
        raise FigureError(f"'{name}' is no expert of this trace; it has {', '.join(experts)}.")
    return list(experts).index(name)


def token_label(tokens: TraceTokens, position: int, limit: int = LABEL_LENGTH) -> str:
    """A token as one short visible text: whitespace as marks, an empty one as ∅, parts of one character numbered."""
    shown = short_label(tokens[position], limit)
    part, parts = part_of_character(tokens, position)
    return f"{shown} {part}/{parts}" if parts > 1 else shown


def short_label(text: str, limit: int = LABEL_LENGTH) -> str:
    """Any text as a short visible one."""
    text = text.replace("\n", "↵").replace("\t", "→").replace("\r", "↵")
    shown = text.strip() or text.replace(" ", "·") or "∅"
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def part_of_character(tokens: TraceTokens, position: int) -> tuple[int, int]:
    """Which of how many tokens that hold bytes of the same character this is; ``(1, 1)`` for most."""
    spans = tokens.spans
    first = last = position
    while first > 0 and spans[first - 1, 1] > spans[first, 0]:
        first -= 1
    while last + 1 < len(spans) and spans[last, 1] > spans[last + 1, 0]:
        last += 1
    return position - first + 1, last - first + 1


def _mean_of_finite(values: np.ndarray, otherwise: float = -np.inf) -> np.ndarray:
    """Mean over the first axis of what is finite."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), otherwise)


def _entropy(gates: np.ndarray) -> np.ndarray:
    """Entropy of gates that need not sum to 1, such as the largest of each expert in a word."""
    totals = gates.sum(axis=-1, keepdims=True)
    return entropy(np.divide(gates, totals, out=np.zeros_like(gates), where=totals > 0))


def _short(projection: str) -> str:
    return projection.removesuffix("_proj")
