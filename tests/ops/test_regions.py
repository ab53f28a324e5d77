"""Division and stitching of regions."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings

from dynvid.ops.regions import divide_frame


def test_the_papers_regions():
    # Rows [0, 576), [448, 1024); columns [0, 1088), [960, 2048): specification C1.
    regions = divide_frame((1024, 2048), overlap=64, multiple=8)
    assert (regions.size, regions.tops, regions.lefts) == ((576, 1088), (0, 448), (0, 960))
    assert regions.cuts == ((512,), (1024,))
    halves = divide_frame((1024, 2048), grid=(1, 2), overlap=64)  # DeepLab-v2's two
    assert (halves.size, halves.lefts) == ((1024, 1088), (0, 960))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    overlap=st.integers(0, 4),
    multiple=st.sampled_from([1, 2, 4]),
)
def test_every_pixel_is_covered_with_its_overlap(size, grid, overlap, multiple):
    overlap *= multiple
    try:
        regions = divide_frame(size, grid=grid, overlap=overlap, multiple=multiple)
    except ValueError:
        assume(False)
    assert len(regions) == grid[0] * grid[1] == len(regions.corners)
    for axis, (starts, cuts) in enumerate(
        zip((regions.tops, regions.lefts), regions.cuts, strict=True)
    ):
        side, long = size[axis], regions.size[axis]
        edges = (0, *cuts, side)
        assert long % multiple == 0 or long == side
        for start, (low, high) in zip(starts, itertools.pairwise(edges), strict=True):
            assert 0 <= start <= max(low - overlap, 0)
            assert min(high + overlap, side) <= start + long <= side


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 4)])
def test_stitching_what_was_divided_gives_the_frame_back(grid):
    regions = divide_frame((23, 31), grid=grid, overlap=2)
    frame = jnp.arange(23 * 31).reshape(1, 23, 31)
    parts = regions.divide(frame)
    assert parts.shape == (1, len(regions), *regions.size)
    scores = jax.random.normal(jax.random.key(0), parts.shape)
    np.testing.assert_array_equal(regions.stitch(parts, scores), frame)


def stitched_by_definition(regions, labels, scores):
    """Arg-max over regions at each pixel, pixel by pixel; ties to the lower index."""
    height, width = regions.frame_size
    out = np.zeros((height, width), int)
    for y in range(height):
        for x in range(width):
            best = -np.inf
            for r, (top, left) in enumerate(regions.corners):
                i, j = y - top, x - left
                if 0 <= i < regions.size[0] and 0 <= j < regions.size[1] and scores[r, i, j] > best:
                    best, out[y, x] = scores[r, i, j], labels[r, i, j]
    return out


@settings(max_examples=10, deadline=None)
@given(
    grid=st.sampled_from([(1, 1), (2, 2), (1, 3), (3, 2)]),
    overlap=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_stitching_is_the_arg_max_over_regions(grid, overlap, seed):
    regions = divide_frame((13, 17), grid=grid, overlap=overlap)
    rng = np.random.default_rng(seed)
    shape = (2, len(regions), *regions.size)
    labels = rng.integers(0, 5, shape, np.int32)
    scores = rng.integers(0, 4, shape).astype(np.float32)  # with many ties
    found = np.asarray(jax.jit(regions.stitch)(labels, scores))
    for s in range(2):
        expected = stitched_by_definition(regions, labels[s], scores[s])
        np.testing.assert_array_equal(found[s], expected)


def test_the_centre_does_not_depend_on_the_order():
    # Specification C1: where four regions meet, the published code forgets one score. Turning the
    # frame by half a turn reverses the order of the regions; without ties nothing else may change.
    regions = divide_frame((16, 16), overlap=4)
    keys = jax.random.split(jax.random.key(5))
    shape = (1, 4, *regions.size)
    labels = jax.random.randint(keys[0], shape, 0, 9)
    scores = jax.random.permutation(keys[1], jnp.arange(float(np.prod(shape)))).reshape(shape)
    turned = regions.stitch(labels[:, ::-1, ::-1, ::-1], scores[:, ::-1, ::-1, ::-1])
    np.testing.assert_array_equal(turned[:, ::-1, ::-1], regions.stitch(labels, scores))


def test_what_is_no_number_keeps_its_label_where_nobody_else_speaks():
    regions = divide_frame((1, 4), grid=(1, 2), overlap=1)
    labels = jnp.array([[[[1, 1, 1]], [[2, 2, 2]]]])
    found = regions.stitch(labels, jnp.full(labels.shape, jnp.nan))
    assert found.tolist() == [[[1, 1, 1, 2]]]
    found = regions.stitch(labels, jnp.full(labels.shape, -jnp.inf).at[0, 1].set(0.0))
    assert found.tolist() == [[[1, 2, 2, 2]]]


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((64, 64), {"grid": (0, 2)}, r"grid must be .* got \(0, 2\)"),
        ((64, 64), {"overlap": -8}, "overlap must be a multiple of 1 pixels, at least 0; got -8"),
        ((64, 64), {"overlap": 12, "multiple": 8}, "overlap must be a multiple of 8 .* got 12"),
        ((64, 64), {"overlap": 40}, "room for 2 regions of 32 pixels and an overlap of 40; got "
         "frames 64 high"),
        ((64, 20), {"overlap": 16}, "regions of 10 pixels and an overlap of 16; got frames 20 w"),
        ((2, 64), {"grid": (3, 1)}, "room for 3 regions of 1 pixels and an overlap of 0; got "
         "frames 2 high"),
        ((64, 64), {"multiple": 0}, "multiple must be at least 1; got 0"),
    ],
)  # fmt: skip
def test_says_what_does_not_fit(size, options, message):
    with pytest.raises(ValueError, match=message):
        divide_frame(size, **options)


def test_says_that_frames_or_labels_have_another_size():
    regions = divide_frame((8, 8), overlap=1)
    with pytest.raises(ValueError, match=r"frames must be \(S, 8, 8, ...\); got \(1, 8, 9\)"):
        regions.divide(jnp.zeros((1, 8, 9)))
    with pytest.raises(ValueError, match=r"labels and scores must be \(S, 4, 5, 5\)"):
        regions.stitch(jnp.zeros((1, 4, 4, 5), int), jnp.zeros((1, 4, 4, 5)))
