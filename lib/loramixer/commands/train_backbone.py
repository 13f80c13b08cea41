"""``loramixer train-backbone``: the small Falcon-Mamba that ships, from rows to its model card."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer


def train_backbone(
    output: Annotated[Path, typer.Option(help="Receives the backbone with its tokenizer.")],
    rows: Annotated[
        int | None, typer.Option(help="Training rows of all domains; the shipped number by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses rows, their order and new weights.")] = 0,
    layers: Annotated[int, typer.Option(min=1, help="Blocks.")] = 4,
    hidden_size: Annotated[int, typer.Option(min=16, help="Features between the blocks.")] = 192,
    vocabulary: Annotated[int, typer.Option(min=300, help="Tokens of the byte-level BPE.")] = 2048,
    limit: Annotated[int, typer.Option(help="Test rows per domain for the table in the card.")] = 100,
) -> None:
    """Train a small Falcon-Mamba from nothing; resumes where it was stopped."""
    from loramixer.data import describe_source
    from loramixer.training.backbone import ROWS, BackboneShape
    from loramixer.training.backbone import train_backbone as run

    print(f"Data: {describe_source()}.", file=sys.stderr)
    folder = run(
        output,
        rows=rows or ROWS,
        seed=seed,
        shape=replace(BackboneShape(), layers=layers, hidden_size=hidden_size, vocabulary=vocabulary),
        test_rows=limit,
        command=shlex.join(["loramixer", *sys.argv[1:]]),
    )
    print(folder)
