"""Two traces, B less A: which of their tokens belong together, and how differently they were routed. Numpy only.

Shapes: S sites, T tokens, P pairs of tokens (or of words, or of spans) that belong together, E experts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from loramixer.aggregate import token_groups
from loramixer.data.schema import Span
from loramixer.errors import TraceError
from loramixer.metrics import jensen_shannon
from loramixer.spans import tokens_of_spans
from loramixer.trace import RoutingTrace

if TYPE_CHECKING:
    import pandas as pd

Alignment = Literal["token", "prefix", "span", "word"]
Positions = list[int]

NAMED = 3
"""Most names that a message lists."""


@dataclass(frozen=True)
class Change:
    """How much B differs from A, means over routers and over the pairs that count; NaN where nothing is compared.

    A router that is off on a side decides nothing there, so it has no part in either.

    Attributes:
        jsd_share: Jensen–Shannon divergence in bits, 0…1.
        leader_changed: share of the decisions in which another expert has the largest gate, 0…1.
    """

    jsd_share: float
    leader_changed: float


@dataclass(frozen=True)
class Comparison:
    """What belongs together in two traces, and how differently it was routed.

    Attributes:
        a: what is compared with.
        b: what is compared.
        alignment: ``token`` where both have the same tokens; ``prefix`` where they begin with the same tokens, prompt
            and all, and go on differently; else ``span`` or ``word``.
        columns: ``(positions in A, positions in B)``, which cover both traces in order; one side may be empty.
        sentence: how they were aligned, for people.
        domains: of each pair the domain in A and in B, where pairs are spans; else empty.
    """

    a: RoutingTrace
    b: RoutingTrace
    alignment: Alignment
    columns: list[tuple[Positions, Positions]]
    sentence: str
    domains: tuple[tuple[str, str], ...] = ()

    @cached_property
    def pairs(self) -> list[tuple[Positions, Positions]]:
        """The columns with both sides, P."""
        return [(first, second) for first, second in self.columns if first and second]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The text of each pair in A, P; of spans their domains."""
        if self.domains:
            return tuple(first if first == second else f"{first} | {second}" for first, second in self.domains)
        tokens = self.a.tokens
        return tuple(
            tokens.text[tokens.spans[first, 0].min() : tokens.spans[first, 1].max()] for first, _ in self.pairs
        )

    @cached_property
    def gates_a(self) -> np.ndarray:
        """Gates in A, float32 ``[S, P, E]``; the mean where several tokens make one pair."""
        return _paired(self.a.gates, [first for first, _ in self.pairs])

    @cached_property
    def gates_b(self) -> np.ndarray:
        """Gates in B, likewise."""
        return _paired(self.b.gates, [second for _, second in self.pairs])

    @cached_property
    def difference(self) -> np.ndarray:
        """Gates in B less those in A, float32 ``[S, P, E]``, −1…1."""
        return self.gates_b - self.gates_a

    @cached_property
    def contribution_difference(self) -> np.ndarray | None:
        """Contribution shares in B less those in A, float32 ``[S, P, E]``; None unless both have them."""
        first, second = self.a.contribution_shares, self.b.contribution_shares
        if first is None or second is None:
            return None
        return _paired(second, [pair[1] for pair in self.pairs]) - _paired(first, [pair[0] for pair in self.pairs])

    @cached_property
    def jsd(self) -> np.ndarray:
        """Jensen–Shannon divergence of the gates, ``[S, P]`` in nats, 0 … ln 2; NaN where a side has no gates."""
        p, q = (_normalised(gates) for gates in (self.gates_a, self.gates_b))
        undefined = np.isnan(p + q).any(axis=-1)
        return np.where(undefined, np.nan, np.maximum(jensen_shannon(p, q), 0.0))

    @property
    def jsd_share(self) -> np.ndarray:
        """The divergence in 0…1 of its largest value ln 2: the same number in bits."""
        return self.jsd / np.log(2)

    @cached_property
    def leader_changed(self) -> np.ndarray:
        """Whether another expert has the largest gate in B, bool ``[S, P]``; False where a side has no gates."""
        has_gates = (self.gates_a.max(axis=-1) > 0) & (self.gates_b.max(axis=-1) > 0)
        return has_gates & (self.gates_a.argmax(axis=-1) != self.gates_b.argmax(axis=-1))

    def counted(self, template: bool = False) -> np.ndarray:
        """Which pairs numbers are about, bool ``[P]``: without those of template and special tokens, unless asked."""
        tokens = self.a.tokens
        own = (
            template or any(tokens.roles[place] != "template" and not tokens.special[place] for place in first)
            for first, _ in self.pairs
        )
        return np.fromiter(own, bool, len(self.pairs))

    def change(self, projection: str | None = None, template: bool = False) -> Change:
        """How much B differs from A.

        Args:
            projection: routers of this projection only; None for all.
            template: whether pairs of template and special tokens count too.
        """
        own = self.counted(template)
        sites = [projection in (None, site.projection) for site in self.a.sites]
        jsd, changed = (values[sites][:, own] for values in (self.jsd_share, self.leader_changed))
        known = jsd[np.isfinite(jsd)]
        nothing = float("nan")
        return Change(
            float(known.mean()) if known.size else nothing,
            float(changed[np.isfinite(jsd)].mean()) if known.size else nothing,
        )

    def to_frame(self) -> pd.DataFrame:
        """A tidy table with one row per site, pair and expert.

        Columns: ``pair``, ``text``, ``layer``, ``projection``, ``expert``, ``gate_a``, ``gate_b``, ``difference``,
        ``jsd`` (of the site and pair, in nats).
        """
        import pandas as pd

        site, pair, expert = np.indices(self.difference.shape).reshape(3, -1)
        return pd.DataFrame(
            {
                "pair": pair,
                "text": np.array([*self.labels, ""], dtype=object)[pair],
                "layer": np.array([found.layer for found in self.a.sites])[site],
                "projection": np.array([found.projection for found in self.a.sites], dtype=object)[site],
                "expert": np.array(self.a.experts, dtype=object)[expert],
                "gate_a": self.gates_a.reshape(-1),
                "gate_b": self.gates_b.reshape(-1),
                "difference": self.difference.reshape(-1),
                "jsd": self.jsd[site, pair],
            }
        )


