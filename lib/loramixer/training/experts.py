"""Stage 1: one plain PEFT LoRA per domain, each trained by itself on its domain's rows (paper, section 3.2)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from loramixer.backbones import BackboneFiles, load_backbone
from loramixer.cards import write_expert_card
from loramixer.data import (
    DEFAULT_DOMAINS,
    RECIPES,
    data_origin,
    data_revisions,
    encode_all,
    expert_examples,
    fingerprint,
    rows_per_task,
    task_licenses,
)
from loramixer.errors import ExpertError
from loramixer.training.loop import LoopSettings, fast_training_dtype, run_training
from loramixer.training.run_log import RunLog
from loramixer.versions import library_versions

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def train_experts(
    output: str | Path,
    domains: Sequence[str] | None = None,
    *,
    backbone: str = "smollm2-135m",
    seed: int = 0,
    rank: int = 16,
    learning_rate: float = 8e-4,
    limit: int | None = None,
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """Train LoRA experts one by one; an expert that is already finished in ``output`` is left as it is.

    Args:
        output: folder that receives one PEFT folder per domain.
        domains: names of :data:`loramixer.data.RECIPES`; :data:`loramixer.data.DEFAULT_DOMAINS` by default.
        backbone: what :func:`loramixer.load_backbone` takes.
        seed: rows, order and initial weights.
        rank: LoRA rank r; ``lora_alpha`` is twice as much, as in the paper's A.6.
        learning_rate: peak learning rate.
        limit: at most this many rows per expert (for a trial).
        dtype: type of the frozen backbone while training; the fastest of this machine by default.

    Returns:
        The folders, each with ``adapter_config.json``, bfloat16 ``adapter_model.safetensors``, ``run_log.json`` and a
        model card.
    """
    unknown = [name for name in domains or () if name not in RECIPES]
    if unknown:
        raise ExpertError(f"There is no recipe for {', '.join(unknown)}; there are {', '.join(RECIPES)}.")
    return [
        train_expert(
            Path(output) / name,
            name,
            backbone=backbone,
            settings=LoopSettings(
                learning_rate, epochs=RECIPES[name].epochs, warmup=0.05, group_by_length=True, seed=seed
            ),
            rank=rank,
            limit=limit,
            dtype=dtype or fast_training_dtype(),
        )
        for name in domains or DEFAULT_DOMAINS
    ]


def train_expert(
    folder: Path,
    domain: str,
    *,
    backbone: str,
    settings: LoopSettings,
    rank: int,
    limit: int | None,
    dtype: torch.dtype,
) -> Path:
    """Train one expert into ``folder``; see :func:`train_experts`."""
    if (folder / "adapter_model.safetensors").is_file():
        print(f"{folder} holds a finished expert; delete it to train it again.")
        return folder
    torch.manual_seed(settings.seed)
    model, tokenizer = load_backbone(backbone, dtype=dtype)
    files: BackboneFiles = model.backbone_files
    encoded, examples = encode_all(
        expert_examples(domain, settings.seed)[:limit], tokenizer, settings.max_length, settings.max_answer
    )
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in encoded]
    print(f"Training the {domain} expert on {len(rows)} rows ({data_origin()} data) …")
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.05,
        target_modules=list(ATTENTION_PROJECTIONS),
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, lora)
    log = RunLog(
        settings={
            "stage": "expert",
            "domain": domain,
            "backbone": files.name,
            "backbone_revision": files.revision,
            "data": data_origin(),
            "data_revisions": data_revisions(),
            "rows": rows_per_task(examples),
            "rows_fingerprint": fingerprint(examples),
            "rank": rank,
            "dtype": str(dtype).removeprefix("torch."),
            **asdict(settings),
            "versions": library_versions(),
        }
    )
    run_training(peft_model, tokenizer, rows, folder, settings, log)
    save_expert(peft_model, folder, files)
    recipe = RECIPES[domain]
    write_expert_card(folder, replace(recipe, licenses=task_licenses(list(recipe.tasks))), log)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder


def save_expert(peft_model: Any, folder: Path, files: BackboneFiles) -> None:
    """Save a trained LoRA as a plain PEFT folder with bfloat16 weights that names its backbone by its public name."""
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    config = peft_model.peft_config["default"]
    config.base_model_name_or_path = files.name
    config.revision = files.revision if files.origin == "hub" else None
    config.inference_mode = True
    peft_model.save_pretrained(folder, save_embedding_layers=False)
