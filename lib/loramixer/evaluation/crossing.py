"""Prompts that cross two domains: right answers, words and their experts, and what is lost without an expert."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from loramixer.data import Example, check_answer
from loramixer.errors import DataError
from loramixer.evaluation.harness import RowScore, score_rows
from loramixer.metrics import mean_interval, ratio_interval, share_interval
from loramixer.spans import SpanRouting, span_routing, spans_in_trace
from loramixer.trace import RoutingTrace, trace
from loramixer.tuner.intervening import Intervention, intervene

Progress = Callable[[int, int], None]

Interval = tuple[float, float, float]
"""Value, low, high."""


@dataclass(frozen=True)
class CrossedRow:
    """One prompt that was read and answered.

    Attributes:
        example: the row, with its gold spans.
        trace: routing of the prompt and of what was written.
        answer: what was written.
        correct: whether it is the gold answer, by :func:`loramixer.data.check_answer`.
    """

    example: Example
    trace: RoutingTrace
    answer: str
    correct: bool

    @cached_property
    def routed(self) -> SpanRouting:
        """Where the tokens of the gold spans went, at the sites that have any gate.

        Raises:
            TraceError: no site has one.
        """
        return span_routing(self.trace, spans_in_trace(self.trace, self.example.prompt, self.example.spans or ()))


def answer_rows(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    max_new_tokens: int,
    *,
    interventions: Sequence[Intervention] = (),
    progress: Progress | None = None,
) -> list[CrossedRow]:
    """Let a mixture read and answer rows with gold spans, greedily.

    Args:
        model: with a mixture.
        tokenizer: its tokenizer.
        examples: rows with spans, such as :func:`loramixer.data.generated_examples` makes.
        max_new_tokens: longest answer; what is not finished by then is judged as it is.
        interventions: what is done to the routing meanwhile.
        progress: receives ``(done, total)``.

    Raises:
        DataError: a row without spans.
    """
    if bare := [example.id for example in examples if not example.spans]:
        raise DataError(f"Row {bare[0]} has no gold spans; give rows that mark which words belong to which domain.")
    found = []
    for example in examples:
        recorded = trace(model, tokenizer, example.prompt, max_new_tokens, interventions=interventions)
        answer = written_text(recorded)
        found.append(CrossedRow(example, recorded, answer, check_answer(example, answer)))
        if progress is not None:
            progress(len(found), len(examples))
    return found


def written_text(trace: RoutingTrace) -> str:
    """What the model wrote in a trace, without special tokens; empty where it only read."""
    spans = [
        (int(start), int(end))
        for (start, end), role, special in zip(
            trace.tokens.spans, trace.tokens.roles, trace.tokens.special, strict=True
        )
        if role == "generated" and not special
    ]
    return trace.tokens.text[spans[0][0] : spans[-1][1]] if spans else ""


@dataclass(frozen=True)
class SpanSummary:
    """How well the routing of several rows of one set follows their gold spans.

    Attributes:
        domain: of the set, such as ``math-medical``.
        n: number of rows.
        tokens: number of tokens inside spans.
        correct: share of right answers with its Wilson interval.
        purity: mean over rows and the routers that are on, with a bootstrap interval over rows.
        purity_shuffled: what it is when tokens are shuffled between the spans of each row.
        own_share: mean gate of the expert with the name of the token's domain, likewise.
        own_share_shuffled: shuffled.
        lag: tokens until the new span's expert is ahead, likewise; NaN where no border has an expert.
        lag_shuffled: shuffled.
        above_null: number of rows whose purity is above the upper end of their own null band.
    """

    domain: str
    n: int
    tokens: int
    correct: Interval
    purity: Interval
    purity_shuffled: float
    own_share: Interval
    own_share_shuffled: float
    lag: Interval
    lag_shuffled: float
    above_null: int


def summarise_spans(rows: Sequence[CrossedRow], *, seed: int = 0, draws: int = 200) -> list[SpanSummary]:
    """One summary for each set of rows.

    Args:
        rows: of :func:`answer_rows`.
        seed: of the shuffling.
        draws: number of shufflings of each row.

    Raises:
        TraceError: a row where no router is on.
    """
    found = []
    for domain in dict.fromkeys(row.example.domain for row in rows):
        own = [row for row in rows if row.example.domain == domain]
        nulls = [row.routed.null(seed, draws) for row in own]
        lags = [_mean([lag.tokens.mean() for lag in row.routed.lags]) for row in own]
        purities = [float(row.routed.purity.mean()) for row in own]
        found.append(
            SpanSummary(
                domain=domain,
                n=len(own),
                tokens=sum(row.routed.n for row in own),
                correct=share_interval(sum(row.correct for row in own), len(own)),
                purity=mean_interval(np.array(purities)),
                purity_shuffled=_mean([null["purity"].mean for null in nulls if "purity" in null]),
                own_share=mean_interval(np.array([row.routed.own_share.mean() for row in own])),
                own_share_shuffled=_mean([null["own_share"].mean for null in nulls if "own_share" in null]),
                lag=mean_interval(np.array(lags)),
                lag_shuffled=_mean([null["lag"].mean for null in nulls if "lag" in null]),
                above_null=sum(
                    value > null["purity"].high
                    for value, null in zip(purities, nulls, strict=True)
                    if "purity" in null
                ),
            )
        )
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


@dataclass(frozen=True)
class Ablation:
    """The loss of gold answers while the routing of a mixture is changed, on the rows of one set.

    Attributes:
        change: its name.
        domain: of the set.
        n: number of rows.
        loss: nats per answer token, with a bootstrap interval over rows.
        difference: the same less that of the unchanged mixture on the same rows; above 0 means worse.
    """

    change: str
    domain: str
    n: int
    loss: Interval
    difference: Interval


def ablate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    changes: Mapping[str, Sequence[Intervention]],
    *,
    progress: Progress | None = None,
) -> list[Ablation]:
    """Score the gold answers of rows with the mixture as it is, and then with each change of its routing.

    The loss of a gold answer says more with few rows than whether a greedy answer is right: it moves by degrees.

    Args:
        model: with a mixture.
        tokenizer: its tokenizer.
        examples: the rows.
        changes: name → interventions, which act on prompt and answer alike.
        progress: receives ``(done, total)`` of the changes, the unchanged mixture among them.

    Raises:
        RoutingError: an intervention that cannot act on this mixture.
    """
    plain = score_rows(model, tokenizer, examples, routing=False)
    found: list[Ablation] = []
    if progress is not None:
        progress(1, len(changes) + 1)
    for number, (name, interventions) in enumerate(changes.items(), start=2):
        with intervene(model, interventions):
            changed = score_rows(model, tokenizer, examples, routing=False)
        found += _differences(name, changed, plain)
        if progress is not None:
            progress(number, len(changes) + 1)
    return found


def _differences(name: str, changed: Sequence[RowScore], plain: Sequence[RowScore]) -> list[Ablation]:
    rows = []
    for domain in dict.fromkeys(score.domain for score in plain):
        pairs = [(a, b) for a, b in zip(changed, plain, strict=True) if b.domain == domain]
        tokens = np.array([b.tokens for _, b in pairs], dtype=float)
        losses = np.array([a.loss for a, _ in pairs])
        less = np.array([a.loss - b.loss for a, b in pairs])
        rows.append(Ablation(name, domain, len(pairs), ratio_interval(losses, tokens), ratio_interval(less, tokens)))
    return rows
