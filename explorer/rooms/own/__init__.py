"""Your own: a visitor's backbone and LoRA experts, what fits of them, and a mixture that only this visitor sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.status_line import StatusLine, status
from explorer.link import to_query
from explorer.page import Page
from explorer.rooms.own.handlers import UNTRAINED, UNTRAINED_LABEL, OwnHandlers, shipped_experts
from explorer.rooms.own.table import EMPTY
from explorer.settings import limits

CSS = (Path(__file__).parent / "own.css").read_text(encoding="utf-8")


def build(page: Page) -> None:
    """Components and wiring of the room."""
    handlers = OwnHandlers(page.source)
    backbones = list(page.source.backbones())
    with gr.Row(elem_classes="room"):
        with gr.Column(elem_id="own-controls", elem_classes="controls", scale=0, min_width=300):
            backbone = gr.Dropdown(
                backbones,
                value=next(iter(backbones), None),
                allow_custom_value=True,
                label="Backbone",
                info="From the list, or a Hub id with an optional @revision" + _or_folder(),
                elem_id="own-backbone",
            )
            named = gr.Textbox(
                label="Add an expert from the Hub",
                placeholder="organisation/name@revision",
                info="A LoRA adapter saved as safetensors" + _or_folder(),
                elem_id="own-named",
                max_lines=1,
            )
            add = gr.Button("Add", elem_id="own-add", size="sm")
            files = gr.File(
                label=f"Or upload: .zip or both files, ≤ {limits().upload_bytes / 1e6:,.0f} MB",
                file_count="multiple",
                elem_id="own-files",
                height=150,
            )
            shipped = gr.Dropdown(
                list(shipped_experts()), value=None, label="Or one that ships with this package", elem_id="own-shipped"
            )
            chosen = gr.CheckboxGroup([], label="Experts in the mixture", visible=False, elem_id="own-chosen")
            routers = gr.Radio(
                [(UNTRAINED_LABEL, UNTRAINED)],
                value=UNTRAINED,
                label="Router",
                info="Trained routers appear here when these experts are among theirs.",
                elem_id="own-routers",
            )
            line = StatusLine(elem_id="own-status")
            with gr.Row(elem_id="own-actions"):
                explore = gr.Button("Explore with these", variant="primary", interactive=False, elem_id="own-explore")
                train = gr.Button("Train a router", interactive=False, elem_id="own-train", visible=_has_room("train"))
            with gr.Row(elem_classes="buttons-in-row"):
                keep = gr.Button("Remove unticked", size="sm", min_width=60, elem_id="own-keep")
                clear = gr.Button("Remove all", size="sm", min_width=60, elem_id="own-clear")
        table = gr.HTML(
            f"<section class='own-fit'>{EMPTY}</section>",
            elem_id="own-table",
            elem_classes="view",
            css_template=CSS,
            apply_default_css=False,
        )

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # The Hub may take seconds to answer, so these wait for each other and not for the model.
    slow: dict[str, Any] = {**private, "concurrency_id": "own", "concurrency_limit": 2}
    view = [table, line, chosen, routers, explore, train]
    went = [page.wanted, page.tabs, line]
    # Of several quick changes the last one counts.
    last: dict[str, Any] = {**slow, "trigger_mode": "always_last"}
    # What is brought while something else is looked at waits for its turn.
    each: dict[str, Any] = {**slow, "trigger_mode": "multiple"}
    look, make = "Looking at the experts …", "Making the mixture …"
    for triggers, text, handler, inputs, outputs, how in (
        ([add.click, named.submit], look, handlers.add_named, [named, backbone, chosen], [*view, named], each),
        ([files.upload], look, handlers.add_files, [files, backbone, chosen], [*view, files], each),
        ([shipped.input], look, handlers.add_shipped, [shipped, backbone, chosen], [*view, shipped], each),
        ([backbone.input, chosen.input], look, handlers.check, [backbone, chosen], view, last),
        ([keep.click], look, handlers.keep, [backbone, chosen], view, slow),
        ([clear.click], look, handlers.clear, [backbone], view, slow),
        ([explore.click], make, handlers.explore, [backbone, chosen, routers], went, slow),
        ([train.click], look, handlers.train, [backbone, chosen], went, slow),
    ):
        # Said by the browser itself, so that it never comes after the answer.
        gr.on(triggers, None, None, line, js=_busy(text), queue=False, **private)
        gr.on(triggers, handler, inputs, outputs, **how).failure(handlers.refused, None, line, queue=False, **private)
    page.services["own_experts"] = handlers.shelves.training_of
    # What was brought is in no link, so the address only names the room.
    page.addresses["own"].value = to_query("own", {}, ())
    page.demo.unload(handlers.leave)


def _busy(text: str) -> str:
    """JavaScript of an event whose output is the status line."""
    return f"() => ({json.dumps(status('busy', text))})"


def _or_folder() -> str:
    return "; or a folder of this machine." if limits().local_paths else "."


def _has_room(key: str) -> bool:
    # Imported here: the list of rooms imports this one.
    from explorer.rooms import ROOMS

    return any(room.key == key for room in ROOMS)
