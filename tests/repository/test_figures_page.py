"""The page of figures names all that is public, and its pictures are there and small."""

from __future__ import annotations

import re
from pathlib import Path

from loramixer import viz

MOST_BYTES = 400_000


def test_every_public_function_is_on_the_page(root: Path) -> None:
    page = (root / "docs/figures.md").read_text(encoding="utf-8")
    assert [name for name in viz.__all__ if f"viz.{name}(" not in page] == []


def test_pictures_are_there_used_and_small(root: Path) -> None:
    page = (root / "docs/figures.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\((images/figures/[\w-]+\.png)\)", page))
    stored = {str(path.relative_to(root / "docs")) for path in (root / "docs/images/figures").iterdir()}
    assert named == stored
    assert sum((root / "docs" / path).stat().st_size for path in stored) < MOST_BYTES


def test_every_call_on_the_page_is_one_of_the_script(root: Path) -> None:
    page = (root / "docs/figures.md").read_text(encoding="utf-8")
    script = (root / "benchmarks/figures.py").read_text(encoding="utf-8")
    calls = re.findall(r"```python\n(.+)\n```", page)
    assert len(calls) >= len(viz.TRACE_FIGURES)
    assert [call for call in calls if call not in script] == []
