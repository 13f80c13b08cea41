"""Lessons: predict, then see what was measured, with its source; nothing is typed in, nothing needs a model."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import pytest

from explorer.link import parse
from explorer.recordings import Recordings
from explorer.rooms import ROOMS
from explorer.rooms.lessons import answers
from explorer.rooms.lessons.handlers import NOT_MEASURED, LessonHandlers, page_html
from explorer.rooms.lessons.texts import LESSONS, Lesson
from explorer.rooms.tradeoff.points import RESULTS
from explorer.view_link import FIELDS
from tests.app.conftest import Watched
from tests.app.synthetic_app import make_recordings


@pytest.fixture
def handlers() -> LessonHandlers:
    return LessonHandlers(Recordings())


def test_there_are_five_with_different_addresses() -> None:
    assert len({lesson.key for lesson in LESSONS}) == 5


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_texts_hold_no_measured_number(lesson: Lesson) -> None:
    text = " ".join((*lesson.paragraphs, lesson.question, lesson.afterwards))
    assert re.findall(r"\d+[.,]\d+|\d+ ?%", text) == []
    assert lesson.question.endswith("?")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_the_answer_comes_after_the_prediction_with_its_source(handlers: LessonHandlers, lesson: Lesson) -> None:
    page, prediction, reveal, answer = handlers.open(lesson.key)
    assert lesson.title.replace("–", "–") in page
    measured = lesson.measure(handlers.recordings, RESULTS)
    if measured is None:
        assert NOT_MEASURED in answer
        assert (prediction.visible, reveal.visible) == (False, False)
        return
    assert answer == ""
    assert reveal.interactive is False
    assert [value for _, value in prediction.choices] == list(measured.choices)
    assert measured.right in measured.choices
    assert "Predict first" in handlers.reveal(lesson.key, None)
    assert handlers.predict(measured.right).interactive is True
    assert "As you predicted" in handlers.reveal(lesson.key, measured.right)
    wrong = next(choice for choice in measured.choices if choice != measured.right)
    shown = handlers.reveal(lesson.key, wrong)
    assert "Not as you predicted" in shown
    for source in measured.source.split(", "):
        assert (RESULTS.parents[1] / source).is_file()
        assert source in shown


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_what_is_not_measured_is_said(tmp_path: Path, lesson: Lesson) -> None:
    handlers = LessonHandlers(Recordings(tmp_path), tmp_path)
    assert NOT_MEASURED in handlers.open(lesson.key)[3]
    assert NOT_MEASURED in handlers.reveal(lesson.key, "RSL")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_links_set_a_view_that_exists(lesson: Lesson) -> None:
    for view in lesson.views:
        query = dict(parse_qsl(view.query))
        assert query["room"] in {room.key for room in ROOMS}
        if query["room"] == "explore":
            values, notes = parse(query, FIELDS)
            assert notes == []
            assert values != {field.name: field.default for field in FIELDS}
    assert page_html(lesson).count("<a href") == len(lesson.views)


def test_answers_follow_the_files(tmp_path: Path) -> None:
    """Invented files with a known answer."""
    (tmp_path / "convergence-summary.csv").write_text(
        "setting,quantity,value,low,high,seeds\nflatten,token_entropy,0.2,,,3\nsharpen,token_entropy,0.9,,,3\n"
    )
    found = answers.sign_of_lambda(Recordings(tmp_path), tmp_path)
    assert found is not None
    assert found.right == found.choices[1]
    (tmp_path / "expert-matrix.csv").write_text(
        "expert,domain,loss\nx,one,1.0\ny,one,1.5\nx,two,3.0\ny,two,3.1\nbackbone,two,9\n"
    )
    found = answers.does_not_matter(Recordings(tmp_path), tmp_path)
    assert found is not None
    assert found.right == "two"
    assert found.rows[1] == ("two", "x", "3.00", "3.10", "0.10")


def test_the_answer_of_a_recording_is_its_largest_load(tmp_path: Path) -> None:
    recordings = make_recordings(tmp_path)
    trace = recordings.trace("math-medical")
    assert trace is not None
    assert answers.router_sees(recordings, tmp_path) is None  # no recording of the Math example there


def test_an_address_opens_its_lesson(handlers: LessonHandlers) -> None:
    request: Any = SimpleNamespace(query_params={"lesson": "sign"})
    assert handlers.start(request) == "sign"
    assert handlers.start(SimpleNamespace(query_params={"lesson": "<b>"})) == LESSONS[0].key  # type: ignore[arg-type]


@pytest.mark.browser
def test_a_prediction_comes_before_the_answer(watched: Watched, synthetic_page_url: str) -> None:
    page: Any = watched.page
    page.set_default_timeout(60_000)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{synthetic_page_url}?v=1&room=lessons&lesson=sign")
    page.wait_for_selector("#lesson-text h2:has-text('The sign of')")
    page.wait_for_selector("#lesson-prediction input[type=radio]")
    assert page.locator("#lesson-reveal").is_disabled()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.focus("#lesson-prediction input[type=radio]")
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('#lesson-reveal').disabled")
    page.focus("#lesson-reveal")
    page.keyboard.press("Enter")
    page.wait_for_selector(".lesson-verdict")
    assert "docs/results/convergence-summary.csv" in page.text_content(".lesson-source")
    page.click("#lesson label:has-text('Why balanced')")
    page.wait_for_selector("#lesson-text h2:has-text('Why balanced')")
    page.wait_for_function("!document.querySelector('.lesson-verdict')")
