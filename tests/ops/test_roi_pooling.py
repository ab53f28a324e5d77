"""Position-sensitive pooling against its definition in fractions."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings

from dynvid.ops.roi_pooling import deformable_roi_pooling, position_sensitive_roi_pooling

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


def bilinear(plane, x, y):
    x0, y0 = math.floor(x), math.floor(y)
    x1, y1 = min(x0 + 1, plane.shape[1] - 1), min(y0 + 1, plane.shape[0] - 1)
    fx, fy = x - x0, y - y0
    top = (1 - fx) * plane[y0, x0] + fx * plane[y0, x1]
    return (1 - fy) * top + fy * ((1 - fx) * plane[y1, x0] + fx * plane[y1, x1])


def moved_bins(scores, boxes, offsets, grid, stride, samples, gamma):
    """Deformable pooling as its code defines it, point by point, in float64."""
    streams, height, width, channels = scores.shape
    depth, groups = channels // grid**2, offsets.shape[4]
    maps = scores.astype(np.float64).reshape(streams, height, width, grid, grid, depth)
    out = np.zeros((*boxes.shape[:2], grid, grid, depth))
    for s, r, i, j, c in np.ndindex(*out.shape):
        x0, y0, x1, y1 = (rounded(float(v)) / stride - 0.5 for v in boxes[s, r])
        w, h = max(x1 - x0, 0.1), max(y1 - y0, 0.1)
        dx, dy = gamma * offsets[s, r, i, j, c * groups // depth].astype(np.float64)
        found = []
        for a, b in np.ndindex(samples, samples):
            x = x0 + w * ((j + b / samples) / grid + dx)
            y = y0 + h * ((i + a / samples) / grid + dy)
            if -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5:
                x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
                found.append(bilinear(maps[s, :, :, i, j, c], x, y))
        out[s, r, i, j, c] = np.mean(found) if found else 0
    return out


@pytest.mark.parametrize("groups", [1, 2])
def test_moved_bins_are_what_they_are_defined_as(groups):
    rng = np.random.default_rng(groups)
    scores = integers(3, 2, *SIZE, GRID * GRID * DEPTH)
    # Inside, across the border, outside, empty; half pixels are rounded away from zero.
    boxes = np.array(
        [
            [[8.0, 4.5, 70.0, 66.0], [-30.0, -9.0, 40.0, 200.0], [300.0, 0.0, 330.0, 30.0]],
            [[40.0, 40.0, 40.0, 40.0], [0.0, 0.0, 96.0, 80.0], [17.0, 3.0, 31.0, 77.5]],
        ],
        np.float32,
    )
    # No point may be so near the border that rounding decides whether it counts.
    offsets = rng.uniform(-4, 4, (2, 3, GRID, GRID, groups, 2)).astype(np.float32)
    found = deformable_roi_pooling(scores, boxes, offsets, grid=GRID, samples=2)
    expected = moved_bins(scores, boxes, offsets, GRID, 16, 2, 0.1)
    assert (expected == 0).any()
    assert (expected != 0).any()
    # Positions below 16 are within ten roundings, and values below 8 change by at most 16 a step.
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * 16 * 2 * 16 * EPS)


def test_moved_bins_have_gradients():
    scores, boxes = integers(1, 1, *SIZE, DEPTH), np.array([[[10.0, 10.0, 50.0, 55.0]]], np.float32)
    offsets = jnp.full((1, 1, 1, 1, 1, 2), 0.37)

    def total(scores, offsets):
        return deformable_roi_pooling(scores, boxes, offsets, grid=1, samples=3).sum()

    by_score, by_offset = jax.grad(total, (0, 1))(jnp.asarray(scores), offsets)
    # Every point is inside: all weights of a channel sum to one.
    np.testing.assert_allclose(by_score.sum((0, 1, 2)), 1, atol=40 * EPS)
    step = 2.0**-9  # bilinear between positions, and no point crosses one
    for axis in range(2):
        moved = [total(scores, offsets.at[..., axis].add(d)) for d in (step, -step)]
        # Sums below 16, off by some ten roundings each.
        tolerance = 2 * 16 * 10 * EPS / (2 * step)
        np.testing.assert_allclose(
            by_offset[..., axis].item(), (moved[0] - moved[1]) / (2 * step), atol=tolerance
        )


@pytest.mark.parametrize(
    "offsets", [(1, 2, 3, 3, 1, 3), (1, 1, 3, 3, 1, 2), (1, 2, 3, 3, 3, 2), (1, 2, 3, 3, 0, 2)]
)
def test_offsets_that_do_not_fit(offsets):
    scores, boxes = jnp.zeros((1, *SIZE, GRID * GRID * DEPTH)), jnp.zeros((1, 2, 4))
    with pytest.raises(ValueError, match=r"offsets must be \[1, 2, 3, 3, 'G', 2\], 2 channels"):
        deformable_roi_pooling(scores, boxes, jnp.zeros(offsets), grid=GRID)
