"""The work folder that all experiments share, so that a router that two of them need is trained once.

WORK/origin.json                       what the work folder belongs to: backbone, experts, data
WORK/routers/RUN/                      a trained mixture (routers only) with its run log
WORK/measurements/KEY/RUN/GATE.npz     numbers and bootstrap samples; KEY names test rows and data type
WORK/measurements/KEY/GATE.npz         gates that ask no router
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from loramixer.data import RECIPES, Example, data_origin, fingerprint, held_out_examples
from loramixer.errors import DataError
from loramixer.evaluation.experiments.measure import Measurement
from loramixer.evaluation.experiments.plan import BASE_GATES, Run
from loramixer.mixers import WEIGHTS_FILE
from loramixer.training.run_log import RunLog


@dataclass(frozen=True)
class Workshop:
    """Where runs are kept, and what all of them share.

    Attributes:
        work: the work folder.
        sources: expert name → folder or Hub id of a plain PEFT LoRA.
        backbone: what :func:`loramixer.load_backbone` takes.
        limit: test rows per domain.
        test_seed: chooses the test rows.
        dtype: of the backbone while measuring.
        training_dtype: of the backbone while training; the fastest of this machine by default.
    """

    work: Path
    sources: dict[str, str]
    backbone: str = "smollm2-135m"
    limit: int = 100
    test_seed: int = 0
    dtype: torch.dtype = torch.float32
    training_dtype: torch.dtype | None = None

    @property
    def domains(self) -> list[str]:
        """Domains that have test rows and an expert, or all where no expert is known."""
        return [name for name in self.sources if name in RECIPES] or list(RECIPES)

    def test_rows(self) -> list[Example]:
        """The held-out rows of all domains."""
        return [row for domain in self.domains for row in held_out_examples(domain, self.limit, self.test_seed)]

    def key(self, rows: Sequence[Example]) -> str:
        """Names the test rows and how they are measured; numbers with different keys never meet in one file."""
        return f"n{len(rows)}-{fingerprint(rows)}-{str(self.dtype).removeprefix('torch.')}"

    def router_folder(self, run: Run) -> Path:
        """The trained mixture of a run."""
        return self.work / "routers" / run.name

    def is_trained(self, run: Run) -> bool:
        """Whether the training of a run has finished."""
        return (self.router_folder(run) / WEIGHTS_FILE).is_file()

    def measurement_file(self, key: str, run: Run, gate: str) -> Path:
        """Where the measurement of a run under a gate is kept."""
        folder = self.work / "measurements" / key
        return (folder if gate in BASE_GATES else folder / run.name) / f"{gate}.npz"

    def check_origin(self) -> None:
        """Write down what a new work folder belongs to, or compare.

        Raises:
            DataError: the folder was begun with another backbone, other experts or other data.
        """
        origin = {
            "backbone": self.backbone,
            "experts": {name: _identity(source) for name, source in self.sources.items()},
            "data": data_origin(),
        }
        path = self.work / "origin.json"
        if path.is_file():
            former = json.loads(path.read_text(encoding="utf-8"))
            odd = next((name for name in origin if former.get(name) != origin[name]), None)
            if odd is not None:
                raise DataError(
                    f"{self.work} was begun with other {odd} ({former.get(odd)}, now {origin[odd]}); give another "
                    "--work folder."
                )
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")

    def timings(self) -> tuple[float | None, float | None]:
        """Measured seconds per training row, and per gate on these test rows; None where nothing has been timed."""
        logs = [
            log
            for path in sorted((self.work / "routers").glob(f"*/{WEIGHTS_FILE}"))
            if (log := RunLog.load(path.parent)).summary.get("seconds")
        ]
        examples = sum(sum(log.settings["rows"].values()) for log in logs)
        per_example = sum(log.summary["seconds"] for log in logs) / examples if examples else None
        folder = self.work / "measurements" / self.key(self.test_rows())
        gates = [Measurement.load(path).facts["seconds"] for path in folder.glob("**/[!.]*.npz")]
        return per_example, sum(gates) / len(gates) if gates else None


def _identity(source: str) -> str:
    """The hash of an expert's weights, or its Hub id."""
    weights = Path(source) / WEIGHTS_FILE
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16] if weights.is_file() else source
