"""The room Trade-off without a browser: points from files, live points, replays, links and events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
import numpy as np
import pytest

from explorer.examples import EXAMPLES
from explorer.record_replay import chosen_steps, step_of
from explorer.replays import Replay, find_replays, frame_of
from explorer.rooms.tradeoff.handlers import NO_REPLAY, TradeoffHandlers
from explorer.rooms.tradeoff.payload import NOT_MEASURED, plane_payload
from explorer.rooms.tradeoff.points import (
    Plane,
    PlanePath,
    PlaneRouter,
    Span,
    log_path,
    loss_text_of,
    measured_plane,
    sign_of,
)
from explorer.sessions import Tickets
from loramixer.errors import FigureError, TraceError
from loramixer.metrics import plane_point
from loramixer.mixers import MixerInfo
from tests.app.plane_files import SETTINGS, write_plane, write_replay
from tests.app.synthetic import EXPERTS, MIXERS, FakeSource, make_trace


def session(name: str = "one", **query: str) -> Any:
    return SimpleNamespace(session_hash=name, query_params=query)


def event(**data: Any) -> Any:
    return SimpleNamespace(**data)


@pytest.fixture
def handlers(tmp_path: Path) -> TradeoffHandlers:
    write_plane(tmp_path / "results")
    write_replay(tmp_path / "replays")
    return TradeoffHandlers(FakeSource(), tmp_path / "results", tmp_path / "replays")


@pytest.fixture
def unmeasured(tmp_path: Path) -> TradeoffHandlers:
    return TradeoffHandlers(FakeSource(), tmp_path / "nothing", tmp_path / "nothing")


def test_every_setting_is_a_point_with_its_numbers(handlers: TradeoffHandlers) -> None:
    payload = handlers.opening()
    assert [router["title"] for router in payload["routers"]] == list(SETTINGS)
    for router in payload["routers"]:
        x, y, loss = SETTINGS[router["title"]]
        assert (router["x"], router["y"]) == (x, y)
        assert router["xEnds"] == pytest.approx([x - 0.01, x + 0.01])
        # Of soft gates, and no difference to another router.
        assert router["loss"]["value"] == loss
        assert router["seeds"] == 3
        assert router["band"]["tokens"] == 61
        assert "400 test rows" in router["facts"]
    assert payload["notice"] == ""
    assert "61 shuffled tokens" in payload["caption"]


def test_seeds_are_dots_around_their_mean(handlers: TradeoffHandlers) -> None:
    for router in handlers.plane().routers:
        assert len(router.dots) == 3
        assert np.mean([x for x, _ in router.dots]) == pytest.approx(router.undecided.value, abs=1e-5)
        assert [y for _, y in router.dots] == pytest.approx([router.balanced.value] * 3, abs=1e-5)


def test_paths_are_thinned_and_keep_their_ends(handlers: TradeoffHandlers) -> None:
    paths = handlers.plane().paths
    assert len(paths) == 3 * len(SETTINGS)
    for path in paths:
        assert len(path.points) == 60
        assert path.points[0] == (1, 1)
    ends = [path.points[-1] for path in paths if path.router.startswith("none")]
    assert ends == [(pytest.approx(0.55 + shift), pytest.approx(0.62)) for shift in (-0.01, 0, 0.01)]


def test_the_sign_of_lambda_is_named(handlers: TradeoffHandlers) -> None:
    signs = {router["title"]: router["sign"] for router in handlers.opening()["routers"]}
    assert "lowers it" in signs["RSL sharpen 1 / 0.3"]
    assert "raises it" in signs["RSL flatten 1 / 0.3"]
    assert signs["load balance 4"] == ""


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("RSL sharpen 1 / 0.3", "RSL sharpen: 1 · K Σ p̄ f̄ + 0.3 · E[H(p)]"),
        ("RSL flatten 4 / 0.05", "RSL flatten: 4 · K Σ p̄ f̄ − 0.05 · E[H(p)]"),
        ("load balance 0.1", "load balance: 0.1 · K Σ p̄ f̄"),
        ("DS-MoE 1", "DS-MoE mutual information: 1 · (E[H(p)] − H(p̄))"),
        ("none", "task loss only"),
        ("something else", "something else"),
    ],
)
def test_a_setting_in_the_words_of_a_mixture(setting: str, text: str) -> None:
    assert loss_text_of(setting) == text


def test_an_installed_router_of_the_same_loss_can_be_opened(tmp_path: Path) -> None:
    write_plane(tmp_path)
    mixer = MixerInfo("zoo/balance", "LB", "any", "load balance: 4 · K Σ p̄ f̄", EXPERTS, 3, 0)
    found = {router.title: router.mixer for router in measured_plane(tmp_path, [mixer]).routers}
    assert found["load balance 4"] == "zoo/balance"
    assert found["none"] is None


def test_without_files_the_room_says_what_makes_them(unmeasured: TradeoffHandlers) -> None:
    payload = unmeasured.opening()
    assert payload["notice"] == NOT_MEASURED
    assert "loramixer experiment plane" in payload["notice"]
    assert payload["routers"] == []
    assert payload["python"] == ""


def test_run_logs_give_the_trainings_of_installed_routers() -> None:
    steps = [{"step": 0, "token_entropy": np.log(4), "load_entropy": np.log(4)}, {"step": 5, "loss": 1.0}]
    assert log_path(steps, 4) == [(pytest.approx(1), pytest.approx(1))]


def measure(handlers: TradeoffHandlers) -> list[tuple[Any, ...]]:
    number, *_ = handlers.announce(session())
    return list(handlers.measure(number, session()))


def test_measuring_places_every_installed_router(unmeasured: TradeoffHandlers) -> None:
    frames = measure(unmeasured)
    shown = [frame[0] for frame in frames if isinstance(frame[0], dict) and "routers" in frame[0]]
    assert [len(payload["routers"]) for payload in shown] == [1, 2]
    asked = unmeasured.source.requests  # type: ignore[attr-defined]
    assert {request.gate for request in asked} == {"soft"}
    assert len(asked) == len(MIXERS) * len(EXAMPLES)
    # What the visitor looks at stays as it is.
    assert {payload["view"] for payload in shown} == {None}
    router = shown[-1]["routers"][0]
    # A number of numpy would reach the browser as text.
    assert type(router["x"]) is type(router["band"]["y"][0]) is float
    assert (router["live"], router["mixer"]) == (True, MIXERS[0].name)
    assert 0 <= router["x"] <= router["y"] <= 1
    assert router["band"]["x"][0] <= router["band"]["x"][1]
    _, line, start, stop = frames[-1]
    assert line["text"] == f"Measured: 2 of 2 routers on {len(EXAMPLES)} example prompts."
    assert (start.interactive, stop.interactive) == (True, False)
    assert not unmeasured.tickets.is_open("one")


def test_a_square_has_colour_and_number_of_its_circle(tmp_path: Path) -> None:
    """Also where the words of the experiments are no name of a router, and where two sizes have the same router."""
    measured = measured_plane(write_plane(tmp_path), [replace(MIXERS[0], loss=loss_text_of("load balance 4"))])
    twice = replace(measured, routers=[*measured.routers, replace(measured.routers[1], key="load balance 4 · 8000")])
    square = PlaneRouter(
        f"live:{MIXERS[0].name}", "square", "", Span(0.5), Span(0.6), "", mixer=MIXERS[0].name, live=True
    )
    other = replace(square, key="live:other", mixer="other")
    payload = plane_payload(twice, [square, other], 1, [])
    routers = {router["key"]: router for router in payload["routers"]}
    circle = routers["load balance 4 · 2000"]
    for name in ("group", "mark", "colour"):
        assert routers[square.key][name] == circle[name]
        kept = [router[name] for router in payload["routers"] if router["key"] != square.key]
        assert len(set(kept)) == len(kept), name
    assert {path["colour"] for path in payload["paths"] if path["group"] == circle["group"]} == {circle["colour"]}


def test_a_training_has_the_colour_of_its_square() -> None:
    payload = plane_payload(
        Plane([], [PlanePath("mine", ((1.0, 1.0),))]),
        [PlaneRouter("live:mine", "", "", Span(0.5), Span(0.6), "", mixer="mine", live=True)],
        1,
        [],
    )
    (router,), (path,) = payload["routers"], payload["paths"]
    assert (path["group"], path["colour"]) == (router["group"], router["colour"])


def test_measuring_pools_the_words_of_all_prompts(unmeasured: TradeoffHandlers) -> None:
    router = [frame[0] for frame in measure(unmeasured) if "routers" in frame[0]][-1]["routers"][0]
    traces = [make_trace(example.prompt, written=0, k=4) for example in EXAMPLES]
    words = [trace.gates[:, [role == "prompt" for role in trace.tokens.roles]] for trace in traces]
    expected = plane_point(np.concatenate(words, axis=1))
    assert router["x"] == pytest.approx(expected.undecided, abs=1e-6)
    assert router["y"] == pytest.approx(expected.balanced, abs=1e-6)
    assert f"n = {sum(text.shape[1] for text in words)} tokens" in router["facts"]


def test_measuring_stops_between_prompts(unmeasured: TradeoffHandlers) -> None:
    number, *_ = unmeasured.announce(session())
    events = unmeasured.measure(number, session())
    next(events)
    unmeasured.tickets.stop("one", "tradeoff")
    assert list(events)[-1][1]["text"].startswith("Stopped: 0 of 2")


def test_measuring_ends_a_run_of_the_same_visitor_and_waits_for_others(tmp_path: Path) -> None:
    tickets = Tickets()
    mine, other = tickets.open("one", "explore"), tickets.open("two", "explore")
    room = TradeoffHandlers(FakeSource(), tmp_path, tmp_path, tickets)
    assert room.announce(session())[1]["text"].endswith("1 run was asked for before yours.")
    assert mine.stop.is_set()
    assert not other.stop.is_set()


def test_a_full_queue_gives_the_buttons_back(unmeasured: TradeoffHandlers) -> None:
    unmeasured.announce(session())
    line, measure_button, stop = unmeasured.refused(session())
    assert "too many visitors" in line["text"]
    assert (measure_button.interactive, stop.interactive) == (True, False)
    assert not unmeasured.tickets.is_open("one")


def test_a_second_press_replaces_the_first(unmeasured: TradeoffHandlers) -> None:
    first, *_ = unmeasured.announce(session())
    frames = unmeasured.measure(first, session())
    assert not next(frames)[2].interactive
    second, *_ = unmeasured.announce(session())
    assert all(value == gr.skip() for frame in frames for value in frame)
    assert list(unmeasured.measure(second, session()))[-1][2].interactive


def test_an_error_of_the_model_gives_the_buttons_back(unmeasured: TradeoffHandlers) -> None:
    def broken(*_: Any) -> Any:
        raise TraceError("an invented fault")

    unmeasured.source.stream = broken  # type: ignore[method-assign]
    _, line, start, _ = measure(unmeasured)[-1]
    assert line == {"kind": "error", "text": "an invented fault"}
    assert start.interactive


def test_a_router_goes_to_explore_and_to_compare(handlers: TradeoffHandlers) -> None:
    for room, act in (("explore", handlers.open_router), ("compare", handlers.pin_router)):
        tabs, wanted, line = act(event(mixer=MIXERS[1].name))
        assert tabs.selected == room
        assert (wanted["room"], wanted["mixer"]) == (room, MIXERS[1].name)
        assert line["text"] == ""
    assert handlers.open_router(event(mixer="gone"))[2]["kind"] == "error"


def test_a_view_comes_back_from_its_address(handlers: TradeoffHandlers) -> None:
    key = handlers.opening()["routers"][1]["key"]
    view, query = handlers.view_query("smollm2-135m--rsl", event(router=key, close=True, hidden="ps"))
    assert view == {"router": key, "close": True, "hidden": "ps"}
    payload, kept, replay, line, address = handlers.open_link(session(**dict(parse_qsl(query))))
    assert payload["view"] == view == kept
    assert replay == "smollm2-135m--rsl"
    assert line["text"] == ""
    assert address == query


def test_an_address_of_another_room_changes_nothing(handlers: TradeoffHandlers) -> None:
    *shown, address = handlers.open_link(session(room="explore", r="x"))
    assert shown == [gr.skip()] * 4
    assert address == "v=1&room=tradeoff"


def test_a_replay_that_is_gone_is_said(handlers: TradeoffHandlers) -> None:
    for router, words in (("live:smollm2-135m/rsl", "was measured just now; press Measure"), ("no/such", "'no/such'")):
        line = handlers.open_link(session(room="tradeoff", r=router))[3]
        assert line["kind"] == "note"
        assert words in line["text"]
    *_, replay, line, _ = handlers.open_link(session(room="tradeoff", replay="lost"))
    assert replay == NO_REPLAY
    assert "'lost' is not installed" in line["text"]


def test_a_replay_is_read_as_it_was_recorded(handlers: TradeoffHandlers, tmp_path: Path) -> None:
    payload = handlers.choose_replay("smollm2-135m--rsl")
    assert payload["steps"] == [0, 10, 20, 30, 40]
    assert len(payload["frames"]) == len(payload["points"]) == 5
    assert payload["note"].startswith("Recorded")
    replay = Replay.load(tmp_path / "replays" / "smollm2-135m--rsl.npz")
    assert replay.gates.shape == (5, 30, len(replay.facts.tokens), 4)
    # What the test wrote becomes sharper with every step.
    assert np.all(np.diff(replay.points[:, 0]) < 0)
    assert handlers.choose_replay(NO_REPLAY) is None


def test_a_replay_has_the_colour_of_its_router(tmp_path: Path) -> None:
    write_plane(tmp_path / "results")
    write_replay(tmp_path / "replays")
    source = FakeSource()
    loss = "load balance: 4 · K Σ p̄ f̄"
    source.mixers = lambda: [replace(mixer, loss=loss) for mixer in MIXERS]  # type: ignore[method-assign]
    handlers = TradeoffHandlers(source, tmp_path / "results", tmp_path / "replays")
    colours = {router["mixer"]: router["colour"] for router in handlers.opening()["routers"]}
    assert handlers.choose_replay("smollm2-135m--rsl")["colour"] == colours[MIXERS[0].name]


def test_a_frame_leaves_template_tokens_out() -> None:
    gates, point, tokens = frame_of(make_trace("How many mg?", answer="", k=4))
    assert "".join(tokens) == "How many mg?"
    assert gates.shape == (30, len(tokens), 4)
    assert np.abs(gates.sum(axis=-1, dtype=int) - 255).max() <= 2
    assert 0 <= point[0] <= point[1] <= 1


def test_broken_replays_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "other.npz", facts=np.array("{}"))
    assert find_replays(tmp_path) == {}


def test_steps_are_chosen_evenly_with_both_ends() -> None:
    folders = [Path(f"step-{step:05d}") for step in range(0, 1000, 10)]
    chosen = chosen_steps(folders[::-1], most=5)
    assert [step_of(folder) for folder in chosen] == [0, 250, 500, 740, 990]
    assert chosen_steps(folders[:3]) == folders[:3]


def test_the_python_of_the_measured_plane_runs(
    handlers: TradeoffHandlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").rename(tmp_path / "docs" / "results")
    handlers.results = tmp_path / "docs" / "results"
    monkeypatch.chdir(tmp_path)
    exec(compile(handlers.opening()["python"], "copied", "exec"), {})
    assert "<svg" in (tmp_path / "plane.svg").read_text()


def test_the_python_of_live_points_compiles(unmeasured: TradeoffHandlers) -> None:
    payload = [frame[0] for frame in measure(unmeasured) if "routers" in frame[0]][-1]
    compile(payload["python"], "copied", "exec")
    assert all(mixer.name in payload["python"] for mixer in MIXERS)


def test_signs_are_read_from_words() -> None:
    assert sign_of("RSL flatten: 1 · K Σ p̄ f̄ − 0.3 · E[H(p)]") == "flatten"
    assert sign_of("load balance: 4 · K Σ p̄ f̄") == ""


def test_an_empty_plane_is_a_value_too() -> None:
    from explorer.rooms.tradeoff.points import Plane

    assert plane_payload(Plane(), [], 1, [])["caption"] == ""


def test_the_measured_plane_is_a_figure_to_export(handlers: TradeoffHandlers, unmeasured: TradeoffHandlers) -> None:
    assert "Routers on the entropy–balance plane" in handlers.figure().layout.title.text
    assert "picture(Path(" in handlers.code()
    for make in (unmeasured.figure, unmeasured.code):
        with pytest.raises(FigureError, match="loramixer experiment plane"):
            make()
