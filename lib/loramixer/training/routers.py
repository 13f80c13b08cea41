"""Stage 2: train the routers of a mixture on a few thousand mixed rows, experts frozen (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loramixer.backbones import load_backbone
from loramixer.cards import UNPUBLISHED, write_router_card
from loramixer.data import (
    RECIPES,
    AnySource,
    Example,
    FileSource,
    Source,
    draw_mixture,
    find_source,
    rows_per_task,
    rows_used,
    task_licenses,
    without_overlap,
)
from loramixer.distributed import say
from loramixer.errors import DataError, ExpertError
from loramixer.experts import expert_identity
from loramixer.mixers import mixer_folder
from loramixer.routing import DEFAULT_TOP_K
from loramixer.training.checkpoints import CHECKPOINTS, KeepRouters, conclude, is_finished
from loramixer.training.loop import fast_training_dtype, run_training
from loramixer.training.presets import Preset, find_preset
from loramixer.training.rows import encode_rows, rows_to_leave_out
from loramixer.training.run_log import RunLog
from loramixer.training.same_run import refuse_other_run
from loramixer.tuner import LoraMixerConfig
from loramixer.tuner.config import RoutingLoss
from loramixer.tuner.runtime import mixture_layers
from loramixer.versions import library_versions

LOSS_WARMUP = 0.3
"""Share of the training over which α and λ rise from 0 (paper, A.8)."""

USUAL_ROWS = 2000
"""The paper's number of rows for routers (section 3.3)."""

KEPT_ROUTERS = "routers"
"""Folder, inside that of the mixture, of the routers that were kept along the way."""


