"""What can be changed of a run: the gates that follow from stored scores, and experts while the model runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from explorer.settings import ALL_EXPERTS, gate_choice_of, parse_gate
from loramixer.errors import RoutingError
from loramixer.trace import RoutingTrace
from loramixer.whatif import what_if

Kind = Literal["mask", "force", "uniform"]
Where = Literal["everything", "prompt", "answer", "words"]

KINDS: tuple[tuple[str, Kind], ...] = (("Mask", "mask"), ("Force", "force"), ("Uniform", "uniform"))
PLACES: tuple[tuple[str, Where], ...] = (
    ("everything", "everything"),
    ("prompt", "prompt"),
    ("answer", "answer"),
    ("words of the prompt", "words"),
)
CONTROL_LABEL = "… under the random control"


@dataclass(frozen=True)
class GateChange:
    """Other gates from the same scores.

    Attributes:
        gate: a choice of the gate control.
        temperature: divides the scores.
        mask: experts that may not be chosen.
        bias: expert → what is added to its score, in nats.
    """

    gate: str
    temperature: float
    mask: tuple[str, ...]
    bias: dict[str, float]

    def apply(self, trace: RoutingTrace) -> RoutingTrace:
        """The trace with these gates; no model is asked.

        Raises:
            RoutingError: an impossible gate or temperature, or all experts masked.
            TraceError: gates that do not follow from the scores.
        """
        return what_if(trace, **self.arguments(trace))

    def arguments(self, trace: RoutingTrace) -> dict[str, Any]:
        """Arguments of :func:`loramixer.whatif.what_if`, only those that change something."""
        found: dict[str, Any] = {}
        if self.gate != gate_choice_of(trace.provenance, len(trace.experts)):
            mode, k = parse_gate(self.gate, len(trace.experts))
            found = {"gate": "soft"} if mode == "soft" else {"gate": "top_k", "k": k}
        if self.temperature != trace.provenance.get("gate_temperature", 1.0):
            found["temperature"] = self.temperature
        if self.mask:
            found["mask"] = list(self.mask)
        if self.bias:
            found["bias"] = self.bias
        return found

    def words(self, trace: RoutingTrace) -> str:
        """What is changed, in a few words; empty when nothing is."""
        arguments = self.arguments(trace)
        words = []
        if "gate" in arguments:
            words.append("all experts" if self.gate == ALL_EXPERTS else f"top {self.gate}")
        if "temperature" in arguments:
            words.append(f"temperature {self.temperature:g}")
        if self.mask:
            words.append(f"without {' and '.join(self.mask)}")
        words += [f"{name} {value:+g}" for name, value in self.bias.items()]
        return ", ".join(words)


@dataclass(frozen=True)
class ModelChange:
    """What is done to experts while the model reads and writes again.

    Attributes:
        kind: ``mask`` takes experts out, ``force`` gives one expert all weight, ``uniform`` gives all the same.
        experts: which; none for ``uniform``.
        where: on which tokens.
        text: for ``words``: a piece of the prompt.
        seed: of the random control.
        marked: for ``words``: first position and one past the last of the tokens where ``text`` was marked, or None
            where it was typed.
    """

    kind: Kind
    experts: tuple[str, ...]
    where: Where
    text: str = ""
    seed: int = 0
    marked: tuple[int, int] | None = None

    def interventions(self, trace: RoutingTrace) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Arguments of :class:`loramixer.Intervention`, and those of its random control, or None where there is none.

        Masking is read against masking as many experts at random, forcing against leaving one expert at random.

        Raises:
            RoutingError: the wrong number of experts, or words that the prompt does not have.
        """
        self._check(trace)
        place: dict[str, Any] = {}
        if self.where == "words":
            place = {"tokens": positions_of(trace, self.text, self.marked)}
        elif self.where != "everything":
            place = {"part": "prompt" if self.where == "prompt" else "generated"}
        if self.kind == "uniform":
            return {"kind": "uniform", **place}, None
        taken_out = self.experts if self.kind == "mask" else trace.experts[1:]
        control = {"kind": "random_mask", "experts": tuple(taken_out), "seed": self.seed, **place}
        return {"kind": self.kind, "experts": self.experts, **place}, control

    def words(self) -> str:
        """What is done, in a few words."""
        names = " and ".join(self.experts)
        what = {"mask": f"without {names}", "force": f"{names} forced", "uniform": "all experts alike"}[self.kind]
        place = {
            "everything": "",
            "prompt": " in the prompt",
            "answer": " in the answer",
            "words": f" on “{self.text}”",
        }
        return what + place[self.where]

    def _check(self, trace: RoutingTrace) -> None:
        unknown = [name for name in self.experts if name not in trace.experts]
        if unknown:
            raise RoutingError(f"This router has no expert '{unknown[0]}'; it has {', '.join(trace.experts)}.")
        if self.kind == "mask" and not self.experts:
            raise RoutingError("Choose at least one expert to mask.")
        if self.kind == "mask" and set(self.experts) >= set(trace.experts):
            raise RoutingError("All experts would be masked; leave at least one.")
        if self.kind == "force" and len(self.experts) != 1:
            raise RoutingError(f"One expert can be forced, here are {len(self.experts)}; choose exactly one.")


