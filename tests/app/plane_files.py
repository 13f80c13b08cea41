"""Invented files of experiments and an invented replay; for tests only, never for the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from explorer.replays import Replay, ReplayFacts, frame_of
from loramixer.evaluation.csv_files import write_csv
from tests.app.synthetic import EXPERTS, make_trace

SETTINGS = {
    "RSL sharpen 1 / 0.3": (0.42, 0.93, 1.31),
    "load balance 4": (0.90, 0.99, 1.36),
    "none": (0.55, 0.62, 1.35),
    "RSL flatten 1 / 0.3": (0.99, 0.999, 1.40),
}
"""Setting → undecided, balanced, test loss; all invented."""


def write_plane(folder: Path, settings: dict[str, tuple[float, float, float]] = SETTINGS) -> Path:
    """``plane.csv``, ``plane-paths.csv``, ``losses.csv`` and ``losses-summary.csv`` in the form of the experiments."""
    width = float(np.log(len(EXPERTS)))
    points, paths, losses, runs = [], [], [], []
    for setting, (x, y, loss) in settings.items():
        common = {"setting": setting, "examples": 2000, "seeds": 3, "rows": 400, "covers": "seeds and rows"}
        points.append(
            {
                **common,
                "undecided": x, "undecided_low": x - 0.01, "undecided_high": x + 0.01,
                "balanced": y, "balanced_low": y - 0.005, "balanced_high": min(1, y + 0.005),
                "tokens": 52000, "band_tokens": 61,
                "band_undecided_low": x - 0.02, "band_undecided_high": x + 0.02,
                "band_balanced_low": y - 0.04, "band_balanced_high": y - 0.01,
                "data": "folder",
            }
        )  # fmt: skip
        losses.append(
            {**common, "gate": "soft", "quantity": "loss", "against": None, "value": loss, "low": loss - 0.02,
             "high": loss + 0.02}
        )  # fmt: skip
        losses.append({**losses[-1], "against": "none", "value": -1.0})
        losses.append({**losses[-1], "against": None, "gate": "top_3", "value": -2.0})
        for seed in range(3):
            shift = 0.01 * (seed - 1)
            loads = {f"load_{name}{end}": 0.25 for name in EXPERTS for end in ("", "_low", "_high")}
            runs.append(
                {"setting": setting, "examples": 2000, "seed": seed, "token_entropy": (x + shift) * width,
                 "load_entropy": y * width, **loads}
            )  # fmt: skip
            for step in range(0, 250, 2):
                share = step / 248
                paths.append(
                    {"setting": setting, "examples": 2000, "seed": seed, "step": step, "share": share,
                     "undecided": 1 + (x - 1 + shift) * share, "balanced": 1 + (y - 1) * share}
                )  # fmt: skip
    for name, rows in (("plane", points), ("plane-paths", paths), ("losses-summary", losses), ("losses", runs)):
        write_csv(folder / f"{name}.csv", rows)
    return folder


def write_replay(folder: Path, name: str = "smollm2-135m--rsl", steps: int = 5) -> Path:
    """A replay whose gates become sharper with every step."""
    frames, points, tokens = [], [], ()
    for step in range(steps):
        trace = make_trace(answer="", k=4)
        logits = trace.logits * (0.1 + step)
        gates = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        object.__setattr__(trace, "gates", gates.astype(np.float32))
        gates, point, tokens = frame_of(trace)
        frames.append(gates)
        points.append(point)
    facts = ReplayFacts(
        "RSL", "smollm2-135m/rsl", "invented for a test", "How many mg is each dose?", tokens, EXPERTS,
        tuple(trace.layers), 40,
    )  # fmt: skip
    replay = Replay(facts, np.arange(steps) * 10, np.stack(frames), np.array(points, np.float32))
    return replay.save(folder / f"{name}.npz")
