"""Score rows one by one, then summarise per domain: loss per answer token, accuracy, own-expert share, n, interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from loramixer.data import IGNORED_LABEL, Example, encode
from loramixer.errors import DataError
from loramixer.metrics import mean_interval, ratio_interval
from loramixer.tuner.runtime import active_runtime, capture_routing

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
        shares: mean gate weight of each expert over the row's own tokens (prompt and answer, no template) and all
            sites; None without a mixture.
    """

    domain: str
    task: str
    loss: float
    tokens: int
    correct: bool | None
    shares: dict[str, float] | None


@dataclass(frozen=True)
class DomainResult:
    """Summary of one domain; every interval is a 95 % bootstrap over rows.

    Attributes:
        domain: its name.
        n: number of rows.
        loss: nats per answer token, with ``loss_low`` and ``loss_high``.
        accuracy: share of rows with choices that are right, with interval; None where no row has choices.
        n_choices: number of rows with choices.
        own_expert_share: mean gate weight of the expert named like the domain, with interval; None without one.
        shares: mean gate weight of every expert.
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
    return [summarise(domain, [score for score in scores if score.domain == domain]) for domain in domains]


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
    """Score every row by itself, and return the scores in the order of the rows.

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
    scores = []
    model.eval()
    watch: AbstractContextManager[Any] = capture_routing(model) if routing else nullcontext()
    with torch.inference_mode(), watch as capture:
        for done, example in enumerate(examples):
            report = None if observe is None else partial(observe, done)
            scores.append(_score_row(model, tokenizer, example, capture, max_length, max_answer, report))
            if progress is not None:
                progress(done + 1, len(examples))
    return scores


def _score_row(
    model: Any,
    tokenizer: Any,
    example: Example,
    capture: Any,
    max_length: int,
    max_answer: int,
    report: Callable[[torch.Tensor], None] | None,
) -> RowScore:
    gold = encode(example, tokenizer, max_length, max_answer)
    if gold is None:
        raise DataError(f"The prompt of row {example.id} does not fit into {max_length} tokens; raise max_length.")
    loss, tokens = _negative_log_likelihood(model, gold)
    shares = _expert_shares(model, capture, gold["own_tokens"], report) if capture is not None else None
    correct = None
    if example.choices and example.label is not None:
        correct = _likeliest_choice(model, tokenizer, example, loss, max_length) == example.label
        if capture is not None:
            capture.take_batch()  # the choices' routing is not part of the row's
    return RowScore(example.domain, example.task, loss, tokens, correct, shares)


def _negative_log_likelihood(model: Any, row: dict[str, list[int]]) -> tuple[float, int]:
    """Summed negative log-likelihood of the labelled tokens in nats, and their number."""
    device = next(model.parameters()).device
    input_ids = torch.tensor([row["input_ids"]], device=device)
    labels = torch.tensor(row["labels"], device=device)
    first = int((labels != IGNORED_LABEL).nonzero()[0])
    # Only the answer's positions go through the vocabulary matrix, which is a fifth of a small model's cost.
    keep = len(labels) - first + 1
    logits = model(input_ids=input_ids, logits_to_keep=keep).logits[0, -keep:-1].float()
    loss = torch.nn.functional.cross_entropy(logits, labels[first:], reduction="sum")
    return float(loss), len(labels) - first


def _likeliest_choice(model: Any, tokenizer: Any, example: Example, gold_loss: float, max_length: int) -> int:
    losses = []
    for index, choice in enumerate(example.choices or ()):
        if index == example.label:
            losses.append(gold_loss)
            continue
        row = encode(example, tokenizer, max_length, target=choice)
        assert row is not None  # the gold answer fitted, and a choice needs one token only
        losses.append(_negative_log_likelihood(model, row)[0])
    return int(np.argmin(losses))


def _expert_shares(
    model: Any, capture: Any, own_tokens: list[int], report: Callable[[torch.Tensor], None] | None
) -> dict[str, float]:
    logits, gates = capture.take_batch()  # [S, 1, T, E]
    own = torch.tensor(own_tokens, dtype=torch.bool, device=gates.device)
    if report is not None:
        report(logits[:, 0, own])
    mean = gates[:, 0, own].mean(dim=(0, 1))
    return dict(zip(active_runtime(model).experts, mean.tolist(), strict=True))


def summarise(domain: str, scores: Sequence[RowScore]) -> DomainResult:
    """Summary of the rows of one domain."""
    loss = ratio_interval(
        np.array([score.loss for score in scores]), np.array([score.tokens for score in scores], dtype=float)
    )
    judged = np.array([score.correct for score in scores if score.correct is not None], dtype=float)
    accuracy = mean_interval(judged) if judged.size else (None, None, None)
    routed = [score.shares for score in scores if score.shares is not None]
    own = np.array([shares[domain] for shares in routed if domain in shares])
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
