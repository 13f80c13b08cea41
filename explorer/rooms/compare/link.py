"""What an address says about Compare: the two traces and the run controls; how they are looked at, the browser adds.

A trace is named by how it came: ``rec~example`` or ``rec~example~router`` for a recording, ``run~router~k~tokens`` for
a run, ``file~name`` for an opened file. Only recordings can be shown from an address alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from explorer.link import LinkField
from explorer.recordings import RecordingKey

FIELDS = (LinkField("a", "a", ""), LinkField("b", "b", ""), LinkField("p", "prompt", ""))
"""``prompt`` only if the user ticks it."""

_MARK = "~"


@dataclass(frozen=True)
class RunSpec:
    """A run as an address names it; everything is still to be checked."""

    mixer: str
    gate: str
    new_tokens: str


def recording_spec(key: RecordingKey) -> str:
    """The name of a recording in an address, and in the control that chooses one."""
    return _MARK.join(["rec", *[part for part in key if part]])


def run_spec(mixer: str, gate: str, new_tokens: int) -> str:
    """The name of a run in an address."""
    return _MARK.join(["run", mixer, gate, str(new_tokens)])


def file_spec(name: str) -> str:
    """The name of an opened file in an address."""
    return _MARK.join(["file", name])


def parse_spec(text: str) -> RecordingKey | RunSpec | str | None:
    """A recording, a run, the name of a file, or None when the text is none of these."""
    kind, *parts = text.split(_MARK)
    if kind == "rec" and len(parts) in (1, 2):
        return parts[0], parts[1] if len(parts) == 2 else ""
    if kind == "run" and len(parts) == 3:
        return RunSpec(*parts)
    if kind == "file" and parts:
        return _MARK.join(parts)
    return None
