"""The events of the page, called directly over invented traces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from explorer.examples import EXAMPLES
from explorer.handlers import Handlers, describe_backbone
from explorer.models import ModelStatus
from explorer.page import want
from explorer.payload import ROLES
from explorer.recordings import INDEX, Recordings
from explorer.settings import ALL_EXPERTS
from tests.app.synthetic import EXPERTS, FakeSource, make_trace
from tests.app.synthetic_app import make_recordings

RSL = "smollm2-135m/rsl"
BALANCE = "smollm2-135m/load-balance"


def session(name: str = "one") -> Any:
    return SimpleNamespace(session_hash=name)


@pytest.fixture
def handlers(tmp_path: Path) -> Handlers:
    return Handlers(FakeSource(), make_recordings(tmp_path))


def press_generate(
    handlers: Handlers,
    prompt: str,
    *,
    mixer: str | None = RSL,
    gate: str = "3",
    tokens: int = 16,
    stop_after: int | None = None,
) -> list[tuple[Any, ...]]:
    number, *_ = handlers.announce(prompt, tokens, session())
    frames = []
    for frame in handlers.run(prompt, mixer, gate, tokens, number, session()):
        frames.append(frame)
        if len(frames) == stop_after:
            handlers.tickets.stop("one", "explore")
    return frames


@pytest.fixture(autouse=True)
def every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("explorer.handlers.SECONDS_BETWEEN_FRAMES", 0)


def is_skip(value: Any) -> bool:
    return value == gr.skip()


def generated(payload: dict[str, Any]) -> int:
    rows = [json.loads(line) for line in payload["tokens"].split("\n")]
    return sum(row[1] == ROLES.index("generated") for row in rows)


def test_the_page_opens_with_a_recording(handlers: Handlers) -> None:
    payload, shown = handlers.opening()
    assert payload["state"] == "recorded"
    assert shown == {"mixer": RSL, "gate": "3"}


def test_the_page_opens_without_recordings(tmp_path: Path) -> None:
    assert Handlers(FakeSource(), Recordings(tmp_path)).opening() == (None, {})


def test_broken_recordings_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no trace")
    (tmp_path / INDEX).write_text('{"traces": [{"example": "math", "file": "bad.npz"}]}')
    assert Recordings(tmp_path).payload("math") is None
    (tmp_path / INDEX).write_text("not json")
    assert Recordings(tmp_path).payload("math") is None


def test_a_run_streams_and_finishes(handlers: Handlers) -> None:
    frames = press_generate(handlers, "How many mg?")
    counts = [generated(frame[0]) for frame in frames]
    assert counts == sorted(counts)
    assert counts[-1] == 16
    # What is growing is in no memory yet, and what was there before is not on screen any more.
    assert [frame[3] for frame in frames[:-1]] == [""] * (len(frames) - 1)
    assert handlers.pin("")[1]["text"] == "There is no whole trace on screen to pin yet."
    view, line, shown, current, generate, stop = frames[-1]
    assert view["state"] == "finished"
    assert line == {"kind": "quiet", "text": "Done: 16 tokens written."}
    assert shown == {"mixer": RSL, "gate": "3"}
    assert len(handlers.traces.get("one", current).tokens) > 16
    assert (generate.interactive, stop.interactive) == (True, False)
    assert not handlers.tickets.is_open("one")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("", "prompt is empty"), (" \n\t", "prompt is empty"), ("x" * 20_000, "20,000 characters")],
)
def test_unusable_prompts_are_refused_at_once(handlers: Handlers, prompt: str, words: str) -> None:
    number, line, *_ = handlers.announce(prompt, 16, session())
    assert number == 0
    assert line["kind"] == "error"
    assert words in line["text"]
    assert press_generate(handlers, prompt) == [(gr.skip(),) * 6]


def test_an_expected_error_is_shown_as_its_sentence(handlers: Handlers) -> None:
    view, line, shown, _, generate, _ = press_generate(handlers, "TOO-LONG")[-1]
    assert is_skip(view)
    assert is_skip(shown)
    assert line["text"].startswith("The prompt has 4,012 tokens")
    assert generate.interactive


def test_an_unexpected_error_keeps_what_was_written(handlers: Handlers, caplog: pytest.LogCaptureFixture) -> None:
    view, line, *_ = press_generate(handlers, "CRASH")[-1]
    assert view["state"] == "failed"
    assert generated(view) == 2
    assert "RuntimeError" in line["text"]
    assert "an invented fault" not in line["text"]
    assert "an invented fault" in caplog.text
    assert press_generate(handlers, "and again")[-1][0]["state"] == "finished"


def test_stop_keeps_the_partial_result(handlers: Handlers) -> None:
    view, line, *_ = press_generate(handlers, "How many mg?", stop_after=4)[-1]
    assert view["state"] == "stopped"
    assert generated(view) == 3
    assert line["text"] == "Stopped after 3 tokens."


def test_stop_while_waiting_never_starts(handlers: Handlers) -> None:
    number, *_ = handlers.announce("How many mg?", 16, session())
    assert handlers.tickets.stop("one", "explore") == "waiting"
    assert not handlers.tickets.is_open("one")
    # Its turn comes late, when the buttons may be those of another run.
    assert list(handlers.run("How many mg?", RSL, "3", 16, number, session())) == [(gr.skip(),) * 6]
    assert handlers.source.requests == []  # type: ignore[attr-defined]


def test_who_waits_is_told_the_place(handlers: Handlers) -> None:
    texts = [handlers.announce("How many mg?", 4, session(f"visitor {number}"))[1]["text"] for number in range(3)]
    assert "asked for before" not in texts[0]
    assert texts[1].endswith("1 run was asked for before yours.")
    assert texts[2].endswith("2 runs were asked for before yours.")


def test_stop_reaches_only_its_own_session(handlers: Handlers) -> None:
    number, *_ = handlers.announce("How many mg?", 4, session("one"))
    handlers.tickets.stop("two", "explore")
    handlers.leave(session("two"))
    frames = list(handlers.run("How many mg?", RSL, "3", 4, number, session("one")))
    assert frames[-1][0]["state"] == "finished"


def test_a_second_press_replaces_the_first(handlers: Handlers) -> None:
    first, *_ = handlers.announce("first", 4, session())
    second, *_ = handlers.announce("second", 4, session())
    assert list(handlers.run("first", RSL, "3", 4, first, session())) == [(gr.skip(),) * 6]
    assert list(handlers.run("second", RSL, "3", 4, second, session()))[-1][0]["state"] == "finished"
    assert [request.prompt for request in handlers.source.requests] == ["second"]  # type: ignore[attr-defined]


def test_a_press_during_a_run_ends_it_and_its_last_words_leave_the_buttons(handlers: Handlers) -> None:
    first, *_ = handlers.announce("How many mg?", 16, session())
    frames = handlers.run("How many mg?", RSL, "3", 16, first, session())
    next(frames)
    second, *_ = handlers.announce("second", 4, session())
    view, line, shown, current, *buttons = list(frames)[-1]
    assert (view["state"], shown["mixer"]) == ("stopped", RSL)
    assert handlers.traces.get("one", current)
    assert is_skip(line)
    assert all(is_skip(button) for button in buttons)
    *running, last = handlers.run("second", RSL, "3", 4, second, session())
    # The buttons are said again, whatever the first run has said meanwhile.
    assert {(frame[4].interactive, frame[5].interactive) for frame in running} == {(False, True)}
    assert (last[4].interactive, last[5].interactive) == (True, False)


def test_a_run_that_another_room_ends_gives_its_buttons_back(handlers: Handlers) -> None:
    first, *_ = handlers.announce("How many mg?", 16, session())
    frames = handlers.run("How many mg?", RSL, "3", 16, first, session())
    next(frames)
    other = handlers.tickets.open("one", "compare")
    *_, generate, stop = list(frames)[-1]
    assert (generate.interactive, stop.interactive) == (True, False)
    assert not other.stop.is_set()
    waiting, *_ = handlers.announce("How many mg?", 16, session())
    handlers.tickets.open("one", "compare")
    (frame,) = handlers.run("How many mg?", RSL, "3", 16, waiting, session())
    assert "Stopped before" in frame[1]["text"]
    assert frame[4].interactive


def test_a_run_is_closed_before_its_last_words(handlers: Handlers) -> None:
    """Whoever presses Stop after them is told that nothing runs."""
    prompts = {"How many mg?": False, "TOO-LONG": False, "CRASH": False, "stopped before": True}
    for prompt, is_stopped in prompts.items():
        number, *_ = handlers.announce(prompt, 4, session())
        if is_stopped:
            handlers.tickets.of("one")[0].stop.set()
        for frame in handlers.run(prompt, RSL, "3", 4, number, session()):
            is_last = not is_skip(frame[4]) and frame[4].interactive
            assert handlers.tickets.is_open("one") != is_last


def test_the_trace_of_a_visitor_who_has_left_is_not_kept(handlers: Handlers) -> None:
    number, *_ = handlers.announce("How many mg?", 16, session())
    frames = handlers.run("How many mg?", RSL, "3", 16, number, session())
    next(frames)
    handlers.leave(session())
    assert is_skip(list(frames)[-1][3])
    assert handlers.traces._traces == {}


@pytest.mark.parametrize(
    ("mixer", "gate", "words"),
    [
        ("nobody/knows", "3", "'nobody/knows' is no known router; known are smollm2-135m/rsl"),
        (None, "3", "no known router"),
        (RSL, "0", "choose a number from 1 to 4"),
        (RSL, "5", "choose a number from 1 to 4"),
        (RSL, "many", "choose a number from 1 to 4"),
    ],
)
def test_impossible_settings_are_one_sentence(handlers: Handlers, mixer: str, gate: str, words: str) -> None:
    line = press_generate(handlers, "How many mg?", mixer=mixer, gate=gate)[-1][1]
    assert line["kind"] == "error"
    assert words in line["text"]


def test_new_settings_leave_the_view_and_say_so(handlers: Handlers) -> None:
    shown = {"mixer": RSL, "gate": "3"}
    assert handlers.settings_note(RSL, "3", shown)["text"] == ""
    note = handlers.settings_note(BALANCE, ALL_EXPERTS, shown)
    assert note["kind"] == "note"
    assert "still shows smollm2-135m/rsl with top 3" in note["text"]


def test_the_router_of_a_visitor_is_named_by_its_title_in_the_note(handlers: Handlers) -> None:
    shown = {"mixer": handlers.source.add(Path("anywhere"), "Mine"), "gate": "3"}
    assert "still shows Mine with top 3" in handlers.note_settings(RSL, "3", shown, session())["text"]


def test_the_line_of_a_run_is_not_written_over_by_a_choice(handlers: Handlers) -> None:
    shown = {"mixer": RSL, "gate": "3"}
    assert handlers.note_settings(BALANCE, "3", shown, session())["kind"] == "note"
    handlers.announce("How many mg?", 4, session())
    assert is_skip(handlers.note_settings(BALANCE, "3", shown, session()))
    assert not is_skip(handlers.note_settings(BALANCE, "3", shown, session("two")))


def test_a_backbone_that_is_the_routers_own_leaves_the_router(handlers: Handlers) -> None:
    backbone = handlers.source.find(BALANCE).backbone
    assert all(map(is_skip, handlers.choose_backbone(backbone, BALANCE, "3", {}, session())))
    assert handlers.choose_backbone(backbone, None, "3", {}, session())[0].value == RSL


def test_a_router_that_nobody_has_trained_begins_with_all_experts(handlers: Handlers) -> None:
    source = handlers.source
    name = source.add(Path("anywhere"), "Mine")
    assert handlers.choose_mixer(name, "2")[1].value is None  # left as it is, or as it is by now
    assert handlers.choose_mixer(name, "17")[1].value == "3"
    source.added[name] = replace(source.added[name], untrained=True)  # type: ignore[attr-defined]
    assert handlers.choose_mixer(name, "2")[1].value == ALL_EXPERTS


def test_the_soft_gate_reaches_the_model(handlers: Handlers) -> None:
    press_generate(handlers, "How many mg?", mixer=BALANCE, gate=ALL_EXPERTS)
    asked = handlers.source.requests[-1]  # type: ignore[attr-defined]
    assert (asked.mixer, asked.gate) == (BALANCE, "soft")


def test_an_example_shows_its_recording(handlers: Handlers) -> None:
    prompt, payload, shown, _, line = handlers.choose_example("math-coding", RSL, "3", {}, session())
    assert prompt == EXAMPLES[1].prompt
    assert payload["state"] == "recorded"
    assert shown["mixer"] == RSL
    assert line["text"] == ""


def test_an_example_without_recording_keeps_the_view(handlers: Handlers) -> None:
    prompt, payload, _, _, line = handlers.choose_example("sentiment", RSL, "3", {}, session())
    assert prompt
    assert is_skip(payload)
    assert "press Generate" in line["text"]


def test_an_example_does_not_disturb_a_run(handlers: Handlers) -> None:
    handlers.announce("How many mg?", 4, session())
    assert is_skip(handlers.choose_example("math-coding", RSL, "3", {}, session())[1])


def test_the_model_line_says_what_is_on_screen(tmp_path: Path) -> None:
    loading = Handlers(FakeSource(seconds_to_load=60), Recordings(tmp_path))
    assert loading.model_status(True)["text"].endswith("You are looking at a recording meanwhile.")
    assert "recording" not in loading.model_status(False)["text"]
    line, timer = Handlers(FakeSource(), Recordings(tmp_path)).poll({})
    assert line["text"] == "Model ready."
    assert timer.active is False


def test_the_model_line_follows_a_second_attempt(handlers: Handlers) -> None:
    usual = handlers.source.status
    handlers.source.status = lambda: ModelStatus("failed", "The model is not loaded.")  # type: ignore[method-assign]
    line, timer = handlers.poll({})
    assert (line["kind"], timer.active) == ("error", True)
    handlers.source.status = usual  # type: ignore[method-assign]
    assert handlers.poll({})[0]["text"] == "Model ready."


def test_recorded_examples_can_be_shown(tmp_path: Path) -> None:
    from explorer.record import record

    trace = record(FakeSource(), EXAMPLES[0], RSL, 3, 8)
    assert trace.tokens.roles.count("generated") == 8
    trace.save(tmp_path / "one.npz")
    (tmp_path / INDEX).write_text('{"traces": [{"example": "math-medical", "file": "one.npz"}]}')
    payload = Recordings(tmp_path).payload("math-medical")
    assert payload is not None
    assert payload["state"] == "recorded"


def test_a_full_queue_gives_the_buttons_back(handlers: Handlers) -> None:
    handlers.announce("How many mg?", 4, session())
    line, generate, stop = handlers.refused(session())
    assert line["kind"] == "error"
    assert (generate.interactive, stop.interactive) == (True, False)
    assert not handlers.tickets.is_open("one")


def test_another_room_can_ask_for_a_router(handlers: Handlers) -> None:
    asked, _ = handlers.choose_wanted(want("explore", BALANCE), "3", {}, session())
    assert asked.value == BALANCE
    assert [name for _, name in asked.choices] == [RSL, BALANCE]
    assert all(map(is_skip, handlers.choose_wanted(want("compare", BALANCE), "3", {}, session())))
    assert all(map(is_skip, handlers.choose_wanted({}, "3", {}, session())))
    assert want("explore", BALANCE) != want("explore", BALANCE)


def test_the_backbone_control_follows_the_router(handlers: Handlers) -> None:
    shown = handlers.backbone_of(BALANCE)
    assert shown.value == "smollm2-135m"
    assert shown.info == "The frozen model that the experts adapt. It is small: its answers are often wrong."
    assert "toy" in describe_backbone("falcon-mamba-tiny")
    assert describe_backbone("somebody/else") == "The frozen model that the experts adapt."
    assert is_skip(handlers.backbone_of(None))
    own = handlers.source.add(Path("anywhere"), "Mine")
    handlers.source.added[own] = replace(handlers.source.added[own], backbone="org/model")  # type: ignore[attr-defined]
    assert "org/model" in [name for _, name in handlers.backbone_of(own).choices]


def test_a_router_of_no_list_joins_the_choices_of_who_knows_its_name(handlers: Handlers) -> None:
    name = handlers.source.add(Path("anywhere"), "Mine")
    asked, _ = handlers.choose_wanted(want("explore", name), "3", {}, session())
    assert asked.value == name
    assert asked.choices[-1] == ("Mine", name)
    assert name not in [mixer.name for mixer in handlers.source.mixers()]


def test_who_waits_hears_how_many_were_first(handlers: Handlers) -> None:
    assert handlers.announce("How many?", 8, session("one"))[1]["text"] == "Waiting for the model …"
    assert handlers.announce("How many?", 8, session("two"))[1]["text"].endswith("1 run was asked for before yours.")
    assert handlers.announce("How many?", 8, session("three"))[1]["text"].endswith(
        "2 runs were asked for before yours."
    )
    handlers.leave(session("one"))
    assert "1 run was" in handlers.announce("How many?", 8, session("three"))[1]["text"]


def test_an_opened_file_is_shown_and_a_broken_one_is_one_sentence(handlers: Handlers, tmp_path: Path) -> None:
    path = make_trace("Is 2 a prime?", layers=2).save(tmp_path / "mine.npz")
    payload, shown, key, line = handlers.open_file(str(path), session())
    assert payload["state"] == "opened"
    assert shown == {"mixer": RSL, "gate": "3"}
    assert handlers.traces.get("one", key).experts == EXPERTS
    assert handlers.traces.state_of("one", key) == "opened"
    assert line["text"].startswith("Opened mine.npz")
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    payload, _, key, line = handlers.open_file(str(tmp_path / "broken.npz"), session())
    assert is_skip(payload)
    assert is_skip(key)
    assert line["kind"] == "error"
    assert str(tmp_path) not in line["text"]


@pytest.mark.parametrize(("room", "is_busy"), [("explore", True), ("compare", False), ("what-if", False)])
def test_only_a_run_of_explore_keeps_its_view(handlers: Handlers, tmp_path: Path, room: str, is_busy: bool) -> None:
    path = make_trace("Is 2 a prime?", layers=2).save(tmp_path / "mine.npz")
    handlers.tickets.open("one", room)
    payload, *_, line = handlers.open_file(str(path), session())
    assert is_skip(payload) is is_busy
    assert (line["text"] == "Stop the run before you open a file.") is is_busy
    assert is_skip(handlers.choose_example(EXAMPLES[0].key, RSL, "3", {}, session())[1]) is is_busy


@pytest.mark.parametrize(
    ("prompt", "stop_after", "state"),
    [("How many?", None, "finished"), ("How many?", 4, "stopped"), ("CRASH", None, "failed")],
)
def test_the_kept_trace_says_how_its_run_ended(
    handlers: Handlers, prompt: str, stop_after: int | None, state: str
) -> None:
    current = press_generate(handlers, prompt, stop_after=stop_after)[-1][3]
    assert handlers.traces.state_of("one", current) == state


def link(query: dict[str, str]) -> Any:
    return SimpleNamespace(session_hash="one", query_params=query)


def test_a_link_brings_its_recording_and_its_settings(handlers: Handlers) -> None:
    example = EXAMPLES[1]
    prompt, view, shown, key, router, gate, length, line = handlers.open_link(
        link({"v": "1", "x": example.key, "r": BALANCE, "k": "all", "n": "32"})
    )
    assert prompt == example.prompt
    assert view["state"] == "recorded"
    assert shown["mixer"] == RSL
    assert handlers.traces.get("one", key)
    assert router.value == BALANCE
    assert gate.value == ALL_EXPERTS
    assert length == 32
    assert "still shows" in line["text"]


def test_a_link_of_a_run_without_its_prompt_says_that_the_text_is_another(handlers: Handlers, tmp_path: Path) -> None:
    words = "This link is of a run whose prompt it does not hold; what is shown is a recording."
    *_, line = handlers.open_link(link({"v": "1", "r": RSL, "k": "3", "cl": "3", "ct": "5"}))
    assert line == {"kind": "note", "text": words}
    for query in ({"m": "medical"}, {"r": RSL, "p": "What is a dose?"}, {"r": RSL, "x": EXAMPLES[0].key}):
        line = handlers.open_link(link({"v": "1", **query}))[-1]
        assert is_skip(line) or words not in line["text"]
    empty = Handlers(FakeSource(), Recordings(tmp_path / "none"))
    assert is_skip(empty.open_link(link({"v": "1", "r": RSL}))[-1])


def test_a_prompt_in_a_link_waits_for_generate(handlers: Handlers) -> None:
    prompt, view, *_, line = handlers.open_link(link({"p": "What is a dose?"}))
    assert prompt == "What is a dose?"
    assert is_skip(view)
    assert "press Generate" in line["text"]


@pytest.mark.parametrize("effects", [False, True])
def test_effects_are_recorded_only_when_asked_for(handlers: Handlers, effects: bool) -> None:
    number, *_ = handlers.announce("How many mg?", 4, session())
    list(handlers.run("How many mg?", RSL, "3", 4, number, session(), effects))
    assert handlers.source.requests[-1].contributions is effects


def test_addresses_fill_no_memory(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path)
    assert not any(recordings.trace(str(number), "nobody") for number in range(100))
    assert len(recordings._ready) <= len(recordings.files)
