"""Prompts that cross domains: how well the experts follow gold spans, and how soon they switch. Numpy only.

A gold span says which characters of a prompt belong to a domain. Its tokens are found by their characters; a token on
a border belongs to the span that holds more of its characters that are no space.

Shapes: S sites that have any gate, T tokens, n tokens inside spans, P spans, D domains, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from loramixer.data.schema import Span
from loramixer.errors import TraceError
from loramixer.metrics import entropy, routers_that_are_on
from loramixer.trace import RoutingTrace, TraceTokens

OUTSIDE = -1
"""Stands for no span."""


def spans_in_trace(trace: RoutingTrace, prompt: str, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans of a prompt as spans of the whole text of its trace, behind the template.

    Args:
        trace: a trace of this prompt.
        prompt: the prompt that the spans count in, such as ``example.prompt``.
        spans: its gold spans, such as ``example.spans``.

    Raises:
        TraceError: the trace is of another prompt, or a span lies outside it.
    """
    words = prompt.strip()
    start = _place_of_prompt(trace.tokens, words)
    if start < 0 or not words:
        raise TraceError("This trace is of another prompt than the spans; trace the prompt that they belong to.")
    _check_spans(spans, len(prompt))
    shift = start - (len(prompt) - len(prompt.lstrip()))
    return tuple(
        Span(max(start, span.start + shift), min(start + len(words), span.end + shift), span.domain) for span in spans
    )


def _place_of_prompt(tokens: TraceTokens, words: str) -> int:
    """Where a prompt begins in the text that was read, or −1: a short one can stand in the template too.

    A token that the prompt shares with the template counts as template, so tokens tell which place it is and no more.
    """
    kinds = list(zip(tokens.spans.tolist(), tokens.roles, strict=True))
    own = np.zeros(len(tokens.text), dtype=bool)
    for (start, end), role in kinds:
        own[start:end] |= role == "prompt"
    read = tokens.text[: max((end for (_, end), role in kinds if role != "generated"), default=0)]
    places = [match.start() for match in re.finditer(f"(?={re.escape(words)})", read)]
    return max(places, key=lambda place: (own[place : place + len(words)].sum(), place), default=-1)


def tokens_of_spans(tokens: TraceTokens, spans: Sequence[Span]) -> np.ndarray:
    """Index of the span of each token, int64 ``[T]``; :data:`OUTSIDE` for tokens of none, and for special ones.

    Raises:
        TraceError: spans that overlap, are out of order, or lie outside the text.
    """
    _check_spans(spans, len(tokens.text))
    found = np.full(len(tokens), OUTSIDE, dtype=np.int64)
    for position, (start, end) in enumerate(tokens.spans.tolist()):
        if tokens.special[position] or tokens.roles[position] == "generated":
            continue
        visible = [place for place in range(start, end) if not tokens.text[place].isspace()] or list(range(start, end))
        shares = [sum(span.start <= place < span.end for place in visible) for span in spans]
        if shares and max(shares) > 0:
            found[position] = int(np.argmax(shares))
    return found


def _check_spans(spans: Sequence[Span], length: int) -> None:
    end = 0
    for span in spans:
        if not end <= span.start < span.end <= length:
            raise TraceError(
                f"The span {span.start}–{span.end} of {span.domain} overlaps another, is empty, or lies outside the "
                f"text of {length} characters; spans are in order."
            )
        end = span.end


@dataclass(frozen=True)
class Lag:
    """How many tokens pass after a border until the expert of the new span is ahead.

    Attributes:
        border: position of the first token of the new span.
        domain: domain of the new span, whose expert has its name.
        limit: tokens of the new span.
        tokens: int64 ``[S]``, tokens of the new span that pass before its expert has the largest gate: 0 when it has
            it at the first one; ``limit`` where it never does.
        censored: bool ``[S]``, where it never does, so that the number is only a lower bound.
        mean_tokens: the same for the gates averaged over all sites.
        mean_censored: likewise.
    """

    border: int
    domain: str
    limit: int
    tokens: np.ndarray
    censored: np.ndarray
    mean_tokens: int
    mean_censored: bool


