"""Files and Python of a comparison, for Compare and What if: what is on screen as a picture, a table and a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from explorer.exports import Exports
from explorer.gold import spans_of
from explorer.provenance import check_loadable
from explorer.rooms.share import FORMATS, ExportFormat, MakeCode, MakeFile
from loramixer import viz
from loramixer.comparison import compare
from loramixer.trace import RoutingTrace

FIGURE = "difference_map"
TRACE_B = "npz-b"

COMPARISON_FORMATS = (
    *(entry for entry in FORMATS if entry.key != "npz"),
    ExportFormat("npz", "Trace A", "The whole trace A with its provenance; open it again on this page."),
    ExportFormat(TRACE_B, "Trace B", "The whole trace B with its provenance."),
)
"""What both rooms offer."""

Traces = Callable[..., tuple[RoutingTrace, RoutingTrace]]
"""``traces(*values of inputs, session)``: A and B; raises a TraceError while there are not both."""


def file_maker(exports: Exports, traces: Traces) -> MakeFile:
    """Writes files of the difference that is on screen."""

    def make(kind: Any, values: dict[str, str], session: str, *inputs: Any) -> str:
        a, b = traces(*inputs, session)
        if kind in ("npz", TRACE_B):
            return exports.view(session, a if kind == "npz" else b, "token_map", {}, "npz")
        return exports.view(session, a, FIGURE, figure_arguments(values, a, b), kind, other=b)

    return make


def code_maker(traces: Traces) -> MakeCode:
    """Writes the script that makes both traces again and draws their difference."""

    def make(values: dict[str, str], session: str, *inputs: Any) -> str:
        a, b = traces(*inputs, session)
        check_loadable(a, b)
        return viz.recipe(a, FIGURE, figure_arguments(values, a, b), other=b, recorded=a)

    return make


def figure_arguments(values: Mapping[str, str], trace: RoutingTrace, other: RoutingTrace) -> dict[str, Any]:
    """What the figure is called with: the gate of the chosen expert, else the divergence; projection and template.

    And the topics of both prompts, where whole topics are compared.
    """
    measure = values.get("m", "")
    short = {name.removesuffix("_proj"): name for name in trace.projections}
    found: dict[str, Any] = {"measure": measure if measure in trace.experts else "jsd"}
    if values.get("q") in short:
        found["projection"] = short[values["q"]]
    if values.get("tpl") == "1":
        found["template"] = True
    spans = {"spans_a": spans_of(trace), "spans_b": spans_of(other)}
    if compare(trace, other, **spans).alignment == "span":
        found |= spans
    return found
