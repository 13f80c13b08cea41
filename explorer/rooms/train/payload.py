"""A training as a JSON value for the browser: curves, path, progress, and the Python that makes it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from explorer.replays import frames_payload
from explorer.rooms.tradeoff.points import log_path
from explorer.rooms.train.estimate import duration
from explorer.training_job import JobStatus, Probe, TrainingJob
from loramixer.viz.palette import NEUTRAL, OKABE_ITO, expert_styles

MOST_POINTS = 240
COLOUR = OKABE_ITO[0]

ENTROPIES = {
    "token_entropy": ("tokens", OKABE_ITO[0]),
    "load_entropy": ("load", OKABE_ITO[4]),
    "mutual_information": ("mutual information", OKABE_ITO[2]),
}
NO_TERMS = {
    "step", "epoch", "grad_norm", "learning_rate", "loss", "seconds", "tokens", "tokens_with_padding",
    "tokens_per_second", "seconds_left", "loss_warmup", "task_loss", "own_expert_share", "task_tokens", *ENTROPIES,
}  # fmt: skip
"""Columns of a run log that are no term of the routing loss."""

_TERM_COLOURS = (NEUTRAL, OKABE_ITO[1], OKABE_ITO[3], OKABE_ITO[5], OKABE_ITO[4], OKABE_ITO[0])

_PYTHON = """from loramixer.training.routers import train_router

train_router(
    "my-router",
    {experts},
    loss="{loss}",
    balance_weight={balance_weight!r},
    entropy_weight={entropy_weight!r},
    entropy="{entropy}",
    scale="{scale}",
    examples={examples},
    backbone="{backbone}",
    seed={seed},
    top_k={top_k},
    title={title!r},
)
"""


def training_payload(key: str, job: TrainingJob, status: JobStatus, steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The JSON value for ``TrainingView``.

    Args:
        key: of the training.
        job: what was asked for.
        status: how far it is.
        steps: rows of the run log.
    """
    steps = list(steps)
    shown = _thinned(steps)
    return {
        "key": key,
        "text": progress_text(status),
        "step": status.step,
        "steps": status.steps,
        "colour": COLOUR,
        "curves": curves_of(shown, list(job.experts)),
        "path": [[round(float(x), 4), round(float(y), 4)] for x, y in log_path(shown, len(job.experts))],
        "python": python_of(job),
    }


def probe_payload(key: str, job: TrainingJob, status: JobStatus, probe: Probe) -> dict[str, Any] | None:
    """The JSON value for ``ReplayView``; None before the first frame."""
    if not probe.frames:
        return None
    note = (
        f"Soft gates while it trains, n = {len(probe.tokens)} tokens; a cell is the mean over the projections of its "
        "layer. The map follows the training while the slider stands at its end."
    )
    return frames_payload(
        key, f"The probe prompt, {job.title}", note, probe.experts, probe.layers, probe.tokens, COLOUR,
        list(probe.steps), list(probe.frames), list(probe.points), status.steps or probe.steps[-1], grows=True,
    )  # fmt: skip


def curves_of(steps: Sequence[dict[str, Any]], experts: Sequence[str]) -> list[dict[str, Any]]:
    """The charts: task loss, every term of the routing loss, entropies, and shares of the own expert."""
    names = dict.fromkeys(name for row in steps for name in row)
    terms = [name for name in names if name not in NO_TERMS]
    charts = [
        _chart("Task loss, nats per token", "How badly the answers of the rows are predicted; lower is better.",
               [("task", OKABE_ITO[0], _line(steps, "task_loss"))]),
        _chart("Entropies, nats", "Of single tokens (how undecided), of the load (how balanced), and their "
               "difference, the mutual information between token and expert.",
               [(label, colour, _line(steps, name)) for name, (label, colour) in ENTROPIES.items()]),
        _chart("Terms of the routing loss", "Each term by itself, before its weight; the routing loss is their "
               "weighted sum. All weights rise over the first 30 % of the steps.",
               [(name.replace("_", " "), _TERM_COLOURS[index % len(_TERM_COLOURS)], _line(steps, name))
                for index, name in enumerate(terms)]),
        _chart("Share of the own expert", "Mean probability that the rows of a domain give to the expert of their "
               "domain.",
               [(style.name, style.colour,
                 [[row["step"], row["own_expert_share"][style.name]] for row in steps
                  if style.name in (row.get("own_expert_share") or {})])
                for style in expert_styles(list(experts))]),
    ]  # fmt: skip
    return [chart for chart in charts if chart["lines"]]


def progress_text(status: JobStatus) -> str:
    """The sentence under the bar."""
    rows = f" Rows: {status.rows}." if status.rows else ""
    if status.state == "training" and status.seconds_left is not None:
        return f"{status.text}; about {duration(status.seconds_left)} left, measured on the steps so far.{rows}"
    return f"{status.text}{'' if status.text.endswith(('.', '…')) else '.'}{rows}" if rows else status.text


def python_of(job: TrainingJob) -> str:
    """Python that trains the same router; experts of the zoo by their place in the package."""
    from loramixer.mixers import ZOO

    inside = all(source.startswith(f"{ZOO}/") for source in job.experts.values())
    head = ""
    if inside:
        lines = ", ".join(
            f'"{name}": str(ZOO / "{source[len(str(ZOO)) + 1 :]}")' for name, source in job.experts.items()
        )
        experts, head = f"{{{lines}}}", "from loramixer.mixers import ZOO\n"
    else:
        experts = "{" + ", ".join(f'"{name}": "path/to/{name}"' for name in job.experts) + "}"
    examples: str = str(job.examples)
    from loramixer.data import RECIPES

    if job.file:
        job = replace(job, file="path/to/rows.jsonl")
        head = f"from loramixer.data import find_source, mixed_examples\n{head}"
        source = f"find_source(None, {list(job.experts)})"
        examples = f"mixed_examples({job.examples}, {job.seed}, {list(job.domains)}, {source})"
    elif job.domains != tuple(name for name in job.experts if name in RECIPES):
        head = f"from loramixer.data import mixed_examples\n{head}"
        examples = f"mixed_examples({job.examples}, {job.seed}, {list(job.domains)})"
    # Before any import, as the training process has it from the start.
    setting = "".join(f'os.environ["{name}"] = "{value}"\n' for name, value in job.environment.items())
    if setting:
        head = f"import os\n\n{setting}\n{head}"
    fields = {name: getattr(job, name) for name in (
        "loss", "balance_weight", "entropy_weight", "entropy", "scale", "backbone", "seed", "top_k", "title"
    )}  # fmt: skip
    return head + _PYTHON.format(experts=experts, examples=examples, **fields)


def _chart(name: str, hint: str, lines: Sequence[tuple[str, str, list[list[float]]]]) -> dict[str, Any]:
    found = [{"name": label, "colour": colour, "points": points} for label, colour, points in lines if points]
    return {"name": name, "hint": hint, "lines": found}


def _line(steps: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    return [[row["step"], row[name]] for row in steps if isinstance(row.get(name), int | float)]


def _thinned(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(steps) <= MOST_POINTS:
        return steps
    return [steps[place] for place in np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int)]
