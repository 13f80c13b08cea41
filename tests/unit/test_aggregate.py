"""Words and sentences of a trace, by characters: every script, every way of splitting, honest numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramixer.aggregate import NO_TOKEN, aggregate, gate_shares, token_groups
from loramixer.errors import TraceError
from loramixer.trace import RoutingTrace, Site, TraceTokens
from loramixer.whatif import what_if
from tests import tiny


def tokens_of(*parts: str, roles=None, special=()) -> TraceTokens:
    """Tokens that stand one behind the other."""
    ends = np.cumsum([len(part) for part in parts])
    spans = np.stack([np.array([0, *ends[:-1]]), ends], axis=1)
    return TraceTokens(
        text="".join(parts),
        ids=np.arange(10, 10 + len(parts)),
        spans=spans,
        roles=roles or ("prompt",) * len(parts),
        special=np.array([index in special for index in range(len(parts))]),
    )


def make_trace(tokens: TraceTokens, contributions=True) -> RoutingTrace:
    random = np.random.default_rng(0)
    shape = (2, len(tokens), 3)
    gates = random.dirichlet(np.ones(3), size=shape[:2]).astype(np.float32)
    return RoutingTrace(
        tokens,
        (Site(0, "q_proj", "0.q_proj"), Site(0, "v_proj", "0.v_proj")),
        ("a", "b", "c"),
        random.normal(size=shape).astype(np.float32),
        gates,
        {"k": 3},
        random.random(shape).astype(np.float32) if contributions else None,
        random.random(shape[:2]).astype(np.float32) if contributions else None,
    )


def groups(unit: str, *parts: str, **settings) -> list[str]:
    """The texts of the groups."""
    tokens = tokens_of(*parts, **settings)
    numbers = token_groups(tokens, unit)
    return ["".join(tokens[i] for i in np.flatnonzero(numbers == number)) for number in range(numbers[-1] + 1)]


WORDS = [
    (["The", " do", "se", " is", " ten", "."], ["The", " dose", " is", " ten", "."]),
    (["don", "'t", " you", "’re"], ["don't", " you’re"]),
    (["'", "quo", "ted", "'"], ["'", "quoted", "'"]),
    (["3", ".", "5", " 1", ",", "000", "."], ["3.5", " 1,000", "."]),
    (["a", " ", " ", "b"], ["a", "  ", "b"]),
    (["end", "  "], ["end", "  "]),
    (["  ", "start"], ["  ", "start"]),
    (["line", "\n\n", "next"], ["line", "\n\n", "next"]),
    (["我", "们吃", "药。"], ["我", "们吃", "药。"]),
    (["飲", "み", "ます"], ["飲", "み", "ます"]),
    (["약", "을", " 먹", "다"], ["약을", " 먹다"]),
    (["دو", "اء", " جي", "د"], ["دواء", " جيد"]),
    (["क", "\u093f", "त", "\u093e", "ब"], ["किताब"]),
    (["e", "\u0301", "t", "é"], ["e\u0301té"]),
    (["👩", "\u200d", "👧", " ok"], ["👩\u200d👧", " ok"]),
    (["❤", "\ufe0f", "!"], ["❤\ufe0f!"]),
    (
        ["def", " f", "(x", "):", "\n", "    ", "return", " x_", "1"],
        ["def", " f", "(x", "):", "\n    ", "return", " x_1"],
    ),
    (["for", "(i", "=0", ";i", "<n"], ["for", "(i", "=0", ";i", "<n"]),
    (["foo_", "bar", ".", "baz"], ["foo_bar", ".", "baz"]),
    (["mg", "/", "kg"], ["mg", "/", "kg"]),
    (["a.", "b"], ["a.", "b"]),
    (["ab", "c.d", "e"], ["abc.de"]),
]


@pytest.mark.parametrize(("parts", "expected"), WORDS)
def test_words(parts, expected):
    assert groups("word", *parts) == expected


SENTENCES = [
    (["One", " is", ".", " Two", "!", " Three"], ["One is.", " Two!", " Three"]),
    (["Is", " 3", ".", "5", " ok", "?", ' "', "Yes", '."', " No"], ["Is 3.5 ok?", ' "Yes."', " No"]),
    (["a", "\n", "b", " c", "\n\n"], ["a\n", "b c\n\n"]),
    (["吃药。", "好吗？", "」", "好"], ["吃药。", "好吗？」", "好"]),
    (["Wait", "...", " what", "?!", " Yes"], ["Wait...", " what?!", " Yes"]),
    (["هل", "؟", " نعم"], ["هل؟", " نعم"]),
    (["x.y", "()"], ["x.y()"]),
    (["end.", "  "], ["end.  "]),
]


@pytest.mark.parametrize(("parts", "expected"), SENTENCES)
def test_sentences(parts, expected):
    assert groups("sentence", *parts) == expected


def test_groups_end_where_roles_change_and_special_tokens_stand_alone():
    found = groups(
        "word", "<s>", "us", "er", "ans", "wer", roles=("template", "prompt", "prompt", "generated", "generated"),
        special=(0,),
    )  # fmt: skip
    assert found == ["<s>", "user", "answer"]


def test_parts_of_one_character_stay_together():
    tokens = TraceTokens(
        "a😀b", np.arange(5), np.array([[0, 1], [1, 2], [1, 2], [1, 2], [2, 3]]), ("prompt",) * 5, np.zeros(5, bool)
    )
    assert token_groups(tokens, "word").tolist() == [0, 1, 1, 1, 2]
    assert aggregate(make_trace(tokens)).tokens[1] == "😀"
    assert token_groups(tokens, "subword").tolist() == [0, 1, 2, 3, 4]


TEXTS = st.text(alphabet=st.sampled_from("ab1 .,'\n_我み\u0301\u200d😀د؟。()"), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.data())
def test_any_split_of_any_text_is_covered_in_order(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=8)))
    places = [0, *[cut for cut in cuts if cut < len(text)], len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(places)]
    for unit in ("word", "sentence"):
        assert "".join(groups(unit, *parts)) == text
        # A coarser split can only join what the finest one keeps apart; space goes to either side.
        assert _beginnings(groups(unit, *parts)) <= _beginnings(groups(unit, *text))


def _beginnings(found: list[str]) -> set[int]:
    """Places of the first character of each group that is no space."""
    places, place = set(), 0
    for group in found:
        if group.strip():
            places.add(place + len(group) - len(group.lstrip()))
        place += len(group)
    return places


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=30).filter(str.strip))
def test_a_byte_level_tokenizer_gives_groups_that_cover_its_text(text):
    encoded = _TOKENIZER(text, return_offsets_mapping=True, add_special_tokens=False)
    spans = np.array(encoded["offset_mapping"]).reshape(-1, 2)
    count = len(spans)
    tokens = TraceTokens(text, np.array(encoded["input_ids"]), spans, ("prompt",) * count, np.zeros(count, bool))
    for unit in ("word", "sentence"):
        grouped = aggregate(make_trace(tokens), unit).tokens
        assert (grouped.spans[1:, 0] >= grouped.spans[:-1, 1]).all() or _has_odd_offsets(spans)


def _has_odd_offsets(spans: np.ndarray) -> bool:
    """Whether tokens overlap without being parts of one character."""
    return bool(((spans[1:, 0] < spans[:-1, 1]) & (spans[1:] != spans[:-1]).any(-1)).any())


_TOKENIZER = tiny.tokenizer()


def test_the_mean_is_over_the_tokens_of_the_group():
    trace = make_trace(tokens_of("The", " do", "se"))
    found = aggregate(trace, "word", "mean")
    assert [found.tokens[i] for i in range(2)] == ["The", " dose"]
    np.testing.assert_allclose(found.gates[:, 1], trace.gates[:, 1:].mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.logits[:, 1], trace.logits[:, 1:].mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.contributions[:, 1], trace.contributions[:, 1:].mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.base_norms[:, 1], trace.base_norms[:, 1:].mean(1), rtol=1e-6)
    np.testing.assert_array_equal(found.gates[:, 0], trace.gates[:, 0])
    assert found.gates.dtype == found.logits.dtype == np.float32
    assert found.tokens.ids.tolist() == [10, NO_TOKEN]
    assert (found.provenance["unit"], found.provenance["aggregation"]) == ("word", "mean")


def test_max_and_first():
    trace = make_trace(tokens_of("The", " do", "se"), contributions=False)
    largest, first = aggregate(trace, "word", "max"), aggregate(trace, "word", "first")
    np.testing.assert_array_equal(largest.gates[:, 1], trace.gates[:, 1:].max(1))
    np.testing.assert_array_equal(first.gates[:, 1], trace.gates[:, 1])
    assert largest.gates[:, 1].sum(-1).min() > 1
    assert largest.contributions is None


def test_the_largest_gates_as_shares_sum_to_one():
    trace = make_trace(tokens_of("The", " do", "se"))
    largest, mean = aggregate(trace, "word", "max"), aggregate(trace, "word", "mean")
    shares = gate_shares(largest)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(shares[:, 0], trace.gates[:, 0], rtol=1e-6)
    assert shares.dtype == np.float32
    assert gate_shares(mean) is mean.gates
    off = replace(largest, gates=np.zeros_like(largest.gates))
    assert not gate_shares(off).any()


def test_an_absent_expert_stays_absent():
    trace = make_trace(tokens_of("do", "se"))
    logits = trace.logits.copy()
    logits[0, :, 2] = -np.inf
    logits[1, 0, 2] = -np.inf
    found = aggregate(replace(trace, logits=logits))
    assert np.isneginf(found.logits[0, 0, 2])
    assert found.logits[1, 0, 2] == logits[1, 1, 2]


def test_an_aggregated_trace_can_be_saved(tmp_path):
    for how in ("mean", "max", "first"):
        found = aggregate(make_trace(tokens_of("The", " do", "se")), "word", how)
        loaded = RoutingTrace.load(found.save(tmp_path / "t.npz"))
        np.testing.assert_array_equal(loaded.gates, found.gates)


def test_subwords_are_what_is_there():
    trace = make_trace(tokens_of("do", "se"))
    assert aggregate(trace, "subword") is trace


def test_what_cannot_be_is_refused():
    trace = make_trace(tokens_of("do", "se"))
    with pytest.raises(TraceError, match="The unit of aggregation is 'line'; it can be subword, word, sentence"):
        aggregate(trace, "line")
    with pytest.raises(TraceError, match="The way of aggregation is 'sum'; it can be mean, max, first"):
        aggregate(trace, "word", "sum")
    with pytest.raises(TraceError, match="aggregated by word already"):
        aggregate(aggregate(trace), "sentence")
    with pytest.raises(TraceError, match="aggregated by word, so its gates do not follow"):
        what_if(aggregate(trace))
