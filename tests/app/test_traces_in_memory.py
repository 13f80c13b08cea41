"""Traces of the sessions: bounded, and nothing of one visible to another."""

from __future__ import annotations

import pytest

from explorer.traces_in_memory import TraceStore, trace_bytes
from loramixer.errors import TraceError
from tests.app.synthetic import make_trace


def test_a_trace_is_found_by_its_own_session_only() -> None:
    store, trace = TraceStore(), make_trace()
    key = store.put("one", trace)
    assert store.get("one", key) is trace
    with pytest.raises(TraceError, match="no longer in memory"):
        store.get("two", key)


def test_a_trace_keeps_where_it_comes_from() -> None:
    store = TraceStore()
    run, opened = store.put("one", make_trace()), store.put("one", make_trace(), "opened")
    assert (store.state_of("one", run), store.state_of("one", opened)) == ("finished", "opened")
    with pytest.raises(TraceError, match="no longer in memory"):
        store.state_of("two", opened)


def test_the_least_recently_used_trace_makes_room() -> None:
    trace = make_trace()
    store = TraceStore(max_bytes=2 * trace_bytes(trace))
    first, second = store.put("one", trace), store.put("one", make_trace())
    store.get("one", first)
    store.put("two", trace)
    assert store.get("one", first) is trace
    with pytest.raises(TraceError):
        store.get("one", second)


def test_the_newest_trace_is_kept_whatever_it_takes() -> None:
    store = TraceStore(max_bytes=1)
    key = store.put("one", make_trace())
    assert store.get("one", key)


def test_a_session_that_leaves_takes_its_traces_along() -> None:
    store = TraceStore()
    mine, other = store.put("one", make_trace()), store.put("two", make_trace())
    store.forget("one")
    with pytest.raises(TraceError):
        store.get("one", mine)
    assert store.get("two", other)


def test_a_busy_session_makes_room_for_itself_and_not_for_others() -> None:
    trace = make_trace()
    store = TraceStore(session_bytes=2 * trace_bytes(trace))
    other = store.put("two", trace)
    mine = [store.put("one", make_trace()) for _ in range(4)]
    assert store.get("two", other) is trace
    assert [is_kept(store, key) for key in mine] == [False, False, True, True]


def test_recordings_take_nothing_and_push_nothing_out() -> None:
    run, recordings = make_trace(), [make_trace(seed=seed) for seed in range(5)]
    store = TraceStore(max_bytes=trace_bytes(run), session_bytes=trace_bytes(run))
    recorded = [store.put("one", trace, "recorded") for trace in recordings[:2]]
    mine = store.put("one", run)
    recorded += [store.put("one", trace, "recorded") for trace in recordings]
    assert [is_kept(store, key) for key in (mine, *recorded)] == [True] * 8
    newer = store.put("one", make_trace())
    assert [is_kept(store, key) for key in (newer, mine, *recorded)] == [True, False, *[True] * 7]


def test_a_trace_that_is_put_again_keeps_its_key() -> None:
    store, trace = TraceStore(), make_trace()
    key = store.put("one", trace, "recorded")
    assert store.put("one", trace, "recorded") == key
    assert store.put("two", trace, "recorded") != key
    assert store.put("one", trace) != key
    assert store.state_of("one", key) == "recorded"


def is_kept(store: TraceStore, key: str) -> bool:
    try:
        return store.get("one", key) is not None
    except TraceError:
        return False
