"""Recorded replays: one fixed prompt at many steps of a training, for the page to show without a model.

``traces/replays/<name>.npz`` holds one of them. ``python -m explorer.record_replay`` writes them from the routers that
were kept along a training, ``zoo/<backbone>/replay/<router>/step-…``.
"""

from __future__ import annotations

import base64
import json
import logging
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from explorer.recordings import FOLDER as TRACES
from loramixer.errors import TraceError
from loramixer.metrics import plane_point
from loramixer.trace import RoutingTrace
from loramixer.viz.palette import expert_styles

FOLDER = TRACES / "replays"
SCALE = 255

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayFacts:
    """What a replay is of.

    Attributes:
        title: of the router, for people.
        mixer: name of the router at the end of the training.
        loss: its routing loss in one line.
        prompt: the fixed prompt.
        tokens: the words of the prompt, without the template.
        experts: names in the order of the gates.
        layers: numbers of the layers.
        last_step: number of steps of the whole training.
    """

    title: str
    mixer: str
    loss: str
    prompt: str
    tokens: tuple[str, ...]
    experts: tuple[str, ...]
    layers: tuple[int, ...]
    last_step: int


@dataclass(frozen=True)
class Replay:
    """A prompt at many steps, with soft gates.

    Attributes:
        facts: what it is of.
        steps: optimiser steps, ``[N]``.
        gates: mean over the projections of a layer, times 255, uint8 ``[N, layers, tokens, experts]``.
        points: undecided and balanced over the prompt, from the gates of single sites, float32 ``[N, 2]``.
    """

    facts: ReplayFacts
    steps: np.ndarray
    gates: np.ndarray
    points: np.ndarray

    def save(self, path: Path) -> Path:
        """Write one compressed file without pickles."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self.facts), ensure_ascii=False)
        np.savez_compressed(path, facts=np.array(text), steps=self.steps, gates=self.gates, points=self.points)
        return path

    @classmethod
    def load(cls, path: Path) -> Replay:
        """Read a file.

        Raises:
            TraceError: the file is no replay.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                raw = json.loads(str(data["facts"]))
                arrays = {name: data[name] for name in ("steps", "gates", "points")}
            fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
            facts = ReplayFacts(**fields)
            shape = (len(arrays["steps"]), len(facts.layers), len(facts.tokens), len(facts.experts))
            if arrays["gates"].shape != shape or arrays["points"].shape != (shape[0], 2):
                raise ValueError("its arrays do not fit together")
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise TraceError(f"{path.name} is no replay of a training ({error}).") from error
        return cls(facts, **arrays)

    def to_payload(self, colour: str) -> dict[str, Any]:
        """The JSON value for ``ReplayView``."""
        facts = self.facts
        note = (
            f"Recorded, shown without a model. {facts.loss}. Soft gates on a fixed prompt, n = {len(facts.tokens)} "
            "tokens; a cell is the mean over the projections of its layer."
        )
        return frames_payload(
            f"{facts.mixer}:{facts.last_step}", facts.title, note, facts.experts, facts.layers, facts.tokens, colour,
            self.steps.tolist(), [encode_frame(frame) for frame in self.gates], self.points.tolist(), facts.last_step,
        )  # fmt: skip


def frames_payload(
    key: str,
    title: str,
    note: str,
    experts: Any,
    layers: Any,
    tokens: Any,
    colour: str,
    steps: list[int],
    frames: list[str],
    points: list[Any],
    last_step: int,
    grows: bool = False,
) -> dict[str, Any]:
    """The JSON value of one prompt at many steps; ``grows`` while a training adds to it, and then it is followed."""
    return {
        "key": key,
        "title": title,
        "note": note,
        "experts": [
            {"name": style.name, "letter": style.letter, "colour": style.colour} for style in expert_styles(experts)
        ],
        "layers": list(layers),
        "tokens": list(tokens),
        "colour": colour,
        "steps": steps,
        "frames": frames,
        "points": [[round(x, 4), round(y, 4)] for x, y in points],
        "lastStep": last_step,
        "grows": grows,
    }


def encode_frame(gates: np.ndarray) -> str:
    """uint8 gates ``[layers, tokens, experts]`` as base64 text."""
    return base64.b64encode(np.ascontiguousarray(gates, dtype=np.uint8).tobytes()).decode("ascii")


def frame_of(trace: RoutingTrace) -> tuple[np.ndarray, tuple[float, float], tuple[str, ...]]:
    """One frame of a trace with soft gates: gates as in :class:`Replay`, the point, and the words of the prompt."""
    _, kept = trace.select(roles=("prompt", "generated"))
    positions = [int(place) for place in np.flatnonzero(kept) if not trace.tokens.special[place]]
    gates = trace.gates[:, positions]
    layer_of = np.array([site.layer for site in trace.sites])
    means = np.stack([gates[layer_of == layer].mean(axis=0) for layer in trace.layers])
    point = plane_point(gates)
    tokens = tuple(trace.tokens[place] for place in positions)
    return np.round(means * SCALE).astype(np.uint8), (float(point.undecided), float(point.balanced)), tokens


def find_replays(folder: Path = FOLDER) -> dict[str, Replay]:
    """The replays of a folder by the name of their file; files that cannot be read are left out."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            found[path.stem] = Replay.load(path)
        except TraceError as error:
            logger.warning("A replay is left out: %s", error)
    return found
