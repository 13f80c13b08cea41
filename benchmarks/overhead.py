"""What a mixture costs in time and memory, beside a single LoRA, Arrow, X-LoRA and MixLoRA, on the same weights.

``python benchmarks/overhead.py --output docs/results/overhead.json``; ``--help`` lists the options. Nothing is
downloaded: weights are random unless ``--real`` is given, and so are the experts.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from forms import FORMS, SHAPES, Workload, added_bytes, build_base, save_experts
from rich.table import Table
from timing import Comparison, Subject, compare, median_interval, show, write_result

PREFILL = (64, 256, 1024)
CACHE = 64
TRAINING = 256
MEMORY = 1024
MEASURES = (*(f"prefill-{length}" for length in PREFILL), "decode", "trace", "training", "memory")

OURS = ("soft", "top-3")
GOALS: dict[tuple[str, str], float] = {
    **{(measure, form): 1.10 for measure in ("prefill-64", "prefill-256", "decode") for form in OURS},
    ("trace-prefill-256", "traced"): 1.05,
    ("trace-decode", "traced"): 1.05,
    ("training", "soft"): 0.9,
    ("memory", "top-3"): 1.05,
}
"""Measure and form → goal; a ratio must be at most that, or in training, where it is one of speeds, at least."""


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, and write the result file."""
    options = _parse(words)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    dtype = getattr(torch, options.dtype)
    if options.memory_of:
        print(json.dumps(peak_memory(options, dtype)))
        return
    wanted = [name for name in MEASURES if name in options.only] or list(MEASURES)
    names = [name for name in FORMS if name in options.only] or list(FORMS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="experts-") as scratch:
        base = build_base(options.shape, dtype, options.device, options.real)
        folders = save_experts(base, Path(scratch), options.experts, options.rank)
        timed = Timed(base, Workload(folders, options.rank), options)
        for measure in wanted:
            print(f"{measure} …", file=sys.stderr, flush=True)
            if measure == "training":
                rows += timed.training(names)
            elif measure == "trace":
                rows += timed.tracing(names)
            elif measure != "memory":
                rows += timed.inference(measure, names)
        timed.models.clear()
        del base, timed
        gc.collect()
        if "memory" in wanted:
            rows += memory_rows(options, folders, names)
    _print(rows)
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "memory_of", "folders")}
    write_result(options.output, "overhead", options.device, settings, rows)


class Timed:
    """The forms on one backbone, built when they are first needed."""

    def __init__(self, base: Any, work: Workload, options: argparse.Namespace) -> None:
        self.base = base
        self.work = work
        self.options = options
        self.models: dict[str, Any] = {}

    def inference(self, measure: str, names: list[str]) -> list[dict[str, Any]]:
        """Prefill or decode of every form against the backbone."""
        pairs = [(name, "base") for name in names if name != "base"]
        return self._rows(measure, measure, pairs)

    def tracing(self, names: list[str]) -> list[dict[str, Any]]:
        """Traced against untraced."""
        if "traced" not in names:
            return []
        pairs = [("traced", "top-3")]
        return [row for measure in ("prefill-256", "decode") for row in self._rows(f"trace-{measure}", measure, pairs)]

    def training(self, names: list[str]) -> list[dict[str, Any]]:
        """Training speed against that of one LoRA: the ratio is one of tokens per second."""
        pairs = [(name, "lora") for name in names if name in ("soft", "mixlora")]  # soft is how routers train
        return self._rows("training", "training", pairs)

    def _rows(self, measure: str, kind: str, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
        tokens = {"decode": 1, "training": TRAINING}.get(kind) or int(kind.rpartition("-")[2])
        speed = kind == "training"
        comparisons = []
        for form, reference in pairs:
            sides = (self._subject(kind, form, tokens), self._subject(kind, reference, tokens))
            # A ratio of speeds is the inverse of one of times, so the sides change places.
            comparisons.append(Comparison(*(reversed(sides) if speed else sides)))
        compare(comparisons, self.options.rounds, self.options.block_seconds)
        rows = []
        for (form, reference), comparison in zip(pairs, comparisons, strict=True):
            row = comparison.row()
            if speed:
                row["seconds"], row["reference_seconds"] = row["reference_seconds"], row["seconds"]
            rows.append(
                {**_head(measure, form, reference), "tokens": tokens, **row, **_goal(measure, form, row["ratio"])}
            )
        return rows

    def _subject(self, kind: str, name: str, tokens: int) -> Subject:
        form = FORMS[name]
        if form.model_name not in self.models:
            self.models[form.model_name] = form.build(self.base, self.work)
        model = self.models[form.model_name]
        if kind == "decode":
            return form.decode(model, _ids(self.base, CACHE))
        if kind == "training":
            return form.train(model, _ids(self.base, tokens))
        return form.prefill(model, _ids(self.base, tokens))


def memory_rows(options: argparse.Namespace, folders: list[str], names: list[str]) -> list[dict[str, Any]]:
    """Peak memory of every form beyond the backbone's, in multiples of what its adapters weigh.

    Every peak is measured in a process of its own, several times, since the allocator rounds.
    """
    found: dict[str, list[dict[str, int]]] = {name: [] for name in dict.fromkeys(["base", *names])}
    for _ in range(options.memory_runs):
        for name, runs in found.items():
            runs.append(_memory_in_a_child(options, folders, name))
    rows = []
    for name in names:
        if name == "base":
            continue
        pairs = list(zip(found[name], found["base"], strict=True))
        sizes = found[name][0]
        extra = [run["peak_bytes"] - base["peak_bytes"] for run, base in pairs]
        row = {
            "tokens": MEMORY,
            **median_interval([value / sizes["adapter_bytes"] for value in extra]),
            "extra_bytes": median(extra),
            "adapter_bytes": sizes["adapter_bytes"],
            "buffer_bytes": sizes["buffer_bytes"],
            "base_peak_bytes": median(base["peak_bytes"] for _, base in pairs),
            "rounds": options.memory_runs,
        }
        rows.append({**_head("memory", name, "base"), **row, **_goal("memory", name, row["ratio"])})
    return rows


def peak_memory(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, int]:
    """Peak of the forward passes of one form, and what its adapters weigh."""
    base = build_base(options.shape, dtype, options.device, options.real)
    form = FORMS[options.memory_of]
    model = form.build(base, Workload(options.folders, options.rank))
    ids = _ids(base, MEMORY)
    return {
        "peak_bytes": _peak_bytes(form.prefill(model, ids), options.device),
        "adapter_bytes": added_bytes(model.parameters(), base.parameters()),
        "buffer_bytes": added_bytes(model.buffers(), base.buffers()),
    }


def _memory_in_a_child(options: argparse.Namespace, folders: list[str], name: str) -> dict[str, int]:
    words = [sys.executable, __file__, "--memory-of", name, "--shape", options.shape, "--device", options.device]
    words += ["--dtype", options.dtype, "--rank", str(options.rank), "--threads", str(torch.get_num_threads())]
    words += ["--real"] if options.real else []
    # Freed memory goes back to the system at once, so that a peak is what was in use.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [*words, "--folders", *folders], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _peak_bytes(subject: Subject, device: str) -> int:
    """The most bytes in tensors at once while a subject runs; what it keeps from a first run counts too.

    PyTorch counts this on an accelerator. On a CPU it is what all tensors hold at rest, plus what the process grows by
    while it runs; the modules' Python objects and the code of operators are not the subject's memory.
    """
    with subject.scope():
        subject.call()
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
            at_rest = _resident_bytes()["VmRSS"]
        for _ in range(3):
            subject.call()
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        return _tensor_bytes() + _resident_bytes()["VmHWM"] - at_rest


def _resident_bytes() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}


