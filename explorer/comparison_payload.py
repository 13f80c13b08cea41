"""Two traces as one JSON value for the browser: both payloads, which tokens belong together, and what differs.

``head`` is JSON text, since the browser clones and compares a value leaf by leaf. It holds ``columns``, a list of
``[positions in A, positions in B]`` that covers both traces in order, where one side may be empty; ``names``, the
letter and title of both; ``sentence``, how tokens were matched; ``spans``, the topics in A and B of each column that
is a whole span, null for the others, and nothing where there are no spans; ``facts`` and ``same``, what produced
them; ``badge`` and ``control``, for comparisons with a what-if. ``components/compare_view/pairs.js`` is the other end.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from explorer.gold import spans_of
from explorer.payload import Payload, ViewState, encode_trace
from explorer.provenance import provenance_items
from explorer.summary import generated_text, prompt_text
from loramixer.comparison import Comparison, compare
from loramixer.trace import RoutingTrace

NOTHING = "–"
"""Stands for a fact that only the other one has."""

CLIP = 60
"""Longest piece of a prompt in a table, in characters."""


@dataclass(frozen=True)
class Side:
    """One of the two traces.

    Attributes:
        trace: what was routed.
        state: where it comes from.
        title: a few words; empty takes what differs from the other.
    """

    trace: RoutingTrace
    state: ViewState
    title: str = ""


def encode_comparison(
    a: Side,
    b: Side,
    *,
    badge: str = "",
    control: Mapping[str, Any] | None = None,
    payload_of_a: Payload | None = None,
) -> Payload:
    """The JSON value of two traces.

    Args:
        a: what is compared with.
        b: what is compared.
        badge: a few words that must stand beside everything, such as that the text was not written again.
        control: a second comparison to read this one against: ``label``, ``hint``, and its :func:`effect`.
        payload_of_a: of ``a.trace``, when it is known already.

    Raises:
        TraceError: traces of other experts or other sites, which have no difference.
    """
    comparison = compare(a.trace, b.trace, spans_of(a.trace), spans_of(b.trace))
    facts, same = _facts(a, b)
    differing = {row["label"] for row in facts}
    head = {
        "columns": comparison.columns,
        "names": {
            "a": {"letter": "A", "title": a.title or _title(a.trace, differing)},
            "b": {"letter": "B", "title": b.title or _title(b.trace, differing)},
        },
        "sentence": comparison.sentence,
        "spans": _spans(comparison),
        "badge": badge,
        "facts": facts,
        "same": same,
        "answer": _answer_change(a.trace, b.trace),
        "control": dict(control) if control else None,
    }
    return {
        "id": uuid.uuid4().hex,
        "head": json.dumps(head, ensure_ascii=False),
        "a": payload_of_a or encode_trace(a.trace, a.state),
        "b": encode_trace(b.trace, b.state),
    }


def effect(a: RoutingTrace, b: RoutingTrace) -> dict[str, float | None]:
    """How much B differs from A.

    Returns:
        ``jsd`` in bits, mean over routers and over the tokens in both that are no template; ``changed``, the share of
        these decisions with another expert ahead; ``answer``, the share of the words of both answers that differ.
    """
    change = compare(a, b).change()
    jsd, changed = (None if math.isnan(value) else value for value in (change.jsd_share, change.leader_changed))
    return {"jsd": jsd, "changed": changed, "answer": _answer_change(a, b)}


def _spans(comparison: Comparison) -> list[tuple[str, str] | None]:
    """The topics of each column that is a pair of spans; empty where tokens or words are compared."""
    if not comparison.domains:
        return []
    topics = iter(comparison.domains)
    return [next(topics) if first and second else None for first, second in comparison.columns]


def _answer_change(a: RoutingTrace, b: RoutingTrace) -> float | None:
    """Share of the words of both answers that have no partner in the other, 0…1; None when nobody answered."""
    first, second = generated_text(a).split(), generated_text(b).split()
    if not first and not second:
        return None
    return 1 - SequenceMatcher(None, first, second, autojunk=False).ratio()


def clip(text: str, length: int = CLIP) -> str:
    """A text in one line, shortened."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _facts(a: Side, b: Side) -> tuple[list[dict[str, str]], str]:
    """Rows ``label, a, b, hint`` of what differs, and the rest in one text."""
    items = [{item["label"]: item for item in provenance_items(side.trace, side.state)} for side in (a, b)]
    rows = [
        {
            "label": label,
            "a": items[0].get(label, {}).get("value", NOTHING),
            "b": items[1].get(label, {}).get("value", NOTHING),
            "hint": (items[0].get(label) or items[1][label])["hint"],
        }
        for label in dict.fromkeys([*items[0], *items[1]])
    ]
    rows[0]["hint"] = "Recorded: run earlier, shown without a model. Live: run just now, on this machine."
    prompts = prompt_text(a.trace), prompt_text(b.trace)
    rows.append({"label": "Prompt", "a": clip(prompts[0]), "b": clip(prompts[1]), "hint": "What was asked."})
    answers = generated_text(a.trace), generated_text(b.trace)
    rows.append(
        {
            "label": "Answer",
            "a": _length(a.trace),
            "b": _length(b.trace),
            "hint": "How much the model wrote; the texts stand below.",
        }
    )
    equal = {"Prompt": prompts[0] == prompts[1], "Answer": answers[0] == answers[1]}
    facts = [row for row in rows if not equal.get(row["label"], row["a"] == row["b"])]
    same = "; ".join(f"{row['label'].lower()} {row['a']}" for row in rows if row not in facts)
    return facts, same


def _length(trace: RoutingTrace) -> str:
    count = trace.tokens.roles.count("generated")
    return f"{count} token{'' if count == 1 else 's'}" if count else "none"


def _title(trace: RoutingTrace, differing: set[str]) -> str:
    """The facts of a trace in which it differs from the other, in a few words."""
    items = {item["label"]: item["value"] for item in provenance_items(trace, "recorded")}
    words = [items[label].rsplit("/", 1)[-1] for label in ("Backbone", "Router", "Gate") if label in differing]
    if "Prompt" in differing:
        words.append(f"“{clip(prompt_text(trace), 36)}”")
    return ", ".join(words) or items["Router"].rsplit("/", 1)[-1]
