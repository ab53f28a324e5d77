"""The discrete cosine transform of square blocks, whose coefficients become channels."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def frequency_order(block: int) -> np.ndarray:
    """Gives the rows and columns of a block's coefficients, by rising frequency.

    Args:
      block: b, the side of a block.

    Returns:
      `int[b * b, 2]`: by diagonals `row + column`, within one from its middle outwards.

    >>> frequency_order(2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    places = [(row, column) for row in range(block) for column in range(block)]
    return np.array(sorted(places, key=lambda place: (sum(place), max(place), place)))


def to_blocks(values: jax.Array, *, block: int) -> jax.Array:
    """Makes the values of each block channels of one position.

    Args:
      values: `(n, h, w, c)`.
      block: b; h and w must be multiples of it.

    Returns:
      `(n, h / b, w / b, b * b * c)`: row by row of the block, channels last.

    Raises:
      ValueError: b does not divide h and w.

    Exact: values are only moved; `from_blocks` puts them back.

    >>> to_blocks(jnp.arange(8).reshape(1, 2, 4, 1), block=2).tolist()
    [[[[0, 1, 4, 5], [2, 3, 6, 7]]]]
    """
    n, height, width, channels = values.shape
    if height % block or width % block:
        raise ValueError(f"block must divide height and width, {height} x {width}; got {block}")
    parts = values.reshape(n, height // block, block, width // block, block, channels)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // block, width // block, -1)


def from_blocks(values: jax.Array, *, block: int) -> jax.Array:
    """Puts the values of blocks back to their positions: the inverse of `to_blocks`.

    Args:
      values: `(n, h / b, w / b, b * b * c)`.
      block: b.

    Returns:
      `(n, h, w, c)`.

    >>> from_blocks(to_blocks(jnp.arange(8).reshape(1, 2, 4, 1), block=2), block=2).ravel()
    Array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32)
    """
    n, height, width, channels = values.shape
    parts = values.reshape(n, height, width, block, block, channels // block**2)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(n, height * block, width * block, -1)


def block_transform(values: jax.Array, *, block: int) -> jax.Array:
    """Computes the orthonormal DCT-II of blocks, each channel by itself.

    `t[u, v] = a_u a_v / b sum_ij x[i, j] cos((2i + 1) u pi / 2b) cos((2j + 1) v pi / 2b)`, with
    `a_0 = 1`, else `sqrt(2)`: `t[0, 0]` is b times the block's mean, and sums of squares stay.

    Args:
      values: `float[..., b * b * c]`, as `to_blocks` makes them.
      block: b.

    Returns:
      `float[..., b * b * c]`: coefficients in `frequency_order`, channels last.

    Approximate because it rounds: `inverse_block_transform` gives back the values to about
    `2 b` units in the last place of the block's largest.

    >>> values = to_blocks(jnp.ones((1, 4, 4, 1)), block=4)
    >>> block_transform(values, block=4).round(5).ravel()[:4]
    Array([4., 0., 0., 0.], dtype=float32)
    """
    return _product(values, _matrix(block))


def inverse_block_transform(coefficients: jax.Array, *, block: int) -> jax.Array:
    """Computes the values of blocks from their coefficients: the inverse of `block_transform`.

    Args:
      coefficients: `float[..., b * b * c]`.
      block: b.

    Returns:
      `float[..., b * b * c]`, to be put in place by `from_blocks`.

    >>> inverse_block_transform(jnp.array([2.0, 0.0, 0.0, 0.0]), block=2).round(5)
    Array([1., 1., 1., 1.], dtype=float32)
    """
    return _product(coefficients, _matrix(block).T)


def _product(values: jax.Array, matrix: np.ndarray) -> jax.Array:
    parts = values.reshape(*values.shape[:-1], len(matrix), -1)
    weights = jnp.asarray(matrix, values.dtype)
    if parts.shape[-1] >= len(matrix):
        # One small product a block: XLA on CPU copies the matrix, and still takes half the time.
        weights = jnp.broadcast_to(weights, (*values.shape[:-1], *matrix.shape))
        found = jnp.matmul(weights, parts, precision=lax.Precision.HIGHEST)
    else:
        found = jnp.einsum("fv,...vc->...fc", weights, parts, precision=lax.Precision.HIGHEST)
    return found.reshape(values.shape)


def _matrix(block: int) -> np.ndarray:
    """Coefficients by values of a block, `float64[b * b, b * b]`."""
    places = np.arange(block)
    basis = np.cos((2 * places + 1) * places[:, None] * np.pi / (2 * block))
    basis *= np.where(places == 0, 1, np.sqrt(2))[:, None] / np.sqrt(block)
    rows, columns = frequency_order(block).T
    return np.einsum("fi,fj->fij", basis[rows], basis[columns]).reshape(block**2, block**2)
