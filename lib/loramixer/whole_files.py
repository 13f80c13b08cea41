"""Text files that are written whole and at once: a kill leaves the former file, or none."""

from __future__ import annotations

import os
from pathlib import Path


def scratch_file(path: Path) -> Path:
    """Where a file is written before it takes its place: hidden, beside it, and of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_whole(path: Path, text: str) -> None:
    """Write a file in UTF-8, and its folder where there is none; nobody ever sees a part of it.

    Args:
        path: of the file.
        text: all that it holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_file(path)
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
