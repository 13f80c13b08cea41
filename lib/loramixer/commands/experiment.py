"""``loramixer experiment NAME``: one experiment of the evidence, its CSV files and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from loramixer.errors import DataError

NAMES = Literal[
    "losses", "grid", "data-size", "top-k", "balance-curve", "convergence", "expert-matrix", "plane", "oracle"
]


def experiment(
    name: Annotated[NAMES, typer.Argument(help="What to measure.")],
    output: Annotated[Path, typer.Option(help="Receives NAME.csv, NAME-summary.csv and figures.")] = Path(
        "docs/results"
    ),
    work: Annotated[Path, typer.Option(help="Keeps routers and measurements; all experiments can share it.")] = Path(
        "runs/evidence"
    ),
    experts: Annotated[
        str, typer.Option(help="Whose experts to route: a mixture, or a folder of LoRAs.")
    ] = "smollm2-135m/rsl",
    seeds: Annotated[str, typer.Option(help="Training seeds, such as '0 1 2' or 0,1,2.")] = "0 1 2",
    examples: Annotated[
        int | None, typer.Option(help="Training rows per router; each experiment has its own.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Test rows per domain.")] = 100,
    balance_weight: Annotated[float, typer.Option(help="α of RSL, of K Σ p̄ f̄.")] = 4.0,
    entropy_weight: Annotated[float, typer.Option(help="λ of RSL, of E[H(p)] in nats.")] = 0.3,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the routers.")] = 5e-3,
    backbone: Annotated[str, typer.Option(help="Catalogue name, folder or Hub id.")] = "smollm2-135m",
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the backbone while measuring.")
    ] = "float32",
    training_dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the backbone while training.")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and the time they take.")] = False,
    stored_only: Annotated[
        bool, typer.Option("--stored-only", help="Write from finished runs; train nothing.")
    ] = False,
) -> None:
    """Train, measure and write one experiment; resumes after a kill, and keeps what is finished."""
    import torch

    from loramixer.data import data_origin
    from loramixer.evaluation.experiments import EXPERIMENTS
    from loramixer.evaluation.experiments.plan import Options
    from loramixer.evaluation.experiments.runner import describe, perform
    from loramixer.evaluation.experiments.workshop import Workshop
    from loramixer.training.routers import find_experts

    found = find_experts(experts)
    options = Options(
        experts=tuple(found),
        seeds=_seeds(seeds),
        examples=examples,
        balance_weight=balance_weight,
        entropy_weight=entropy_weight,
        learning_rate=learning_rate,
    )
    types: dict[str, Any] = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    workshop = Workshop(
        work, found, backbone=backbone, limit=limit, dtype=types[dtype], training_dtype=types[training_dtype]
    )
    typer.echo(f"Data: {data_origin()}.", err=True)
    if dry_run:
        for line in describe(EXPERIMENTS[name], options, workshop):
            typer.echo(line)
        return
    for path in perform(EXPERIMENTS[name], options, workshop, output, stored_only=stored_only, say=typer.echo):
        typer.echo(f"{path}")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.replace(",", " ").split()))
    except ValueError:
        found = ()
    if not found:
        raise DataError(f"--seeds is '{text}'; give whole numbers, such as '0 1 2'.")
    return found
