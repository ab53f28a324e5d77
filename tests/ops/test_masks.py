"""Masks against convolutions of zeros and ones, and against NumPy."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.ops import masks
from tests.ops.geometry import convolve, geometries, pairs


def random_mask(shape, seed, share=0.15):
    return np.random.default_rng(seed).random(shape) < share


def touched(mask, geometry):
    """Outputs whose window holds a mark: a convolution with ones, above a half."""
    ones = jnp.ones((*geometry["window"], 1, 1))
    return convolve(mask[..., None].astype(jnp.float32), ones, geometry)[..., 0] > 0.5


@settings(max_examples=30, deadline=None)
@given(geometries(input_dilation=True), st.integers(0, 99))
def test_stencil_marks_what_a_convolution_reads(case, seed):
    geometry, size = case
    mask = random_mask((2, *size), seed)
    marked, expected = jax.jit(
        lambda mask: (masks.stencil(mask, **geometry), touched(mask, geometry))
    )(mask)
    assert marked.shape == expected.shape
    np.testing.assert_array_equal(marked, expected)


@pytest.mark.parametrize("row", [0, 3, 6])
@pytest.mark.parametrize("column", [0, 4, 7])
@pytest.mark.parametrize("window", [(2, 2), (3, 5), (7, 7)])
def test_stencil_of_one_pixel(row, column, window):
    geometry = {
        "window": window,
        "strides": (2, 1),
        "padding": ((1, 2), (0, 3)),
        "dilation": (1, 2),
    }
    mask = jnp.zeros((1, 7, 8), bool).at[0, row, column].set(True)
    np.testing.assert_array_equal(masks.stencil(mask, **geometry), touched(mask, geometry))


@pytest.mark.parametrize("value", [False, True])
def test_stencil_of_an_empty_and_a_full_mask(value):
    mask = jnp.full((2, 5, 7), value)
    marked = masks.stencil(mask, window=(3, 3), padding=((1, 1), (1, 1)))
    np.testing.assert_array_equal(marked, mask)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_stencil_takes_any_leading_axes(leading):
    mask = random_mask((*leading, 5, 6), 0)
    marked = masks.stencil(mask, window=(3, 3), strides=(2, 2), padding=((0, 1), (1, 1)))
    each = masks.stencil(
        mask.reshape(-1, 5, 6), window=(3, 3), strides=(2, 2), padding=((0, 1), (1, 1))
    )
    np.testing.assert_array_equal(marked, each.reshape(*leading, *each.shape[1:]))


@pytest.mark.parametrize(
    ("size", "geometry"),
    [
        ((2, 9), {"window": (5, 3)}),  # a window larger than the frame
        ((3, 3), {"window": (1, 1), "padding": ((-2, -2), (0, 0))}),  # cropped to nothing
        ((0, 4), {"window": (1, 1), "padding": ((1, 1), (0, 0))}),  # padding only
    ],
)
def test_stencil_with_nothing_to_read(size, geometry):
    marked = masks.stencil(jnp.ones((1, *size), bool), **geometry)
    assert not marked.any()
    assert marked.shape[1] == (2 if size[0] == 0 else 0)


def test_dilation_of_a_vgg_grows_as_the_paper_says():
    # 3x3 convolutions 2, 2, 3, 3, 3 with 2x2 pooling between: a receptive field with a radius
    # of 90 pixels (spec A1).
    radius = 0
    mask = np.zeros((1, 512, 512), bool)
    mask[0, 256, 256] = True
    for group, layers in enumerate((2, 2, 3, 3, 3)):
        if group:
            mask = masks.stencil(mask, window=(2, 2), strides=(2, 2))
        for _ in range(layers):
            mask = masks.stencil(mask, window=(3, 3), padding=((1, 1), (1, 1)))
            radius += 2**group
    assert radius == 90
    rows = np.flatnonzero(mask.any(axis=(0, 2)))
    # Pixel 256 starts its block of 16, so conv5_3's marks reach floor(90 / 16) = 5 both ways, and
    # one more on the side where blocks that pooling widened begin.
    assert set(rows) <= set(range(10, 23))
    assert {11, 21} <= set(rows)


@settings(max_examples=15, deadline=None)
@given(pairs(1, 12), pairs(1, 5), st.integers(0, 99))
def test_cells_hold_every_mark_and_no_other(size, cell, seed):
    mask = np.asarray(random_mask((2, *size), seed, 0.1))
    cells = jax.jit(lambda mask: masks.to_cells(mask, cell))(mask)
    expected = np.zeros((2, -(-size[0] // cell[0]), -(-size[1] // cell[1])), bool)
    for stream, row, column in np.argwhere(mask):
        expected[stream, row // cell[0], column // cell[1]] = True
    np.testing.assert_array_equal(cells, expected)

    pixels = jax.jit(lambda cells: masks.from_cells(cells, cell, size))(cells)
    row, column = np.indices(size)
    np.testing.assert_array_equal(pixels, expected[:, row // cell[0], column // cell[1]])


def test_a_square_cell_may_be_one_number():
    mask = random_mask((1, 9, 10), 0)
    cells = masks.to_cells(mask, 4)
    np.testing.assert_array_equal(cells, masks.to_cells(mask, (4, 4)))
    np.testing.assert_array_equal(
        masks.from_cells(cells, 4, (9, 10)), masks.from_cells(cells, (4, 4), (9, 10))
    )


# 31 to 65 cells: around the words of 32 that the marks are counted by.
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 31), (2, 4, 4), (3, 1, 11), (1, 5, 13)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_worklist_is_row_major_and_repeats_the_last(shape, share):
    cells = np.asarray(random_mask(shape, 3, share))
    work = jax.jit(masks.worklist)(jnp.asarray(cells))
    expected = np.argwhere(cells)
    count = len(expected)
    assert int(work.count) == count
    listed = np.stack(work[:3], axis=1)
    assert listed.shape == (cells.size, 3)
    np.testing.assert_array_equal(listed[:count], expected)
    rest = expected[-1] if count else np.zeros(3, int)
    np.testing.assert_array_equal(listed[count:], np.broadcast_to(rest, (cells.size - count, 3)))
    assert all(array.dtype == jnp.int32 for array in work)


def test_worklist_of_one_late_cell():
    cells = jnp.zeros((2, 40, 50), bool).at[1, 39, 49].set(True)
    work = masks.worklist(cells)
    assert int(work.count) == 1
    assert (np.stack(work[:3], axis=1) == (1, 39, 49)).all()


def test_worklist_of_a_large_grid():
    cells = np.asarray(random_mask((3, 64, 100), 5, 0.3))
    work = masks.worklist(jnp.asarray(cells))
    count = int(work.count)
    np.testing.assert_array_equal(np.stack(work[:3], axis=1)[:count], np.argwhere(cells))


@pytest.mark.parametrize(
    ("call", "mask", "message"),
    [
        (
            functools.partial(masks.stencil, window=(3, 3)),
            jnp.ones((1, 4, 4)),
            "mask must be .* 2 or more .*float32",
        ),
        (
            functools.partial(masks.stencil, window=(3, 3)),
            jnp.ones(4, bool),
            r"mask must be .* 2 or more .*bool\[4\]",
        ),
        (
            functools.partial(masks.stencil, window=(2, 2)),
            jnp.ones((4, 4), int),
            "mask must be .* 2 or more .*int32",
        ),
        (
            functools.partial(masks.to_cells, cell=2),
            jnp.ones((4, 4), bool),
            r"mask must be boolean and of 3 axes; got bool\[4, 4\]",
        ),
        (masks.worklist, jnp.ones((4, 4), bool), r"cells must be .* 3 axes; got bool\[4, 4\]"),
    ],
)
def test_what_is_no_mask_is_named(call, mask, message):
    with pytest.raises(ValueError, match=message):
        call(mask)


def test_cells_of_another_frame_are_refused():
    with pytest.raises(ValueError, match=r"cells must be \(3, 3\) cells .*; got \(2, 3\)"):
        masks.from_cells(jnp.ones((1, 2, 3), bool), 4, (9, 12))


@functools.partial(jax.jit, static_argnums=1)
def resized_to(mask, to):
    # Twice the size too, where `jax.image.resize` takes the same positions: elsewhere its float32
    # may be off by a rounding.
    whole = tuple(2 * n for n in mask.shape[1:])
    nearest = jax.image.resize(mask, (len(mask), *whole), "nearest")
    return masks.resize_mask(mask, to), masks.resize_mask(mask, whole), nearest


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    to=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_a_resized_mask_is_that_of_the_nearest_neighbour(size, to):
    mask = random_mask((2, *size), 0, 0.5)
    rows, columns = (
        [math.floor(Fraction(2 * o + 1, 2) * n / m) for o in range(m)]
        for n, m in zip(size, to, strict=True)
    )
    expected = np.asarray(mask)[:, rows][:, :, columns]
    found, twice, nearest = resized_to(mask, to)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(twice, nearest)


def test_the_gradient_of_a_resized_mask_counts_its_readers():
    def total(m):
        return masks.resize_mask(m, (4, 3)).sum()

    assert jax.grad(total)(jnp.ones((2, 2))).tolist() == [[2, 4], [2, 4]]
    with pytest.raises(ValueError, match="at least 1 position each way; got"):
        masks.resize_mask(jnp.ones((0, 2)), (1, 1))


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 4), st.integers(0, 99))
def test_cover_mask_holds_all_that_lies_in_a_coarser_position(sides, seed):
    old, new = sides[:2], sides[2:]
    mask = np.asarray(random_mask((2, *old), seed, 0.1))
    finer = np.asarray(masks.resize_mask(mask, [max(a, b) for a, b in zip(old, new, strict=True)]))
    expected = np.zeros((2, *new), bool)
    for stream, row, column in np.argwhere(finer):
        at = [
            math.floor((Fraction(i) + Fraction(1, 2)) * n / count)
            for i, n, count in zip((row, column), new, finer.shape[1:], strict=True)
        ]
        expected[stream, *at] = True
    np.testing.assert_array_equal(masks.cover_mask(mask, new), expected)
    assert np.all(masks.resize_mask(mask, new) <= expected)
