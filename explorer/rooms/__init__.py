"""The rooms of the explorer, in the order of their tabs; each is one module with a function ``build``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from explorer.page import Page
from explorer.rooms import compare, explore, lessons, own, tradeoff, train, what_if


@dataclass(frozen=True)
class Room:
    """One tab.

    Attributes:
        key: in links, ``?room=key``, and in the id of its tab.
        label: on its tab.
        build: makes its components inside the open tab and wires them.
    """

    key: str
    label: str
    build: Callable[[Page], None]


ROOMS = (
    Room("explore", "Explore", explore.build),
    Room("compare", compare.LABEL, compare.build),
    Room("tradeoff", "Trade-off", tradeoff.build),
    Room("what_if", what_if.LABEL, what_if.build),
    Room("train", "Train", train.build),
    Room("own", "Your own", own.build),
    Room("lessons", "Lessons", lessons.build),
)
