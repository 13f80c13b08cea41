"""Score rows one by one, then summarise per domain: loss per answer token, accuracy, own-expert share, n, interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from loramixer.data import Example
from loramixer.evaluation.lines import ScoredRow, encode_row, in_lines, score_alone, score_line, shared_prompts
from loramixer.metrics import mean_interval, ratio_interval, share_interval
from loramixer.tuner.runtime import active_runtime, capture_routing, mixture_layers

Progress = Callable[[int, int], None]

Observe = Callable[[int, torch.Tensor], None]
"""Receives the index of a row and the router logits of its own tokens, float32 ``[S, T, E]``."""


@dataclass(frozen=True)
class RowScore:
    """What one row gave.

    Attributes:
        domain: of the row.
        task: of the row.
        loss: summed negative log-likelihood of the answer, in nats.
        tokens: number of answer tokens.
        correct: whether the likeliest choice is the gold one; None for free text.
        shares: mean gate weight of each expert over the row's own tokens (prompt and answer, no template) and the
            sites that have any gate, all 0 where none has; None without a mixture.
    """

    domain: str
    task: str
    loss: float
    tokens: int
    correct: bool | None
    shares: dict[str, float] | None


@dataclass(frozen=True)
class DomainResult:
    """Summary of one domain; every interval is a 95 % bootstrap over rows, but for accuracy, where it is Wilson's.

    Attributes:
        domain: its name.
        n: number of rows.
        loss: nats per answer token, with ``loss_low`` and ``loss_high``.
        accuracy: share of rows with choices that are right, with interval; None where no row has choices.
        n_choices: number of rows with choices.
        own_expert_share: mean gate weight of the expert named like the domain, or to which the rows' data set belongs
            (``tasks`` of the mixture), with interval; None without one. Sites without any gate are left out.
        shares: mean gate weight of every expert, likewise.
    """

    domain: str
    n: int
    loss: float
    loss_low: float
    loss_high: float
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    n_choices: int
    own_expert_share: float | None
    own_expert_share_low: float | None
    own_expert_share_high: float | None
    shares: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    routing: bool = True,
    max_length: int = 1024,
    max_answer: int = 256,
    progress: Progress | None = None,
) -> list[DomainResult]:
    """Score rows and summarise them per domain. Arguments as for :func:`score_rows`."""
    scores = score_rows(
        model,
        tokenizer,
        examples,
        routing=routing,
        max_length=max_length,
        max_answer=max_answer,
        progress=progress,
    )
    domains = dict.fromkeys(score.domain for score in scores)
    tasks = active_runtime(model).config.tasks if routing else {}
    return [summarise(domain, [score for score in scores if score.domain == domain], tasks) for domain in domains]


def score_rows(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    routing: bool = True,
    max_length: int = 1024,
    max_answer: int = 256,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> list[RowScore]:
    """Score every row as if it were alone, and return the scores in the order of the rows.

    Args:
        model: a causal language model, with or without a mixture.
        tokenizer: its fast tokenizer.
        examples: the rows.
        routing: whether to record gates; needs a mixture.
        max_length: rows whose prompt leaves no room within this many tokens are an error.
        max_answer: answers are cut after this many tokens.
        progress: receives ``(done, total)``.
        observe: receives the routing of every row; needs ``routing``.

    Raises:
        DataError: a prompt that is too long.
    """
    scores: list[RowScore] = []
    model.eval()
    encoded = [encode_row(example, tokenizer, max_length, max_answer) for example in examples]
    watch: AbstractContextManager[Any] = capture_routing(model) if routing else nullcontext()
    sharing = nullcontext(False) if _intervenes_by_position(model) else shared_prompts(model, encoded)
    with torch.inference_mode(), sharing as together, watch as capture:
        for line in in_lines(encoded) if together else ([row] for row in encoded):
            losses, routed = (_score_together if together else _score_apart)(model, line, capture)
            for row, of_answers, found in zip(line, losses, routed, strict=True):
                report = None if observe is None else partial(observe, len(scores))
                shares = None if found is None else _expert_shares(model, *found, row.own_tokens, report)
                scores.append(_row_score(examples[len(scores)], row, of_answers, shares))
            if progress is not None:
                progress(len(scores), len(examples))
    return scores


def _intervenes_by_position(model: Any) -> bool:
    """Whether an intervention acts on tokens by their place in a row, which is another one in a line of several."""
    layer, adapter = next(mixture_layers(model), (None, ""))
    acting = None if layer is None else layer.runtimes[adapter].intervening
    return acting is not None and acting.by_position


Routed = tuple[torch.Tensor, torch.Tensor] | None
"""Router logits and gates of a row's prompt and gold answer, ``[S, T, E]`` each."""


