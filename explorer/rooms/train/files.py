"""Files of a training: its curves, its path on the plane and the map of its probe prompt, in pictures and a table."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from explorer.exports import Exports
from explorer.replays import SCALE
from explorer.rooms.share import FORMATS, MakeCode, MakeFile
from explorer.rooms.train.payload import python_of
from explorer.training_job import JobStatus, Probe, TrainingJob, logged_steps
from loramixer import viz
from loramixer.errors import FigureError
from loramixer.metrics import PlanePoint
from loramixer.trace import RoutingTrace, Site, TraceTokens
from loramixer.tuner import LoraMixerConfig
from loramixer.viz.live import plane_path

TRAIN_FORMATS = tuple(entry for entry in FORMATS if entry.key != "npz")
"""There is no trace of a training; its router is downloaded instead."""

ROWS, PROBE = "training rows", "probe prompt"
LOSS_FIELDS = ("balance_weight", "entropy_weight", "entropy", "scale")

Folder = Callable[[str], Path]
"""Folder of a training, by its key."""


@dataclass(frozen=True)
class Record:
    """What a training has written so far.

    Attributes:
        job: what was asked for.
        status: how far it is.
        steps: rows of the run log, all of them.
        probe: the probe prompt along the training.
    """

    job: TrainingJob
    status: JobStatus
    steps: Sequence[Mapping[str, Any]]
    probe: Probe

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Read a training.

        Raises:
            FigureError: no step has been logged yet.
        """
        job = _job(folder)
        if not (steps := logged_steps(folder)):
            raise FigureError("No step has been logged yet, so there is nothing to export; wait for the first curves.")
        return cls(job, JobStatus.load(folder), steps, Probe.load(folder))


def file_maker(exports: Exports, folder: Folder) -> MakeFile:
    """Writes files of the training whose key is the only input."""

    def make(kind: Any, values: dict[str, str], session: str, key: str) -> str:
        record = Record.load(_folder(folder, key))
        if kind == "html":
            title = f"LoRA-Mixer: {record.job.title}"
            return exports.page(session, figures_of(record), "training", title, facts_of(record))
        if kind in ("csv", "parquet"):
            return exports.table(session, table_of(record.steps), "training", kind)
        return exports.figure(session, figures_of(record)[0], "training", kind)

    return make


def code_maker(folder: Folder) -> MakeCode:
    """Writes Python that trains the same router."""
    return lambda values, session, key: python_of(_job(_folder(folder, key)))


def figures_of(record: Record) -> list[Any]:
    """Curves and path, and where the probe prompt was looked at, its map at the first and at the last time."""
    curves = viz.training_curves(list(record.steps), title=f"{record.job.title}: curves")
    places = dict.fromkeys((0, len(record.probe.steps) - 1)) if record.probe.steps else ()
    return [curves, *_plane(record), *(_map(record.probe, place) for place in places)]


def facts_of(record: Record) -> dict[str, Any]:
    """What produced the numbers, without the folders of this machine."""
    job = record.job
    fields: dict[str, Any] = {"routing_loss": job.loss, **{name: getattr(job, name) for name in LOSS_FIELDS}}
    return {
        "backbone": Path(job.backbone).name if Path(job.backbone).is_absolute() else job.backbone,
        "title": job.title,
        "loss": LoraMixerConfig(experts={"any": ""}, **fields).loss_text,
        "seed": job.seed,
        "experts": ", ".join(job.experts),
        "domains": ", ".join(job.domains),
        "rows": f"{job.examples} ({record.status.rows or job.data})",
        "steps": f"{record.status.step} of {record.status.steps}",
        "state": record.status.state,
        "probe": job.probe,
    }


def table_of(steps: Sequence[Mapping[str, Any]]) -> Any:
    """One row for each logged step; what is logged by domain has a column for each."""
    import pandas as pd

    rows = []
    for step in steps:
        row: dict[str, Any] = {}
        for name, value in step.items():
            nested = value if isinstance(value, Mapping) else {"": value}
            row |= {f"{name}_{part}" if part else name: number for part, number in nested.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _folder(folder: Folder, key: str) -> Path:
    if not key:
        raise FigureError("There is no training to export yet; press Train first.")
    return folder(key)


def _job(folder: Path) -> TrainingJob:
    try:
        return TrainingJob.load(folder)
    except (OSError, ValueError) as error:
        raise FigureError("This training can no longer be read; train again.") from error


def _plane(record: Record) -> list[Any]:
    """The way over training rows, and that of the probe prompt; nothing where neither was logged."""
    experts = list(record.job.experts)
    widest = float(np.log(len(experts)))
    paths = {
        ROWS: plane_path({"settings": {"experts": experts}, "steps": list(record.steps)}),
        PROBE: [PlanePoint(x * widest, y * widest, len(experts)) for x, y in record.probe.points],
    }
    paths = {name: path for name, path in paths.items() if path}
    ends = {name: path[-1] for name, path in paths.items()}
    title = f"{record.job.title}: path on the entropy–balance plane"
    return [viz.plane(ends, paths=paths, title=title)] if paths else []


def _map(probe: Probe, place: int) -> Any:
    """The first expert of each token in each layer, at one step."""
    figure = viz.token_map(_trace_of(probe, place))
    figure.update_layout(
        title={
            "text": f"Expert with the largest gate on the probe prompt, step {probe.steps[place]}",
            "subtitle": {
                "text": f"n = {len(probe.tokens)} tokens, soft gates, mean of the projections of a layer; "
                "the stronger, the further ahead"
            },
        }
    )
    return figure


def _trace_of(probe: Probe, place: int) -> RoutingTrace:
    """A frame as a trace with one router for each layer, which is what the figures of the library draw."""
    shape = (len(probe.layers), len(probe.tokens), len(probe.experts))
    counts = np.frombuffer(base64.b64decode(probe.frames[place]), dtype=np.uint8).reshape(shape) / np.float32(SCALE)
    # Each was rounded by itself.
    gates = (counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)
    with np.errstate(divide="ignore"):
        logits = np.log(gates)
    ends = np.cumsum([len(token) for token in probe.tokens])
    spans = np.stack([ends - [len(token) for token in probe.tokens], ends], axis=1)
    tokens = TraceTokens(
        text="".join(probe.tokens),
        ids=np.arange(shape[1]),
        spans=spans,
        roles=tuple("prompt" for _ in probe.tokens),
        special=np.zeros(shape[1], dtype=bool),
    )
    sites = tuple(Site(layer, "mean", f"layer {layer}") for layer in probe.layers)
    return RoutingTrace(tokens=tokens, sites=sites, experts=probe.experts, logits=logits, gates=gates)
