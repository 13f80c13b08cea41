"""Train: routers over chosen experts, in a process of their own, with curves, path and a probe prompt that move."""

from __future__ import annotations

from typing import Any

import gradio as gr

from explorer.components.replay_view import ReplayView
from explorer.components.status_line import StatusLine
from explorer.components.training_view import TrainingView
from explorer.examples import EXAMPLES
from explorer.page import Page
from explorer.rooms.share import SAVE_FILE, share_and_export
from explorer.rooms.train.choices import (
    DATA_CHOICES,
    DEFAULT_EXAMPLES,
    LEAST_EXAMPLES,
    LOSSES,
    SCALES,
    SIGNS,
    describe_data,
    domains_of,
    most_examples,
)
from explorer.rooms.train.files import TRAIN_FORMATS, code_maker, file_maker
from explorer.rooms.train.handlers import ROOM, SHIPPED, TrainHandlers
from explorer.settings import DEFAULT_K
from loramixer.data import RECIPES

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE: dict[str, Any] = {**PRIVATE, "queue": False}

# A browser that stores nothing only loses sight of its training when the page is closed. (A BrowserState would not be
# there when the page loads, since it would lie in a tab that is not open.)
REMEMBER = "(key) => { try { localStorage.setItem('loramixer-training', key); } catch {} }"
RECALL = "() => { try { return [localStorage.getItem('loramixer-training') || '']; } catch { return ['']; } }"


def build(page: Page) -> None:
    """Components and wiring of the room."""
    handlers = TrainHandlers(page.source, page.services)
    key, seen, query = gr.Textbox(visible=False), gr.State({}), page.addresses[ROOM]
    with gr.Row(elem_classes="room"):
        with gr.Column(elem_id="train-controls", elem_classes="controls", scale=0, min_width=300):
            with gr.Row(elem_classes="buttons-in-row"):
                train = gr.Button("Train", variant="primary", elem_id="train-start", min_width=70)
                stop = gr.Button("Stop", interactive=False, elem_id="train-stop", min_width=60)
                resume = gr.Button("Resume", interactive=False, elem_id="train-resume", min_width=70)
            room_status = StatusLine(elem_id="train-status")
            estimate = StatusLine(elem_id="train-estimate")
            with gr.Row(elem_classes="buttons-in-row"):
                explore = gr.Button("Open in Explore", interactive=False, size="sm", elem_id="train-explore")
                compare = gr.Button("Pin in Compare", interactive=False, size="sm", elem_id="train-compare")
                download = gr.Button("Download router", interactive=False, size="sm", elem_id="train-download")
            packed = gr.DownloadButton("Save", visible=False, size="sm", elem_id="train-packed")
            with gr.Accordion("Experts and rows", elem_id="train-rows") as rows_fold:
                experts, data, file, domains, examples = _rows_controls(handlers)
                with gr.Row(elem_classes="buttons-in-row"):
                    shipped = gr.Button("Shipped experts", size="sm", min_width=60, elem_id="train-shipped")
                    own = gr.Button("Experts from Your own", size="sm", min_width=60, elem_id="train-own")
            with gr.Accordion("Routing loss", elem_id="train-losses") as loss_fold:
                loss, balance, entropy, sign, scale = _loss_controls()
            with gr.Accordion("Probe prompt, seed and gate", open=False, elem_id="train-more"):
                probe, seed, k = _other_controls(len(handlers.experts()))
            with gr.Accordion("Share and export", open=False, elem_id="train-share", elem_classes="share-fold"):
                folder = handlers.trainings.folder
                share_and_export(
                    "train",
                    formats=TRAIN_FORMATS,
                    make_file=file_maker(page.exports, folder),
                    make_code=code_maker(folder),
                    inputs=[key],
                )
        with gr.Column(elem_classes="view", min_width=0):
            view = TrainingView(None, elem_id="training-view")
            frames = ReplayView(None, elem_id="train-frames")

    # In the order of the fields of a link.
    controls = [experts, domains, data, loss, balance, entropy, sign, scale, examples, seed, k]
    pool = gr.Textbox(SHIPPED, visible=False)
    rows = [data, file, domains]
    taken = [experts, domains, pool, room_status]
    estimating: dict[str, Any] = {"inputs": [experts, examples, pool], "outputs": estimate, **AT_ONCE}
    for take in (
        shipped.click(handlers.take_shipped, rows, taken, **AT_ONCE),
        own.click(handlers.take_own, rows, taken, **AT_ONCE),
        page.wanted.change(handlers.take_wanted, [page.wanted, *rows], taken, **AT_ONCE),
    ):
        # Experts of the same names are no change of the control, and yet others.
        take.then(handlers.estimate_line, **estimating)
    loss.change(handlers.show_loss, loss, [loss, balance, entropy, sign, scale], **AT_ONCE)
    data.change(handlers.choose_data, data, [data, file], **AT_ONCE)
    gr.on(
        [file.upload, file.clear],
        handlers.take_file,
        [*rows, experts, examples],
        [domains, examples, room_status],
        **AT_ONCE,
    )
    gr.on([page.demo.load, experts.change, examples.change], handlers.estimate_line, **estimating)
    # Of changes while one is under way, Gradio would otherwise drop the last.
    typed = {**AT_ONCE, "trigger_mode": "always_last"}
    gr.on([control.input for control in controls], handlers.query, controls, query, **typed)
    # What a choice brings along comes with a press only: an address has its own α and domains, and opening it is a
    # change too.
    former_loss = gr.Textbox(visible=False)
    loss.focus(None, loss, former_loss, js="(name) => name", **AT_ONCE)
    loss.input(handlers.usual_weight, [loss, former_loss], balance, **typed).then(
        handlers.query, controls, query, **typed
    )
    gr.on([experts.input, data.input], handlers.usual_domains, [*rows, experts], domains, **typed).then(
        handlers.query, controls, query, **typed
    )

    timer = gr.Timer(1.0, active=False)
    train.click(handlers.start, [*controls, probe, pool, file], [key, seen, room_status, timer], **AT_ONCE).then(
        None, key, None, js=REMEMBER, **AT_ONCE
    )
    stop.click(handlers.stop, key, [room_status, timer], **AT_ONCE)
    resume.click(handlers.resume, key, [room_status, seen, timer], **AT_ONCE)
    download.click(handlers.download, key, [packed, room_status], **AT_ONCE).success(
        None, packed, None, js=SAVE_FILE, **AT_ONCE
    )
    buttons = [train, stop, resume, explore, compare, download, packed]
    timer.tick(handlers.poll, [key, seen], [view, frames, room_status, *buttons, timer, seen], **AT_ONCE)
    # Through the queue, since other rooms listen to the state that these set.
    explore.click(handlers.open_in_explore, key, [page.tabs, page.wanted, room_status], **PRIVATE)
    compare.click(handlers.pin_in_compare, key, [page.tabs, page.wanted, room_status], **PRIVATE)
    page.demo.load(handlers.attach, key, [key, seen, timer], js=RECALL, **AT_ONCE)
    page.demo.load(handlers.open_link, None, [*controls, room_status], **AT_ONCE).then(
        handlers.query, controls, query, **AT_ONCE
    )
    page.folds.extend([rows_fold, loss_fold])


