"""The entropy–balance plane and training curves: what is placed where."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from loramixer import viz
from loramixer.errors import FigureError
from loramixer.metrics import PlanePoint, plane_point, shuffled_token_band
from tests.routing_traces import awkward_trace


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_a_trace_is_placed_by_its_own_routers_without_template():
    trace = awkward_trace()
    figure = viz.plane({"rsl": trace})
    point = plane_point(trace.gates[:, 1:])
    dot = named(figure, "A rsl")
    assert (dot.x[0], dot.y[0]) == (point.undecided, point.balanced)
    assert dot.y[0] >= dot.x[0]


def test_bands_paths_and_corners_are_there_and_drawn():
    trace = awkward_trace()
    path = [PlanePoint(1.0 - step / 10, 1.05, 3) for step in range(5)]
    figure = viz.plane(
        {"rsl": trace, "<none>": PlanePoint(0.5, 0.9, 3)}, bands={"rsl": shuffled_token_band(trace.gates, 8)},
        paths={"rsl": path},
    )  # fmt: skip
    assert named(figure, "rsl, while training").x[0] == pytest.approx(1 / np.log(3))
    assert "8 shuffled tokens" in figure.layout.title.subtitle.text
    corners = " ".join(note.text for note in figure.layout.annotations)
    assert "impossible" in corners
    assert "balanced specialists" in corners
    assert named(figure, "B &lt;none&gt;").x[0] == pytest.approx(0.5 / np.log(3))
    assert "&lt;none&gt;" in viz.to_svg(figure)
    assert viz.to_png(figure, scale=1)


def test_routers_that_are_off_have_no_place():
    trace = awkward_trace(site_gates=[{"sites": ".*k_proj", "gate": "off"}])
    gates = trace.gates.copy()
    gates[::2] = 0
    dot = named(viz.plane({"rsl": dataclasses.replace(trace, gates=gates)}), "A rsl")
    assert dot.x[0] == pytest.approx(plane_point(trace.gates[1::2, 1:]).undecided)
    with pytest.raises(FigureError, match="No router of this trace has a gate"):
        viz.plane({"rsl": dataclasses.replace(trace, gates=np.zeros_like(gates))})


def test_an_empty_plane_is_refused():
    with pytest.raises(FigureError, match="nothing to show"):
        viz.plane({})


def steps(count, **more):
    return [
        {"step": 5 * index, "loss": 2.0, "task_loss": 1 - index / 10, "token_entropy": 1.0, "load_entropy": 1.25,
         "own_expert_share": {"math": 0.5, "code": 0.25}, "seconds": 3, "odd_term": index, **more}
        for index in range(count)
    ]  # fmt: skip


def titles(figure):
    return [note.text for note in figure.layout.annotations]


def test_curves_show_the_task_every_term_and_the_routing():
    figure = viz.training_curves(steps(4))
    assert titles(figure) == [
        "task loss, nats per token", "token entropy E[H(p)], nats", "load entropy H(p̄), nats",
        "I(token; expert), nats", "own-expert share", "odd term",
    ]  # fmt: skip
    assert named(figure, "I(token; expert), nats").y == (0.25,) * 4
    assert named(figure, "own share: code").y == (0.25,) * 4
    assert viz.to_png(figure, scale=1)


def test_several_runs_share_panels_and_have_one_entry_each_in_the_legend():
    figure = viz.training_curves({"rsl": steps(4), "balance only": steps(3, task_loss=2.0)})
    entries = [trace.name for trace in figure.data if trace.showlegend]
    assert entries == ["A rsl", "B balance only"]
    assert len([trace for trace in figure.data if trace.name == "A rsl"]) == len(titles(figure))


def test_the_first_logged_step_is_a_dot_and_no_step_is_refused():
    assert {trace.mode for trace in viz.training_curves(steps(1)).data} == {"markers"}
    assert viz.to_svg(viz.training_curves(steps(1)))
    with pytest.raises(FigureError, match="No step has been logged"):
        viz.training_curves([])


def test_a_step_without_a_number_leaves_a_gap():
    rows = steps(3)
    rows[1]["token_entropy"] = None
    assert named(viz.training_curves(rows), "token entropy E[H(p)], nats").y == (1.0, None, 1.0)


def test_the_legend_of_curves_has_room_for_long_names():
    name = "acceptability of sentences"
    rows = [{"step": step, "task_loss": 1.0, "own_expert_share": {name: 0.2}} for step in (1, 2)]
    figure = viz.training_curves(rows)
    assert figure.layout.margin.r >= 7 * len(f"own share: {name}") + 20
    assert viz.training_curves([{"step": 1, "task_loss": 1.0}]).layout.margin.r < 100
