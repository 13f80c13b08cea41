"""Pictures of figures: both writers draw the same shapes, and texts stay texts."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from loramixer import viz
from loramixer.errors import FigureError
from loramixer.viz import figures, raster
from loramixer.viz.canvas import axes, canvas
from loramixer.viz.drawing import DASHES, Area, Cells, Disc, Label, Line, draw
from loramixer.viz.palette import NEUTRAL, PAGES, contrast, difference_scale, expert_scale, expert_styles, expert_value
from loramixer.viz.raster import LARGEST_SIDE
from tests.routing_traces import awkward_trace

DOMAINS = ("math", "code")
GATES = ("soft", "top_1", "top_2")


def summary_rows(*quantities):
    return [
        {"quantity": quantity, "setting": setting, "gate": gate, "value": 1.0 + shift, "low": 0.8, "high": 1.5,
         "against": "", "rows": 40, "seeds": 2, "covers": "seeds and rows", "examples": 500 * (1 + shift)}
        for quantity in quantities for shift, setting in enumerate(("rsl", "none")) for gate in GATES
    ]  # fmt: skip


def domain_share_rows():
    return summary_rows(
        "load_math", "load_code", "own_share_math", "own_share_code", "share_of_math_in_code", "share_of_code_in_math"
    )


def gates_as(rows, gate):
    return [row for row in rows if row["gate"].startswith(gate) and row["setting"] == "rsl"]


EXPERIMENTS = {
    "losses": lambda: figures.losses_figure(
        summary_rows("loss", "own_share", "mutual_information"), "top_2"
    ),
    "loads": lambda: figures.loads_figure(summary_rows("load_math", "load_code")),
    "domain_shares": lambda: figures.domain_shares_figure(domain_share_rows()),
    "oracle": lambda: figures.oracle_figure(gates_as(summary_rows("loss", "loss_math"), "soft")),
    "top_k": lambda: figures.top_k_figure(gates_as(summary_rows("loss", "loss_math"), "top"), {("rsl", 500): "rsl"}),
    "data_size": lambda: figures.data_size_figure(summary_rows("loss"), "top_2"),
    "balance": lambda: figures.balance_curve_figure(
        [{"setting": "rsl", "seed": seed, "share": i / 4, "balance": i / 9} for seed in (0, 1) for i in range(5)]
    ),
    "convergence": lambda: figures.convergence_figure(
        [{"setting": "md", "seed": 0, "step": step, "kl": 0.5**step, "bound": 0.9} for step in range(9)]
    ),
    "matrix": lambda: figures.expert_matrix_figure(
        [{"expert": e, "domain": d, "loss": 1.5 + (e != d), "rows": 40} for e in DOMAINS for d in DOMAINS]
    ),
    "grid": lambda: figures.grid_figure(
        [{"balance_weight": a, "entropy_weight": w, "entropy": s, "seed": 0, "test_rows": 40, "loss_soft": a + w,
          "token_entropy": a, "mutual_information": w, "load_variance": 0.1, "learning_rate": 0.005, "examples": 500}
         for a in (0, 1) for w in (0, 0.3) for s in ("sharpen", "flatten")]
    ),
    "plane": lambda: figures.plane_figure(
        [{"setting": "rsl", "rows": 9, "tokens": 99, "seeds": 1, "undecided": 0.3, "undecided_low": 0.2,
          "undecided_high": 0.4, "balanced": 0.9, "balanced_low": 0.8, "balanced_high": 0.95,
          "band_undecided_low": 0.2,
          "band_undecided_high": 0.4, "band_balanced_low": 0.7, "band_balanced_high": 0.9, "band_tokens": 64}],
        [{"setting": "rsl", "seed": 0, "undecided": 0.9 - step / 9, "balanced": 0.95} for step in range(4)],
        [{"setting": "grid", "examples": 500, "seed": 0, "undecided": 0.5, "balanced": 0.6}],
    ),
}  # fmt: skip


def test_each_cell_of_the_domain_shares_is_that_of_its_domain_and_expert():
    rows = [row for row in domain_share_rows() if (row["setting"], row["gate"]) == ("rsl", "soft")]
    values = {"share_of_code_in_math": 0.1, "share_of_math_in_code": 0.3}
    for row in rows:
        row["value"] = values.get(row["quantity"], 0.5)
    without = {**rows[0], "setting": "measured before shares were"}
    figure = figures.domain_shares_figure([*rows, without])
    (panel,) = figure.data
    assert [list(line) for line in panel.z] == [[0.3, 0.7], [0.9, 0.1]]  # the first domain is on top
    assert list(panel.x) == [0, 1]
    assert figure.layout.title.text == "Where the tokens of each domain go (n = 40 rows, 2 seeds)"
    other = [{**row, "setting": "of one seed", "seeds": 1} for row in rows]
    texts = [found.text for found in figures.domain_shares_figure([*rows, *other]).layout.annotations]
    assert texts == ["rsl, 2 seeds", "of one seed, 1 seed"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_figures_of_experiments_are_drawn_by_both_writers(name):
    figure = EXPERIMENTS[name]()
    drawing = draw(figure)
    assert drawing.title
    assert {type(shape) for shape in drawing.shapes} >= {Label, Line}
    ElementTree.fromstring(viz.to_svg(figure))
    picture = Image.open(io.BytesIO(viz.to_png(figure, scale=1)))
    assert picture.size == (drawing.width, drawing.height)
    assert np.asarray(picture.convert("L")).std() > 1


def test_a_figure_of_losses_names_its_gate_and_what_single_seeds_cover():
    rows = summary_rows("loss")
    rows[-1] |= {"seeds": 1, "covers": "rows", "value": 7.0, "low": 6.0, "high": 8.0}  # of none under top-2
    for draw_figure in (figures.losses_figure, figures.data_size_figure):
        figure = draw_figure(rows, "top_2")
        text = figure.to_json()
        assert "test loss, top-2, nats per token" in text
        assert "95 % over seeds and rows, of single seeds over rows" in text
        assert 7.0 in [value for trace in figure.data for value in (*trace.x, *trace.y)]
        assert "test loss, soft gates" in draw_figure(rows, "soft").to_json()


def test_lines_beyond_the_palette_differ_in_their_dashes():
    steps = [{"setting": f"s{i}", "seed": 0, "share": j, "balance": 1 + i + j} for i in range(10) for j in (0, 1)]
    figure = figures.balance_curve_figure(steps)
    grey = [trace.line.dash for trace in figure.data if trace.line.color == NEUTRAL]
    assert grey == [None, "dash", "dot", "longdash"]
    svg = viz.to_svg(figure)
    for pattern in ("5 4", "2 3", "10 4"):
        assert svg.count(f'stroke-dasharray="{pattern}"') == 2  # the line, and its mark in the legend
    lengths = {
        len(_cut)
        for dash in ("dash", "dot", "longdash")
        if (_cut := raster._dashes([(0, 0), (100, 0)], *DASHES[dash]))
    }
    assert len(lengths) == 3


@pytest.mark.parametrize("dash", ["dot", "dashdot", "5px,2px"])
def test_every_dash_of_plotly_is_drawn(dash):
    figure = canvas("Dashes", 300, 200, 40, 20)
    axes(figure, 1, (0, 1), [], "", (0, 1), [], "")
    figure.add_trace(
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", name="line", line={"dash": dash, "color": "#000000"})
    )
    assert viz.to_svg(figure).count(f'stroke-dasharray="{"2 3" if dash == "dot" else "5 4"}"') >= 1
    assert viz.to_png(figure, scale=1)


def grid_rows(loss, **fields):
    return [
        {"balance_weight": 1, "entropy_weight": 0.3, "entropy": sign, "seed": seed, "test_rows": 40, "loss_soft": loss,
         "token_entropy": 0, "mutual_information": 0, "load_variance": 0, "learning_rate": 0.005, "examples": 500,
         **fields}
        for sign in ("sharpen", "flatten") for seed in (0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("other", [{"learning_rate": 0.001}, {"examples": 64}])
def test_the_grid_never_averages_over_rates_and_sizes(other):
    usual, few = grid_rows(1.0), grid_rows(3.0, seed=0, **other)[:3]
    for runs in ([*usual, *few], [*few, *usual]):
        figure = figures.grid_figure(runs)
        assert [list(line) for line in figure.data[0].z] == [[1.0]]
        assert "learning rate 0.005, 500 training rows" in figure.layout.title.text
    first = figures.grid_figure([*grid_rows(3.0, **other), *usual])  # equally many of both
    assert [list(line) for line in first.data[0].z] == [[3.0]]
    assert "learning rate" not in figures.grid_figure(usual).layout.title.text


def test_texts_are_read_as_texts():
    figure = viz.token_map(awkward_trace(), template=True)
    root = ElementTree.fromstring(viz.to_svg(figure))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<b>", "&amp;", "</script>"} <= set(texts)


def simple_figure(*traces):
    figure = canvas("Title", 300, 200, 40, 20)
    figure.add_traces(traces)
    axes(figure, 1, (0, 10), [(0, "0"), (10, "10")], "x", (0, 10), [(0, "0"), (10, "10")], "y")
    return figure


def test_a_line_has_a_gap_where_a_number_is_missing():
    figure = simple_figure(go.Scatter(x=[0, 1, 2, 3], y=[1, None, 2, 3], mode="lines", line={"color": "#123456"}))
    lines = [shape for shape in draw(figure).shapes if isinstance(shape, Line) and shape.colour == "#123456"]
    assert [len(line.points) for line in lines] == [1, 2]


def test_bars_start_at_zero():
    figure = simple_figure(go.Bar(x=[5], y=[5], orientation="h", width=1, marker={"color": "#123456"}))
    (area,) = [shape for shape in draw(figure).shapes if isinstance(shape, Area)]
    left, right = min(x for x, _ in area.points), max(x for x, _ in area.points)
    assert (left, right) == (40, 40 + 240 / 2)


def test_the_first_row_of_a_heat_map_is_where_the_axis_puts_it():
    for ends, expected in (((-0.5, 1.5), 255), ((1.5, -0.5), 0)):
        figure = canvas("Title", 300, 200, 40, 20)
        cells = go.Heatmap(z=[[0.0], [1.0]], x=[0], y=[0, 1], zmin=0, zmax=1, showscale=False,
                           colorscale=[[0, "#000000"], [1, "#FFFFFF"]])  # fmt: skip
        figure.add_trace(cells)
        axes(figure, 1, (-0.5, 0.5), [], "", ends, [], "")
        (found,) = [shape for shape in draw(figure).shapes if isinstance(shape, Cells)]
        assert found.shades[0, 0, 0] == expected


def test_pixels_have_the_colours_of_the_cells():
    figure = canvas("", 100, 100, 0, 0)
    figure.update_layout(margin={"t": 0, "b": 0, "l": 0, "r": 0})
    figure.add_trace(
        go.Heatmap(z=[[0.0, 1.0, np.nan]], x=[0, 1, 2], y=[0], zmin=0, zmax=1, showscale=False,
                   colorscale=[[0, "#0000FF"], [1, "#FFAA00"]])
    )  # fmt: skip
    axes(figure, 1, (-0.5, 2.5), [], "", (-0.5, 0.5), [], "")
    picture = Image.open(io.BytesIO(viz.to_png(figure, scale=1)))
    assert [picture.getpixel((x, 50)) for x in (16, 50, 84)] == [(0, 0, 255), (255, 170, 0), (255, 255, 255)]


def test_strong_and_weak_experts_never_take_the_colour_of_another():
    styles = expert_styles(["math", "medical", "code"])
    figure = canvas("", 60, 20, 0, 0)
    figure.update_layout(margin={"t": 0, "b": 0, "l": 0, "r": 0})
    values = expert_value(np.array([[0, 0, 1, 1, 2, 2]]), np.array([[0, 1, 0, 1, 0, 1]]))
    figure.add_trace(
        go.Heatmap(z=values, x=list(range(6)), y=[0], zmin=0, zmax=3, showscale=False, colorscale=expert_scale(styles))
    )
    axes(figure, 1, (-0.5, 5.5), [], "", (-0.5, 0.5), [], "")
    (cells,) = [shape for shape in draw(figure).shapes if isinstance(shape, Cells)]
    for index, style in enumerate(styles):
        weak, strong = cells.shades[0, 2 * index], cells.shades[0, 2 * index + 1]
        assert tuple(weak[:3]) == tuple(strong[:3]) == tuple(bytes.fromhex(style.colour[1:]))
        assert weak[3] < 60 < 240 < strong[3]


def test_differences_are_blue_or_orange_and_nothing_at_zero():
    stops = dict(difference_scale())
    assert (stops[0.0], stops[1.0]) == ("#0072B2", "#E69F00")
    assert stops[0.5].endswith(",0.08)")


def test_texts_pass_contrast_on_their_page():
    assert all(contrast(page.ink, page.background) >= 7 for page in PAGES.values())
    assert contrast(NEUTRAL, "#FFFFFF") >= 4.5
    assert contrast(NEUTRAL, "#000000") >= 4.5


def test_circles_and_crosses():
    figure = simple_figure(
        go.Scatter(x=[5], y=[5], mode="markers", marker={"color": "#123456", "size": 10}, name="dot"),
        go.Scatter(x=[6], y=[6], mode="markers", marker={"color": "#654321", "size": 10, "symbol": "x"}, name="cross"),
    )
    shapes = draw(figure).shapes
    assert [shape.radius for shape in shapes if isinstance(shape, Disc)] == [5]
    assert (
        len([shape for shape in shapes if isinstance(shape, Line) and shape.colour == "#654321"]) == 4
    )  # with legend


def test_themes_change_the_page_only():
    figure = viz.load_bars(awkward_trace())
    pages = {theme: Image.open(io.BytesIO(viz.to_png(figure, scale=1, theme=theme))) for theme in ("light", "dark")}
    assert {theme: page.getpixel((2, 2)) for theme, page in pages.items()} == {
        theme: tuple(bytes.fromhex(PAGES[theme].background[1:])) for theme in pages
    }
    assert Image.open(io.BytesIO(viz.to_png(figure, theme="transparent"))).getpixel((2, 2))[3] == 0


def test_too_large_pictures_and_foreign_figures_are_refused():
    with pytest.raises(FigureError, match=f"between 1 and {LARGEST_SIDE:,}"):
        viz.to_png(viz.load_bars(awkward_trace()), scale=100)
    with pytest.raises(FigureError, match=r"only figures of loramixer\.viz"):
        viz.to_svg(go.Figure(go.Scatter(x=[1], y=[2])))


def test_small_pictures_keep_every_colour():
    figure = viz.token_map(awkward_trace(layers=12), template=True)
    whole, small = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        for data in (viz.to_png(figure, scale=1), viz.to_small_png(figure))
    )
    assert np.abs(whole - small).max() <= 12


def test_a_themed_copy_has_the_ink_of_its_page_and_the_same_numbers():
    figure = viz.load_bars(awkward_trace())
    dark = viz.themed(figure, "dark")
    assert (figure.layout.font.color, dark.layout.font.color) == (NEUTRAL, PAGES["dark"].ink)
    np.testing.assert_array_equal(dark.data[0].x, figure.data[0].x)
    assert viz.to_svg(dark) == viz.to_svg(figure)
