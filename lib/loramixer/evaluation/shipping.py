"""The zoo from a work folder: ``python -m loramixer.evaluation.shipping --experts FOLDER --work runs/evidence``.

Experts, and the routers of the first seed of every loss, are copied with cards that hold the measured numbers; routers
that were kept along a training become ``replay/NAME/step-…``, in half precision. What is not trained yet is left out,
and routers of other experts that lie there are removed, since they could not be loaded.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from loramixer.cards import write_expert_card, write_router_card
from loramixer.data import RECIPES
from loramixer.errors import MixerError
from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.experiments.losses import settings
from loramixer.evaluation.experiments.plan import Options, Run
from loramixer.evaluation.experiments.workshop import Workshop
from loramixer.evaluation.verdicts import find, printed
from loramixer.experts import check_unchanged
from loramixer.mixers import CONFIG_FILE, WEIGHTS_FILE, ZOO
from loramixer.training.routers import KEPT_ROUTERS, find_experts
from loramixer.training.run_log import RunLog
from loramixer.tuner import LoraMixerConfig

REPLAY = "replay"
REPLAY_STEPS = 6
"""Steps of a training that ship, evenly chosen from those that were kept; the end is the router itself."""

LIMIT = 60_000_000
"""Largest zoo in bytes."""

LICENSE = "apache-2.0"
"""Of the weights that ship, which were trained here."""

QUANTITIES = {
    "mutual_information": "I(token; expert), nats",
    "token_entropy": "E[H], nats",
    "load_entropy": "H(p̄), nats",
    "own_share": "own-expert share",
}


def shipped_runs(options: Options) -> dict[str, tuple[Run, str]]:
    """Name in the zoo → the run of the first seed, and a title for people."""
    names = {
        "rsl": "RSL (sharpen)",
        "load-balance": "Load balance",
        "none": "No routing loss",
        "rsl-flatten": "RSL (flatten)",
        "load-balance-weak": "Load balance, weak",
        "ds-moe": "DS-MoE mutual information",
        "gmoe": "GMoE",
        "aesl": "AESL",
        "supervised": "Supervised",
    }
    runs = settings(options)
    return {name: (run, title) for run, (name, title) in zip(runs, names.items(), strict=True)}


def ship(workshop: Workshop, options: Options, results: Path, zoo: Path, say: Callable[[str], None] = print) -> None:
    """Make the folder of a backbone in the zoo from what has been trained.

    Args:
        workshop: where experts and routers are.
        options: which settings are called what.
        results: folder of the CSV files that cards take their numbers from.
        zoo: receives ``experts/NAME``, ``NAME`` and ``replay/NAME/step-…``.
        say: receives one line of text for every folder.

    Raises:
        MixerError: an expert is not the one that a router was trained with, or the zoo would be too large.
    """
    for name, source in workshop.sources.items():
        _copy_expert(name, Path(source), zoo / "experts" / name, results)
    _remove_others(zoo / "experts", set(workshop.sources), say)
    shipped = set()
    for name, (run, title) in shipped_runs(options).items():
        folder = workshop.router_folder(run)
        if not workshop.is_trained(run):
            say(f"{name}: not trained yet ({run.name})")
            continue
        log = RunLog.load(folder)
        if folder.resolve() != (zoo / name).resolve():  # what ships already gets a new card only
            _copy_router(folder, zoo / name, zoo, title, log)
            _copy_kept(folder, name, zoo, title, log)
            log.settings["run"] = run.name
            log.save(zoo / name)
        measured = _numbers(results, run, options.gates)
        write_router_card(zoo / name, title, router_command(run, name), log, list(options.experts), measured, LICENSE)
        shipped |= {name, *([REPLAY] if (zoo / REPLAY / name).is_dir() else [])}
        say(f"{name}: {run.name}")
    _remove_others(zoo, {"experts", *shipped}, say)
    if (zoo / REPLAY).is_dir():
        _remove_others(zoo / REPLAY, shipped, say)
    total = sum(path.stat().st_size for path in zoo.rglob("*") if path.is_file())
    say(f"{zoo}: {total / 1e6:.1f} MB")
    if total > LIMIT:
        raise MixerError(f"{zoo} has {total / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}; ship less.")


def router_command(run: Run, name: str) -> str:
    """The command that trains a run again."""
    weights = f" --balance-weight {run.balance_weight:g}" if run.balance_weight else ""
    if run.loss == "rsl":
        weights += f" --entropy-weight {run.entropy_weight:g} --entropy {run.entropy}"
    return (
        f"loramixer train-router --mixer experts --output {name} --loss {run.loss}{weights} "
        f"--examples {run.examples} --seed {run.seed} --learning-rate {run.learning_rate:g} --routers-only"
    )


def _copy_expert(name: str, source: Path, folder: Path, results: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE, RunLog.FILE_NAME):
        if (source / file).resolve() != (folder / file).resolve():
            shutil.copyfile(source / file, folder / file)
    log = RunLog.load(folder)
    write_expert_card(folder, name, RECIPES[name].licenses, log, _expert_numbers(results, name), LICENSE)


def _copy_router(source: Path, folder: Path, zoo: Path, title: str, log: RunLog) -> None:
    """A router-only mixture that names the experts of the zoo, and its backbone by its public name."""
    config = LoraMixerConfig.from_pretrained(str(source))
    for name, description in config.experts.items():
        expert = zoo / "experts" / name
        check_unchanged(name, expert, description["sha256"])
        description["source"] = str(expert)
    config.title, config.base_model_name_or_path = title, log.settings["backbone"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").unlink(missing_ok=True)
    config.save_pretrained(str(folder))
    shutil.copyfile(source / WEIGHTS_FILE, folder / WEIGHTS_FILE)


def _copy_kept(source: Path, name: str, zoo: Path, title: str, log: RunLog) -> None:
    """Routers along the way, in half precision, where any were kept."""
    kept = sorted((source / KEPT_ROUTERS).glob("step-*"))
    shutil.rmtree(zoo / REPLAY / name, ignore_errors=True)
    for step in evenly(kept, REPLAY_STEPS):
        folder = zoo / REPLAY / name / step.name
        _copy_router(step, folder, zoo, title, log)
        weights = load_file(step / WEIGHTS_FILE)
        half = {key: value.to(torch.float16) for key, value in weights.items()}
        save_file(half, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / "README.md").unlink()


def evenly(items: list[Path], count: int) -> list[Path]:
    """At most ``count`` items, the first and the last among them, at even distances."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _remove_others(folder: Path, kept: set[str], say: Callable[[str], None]) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
            say(f"removed {path.name}, which does not belong to these experts")


