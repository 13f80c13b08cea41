"""Routers as points of the entropy–balance plane: from the files of the experiments, from run logs, and live."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loramixer.errors import LoraMixerError
from loramixer.evaluation.csv_files import Row, read_csv
from loramixer.metrics import plane_point, shuffled_token_band
from loramixer.mixers import MixerInfo, mixer_folder
from loramixer.trace import RoutingTrace
from loramixer.training.run_log import RunLog

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
"""Where the experiments of this repository write."""

COMMAND = "loramixer experiment plane --output docs/results"
"""Makes the files that this room reads."""

MOST_PATH_POINTS = 60

SIGNS = {
    "sharpen": "λ adds the entropy of single tokens to the loss, so training lowers it: tokens decide (sharpen).",
    "flatten": "λ subtracts the entropy of single tokens from the loss, as Eq. 5 of the paper is printed, so training "
    "raises it: tokens stay undecided (flatten).",
}


@dataclass(frozen=True)
class Span:
    """A number with its 95 % interval; without one, ``low`` and ``high`` are None."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> list[float] | None:
        """For the browser."""
        return None if self.low is None or self.high is None else [self.low, self.high]


@dataclass(frozen=True)
class Band:
    """Where a text of ``tokens`` tokens would fall if its tokens were drawn at random from all texts."""

    tokens: int
    undecided: tuple[float, float]
    balanced: tuple[float, float]


@dataclass(frozen=True)
class PlaneRouter:
    """One router, or the mean of several seeds, on the plane.

    Attributes:
        key: short, unique on the plane.
        title: for people.
        loss_text: what it was trained with.
        undecided: x.
        balanced: y.
        facts: what the numbers are over, in one sentence.
        sign: ``sharpen``, ``flatten`` or empty.
        seeds: number of trainings; 0 where nobody knows.
        loss: on test rows, nats per token.
        band: of shuffled tokens.
        dots: (undecided, balanced) of single seeds.
        mixer: name of an installed router of this kind.
        live: measured just now and not by an experiment.
    """

    key: str
    title: str
    loss_text: str
    undecided: Span
    balanced: Span
    facts: str
    sign: str = ""
    seeds: int = 0
    loss: Span | None = None
    band: Band | None = None
    dots: tuple[tuple[float, float], ...] = ()
    mixer: str | None = None
    live: bool = False


@dataclass(frozen=True)
class PlanePath:
    """A training as a path of points; ``router`` is the key of the point that it leads to."""

    router: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Plane:
    """Everything that the room draws."""

    routers: list[PlaneRouter] = field(default_factory=list)
    paths: list[PlanePath] = field(default_factory=list)
    is_measured: bool = False


def measured_plane(folder: Path, mixers: Sequence[MixerInfo]) -> Plane:
    """The plane of the experiments; empty when they have not been run.

    Args:
        folder: with ``plane.csv``, and where they exist ``plane-paths.csv``, ``losses.csv``, ``losses-summary.csv``.
        mixers: what is installed, to find the router of a setting.
    """
    points = _read(folder / "plane.csv")
    if not points:
        return Plane()
    losses, runs = _read(folder / "losses-summary.csv"), _read(folder / "losses.csv")
    routers = [_measured_router(row, losses, runs, mixers) for row in points]
    paths = []
    groups: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for row in _read(folder / "plane-paths.csv"):
        groups.setdefault((_key(row), row["seed"]), []).append((row["undecided"], row["balanced"]))
    known = {router.key for router in routers}
    paths = [PlanePath(key, _thinned(steps)) for (key, _), steps in groups.items() if key in known]
    return Plane(routers, paths, is_measured=True)


def logged_plane(mixers: Sequence[MixerInfo]) -> Plane:
    """The trainings of the installed routers from their run logs: paths only, since logs hold no test rows."""
    paths = []
    for mixer in mixers:
        try:
            log = RunLog.load(mixer_folder(mixer.name))
        except (LoraMixerError, OSError, ValueError, KeyError):
            continue
        if points := log_path(log.steps, len(mixer.experts)):
            paths.append(PlanePath(mixer.name, _thinned(points)))
    return Plane([], paths)


def log_path(steps: Sequence[Row], experts: int) -> list[tuple[float, float]]:
    """The points of the logged steps of one training: means over its rows since the step before."""
    width = float(np.log(experts))
    return [
        (row["token_entropy"] / width, row["load_entropy"] / width)
        for row in steps
        if row.get("token_entropy") is not None and row.get("load_entropy") is not None
    ]


LIVE = "live:"
"""Begins the key of a router that was measured just now and lies in no file."""


