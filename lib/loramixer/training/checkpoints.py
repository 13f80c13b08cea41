"""What survives a run that ends early: whole checkpoints, words on how to go on, and routers kept along the way."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loramixer.distributed import is_main_process, say, wait_for_processes
from loramixer.errors import LoraMixerError, MixerError
from loramixer.experts import WEIGHTS_FILE

FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


CHECKPOINTS = "checkpoints"
"""Folder, inside that of a run, of its checkpoints; it goes when everything else is written."""


def is_finished(folder: Path, weights: str = WEIGHTS_FILE) -> bool:
    """Whether a run left its result in ``folder``, whole: weights are written before the card, checkpoints go last."""
    return (folder / weights).is_file() and not (folder / CHECKPOINTS).exists()


def discard(folder: Path) -> None:
    """Remove a folder that says that a run is not finished; a kill meanwhile leaves all of it or nothing."""
    gone = folder.with_name(f".{folder.name}-of-a-finished-run")
    shutil.rmtree(gone, ignore_errors=True)
    try:
        folder.rename(gone)
    except OSError:  # there is none, or this system renames no folder that is in use
        gone = folder
    shutil.rmtree(gone, ignore_errors=True)


def conclude(checkpoints: Path, write: Callable[[], None], run: Path | None = None) -> None:
    """Write the result of a run once for all processes, which wait for it, and then discard its checkpoints.

    Args:
        checkpoints: folder without which the run counts as finished, see :func:`is_finished`.
        write: writes everything else.
        run: folder that is discarded with them; the checkpoints alone by default.

    Raises:
        LoraMixerError: there is no room; the checkpoints stay, and the same command writes again.
    """
    if is_main_process():
        with survivable(checkpoints):
            write()
        discard(run or checkpoints)
    wait_for_processes()


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None; one that a kill cut short is passed over."""
    whole = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return str(max(whole, key=_step)) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    if not all((checkpoint / name).is_file() for name in ("optimizer.pt", "scheduler.pt")):
        return False
    try:  # the Trainer writes this file last, so that what can be read of it stands for all others
        return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == _step(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _step(checkpoint: str | Path) -> int:
    return int(Path(checkpoint).name.rpartition("-")[2])


def last_good_checkpoint_text(folder: Path) -> str:
    """Half a sentence: where the last whole checkpoint is and how to go on."""
    last = last_whole_checkpoint(folder)
    if last is None:
        return "there is no checkpoint yet, so the same command starts from the beginning"
    return f"the last checkpoint {last} is good, and the same command goes on from step {_step(last)}"


@contextmanager
def survivable(checkpoints: Path) -> Iterator[None]:
    """Say where the last good checkpoint is when the disk is full or somebody presses Ctrl-C.

    Raises:
        LoraMixerError: a file could not be written for lack of room.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"Stopped; {last_good_checkpoint_text(checkpoints)}.")
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_lack_of_room(error):
            raise
        raise LoraMixerError(
            f"A file in {checkpoints.parent} could not be written, since the disk is full or a limit is reached "
            f"({str(error).strip().splitlines()[0][:120]}); make room: {last_good_checkpoint_text(checkpoints)}."
        ) from error


def _is_lack_of_room(error: BaseException) -> bool:
    """Whether an error, or the one that it came from, is that of a disk without room; torch says it in words only."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return True
    words = ("No space left", "File too large", "os error 28", "os error 27", "PytorchStreamWriter", "unexpected pos")
    if any(word in text for word in words):
        return True
    return error.__context__ is not None and _is_lack_of_room(error.__context__)


class KeepRouters(TrainerCallback):
    """Saves the routers alone at chosen steps, each as a small mixture that names its experts."""

    def __init__(self, peft_model: Any, folder: Path, steps: Sequence[int]) -> None:
        self.peft_model = peft_model
        self.folder = folder
        self.steps = sorted(set(steps))
        config = peft_model.peft_config["default"]
        if self.steps and config.train_experts:
            raise MixerError("keep_routers_at keeps routers alone, but experts train too; leave one of the two out.")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.steps and not 0 <= self.steps[0] <= self.steps[-1] <= state.max_steps:
            raise LoraMixerError(
                f"keep_routers_at is {self.steps}; this run has the steps 0 (before training) to {state.max_steps}."
            )
        if state.global_step == 0:
            self._keep(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._keep(state)

    def _keep(self, state: TrainerState) -> None:
        if state.global_step not in self.steps or not state.is_world_process_zero:
            return
        folder = self.folder / f"step-{state.global_step:05d}"
        config = self.peft_model.peft_config["default"]
        former = config.save_experts, config.inference_mode
        config.save_experts, config.inference_mode = False, True
        try:
            self.peft_model.save_pretrained(folder, save_embedding_layers=False)
        finally:
            config.save_experts, config.inference_mode = former
        (folder / "README.md").unlink()  # the card of the whole run says it all
