"""`expert_index` of a training batch: which expert each row belongs to, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from loramixer.errors import MixerError

ROWS_OF = ("labels", "input_ids", "inputs_embeds")
"""Inputs ``[B, …]`` of a backbone, which say how many rows a batch has."""


def check_expert_index(
    expert_index: torch.Tensor, experts: int, inputs: Mapping[str, Any], row_tokens: torch.Tensor | None
) -> None:
    """Refuse what would train nothing in silence, or the wrong expert.

    Args:
        expert_index: int64 ``[B]``; or, of rows in one line, ``[tokens of all rows]``. Reading it waits for the GPU
            once where it lies there.
        experts: how many there are.
        inputs: what the backbone was called with, by name; the first of :data:`ROWS_OF` says how many rows there are.
        row_tokens: which token of the line is each token of the rows, where rows share some; or None.

    Raises:
        MixerError: a number that is no expert and not −1, or another number of entries than rows.
    """
    batch = next((inputs[name] for name in ROWS_OF if inputs.get(name) is not None), None)
    tokens = None
    if batch is not None and len(batch) == 1 and batch.dim() > 1:  # rows that lie in one line, perhaps
        tokens = batch.shape[1] if row_tokens is None else len(row_tokens)
    if batch is not None and len(expert_index) not in (len(batch), tokens):
        size = f"has {len(batch)} rows" if tokens is None else f"is one row of {tokens} tokens"
        raise MixerError(
            f"expert_index has {len(expert_index)} entries, but this batch {size}; give one for each row, or for each "
            "token where rows lie in one line."
        )
    if torch.compiler.is_compiling() or not len(expert_index):
        return  # a graph has no numbers to look at
    lowest, highest = torch.stack(expert_index.aminmax()).tolist()
    if lowest < -1 or highest >= experts:
        raise MixerError(
            f"expert_index holds {lowest if lowest < -1 else highest}, but this mixture has {experts} experts; give "
            f"each row the position of its own expert, 0 to {experts - 1}, or −1 for none."
        )
