"""Timing two things against each other in one process, and what a result file says about the machine.

A ratio is always taken within one round: both sides run back to back, in random order, each warmed up just before.
What else the machine does, and how it throttles, then hits both; the median over rounds and its interval are printed.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from loramixer.versions import library_versions

RESAMPLES = 2000


@dataclass(frozen=True)
class Subject:
    """Something to time.

    Attributes:
        call: what is timed.
        scope: entered before the warm-up and left after the timing; not timed.
    """

    call: Callable[[], object]
    scope: Callable[[], AbstractContextManager[object]] = nullcontext


def median_interval(ratios: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The median of one ratio per round, with a 95 % bootstrap interval of that median."""
    values = np.asarray(ratios, dtype=float)
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return {"ratio": float(np.median(values)), "ratio_low": float(low), "ratio_high": float(high)}


@dataclass
class Comparison:
    """Seconds per call of a form and of its reference, one value per round."""

    form: Subject
    reference: Subject
    seconds: list[float] = field(default_factory=list)
    reference_seconds: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        """The median ratio with its interval, and the median seconds of both sides."""
        return {
            **median_interval(np.array(self.seconds) / np.array(self.reference_seconds)),
            "seconds": float(np.median(self.seconds)),
            "reference_seconds": float(np.median(self.reference_seconds)),
            "rounds": len(self.seconds),
        }


def compare(comparisons: Sequence[Comparison], rounds: int, block_seconds: float, seed: int = 0) -> None:
    """Fill comparisons with timings, all of them in every round, in random order.

    Args:
        comparisons: receive one value per side and round.
        rounds: number of rounds.
        block_seconds: every side is called until about this much time has passed, at least once.
        seed: of the order.
    """
    order = random.Random(seed)
    calls: dict[int, int] = {}
    for _ in range(rounds):
        gc.collect()
        for comparison in order.sample(list(comparisons), len(comparisons)):
            sides = [
                (comparison.form, comparison.seconds),
                (comparison.reference, comparison.reference_seconds),
            ]
            order.shuffle(sides)
            for subject, seconds in sides:
                seconds.append(_time_block(subject, block_seconds, calls))


def _time_block(subject: Subject, block_seconds: float, calls: dict[int, int]) -> float:
    """Seconds per call; the number of calls is settled at the first block of a subject and stays."""
    with subject.scope():
        subject.call()
        synchronize()
        if id(subject) not in calls:
            started = time.perf_counter()
            subject.call()
            synchronize()
            calls[id(subject)] = max(1, math.ceil(block_seconds / (time.perf_counter() - started)))
        count = calls[id(subject)]
        gc.disable()
        try:
            started = time.perf_counter()
            for _ in range(count):
                subject.call()
            synchronize()
            return (time.perf_counter() - started) / count
        finally:
            gc.enable()


def synchronize() -> None:
    """Wait for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def describe_machine(device: str) -> dict[str, Any]:
    """Machine, versions, threads and commit, so that a result can be judged and made again."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": library_versions(),
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def show(table: Table) -> None:
    """Print a table, wide enough also where there is no terminal."""
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def write_result(path: Path | None, benchmark: str, device: str, settings: dict[str, Any], rows: list[Any]) -> None:
    """Write a result file; without a path nothing is written."""
    if path is None:
        return
    result = {"benchmark": benchmark, "machine": describe_machine(device), "settings": settings, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _commit() -> str | None:
    """The commit of this checkout, with ``+changes`` when files differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
