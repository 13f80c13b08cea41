"""The page in Chromium, over invented traces: what a visitor sees, clicks and types."""

from __future__ import annotations

import re
from typing import Any

import pytest

from loramixer.metrics import load, plane_point
from tests.app.conftest import Watched
from tests.app.synthetic import make_trace

pytestmark = pytest.mark.browser

AXIS_WIDTH, HEAD_HEIGHT, CELL_WIDTH, CELL_HEIGHT = 38, 16, 15, 11
"""Where the cells of the map are; see canvas.js and map.js."""

MATH_MEDICAL = "A child weighs 20 kg and needs 12 mg of ibuprofen per kg. How many mg is that, and is it safe?"


@pytest.fixture
def page(watched: Watched, synthetic_page_url: str) -> Any:
    watched.page.goto(synthetic_page_url)
    watched.page.wait_for_selector(".token")
    return watched.page


def generate(page: Any, prompt: str) -> None:
    page.fill("#prompt textarea", prompt)
    page.click("#generate")


def wait_for_status(page: Any, words: str) -> None:
    page.wait_for_function(
        "words => document.querySelector('#run-status .text').textContent.includes(words)", arg=words, timeout=60_000
    )


def wait_until_writing(page: Any) -> None:
    """Until some tokens are there and the strip says so, both at one moment: a moment later all may be done."""
    page.wait_for_function(
        """document.querySelectorAll('[data-state=generating] .lane-block:last-child .token').length > 2
        && document.querySelector('.strip-item .strip-value').textContent === 'Generating'""",
        timeout=60_000,
    )


def text_of(page: Any, selector: str) -> str:
    return page.text_content(selector) or ""


def source_of(page: Any) -> str:
    return text_of(page, ".strip-item:first-child .strip-value")


def wait_for_sentence(page: Any, start: str) -> None:
    page.wait_for_function(
        "start => document.querySelector('.card-sentence').textContent.startsWith(start)", arg=start
    )


def click_cell(page: Any, column: int, layer: int) -> None:
    """Click a cell, counted from the first column and layer that are drawn."""
    page.eval_on_selector(".map-frame", "frame => { frame.scrollLeft = 0; }")
    height = page.evaluate("document.querySelector('.map-frame canvas').clientHeight")
    position = {"x": AXIS_WIDTH + 4 + column * CELL_WIDTH, "y": HEAD_HEIGHT + 4 + layer * CELL_HEIGHT}
    assert position["y"] < height
    page.click(".map-frame", position=position)


def test_a_recording_is_on_screen_and_says_so(page: Any) -> None:
    assert source_of(page) == "Recorded"
    strip = text_of(page, ".strip")
    for fact in ("smollm2-135m/rsl", "top 3 of 4", "0, greedy", "01234567"):
        assert fact in strip
    assert page.locator(".token").count() > 40
    assert "n = " in text_of(page, ".load .caption")


def test_generating_streams_without_mounting_anew(page: Any) -> None:
    page.evaluate(
        """() => {
          window.first = document.querySelector('.routing-view');
          window.canvas = document.querySelector('.map-frame canvas');
          window.removed = 0;
          const count = (changes) => changes.forEach((change) => { window.removed += change.removedNodes.length; });
          new MutationObserver(count).observe(window.first, { childList: true });
        }"""
    )
    generate(page, MATH_MEDICAL)
    wait_until_writing(page)
    first_token = page.query_selector(".lane-block:last-child .token")
    wait_for_status(page, "Done")
    assert source_of(page) == "Live"
    assert first_token.evaluate("node => node.isConnected")
    assert page.evaluate("window.first === document.querySelector('.routing-view') && window.first.isConnected")
    assert page.evaluate("window.canvas === document.querySelector('.map-frame canvas')")
    assert page.evaluate("window.removed") == 0
    assert page.locator(".lane-block:last-child .token").count() == make_trace().tokens.roles.count("generated")


def test_clicking_a_cell_moves_every_view_and_locks(page: Any) -> None:
    click_cell(page, column=1, layer=3)
    page.wait_for_function("document.querySelector('.card-token').textContent === 'patient'")
    expected = r"layer 3, mean of q, k, v, o, token ‘patient’: \w+ 0\.\d\d, \w+ 0\.\d\d"
    assert re.match(expected, text_of(page, ".card-sentence"))
    assert text_of(page, ".card-live") == text_of(page, ".card-sentence")
    assert text_of(page, ".token.active .glyphs") == "·patient"
    assert text_of(page, ".lock") == "Locked"
    page.hover(".token:nth-child(5)")
    page.wait_for_timeout(100)
    assert text_of(page, ".card-token").strip() == "patient"
    page.keyboard.press("Escape")
    page.hover(".token:nth-child(4)")
    page.wait_for_function("document.querySelector('.card-token').textContent === '62'")


