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


def deformable_roi_pooling(
    scores: jax.Array,
    boxes: jax.Array,
    offsets: jax.Array,
    *,
    grid: int = 7,
    stride: int = 16,
    samples: int = 4,
    gamma: float = 0.1,
) -> jax.Array:
    """Position-sensitive pooling of which every bin is moved (Dai et al. 2017, section 2.2).

    `y(i, j) = 1/n sum over p of x_ij(p0 + p + dp_ij)` with `dp_ij = gamma * offset * (w, h)` of the
    box (Deformable Convolutional Networks, Eq. 5); x between its positions is bilinear. As in the
    authors' code, a box reaches from `round(x0) / stride - 1/2` to `round(x1) / stride - 1/2`,
    p are `samples` by `samples` points from the corner of the bin on, evenly; those outside by over
    half a position do not count, and the others are brought into the map.

    Args:
      scores: x, `(S, h, w, grid * grid * C)` floating and finite, as of
        `position_sensitive_roi_pooling`.
      boxes: `(S, R, 4)` floating, likewise.
      offsets: `(S, R, grid, grid, G, 2)` floating, (dx, dy) in sides of the box times gamma: the C
        channels of a bin are divided into G groups that follow one another, as classes do. The
        authors' code has them as channels, a bin's row and column last.
      grid: k, bins each way.
      stride: Pixels of the image per position of the maps.
      samples: Points of a bin each way.
      gamma: What an offset of 1 is in sides of the box.

    Returns:
      `(S, R, grid, grid, C)` in the dtype of `scores`; 0 for bins without a point. Differentiable
      in scores and offsets; boxes have no gradient.

    Raises:
      ValueError: The shapes do not fit.

    >>> scores = jnp.arange(4.0).reshape(1, 1, 4, 1)
    >>> box, right = jnp.array([[[0.0, 0.0, 16.0, 16.0]]]), jnp.zeros((1, 1, 1, 1, 1, 2)).at[..., 0]
    >>> [
    ...     deformable_roi_pooling(scores, box, right.set(by), grid=1, samples=2).item()
    ...     for by in (5.0, 15.0)
    ... ]
    [0.25, 1.25]
    """
    if scores.ndim != 4 or grid < 1 or scores.shape[3] % (grid * grid):
        raise ValueError(
            f"scores must be (S, h, w, grid * grid * C) with grid {grid}; got {scores.shape}"
        )
    if boxes.ndim != 3 or boxes.shape[0] != scores.shape[0] or boxes.shape[2] != 4:
        raise ValueError(f"boxes must be ({scores.shape[0]}, R, 4); got {boxes.shape}")
    streams, height, width, channels = scores.shape
    depth = channels // (grid * grid)
    if (
        offsets.ndim != 6
        or offsets.shape[:4] != (*boxes.shape[:2], grid, grid)
        or offsets.shape[5] != 2
        or offsets.shape[4] < 1
        or depth % offsets.shape[4]
    ):
        raise ValueError(
            f"offsets must be {[*boxes.shape[:2], grid, grid, 'G', 2]}, {depth} channels a "
            f"multiple of G; got {list(offsets.shape)}"
        )
    groups = offsets.shape[4]
    unknown = jnp.any(jnp.isnan(boxes), -1, keepdims=True)
    edges = _rounded(jnp.clip(jnp.where(unknown, -_FAR, boxes), -_FAR, _FAR))
    edges = edges.astype(offsets.dtype) / stride - 0.5
    start, side = edges[..., :2], jnp.maximum(edges[..., 2:] - edges[..., :2], 0.1)
    # A row of bins at a time, as above: all points of all bins are many.
    table = scores.reshape(streams, height, width, grid, grid, groups, -1)
    limits = jnp.array([width, height], offsets.dtype)
    steps = jnp.arange(samples, dtype=offsets.dtype) / samples
    points = jnp.stack(jnp.meshgrid(steps, steps), -1).reshape(-1, 2)
    columns = jnp.arange(grid)

    def pool(row: jax.Array) -> jax.Array:
        corner = jnp.stack([columns, jnp.full_like(columns, row)], -1).astype(offsets.dtype)
        moved = gamma * jnp.take(offsets, row, axis=2)  # (S, R, grid, G, 2)
        inside = (corner[:, None] + points) / grid  # (grid, points, 2)
        at = inside[:, None] + moved[..., None, :]  # (S, R, grid, G, points, 2)
        at = start[:, :, None, None, None] + side[:, :, None, None, None] * at
        counted = jnp.all((at >= -0.5) & (at <= limits - 0.5), -1)
        at = jnp.clip(at, 0, limits - 1)
        low = jnp.floor(at)
        high = jnp.minimum(low + 1, limits - 1)
        far = (at - low).astype(scores.dtype)

        def read(maps: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
            bins, those = columns[:, None, None], jnp.arange(groups)[:, None]
            return maps[y.astype(jnp.int32), x.astype(jnp.int32), row, bins, those]

        def corner_of(x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
            return jax.vmap(read)(table, x, y) * weight[..., None]

        total = (
            corner_of(low[..., 0], low[..., 1], (1 - far[..., 0]) * (1 - far[..., 1]))
            + corner_of(high[..., 0], low[..., 1], far[..., 0] * (1 - far[..., 1]))
            + corner_of(low[..., 0], high[..., 1], (1 - far[..., 0]) * far[..., 1])
            + corner_of(high[..., 0], high[..., 1], far[..., 0] * far[..., 1])
        )
        summed = jnp.sum(jnp.where(counted[..., None], total, 0), 4)
        count = jnp.maximum(jnp.sum(counted, 4), 1)[..., None].astype(scores.dtype)
        return (summed / count).reshape(*summed.shape[:3], depth)

    return jnp.moveaxis(lax.map(pool, jnp.arange(grid)), 0, 2)


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