def _tensor_bytes() -> int:
    """Bytes of all storages that live tensors hold, each counted once."""
    gc.collect()
    # By type: isinstance would wake up every lazy object and its warnings.
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _ids(base: Any, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, base.config.vocab_size, (1, length), generator=generator).to(base.device)


def _head(measure: str, form: str, reference: str) -> dict[str, Any]:
    chosen = FORMS[form]
    return {
        "measure": measure,
        "form": form,
        "label": chosen.label,
        "reference": FORMS[reference].label,
        "note": chosen.note,
    }


def _goal(measure: str, form: str, ratio: float) -> dict[str, Any]:
    goal = GOALS.get((measure, form))
    if goal is None:
        return {"goal": None, "met": None}
    at_least = measure == "training"
    return {"goal": f"{'≥' if at_least else '≤'} {goal:.2f}", "met": ratio >= goal if at_least else ratio <= goal}


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("measure", "form", "against", "ratio", "95 %", "ms", "goal", "", "note", box=None)
    for row in rows:
        interval = f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}"
        cost = f"{1000 * row['seconds']:.2f}" if "seconds" in row else f"{row['extra_bytes'] / 2**20:.1f} MiB"
        met = {True: "met", False: "MISSED", None: ""}[row["met"]]
        note = row["note"] if "seconds" in row else f"adapters {row['adapter_bytes'] / 2**20:.1f} MiB"
        table.add_row(
            row["measure"],
            row["label"],
            row["reference"],
            f"{row['ratio']:.3f}",
            interval,
            cost,
            row["goal"] or "",
            met,
            note,
        )
    show(table)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="random weights of this shape")
    parser.add_argument("--real", action="store_true", help="the embedded SmolLM2-135M-Instruct instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the backbone")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block-seconds", type=float, default=0.3, help="about how long each side is timed at once")
    parser.add_argument("--memory-runs", type=int, default=3, help="processes per form")
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--rank", type=int, default=16)
    names = (*MEASURES, *FORMS)
    parser.add_argument(
        "--only", choices=names, action="append", default=[], metavar="NAME", help=f"repeat; of {', '.join(names)}"
    )
    parser.add_argument("--output", type=Path, help="receives the result as JSON")
    parser.add_argument("--memory-of", choices=tuple(FORMS), help=argparse.SUPPRESS)
    parser.add_argument("--folders", nargs="*", default=[], help=argparse.SUPPRESS)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
