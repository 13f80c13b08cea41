"""The real page with the router that ships: a Math–Medical prompt, real tokens, a cell, the card."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from explorer.settings import DEFAULT_MIXER
from tests.app.conftest import Watched

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_START = 60
MILLISECONDS_TO_WRITE = 180_000
PROMPT = (
    "A child weighs 20 kg and needs 12 mg of ibuprofen per kg. How many mg is that, and what are the side effects?"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def app_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the app writes into the terminal."""
    return tmp_path_factory.mktemp("app") / "log.txt"


@pytest.fixture(scope="module")
def real_url(embedded_backbone: tuple, app_log: Path) -> Iterator[str]:
    """``python explorer/app.py`` on a free port, with the backbone in the cache already."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    with app_log.open("w") as sink:
        app = subprocess.Popen(
            [sys.executable, "explorer/app.py"], cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not answers(url):
            assert app.poll() is None, f"the app ended: {app_log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"the app did not start: {app_log.read_text()[-2000:]}"
            time.sleep(0.2)
        yield url
    finally:
        app.terminate()
        app.wait(20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


STOP_AT_THE_FIRST_TOKEN = """() => {
    const watch = new MutationObserver(() => {
        if (document.querySelector('[data-state=generating] .lane-block:last-child .token')) {
            watch.disconnect();
            document.querySelector('#stop').click();
        }
    });
    watch.observe(document.body, {childList: true, subtree: true, attributes: true});
}"""


def test_a_real_router_chooses_while_the_model_writes(watched: Watched, real_url: str, app_log: Path) -> None:
    page: Any = watched.page
    page.goto(real_url)
    page.wait_for_selector(".token")  # how soon is no matter of a test on a busy machine
    assert page.text_content(".strip-item:first-child .strip-value") == "Recorded"

    # Stop must come before the end, on a machine where the page lags behind the model too: the longest answer, and
    # the button as soon as the first token is on the page, by the page itself: who looks from outside waits for it.
    page.fill("#new-tokens input[type=number]", "256")
    page.fill("#prompt textarea", PROMPT)
    page.eval_on_selector(".routing-view", "view => { window.firstView = view; }")
    page.evaluate(STOP_AT_THE_FIRST_TOKEN)
    page.click("#generate")
    page.wait_for_function(
        "document.querySelector('#run-status .text').textContent.startsWith('Stopped after')",
        timeout=MILLISECONDS_TO_WRITE,
    )
    assert page.text_content(".strip-item:first-child .strip-value") == "Stopped"
    assert page.evaluate("window.firstView.isConnected")
    assert DEFAULT_MIXER in page.text_content(".strip")

    page.click(".choices[aria-label=Projection] button:first-child")
    page.click(".map-frame", position={"x": 80, "y": 80})
    page.wait_for_function("document.querySelector('.lock').textContent === 'Locked'")
    sentence = page.text_content(".card-sentence")
    assert re.match(r"layer 5, q projection, token ‘.+’: \w+ [01]\.\d\d, \w+ [01]\.\d\d", sentence)
    gates = page.eval_on_selector_all(".card .gate .number", "cells => cells.map(cell => Number(cell.textContent))")
    assert sum(gates) == pytest.approx(1, abs=0.003)

    page.focus(".map-frame")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('.card-sentence').textContent.startsWith('layer 6, q projection')")
    assert "Warning" not in app_log.read_text()
