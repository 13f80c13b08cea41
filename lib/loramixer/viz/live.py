"""Watching a training in a notebook while it runs: its curves and its path on the plane, drawn from its run log."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from loramixer.metrics import PlanePoint
from loramixer.viz.curves import training_curves
from loramixer.viz.notebook import mime_bundle
from loramixer.viz.planes import plane

Place = Callable[[str, dict[str, Any]], None]
"""Shows a bundle of MIME types at a named place, in place of what was shown there before."""

LOG_FILE = "run_log.json"


class Watch:
    """Draws a router training anew whenever its run log has grown; made by :func:`watch`."""

    def __init__(self, folder: str | Path, seconds: float = 4.0, place: Place | None = None) -> None:
        self.path = Path(folder) / LOG_FILE
        self.seconds = seconds
        self._place = place or _notebook_place()
        self._drawn_steps = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def refresh(self) -> bool:
        """Look at the run log once; whether there was something new to draw."""
        try:
            log = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not begun yet
            return False
        steps = log.get("steps", [])
        if len(steps) <= self._drawn_steps:
            return False
        self._drawn_steps = len(steps)
        last = steps[-1]
        title = f"Training of the routers: step {last['step']}, loss {last['loss']:.3f}"
        self._place("curves", mime_bundle(training_curves(steps, title=title)))
        path = plane_path(log)
        if path:
            self._place("plane", mime_bundle(plane({"routers": path[-1]}, paths={"routers": path})))
        return True

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.refresh()

    def _poll(self) -> None:
        while not self._stop.wait(self.seconds):
            self.refresh()


def watch(folder: str | Path, *, seconds: float = 4.0) -> Watch:
    """While the block runs, draw the training that writes its run log into ``folder``; it ends with the last state.

    ``with viz.watch(folder): train_router(folder, …)`` shows curves and the path on the plane, and moves them. Outside
    a notebook it draws nothing; the training prints its own lines in any case.

    Args:
        folder: what the training was given as its output.
        seconds: between two looks at the run log.
    """
    return Watch(folder, seconds)


def plane_path(log: Mapping[str, Any]) -> list[PlanePoint]:
    """Where the logged steps of a router training lie on the entropy–balance plane, first to last."""
    experts = len(log.get("settings", {}).get("experts", ()))
    return [
        PlanePoint(row["token_entropy"], row["load_entropy"], experts)
        for row in log.get("steps", [])
        if experts > 1 and row.get("token_entropy") is not None and row.get("load_entropy") is not None
    ]


def _notebook_place() -> Place:
    """Shows bundles in the running notebook; without one, nowhere."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return lambda name, bundle: None
    if get_ipython() is None:
        return lambda name, bundle: None
    handles: dict[str, Any] = {}

    def place(name: str, bundle: dict[str, Any]) -> None:
        if name in handles:
            handles[name].update(bundle, raw=True)
        else:
            handles[name] = display(bundle, raw=True, display_id=True)

    return place