def compare(
    a: RoutingTrace,
    b: RoutingTrace,
    spans_a: Sequence[Span] | None = None,
    spans_b: Sequence[Span] | None = None,
) -> Comparison:
    """Align two traces and take the difference B − A.

    Tokens are compared one by one only where they are the same tokens after the same tokens: throughout, or, with one
    prompt and answers that part, up to there. Where the prompts differ, whole gold spans are compared if both sides
    have them: those of equal domains in their order, and between these, spans of different domains that stand
    opposite each other. Else equal words in the same order are compared; template and answer included.

    Args:
        a: what is compared with.
        b: what is compared; any mixture with the same experts and sites, such as one with other routers.
        spans_a: gold spans in the text of ``a``; see :func:`loramixer.spans.spans_in_trace`.
        spans_b: those in the text of ``b``.

    Raises:
        TraceError: other experts or other sites, or one trace by token and the other by word.
    """
    _check_comparable(a, b)
    first, second = (_keys(trace) for trace in (a, b))
    prompts = [sum(role != "generated" for role in trace.tokens.roles) for trace in (a, b)]
    unit = a.provenance.get("unit", "token")
    if first == second:
        columns = [([position], [position]) for position in range(len(first))]
        return Comparison(a, b, "token", columns, f"The {unit}s are equal, so they are compared one by one.")
    if first[: prompts[0]] == second[: prompts[1]] and prompts[0]:
        shared = next(
            (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
            min(len(first), len(second)),
        )
        columns = [([position], [position]) for position in range(shared)]
        columns += [([position], []) for position in range(shared, len(first))]
        columns += [([], [position]) for position in range(shared, len(second))]
        sentence = _prefix_sentence(unit, shared - prompts[0], shared, min(len(first), len(second)))
        return Comparison(a, b, "prefix", columns, sentence)
    if spans_a and spans_b and (found := _span_columns(a, b, spans_a, spans_b)):
        columns, domains = found
        sentence = _span_sentence([pair for pair in columns if pair[0] and pair[1]], domains)
        return Comparison(a, b, "span", columns, sentence, domains)
    columns = _word_columns(a, b)
    paired = [(left, right) for left, right in columns if left and right]
    sentence = (
        "The prompts differ, so equal words in the same order are compared, the mean over the tokens of each: "
        f"{len(paired)} of the {_count_words(columns, 0)} words in A and the {_count_words(columns, 1)} in B."
    )
    return Comparison(a, b, "word", columns, sentence)


def _check_comparable(a: RoutingTrace, b: RoutingTrace) -> None:
    if a.experts != b.experts:
        reason = "the same experts in another order" if sorted(a.experts) == sorted(b.experts) else "other experts"
        lists = f"A has {', '.join(a.experts)} and B has {', '.join(b.experts)}"
        raise TraceError(f"The traces have {reason}, so their gates have no difference: {lists}.")
    places = [{(site.layer, site.projection) for site in trace.sites} for trace in (a, b)]
    for name, missing in (("A", places[1] - places[0]), ("B", places[0] - places[1])):
        if missing:
            found = sorted(missing)
            listed = ", ".join(f"layer {layer} {projection}" for layer, projection in found[:NAMED])
            more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
            raise TraceError(f"The traces have other sites, so they have no difference: {name} lacks {listed}{more}.")
    if [(site.layer, site.projection) for site in a.sites] != [(site.layer, site.projection) for site in b.sites]:
        raise TraceError("The traces have the same sites in another order, so their arrays have no difference.")
    units = [trace.provenance.get("unit", "token") for trace in (a, b)]
    if units[0] != units[1]:
        raise TraceError(f"A is by {units[0]} and B by {units[1]}; aggregate both in the same way.")


def _keys(trace: RoutingTrace) -> list[Hashable]:
    """What makes tokens the same: id, text and whether it was read or written."""
    tokens = trace.tokens
    return [
        (int(token), tokens[position], tokens.roles[position] == "generated")
        for position, token in enumerate(tokens.ids)
    ]


def _prefix_sentence(unit: str, answer: int, length: int, shorter: int) -> str:
    """How a common beginning was compared.

    Args:
        unit: what a column is.
        answer: columns of the answer that both have.
        length: columns that both have.
        shorter: columns of the shorter trace.
    """
    if answer == 0:
        differ = "one answer is empty" if shorter == length else f"the answers differ from the first {unit} on"
        return (
            f"The prompt is the same and {differ}, so the {unit}s of the prompt are compared one by one and the "
            "answers are not."
        )
    written = f"first {unit}" if answer == 1 else f"first {answer} {unit}s"
    after = "one of them ends" if shorter == length else "they part"
    return f"The prompt and the {written} of the answers are the same and are compared one by one; then {after}."


def _span_columns(
    a: RoutingTrace, b: RoutingTrace, spans_a: Sequence[Span], spans_b: Sequence[Span]
) -> tuple[list[tuple[Positions, Positions]], tuple[tuple[str, str], ...]] | None:
    """The columns, and the domains of those that are pairs; None where no two spans with tokens belong together."""
    sides = _positions_of(a, spans_a), _positions_of(b, spans_b)
    columns: list[tuple[Positions, Positions]] = []
    domains: list[tuple[str, str]] = []
    ends = [0, 0]
    for left, right in _span_pairs(spans_a, spans_b):
        first, second = sides[0][left], sides[1][right]
        if not first or not second:
            continue  # its tokens stay outside, as those of a span without partner do
        columns += _alone(ends, [first[0], second[0]])
        columns.append((first, second))
        domains.append((spans_a[left].domain, spans_b[right].domain))
        ends = [first[-1] + 1, second[-1] + 1]
    return (columns + _alone(ends, [len(a.tokens), len(b.tokens)]), tuple(domains)) if domains else None


def _span_pairs(spans_a: Sequence[Span], spans_b: Sequence[Span]) -> list[tuple[int, int]]:
    """Which spans belong together, by place: equal domains in order, and what stands opposite each other between."""
    first, second = ([span.domain for span in spans] for spans in (spans_a, spans_b))
    pairs: list[tuple[int, int]] = []
    for operation, start_a, end_a, start_b, end_b in SequenceMatcher(
        None, first, second, autojunk=False
    ).get_opcodes():
        if operation in ("equal", "replace"):
            pairs += zip(range(start_a, end_a), range(start_b, end_b), strict=False)
    return pairs


def _positions_of(trace: RoutingTrace, spans: Sequence[Span]) -> list[Positions]:
    """Positions from the first to the last token of each span: a space between two of its words lies in it too."""
    numbers = tokens_of_spans(trace.tokens, spans)
    found = [np.flatnonzero(numbers == number).tolist() for number in range(len(spans))]
    return [list(range(places[0], places[-1] + 1)) if places else [] for places in found]


def _span_sentence(pairs: Sequence[tuple[Positions, Positions]], domains: Sequence[tuple[str, str]]) -> str:
    """How spans were compared, with the number of tokens on each side."""
    said = [
        f"{one if one == other else f'{one} in A with {other} in B'} ({len(left)} and {len(right)} tokens)"
        for (left, right), (one, other) in zip(pairs, domains, strict=True)
    ]
    return (
        "The prompts differ, so whole spans are compared, the mean over the tokens of each: "
        f"{', '.join(said)}; what lies outside them is not compared."
    )


def _alone(starts: Sequence[int], ends: Sequence[int]) -> list[tuple[Positions, Positions]]:
    """Columns of single tokens without a partner: those of A, then those of B."""
    columns: list[tuple[Positions, Positions]] = [([position], []) for position in range(starts[0], ends[0])]
    return columns + [([], [position]) for position in range(starts[1], ends[1])]


def _word_columns(a: RoutingTrace, b: RoutingTrace) -> list[tuple[Positions, Positions]]:
    words = [_words(trace) for trace in (a, b)]
    columns: list[tuple[Positions, Positions]] = []
    matcher = SequenceMatcher(None, [key for key, _ in words[0]], [key for key, _ in words[1]], autojunk=False)
    for operation, start_a, end_a, start_b, end_b in matcher.get_opcodes():
        left, right = ([found for _, found in side] for side in (words[0][start_a:end_a], words[1][start_b:end_b]))
        if operation == "equal":
            columns += list(zip(left, right, strict=True))
        else:
            columns += [(positions, []) for positions in left] + [([], positions) for positions in right]
    return columns


def _words(trace: RoutingTrace) -> list[tuple[Hashable, Positions]]:
    """The words of a trace, spaces around them aside, with the positions of their tokens."""
    tokens = trace.tokens
    unit = trace.provenance.get("unit")
    numbers = token_groups(tokens, "subword" if unit else "word")
    found: list[tuple[Hashable, Positions]] = []
    for number in range(int(numbers[-1]) + 1):
        positions = np.flatnonzero(numbers == number).tolist()
        text = tokens.text[tokens.spans[positions, 0].min() : tokens.spans[positions, 1].max()]
        found.append(((text.strip() or text, tokens.roles[positions[0]]), positions))
    return found


def _count_words(columns: Sequence[tuple[Positions, Positions]], side: int) -> int:
    return sum(bool(column[side]) for column in columns)


def _paired(values: np.ndarray, groups: Sequence[Positions]) -> np.ndarray:
    """Mean over the tokens of each group: ``[S, T, E] → [S, P, E]``."""
    if not groups:
        return np.zeros((values.shape[0], 0, values.shape[2]), dtype=np.float32)
    return np.stack([values[:, positions].mean(axis=1) for positions in groups], axis=1).astype(np.float32)


def _normalised(gates: np.ndarray) -> np.ndarray:
    """Rows that sum to 1, in float64; NaN where there are no gates."""
    sums = gates.sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.divide(gates, sums, out=np.full(gates.shape, np.nan), where=sums > 0)
