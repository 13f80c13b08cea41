"""Gold spans: which tokens they hold, and numbers that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from loramixer.data import generated_examples
from loramixer.data.generated import FAMILIES
from loramixer.data.schema import Span
from loramixer.errors import TraceError
from loramixer.spans import OUTSIDE, span_routing, spans_in_trace, tokens_of_spans
from loramixer.trace import RoutingTrace, Site, TraceTokens

MATH, MEDICAL = (1.0, 0.0), (0.0, 1.0)


def make_trace(parts, gates, roles=None, **provenance) -> RoutingTrace:
    """``gates``: ``[S][T][E]``."""
    ends = np.cumsum([len(part) for part in parts])
    gates = np.array(gates, dtype=np.float32)
    return RoutingTrace(
        TraceTokens(
            "".join(parts),
            np.arange(len(parts)),
            np.stack([np.array([0, *ends[:-1]]), ends], axis=1),
            roles or ("prompt",) * len(parts),
            np.array([part.startswith("<") for part in parts]),
        ),
        tuple(Site(layer, "q_proj", f"l.{layer}") for layer in range(len(gates))),
        ("math", "medical"),
        np.zeros_like(gates),
        gates,
        {"k": 2, **provenance},
    )


PARTS = ["one", " two", " pill", " dose", " mg", " ml"]
SPANS = [Span(0, 7, "math"), Span(8, 23, "medical")]


def test_tokens_are_found_by_their_characters():
    trace = make_trace(PARTS, [[MATH] * 6])
    assert tokens_of_spans(trace.tokens, SPANS).tolist() == [0, 0, 1, 1, 1, 1]
    # " two" without its space, " pill" over a border inside it: most of its letters count.
    assert tokens_of_spans(trace.tokens, [Span(4, 10, "math"), Span(10, 12, "medical")]).tolist()[:3] == [
        OUTSIDE,
        0,
        0,
    ]
    assert tokens_of_spans(trace.tokens, [Span(4, 9, "math"), Span(9, 12, "medical")]).tolist()[2] == 1


def test_special_and_written_tokens_are_outside():
    roles = ("template", "prompt", "prompt", "generated")
    trace = make_trace(["<s>", "one", " two", " pill"], [[MATH] * 4], roles)
    assert tokens_of_spans(trace.tokens, [Span(0, 15, "math")]).tolist() == [OUTSIDE, 0, 0, OUTSIDE]


def test_routing_that_follows_the_spans():
    found = span_routing(make_trace(PARTS, [[MATH] * 2 + [MEDICAL] * 4]), SPANS)
    np.testing.assert_allclose(found.confusion[0], [[1, 0], [0, 1]])
    assert (found.n, found.domains) == (6, ("math", "medical"))
    assert (found.purity[0], found.mutual_information[0], found.own_share[0]) == pytest.approx((1, 1, 1))
    (lag,) = found.lags
    assert (lag.domain, lag.border, lag.limit, lag.tokens.tolist(), lag.censored.tolist()) == (
        "medical",
        2,
        4,
        [0],
        [False],
    )


def test_routing_that_follows_nothing():
    found = span_routing(make_trace(PARTS, [[(0.5, 0.5)] * 6, [MATH] * 6]), SPANS)
    # The larger domain has four of six tokens: that is what is pure without any routing.
    np.testing.assert_allclose(found.purity, [4 / 6, 4 / 6])
    np.testing.assert_allclose(found.mutual_information, [0, 0], atol=1e-6)
    np.testing.assert_allclose(found.own_share, [0.5, 2 / 6])
    (lag,) = found.lags
    assert (lag.tokens.tolist(), lag.censored.tolist()) == ([4, 4], [True, True])


OFF = [(0.0, 0.0)] * 6


def test_routers_that_are_off_leave_the_numbers_of_the_others_as_they_are():
    gates = [[MATH, (0.5, 0.5), MATH, MATH, MEDICAL, MEDICAL], [MATH, MATH, MEDICAL, MEDICAL, MEDICAL, MEDICAL]]
    found = span_routing(
        make_trace(PARTS, [OFF, gates[0], OFF, gates[1]], site_gates=[{"sites": ".*", "gate": "off"}]), SPANS
    )
    alone = span_routing(make_trace(PARTS, gates), SPANS)
    for name in ("confusion", "mean_gates", "purity", "mutual_information", "own_share"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    assert [lag.tokens.tolist() for lag in found.lags] == [lag.tokens.tolist() for lag in alone.lags]
    assert found.null(draws=3) == alone.null(draws=3)
    assert set(found.null(draws=3)) == {"purity", "mutual_information", "own_share", "lag"}


def test_where_every_router_is_off_nothing_follows_the_spans():
    with pytest.raises(TraceError, match="No router of this trace has a gate inside the spans"):
        span_routing(make_trace(PARTS, [OFF, OFF], gate="off"), SPANS)


def test_numbers_worked_out_by_hand():
    gates = [[MATH, (0.5, 0.5), MATH, MATH, MEDICAL, MEDICAL], [MATH, MATH, MEDICAL, MEDICAL, MEDICAL, MEDICAL]]
    found = span_routing(make_trace(PARTS, gates), SPANS)
    np.testing.assert_allclose(found.confusion[0], [[0.75, 0.25], [0.5, 0.5]])
    np.testing.assert_allclose(found.domain_confusion, found.confusion)
    # Mass of domain × expert over six tokens: [1.5, 0.5], [2, 2].
    assert found.purity[0] == pytest.approx((2 + 2) / 6)
    p = np.array([1.5, 0.5, 2, 2]) / 6
    information = -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3)) - (
        3.5 / 6 * np.log(3.5 / 6) + 2.5 / 6 * np.log(2.5 / 6)
    )
    information += np.sum(p * np.log(p))
    scale = np.sqrt(
        (1 / 3 * np.log(3) + 2 / 3 * np.log(1.5)) * (3.5 / 6 * np.log(6 / 3.5) + 2.5 / 6 * np.log(6 / 2.5))
    )
    assert found.mutual_information[0] == pytest.approx(information / scale, rel=1e-5)
    assert found.own_share[0] == pytest.approx((1.5 + 2) / 6)
    (lag,) = found.lags
    assert lag.tokens.tolist() == [2, 0]
    assert not lag.censored.any()
    # The mean of both sites is at one half after the border, where the first expert counts, and switches two later.
    assert (lag.mean_tokens, lag.mean_censored) == (2, False)
    np.testing.assert_allclose(found.of_mean().confusion[0], found.confusion.mean(0))


def test_a_domain_without_expert_has_no_lag():
    found = span_routing(make_trace(PARTS, [[MATH] * 6]), [Span(0, 7, "math"), Span(8, 23, "law")])
    assert found.lags == ()
    assert found.own_share[0] == 1
    assert "lag" not in found.null(draws=3)
    assert np.isnan(span_routing(make_trace(PARTS, [[MATH] * 6]), [Span(0, 23, "law")]).own_share).all()


def test_two_spans_of_one_domain_have_no_border_and_one_domain_no_information():
    found = span_routing(make_trace(PARTS, [[MATH] * 6]), [Span(0, 7, "math"), Span(8, 23, "math")])
    assert found.lags == ()
    assert np.isnan(found.mutual_information).all()
    assert found.confusion.shape == (1, 2, 2)
    assert found.domain_confusion.shape == (1, 1, 2)


def test_shuffled_tokens_lose_what_follows_the_spans_and_keep_what_does_not():
    gates = [[MATH] * 20 + [MEDICAL] * 20]
    trace = make_trace([f" {index:02d}" for index in range(40)], gates)
    found = span_routing(trace, [Span(0, 60, "math"), Span(60, 120, "medical")])
    null = found.null(seed=1)
    assert found.mutual_information[0] > null["mutual_information"].high
    assert found.purity[0] > null["purity"].high
    assert null["purity"].low >= 0.5
    assert null["own_share"].low < 0.5 < null["own_share"].high
    assert null["lag"].mean == pytest.approx(1, abs=0.5)
    assert found.null(seed=1) == null


def test_spans_of_a_prompt_move_behind_the_template():
    trace = make_trace(
        ["<user>", "one", " two", " pill", "<end>"], [[MATH] * 5], ("template", *("prompt",) * 3, "template")
    )
    moved = spans_in_trace(trace, "  one two pill\n", [Span(0, 9, "math"), Span(10, 14, "medical")])
    assert [trace.tokens.text[span.start : span.end] for span in moved] == ["one two", "pill"]
    with pytest.raises(TraceError, match="of another prompt than the spans"):
        spans_in_trace(trace, "three", [Span(0, 5, "math")])


@pytest.mark.parametrize("prompt", ["user", "a", " a\n"])
def test_a_short_prompt_is_not_looked_for_in_the_template(prompt):
    parts = ["<", "user", ">", prompt, "<", "user", ">", " a"]
    roles = (*("template",) * 3, "prompt", *("template",) * 3, "generated")
    trace = make_trace(parts, [[MATH] * len(parts)], roles)
    (moved,) = spans_in_trace(trace, prompt, [Span(0, len(prompt), "math")])
    before = len(prompt) - len(prompt.lstrip())
    assert (moved.start, moved.end) == (6 + before, 6 + before + len(prompt.strip()))


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if "-" in family.domain])
def test_gold_spans_of_generated_rows_fit(family):
    (row,) = generated_examples(1, 0, [family])
    words = [f" {word}" if index else word for index, word in enumerate(row.prompt.split(" "))]
    trace = make_trace(["<s>", *words], [[MATH] * (len(words) + 1)], ("template", *("prompt",) * len(words)))
    moved = spans_in_trace(trace, row.prompt, row.spans)
    assert [trace.tokens.text[s.start : s.end] for s in moved] == [row.prompt[s.start : s.end] for s in row.spans]
    assert span_routing(trace, moved).n == len(words)


@pytest.mark.parametrize("spans", [[Span(4, 2, "math")], [Span(0, 99, "math")], [Span(3, 8, "math"), Span(0, 2, "a")]])
def test_spans_that_do_not_fit_are_one_sentence(spans):
    with pytest.raises(TraceError, match="overlaps another, is empty, or lies outside the text of 23 characters"):
        span_routing(make_trace(PARTS, [[MATH] * 6]), spans)


def test_spans_without_a_token_are_refused():
    with pytest.raises(TraceError, match="No token of this trace lies in a span"):
        span_routing(make_trace(PARTS, [[MATH] * 6]), [])


def test_tokens_that_all_lie_in_one_span_have_no_border():
    found = span_routing(make_trace(PARTS, [[MATH] * 6]), [Span(0, 23, "math")])
    assert list(found.lags) == []
    assert "lag" not in found.null(draws=3)
