"""What if: its events called directly, over invented traces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
import numpy as np
import pytest

from explorer.comparison_payload import effect
from explorer.payload import ViewState
from explorer.recordings import Recordings
from explorer.rooms.compare.files import code_maker
from explorer.rooms.what_if.changes import GateChange, ModelChange, positions_of
from explorer.rooms.what_if.handlers import WhatIfHandlers
from explorer.rooms.what_if.link import read_biases, write_biases
from explorer.sessions import Tickets
from explorer.settings import ALL_EXPERTS
from explorer.traces_in_memory import TraceStore
from loramixer.errors import RoutingError
from loramixer.metrics import entropy
from loramixer.whatif import NOTE
from tests.app.synthetic import ANSWER, EXPERTS, FakeSource, make_trace
from tests.app.synthetic_app import make_recordings

SLIDERS = 8
BASE, LINE, VIEW, RESULT, STATUS, GATE, TEMPERATURE, MASK, CHOSEN = range(9)
PROMPT = "A patient weighs 62 kg. How many mg is each dose?"


def session(name: str = "one", **query: str) -> Any:
    return SimpleNamespace(session_hash=name, query_params=query)


@pytest.fixture
def room(tmp_path: Path) -> WhatIfHandlers:
    return WhatIfHandlers(FakeSource(), make_recordings(tmp_path), TraceStore(), Tickets(), SLIDERS)


@pytest.fixture
def base(room: WhatIfHandlers) -> dict[str, str]:
    key = room.traces.put("one", make_trace(PROMPT))
    return room.take(key, session())[BASE]


def head_of(view: dict[str, Any]) -> dict[str, Any]:
    return json.loads(view["head"])


def is_skip(value: Any) -> bool:
    return value == gr.skip()


def intervene(room: WhatIfHandlers, base: dict[str, str], **given: Any) -> list[tuple[Any, ...]]:
    asked = {"kind": "mask", "experts": ["math"], "where": "everything", "text": "", "with_control": True, "seed": 0}
    number, *_ = room.announce(base, session())
    return list(room.intervene(base, number, **{**asked, **given}, request=session()))


# ---------------------------------------------------------------------- at once


def test_the_room_opens_on_what_explore_shows(room: WhatIfHandlers) -> None:
    key = room.traces.put("one", make_trace(PROMPT, k=1))
    shown = room.enter(key, {}, session())
    assert shown[LINE]["text"].startswith("rsl, top 1, “A patient weighs")
    head = head_of(shown[VIEW])
    assert head["badge"] == NOTE
    assert head["names"]["b"]["title"] == "nothing changed yet"
    assert shown[GATE].value == "1"
    sliders = shown[9:]
    assert [slider.label for slider in sliders if slider.visible] == list(EXPERTS)
    assert all(is_skip(value) for value in room.enter(key, shown[BASE], session()))
    assert all(is_skip(value) for value in room.enter("", {}, session()))


@pytest.mark.parametrize("state", ["opened", "stopped", "finished"])
def test_the_original_keeps_where_it_comes_from(room: WhatIfHandlers, state: ViewState) -> None:
    shown = room.take(room.traces.put("one", make_trace(PROMPT), state), session())
    assert shown[BASE]["state"] == shown[VIEW]["a"]["state"] == state


def test_a_trace_that_was_made_under_an_intervention_is_one_sentence(room: WhatIfHandlers) -> None:
    trace = make_trace(PROMPT)
    trace.provenance["interventions"] = [{"kind": "mask", "experts": ["math"]}]
    key = room.traces.put("one", trace, "opened")
    for shown in (
        room.take(key, session()),
        room.enter(key, {}, session()),
        room.open_link(key, session(room="what_if", k="1")),
    ):
        assert shown[STATUS]["kind"] == "error"
        assert "intervention" in shown[STATUS]["text"]
        assert is_skip(shown[BASE])
        assert is_skip(shown[VIEW])
        assert len(shown) in (9 + SLIDERS, 13 + SLIDERS)


def test_no_trace_is_said(room: WhatIfHandlers) -> None:
    assert "Generate one there" in room.take("", session())[STATUS]["text"]
    assert "no longer in memory" in room.take("gone", session())[STATUS]["text"]
    assert "Generate one there" in room.recompute(session(), {}, "3", 1.0, [])[2]["text"]
    assert room.announce({}, session())[0] == 0


def test_gates_follow_from_scores_at_once(room: WhatIfHandlers, base: dict[str, str]) -> None:
    view, result, line = room.recompute(session(), base, "1", 1.0, ["medical"], 0.0, 0.0, 1.5, 0.0)
    assert line["kind"] == "quiet"
    assert head_of(view)["names"]["b"]["title"] == "top 1, without medical, code +1.5"
    original, changed = room.traces_of(base, result, "one")
    scores = original.logits.copy()
    scores[..., 2] += 1.5
    scores[..., 1] = -np.inf
    assert (changed.gates.argmax(-1) == scores.argmax(-1)).all()
    assert room.source.requests == []  # type: ignore[attr-defined]


def test_temperature_sharpens(room: WhatIfHandlers, base: dict[str, str]) -> None:
    spread = [
        float(
            entropy(
                room.traces_of(base, room.recompute(session(), base, ALL_EXPERTS, value, [])[1], "one")[1].gates
            ).mean()
        )
        for value in (0.3, 1.0, 3.0)
    ]
    assert spread == sorted(spread)


def test_all_experts_masked_is_one_sentence_and_nothing_moves(room: WhatIfHandlers, base: dict[str, str]) -> None:
    view, result, line = room.recompute(session(), base, "3", 1.0, list(EXPERTS))
    assert is_skip(view)
    assert is_skip(result)
    assert "leave at least one" in line["text"]


def test_the_payload_of_the_original_stays_the_same_run(room: WhatIfHandlers, base: dict[str, str]) -> None:
    runs = {room.recompute(session(), base, choice, 1.0, [])[0]["a"]["run"] for choice in ("1", "2", "3")}
    assert len(runs) == 1


def test_the_trace_of_somebody_else_is_not_given(room: WhatIfHandlers, base: dict[str, str]) -> None:
    assert "no longer in memory" in room.recompute(session("two"), base, "1", 1.0, [])[2]["text"]


# ---------------------------------------------------------------------- with the model


def test_regenerating_gives_the_gates_to_the_model(room: WhatIfHandlers, base: dict[str, str]) -> None:
    number, *_ = room.announce(base, session())
    frames = list(room.regenerate(session(), base, number, "2", 0.5, ["code"], 0.0, 1.0))
    asked = room.source.requests[-1]  # type: ignore[attr-defined]
    assert (asked.prompt, asked.gate, asked.k, asked.gate_temperature) == (PROMPT, "top_k", 2, 0.5)
    assert [each.to_dict() for each in asked.interventions] == [{"kind": "mask", "experts": ["code"]}]
    view, result, line, *buttons = frames[-1]
    assert head_of(view)["badge"] == ""
    assert head_of(view)["names"]["b"]["title"] == "top 2, temperature 0.5, without code"
    assert result["key"]
    assert "bias was left out" in line["text"]
    assert [button.interactive for button in buttons] == [True, True, False]


def test_an_intervention_is_read_against_its_random_control(room: WhatIfHandlers, base: dict[str, str]) -> None:
    frames = intervene(room, base, experts=["math", "code"], seed=7)
    main, control = room.source.requests[-2:]  # type: ignore[attr-defined]
    assert main.interventions[0].to_dict() == {"kind": "mask", "experts": ["math", "code"]}
    assert control.interventions[0].to_dict() == {"kind": "random_mask", "experts": ["math", "code"], "seed": 7}
    assert main.seed == control.seed == 0
    head = head_of(frames[-1][0])
    original, changed = room.traces_of(base, frames[-1][1], "one")
    expected = effect(original, changed)
    # Here the control writes what the intervention writes.
    assert {key: head["control"][key] for key in expected} == expected
    assert 0 < expected["jsd"] < 1  # type: ignore[operator]
    assert 0 < head["answer"] < 1
    assert head["names"]["b"]["title"] == "without math and code"
    assert any("random control" in frame[2]["text"] for frame in frames if not is_skip(frame[2]))
    assert not room.tickets.is_open("one")


def test_forcing_on_words_of_the_prompt_names_their_tokens(room: WhatIfHandlers, base: dict[str, str]) -> None:
    intervene(room, base, kind="force", experts=["medical"], where="words", text="62 kg")
    main, control = (request.interventions[0] for request in room.source.requests[-2:])  # type: ignore[attr-defined]
    trace = make_trace(PROMPT)
    first, end = main.tokens
    assert "".join(trace.tokens[position] for position in range(first, end)).strip() == "62 kg."
    assert control.tokens == main.tokens
    # Only one random expert is left, as only one is forced.
    assert len(control.experts) == len(EXPERTS) - 1


def test_uniform_has_no_control(room: WhatIfHandlers, base: dict[str, str]) -> None:
    frames = intervene(room, base, kind="uniform", where="answer")
    asked = room.source.requests  # type: ignore[attr-defined]
    assert [request.interventions[0].to_dict() for request in asked] == [{"kind": "uniform", "part": "generated"}]
    assert head_of(frames[-1][0])["control"] is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"experts": []}, "at least one expert to mask"),
        ({"experts": list(EXPERTS)}, "leave at least one"),
        ({"kind": "force", "experts": ["math", "code"]}, "choose exactly one"),
        ({"experts": ["law"]}, "no expert 'law'"),
        ({"where": "words", "text": ""}, "Type the words"),
        ({"where": "words", "text": "no such words"}, "not in the prompt"),
    ],
)
def test_an_impossible_intervention_is_one_sentence(
    room: WhatIfHandlers, base: dict[str, str], given: dict[str, Any], words: str
) -> None:
    view, result, line, *buttons = intervene(room, base, **given)[-1]
    assert is_skip(view)
    assert is_skip(result)
    assert words in line["text"]
    assert [button.interactive for button in buttons] == [True, True, False]


def test_a_router_that_is_not_here_is_one_sentence(room: WhatIfHandlers) -> None:
    base = room.take(room.traces.put("one", make_trace(PROMPT, mixer="somebody/else")), session())[BASE]
    assert "no known router" in intervene(room, base)[-1][2]["text"]


def test_a_trace_without_the_chat_template_is_not_run_with_it(room: WhatIfHandlers) -> None:
    """Its words stand elsewhere in a run that adds the template."""
    trace = make_trace(PROMPT)
    trace = replace(trace, provenance={**trace.provenance, "chat": False})
    base = room.take(room.traces.put("one", trace), session())[BASE]
    assert "without the chat template" in intervene(room, base)[-1][2]["text"]


def test_a_fault_inside_the_model_is_said(room: WhatIfHandlers) -> None:
    base = room.take(room.traces.put("one", make_trace("CRASH")), session())[BASE]
    line = intervene(room, base)[-1][2]
    assert "RuntimeError" in line["text"]
    assert "an invented fault" not in line["text"]


def test_stop_shows_what_was_written_without_control(room: WhatIfHandlers, base: dict[str, str]) -> None:
    number, *_ = room.announce(base, session())
    frames = room.intervene(base, number, "mask", ["math"], "everything", "", True, 0, session())
    next(frames)
    room.tickets.stop("one", "what_if")
    view, _, line, *_ = list(frames)[-1]
    assert head_of(view)["control"] is None
    assert line["text"].startswith("Stopped")
    assert len(room.source.requests) == 1  # type: ignore[attr-defined]


def test_a_stop_after_the_last_token_has_nothing_to_stop(room: WhatIfHandlers) -> None:
    base = room.take(room.traces.put("one", make_trace(PROMPT, written=3)), session())[BASE]
    number, *_ = room.announce(base, session())
    frames = room.intervene(base, number, "mask", ["math"], "everything", "", False, 0, session())
    for frame in frames:
        if "3 tokens" in frame[2]["text"]:
            room.tickets.stop("one", "what_if")
    assert frame[2]["text"] == "Done."


def test_a_second_press_replaces_the_first(room: WhatIfHandlers, base: dict[str, str]) -> None:
    first, *_ = room.announce(base, session())
    frames = room.intervene(base, first, "mask", ["math"], "everything", "", True, 0, session())
    next(frames)
    second, *_ = room.announce(base, session())
    assert all(is_skip(value) for frame in frames for value in frame)
    view, *_, start, again, stop = list(room.regenerate(session(), base, second, "2", 1.0, []))[-1]
    assert head_of(view)["names"]["b"]["title"] == "top 2"
    assert (start.interactive, again.interactive, stop.interactive) == (True, True, False)


def test_a_trace_that_is_chosen_meanwhile_is_not_shown_beside_the_run_of_the_former(
    room: WhatIfHandlers, base: dict[str, str]
) -> None:
    number, *_ = room.announce(base, session())
    frames = room.intervene(base, number, "mask", ["math"], "everything", "", True, 0, session())
    next(frames)
    room.take(room.traces.put("one", make_trace("Another prompt.")), session())
    view, result, line, start, again, stop = list(frames)[-1]
    assert is_skip(view)
    assert is_skip(result)
    assert line["text"].startswith("Another trace was chosen meanwhile")
    assert (start.interactive, again.interactive, stop.interactive) == (True, True, False)
    assert len(room.source.requests) == 1  # type: ignore[attr-defined]


def test_a_run_of_another_visitor_goes_on_when_a_trace_is_chosen(room: WhatIfHandlers, base: dict[str, str]) -> None:
    number, *_ = room.announce(base, session())
    frames = room.intervene(base, number, "mask", ["math"], "everything", "", False, 0, session())
    next(frames)
    room.take(room.traces.put("two", make_trace("Another prompt.")), session("two"))
    assert list(frames)[-1][2]["text"] == "Done."


def test_a_router_of_ones_own_is_said_by_its_title(room: WhatIfHandlers) -> None:
    trace = make_trace(PROMPT)
    own = replace(trace, provenance={**trace.provenance, "mixer": "own/0a1b2c3d", "title": "somebody/my routers"})
    line = room.take(room.traces.put("one", own), session())[LINE]
    assert line["text"].startswith("my routers, ")


def test_a_run_is_closed_before_its_last_words(room: WhatIfHandlers, base: dict[str, str]) -> None:
    crash = room.take(room.traces.put("one", make_trace("CRASH")), session())[BASE]
    for trace, experts in ((base, ["math"]), (base, []), (crash, ["math"])):
        number, *_ = room.announce(trace, session())
        for frame in room.intervene(trace, number, "mask", experts, "everything", "", True, 0, session()):
            assert room.tickets.is_open("one") != frame[3].interactive


def test_a_full_queue_gives_the_buttons_back(room: WhatIfHandlers, base: dict[str, str]) -> None:
    room.announce(base, session())
    line, *buttons = room.refused(session())
    assert "too many visitors" in line["text"]
    assert [button.interactive for button in buttons] == [True, True, False]
    assert not room.tickets.is_open("one")


def test_who_waits_is_told_the_place(room: WhatIfHandlers, base: dict[str, str]) -> None:
    room.tickets.open("another", "explore")
    assert room.announce(base, session())[1]["text"].endswith("1 run was asked for before yours.")


def test_a_run_repeats_what_was_asked_for(room: WhatIfHandlers) -> None:
    trace = make_trace(PROMPT, written=3)
    base = room.take(room.traces.put("one", trace), session())[BASE]
    intervene(room, base, with_control=False)
    assert room.source.requests[-1].max_new_tokens == 3  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- parts


def test_words_are_found_by_characters() -> None:
    trace = make_trace(PROMPT)
    first, end = positions_of(trace, "patient weighs")
    assert "".join(trace.tokens[position] for position in range(first, end)) == " patient weighs"
    with pytest.raises(RoutingError, match="not in the prompt"):
        positions_of(trace, ANSWER.split()[0] + " dose is 310")


def test_words_of_the_prompt_are_whole_words_and_one_place() -> None:
    trace = make_trace("An artist starts with art. How is a start made?")

    def text(place: tuple[int, int]) -> str:
        return "".join(trace.tokens[position] for position in range(*place))

    assert text(positions_of(trace, "art")) == " art."
    assert text(positions_of(trace, "start")) == " start"
    assert text(positions_of(trace, "tist")) == " artist"
    trace = make_trace("the dose of the drug")
    with pytest.raises(RoutingError, match="“the” is in the prompt 2 times; mark the one that is meant"):
        positions_of(trace, "the")


def test_marked_words_are_the_ones_that_were_marked(room: WhatIfHandlers) -> None:
    trace = make_trace("the dose of the drug", answer=" Take the drug.")
    *_, second = [
        place for place, role in enumerate(trace.tokens.roles) if role == "prompt" and "the" in trace.tokens[place]
    ]
    marked = (second, second + 1)
    assert positions_of(trace, "the", marked) == marked
    # The text box was changed afterwards, or another trace was taken: the positions say nothing any more.
    assert positions_of(trace, "drug", marked) == (second + 1, second + 2)
    assert positions_of(trace, "drug", (900, 901)) == (second + 1, second + 2)
    answered = next(place for place, role in enumerate(trace.tokens.roles) if role == "generated") + 1
    with pytest.raises(RoutingError, match="not in the prompt alone"):
        positions_of(trace, "the", (answered, answered + 1))
    base = room.take(room.traces.put("one", trace), session())[BASE]
    intervene(room, base, where="words", text="the", marked=list(marked))
    assert room.source.requests[-2].interventions[0].tokens == marked  # type: ignore[attr-defined]


def test_a_change_says_what_it_changes() -> None:
    trace = make_trace()
    assert GateChange("3", 1.0, (), {}).words(trace) == ""
    assert GateChange(ALL_EXPERTS, 2.0, ("math",), {"code": -0.5}).words(trace) == (
        "all experts, temperature 2, without math, code -0.5"
    )
    assert ModelChange("force", ("math",), "words", "62 kg").words() == "math forced on “62 kg”"


def test_biases_in_addresses_are_read_back() -> None:
    assert read_biases(write_biases({"math": 1.5, "code": -2.0})) == {"math": 1.5, "code": -2.0}
    assert read_biases("math:x,:1,code:9") == {"": 1.0, "code": 4.0}


def test_an_address_sets_the_gates(room: WhatIfHandlers) -> None:
    base = room.open_link("", session(room="what_if", a="rec~math-medical"))[BASE]
    query = room.recompute(session(), base, "1", 0.5, ["code"], 1.0)[0]["query"]
    shown = room.open_link("", session(**dict(parse_qsl(query))))
    assert head_of(shown[VIEW])["names"]["b"]["title"] == "top 1, temperature 0.5, without code, math +1"
    assert (shown[GATE].value, shown[TEMPERATURE], shown[MASK].value) == ("1", 0.5, ["code"])
    assert shown[9].value == 1.0


def test_what_explore_shows_does_not_replace_the_trace_of_an_address(room: WhatIfHandlers) -> None:
    base = room.open_link("", session(room="what_if", a="rec~math-medical"))[BASE]
    current = room.traces.put("one", make_trace(PROMPT))
    shown = room.enter(current, base, session())
    assert shown[BASE]["key"] == base["key"]
    assert is_skip(shown[VIEW])
    newer = room.traces.put("one", make_trace("Another?"))
    assert room.enter(newer, shown[BASE], session())[BASE]["key"] == newer


def test_an_address_of_an_intervention_fills_the_controls(room: WhatIfHandlers, base: dict[str, str]) -> None:
    query = dict(parse_qsl(intervene(room, base, experts=["code"], where="prompt")[-1][0]["query"]))
    current = base["key"]
    shown = room.open_link(current, session(**query))
    assert shown[CHOSEN].value == ["code"]
    assert shown[-4:-2] == ("mask", "prompt")
    assert "no recording" in shown[STATUS]["text"]


def test_regenerating_keeps_its_gates_in_the_address(room: WhatIfHandlers, base: dict[str, str]) -> None:
    number, *_ = room.announce(base, session())
    view = list(room.regenerate(session(), base, number, "1", 0.5, ["code"], 0.0, 1.0))[-1][0]
    assert view["query"] == room.recompute(session(), base, "1", 0.5, ["code"], 0.0, 1.0)[0]["query"]
    shown = room.open_link(base["key"], session(**dict(parse_qsl(view["query"]))))
    assert (shown[GATE].value, shown[TEMPERATURE], shown[MASK].value, shown[10].value) == ("1", 0.5, ["code"], 1.0)


def test_the_seed_of_the_control_and_the_words_come_back_from_an_address(
    room: WhatIfHandlers, base: dict[str, str]
) -> None:
    frames = intervene(room, base, experts=["code"], where="words", text="62 kg", seed=7)
    query = dict(parse_qsl(frames[-1][0]["query"]))
    assert "w" not in query  # words of the prompt; the share menu adds them when their box is ticked
    assert room.open_link(base["key"], session(**query, w="62 kg"))[-4:] == ("mask", "words", "62 kg", 7)


def test_temperature_one_is_in_the_address_where_the_trace_has_another(room: WhatIfHandlers) -> None:
    trace = make_trace(PROMPT)
    trace = replace(trace, provenance={**trace.provenance, "gate_temperature": 0.5})
    key = room.traces.put("one", trace)
    base = room.take(key, session())[BASE]
    query = dict(parse_qsl(room.recompute(session(), base, ALL_EXPERTS, 1.0, [])[0]["query"]))
    assert room.open_link(key, session(**query))[TEMPERATURE] == 1.0


def test_an_address_without_a_trace_takes_what_explore_opens_with(room: WhatIfHandlers, tmp_path: Path) -> None:
    shown = room.open_link("", session(room="what_if", a="rec~nobody"))
    assert "act on what Explore shows" in shown[STATUS]["text"]
    assert shown[BASE]["spec"] == "rec~math-medical"
    empty = WhatIfHandlers(FakeSource(), Recordings(tmp_path / "none"), TraceStore(), Tickets(), SLIDERS)
    assert "Generate one there" in empty.open_link("", session(room="what_if"))[STATUS]["text"]
    assert all(is_skip(value) for value in room.open_link("", session(room="explore")))


def test_the_script_repeats_the_change(room: WhatIfHandlers, base: dict[str, str]) -> None:
    result = room.recompute(session(), base, "1", 1.0, ["code"])[1]
    script = code_maker(room.traces_of)({}, "one", base, result)
    compile(script, "view.py", "exec")
    assert "other = what_if(other, gate='top_k', k=1, mask=['code'])" in script


def test_the_script_repeats_an_intervention(room: WhatIfHandlers, base: dict[str, str]) -> None:
    result = intervene(room, base, with_control=False)[-1][1]
    changed = room.traces.get("one", result["key"])
    changed.provenance["interventions"] = [{"kind": "mask", "experts": ["math"]}]
    script = code_maker(room.traces_of)({}, "one", base, result)
    compile(script, "view.py", "exec")
    assert script.count("interventions=[loramixer.Intervention(kind='mask', experts=['math'])],") == 1
