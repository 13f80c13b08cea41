"""A routing trace as a small JSON value for the browser: seven texts, however long the trace is.

Gradio sends the difference between two JSON values, and of a text that has grown only its new end travels; the browser
then clones and compares a value leaf by leaf, so a few texts cost no time where lists of columns would. The texts are:

- ``head``: JSON that stays the same for a run: experts, layers, projections, sites, parts of a column, the request;
- ``tokens``: one JSON row for each token, one a line, see :func:`encode_tokens`;
- ``columns``: for each token base64 of the same length. A column holds its parts one after the other, each of all
  sites in the order ``[site, expert]``, little-endian:

  - gates as uint16, ``round(gate * 65535)``: exact to 0.00001;
  - logits as int16, ``round(logit * 256)``: exact to 0.002 within ±128; ``ABSENT`` where the site has no such expert;
  - where the trace has contributions, their share of the base output as uint16, ``round(share * 16384)``: exact to
    0.00003 up to 4; ``NO_SHARE`` where the base output is 0;

- ``run``, ``state`` and ``provenance`` (JSON), which are short.

``components/routing_view/decode.js`` is the other end.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any, Literal

import numpy as np

from explorer.provenance import provenance_items
from loramixer.aggregate import token_groups
from loramixer.trace import RoutingTrace, TraceTokens
from loramixer.viz.palette import expert_styles

SCHEMA_VERSION = 2
GATE_SCALE = 65535
LOGIT_SCALE = 256
SHARE_SCALE = 16384
ABSENT = -32768
"""Stands for a logit of minus infinity: the expert is absent from this site."""

NO_SHARE = 65535
"""Stands for a share of nothing: the base output is 0."""

ROLES = ("template", "prompt", "generated")
"""The payload holds the index of a token's role in this tuple."""

ViewState = Literal["recorded", "opened", "generating", "finished", "stopped", "failed"]
"""Where the trace on screen comes from, and whether it is whole."""

Payload = dict[str, Any]


class PayloadEncoder:
    """Encodes one run; a trace that has grown since the last call costs only its new tokens.

    Args:
        request: what the run was asked for, in the values of ``explorer.view_link.RUN_FIELDS``; goes into links.
        gold: for each token of the prompt the index of the expert whose topic it is about, −1 for none; may be short.
    """

    def __init__(self, request: dict[str, Any] | None = None, gold: list[int] | None = None) -> None:
        self._run = uuid.uuid4().hex
        self._request = request or {}
        self._gold = gold or []
        self._columns = ""
        self._count = 0
        self._head = ""
        self._prompt: tuple[int, int, str] | None = None

    def encode(self, trace: RoutingTrace, state: ViewState) -> Payload:
        """The JSON value of a trace of this run."""
        shares = getattr(trace, "contribution_shares", None)
        columns = [
            encode_column(
                trace.gates[:, position],
                trace.logits[:, position],
                None if shares is None else shares[:, position],
            )
            for position in range(self._count, len(trace.tokens))
        ]
        self._columns += "".join(columns)
        self._count = len(trace.tokens)
        self._head = self._head or encode_head(trace, self._request)
        return {
            "schema": SCHEMA_VERSION,
            "run": self._run,
            "state": state,
            "head": self._head,
            "tokens": self._encode_tokens(trace.tokens),
            "columns": self._columns,
            "provenance": json.dumps(provenance_items(trace, state), ensure_ascii=False),
        }

    def _encode_tokens(self, tokens: TraceTokens) -> str:
        """Rows of all tokens; those of the prompt, which no answer changes, are made once."""
        if self._prompt is None:
            count = next((index for index, role in enumerate(tokens.roles) if role == "generated"), len(tokens))
            if count == len(tokens):
                return encode_tokens(tokens, self._gold)
            start = int(tokens.spans[count, 0])
            self._prompt = count, start, encode_tokens(_part(tokens, 0, count, 0), self._gold)
        count, start, rows = self._prompt
        words, sentences = json.loads(rows.rpartition("\n")[2])[5:7] if rows else (-1, -1)
        answer = encode_tokens(_part(tokens, count, len(tokens), start), first=(words + 1, sentences + 1))
        return f"{rows}\n{answer}" if rows else answer


def encode_trace(
    trace: RoutingTrace, state: ViewState, request: dict[str, Any] | None = None, gold: list[int] | None = None
) -> Payload:
    """The JSON value of a trace that is whole already."""
    return PayloadEncoder(request, gold).encode(trace, state)


