"""The process that trains: ``python -m explorer.train_worker FOLDER``; see ``explorer.training_job``."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

# Works from a clone where the package is not installed.
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "lib")]

from explorer.replays import encode_frame, frame_of  # noqa: E402
from explorer.training_job import JobState, JobStatus, TrainingJob, write_json  # noqa: E402
from loramixer.trace import RoutingTrace  # noqa: E402

NICENESS = 5
"""Generation in other rooms goes first."""

FRAMES = 40
"""Frames of the probe prompt over a whole training."""

SAVES = 10
"""Checkpoints over a whole training, besides the one of a stop."""

logger = logging.getLogger(__name__)


class StoppedByUser(Exception):
    """Leaves the trainer after the checkpoint of a stop has been written."""


def run(folder: Path) -> JobStatus:
    """Train what ``job.json`` asks for, or go on from its last checkpoint; errors end up in ``status.json``.

    Args:
        folder: of the job.

    Returns:
        The last status.
    """
    from loramixer.errors import LoraMixerError

    job = TrainingJob.load(folder)
    text = f"Loading {job.backbone} and {len(job.experts)} experts …"
    JobStatus("starting", text, seconds=JobStatus.load(folder).seconds).save(folder)
    try:
        ended = _train(job, folder)
    except StoppedByUser:
        found = JobStatus.load(folder)
        ended = found.ended("stopped", f"Stopped after step {found.step} of {found.steps}; Resume goes on from there.")
    except LoraMixerError as error:
        ended = JobStatus.load(folder).ended("failed", _without_paths(str(error), folder))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        ended = JobStatus.load(folder).ended("failed", f"A file could not be read or written: {reason}.")
    except MemoryError:
        ended = JobStatus.load(folder).ended(
            "failed", "The memory of this machine did not suffice; take fewer experts."
        )
    except Exception as error:
        logger.exception("The training failed")
        text = f"The training ended with an error ({type(error).__name__}); the log of the server says more."
        ended = JobStatus.load(folder).ended("failed", text)
    ended.save(folder)
    return ended


def _train(job: TrainingJob, folder: Path) -> JobStatus:
    from loramixer.data import RECIPES, find_source, mixed_examples
    from loramixer.training import routers
    from loramixer.training.presets import CPU_SMALL

    replace(JobStatus.load(folder), rows=rows_text(job)).save(folder)
    own_domains = tuple(name for name in job.experts if name in RECIPES)
    rows: Any = job.examples
    if job.file or job.domains != own_domains:
        rows = mixed_examples(job.examples, job.seed, job.domains, find_source(None, list(job.experts)))
    steps = -(-job.examples // CPU_SMALL.routers.batch_size)
    # Every step is logged, so that the curves move; a step costs far more than a line.
    loop = replace(CPU_SMALL.routers, log_steps=1, save_steps=max(1, steps // SAVES))
    follower = Follower(job, folder)
    routers.train_router(
        folder / "mixture",
        dict(job.experts),
        loss=job.loss,  # type: ignore[arg-type]
        balance_weight=job.balance_weight,
        entropy_weight=job.entropy_weight,
        entropy=job.entropy,
        scale=job.scale,
        examples=rows,
        backbone=job.backbone,
        seed=job.seed,
        top_k=job.top_k,
        title=job.title,
        preset=replace(CPU_SMALL, routers=loop),
        callbacks=[follower.callback()],
        measure_speed=False,  # it takes as long as six steps, which are many here
    )
    done = JobStatus.load(folder)
    if done.steps and done.step < done.steps:
        text = f"Ended after {job.max_minutes:g} minutes, at step {done.step} of {done.steps}; the router is ready."
    else:
        text = f"Finished: {done.step} steps. The router is ready."
    return done.ended("finished", text)


ROWS_FROM = {
    "hub": "from the Hugging Face Hub",
    "folder": "from the data folder of this machine",
    "files": "of your file",
    "generated": "GENERATED, a toy set",
}
"""Origin of rows → in words that name no folder."""


def rows_text(job: TrainingJob) -> str:
    """Where the rows of a training come from, as :func:`loramixer.data.find_source` finds them here."""
    from loramixer.data import find_source

    return ROWS_FROM[find_source(None, list(job.experts)).origin]


class Follower:
    """Watches a training from inside: writes where it is, routes the probe prompt, and ends it when it is asked to.

    Args:
        job: what is trained.
        folder: of the job.
    """

    def __init__(self, job: TrainingJob, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.started = time.monotonic()
        self.first_step = 0
        self.before = JobStatus.load(folder)
        self.parent = os.getppid()

    def callback(self) -> Any:
        """For the trainer."""
        from transformers import TrainerCallback

        follower = self

        class Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                follower.begin(state, kwargs["model"], kwargs["processing_class"])

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                follower.step(state, control, kwargs["model"], kwargs["processing_class"])

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                follower.tell("saving", "The steps are done; the router is saved …", state)

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                follower.saved(kwargs["model"])

        return Callback()

    def begin(self, state: Any, model: Any, tokenizer: Any) -> None:
        """The first frame, of the routers before they are trained, or of those that a resumed run goes on with."""
        self.first_step = state.global_step
        self._tell(state)
        self._probe(state, model, tokenizer)
        self.started = time.monotonic()

    def step(self, state: Any, control: Any, model: Any, tokenizer: Any) -> None:
        """After every optimiser step."""
        self._tell(state)
        every = max(1, state.max_steps // FRAMES)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            self._probe(state, model, tokenizer)
        if state.global_step >= state.max_steps:
            return
        if self._is_stopped():
            control.should_save = True
        elif self.seconds > self.job.max_minutes * 60:
            control.should_training_stop = True

    def saved(self, model: Any) -> None:
        """After a checkpoint: leave, if it is the one of a stop."""
        if not self._is_stopped():
            return
        config = model.peft_config["default"]
        former = config.inference_mode
        config.inference_mode = True
        model.save_pretrained(self.folder / "partial", save_embedding_layers=False)
        config.inference_mode = former
        raise StoppedByUser

    def _is_stopped(self) -> bool:
        # A server that is gone will not ask any more, and nobody would see the rest.
        return (self.folder / "stop").exists() or os.getppid() != self.parent

    def _tell(self, state: Any) -> None:
        done = state.global_step - self.first_step
        left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step) if done > 0 else None
        self.tell("training", f"Training: step {state.global_step} of {state.max_steps}", state, left)

    def tell(self, now: JobState, text: str, state: Any, left: float | None = None) -> None:
        """Write down where the training is."""
        status = JobStatus(now, text, state.global_step, state.max_steps, left, self.seconds, self.before.rows)
        status.save(self.folder)

    @property
    def seconds(self) -> float:
        """Of training so far; Resume gives no new time."""
        return self.before.seconds + time.monotonic() - self.started

    def _probe(self, state: Any, model: Any, tokenizer: Any) -> None:
        trace = probe_trace(model, tokenizer, self.job.probe)
        gates, point, tokens = frame_of(trace)
        if not (self.folder / "probe.json").exists():
            head = {"tokens": tokens, "experts": trace.experts, "layers": trace.layers}
            write_json(self.folder / "probe.json", head)
        row = {"step": state.global_step, "frame": encode_frame(gates), "point": point}
        with (self.folder / "probe.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def probe_trace(model: Any, tokenizer: Any, prompt: str) -> RoutingTrace:
    """Route the probe prompt with soft gates; the training goes on as if nothing had been."""
    import loramixer
    from loramixer.training.batches import ordinary_attention
    from loramixer.tuner.runtime import active_runtime

    runtime = active_runtime(model)
    former = runtime.inference
    try:
        with ordinary_attention(model):
            loramixer.set_gate(model, mode="soft")
            return loramixer.trace(model, tokenizer, prompt)
    finally:
        runtime.inference = former


def _without_paths(text: str, folder: Path) -> str:
    """A sentence that tells strangers nothing about the folders of this machine."""
    return text.replace(f"{folder}{os.sep}", "").replace(str(folder), "the training's folder")


def main() -> None:
    """Entry point of the process."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    ended = run(Path(sys.argv[1]))
    print(ended.text, flush=True)


if __name__ == "__main__":
    main()
