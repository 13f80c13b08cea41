"""Lessons: five short pages that ask for a prediction before they show what was measured; no model is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.page import Page
from explorer.rooms.lessons.handlers import LessonHandlers, page_html
from explorer.rooms.lessons.texts import LESSONS

CSS = (Path(__file__).parent / "lessons.css").read_text(encoding="utf-8")


def build(page: Page) -> None:
    """Components and wiring of the room."""
    handlers = LessonHandlers(page.recordings)
    first = LESSONS[0]
    with gr.Row(elem_classes="room"):
        with gr.Column(elem_id="lessons-controls", elem_classes="controls", scale=0, min_width=300):
            lesson = gr.Radio(
                [(f"{number}. {entry.title}", entry.key) for number, entry in enumerate(LESSONS, start=1)],
                value=first.key,
                label="Lesson",
                elem_id="lesson",
            )
        with gr.Column(elem_id="lesson-page", elem_classes="view"):
            text = gr.HTML(page_html(first), elem_id="lesson-text", css_template=CSS, apply_default_css=False)
            prediction = gr.Radio([], label=first.question, elem_id="lesson-prediction")
            reveal = gr.Button("Reveal what was measured", interactive=False, elem_id="lesson-reveal")
            answer = gr.HTML("", elem_id="lesson-answer", css_template=CSS, apply_default_css=False)

    at_once: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    opened = [text, prediction, reveal, answer]
    lesson.change(handlers.open, lesson, opened, **at_once)
    prediction.input(handlers.predict, prediction, reveal, **at_once)
    reveal.click(handlers.reveal, [lesson, prediction], answer, **at_once)
    page.demo.load(handlers.start, None, lesson, **at_once).then(handlers.open, lesson, opened, **at_once)
