"""The best class of every pixel, against JAX's own resizing; agreement by hand."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynvid.ops.labels import best_classes, label_agreement, label_map

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@functools.partial(jax.jit, static_argnums=1)
def found_and_resized(scores, to):
    return best_classes(scores, to), jax.image.resize(
        scores, (len(scores), *to, scores.shape[3]), "bilinear", antialias=False
    )


@settings(max_examples=20, deadline=None)
@given(size=SIDES, to=SIDES, seed=st.integers(0, 99))
def test_scores_are_resized_as_jax_resizes_them(size, to, seed):
    scores = np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)
    (labels, winning), resized = jax.device_get(found_and_resized(scores, to))
    # Two blends of weights that sum to one within a rounding each, here and there.
    tolerance = 8 * float(np.finfo(np.float32).eps) * float(np.abs(scores).max())
    np.testing.assert_allclose(winning, resized.max(3), rtol=0, atol=tolerance)
    of_label = np.take_along_axis(resized, labels[..., None].astype(int), 3)[..., 0]
    assert (resized.max(3) - of_label <= 2 * tolerance).all()


@pytest.mark.parametrize("size", [(6, 8), (12, 16)])
def test_a_window_is_cut_out_first(size):
    scores = jax.random.normal(jax.random.key(0), (1, 6, 8, 4))
    part = best_classes(scores, (3, 4), window=(2, 1, 3, 4))
    np.testing.assert_array_equal(part[0], jnp.argmax(scores[:, 2:5, 1:5], 3))
    whole = best_classes(scores, size, window=(0, 0, 6, 8))
    jax.tree.map(np.testing.assert_array_equal, whole, best_classes(scores, size))


def test_many_classes_and_equal_scores():
    labels, winning = best_classes(jnp.zeros((1, 2, 2, 300)).at[..., 299].set(1), (2, 2))
    assert labels.dtype == jnp.int32
    assert (labels == 299).all()
    assert (winning == 1).all()
    assert not best_classes(jnp.zeros((1, 2, 2, 3)), (4, 4))[0].any()


def test_counts():
    labels = jax.random.randint(jax.random.key(0), (2, 7, 5), 0, 4)
    found = label_map(labels, classes=6)
    assert found.labels.dtype == jnp.uint8
    for one, counts in zip(labels, found.counts, strict=True):
        np.testing.assert_array_equal(counts, np.bincount(np.ravel(one), minlength=6))


def test_confidence_is_a_percentage_of_what_counts():
    truth = jnp.array([[[0, 1], [255, 255]], [[255, 255], [255, 255]], [[3, 3], [3, 3]]])
    found = jnp.array([[[0, 2], [7, 7]], [[1, 1], [1, 1]], [[3, 3], [3, 0]]])
    assert label_agreement(truth, found).tolist() == [50.0, 100.0, 75.0]
    assert label_agreement(truth[:1], found[:1], ignore=1).tolist() == [pytest.approx(100 / 3)]


def test_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"scores must be \(S, h, w, classes\)"):
        best_classes(jnp.zeros((2, 2, 3)), (2, 2))
    with pytest.raises(ValueError, match=r"alike; got \(1, 2, 2\) and \(1, 2, 3\)"):
        label_agreement(jnp.zeros((1, 2, 2), int), jnp.zeros((1, 2, 3), int))
