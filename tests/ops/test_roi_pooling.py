"""Position-sensitive pooling against its definition in fractions."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings

from dynvid.ops.roi_pooling import position_sensitive_roi_pooling

EPS = float(jnp.finfo(jnp.float32).eps)
GRID, SIZE, DEPTH = 3, (5, 6), 2
# Multiples of a quarter are exact, and many a half among them; the map is 96 pixels wide.
COORDINATE = st.integers(-4 * 60, 4 * 160).map(lambda n: n / 4)
BOX = st.tuples(*[COORDINATE] * 4)

pool = jax.jit(position_sensitive_roi_pooling, static_argnames=("grid", "stride"))


def rounded(x):
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def spans(low, high, length, grid, stride):
    """The positions of each bin."""
    start = Fraction(rounded(low), stride)
    size = max(Fraction(rounded(high), stride) - start, Fraction(1, 10)) / grid
    for i in range(grid):
        first, after = math.floor(start + i * size), math.ceil(start + (i + 1) * size)
        yield min(max(first, 0), length), min(max(after, 0), length)


def defined(scores, boxes, grid, stride):
    streams, height, width, channels = scores.shape
    maps = scores.reshape(streams, height, width, grid, grid, channels // grid**2)
    out = np.zeros((*boxes.shape[:2], grid, grid, channels // grid**2), np.float32)
    for s, r in np.ndindex(*boxes.shape[:2]):
        x0, y0, x1, y1 = map(float, boxes[s, r])
        for i, (top, bottom) in enumerate(spans(y0, y1, height, grid, stride)):
            for j, (left, right) in enumerate(spans(x0, x1, width, grid, stride)):
                part = maps[s, top:bottom, left:right, i, j]
                count = part.shape[0] * part.shape[1]
                if count:
                    out[s, r, i, j] = part.sum((0, 1)) / np.float32(count)
    return out


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


@settings(max_examples=25, deadline=None, phases=[Phase.generate])
@given(boxes=st.lists(BOX, min_size=8, max_size=8), seed=st.integers(0, 99))
def test_is_what_it_is_defined_as(boxes, seed):
    """Boxes of any kind: inside, across the border, outside, empty and with their ends swapped."""
    boxes = np.array(boxes, np.float32).reshape(2, 4, 4)
    scores = integers(seed, 2, *SIZE, GRID * GRID * DEPTH)
    # Sums of small integers are exact. XLA divides by way of a reciprocal: two roundings, one here.
    np.testing.assert_allclose(
        pool(scores, boxes, grid=GRID, stride=16), defined(scores, boxes, GRID, 16), rtol=1.5 * EPS
    )


def test_the_grid_of_the_paper():
    """Bins of 7 by 7, where floating point puts multiples of a seventh beside whole positions."""
    scores = integers(0, 1, 38, 63, 49)
    edges = np.arange(0, 48 * 14, 48, dtype=np.float32)
    boxes = np.stack([edges, edges / 2, edges + 7 * 16, edges / 2 + 7 * 32], -1)[None]
    found = pool(scores, boxes, grid=7, stride=16)
    np.testing.assert_allclose(found, defined(scores, boxes, 7, 16), rtol=1.5 * EPS)


def test_whole_bins_are_means_of_their_maps():
    scores = integers(1, 1, 4, 4, 4)
    found = pool(scores, jnp.array([[[0.0, 0.0, 64.0, 64.0]]]), grid=2, stride=16)
    halves = scores.reshape(1, 2, 2, 2, 2, 4).mean((2, 4))
    expected = [[halves[0, i, j, 2 * i + j] for j in range(2)] for i in range(2)]
    np.testing.assert_array_equal(found[0, 0, ..., 0], expected)


def test_a_uniform_map_gives_its_value_wherever_there_is_some():
    ones = jnp.ones((1, *SIZE, GRID * GRID))
    boxes = jnp.array([[
        [0, 0, 96, 80], [33, 33, 33, 33], [70, 40, 10, 20],  # all of it, a point, ends swapped
        [200, 0, 300, 80], [-90, -90, -40, -40],  # outside
        [jnp.nan, 0, 96, 80], [-jnp.inf, -jnp.inf, jnp.inf, jnp.inf], [-1e30, 0, 1e30, 80],
    ]])  # fmt: skip
    found = pool(ones, boxes, grid=GRID, stride=16)[0, ..., 0]
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:3], 1)
    np.testing.assert_array_equal(found[3:6], 0)
    # Of a box a million times as large the map lies in one bin, or on the border of two.
    assert found[6].sum() > 0
    assert found[7].sum() > 0


def test_the_gradient_shares_each_mean_among_its_positions():
    boxes = jnp.array([[[0.0, 0.0, 32.0, 32.0]]])
    gradient = jax.grad(lambda z: pool(z, boxes, grid=1, stride=16).sum())(jnp.ones((1, 3, 3, 2)))
    expected = np.zeros((1, 3, 3, 2), np.float32)
    expected[:, :2, :2] = 0.25
    np.testing.assert_array_equal(gradient, expected)


def test_of_no_box_and_of_other_dtypes():
    scores = jnp.ones((1, 2, 2, 4), jnp.bfloat16)
    found = pool(scores, jnp.zeros((1, 0, 4)), grid=2, stride=16)
    assert found.shape == (1, 0, 2, 2, 1)
    assert found.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("scores", "boxes", "said"),
    [
        ((1, 2, 2, 5), (1, 3, 4), "scores must be"),
        ((2, 2, 4), (1, 3, 4), "scores must be"),
        ((1, 2, 2, 4), (2, 3, 4), "boxes must be"),
        ((1, 2, 2, 4), (1, 3, 5), "boxes must be"),
    ],
)
def test_shapes_that_do_not_fit(scores, boxes, said):
    with pytest.raises(ValueError, match=said):
        position_sensitive_roi_pooling(jnp.ones(scores), jnp.ones(boxes), grid=2)
