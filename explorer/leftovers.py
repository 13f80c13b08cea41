"""Temporary folders of the explorer: they go with the server, and at the latest when a later one finds them."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "loramixer-explorer-"
SECONDS_LEFT_BEHIND = 2 * 24 * 3600
"""A folder in which nothing was written for so long belongs to a server that was killed."""

_folders: set[Path] = set()
_owner = os.getpid()


def temporary_folder(kind: str, root: Path | str | None = None) -> Path:
    """A new empty folder that is deleted when the server ends.

    Args:
        kind: what it is for, a word of its name.
        root: where it lies; the temporary folder of the machine by default.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-", dir=root))
    _folders.add(folder)
    return folder


def delete_folder(folder: Path) -> None:
    """Delete a folder that is no longer needed."""
    _folders.discard(folder)
    shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Delete what servers that were killed have left in the temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if folder in _folders:  # of this server, however long a visitor has been idle
            continue
        try:
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except OSError:
            continue
        if time.time() - newest > SECONDS_LEFT_BEHIND:
            shutil.rmtree(folder, ignore_errors=True)


@atexit.register
def _delete_all() -> None:
    if os.getpid() != _owner:  # a forked process, whose end is nobody's
        return
    for folder in list(_folders):
        delete_folder(folder)
