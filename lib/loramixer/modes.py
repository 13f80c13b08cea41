"""Evaluation mode for a while, and back to what every module was in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """The model as it is used, not trained, while the block runs; afterwards as it was, whatever happens.

    Args:
        model: any `torch.nn.Module`. Its modules may be in different modes, such as PEFT's wrapper in training mode
            around a backbone in evaluation mode, or a part whose dropout somebody switched off.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
