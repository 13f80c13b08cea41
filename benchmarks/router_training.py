"""How long a router of 2,000 rows trains, and how much of that the backbone alone takes.

``python benchmarks/router_training.py --output docs/results/router-training.json`` reads the logs of the trainings
that the experiments archived, most of them beside other work. ``--train`` trains one more with ``cpu-small`` on this
machine, which takes minutes; leave the machine alone meanwhile. ``--processes 2`` trains it with two processes of one
thread each. ``--alone NAME`` takes an archived training for one beside which nothing ran. What was trained before in
another number of processes, or with another memory allocator, stays in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import write_result

from loramixer.training.run_log import RunLog
from loramixer.versions import memory_allocator

EXAMPLES = 2000
GOAL_MINUTES = 10
TRAINED_NOW = "trained now"
"""Name of what ``--train`` trains."""


def main(words: Sequence[str] | None = None) -> None:
    """Read or train, print, and write the result file."""
    options = _parse(words)
    found = [(path.stem, RunLog.load(path)) for path in sorted(options.logs.glob("[!.]*.json"))]
    former = _alone_before(options)
    # A run that was trained again under its name is another training.
    same = {name for name, log in found if any(row == row_of(name, log, True) for row in former)}
    alone = {*options.alone, *same}
    rows = [row_of(name, log, name in alone) for name, log in found if f"-n{options.examples}-" in name]
    if unknown := set(options.alone) - {row["run"] for row in rows}:
        raise SystemExit(f"{options.logs} holds no training {unknown.pop()} with {options.examples} rows.")
    rows += [row for row in former if row["run"] == TRAINED_NOW]
    if options.train:
        rows.append(row_of(TRAINED_NOW, train(options), alone=True))
    if not rows:
        raise SystemExit(f"{options.logs} holds no log of a training with {options.examples} rows; give --train.")
    table = Table("run", "processes", "minutes", "tokens", "tokens/s", "backbone alone", box=None)
    for row in rows:
        share = "–" if row["backbone_share"] is None else f"{row['backbone_share']:.0%}"
        table.add_row(
            row["run"],
            f"{row['processes']} × {row['threads']}",
            f"{row['minutes']:.1f}",
            f"{row['tokens']:,}",
            f"{row['tokens_per_second']:.0f}",
            share,
        )
    Console().print(table)
    settings = {"examples": options.examples, "goal_minutes": GOAL_MINUTES}
    write_result(options.output, "router-training", "cpu", settings, rows)


def train(options: argparse.Namespace) -> RunLog:
    """Train one router by the command that users give, and read its log."""
    threads = options.threads or max(1, torch.get_num_threads() // options.processes)
    launcher = ["-m"]
    if options.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.processes), "-m"]
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            *(sys.executable, *launcher, "loramixer", "train-router", "--mixer", options.experts, "--routers-only"),
            *("--output", f"{scratch}/router", "--examples", str(options.examples), "--backbone", options.backbone),
        ]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        return RunLog.load(Path(scratch) / "router")


def row_of(name: str, log: RunLog, alone: bool = False) -> dict[str, Any]:
    """What one log says about time; ``alone``: nothing ran beside it."""
    summary = log.summary
    return {
        "run": name,
        "alone": alone,
        "processes": log.settings.get("processes", 1),
        "threads": log.settings.get("threads", 1),  # logs without it are of processes with one thread
        "memory_allocator": log.settings.get("memory_allocator", "system"),
        "loss": log.settings["loss_text"],
        "rows": sum(log.settings["rows"].values()),
        "minutes": round(summary["seconds"] / 60, 2),
        "tokens": summary["tokens"],
        "tokens_per_second": summary["tokens_per_second"],
        "backbone_share": summary.get("backbone_share"),
    }


def _alone_before(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the result file knows to have been alone, but for what is trained anew now."""
    if options.output is None or not options.output.is_file():
        return []
    former = json.loads(options.output.read_text(encoding="utf-8"))
    if former["settings"]["examples"] != options.examples:
        return []
    again = (options.processes, memory_allocator()) if options.train else None
    return [
        row
        for row in former["rows"]
        if row["alone"] and not (row["run"] == TRAINED_NOW and (row["processes"], row["memory_allocator"]) == again)
    ]


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time of router trainings, and the backbone's share of it.")
    parser.add_argument("--logs", type=Path, default=Path("docs/results/runs/logs"), help="logs of finished trainings")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="training rows")
    parser.add_argument("--train", action="store_true", help="train one router too; leave the machine alone meanwhile")
    parser.add_argument("--alone", action="append", default=[], help="an archived run that had the machine for itself")
    parser.add_argument("--experts", default="smollm2-135m/rsl", help="whose experts to route, with --train")
    parser.add_argument("--backbone", default="smollm2-135m", help="backbone, with --train")
    parser.add_argument("--processes", type=int, default=1, help="processes that train it together, with --train")
    parser.add_argument("--threads", type=int, help="threads of each process, with --train")
    parser.add_argument("--output", type=Path, help="receives the result as JSON")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
