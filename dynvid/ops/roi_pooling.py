"""Position-sensitive pooling of regions of interest (Dai et al., R-FCN, 2016, section 2.2)."""

import jax
import jax.numpy as jnp
from jax import lax

_FAR = 1 << 20  # pixels: coordinates beyond are cut off, so that what follows fits 32 bits


def position_sensitive_roi_pooling(
    scores: jax.Array, boxes: jax.Array, *, grid: int = 7, stride: int = 16
) -> jax.Array:
    """The mean of each bin of each box, every bin reading score maps of its own.

    `r(i, j, c) = 1/n sum of z(i, j, c) over the n positions of bin (i, j)` (R-FCN, Eq. 1). A box
    reaches from x0 to x1, both rounded to whole pixels, half away from zero, and divided by
    `stride`, but has at least a tenth of a position; bin j of k has the positions from
    `floor(x0 + j (x1 - x0) / k)` to before `ceil(x0 + (j + 1) (x1 - x0) / k)` that lie in the map,
    so that neighbouring bins may share some (the authors' code). With all k x k bins of one class
    averaged, a box has its score.

    Args:
      scores: z, `(S, h, w, grid * grid * C)` floating and finite: row of the bin, its column, c.
        Caffe and MXNet have c first.
      boxes: `(S, R, 4)` floating, `(x0, y0, x1, y1)` in pixels of the image, from edge to edge:
        that code, which names the last pixel instead, has x1 - 1 and y1 - 1.
      grid: k, bins each way.
      stride: Pixels of the image per position of the maps.

    Returns:
      `(S, R, grid, grid, C)` in the dtype of `scores`; 0 for bins without a position, as of boxes
      outside or with NaN. Differentiable in `scores`; boxes have no gradient.

    Raises:
      ValueError: The shapes do not fit, or the channels are no multiple of `grid` squared.

    Exact: bins are found in integers, where code in floating point may be off by one position;
    means are within their sums' roundings and two. Boxes beyond 2^20 pixels are cut off there.

    >>> scores = jnp.arange(16.0).reshape(1, 2, 2, 4)
    >>> box = jnp.array([[[0.0, 0.0, 32.0, 32.0]]])
    >>> position_sensitive_roi_pooling(scores, box, grid=2).ravel().tolist()
    [0.0, 5.0, 10.0, 15.0]
    """
    if scores.ndim != 4 or grid < 1 or scores.shape[3] % (grid * grid):
        raise ValueError(
            f"scores must be (S, h, w, grid * grid * C) with grid {grid}; got {scores.shape}"
        )
    if boxes.ndim != 3 or boxes.shape[0] != scores.shape[0] or boxes.shape[2] != 4:
        raise ValueError(f"boxes must be ({scores.shape[0]}, R, 4); got {boxes.shape}")
    streams, height, width, _ = scores.shape
    unknown = jnp.any(jnp.isnan(boxes), -1, keepdims=True)
    edges = _rounded(jnp.clip(jnp.where(unknown, -_FAR, boxes), -_FAR, _FAR))
    rows = _bins(edges[..., 1], edges[..., 3], height, grid, stride)
    columns = _bins(edges[..., 0], edges[..., 2], width, grid, stride).astype(scores.dtype)
    maps = jnp.moveaxis(scores.reshape(streams, height, width, grid, grid, -1), 3, 0)

    # Sums as products with masks, a row of bins at a time: the positions of bins differ in number,
    # and to gather them would need the most that there may be.
    def pool(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, taken = given
        highest = lax.Precision.HIGHEST
        summed = jnp.einsum("srh,shwjc->srwjc", taken, own, precision=highest)
        return jnp.einsum("srjw,srwjc->srjc", columns, summed, precision=highest)

    total = lax.map(pool, (maps, jnp.moveaxis(rows, 2, 0).astype(scores.dtype)))
    count = jnp.sum(rows, -1)[..., :, None] * jnp.sum(columns, -1, dtype=int)[..., None, :]
    return jnp.moveaxis(total, 0, 2) / jnp.maximum(count, 1)[..., None].astype(scores.dtype)


def _rounded(x: jax.Array) -> jax.Array:
    """The nearest integer, half away from zero, as C's `round`."""
    whole = jnp.trunc(x)
    return (whole + jnp.sign(x) * (jnp.abs(x - whole) >= 0.5)).astype(jnp.int32)


def _bins(low: jax.Array, high: jax.Array, length: int, grid: int, stride: int) -> jax.Array:
    """Which of `length` positions each bin along an axis has, bool `(S, R, grid, length)`.

    In units of 1 / (10 grid stride) positions all that the definition adds up is whole.
    """
    unit = 10 * grid * stride
    size = jnp.maximum(10 * (high - low), stride)[..., None]
    start = 10 * grid * low[..., None] + jnp.arange(grid) * size
    first, after = start // unit, -((-start - size) // unit)
    at = jnp.arange(length)
    return (at >= first[..., None]) & (at < after[..., None])