def encode_head(trace: RoutingTrace, request: dict[str, Any]) -> str:
    """What stays the same while a trace grows, as JSON."""
    has_shares = getattr(trace, "contributions", None) is not None
    head = {
        "experts": [
            {"name": style.name, "letter": style.letter, "colour": style.colour}
            for style in expert_styles(trace.experts)
        ],
        "layers": list(trace.layers),
        "projections": list(trace.projections),
        "sites": [[trace.layers.index(site.layer), trace.projections.index(site.projection)] for site in trace.sites],
        "parts": ["gates", "logits", *(["shares"] if has_shares else [])],
        "request": request,
    }
    return json.dumps(head, ensure_ascii=False)


def encode_column(gates: np.ndarray, logits: np.ndarray, shares: np.ndarray | None = None) -> str:
    """One token: gates, logits and shares ``[S, E]`` as base64 text."""
    whole_gates = np.round(np.clip(gates, 0, 1) * GATE_SCALE).astype("<u2")
    finite = np.clip(np.round(np.where(np.isfinite(logits), logits, 0) * LOGIT_SCALE), ABSENT + 1, -ABSENT - 1)
    whole_logits = np.where(np.isfinite(logits), finite, ABSENT).astype("<i2")
    data = whole_gates.tobytes() + whole_logits.tobytes()
    if shares is not None:
        known = np.clip(np.round(np.where(np.isfinite(shares), shares, 0) * SHARE_SCALE), 0, NO_SHARE - 1)
        data += np.where(np.isfinite(shares), known, NO_SHARE).astype("<u2").tobytes()
    return base64.b64encode(data).decode("ascii")


def decode_columns(payload: Payload) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The inverse, as the browser does it: gates, logits and shares ``[S, T, E]`` as float32; shares may be None."""
    head = json.loads(payload["head"])
    shape = (len(head["sites"]), len(head["experts"]))
    size = 2 * shape[0] * shape[1]
    length = -(-size * len(head["parts"]) // 3) * 4
    text = payload["columns"]
    data = [base64.b64decode(text[start : start + length]) for start in range(0, len(text), length)]

    def part(index: int, kind: str) -> np.ndarray:
        rows = [np.frombuffer(column[index * size : (index + 1) * size], kind).reshape(shape) for column in data]
        return np.stack(rows, axis=1).astype(np.float32)

    logits = part(1, "<i2")
    logits = np.where(logits == ABSENT, -np.inf, logits / LOGIT_SCALE)
    shares = None
    if len(head["parts"]) > 2:
        shares = part(2, "<u2")
        shares = np.where(shares == NO_SHARE, np.nan, shares / SHARE_SCALE)
    return part(0, "<u2") / GATE_SCALE, logits, shares


def encode_tokens(tokens: TraceTokens, gold: list[int] | None = None, first: tuple[int, int] = (0, 0)) -> str:
    """Each token as a JSON row ``[text, role, part, parts, special, word, sentence, gold]``, one a line.

    Args:
        tokens: the tokens.
        gold: see :class:`PayloadEncoder`.
        first: numbers of the first word and the first sentence.

    ``part`` of ``parts`` tells apart tokens that hold bytes of the same character; most tokens are part 1 of 1.
    ``word`` and ``sentence`` number the groups that the token belongs to; ``gold`` is the index of the expert whose
    topic its span of the prompt is about, −1 for none.
    """
    words = token_groups(tokens, "word").tolist()
    sentences = token_groups(tokens, "sentence").tolist()
    known = gold or []
    rows: list[str] = []
    for group in _groups_of_overlap(tokens.spans):
        for part, position in enumerate(group, start=1):
            row = [
                tokens[position],
                ROLES.index(tokens.roles[position]),
                part,
                len(group),
                int(bool(tokens.special[position])),
                words[position] + first[0],
                sentences[position] + first[1],
                known[position] if position < len(known) else -1,
            ]
            rows.append(json.dumps(row, ensure_ascii=False))
    return "\n".join(rows)


def _part(tokens: TraceTokens, first: int, last: int, start: int) -> TraceTokens:
    """Tokens from ``first`` to before ``last``, over the text from character ``start`` on."""
    return TraceTokens(
        text=tokens.text[start:],
        ids=tokens.ids[first:last],
        spans=tokens.spans[first:last] - start,
        roles=tokens.roles[first:last],
        special=tokens.special[first:last],
    )


def _groups_of_overlap(spans: np.ndarray) -> list[list[int]]:
    """Positions of tokens, those whose spans overlap together: a tokenizer overlaps spans only inside a character."""
    groups: list[list[int]] = []
    end_of_group = 0
    for position, (start, end) in enumerate(spans.tolist()):
        if groups and start < end_of_group:
            groups[-1].append(position)
        else:
            groups.append([position])
        end_of_group = max(end_of_group, end)
    return groups
