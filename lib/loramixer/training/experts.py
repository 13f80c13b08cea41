"""Stage 1: one plain PEFT LoRA per domain, trained one by one or all at once with known domains (paper, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from loramixer.backbones import BackboneFiles, load_backbone
from loramixer.cards import write_expert_card
from loramixer.data import (
    RECIPES,
    AnySource,
    Example,
    OverlapReport,
    Source,
    expert_examples,
    find_source,
    recipe_has,
    rows_used,
    task_licenses,
)
from loramixer.distributed import say
from loramixer.errors import DataError, ExpertError, LoraMixerError
from loramixer.experts import WEIGHTS_FILE
from loramixer.training.checkpoints import CHECKPOINTS, conclude, is_finished
from loramixer.training.expert_optimizer import ExpertAdamW
from loramixer.training.loop import fast_training_dtype, run_training
from loramixer.training.presets import Preset, find_preset
from loramixer.training.rows import EncodedRows, encode_rows, rows_to_leave_out
from loramixer.training.run_log import RunLog
from loramixer.training.same_run import refuse_other_run
from loramixer.training.settings import LoopSettings
from loramixer.tuner import LoraMixerConfig
from loramixer.tuner.config import check_expert_name
from loramixer.tuner.export import export_expert
from loramixer.tuner.sites import hidden_linear_layers
from loramixer.versions import library_versions

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class NewLora:
    """Shape of a new expert.

    Attributes:
        rank: r.
        lora_alpha: the scaling is lora_alpha / r.
        dropout: on its input, in training.
        targets: names of the linear layers that it changes.
    """

    rank: int
    lora_alpha: float
    dropout: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """What all experts of one call share."""

    backbone: str
    source: Source
    settings: LoopSettings
    lora: NewLora
    limit: int | None
    dtype: torch.dtype
    preset: str
    dedupe: bool

    def examples(self, domain: str) -> list[Example]:
        """The training rows of one expert, in one pass."""
        evaluation = rows_to_leave_out([domain], self.source) if self.dedupe else None
        reports: list[OverlapReport] = []
        rows = expert_examples(domain, self.settings.seed, self.source, evaluation, reports)
        if evaluation is not None:
            left_out = sum(report.left_out for report in reports)
            of_all = f"{left_out} of {len(rows) + left_out}"
            say(f"{of_all} {domain} rows are left out, since evaluation rows have them.")
        return rows[: self.limit]


def train_experts(
    output: str | Path,
    domains: Sequence[str] | None = None,
    *,
    source: AnySource = None,
    backbone: str = "smollm2-135m",
    seed: int = 0,
    rank: int | None = None,
    learning_rate: float | None = None,
    limit: int | None = None,
    dtype: torch.dtype | None = None,
    lora_alpha: float | None = None,
    dropout: float | None = None,
    targets: Sequence[str] = ATTENTION_PROJECTIONS,
    jointly: bool = False,
    dedupe: bool = False,
    preset: str | Preset = "cpu-small",
    report_to: str = "none",
    max_length: int | None = None,
    max_answer: int | None = None,
    batch_size: int | None = None,
) -> list[Path]:
    """Train LoRA experts, one by one or jointly; one that is already finished in ``output`` is left as it is.

    Jointly means: the experts lie in one mixture whose gate is the known domain of each row (paper, 3.2), the rows of
    all domains are mixed, and only the experts of the domains in a batch move.

    Args:
        output: folder that receives one PEFT folder per domain.
        domains: names of :data:`loramixer.data.RECIPES`, or domains that the rows of the source state; the source's
            usual ones by default, see :meth:`loramixer.data.Source.domains`.
        source: where rows come from, as :func:`loramixer.data.find_source` takes it.
        backbone: what :func:`loramixer.load_backbone` takes.
        seed: rows, order and initial weights.
        rank: LoRA rank r; the preset's by default.
        learning_rate: peak learning rate; the preset's by default.
        limit: at most this many rows per expert (for a trial).
        dtype: type of the frozen backbone while training; the fastest of this machine by default.
        lora_alpha: the preset's by default, or twice the rank where a rank is given.
        dropout: on the input of the experts; the preset's by default.
        targets: names of the linear layers that the experts change, such as ``in_proj`` and ``out_proj`` of Mamba.
        jointly: whether all domains train at once.
        dedupe: whether rows are left out whose prompts the source's evaluation splits have, as
            :func:`loramixer.data.without_overlap` finds them.
        preset: settings for what is not given, ``cpu-small`` or ``paper``.
        report_to: where metrics go besides the run log: ``none``, ``trackio`` or ``tensorboard``.
        max_length: longest row in tokens, prompt and answer; the preset's by default. A longer answer is cut, and rows
            whose prompt leaves no room for one are left out.
        max_answer: longest answer in tokens; the preset's by default.
        batch_size: rows of a forward pass, of all processes together; the preset's by default.

    Returns:
        The folders, each with ``adapter_config.json``, bfloat16 ``adapter_model.safetensors``, ``run_log.json`` and a
        model card.

    Raises:
        DataError: an unknown domain, no rows of it, or none that is short enough.
        MixerError: a domain whose name no expert can have.
        ExpertError: targets that the backbone does not have.
        LoraMixerError: an unknown preset, or a size below one; ``output`` holds a training with other settings; or the
            run had to stop, see :func:`loramixer.training.loop.run_training`.
    """
    rows = find_source(source, domains or ())
    names = list(domains or rows.domains())
    for name in names:
        check_expert_name(name)
        rows.tasks(name)  # an unknown one is said before anything is trained
    preset = find_preset(preset)
    for what, number in (("rank", rank), ("limit", limit)):
        if number is not None and number < 1:
            raise LoraMixerError(f"{what} is {number}; give a whole number of at least 1.")
    lora = NewLora(
        rank=rank or preset.rank,
        lora_alpha=lora_alpha if lora_alpha is not None else 2 * rank if rank else preset.lora_alpha,
        dropout=preset.dropout if dropout is None else dropout,
        targets=tuple(targets),
    )
    settings = preset.experts.changed(
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_length=max_length,
        max_answer=max_answer,
        seed=seed,
        report_to=report_to,
    )
    dtype = dtype or fast_training_dtype()
    run = _Run(backbone, rows, settings, lora, limit, dtype, preset.name, dedupe)
    if jointly:
        return _train_jointly(Path(output), names, run)
    folders = []
    for name in names:
        whole = replace(settings, epochs=settings.epochs * _epochs(name, rows))
        folders.append(_train_one(Path(output) / name, name, replace(run, settings=whole)))
    return folders


def _train_one(folder: Path, domain: str, run: _Run) -> Path:
    torch.manual_seed(run.settings.seed)
    model, tokenizer = load_backbone(run.backbone, dtype=run.dtype)
    files: BackboneFiles = model.backbone_files
    _check_targets(model, run.lora.targets)
    found = encode_rows(run.examples(domain), tokenizer, run.settings)
    log = _run_log(run, found, files, {"jointly": False, "domain": domain})
    if is_finished(folder):
        refuse_other_run(folder, log.settings)
        say(f"{folder} holds a finished expert; delete it to train it again.")
        return folder
    say(f"Training the {domain} expert on {found.text} ({run.source.origin} data), preset {run.preset} …")
    lora = LoraConfig(
        r=run.lora.rank,
        lora_alpha=run.lora.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=run.lora.dropout,
        target_modules=list(run.lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        peft_model = get_peft_model(model, lora)
    except ValueError as error:  # PEFT refuses some projections of state-space models
        raise ExpertError(f"PEFT cannot put a LoRA there ({error}); give other targets, or jointly=True.") from error
    run_training(peft_model, tokenizer, found.rows, folder, run.settings, log)

    def write() -> None:
        save_expert(peft_model, folder, files)
        _write_card(folder, domain, log, run.source)

    conclude(folder / CHECKPOINTS, write)
    return folder


def _epochs(domain: str, source: Source) -> int:
    """Passes over the rows of an expert, as its recipe says where there is one."""
    by_recipe = all(recipe_has(domain, task) for task in source.tasks(domain))
    return RECIPES[domain].epochs if by_recipe else 1


def _train_jointly(output: Path, domains: list[str], run: _Run) -> list[Path]:
    folders = [output / name for name in domains]
    finished = [folder for folder in folders if (folder / WEIGHTS_FILE).is_file()]
    run_folder = output / "joint-training"
    all_finished = len(finished) == len(folders) and not run_folder.exists()
    if finished and not all_finished and not run_folder.is_dir():
        raise ExpertError(
            f"{finished[0]} holds an expert that was trained before, and joint training would write over it; delete "
            "it or give another output."
        )
    torch.manual_seed(run.settings.seed)
    model, tokenizer = load_backbone(run.backbone, dtype=run.dtype)
    files: BackboneFiles = model.backbone_files
    _check_targets(model, run.lora.targets)
    # A domain with several epochs of its own comes several times in the one pass over the mixed rows.
    examples = [row for name in domains for row in run.examples(name) * _epochs(name, run.source)]
    found = encode_rows(examples, tokenizer, run.settings, experts=domains)
    _check_every_domain_has_rows(domains, found.examples, run.settings.max_length)
    log = _run_log(run, found, files, {"jointly": True, "experts": domains})

    def own_settings(name: str) -> dict[str, Any]:
        mine = [row for row in found.examples if row.domain == name]
        return log.settings | {"domain": name, **rows_used(mine)}

    if all_finished:
        for name, folder in zip(domains, folders, strict=True):
            refuse_other_run(folder, own_settings(name))
        say(f"{output} holds these experts finished; delete them to train them again.")
        return folders
    say(f"Training {len(domains)} experts jointly on {found.text} ({run.source.origin} data), preset {run.preset} …")
    config = joint_config(domains, run.lora)
    peft_model = get_peft_model(model, config)
    optimizer = joint_optimizer(peft_model, run.settings)
    run_training(peft_model, tokenizer, found.rows, run_folder, run.settings, log, optimizer=optimizer, reports=output)
    files.name_in(config)

    def write() -> None:
        for name, folder in zip(domains, folders, strict=True):
            own_log = RunLog(own_settings(name), log.steps, log.summary)
            own_log.save(folder)
            _write_card(folder, name, own_log, run.source)
            export_expert(peft_model, name, folder, dtype=torch.bfloat16)

    conclude(run_folder / CHECKPOINTS, write, run_folder)
    return folders


def joint_config(domains: Sequence[str], lora: NewLora) -> LoraMixerConfig:
    """A mixture of new experts in which every row goes to the expert of its domain."""
    return LoraMixerConfig(
        experts=dict.fromkeys(domains),
        r=lora.rank,
        lora_alpha=lora.lora_alpha,
        dropout=lora.dropout,
        target_modules=list(lora.targets),
        train_experts=True,
        training_gate="domain",
        routing_loss="none",
        task_type="CAUSAL_LM",  # type: ignore[arg-type]
    )


def joint_optimizer(model: nn.Module, settings: LoopSettings) -> tuple[type[ExpertAdamW], dict[str, Any]]:
    """What the Trainer makes its optimiser of, so that only the experts of the domains in a step move."""
    return ExpertAdamW, {"model": model, "lr": settings.learning_rate, "weight_decay": settings.weight_decay}


def _run_log(run: _Run, found: EncodedRows, files: BackboneFiles, of: dict[str, Any]) -> RunLog:
    return RunLog(
        settings={
            "stage": "expert",
            "preset": run.preset,
            **of,
            "backbone": files.name,
            "backbone_revision": files.revision,
            "data": run.source.origin,
            "data_revisions": run.source.revisions(),
            "limit": run.limit,
            "dedupe": run.dedupe,
            **rows_used(found.examples),
            **found.facts,
            **asdict(run.lora),
            "targets": list(run.lora.targets),
            "dtype": str(run.dtype).removeprefix("torch."),
            **asdict(run.settings),
            "versions": library_versions(),
        }
    )


def _write_card(folder: Path, domain: str, log: RunLog, source: Source) -> None:
    tasks = source.tasks(domain)
    write_expert_card(folder, domain, task_licenses(tasks, source), log)


def _check_every_domain_has_rows(domains: Sequence[str], examples: Sequence[Example], max_length: int) -> None:
    """An expert that no row moves would be saved as it was initialised."""
    there = {row.domain for row in examples}
    if lost := [name for name in domains if name not in there]:
        raise DataError(
            f"No row of {lost[0]} leaves room for an answer within {max_length} tokens; raise max_length "
            "(--max-length), or leave the domain out."
        )


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    linear = {name.rpartition(".")[2] for name in hidden_linear_layers(model, None)}
    missing = [target for target in targets if target.rpartition(".")[2] not in linear]
    if missing:
        raise ExpertError(
            f"This backbone has no linear layer {', '.join(missing)}; give targets from {', '.join(sorted(linear))}."
        )


def save_expert(peft_model: Any, folder: Path, files: BackboneFiles) -> None:
    """Save a trained LoRA as a plain PEFT folder with bfloat16 weights that names its backbone by its public name."""
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    config = peft_model.peft_config["default"]
    files.name_in(config)
    config.inference_mode = True
    peft_model.save_pretrained(folder, save_embedding_layers=False)
