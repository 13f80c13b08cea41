"""How the cost of a mixture grows with experts, rank, k and length, against six experts of the same run.

``python benchmarks/scaling.py --output docs/results/scaling.json``; ``--help`` lists the options.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from forms import FORMS, SHAPES, Workload, build_base, save_experts
from rich.table import Table
from timing import Comparison, compare, show, write_result

REFERENCE = 6
GOAL = 1.5
"""Of the largest number of experts, over six."""


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, and write the result file."""
    options = _parse(words)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory(prefix="experts-") as scratch:
        base = build_base(options.shape, getattr(torch, options.dtype), options.device)
        rows = list(_rows(base, Path(scratch), options))
    _print(rows)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_result(options.output, "scaling", options.device, settings, rows)


def _rows(base: Any, scratch: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    ours = FORMS["top-3"]
    largest = max(options.experts)
    for rank in options.ranks:
        saved = save_experts(base, scratch / str(rank), REFERENCE, rank)
        for k in options.k:
            # The same few files under many names: what they hold does not change the time.
            reference = ours.build(base, Workload(saved, rank, k))
            for count in options.experts:
                print(f"rank {rank}, k {k}, {count} experts …", file=sys.stderr, flush=True)
                folders = list(itertools.islice(itertools.cycle(saved), count))
                model = ours.build(base, Workload(folders, rank, min(k, count)))
                measures = [(f"prefill-{length}", ours.prefill, length) for length in options.lengths]
                measures += [("decode", ours.decode, options.lengths[0])]
                comparisons = []
                for _, make, length in measures:
                    ids = torch.randint(3, base.config.vocab_size, (1, length)).to(base.device)
                    comparisons.append(Comparison(make(model, ids), make(reference, ids)))
                compare(comparisons, options.rounds, options.block_seconds)
                for (measure, _, _), comparison in zip(measures, comparisons, strict=True):
                    row = comparison.row()
                    goal = f"≤ {GOAL:.2f}" if count == largest else None
                    met = row["ratio"] <= GOAL if goal else None
                    head = {"measure": measure, "experts": count, "rank": rank, "k": k}
                    yield {**head, **row, "goal": goal, "met": met}


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("rank", "k", "experts", "measure", f"ratio to {REFERENCE}", "95 %", "ms", "goal", "", box=None)
    for row in rows:
        table.add_row(
            str(row["rank"]),
            str(row["k"]),
            str(row["experts"]),
            row["measure"],
            f"{row['ratio']:.3f}",
            f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
            f"{1000 * row['seconds']:.2f}",
            row["goal"] or "",
            {True: "met", False: "MISSED", None: ""}[row["met"]],
        )
    show(table)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="random weights of this shape")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the backbone")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block-seconds", type=float, default=0.3, help="about how long each side is timed at once")
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 6, 12, 24, 48, 96, 192])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16])
    parser.add_argument("--k", type=int, nargs="+", default=[3])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64], help="of prefill; the first one is the cache")
    parser.add_argument("--output", type=Path, help="receives the result as JSON")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
