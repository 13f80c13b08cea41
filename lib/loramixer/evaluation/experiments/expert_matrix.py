"""Test loss of the backbone and of every expert alone on every domain; keeps every finished expert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loramixer.evaluation.csv_files import read_csv, write_csv
from loramixer.evaluation.experiments.plan import Experiment
from loramixer.evaluation.experiments.results import Results
from loramixer.evaluation.harness import DomainResult
from loramixer.evaluation.matrix import expert_matrix
from loramixer.whole_files import write_whole

NAME = "expert-matrix"


def write(results: Results, folder: Path) -> None:
    """Measure what is missing, and write one row per expert and domain, with intervals over rows.

    With ``stored_only`` a matrix that is not whole is not written.
    """
    store = results.workshop.records / results.key / "expert-matrix.json"
    finished: dict[str, list[DomainResult]] = {}
    if store.is_file():
        stored = json.loads(store.read_text(encoding="utf-8"))
        finished = {name: [DomainResult(**row) for row in rows] for name, rows in stored.items()}

    def keep(found: dict[str, list[DomainResult]]) -> None:
        write_whole(store, json.dumps({name: [row.to_dict() for row in rows] for name, rows in found.items()}))

    workshop = results.workshop
    if results.stored_only and not {"backbone", *workshop.sources} <= set(finished):
        return
    matrix = expert_matrix(
        dict(workshop.sources),
        workshop.domains,
        backbone=workshop.backbone,
        count=workshop.limit,
        seed=workshop.test_seed,
        dtype=workshop.dtype,
        device=workshop.device,
        finished=finished,
        on_expert=keep,
    )
    rows = [
        {
            "expert": name,
            "domain": row.domain,
            **{field: getattr(row, field) for field in ("loss", "loss_low", "loss_high")},
            **{field: getattr(row, field) for field in ("accuracy", "accuracy_low", "accuracy_high")},
            "rows": row.n,
            "rows_with_choices": row.n_choices,
            "covers": "rows",
            "seeds": 1,
            "measurement": results.key,
            "data": results.data,
        }
        for name, found in matrix.items()
        for row in found
    ]
    write_csv(folder / f"{NAME}.csv", rows)


def heat_map(folder: Path) -> Any:
    """Loss by expert and domain."""
    from loramixer.viz.figures import expert_matrix_figure

    return expert_matrix_figure(read_csv(folder / f"{NAME}.csv"))


EXPERIMENT = Experiment(NAME, "Every expert on every domain", "no table of the paper", None, write, {NAME: heat_map})