def _rows_controls(handlers: TrainHandlers) -> tuple[Any, ...]:
    known, most = list(handlers.experts()), most_examples()
    experts = gr.CheckboxGroup(
        known, value=known, label="Experts", info="At least two; the routers learn to choose among them.",
        elem_id="train-experts",
    )  # fmt: skip
    data = gr.Radio(
        list(DATA_CHOICES), value="default", label="Rows", info=describe_data("default"), elem_id="train-data"
    )
    file = gr.File(label="Your rows (.jsonl)", file_types=[".jsonl"], visible=False, height=140, elem_id="train-file")
    domains = gr.CheckboxGroup(
        list(RECIPES), value=domains_of(handlers.experts()), label="Domains of the rows", elem_id="train-domains",
        info="Equal shares. Language is acceptability and sentiment in one.",
    )  # fmt: skip
    examples = gr.Slider(
        LEAST_EXAMPLES, most, min(DEFAULT_EXAMPLES, most), step=8, label="Examples",
        info="Rows in all; 8 make one step.", elem_id="train-examples",
    )  # fmt: skip
    return experts, data, file, domains, examples


def _loss_controls() -> tuple[Any, ...]:
    rsl = LOSSES["rsl"]
    return (
        gr.Dropdown(
            [(choice.label, choice.key) for choice in LOSSES.values()],
            value="rsl",
            label="Routing loss",
            info=rsl.hint,
            elem_id="train-loss",
        ),
        gr.Number(rsl.balance_weight, label="α: weight of the balance term", minimum=0, elem_id="train-balance"),
        gr.Number(0.3, label="λ: weight of the token entropy, in nats", minimum=0, elem_id="train-entropy"),
        gr.Radio(list(SIGNS), value="sharpen", label="Sign of λ", elem_id="train-sign"),
        gr.Radio(list(SCALES), value="unit", label="Form that α belongs to", elem_id="train-scale"),
    )


def _other_controls(experts: int) -> tuple[Any, ...]:
    return (
        gr.Textbox(
            EXAMPLES[0].prompt, label="Probe prompt", lines=3, max_lines=6, elem_id="train-probe",
            info="Its map moves while the routers train; it is not trained on.",
        ),
        gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="train-seed"),
        gr.Number(
            min(DEFAULT_K, max(2, experts)), label="Gate after the training: experts per token (k)", precision=0,
            minimum=1, info="Training itself mixes all (soft). At most as many as experts.", elem_id="train-k",
        ),
    )  # fmt: skip
