"""Two traces: what is aligned with what, what is said about it, and the numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from loramixer.aggregate import aggregate
from loramixer.comparison import compare
from loramixer.data.schema import Span
from loramixer.errors import TraceError
from loramixer.trace import RoutingTrace, Site, TraceTokens

SITES = (Site(0, "q_proj", "l.0.q_proj"), Site(1, "q_proj", "l.1.q_proj"))


def make_trace(prompt: list[str], answer: tuple[str, ...] = (), seed=0, **facts) -> RoutingTrace:
    parts = [*prompt, *answer]
    ends = np.cumsum([len(part) for part in parts])
    gates = np.random.default_rng(seed).dirichlet(np.ones(3), size=(2, len(parts))).astype(np.float32)
    return RoutingTrace(
        TraceTokens(
            "".join(parts),
            np.array([sum(map(ord, part)) for part in parts]),
            np.stack([np.array([0, *ends[:-1]]), ends], axis=1),
            ("template", *("prompt",) * (len(prompt) - 1), *("generated",) * len(answer)),
            np.array([index == 0 for index in range(len(parts))]),
        ),
        SITES,
        ("math", "medical", "code"),
        np.log(gates),
        gates,
        {"k": 3, **facts},
    )


PROMPT = ["<s>", "The", " do", "se"]


def covers(comparison) -> bool:
    """Whether the columns hold every token of both, in order."""
    sides = [[place for column in comparison.columns for place in column[side]] for side in (0, 1)]
    return sides == [list(range(len(comparison.a.tokens))), list(range(len(comparison.b.tokens)))]


def test_equal_tokens_are_compared_one_by_one():
    a, b = make_trace(PROMPT, (" is", " 2")), make_trace(PROMPT, (" is", " 2"), seed=1)
    found = compare(a, b)
    assert (found.alignment, found.columns[2]) == ("token", ([2], [2]))
    assert found.sentence == "The tokens are equal, so they are compared one by one."
    np.testing.assert_allclose(found.difference, b.gates - a.gates)
    assert found.labels == ("<s>", "The", " do", "se", " is", " 2")
    assert covers(found)


def test_the_divergence_is_the_one_of_the_definition():
    a, b = make_trace(PROMPT), make_trace(PROMPT, seed=1)
    p, q = a.gates[1, 2].astype(float), b.gates[1, 2].astype(float)
    middle = (p + q) / 2
    expected = (np.sum(p * np.log(p / middle)) + np.sum(q * np.log(q / middle))) / 2
    found = compare(a, b)
    assert found.jsd[1, 2] == pytest.approx(expected, rel=1e-5)
    assert found.jsd_share[1, 2] == pytest.approx(expected / np.log(2), rel=1e-5)
    assert compare(a, a).jsd.max() < 1e-6


def test_experts_without_anything_in_common_are_ln_2_apart_and_none_is_nan():
    a, b = make_trace(PROMPT, site_gates=[{}]), make_trace(PROMPT, site_gates=[{}])
    left, right = a.gates.copy(), b.gates.copy()
    left[0, 1], right[0, 1], left[1, 2] = (1, 0, 0), (0, 0, 1), 0
    found = compare(replace(a, gates=left), replace(b, gates=right))
    assert found.jsd[0, 1] == pytest.approx(np.log(2))
    assert found.jsd_share[0, 1] == pytest.approx(1)
    assert np.isnan(found.jsd[1, 2])
    assert found.leader_changed[0, 1]
    assert not found.leader_changed[1, 2]
    assert np.isnan(found.jsd).sum() == 1


def test_unnormalised_gates_are_compared_by_their_shares():
    a = make_trace(PROMPT, renormalize=False)
    b = replace(a, gates=a.gates / 2)
    assert compare(a, b).jsd.max() < 1e-6


def test_one_prompt_with_two_answers_is_compared_up_to_where_they_part():
    a, b = make_trace(PROMPT, (" is", " 2", "!")), make_trace(PROMPT, (" is", " 3"), seed=1)
    found = compare(a, b)
    assert found.alignment == "prefix"
    assert found.columns[4:] == [([4], [4]), ([5], []), ([6], []), ([], [5])]
    assert found.sentence == (
        "The prompt and the first token of the answers are the same and are compared one by one; then they part."
    )
    assert found.difference.shape == (2, 5, 3)
    assert covers(found)


def test_answers_that_differ_at_once_or_end_are_named():
    a = make_trace(PROMPT, (" is", " 2"))
    assert "differ from the first token on" in compare(a, make_trace(PROMPT, (" was",))).sentence
    assert "one answer is empty" in compare(a, make_trace(PROMPT)).sentence
    assert "first token of the answers are the same and are compared one by one; then one of them ends" in (
        compare(a, make_trace(PROMPT, (" is",))).sentence
    )


def test_equal_tokens_in_another_role_are_not_the_same():
    a, b = make_trace([*PROMPT, " is"]), make_trace(PROMPT, (" is",))
    assert compare(a, b).alignment == "word"


def test_other_prompts_are_compared_by_equal_words():
    a = make_trace(["<s>", "The", " do", "se", " is", " ten"])
    b = make_trace(["<s>", "A", " dose", " of", " ten"], seed=1)
    found = compare(a, b)
    assert found.alignment == "word"
    assert found.pairs == [([0], [0]), ([2, 3], [2]), ([5], [4])]
    assert found.labels == ("<s>", " dose", " ten")
    np.testing.assert_allclose(found.gates_a[:, 1], a.gates[:, 2:4].mean(1), rtol=1e-6)
    assert "3 of the 5 words in A and the 5 in B" in found.sentence
    assert covers(found)


def test_nothing_in_common_is_an_empty_comparison():
    found = compare(make_trace(["<s>x", "The"]), make_trace(["<p>", "Un"]))
    assert found.pairs == []
    assert found.jsd.shape == (2, 0)
    assert len(found.to_frame()) == 0
    assert covers(found)


def test_gold_spans_come_before_words():
    a = make_trace(["<s>", "two", " pills", ",", " sum", " it"])
    b = make_trace(["<s>", "pi", "lls", ":", " add"], seed=1)
    spans = ([Span(3, 12, "medical"), Span(14, 20, "math")], [Span(3, 8, "medical"), Span(10, 13, "math")])
    found = compare(a, b, *spans)
    assert found.alignment == "span"
    assert found.pairs == [([1, 2], [1, 2]), ([4, 5], [4])]
    assert "whole spans are compared" in found.sentence
    assert "medical (2 and 2 tokens), math (2 and 1 tokens)" in found.sentence
    assert found.labels == ("medical", "math")
    assert covers(found)
    np.testing.assert_allclose(found.gates_b[:, 0], b.gates[:, 1:3].mean(axis=1), atol=1e-6)
    assert compare(a, b, spans[0], []).alignment == "word"


def test_spans_of_equal_domains_find_each_other_and_others_stand_opposite():
    a = make_trace(["<s>", "two", " pills", ",", " sum", " it"])
    b = make_trace(["<s>", "pi", "lls", ":", " add"], seed=1)
    first, second = Span(3, 12, "medical"), Span(14, 20, "math")
    alone = compare(a, b, [first, second], [Span(10, 13, "math")])
    assert alone.pairs == [([4, 5], [4])]
    assert alone.labels == ("math",)
    opposite = compare(a, b, [first, second], [Span(3, 8, "medical"), Span(10, 13, "code")])
    assert opposite.labels == ("medical", "math | code")
    assert "math in A with code in B (2 and 1 tokens)" in opposite.sentence
    assert covers(alone)
    assert covers(opposite)
    # A span of which no token is left is compared with nothing.
    assert compare(a, b, [Span(0, 3, "math")], [Span(3, 8, "math")]).alignment == "word"


def test_other_experts_and_other_sites_are_refused_by_name():
    a = make_trace(PROMPT)
    with pytest.raises(TraceError, match=r"other experts.*A has math, medical, code and B has math, medical, law"):
        compare(a, replace(a, experts=("math", "medical", "law")))
    with pytest.raises(TraceError, match="the same experts in another order"):
        compare(a, replace(a, experts=("medical", "math", "code")))
    with pytest.raises(TraceError, match="B lacks layer 1 q_proj"):
        compare(a, replace(a, sites=SITES[:1], logits=a.logits[:1], gates=a.gates[:1]))
    with pytest.raises(TraceError, match="A lacks layer 7 q_proj"):
        compare(a, replace(a, sites=(SITES[0], Site(7, "q_proj", "l.7.q_proj"))))
    with pytest.raises(TraceError, match="the same sites in another order"):
        compare(a, replace(a, sites=SITES[::-1]))
    with pytest.raises(TraceError, match="A is by token and B by word; aggregate both"):
        compare(a, aggregate(a))


def test_aggregated_traces_are_compared_by_their_words():
    a, b = (aggregate(make_trace(PROMPT, seed=seed)) for seed in (0, 1))
    found = compare(a, b)
    assert found.sentence == "The words are equal, so they are compared one by one."
    assert found.labels == ("<s>", "The", " dose")
    other = aggregate(make_trace(["<s>", "A", " dose"]))
    assert compare(a, other).pairs == [([0], [0]), ([2], [2])]


def test_contribution_differences_need_both():
    a, b = make_trace(PROMPT), make_trace(PROMPT, seed=1)
    assert compare(a, b).contribution_difference is None
    measured = [
        replace(trace, contributions=trace.gates * 2, base_norms=np.full((2, 4), 4, np.float32)) for trace in (a, b)
    ]
    np.testing.assert_allclose(
        compare(*measured).contribution_difference, (b.gates - a.gates) / 2, rtol=1e-5, atol=1e-7
    )


def test_minus_is_b_less_a():
    a, b = make_trace(PROMPT), make_trace(PROMPT, seed=1)
    np.testing.assert_array_equal((b - a).difference, compare(a, b).difference)


def test_a_change_counts_no_template_and_one_projection_if_asked():
    a, b = make_trace(PROMPT), make_trace(PROMPT, seed=1)
    sites = (SITES[0], replace(SITES[1], projection="v_proj"))
    found = compare(replace(a, sites=sites), replace(b, sites=sites))
    assert found.change().jsd_share == pytest.approx(found.jsd_share[:, 1:].mean())
    assert found.change().leader_changed == pytest.approx(found.leader_changed[:, 1:].mean())
    assert found.change(template=True).jsd_share == pytest.approx(found.jsd_share.mean())
    assert found.change("v_proj").jsd_share == pytest.approx(found.jsd_share[1, 1:].mean())
    nothing = compare(a, make_trace(["<s>", "no", "ne"], seed=1)).change()
    assert np.isnan([nothing.jsd_share, nothing.leader_changed]).all()


def test_frame_is_tidy():
    a, b = make_trace(PROMPT), make_trace(PROMPT, seed=1)
    frame = (b - a).to_frame()
    row = frame.query("pair == 3 and layer == 1 and expert == 'code'")
    assert row.difference.item() == pytest.approx(b.gates[1, 3, 2] - a.gates[1, 3, 2])
    assert row.text.item() == "se"
    assert len(frame) == 2 * 4 * 3


def test_a_router_that_is_off_on_one_side_decides_nothing():
    a, b = make_trace(PROMPT), make_trace(PROMPT, seed=1)
    gates = np.concatenate([b.gates[:1], np.zeros_like(b.gates[1:])])
    off = replace(b, gates=gates, provenance={**b.provenance, "site_gates": [{"sites": ".*", "gate": "off"}]})
    of_the_other = compare(a, b).leader_changed[0, 1:].mean()
    assert compare(a, off).change().leader_changed == pytest.approx(of_the_other) != 0