def train_router(
    output: str | Path,
    experts: dict[str, str],
    *,
    loss: RoutingLoss = "rsl",
    balance_weight: float | None = None,
    entropy_weight: float | None = None,
    entropy: str = "sharpen",
    examples: int | Sequence[Example] | None = None,
    source: AnySource = None,
    dedupe: bool = False,
    backbone: str = "smollm2-135m",
    seed: int = 0,
    learning_rate: float | None = None,
    top_k: int | None = None,
    dtype: torch.dtype | None = None,
    routers_only: bool = False,
    title: str = "",
    command: str = "",
    preset: str | Preset = "cpu-small",
    keep_routers_at: Sequence[int] = (),
    report_to: str = "none",
    max_length: int | None = None,
    max_answer: int | None = None,
    batch_size: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    measure_speed: bool = True,
    **config_fields: Any,
) -> Path:
    """Train fresh routers over given experts and save the mixture; resumes when ``output`` holds checkpoints.

    Experts are frozen. With ``train_experts=True`` they train along, ``training_gate="straight_through"`` lets k of
    them act while the routers have the gradient of soft gates, and ``preserve=[…]`` holds some experts near where they
    were (Eq. 11).

    Args:
        output: folder that receives the mixture, its run log and model card.
        experts: expert name → folder or Hub id of a plain PEFT LoRA.
        loss: routing loss added to the task loss.
        balance_weight: α, in the unit form K Σ p̄ f̄ unless ``scale`` says otherwise; the preset's by default.
        entropy_weight: λ, for ``rsl``; the preset's by default.
        entropy: sign of the entropy term, ``sharpen`` or ``flatten``.
        examples: number of rows of :func:`loramixer.data.mixed_examples`, of the domains that have the names of
            experts, or of all where none has; or the rows themselves. By default 2,000, or all that the files hold
            where ``source`` is files.
        source: where they come from, as :func:`loramixer.data.find_source` takes it.
        dedupe: whether rows are left out whose prompts the source's evaluation splits have, as
            :func:`loramixer.data.without_overlap` finds them.
        backbone: what :func:`loramixer.load_backbone` takes.
        seed: rows, their order, and the routers' initial weights.
        learning_rate: peak learning rate of the routers; the preset's by default.
        top_k: k, 3 by default: experts per token in inference, and those whose use the balance term and the profiles
            of GMoE and AESL count; gates of training that choose take as many.
        dtype: type of the frozen backbone while training; the fastest of this machine by default.
        routers_only: save the routers alone and name the experts (by relative path and hash).
        title: a short name for people.
        command: the command to print in the model card.
        preset: settings for what is not given, ``cpu-small`` or ``paper``.
        keep_routers_at: optimiser steps (0 is before training) after which the routers alone are kept in
            ``output/routers/step-…``, each a small mixture that :func:`loramixer.load_mixer` takes.
        report_to: where metrics go besides the run log: ``none``, ``trackio`` or ``tensorboard``.
        max_length: longest row in tokens, prompt and answer; the preset's by default. A longer answer is cut, and rows
            whose prompt leaves no room for one are left out.
        max_answer: longest answer in tokens; the preset's by default.
        batch_size: rows of a forward pass, of all processes together; the preset's by default.
        callbacks: further callbacks of the Trainer; one that raises ends the run, and its last checkpoint stays. One
            that runs the model needs :func:`loramixer.training.batches.ordinary_attention`.
        measure_speed: whether the run ends with a few batches that time the backbone alone, for its summary.
        **config_fields: further fields of :class:`loramixer.LoraMixerConfig`; ``usage`` is ``top_1`` by default where
            k is the number of experts.

    Returns:
        ``output``.

    Raises:
        DataError: no rows, or none that is short enough, or none of an own domain where the loss needs them.
        MixerError: fields that do not go together.
        LoraMixerError: an unknown preset, or a size below one; ``output`` holds a training with other settings; or the
            run had to stop, see :func:`loramixer.training.loop.run_training`.
    """
    folder = Path(output)
    preset = find_preset(preset)
    settings = preset.routers.changed(
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_length=max_length,
        max_answer=max_answer,
        seed=seed,
        report_to=report_to,
    )
    dtype = dtype or fast_training_dtype()
    given = {"balance_weight": balance_weight, "entropy_weight": entropy_weight, "top_k": top_k}
    config = router_config(
        preset,
        experts,
        routing_loss=loss,
        entropy=entropy,
        title=title or loss,
        save_experts=not routers_only,
        **{name: value for name, value in given.items() if value is not None},
        **config_fields,
    )
    names = list(config.experts)  # in the order of the gates, which `expert_order` may have changed
    rows_from = find_source(source, names)
    rows_are_given = isinstance(examples, Sequence)
    torch.manual_seed(seed)
    model, tokenizer = load_backbone(backbone, dtype=dtype)
    files = model.backbone_files
    rows = mixture_examples(examples, names, seed, rows_from, dedupe)
    found = encode_rows(rows, tokenizer, settings, experts=names)
    if (loss == "supervised" or config.training_gate == "domain") and all(r["expert_index"] < 0 for r in found.rows):
        what = "loss 'supervised'" if loss == "supervised" else "training_gate 'domain'"
        domains = ", ".join(dict.fromkeys(row.domain for row in found.examples))
        raise DataError(
            f"{what} needs rows of the experts' own domains, and the rows are of {domains}; give rows whose domain is "
            f"one of {', '.join(names)}, or another loss."
        )
    log = RunLog(
        settings={
            "stage": "router",
            "preset": preset.name,
            "experts": names,
            "expert_weights": {name: expert_identity(source) for name, source in experts.items()},
            "loss": loss,
            "loss_text": config.loss_text,
            **_mixture_settings(config),
            "examples": len(rows),
            "dedupe": dedupe,
            "backbone": files.name,
            "backbone_revision": files.revision,
            "data": "given" if rows_are_given else rows_from.origin,
            "data_revisions": {} if rows_are_given else rows_from.revisions(),
            **rows_used(found.examples),
            "licenses": task_licenses(list(rows_per_task(found.examples)), rows_from),
            **found.facts,
            "dtype": str(dtype).removeprefix("torch."),
            **asdict(settings),
            "loss_warmup": LOSS_WARMUP,
            "versions": library_versions(),
        }
    )
    if is_finished(folder):
        refuse_other_run(folder, log.settings)
        say(f"{folder} holds a finished mixture; delete it to train it again.")
        return folder
    peft_model = get_peft_model(model, config)
    files.name_in(config)  # routers that are kept along the way are saved with it
    sites = len(peft_model.base_model.targeted_module_names)
    say(
        f"Training {sites} routers over {len(experts)} experts on {found.text} ({log.settings['data']} data), "
        f"{config.loss_text}, preset {preset.name} …"
    )
    if config.usage != LoraMixerConfig.usage and "usage" not in config_fields:
        say(f"Use is counted by the likeliest expert of a token, since top-{config.top_k} gates choose all of them.")
    statistics = RoutingStatistics(peft_model.base_model, names)
    all_callbacks: list[TrainerCallback] = [
        _WarmUpRoutingLoss(peft_model.base_model),
        statistics,
        KeepRouters(peft_model, folder / KEPT_ROUTERS, keep_routers_at),
        *callbacks,
    ]
    with frozen_experts_in_backbone_dtype(peft_model) as rounded:
        log.settings["experts_dtype"] = rounded
        run_training(
            peft_model,
            tokenizer,
            found.rows,
            folder,
            settings,
            log,
            all_callbacks,
            statistics.take,
            measure_speed=measure_speed,
        )

    def write() -> None:
        save_mixture(peft_model, folder)
        write_router_card(folder, config.title, command, log, names)

    conclude(folder / CHECKPOINTS, write)
    return folder


