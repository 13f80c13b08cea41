"""Comparisons that one press shows, out of what is recorded."""

from __future__ import annotations

from dataclasses import dataclass

from explorer.examples import EXAMPLES
from explorer.provenance import short_name
from explorer.recordings import RecordingKey, Recordings

_PROMPT_PAIRS = (("math", "medical"), ("math-medical", "math-coding"))
"""Two prompts under the same router; the first pair of which both are recorded is offered."""


@dataclass(frozen=True)
class ReadyMade:
    """One comparison of two recordings."""

    label: str
    a: RecordingKey
    b: RecordingKey


def ready_made(recordings: Recordings) -> list[ReadyMade]:
    """The same prompt under two routers, for all that are recorded; then two prompts under one router."""
    labels = {example.key: example.label for example in EXAMPLES}
    found = []
    for example, mixer in recordings.files:
        if mixer and (example, "") in recordings.files:
            usual = str(recordings.provenance(example).get("mixer", ""))
            found.append(ReadyMade(f"{short_name(usual)} | {short_name(mixer)}", (example, ""), (example, mixer)))
    for first, second in _PROMPT_PAIRS:
        if (first, "") in recordings.files and (second, "") in recordings.files:
            found.append(
                ReadyMade(f"{labels.get(first, first)} | {labels.get(second, second)}", (first, ""), (second, ""))
            )
            break
    return found


def recording_choices(recordings: Recordings) -> list[tuple[str, RecordingKey]]:
    """All recordings with a label each."""
    labels = {example.key: example.label for example in EXAMPLES}
    return [
        (f"{labels.get(example, example)}{f', {short_name(mixer)}' if mixer else ''}", (example, mixer))
        for example, mixer in recordings.files
    ]
