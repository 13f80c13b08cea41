"""Explore in Chromium: the address, the sections, words and spans, opened files, and links for teaching."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest

from explorer.examples import EXAMPLES
from explorer.gold import gold_experts, gold_spans
from loramixer.aggregate import aggregate
from loramixer.metrics import load
from loramixer.spans import span_routing, spans_in_trace
from tests.app.conftest import Watched
from tests.app.synthetic import EXPERTS, make_trace
from tests.app.synthetic_app import PROMPTS

pytestmark = pytest.mark.browser

WAIT_MS = 60_000
"""Longest wait for anything; the machine may be busy."""


def open_page(watched: Watched, url: str, query: str = "") -> Any:
    watched.page.set_default_timeout(WAIT_MS)
    watched.page.goto(f"{url}?{query}")
    watched.page.wait_for_selector(".token")
    return watched.page


def text_of(page: Any, selector: str) -> str:
    return page.text_content(selector) or ""


def query_of(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def wait_for_query(page: Any, text: str) -> None:
    page.wait_for_function("text => decodeURIComponent(window.location.search).includes(text)", arg=text)


def open_section(page: Any, key: str) -> None:
    page.click(f"[data-section={key}] summary")
    page.wait_for_function(
        "key => document.querySelector(`[data-section=${key}] .section-body`).childElementCount", arg=key
    )


def shown_positions(trace: Any) -> np.ndarray:
    return np.flatnonzero(trace.select(roles=("prompt", "generated"))[1] & ~trace.tokens.special)


def test_the_address_brings_the_whole_view_back(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url)
    page.focus(".map-frame")
    for key in ("2", "p", "w", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    open_section(page, "table")
    wait_for_query(page, "o=table")
    sentence = text_of(page, ".card-sentence")
    assert "mean of 3 tokens" in sentence
    found = query_of(page)
    assert found["m"] == ["medical"]
    assert found["q"] == ["q_proj"]
    assert found["u"] == ["word"]
    assert found["r"] == ["smollm2-135m/rsl"]
    assert "p" not in found

    page.goto(page.url)
    page.wait_for_function("start => document.querySelector('.card-sentence')?.textContent === start", arg=sentence)
    assert "gate of medical" in text_of(page, ".legend")
    assert page.locator("[data-section=table]").get_attribute("open") is not None


def test_a_span_whose_beginning_is_hidden_becomes_its_end(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url)
    page.click(".lane-block:first-child .token:last-child")
    page.click(".lane-block:last-child .token:nth-child(4)", modifiers=["Shift"])
    page.wait_for_function("/mean of \\d+ tokens/.test(document.querySelector('.card-sentence').textContent)")
    before = int(page.get_attribute(".map-frame", "aria-colcount"))
    page.click(".options summary")
    page.click(".choices[aria-label=Part] button:has-text('answer')")
    page.wait_for_function("before => Number(document.querySelector('.map-frame').ariaColCount) < before", arg=before)
    page.wait_for_function("!/mean of \\d+ tokens/.test(document.querySelector('.card-sentence').textContent)")
    assert page.locator(".token.active").count() == 1
    assert page.locator(".token.in-span").count() == 0


def test_the_cell_of_a_link_is_shown_in_its_own_text_only(watched: Watched, synthetic_page_url: str) -> None:
    run = "v=1&room=explore&r=smollm2-135m/rsl&k=3&q=v_proj&cl=3&ct=5&lk=1"
    page = open_page(watched, synthetic_page_url, run)
    page.wait_for_function("document.querySelector('#run-status .text').textContent.includes('does not hold')")
    start = "start => document.querySelector('.card-sentence')?.textContent.startsWith(start)"
    assert not page.evaluate(start, "layer 3, v projection")
    assert text_of(page, ".lock") != "Locked"
    page = open_page(watched, synthetic_page_url, f"{run}&p=How many mg is that?")
    page.wait_for_function("document.querySelector('#run-status .text').textContent.includes('press Generate')")
    assert text_of(page, ".lock") != "Locked"
    page.click("#generate")
    page.wait_for_function(start, arg="layer 3, v projection, token ‘mg’")
    assert text_of(page, ".lock") == "Locked"


@pytest.mark.parametrize(("query", "chosen"), [("", 1), (f"v=1&room=explore&x={EXAMPLES[1].key}", 0)])
def test_the_address_is_that_of_what_was_chosen_last(
    watched: Watched, synthetic_page_url: str, query: str, chosen: int
) -> None:
    """Without any change of the view: a link that is kept, or a reload, must bring this text back."""
    page = open_page(watched, synthetic_page_url, query)
    page.wait_for_timeout(500)
    assert urlsplit(page.url).query == query  # nobody has chosen anything yet
    page.locator("#examples button", has_text=EXAMPLES[chosen].label).first.click()
    wait_for_query(page, f"x={EXAMPLES[chosen].key}")


def test_the_note_of_a_link_outlives_the_choice_of_its_router(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "v=1&room=explore&r=smollm2-135m/load-balance&k=3")
    page.wait_for_function("document.querySelector('#mixer input').value === 'Load balance'")
    page.wait_for_function("document.querySelector('#mixer').textContent.includes('load')")
    page.wait_for_timeout(500)  # whatever follows from the choice
    assert "does not hold" in text_of(page, "#run-status")
    # Leaving a control is no choice either.
    page.focus("#backbone input")
    page.keyboard.press("Tab")
    page.wait_for_timeout(500)
    assert page.input_value("#mixer input") == "Load balance"


def test_the_exported_token_is_the_one_of_the_card(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url)
    number = int(re.search(r"token (\d+) of", text_of(page, ".card-where"))[1])
    page.click("#explore-share button")
    page.click(".copy-link")
    page.wait_for_function("document.querySelector('.share-note').textContent !== ''")
    assert parse_qs(urlsplit(page.input_value(".share-link")).query)["ct"] == [str(number - 1)]


def test_a_broken_link_falls_back_and_says_so(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "v=1&room=explore&r=nobody/none&u=letters&m=<b>&ct=99999&cl=77")
    page.wait_for_function("document.querySelector('#run-status .text')?.textContent.includes('no known router')")
    assert "one of subword, word, sentence" in text_of(page, "#run-status .text")
    assert page.locator(".token").count() > 40


def test_the_prompt_is_in_a_link_only_when_ticked(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url)
    page.click("#explore-share button")
    page.click(".copy-link")
    page.wait_for_function("document.querySelector('.share-note').textContent !== ''")
    assert "amoxicillin" not in page.input_value(".share-link")
    page.check(".with-prompt input")
    link = page.input_value(".share-link")
    assert parse_qs(urlsplit(link).query)["p"] == [PROMPTS[0]]

    page.goto(link.replace("x=math-medical", "x="))
    page.wait_for_function("document.querySelector('#run-status .text')?.textContent.includes('in the box')")
    assert page.input_value("#prompt textarea") == PROMPTS[0]


def test_a_link_for_teaching_hides_controls(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "v=1&hide=controls,strip")
    page.wait_for_function("!document.querySelector('#controls').offsetParent")
    assert not page.locator(".strip").is_visible()
    assert page.locator(".map").is_visible()
    page.keyboard.press("2")
    wait_for_query(page, "m=medical")
    assert query_of(page)["hide"] == ["controls,strip"]


def test_words_are_those_of_the_library(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "u=word&o=table")
    words = aggregate(make_trace(PROMPTS[0], seed=0), "word", "mean")
    positions = shown_positions(words)
    assert page.locator(".token").count() == len(positions)
    page.wait_for_selector(".numbers tbody tr")
    read = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    rows = page.eval_on_selector_all(".numbers tbody tr", read)
    for row, position in zip(rows, positions, strict=False):
        gates = words.gates[:, position].mean(axis=0)
        assert [float(text) for text in row[5:9]] == pytest.approx(gates.tolist(), abs=6e-4)
        assert row[4] == "ABCD"[int(gates.argmax())]


def test_the_table_sorts_and_selects_by_keys(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "o=table")
    page.wait_for_selector(".numbers tbody tr")
    page.focus(".sort[data-key=e1]")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('th[aria-sort=descending] .sort')?.dataset.key === 'e1'")
    shares = [float(text) for text in page.eval_on_selector_all(
        ".numbers tbody tr", "rows => rows.map(row => row.cells[6].textContent)")]  # fmt: skip
    assert shares == sorted(shares, reverse=True)
    page.focus(".numbers tbody tr:first-child")
    page.keyboard.press("ArrowDown")
    second = text_of(page, ".numbers tbody tr:nth-child(2) td:nth-child(2)")
    page.wait_for_function("text => document.querySelector('.card-token').textContent === text", arg=second)
    assert page.locator(".numbers tbody tr[tabindex='0']").count() == 1


def test_the_focus_stays_on_its_row_when_the_table_is_drawn_anew(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "o=table")
    page.wait_for_selector(".numbers tbody tr")
    page.focus(".numbers tbody tr:first-child")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    row = page.evaluate("document.activeElement.dataset.token")
    page.evaluate("() => { window.row = document.activeElement; }")
    page.keyboard.press("p")
    page.wait_for_function("!window.row.isConnected")
    page.wait_for_function("document.activeElement.matches('.numbers tbody tr')")
    assert page.evaluate("document.activeElement.dataset.token") == row
    assert page.get_attribute(".numbers tr.active", "data-token") == row


def test_layers_and_parts_change_every_mean(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "l=5-9&ph=generation")
    trace = make_trace(PROMPTS[0], seed=0)
    sites = trace.select(layers=range(5, 10))[0]
    tokens = trace.select(roles=("generated",))[1] & ~trace.tokens.special
    shown = page.eval_on_selector_all(".load-row .number", "nodes => nodes.map(node => Number(node.textContent))")
    assert shown == pytest.approx(load(trace.gates[sites][:, tokens]).tolist(), abs=0.006)
    assert page.get_attribute(".map-frame", "aria-rowcount") == "5"
    assert "layers 5 to 9" in text_of(page, ".switch-note")


def test_topics_of_an_example_are_compared_with_the_router(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url)
    assert not page.locator("[data-section=spans]").is_visible()
    page.fill("#prompt textarea", EXAMPLES[0].prompt)
    page.click("#generate")
    page.wait_for_function("document.querySelector('#run-status .text')?.textContent.startsWith('Done')")
    open_section(page, "spans")
    trace = make_trace(EXAMPLES[0].prompt)
    gold = np.array(gold_experts(trace))
    read = "cells => cells.map(cell => Number(cell.textContent))"
    shown = page.eval_on_selector_all("[data-section=spans] td.number", read)
    expected = [trace.gates[:, gold == EXPERTS.index(name)].mean(axis=(0, 1)) for name in ("math", "medical")]
    assert shown == pytest.approx(np.concatenate(expected).tolist(), abs=0.006)
    routing = span_routing(trace, spans_in_trace(trace, EXAMPLES[0].prompt, gold_spans(EXAMPLES[0]))).of_mean()
    facts = page.eval_on_selector_all("[data-section=spans] dd", "nodes => nodes.map(node => node.textContent)")
    assert float(facts[0]) == pytest.approx(float(routing.purity[0]), abs=0.006)
    assert float(facts[1]) == pytest.approx(float(routing.own_share[0]), abs=0.006)
    (lag,) = routing.lags
    assert facts[2] == ("never" if lag.mean_censored else str(lag.mean_tokens))
    assert page.locator(".token.gold-start").count() == page.locator(".token.gold-end").count() == 2


def test_gate_and_effect_stand_side_by_side(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "o=effect")
    page.wait_for_selector(".effect-grid")
    trace = make_trace(PROMPTS[0], seed=0)
    positions = shown_positions(trace)
    shares = trace.contribution_shares[:, positions].mean(axis=(0, 1))
    read = "nodes => nodes.map(node => node.textContent)"
    shown = page.eval_on_selector_all(".effect-grid > .number:not(.flag-count)", read)[1::2]
    assert [float(text.rstrip(" %")) for text in shown] == pytest.approx((100 * shares).tolist(), abs=0.006)
    page.evaluate("() => { window.flag = document.querySelector('.flags .choice'); }")
    key = page.get_attribute(".flags .choice", "data-key")
    page.click(".flags .choice")
    page.wait_for_function("!window.flag.isConnected")
    assert page.evaluate("document.activeElement.dataset.key") == key
    page.set_viewport_size({"width": 390, "height": 900})
    labels = page.locator(".effect-grid > .bar-label:visible").all_text_contents()
    assert labels == ["gate, mean", "effect, mean"] * len(EXPERTS)
    page.keyboard.press("g")
    page.wait_for_function("document.querySelector('.legend').textContent.includes('added most')")


def test_a_trace_file_opens_without_a_model(watched: Watched, synthetic_page_url: str, tmp_path: Path) -> None:
    page = open_page(watched, synthetic_page_url)
    names = ("math", "an-adapter-that-is-named-like-its-repository")
    file = make_trace("Is 2 a prime?", layers=3, experts=names, k=1).save(tmp_path / "mine.npz")
    page.set_input_files("#view-actions input[type=file]", str(file))
    page.wait_for_function("document.querySelector('.strip-item .strip-value').textContent === 'Opened file'")
    assert "prime" in text_of(page, ".lane-text")
    assert page.get_attribute(".map-frame", "aria-rowcount") == "3"
    # A long name is cut and takes no other's room.
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for name in page.locator(".load-name:visible, .card th:first-child:visible").all():
            assert name.evaluate("node => node.scrollWidth <= node.clientWidth")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"this is no trace")
    drop = """(text) => {
      const file = new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], 'broken.npz');
      const transfer = new DataTransfer();
      transfer.items.add(file);
      document.querySelector('.map').dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true }));
    }"""
    page.evaluate(drop, base64.b64encode(broken.read_bytes()).decode())
    page.wait_for_function("document.querySelector('#run-status .text')?.textContent.includes('broken.npz')")
    assert "/" not in text_of(page, "#run-status .text")
    assert "prime" in text_of(page, ".lane-text")


def test_files_and_code_are_of_the_view_on_screen(watched: Watched, synthetic_page_url: str) -> None:
    page = open_page(watched, synthetic_page_url, "m=medical&l=2-4&u=word")
    page.click("#explore-share button")
    with page.expect_download() as found:
        page.click("#explore-export-csv")
    table = pd.read_csv(found.value.path())
    assert sorted(table["layer"].unique()) == [2, 3, 4]
    words = aggregate(make_trace(PROMPTS[0], seed=0), "word", "mean")
    assert table["token"].nunique() == len(shown_positions(words))
    page.wait_for_selector("#explore-export-ready")
    page.click("#explore-share summary")
    assert "opens without a network" in page.inner_text("#explore-share details")
    page.click("#explore-export-python")
    page.wait_for_selector("#explore-python textarea")
    script = page.input_value("#explore-python textarea")
    compile(script, "view.py", "exec")
    assert "viz.token_map(trace, measure='medical', layers=(2, 4), unit='word', how='mean')" in script
