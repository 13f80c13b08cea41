"""Recorded traces: what the page shows before a model is loaded.

``traces/index.json`` holds ``{"traces": [{"example": key, "file": name}, …]}``, each file in the ``RoutingTrace``
format. ``python -m explorer.record`` writes both.
"""

from __future__ import annotations

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from explorer.payload import Payload, encode_trace
from loramixer.errors import TraceError
from loramixer.trace import RoutingTrace

FOLDER = Path(__file__).parent / "traces"
INDEX = "index.json"

logger = logging.getLogger(__name__)


class Recordings:
    """The recorded traces of a folder, read when they are first asked for."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._ready: dict[str, tuple[Payload, RoutingTrace] | None] = {}

    @cached_property
    def files(self) -> dict[str, Path]:
        """Example key → file; empty when nothing is recorded."""
        try:
            rows = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["traces"]
            return {row["example"]: self.folder / row["file"] for row in rows}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("The index of recordings in %s cannot be read (%s); none is shown.", self.folder, error)
            return {}

    def payload(self, example: str) -> Payload | None:
        """The recorded trace of an example for the browser; None when there is none."""
        found = self._find(example)
        return found[0] if found else None

    def trace(self, example: str) -> RoutingTrace | None:
        """The recorded trace of an example; None when there is none."""
        found = self._find(example)
        return found[1] if found else None

    def provenance(self, example: str) -> dict[str, Any]:
        """The settings a recorded trace was made with; empty when there is none."""
        found = self.trace(example)
        return found.provenance if found else {}

    def _find(self, example: str) -> tuple[Payload, RoutingTrace] | None:
        if example not in self._ready:
            self._ready[example] = self._read(example)
        return self._ready[example]

    def _read(self, example: str) -> tuple[Payload, RoutingTrace] | None:
        if example not in self.files:
            return None
        try:
            trace = RoutingTrace.load(self.files[example])
        except TraceError as error:
            logger.warning("A recorded trace is left out: %s", error)
            return None
        return encode_trace(trace, "recorded"), trace
