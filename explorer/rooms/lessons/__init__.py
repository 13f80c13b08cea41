"""Lessons: five short pages that ask for a prediction before they show what was measured; no model is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.page import Page
from explorer.rooms.lessons.handlers import ROOM, LessonHandlers, page_html
from explorer.rooms.lessons.texts import LESSONS

CSS = (Path(__file__).parent / "lessons.css").read_text(encoding="utf-8")

KEEP_HOSTS = """
element.addEventListener('click', (event) => {
  const link = event.target.closest('a[href^="?"]');
  if (!link) return;
  // What the host has added to the address, such as a theme or a signature, goes along.
  const query = new URLSearchParams(link.getAttribute('href'));
  new URLSearchParams(window.location.search).forEach((value, name) => {
    if (name.startsWith('__') && !query.has(name)) query.set(name, value);
  });
  link.setAttribute('href', `?${query}`);
});
"""
"""JavaScript of a page with links to views."""


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
            text = gr.HTML(
                page_html(first),
                elem_id="lesson-text",
                css_template=CSS,
                apply_default_css=False,
                js_on_load=KEEP_HOSTS,
            )
            prediction = gr.Radio([], label=first.question, elem_id="lesson-prediction")
            guess = gr.Number(None, label=first.number_question, visible=False, elem_id="lesson-guess")
            reveal = gr.Button("Reveal what was measured", interactive=False, elem_id="lesson-reveal")
            answer = gr.HTML("", elem_id="lesson-answer", css_template=CSS, apply_default_css=False)

    at_once: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    # Of what is typed while an answer is under way, Gradio would otherwise drop the last.
    typed = {**at_once, "trigger_mode": "always_last"}
    opened = [text, prediction, guess, reveal, answer]
    # Not on change, which the address causes too: a second opening would take away what was just typed.
    query = page.addresses[ROOM]
    lesson.input(handlers.open, lesson, opened, **typed)
    lesson.input(handlers.query, lesson, query, **typed)
    predicted = [lesson, prediction, guess]
    gr.on([prediction.input, guess.input], handlers.predict, predicted, [reveal, answer], **typed)
    reveal.click(handlers.reveal, predicted, answer, **at_once)
    page.demo.load(handlers.start, None, [lesson, query, *opened], **at_once)
