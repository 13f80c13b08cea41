"""The page of errors quotes sentences that the package really says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest


def sentences(source: str) -> list[str]:
    """All texts in a Python file, with … where an f-string puts a value."""
    tree = ast.parse(source)
    plain = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    formatted = [
        "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
    ]
    return plain + formatted


def test_an_f_string_is_read_with_its_gaps() -> None:
    assert "k is …; needed: 1 to ….!" in sentences('raise ValueError(f"k is {k!r}; needed: "\n    f"1 to {n:,}.!")')


def test_quoted_errors_are_raised_somewhere(root: Path) -> None:
    package, page = root / "lib/loramixer", (root / "docs/errors.md").read_text(encoding="utf-8")
    classes = re.findall(r"^class (\w+)", (package / "errors.py").read_text(encoding="utf-8"), flags=re.MULTILINE)
    quoted = re.findall(rf"^#+ `(?:{'|'.join(classes)}): (.+)`$", page, flags=re.MULTILINE)
    said = [text for file in package.rglob("*.py") for text in sentences(file.read_text(encoding="utf-8"))]
    assert classes
    assert quoted
    assert not [sentence for sentence in quoted if not any(sentence in text for text in said)]


def test_every_claim_about_other_tools_names_a_test_that_exists(root: Path) -> None:
    rows = [
        line
        for line in (root / "docs/ecosystem.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith(("| Tool", "| ---"))
    ]
    assert len(rows) > 20
    for row in rows:
        proofs = re.findall(r"`(\w+\.py)::(\w+)`", row.split("|")[-2])
        assert proofs, f"no test is named: {row}"
        for file, name in proofs:
            (path,) = (root / "tests").rglob(file)
            assert f"def {name}(" in path.read_text(encoding="utf-8"), f"{file} has no {name}"


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/backbones.md", "docs/cost.md", "docs/ecosystem.md", "docs/errors.md", "docs/results.md"],
)
def test_links_lead_somewhere(root: Path, page: str) -> None:
    text = (root / page).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)}
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, fragment = target.partition("#")
        if "://" in target:
            continue
        lives = ((root / page).parent / path).exists() if path else fragment in anchors
        if not lives:
            dead.append(target)
    assert not dead
