"""Entropy, load, the plane, and intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loramixer.metrics import (
    combine_seeds,
    entropy,
    jensen_shannon,
    load,
    load_variance,
    margin,
    mean_interval,
    mutual_information,
    plane_point,
    ratio_interval,
    row_resamples,
    share_interval,
    shuffled_token_band,
    token_awareness,
)


def test_corners_of_the_plane():
    one_expert = np.tile([1.0, 0, 0, 0], (2, 8, 1))
    undecided = np.full((2, 8, 4), 0.25)
    specialists = np.tile(np.eye(4), (2, 2, 1))
    for p, undecided_share, balanced_share in (
        (one_expert, 0, 0),
        (undecided, 1, 1),
        (specialists, 0, 1),
    ):
        point = plane_point(p)
        assert point.undecided == pytest.approx(undecided_share)
        assert point.balanced == pytest.approx(balanced_share)


@given(hnp.arrays(float, (3, 5, 4), elements=st.floats(0.01, 1)))
def test_load_is_never_less_even_than_tokens(weights):
    point = plane_point(weights / weights.sum(-1, keepdims=True))
    assert point.mutual_information >= -1e-9


def test_routers_do_not_cancel():
    """Two routers that each take one expert are collapsed, not balanced."""
    p = np.zeros((2, 4, 2))
    p[0, :, 0] = p[1, :, 1] = 1
    assert plane_point(p).balanced == pytest.approx(0)


def test_a_router_that_is_off_has_no_place_on_the_plane():
    p = np.zeros((3, 4, 2))
    p[:2] = 0.5  # two routers that are undecided, and a third one without any gate
    assert (plane_point(p).undecided, plane_point(p).balanced) == pytest.approx((1, 1))
    assert (plane_point(p[2:]).undecided, plane_point(p[2:]).balanced) == (0, 0)


def test_entropy_margin_and_load_by_hand():
    p = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert entropy(p) == pytest.approx([np.log(2), 0])
    assert margin(p) == pytest.approx([0, 1])
    assert load(p) == pytest.approx([0.75, 0.25])


def test_intervals_hold_the_mean_and_shrink():
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high = mean_interval(values)
    assert low < mean < high
    _, low_few, high_few = mean_interval(values[:20])
    assert high_few - low_few > high - low
    assert mean_interval(np.array([np.nan, 2.0]))[0] == 2.0
    assert np.isnan(mean_interval(np.array([]))[0])


def test_ratio_weighs_rows_by_their_tokens():
    ratio, low, high = ratio_interval(np.array([1.0, 30.0]), np.array([1.0, 10.0]))
    assert ratio == pytest.approx(31 / 11)
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(3.0)


def probabilities(shape: tuple[int, ...]):
    weights = hnp.arrays(float, shape, elements=st.floats(0, 1).map(lambda value: value + 1e-6))
    return weights.map(lambda found: found / found.sum(-1, keepdims=True))


def test_mutual_information_of_two_tokens_by_hand():
    """Two specialists share the load: ln 2 at the first router; at the second all tokens agree: nothing."""
    p = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.3, 0.7], [0.3, 0.7]]])
    assert mutual_information(p) == pytest.approx([np.log(2), 0])


@given(probabilities((2, 6, 3)))
def test_mutual_information_lies_between_nothing_and_the_load_entropy(p):
    found = mutual_information(p)
    assert (found >= -1e-12).all()
    assert (found <= entropy(p.mean(axis=1)) + 1e-12).all()
    assert found.mean() == pytest.approx(plane_point(p).mutual_information)


def test_token_awareness_and_load_variance_by_hand():
    p = np.array([[1.0, 0.0], [0.0, 1.0]])  # p̄ = (½, ½); ‖(½, −½)‖² = ½ for both tokens
    assert token_awareness(p) == pytest.approx(0.5)
    assert token_awareness(np.tile(p[:1], (5, 1))) == pytest.approx(0)
    assert load_variance(np.array([[0.25] * 4, [1.0, 0, 0, 0]])) == pytest.approx([0, 3 / 16])


@given(probabilities((2, 4)))
def test_jensen_shannon_is_a_symmetric_bounded_divergence(p):
    found = jensen_shannon(p[0], p[1])
    assert -1e-12 <= found <= np.log(2) + 1e-12
    assert found == pytest.approx(jensen_shannon(p[1], p[0]))
    assert jensen_shannon(p[0], p[0]) == pytest.approx(0, abs=1e-12)


def test_jensen_shannon_of_strangers_is_ln_2():
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(np.log(2))


def test_the_band_of_all_tokens_is_the_point_itself_and_that_of_few_is_below_it():
    p = np.tile(np.eye(4), (2, 25, 1))
    whole, few = shuffled_token_band(p, 100), shuffled_token_band(p, 5)
    assert whole.load_entropy == pytest.approx((np.log(4),) * 2)
    assert few.tokens == 5
    assert few.load_entropy[1] < np.log(4) - 0.01  # five tokens cannot share four experts evenly
    assert few.token_entropy == pytest.approx((0, 0))
    assert few == shuffled_token_band(p, 5)
    with pytest.raises(ValueError, match="give 1 to 100"):
        shuffled_token_band(p, 101)


def test_resamples_keep_the_size_of_every_group_and_pair_by_themselves():
    counts = row_resamples(["a", "a", "a", "b"], draws=50)
    assert (counts[:, :3].sum(axis=1) == 3).all()
    assert (counts[:, 3] == 1).all()
    assert len(np.unique(counts[:, :3], axis=0)) > 3
    assert (counts == row_resamples(["a", "a", "a", "b"], draws=50)).all()


def test_a_share_of_few_rows_is_never_certain():
    share, low, high = share_interval(5, 5)
    assert (share, high) == (1, 1)
    assert low == pytest.approx(0.566, abs=1e-3)  # Wilson's interval of five out of five
    assert np.isnan(share_interval(0, 0)).all()


def test_seeds_and_rows_add_in_quadrature():
    draws = np.array([[1.0, 3.0, 2.0], [3.0, 5.0, 4.0]])  # the mean over seeds is 2, 4, 3: standard deviation 1
    found = combine_seeds([2.0, 4.0], draws)
    seed_half = 12.706 * np.sqrt(2) / np.sqrt(2)
    assert found.value == 3
    assert found.high - found.value == pytest.approx(np.hypot(seed_half, 1.96))
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert (found.seeds, found.covers) == (2, "seeds and rows")


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (12, 2.179), (15, 2.131), (20, 2.086), (30, 2.042),
     (60, 2.000), (120, 1.980), (10_000, 1.960)],
)  # fmt: skip
def test_intervals_over_any_number_of_seeds_use_students_t(freedom, quantile):
    values = np.arange(freedom + 1.0)
    found = combine_seeds(values)
    error = np.std(values, ddof=1) / np.sqrt(freedom + 1)
    assert (found.high - found.value) / error == pytest.approx(quantile, abs=5.1e-4)


def test_an_interval_says_what_it_covers():
    assert combine_seeds([2.0]).covers == "nothing"
    assert combine_seeds([2.0], np.array([[1.0, 2.0, 3.0]])).covers == "rows"
    assert combine_seeds([2.0], np.array([[1.0, 2.0, 3.0]])).low == pytest.approx(2 - 1.96)
    assert combine_seeds([1.0, 2.0, 3.0]).covers == "seeds"
    assert combine_seeds([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.303 / np.sqrt(3))
