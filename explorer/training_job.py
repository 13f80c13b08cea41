"""One router training as files in a folder of its own: what is asked for, how far it is, and what it shows.

The explorer and the process that trains share nothing but this folder, so that a training survives a closed tab and
never blocks the page:

- ``job.json``: the :class:`TrainingJob`, written by the explorer;
- ``experts/`` and ``rows.jsonl``: copies of what may go before the training does, such as a visitor's experts;
- ``stop``: an empty file, written by the explorer to ask for an end;
- ``status.json``: the :class:`JobStatus`, written by the process;
- ``run_log.json`` in ``mixture/``: the curves, written by the trainer;
- ``probe.json`` and ``probe.jsonl``: the tokens of the probe prompt, and one line per frame;
- ``mixture/``: the trained mixture when it has ended, ``partial/`` what there was when it was stopped.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loramixer.whole_files import write_whole

JobState = Literal["starting", "training", "saving", "stopping", "finished", "stopped", "failed"]

RUNNING: tuple[JobState, ...] = ("starting", "training", "saving", "stopping")
"""States in which a process is at work."""


@dataclass(frozen=True)
class TrainingJob:
    """What is asked for.

    Attributes:
        backbone: what ``loramixer.load_backbone`` takes.
        experts: expert name → folder or Hub id.
        domains: of the rows; where they are those of the experts, exactly as the command line draws them.
        data: ``default``, ``hub``, ``generated`` or ``file``.
        loss: routing loss.
        balance_weight: α, or the weight of the whole loss.
        entropy_weight: λ, of ``rsl``.
        entropy: the sign of λ, ``sharpen`` or ``flatten``.
        scale: form of the balance term, ``unit`` or ``paper``.
        examples: number of rows.
        seed: of rows, order and initial routers.
        top_k: experts per token in inference.
        probe: the prompt whose map is shown.
        max_minutes: it ends there and keeps what it has.
        title: of the mixture.
        file: of rows, where ``data`` is ``file``.
    """

    backbone: str
    experts: dict[str, str]
    domains: tuple[str, ...]
    data: str
    loss: str
    balance_weight: float
    entropy_weight: float
    entropy: str
    scale: str
    examples: int
    seed: int
    top_k: int
    probe: str
    max_minutes: float
    title: str
    file: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that its rows need, besides those of the server."""
        named = {"hub": "hub", "generated": "generated", "file": self.file}.get(self.data)
        return {"LORAMIXER_DATA": named} if named else {}

    def save(self, folder: Path) -> None:
        """Write ``job.json``."""
        write_json(folder / "job.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> TrainingJob:
        """Read ``job.json``."""
        fields = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        return cls(**{**fields, "domains": tuple(fields["domains"])})


@dataclass(frozen=True)
class JobStatus:
    """How far a training is.

    Attributes:
        state: where it is.
        text: in one sentence, for people.
        step: optimiser steps that are done.
        steps: of the whole training; 0 until it is known.
        seconds_left: estimated from the steps so far; None until it is known.
        seconds: of training so far, the parts before a Resume included.
        rows: where the training rows come from, in words for people; empty until it is known.
    """

    state: JobState
    text: str
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    seconds: float = 0.0
    rows: str = ""

    def save(self, folder: Path) -> None:
        """Write ``status.json``."""
        write_json(folder / "status.json", asdict(self))

    def ended(self, state: JobState, text: str) -> JobStatus:
        """The same place in the training, in another state."""
        return replace(self, state=state, text=text, seconds_left=None)

    @classmethod
    def load(cls, folder: Path) -> JobStatus:
        """Read ``status.json``; a training without one has not begun."""
        try:
            return cls(**json.loads((folder / "status.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls("starting", "The training process starts …")


@dataclass(frozen=True)
class Probe:
    """The probe prompt along the training.

    Attributes:
        tokens: its words.
        experts: names in the order of the gates.
        layers: numbers of the layers.
        steps: step of each frame.
        frames: gates of each frame, as ``explorer.replays.encode_frame`` writes them.
        points: undecided and balanced of each frame.
    """

    tokens: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    frames: tuple[str, ...] = ()
    points: tuple[tuple[float, float], ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Probe:
        """Read what there is so far; a step that a resumed run repeats counts once."""
        try:
            head = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
            lines = (folder / "probe.jsonl").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return cls()
        found: dict[int, Any] = {}
        for line in lines:
            try:
                row = json.loads(line)
                found[row["step"]] = row
            except (ValueError, KeyError):
                continue  # the last line of a process that was killed
        rows = [found[step] for step in sorted(found)]
        return cls(
            tuple(head["tokens"]),
            tuple(head["experts"]),
            tuple(head["layers"]),
            tuple(row["step"] for row in rows),
            tuple(row["frame"] for row in rows),
            tuple((row["point"][0], row["point"][1]) for row in rows),
        )


def logged_steps(folder: Path) -> list[dict[str, Any]]:
    """The rows of the run log so far."""
    try:
        return list(json.loads((folder / "mixture" / "run_log.json").read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError):
        return []


def trained_folder(folder: Path) -> Path | None:
    """The mixture that a training has left so far: the finished one, else that of the stop; None before either."""
    for name in ("mixture", "partial"):
        if (folder / name / "adapter_model.safetensors").is_file():
            return folder / name
    return None


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    write_whole(path, json.dumps(value, ensure_ascii=False))
