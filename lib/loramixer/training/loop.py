"""What both training stages share: trainer settings, resuming after a kill, the run log, and speed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from loramixer.data import IGNORED_LABEL
from loramixer.errors import LoraMixerError
from loramixer.training.run_log import RunLog


@dataclass(frozen=True)
class LoopSettings:
    """How a run steps through its rows; the defaults fit a laptop CPU.

    Attributes:
        learning_rate: peak of the cosine schedule.
        batch_size: rows per forward pass.
        accumulation: forward passes per optimiser step.
        epochs: passes over the rows.
        warmup: share of the steps over which the learning rate rises.
        save_steps: optimiser steps between checkpoints.
        log_steps: optimiser steps between rows of the run log.
        max_length: longest row in tokens.
        max_answer: longest answer in tokens.
        group_by_length: rows of like length share a batch: less padding, but also fewer domains in a batch, which
            the balance term must not have.
        seed: orders the rows and initialises new weights.
    """

    learning_rate: float
    batch_size: int = 4
    accumulation: int = 2
    epochs: float = 1
    warmup: float = 0.1
    save_steps: int = 25
    log_steps: int = 5
    max_length: int = 512
    max_answer: int = 256
    group_by_length: bool = False
    seed: int = 0


def fast_training_dtype() -> torch.dtype:
    """The weight type in which this machine trains fastest without loss scaling: bfloat16 where it is native."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    cpu = torch.cpu
    native = getattr(cpu, "_is_avx512_bf16_supported", bool)() or getattr(cpu, "_is_amx_tile_supported", bool)()
    return torch.bfloat16 if native else torch.float32


def run_training(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    folder: Path,
    settings: LoopSettings,
    log: RunLog,
    callbacks: list[TrainerCallback] | None = None,
) -> RunLog:
    """Train ``model`` on encoded rows with the stock Trainer; resumes from the last whole checkpoint in ``folder``.

    Args:
        model: a PEFT model whose trainable parameters are the ones to train.
        tokenizer: pads the batches.
        rows: dictionaries with ``input_ids`` and ``labels``; other integer fields are passed on to the model.
        folder: receives ``checkpoints/`` and the run log.
        settings: batch, schedule and seed.
        log: filled row by row and saved whenever the trainer logs.
        callbacks: further trainer callbacks.

    Raises:
        LoraMixerError: the loss is not finite; the last checkpoint stays good.
    """
    checkpoints = folder / "checkpoints"
    resume_from = last_whole_checkpoint(checkpoints)
    # A resumed run counts the time that the killed one took, as far as its log knows.
    before = RunLog.load(folder).summary["seconds"] if resume_from else 0.0
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        save_total_limit=2,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED_LABEL),
        processing_class=tokenizer,
        callbacks=[*(callbacks or []), _RunLogCallback(log, folder, before), _StopOnNan()],
    )
    trainer.train(resume_from_checkpoint=resume_from)
    tokens = int(sum(len(row["input_ids"]) for row in rows) * settings.epochs)
    seconds = log.summary["seconds"]
    log.summary = {"seconds": seconds, "tokens": tokens, "tokens_per_second": round(tokens / max(seconds, 0.1), 1)}
    log.save(folder)
    return log


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None; one that a kill cut short is passed over."""
    whole = [
        path
        for path in folder.glob("checkpoint-*")
        if all((path / name).is_file() for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"))
    ]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


class _RunLogCallback(TrainerCallback):
    """Copies the trainer's log into the run log; on resume the trainer restores its history, so rows never repeat."""

    def __init__(self, log: RunLog, folder: Path, seconds_before: float) -> None:
        self.log = log
        self.folder = folder
        self.started = time.monotonic() - seconds_before

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.log.steps = [
            {"step": row["step"], **{name: value for name, value in row.items() if name != "step"}}
            for row in state.log_history
            if "loss" in row
        ]
        self._save()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save()

    def _save(self) -> None:
        self.log.summary["seconds"] = round(time.monotonic() - self.started, 1)
        self.log.save(self.folder)


class _StopOnNan(TrainerCallback):
    """Ends a run whose loss is no longer a number, instead of letting it write useless weights."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise LoraMixerError(
                f"The loss is {loss} at step {state.global_step}; the last checkpoint in {args.output_dir} is good, "
                "lower the learning rate and start again."
            )
