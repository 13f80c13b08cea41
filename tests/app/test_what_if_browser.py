"""What if in Chromium, over invented traces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loramixer.metrics import load
from loramixer.whatif import NOTE, what_if
from tests.app.conftest import Watched
from tests.app.synthetic import make_trace
from tests.app.synthetic_app import PROMPTS
from tests.app.test_compare_browser import WAIT, wait_for_text

pytestmark = pytest.mark.browser


@pytest.fixture
def page(watched: Watched, synthetic_page_url: str) -> Any:
    watched.page.set_default_timeout(WAIT)
    watched.page.goto(synthetic_page_url)
    watched.page.wait_for_selector(".token")
    open_room(watched.page)
    return watched.page


def open_room(page: Any) -> None:
    page.click("button[role=tab]:has-text('What if')")
    page.wait_for_selector("#what-if-view .token")


def loads_of(page: Any) -> np.ndarray:
    texts = page.eval_on_selector_all(
        "#what-if-view .load-row .number", "nodes => nodes.map((node) => node.textContent.split(' → ').map(Number))"
    )
    return np.array(texts).T


def test_gates_change_at_once_and_say_that_the_text_does_not(page: Any) -> None:
    wait_for_text(page, "#what-if-base", "rsl, top 3, “A patient weighs")
    assert page.text_content("#what-if-view .routing-only") == NOTE
    numbers = page.eval_on_selector_all("#what-if-view td", "cells => cells.map((cell) => cell.textContent)")
    assert "0.00" in numbers  # no difference has no sign
    assert not {"+0.00", "−0.00"} & set(numbers)
    page.click("#what-if-mask label:has-text('medical')")
    wait_for_text(page, "#what-if-view .lane-b .lane-head", "without medical")
    page.click("#what-if-gate label:first-of-type")
    wait_for_text(page, "#what-if-view .lane-b .lane-head", "top 1, without medical")
    trace = make_trace(PROMPTS[0], seed=0)
    changed = what_if(trace, gate="top_k", k=1, mask=["medical"])
    kept = trace.select(roles=("prompt", "generated"))[1] & ~trace.tokens.special
    expected = [load(trace.gates[:, kept]), load(changed.gates[:, kept])]
    np.testing.assert_allclose(loads_of(page), expected, atol=0.006)
    page.wait_for_function("/[?&]x=medical/.test(location.search) && /[?&]k=/.test(location.search)")
    address = page.url
    assert "room=what_if" in address
    page.goto(address)
    if not page.locator("#what-if-view").is_visible():
        open_room(page)
    wait_for_text(page, "#what-if-view .lane-b .lane-head", "top 1, without medical")
    # The button that takes a slider back is no input, and yet a change.
    page.fill("#what-if-temperature input[type=number]", "2.5")
    page.keyboard.press("Tab")
    wait_for_text(page, "#what-if-view .lane-b .lane-head", "temperature 2.5")
    page.click("#what-if-temperature [data-testid=reset-button]")
    page.wait_for_function(
        "!document.querySelector('#what-if-view .lane-b .lane-head').textContent.includes('temperature')"
    )
    # What cannot be is a sentence, and the view stays.
    for name in ("math", "code", "language"):
        page.click(f"#what-if-mask label:has-text('{name}')")
    wait_for_text(page, "#what-if-status", "leave at least one")
    assert page.locator("#what-if-view .token").count() > 0


def test_an_intervention_writes_again_and_stands_beside_its_control(page: Any) -> None:
    page.click("#what-if-experts label:has-text('math')")
    page.click("#what-if-run")
    wait_for_text(page, "#what-if-view .sums-table", "under the random control")
    wait_for_text(page, "#what-if-status", "Done.")
    assert "without math" in page.text_content("#what-if-view .lane-b .lane-head")
    assert page.locator("#what-if-view .routing-only").count() == 0
    rows = page.locator("#what-if-view .sums-table table:last-child tr").all_text_contents()
    assert len(rows) == 6
    # The invented control writes what the intervention writes.
    values = [row.split("control")[-1] for row in rows if "control" in row]
    assert [row.endswith(value) for row, value in zip(rows[::2], values, strict=True)] == [True] * 3
    only = page.locator("#what-if-view .lane-b .token.only .glyphs").all_text_contents()
    assert any("doctor" in text for text in only)


def test_marked_words_say_where(page: Any) -> None:
    first = page.locator("#what-if-view .lane-a .token:has-text('62') .glyphs").first.bounding_box()
    last = page.locator("#what-if-view .lane-a .token:has-text('kg') .glyphs").first.bounding_box()
    page.mouse.move(first["x"] + 2, first["y"] + 8)
    page.mouse.down()
    page.mouse.move(last["x"] + last["width"] - 2, last["y"] + 8, steps=4)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#what-if-text textarea, #what-if-text input')?.value === '62 kg'")
    # A part of one token stands for the whole token.
    page.evaluate("getSelection().removeAllRanges()")  # a press on what is marked would drag it
    page.mouse.move(first["x"] + 2, first["y"] + 8)
    page.mouse.down()
    page.mouse.move(first["x"] + first["width"] - 2, first["y"] + 8, steps=4)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#what-if-text textarea, #what-if-text input')?.value === '62'")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_has_no_sideways_scroll_and_text_is_readable(page: Any, synthetic_page_url: str, theme: str) -> None:
    from tests.app.test_browser import CONTRAST

    page.set_viewport_size({"width": 390, "height": 844})
    # On a phone the tab is in a menu, so an address opens the room.
    page.goto(f"{synthetic_page_url}?__theme={theme}&room=what_if")
    page.wait_for_selector("#what-if-view .token")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    contrast = CONTRAST.replace(".routing-view *, #controls *", "#what-if-view *, #what-if-controls *")
    assert page.evaluate(contrast) == []