def live_router(mixer: MixerInfo, traces: Sequence[RoutingTrace]) -> PlaneRouter:
    """A router on texts that were routed just now, with soft gates and without the chat template.

    Args:
        mixer: the router.
        traces: of the texts; their tokens are pooled, and the band is for texts of their median length.
    """
    texts = []
    for trace in traces:
        _, kept = trace.select(roles=("prompt", "generated"))
        texts.append(trace.gates[:, kept & ~np.asarray(trace.tokens.special, dtype=bool)])
    pooled = np.concatenate(texts, axis=1)
    point, width = plane_point(pooled), float(np.log(pooled.shape[-1]))
    length = int(np.median([text.shape[1] for text in texts]))
    found = shuffled_token_band(pooled, length)
    return PlaneRouter(
        key=f"{LIVE}{mixer.name}",
        title=mixer.title,
        loss_text=mixer.loss,
        undecided=Span(float(point.undecided)),
        balanced=Span(float(point.balanced)),
        facts=(
            f"Measured just now on this machine, on the words of {len(texts)} example prompts, n = {pooled.shape[1]} "
            "tokens, soft gates. So few tokens of few texts place a router roughly."
        ),
        sign=sign_of(mixer.loss),
        seeds=1,
        band=Band(
            length,
            (found.token_entropy[0] / width, found.token_entropy[1] / width),
            (found.load_entropy[0] / width, found.load_entropy[1] / width),
        ),
        mixer=mixer.name,
        live=True,
    )


def sign_of(loss_text: str) -> str:
    """``sharpen``, ``flatten`` or empty, from a loss in words."""
    return next((sign for sign in SIGNS if re.search(rf"\b{sign}\b", loss_text)), "")


def loss_text_of(setting: str) -> str:
    """The routing loss in one line, of a setting of the experiments; one of another kind comes back as it is."""
    from loramixer.evaluation.experiments.plan import loss_named
    from loramixer.tuner import LoraMixerConfig

    found = re.fullmatch(r"RSL (sharpen|flatten) (\S+) / (\S+)", setting)
    fields: dict[str, Any]
    try:
        if found:
            fields = {
                "routing_loss": "rsl",
                "entropy": found[1],
                "balance_weight": float(found[2]),
                "entropy_weight": float(found[3]),
            }
        else:
            name, weight = re.fullmatch(r"(.*?)(?: ([\d.e-]+))?", setting).groups()  # type: ignore[union-attr]
            fields = {"routing_loss": loss_named(name)} | ({"balance_weight": float(weight)} if weight else {})
        return LoraMixerConfig(experts={"any": ""}, **fields).loss_text
    except (LoraMixerError, ValueError):
        return setting


def _measured_router(row: Row, losses: Sequence[Row], runs: Sequence[Row], mixers: Sequence[MixerInfo]) -> PlaneRouter:
    setting, loss_text = str(row["setting"]), loss_text_of(str(row["setting"]))
    loss = next(
        (
            Span(found["value"], found["low"], found["high"])
            for found in losses
            if found["quantity"] == "loss"
            and found["gate"] == "soft"
            and not found["against"]
            and (found["setting"], found["examples"]) == (row["setting"], row["examples"])
        ),
        None,
    )
    band = None
    if row.get("band_tokens") is not None:
        band = Band(
            int(row["band_tokens"]),
            (row["band_undecided_low"], row["band_undecided_high"]),
            (row["band_balanced_low"], row["band_balanced_high"]),
        )
    generated = " GENERATED rows: a toy set." if row.get("data") == "generated" else ""
    return PlaneRouter(
        key=_key(row),
        title=setting,
        loss_text=loss_text,
        undecided=Span(row["undecided"], row["undecided_low"], row["undecided_high"]),
        balanced=Span(row["balanced"], row["balanced_low"], row["balanced_high"]),
        facts=(
            f"Measured on {row['rows']:.0f} test rows, n = {row['tokens']:,.0f} tokens, soft gates; trained on "
            f"{row['examples']:,.0f} rows. Intervals: 95 % over {row['covers']}.{generated}"
        ),
        sign=sign_of(setting),
        seeds=int(row["seeds"]),
        loss=loss,
        band=band,
        dots=_dots(row, runs) if row["seeds"] > 1 else (),
        mixer=next((mixer.name for mixer in mixers if mixer.loss == loss_text), None),
    )


def _dots(row: Row, runs: Sequence[Row]) -> tuple[tuple[float, float], ...]:
    """Single seeds, from the file with one row per run."""
    own = [run for run in runs if _key(run) == _key(row) and run.get("token_entropy") is not None]
    loads = [
        name
        for name in (own[0] if own else ())
        if name.startswith("load_") and f"{name}_low" in own[0] and name not in ("load_entropy", "load_variance")
    ]
    width = float(np.log(len(loads))) if len(loads) > 1 else 0.0
    return tuple((run["token_entropy"] / width, run["load_entropy"] / width) for run in own) if width else ()


def _key(row: Row) -> str:
    return f"{row['setting']} · {row['examples']:.0f}"


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """At most ``MOST_PATH_POINTS`` of the points, the first and the last among them."""
    if len(points) <= MOST_PATH_POINTS:
        return tuple(points)
    places = np.linspace(0, len(points) - 1, MOST_PATH_POINTS).round().astype(int)
    return tuple(points[place] for place in places)


def _read(path: Path) -> list[Row]:
    return read_csv(path) if path.is_file() else []
