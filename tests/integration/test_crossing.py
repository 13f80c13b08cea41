"""Rows that cross two domains: answers, spans and ablations on a tiny mixture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from loramixer import Intervention
from loramixer.data import Example, generated_examples
from loramixer.errors import DataError, RoutingError
from loramixer.evaluation.crossing import ablate, answer_rows, share_interval, summarise_spans, written_text
from loramixer.evaluation.harness import score_rows
from tests import tiny


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny mixture whose experts have the names of domains, and its tokenizer."""
    folder = tmp_path_factory.mktemp("experts")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(tiny.ALL_PROJECTIONS)}
    names = ("math", "medical", "code")
    experts = {name: tiny.save_expert(folder / name, seed, **settings) for seed, name in enumerate(names, start=1)}
    return tiny.mixture(experts), tiny.tokenizer()


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    """Two rows of each set."""
    return generated_examples(4, 0, ["math-medical", "math-code"])


def test_rows_are_answered_and_judged(mixed: tuple[Any, Any], rows: list[Example]) -> None:
    seen: list[tuple[int, int]] = []
    found = answer_rows(*mixed, rows, 3, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)
    for row, example in zip(found, rows, strict=True):
        assert row.trace.tokens.roles.count("generated") >= 1
        assert row.answer == written_text(row.trace)
        assert row.trace.tokens.text.endswith(row.answer) or not row.answer
        assert row.routed.domains == tuple(dict.fromkeys(span.domain for span in example.spans or ()))
        assert not row.correct  # three random tokens are no answer


def test_spans_are_summarised_by_set(mixed: tuple[Any, Any], rows: list[Example]) -> None:
    found = answer_rows(*mixed, rows, 0)
    first, second = summarise_spans(found, draws=20)
    assert (first.domain, second.domain, first.n) == ("math-medical", "math-code", 2)
    own = [row for row in found if row.example.domain == first.domain]
    assert first.purity[0] == pytest.approx(np.mean([row.routed.purity.mean() for row in own]))
    assert first.own_share[0] == pytest.approx(np.mean([row.routed.own_share.mean() for row in own]))
    assert 0 <= first.above_null <= first.n
    assert first.tokens == sum(row.routed.n for row in own)
    assert first.lag[0] >= 0
    assert written_text(found[0].trace) == ""


def test_rows_without_spans_are_refused(mixed: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="has no gold spans"):
        answer_rows(*mixed, [Example("x", "t", "math", "1 + 1?", "2")], 0)


def test_an_ablation_is_the_difference_of_two_scores(mixed: tuple[Any, Any], rows: list[Example]) -> None:
    model, tokenizer = mixed
    found = ablate(model, tokenizer, rows, {"nothing": (), "only math": [Intervention("force", "math")]})
    assert [(row.change, row.domain, row.n) for row in found] == [
        ("nothing", "math-medical", 2),
        ("nothing", "math-code", 2),
        ("only math", "math-medical", 2),
        ("only math", "math-code", 2),
    ]
    assert all(row.difference[0] == pytest.approx(0, abs=1e-5) for row in found[:2])
    assert all(abs(row.difference[0]) > 1e-4 for row in found[2:])
    plain = [score for score in score_rows(model, tokenizer, rows, routing=False) if score.domain == "math-medical"]
    mean = sum(score.loss for score in plain) / sum(score.tokens for score in plain)
    assert found[2].loss[0] - found[2].difference[0] == pytest.approx(mean, abs=1e-5)


def test_an_ablation_of_an_unknown_expert_is_one_sentence(mixed: tuple[Any, Any], rows: list[Example]) -> None:
    with pytest.raises(RoutingError, match="nobody"):
        ablate(*mixed, rows, {"x": [Intervention("mask", "nobody")]})


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1)]
)
def test_shares_have_wilson_intervals(hits: int, of: int, low: float, high: float) -> None:
    assert share_interval(hits, of) == pytest.approx((hits / of, low, high), abs=1e-4)


def test_a_share_of_nothing_is_no_number() -> None:
    assert all(map(math.isnan, share_interval(0, 0)))
