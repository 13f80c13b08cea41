"""Events of Lessons: open a page, predict, reveal what was measured."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.recordings import Recordings
from explorer.rooms.lessons.answers import Answer
from explorer.rooms.lessons.texts import LESSONS, Lesson, find_lesson
from explorer.rooms.tradeoff.points import RESULTS

NOT_MEASURED = "This has not been measured yet in this copy of the project, so there is nothing to reveal."


class LessonHandlers:
    """The events of the room; they need no model.

    Args:
        recordings: recorded traces that answers come from.
        results: folder of result files that answers come from.
    """

    def __init__(self, recordings: Recordings, results: Path = RESULTS) -> None:
        self.recordings = recordings
        self.results = results

    def open(self, key: str) -> tuple[str, Any, Any, str]:
        """Page, choices of the prediction, the reveal button, and an empty answer."""
        lesson = find_lesson(key)
        answer = self._answer(lesson)
        choices = list(answer.choices) if answer else []
        return (
            page_html(lesson),
            gr.Radio(choices=choices, value=None, label=lesson.question, visible=answer is not None),
            gr.Button(interactive=False, visible=answer is not None),
            "" if answer else f"<p class='lesson-note'>{NOT_MEASURED}</p>",
        )

    def predict(self, choice: str | None) -> Any:
        """A prediction unlocks the answer."""
        return gr.Button(interactive=bool(choice))

    def reveal(self, key: str, choice: str | None) -> str:
        """What was measured, beside what was predicted."""
        lesson = find_lesson(key)
        answer = self._answer(lesson)
        if answer is None or not choice:
            return f"<p class='lesson-note'>{'Predict first.' if answer else NOT_MEASURED}</p>"
        return answer_html(lesson, answer, choice)

    def start(self, request: gr.Request) -> str:
        """The lesson that the address names."""
        return find_lesson(dict(request.query_params).get("lesson", "")).key

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


def answer_html(lesson: Lesson, answer: Answer, choice: str) -> str:
    """The measured answer with its table and source."""
    verdict = "As you predicted" if choice == answer.right else "Not as you predicted"
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in answer.columns)
    body = "".join(
        f"<tr><th scope='row'>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in answer.rows
    )
    return (
        f"<section class='lesson lesson-answer'><p class='lesson-verdict'>{verdict}: you said "
        f"<b>{escape(choice)}</b>, measured is <b>{escape(answer.right)}</b>.</p><p>{escape(answer.sentence)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<p class='lesson-source'>Source: <code>{escape(answer.source)}</code></p>"
        f"<p>{escape(lesson.afterwards)}</p></section>"
    )
