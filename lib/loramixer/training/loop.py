"""What both training stages share: the stock Trainer, resuming after a kill, the run log, and what stops a run."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from loramixer.distributed import is_main_process, launched_processes, say, stack_on_first
from loramixer.errors import LoraMixerError
from loramixer.training.batches import (
    RowCollator,
    RowsOfLikeLength,
    SpreadRows,
    attention_row_by_row,
    backbone_of,
    make_collator,
    row_costs,
    token_count,
)
from loramixer.training.checkpoints import CHECKPOINTS, last_good_checkpoint_text, last_whole_checkpoint, survivable
from loramixer.training.run_log import RunLog
from loramixer.training.same_run import refuse_other_run
from loramixer.training.selective_scan import scan_by_hand
from loramixer.training.settings import LoopSettings
from loramixer.training.speed import measure_backbone
from loramixer.tuner.model import LoraMixerModel
from loramixer.versions import memory_allocator

TENSORBOARD = "tensorboard"
"""Reporter, and the folder of its files inside that of a run."""

REPORTERS = ("trackio", TENSORBOARD)
"""Where metrics can go besides the run log."""

SECONDS_BETWEEN_LINES = 10.0
"""The run log has every logged step; what is printed is for people, who read no faster than this."""

Statistics = Callable[[], dict[str, float]]
"""Gives what was seen since it was last asked, under names whose parts are divided by ``/``."""


def fast_training_dtype() -> torch.dtype:
    """The weight type in which this machine trains fastest without loss scaling: bfloat16 where it is native."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
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
    statistics: Statistics | None = None,
    optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
    measure_speed: bool = True,
    reports: Path | None = None,
) -> RunLog:
    """Train ``model`` on encoded rows with the stock Trainer; resumes from the last whole checkpoint in ``folder``.

    As one of several processes (`accelerate launch`, `torchrun`) it takes its part of the rows of every step, and the
    first process writes the log. The steps are those of one process and only rounding differs, but for
    ``group_by_length``: several processes take rows at random and spread their lengths instead.

    Args:
        model: a PEFT model, or a backbone by itself; its trainable parameters are the ones to train.
        tokenizer: names the padding.
        rows: dictionaries with ``input_ids`` and ``labels``; ``id`` is a text for messages; other fields are whole
            numbers and are passed on to the model.
        folder: receives ``checkpoints/`` and the run log.
        settings: batch, schedule and seed.
        log: filled row by row and saved whenever the trainer logs.
        callbacks: further trainer callbacks.
        statistics: joins every row of the log.
        optimizer: class and arguments of another optimiser than AdamW.
        measure_speed: whether a few batches at the end time the backbone alone.
        reports: folder that receives ``tensorboard/`` where that was asked for; ``folder`` by default.

    Raises:
        LoraMixerError: the loss or a gradient is not finite, or the disk is full; the last checkpoint stays good. Or
            there are more processes than rows in a forward pass, or the checkpoints are those of other settings.
    """
    checkpoints = folder / CHECKPOINTS
    names = [str(row.get("id", number)) for number, row in enumerate(rows)]
    numbered = [{**{k: v for k, v in row.items() if k != "id"}, "row": number} for number, row in enumerate(rows)]
    is_adapted = hasattr(model, "get_base_model")
    backbone = backbone_of(model)
    collator = make_collator(model, tokenizer, numbered)
    log.settings |= {
        "rows_in_line": collator.in_line,
        "logits_at_answers_only": collator.answers_only,
        "beginnings_shared": collator.share_beginning,
        "processes": launched_processes(),
        "threads": torch.get_num_threads(),
        "memory_allocator": memory_allocator(),
    }
    last = last_whole_checkpoint(checkpoints)
    if last is not None:
        refuse_other_run(folder, log.settings)
    trainer = _WatchedTrainer(
        model=model,
        args=training_arguments(checkpoints, settings, collator),
        train_dataset=numbered,  # type: ignore[arg-type]
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[*(callbacks or []), _RunLogCallback(log, folder)],
        optimizer_cls_and_kwargs=optimizer,
    )
    trainer.remove_callback(PrinterCallback)
    _keep_tensorboard(trainer, (reports or folder) / TENSORBOARD)
    trainer.add_callback(_StopOnBadGradient(trainer))
    trainer.row_names, trainer.statistics = names, statistics
    trainer.rows_per_forward = settings.batch_size
    in_line = attention_row_by_row(backbone) if collator.in_line else nullcontext()
    with survivable(checkpoints), in_line, scan_by_hand(backbone):
        try:
            trainer.train(resume_from_checkpoint=last)
        finally:
            if (tuner := mixture_of(model)) is not None:
                tuner.tokens_of_step = None  # a loop of somebody else's may follow
        is_whole = trainer.state.global_step >= trainer.state.max_steps
        # Not the trainer's own count: a resumed run takes it from the last logged step, which may lie further back.
        in_all = int(sum(len(row["input_ids"]) for row in rows) * settings.epochs)
        log.summary = trainer.summary(in_all if is_whole else None)
        if is_adapted and measure_speed:
            log.summary |= measure_backbone(model, trainer.get_train_dataloader())
        if is_main_process():
            log.save(folder)
    say(speed_text(log.summary))
    return log


