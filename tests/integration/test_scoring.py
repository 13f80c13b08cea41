"""Rows that share a line, and choices that share a prompt, score what they score alone."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from loramixer.data import Example
from loramixer.errors import DataError
from loramixer.evaluation import harness, lines
from loramixer.evaluation.harness import evaluate, score_rows
from loramixer.tuner.intervening import Intervention, intervene
from loramixer.tuner.runtime import set_gate
from tests import architectures, tiny


def row(number: int, prompt: str, target: str, *choices: str) -> Example:
    return Example(
        f"r{number}", "t", "math", prompt, target, choices or None, choices.index(target) if choices else None
    )


ROWS = [
    row(1, "what is the dose of the drug", "two hundred mg"),
    row(2, "is the sky blue", "yes", "no", "yes", "it may be so now and then"),
    row(3, "which one", "the third of all", "a", "the first", "the third of all", "b"),
    row(4, "how many", "seven"),
]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return tiny.mixture(tiny.save_experts(tmp_path_factory.mktemp("experts")), top_k=2)


def scored(model, monkeypatch, together: bool, limit: int = 64) -> tuple[list, list]:
    with monkeypatch.context() as patch:
        if not together:
            patch.setattr(harness, "shared_prompts", lambda model, rows: nullcontext(False))
        patch.setattr(harness, "in_lines", lambda rows: lines.in_lines(rows, limit))
        routed: list = []
        scores = score_rows(model, tiny.tokenizer(), ROWS, observe=lambda index, logits: routed.append(logits))
    return scores, routed


@pytest.mark.parametrize("gate", ["soft", "top_k"])
@pytest.mark.parametrize("limit", [1, 64, 10_000])
def test_a_row_scores_the_same_in_a_line_and_alone(mixture, monkeypatch, gate, limit):
    set_gate(mixture, gate)
    alone, alone_routed = scored(mixture, monkeypatch, together=False)
    found, routed = scored(mixture, monkeypatch, together=True, limit=limit)
    for ours, theirs in zip(found, alone, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert (ours.tokens, ours.correct) == (theirs.tokens, theirs.correct)
        assert ours.shares == pytest.approx(theirs.shares, rel=1e-5)
    for ours, theirs in zip(routed, alone_routed, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [score.correct is None for score in found] == [True, False, False, True]


@pytest.mark.parametrize(
    "change",
    [
        Intervention("force", "a", tokens=(0, 4)),
        Intervention("mask", "a", tokens=(3, None)),
        Intervention("random_mask", "a", seed=1),
    ],
)
def test_an_intervention_acts_on_the_tokens_of_each_row(mixture, monkeypatch, change):
    """And not on those of a line of several rows, where the same positions are other tokens."""
    monkeypatch.setattr("loramixer.training.batches.TRIAL_TOLERANCE", 10)  # as for a change of little effect
    with intervene(mixture, [change]):
        alone, _ = scored(mixture, monkeypatch, together=False)
        found, _ = scored(mixture, monkeypatch, together=True)
    usual, _ = scored(mixture, monkeypatch, together=False)
    losses = [score.loss for score in alone]
    assert [score.loss for score in found] == pytest.approx(losses, rel=1e-5)
    assert [score.loss for score in usual] != pytest.approx(losses, rel=1e-3)


def test_the_own_expert_of_a_data_set_is_the_one_it_belongs_to(tmp_path):
    sources = tiny.save_experts(tmp_path)  # none of them has the name of the rows' domain
    (without,) = evaluate(tiny.mixture(sources), tiny.tokenizer(), ROWS)
    (found,) = evaluate(tiny.mixture(sources, tasks={"a": ["t"]}), tiny.tokenizer(), ROWS)
    assert without.own_expert_share is None
    assert found.own_expert_share == pytest.approx(found.shares["a"])


def test_every_choice_scores_what_it_scores_behind_its_prompt(mixture, monkeypatch):
    rows = [lines.encode_row(example, tiny.tokenizer(), 1024, 256) for example in ROWS]
    assert [len(found.answers) for found in rows] == [1, 3, 4, 1]
    with torch.no_grad(), lines.shared_prompts(mixture, rows) as possible:
        assert possible
        together = lines.score_line(mixture, rows)
    with torch.no_grad():
        for found, losses in zip(rows, together, strict=True):
            alone = [lines.score_alone(mixture, found, index) for index in range(len(found.answers))]
            np.testing.assert_allclose(losses, alone, rtol=1e-5)
    assert mixture.config._attn_implementation != lines.SHARED_PROMPTS


def test_sites_that_are_off_by_rule_take_nothing_from_the_shares(tmp_path):
    everywhere = {"r": 2, "lora_alpha": 4, "target_modules": list(tiny.ALL_PROJECTIONS)}
    sources = {name: tiny.save_expert(tmp_path / name, seed, **everywhere) for seed, name in enumerate(("math", "b"))}
    model = tiny.mixture(sources, gate="uniform", site_gates=[{"sites": r".*\.k_proj", "gate": "off"}])
    for score in score_rows(model, tiny.tokenizer(), ROWS):
        assert score.shares == pytest.approx({"math": 0.5, "b": 0.5})
    model = tiny.mixture(sources, gate="off")
    assert not any(sum(score.shares.values()) for score in score_rows(model, tiny.tokenizer(), ROWS))


class WithoutDouble(torch.Tensor):
    """A tensor of a device that has no float64, as mps has none."""

    def double(self, *_, **__):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self, *_, **__):
        return self.as_subclass(torch.Tensor)


def test_a_line_is_summed_where_there_is_float64(mixture, monkeypatch):
    rows = [lines.encode_row(example, tiny.tokenizer(), 1024, 256) for example in ROWS]
    entropy = torch.nn.functional.cross_entropy
    with torch.no_grad(), lines.shared_prompts(mixture, rows):
        usual = lines.score_line(mixture, rows)
        monkeypatch.setattr(
            torch.nn.functional, "cross_entropy", lambda *args, **kw: entropy(*args, **kw).as_subclass(WithoutDouble)
        )
        assert lines.score_line(mixture, rows) == usual


def test_all_choices_are_cut_alike():
    found = lines.encode_row(ROWS[2], tiny.tokenizer(), 1024, max_answer=2)
    assert [len(answer) for answer in found.answers] == [2, 2, 2, 2]
    assert len(lines.encode_row(ROWS[2], tiny.tokenizer(), 1024, 256).answers[2]) > 2


def test_a_backbone_with_a_state_scores_every_answer_by_itself(tmp_path, monkeypatch):
    architecture = architectures.ARCHITECTURES["mamba"]
    model = architectures.mixture(architecture, architectures.save_experts(architecture, tmp_path))
    rows = [lines.encode_row(example, tiny.tokenizer(), 1024, 256) for example in ROWS]
    with lines.shared_prompts(model, rows) as possible:
        assert not possible


def test_lines_hold_what_fits_and_a_long_row_has_one_of_its_own():
    rows = [lines.ScoredRow([0] * size, [[1]], []) for size in (3, 3, 20, 3)]
    assert [[found.length for found in line] for line in lines.in_lines(rows, 10)] == [[4, 4], [21], [4]]


def test_a_prompt_without_room_for_an_answer_is_named(mixture):
    with pytest.raises(DataError, match=r"row r1 .* into 3 tokens .*; raise max_length \(--max-length of"):
        score_rows(mixture, tiny.tokenizer(), ROWS, max_length=3)
