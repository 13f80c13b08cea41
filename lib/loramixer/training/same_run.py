"""Whether what lies in the output folder of a training is the run that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramixer.errors import LoraMixerError
from loramixer.training.run_log import RunLog

MAY_DIFFER = frozenset(
    {
        # where and how it runs, and what is written about it
        "command", "versions", "threads", "processes", "memory_allocator", "report_to", "log_steps", "save_steps",
        # where equal rows come from: their fingerprint is compared
        "data", "data_revisions", "licenses", "rows",
        # follow from the others
        "rows_in_line", "logits_at_answers_only", "beginnings_shared", "experts_dtype",
    }
)  # fmt: skip
"""Settings in a run log that two parts of one run need not share."""

ROWS = ("rows_fingerprint", "rows_content")
"""Settings that say which rows, and what they held."""


def refuse_other_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with, or to hand out, what was trained with other settings.

    Args:
        folder: output folder of a run, finished or with checkpoints; without a run log nothing is compared.
        settings: of the run that is asked for, as its log has them.

    Raises:
        LoraMixerError: the run log in the folder states other values.
    """
    try:
        former = RunLog.load(folder).settings
    except (OSError, ValueError, KeyError):
        return
    asked = json.loads(json.dumps(dict(settings)))  # as they come back from a file
    ways = [found.get("processes", 1) > 1 for found in (former, asked)]
    if asked.get("group_by_length") and not asked.get("rows_in_line") and ways[0] != ways[1]:
        raise LoraMixerError(
            f"{folder} holds a part of a training by {former.get('processes', 1)} process(es), and several group rows "
            "by length in another order than one; go on with as many, or delete the folder."
        )
    odd = [name for name in asked if name in former and name not in MAY_DIFFER and former[name] != asked[name]]
    if not odd:
        return
    named = [f"{name.replace('_', ' ')} {former[name]}, now {asked[name]}" for name in odd if name not in ROWS]
    raise LoraMixerError(
        f"{folder} holds a training with other settings ({'; '.join(named[:3]) or 'other training rows'}); give "
        "another output, the former settings, or delete the folder."
    )
