"""Records the replays of trainings, for the page to show without a model: ``python -m explorer.record_replay``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# Works from a clone where the package is not installed.
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "lib")]

import numpy as np  # noqa: E402

from explorer.examples import EXAMPLES  # noqa: E402
from explorer.replays import FOLDER, Replay, ReplayFacts, frame_of  # noqa: E402

MOST_STEPS = 24
"""More steps than the eye can tell apart only make the file larger; evenly chosen, the first and last among them."""


def step_of(folder: Path) -> int:
    """The optimiser step of a kept router, from the name of its folder."""
    return int(folder.name.rpartition("-")[2])


def chosen_steps(folders: list[Path], most: int = MOST_STEPS) -> list[Path]:
    """At most so many of the folders, in the order of their steps."""
    ordered = sorted(folders, key=step_of)
    if len(ordered) <= most:
        return ordered
    return [ordered[place] for place in np.unique(np.linspace(0, len(ordered) - 1, most).round().astype(int))]


def record(model: Any, tokenizer: Any, steps: list[Path], mixer: str, prompt: str) -> Replay:
    """Route a prompt through every kept router with soft gates.

    Args:
        model: a backbone whose active mixture has the same experts; its gate stays soft.
        tokenizer: of the backbone.
        steps: folders of the kept routers.
        mixer: name of the router that the training ended with.
        prompt: the fixed prompt.
    """
    import loramixer
    from loramixer.kept_routers import routers_at
    from loramixer.mixers import mixer_folder, mixer_info

    loramixer.set_gate(model, mode="soft")
    frames, points, trace = [], [], None
    tokens: tuple[str, ...] = ()
    for folder in steps:
        with routers_at(model, folder):
            trace = loramixer.trace(model, tokenizer, prompt)
        gates, point, tokens = frame_of(trace)
        frames.append(gates)
        points.append(point)
    assert trace is not None
    info = mixer_info(mixer_folder(mixer), mixer)
    log = json.loads((mixer_folder(mixer) / "run_log.json").read_text(encoding="utf-8"))
    last_step = max(row["step"] for row in log["steps"])
    facts = ReplayFacts(
        info.title,
        mixer,
        info.loss,
        prompt,
        tokens,
        trace.experts,
        tuple(trace.layers),
        max(last_step, step_of(folder)),
    )
    return Replay(facts, np.array([step_of(step) for step in steps]), np.stack(frames), np.array(points, np.float32))


def main() -> None:
    """Record a replay for every router of the zoo that has routers along its training."""
    import loramixer
    from loramixer.mixers import ZOO

    parser = argparse.ArgumentParser(description="Record the replays of the explorer.")
    parser.add_argument("--prompt", default=EXAMPLES[0].prompt, help="the fixed prompt")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the replays")
    arguments = parser.parse_args()
    for folder in sorted(ZOO.glob("*/replay/*/")):
        mixer = f"{folder.parts[-3]}/{folder.name}"
        model, tokenizer = loramixer.load_mixer(mixer)
        steps = chosen_steps(list(folder.glob("step-*")))
        replay = record(model, tokenizer, steps, mixer, arguments.prompt)
        path = replay.save(arguments.out / f"{mixer.replace('/', '--')}.npz")
        print(f"{path}: {len(replay.steps)} steps, {path.stat().st_size / 1024:.0f} KB", file=sys.stderr)


if __name__ == "__main__":
    main()
