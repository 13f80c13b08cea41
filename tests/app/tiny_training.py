"""Trainings of the explorer over a tiny model, and a stand-in for the training process; for tests only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from explorer.training_job import TrainingJob
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


def save_backbone(folder: Path) -> str:
    """A folder with a tiny backbone and its tokenizer."""
    tiny.llama().save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_job(folder: Path, **fields: Any) -> TrainingJob:
    """A training of two random experts on generated rows."""
    experts = {name: tiny.save_expert(folder / name, seed, r=4, target_modules=["q_proj", "v_proj"])
               for seed, name in enumerate(("math", "medical"), start=1)}  # fmt: skip
    settings: dict[str, Any] = {
        "backbone": save_backbone(folder / "backbone"), "experts": experts, "domains": ("math", "medical"),
        "data": "generated", "loss": "rsl", "balance_weight": 1.0, "entropy_weight": 0.3, "entropy": "sharpen",
        "scale": "unit", "examples": 48, "seed": 0, "top_k": 2, "probe": "the dose is ten", "max_minutes": 30,
        "title": "RSL, trained here",
    }  # fmt: skip
    return TrainingJob(**{**settings, **fields})


STAND_IN = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def tell(state, text, step):
    left = 2.0 if state == "training" else None
    row = {"state": state, "text": text, "step": step, "steps": 4, "seconds_left": left}
    (folder / "scratch").write_text(json.dumps(row))
    (folder / "scratch").replace(folder / "status.json")
mixture = folder / "mixture"
mixture.mkdir(exist_ok=True)
first = len(list(folder.glob("done-*")))
rows = []
for step in range(1, 5):
    rows.append({"step": step, "task_loss": 2.0 - step / 10, "token_entropy": 0.6, "load_entropy": 0.65,
                 "mutual_information": 0.05, "balance": 1.0, "routing_loss": 1.2})
    if step <= first:
        continue
    while not (folder / "go").exists() and not (folder / "stop").exists():
        time.sleep(0.02)
    if (folder / "stop").exists():
        tell("stopped", f"Stopped after step {step - 1} of 4; Resume goes on from there.", step - 1)
        sys.exit()
    (folder / f"done-{step}").touch()
    (mixture / "run_log.json").write_text(json.dumps({"settings": {}, "summary": {}, "steps": rows}))
    (folder / "probe.json").write_text(json.dumps(
        {"tokens": ["How", " many"], "experts": ["math", "medical"], "layers": [0, 1]}))
    import base64
    frame = base64.b64encode(bytes([250 - 40 * step, 5 + 40 * step] * 4)).decode()
    with (folder / "probe.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "frame": frame, "point": [0.9 - step / 10, 0.95]}) + "\\n")
    tell("training", f"Training: step {step} of 4", step)
    (folder / "go").unlink(missing_ok=True)
(mixture / "adapter_model.safetensors").write_bytes(b"weights")
experts = {"math": {"source": "../../somewhere/secret/math"}, "law": {"source": "organisation/law@0123abc"}}
(mixture / "adapter_config.json").write_text(json.dumps({"experts": experts}))
(mixture / "README.md").write_text("a card")
tell("finished", "Finished: 4 steps. The router is ready.", 4)
"""
"""A process that keeps to the files of ``explorer.training_job`` and waits for a file ``go`` before each step."""


def stand_in_command(folder: Path) -> list[str]:
    """Command of the stand-in."""
    script = folder / "stand_in.py"
    script.write_text(STAND_IN, encoding="utf-8")
    return [sys.executable, str(script)]
