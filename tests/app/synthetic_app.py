"""The real page over invented traces, to try the interface by hand: ``python tests/app/synthetic_app.py``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [folder for folder in (str(ROOT / "lib"), str(ROOT)) if folder not in sys.path]

import json  # noqa: E402

from explorer.examples import EXAMPLES  # noqa: E402
from explorer.layout import build, launch_options  # noqa: E402
from explorer.recordings import INDEX, Recordings  # noqa: E402
from tests.app.synthetic import FakeSource, make_trace  # noqa: E402


def make_recordings(folder: Path) -> Recordings:
    """Invented recordings of the first two examples."""
    rows = []
    for seed, example in enumerate(EXAMPLES[:2]):
        path = make_trace(example.prompt, seed=seed).save(folder / f"{example.key}.npz")
        rows.append({"example": example.key, "file": path.name})
    (folder / INDEX).write_text(json.dumps({"traces": rows}))
    return Recordings(folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        build(FakeSource(seconds=0.1, seconds_to_load=3), make_recordings(Path(folder))).launch(**launch_options())
