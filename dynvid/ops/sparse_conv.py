"""Convolution only where something changed.

DynCNN, sections 3.3-3.4, partitions a feature map in two ways. *Pixel-based*: each impacted output
pixel brings its own copy of the inputs in its window: `convolve_pixels`, and `pixel_sparse_conv`,
short and differentiable, the reference for the rest. *Cell-based*: cells of neighbouring pixels
share their inputs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.ops import cells, masks

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def pixel_sparse_conv(
    x: jax.Array,
    kernel: jax.Array,
    previous: jax.Array,
    mask: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    capacity: int | None = None,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Convolves where the input changed and keeps the previous output elsewhere.

    `y(o) = sum_j w(j) x(o * s - p + j * d)` where the window of `o` holds a changed pixel,
    `y(o) = y_previous(o)` elsewhere (DynCNN, section 3.3, the pixel-based partition). Every pair of
    an impacted output pixel and a tap of the kernel makes one contribution; a segment sum adds up
    those of each output pixel.

    Args:
      x: `[B, H, W, C]`, the input.
      kernel: `[kh, kw, C / groups, C']`.
      previous: `[B, H', W', C']`, the output for the previous input.
      mask: `bool[B, H, W]`, the input pixels that changed.
      strides: (rows, columns).
      padding: ((top, bottom), (left, right)), of zeros; negative values crop.
      dilation: (rows, columns) between the kernel's taps.
      groups: number of channel groups, C for a depthwise convolution.
      capacity: how many output pixels to make room for, by default all `B * H' * W'`. Where more
        are impacted the convolution runs dense: nothing is ever left out.
      precision: of the products, as in `lax.conv_general_dilated`.

    Returns:
      `[B, H', W', C']`. Differentiable with respect to `x`, `kernel` and `previous`.

    Raises:
      ValueError: shapes that do not fit one another, or a capacity below one.

    Exact when `previous` is the convolution of an input that differs from `x` under the mask only;
    bit for bit on integer values, up to the order of summation on others.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> mask = jnp.zeros((1, 4, 4), bool).at[0, 0, 0].set(True)
    >>> kernel, padding = jnp.ones((3, 3, 1, 1)), ((1, 1), (1, 1))
    >>> pixel_sparse_conv(x, kernel, jnp.zeros_like(x), mask, padding=padding)[0, ..., 0]
    Array([[10., 18.,  0.,  0.],
           [27., 45.,  0.,  0.],
           [ 0.,  0.,  0.,  0.],
           [ 0.,  0.,  0.,  0.]], dtype=float32)
    """
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity: expected at least 1, got {capacity}")
    _check_shapes(x, kernel, previous, mask, strides, padding, dilation, groups)
    window = kernel.shape[:2]
    impacted = masks.stencil(
        mask, window=window, strides=strides, padding=padding, dilation=dilation
    )
    listed = masks.worklist(impacted)
    size = impacted.size if capacity is None else min(capacity, impacted.size)

    def sparse() -> jax.Array:
        # Entries past the count go to a stream that does not exist: they are dropped.
        real = jnp.arange(size) < listed.count
        stream, row, column = (axis[:size] for axis in listed[:3])
        stream = jnp.where(real, stream, impacted.shape[0])
        fresh = convolve_pixels(
            x,
            kernel,
            stream,
            row,
            column,
            strides=strides,
            padding=padding,
            dilation=dilation,
            groups=groups,
            precision=precision,
        )
        out = jnp.zeros(previous.shape, fresh.dtype)
        return out.at[stream, row, column].set(fresh, mode="drop")

    def dense() -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=_LAYOUT,
            feature_group_count=groups,
            precision=precision,
        )

    fits_always = size == impacted.size
    fresh = sparse() if fits_always else lax.cond(listed.count > size, dense, sparse)
    return jnp.where(impacted[..., None], fresh, previous)


