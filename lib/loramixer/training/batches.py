"""How rows become batches without waste: logits where there is a label only, and rows in one line without padding.

Rows of different domains have very different lengths, and the balance term needs several domains in every batch, so
sorting by length cannot help. Instead the rows of a batch lie behind each other in one line of tokens, positions start
afresh with each row, and attention runs row by row. Nothing is padded, and the loss and the gradients are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.trainer_pt_utils import BatchRebalanceSampler

from loramixer.data import IGNORED_LABEL
from loramixer.errors import LoraMixerError

ROW_BY_ROW = "loramixer_row_by_row"
"""Name of :func:`attend_row_by_row` in Transformers' table of attention functions."""

TRIAL_TOLERANCE = 0.05
"""How far, in standard deviations, the outputs of a backbone may move when rows lie in one line; above rounding in
bfloat16 and far below the effect of one row on another."""


PLAIN_ATTENTION = 1024
"""Longest row, in tokens, whose matrix of attention weights is kept as a whole."""


@dataclass(frozen=True)
class RowCollator:
    """Makes a batch of encoded rows, dictionaries with ``input_ids``, ``labels`` and whole numbers.

    Attributes:
        pad_token: id that fills a padded batch.
        in_line: whether rows lie behind each other, ``[1, tokens]`` with ``cu_seq_lens_q`` (int32, where rows begin
            and end) and ``position_ids``, and ``expert_index`` is that of every token; otherwise ``[rows, longest]``,
            padded at the right, with ``attention_mask``.
        answers_only: whether logits are computed at the labelled tokens only (``logits_to_keep``, a mask, and
            ``shift_labels``, the label of each kept logit).
    """

    pad_token: int
    in_line: bool
    answers_only: bool

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        ids = [torch.as_tensor(row["input_ids"]) for row in rows]
        labels = [torch.as_tensor(row["labels"]) for row in rows]
        if self.in_line:
            ends = torch.tensor([0, *lengths]).cumsum(0)
            batch = {
                "input_ids": torch.cat(ids)[None],
                # No token predicts the first one of the next row.
                "labels": torch.cat([_without_first(row) for row in labels])[None],
                "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
                "cu_seq_lens_q": ends.to(torch.int32),
            }
        else:
            pad = torch.nn.utils.rnn.pad_sequence
            batch = {
                "input_ids": pad(ids, batch_first=True, padding_value=self.pad_token),
                "labels": pad(labels, batch_first=True, padding_value=IGNORED_LABEL),
                "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
            }
        if self.answers_only:
            following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)
            batch["logits_to_keep"] = following != IGNORED_LABEL
            batch["shift_labels"] = following[batch["logits_to_keep"]]
        others = [name for name in rows[0] if name not in ("input_ids", "labels")]
        batch |= {name: torch.tensor([row[name] for row in rows]) for name in others}
        if self.in_line and "expert_index" in batch:
            batch["expert_index"] = batch["expert_index"].repeat_interleave(torch.tensor(lengths))
        return batch


class SpreadRows(BatchRebalanceSampler):
    """The batches that one process would see, each spread over the processes so that they hold equally many tokens.

    Rows of a batch go one by one, the longest first, to the process with the fewest tokens so far. The Trainer's own
    rule (``train_sampling_strategy="batch_rebalance"``) reckons with padding, sets all accumulated forwards of a step
    together, and shuffles with one seed for all runs.

    Args:
        lengths: tokens of every row.
        batch_size: rows of a forward pass, of all processes together.
        processes: how many there are.
        rank: which of them this is.
        seed: of the order, which is that of a single process with this seed.
    """

    def __init__(self, lengths: list[int], batch_size: int, processes: int, rank: int, seed: int) -> None:
        super().__init__(lengths, batch_size, processes, grad_accum=1, seed=seed, rank=rank, drop_last=False)

    def _assign(self, indices: Sequence[int], lengths: Sequence[int]) -> list[list[list[int]]]:
        """Process → its forward passes → rows."""
        parts: list[list[int]] = [[] for _ in range(self.dp_size)]
        tokens = [0] * self.dp_size
        for length, index in sorted(zip(lengths, indices, strict=True), reverse=True):
            rank = tokens.index(min(tokens))  # so that every process gets a row: the others would wait for it
            parts[rank].append(index)
            tokens[rank] += length
        return [[part] for part in parts]


def _without_first(labels: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full_like(labels[:1], IGNORED_LABEL), labels[1:]])