def test_the_keyboard_reaches_everything(page: Any) -> None:
    click_cell(page, column=1, layer=3)
    page.keyboard.press("Escape")
    page.focus(".map-frame")
    page.mouse.move(5, 5)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    wait_for_sentence(page, "layer 4, mean of q, k, v, o, token ‘weighs’")
    cell = page.locator(".map-cell")
    assert cell.get_attribute("aria-colindex") == "3"
    assert page.get_attribute(".map-row", "aria-rowindex") == "5"
    assert page.get_attribute(".map-frame", "aria-activedescendant") == cell.get_attribute("id")
    page.keyboard.press("]")
    wait_for_sentence(page, "layer 5,")
    page.keyboard.press("[")
    page.keyboard.press("Home")
    wait_for_sentence(page, "layer 4, mean of q, k, v, o, token ‘A’")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.lock').textContent === 'Locked'")
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelector('.lock').textContent === 'Lock'")
    page.keyboard.press("2")
    page.wait_for_function("document.querySelector('.legend').textContent.includes('gate of medical')")
    page.keyboard.press("0")
    page.wait_for_function("document.querySelector('.legend').textContent.includes('largest gate')")
    page.keyboard.press("?")
    assert page.locator("dialog.help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog.help").is_visible()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement === document.querySelector('#prompt textarea')")
    page.keyboard.type("/?1")
    assert page.input_value("#prompt textarea").count("/?1") == 1


def test_one_projection_shows_its_logits(page: Any) -> None:
    page.click(".choices[aria-label=Projection] button:nth-child(1)")
    click_cell(page, column=0, layer=0)
    wait_for_sentence(page, "layer 0, q projection")
    trace = make_trace("A patient weighs 62 kg and needs 15 mg", seed=0)
    # The recording's gates depend on the place of a token only, so its first prompt token is at 3 here as well.
    read = "rows => rows.map(row => [row.cells[1].innerText, row.cells[row.cells.length - 2].innerText])"
    rows = page.eval_on_selector_all(".card-experts tr:not(:first-child)", read)
    for (gate, logit), exact_gate, exact_logit in zip(rows, trace.gates[0, 3], trace.logits[0, 3], strict=True):
        assert float(gate) == pytest.approx(float(exact_gate), abs=6e-4)
        assert float(logit.replace("−", "-")) == pytest.approx(float(exact_logit), abs=0.01)


def test_the_load_is_that_of_the_library(page: Any) -> None:
    generate(page, MATH_MEDICAL)
    wait_for_status(page, "Done")
    trace = make_trace(MATH_MEDICAL)
    kept = trace.select(roles=("prompt", "generated"))[1] & ~trace.tokens.special
    gates = trace.gates[:, kept]
    shown = page.eval_on_selector_all(".load-row .number", "nodes => nodes.map(node => Number(node.textContent))")
    assert shown == pytest.approx(load(gates).tolist(), abs=0.006)
    numbers = page.eval_on_selector_all(".load-number dd", "nodes => nodes.map(node => Number(node.textContent))")
    point = plane_point(gates)
    assert numbers == pytest.approx([point.undecided, point.balanced, point.balanced - point.undecided], abs=0.006)
    assert f"n = {kept.sum()} tokens" in text_of(page, ".load .caption")


def test_a_prompt_that_is_sent_during_a_run_is_the_one_that_is_answered(page: Any) -> None:
    generate(page, f"{MATH_MEDICAL} PAUSE LATE")
    wait_until_writing(page)
    page.fill("#prompt textarea", "What is a second prompt?")
    page.press("#prompt textarea", "Shift+Enter")
    wait_for_status(page, "Done")
    assert "second" in text_of(page, ".lane-text")
    assert "ibuprofen" not in text_of(page, ".lane-text")
    assert page.is_enabled("#generate")
    assert page.is_disabled("#stop")


def page_with_the_model(page: Any, url: str) -> Any:
    """A page of another visitor, whose run has the model until Stop."""
    busy = page.context.new_page()
    busy.goto(url)
    busy.wait_for_selector(".token")
    generate(busy, f"{MATH_MEDICAL} PAUSE")
    wait_until_writing(busy)
    return busy


def test_a_visitor_who_waits_may_change_the_prompt(page: Any, synthetic_page_url: str) -> None:
    busy = page_with_the_model(page, synthetic_page_url)
    generate(page, "What is a first prompt?")
    for prompt, words in ((" ", "prompt is empty"), ("What is a second prompt?", "1 run was asked for before yours")):
        page.fill("#prompt textarea", prompt)
        page.press("#prompt textarea", "Shift+Enter")
        wait_for_status(page, words)
    busy.click("#stop")
    wait_for_status(page, "Done")
    busy.close()
    assert "second" in text_of(page, ".lane-text")
    assert page.is_enabled("#generate")


