"""Runs notebooks and keeps their outputs: ``python -m notebooks.build [NAME …] [--fast]``.

Each notebook is written as ``NAME.py`` (jupytext, py:percent) and lies beside it as ``NAME.ipynb`` with the outputs of
a run from top to bottom in a fresh kernel. Edit the ``.py``, run this, look at the result, and commit both. Where new
results lie in docs/results, ``--results`` runs the cells that print them and trains nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SECONDS_PER_NOTEBOOK = 3600
"""A notebook that takes longer has hung; at full size one may take 12 minutes on two quiet cores."""


def sources(names: Sequence[str] = ()) -> list[Path]:
    """The ``.py`` of every notebook, or of those whose name begins with one of ``names``.

    Raises:
        ValueError: a name fits no notebook.
    """
    found = sorted(FOLDER.glob("[0-9]*.py"))
    for name in names:
        if not any(path.stem.startswith(name) for path in found):
            raise ValueError(f"No notebook begins with '{name}'; there are {', '.join(path.stem for path in found)}.")
    return [path for path in found if not names or path.stem.startswith(tuple(names))]


def execute(source: Path, fast: bool) -> Any:
    """The notebook of a source with the outputs of a fresh run; an error in a cell is raised."""
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    environment = {**os.environ, "FAST": "1" if fast else "0"}
    NotebookClient(notebook, timeout=SECONDS_PER_NOTEBOOK, resources={"metadata": {"path": str(FOLDER)}}).execute(
        env=environment
    )
    return tidy(notebook, fast)


def refreshed(source: Path) -> Any:
    """The notebook as it lies there, with the cells that print docs/results run again; None where it has none.

    These cells are tagged ``results``; those that they need are tagged ``imports``.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    tagged = [cell for cell in notebook.cells if {"results", "imports"} & set(cell.metadata.get("tags", []))]
    printing = [cell for cell in tagged if "results" in cell.metadata["tags"]]
    if not printing:
        return None
    counts = [cell.execution_count for cell in tagged]
    part = nbformat.from_dict({**notebook, "cells": tagged})
    NotebookClient(part, timeout=SECONDS_PER_NOTEBOOK, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell, run, count in zip(tagged, part.cells, counts, strict=True):
        cell.execution_count = count
        if cell in printing:
            cell.outputs = tidy_outputs(run.outputs)
    return notebook


def refresh(source: Path) -> None:
    """Write the outputs of :func:`refreshed` into the notebook."""
    import nbformat

    notebook = refreshed(source)
    if notebook is not None:
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        print(f"{source.stem}: results as they are in docs/results", flush=True)


def tidy_outputs(outputs: Sequence[Any]) -> list[Any]:
    """What a reader wants to see of a cell, without the names of places on this machine."""
    kept = [output for output in outputs if output.get("name") != "stderr"]
    for output in kept:
        if "text" in output:  # messages name folders in full, and this one lies elsewhere for everybody
            output["text"] = output["text"].replace(f"{FOLDER}{os.sep}", "")
    return kept


def tidy(notebook: Any, fast: bool) -> Any:
    """Drop what differs from run to run and teaches nothing: times of cells, progress bars, names of places."""
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
        "loramixer": {"outputs_of": "FAST=1" if fast else "the full size"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = tidy_outputs(cell.outputs)
    return notebook


def build(source: Path, fast: bool) -> float:
    """Run one notebook and write its ``.ipynb``; returns the seconds it took."""
    import nbformat

    started = time.monotonic()
    notebook = execute(source, fast)
    seconds = time.monotonic() - started
    if not fast:
        notebook.metadata["loramixer"]["minutes"] = minutes = round(seconds / 60, 1)
        page = FOLDER / "README.md"
        page.write_text(with_minutes(page.read_text(encoding="utf-8"), source.stem, minutes), encoding="utf-8")
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    return seconds


def with_minutes(page: str, stem: str, minutes: float | str) -> str:
    """The page of all notebooks with the time that one of them took, the last cell of its line."""
    return re.sub(rf"^(\|.*\({stem}\.ipynb\).*\|) [^|]* \|$", rf"\1 {minutes} |", page, flags=re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="How the names begin, such as 03; all by default.")
    parser.add_argument("--fast", action="store_true", help="Fewer examples, as the tests run them.")
    parser.add_argument("--results", action="store_true", help="Only the cells that print docs/results.")
    given = parser.parse_args(arguments)
    try:
        chosen = sources(given.names)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for source in chosen:
        if given.results:
            refresh(source)
            continue
        print(f"{source.stem} …", flush=True)
        print(f"{source.stem}: {build(source, given.fast):.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
