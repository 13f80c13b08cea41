"""Which library versions a result was made with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number: torch, transformers, peft and this package."""
    found = {"loramixer": __version__}
    for name in ("torch", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
