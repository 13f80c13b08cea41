"""How long a router of 2,000 rows trains, and how much of that the backbone alone takes.

``python benchmarks/router_training.py --output docs/results/router-training.json`` reads the logs of the trainings
that the experiments archived; ``--train`` trains one more with ``cpu-small`` on this machine, which takes minutes, and
reports that one alone. The result says which: trainings beside other work took longer than they would have.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import write_result

from loramixer.training.routers import find_experts, train_router
from loramixer.training.run_log import RunLog

EXAMPLES = 2000
GOAL_MINUTES = 10


def main(words: Sequence[str] | None = None) -> None:
    """Read or train, print, and write the result file."""
    options = _parse(words)
    if options.train:
        torch.set_num_threads(options.threads or torch.get_num_threads())
        with tempfile.TemporaryDirectory() as scratch:
            train_router(
                Path(scratch) / "router",
                find_experts(options.experts),
                examples=options.examples,
                backbone=options.backbone,
                routers_only=True,
            )
            rows = [row_of("trained now", RunLog.load(Path(scratch) / "router"))]
    else:
        found = [(path.stem, RunLog.load(path)) for path in sorted(options.logs.glob("[!.]*.json"))]
        rows = [row_of(name, log) for name, log in found if f"-n{options.examples}-" in name]
        if not rows:
            raise SystemExit(f"{options.logs} holds no log of a training with {options.examples} rows.")
    table = Table("run", "minutes", "tokens", "tokens/s", "backbone alone", box=None)
    for row in rows:
        share = "–" if row["backbone_share"] is None else f"{row['backbone_share']:.0%}"
        table.add_row(
            row["run"], f"{row['minutes']:.1f}", f"{row['tokens']:,}", f"{row['tokens_per_second']:.0f}", share
        )
    Console().print(table)
    settings = {"examples": options.examples, "trained_now": options.train, "goal_minutes": GOAL_MINUTES}
    write_result(options.output, "router-training", "cpu", settings, rows)


def row_of(name: str, log: RunLog) -> dict[str, Any]:
    """What one log says about time."""
    summary = log.summary
    return {
        "run": name,
        "loss": log.settings["loss_text"],
        "rows": sum(log.settings["rows"].values()),
        "minutes": round(summary["seconds"] / 60, 2),
        "tokens": summary["tokens"],
        "tokens_per_second": summary["tokens_per_second"],
        "backbone_share": summary.get("backbone_share"),
    }


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time of router trainings, and the backbone's share of it.")
    parser.add_argument("--logs", type=Path, default=Path("docs/results/runs/logs"), help="logs of finished trainings")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="training rows")
    parser.add_argument("--train", action="store_true", help="train one router now; leave the machine alone meanwhile")
    parser.add_argument("--experts", default="smollm2-135m/rsl", help="whose experts to route, with --train")
    parser.add_argument("--backbone", default="smollm2-135m", help="backbone, with --train")
    parser.add_argument("--threads", type=int, help="threads of PyTorch, with --train")
    parser.add_argument("--output", type=Path, help="receives the result as JSON")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