def positions_of(trace: RoutingTrace, words: str, marked: tuple[int, int] | None = None) -> tuple[int, int]:
    """First position and one past the last of the tokens of the prompt that a piece of text touches.

    Args:
        trace: whose prompt it is.
        words: the piece of text; whole words, where it is a whole word anywhere.
        marked: the positions where it was marked; they count as long as these words stand there.

    Raises:
        RoutingError: no text, text that the prompt does not have, or typed text that it has more than once.
    """
    wanted = words.strip()
    if not wanted:
        raise RoutingError("Type the words of the prompt, or mark them in the text of A.")
    nowhere = RoutingError(f"“{wanted[:60]}” is not in the prompt; copy the words as they stand there.")
    if marked and _stands_at(trace, wanted, marked):
        if any(role != "prompt" for role in trace.tokens.roles[slice(*marked)]):
            raise RoutingError("What is marked is not in the prompt alone; mark words of the prompt.")
        return marked
    own = [position for position, role in enumerate(trace.tokens.roles) if role == "prompt"]
    if not own:
        raise nowhere
    spans = trace.tokens.spans
    low = int(spans[own[0], 0])
    found = _occurrences(trace.tokens.text[low : int(spans[own[-1], 1])], wanted)
    if not found:
        raise nowhere
    if len(found) > 1:
        raise RoutingError(
            f"“{wanted[:60]}” is in the prompt {len(found)} times; mark the one that is meant in the text of A, or "
            "type more of the words around it."
        )
    start, end = low + found[0], low + found[0] + len(wanted)
    touched = [position for position in own if spans[position, 0] < end and spans[position, 1] > start]
    return touched[0], touched[-1] + 1


def _stands_at(trace: RoutingTrace, words: str, marked: tuple[int, int]) -> bool:
    """Whether the tokens of these positions are the words; spaces do not count, the browser may have lost some."""
    first, end = marked
    if not 0 <= first < end <= len(trace.tokens):
        return False
    spans = trace.tokens.spans
    text = trace.tokens.text[int(spans[first, 0]) : int(spans[end - 1, 1])]
    return "".join(text.split()) == "".join(words.split())


def _occurrences(text: str, wanted: str) -> list[int]:
    """Where a piece of text begins: as whole words, or else anywhere, as in languages that put no spaces between."""
    before = r"(?<!\w)" if re.match(r"\w", wanted) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", wanted) else ""
    piece = re.escape(wanted)
    whole = [match.start() for match in re.finditer(before + piece + after, text)]
    return whole or [match.start() for match in re.finditer(piece, text)]


def chosen_biases(experts: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """The biases that are not 0, by expert; experts beyond the sliders have none."""
    return {name: round(float(value), 3) for name, value in zip(experts, values, strict=False) if value}
