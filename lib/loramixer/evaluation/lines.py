"""Scoring without waste: the answers of a row share its prompt, and several rows lie in one line of tokens.

A row with choices is the prompt, the gold answer and the other choices behind each other. Positions of every choice
go on from the prompt, and it attends to the prompt and to itself only, so it gets what it would get alone. A row with
four choices then costs its prompt once and not four times. Backbones that carry something over from token to token in
another way than by attention score every answer by itself; which one does is found out by trying.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface

from loramixer.data import IGNORED_LABEL, Example, encode
from loramixer.errors import DataError
from loramixer.training.batches import backbone_of, rows_fit_in_line

SHARED_PROMPTS = "loramixer_shared_prompts"
"""Name of :func:`attend_with_shared_prompts` in Transformers' table of attention functions."""

LINE_TOKENS = 384
"""Rows share a line up to so many tokens: long enough that the work is in the products, short enough for caches."""


@dataclass(frozen=True)
class ScoredRow:
    """One row as tokens.

    Attributes:
        prompt: its tokens.
        answers: tokens of each answer, the gold one first and the other choices in their order.
        own_tokens: 1 on the user's words and the gold answer, 0 on the template; as long as prompt and gold answer.
    """

    prompt: list[int]
    answers: list[list[int]]
    own_tokens: list[int]

    @property
    def gold_end(self) -> int:
        """Tokens of the prompt and the gold answer."""
        return len(self.prompt) + len(self.answers[0])

    @property
    def length(self) -> int:
        """All tokens."""
        return len(self.prompt) + sum(map(len, self.answers))


def encode_row(example: Example, tokenizer: Any, max_length: int, max_answer: int) -> ScoredRow:
    """Tokens of a row and of its other choices.

    Raises:
        DataError: a prompt that leaves no room for an answer.
    """
    gold = encode(example, tokenizer, max_length, max_answer)
    if gold is None:
        raise DataError(
            f"The prompt of row {example.id} does not fit into {max_length} tokens with an answer; raise max_length "
            "(--max-length of loramixer evaluate), or leave this row out."
        )
    size = gold["labels"].count(IGNORED_LABEL)
    answers = [gold["input_ids"][size:]]
    if example.choices and example.label is not None:
        for index, choice in enumerate(example.choices):
            if index != example.label:
                other = encode(example, tokenizer, max_length, max_answer, target=choice)
                assert other is not None  # the gold answer fitted, and a choice needs one token only
                answers.append(other["input_ids"][size:])
    return ScoredRow(gold["input_ids"][:size], answers, gold["own_tokens"])


def in_lines(rows: Iterable[ScoredRow], limit: int = LINE_TOKENS) -> Iterator[list[ScoredRow]]:
    """Consecutive rows that together have at most ``limit`` tokens, or one row that has more."""
    line: list[ScoredRow] = []
    for row in rows:
        if line and sum(member.length for member in line) + row.length > limit:
            yield line
            line = []
        line.append(row)
    if line:
        yield line


@contextmanager
def shared_prompts(model: Any, rows: Sequence[ScoredRow]) -> Iterator[bool]:
    """Attend as lines need it while the block runs; yields whether this backbone can."""
    backbone = backbone_of(model)
    trial = [{"input_ids": row.prompt + row.answers[0]} for row in rows[:2]]
    former = backbone.config._attn_implementation
    keeps = "logits_to_keep" in inspect.signature(backbone.forward).parameters
    possible = keeps and rows_fit_in_line(backbone, trial, max((row.length for row in rows), default=0))
    if possible:
        backbone.set_attn_implementation(SHARED_PROMPTS)
    try:
        yield possible
    finally:
        if possible:
            backbone.set_attn_implementation(former)


def score_line(model: Any, line: Sequence[ScoredRow]) -> list[list[float]]:
    """Negative log-likelihood of every answer of every row, in nats, by one forward pass inside ``shared_prompts``."""
    device = next(model.parameters()).device
    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    labels: list[int] = []
    segments = []
    for row in line:
        start, size = len(ids), len(row.prompt)
        ids += row.prompt
        positions += range(size)
        ends = []
        for answer in row.answers:
            # The last token of the prompt predicts the first of each answer.
            kept += [start + size - 1, *range(len(ids), len(ids) + len(answer) - 1)]
            labels += answer
            ids += answer
            positions += range(size, size + len(answer))
            ends.append(len(ids))
        segments.append((start, start + size, tuple(ends)))
    logits = model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        logits_to_keep=torch.tensor(kept, device=device),
        use_cache=False,
        segments=tuple(segments),
    ).logits[0]
    losses = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(labels, device=device), reduction="none")
    losses = losses.cpu().double()  # on the CPU first, since mps has no float64
    counts = [len(answer) for row in line for answer in row.answers]
    sums = iter(part.sum().item() for part in losses.split(counts))
    return [[next(sums) for _ in row.answers] for row in line]


def score_alone(model: Any, row: ScoredRow, answer: int) -> float:
    """Negative log-likelihood of one answer, in nats, behind its prompt and nothing else."""
    device = next(model.parameters()).device
    found = row.answers[answer]
    # Only the answer's positions go through the vocabulary matrix, which is a fifth of a small model's cost.
    keep = len(found) + 1
    logits = model(input_ids=torch.tensor([row.prompt + found], device=device), logits_to_keep=keep).logits[
        0, -keep:-1
    ]
    return float(
        torch.nn.functional.cross_entropy(logits.float(), torch.tensor(found, device=device), reduction="sum")
    )


def attend_with_shared_prompts(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: Sequence[tuple[int, int, Sequence[int]]],
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of every answer on its prompt and itself.

    Args:
        module: the attention layer.
        query: ``[1, heads, tokens, features]``.
        key: ``[1, key-value heads, tokens, features]``.
        value: as ``key``.
        attention_mask: not used; a line has no padding.
        segments: per row, where its prompt begins and ends and where each answer ends.
        scaling: of the products; one over the root of the features by default.
        **kwargs: what other attention functions take.

    Returns:
        ``[1, tokens, heads, features]`` and None.
    """
    attend = torch.nn.functional.scaled_dot_product_attention
    parts = []
    for start, prompt_end, ends in segments:
        first = slice(start, ends[0])
        parts.append(
            attend(query[:, :, first], key[:, :, first], value[:, :, first], is_causal=True, scale=scaling,
                   enable_gqa=True)
        )  # fmt: skip
        for begin, end in pairwise(ends):
            keys, values = (
                torch.cat([part[:, :, start:prompt_end], part[:, :, begin:end]], dim=2) for part in (key, value)
            )
            seen = torch.ones(end - begin, keys.shape[2], dtype=torch.bool, device=query.device)
            seen = seen.tril(diagonal=prompt_end - start)
            parts.append(attend(query[:, :, begin:end], keys, values, attn_mask=seen, scale=scaling, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register(SHARED_PROMPTS, attend_with_shared_prompts)
