"""Training rows that are in an evaluation set too, and leaving them out."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from loramixer.data.schema import Example

GRAM = 13
"""Words in a row that two prompts must share to overlap (Brown et al. 2020, appendix C)."""

COMMON = 10
"""A line that stands in more prompts than this is wording of the task, such as ``Which option is correct?``."""


@dataclass(frozen=True)
class OverlapReport:
    """How many training rows were left out, by task.

    Attributes:
        same: whose prompt is that of an evaluation row but for case, spaces and punctuation.
        overlapping: whose prompt shares 13 words in a row with one, the common wording of the task left out.
        kept: the others.
    """

    same: dict[str, int] = field(default_factory=dict)
    overlapping: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        """All rows that were left out."""
        return sum(self.same.values()) + sum(self.overlapping.values())

    def __str__(self) -> str:
        same, overlapping, kept = (sum(part.values()) for part in (self.same, self.overlapping, self.kept))
        return (
            f"{self.left_out} of {self.left_out + kept} rows left out: {same} are also in an evaluation "
            f"set, {overlapping} share {GRAM} words in a row with one"
        )


def without_overlap(rows: Sequence[Example], evaluation: Iterable[Example]) -> tuple[list[Example], OverlapReport]:
    """Leave out training rows whose prompt is in an evaluation set, in whole or in a long part.

    Args:
        rows: training rows; those that are kept keep their order.
        evaluation: rows that must not be trained on, of any task.

    Returns:
        The rows that are left, and how many were left out.
    """
    evaluation = list(evaluation)
    common = _common_lines([*rows, *evaluation])
    prompts = {_normalised(row.prompt) for row in evaluation}
    grams = {gram for row in evaluation for gram in _grams(row.prompt, common)}
    kept = []
    counts: dict[str, Counter[str]] = {"same": Counter(), "overlapping": Counter(), "kept": Counter()}
    for row in rows:
        if _normalised(row.prompt) in prompts:
            counts["same"][row.task] += 1
        elif not grams.isdisjoint(_grams(row.prompt, common)):
            counts["overlapping"][row.task] += 1
        else:
            counts["kept"][row.task] += 1
            kept.append(row)
    return kept, OverlapReport(**{name: dict(sorted(found.items())) for name, found in counts.items()})


@functools.lru_cache(maxsize=200_000)
def _normalised(text: str) -> str:
    """Words and numbers in lower case, with one space between them."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def _common_lines(rows: Iterable[Example]) -> frozenset[str]:
    lines = Counter(
        line for prompt in {row.prompt for row in rows} for line in {_normalised(line) for line in prompt.splitlines()}
    )
    return frozenset(line for line, count in lines.items() if count > COMMON)


def _grams(prompt: str, common: frozenset[str]) -> set[tuple[str, ...]]:
    lines = (_normalised(line) for line in prompt.splitlines())
    words = [word for line in lines if line not in common for word in line.split()]
    return {tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)}