@contextmanager
def frozen_experts_in_backbone_dtype(peft_model: Any) -> Iterator[str]:
    """Hold frozen experts in the type of the backbone while the block runs, if not one of their weights changes by it.

    Experts are saved in bfloat16, so that a backbone in bfloat16 can multiply with them four times as fast as in
    float32, and without a single rounded weight. Routers stay in float32.

    Yields:
        The type that the experts then have.
    """
    dtype = peft_model.get_base_model().dtype
    matrices = [
        matrix
        for layer, adapter in mixture_layers(peft_model)
        for matrix in layer.matrices(adapter)
        if not matrix.requires_grad and torch.equal(matrix.to(dtype).to(matrix.dtype), matrix)
    ]
    total = sum(len(layer.matrices(adapter)) for layer, adapter in mixture_layers(peft_model))
    former = [matrix.dtype for matrix in matrices]
    if len(matrices) < total:  # all or none, since sites with one input share its cast
        matrices = []
    for matrix in matrices:
        matrix.data = matrix.data.to(dtype)
    try:
        yield str(dtype if matrices else torch.float32).removeprefix("torch.")
    finally:
        for matrix, type_before in zip(matrices, former, strict=False):
            matrix.data = matrix.data.to(type_before)


def router_config(preset: Preset, experts: dict[str, str], **given: Any) -> LoraMixerConfig:
    """The configuration of a mixture with the preset's values for what is not given.

    Where as many experts are chosen as there are, use is counted by the likeliest one, so that balance has an effect.
    """
    fields = {**preset.mixture, **given}
    if fields.get("preserve"):
        fields.setdefault("preservation_weight", preset.preservation_weight)
    if fields.get("top_k") is not None and "top_k" not in given:
        fields["top_k"] = min(fields["top_k"], len(experts))
    config = LoraMixerConfig(
        **{
            "experts": dict(experts),
            "task_type": "CAUSAL_LM",
            "tasks": {name: list(RECIPES[name].tasks) for name in experts if name in RECIPES},
            **fields,
        }
    )
    if config.has_idle_balance and "usage" not in fields:
        config.usage = "top_1"
    return config


def _mixture_settings(config: LoraMixerConfig) -> dict[str, Any]:
    """What a configuration says on training and gates; not who the experts are, nor what people call it."""
    ours = {field.name for field in fields(LoraMixerConfig)} - {field.name for field in fields(PeftConfig)}
    others = {"experts", "expert_order", "target_modules", "tasks", "title", "save_experts", "untrained"}
    found = {name: getattr(config, name) for name in sorted(ours - others)}
    return found | {"top_k": config.top_k or min(DEFAULT_TOP_K, len(config.experts))}


def mixture_examples(
    examples: Sequence[Example] | int | None,
    experts: Sequence[str],
    seed: int,
    source: Source,
    dedupe: bool = False,
) -> Sequence[Example]:
    """Rows that are given, or mixed rows of the experts' domains, as far as there are any; says where they are not.

    Args:
        examples: the rows; or how many to draw; None for all rows of files, else for :data:`USUAL_ROWS`.
        experts: their names.
        seed: of the draw.
        source: where rows come from.
        dedupe: whether rows are left out that evaluation rows have.
    """
    known = [name for name in experts if source.has(name)]
    evaluation = rows_to_leave_out(known or None, source) if dedupe else None
    if examples is None and isinstance(source, FileSource):
        examples = source.examples
    if isinstance(examples, Sequence):
        if evaluation is None:
            return examples
        kept, overlap = without_overlap(examples, evaluation)
        say(f"Before training: {overlap}")
        return kept
    others = ", ".join(name for name in experts if name not in known)
    if not known:
        domains = ", ".join(source.domains())
        say(f"No domain has the name of an expert ({others}), so rows of all domains are mixed: {domains}.")
    elif others:
        say(f"There are no rows of {others}; rows of {', '.join(known)} are mixed.")
    if examples is not None and examples < 1:
        raise DataError(f"examples is {examples}; give at least 1, or leave it out for {USUAL_ROWS:,}.")
    mixture = draw_mixture(examples or USUAL_ROWS, seed, known or None, evaluation=evaluation, source=source)
    if mixture.overlap is not None:
        say(f"Before drawing: {mixture.overlap}")
    return mixture.rows


