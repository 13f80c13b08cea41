"""The address of a view: one typed list of fields for each room, read from and written to the query string.

``?v=1&room=explore&r=smollm2-135m/rsl&k=2``: ``v`` is the version of the fields, ``room`` the open room, the rest are
the fields of that room. A value that is unknown or out of range falls back to its default, and the page says so.
The prompt is in an address only when the user ticks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

VERSION = "1"

WRITE = """(query) => {
  if (!query) return;
  const url = new URL(window.location);
  const kept = [...url.searchParams].filter(([name]) => name.startsWith('__') || name === 'hide');
  url.search = new URLSearchParams([...kept, ...new URLSearchParams(query)]).toString();
  window.history.replaceState(window.history.state, '', url);
}"""
"""JavaScript of an event that puts the text of :func:`to_query` into the address bar, without loading anything; an
empty text changes nothing."""


def write_if_open(tab: str) -> str:
    """:data:`WRITE`, but only while the tab of that id is open: a room in the background must not speak for it."""
    return f"(query) => {{ if (document.getElementById('{tab}')?.offsetParent) ({WRITE})(query); }}"


@dataclass(frozen=True)
class LinkField:
    """One value in the address.

    Attributes:
        key: short name in the address.
        name: name for Python code.
        default: is left out of the address.
        kind: how the text is read; a flag is 0 or 1.
        choices: what is allowed of a text; empty allows all.
        low: least number.
        high: greatest number.
    """

    key: str
    name: str
    default: Any
    kind: Literal["text", "int", "float", "flag"] = "text"
    choices: tuple[str, ...] = ()
    low: float = -float("inf")
    high: float = float("inf")


def parse(query: Mapping[str, str], fields: Sequence[LinkField]) -> tuple[dict[str, Any], list[str]]:
    """Values by name, and one sentence for each value that could not be taken."""
    values: dict[str, Any] = {field.name: field.default for field in fields}
    notes: list[str] = []
    if query.get("v", VERSION) != VERSION:
        notes.append(f"The link is of version {query['v']} and this page reads version {VERSION}; some may be lost.")
    for field in fields:
        if field.key not in query:
            continue
        try:
            values[field.name] = _read(field, query[field.key])
        except ValueError as error:
            notes.append(f"The link's {field.name.replace('_', ' ')} is {query[field.key]!r}; it must be {error}.")
    return values, notes


def to_query(room: str, values: Mapping[str, Any], fields: Sequence[LinkField]) -> str:
    """The query string of a room, without a leading question mark; defaults are left out."""
    pairs = [("v", VERSION), ("room", room)]
    for field in fields:
        value = values.get(field.name, field.default)
        if value is not None and value != field.default:
            pairs.append((field.key, str(int(value)) if field.kind == "flag" else str(value)))
    return urlencode(pairs)


def _read(field: LinkField, text: str) -> Any:
    """The value of a text; ValueError says what it must be."""
    if field.kind == "flag":
        if text not in ("0", "1"):
            raise ValueError("0 or 1")
        return text == "1"
    if field.kind == "text":
        if field.choices and text not in field.choices:
            raise ValueError(f"one of {', '.join(field.choices)}")
        return text
    try:
        value = int(text) if field.kind == "int" else float(text)
    except ValueError:
        raise ValueError("a number") from None
    if not field.low <= value <= field.high:
        raise ValueError(f"from {field.low:g} to {field.high:g}")
    return value
