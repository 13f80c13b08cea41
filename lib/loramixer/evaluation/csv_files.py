"""CSV files of results: written whole and at once, numbers with six digits, columns in order of appearance."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loramixer.whole_files import write_whole

Row = dict[str, Any]


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of differing columns; a kill leaves the former file whole. Missing and None values are blank."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _printed(value) for name, value in row.items()} for row in rows)
    write_whole(path, text.getvalue())


def read_csv(path: Path) -> list[Row]:
    """Rows with numbers as float, blanks as None and the rest as text.

    Raises:
        FileNotFoundError: the experiment has not been run.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _printed(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _value(text: str) -> Any:
    if text == "":
        return None
    try:
        return float(text)
    except ValueError:
        return text
