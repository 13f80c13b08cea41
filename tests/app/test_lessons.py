"""Lessons: predict, then see what was measured, with its source; nothing is typed in, nothing needs a model."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import pytest

from explorer.examples import find_example
from explorer.link import parse
from explorer.recordings import Recordings
from explorer.rooms import ROOMS
from explorer.rooms.lessons import answers
from explorer.rooms.lessons.answers import Number
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
    text = " ".join((*lesson.paragraphs, lesson.question, lesson.number_question, lesson.afterwards))
    assert re.findall(r"\d+[.,]\d+|\d+ ?%", text) == []
    assert lesson.question.endswith("?")
    assert not lesson.number_question or lesson.number_question.endswith("?")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_the_answer_comes_after_the_prediction_with_its_source(handlers: LessonHandlers, lesson: Lesson) -> None:
    page, prediction, number, reveal, answer = handlers.open(lesson.key)
    assert lesson.title in page
    measured = lesson.measure(handlers.recordings, RESULTS)
    assert measured is not None, "every lesson that ships has an answer that ships"
    assert answer == ""
    assert reveal.interactive is False
    assert [value for _, value in prediction.choices] == list(measured.choices)
    assert measured.right in measured.choices
    assert number.visible is (measured.number is not None) is bool(lesson.number_question)
    guess = 0.0 if measured.number else None
    assert "Predict first" in handlers.reveal(lesson.key, None, guess)
    assert handlers.predict(lesson.key, None, guess)[0].interactive is False
    assert handlers.predict(lesson.key, measured.right, guess)[0].interactive is True
    assert "As you predicted" in handlers.reveal(lesson.key, measured.right, guess)
    wrong = next(choice for choice in measured.choices if choice != measured.right)
    shown = handlers.reveal(lesson.key, wrong, guess)
    assert "Not as you predicted" in shown
    for source in measured.source.split(", "):
        assert (RESULTS.parents[1] / source).is_file()
        assert source in shown


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_what_is_not_measured_is_said(tmp_path: Path, lesson: Lesson) -> None:
    handlers = LessonHandlers(Recordings(tmp_path), tmp_path)
    *_, prediction, number, reveal, answer = handlers.open(lesson.key)
    assert NOT_MEASURED in answer
    assert (prediction.visible, number.visible, reveal.visible) == (False, False, False)
    assert NOT_MEASURED in handlers.reveal(lesson.key, "RSL", 1)


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


def test_a_number_is_read_from_the_recording(handlers: LessonHandlers) -> None:
    """By other means than the lesson: the words of the medical part, looked for in the tokens."""
    trace = handlers.recordings.trace("math-medical")
    assert trace is not None
    topic = find_example("math-medical").topics[-1]
    start = trace.tokens.text.index(topic.text)
    inside = [first < start + len(topic.text) and last > start for first, last in trace.tokens.spans]
    expert = trace.experts.index("medical")
    expected = 100 * float(trace.gates[:, inside, expert].mean())
    found = answers.math_medical(handlers.recordings, RESULTS)
    assert found is not None
    assert found.number is not None
    assert found.number.value == pytest.approx(expected, abs=1e-3)
    shown = handlers.reveal("math-medical", found.right, round(found.number.value) + 7)
    assert f"measured is <b>{found.number.value:.0f}%</b>; your guess is 7 percentage points too high." in shown


@pytest.mark.parametrize(
    ("number", "guess", "verdict"),
    [
        (Number(28.6, 100, "%"), 29, "as measured"),
        (Number(28.6, 100, "%"), 30, "1 percentage point too high"),
        (Number(28.6, 100, "%"), 9, "20 percentage points too low"),
        (Number(0.905, 1), 0.8, "0.11 too low"),
        (Number(0.905, 1), 0.91, "as measured"),
    ],
)
def test_the_distance_is_that_of_the_numbers_on_screen(number: Number, guess: float, verdict: str) -> None:
    assert number.verdict(guess) == verdict


@pytest.mark.parametrize("guess", [-1, 101, 1e9])
def test_a_number_that_cannot_be_is_refused(handlers: LessonHandlers, guess: float) -> None:
    button, note = handlers.predict("sees", "math", guess)
    assert button.interactive is False
    assert f"{guess:g} cannot be it: give a number from 0 to 100%." in note
    assert "cannot be it" in handlers.reveal("sees", "math", guess)


def test_a_number_is_asked_for_beside_the_choice(handlers: LessonHandlers) -> None:
    button, note = handlers.predict("sees", "math", None)
    assert (button.interactive, note) == (False, "")
    assert "Predict first" in handlers.reveal("sees", "math", None)


def test_routers_of_one_number_of_rows_are_compared(tmp_path: Path) -> None:
    head = (RESULTS / "plane.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    rows = [
        {"setting": "RSL sharpen 1 / 0.3", "examples": 500, "undecided": 0.1, "balanced": 0.2},
        {"setting": "load balance 4", "examples": 2000, "undecided": 0.8, "balanced": 0.9},
        {"setting": "RSL sharpen 1 / 0.3", "examples": 2000, "undecided": 0.4, "balanced": 0.7},
    ]
    common = {"seeds": 1, "rows": 9, "tokens": 9, "covers": "rows"}
    filled = [",".join(str({**common, **row}.get(name, "")) for name in head) for row in rows]
    (tmp_path / "plane.csv").write_text("\n".join([",".join(head), *filled]), encoding="utf-8")
    found = answers.balanced_is_not_good(Recordings(tmp_path), tmp_path)
    assert found is not None
    assert found.right == "RSL"
    assert found.rows == (("RSL", "0.70", "0.30"), ("Plain balance loss", "0.90", "0.10"))
    assert found.number == Number(0.7, 1.0)


def test_the_answer_of_a_recording_is_its_largest_load(tmp_path: Path) -> None:
    recordings = make_recordings(tmp_path)
    trace = recordings.trace("math-medical")
    assert trace is not None
    assert answers.router_sees(recordings, tmp_path) is None  # no recording of the Math example there


def test_an_address_opens_its_lesson(handlers: LessonHandlers) -> None:
    request: Any = SimpleNamespace(query_params={"lesson": "sign"})
    key, query, page, *_ = handlers.start(request)
    assert (key, query) == ("sign", "v=1&room=lessons&lesson=sign")
    assert "The sign of" in page
    request.query_params = {"lesson": "<b>"}
    assert handlers.start(request)[0] == LESSONS[0].key


def open_on_a_phone(watched: Watched, url: str) -> Any:
    page: Any = watched.page
    page.set_default_timeout(60_000)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(url)
    return page


@pytest.mark.browser
def test_a_prediction_comes_before_the_answer(watched: Watched, synthetic_page_url: str) -> None:
    page = open_on_a_phone(watched, f"{synthetic_page_url}?v=1&room=lessons&lesson=sign")
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


@pytest.mark.browser
def test_a_number_is_guessed_with_the_keyboard(watched: Watched, synthetic_page_url: str) -> None:
    page = open_on_a_phone(watched, f"{synthetic_page_url}?v=1&room=lessons&lesson=balanced")
    page.wait_for_selector("#lesson-guess input")
    page.focus("#lesson-prediction input[type=radio]")
    page.keyboard.press("Space")
    page.fill("#lesson-guess input", "7")
    page.wait_for_selector("#lesson-answer :text('7 cannot be it')")
    assert page.locator("#lesson-reveal").is_disabled()
    page.fill("#lesson-guess input", "0.5")
    page.wait_for_function("!document.querySelector('#lesson-reveal').disabled")
    page.focus("#lesson-reveal")
    page.keyboard.press("Enter")
    page.wait_for_selector(".lesson-number-verdict:has-text('Your number: 0.50')")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.fill("#lesson-guess input", "0.6")
    page.wait_for_function("!document.querySelector('.lesson-verdict')")
