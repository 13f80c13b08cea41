"""Trainings of the explorer: one process at a time on this machine, each in a temporary folder of its own."""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from explorer.leftovers import delete_folder, sweep, temporary_folder
from explorer.training_job import RUNNING, JobStatus, TrainingJob, trained_folder
from loramixer.cards import UNPUBLISHED
from loramixer.errors import LoraMixerError
from loramixer.experts import CONFIG_FILE as EXPERT_CONFIG
from loramixer.experts import WEIGHTS_FILE as EXPERT_WEIGHTS
from loramixer.hub import split_hub_id
from loramixer.mixers import CONFIG_FILE, WEIGHTS_FILE, ZOO

ROOT = Path(__file__).resolve().parents[1]
KEPT = 4
"""Trainings that have ended and are still kept, all visitors together; older ones are deleted."""

SECONDS_TO_STOP = 120
"""A process that does not stop by itself for so long is ended."""

PORTABLE = ("adapter_model.safetensors", "adapter_config.json", "README.md", "run_log.json")
"""What a downloaded folder holds: what ``loramixer.load_mixer`` takes, its card, and its curves."""

logger = logging.getLogger(__name__)


STOPPING = "Stopping after this step; a checkpoint is written, and the router of that step kept …"
"""While a process has been asked to stop; it may still be loading the model, and then stops after the first step."""


class TrainingBusy(LoraMixerError):
    """Another training is running on this machine."""


