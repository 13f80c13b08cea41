"""Compare: its events called directly, and its payload, over invented traces."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
import numpy as np
import pytest

from explorer.comparison_payload import Side, encode_comparison
from explorer.examples import EXAMPLES, find_example
from explorer.exports import Exports
from explorer.payload import ViewState
from explorer.recordings import INDEX, Recordings
from explorer.rooms.compare.files import code_maker, file_maker
from explorer.rooms.compare.handlers import CompareHandlers
from explorer.rooms.compare.link import RunSpec, file_spec, parse_spec, recording_spec, run_spec
from explorer.rooms.compare.ready_made import ready_made
from explorer.rooms.compare.steps import TRAINED
from explorer.sessions import Tickets
from explorer.traces_in_memory import TraceStore
from loramixer.errors import FigureError, TraceError
from loramixer.trace import RoutingTrace
from tests.app.synthetic import STEPS, FakeSource, make_trace
from tests.app.synthetic_app import OTHER_ANSWER, PROMPTS, make_recordings

RSL = "smollm2-135m/rsl"
BALANCE = "smollm2-135m/load-balance"
SIDES, VIEW, LINE_A, LINE_B, NEXT, STATUS = range(6)
WRITTEN, LINE, RUN, STOP = range(4)
"""In what a run yields."""


def session(name: str = "one", **query: str) -> Any:
    return SimpleNamespace(session_hash=name, query_params=query)


@pytest.fixture
def room(tmp_path: Path) -> CompareHandlers:
    return CompareHandlers(FakeSource(), make_recordings(tmp_path), TraceStore(), Tickets())


def head_of(view: dict[str, Any]) -> dict[str, Any]:
    return json.loads(view["head"])


def is_skip(value: Any) -> bool:
    return value == gr.skip()


def run(
    room: CompareHandlers, side: str, sides: dict[str, Any], prompt: str = "", **given: Any
) -> list[tuple[Any, ...]]:
    asked = {"mixer": BALANCE, "step": TRAINED, "gate": "1", "tokens": 8, **given}
    number, *_ = room.announce(side, prompt, asked["tokens"], sides, session())  # type: ignore[arg-type]
    controls = (asked[name] for name in ("mixer", "step", "gate", "tokens"))
    return list(room.run(side, prompt, *controls, sides, number, session()))  # type: ignore[arg-type]


def run_and_take(
    room: CompareHandlers, side: str, sides: dict[str, Any], prompt: str = "", **given: Any
) -> tuple[Any, ...]:
    return room.take_run(run(room, side, sides, prompt, **given)[-1][WRITTEN], sides, session())


# ---------------------------------------------------------------------- what is compared


def test_every_token_is_in_exactly_one_column() -> None:
    a, b = make_trace(), make_trace(answer=" Take two and rest.", seed=3)
    head = head_of(encode_comparison(Side(a, "recorded"), Side(b, "finished")))
    for side, trace in enumerate((a, b)):
        positions = [position for column in head["columns"] for position in column[side]]
        assert positions == list(range(len(trace.tokens)))


def test_only_what_differs_is_a_fact() -> None:
    a = make_trace()
    b = make_trace(mixer=BALANCE, k=1, seed=3)
    head = head_of(encode_comparison(Side(a, "recorded"), Side(b, "recorded")))
    assert [row["label"] for row in head["facts"]] == ["Router", "Gate"]
    assert head["names"]["a"]["title"] == "rsl, top 3 of 4"
    assert head["names"]["b"]["title"] == "load-balance, top 1 of 4"
    assert "seed 0, greedy" in head["same"]


def test_different_experts_have_no_difference() -> None:
    a, b = make_trace(), make_trace(experts=("math", "law", "code", "language"))
    with pytest.raises(TraceError, match="law"):
        encode_comparison(Side(a, "recorded"), Side(b, "recorded"))


def test_different_backbones_have_no_difference() -> None:
    a, b = make_trace(), make_trace(layers=12)
    with pytest.raises(TraceError):
        encode_comparison(Side(a, "recorded"), Side(b, "recorded"))


# ---------------------------------------------------------------------- topics of two prompts


def of_example(key: str, **given: Any) -> RoutingTrace:
    return make_trace(find_example(key).prompt, **given)


def columns_with_spans(head: dict[str, Any]) -> list[tuple[list[int], list[int], list[str]]]:
    return [(*column, span) for column, span in zip(head["columns"], head["spans"], strict=True) if span]


@pytest.mark.parametrize(("one", "other"), [("math", "medical"), ("medical", "code"), ("code", "math")])
def test_prompts_of_two_topics_are_compared_as_wholes_and_it_is_said(one: str, other: str) -> None:
    a, b = of_example(one), of_example(other, seed=3)
    head = head_of(encode_comparison(Side(a, "recorded"), Side(b, "recorded")))
    ((first, second, span),) = columns_with_spans(head)
    assert span == [one, other]
    for positions, trace in ((first, a), (second, b)):
        assert positions == [place for place, role in enumerate(trace.tokens.roles) if role == "prompt"]
    assert f"{one} in A with {other} in B ({len(first)} and {len(second)} tokens)" in head["sentence"]
    assert head["sentence"].startswith("The prompts differ, so whole spans are compared")


def test_topics_inside_prompts_find_each_other() -> None:
    crossing, other = of_example("math-medical"), of_example("math-coding", seed=3)
    head = head_of(encode_comparison(Side(crossing, "recorded"), Side(other, "recorded")))
    assert [span for *_, span in columns_with_spans(head)] == [["math", "math"], ["medical", "code"]]
    head = head_of(encode_comparison(Side(crossing, "recorded"), Side(of_example("medical"), "recorded")))
    ((first, _, span),) = columns_with_spans(head)
    assert span == ["medical", "medical"]
    text = crossing.tokens.text[crossing.tokens.spans[first[0], 0] : crossing.tokens.spans[first[-1], 1]]
    assert text.strip() == find_example("math-medical").topics[1].text


def test_a_prompt_that_nobody_has_marked_is_compared_by_words() -> None:
    a, b = of_example("math"), make_trace("How much money is 3 dollars?")
    head = head_of(encode_comparison(Side(a, "recorded"), Side(b, "finished")))
    assert head["spans"] == []
    assert "equal words in the same order are compared" in head["sentence"]


# ---------------------------------------------------------------------- choosing A and B


def test_a_ready_made_comparison_is_one_press(room: CompareHandlers) -> None:
    assert [entry.label for entry in room.ready] == ["rsl | load-balance", "Math–Medical | Math–Coding"]
    shown = room.choose_ready(0, session())
    names = head_of(shown[VIEW])["names"]
    assert (names["a"]["title"], names["b"]["title"]) == ("rsl", "load-balance")
    assert shown[STATUS]["kind"] == "quiet"
    assert OTHER_ANSWER.split(".")[0].strip() in "".join(
        token[0] for token in _tokens(shown[VIEW]["b"]) if token[1] == 2
    )
    assert "room=compare" in shown[VIEW]["query"]


def _tokens(payload: dict[str, Any]) -> list[list[Any]]:
    tokens = payload["tokens"]
    return [json.loads(line) for line in tokens.split("\n")] if isinstance(tokens, str) else tokens


def test_nothing_is_ready_made_without_recordings(tmp_path: Path) -> None:
    assert ready_made(Recordings(tmp_path)) == []


def test_what_explore_shows_becomes_a_then_a_recording_b(room: CompareHandlers) -> None:
    key = room.traces.put("one", make_trace("How many mg?", mixer=BALANCE))
    shown = room.take_current("A", key, {}, session())
    assert shown[VIEW]["waiting"].startswith("A is chosen. Now choose B")
    assert shown[NEXT] == "B"
    assert shown[LINE_A]["text"].startswith("A: load-balance, top 3, live")
    shown = room.take_recording("B", recording_spec(("math-coding", "")), shown[SIDES], session())
    assert "head" in shown[VIEW]
    assert is_skip(shown[NEXT])


def test_leaving_the_list_of_recordings_takes_none(room: CompareHandlers) -> None:
    assert all(value == gr.skip() for value in room.take_recording("B", None, {}, session()))


def test_the_room_opens_with_a_ready_made_comparison_once(room: CompareHandlers) -> None:
    shown = room.enter({}, False, session())
    assert head_of(shown[VIEW]) == head_of(room.choose_ready(0, session())[VIEW])
    assert shown[STATUS]["text"].startswith("A ready-made comparison to begin with")
    assert is_skip(room.enter({}, True, session())[SIDES])
    assert is_skip(room.enter(room.choose_ready(0, session())[SIDES], False, session())[SIDES])
    assert is_skip(room.enter({}, False, session(room="compare", a="run~mine~3~8"))[SIDES])
    # In the addresses of other rooms, a is something else.
    assert not is_skip(room.enter({}, False, session(room="train", a="1.5"))[SIDES])
    # What if and Train have an “a” of their own in the address.
    shown = room.enter({}, False, session(room="train", a="4.0"))
    assert head_of(shown[VIEW]) == head_of(room.choose_ready(0, session())[VIEW])


def test_the_room_opens_empty_where_nothing_is_recorded(tmp_path: Path) -> None:
    room = CompareHandlers(FakeSource(), Recordings(tmp_path), TraceStore(), Tickets())
    assert all(is_skip(value) for value in room.enter({}, False, session()))


def test_an_own_choice_replaces_what_the_room_opened_with(room: CompareHandlers) -> None:
    """The experts of the two need not even be the same."""
    opened = room.enter({}, False, session())[SIDES]
    key = room.traces.put("one", make_trace(experts=("law", "math"), k=1))
    shown = room.take_current("A", key, opened, session())
    assert set(shown[SIDES]) == {"A"}
    assert shown[NEXT] == "B"
    assert shown[STATUS]["text"] == ""


def test_the_address_of_a_run_that_only_read_says_so(room: CompareHandlers) -> None:
    trace = make_trace(mixer=BALANCE)
    trace.provenance["max_new_tokens"] = 0
    sides = room.take_current("A", room.traces.put("one", trace), {}, session())[SIDES]
    assert sides["A"]["spec"].endswith("~0")


def test_whoever_works_with_what_the_room_opened_with_keeps_it(room: CompareHandlers) -> None:
    opened = room.enter({}, False, session())[SIDES]
    sides = run_and_take(room, "B", opened)[SIDES]
    assert sides["A"]["spec"] == opened["A"]["spec"]
    swapped = room.swap(opened, session())[SIDES]
    for chosen in (sides, swapped):
        shown = room.take_recording("B", recording_spec(("math-coding", "")), chosen, session())
        assert set(shown[SIDES]) == {"A", "B"}


def test_an_address_without_traces_opens_with_a_ready_made_comparison(room: CompareHandlers) -> None:
    assert "head" in room.open_link(session(room="compare"))[VIEW]
    assert "waiting" in room.open_link(session(room="compare", a="nothing"))[VIEW]


def test_pinning_in_explore_chooses_a(room: CompareHandlers) -> None:
    key = room.traces.put("one", make_trace())
    assert room.take_pinned({"key": key, "number": 1}, {}, session())[SIDES]["A"]["key"] == key


def test_a_trace_of_somebody_else_is_not_given(room: CompareHandlers) -> None:
    key = room.traces.put("two", make_trace())
    shown = room.take_current("A", key, {}, session("one"))
    assert is_skip(shown[SIDES])
    assert "no longer in memory" in shown[STATUS]["text"]


def test_a_forgotten_trace_is_said_and_the_other_side_stays(room: CompareHandlers) -> None:
    sides = room.choose_ready(0, session())[SIDES]
    sides["B"] = {**sides["B"], "key": "gone"}
    shown = room.swap(sides, session())
    assert set(shown[SIDES]) == {"B"}
    assert shown[STATUS]["text"] == "A is no longer in memory; choose it again."
    assert shown[VIEW]["waiting"].startswith("B is chosen. Now choose A")


def test_a_trace_file_needs_no_model(room: CompareHandlers, tmp_path: Path) -> None:
    path = make_trace("A file").save(tmp_path / "mine.npz")
    shown = room.take_file("A", str(path), {}, session())
    assert shown[SIDES]["A"]["spec"] == "file~mine.npz"
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"no trace")
    shown = room.take_file("A", str(broken), {}, session())
    assert shown[STATUS]["text"].startswith("broken.npz is no routing trace")
    assert str(tmp_path) not in shown[STATUS]["text"]


def test_what_cannot_be_drawn_is_not_compared(
    room: CompareHandlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_trace("A file", layers=2).save(tmp_path / "mine.npz")
    monkeypatch.setattr("explorer.files.MAX_TOKENS", 20)
    shown = room.take_file("A", str(path), {}, session())
    assert is_skip(shown[SIDES])
    assert "at most 20 tokens" in shown[STATUS]["text"]


@pytest.mark.parametrize(
    ("state", "words"),
    [("opened", "from a file"), ("stopped", "stopped"), ("failed", "broken off"), ("finished", "live")],
)
def test_what_explore_shows_keeps_where_it_comes_from(room: CompareHandlers, state: ViewState, words: str) -> None:
    shown = room.take_current("A", room.traces.put("one", make_trace(), state), {}, session())
    assert shown[SIDES]["A"]["state"] == state
    assert f"top 3, {words}, " in shown[LINE_A]["text"]


def test_swap_and_clear(room: CompareHandlers) -> None:
    before = room.choose_ready(0, session())[SIDES]
    shown = room.swap(before, session())
    assert shown[SIDES] == {"A": before["B"], "B": before["A"]}
    assert head_of(shown[VIEW])["names"]["a"]["title"] == "load-balance"
    assert room.clear(session())[SIDES] == {}
    assert "nothing to swap" in room.swap({}, session())[STATUS]["text"]


def test_incompatible_traces_are_one_sentence(room: CompareHandlers) -> None:
    keys = [room.traces.put("one", trace) for trace in (make_trace(), make_trace(experts=("law", "math"), k=1))]
    sides = room.take_current("A", keys[0], {}, session())[SIDES]
    shown = room.take_current("B", keys[1], sides, session())
    assert shown[STATUS]["kind"] == "error"
    assert "law" in shown[STATUS]["text"]
    assert shown[VIEW]["waiting"] == shown[STATUS]["text"]


# ---------------------------------------------------------------------- running


def test_a_run_takes_the_prompt_of_the_other_side(room: CompareHandlers) -> None:
    sides = room.take_recording("A", recording_spec(("math-medical", "")), {}, session())[SIDES]
    frames = run(room, "B", sides)
    asked = room.source.requests[-1]  # type: ignore[attr-defined]
    assert (asked.prompt, asked.mixer, asked.k, asked.max_new_tokens) == (PROMPTS[0], BALANCE, 1, 8)
    assert frames[0][LINE]["text"].startswith("Running B …")
    last = frames[-1]
    shown = room.take_run(last[WRITTEN], sides, session())
    assert [row["label"] for row in head_of(shown[VIEW])["facts"]][:3] == ["Source", "Router", "Gate"]
    assert shown[SIDES]["B"]["spec"] == run_spec(BALANCE, "1", 8)
    assert shown[SIDES]["A"] == sides["A"]
    assert shown[-1] == {}
    assert (last[RUN].interactive, last[STOP].interactive) == (True, False)
    assert not room.tickets.is_open("one")


def test_what_is_chosen_while_a_run_writes_stays(room: CompareHandlers) -> None:
    sides = room.choose_ready(0, session())[SIDES]
    number, *_ = room.announce("B", "How many?", 8, sides, session())
    frames = room.run("B", "How many?", RSL, TRAINED, "3", 8, sides, number, session())
    next(frames)
    chosen = room.take_recording("A", recording_spec(("math-coding", "")), sides, session())[SIDES]
    *_, last = frames
    shown = room.take_run(last[WRITTEN], chosen, session())
    assert shown[SIDES]["A"] == chosen["A"] != sides["A"]
    assert shown[SIDES]["B"]["state"] == "finished"
    assert all(is_skip(value) for value in room.take_run(shown[-1], chosen, session()))


def test_a_run_without_any_prompt_is_refused(room: CompareHandlers) -> None:
    number, line, *_ = room.announce("A", "  ", 8, {}, session())
    assert number == 0
    assert "prompt is empty" in line["text"]


@pytest.mark.parametrize(
    ("prompt", "given", "words"),
    [
        ("TOO-LONG", {}, "4,012 tokens"),
        ("How many?", {"mixer": "nobody/knows"}, "no known router"),
        ("How many?", {"mixer": RSL, "step": "7"}, "no training step 7; kept are 0, 100"),
        ("How many?", {"step": "100"}, "none of its training was kept"),
        ("How many?", {"gate": "9"}, "choose a number from 1 to 4"),
        ("CRASH", {}, "RuntimeError"),
    ],
)
def test_a_failed_run_keeps_both_sides(room: CompareHandlers, prompt: str, given: dict[str, Any], words: str) -> None:
    sides = room.choose_ready(0, session())[SIDES]
    last = run(room, "B", sides, prompt, **given)[-1]
    assert is_skip(last[WRITTEN])
    assert last[LINE]["kind"] == "error"
    assert words in last[LINE]["text"]
    assert last[RUN].interactive


def test_stop_keeps_what_was_written(room: CompareHandlers) -> None:
    sides = room.choose_ready(0, session())[SIDES]
    number, *_ = room.announce("B", "How many?", 16, sides, session())
    frames = room.run("B", "How many?", RSL, TRAINED, "3", 16, sides, number, session())
    next(frames)
    room.tickets.stop("one", "compare")
    shown = room.take_run(list(frames)[-1][WRITTEN], sides, session())
    assert shown[SIDES]["B"]["state"] == "stopped"
    assert "stopped" in shown[LINE_B]["text"]


def test_a_full_queue_gives_the_buttons_back(room: CompareHandlers) -> None:
    room.announce("A", "How many?", 8, {}, session())
    line, start, stop = room.refused(session())
    assert "too many visitors" in line["text"]
    assert (start.interactive, stop.interactive) == (True, False)
    assert not room.tickets.is_open("one")


def test_a_second_press_replaces_the_first(room: CompareHandlers) -> None:
    sides = room.choose_ready(0, session())[SIDES]
    first, *_ = room.announce("B", "first", 16, sides, session())
    frames = room.run("B", "first", RSL, TRAINED, "3", 16, sides, first, session())
    assert next(frames)[STOP].interactive
    second, *_ = room.announce("B", "second", 8, sides, session())
    assert all(is_skip(value) for frame in frames for value in frame)
    last = list(room.run("B", "second", RSL, TRAINED, "3", 8, sides, second, session()))[-1]
    assert "“second”" in room.take_run(last[WRITTEN], sides, session())[LINE_B]["text"]
    assert last[RUN].interactive


def test_a_run_is_closed_before_its_last_words(room: CompareHandlers) -> None:
    for prompt in ("How many?", "TOO-LONG", "CRASH"):
        number, *_ = room.announce("A", prompt, 4, {}, session())
        for frame in room.run("A", prompt, RSL, TRAINED, "3", 4, {}, number, session()):
            assert room.tickets.is_open("one") != frame[RUN].interactive


def test_who_waits_is_told_the_place(room: CompareHandlers) -> None:
    room.tickets.open("another", "explore")
    assert room.announce("A", "How many?", 8, {}, session())[1]["text"].endswith("1 run was asked for before yours.")


def test_another_room_asks_for_a_router(room: CompareHandlers) -> None:
    assert is_skip(room.choose_wanted({"room": "explore", "mixer": RSL}))
    assert room.choose_wanted({"room": "compare", "mixer": BALANCE}).value == BALANCE


# ---------------------------------------------------------------------- training steps


def test_a_router_with_kept_steps_offers_them_and_others_do_not(room: CompareHandlers) -> None:
    _, steps, _ = room.choose_mixer(RSL, TRAINED, "3")
    assert (steps.visible, steps.value) == (True, TRAINED)
    assert [value for _, value in steps.choices] == [TRAINED, "0", "100"]
    assert room.choose_mixer(RSL, "100", "3")[1].value == "100"
    _, none, _ = room.choose_mixer(BALANCE, "100", "3")
    assert (none.visible, none.value) == (False, TRAINED)


def test_a_run_at_a_training_step_is_named_by_it_everywhere(room: CompareHandlers) -> None:
    sides = room.take_recording("A", recording_spec(("math-medical", "")), {}, session())[SIDES]
    shown = run_and_take(room, "B", sides, mixer=RSL, step="100", gate="3")
    assert room.source.requests[-1].mixer == STEPS[100]  # type: ignore[attr-defined]
    head = head_of(shown[VIEW])
    assert (head["names"]["a"]["title"], head["names"]["b"]["title"]) == ("rsl", "rsl, step 100")
    router = next(row for row in head["facts"] if row["label"] == "Router")
    assert (router["a"], router["b"]) == (RSL, f"{RSL}, step 100")
    assert shown[LINE_B]["text"].startswith("B: rsl, step 100, top 3, live")
    assert dict(parse_qsl(shown[VIEW]["query"]))["b"] == run_spec(STEPS[100], "3", 8)
    assert f"load_mixer({STEPS[100]!r})" in code_maker(room.traces_of)({}, "one", shown[SIDES])


def test_an_address_of_a_run_at_a_training_step_opens_again(room: CompareHandlers) -> None:
    shown = room.open_link(session(room="compare", a="rec~math-medical", b=run_spec(STEPS[100], "3", 24)))
    _, mixer, step, gate, tokens = shown[6:]
    assert (mixer.value, step.value, step.visible, gate.value, tokens) == (RSL, "100", True, "3", 24)
    # The router control has changed too, and what it changes must keep the step.
    assert room.choose_mixer(mixer.value, step.value, gate.value)[1].value == "100"


# ---------------------------------------------------------------------- addresses


def test_the_prompt_of_an_address_is_that_of_the_first_run(room: CompareHandlers) -> None:
    sides = room.choose_ready(0, session())[SIDES]
    assert not room.swap(sides, session())[VIEW]["prompt"]  # recordings have theirs with them
    for side, prompt in (("A", "How many?"), ("B", "How much?")):
        number, *_ = room.announce(side, prompt, 8, sides, session())
        *_, last = room.run(side, prompt, RSL, TRAINED, "3", 8, sides, number, session())
        shown = room.take_run(last[WRITTEN], sides, session())
        sides = shown[SIDES]
        assert shown[VIEW]["prompt"] == "How many?"
    assert shown[VIEW]["prompt_note"] == "The prompt of B is another one, and not in the link."


def test_an_address_shows_two_recordings(room: CompareHandlers) -> None:
    query = dict(parse_qsl(room.choose_ready(0, session())[VIEW]["query"]))
    shown = room.open_link(session(**query))
    names = head_of(shown[VIEW])["names"]
    assert (names["a"]["title"], names["b"]["title"]) == ("rsl", "load-balance")
    assert shown[STATUS]["kind"] == "quiet"


def test_an_address_of_a_run_fills_the_controls(room: CompareHandlers) -> None:
    shown = room.open_link(session(room="compare", a="rec~math-medical", b=run_spec(BALANCE, "1", 24), p="What?"))
    prompt, mixer, step, gate, tokens = shown[6:]
    assert (prompt, mixer.value, step.value, gate.value, tokens) == ("What?", BALANCE, TRAINED, "1", 24)
    assert "press Run B" in shown[STATUS]["text"]
    assert set(shown[SIDES]) == {"A"}


def test_an_address_of_two_runs_fills_in_the_first_and_names_the_second(room: CompareHandlers) -> None:
    shown = room.open_link(session(room="compare", a=run_spec(BALANCE, "1", 24), b=run_spec(STEPS[100], "2", 96)))
    _, mixer, step, gate, tokens = shown[6:]
    assert (mixer.value, step.value, gate.value, tokens) == (BALANCE, TRAINED, "1", 24)
    first, second = shown[STATUS]["text"].split(". ")
    assert first == "A of this link was a run of Load balance with top 1; its settings are filled in, press Run A"
    assert second.startswith("B of this link was a run of RSL, step 100 with top 2; choose these settings after")
    assert "filled in" not in second


def test_an_address_of_a_router_of_no_list_offers_it(room: CompareHandlers) -> None:
    name = room.source.add(Path("anywhere"), "Mine")
    mixer = room.open_link(session(room="compare", a=run_spec(name, "2", 24)))[7]
    assert mixer.value == name
    assert ("Mine", name) in mixer.choices


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("rec~nobody", "no recording"),
        ("file~mine.npz", "trace file mine.npz"),
        ("nonsense", "names no trace"),
        ("run~nobody/knows~7~9999", "was a run"),
        ("run~smollm2-135m/replay/rsl/step-00007~3~96", "was a run"),
    ],
)
def test_an_address_that_cannot_be_shown_says_so(room: CompareHandlers, given: str, words: str) -> None:
    shown = room.open_link(session(room="compare", a=given))
    assert words in shown[STATUS]["text"]
    assert "are filled in" not in shown[STATUS]["text"]
    assert all(is_skip(control) for control in shown[6:])


def test_the_address_of_another_room_changes_nothing(room: CompareHandlers) -> None:
    assert all(is_skip(value) for value in room.open_link(session(room="explore", a="rec~math")))


def test_names_of_traces_in_addresses_are_read_back() -> None:
    assert parse_spec(recording_spec(("math", ""))) == ("math", "")
    assert parse_spec(recording_spec(("math", BALANCE))) == ("math", BALANCE)
    assert parse_spec(run_spec(RSL, "all (soft)", 96)) == RunSpec(RSL, "all (soft)", "96")
    assert parse_spec(file_spec("a~b.npz")) == "a~b.npz"
    assert parse_spec("") is None


# ---------------------------------------------------------------------- recordings with other routers


def test_recordings_are_found_by_example_and_router(tmp_path: Path) -> None:
    recordings = make_recordings(tmp_path)
    usual, other = recordings.trace("math-medical"), recordings.trace("math-medical", BALANCE)
    assert usual is not None
    assert other is not None
    assert (usual.provenance["mixer"], other.provenance["mixer"]) == (RSL, BALANCE)
    assert recordings.key_of(other) == ("math-medical", BALANCE)
    assert recordings.key_of(make_trace()) is None
    assert recordings.trace("math-coding", BALANCE) is None


def test_examples_are_recorded_with_other_routers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from explorer import record

    monkeypatch.setattr(record, "ModelRegistry", lambda mixer: FakeSource())
    monkeypatch.setattr("sys.argv", ["record", "--out", str(tmp_path), "--max-new-tokens", "2"])
    record.main()
    rows = json.loads((tmp_path / INDEX).read_text())["traces"]
    assert [row["example"] for row in rows[: len(EXAMPLES)]] == [example.key for example in EXAMPLES]
    # Of the routers that are asked for, this source has one.
    assert [(row["example"], row["mixer"]) for row in rows[len(EXAMPLES) :]] == [("math-medical", BALANCE)]
    trace = Recordings(tmp_path).trace("math-medical", BALANCE)
    assert trace is not None
    assert np.isfinite(trace.gates).all()


# ---------------------------------------------------------------------- files and Python


@pytest.mark.parametrize("kind", ["png", "svg", "csv", "npz", "npz-b"])
def test_what_is_compared_becomes_files(room: CompareHandlers, tmp_path: Path, kind: str) -> None:
    make = file_maker(Exports(tmp_path), room.traces_of)
    sides = room.choose_ready(0, session())[SIDES]
    path = Path(make(kind, {"m": "code", "q": "v"}, "one", sides))
    assert path.stat().st_size > 500
    if kind == "npz-b":
        assert RoutingTrace.load(path).provenance["mixer"] == BALANCE


def test_nothing_to_export_is_one_sentence(room: CompareHandlers, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="A is not chosen yet"):
        file_maker(Exports(tmp_path), room.traces_of)("png", {}, "one", {})


def test_the_script_makes_both_traces(room: CompareHandlers) -> None:
    script = code_maker(room.traces_of)({"m": "code", "tpl": "1"}, "one", room.choose_ready(0, session())[SIDES])
    compile(script, "view.py", "exec")
    assert f"load_mixer({RSL!r})" in script
    assert f"load_mixer({BALANCE!r})" in script
    assert "viz.difference_map(trace, other, measure='code', template=True)" in script


def test_no_script_is_given_for_a_router_that_it_could_not_load(room: CompareHandlers) -> None:
    sides = room.choose_ready(0, session())[SIDES]
    own = make_trace(mixer="own/0123")
    own.provenance["title"] = "Mine"
    sides["B"] = {**sides["B"], "key": room.traces.put("one", own)}
    with pytest.raises(FigureError, match="'Mine' is only in this page's memory"):
        code_maker(room.traces_of)({}, "one", sides)