def make_collator(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> RowCollator:
    """The collator that wastes least on this backbone without changing what it computes.

    Args:
        model: a causal language model.
        tokenizer: names the padding.
        rows: encoded rows; the first two are tried in one line.
    """
    pad_token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    longest = max(len(row["input_ids"]) for row in rows)
    return RowCollator(pad_token or 0, keeps and rows_fit_in_line(model, rows[:2], longest), keeps)


def rows_fit_in_line(model: Any, rows: Sequence[dict[str, Any]], longest: int) -> bool:
    """Whether a backbone gives the same for rows in one line as for each by itself; found out by trying.

    State-space layers, position tables of their own kind and attention that does not take a function from outside
    carry something over from one row to the next.

    Args:
        model: a causal language model.
        rows: two encoded rows.
        longest: tokens of the longest row that will come; a sliding window must not be shorter.
    """
    window = getattr(model.config, "sliding_window", None)
    if len(rows) < 2 or (window is not None and window < longest):
        return False
    device = model.device
    lines = [{"input_ids": row["input_ids"][:64], "labels": row["input_ids"][:64]} for row in rows]
    collate = RowCollator(0, in_line=True, answers_only=False)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), attention_row_by_row(model) as possible:
            if not possible:
                return False
            batch = {name: value.to(device) for name, value in collate(lines).items()}
            together = model(**batch, use_cache=False).logits[0].float()
        with torch.no_grad():
            alone = torch.cat(
                [model(torch.tensor([row["input_ids"]], device=device), use_cache=False).logits[0] for row in lines]
            ).float()
    except (TypeError, ValueError, RuntimeError, KeyError):
        return False  # the forward of this backbone does not take what a line needs
    finally:
        model.train(was_training)
    return bool((together - alone).std() <= TRIAL_TOLERANCE * alone.std())


_ORDINARY: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()
"""Backbone that attends row by row → its attention before and afterwards."""


@contextmanager
def attention_row_by_row(model: Any) -> Iterator[bool]:
    """Attend row by row while the block runs; yields whether the backbone can."""
    former = model.config._attn_implementation
    possible = bool(getattr(model, "_can_set_attn_implementation", bool)()) and former in ("sdpa", "eager")
    if possible:
        model.set_attn_implementation(ROW_BY_ROW)
        _ORDINARY[model] = former
    try:
        yield possible
    finally:
        if possible:
            del _ORDINARY[model]
            model.set_attn_implementation(former)


@contextmanager
def ordinary_attention(model: Any) -> Iterator[None]:
    """Attend as without a training while the block runs: for callbacks that trace, generate or evaluate meanwhile.

    Args:
        model: the model that trains, or its backbone; one that attends as usual is left as it is.
    """
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(backbone.config, "_attn_implementation", None) != ROW_BY_ROW:
        yield
        return
    backbone.set_attn_implementation(_ORDINARY[backbone])
    try:
        yield
    finally:
        backbone.set_attn_implementation(ROW_BY_ROW)


def attend_row_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each row of a line, by PyTorch's own kernel.

    Args:
        module: the attention layer.
        query: ``[1, heads, tokens, features]``.
        key: ``[1, key-value heads, tokens, features]``.
        value: as ``key``.
        attention_mask: not used; a line has no padding.
        **kwargs: ``cu_seq_lens_q``, where rows begin and end; the rest goes to the kernel.

    Returns:
        ``[1, tokens, heads, features]`` and None.

    Raises:
        LoraMixerError: no ``cu_seq_lens_q``; whoever called the backbone knows nothing of lines.
    """
    if kwargs.get("cu_seq_lens_q") is None:
        raise LoraMixerError(
            "This model trains and attends row by row, and this call does not say where rows begin and end "
            "(cu_seq_lens_q); run it inside `with loramixer.training.batches.ordinary_attention(model):`."
        )
    ends = kwargs.pop("cu_seq_lens_q").tolist()
    parts = []
    for start, end in pairwise(ends):
        row = [part[:, :, start:end] for part in (query, key, value)]
        if _plain_is_faster(query, end - start, kwargs):
            parts.append(_attend(row[0], row[1], row[2], kwargs.get("scaling")))
        else:
            parts.append(sdpa_attention_forward(module, *row, attention_mask=None, **kwargs)[0])
    return torch.cat(parts, dim=1), None


def _plain_is_faster(query: torch.Tensor, length: int, settings: dict[str, Any]) -> bool:
    """Whether products of whole matrices beat PyTorch's kernel: its backward in bfloat16 on a CPU takes twice as long.

    With 9 heads of 64 features, forward and backward in milliseconds on one core: 5.7 against 2.7 at 190 tokens, 17.8
    against 11.8 at 450 (torch 2.13, AMD EPYC with avx512_bf16).
    """
    ordinary = (
        not settings.get("dropout") and settings.get("softcap") is None and settings.get("is_causal") is not False
    )
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and length <= PLAIN_ATTENTION and ordinary


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Causal attention of one row with the softmax in float32; ``[1, tokens, heads, features]``."""
    _, heads, tokens, features = query.shape
    groups = key.shape[1]
    # Queries that share a key-value head stand below each other, so that no key is copied.
    q_GMD = (query * (scaling or features**-0.5)).reshape(groups, heads // groups * tokens, features)
    scores_GHTT = (q_GMD @ key[0].transpose(-1, -2)).view(groups, heads // groups, tokens, tokens)
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).triu(1)
    weights = torch.softmax(scores_GHTT.masked_fill(later, -torch.inf), dim=-1, dtype=torch.float32).to(value.dtype)
    mixed_GMD = weights.view(groups, -1, tokens) @ value[0]
    return mixed_GMD.view(1, heads, tokens, -1).transpose(1, 2)


AttentionInterface.register(ROW_BY_ROW, attend_row_by_row)
