"""Which library versions a result was made with."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number: torch, transformers, peft and this package."""
    return {"loramixer": __version__, **{name: _installed(name) for name in ("torch", "transformers", "peft")}}


@cache
def _installed(name: str) -> str:
    """Read once: every trace states it, and a lookup takes milliseconds."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
