"""Share and export: what a press of a button hands over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from explorer.rooms import share
from loramixer.errors import TraceError


def session(name: str) -> Any:
    return SimpleNamespace(session_hash=name)


def test_an_export_sees_the_address_and_the_inputs(tmp_path: Path) -> None:
    def write(kind: str, values: dict[str, str], owner: str, text: str) -> Path:
        path = tmp_path / f"view.{kind}"
        path.write_text(f"{owner} {values['m']} {text}")
        return path

    button, line = share._exporting("csv", write)(session("one"), "v=1&m=top%20expert", "abc")
    assert button.label == "Save view.csv"
    assert (tmp_path / "view.csv").read_text() == "one top expert abc"
    assert line == {"kind": "quiet", "text": "view.csv, 1 kB"}


def test_what_cannot_be_exported_is_one_sentence() -> None:
    def fail(*_: Any) -> Path:
        raise TraceError("There is nothing to export yet.")

    _, line = share._exporting("csv", fail)(session("one"), "")
    assert line == {"kind": "error", "text": "There is nothing to export yet."}


def test_what_is_in_each_file_is_said() -> None:
    text = share._hints(share.FORMATS)
    assert all(entry.label in text and entry.hint in text for entry in share.FORMATS)


@pytest.mark.parametrize(
    ("query", "values"),
    [("", {}), ("?v=1&m=", {"v": "1", "m": ""}), ("k=2&k=3", {"k": "3"}), ("p=a%26b+c", {"p": "a&b c"})],
)
def test_the_query_is_a_flat_mapping(query: str, values: dict[str, str]) -> None:
    assert share.query_values(query) == values
