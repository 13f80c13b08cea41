"""ZeroGPU of Hugging Face: a graphics card that is lent to one call of one function.

``spaces.GPU`` runs the function in a process that was forked from this one, perhaps for an earlier call. So arguments
and results must be picklable, what changed here since then is unknown there, locks that were held at the fork stay
held there, and of an exception only the name of its class comes back. Such a Space installs ``spaces`` by itself;
nobody else needs it, so it is imported nowhere but here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from typing import ParamSpec, TypeVar

from loramixer.errors import BackboneError, LoraMixerError

VARIABLE = "SPACES_ZERO_GPU"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def is_zero_gpu() -> bool:
    """Whether this is a Space with ZeroGPU; read as ``spaces`` itself reads it."""
    return os.environ.get(VARIABLE, "").lower() in ("1", "t", "true")


def on_zero_gpu(
    function: Callable[Arguments, Generator[Result]], seconds: Callable[Arguments, float]
) -> Callable[Arguments, Generator[Result]]:
    """A generator function with the card of ZeroGPU, or the same function elsewhere.

    Args:
        function: to be decorated once, when the app starts: ``spaces`` reports its functions then.
        seconds: for how long a call needs the card; from the arguments of the call.

    Raises:
        BackboneError: ZeroGPU without ``spaces``.
    """
    if not is_zero_gpu():
        return function
    try:
        import spaces
    except ImportError as error:
        raise BackboneError(
            f"{VARIABLE} is set, but the package spaces, which lends the card, is not installed; pip install spaces, "
            f"or unset {VARIABLE}."
        ) from error
    lent: Callable[Arguments, Generator[Result]] = spaces.GPU(duration=seconds)(function)
    return lent


def results_until(stop: threading.Event, results: Generator[Result | LoraMixerError]) -> Generator[Result]:
    """The results of a call, which ends after the one at which ``stop`` is set; an error among them is raised here."""
    try:
        for result in results:
            if isinstance(result, LoraMixerError):
                raise result
            yield result
            if stop.is_set():
                return
    finally:
        # Tells the other process to end.
        results.close()
