from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.ops.block_transform import (
    block_transform,
    frequency_order,
    from_blocks,
    inverse_block_transform,
    to_blocks,
)

BLOCKS = [1, 2, 3, 4, 8, 16]


def tolerance(values, *, block):
    """Of a transform of float32, for each block and channel, `[..., c]`.

    A coefficient is a sum of b^2 products. Weights are rounded to 2^-24 of themselves, each product
    and each of the sums it goes through too: (b^2 + 1) 2^-24 sum |w x|, whatever the order of
    summation; and sum |w x| <= |x|, the root of the sum of squares, as |w| = 1. Second-order terms
    fit in one more unit.
    """
    parts = np.asarray(values, np.float64)
    parts = parts.reshape(*parts.shape[:-1], block**2, -1)
    return (block**2 + 2) * 2**-24 * np.sqrt(np.sum(parts**2, -2))


def within(difference, bound, *, block):
    """Whether every value of every block is within the bound of its block and channel."""
    parts = np.abs(np.asarray(difference, np.float64))
    parts = parts.reshape(*parts.shape[:-1], block**2, -1)
    return bool(np.all(parts <= bound[..., None, :]))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    st.integers(1, 16),
    st.sampled_from(["float32", "float16", "bfloat16", "int32", "int16", "uint8", "bool"]),
    st.booleans(),
)
def test_blocks_are_moved_and_put_back_bit_for_bit(sizes, block, dtype, negate):
    streams, rows, columns, channels = sizes
    shape = (streams, rows * block, columns * block, channels)
    values = np.arange(np.prod(shape), dtype=np.int64).reshape(shape) % 251
    # -0.0 and wrapped ones, too; of NumPy, so that nothing is compiled.
    values: Any = (-values if negate else values).astype(jnp.dtype(dtype))
    coded = to_blocks(values, block=block)
    assert coded.shape == (streams, rows, columns, block * block * channels)
    back = from_blocks(coded, block=block)
    assert back.dtype == values.dtype
    assert np.ascontiguousarray(back).tobytes() == values.tobytes()
    # Where each value went, spelled out.
    n, i, j, c = np.indices(shape)
    place = (i % block * block + j % block) * channels + c
    np.testing.assert_array_equal(coded[n, i // block, j // block, place], values)


def test_arrays_on_the_device_are_moved_alike():
    values: Any = np.random.default_rng(0).normal(size=(2, 6, 9, 5)).astype(np.float32)
    coded = jax.jit(lambda x: to_blocks(x, block=3))(values)
    np.testing.assert_array_equal(coded, to_blocks(values, block=3))
    np.testing.assert_array_equal(jax.jit(lambda x: from_blocks(x, block=3))(coded), values)


@pytest.mark.parametrize("block", BLOCKS)
def test_frequencies_rise_by_diagonals(block):
    order = frequency_order(block)
    assert order.shape == (block * block, 2)
    assert order[0].tolist() == [0, 0]
    assert sorted(map(tuple, order.tolist())) == list(np.ndindex(block, block))
    assert np.all(np.diff(order.sum(1)) >= 0)
    for diagonal in range(2 * block - 1):  # within one, squarer patterns come first
        apart = np.abs(np.subtract(*order[order.sum(1) == diagonal].T))
        assert np.all(np.diff(apart) >= 0)


def test_the_order_of_a_block_of_three():
    assert frequency_order(3).tolist() == [
        *([0, 0], [0, 1], [1, 0]),
        *([1, 1], [0, 2], [2, 0]),
        *([1, 2], [2, 1], [2, 2]),
    ]


@pytest.mark.parametrize("block", BLOCKS)
def test_it_is_the_orthonormal_cosine_transform(block):
    rng = np.random.default_rng(block)
    image: Any = rng.normal(0, 3, (2, 2 * block, 3 * block, 3)).astype(np.float32)
    image *= 10.0 ** rng.integers(-3, 4, 3)  # channels of very different size stay apart
    values = to_blocks(image, block=block)
    found = np.asarray(block_transform(jnp.asarray(values), block=block))
    assert found.dtype == np.float32
    bound = tolerance(values, block=block)
    rows, columns = frequency_order(block).T
    for i in range(2):
        for j in range(3):
            cell = image[:, i * block : (i + 1) * block, j * block : (j + 1) * block]
            expected = np.asarray(scipy.fft.dctn(np.float64(cell), axes=(1, 2), norm="ortho"))
            expected = expected[:, rows, columns].reshape(2, -1)  # by frequency, channels last
            assert within(found[:, i, j] - expected, bound[:, i, j], block=block)


@pytest.mark.parametrize("block", BLOCKS)
def test_sums_of_squares_stay_and_the_inverse_gives_the_values_back(block):
    rng = np.random.default_rng(block)
    values = rng.normal(0, 2, (3, 5, 2 * block * block)).astype(np.float32)
    found = block_transform(jnp.asarray(values), block=block)
    bound = tolerance(values, block=block)  # of one coefficient; of all b^2 together, b times that

    def norms(x):
        return np.sqrt(np.sum(np.float64(x).reshape(3, 5, block**2, 2) ** 2, -2))

    assert np.all(np.abs(norms(found) - norms(values)) <= block * bound)
    # The error of the coefficients comes through the inverse with its norm, that of the inverse
    # itself comes on top.
    back = inverse_block_transform(found, block=block)
    assert within(back - values, block * bound + tolerance(found, block=block), block=block)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_first_coefficient_is_the_mean(block):
    values = jnp.full((1, block * block * 2), 1.0)
    found = block_transform(values, block=block)
    bound = tolerance(values, block=block)
    expected = np.repeat(np.eye(1, block * block) * block, 2, axis=-1)
    assert within(found - expected, bound, block=block)
    nothing = inverse_block_transform(jnp.zeros((1, block * block * 2)), block=block)
    assert np.all(np.asarray(nothing) == 0)


@pytest.mark.parametrize("size", [(4, 6), (6, 4), (3, 3)])
def test_a_block_that_does_not_fit(size):
    height, width = size
    with pytest.raises(
        ValueError, match=rf"block must divide height and width, {height} x {width}; got 4"
    ):
        to_blocks(jnp.zeros((1, height, width, 2)), block=4)