def _score_together(model: Any, line: Sequence[ScoredRow], capture: Any) -> tuple[list[list[float]], list[Routed]]:
    losses = score_line(model, line)
    if capture is None:
        return losses, [None] * len(line)
    logits, gates = (found[:, 0] for found in capture.take_batch())  # [S, all tokens, E]
    routed: list[Routed] = []
    start = 0
    for row in line:
        routed.append((logits[:, start : start + row.gold_end], gates[:, start : start + row.gold_end]))
        start += row.length
    return losses, routed


def _score_apart(model: Any, line: Sequence[ScoredRow], capture: Any) -> tuple[list[list[float]], list[Routed]]:
    losses, routed = [], []
    for row in line:
        gold = score_alone(model, row, 0)
        routed.append(None if capture is None else tuple(found[:, 0] for found in capture.take_batch()))
        losses.append([gold, *(score_alone(model, row, index) for index in range(1, len(row.answers)))])
        if capture is not None and len(row.answers) > 1:
            capture.take_batch()  # the choices' routing is not part of the row's
    return losses, routed


def _row_score(example: Example, row: ScoredRow, losses: list[float], shares: dict[str, float] | None) -> RowScore:
    correct = None
    if example.choices and example.label is not None:
        # The gold answer was scored first; of equal choices the first in the row's own order is taken.
        order = [losses[0] if index == example.label else None for index in range(len(example.choices))]
        others = iter(losses[1:])
        correct = int(np.argmin([next(others) if loss is None else loss for loss in order])) == example.label
    return RowScore(example.domain, example.task, losses[0], len(row.answers[0]), correct, shares)


def _expert_shares(
    model: Any,
    logits: torch.Tensor,
    gates: torch.Tensor,
    own_tokens: list[int],
    report: Callable[[torch.Tensor], None] | None,
) -> dict[str, float]:
    own = torch.tensor(own_tokens, dtype=torch.bool, device=gates.device)
    if report is not None:
        report(logits[:, own])
    gates = gates[:, own]
    routed = gates.flatten(1).any(dim=1)
    if routed.any():  # where a router is off, nobody has a share
        gates = gates[routed]
    mean = gates.mean(dim=(0, 1))
    return dict(zip(active_runtime(model).experts, mean.tolist(), strict=True))


def summarise(
    domain: str, scores: Sequence[RowScore], tasks: Mapping[str, Sequence[str]] | None = None
) -> DomainResult:
    """Summary of the rows of one domain.

    Args:
        domain: their domain; the expert of this name is their own.
        scores: of the rows.
        tasks: expert → data sets that belong to it, which makes it the own expert of their rows where no expert has
            the domain's name.
    """
    loss = ratio_interval(
        np.array([score.loss for score in scores]), np.array([score.tokens for score in scores], dtype=float)
    )
    judged = np.array([score.correct for score in scores if score.correct is not None], dtype=float)
    accuracy = share_interval(int(judged.sum()), judged.size) if judged.size else (None, None, None)
    routed = [score.shares for score in scores if score.shares is not None]
    expert_of = {task: expert for expert, names in (tasks or {}).items() for task in names}
    own_of = [
        score.shares.get(domain, score.shares.get(expert_of.get(score.task, "")))
        for score in scores
        if score.shares is not None
    ]
    own = np.array([share for share in own_of if share is not None])
    own_share = mean_interval(own) if own.size else (None, None, None)
    return DomainResult(
        domain=domain,
        n=len(scores),
        loss=loss[0],
        loss_low=loss[1],
        loss_high=loss[2],
        accuracy=accuracy[0],
        accuracy_low=accuracy[1],
        accuracy_high=accuracy[2],
        n_choices=int(judged.size),
        own_expert_share=own_share[0],
        own_expert_share_low=own_share[1],
        own_expert_share_high=own_share[2],
        shares={name: float(np.mean([row[name] for row in routed])) for name in routed[0]} if routed else None,
    )
