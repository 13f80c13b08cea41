"""Markdown tables of stored results: ``python -m loramixer.evaluation.tables docs/results [README.md]``.

With a second path the tables are written into that file, each between its markers ``<!-- table NAME -->`` and
``<!-- end -->``; else they are printed.

Reads what ``loramixer expert-matrix --json`` and ``loramixer evaluate --json`` wrote, so that a table in the README
is always the print of a file, and a test can hold the two together.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def expert_matrix_table(folder: Path) -> str:
    """Expert × domain test loss from ``expert-matrix.json``; the lowest loss of each domain is bold."""
    matrix = _read(folder / "expert-matrix.json")
    domains = [row["domain"] for row in matrix["backbone"]]
    best = {domain: min(matrix, key=lambda name: _row(matrix[name], domain)["loss"]) for domain in domains}
    lines = [_line("", *domains), _line("---", *("---:" for _ in domains))]
    for name, rows in matrix.items():
        cells = [_interval(_row(rows, domain), "loss", best[domain] == name) for domain in domains]
        label = "backbone alone" if name == "backbone" else f"{name} expert"
        lines.append(_line(label, *cells))
    return "\n".join(lines)


def own_expert_table(folder: Path, names: tuple[str, ...] = ("rsl", "load-balance")) -> str:
    """Mean gate weight of the own expert per domain, one line per router, from ``evaluate-<router>.json``."""
    return _router_table(folder, names, "own_expert_share")


def router_loss_table(folder: Path, names: tuple[str, ...] = ("rsl", "load-balance")) -> str:
    """Test loss per answer token per domain, one line per router, from ``evaluate-<router>.json``."""
    return _router_table(folder, names, "loss")


def _router_table(folder: Path, names: tuple[str, ...], field: str) -> str:
    results = {name: _read(folder / f"evaluate-{name}.json")["domains"] for name in names}
    domains = [row["domain"] for row in results[names[0]]]
    lines = [_line("", *domains), _line("---", *("---:" for _ in domains))]
    for name, rows in results.items():
        lines.append(_line(f"`{name}`", *(_interval(_row(rows, domain), field) for domain in domains)))
    return "\n".join(lines)


def _interval(row: dict[str, Any], field: str, bold: bool = False) -> str:
    value = f"**{row[field]:.3f}**" if bold else f"{row[field]:.3f}"
    return f"{value} [{row[f'{field}_low']:.3f}, {row[f'{field}_high']:.3f}]"


def _row(rows: list[dict[str, Any]], domain: str) -> dict[str, Any]:
    return next(row for row in rows if row["domain"] == domain)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


TABLES: dict[str, Callable[[Path], str]] = {
    "expert-matrix": expert_matrix_table,
    "own-expert": own_expert_table,
    "router-loss": router_loss_table,
}


def fill(text: str, folder: Path) -> str:
    """A text with every table between its markers made anew."""
    for name, make in TABLES.items():
        text = re.sub(
            rf"(<!-- table {name} -->\n).*?(<!-- end -->)",
            lambda found, make=make: f"{found[1]}\n{make(folder)}\n\n{found[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def main() -> None:
    """Print all tables, or write them into a file."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/results")
    if len(sys.argv) > 2:
        page = Path(sys.argv[2])
        page.write_text(fill(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
        return
    for name, make in TABLES.items():
        print(f"{name}\n\n{make(folder)}\n")


if __name__ == "__main__":
    main()