def training_arguments(checkpoints: Path, settings: LoopSettings, collator: RowCollator) -> TrainingArguments:
    """What the Trainer is told.

    Raises:
        LoraMixerError: ``report_to`` is unknown or its package is missing; or there are too many processes.
    """
    processes = launched_processes()
    if processes > settings.batch_size:
        raise LoraMixerError(
            f"batch_size is {settings.batch_size}, too few rows of a forward pass for {processes} processes; start at "
            f"most {settings.batch_size}, or raise batch_size (--batch-size)."
        )
    if settings.report_to not in ("none", *REPORTERS):
        raise LoraMixerError(f"report_to is '{settings.report_to}'; it can be none, {' or '.join(REPORTERS)}.")
    if settings.report_to != "none" and importlib.util.find_spec(settings.report_to) is None:
        raise LoraMixerError(
            f"report_to is '{settings.report_to}', but this package is not installed; "
            f"pip install {settings.report_to}, or leave report_to out: the run log holds every number."
        )
    by_length = settings.group_by_length and not collator.in_line
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        learning_rate=settings.learning_rate,
        bf16=settings.autocast,
        # Bfloat16 on a CPU, and several processes on it, must be asked for.
        use_cpu=(settings.autocast or processes > 1) and not torch.cuda.is_available(),
        weight_decay=settings.weight_decay,
        per_device_train_batch_size=settings.batch_size // processes,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        save_total_limit=2,
        report_to=settings.report_to,
        run_name=checkpoints.parent.name,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        train_sampling_strategy="group_by_length" if by_length else "random",
        remove_unused_columns=False,
        label_names=["labels"],
    )
    # One process that sees several GPUs uses the first: `nn.DataParallel` would copy the model without its mixtures'
    # shared state and cut lines of rows apart. One process for each GPU is for the launcher.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _keep_tensorboard(trainer: Trainer, folder: Path) -> None:
    """Have its files written where they stay: by default they lie with the checkpoints, which go at the end."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:  # no TENSORBOARD_LOGGING_DIR
            callback.logging_dir = str(folder)


def mixture_of(model: Any) -> LoraMixerModel | None:
    """The tuner of a mixture; None of another adapter or a backbone by itself."""
    tuner = getattr(model, "base_model", None)
    return tuner if isinstance(tuner, LoraMixerModel) else None


def speed_text(summary: dict[str, Any]) -> str:
    """One line on how long a run took and how much of that the backbone alone would have taken."""
    text = (
        f"{summary['tokens']:,} tokens in {_duration(summary['seconds'])}: {summary['tokens_per_second']:g} tokens/s"
    )
    if summary["padding_share"]:
        text = f"{text}, {summary['padding_share']:.0%} of what was computed was padding"
    if summary["shared_share"]:
        text = f"{text}, {summary['shared_share']:.0%} of them equal beginnings of rows that were computed once"
    if summary.get("backbone_share") is None:
        return f"{text}."
    return (
        f"{text}; the backbone alone, forward and backward, takes {summary['backbone_share']:.0%} of a step, "
        f"which is {summary['backbone_tokens_per_second']:g} tokens/s."
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _WatchedTrainer(Trainer):
    """The Trainer with a look at every batch: which rows it holds, how many tokens, and whether its loss is finite."""

    row_names: Sequence[str] = ()
    rows_per_forward = 0
    statistics: Statistics | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.as_given = {name: (p.requires_grad, p.dtype) for name, p in self.model.named_parameters()}  # type: ignore[union-attr]
        self.started = time.monotonic()
        self.seconds_before = 0.0
        self.tokens = self.padded_tokens = 0  # of all processes, when they were last added up
        self.own_tokens = [0, 0]  # of this process since then: of the rows; computed, with padding
        self.rows_of_step: list[int] = []
        self.former_log = (0.0, 0)
        self.next_line = 0.0
        self.spread: SpreadRows | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        """Of several processes each takes its part of every batch, of about equally much work."""
        rows: Any = self.train_dataset
        if self.args.world_size == 1:
            if self.args.train_sampling_strategy != "group_by_length":
                return super()._get_train_sampler(train_dataset)
            rows_of_step = self.rows_per_forward * self.args.gradient_accumulation_steps
            return RowsOfLikeLength([len(row["input_ids"]) for row in rows], rows_of_step, self.args.seed)
        costs = row_costs(backbone_of(self.model), rows)
        processes, rank = self.args.world_size, self.args.process_index
        self.spread = SpreadRows(costs, self.rows_per_forward, processes, rank, self.args.seed)
        return self.spread

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Of the parameters that were to train when the run was set up, in the types that they had then.

        Before this the Trainer has read the checkpoint of a resumed run through PEFT, which can cast adapters to
        float32 and make frozen ones trainable.
        """
        for name, parameter in self.model.named_parameters():  # type: ignore[union-attr]
            trains, dtype = self.as_given[name]
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(trains)
        return super().create_optimizer(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Count the tokens of a step, and tell a mixture, since its routing loss is a mean over these."""
        batches, labels = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = sum(token_count(batch) for batch in batches)
        self.own_tokens[0] += tokens
        self.own_tokens[1] += sum(batch["input_ids"].numel() for batch in batches)
        if (tuner := mixture_of(self.model)) is not None:
            tuner.tokens_of_step = int(self.accelerator.reduce(torch.tensor(tokens, device=device), "sum"))
        return batches, labels

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        rows = inputs.pop("row").tolist()
        if getattr(self, "_step", None) != self.state.global_step:
            self._step, self.rows_of_step = self.state.global_step, []
        self.rows_of_step += rows
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss):
            self.stop(f"The loss is {float(loss)}", rows)
        return loss

    def stop(self, what: str, rows: Sequence[int]) -> None:
        """Ends a run before useless weights are written."""
        assert self.args.output_dir is not None
        names = ", ".join(self.row_names[row] for row in rows)
        raise LoraMixerError(
            f"{what} at step {self.state.global_step + 1}, in the batch of rows {names}; "
            f"{last_good_checkpoint_text(Path(self.args.output_dir))}. Lower the learning rate, or look at these rows."
        )

    def begin(self) -> None:
        """Start the clock; a resumed run goes on from what the log of its checkpoint says."""
        last: dict[str, Any] = next((row for row in reversed(self.state.log_history) if "seconds" in row), {})
        self.seconds_before, self.tokens = last.get("seconds", 0.0), last.get("tokens", 0)
        self.padded_tokens = last.get("tokens_with_padding", 0)
        self.started, self.former_log = time.monotonic(), (self.seconds_before, self.tokens)

    @property
    def seconds(self) -> float:
        """Of the whole run so far, the parts before a kill included."""
        return self.seconds_before + time.monotonic() - self.started

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add speed and statistics to a row before anybody, such as TensorBoard, takes it."""
        if "loss" in logs:
            self.add_up_tokens()
            if self.statistics is not None:
                logs |= self.statistics()
            seconds, step = self.seconds, self.state.global_step
            speed = (self.tokens - self.former_log[1]) / max(seconds - self.former_log[0], 1e-3)
            logs |= {
                "seconds": round(seconds, 3),
                "tokens": self.tokens,
                "tokens_with_padding": self.padded_tokens,
                "tokens_per_second": round(speed, 1),
                "seconds_left": round(seconds / max(step, 1) * (self.state.max_steps - step), 1),
            }
            self.former_log = (seconds, self.tokens)
            if seconds >= self.next_line or step == self.state.max_steps:
                self.next_line = seconds + SECONDS_BETWEEN_LINES
                say(
                    f"step {step}/{self.state.max_steps} · loss {logs['loss']:.4f} · {speed:.0f} tokens/s · "
                    f"{_duration(logs['seconds_left'])} left"
                )
        super().log(logs, start_time)

    def add_up_tokens(self) -> None:
        """Add what every process has seen since the last time; all of them must come here."""
        own = torch.tensor(self.own_tokens, device=self.args.device)
        new = self.accelerator.reduce(own, "sum").tolist()
        self.tokens, self.padded_tokens = self.tokens + new[0], self.padded_tokens + new[1]
        self.own_tokens = [0, 0]

    def summary(self, tokens: int | None) -> dict[str, Any]:
        """Of the whole run; all processes must come here.

        Args:
            tokens: where another count than the trainer's own is known.
        """
        self.add_up_tokens()
        tokens = self.tokens if tokens is None else tokens
        seconds = round(self.seconds, 3)
        # Rows that share tokens lie in a line, which has no padding: one of the two shares is always 0.
        padding = 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0
        shared = 1 - self.padded_tokens / self.tokens if self.padded_tokens else 0.0
        return {
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_second": round(tokens / max(seconds, 1e-3), 1),
            "padding_share": round(max(padding, 0.0), 4),
            "shared_share": round(max(shared, 0.0), 4),
        }


class _RunLogCallback(TrainerCallback):
    """Copies the trainer's log into the run log; on resume the trainer restores its history, so rows never repeat."""

    def __init__(self, log: RunLog, folder: Path) -> None:
        self.log = log
        self.folder = folder

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.log.steps = [_nested(row) for row in state.log_history if "loss" in row]
        if self.log.steps:
            self.log.summary = {"seconds": self.log.steps[-1]["seconds"]}
        if state.is_world_process_zero:
            self.log.save(self.folder)


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """``{"step": …, "own_expert_share": {"math": …}}`` from ``{"own_expert_share/math": …, "step": …}``."""
    found: dict[str, Any] = {"step": row["step"]}
    for name, value in row.items():
        group, _, part = name.partition("/")
        if part:
            found.setdefault(group, {})[part] = value
        else:
            found[name] = value
    return found


class _StopOnBadGradient(TrainerCallback):
    """Starts the clock and each epoch, and stops before a gradient that is no number reaches the weights."""

    def __init__(self, trainer: _WatchedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Where a run resumes inside an epoch, the wrapper that skips its batches keeps the epoch from the sampler.
        if self.trainer.spread is not None:
            self.trainer.spread.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.trainer.model is not None
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        if gradients and not stack_on_first([gradient.sum() for gradient in gradients]).isfinite().all():
            self.trainer.stop("A gradient is no number", self.trainer.rows_of_step)
