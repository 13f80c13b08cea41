"""`RunLog`: what one training run did, as one small JSON file that figures and the explorer read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramixer.whole_files import write_whole


@dataclass
class RunLog:
    """One training run.

    Attributes:
        settings: everything that is needed to repeat the run: command, preset, data, seed, loss, versions.
        steps: one row per logged step: ``step``, ``loss``, and since the start of the run ``seconds``, ``tokens`` (of
            the rows) and ``tokens_with_padding`` (that were computed: a beginning that rows share is, once);
            ``tokens_per_second`` since the last row; ``seconds_left``, estimated. For routers also every term of the
            routing loss; ``token_entropy``, ``load_entropy`` and ``mutual_information`` in nats; and
            ``own_expert_share`` per domain, the mean probability of a domain's own expert (over its tokens; on
            backbones whose rows must be padded, over its rows).
        summary: of the whole run: ``seconds`` (a killed run counts until its last checkpoint), ``tokens``,
            ``tokens_per_second``, ``padding_share`` (of what was computed), ``shared_share`` (of the tokens: what was
            not computed, since rows share beginnings), ``backbone_share`` (time of the backbone alone, forward and
            backward, over that of a whole step) and ``backbone_tokens_per_second``.
    """

    settings: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    FILE_NAME = "run_log.json"

    @property
    def step_count(self) -> int:
        """Optimiser steps of the whole run; the last logged one may lie a few before its end."""
        if not self.steps:
            return 0
        last = self.steps[-1]
        if not last.get("epoch"):
            return int(last["step"])
        steps_of_epoch = round(last["step"] / last["epoch"])
        return math.ceil(steps_of_epoch * self.settings["epochs"])  # as the Trainer counts

    def save(self, folder: str | Path) -> Path:
        """Write ``run_log.json`` into a folder; a crash while writing leaves the former file whole."""
        path = Path(folder) / self.FILE_NAME
        data = {"settings": self.settings, "summary": self.summary, "steps": self.steps}
        write_whole(path, json.dumps(data, indent=1) + "\n")
        return path

    def save_small(self, path: str | Path) -> Path:
        """Write one file of about a third of the size: names of columns stand once, and nothing is indented."""
        path = Path(path)
        columns = list(dict.fromkeys(name for row in self.steps for name in row))
        rows = [[row.get(name) for name in columns] for row in self.steps]
        data = {"settings": self.settings, "summary": self.summary, "columns": columns, "rows": rows}
        write_whole(path, json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> RunLog:
        """Read a log from its file, of either form, or from the folder that holds it."""
        path = Path(path)
        data = json.loads((path / cls.FILE_NAME if path.is_dir() else path).read_text(encoding="utf-8"))
        if "columns" in data:
            rows = (dict(zip(data["columns"], row, strict=True)) for row in data["rows"])
            data["steps"] = [{name: value for name, value in row.items() if value is not None} for row in rows]
        return cls(settings=data["settings"], steps=data["steps"], summary=data["summary"])