@dataclass
class _Running:
    """One training of this server."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    mixer: str = ""
    added: tuple[Path, int] | None = None
    began: float = field(default_factory=time.monotonic)
    asked_to_stop: float | None = None


class Trainings:
    """Starts, watches and ends trainings; safe to use from many threads.

    The key of a training cannot be guessed: whoever knows it may watch, stop, resume and download it.

    Args:
        command: of the process, before the folder.
        forget_mixer: is told the name of the router of a training that is deleted.
    """

    def __init__(
        self,
        command: Sequence[str] = (sys.executable, "-m", "explorer.train_worker"),
        forget_mixer: Callable[[str], None] | None = None,
    ) -> None:
        self._command = tuple(command)
        self._forget_mixer = forget_mixer
        self._lock = threading.Lock()
        self._trainings: dict[str, _Running] = {}
        atexit.register(self.close)

    def start(self, job: TrainingJob) -> str:
        """Begin a training; returns its key.

        Raises:
            TrainingBusy: another one runs.
            LoraMixerError: the folder cannot be written.
        """
        with self._lock:
            self._refuse_second()
            self._make_room()
            sweep()
            key = uuid.uuid4().hex
            folder: Path | None = None
            try:
                folder = temporary_folder("training")
                job = replace(job, experts=_kept_experts(job.experts, folder / "experts"))
                if job.file:
                    job = replace(job, file=str(shutil.copyfile(job.file, folder / "rows.jsonl")))
                job.save(folder)
            except OSError as error:
                if folder is not None:
                    delete_folder(folder)
                raise LoraMixerError(
                    f"The temporary folder of this machine cannot be written ({error.strerror}); make room there."
                ) from error
            self._trainings[key] = _Running(folder)
            self._launch(key, job)
            return key

    def resume(self, key: str) -> None:
        """Go on from the last checkpoint.

        Raises:
            TrainingBusy: another one runs.
            LoraMixerError: there is no such training.
        """
        with self._lock:
            training = self._find(key)
            self._refuse_second()
            (training.folder / "stop").unlink(missing_ok=True)
            status = JobStatus.load(training.folder)
            status.ended("starting", "The training process starts again …").save(training.folder)
            self._launch(key, TrainingJob.load(training.folder))

    def stop(self, key: str) -> None:
        """Ask a training to write a checkpoint and end; the second time, end it at once."""
        with self._lock:
            training = self._find(key)
            if training.asked_to_stop is not None:
                self._kill(training)
            training.asked_to_stop = time.monotonic()
            (training.folder / "stop").touch()

    def status(self, key: str) -> JobStatus:
        """How far a training is; one whose process is gone has failed or was ended.

        Raises:
            LoraMixerError: there is no such training.
        """
        with self._lock:
            training = self._find(key)
            process = training.process
            asked = training.asked_to_stop
            if asked is not None and time.monotonic() - asked > SECONDS_TO_STOP:
                self._kill(training)
            # First whether the process is gone, then what it wrote last.
            is_gone = process is None or process.poll() is not None
            found = JobStatus.load(training.folder)
            if is_gone and found.state in RUNNING:
                found = self._gone(training, found)
                found.save(training.folder)
            elif asked is not None and found.state in RUNNING:
                found = replace(found, state="stopping", text=STOPPING, seconds_left=None)
            return found

    def folder(self, key: str) -> Path:
        """Folder of a training.

        Raises:
            LoraMixerError: there is no such training.
        """
        with self._lock:
            return self._find(key).folder

    def mixer(self, key: str, add: Callable[[Path, str], str]) -> str:
        """Name of the trained router in a registry, which is told of it when it is first asked for.

        Args:
            key: of the training.
            add: takes folder and title of a mixture, and returns its name.

        Raises:
            LoraMixerError: there is no router yet.
        """
        with self._lock:
            training = self._find(key)
            if (found := trained_folder(training.folder)) is None:
                raise LoraMixerError("There is no router yet; let the training finish, or stop it.")
            # Every stop saves into the same folder, so that the folder alone does not say which router it holds.
            saved = found, (found / WEIGHTS_FILE).stat().st_mtime_ns
            if training.added != saved:
                self._forget(training)
                training.mixer = add(found, TrainingJob.load(training.folder).title)
                training.added = saved
            return training.mixer

    def folders(self) -> list[Path]:
        """Folders of all trainings, in the order in which they last began."""
        with self._lock:
            return [found.folder for found in sorted(self._trainings.values(), key=lambda found: found.began)]

    def is_busy(self) -> bool:
        """Whether a training runs on this machine."""
        with self._lock:
            return self._busy() is not None

    def discard(self, key: str) -> None:
        """End a training and delete its folder."""
        with self._lock:
            if training := self._trainings.pop(key, None):
                self._kill(training)
                self._delete(training)

    def zip_mixture(self, key: str) -> Path:
        """A zip file of the trained mixture, made anew.

        Raises:
            LoraMixerError: there is nothing to download yet.
        """
        folder = self.folder(key)
        if (mixture := trained_folder(folder)) is None:
            raise LoraMixerError("There is no router to download yet; let the training finish, or stop it.")
        path = folder / "router.zip"
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w", zipfile.ZIP_STORED) as archive:
            for name in PORTABLE:
                file = mixture / name
                if not file.is_file() and name == "run_log.json":
                    file = folder / "mixture" / name
                if name == CONFIG_FILE:
                    archive.writestr(f"router/{name}", _without_places(file.read_text(encoding="utf-8")))
                elif file.is_file():
                    archive.write(file, f"router/{name}")
        path.write_bytes(memory.getvalue())
        return path

    def close(self) -> None:
        """End everything and delete all folders; the server does it when it ends."""
        for key in list(self._trainings):
            self.discard(key)

    # ------------------------------------------------------------------ inside, with the lock held

    def _find(self, key: str) -> _Running:
        if key not in self._trainings:
            raise LoraMixerError("This training is no longer here; start a new one.")
        return self._trainings[key]

    def _busy(self) -> _Running | None:
        return next(
            (found for found in self._trainings.values() if found.process and found.process.poll() is None), None
        )

    def _refuse_second(self) -> None:
        if other := self._busy():
            left = JobStatus.load(other.folder).seconds_left
            about = f"; about {max(1, round(left / 60))} min are left" if left else ""
            raise TrainingBusy(f"Another training runs on this machine{about}. One at a time: try again later.")

    def _make_room(self) -> None:
        ended = sorted(self._trainings, key=lambda key: self._trainings[key].began)
        for key in ended[: max(0, len(ended) - KEPT + 1)]:
            self._delete(self._trainings.pop(key))

    def _delete(self, training: _Running) -> None:
        self._forget(training)
        delete_folder(training.folder)

    def _forget(self, training: _Running) -> None:
        if training.mixer and self._forget_mixer:
            # A registry lets a run end first, and nobody here shall wait for that.
            threading.Thread(target=self._forget_mixer, args=(training.mixer,), daemon=True).start()
        training.mixer = ""

    def _launch(self, key: str, job: TrainingJob) -> None:
        training = self._trainings[key]
        path = os.pathsep.join((str(ROOT / "lib"), str(ROOT)))
        environment = {**os.environ, "PYTHONPATH": path, **job.environment}
        with (training.folder / "log.txt").open("ab") as log:
            training.process = subprocess.Popen(
                [*self._command, str(training.folder)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        training.asked_to_stop, training.began = None, time.monotonic()

    def _kill(self, training: _Running) -> None:
        process = training.process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def _gone(self, training: _Running, found: JobStatus) -> JobStatus:
        if training.asked_to_stop is not None:
            goes_on = "starts again, for there is no checkpoint yet"
            if any(training.folder.glob("mixture/*/checkpoint-*")):
                goes_on = "goes on from the last checkpoint"
            where = f" at step {found.step} of {found.steps}" if found.steps else " before the first step"
            return found.ended("stopped", f"Ended{where}; Resume {goes_on}.")
        log = (training.folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
        logger.error("A training process ended without a word; the end of its log:\n%s", log)
        text = (
            "The training process ended without a word; the memory of this machine may not have sufficed. Resume goes "
            "on from the last checkpoint, and the log of the server says more."
        )
        return found.ended("failed", text)


def _kept_experts(experts: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The experts of a training, those of a visitor copied: their folders go when the visitor leaves or reloads."""
    kept = dict(experts)
    for name, source in experts.items():
        place = Path(source)
        if not place.is_dir() or place.is_relative_to(ZOO):
            continue
        (folder / name).mkdir(parents=True)
        for file in (EXPERT_CONFIG, EXPERT_WEIGHTS):
            if (place / file).is_file():
                shutil.copyfile(place / file, folder / name / file)
        kept[name] = str(folder / name)
    return kept


def _without_places(config: str) -> str:
    """A mixture's configuration whose experts, which it holds itself, name no folder of this machine."""
    found = json.loads(config)
    for expert in found.get("experts", {}).values():
        source = expert.get("source") or ""
        if source and split_hub_id(source) is None:
            expert["source"] = UNPUBLISHED + Path(source).name
    return json.dumps(found, indent=2, sort_keys=True) + "\n"
