"""Pieces of Markdown that tables are made of."""

from __future__ import annotations


def line(*cells: str) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    return "\n".join([line(*head), line("---", *["---:"] * (len(head) - 1)), *(line(*row) for row in rows)])
