"""What has been measured so far, and how runs of several seeds become one number with an interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loramixer.data import data_origin
from loramixer.evaluation.csv_files import Row, write_csv
from loramixer.evaluation.experiments.measure import ROUTING_GATE, Measurement
from loramixer.evaluation.experiments.plan import BASE_GATES, Options, Run
from loramixer.evaluation.experiments.workshop import Workshop
from loramixer.metrics import Estimate, combine_seeds
from loramixer.training.run_log import RunLog


def limits(quantity: str, experts: int) -> tuple[float, float]:
    """The smallest and the largest value that a quantity can have; differences have others."""
    if quantity in ("token_entropy", "load_entropy", "mutual_information", "domain_information"):
        return 0.0, float(np.log(experts))
    shares = ("accuracy", "own_share", "share_of_", "load_")
    return 0.0, 1.0 if quantity.startswith(shares) and quantity != "load_variance" else float("inf")


@dataclass
class Results:
    """Everything that an experiment writes from.

    Attributes:
        options: what was chosen.
        workshop: where runs are kept, and what they share.
        rows: number of test rows.
        key: names the test rows and the evaluation's data type.
        measured: finished runs → gate → what it gave.
        base: gate of :data:`BASE_GATES` → what it gave.
        logs: finished runs → their logs.
        data: where rows come from, ``folder`` or ``generated``.
        stored_only: whether nothing is to be measured.
    """

    options: Options
    workshop: Workshop
    rows: int
    key: str
    measured: dict[Run, dict[str, Measurement]] = field(default_factory=dict)
    base: dict[str, Measurement] = field(default_factory=dict)
    logs: dict[Run, RunLog] = field(default_factory=dict)
    data: str = field(default_factory=data_origin)
    stored_only: bool = False

    def groups(self) -> dict[tuple[str, int], list[Run]]:
        """``(setting, examples)`` → the finished runs of it, one per seed."""
        groups: dict[tuple[str, int], list[Run]] = {}
        for run in self.measured:
            groups.setdefault((run.setting, run.examples), []).append(run)
        return groups

    def measurement(self, run: Run, gate: str) -> Measurement | None:
        """What a run gave under a gate, or None; gates that ask no router are the same for all runs."""
        return self.base.get(gate) if gate in BASE_GATES else self.measured[run].get(gate)

    def estimate(self, runs: Iterable[Run], quantity: str, gate: str = ROUTING_GATE) -> Estimate | None:
        """Mean over the seeds of one setting with its interval, or None where nothing was measured."""
        found = [m for run in runs if (m := self.measurement(run, gate)) and quantity in m.values]
        if not found:
            return None
        if gate in BASE_GATES:
            found = found[:1]  # the same number for every seed
        mean = combine_seeds([m.values[quantity] for m in found], np.stack([m.draws[quantity] for m in found]))
        return mean.within(*limits(quantity, len(self.options.experts)))

    def difference(
        self,
        runs: Sequence[Run],
        against: Sequence[Run],
        quantity: str,
        gate: str = ROUTING_GATE,
        against_gate: str | None = None,
    ) -> Estimate | None:
        """``runs`` − ``against``, paired by seed and by test row; None where no seed has both.

        Runs with equally many training rows are paired only where these are the same rows.
        """
        pairs = []
        for run in runs:
            other = next((found for found in against if self._belong_together(run, found)), None)
            if other is None:
                continue
            first, second = self.measurement(run, gate), self.measurement(other, against_gate or gate)
            if first and second and quantity in first.values and quantity in second.values:
                pairs.append((first, second))
        if not pairs:
            return None
        return combine_seeds(
            [first.values[quantity] - second.values[quantity] for first, second in pairs],
            np.stack([first.draws[quantity] - second.draws[quantity] for first, second in pairs]),
        )

    def _belong_together(self, run: Run, other: Run) -> bool:
        """Whether two runs are a pair: of one seed and, with equally many training rows, on the same."""
        if run.seed != other.seed or run.examples != other.examples:
            return run.seed == other.seed
        settings = [self.logs[found].settings for found in (run, other) if found in self.logs]
        return len({str(found["rows_fingerprint"]) for found in settings if "rows_fingerprint" in found}) <= 1

    def rows_of(self, quantity: str) -> int:
        """The number of test rows that a quantity stands on, see :meth:`Measurement.rows_of`."""
        first = next((found for gates in (self.base, *self.measured.values()) for found in gates.values()), None)
        return self.rows if first is None else first.rows_of(quantity)

    def summary_row(
        self, setting: str, examples: int | None, quantity: str, gate: str, against: str, found: Estimate
    ) -> Row:
        """One line of a summary file."""
        return {
            "setting": setting,
            "examples": examples,
            "gate": gate,
            "quantity": quantity,
            "against": against or None,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "seeds": found.seeds,
            "rows": self.rows_of(quantity),
            "covers": found.covers,
            "data": self.data,
        }

    def plain_rows(self, only: Iterable[str] | None = None) -> list[Row]:
        """Every quantity of every setting and gate, with its interval over seeds and rows."""
        rows = []
        for (setting, examples), runs in self.groups().items():
            gates = dict.fromkeys(gate for run in runs for gate in self.measured[run])
            for gate in gates:
                names = dict.fromkeys(
                    name for run in runs if gate in self.measured[run] for name in self.measured[run][gate].values
                )
                for quantity in names:
                    found = self.estimate(runs, quantity, gate)
                    if found is not None and (only is None or quantity in only):
                        rows.append(self.summary_row(setting, examples, quantity, gate, "", found))
        return rows

    def difference_rows(
        self,
        setting: tuple[str, int],
        against: tuple[str, int],
        quantities: Mapping[str, Sequence[str]],
    ) -> list[Row]:
        """Paired differences of two settings: quantity → gates."""
        groups = self.groups()
        if setting not in groups or against not in groups:
            return []
        name = against[0] if against[1] == setting[1] else f"{against[0]}, {against[1]} examples"
        return [
            self.summary_row(*setting, quantity, gate, name, found)
            for quantity, gates in quantities.items()
            for gate in gates
            if (found := self.difference(groups[setting], groups[against], quantity, gate)) is not None
        ]

    def run_rows(self) -> list[Row]:
        """One row per finished run: what it was, what it took, and every number with its interval over rows."""
        return [self._run_row(run) for run in self.measured]

    def _run_row(self, run: Run) -> Row:
        log = self.logs[run]
        row: Row = {"run": run.name, "setting": run.setting, **asdict(run)}
        row |= {
            "rows_trained": sum(log.settings.get("rows", {}).values()),
            "training_seconds": log.summary.get("seconds"),
            "tokens_per_second": log.summary.get("tokens_per_second"),
            "measurement": self.key,
            "data": self.data,
            "test_rows": self.rows,
        }
        for gate, found in self.measured[run].items():
            row[f"seconds_{gate}"] = found.facts["seconds"]
            for quantity, value in found.values.items():
                name = f"{quantity}_{gate}" if quantity.startswith(("loss", "accuracy")) else quantity
                low, high = found.interval(quantity)
                row |= {name: value, f"{name}_low": low, f"{name}_high": high}
            if "tokens" in found.facts:
                row |= {"test_tokens": found.facts["tokens"]}
                row |= {f"test_tokens_{name}": count for name, count in found.facts["tokens_per_domain"].items()}
                row |= {"domain_information_null": found.facts["domain_information_null"]}
        return row

    def write(self, folder: Path, name: str, summary: Iterable[dict[str, Any]]) -> None:
        """Write ``NAME.csv``, one row per run, and ``NAME-summary.csv``, one row per number with its interval."""
        if self.measured:
            write_csv(folder / f"{name}.csv", self.run_rows())
            write_csv(folder / f"{name}-summary.csv", summary)