def test_who_stops_while_waiting_need_not_wait_for_the_turn(page: Any, synthetic_page_url: str) -> None:
    busy = page_with_the_model(page, synthetic_page_url)
    generate(page, "What is a first prompt?")
    wait_for_status(page, "1 run was asked for before yours")
    page.click("#stop")
    wait_for_status(page, "Stopped before the model began")
    page.wait_for_selector("#generate:enabled")
    assert page.is_disabled("#stop")
    generate(page, "What is a second prompt?")
    wait_for_status(page, "1 run was asked for before yours")
    busy.click("#stop")
    wait_for_status(page, "Done")
    busy.close()
    assert "second" in text_of(page, ".lane-text")


def test_stop_keeps_what_was_written(page: Any) -> None:
    generate(page, f"{MATH_MEDICAL} PAUSE")  # writes four tokens and waits for Stop, however busy the machine is
    wait_until_writing(page)
    page.click("#stop")
    wait_for_status(page, "Stopped after")
    assert source_of(page) == "Stopped"
    written = page.locator(".lane-block:last-child .token").count()
    assert 2 < written <= 4 < make_trace().tokens.roles.count("generated")
    assert page.is_enabled("#generate")
    assert page.is_disabled("#stop")


def test_markup_and_emoji_stay_text(page: Any) -> None:
    hostile = "<script>document.title='owned'</script> <img src=x onerror=alert(1)> ${1+1} {{7*7}}"
    generate(page, f"Explain {hostile} 🦊 to me")
    wait_for_status(page, "Done")
    assert page.title() != "owned"
    assert page.locator(".routing-view script, .routing-view img").count() == 0
    lane = text_of(page, ".lane-text").replace("·", " ")
    for piece in ("script>", "${1+1}", "{{7*7}}", "¹⁄₃"):
        assert piece in lane


@pytest.mark.parametrize(("prompt", "words"), [("", "prompt is empty"), ("x" * 20_000, "20,000 characters")])
def test_an_unusable_prompt_is_one_sentence_and_nothing_is_lost(page: Any, prompt: str, words: str) -> None:
    before = page.locator(".token").count()
    generate(page, prompt)
    wait_for_status(page, words)
    assert page.locator(".token").count() == before
    assert page.is_enabled("#generate")


def test_new_settings_say_that_the_view_is_older(page: Any) -> None:
    page.click("#gate label:last-of-type")
    wait_for_status(page, "still shows smollm2-135m/rsl with top 3")
    assert source_of(page) == "Recorded"
    generate(page, MATH_MEDICAL)
    wait_for_status(page, "Done")
    assert "soft, all 4" in text_of(page, ".strip")


def test_an_example_shows_its_recording(page: Any) -> None:
    page.click("#examples button:nth-child(2)")
    page.wait_for_function("document.querySelector('.lane-text').textContent.includes('loan')")
    assert source_of(page) == "Recorded"
    assert "loan" in page.input_value("#prompt textarea")


def test_template_tokens_are_hidden_until_asked_for(page: Any) -> None:
    assert "im_start" not in text_of(page, ".lane-text")
    page.click("text=Template tokens")
    page.wait_for_function("document.querySelector('.lane-text').textContent.includes('im_start')")
    assert page.get_attribute(".map-frame", "aria-colcount") == str(page.locator(".token").count())


def test_a_long_answer_scrolls_inside_the_map_only(page: Any) -> None:
    generate(page, "word " * 120)
    wait_for_status(page, "Done")
    assert page.eval_on_selector(".map-frame", "frame => frame.scrollWidth > frame.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_phone_folds_the_settings_and_keeps_the_order(page: Any, synthetic_page_url: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(synthetic_page_url)
    page.wait_for_selector(".token")
    page.wait_for_function("!document.querySelector('#gate')?.offsetParent")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tops = [page.locator(f".panel.{name}").bounding_box()["y"] for name in ("lane", "map", "card", "load")]
    assert tops == sorted(tops)


CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll('.routing-view *, #controls *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.offsetParent || node.closest('.glyphs, [disabled], .hidden-text')) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${node.className || node.tagName} "${node.textContent.trim()}" ${ratio.toFixed(2)}`);
  }
  return bad;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_readable(page: Any, synthetic_page_url: str, theme: str) -> None:
    page.goto(f"{synthetic_page_url}?__theme={theme}")
    page.wait_for_selector(".token")
    assert page.evaluate(CONTRAST) == []


def test_numbers_explain_themselves_on_focus(page: Any) -> None:
    page.focus(".load-number:last-child")
    assert page.locator(".tip").is_visible()
    assert "mutual information" in text_of(page, ".tip")
    # A screen reader hears it as the description of the number, and Esc closes it.
    described = page.get_attribute(".load-number:last-child", "aria-describedby")
    assert described == page.get_attribute(".tip", "id")
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()
    assert page.get_attribute(".load-number:last-child", "aria-describedby") is None
