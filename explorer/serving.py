"""How the app runs for strangers: where it may write, and whether it also answers as an MCP server."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from explorer.settings import is_public
from loramixer.errors import LoraMixerError

MCP_VARIABLE = "LORAMIXER_MCP"


def keep_writes_in_temp_folder() -> None:
    """On a public server, put the caches of downloads below the temp folder, where there is none yet.

    To be called before anything imports ``huggingface_hub``, which reads its variables once. A cache that exists
    stays: a Space fills the Hub's while it is built (``preload_from_hub``), and the app then only reads it.
    """
    if not is_public():
        return
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub_home = Path(os.environ.get("HF_HOME") or user_cache / "huggingface")
    for variable, usual in (("HF_HUB_CACHE", hub_home / "hub"), ("LORAMIXER_CACHE", user_cache / "loramixer")):
        if not usual.is_dir():
            os.environ.setdefault(variable, str(Path(tempfile.gettempdir()) / "loramixer" / variable.lower()))


def wants_mcp() -> bool:
    """Whether the public endpoints shall be MCP tools too: ``LORAMIXER_MCP=1``.

    Raises:
        LoraMixerError: asked for, but not installed.
    """
    if os.environ.get(MCP_VARIABLE, "") in ("", "0"):
        return False
    if find_spec("mcp") is None:
        raise LoraMixerError(
            f"{MCP_VARIABLE} is set, but the MCP server is not installed; pip install 'loramixer[mcp]', or unset it."
        )
    return True
