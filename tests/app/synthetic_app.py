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

# Of their own wording: the browser tests point at words in them, and examples may be reworded.
PROMPTS = (
    "A patient weighs 62 kg and needs 15 mg of amoxicillin per kg each day, split into three doses. "
    "How many mg is each dose, and what side effects should be watched for?",
    "A loan of 12,000 dollars grows by 3 percent a year. Work out what is owed after two years, then write a "
    "Python function that returns the amount owed after n years.",
)
OTHER_ANSWER = " Each dose is 300 mg (62 * 15 / 3). Watch for rash and see a doctor."


def make_recordings(folder: Path) -> Recordings:
    """Invented recordings of the first two examples, of the first one with another router too."""
    rows = []
    for seed, (example, prompt) in enumerate(zip(EXAMPLES, PROMPTS, strict=False)):
        path = make_trace(prompt, seed=seed).save(folder / f"{example.key}.npz")
        rows.append({"example": example.key, "file": path.name})
    other = make_trace(PROMPTS[0], OTHER_ANSWER, seed=5, mixer="smollm2-135m/load-balance")
    path = other.save(folder / "other-router.npz")
    rows.append({"example": EXAMPLES[0].key, "mixer": "smollm2-135m/load-balance", "file": path.name})
    (folder / INDEX).write_text(json.dumps({"traces": rows}))
    return Recordings(folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        build(FakeSource(seconds=0.1, seconds_to_load=3), make_recordings(Path(folder))).launch(**launch_options())
