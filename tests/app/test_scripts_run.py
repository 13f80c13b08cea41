"""“Python that reproduces this view” of Compare and What if: run for real, it prints the numbers of the room."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from explorer.comparison_payload import effect
from explorer.examples import find_example
from explorer.recordings import Recordings
from explorer.registry import ModelRegistry
from explorer.rooms.compare.files import code_maker
from explorer.rooms.compare.handlers import CompareHandlers
from explorer.rooms.compare.link import recording_spec
from explorer.rooms.compare.steps import TRAINED
from explorer.rooms.what_if.handlers import WhatIfHandlers
from explorer.sessions import Tickets
from explorer.traces_in_memory import TraceStore
from loramixer.trace import RoutingTrace

RSL = "smollm2-135m/rsl"
ME: Any = SimpleNamespace(session_hash="one", query_params={})
SIDES, VIEW = 0, 1
TOKENS = 4
"""Length of the answers, so that a test takes seconds."""


@pytest.fixture(scope="module")
def source(embedded_backbone: tuple) -> ModelRegistry:
    """The routers that ship, on the real backbone."""
    return ModelRegistry()


@pytest.fixture
def compare_room(source: ModelRegistry) -> CompareHandlers:
    return CompareHandlers(source, Recordings(), TraceStore(), Tickets())


@pytest.fixture
def what_if_room(source: ModelRegistry) -> WhatIfHandlers:
    return WhatIfHandlers(source, Recordings(), TraceStore(), Tickets(), 8)


def run_side(
    room: CompareHandlers, side: Any, sides: dict[str, Any], prompt: str, step: str = TRAINED, tokens: int = TOKENS
) -> tuple[Any, ...]:
    number, *_ = room.announce(side, prompt, tokens, sides, ME)
    written, *_ = list(room.run(side, prompt, RSL, step, "3", tokens, sides, number, ME))[-1]
    return room.take_run(written, sides, ME)


class Script:
    """A script that was run in a folder: the traces it made, what it printed, and its files."""

    def __init__(
        self, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.chdir(folder)
        capsys.readouterr()
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(text, "view.py", "exec"), names)
        self.a: RoutingTrace = names["trace"]
        self.b: RoutingTrace = names["other"]
        self.figure = names["figure"]
        self.sentence, *numbers = capsys.readouterr().out.strip().splitlines()
        self.jsd, self.changed = (float(re.findall(r"[\d.]+", line)[0]) for line in numbers)
        assert (folder / "difference_map.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "difference_map.html").read_text(encoding="utf-8")


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    return lambda text: Script(text, tmp_path, monkeypatch, capsys)


def assert_same_run(made: RoutingTrace, shown: RoutingTrace) -> None:
    assert made.tokens.text == shown.tokens.text
    assert made.tokens.roles == shown.tokens.roles
    np.testing.assert_allclose(made.gates, shown.gates, atol=1e-4)
    for fact in ("mixer", "router_sha256", "gate", "k", "gate_temperature"):
        assert made.provenance.get(fact) == shown.provenance.get(fact), fact


def assert_same_numbers(script: Script, view: dict[str, Any], shown: tuple[RoutingTrace, RoutingTrace]) -> None:
    """What was printed is what the room says; its browser tests hold the page to the same numbers."""
    assert script.sentence == json.loads(view["head"])["sentence"]
    numbers = effect(*shown)
    assert script.jsd == pytest.approx(numbers["jsd"], abs=1e-3)
    assert script.changed == pytest.approx(100 * (numbers["changed"] or 0), abs=0.1)


def test_a_router_and_itself_at_a_training_step(compare_room: CompareHandlers, run_script: Any) -> None:
    sides = run_side(compare_room, "A", {}, "What is iron deficiency anemia?")[SIDES]
    last = run_side(compare_room, "B", sides, "", step="100")
    script = run_script(code_maker(compare_room.traces_of)({"m": "medical"}, "one", last[SIDES]))
    a, b = compare_room.traces_of(last[SIDES], "one")
    assert b.provenance["mixer"] == "smollm2-135m/replay/rsl/step-00100"
    assert a.provenance["router_sha256"] != b.provenance["router_sha256"]
    assert_same_run(script.a, a)
    assert_same_run(script.b, b)
    assert_same_numbers(script, last[VIEW], (a, b))
    assert script.jsd > 0.01


def test_two_topics_are_compared_as_wholes_in_the_script_too(compare_room: CompareHandlers, run_script: Any) -> None:
    sides = run_side(compare_room, "A", {}, find_example("math").prompt, tokens=0)[SIDES]
    last = run_side(compare_room, "B", sides, find_example("medical").prompt, tokens=0)
    script = run_script(code_maker(compare_room.traces_of)({"m": "math", "q": "v"}, "one", last[SIDES]))
    a, b = compare_room.traces_of(last[SIDES], "one")
    assert_same_run(script.a, a)
    assert_same_run(script.b, b)
    head = json.loads(last[VIEW]["head"])
    assert script.sentence == head["sentence"]
    assert "math in A with medical in B" in script.sentence
    (first, second), *_ = [column for column, span in zip(head["columns"], head["spans"], strict=True) if span]
    sites = [place for place, site in enumerate(a.sites) if site.projection == "v_proj"]
    means = [trace.gates[sites][:, places].mean(axis=1) for trace, places in ((a, first), (b, second))]
    assert script.changed == pytest.approx(100 * (means[0].argmax(-1) != means[1].argmax(-1)).mean(), abs=0.1)
    np.testing.assert_allclose(np.ravel(script.figure.data[0].z), (means[1] - means[0])[:, 0], atol=1e-3)


def test_two_recordings(compare_room: CompareHandlers, run_script: Any) -> None:
    # Those with answers of two and three tokens.
    sides = compare_room.take_recording("A", recording_spec(("sentiment", "")), {}, ME)[SIDES]
    last = compare_room.take_recording("B", recording_spec(("science", "")), sides, ME)
    script = run_script(code_maker(compare_room.traces_of)({}, "one", last[SIDES]))
    a, b = compare_room.traces_of(last[SIDES], "one")
    assert_same_run(script.a, a)
    assert_same_run(script.b, b)
    assert script.sentence == json.loads(last[VIEW]["head"])["sentence"]
    assert "sentiment in A with science in B" in script.sentence


@pytest.fixture
def base(compare_room: CompareHandlers, what_if_room: WhatIfHandlers) -> dict[str, str]:
    """A short run, on which What if works."""
    sides = run_side(compare_room, "A", {}, "How many mg is 62 times 15?")[SIDES]
    trace = compare_room.traces.get("one", sides["A"]["key"])
    return what_if_room.take(what_if_room.traces.put("one", trace), ME)[0]


def test_other_gates_from_scores(what_if_room: WhatIfHandlers, base: dict[str, str], run_script: Any) -> None:
    view, result, _ = what_if_room.recompute(ME, base, "2", 0.5, ["code"], 0.7)
    script = run_script(code_maker(what_if_room.traces_of)({}, "one", base, result))
    shown = what_if_room.traces_of(base, result, "one")
    assert_same_run(script.a, shown[0])
    assert_same_run(script.b, shown[1])
    assert_same_numbers(script, view, shown)
    assert script.b.gates[..., script.b.experts.index("code")].max() == 0


def test_an_intervention_on_words(what_if_room: WhatIfHandlers, base: dict[str, str], run_script: Any) -> None:
    number, *_ = what_if_room.announce(base, ME)
    frames = what_if_room.intervene(base, number, "force", ["sentiment"], "words", "62 times", False, 0, ME)
    view, result, *_ = list(frames)[-1]
    script = run_script(code_maker(what_if_room.traces_of)({}, "one", base, result))
    shown = what_if_room.traces_of(base, result, "one")
    assert_same_run(script.b, shown[1])
    assert_same_numbers(script, view, shown)
    forced = script.b.gates[..., script.b.experts.index("sentiment")].min(axis=0) == 1
    assert 2 <= forced.sum() < script.b.tokens.roles.count("prompt")


def test_gates_under_which_the_model_writes_again(
    what_if_room: WhatIfHandlers, base: dict[str, str], run_script: Any
) -> None:
    number, *_ = what_if_room.announce(base, ME)
    view, result, *_ = list(what_if_room.regenerate(ME, base, number, "1", 2.0, ["math"]))[-1]
    script = run_script(code_maker(what_if_room.traces_of)({}, "one", base, result))
    shown = what_if_room.traces_of(base, result, "one")
    assert_same_run(script.a, shown[0])
    assert_same_run(script.b, shown[1])
    assert_same_numbers(script, view, shown)
