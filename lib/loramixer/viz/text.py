"""The text lane: the words, each with the letter and colour of its expert; as safe HTML or for a terminal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from html import escape

import numpy as np

from loramixer.aggregate import How, Unit
from loramixer.metrics import margin, routers_that_are_on
from loramixer.trace import RoutingTrace
from loramixer.viz.palette import FAINT, ExpertStyle, channels, expert_styles
from loramixer.viz.views import MEAN, Roles, View, part_of_character, view

_MARKS = {" ": "·", "\n": "↵", "\t": "→", "\r": "␍"}
_LANE = "line-height:2.1;font-family:ui-monospace,monospace;overflow-wrap:anywhere"
_MARK = '<span style="opacity:.45">{}</span>'
_LESS = "text-decoration:line-through;background:rgba(0,114,178,.25)"
_MORE = "text-decoration:underline;background:rgba(230,159,0,.3)"


def text_lane(
    trace: RoutingTrace,
    *,
    projection: str = MEAN,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    unit: Unit = "subword",
    how: How = "mean",
) -> str:
    """The text with every token on the colour of its expert, stronger the further the expert is ahead, as HTML.

    The expert is that with the largest gate, mean over the layers of the view. Its letter stands before the first
    token of a run. Whitespace has faint marks; tokens that hold bytes of one character say which part of it they are.

    Args:
        trace: a routing trace.
        projection: name of a projection, or ``mean`` over all.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``.
        template: whether the tokens of the chat template are shown.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.

    Returns:
        One ``<div>`` with inline styles; every token is escaped.
    """
    styles = expert_styles(trace.experts)
    pieces, former = [], None
    part = view(trace, projection=projection, layers=layers, roles=roles, template=template, unit=unit, how=how)
    for token in _tokens(part, styles):
        if token.border:
            pieces.append(
                '<hr style="border:0;border-top:1px dashed currentColor;opacity:.5" title="the answer begins">'
            )
        if token.style is None:
            pieces.append(f"<span>{_visible(token)}</span>")
            former = None
            continue
        red, green, blue = channels(token.style.colour)
        opacity = FAINT + (0.75 - FAINT) * token.lead
        letter = "" if token.style == former else f'<b style="font-size:.7em;opacity:.8">{token.style.letter}</b>'
        hint = f"{token.style.name} {token.gate:.2f} of the weight, ahead by {token.lead:.2f}"
        # The line below is the full colour, so that a faint token still shows whose it is.
        pieces.append(
            f'<span title="{escape(hint)}" style="background:rgba({red},{green},{blue},{opacity:.2f});'
            f'border-bottom:2px solid {token.style.colour}">{letter}{_visible(token)}</span>'
        )
        former = token.style
    legend = " ".join(
        f'<span style="border-bottom:3px solid {style.colour}"><b>{style.letter}</b> {escape(style.name)}</span>'
        for style in styles
    )
    return f'<div style="{_LANE}"><p style="margin:0 0 .5em">{legend}</p>{"".join(pieces)}</div>'


def text_lane_plain(
    trace: RoutingTrace,
    *,
    projection: str = MEAN,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    unit: Unit = "subword",
    how: How = "mean",
    colours: bool = False,
) -> str:
    """The same for a terminal: runs of tokens of one expert in brackets behind its letter.

    Args:
        trace: a routing trace.
        projection: name of a projection, or ``mean`` over all.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``.
        template: whether the tokens of the chat template are shown.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.
        colours: whether letters are written in colour (24-bit ANSI).
    """
    styles = expert_styles(trace.experts)
    runs: list[tuple[ExpertStyle | None, list[str]]] = []
    part = view(trace, projection=projection, layers=layers, roles=roles, template=template, unit=unit, how=how)
    for token in _tokens(part, styles):
        if token.border:
            runs.append((None, ["\n--- the answer ---\n"]))
        text = "" if token.part > 1 else _printable(token.text)
        if runs and runs[-1][0] == token.style and token.style is not None:
            runs[-1][1].append(text)
        else:
            runs.append((token.style, [text]))
    legend = ", ".join(f"{_lettered(style, colours)} {style.name}" for style in styles)
    body = "".join(
        "".join(texts) if style is None else f"{_lettered(style, colours)}[{''.join(texts)}]" for style, texts in runs
    )
    return f"{legend}\n{body}\n"


def text_difference(first: str, second: str) -> str:
    """Two texts as one, word by word, as safe HTML: struck through on blue is in A only, underlined on orange in B."""
    pieces = []
    for kind, text in _difference(first, second):
        shown = escape(text).replace("\n", _MARK.format("↵") + "<br>")
        tag, style = {"less": ("del", _LESS), "more": ("ins", _MORE)}.get(kind, ("span", ""))
        pieces.append(f'<{tag} style="{style}">{shown}</{tag}>' if style else shown)
    return f'<div style="white-space:pre-wrap;line-height:1.7">{"".join(pieces)}</div>'


def text_difference_plain(first: str, second: str) -> str:
    """The same for a terminal: ``[-only in A-]`` and ``{+only in B+}``."""
    frames = {"less": "[-{}-]", "more": "{{+{}+}}", "same": "{}"}
    return "".join(frames[kind].format(text) for kind, text in _difference(first, second))


def _difference(first: str, second: str) -> Iterator[tuple[str, str]]:
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (first, second))
    for kind, a1, a2, b1, b2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "same", "".join(a[a1:a2])
            continue
        if a2 > a1:
            yield "less", "".join(a[a1:a2])
        if b2 > b1:
            yield "more", "".join(b[b1:b2])


class _Token:
    """One token of the lane: its text, its expert, and how decided that is."""

    def __init__(self, trace: RoutingTrace, position: int, gates: np.ndarray, styles: list[ExpertStyle]) -> None:
        self.text = trace.tokens[position]
        self.part, self.parts = part_of_character(trace.tokens, position)
        self.gate, self.lead = float(gates.max()), float(margin(gates))
        self.style = styles[int(gates.argmax())] if self.gate > 0 else None
        self.border = False


def _tokens(part: View, styles: list[ExpertStyle]) -> Iterator[_Token]:
    sites = [site for row in part.sites for site in row]
    means = routers_that_are_on(part.trace.gates[sites][:, part.positions]).mean(axis=0)
    for index, position in enumerate(part.positions):
        token = _Token(part.trace, int(position), means[index], styles)
        token.border = index == part.first_generated
        yield token


def _visible(token: _Token) -> str:
    """The token with its whitespace as marks, and breaks where the text has them."""
    if token.parts > 1:
        return escape(token.text) * (token.part == 1) + _MARK.format(f"{token.part}/{token.parts}")
    if not token.text:
        return _MARK.format("∅")
    shown = "".join(_MARK.format(_MARKS[sign]) if sign in _MARKS else escape(sign) for sign in token.text)
    return shown + ("<br>" if token.text.endswith("\n") else "<wbr>")


def _printable(text: str) -> str:
    """Without what could steer a terminal."""
    return "".join(sign if sign in "\n\t" or sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _lettered(style: ExpertStyle, colours: bool) -> str:
    if not colours:
        return style.letter
    red, green, blue = channels(style.colour)
    return f"\x1b[1;38;2;{red};{green};{blue}m{style.letter}\x1b[0m"
