"""Tickets of runs: who waits for what, and whose words count."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from explorer.sessions import Tickets, session_of, waiting_text, when_gone
from tests.app.synthetic import FakeSource


def test_a_broken_connection_costs_nothing_to_whoever_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("explorer.sessions.PATIENCE", 0.4)
    forgotten: list[str] = []
    away, back = (SimpleNamespace(session_hash=name) for name in ("away", "back"))
    for request in (away, back):
        when_gone(request, forgotten.append)
        when_gone(request, lambda name: forgotten.append(f"files of {name}"))
    deadline = time.monotonic() + 20
    while len(forgotten) < 2 and time.monotonic() < deadline:
        assert session_of(back) == "back"
        time.sleep(0.02)
    assert forgotten == ["away", "files of away"]
    while len(forgotten) < 4 and time.monotonic() < deadline:  # it has gone for good
        time.sleep(0.02)
    assert forgotten[2:] == ["back", "files of back"]
    assert session_of(SimpleNamespace(session_hash=None)) == ""


@pytest.fixture
def tickets() -> Tickets:
    return Tickets()


def test_a_new_run_ends_the_earlier_ones_of_its_session_only(tickets: Tickets) -> None:
    first, other, second = (
        tickets.open("one", "explore"),
        tickets.open("two", "explore"),
        tickets.open("one", "compare"),
    )
    assert (first.stop.is_set(), other.stop.is_set(), second.stop.is_set()) == (True, False, False)


def test_only_a_newer_run_of_the_same_room_speaks_for_a_run(tickets: Tickets) -> None:
    first = tickets.open("one", "explore")
    tickets.open("one", "compare")
    tickets.open("two", "explore")
    assert not first.is_replaced
    newer = tickets.open("one", "explore")
    assert first.is_replaced
    assert not newer.is_replaced


def test_a_number_is_claimed_once_and_by_its_session_only(tickets: Tickets) -> None:
    mine = tickets.open("one", "explore")
    for session, number in (("two", mine.number), ("one", 0), ("one", None), ("one", mine.number + 1)):
        with tickets.claim(session, number) as found:
            assert found is None
    assert mine.is_open
    with tickets.claim("one", float(mine.number)) as found:
        assert found is mine
    assert not mine.is_open
    with tickets.claim("one", mine.number) as found:
        assert found is None


def test_a_claimed_ticket_is_closed_whatever_happens(tickets: Tickets) -> None:
    mine = tickets.open("one", "explore")
    with pytest.raises(RuntimeError, match="invented"), tickets.claim("one", mine.number):
        raise RuntimeError("invented")
    assert not tickets.is_open("one")


def test_the_last_frame_comes_after_the_end(tickets: Tickets) -> None:
    mine = tickets.open("one", "explore")
    assert mine.last("frame") == "frame"
    assert not mine.is_open


def test_a_stop_after_the_last_token_cuts_nothing(tickets: Tickets) -> None:
    mine = tickets.open("one", "explore")
    assert not mine.was_cut(1, 3)
    tickets.stop("one", "explore")
    assert mine.was_cut(1, 3)
    assert not mine.was_cut(3, 3)


def test_stop_forgets_what_has_not_begun_and_ends_what_has(tickets: Tickets) -> None:
    waiting, other = tickets.open("one", "explore"), tickets.open("two", "explore")
    assert tickets.meets("one", "explore") == tickets.stop("one", "explore") == "waiting"
    assert not waiting.is_open
    assert tickets.meets("one", "explore") == tickets.stop("one", "explore") == ""
    running = tickets.open("one", "explore")
    with tickets.claim("one", running.number):
        assert tickets.meets("one", "explore") == tickets.stop("one", "explore") == "running"
        assert running.stop.is_set()
        assert running.is_open
    assert other.is_open
    assert not other.stop.is_set()


def test_stop_of_a_room_leaves_the_runs_of_the_others(tickets: Tickets) -> None:
    first = tickets.open("one", "explore")
    with tickets.claim("one", first.number):
        later = tickets.open("one", "compare")
        assert tickets.stop("one", "explore") == "running"
        assert later.is_open
        assert not later.stop.is_set()


def test_a_waiting_run_speaks_for_its_room_where_an_earlier_one_is_ending(tickets: Tickets) -> None:
    first = tickets.open("one", "explore")
    with tickets.claim("one", first.number):
        later = tickets.open("one", "explore")
        assert tickets.stop("one", "explore") == "waiting"
        assert first.is_open
        assert not later.is_open


def test_who_leaves_drops_all_runs_and_a_refused_room_its_own(tickets: Tickets) -> None:
    explore, compare, other = (
        tickets.open("one", "explore"), tickets.open("one", "compare"), tickets.open("two", "compare")
    )  # fmt: skip
    tickets.drop("one", "compare")
    assert (explore.is_open, compare.is_open, compare.stop.is_set()) == (True, False, True)
    tickets.drop("one")
    assert (explore.is_open, other.is_open, other.stop.is_set()) == (False, True, False)


def test_only_runs_of_others_that_were_first_are_waited_for(tickets: Tickets) -> None:
    tickets.open("one", "explore")
    stopped = tickets.open("three", "tradeoff")
    tickets.open("two", "explore")
    assert (tickets.ahead_of("one"), tickets.ahead_of("two"), tickets.ahead_of("nobody")) == (0, 2, 0)
    stopped.stop.set()
    assert tickets.ahead_of("two") == 1
    tickets.open("one", "compare")
    assert tickets.ahead_of("two") == 0


def test_who_waits_hears_for_what(tickets: Tickets) -> None:
    tickets.open("one", "explore")
    assert waiting_text(tickets, "one", FakeSource()) == "Waiting for the model …"
    assert waiting_text(tickets, "one", FakeSource(seconds_to_load=60)) == "Waiting until the model is loaded …"
    tickets.open("two", "explore")
    assert waiting_text(tickets, "two", FakeSource()).endswith(" … 1 run was asked for before yours.")
    tickets.open("three", "explore")
    assert waiting_text(tickets, "three", FakeSource()).endswith(" … 2 runs were asked for before yours.")
