"""The small Falcon-Mamba from nothing: rows, vocabulary, weights, numbers and card, on a few generated rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loramixer import LoraMixerError, load_backbone
from loramixer.errors import DataError
from loramixer.evaluation.texts import frequency_scores, model_scores, text_losses
from loramixer.training import backbone
from loramixer.training.backbone import BackboneShape, encode_pieces, text_of, train_backbone, train_tokenizer
from loramixer.training.run_log import RunLog
from tests import tiny

SHARES = {"math": 1.0, "code": 1.0}
SHAPE = BackboneShape(vocabulary=400, hidden_size=32, layers=2, states=4)
SETTINGS = replace(backbone.SETTINGS, batch_size=4, max_length=32, log_steps=5, save_steps=10, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def generated(monkeypatch):
    monkeypatch.setenv("LORAMIXER_DATA", "generated")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A backbone of two small blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAMIXER_DATA", "generated")
        return train_backbone(
            tmp_path_factory.mktemp("trained") / "backbone",
            rows=60,
            shape=SHAPE,
            shares=SHARES,
            settings=SETTINGS,
            test_rows=5,
            command="loramixer train-backbone --rows 60",
        )


def test_it_loads_like_any_other_and_writes(trained):
    model, tokenizer = load_backbone(trained)
    assert type(model).__name__ == "FalconMambaForCausalLM"
    assert (model.config.num_hidden_layers, model.config.state_size) == (2, 4)
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert model.config.use_cache
    ids = tokenizer("What is 12 plus 30?\n", return_tensors="pt")
    cached, recomputed = (
        model.generate(**ids, max_new_tokens=5, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, recomputed)
    assert not (trained / "checkpoints").exists()


def test_it_has_learnt_and_the_card_says_what_the_log_says(trained):
    log = RunLog.load(trained)
    table = log.summary["held_out"]
    assert list(table) == ["token frequencies", "before training", "trained"]
    for before, after in zip(table["before training"], table["trained"], strict=True):
        assert after["loss"] < before["loss"]
        assert after["low"] <= after["loss"] <= after["high"]
    card = (trained / "README.md").read_text()
    for row in table["trained"]:
        assert f"{row['loss']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" in card
    for task, count in log.settings["rows"].items():
        assert f"| {task} | {count} |" in card
    assert "`loramixer train-backbone --rows 60`" in card
    assert "toy" in card


def test_a_finished_one_is_left_as_it_is(trained, capsys):
    before = (trained / "model.safetensors").read_bytes()
    train_backbone(trained, shape=SHAPE, shares=SHARES, settings=SETTINGS)
    assert "holds a finished backbone" in capsys.readouterr().out
    assert (trained / "model.safetensors").read_bytes() == before


def test_another_one_is_not_handed_out_and_too_few_rows_are_said(trained, tmp_path):
    def again(folder, **more):
        train_backbone(folder, **{"shape": SHAPE, "shares": SHARES, "settings": SETTINGS, **more})

    with pytest.raises(LoraMixerError, match="seed 0, now 1"):
        again(trained, seed=1)
    with pytest.raises(DataError, match="2 rows do not fill one piece of 4096 tokens"):
        again(tmp_path, rows=2, settings=replace(SETTINGS, max_length=4096))


def test_the_vocabulary_takes_any_text_and_splits_numbers():
    tokenizer = train_tokenizer(["How much is 120 mg?"] * 3, 300)
    for text in ("Жук 🦊 <|x|>", "2026 tablets\n", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert [tokenizer.decode([token]) for token in tokenizer("2026")["input_ids"]] == list("2026")


def test_pieces_are_all_rows_behind_each_other():
    rows = backbone.backbone_examples(12, 0, SHARES, 400)
    tokenizer = train_tokenizer(map(text_of, rows), 400)
    pieces = encode_pieces(rows, tokenizer, 16)
    line = [token for piece in pieces for token in piece["input_ids"]]
    assert {len(piece["input_ids"]) for piece in pieces} == {16}
    text = tokenizer.decode(line)
    assert text.split(backbone.END)[:3] == [text_of(row) for row in rows[:3]]


def test_losses_of_texts_are_means_over_tokens():
    model = tiny.llama().eval()
    texts = {"a": [[1, 2, 3, 4], [5, 6]], "b": [[7, 8, 9]]}
    for row in text_losses(texts, model_scores(model)):
        sums = [
            model(torch.tensor([ids]), labels=torch.tensor([ids])).loss * (len(ids) - 1) for ids in texts[row.domain]
        ]
        assert row.tokens == sum(len(ids) - 1 for ids in texts[row.domain])
        assert row.loss == pytest.approx(float(sum(sums).detach()) / row.tokens, rel=1e-5)
    uniform = text_losses(texts, frequency_scores([0] * 10))
    assert uniform[0].loss == pytest.approx(np.log(10))
    assert frequency_scores([3, 0])([1, 0])[0] == pytest.approx(-np.log(4 / 5))