def save_mixture(peft_model: Any, folder: Path) -> None:
    """Save a mixture under the public name of its backbone."""
    files = getattr(peft_model.get_base_model(), "backbone_files", None)
    config = peft_model.peft_config["default"]
    if files is not None:
        files.name_in(config)
    config.inference_mode = True
    peft_model.save_pretrained(folder, save_embedding_layers=False)


def find_experts(source: str) -> dict[str, str]:
    """The experts that a command names: those of a mixture (zoo name, folder, Hub id), or every LoRA in a folder.

    Raises:
        ExpertError: a folder without any LoRA, or a mixture whose experts trained along.
    """
    folder = Path(source)
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        known = list(RECIPES)
        folders = [path.parent for path in folder.glob("*/adapter_config.json")]
        # The order of the gates: shipped domains in their usual order, then others by name.
        folders.sort(key=lambda path: (known.index(path.name) if path.name in known else len(known), path.name))
        # Names of experts have no dots; names of models often do.
        found = {path.name.replace(".", "-"): str(path) for path in folders}
        if not found:
            raise ExpertError(f"{source} holds no LoRA folders; give a folder whose subfolders are PEFT LoRAs.")
        if len(found) < len(folders):
            raise ExpertError(f"Two folders in {source} differ in dots and dashes only; rename one of them.")
        return found
    config = LoraMixerConfig.from_pretrained(str(mixer_folder(source)))
    if config.train_experts:
        # What it names are the experts that this training began with, and None where they were new.
        raise ExpertError(
            f"The experts of {source} were trained with it, so they lie in no folder of their own; write them with "
            "export_expert first, and give the folder that holds them."
        )
    if lost := next((name for name, value in config.experts.items() if _is_gone(value["source"])), None):
        raise ExpertError(
            f"{source} holds its expert '{lost}' itself, and the LoRA that it was made from is not here; write the "
            "experts with export_expert first, and give the folder that holds them."
        )
    return {name: value["source"] for name, value in config.experts.items()}


def _is_gone(source: str) -> bool:
    """Whether a source is a folder of another machine: named so by `push_mixer`, or a path that is not here."""
    return source.startswith(UNPUBLISHED) or (Path(source).is_absolute() and not Path(source).exists())


class _WarmUpRoutingLoss(TrainerCallback):
    """Raises the weight of the routing loss linearly over the first part of the training."""

    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tuner.loss_warmup = min(1.0, state.global_step / max(1.0, LOSS_WARMUP * state.max_steps))


class RoutingStatistics(TrainerCallback):
    """The mean of the routing statistics over the forward passes since it was last asked."""

    def __init__(self, tuner: Any, experts: list[str]) -> None:
        self.tuner = tuner
        self.experts = experts
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seen.append(self.tuner.routing_statistics)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seen.append(self.tuner.routing_statistics)

    def take(self) -> dict[str, float]:
        """Every term of the routing loss, entropies and mutual information in nats, and own-expert shares."""
        row: dict[str, float] = {}
        for name in self.seen[0] if self.seen else ():
            mean = torch.stack([found[name].float() for found in self.seen]).nanmean(dim=0)
            if name == "own_share":
                shares = zip(self.experts, mean.tolist(), strict=True)
                row |= {f"own_expert_share/{expert}": round(share, 4) for expert, share in shares if share == share}
            elif mean.dim() == 0:
                row[name] = round(float(mean), 5)
        if "token_entropy" in row:
            row["mutual_information"] = round(row["load_entropy"] - row["token_entropy"], 5)
        self.seen = []
        return {**row, "loss_warmup": round(self.tuner.loss_warmup, 4)}
