"""What Explore exports: the values of its address as a figure of ``loramixer.viz`` and its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from explorer.gold import gold_experts
from explorer.link import parse
from explorer.view_link import VIEW_FIELDS, parse_layers
from loramixer.errors import FigureError
from loramixer.metrics import routers_that_are_on
from loramixer.trace import RoutingTrace

VIEWS = {
    "token_map": "Layer × token",
    "expert_maps": "Every expert",
    "load_bars": "Load by layer",
    "token_card": "Token",
    "agreement_matrix": "Agreement",
    "contribution_map": "Gate and effect",
}
"""Figure → what Explore calls it."""

_WITH_BORDERS = ("token_map", "expert_maps")
_WITHOUT_PROJECTION = ("agreement_matrix",)


def figure_arguments(figure: str, query: Mapping[str, str], trace: RoutingTrace) -> dict[str, Any]:
    """The arguments that show what the address shows; defaults are left out, so that scripts stay short.

    Raises:
        FigureError: no such view, or one that needs a selection and there is none.
    """
    if figure not in VIEWS:
        raise FigureError(f"'{figure}' is no view of this room; choose {', '.join(VIEWS.values())}.")
    values, _ = parse(query, VIEW_FIELDS)
    layers = parse_layers(values["layers"])
    arguments: dict[str, Any] = {}
    if figure == "token_card":
        arguments["token"] = _token(values["token"], trace)
        return {**arguments, **({"layers": layers} if layers else {})}
    if figure == "token_map":
        known = values["measure"] in (*trace.experts, "top", "entropy")
        arguments["measure"] = values["measure"] if known else "top"
    if figure == "contribution_map":
        arguments["expert"] = _expert(values["measure"], trace)
    if figure not in _WITHOUT_PROJECTION and values["projection"] in trace.projections:
        arguments["projection"] = values["projection"]
    if layers:
        arguments["layers"] = layers
    if values["phase"] != "both":
        arguments["roles"] = values["phase"]
    if values["template"]:
        arguments["template"] = True
    if figure in _WITH_BORDERS and (borders := _borders(trace)):
        arguments["borders"] = borders
    if values["unit"] != "subword":
        arguments |= {"unit": values["unit"], "how": values["how"]}
    return arguments


def _token(position: int, trace: RoutingTrace) -> int:
    """The selected token; without one the first of the prompt."""
    if 0 <= position < len(trace.tokens):
        return position
    if not len(trace.tokens):
        raise FigureError("There is no token to show; press Generate first.")
    return next((index for index, role in enumerate(trace.tokens.roles) if role == "prompt"), 0)


def _borders(trace: RoutingTrace) -> tuple[int, ...]:
    """Positions of the tokens before which a topic of the prompt begins or ends."""
    gold = gold_experts(trace)
    return tuple(position for position in range(1, len(gold)) if gold[position] != gold[position - 1])


def _expert(measure: str, trace: RoutingTrace) -> str:
    """The expert that the map shows; else the one with the largest load."""
    if measure in trace.experts:
        return measure
    return trace.experts[int(routers_that_are_on(trace.gates).mean(axis=(0, 1)).argmax())]