@dataclass(frozen=True)
class Band:
    """What a number is when tokens are shuffled between the spans.

    Attributes:
        mean: over the shufflings.
        low: 2.5 % quantile.
        high: 97.5 % quantile.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SpanRouting:
    """Where the tokens of each gold span went.

    Attributes:
        spans: the gold spans, P.
        experts: expert names, E.
        positions: positions of the tokens inside spans, n, in order.
        span_of_token: index of the span of each of them, int64 ``[n]``.
        gates: their gates, float32 ``[S, n, E]``, of the sites that have any.
    """

    spans: tuple[Span, ...]
    experts: tuple[str, ...]
    positions: np.ndarray
    span_of_token: np.ndarray
    gates: np.ndarray

    @property
    def n(self) -> int:
        """Number of tokens inside spans."""
        return len(self.positions)

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The domains of the spans, D, in order of appearance."""
        return tuple(dict.fromkeys(span.domain for span in self.spans))

    @cached_property
    def domain_of_token(self) -> np.ndarray:
        """Index of the domain of each token, int64 ``[n]``."""
        of_span = np.array([self.domains.index(span.domain) for span in self.spans])
        return of_span[self.span_of_token]

    @cached_property
    def mean_gates(self) -> np.ndarray:
        """Gates averaged over the sites, ``[n, E]``."""
        return self.gates.mean(axis=0)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Mean gate of each expert over the tokens of each span, ``[S, P, E]``; NaN for a span without tokens."""
        return _means_by(self.gates, self.span_of_token, len(self.spans))

    @cached_property
    def domain_confusion(self) -> np.ndarray:
        """The same by domain, ``[S, D, E]``."""
        return _means_by(self.gates, self.domain_of_token, len(self.domains))

    @cached_property
    def purity(self) -> np.ndarray:
        """``[S]``: the gate mass that lies with each expert's commonest domain, 1/D … 1.

        The larger domain alone gives its share of the tokens, whatever the gates are; see :meth:`null`.
        """
        return _purity(_joint(self.gates, self.domain_of_token, len(self.domains)))

    @cached_property
    def mutual_information(self) -> np.ndarray:
        """``[S]``: normalised mutual information of domain and expert, 0…1: I / √(H(domain) H(expert)).

        0 where one expert gets everything; NaN where there is a single domain.
        """
        return _normalised_information(_joint(self.gates, self.domain_of_token, len(self.domains)))

    @cached_property
    def own_share(self) -> np.ndarray:
        """``[S]``: mean gate of the expert that has the name of the token's domain; NaN where no domain has one."""
        return _own_share(self.gates, self.domain_of_token, self._expert_of_domain)

    @cached_property
    def lags(self) -> tuple[Lag, ...]:
        """One for each border to another domain that has an expert; see :class:`Lag`."""
        return tuple(self._lags_of(self.gates))

    def of_mean(self) -> SpanRouting:
        """The same for one router that is the mean over the sites (S = 1)."""
        return SpanRouting(self.spans, self.experts, self.positions, self.span_of_token, self.mean_gates[None])

    def null(self, seed: int = 0, draws: int = 200) -> dict[str, Band]:
        """What the mean over the sites would be if spans meant nothing: tokens shuffled between them.

        The number of tokens in each span stays, and a token keeps its gates at all sites.

        Args:
            seed: of the shuffling.
            draws: number of shufflings.

        Returns:
            Bands of ``purity``, ``mutual_information``, ``own_share`` and ``lag`` (the mean over sites and borders in
            tokens, a censored one counted with the length of its span); those that cannot be computed are left out.
        """
        random = np.random.default_rng(seed)
        found: dict[str, list[float]] = {"purity": [], "mutual_information": [], "own_share": [], "lag": []}
        for _ in range(draws):
            gates = self.gates[:, random.permutation(self.n)]
            joint = _joint(gates, self.domain_of_token, len(self.domains))
            found["purity"].append(float(_purity(joint).mean()))
            found["mutual_information"].append(float(_normalised_information(joint).mean()))
            own = _own_share(gates, self.domain_of_token, self._expert_of_domain)
            found["own_share"].append(float(own.mean()))
            lags = self._lags_of(gates)
            found["lag"].append(float(np.mean([lag.tokens.mean() for lag in lags])) if lags else float("nan"))
        return {name: _band(values) for name, values in found.items() if not np.isnan(values).any()}

    @cached_property
    def _expert_of_domain(self) -> list[int | None]:
        return [self.experts.index(name) if name in self.experts else None for name in self.domains]

    def _lags_of(self, gates: np.ndarray) -> list[Lag]:
        top, mean_top = _top(gates), _top(gates.mean(axis=0))
        found = []
        borders = np.flatnonzero(np.diff(self.span_of_token)) + 1
        for start, end in pairwise([*borders, self.n]):
            new = self.spans[self.span_of_token[start]].domain
            if new == self.spans[self.span_of_token[start - 1]].domain or new not in self.experts:
                continue
            expert = self.experts.index(new)
            tokens, censored = _first_hit(top[:, start:end] == expert)
            mean_tokens, mean_censored = _first_hit(mean_top[None, start:end] == expert)
            found.append(
                Lag(
                    border=int(self.positions[start]),
                    domain=new,
                    limit=int(end - start),
                    tokens=tokens,
                    censored=censored,
                    mean_tokens=int(mean_tokens[0]),
                    mean_censored=bool(mean_censored[0]),
                )
            )
        return found


