"""The chooser of training steps: a router as it was at a step of its training, where such routers were kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from explorer.registry import ModelSource
from loramixer.errors import MixerError
from loramixer.kept_routers import kept_at
from loramixer.mixers import MixerInfo

TRAINED = "trained"
"""The choice of the router that the training ended with."""


def step_control(steps: Mapping[int, str], step: str = TRAINED, **options: Any) -> gr.Dropdown:
    """The control for these steps: hidden where there are none, and fully trained where they lack the wanted one."""
    choices = [("fully trained", TRAINED)]
    choices += [(f"step {number}" if number else "step 0, untrained", str(number)) for number in steps]
    known = step in [value for _, value in choices]
    return gr.Dropdown(choices=choices, value=step if known else TRAINED, visible=bool(steps), **options)


def at_step(source: ModelSource, mixer: str, step: str | None) -> MixerInfo:
    """A router at a choice of the control.

    Raises:
        MixerError: no such router, or it was not kept at this step.
    """
    found = source.find(mixer)
    if step in (None, "", TRAINED):
        return found
    steps = {str(number): name for number, name in source.steps(mixer).items()}
    if step not in steps:
        kept = f"kept are {', '.join(steps)}" if steps else "none of its training was kept"
        raise MixerError(f"The router '{found.title}' has no training step {step}; {kept}. Choose 'fully trained'.")
    return source.find(steps[step])


def split_step(name: str) -> tuple[str, str]:
    """The router control's choice and the step control's choice of a router's name."""
    kept = kept_at(name)
    return (kept[0], str(kept[1])) if kept else (name, TRAINED)
