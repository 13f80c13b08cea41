"""Stage 2: train the routers of a mixture on a few thousand mixed rows, experts frozen (paper, section 3.3)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loramixer.backbones import load_backbone
from loramixer.cards import write_router_card
from loramixer.data import (
    RECIPES,
    Example,
    data_origin,
    data_revisions,
    encode_all,
    fingerprint,
    mixed_examples,
    rows_per_task,
    task_licenses,
)
from loramixer.errors import ExpertError
from loramixer.mixers import mixer_folder
from loramixer.training.loop import LoopSettings, fast_training_dtype, run_training
from loramixer.training.run_log import RunLog
from loramixer.tuner import LoraMixerConfig
from loramixer.tuner.config import RoutingLoss
from loramixer.versions import library_versions

LOSS_WARMUP = 0.3
"""Share of the training over which α and λ rise from 0 (paper, A.8)."""

DEFAULT_BALANCE_WEIGHT = 1.0
DEFAULT_ENTROPY_WEIGHT = 0.05


def train_router(
    output: str | Path,
    experts: dict[str, str],
    *,
    loss: RoutingLoss = "rsl",
    balance_weight: float = DEFAULT_BALANCE_WEIGHT,
    entropy_weight: float = DEFAULT_ENTROPY_WEIGHT,
    entropy: str = "sharpen",
    examples: int | Sequence[Example] = 2000,
    backbone: str = "smollm2-135m",
    seed: int = 0,
    learning_rate: float = 2e-3,
    top_k: int | None = None,
    dtype: torch.dtype | None = None,
    routers_only: bool = False,
    title: str = "",
    command: str = "",
    **config_fields: Any,
) -> Path:
    """Train fresh routers over given experts and save the mixture; resumes when ``output`` holds checkpoints.

    Args:
        output: folder that receives the mixture, its run log and model card.
        experts: expert name → folder or Hub id of a plain PEFT LoRA.
        loss: routing loss added to the task loss.
        balance_weight: α, in the unit form K Σ p̄ f̄ unless ``scale`` says otherwise.
        entropy_weight: λ, for ``rsl``.
        entropy: sign of the entropy term, ``sharpen`` or ``flatten``.
        examples: number of rows of :func:`loramixer.data.mixed_examples`, or the rows themselves.
        backbone: what :func:`loramixer.load_backbone` takes.
        seed: rows, their order, and the routers' initial weights.
        learning_rate: peak learning rate of the routers.
        top_k: experts per token in inference; 3 by default.
        dtype: type of the frozen backbone while training; the fastest of this machine by default.
        routers_only: save the routers alone and name the experts (by relative path and hash).
        title: a short name for people.
        command: the command to print in the model card.
        **config_fields: further fields of :class:`loramixer.LoraMixerConfig`.

    Returns:
        ``output``.
    """
    folder = Path(output)
    if (folder / "adapter_model.safetensors").is_file():
        print(f"{folder} holds a finished mixture; delete it to train it again.")
        return folder
    settings = LoopSettings(learning_rate, seed=seed)
    dtype = dtype or fast_training_dtype()
    torch.manual_seed(seed)
    model, tokenizer = load_backbone(backbone, dtype=dtype)
    files = model.backbone_files
    config = LoraMixerConfig(
        experts=dict(experts),
        routing_loss=loss,
        balance_weight=balance_weight,
        entropy_weight=entropy_weight,
        entropy=entropy,  # type: ignore[arg-type]
        top_k=top_k,
        task_type="CAUSAL_LM",  # type: ignore[arg-type]
        title=title or loss,
        tasks={name: list(RECIPES[name].tasks) for name in experts if name in RECIPES},
        save_experts=not routers_only,
        **config_fields,
    )
    rows, kept = mixture_rows(examples, list(experts), seed, tokenizer, settings)
    peft_model = get_peft_model(model, config)
    log = RunLog(
        settings={
            "stage": "router",
            "experts": list(experts),
            "loss": loss,
            "loss_text": config.loss_text,
            "backbone": files.name,
            "backbone_revision": files.revision,
            "data": data_origin() if isinstance(examples, int) else "given",
            "data_revisions": data_revisions() if isinstance(examples, int) else {},
            "rows": rows_per_task(kept),
            "licenses": task_licenses(list(rows_per_task(kept))),
            "rows_fingerprint": fingerprint(kept),
            "training_gate": config.training_gate,
            "dtype": str(dtype).removeprefix("torch."),
            **asdict(settings),
            "loss_warmup": LOSS_WARMUP,
            "versions": library_versions(),
        }
    )
    sites = len(peft_model.base_model.targeted_module_names)
    print(
        f"Training {sites} routers over {len(experts)} experts on {len(rows)} rows ({log.settings['data']} data), "
        f"{config.loss_text} …"
    )
    callbacks = [_WarmUpRoutingLoss(peft_model.base_model), _RoutingStatistics(peft_model.base_model, list(experts))]
    run_training(peft_model, tokenizer, rows, folder, settings, log, callbacks)
    save_mixture(peft_model, folder)
    write_router_card(folder, config.title, command, log, list(experts))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder


def mixture_rows(
    examples: int | Sequence[Example], experts: list[str], seed: int, tokenizer: Any, settings: LoopSettings
) -> tuple[list[dict[str, Any]], list[Example]]:
    """Encoded rows with ``expert_index`` (the row's own expert, −1 for none), and the rows that they are of."""
    if isinstance(examples, int):
        known = [name for name in experts if name in RECIPES]
        examples = mixed_examples(examples, seed, known or None)
    encoded, kept = encode_all(examples, tokenizer, settings.max_length, settings.max_answer)
    rows: list[dict[str, Any]] = [
        {
            "input_ids": row["input_ids"],
            "labels": row["labels"],
            "expert_index": experts.index(example.domain) if example.domain in experts else -1,
        }
        for row, example in zip(encoded, kept, strict=True)
    ]
    return rows, kept


def save_mixture(peft_model: Any, folder: Path) -> None:
    """Save a mixture under the public name of its backbone."""
    files = getattr(peft_model.get_base_model(), "backbone_files", None)
    config = peft_model.peft_config["default"]
    if files is not None:
        config.base_model_name_or_path = files.name
        config.revision = files.revision if files.origin == "hub" else None
    config.inference_mode = True
    peft_model.save_pretrained(folder, save_embedding_layers=False)


def find_experts(source: str) -> dict[str, str]:
    """The experts that a command names: those of a mixture (zoo name, folder, Hub id), or every LoRA in a folder.

    Raises:
        ExpertError: a folder without any LoRA.
    """
    folder = Path(source)
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        known = list(RECIPES)
        folders = [path.parent for path in folder.glob("*/adapter_config.json")]
        # The order of the gates: shipped domains in their usual order, then others by name.
        folders.sort(key=lambda path: (known.index(path.name) if path.name in known else len(known), path.name))
        found = {path.name: str(path) for path in folders}
        if not found:
            raise ExpertError(f"{source} holds no LoRA folders; give a folder whose subfolders are PEFT LoRAs.")
        return found
    config = LoraMixerConfig.from_pretrained(str(mixer_folder(source)))
    return {name: value["source"] for name, value in config.experts.items()}


class _WarmUpRoutingLoss(TrainerCallback):
    """Raises the weight of the routing loss linearly over the first part of the training."""

    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tuner.loss_warmup = min(1.0, state.global_step / max(1.0, LOSS_WARMUP * state.max_steps))


class _RoutingStatistics(TrainerCallback):
    """Adds the mean of the routing statistics since the last log to the trainer's log."""

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

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.seen or "loss" not in (kwargs.get("logs") or {}):
            return
        row = state.log_history[-1]
        for name in self.seen[0]:
            mean = torch.stack([found[name].float() for found in self.seen]).nanmean(dim=0)
            if name == "own_share":
                row["own_expert_share"] = {
                    expert: round(float(share), 4)
                    for expert, share in zip(self.experts, mean, strict=True)
                    if not torch.isnan(share)
                }
            else:
                row[name] = round(float(mean), 5)
        row["loss_warmup"] = round(self.tuner.loss_warmup, 4)
        self.seen = []
