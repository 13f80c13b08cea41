"""Fixtures of the app tests: a browser, and the page over invented traces."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.synthetic import FakeSource
from tests.availability import unavailable

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def _chromium_paths() -> Iterator[str]:
    """Where a Chromium may be, the most explicit first."""
    if given := os.environ.get("CHROMIUM"):
        yield given
    yield "/usr/bin/chromium"
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            yield found


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose connection breaks is forgotten at once; one test waits on purpose."""
    monkeypatch.setattr("explorer.sessions.PATIENCE", 0.0)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; skips when there is none, fails instead when CI=true."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        unavailable("The browser tests were not run: playwright is not installed (pip install playwright).")
    with sync_playwright() as driver:
        path = next((path for path in _chromium_paths() if Path(path).is_file()), driver.chromium.executable_path)
        if not Path(path).is_file():
            unavailable("The browser tests were not run: no Chromium found; install one or set CHROMIUM to its path.")
        try:
            chromium = driver.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        except Error as error:
            unavailable(f"The browser tests were not run: {path} does not start ({str(error).splitlines()[0]}).")
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def synthetic_page_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page over invented traces; Gradio's warnings about misuse are errors."""
    from explorer.layout import build, launch_options
    from tests.app.synthetic_app import make_recordings

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        demo = build(FakeSource(seconds=0.05), make_recordings(tmp_path_factory.mktemp("traces")))
        url = launch(demo, launch_options())
    yield url
    demo.close()


def launch(demo: Any, options: dict[str, Any], attempts: int = 5) -> str:
    """Address of a page that answers; Gradio gives up soon where the machine is busy, so it gets another try."""
    for attempt in range(attempts):
        try:
            return str(demo.launch(prevent_thread_lock=True, quiet=True, **options)[1])
        except ValueError:
            demo.close()
            if attempt == attempts - 1:
                raise
    raise AssertionError("no attempt was made")


class Watched:
    """A browser page that remembers everything it must not do."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.faults: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.faults.append(f"page error: {error}"))
        page.on("request", self._on_request)

    def _on_console(self, message: Any) -> None:
        if message.type == "error":
            self.faults.append(f"console error: {message.text}")

    def _on_request(self, request: Any) -> None:
        local = ("http://127.0.0.1", "http://localhost", "data:", "blob:")
        if not request.url.startswith(local):
            self.faults.append(f"request to another host: {request.url}")


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    """A fresh page of 1440 × 900; the test fails if it logged an error or asked another host."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(90_000)  # the machine may be busy
    found = Watched(context.new_page())
    yield found
    context.close()
    assert found.faults == []