def _expert_numbers(results: Path, name: str) -> list[str]:
    """Its test loss on its own domain beside the backbone's."""
    path = results / "expert-matrix.csv"
    rows = read_csv(path) if path.is_file() else []
    found = [find(rows, expert=expert, domain=name) for expert in (name, "backbone")]
    if None in found:
        return []
    own, backbone = (f"{row['loss']:.3f} [{row['loss_low']:.3f}, {row['loss_high']:.3f}]" for row in found if row)
    count = next(row["rows"] for row in found if row)
    return [
        f"Test loss on {name}, nats per answer token: {own}; the backbone alone {backbone} ({count:.0f} test rows, "
        "95 % bootstrap interval over rows)."
    ]


def _numbers(results: Path, run: Run, gates: Sequence[str]) -> list[str]:
    """Test loss and routing of this router alone, whatever other seeds of its setting gave."""
    path = results / "losses.csv"
    own = next((row for row in (read_csv(path) if path.is_file() else []) if row["run"] == run.name), None)
    if own is None:
        return []

    def number(name: str) -> str:
        return printed({"value": own[name], "low": own[f"{name}_low"], "high": own[f"{name}_high"]})

    lines = ["| | |", "|---|---:|"]
    lines += [
        f"| test loss, nats per answer token, {gate.replace('_', '-')} | {number(f'loss_{gate}')} |"
        for gate in gates
        if own.get(f"loss_{gate}") is not None
    ]
    lines += [f"| {head} | {number(name)} |" for name, head in QUANTITIES.items() if own.get(name) is not None]
    return [
        *lines,
        "",
        f"Mean of all domains; this router alone (seed {run.seed}), {own['test_rows']:.0f} test rows, 95 % intervals "
        f"over rows. It is the row {run.name} of docs/results/losses.csv; docs/results.md has the means over training "
        "seeds.",
    ]


def main() -> None:
    """Make the zoo of one backbone."""
    parser = argparse.ArgumentParser(description="Make the zoo of one backbone from a work folder.")
    parser.add_argument("--experts", required=True, help="whose experts: a mixture, or a folder of LoRAs")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="work folder of the experiments")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="CSV files for the cards")
    parser.add_argument("--backbone", default="smollm2-135m", help="name in the zoo")
    arguments = parser.parse_args()
    found = find_experts(arguments.experts)
    workshop = Workshop(arguments.work, found, backbone=arguments.backbone)
    ship(workshop, Options(experts=tuple(found)), arguments.results, ZOO / arguments.backbone)


if __name__ == "__main__":
    main()
