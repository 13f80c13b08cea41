"""Reads the assets that lie beside a component."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def read_assets(folder: Path, names: Sequence[str]) -> str:
    """The text of some files, one after the other."""
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
