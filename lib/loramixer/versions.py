"""Which library versions a result was made with, and which memory allocator where that changes its time."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__version__ = "0.1.0"


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number: torch, transformers, peft and this package."""
    return {"loramixer": __version__, **{name: _installed(name) for name in ("torch", "transformers", "peft")}}


def memory_allocator(maps: Path = Path("/proc/self/maps")) -> str:
    """``tcmalloc``, ``jemalloc`` or ``system``: what gives this process its memory.

    Args:
        maps: Linux's list of what the process has loaded; where there is none the answer is ``system``.
    """
    loaded = maps.read_text(encoding="utf-8", errors="replace") if maps.is_file() else ""
    return next((name for name in ("tcmalloc", "jemalloc") if f"lib{name}" in loaded), "system")


@cache
def _installed(name: str) -> str:
    """Read once: every trace states it, and a lookup takes milliseconds."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
