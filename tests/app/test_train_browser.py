"""The room Train in Chromium, over a process that stands in for the training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from explorer.training_job import TrainingJob
from explorer.trainings import Trainings
from tests.app.conftest import Watched
from tests.app.synthetic import FakeSource
from tests.app.synthetic_app import make_recordings
from tests.app.tiny_training import stand_in_command

pytestmark = pytest.mark.browser

MILLISECONDS = 150_000


@pytest.fixture
def training_page(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, Trainings, str]]:
    """The page with its trainings, and its address."""
    from explorer.layout import build, launch_options

    trainings = Trainings(stand_in_command(tmp_path))
    monkeypatch.setattr("explorer.rooms.train.handlers.Trainings", lambda **_: trainings)
    (tmp_path / "traces").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        demo = build(FakeSource(), make_recordings(tmp_path / "traces"))
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    watched.page.set_default_timeout(MILLISECONDS)
    watched.page.goto(f"{url}?v=1&room=train")
    watched.page.wait_for_selector("#train-start", state="visible")
    yield watched.page, trainings, url
    watched.page.goto("about:blank")
    demo.close()
    trainings.close()


def go(trainings: Trainings) -> None:
    """Allow one step."""
    (trainings.folders()[-1] / "go").touch()


def wait_for_step(page: Any, step: int) -> None:
    page.wait_for_function(
        "step => document.querySelector('.progress-track').getAttribute('aria-valuenow') === step", arg=str(step)
    )


def test_a_training_moves_survives_a_reload_and_opens_in_explore(
    training_page: tuple[Any, Trainings, str],
) -> None:
    page, trainings, url = training_page
    page.click("#train-start")
    page.wait_for_function("!document.querySelector('#train-stop').disabled")
    go(trainings)
    wait_for_step(page, 1)
    page.wait_for_selector(".replay-view[data-empty=false] .frames-map canvas", state="visible")
    page.evaluate(
        """() => {
          window.kept = ['.training-view', '.training-view .chart', '.training-view .plane svg', '.frames-map canvas']
            .map((selector) => [selector, document.querySelector(selector)]);
        }"""
    )
    before = page.evaluate("document.querySelector('#train-frames .frames-map canvas').toDataURL()")
    for step in (2, 3):
        go(trainings)
        wait_for_step(page, step)
    page.wait_for_function("document.querySelector('#train-frames .frames-step').textContent.includes('step 3')")
    assert page.evaluate("document.querySelector('#train-frames .frames-map canvas').toDataURL()") != before
    assert page.evaluate("window.kept.every(([selector, node]) => node.isConnected)")
    assert page.locator(".training-view .plane svg text:has-text('prompt, step 3')").count() == 1

    page.goto(f"{url}?v=1&room=train")
    page.wait_for_selector(".training-view[data-empty=false]")
    go(trainings)
    page.wait_for_function("document.querySelector('#train-status .text').textContent.startsWith('Finished')")
    page.wait_for_function("!document.querySelector('#train-explore').disabled")
    with page.expect_download() as download:
        page.click("#train-download")
    assert download.value.suggested_filename == "router.zip"
    page.click("#train-share > button")
    with page.expect_download() as download:
        page.click("#train-export-html")
    assert download.value.suggested_filename == "training.html"
    page.click("#train-explore")
    page.wait_for_selector("#mixer input", state="visible")
    page.wait_for_function("document.querySelector('#mixer input').value === 'RSL (this paper), trained here'")


def test_settings_are_in_the_address_and_faults_are_sentences(training_page: tuple[Any, Trainings, str]) -> None:
    page, _, _ = training_page
    page.wait_for_function("document.querySelector('#train-estimate .text').textContent.includes('GB of memory')")
    # Leaving the control of the loss as it was leaves α as it is.
    page.fill("#train-balance input", "2.5")
    page.focus("#train-loss input")
    page.wait_for_timeout(300)
    page.keyboard.press("Tab")
    page.wait_for_timeout(500)
    assert page.input_value("#train-balance input") == "2.5"
    page.click("#train-loss input")
    page.click("[role=option]:has-text('Supervised')")
    page.wait_for_selector("#train-sign", state="hidden")
    page.wait_for_function("new URL(location).searchParams.get('loss') === 'supervised'")
    page.click("#train-more button")
    page.wait_for_selector("#train-probe textarea")
    page.wait_for_timeout(500)  # controls of a fold that was just opened take their first values once more
    page.fill("#train-probe textarea", " ")
    page.wait_for_timeout(500)
    assert page.input_value("#train-probe textarea") == " "
    page.click("#train-start")
    page.wait_for_function("document.querySelector('#train-status .text').textContent.includes('prompt is empty')")


def test_rows_come_from_a_file_of_ones_own(training_page: tuple[Any, Trainings, str], tmp_path: Path) -> None:
    page, trainings, _ = training_page
    row = {"task": "mine", "prompt": "How many?", "target": "ten"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({**row, "id": str(n), "domain": "law"}) for n in range(9)))
    page.click("#train-data label:has-text('a file of your own')")
    page.wait_for_selector("#train-file", state="visible")
    page.wait_for_function("!document.querySelector('#train-domains input')")
    page.set_input_files("#train-file input[type=file]", str(rows))
    page.wait_for_selector("#train-domains label:has-text('law')")
    page.wait_for_function("document.querySelector('#train-status .text').textContent === '9 rows: 9 of law.'")
    page.click("#train-start")
    page.wait_for_function("!document.querySelector('#train-stop').disabled")
    job = TrainingJob.load(trainings.folders()[-1])
    assert (job.domains, job.examples, Path(job.file).name) == (("law",), 9, "rows.jsonl")
    page.click("#train-data label:has-text('generated')")
    page.wait_for_selector("#train-domains label:has-text('math')")
    page.wait_for_selector("#train-file", state="hidden")
