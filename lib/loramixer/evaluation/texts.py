"""Loss of whole held-out texts, prompt and answer: how well a backbone by itself knows a domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from loramixer.metrics import ratio_interval

TokenLosses = Callable[[list[int]], np.ndarray]
"""Gives the negative log-likelihood in nats of all tokens of a text but the first."""


@dataclass(frozen=True)
class TextLoss:
    """Nats per token of the texts of one domain, with a 95 % bootstrap interval over texts.

    Attributes:
        domain: its name.
        n: number of texts.
        tokens: that were predicted: all but the first of each text.
        loss: nats per token.
        low: lower end of the interval.
        high: upper end.
    """

    domain: str
    n: int
    tokens: int
    loss: float
    low: float
    high: float


def text_losses(texts: Mapping[str, Sequence[list[int]]], score: TokenLosses) -> list[TextLoss]:
    """The loss of every domain.

    Args:
        texts: domain → token ids of its texts, two tokens or more each.
        score: of a model, or of token frequencies.
    """
    found = []
    for domain, rows in texts.items():
        losses = [score(row) for row in rows]
        sums = np.array([row.sum() for row in losses], dtype=float)
        counts = np.array([len(row) for row in losses], dtype=float)
        found.append(TextLoss(domain, len(rows), int(counts.sum()), *ratio_interval(sums, counts)))
    return found


def model_scores(model: Any) -> TokenLosses:
    """Token losses of a causal language model."""

    def score(ids: list[int]) -> np.ndarray:
        inputs = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=inputs, use_cache=False).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, inputs[0, 1:], reduction="none").cpu().numpy()

    return score


def frequency_scores(counts: Sequence[int]) -> TokenLosses:
    """Token losses of plain token frequencies, each token counted once more than it was seen."""
    smoothed = np.asarray(counts, dtype=float) + 1
    losses = -np.log(smoothed / smoothed.sum())
    return lambda ids: losses[np.asarray(ids[1:])]
