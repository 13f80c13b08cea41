"""What leaves the figures: HTML files, tables, text lanes, notebook bundles; nothing of a prompt becomes markup."""

from __future__ import annotations

import base64
import builtins
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from loramixer import viz
from loramixer.viz.html import flat_provenance
from loramixer.viz.notebook import mime_bundle
from tests.routing_traces import AWKWARD, awkward_trace

FORBIDDEN = {"script", "b", "img", "iframe", "link", "object"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_is_whole_and_runs_nothing():
    trace = awkward_trace(note='"><script>alert(1)</script>')
    figures = [viz.token_map(trace, template=True), viz.load_bars(trace)]
    text = viz.to_html(figures, "A <b>title</b>", trace.provenance, ["A note with </style>"])
    page = Page(text)
    assert not FORBIDDEN & set(page.tags)
    assert page.tags.count("svg") == 2
    assert not [value for name, value in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert "</script>" in page.texts  # a token, as text
    assert "A <b>title</b>" in page.texts
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_tables_under_pictures_have_the_numbers_of_the_pictures():
    trace = awkward_trace()
    (top,) = viz.figure_tables(viz.token_map(trace, template=True))
    assert "<b>" in top.columns
    assert len(top.columns) == 1 + len(AWKWARD)
    assert [row[0] for row in top.rows] == ["layer 0", "layer 1", "layer 2"]
    assert all(re.fullmatch(r"[A-C] [01]\.\d\d", cell) for cell in top.rows[0][1:])
    (loads,) = viz.figure_tables(viz.load_bars(trace))
    assert loads.columns == ["", "A math", "B medical", "C a<b>"]
    assert sum(float(cell) for cell in loads.rows[0][1:]) == pytest.approx(1, abs=1e-3)
    (curves,) = viz.figure_tables(viz.training_curves([{"step": 5, "task_loss": 1.25}]))
    assert curves.rows == [["task loss, nats per token", "5", "1.25", "", ""]]


def test_intervals_are_in_the_table():
    from loramixer.viz.figures import losses_figure

    row = {"quantity": "loss", "setting": "rsl", "gate": "soft", "value": 1.5, "low": 1.25, "high": 2.0, "against": "",
           "rows": 4, "seeds": 1, "covers": "rows", "examples": 64}  # fmt: skip
    (table,) = viz.figure_tables(losses_figure([row], "soft"))
    assert table.rows[0][-2:] == ["1.25", "2"]


def test_scaling_is_drawn_in_order_of_experts_with_its_intervals():
    from loramixer.viz.figures import scaling_figure

    rows = [
        {"measure": measure, "experts": experts, "ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1}
        for measure in ("prefill-64", "decode")
        for experts, ratio in ((24, 1.2), (6, 1.0))
    ]
    first, second = scaling_figure(rows).data
    assert (first.name, second.name) == ("A prefill-64", "B decode")
    assert list(first.y) == [1.0, 1.2]
    assert list(first.error_y.array) == pytest.approx([0.1, 0.1])


def test_trace_table_is_tidy_and_says_the_same_as_the_trace():
    trace = awkward_trace()
    table = viz.trace_table(trace, projection="v_proj", layers=(1, 1), roles="generation")
    assert len(table) == 6 * 3
    found = table[(table.token == 15) & (table.expert == "medical")].iloc[0]
    assert found.gate == trace.gates[3, 15, 1]
    assert found.logit == trace.logits[3, 15, 1]
    assert found["rank"] == 1 + (trace.gates[3, 15] > trace.gates[3, 15, 1]).sum()
    assert "contribution" not in table
    lengths = dataclasses.replace(
        trace, contributions=np.ones_like(trace.gates), base_norms=np.full(trace.gates.shape[:2], 2, np.float32)
    )
    assert (viz.trace_table(lengths).contribution == 0.5).all()


def test_provenance_is_flat_and_drops_what_says_nothing():
    assert flat_provenance({"a": {"b": 1, "c": None}, "d": "", "e": 0}) == {"a.b": "1", "e": "0"}


def test_the_text_lane_is_the_text_and_no_markup():
    trace = awkward_trace()
    page = Page(viz.text_lane(trace, template=True))
    assert set(page.tags) <= {"div", "p", "span", "b", "wbr", "br", "hr"}
    joined = "".join(page.texts)
    for piece in ("<b>", "&amp;", "</script>", "↵", "🦊", "1/3", "3/3", "שלום", "漢字"):
        assert piece in joined
    assert joined.count("🦊") == 1  # one character, though three tokens
    assert page.tags.count("hr") == 1
    assert any("of the weight, ahead by" in value for name, value in page.attributes if name == "title")


def test_decided_tokens_are_stronger():
    trace = awkward_trace(("<s>", "a", "b"), written=0)
    gates = np.zeros_like(trace.gates)
    gates[:, 1] = (0.34, 0.33, 0.33)
    gates[:, 2] = (1, 0, 0)
    gates[:, 0] = (1, 0, 0)
    lane = viz.text_lane(dataclasses.replace(trace, gates=gates))
    weak, strong = (float(value) for value in re.findall(r"rgba\(0,114,178,([\d.]+)\)", lane))
    assert weak < 0.2 < 0.7 < strong


def test_the_plain_lane_has_letters_and_nothing_that_steers_a_terminal():
    trace = awkward_trace(("<s>", "one", " \x1b[2J", " two"), written=1)
    text = viz.text_lane_plain(trace)
    assert "\x1b" not in text
    assert text.startswith("A math, B medical, C a<b>\n")
    assert re.search(r"[ABC]\[one", text)
    assert "--- the answer ---" in text
    assert "\x1b[1;38;2;" in viz.text_lane_plain(trace, colours=True)


def test_differences_of_texts_are_marked_in_words_and_in_colour():
    a, b = "The dose is 10 mg <b>.", "The dose is 20 mg <b>."
    assert viz.text_difference_plain(a, b) == "The dose is [-10-]{+20+} mg <b>."
    page = Page(viz.text_difference(a, b))
    assert [tag for tag in page.tags if tag in ("del", "ins", "b")] == ["del", "ins"]
    assert viz.text_difference_plain(a, a) == a


def test_a_notebook_gets_plotly_a_small_picture_and_a_sentence():
    figure = viz.token_map(awkward_trace())
    bundle = mime_bundle(figure)
    assert bundle["application/vnd.plotly.v1+json"]["config"]["showSendToCloud"] is False
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.size == (figure.layout.width, figure.layout.height)
    assert len(bundle["image/png"]) < 60_000
    assert bundle["text/plain"].startswith("Expert with the largest gate, by layer and token — n = 18 tokens")


def test_without_ipython_it_says_what_to_do(monkeypatch, capsys):
    real = builtins.__import__

    def no_ipython(name, *args, **kwargs):
        if name.startswith("IPython"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_ipython)
    viz.show(viz.load_bars(awkward_trace()), alt="Loads.")
    said = capsys.readouterr().out
    assert said.startswith("Loads.\n")
    assert "viz.to_png" in said


def test_in_a_notebook_it_displays_the_bundle(monkeypatch):
    IPython = pytest.importorskip("IPython")
    shown = []
    monkeypatch.setattr(IPython, "get_ipython", object)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append((sorted(bundle), raw)))
    viz.show(viz.load_bars(awkward_trace()))
    assert shown == [(["application/vnd.plotly.v1+json", "image/png", "text/plain"], True)]


def test_every_public_name_can_be_imported():
    for name in viz.__all__:
        assert callable(getattr(viz, name)), name
    with pytest.raises(AttributeError, match="no attribute 'no_such_figure'"):
        viz.no_such_figure  # noqa: B018
