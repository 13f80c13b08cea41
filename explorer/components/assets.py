"""Reads the assets that lie beside a component."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def with_token_card(template: str, label: str) -> str:
    """A template with the token card in the place of ``TOKEN_CARD``; ``label`` names it for a screen reader."""
    card = read_assets(Path(__file__).parent, ["token_card.html"])
    return template.replace("TOKEN_CARD", card.replace("CARD_LABEL", label))


def read_assets(folder: Path, names: Sequence[str]) -> str:
    """The text of some files, one after the other."""
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
