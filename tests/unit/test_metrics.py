"""Entropy, load, the plane, and intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loramixer.metrics import entropy, load, margin, mean_interval, plane_point, ratio_interval


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
