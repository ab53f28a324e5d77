import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynvid.metrics.segmentation import (
    confusion_matrix,
    global_accuracy,
    intersection_over_union,
    mean_intersection_over_union,
)

EPS = np.finfo(np.float32).eps


def test_by_hand():
    truth = jnp.array([[0, 0, 1], [1, 2, 3]])
    predicted = jnp.array([[0, 1, 1], [3, 0, 0]])
    # The last pixel is void; the fourth is taken for void, and is a miss of class 1.
    confusion = confusion_matrix(truth, predicted, classes=3)
    np.testing.assert_array_equal(confusion, [[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]])
    # Class 0: one in common, two in the truth, two predicted; class 1: 1, 2, 2; class 2: 0, 1, 0.
    np.testing.assert_allclose(intersection_over_union(confusion), [1 / 3, 1 / 3, 0], rtol=EPS)
    np.testing.assert_allclose(mean_intersection_over_union(confusion), 2 / 9, rtol=2 * EPS)
    np.testing.assert_allclose(global_accuracy(confusion), 2 / 5, rtol=EPS)


def test_a_class_that_neither_has_is_left_out():
    confusion = confusion_matrix(jnp.array([0, 2]), jnp.array([0, 0]), classes=4)
    np.testing.assert_array_equal(intersection_over_union(confusion), [0.5, np.nan, 0, np.nan])
    assert mean_intersection_over_union(confusion) == 0.25
    empty = confusion_matrix(jnp.array([9]), jnp.array([0]), classes=2)
    assert np.isnan(mean_intersection_over_union(empty))
    assert np.isnan(global_accuracy(empty))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(-2, 7), st.integers(-2, 7)), min_size=12, max_size=12),
    st.permutations(range(12)),
)
def test_counts_as_sets_do(classes, pixels, order):
    truth, predicted = (np.array(labels) for labels in zip(*pixels, strict=True))
    confusion = np.asarray(confusion_matrix(truth, predicted, classes=classes))
    assert confusion.shape == (classes, classes + 1)
    judged = {i for i in range(12) if 0 <= truth[i] < classes}
    assert confusion.sum() == len(judged)
    found = np.asarray(intersection_over_union(confusion))
    for c in range(classes):
        a = {i for i in judged if truth[i] == c}
        b = {i for i in judged if predicted[i] == c}
        if a | b:
            # Small whole numbers: only the division rounds.
            assert abs(found[c] - len(a & b) / len(a | b)) <= EPS
        else:
            assert np.isnan(found[c])
    # Neither the order of pixels nor how they are split over images matters.
    order = list(order)
    parts = [
        np.asarray(confusion_matrix(truth[part], predicted[part], classes=classes))
        for part in (order[:6], order[6:])
    ]
    np.testing.assert_array_equal(confusion, sum(parts))


def test_labels_of_eight_bits_do_not_wrap():
    truth = jnp.full(3, 200, jnp.uint8)
    confusion = confusion_matrix(truth, truth, classes=201)
    assert confusion[200, 200] == 3


def test_errors():
    labels = jnp.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"predicted must have the shape of truth, \(2, 3\); got"):
        confusion_matrix(labels, labels[0], classes=2)
    with pytest.raises(ValueError, match="predicted must be integer labels; got float32"):
        confusion_matrix(labels, labels / 2, classes=2)
    with pytest.raises(ValueError, match="classes must be at least 1; got 0"):
        confusion_matrix(labels, labels, classes=0)
