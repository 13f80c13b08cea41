"""Recorded traces: what the page shows before a model is loaded.

``traces/index.json`` holds ``{"traces": [{"example": key, "file": name}, …]}``, each file in the ``RoutingTrace``
format. An example that was recorded with other routers too has a row with ``"mixer": name`` for each of them.
``python -m explorer.record`` writes both.
"""

from __future__ import annotations

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from explorer.gold import gold_experts
from explorer.payload import Payload, encode_trace
from explorer.settings import DEFAULT_NEW_TOKENS, gate_choice_of
from explorer.summary import prompt_text
from explorer.view_link import run_request
from loramixer.errors import TraceError
from loramixer.trace import RoutingTrace

FOLDER = Path(__file__).parent / "traces"
INDEX = "index.json"

RecordingKey = tuple[str, str]
"""Key of an example, and name of a router; empty for the router that examples are shown with."""

logger = logging.getLogger(__name__)


class Recordings:
    """The recorded traces of a folder, read when they are first asked for."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._ready: dict[RecordingKey, tuple[Payload, RoutingTrace] | None] = {}

    @cached_property
    def files(self) -> dict[RecordingKey, Path]:
        """Example and router → file, in the order of the index; empty when nothing is recorded."""
        try:
            rows = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["traces"]
            return {(row["example"], row.get("mixer", "")): self.folder / row["file"] for row in rows}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("The index of recordings in %s cannot be read (%s); none is shown.", self.folder, error)
            return {}

    def payload(self, example: str, mixer: str = "") -> Payload | None:
        """The recorded trace of an example for the browser; None when there is none."""
        found = self._find((example, mixer))
        return found[0] if found else None

    def trace(self, example: str, mixer: str = "") -> RoutingTrace | None:
        """The recorded trace of an example; None when there is none.

        Args:
            example: its key.
            mixer: name of the router; empty for the one that examples are shown with.
        """
        found = self._find((example, mixer))
        return found[1] if found else None

    def key_of(self, trace: RoutingTrace) -> RecordingKey | None:
        """Which recording a trace is; None when it is none of these."""
        return next((key for key, found in self._ready.items() if found and found[1] is trace), None)

    def provenance(self, example: str) -> dict[str, Any]:
        """The settings a recorded trace was made with; empty when there is none."""
        found = self.trace(example)
        return found.provenance if found else {}

    def _find(self, key: RecordingKey) -> tuple[Payload, RoutingTrace] | None:
        if key not in self.files:  # keys come from addresses, and what is not there is not remembered
            return None
        if key not in self._ready:
            self._ready[key] = self._read(key)
        return self._ready[key]

    def _read(self, key: RecordingKey) -> tuple[Payload, RoutingTrace] | None:
        try:
            trace = RoutingTrace.load(self.files[key])
        except TraceError as error:
            logger.warning("A recorded trace is left out: %s", error)
            return None
        return encode_trace(trace, "recorded", _request_of(key[0], trace), gold_experts(trace)), trace


def _request_of(example: str, trace: RoutingTrace) -> dict[str, Any]:
    facts = trace.provenance
    gate = gate_choice_of(facts, len(trace.experts))
    return run_request(prompt_text(trace), str(facts.get("mixer") or ""), gate, DEFAULT_NEW_TOKENS, example)
