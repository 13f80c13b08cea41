"""What all rooms have in common, in Chromium: their addresses, their share menus, and settings that links bring."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.app.conftest import Watched

pytestmark = pytest.mark.browser

WAIT_MS = 60_000
ROOMS = {
    "Trade-off": "tradeoff", "Compare": "compare", "What if": "what_if", "Train": "train", "Your own": "own",
    "Lessons": "lessons", "Explore": "explore",
}  # fmt: skip


def open_page(watched: Watched, url: str, query: str = "", width: int = 1440, height: int = 900) -> Any:
    page: Any = watched.page
    page.set_default_timeout(WAIT_MS)
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"{url}?{query}")
    return page


def open_room(page: Any, label: str) -> None:
    page.click(f"button[role=tab]:has-text('{label}')")
    page.wait_for_selector(f"#room-{ROOMS[label]}", state="visible")


def wait_for_query(page: Any, key: str, value: str) -> None:
    page.wait_for_function("([key, value]) => new URL(location).searchParams.get(key) === value", arg=[key, value])


def test_every_room_writes_its_address_when_it_is_opened(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url)
    page.wait_for_selector(".token")
    for label, room in ROOMS.items():
        open_room(page, label)
        wait_for_query(page, "room", room)
    open_room(page, "Lessons")
    page.click("#lesson label:has-text('The sign of')")
    wait_for_query(page, "lesson", "sign")
    open_room(page, "Your own")
    wait_for_query(page, "room", "own")
    assert "lesson" not in parse_qs(urlsplit(page.url).query)
    open_room(page, "Lessons")
    wait_for_query(page, "lesson", "sign")


def test_explore_writes_its_address_on_a_phone_too(watched: Watched, synthetic_page_url: str) -> None:
    """There its views lie below the controls, out of sight."""
    page = open_page(watched, synthetic_page_url, "v=1&room=lessons", width=390, height=400)
    page.wait_for_selector("#lesson-text h2")
    assert parse_qs(urlsplit(page.url).query)["room"] == ["lessons"]
    open_room(page, "Explore")
    wait_for_query(page, "room", "explore")


FOLDS = {
    "Explore": ["settings"], "Compare": ["compare-choose", "compare-run-settings"],
    "What if": ["what-if-gates", "what-if-model"], "Train": ["train-rows", "train-losses"],
}  # fmt: skip


@pytest.mark.parametrize(("width", "open_there"), [(390, False), (1440, True)])
def test_phones_start_with_the_controls_folded(
    watched: Watched, synthetic_page_url: str, width: int, open_there: bool
) -> None:
    for label, folds in FOLDS.items():
        page = open_page(watched, synthetic_page_url, f"v=1&room={ROOMS[label]}", width=width)
        for fold in folds:
            page.wait_for_selector(f"#{fold} > button{'.open' if open_there else ':not(.open)'}")


def test_an_event_that_opens_a_room_writes_its_address(watched: Watched, synthetic_page_url: str) -> None:
    from explorer.rooms.own.handlers import shipped_experts

    page = open_page(watched, synthetic_page_url, "v=1&room=own")
    page.wait_for_selector("#own-shipped input")
    page.evaluate(
        """() => {
          window.said = new Set();
          const line = document.querySelector('#own-status');
          new MutationObserver(() => window.said.add(line.textContent.trim()))
            .observe(line, { subtree: true, childList: true, characterData: true });
        }"""
    )
    names = [key for key in shipped_experts() if key.startswith("smollm2-135m")][:3]
    for count, name in enumerate(names, start=1):
        page.click("#own-shipped input")
        page.click(f"ul[role=listbox] li:has-text('{name}')")
        page.wait_for_function(
            "count => document.querySelectorAll('#own-chosen input:checked').length === count", arg=count
        )
    assert any("Looking at the experts" in text for text in page.evaluate("[...window.said]"))
    page.locator("#own-chosen input").nth(0).uncheck()
    page.wait_for_function("document.querySelectorAll('#own-chosen input:checked').length === 2")
    page.click("#own-keep")
    page.wait_for_function("document.querySelectorAll('#own-chosen input').length === 2")
    page.wait_for_function("!document.querySelector('#own-train').disabled")
    page.click("#own-train")
    page.wait_for_selector("#room-train", state="visible")
    wait_for_query(page, "room", "train")
    page.wait_for_function("document.querySelectorAll('#train-experts input').length === 2")


def test_a_link_to_train_keeps_its_weight_and_its_domains(watched: Watched, synthetic_page_url: str) -> None:
    link = "v=1&room=train&e=math,medical&d=medical&loss=supervised&a=2.5"
    page = open_page(watched, synthetic_page_url, link)
    # What the page makes of the link has come back from the server: the hint of the loss, and the estimate.
    page.wait_for_selector("#train-loss :text('upper bound')")
    page.wait_for_function("document.querySelectorAll('#train-experts input:checked').length === 2")
    page.wait_for_selector("#train-sign", state="hidden")
    page.wait_for_function("document.querySelector('#train-estimate .text').textContent.includes('GB of memory')")
    assert page.input_value("#train-balance input") == "2.5"
    assert page.locator("#train-domains input:checked").count() == 1
    # A press brings the usual α of the loss along, and it stands in the address.
    page.click("#train-loss input")
    page.click("[role=option]:has-text('Load balance')")
    wait_for_query(page, "loss", "load_balance")
    page.wait_for_function("document.querySelector('#train-balance input').value !== '2.5'")
    usual = page.input_value("#train-balance input")
    page.wait_for_function(
        "usual => Number(new URL(location).searchParams.get('a') || 1) === Number(usual)", arg=usual
    )


def test_words_of_what_if_are_in_a_link_only_when_ticked(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "v=1&room=what_if")
    page.wait_for_selector("#what-if-view .token")
    page.click("#what-if-where label:has-text('words of the prompt')")
    page.fill("#what-if-text textarea, #what-if-text input", "62 kg")
    page.click("#what-if-share > button")
    link = "#what-if-link .share-link"
    page.focus(link)
    assert "w" not in parse_qs(urlsplit(page.input_value(link)).query)
    page.check("#what-if-link .with-prompt input")
    assert parse_qs(urlsplit(page.input_value(link)).query)["w"] == ["62 kg"]
