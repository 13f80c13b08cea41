"""Compare in Chromium, over invented traces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from explorer.comparison_payload import effect
from explorer.examples import find_example
from loramixer.comparison import compare
from loramixer.metrics import jensen_shannon, load, plane_point
from tests.app.conftest import Watched
from tests.app.synthetic import make_trace
from tests.app.synthetic_app import OTHER_ANSWER, PROMPTS

pytestmark = pytest.mark.browser

WAIT = 60_000
"""Milliseconds; the machine may be busy."""

BALANCE = "smollm2-135m/load-balance"
READY = "#compare-controls button:has-text('rsl | load-balance')"


@pytest.fixture
def page(watched: Watched, synthetic_page_url: str) -> Any:
    watched.page.set_default_timeout(WAIT)
    watched.page.goto(synthetic_page_url)
    watched.page.wait_for_selector(".token")
    return watched.page


def open_room(page: Any) -> None:
    page.click("button[role=tab]:has-text('Compare')")
    page.wait_for_selector("#compare-view .panel >> visible=true")


def text_of(page: Any, selector: str) -> str:
    return page.text_content(f"#compare-view {selector}") or ""


def wait_for_text(page: Any, selector: str, words: str) -> None:
    page.wait_for_function(
        "([selector, words]) => (document.querySelector(selector)?.textContent || '').includes(words)",
        arg=[selector, words],
    )


def numbers_of(page: Any, selector: str) -> list[float]:
    texts = page.eval_on_selector_all(f"#compare-view {selector}", "nodes => nodes.map((node) => node.textContent)")
    return [float(text.replace("−", "-").replace("%", "").replace("+", "")) for text in texts]


def test_a_ready_made_comparison_is_one_press_and_its_numbers_are_those_of_the_library(page: Any) -> None:
    open_room(page)
    wait_for_text(page, "#compare-status", "A ready-made comparison to begin with")
    page.click("#compare-clear")
    wait_for_text(page, "#compare-view .empty p", "Press a ready-made comparison")
    page.click(READY)
    page.wait_for_selector("#compare-view .token")
    a = make_trace(PROMPTS[0], seed=0)
    b = make_trace(PROMPTS[0], OTHER_ANSWER, seed=5, mixer=BALANCE)
    comparison = compare(a, b)
    assert text_of(page, ".aligned") == comparison.sentence

    def own(trace: Any) -> np.ndarray:
        return trace.gates[:, trace.select(roles=("prompt", "generated"))[1] & ~trace.tokens.special]

    points = [plane_point(own(trace)) for trace in (a, b)]
    shown = numbers_of(page, ".sums-table table:first-child .number")
    expected = [
        [points[0].undecided, points[1].undecided],
        [points[0].balanced, points[1].balanced],
        [points[0].balanced - points[0].undecided, points[1].balanced - points[1].undecided],
    ]
    assert shown == pytest.approx([value for row in expected for value in (*row, row[1] - row[0])], abs=0.011)
    kept = [
        place
        for place, (first, _) in enumerate(comparison.pairs)
        if a.tokens.roles[first[0]] != "template" and not a.tokens.special[first[0]]
    ]
    jsd, changed, words = numbers_of(page, ".sums-table table:last-child .number")
    assert jsd == pytest.approx(comparison.jsd_share[:, kept].mean(), abs=0.002)
    assert changed == pytest.approx(100 * comparison.leader_changed[:, kept].mean(), abs=0.2)
    assert words == pytest.approx(100 * (effect(a, b)["answer"] or 0), abs=0.06)
    loads = page.eval_on_selector_all(
        "#compare-view .load-row .number", "nodes => nodes.map((node) => node.textContent.split(' → ').map(Number))"
    )
    np.testing.assert_allclose(np.array(loads).T, [load(own(a)), load(own(b))], atol=0.006)
    # 310 and 300 part the answers; everything before is in both.
    assert page.locator("#compare-view .lane-a .token.only").first.text_content().strip().startswith("310")


def test_one_selection_leads_all_views_and_goes_into_the_address(page: Any) -> None:
    open_room(page)
    page.click(READY)
    page.wait_for_selector("#compare-view .token")
    page.focus("#compare-view .map-frame")
    page.mouse.move(5, 5)
    for key in ("Home", "ArrowRight", "2"):
        page.keyboard.press(key)
    wait_for_text(page, "#compare-view .card-token", "patient")
    for _ in range(40):
        page.keyboard.press("[")
    wait_for_text(page, "#compare-view .card-sentence", "layer 0, mean of q, k, v, o, ‘patient’: in A ")
    assert re.search(r"in A \w+ 0\.\d\d, in B \w+ 0\.\d\d, divergence 0\.\d\d", text_of(page, ".card-sentence"))
    assert text_of(page, ".map-cell") == text_of(page, ".card-sentence") == text_of(page, ".card-live")
    active = page.locator("#compare-view .token.active .glyphs").all_text_contents()
    assert [text.strip() for text in active] == ["patient", "patient"]
    a, b = make_trace(PROMPTS[0], seed=0), make_trace(PROMPTS[0], OTHER_ANSWER, seed=5, mixer=BALANCE)
    sites = [place for place, site in enumerate(a.sites) if site.layer == 0]
    gates = np.array([a.gates[sites, 4].mean(0), b.gates[sites, 4].mean(0)])
    rows = page.eval_on_selector_all(
        "#compare-view .card-experts tr:not(:first-child)",
        "rows => rows.map((row) => [...row.querySelectorAll('td')].map((cell) => cell.textContent.replace('−', '-')))",
    )
    shown = np.array(rows, dtype=float)
    np.testing.assert_allclose(shown[:, :2].T, gates, atol=6e-4)
    np.testing.assert_allclose(shown[:, 2], gates[1] - gates[0], atol=0.006)
    page.keyboard.press("Enter")
    wait_for_text(page, "#compare-view .lock", "Locked")
    page.wait_for_function("window.location.search.includes('lk=1')")
    address = page.url
    for part in ("room=compare", "a=rec%7Emath-medical", "m=medical", "cl=0", "cc=4"):
        assert part in address
    page.goto(address)
    # An address opens its room.
    if not page.locator("#compare-view").is_visible():
        open_room(page)
    wait_for_text(page, "#compare-view .card-token", "patient")
    wait_for_text(page, "#compare-view .lock", "Locked")
    assert "gate of medical" in text_of(page, ".legends")
    # A radio button that was pressed keeps the focus, and takes no letters.
    page.focus("#compare-side input[type=radio] >> nth=0")
    page.keyboard.press("e")
    wait_for_text(page, ".legends", "entropy")


def test_pinning_in_explore_then_running_b(page: Any) -> None:
    page.keyboard.press("c")
    wait_for_text(page, "#run-status", "Pinned as A of Compare.")
    open_room(page)
    wait_for_text(page, "#compare-A", "A: rsl, top 3, recorded")
    wait_for_text(page, "#compare-run", "Run B")
    page.click("#compare-mixer input")
    page.click("ul[role=listbox] li:has-text('Load balance')")
    page.click("#compare-gate label:first-of-type")
    page.click("#compare-run")
    page.wait_for_selector("#compare-view .token")
    facts = text_of(page, ".facts-table")
    for fact in ("RecordedLive", "smollm2-135m/load-balance", "top 1 of 4"):
        assert fact in facts
    # Its own room only: Explore has not moved.
    page.keyboard.press("e")
    wait_for_text(page, "#compare-view .legends", "entropy")
    page.click("button[role=tab]:has-text('Explore')")
    assert "largest gate" in (page.text_content("#routing-view .legend") or "")


def test_what_is_chosen_while_a_run_writes_stays(page: Any) -> None:
    open_room(page)
    wait_for_text(page, "#compare-A", "A: rsl, top 3, recorded")
    page.click("#compare-side label:has-text('B')")
    wait_for_text(page, "#compare-run", "Run B")
    page.fill("#compare-prompt textarea", "How many mg is that? PAUSE")  # writes four tokens and waits for Stop
    page.click("#compare-run")
    wait_for_text(page, "#compare-status", "Running B … 3 tokens")
    page.click("#compare-clear")
    wait_for_text(page, "#compare-A", "not chosen yet")
    page.click("#compare-stop")
    wait_for_text(page, "#compare-B", "stopped")
    assert "not chosen yet" in (page.text_content("#compare-A") or "")
    wait_for_text(page, "#compare-view .empty p", "B is chosen. Now choose A")
    page.wait_for_selector("#compare-run:enabled")


def test_a_router_at_a_training_step_runs_and_its_address_opens_again(page: Any, synthetic_page_url: str) -> None:
    open_room(page)
    page.click("#compare-take")
    wait_for_text(page, "#compare-run", "Run B")
    page.click("#compare-step input")
    page.click("ul[role=listbox] li:has-text('step 100')")
    page.click("#compare-run")
    page.wait_for_selector("#compare-view .token")
    assert "smollm2-135m/rsl, step 100" in text_of(page, ".facts-table")
    assert "B: rsl, step 100, top 3, live" in (page.text_content("#compare-B") or "")
    page.wait_for_function("window.location.search.includes('step-00100')")
    page.goto(page.url)
    wait_for_text(page, "#compare-status", "press Run B")
    page.wait_for_function("document.querySelector('#compare-step input').value === 'step 100'")
    # A router of whose training nothing was kept has no such control.
    page.click("#compare-mixer input")
    page.click("ul[role=listbox] li:has-text('Load balance')")
    page.wait_for_selector("#compare-step", state="hidden")


def test_prompts_of_two_topics_are_compared_span_by_span(page: Any, tmp_path: Path) -> None:
    open_room(page)
    traces = [make_trace(find_example(key).prompt, seed=seed) for seed, key in enumerate(("math", "medical"))]
    for side, trace in zip("AB", traces, strict=True):
        page.set_input_files("#compare-controls input[type=file]", str(trace.save(tmp_path / f"{side}.npz")))
        wait_for_text(page, f"#compare-{side}", "from a file")
    page.wait_for_selector("#compare-view .token")
    numbers = [trace.tokens.roles.count("prompt") for trace in traces]
    said = f"math in A with medical in B ({numbers[0]} and {numbers[1]} tokens)"
    assert said in text_of(page, ".aligned")
    assert "; 1 span in both" in text_of(page, ".sums .caption")
    # It opens at the only column that is compared, and the whole spans are marked in both texts.
    assert text_of(page, ".card-token") == "math │ medical"
    assert text_of(page, ".card-where") == f"tokens 4–{3 + numbers[0]} of A, tokens 4–{3 + numbers[1]} of B"
    for side, number in zip("ab", numbers, strict=True):
        assert page.locator(f"#compare-view .lane-{side} .token.active").count() == number
        assert page.locator(f"#compare-view .lane-{side} .lane-block:first-child .token.only").count() == 0
    means = [trace.gates[:, 3 : 3 + number].mean(axis=1) for trace, number in zip(traces, numbers, strict=True)]
    jsd = (jensen_shannon(*means) / np.log(2)).mean()
    assert numbers_of(page, ".sums-table table:last-child .number")[0] == pytest.approx(jsd, abs=0.002)


def test_a_trace_file_is_compared_and_markup_in_it_stays_text(page: Any, tmp_path: Path) -> None:
    open_room(page)
    hostile = "<img src=x onerror=alert(1)> ${1+1} {{7*7}} 🦊 word"
    path = make_trace(hostile, mixer="<b>mine</b>").save(tmp_path / "mine.npz")
    page.set_input_files("#compare-controls input[type=file]", str(path))
    wait_for_text(page, "#compare-A", "A: b>, top 3, from a file")
    page.click("#compare-take")
    page.wait_for_selector("#compare-view .token")
    assert page.locator("#compare-view img, #compare-view b").count() == 0
    lane = text_of(page, ".lane-a").replace("\xa0", " ")
    for piece in ("onerror=alert(1)>", "${1+1}", "{{7*7}}"):
        assert piece in lane
    assert text_of(page, ".aligned").startswith("The prompts differ")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_has_no_sideways_scroll_and_text_is_readable(page: Any, synthetic_page_url: str, theme: str) -> None:
    from tests.app.test_browser import CONTRAST

    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{synthetic_page_url}?__theme={theme}")
    page.wait_for_selector(".token")
    open_room(page)
    page.click(READY)
    page.wait_for_selector("#compare-view .token")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tops = [page.locator(f"#compare-view .{name}").bounding_box()["y"] for name in ("lanes", "map", "card", "load")]
    assert tops == sorted(tops)
    contrast = CONTRAST.replace(".routing-view *, #controls *", "#compare-view *, #compare-controls *")
    assert page.evaluate(contrast) == []
