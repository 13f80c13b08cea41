"""What a run is asked to do, and the words that the controls use for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loramixer.errors import RoutingError, TraceError

if TYPE_CHECKING:
    from loramixer.mixers import MixerInfo
    from loramixer.tuner.intervening import Intervention

ALL_EXPERTS = "all (soft)"
"""The choice of the gate control that mixes every expert."""

DEFAULT_MIXER = "smollm2-135m/rsl"
DEFAULT_K = 3
MAX_PROMPT_TOKENS = 512
"""Longest live prompt with its template: the map stays readable and two cores answer within seconds."""

MAX_PROMPT_CHARACTERS = 10_000
"""Refused before the tokenizer sees it; no prompt of 512 tokens is that long in practice."""

DEFAULT_NEW_TOKENS = 96

GateMode = Literal["top_k", "soft"]

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for.

    Attributes:
        new_tokens: longest answer.
        upload_bytes: largest uploaded file, and all experts of one mixture together.
        experts: in a mixture of the visitor's own.
        backbone_parameters: of a backbone that the visitor names.
        trace_bytes: finished traces that are kept for one visitor.
        mixtures: of the visitor's own that are kept in memory, all visitors together.
        training_examples: of one training of routers.
        training_minutes: of one training of routers; it ends there and keeps what it has.
        local_paths: whether folders of this machine may be named.
    """

    new_tokens: int
    upload_bytes: int
    experts: int
    backbone_parameters: int
    trace_bytes: int
    mixtures: int
    training_examples: int
    training_minutes: float
    local_paths: bool


PUBLIC_LIMITS = Limits(
    new_tokens=128,
    upload_bytes=200 * MEGABYTE,
    experts=8,
    backbone_parameters=600_000_000,
    trace_bytes=64 * MEGABYTE,
    mixtures=2,
    training_examples=200,
    training_minutes=5,
    local_paths=False,
)
"""For strangers on two cores and 16 GB: everybody gets a turn, and nobody fills memory or disk."""

OWN_LIMITS = Limits(
    new_tokens=256,
    upload_bytes=4_000 * MEGABYTE,
    experts=26,
    backbone_parameters=10_000_000_000,
    trace_bytes=512 * MEGABYTE,
    mixtures=4,
    training_examples=100_000,
    training_minutes=24 * 60,
    local_paths=True,
)
"""For somebody who runs the explorer on a machine of their own."""


def is_public() -> bool:
    """Whether strangers use this app: ``LORAMIXER_PUBLIC=1``, or a Hugging Face Space that does not say 0."""
    given = os.environ.get("LORAMIXER_PUBLIC", "")
    return given not in ("", "0") or (given == "" and "SPACE_ID" in os.environ)


def limits() -> Limits:
    """What one visitor may ask for here."""
    return PUBLIC_LIMITS if is_public() else OWN_LIMITS


@dataclass(frozen=True)
class RunRequest:
    """One run of the model; ``contributions`` records what each expert adds, beside its gate."""

    prompt: str
    mixer: str
    gate: GateMode
    k: int
    max_new_tokens: int
    seed: int = 0
    contributions: bool = False
    gate_temperature: float = 1.0
    interventions: tuple[Intervention, ...] = ()


def gate_choices(experts: int) -> list[str]:
    """What the gate control offers: 1 … N−1, and all; a top-k gate with k = N is the soft gate."""
    return [*(str(k) for k in range(1, experts)), ALL_EXPERTS]


def default_gate(experts: int) -> str:
    """The choice a mixture starts with."""
    return str(DEFAULT_K) if experts > DEFAULT_K else ALL_EXPERTS


def gate_for(mixer: MixerInfo, chosen: str) -> str:
    """The gate control's choice once a router is chosen: the one before, where the router can do that.

    Untrained routers give all experts nearly the same weight, so which of them are ahead would be chance.
    """
    if mixer.untrained:
        return ALL_EXPERTS
    return chosen if chosen in gate_choices(len(mixer.experts)) else default_gate(len(mixer.experts))


def parse_gate(choice: str, experts: int) -> tuple[GateMode, int]:
    """The gate mode and k of a choice.

    Raises:
        RoutingError: neither a whole number from 1 to the number of experts, nor ``ALL_EXPERTS``.
    """
    if choice == ALL_EXPERTS:
        return "soft", experts
    try:
        k = int(choice)
    except (TypeError, ValueError):
        k = 0
    if not 1 <= k <= experts:
        raise RoutingError(
            f"A router cannot mix {choice!r} of {experts} experts; choose a number from 1 to {experts}, or all."
        )
    return "top_k", k


def describe_gate(choice: str) -> str:
    """The gate control's choice inside a sentence."""
    return "all experts" if choice == ALL_EXPERTS else f"top {choice}"


def gate_choice_of(provenance: dict[str, Any], experts: int) -> str:
    """The gate control's choice that a trace was made with."""
    k = provenance.get("k")
    return ALL_EXPERTS if provenance.get("gate") == "soft" or k is None or int(k) >= experts else str(k)


def check_prompt(prompt: str) -> None:
    """Refuse at once what needs no tokenizer to be refused.

    Raises:
        TraceError: an empty prompt, or one beyond ``MAX_PROMPT_CHARACTERS``.
    """
    if not prompt or not prompt.strip():
        raise TraceError("The prompt is empty; type a question or an instruction.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise TraceError(
            f"The prompt has {len(prompt):,} characters, and at most {MAX_PROMPT_TOKENS} tokens (about 2,000 "
            "characters) can be routed here; shorten it."
        )


def check_new_tokens(count: int) -> int:
    """The number of new tokens as a whole number.

    Raises:
        TraceError: outside 0 … ``limits().new_tokens``.
    """
    most = limits().new_tokens
    if not 0 <= int(count) <= most:
        raise TraceError(f"{count} new tokens were asked for; choose from 0 to {most}.")
    return int(count)
