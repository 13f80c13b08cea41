"""“Python that reproduces this view”: a script that loads the mixture, traces the prompt and draws the figure."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from loramixer import viz
from loramixer.data.schema import Span
from loramixer.errors import FigureError
from loramixer.trace import INTERVENTION_FIELDS, RoutingTrace
from loramixer.whatif import SETTINGS

GATES = ("soft", "top_k", "straight_through", "uniform", "off")
"""Modes that a script can set."""


def recipe(
    trace: RoutingTrace,
    figure: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    other: RoutingTrace | None = None,
    recorded: RoutingTrace | None = None,
) -> str:
    """A Python script that makes a view again, from the mixture to the saved figure.

    With two traces it also prints how they were aligned and how much they differ, over the projection of the figure.

    The same versions, weights and settings give the same numbers, up to rounding on another processor.

    Args:
        trace: the trace that is shown; its provenance says how it was made.
        figure: name of a function of :mod:`loramixer.viz` that takes a trace, such as ``token_map``.
        arguments: what it is called with besides the trace: texts, numbers, tuples, lists and mappings of them, and
            tuples of gold spans.
        other: the second trace of figures that compare two.
        recorded: the trace that a what-if started from.

    Raises:
        FigureError: no such figure, arguments that cannot be written down, a trace without the name of its mixture or
            with facts that no script can set, or a what-if without ``recorded``.
    """
    if figure not in viz.TRACE_FIGURES:
        raise FigureError(f"'{figure}' is no figure of a trace; known are {', '.join(sorted(viz.TRACE_FIGURES))}.")
    settings = dict(arguments or {})
    for name, value in settings.items():
        if not name.isidentifier() or not _is_plain(value):
            raise FigureError(
                f"The argument {name!r} cannot be written into a script; give texts, numbers and tuples."
            )
    lines = [
        f'"""Makes a view of LoRA-Mixer again: {figure}."""',
        "",
        "from pathlib import Path",
        "",
        "import loramixer",
        "from loramixer import viz",
        *(["from loramixer.comparison import compare"] if other is not None else []),
        *(["from loramixer.data.schema import Span"] if any(map(_is_spans, settings.values())) else []),
        "",
        *_steps(trace, "trace", recorded),
    ]
    if other is not None:
        lines += ["", *_steps(other, "other", recorded), "", *_numbers(settings)]
    call = ", ".join(
        [
            "trace",
            *(["other"] if other is not None else []),
            *(f"{name}={value!r}" for name, value in settings.items()),
        ]
    )
    lines += [
        "",
        f"figure = viz.{figure}({call})",
        f'Path("{figure}.png").write_bytes(viz.to_png(figure))',
        f'Path("{figure}.html").write_text(viz.to_html(figure, provenance=trace.provenance), encoding="utf-8")',
        "",
    ]
    return "\n".join(lines)


def prompt_of(trace: RoutingTrace) -> str:
    """The text that was asked, without the chat template."""
    spans = [span for span, role in zip(trace.tokens.spans, trace.tokens.roles, strict=True) if role == "prompt"]
    return trace.tokens.text[spans[0][0] : spans[-1][1]] if spans else ""


def _steps(trace: RoutingTrace, name: str, recorded: RoutingTrace | None) -> list[str]:
    facts = trace.provenance
    changed = facts.get("what_if")
    if changed:
        if recorded is None:
            raise FigureError("This view shows a what-if; its script needs the recorded trace that it started from.")
        facts = recorded.provenance
    if not facts.get("mixer"):
        raise FigureError("This trace does not say which mixture made it, so no script can make it again.")
    lines = [f"model, tokenizer = loramixer.load_mixer({str(facts['mixer'])!r})"]
    if (gate := facts.get("gate")) is not None:
        if gate not in GATES:
            raise FigureError(
                f"This trace was gated by {gate!r:.40}, and a script can set {', '.join(GATES)} only: the domain of "
                "each row, say, is not recorded. Record the trace under another gate."
            )
        settings = {"k": facts.get("k"), "temperature": facts.get("gate_temperature")}
        settings = {key: value for key, value in settings.items() if value is not None}
        written = _written(settings, tuple(settings), "gate")
        lines.append(f"loramixer.set_gate({', '.join(filter(None, ['model', repr(gate), written]))})")
    if masked := facts.get("masked"):
        lines.append(f"loramixer.mask_experts(model, {', '.join(repr(str(expert)) for expert in masked)})")
    options: dict[str, Any] = {
        "temperature": float(facts.get("temperature") or 0.0),
        "seed": int(facts.get("seed") or 0),
        "chat": "template" in trace.tokens.roles,
    }
    if facts.get("side"):
        options["side"] = str(facts["side"])
    if trace.contributions is not None:
        options["contributions"] = True
    lines += [
        f"prompt = {prompt_of(trace)!r}",
        f"{name} = loramixer.trace(",
        f"    model, tokenizer, prompt, max_new_tokens={int(facts.get('max_new_tokens') or 0)},",
        f"    {_written(options, tuple(options), 'writing')},",
        *_interventions(facts.get("interventions") or []),
        ")",
    ]
    if changed:
        kept = {key: value for key, value in changed.items() if key != "note" and value not in ([], {}, ())}
        written = _written(kept, SETTINGS, "what-if")
        lines += [
            "from loramixer.whatif import what_if",
            "",
            f"{name} = what_if({', '.join(filter(None, [name, written]))})",
        ]
    return lines


def _numbers(settings: Mapping[str, Any]) -> list[str]:
    """What is printed of two traces."""
    spans = "".join(f", {name}={value!r}" for name, value in settings.items() if _is_spans(value))
    part = {name: settings[name] for name in ("projection", "template") if name in settings}
    if part.get("projection") == "mean":
        del part["projection"]  # the figure's word for all of them
    return [
        f"comparison = compare(trace, other{spans})",
        f"change = comparison.change({', '.join(f'{name}={value!r}' for name, value in part.items())})",
        "print(comparison.sentence)",
        'print(f"mean divergence {change.jsd_share:.3f} bits")',
        'print(f"another expert ahead in {change.leader_changed:.1%} of the decisions")',
    ]


def _interventions(described: Sequence[Mapping[str, Any]]) -> list[str]:
    """The argument of a trace that was recorded under interventions."""
    calls = [f"loramixer.Intervention({_written(each, INTERVENTION_FIELDS, 'intervention')})" for each in described]
    return [f"    interventions=[{', '.join(calls)}],"] if calls else []


def _written(settings: Mapping[str, Any], known: Sequence[str], what: str) -> str:
    """Settings as arguments of a call. A trace can come from anybody, so nothing else may get into a script.

    Raises:
        FigureError: a name that is not known, or a value that is no plain text, number or list.
    """
    for name, value in settings.items():
        if name not in known or not _is_plain(value):
            raise FigureError(
                f"The {what} of this trace says {name!r:.40} is {value!r:.40}, which cannot be written into a script; "
                f"plain values of {', '.join(known)} can."
            )
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _is_spans(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(part, Span) for part in value)


def _is_plain(value: Any) -> bool:
    if _is_spans(value):
        return True
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        return False
