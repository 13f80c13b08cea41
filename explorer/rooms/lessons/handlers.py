"""Events of Lessons: open a page, predict, reveal what was measured."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.link import LinkField, to_query
from explorer.recordings import Recordings
from explorer.rooms.lessons.answers import Answer, Number
from explorer.rooms.lessons.texts import LESSONS, Lesson, find_lesson
from explorer.rooms.tradeoff.points import RESULTS

ROOM = "lessons"
LINK_FIELDS = (LinkField("lesson", "lesson", LESSONS[0].key),)

NOT_MEASURED = "This has not been measured yet in this copy of the project, so there is nothing to reveal."

PREDICT_FIRST = "Predict first."


class LessonHandlers:
    """The events of the room; they need no model.

    Args:
        recordings: recorded traces that answers come from.
        results: folder of result files that answers come from.
    """

    def __init__(self, recordings: Recordings, results: Path = RESULTS) -> None:
        self.recordings = recordings
        self.results = results

    def open(self, key: str) -> tuple[str, Any, Any, Any, str]:
        """Page, choices of the prediction, the number to guess, the reveal button, and an empty answer."""
        lesson = find_lesson(key)
        answer = self._answer(lesson)
        choices = list(answer.choices) if answer else []
        number = answer.number if answer else None
        return (
            page_html(lesson),
            gr.Radio(choices=choices, value=None, label=lesson.question, visible=answer is not None),
            gr.Number(
                value=None,
                label=lesson.number_question,
                info=_range(number),
                visible=number is not None,
                step=_step(number),
            ),
            gr.Button(interactive=False, visible=answer is not None),
            "" if answer else f"<p class='lesson-note'>{NOT_MEASURED}</p>",
        )

    def predict(self, key: str, choice: str | None, guess: float | None) -> tuple[Any, str]:
        """A whole prediction unlocks the answer, and a changed one hides it; a number that cannot be is told."""
        missing = _missing(self._answer(find_lesson(key)), choice, guess)
        return gr.Button(interactive=not missing), "" if missing in ("", PREDICT_FIRST) else _note(missing)

    def reveal(self, key: str, choice: str | None, guess: float | None) -> str:
        """What was measured, beside what was predicted."""
        lesson = find_lesson(key)
        answer = self._answer(lesson)
        missing = _missing(answer, choice, guess)
        if answer is None or choice is None or missing:
            return _note(missing)
        return answer_html(lesson, answer, choice, guess)

    def start(self, request: gr.Request) -> tuple[Any, ...]:
        """The lesson that the address names, its query string, and what opening it shows."""
        key = find_lesson(dict(request.query_params).get("lesson", "")).key
        return key, self.query(key), *self.open(key)

    def query(self, key: str) -> str:
        """The address of a lesson."""
        return to_query(ROOM, {"lesson": key}, LINK_FIELDS)

    def _answer(self, lesson: Lesson) -> Answer | None:
        return lesson.measure(self.recordings, self.results)


def page_html(lesson: Lesson) -> str:
    """What is to be known before the question, and where to look."""
    number = LESSONS.index(lesson) + 1
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in lesson.paragraphs)
    views = "".join(f"<li><a href='?{escape(view.query)}'>{escape(view.label)}</a></li>" for view in lesson.views)
    return (
        f"<article class='lesson'><p class='lesson-number'>Lesson {number} of {len(LESSONS)}</p>"
        f"<h2>{escape(lesson.title)}</h2>{paragraphs}<h3>Look</h3><ul>{views}</ul></article>"
    )


def _missing(answer: Answer | None, choice: str | None, guess: float | None) -> str:
    """What stands between a visitor and the answer; empty when nothing does."""
    if answer is None:
        return NOT_MEASURED
    number = answer.number
    if guess is not None and number is not None and not number.allows(guess):
        return f"{guess:g} cannot be it: give a number from {_range(number)}."
    if not choice or (number is not None and guess is None):
        return PREDICT_FIRST
    return ""


def _note(text: str) -> str:
    return f"<p class='lesson-note'>{escape(text)}</p>"


def _range(number: Number | None) -> str | None:
    """What can be guessed."""
    return None if number is None else f"0 to {number.high:g}{number.unit}"


def _step(number: Number | None) -> float:
    """One press of an arrow key."""
    return 0.05 if number is not None and number.high <= 1 else 1


def answer_html(lesson: Lesson, answer: Answer, choice: str, guess: float | None = None) -> str:
    """The measured answer with its table and source."""
    verdict = "As you predicted" if choice == answer.right else "Not as you predicted"
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in answer.columns)
    body = "".join(
        f"<tr><th scope='row'>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in answer.rows
    )
    return (
        f"<section class='lesson lesson-answer'><p class='lesson-verdict'>{verdict}: you said "
        f"<b>{escape(choice)}</b>, measured is <b>{escape(answer.right)}</b>.</p>"
        f"{'' if answer.number is None or guess is None else _number_html(answer.number, guess)}"
        f"<p>{escape(answer.sentence)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<p class='lesson-source'>Source: <code>{escape(answer.source)}</code></p>"
        f"<p>{escape(lesson.afterwards)}</p></section>"
    )


def _number_html(number: Number, guess: float) -> str:
    """Guess and measured number in words, and on a scale that only repeats them."""
    marks = "".join(
        f"<span class='lesson-{name}' style='left:{100 * value / number.high:.1f}%'></span>"
        for name, value in (("guess", guess), ("measured", number.value))
    )
    return (
        f"<p class='lesson-number-verdict'>Your number: <b>{number.text(guess)}</b>, measured is "
        f"<b>{number.text(number.value)}</b>; your guess is {number.verdict(guess)}.</p>"
        f"<div class='lesson-scale' aria-hidden='true'>{marks}</div>"
        f"<p class='lesson-scale-ends' aria-hidden='true'><span>0</span><span>○ you ● measured</span>"
        f"<span>{escape(number.text(number.high))}</span></p>"
    )
