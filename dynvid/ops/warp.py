"""Backward warping by motion fields, and their resizing (Deep Feature Flow, Eq. 1).

A motion field `(S, h, w, 2)` holds (dx, dy) in pixels of its own grid and points from the current
frame to the key frame: what is seen at p now was at p + M(p) in the key frame.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dynvid.ops.cells import gather_windows

Border = Literal["zeros", "edge"]
"""What is read outside of a map: zero, or the nearest of its pixels."""


class Motion(NamedTuple):
    """What a flow network says of pairs of images.

    Attributes:
      flow: `(S, h, w, 2)`, (dx, dy) in pixels of its own grid, from the current image to the key.
      scale: `(S, h, w, channels)`, what a warped map is multiplied by; None for nothing.
      features: What decisions are made from, `(S, a, b, c)`; None where there is nothing.
    """

    flow: jax.Array
    scale: jax.Array | None = None
    features: jax.Array | None = None


def warp(values: jax.Array, flow: jax.Array, *, border: Border = "zeros") -> jax.Array:
    """Carries a map of the key frame to the current frame along a motion field.

    `W(F, M)(p) = sum_q G(q, p + M(p)) F(q)` with the bilinear kernel
    `G(q, r) = max(0, 1 - |q_x - r_x|) max(0, 1 - |q_y - r_y|)` (Zhu et al., Deep Feature Flow,
    2017, Eq. 2-3; the W of High Performance Video Object Detection, Eq. 1, and of DVSNet 3.2).
    Pixel centres are whole numbers, the first 0 and the last `w - 1` ("align corners"). With
    `border="zeros"` pixels outside of the map count as zero, each by its own weight, as those
    papers on detection have it; with `"edge"` positions are clamped to the map, as DVSNet has it.

    Args:
      values: F, `(S, h, w, C)` floating; integers are converted to float32.
      flow: M, `(S, h, w, 2)` floating, (dx, dy) in pixels of this grid.
      border: What lies outside.

    Returns:
      `(S, h, w, C)` in the dtype of `values`. Differentiable in both; where a motion is a whole
      number, its gradient is that of one side.

    Raises:
      ValueError: The shapes do not fit each other, the flow is not floating, or an unknown border.

    Exact for motions of whole pixels, zero among them, as long as all values are finite: then one
    of the four weights is one. Else within four roundings of the values' dtype.

    >>> values = jnp.arange(4.0).reshape(1, 1, 4, 1)
    >>> left = jnp.zeros((1, 1, 4, 2)).at[..., 0].set(-1.5)
    >>> warp(values, left).ravel().tolist(), warp(values, left, border="edge").ravel().tolist()
    ([0.0, 0.0, 0.5, 1.5], [0.0, 0.0, 0.5, 1.5])
    >>> warp(values, -left).ravel().tolist(), warp(values, -left, border="edge").ravel().tolist()
    ([1.5, 2.5, 1.5, 0.0], [1.5, 2.5, 3.0, 3.0])
    """
    if values.ndim != 4 or flow.shape != (*values.shape[:3], 2):
        raise ValueError(
            f"flow must be (S, h, w, 2) for values (S, h, w, C); got {flow.shape} for "
            f"{values.shape}"
        )
    if not jnp.issubdtype(flow.dtype, jnp.floating):
        raise ValueError(f"flow must be floating; got {flow.dtype}")
    if border not in ("zeros", "edge"):
        raise ValueError(f"border must be 'zeros' or 'edge'; got {border!r}")
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        values = values.astype(jnp.float32)
    streams, height, width, channels = values.shape
    # Positions need more digits than a map of features may have.
    flow = flow.astype(jnp.promote_types(flow.dtype, jnp.float32))
    x = jnp.arange(width, dtype=flow.dtype) + flow[..., 0]
    y = jnp.arange(height, dtype=flow.dtype)[:, None] + flow[..., 1]
    pixels = values.reshape(streams, height * width, channels)

    def read(row: jax.Array, column: jax.Array) -> jax.Array:
        index = row * width + column
        return jax.vmap(lambda p, i: p.at[i].get(mode="promise_in_bounds"))(pixels, index)

    return _bilinear(read, x, y, size=(height, width), border=border, dtype=values.dtype)


def warp_windows(
    padded: jax.Array,
    flow: jax.Array,
    stream: jax.Array,
    row: jax.Array,
    column: jax.Array,
    *,
    size: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
    border: Border = "zeros",
) -> jax.Array:
    """Carries some windows of a map to the current frame: those parts of what `warp` gives.

    Args:
      padded: F with a halo, `(S, H, W, C)` floating.
      flow: M, `(S, h, w, 2)` floating, (dx, dy) in pixels of the map without its halo.
      stream: Which stream each window is of, `int32[K]`.
      row: The first row of each window, of the map without its halo, `int32[K]`; must lie inside.
      column: The first column, likewise.
      size: (rows, columns) of a window.
      origin: How many rows and columns of halo lie before the map.
      border: What lies outside of the map without its halo.

    Returns:
      `(K, *size, C)` in the dtype of the map.

    Exact: to the bit the windows of `warp`, but for what compilers fuse.

    >>> values = jnp.arange(4.0).reshape(1, 1, 4, 1)
    >>> left = jnp.zeros((1, 1, 4, 2)).at[..., 0].set(-1.5)
    >>> zero, two = jnp.array([0]), jnp.array([2])
    >>> warp_windows(values, left, zero, zero, two, size=(1, 2)).ravel().tolist()
    [0.5, 1.5]
    """
    _, height, width, _ = flow.shape
    part = gather_windows(flow, stream, row, column, size=size)
    part = part.astype(jnp.promote_types(flow.dtype, jnp.float32))
    rows, columns = jnp.arange(size[0])[:, None], jnp.arange(size[1])
    x = (column[:, None, None] + columns).astype(part.dtype) + part[..., 0]
    y = (row[:, None, None] + rows).astype(part.dtype) + part[..., 1]

    def read(row: jax.Array, column: jax.Array) -> jax.Array:
        at = (stream[:, None, None], row + origin[0], column + origin[1])
        return padded.at[at].get(mode="promise_in_bounds")

    return _bilinear(read, x, y, size=(height, width), border=border, dtype=padded.dtype)


def _bilinear(
    read: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    y: jax.Array,
    *,
    size: tuple[int, int],
    border: Border,
    dtype: jnp.dtype,
) -> jax.Array:
    """Reads a map of (height, width) `size` between its pixels; `read` takes rows and columns."""
    height, width = size
    if border == "edge":
        x, y = jnp.clip(x, 0, width - 1), jnp.clip(y, 0, height - 1)
    left, top = jnp.floor(x), jnp.floor(y)
    right, bottom = x - left, y - top  # the weights of those sides

    def corner(row: jax.Array, column: jax.Array, weight: jax.Array) -> jax.Array:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        # Clipped before they become integers: a motion may be larger than those.
        rows = jnp.clip(row, 0, height - 1).astype(jnp.int32)
        columns = jnp.clip(column, 0, width - 1).astype(jnp.int32)
        return read(rows, columns) * jnp.where(inside, weight, 0).astype(dtype)[..., None]

    return (
        corner(top, left, (1 - right) * (1 - bottom))
        + corner(top, left + 1, right * (1 - bottom))
        + corner(top + 1, left, (1 - right) * bottom)
        + corner(top + 1, left + 1, right * bottom)
    )


def warp_by(values: jax.Array, motion: Motion, *, border: Border = "zeros") -> jax.Array:
    """Carries a map to the current frame on the grid of a motion, times its scale field.

    `W(up(F_k), M) * S` (Deep Feature Flow, Eq. 4; DVSNet 3.2): a map of another size is first
    resized to the motion's grid, bilinearly.

    Args:
      values: F_k, `(S, h', w', C)` floating.
      motion: M and, where it has one, S with C channels.
      border: What lies outside, see `warp`.

    Returns:
      `(S, h, w, C)`, on the grid of the flow.

    Raises:
      ValueError: The scale has another shape than the result; else as `warp`.

    >>> warp_by(jnp.ones((1, 2, 2, 1)), Motion(jnp.zeros((1, 4, 4, 2)))).shape
    (1, 4, 4, 1)
    """
    shape = (*motion.flow.shape[:3], values.shape[3])
    if values.shape != shape:
        values = jax.image.resize(values, shape, "bilinear", antialias=False)
    warped = warp(values, motion.flow, border=border)
    if motion.scale is None:
        return warped
    if motion.scale.shape != warped.shape:
        raise ValueError(f"scale must be {list(warped.shape)}; got {list(motion.scale.shape)}")
    return warped * motion.scale.astype(warped.dtype)


def resize_flow(flow: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes a motion field together with its values, which are in pixels of their own grid.

    `M'(p) = (w' / w, h' / h) * M(p h / h')`, bilinear between pixel centres, without antialiasing
    (Deep Feature Flow, section 4: "the flow field is resized, its values scaled").

    Args:
      flow: `(S, h, w, 2)` floating, (dx, dy) in pixels of its own grid.
      size: (height, width) of the new grid.

    Returns:
      `(S, *size, 2)`, (dx, dy) in pixels of the new grid.

    Raises:
      ValueError: The flow has another shape or is not floating, or a side of `size` is below one.

    Exact where the motion is the same everywhere and the sides change by powers of two, and where
    the size stays.

    >>> flow = jnp.broadcast_to(jnp.array([1.0, -2.0]), (1, 4, 4, 2))
    >>> resize_flow(flow, (8, 16))[0, 5, 5].tolist()
    [4.0, -4.0]
    """
    if flow.ndim != 4 or flow.shape[3] != 2 or not jnp.issubdtype(flow.dtype, jnp.floating):
        raise ValueError(f"flow must be floating (S, h, w, 2); got {flow.dtype}{list(flow.shape)}")
    if min(size) < 1:
        raise ValueError(f"size must be (height, width) of at least 1; got {size}")
    streams, height, width, _ = flow.shape
    if (height, width) == tuple(size):
        return flow
    resized = jax.image.resize(flow, (streams, *size, 2), "bilinear", antialias=False)
    return resized * jnp.array([size[1] / width, size[0] / height], flow.dtype)


def resize_motion(motion: Motion, size: tuple[int, int]) -> Motion:
    """Brings a motion and its scale field to the grid of the map that is warped.

    Args:
      motion: On any grid.
      size: (height, width) of the new one.

    Returns:
      The flow resized with its values (`resize_flow`), the scale bilinearly; features stay.

    >>> motion = Motion(jnp.ones((1, 2, 2, 2)), jnp.ones((1, 2, 2, 5)))
    >>> larger = resize_motion(motion, (4, 8))
    >>> larger.scale.shape, larger.flow[0, 0, 0].tolist()
    ((1, 4, 8, 5), [4.0, 2.0])
    """
    scale = motion.scale
    if scale is not None and scale.shape[1:3] != tuple(size):
        shape = (scale.shape[0], *size, scale.shape[3])
        scale = jax.image.resize(scale, shape, "bilinear", antialias=False)
    return motion._replace(flow=resize_flow(motion.flow, size), scale=scale)
