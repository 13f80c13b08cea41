"""How much of a training step is the backbone alone: measured on a few batches at the end of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch

from loramixer.training.batches import token_count

TIMED_BATCHES = 2


def measure_backbone(model: Any, batches: Iterable[dict[str, torch.Tensor]]) -> dict[str, float | None]:
    """Time forward and backward of whole batches with and without what a PEFT model adds to its backbone.

    The two take turns, so that whatever else the machine does falls on both. Without the adapter the gradient goes
    down to the embeddings, as far as the adapter of the first layer would take it. Gradients are cleared afterwards.

    Args:
        model: a PEFT model.
        batches: as in training; the first one only warms up.

    Returns:
        ``backbone_share`` (backbone over whole, None where there were too few batches) and
        ``backbone_tokens_per_second``.
    """
    seconds = {"whole": 0.0, "backbone": 0.0}
    tokens = 0
    model.train()
    for number, batch in enumerate(islice(batches, TIMED_BATCHES + 1)):
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "row"}
        for part in seconds:
            started = time.perf_counter()
            _forward_backward(model, inputs, part == "backbone")
            if number:
                seconds[part] += time.perf_counter() - started
        if number:
            tokens += token_count(inputs)
    model.zero_grad()
    if not tokens:
        return {"backbone_share": None, "backbone_tokens_per_second": None}
    return {
        "backbone_share": round(seconds["backbone"] / seconds["whole"], 3),
        "backbone_tokens_per_second": round(tokens / seconds["backbone"], 1),
    }


def _forward_backward(model: Any, inputs: dict[str, torch.Tensor], backbone_only: bool) -> None:
    handle = None
    if backbone_only:
        embeddings = model.get_base_model().get_input_embeddings()
        handle = embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())
    try:
        with model.disable_adapter() if backbone_only else nullcontext():
            model(**inputs).loss.backward()
            if inputs["input_ids"].is_cuda:
                torch.cuda.synchronize()
    finally:
        if handle is not None:
            handle.remove()
