"""Runs of the rooms on a tiny real model: one that ends by itself is never called stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from explorer.examples import EXAMPLES
from explorer.handlers import Handlers
from explorer.recordings import Recordings
from explorer.registry import ModelRegistry
from explorer.rooms.compare.handlers import CompareHandlers
from explorer.rooms.tradeoff.handlers import TradeoffHandlers
from explorer.rooms.what_if.handlers import WhatIfHandlers
from explorer.settings import ALL_EXPERTS
from loramixer.mixers import mixer_info
from tests import tiny

ROUTER = "tiny/rsl"
PROMPT = "the dose of the drug"
ASKED = 16
SESSION: Any = SimpleNamespace(session_hash="one", query_params={})


@pytest.fixture
def handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Handlers:
    """Explore over a model that ends its answers before the last of the tokens that are asked for."""
    zoo = tmp_path / "zoo"
    experts = tiny.save_experts(zoo / "tiny/experts")
    for seed, name in enumerate((ROUTER, "tiny/balance")):
        tiny.mixture(experts, seed).save_pretrained(zoo / name)
    monkeypatch.setattr("loramixer.mixers.ZOO", zoo)
    model, tokenizer = tiny.mixture(experts), tiny.tokenizer()
    source = ModelRegistry()
    source._models.hold(mixer_info(zoo / ROUTER, ROUTER).backbone, model, tokenizer)
    recordings = Recordings(tmp_path / "none")
    found = Handlers(source, recordings)
    written = [int(token) for token in _run(found)[0].tokens.ids[-ASKED:]]
    model.get_base_model().generation_config.eos_token_id = next(
        token for place, token in enumerate(written) if place >= 2 and token not in written[:place]
    )
    return found


def _run(handlers: Handlers) -> tuple[Any, tuple[Any, ...]]:
    number, *_ = handlers.announce(PROMPT, ASKED, SESSION)
    *_, last = handlers.run(PROMPT, ROUTER, ALL_EXPERTS, ASKED, number, SESSION)
    return handlers.traces.get("one", last[3]), last


def test_an_answer_that_ends_early_is_done(handlers: Handlers) -> None:
    found, last = _run(handlers)
    written = found.tokens.roles.count("generated")
    assert 2 < written < ASKED
    assert last[0]["state"] == "finished"
    assert last[1]["text"] == f"Done: {written} tokens written."


def test_a_side_whose_answer_ends_early_is_live(handlers: Handlers) -> None:
    room = CompareHandlers(handlers.source, handlers.recordings, handlers.traces, handlers.tickets)
    number, *_ = room.announce("A", PROMPT, ASKED, {}, SESSION)
    *_, last = room.run("A", PROMPT, ROUTER, "", ALL_EXPERTS, ASKED, {}, number, SESSION)
    shown = room.take_run(last[0], {}, SESSION)
    assert shown[0]["A"]["state"] == "finished"
    assert ", live, " in shown[2]["text"]


def test_measuring_measures_every_router(handlers: Handlers, tmp_path: Path) -> None:
    room = TradeoffHandlers(handlers.source, tmp_path, tmp_path)
    number, *_ = room.announce(SESSION)
    *_, last = room.measure(number, SESSION)
    assert last[1]["text"] == f"Measured: 2 of 2 routers on {len(EXAMPLES)} example prompts."


def test_the_random_control_ends_by_itself(handlers: Handlers) -> None:
    _, last = _run(handlers)
    room = WhatIfHandlers(handlers.source, handlers.recordings, handlers.traces, handlers.tickets, 8)
    base = room.take(last[3], SESSION)[0]
    number, *_ = room.announce(base, SESSION)
    *_, end = room.intervene(base, number, "mask", ["a"], "everything", "", True, 0, SESSION)
    assert end[2]["text"] == "Done."
    assert end[0] != gr.skip()
