"""Figures of traces: the numbers they show, and that no token is lost, merged or read as HTML."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from loramixer import viz
from loramixer.data.schema import Span
from loramixer.errors import FigureError, TraceError
from loramixer.metrics import margin
from loramixer.viz.text import text_lane_plain
from loramixer.viz.views import chosen_tokens, token_label, view
from tests.routing_traces import AWKWARD, awkward_trace

FIGURES = {
    "top": viz.token_map,
    "entropy": lambda trace: viz.token_map(trace, "entropy"),
    "margin": lambda trace: viz.token_map(trace, "margin"),
    "one expert": lambda trace: viz.token_map(trace, trace.experts[-1]),
    "expert_maps": viz.expert_maps,
    "load_bars": viz.load_bars,
    "token_card": lambda trace: viz.token_card(trace, 1),
    "agreement_matrix": viz.agreement_matrix,
}


def heat_maps(figure):
    return [trace for trace in figure.data if trace.type == "heatmap"]


def test_every_token_has_its_own_column_and_its_text_stays_text():
    figure = viz.token_map(awkward_trace(), template=True)
    (cells,) = heat_maps(figure)
    assert np.shape(cells.z) == (3, len(AWKWARD))
    labels = list(figure.layout.xaxis.ticktext)
    assert len(labels) == len(AWKWARD)
    assert labels.count("cat") == 2
    assert "&lt;b&gt;" in labels
    assert "&amp;amp;" in labels
    assert not any("<" in label for label in labels)


def test_labels_show_whitespace_cut_long_tokens_and_number_the_parts_of_a_character():
    tokens = awkward_trace().tokens
    labels = [token_label(tokens, position) for position in range(len(tokens))]
    assert labels[8:10] == ["↵", "·"]
    assert len(labels[10]) == 14
    assert labels[10].endswith("…")
    assert labels[11:14] == ["🦊 1/3", "🦊 2/3", "🦊 3/3"]


def test_top_shows_the_expert_of_the_mean_gate_and_its_lead():
    trace = awkward_trace()
    (cells,) = heat_maps(viz.token_map(trace, roles="generation"))
    gates = trace.gates[:2, -6:].mean(axis=0)  # the two projections of layer 0
    shown = np.array(cells.z)[0]
    np.testing.assert_array_equal(np.floor(shown), gates.argmax(axis=-1))
    np.testing.assert_allclose((shown % 1 - 0.01) / 0.98, margin(gates), atol=2e-4)


def test_one_expert_shows_its_gate_in_the_chosen_projection_and_layers():
    trace = awkward_trace()
    (cells,) = heat_maps(viz.token_map(trace, "medical", projection="v_proj", layers=(1, 2), template=True))
    np.testing.assert_allclose(cells.z, trace.gates[[3, 5], :, 1], atol=1e-4)


def test_entropy_is_that_of_single_routers_so_that_they_never_cancel():
    trace = awkward_trace()
    gates = np.zeros_like(trace.gates)
    gates[0::2, :, 0] = 1
    gates[1::2, :, 1] = 1  # two decided routers that disagree
    (cells,) = heat_maps(viz.token_map(dataclasses.replace(trace, gates=gates), "entropy"))
    np.testing.assert_allclose(cells.z, 0)


def test_expert_maps_share_one_scale():
    cells = heat_maps(viz.expert_maps(awkward_trace()))
    assert len(cells) == 3
    assert {(cell.zmin, cell.zmax) for cell in cells} == {(0, 1)}
    np.testing.assert_allclose(sum(np.array(cell.z) for cell in cells), 1, atol=1e-3)


@pytest.mark.parametrize("joined", [{}, {"unit": "sentence", "how": "mean"}, {"unit": "sentence", "how": "max"}])
def test_loads_of_a_layer_sum_to_one(joined):
    bars = [trace for trace in viz.load_bars(awkward_trace(), **joined).data if trace.type == "bar"]
    np.testing.assert_allclose(sum(np.array(bar.x) for bar in bars), 1, atol=1e-3)


def test_agreement_of_a_projection_that_copies_another_is_whole():
    trace = awkward_trace(projections=("q_proj", "k_proj", "v_proj"))
    gates = trace.gates.copy()
    gates[1::3] = gates[0::3]
    cells = heat_maps(viz.agreement_matrix(dataclasses.replace(trace, gates=gates)))
    mean, by_layer = np.array(cells[0].z), np.array(cells[1].z)
    assert mean[0, 1] == 1
    assert (by_layer[:, 0] == 1).all()
    assert mean[0, 2] == pytest.approx(by_layer[:, 1].mean(), abs=1e-3)
    assert mean[0, 2] < 1


def test_token_card_has_ranks_and_says_where_an_expert_is_absent():
    trace = awkward_trace()
    logits, gates = trace.logits.copy(), trace.gates.copy()
    logits[0, :, 2], gates[0, :, 2] = -np.inf, 0
    gates[0] /= gates[0].sum(axis=-1, keepdims=True)
    figure = viz.token_card(dataclasses.replace(trace, logits=logits, gates=gates), 4)
    first = heat_maps(figure)[0]
    assert np.isnan(first.z[0][2])
    best = logits[0, 4].argmax()
    assert first.customdata[0][best][3] == 1
    assert "no such expert" in first.customdata[0][2][2]


def test_generation_begins_at_a_line_that_is_drawn_once_for_each_map():
    guides = [trace for trace in viz.token_map(awkward_trace()).data if trace.meta == "guide"]
    assert {tuple(guide.x) for guide in guides} == {(12 - 0.5, 12 - 0.5)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda trace: viz.token_map(trace, "astrology"), "'astrology' is no expert"),
        (lambda trace: viz.token_map(trace, projection="w_proj"), "'w_proj' is no projection"),
        (lambda trace: viz.token_map(trace, layers=(7, 9)), "No layer is left between 7 and 9"),
        (lambda trace: viz.token_map(trace, roles="all"), "The roles are 'all'"),
        (lambda trace: viz.token_card(trace, 99), "tokens 0 to 18"),
        (lambda trace: viz.token_map(awkward_trace(written=0), roles="generation"), "no generated tokens"),
        (lambda trace: viz.agreement_matrix(awkward_trace(projections=("in_proj",))), "one routed projection"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(FigureError, match=message):
        call(awkward_trace())


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    "trace",
    [
        awkward_trace(("<s>", "a", "b"), layers=1, experts=("only",), written=1),
        awkward_trace([f" t{index % 7}" for index in range(120)], layers=30, experts=tuple("uvwxyz"), written=40),
    ],
    ids=["smallest", "largest"],
)
def test_every_figure_is_drawn_at_its_exact_size(name, trace):
    import io

    from PIL import Image

    figure = FIGURES[name](trace)
    picture = Image.open(io.BytesIO(viz.to_png(figure, scale=1.5)))
    assert picture.size == (round(figure.layout.width * 1.5), round(figure.layout.height * 1.5))
    assert picture.info["dpi"] == pytest.approx((144, 144), abs=0.1)
    assert len(picture.getcolors(1 << 24)) > 2
    assert viz.to_svg(figure).startswith("<svg")


def test_a_view_counts_what_it_shows():
    assert view(awkward_trace()).words == "n = 18 tokens, layers 0–2, mean of q, v"


def with_contributions(trace, seed=1):
    lengths = np.random.default_rng(seed).uniform(0.5, 1, size=trace.gates.shape).astype(np.float32) * trace.gates
    return dataclasses.replace(trace, contributions=lengths, base_norms=np.full(trace.gates.shape[:2], 4, np.float32))


def test_contributions_stand_beside_gates_and_idle_experts_are_marked():
    trace = with_contributions(awkward_trace(projections=("q_proj",), written=0))
    lengths, gates = trace.contributions.copy(), np.full_like(trace.gates, 0.1)
    gates[..., 1] = 0.8
    lengths[..., 0] = 1
    lengths[1, 5, 1], lengths[0, :, 1], lengths[2, :, 1] = 0, 1, 1
    lengths[1, np.arange(19) != 5, 1] = 1
    figure = viz.contribution_map(dataclasses.replace(trace, gates=gates, contributions=lengths), "medical")
    shares, added = heat_maps(figure)
    np.testing.assert_allclose(shares.z, 0.8, atol=1e-3)
    assert added.z[0][0] == 0.25  # one unit of length over four of the frozen output
    crosses = [(cross.x, cross.y) for cross in figure.data if cross.type == "scatter" and cross.mode == "markers"]
    assert crosses == [((4,), (1,))] * 2  # token 5 is the fifth after the template, in layer 1


def test_a_trace_without_contributions_says_so():
    with pytest.raises(FigureError, match="trace again with contributions=True"):
        viz.contribution_map(awkward_trace(), "math")


def test_a_difference_is_centred_on_zero_and_says_which_way():
    a, b = awkward_trace(seed=0), awkward_trace(seed=1)
    (cells,) = heat_maps(viz.difference_map(a, b, "medical", projection="q_proj", template=True))
    np.testing.assert_allclose(cells.z, (b.gates - a.gates)[0::2, :, 1], atol=1e-4)
    assert cells.zmin == -cells.zmax
    assert np.abs(cells.z).max() <= cells.zmax + 1e-4


def test_divergence_is_nothing_for_the_same_trace_and_one_bit_for_opposites():
    trace = awkward_trace()
    (cells,) = heat_maps(viz.difference_map(trace, trace))
    np.testing.assert_allclose(cells.z, 0, atol=1e-4)
    one, other = (np.zeros_like(trace.gates) for _ in range(2))
    one[..., 0], other[..., 1] = 1, 1
    figure = viz.difference_map(dataclasses.replace(trace, gates=one), dataclasses.replace(trace, gates=other))
    np.testing.assert_allclose(heat_maps(figure)[0].z, 1, atol=1e-4)


def test_answers_may_differ_while_prompts_are_compared():
    a = awkward_trace()
    tokens = dataclasses.replace(a.tokens, ids=np.where(np.arange(19) > 15, 99, a.tokens.ids))
    b = dataclasses.replace(a, tokens=tokens)
    assert viz.difference_map(a, b, roles="prefill").data
    assert np.shape(heat_maps(viz.difference_map(a, b))[0].z) == (3, 15)  # as far as the answers agree
    for other in (awkward_trace(experts=("x", "y", "z")), awkward_trace(projections=("q_proj", "o_proj"))):
        with pytest.raises(TraceError):
            viz.difference_map(a, other)


def test_other_prompts_are_compared_by_equal_words_and_the_subtitle_says_so():
    a = awkward_trace(("<s>", " one", " two", " three", " four"), written=0)
    b = awkward_trace(("<s>", " zero", " two", " four", " five"), written=0)
    figure = viz.difference_map(a, b, "math")
    assert list(figure.layout.xaxis.ticktext) == ["two", "four"]
    assert "equal words" in figure.layout.title.subtitle.text
    np.testing.assert_allclose(heat_maps(figure)[0].z[0][1], (b.gates[:2, 3, 0] - a.gates[:2, 4, 0]).mean(), atol=1e-4)
    with pytest.raises(FigureError, match="choose another part"):
        viz.difference_map(a, awkward_trace(("<s>", " x", " y"), written=0), roles="generation")


def test_words_are_one_column_each_and_borders_move_with_them():
    trace = awkward_trace(("<s>", " the", " am", "oxic", "illin", " dose"), written=1)
    figure = viz.token_map(trace, "math", unit="word", borders=[5])
    assert list(figure.layout.xaxis.ticktext) == ["the", "amoxicillin", "dose"]
    assert "words (mean of their tokens)" in figure.layout.title.subtitle.text
    np.testing.assert_allclose(heat_maps(figure)[0].z[0][1], trace.gates[:2, 2:5, 0].mean(), atol=1e-4)
    assert {guide.x for guide in figure.data if guide.meta == "guide"} == {(1.5, 1.5)}
    largest = viz.token_map(trace, "entropy", unit="word", how="max")
    assert np.max(heat_maps(largest)[0].z) <= 1


def test_gold_spans_against_experts():
    trace = awkward_trace(("<s>", " 1", " 2", " pill", " dose"), written=0)
    gates = np.zeros_like(trace.gates)
    gates[:, :3, 0], gates[:, 3:, 1] = 1, 1
    spans = [Span(3, 7, "math"), Span(7, 17, "medical")]
    figure = viz.span_confusion(dataclasses.replace(trace, gates=gates), spans)
    (cells,) = heat_maps(figure)
    np.testing.assert_allclose(cells.z, [[1, 0, 0], [0, 1, 0]])
    assert list(figure.layout.yaxis.ticktext) == ["math (n = 2)", "medical (n = 2)"]
    words = figure.layout.title.subtitle.text
    assert "purity 1.00" in words
    assert "NMI 1.00" in words
    assert "switch lag 0.0 tokens" in words
    assert viz.to_svg(figure)


@pytest.mark.parametrize(("template", "count"), [(False, len(AWKWARD) - 2), (True, len(AWKWARD))])
def test_the_end_of_an_answer_is_shown_with_the_template(template, count):
    trace = awkward_trace()
    special = trace.tokens.special.copy()
    special[-1] = True
    ended = dataclasses.replace(trace, tokens=dataclasses.replace(trace.tokens, special=special))
    assert len(chosen_tokens(ended, template=template)) == count
    assert (len(trace.tokens) - 1 in chosen_tokens(ended, "generation", template)) is template


def test_a_router_that_is_off_has_no_part_in_means():
    trace = awkward_trace()
    gates = trace.gates.copy()
    gates[0::2] = 0  # q_proj
    rules = {"site_gates": [{"sites": ".*q_proj", "gate": "off"}]}
    halved = dataclasses.replace(trace, gates=gates, provenance={**trace.provenance, **rules})
    part, alone = view(halved), view(trace, projection="v_proj")
    for name in ("gates", "entropies", "shares"):
        np.testing.assert_allclose(getattr(part, name), getattr(alone, name), rtol=1e-6)
    assert text_lane_plain(halved) == text_lane_plain(trace, projection="v_proj")
