"""The measured answer of each lesson, read from recordings and result files when it is asked for; never typed in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from explorer.examples import find_example
from explorer.recordings import Recordings
from explorer.rooms.tradeoff.points import RESULTS, PlaneRouter, measured_plane
from loramixer.data.schema import Span
from loramixer.errors import LoraMixerError
from loramixer.evaluation.csv_files import read_csv
from loramixer.spans import spans_in_trace, tokens_of_spans
from loramixer.trace import RoutingTrace

ROOT = RESULTS.parents[1]
"""Source files are named as they lie in the repository."""

SAME = 0.02
"""Shares closer than this count as about the same."""


@dataclass(frozen=True)
class Number:
    """A measured number that is guessed before it is shown; both lie between 0 and ``high``.

    Attributes:
        value: what was measured.
        high: largest that it could be.
        unit: ``%`` for shares, which are then given from 0 to 100; empty for a number without one.
    """

    value: float
    high: float
    unit: Literal["%", ""] = ""

    def allows(self, guess: float | None) -> bool:
        """Whether a guess could be right."""
        return guess is not None and 0 <= guess <= self.high

    def text(self, value: float) -> str:
        """A value as people read it, rounded as in the table."""
        return f"{value:.0f}%" if self.unit else _number(value)

    def verdict(self, guess: float) -> str:
        """How far a guess is from what was measured, both as they are shown."""
        digits = 0 if self.unit else 2
        apart = round(round(guess, digits) - round(self.value, digits), digits)
        if not apart:
            return "as measured"
        size = (
            f"{abs(apart):.0f} percentage point{'' if abs(apart) == 1 else 's'}" if self.unit else _number(abs(apart))
        )
        return f"{size} too {'high' if apart > 0 else 'low'}"


@dataclass(frozen=True)
class Answer:
    """What was measured.

    Attributes:
        choices: what can be predicted.
        right: the measured choice.
        sentence: what was measured, in one sentence.
        columns: head of the table of numbers.
        rows: the table.
        source: file that the numbers are from, as it lies in the repository.
        number: to be guessed as well; None where the lesson asks for none.
    """

    choices: tuple[str, ...]
    right: str
    sentence: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str
    number: Number | None = None


Measure = Callable[[Recordings, Path], Answer | None]
"""From the recordings and the folder of results; None where it has not been measured."""


def router_sees(recordings: Recordings, results: Path) -> Answer | None:
    """The load of the recorded Math prompt."""
    found = _recorded(recordings, "math")
    if found is None:
        return None
    trace, source = found
    _, kept = trace.select(roles=("prompt",))
    shares = trace.gates[:, kept].mean(axis=(0, 1))
    order = np.argsort(-shares)
    return Answer(
        trace.experts,
        trace.experts[order[0]],
        f"Over the {int(kept.sum())} tokens of the prompt and {len(trace.sites)} routers, "
        f"{trace.experts[order[0]]} got the largest mean weight. An even share would be {_share(1 / len(order))}.",
        ("Expert", "Mean weight"),
        tuple((trace.experts[place], _share(shares[place])) for place in order),
        source,
        Number(100 * float(shares[order[0]]), 100, "%"),
    )


def balanced_is_not_good(recordings: Recordings, results: Path) -> Answer | None:
    """Two routers with an even load: which one tells domains apart."""
    choices = ("RSL", "Plain balance loss", "About the same")
    routers = measured_plane(results, []).routers
    pairs = [
        (rsl, plain)
        for rsl in routers
        for plain in routers
        if rsl.sign == "sharpen" and plain.title.startswith("load balance") and _examples(rsl) == _examples(plain)
    ]
    if not pairs:
        return None
    balanced = [router.balanced.value for router in pairs[0]]
    specialised = [router.balanced.value - router.undecided.value for router in pairs[0]]
    return Answer(
        choices,
        choices[_larger(specialised[0], specialised[1])],
        "Both loads are measured against even; specialisation is what a token says about its expert.",
        ("Router", "Balanced (1 = even)", "Specialised (0 to 1)"),
        tuple(
            (name, _number(even), _number(told))
            for name, even, told in zip(choices, balanced, specialised, strict=False)
        ),
        _name(results / "plane.csv"),
        Number(balanced[0], 1.0),
    )


def sign_of_lambda(recordings: Recordings, results: Path) -> Answer | None:
    """Where the two signs take the entropy of single tokens."""
    file = results / "convergence-summary.csv"
    if not file.is_file():
        return None
    rows = [row for row in read_csv(file) if row["quantity"] == "token_entropy"]
    values = {str(row["setting"]): row["value"] for row in rows}
    if not {"sharpen", "flatten"} <= set(values):
        return None
    choices = ("+λ (sharpen): lower", "−λ (flatten): lower", "About the same")
    return Answer(
        choices,
        choices[_larger(values["flatten"], values["sharpen"])],
        "Mean entropy of single tokens at the end of descent on the loss, as a share of its largest value; mean over "
        f"{rows[0]['seeds']:.0f} seeds.",
        ("Setting", "Token entropy (0 decided, 1 undecided)"),
        tuple((name, _number(value)) for name, value in values.items()),
        _name(file),
    )


def math_medical(recordings: Recordings, results: Path) -> Answer | None:
    """The mean weights in the two halves of the recorded cross-domain prompt."""
    found = _recorded(recordings, "math-medical")
    example = find_example("math-medical")
    if found is None or len(example.topics) < 2:
        return None
    trace, source = found
    spans, start = [], 0
    for topic in example.topics:
        start = example.prompt.find(topic.text, start)
        if start < 0:
            return None
        spans.append(Span(start, start + len(topic.text), topic.expert))
        start += len(topic.text)
    try:
        place = tokens_of_spans(trace.tokens, spans_in_trace(trace, example.prompt, spans))
    except LoraMixerError:
        return None  # the recording is of an earlier wording of this example
    if spans[-1].domain not in trace.experts:
        return None
    means = [trace.gates[:, place == number].mean(axis=(0, 1)) for number in range(len(spans))]
    last = means[-1]
    return Answer(
        trace.experts,
        trace.experts[int(last.argmax())],
        f"Mean weight in each part of the prompt, over {len(trace.sites)} routers. An even share would be "
        f"{_share(1 / len(trace.experts))}.",
        ("Expert", *(span.domain.capitalize() + " part" for span in spans)),
        tuple((name, *(_share(mean[index]) for mean in means)) for index, name in enumerate(trace.experts)),
        source,
        Number(100 * float(last[trace.experts.index(spans[-1].domain)]), 100, "%"),
    )


def does_not_matter(recordings: Recordings, results: Path) -> Answer | None:
    """Domain by domain, what the choice of the expert is worth: the gap from best to worst expert."""
    found = _expert_losses(results)
    if found is None:
        return None
    losses, source = found
    gaps = {domain: max(row.values()) - min(row.values()) for domain, row in losses.items()}
    least = min(gaps, key=lambda domain: gaps[domain])
    return Answer(
        tuple(losses),
        least,
        "Test loss of every expert alone, nats per token: where best and worst lie close together, no router can gain "
        "much.",
        ("Domain", "Best expert", "Lowest loss", "Highest loss", "Gap"),
        tuple(
            (
                domain,
                min(row, key=lambda name: row[name]),
                _number(min(row.values())),
                _number(max(row.values())),
                _number(gaps[domain]),
            )
            for domain, row in losses.items()
        ),
        source,
    )


def _examples(router: PlaneRouter) -> str:
    """Rows that a router was trained on."""
    return router.key.rpartition(" · ")[2]


def _expert_losses(results: Path) -> tuple[dict[str, dict[str, float]], str] | None:
    """Domain → expert → test loss, and the file; the backbone alone is no expert."""
    losses: dict[str, dict[str, float]] = {}
    if (file := results / "expert-matrix.csv").is_file():
        for row in read_csv(file):
            if row["expert"] not in (None, "backbone") and row["loss"] is not None:
                losses.setdefault(str(row["domain"]), {})[str(row["expert"])] = row["loss"]
    elif (file := results / "expert-matrix.json").is_file():
        for expert, rows in _json(file).items():
            for row in rows if expert != "backbone" else ():
                losses.setdefault(row["domain"], {})[expert] = row["loss"]
    return (losses, _name(file)) if losses else None


def _recorded(recordings: Recordings, example: str) -> tuple[RoutingTrace, str] | None:
    trace = recordings.trace(example)
    return None if trace is None else (trace, _name(recordings.files[example, ""]))


def _larger(first: float, second: float) -> int:
    """0 where the first is larger, 1 where the second is, 2 where they are about the same."""
    return 2 if abs(first - second) < SAME else int(second > first)


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name


def _share(value: float) -> str:
    return f"{value:.0%}"


def _number(value: float) -> str:
    return f"{value:.2f}"
