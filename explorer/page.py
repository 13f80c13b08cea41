"""`Page`: what every room is built from, so that a room needs no global and no other room."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from explorer.exports import Exports
from explorer.handlers import Handlers
from explorer.recordings import Recordings
from explorer.registry import ModelSource
from explorer.sessions import when_gone
from explorer.traces_in_memory import TraceStore


@dataclass(frozen=True)
class Page:
    """What the rooms share.

    Attributes:
        demo: the page, for events of loading and leaving.
        tabs: the rooms; ``gr.Tabs(selected=key)`` as an output goes to a room.
        source: what can be run.
        recordings: what is shown before anything has been run.
        handlers: events of Explore, and the tickets that stop a run.
        traces: finished traces of every session, by key; a room never holds a trace in a ``gr.State``.
        shown: component state; router and gate of the trace on screen in Explore.
        current: component state; key in ``traces`` of the trace on screen in Explore, empty before there is one and
            while a run writes it.
        wanted: component state; a router that one room asks another one to choose, from :func:`want`. Explore and
            Compare listen to its change and act when they are named. Only events that go through the queue may set
            it: Gradio tells nobody of a state that changed outside.
        addresses: by key of a room, the hidden box of the query string of its view. Opening a room writes it into the
            address bar, and so does a change of it while the room is open; it stays empty in rooms whose component
            does that itself.
        pinned: component state; ``{"key": …, "number": …}``, the trace that Explore pins; Compare takes it as A.
        folds: the controls that a phone shows folded; every room adds its own.
        exports: files of what is shown, for download buttons; those of a session go when it leaves.
        services: what one room does for another, by name; looked up when it is used, since rooms are built in order.
            ``own_experts(session)`` gives the backbone and the experts (name → folder or Hub id) of a visitor.
    """

    demo: gr.Blocks
    tabs: gr.Tabs
    source: ModelSource
    recordings: Recordings
    handlers: Handlers
    traces: TraceStore
    shown: gr.State
    current: gr.State
    wanted: gr.State
    pinned: gr.State
    addresses: Mapping[str, gr.Textbox]
    folds: list[gr.Accordion] = field(default_factory=list)
    exports: Exports = field(default_factory=Exports)
    services: dict[str, Any] = field(default_factory=dict)

    def forget_exports(self, request: gr.Request) -> None:
        """The connection of a page broke: its files go, unless it comes back."""
        when_gone(request, self.exports.forget)


def entering(label: str, enter: Callable[[Any, Any, gr.Request], tuple[Any, ...]], outputs: int) -> Any:
    """The handler of ``Page.tabs.select`` for one room; every room hears of every tab that is pressed.

    Args:
        label: on the tab of the room.
        enter: takes two inputs and the request.
        outputs: how many values it returns; so many stay as they are when another room is opened.
    """

    def selected(first: Any, second: Any, event: gr.SelectData, request: gr.Request) -> tuple[Any, ...]:
        return enter(first, second, request) if event.value == label else (gr.skip(),) * outputs

    return selected


def want(room: str, mixer: str, title: str = "") -> dict[str, Any]:
    """Value of ``Page.wanted``: which room shall choose which router.

    Args:
        room: key of the room, ``explore`` or ``compare``.
        mixer: name of the router, as ``ModelSource.find`` takes it.
        title: for the router control, where the router is in no list.
    """
    return {"room": room, "mixer": mixer, "title": title or mixer, "number": next(_wishes)}


_wishes = itertools.count(1)
"""The same wish twice is two changes."""
