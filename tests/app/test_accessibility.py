"""An automatic check of accessibility (axe-core, WCAG 2.1 A and AA) of the rooms, light, dark and on a phone."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest

from tests.app.conftest import Watched
from tests.availability import unavailable

pytestmark = pytest.mark.browser

WAIT_MS = 60_000

RUN = """() => axe.run(document, { resultTypes: ['violations'] }).then((found) => found.violations
  .filter(({ impact }) => ['serious', 'critical'].includes(impact))
  .flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target.join(' ')}: ${node.failureSummary}`)))"""


def axe_script() -> str:
    """The source of axe-core, out of the Python package that carries it."""
    try:
        return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        unavailable("Accessibility was not checked: install it with pip install 'loramixer[dev]'.")
        raise


def open_page(watched: Watched, url: str, width: int) -> Any:
    page: Any = watched.page
    page.set_default_timeout(WAIT_MS)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(url)
    return page


def found_by_axe(page: Any) -> list[Any]:
    page.evaluate(axe_script())
    return page.evaluate(RUN)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("theme", "width", "query"),
    [
        ("light", 1440, "o=spans,experts,layers,agreement,effect,table&m=medical"),
        ("dark", 390, "u=word&lk=1&cl=3&ct=5"),
    ],
)
def test_axe_finds_nothing_serious(
    watched: Watched, synthetic_page_url: str, theme: str, width: int, query: str
) -> None:
    page = open_page(watched, f"{synthetic_page_url}?__theme={theme}&{query}", width)
    page.wait_for_selector(".token")
    page.wait_for_function("document.querySelector('.map-frame canvas').height > 200")
    assert found_by_axe(page) == []


OTHERS = {
    "compare": "#compare-view .token",
    "what_if": "#what-if-view .token",
    "train": "#train-start",
    "own": "#own-table .own-empty",
    "lessons": "#lesson-text h2",
}
"""Room → what is there once it can be used. Trade-off is checked over its own files, in ``test_tradeoff_browser``."""


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
@pytest.mark.parametrize("room", OTHERS)
def test_axe_finds_nothing_serious_in_other_rooms(
    watched: Watched, synthetic_page_url: str, room: str, theme: str, width: int
) -> None:
    page = open_page(watched, f"{synthetic_page_url}?__theme={theme}&v=1&room={room}", width)
    page.wait_for_selector(OTHERS[room])
    assert found_by_axe(page) == []
