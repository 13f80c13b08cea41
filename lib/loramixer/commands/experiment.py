"""``loramixer experiment NAME``: one experiment of the evidence, its CSV files and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from loramixer.errors import DataError, ExpertError

ALL = "all"
NAMES = Literal[
    "losses", "choice", "grid", "data-size", "top-k", "balance-curve", "convergence", "expert-matrix", "plane",
    "oracle", "all",
]  # fmt: skip


def experiment(
    name: Annotated[NAMES, typer.Argument(help="What to measure.")],
    output: Annotated[
        Path, typer.Option(help="Receives NAME.csv, NAME-summary.csv, figures, and in runs/ what was measured.")
    ] = Path("docs/results"),
    work: Annotated[Path, typer.Option(help="Keeps trained routers; all experiments can share it.")] = Path(
        "runs/evidence"
    ),
    experts: Annotated[
        str, typer.Option(help="Whose experts to route: a mixture, or a folder of LoRAs.")
    ] = "smollm2-135m/rsl",
    only: Annotated[
        str, typer.Option(help="Of these experts only, such as 'math science'; with a --work and --output of its own.")
    ] = "",
    seeds: Annotated[str, typer.Option(help="Training seeds, such as '0 1 2' or 0,1,2.")] = "0 1 2",
    examples: Annotated[
        int | None, typer.Option(help="Training rows per router; each experiment has its own.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Test rows per domain; 30 is that of the stored results.")] = 30,
    balance_weight: Annotated[float, typer.Option(help="α of RSL, of K Σ p̄ f̄.")] = 1.0,
    entropy_weight: Annotated[float, typer.Option(help="λ of RSL, of E[H(p)] in nats.")] = 0.3,
    candidates: Annotated[
        str, typer.Option(help="Further RSL settings to choose from, α/λ each, such as '4/0.3 2/0.3'.")
    ] = "4/0.3",
    top_k: Annotated[
        int,
        typer.Option(min=1, help="Experts per token; with less than 6 experts a half of them compares best."),
    ] = 3,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the routers.")] = 5e-3,
    backbone: Annotated[str, typer.Option(help="Catalogue name, folder or Hub id.")] = "smollm2-135m",
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the backbone while measuring; as for --limit.")
    ] = "bfloat16",
    device: Annotated[
        str,
        typer.Option(help="Where to measure: auto (cuda where torch sees one, else cpu), or a name of torch."),
    ] = "auto",
    training_dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the backbone while training.")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and the time they take.")] = False,
    stored_only: Annotated[
        bool, typer.Option("--stored-only", help="Write from what is measured; train and measure nothing.")
    ] = False,
    measure_only: Annotated[
        bool,
        typer.Option(
            "--measure-only", help="Measure trained routers for all experiments; train nothing, write no table."
        ),
    ] = False,
    run: Annotated[
        list[str] | None, typer.Option(help="With --measure-only: name of a run; repeat for several.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(help="With --measure-only: a gate such as soft or top_3; repeat for several. All by default."),
    ] = None,
) -> None:
    """Train, measure and write one experiment; resumes after a kill, and keeps what is finished."""
    import torch

    from loramixer.data import data_origin
    from loramixer.devices import choose_device
    from loramixer.evaluation.experiments import EXPERIMENTS
    from loramixer.evaluation.experiments.plan import Options
    from loramixer.evaluation.experiments.runner import describe, measure_finished, perform
    from loramixer.evaluation.experiments.workshop import Workshop
    from loramixer.training.routers import find_experts

    if sum((dry_run, stored_only, measure_only)) > 1:
        raise DataError("Give one of --dry-run, --stored-only and --measure-only; they ask for different things.")
    if (run or gate) and not measure_only:
        raise DataError("--run and --gate choose what --measure-only measures; give it too, or leave them out.")
    found = _chosen(find_experts(experts), only)
    options = Options(
        experts=tuple(found),
        seeds=_seeds(seeds),
        examples=examples,
        balance_weight=balance_weight,
        entropy_weight=entropy_weight,
        candidates=_candidates(candidates),
        learning_rate=learning_rate,
        chosen=top_k,
    )
    types: dict[str, Any] = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    workshop = Workshop(
        work,
        found,
        backbone=backbone,
        limit=limit,
        dtype=types[dtype],
        device=choose_device(device),
        training_dtype=types[training_dtype],
        archive=output / "runs",
        chosen=top_k,
    )
    typer.echo(f"Data: {data_origin()}.", err=True)
    if measure_only:
        measure_finished(options, workshop, run or (), gate or (), say=typer.echo)
        return
    for chosen in EXPERIMENTS if name == ALL else (name,):
        if name == ALL:
            typer.echo(f"{chosen}:")
        if dry_run:
            for line in describe(EXPERIMENTS[chosen], options, workshop):
                typer.echo(line)
            continue
        for path in perform(EXPERIMENTS[chosen], options, workshop, output, stored_only=stored_only, say=typer.echo):
            typer.echo(f"{path}")


def _chosen(found: dict[str, str], only: str) -> dict[str, str]:
    """The experts that ``--only`` names, in the order of the mixture; all where it names none."""
    names = only.replace(",", " ").split()
    if unknown := [name for name in names if name not in found]:
        raise ExpertError(f"--only names {unknown[0]}, which is none of the experts; they are {', '.join(found)}.")
    return {name: source for name, source in found.items() if name in names} if names else found


def _candidates(text: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [tuple(float(number) for number in part.split("/")) for part in text.replace(",", " ").split()]
        return tuple((alpha, entropy) for alpha, entropy in pairs)
    except ValueError:
        raise DataError(f"--candidates is '{text}'; give α/λ pairs, such as '4/0.3 2/0.3'.") from None


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.replace(",", " ").split()))
    except ValueError:
        found = ()
    if not found:
        raise DataError(f"--seeds is '{text}'; give whole numbers, such as '0 1 2'.")
    return found