def convolve_pixels(
    x: jax.Array,
    kernel: jax.Array,
    stream: jax.Array,
    row: jax.Array,
    column: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: jnp.dtype | None = None,
) -> jax.Array:
    """Computes a convolution at single output pixels.

    `y(o) = sum_j w(j) x(o * s - p + j * d)` (DynCNN, section 3.3): the needed pixels of every
    output pixel are gathered, each is multiplied with its tap's weights, and a segment sum adds up
    the contributions.

    Args:
      x: `[B, H, W, C]`, the input; zero outside.
      kernel: `[kh, kw, C / groups, C']`.
      stream: `int32[N]`, the stream of each output pixel.
      row: `int32[N]`, its row in the output.
      column: `int32[N]`, its column in the output.
      strides: (rows, columns).
      padding: ((top, bottom), (left, right)); top and left count.
      dilation: (rows, columns) between the kernel's taps.
      groups: number of channel groups, C for a depthwise convolution.
      precision: of the products, as in `lax.conv_general_dilated`.
      preferred_element_type: of the result, as in `lax.conv_general_dilated`.

    Returns:
      `[N, C']`.

    Exact on integer values, up to the order of summation on others.

    >>> at = jnp.array([0])
    >>> convolve_pixels(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)), at, at + 1, at)
    Array([[18.]], dtype=float32)
    """
    tap_row, tap_column = (
        np.indices(kernel.shape[:2]).reshape(2, -1) * np.array(dilation)[:, None]
    )[..., None]
    taps = len(tap_row)
    needed = _read_or_zero(
        x,
        stream,
        row * strides[0] - padding[0][0] + tap_row,
        column * strides[1] - padding[1][0] + tap_column,
    )
    contributions = jnp.einsum(
        "tngi,tigo->tngo",
        needed.reshape(taps, len(stream), groups, -1),
        kernel.reshape(taps, kernel.shape[2], groups, -1),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return jax.ops.segment_sum(
        contributions.reshape(taps * len(stream), -1),
        jnp.tile(jnp.arange(len(stream)), taps),
        len(stream),
    )


def _read_or_zero(x: jax.Array, stream: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    # Negative indices would count from the end: they go past it instead.
    row = jnp.where(row < 0, x.shape[1], row)
    column = jnp.where(column < 0, x.shape[2], column)
    return jnp.asarray(x).at[stream, row, column].get(mode="fill", fill_value=0)


def _check_shapes(
    x: jax.Array,
    kernel: jax.Array,
    previous: jax.Array,
    mask: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> None:
    if mask.shape != x.shape[:3]:
        raise ValueError(f"mask: expected {list(x.shape[:3])} as x, got {list(mask.shape)}")
    if x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"kernel: expected [kh, kw, C / groups, C'] for C = {x.shape[3]} and groups = {groups}"
            f" with C' a multiple of groups, got {list(kernel.shape)}"
        )
    rows, columns = (
        max(
            0,
            (x.shape[1 + i] + sum(padding[i]) - (kernel.shape[i] - 1) * dilation[i] - 1)
            // strides[i]
            + 1,
        )
        for i in range(2)
    )
    expected = (x.shape[0], rows, columns, kernel.shape[3])
    if previous.shape != expected:
        raise ValueError(
            f"previous: expected the output's shape {list(expected)}, got {list(previous.shape)}"
        )


def cell_sparse_conv(
    x: jax.Array,
    kernel: jax.Array,
    previous: jax.Array,
    mask: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    cell: int = 2,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Convolves the cells that a change reaches and keeps the previous output elsewhere.

    The same function as `pixel_sparse_conv`, by DynCNN's cell-based partition (sections 3.3-3.4):
    the impacted pixels are grouped into cells, a loop gathers a chunk of cells with their halo,
    convolves it and writes it back. This is what `dynvid.incremental` runs for every layer. The
    number of turns follows the amount of change, so that nothing is compiled again or left out.

    Args:
      x: `[B, H, W, C]`, the input.
      kernel: `[kh, kw, C / groups, C']`.
      previous: `[B, H', W', C']`, the output for the previous input.
      mask: `bool[B, H, W]`, the input pixels that changed.
      strides: (rows, columns).
      padding: ((top, bottom), (left, right)), of zeros; negative values crop.
      dilation: (rows, columns) between the kernel's taps.
      groups: number of channel groups, C for a depthwise convolution.
      cell: side of a cell, in output pixels.
      precision: of the products, as in `lax.conv_general_dilated`.

    Returns:
      `[B, H', W', C']`. Not differentiable in reverse: the loop has no fixed number of turns.

    Raises:
      ValueError: shapes that do not fit one another, or a cell below one pixel.

    Exact when `previous` is the convolution of an input that differs from `x` under the mask only;
    bit for bit on integer values, up to the order of summation on others.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> mask = jnp.zeros((1, 4, 4), bool).at[0, 0, 0].set(True)
    >>> kernel, padding = jnp.ones((3, 3, 1, 1)), ((1, 1), (1, 1))
    >>> cell_sparse_conv(x, kernel, jnp.zeros_like(x), mask, padding=padding)[0, ..., 0]
    Array([[10., 18.,  0.,  0.],
           [27., 45.,  0.,  0.],
           [ 0.,  0.,  0.,  0.],
           [ 0.,  0.,  0.,  0.]], dtype=float32)
    """
    if cell < 1:
        raise ValueError(f"cell: expected at least 1, got {cell}")
    _check_shapes(x, kernel, previous, mask, strides, padding, dilation, groups)
    window = kernel.shape[:2]
    step, spread = (strides[0], strides[1]), (dilation[0], dilation[1])
    impacted = masks.stencil(
        mask, window=window, strides=strides, padding=padding, dilation=dilation
    )
    if not impacted.size:
        return previous
    size = tuple(min(cell, length) for length in impacted.shape[1:])
    # The last cell is moved back so that none leaves the output.
    starts = [
        np.minimum(np.arange(-(-length // side)) * side, length - side)
        for length, side in zip(impacted.shape[1:], size, strict=True)
    ]
    reads = [s * n - low for s, n, (low, _) in zip(starts, step, padding, strict=True)]
    halo = [
        (side - 1) * n + (taps - 1) * d + 1
        for side, n, taps, d in zip(size, step, window, spread, strict=True)
    ]
    low = [max(0, -int(first.min())) for first in reads]
    ends = [int(first.max()) + n - m for first, n, m in zip(reads, halo, x.shape[1:3], strict=True)]
    padded = cells.add_halo(x, low=(low[0], low[1]), high=(max(0, ends[0]), max(0, ends[1])))
    plain = cells.winograd_applies(
        kernel.shape, strides=step, dilation=spread, groups=groups, dtype=kernel.dtype
    )
    weights = cells.winograd_weights(kernel) if plain else None
    listed = masks.worklist(masks.to_cells(impacted, size))
    depth = halo[0] * halo[1] * x.shape[3] + size[0] * size[1] * kernel.shape[3]
    chunk = cells.chunk_size(len(listed.row), size[0] * size[1], depth * x.dtype.itemsize)

    def turn(k: jax.Array, out: jax.Array) -> jax.Array:
        stream, row, column = (lax.dynamic_slice(n, (k * chunk,), (chunk,)) for n in listed[:3])
        first = [jnp.asarray(r + n)[i] for r, n, i in zip(reads, low, (row, column), strict=True)]
        needed = cells.gather_windows(padded, stream, *first, size=(halo[0], halo[1]))
        fresh = cells.convolve_windows(
            needed,
            kernel,
            strides=step,
            dilation=spread,
            groups=groups,
            winograd=weights,
            precision=precision,
        )
        at = (stream, jnp.asarray(starts[0])[row], jnp.asarray(starts[1])[column])
        inside = cells.gather_windows(impacted, *at, size=(size[0], size[1]))
        kept = cells.gather_windows(out, *at, size=(size[0], size[1]))
        return cells.scatter_windows(out, jnp.where(inside[..., None], fresh, kept), *at)

    return lax.fori_loop(0, -(-listed.count // chunk), turn, previous)