def span_routing(trace: RoutingTrace, spans: Sequence[Span]) -> SpanRouting:
    """Where the tokens of each gold span went, at the sites that have any gate there: a router that is off sends none.

    Args:
        trace: a trace of single tokens or of words.
        spans: gold spans in the whole text of the trace; see :func:`spans_in_trace`.

    Raises:
        TraceError: spans that do not fit the text, or that hold no token, or no site with a gate there.
    """
    indices = tokens_of_spans(trace.tokens, spans)
    positions = np.flatnonzero(indices != OUTSIDE)
    if not len(positions):
        raise TraceError("No token of this trace lies in a span; give spans of its text.")
    gates = trace.gates[:, positions]
    if not gates.any():
        raise TraceError(
            "No router of this trace has a gate inside the spans; trace the text with routers that are on."
        )
    return SpanRouting(tuple(spans), trace.experts, positions, indices[positions], routers_that_are_on(gates))


def _means_by(gates: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Mean over the tokens of each group: ``[S, n, E] → [S, groups, E]``."""
    member = group[None] == np.arange(groups)[:, None]
    counts = member.sum(axis=1).astype(float)
    counts[counts == 0] = np.nan
    return np.einsum("gn,sne->sge", member.astype(float), gates) / counts[:, None]


def _joint(gates: np.ndarray, domain: np.ndarray, domains: int) -> np.ndarray:
    """Joint distribution of domain and expert over the tokens, ``[S, D, E]``; rows without gates do not count."""
    member = (domain[None] == np.arange(domains)[:, None]).astype(float)
    mass = np.einsum("dn,sne->sde", member, gates)
    total = mass.sum(axis=(1, 2), keepdims=True)
    return np.divide(mass, total, out=np.full(mass.shape, np.nan), where=total > 0)


def _purity(joint: np.ndarray) -> np.ndarray:
    return joint.max(axis=1).sum(axis=-1)


def _normalised_information(joint: np.ndarray) -> np.ndarray:
    domain, expert = entropy(joint.sum(axis=2)), entropy(joint.sum(axis=1))
    information = domain + expert - entropy(joint.reshape(len(joint), -1))
    scale = np.sqrt(np.maximum(domain * expert, 0))
    share = np.divide(np.maximum(information, 0), scale, out=np.zeros_like(scale), where=scale > 1e-12)
    return np.where((domain > 1e-12) & ~np.isnan(joint).any(axis=(1, 2)), np.minimum(share, 1.0), np.nan)


def _own_share(gates: np.ndarray, domain: np.ndarray, expert_of_domain: Sequence[int | None]) -> np.ndarray:
    own = [None if index is None else gates[:, domain == place, index] for place, index in enumerate(expert_of_domain)]
    parts = [part for part in own if part is not None]
    if not parts or not sum(part.shape[1] for part in parts):
        return np.full(len(gates), np.nan)
    return np.concatenate(parts, axis=1).mean(axis=1)


def _top(gates: np.ndarray) -> np.ndarray:
    """Index of the largest gate; −1 where there are none."""
    return np.where(gates.max(axis=-1) > 0, gates.argmax(axis=-1), -1)


def _first_hit(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of the first True of each row ``[S, m]``, or m, and whether there is none."""
    missing = np.logical_not(hits.any(axis=1))
    return np.where(missing, hits.shape[1], hits.argmax(axis=1)), missing


def _band(values: Sequence[float]) -> Band:
    low, high = np.quantile(values, [0.025, 0.975])
    return Band(float(np.mean(values)), float(low), float(high))
