"""Traces by word or sentence instead of by token. Numpy only.

Which tokens belong together follows from the characters that they stand on, never from how a tokenizer spells a space,
so it holds for every tokenizer and script.

Shapes: S sites, T tokens, G groups, E experts.
"""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from loramixer.errors import TraceError
from loramixer.trace import RoutingTrace, TraceTokens

Unit = Literal["subword", "word", "sentence"]
How = Literal["mean", "max", "first"]

NO_TOKEN = -1
"""Stands for the token id of a group of several tokens."""

_WITHOUT_SPACES = (
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Han, Hiragana and Katakana: there is no space between words, and one character counts as one."""

_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}\N{WORD JOINER}"
_SENTENCE_ENDS = ".!?…。！？؟।۔"
_NEED_NO_SPACE = "。！？"
_CLOSING = "'\"”’»」』)]}）】"


def aggregate(trace: RoutingTrace, unit: Unit = "word", how: How = "mean") -> RoutingTrace:
    """The trace with one column for each word or sentence.

    Args:
        trace: a trace of single tokens.
        unit: ``word``, ``sentence``, or ``subword``, which changes nothing.
        how: what stands for the tokens of a group: their ``mean``; the ``max`` of each expert by itself, whose gates
            need not sum to 1 (:func:`gate_shares` do); or the ``first`` token. Logits, gates, contributions and base
            norms alike; a logit that is minus infinity counts only where it is so for all tokens.

    Returns:
        A trace whose tokens are the groups: their text, the span that they cover, and as id that of a single token or
        :data:`NO_TOKEN`. Its provenance says ``unit`` and ``aggregation``.

    Raises:
        TraceError: an unknown unit or way, or a trace that is aggregated already.
    """
    for name, value, allowed in (("unit", unit, get_args(Unit)), ("way", how, get_args(How))):
        if value not in allowed:
            raise TraceError(f"The {name} of aggregation is '{value}'; it can be {', '.join(allowed)}.")
    if former := trace.provenance.get("unit"):
        raise TraceError(f"This trace is aggregated by {former} already; aggregate the trace that it was made of.")
    if unit == "subword":
        return trace
    numbers = token_groups(trace.tokens, unit)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    reduce = {"mean": _mean, "max": _max, "first": _first}[how]
    return replace(
        trace,
        tokens=_grouped(trace.tokens, starts),
        logits=reduce(trace.logits, starts),
        gates=reduce(trace.gates, starts),
        contributions=None if trace.contributions is None else reduce(trace.contributions, starts),
        base_norms=None if trace.base_norms is None else reduce(trace.base_norms, starts),
        provenance={**trace.provenance, "unit": unit, "aggregation": how},
    )


def gate_shares(trace: RoutingTrace) -> np.ndarray:
    """Gates for entropies and loads, ``[S, T, E]``: those of groups by ``max`` over their sum, others as they are."""
    if trace.provenance.get("aggregation") != "max":
        return trace.gates
    totals = trace.gates.sum(axis=-1, keepdims=True)
    return np.divide(trace.gates, totals, out=np.zeros_like(trace.gates), where=totals > 0)


def token_groups(tokens: TraceTokens, unit: Unit) -> np.ndarray:
    """Number of the group of each token, from 0 and never falling; int64 ``[T]``.

    A word is a run of letters, marks and digits (with ``'`` between letters, ``.`` and ``,`` between digits), a single
    character of Han, Hiragana and Katakana, or a run of other signs; space before it belongs to it, and tokens of
    nothing but space are groups of their own. Thai, Lao, Khmer and Burmese have neither spaces nor single characters
    that are words; a run of theirs is one word here.

    A sentence ends with ``.!?…`` or their like in other scripts, closing quotes and brackets included, before a space
    (after ``。！？`` without one), or with a line end; so *e.g.* ends one too. Space belongs to the sentence before.

    Groups never cross a border between roles, special tokens stand alone, a token that lies in two words joins both to
    its group, and tokens that hold bytes of one character stay together.
    """
    if unit == "subword":
        return np.arange(len(tokens))
    segments = _words(tokens.text) if unit == "word" else _sentences(tokens.text)
    numbers: list[int] = []
    number, former = -1, _SPACE
    for position in range(len(tokens)):
        start, end = (int(place) for place in tokens.spans[position])
        inside = [place for place in segments[start:end] if place != _SPACE]
        first, last = (inside[0], inside[-1]) if inside else (_SPACE, _SPACE)
        if position == 0 or _is_alone(tokens, position):
            begins = True
        elif start < int(tokens.spans[position - 1, 1]) and start != end:
            begins = False  # another part of the same character
        elif unit == "sentence" and first == _SPACE:
            begins = False
        else:
            begins = first != former
        number += begins
        if not (unit == "sentence" and first == _SPACE and not begins):
            former = last
        numbers.append(number)
    return np.array(numbers, dtype=np.int64)


_SPACE = -1
"""Segment of white space."""


def _is_alone(tokens: TraceTokens, position: int) -> bool:
    """Whether a group must begin here, whatever the text is."""
    before = position - 1
    return bool(tokens.special[position] or tokens.special[before] or tokens.roles[position] != tokens.roles[before])


def _kind(character: str) -> str:
    """``space``, ``word``, ``single`` (one character is a word) or ``sign``."""
    if character.isspace():
        return "space"
    code = ord(character)
    if code >= 0x2E80 and any(first <= code <= last for first, last in _WITHOUT_SPACES):
        return "single"
    category = unicodedata.category(character)
    return "word" if category[0] in "LNM" or category == "Pc" else "sign"


def _words(text: str) -> list[int]:
    """Number of the word that each character belongs to."""
    kinds = [_kind(character) for character in text]
    segments: list[int] = []
    number = -1
    for place, (character, kind) in enumerate(zip(text, kinds, strict=True)):
        if kind == "space":
            segments.append(_SPACE)
            continue
        before = kinds[place - 1] if place else "space"
        joined = character in _JOINERS or (place > 0 and text[place - 1] in _JOINERS)
        if unicodedata.category(character)[0] == "M" and before != "space":
            joined = True  # a mark, or the variant of an emoji, belongs to what it stands on
        elif before == "word" and kind == "sign" and _is_inside_word(text, place):
            joined, kinds[place] = True, "word"
        if not joined and (kind != before or kind == "single"):
            number += 1
        elif joined and before != "space":
            kinds[place] = before
        elif joined:
            number += 1
        segments.append(number)
    return segments


def _is_inside_word(text: str, place: int) -> bool:
    """Whether a sign stands between two letters (an apostrophe) or two digits (a point or a comma)."""
    if place + 1 >= len(text):
        return False
    before, sign, after = text[place - 1], text[place], text[place + 1]
    if sign in "'’":
        return before.isalpha() and after.isalpha()
    return sign in ".," and before.isdigit() and after.isdigit()


def _sentences(text: str) -> list[int]:
    """Number of the sentence that each character belongs to."""
    segments: list[int] = []
    number, ended = 0, False
    for place, character in enumerate(text):
        if character.isspace():
            segments.append(_SPACE)
            ended = ended or character in "\n\r\u2028\u2029"
            ended = ended or _ends_sentence(text, place)
            continue
        if ended or (place and _closes(text, place)):
            number, ended = number + 1, False
        segments.append(number)
    return segments


def _ends_sentence(text: str, place: int) -> bool:
    """Whether the text before ``place`` ends a sentence, closing signs aside."""
    before = place - 1
    while before >= 0 and text[before] in _CLOSING:
        before -= 1
    return before >= 0 and text[before] in _SENTENCE_ENDS


def _closes(text: str, place: int) -> bool:
    """Whether a sentence that needs no space after it ends right before ``place``."""
    before = place - 1
    if text[place] in _CLOSING or text[place] in _SENTENCE_ENDS:
        return False
    while before >= 0 and text[before] in _CLOSING:
        before -= 1
    return before >= 0 and text[before] in _NEED_NO_SPACE


def _grouped(tokens: TraceTokens, starts: np.ndarray) -> TraceTokens:
    """The groups as tokens."""
    ends = [*starts[1:], len(tokens)]
    spans = [
        (int(tokens.spans[start:end, 0].min()), int(tokens.spans[start:end, 1].max()))
        for start, end in zip(starts, ends, strict=True)
    ]
    single = np.diff([*starts, len(tokens)]) == 1
    return TraceTokens(
        text=tokens.text,
        ids=np.where(single, tokens.ids[starts], NO_TOKEN).astype(np.int64),
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        roles=tuple(tokens.roles[start] for start in starts),
        special=tokens.special[starts],
    )


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values, starts, axis=1)


def _mean(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Mean of each group ``[S, T, …] → [S, G, …]``; of the finite values, where there are any."""
    finite = np.isfinite(values)
    counts = _sums(finite.astype(np.int64), starts)
    totals = _sums(np.where(finite, values, 0).astype(np.float64), starts)
    return np.where(counts > 0, totals / np.maximum(counts, 1), -np.inf).astype(np.float32)


def _max(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(values, starts, axis=1).astype(np.float32)


def _first(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return values[:, starts].astype(np.float32)
