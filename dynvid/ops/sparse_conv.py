"""Convolution only where something changed.

DynCNN, sections 3.3-3.4, partitions a feature map in two ways. *Pixel-based*: each impacted output
pixel brings its own copy of the inputs in its window: `convolve_pixels`, and `pixel_sparse_conv`,
short and differentiable, the reference for the rest. *Cell-based*: cells of neighbouring pixels
share their inputs, `dynvid.kernels.masked_conv`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.ops import masks

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
      x: `(S, H, W, C)`, the input.
      kernel: `(kh, kw, C / groups, C')`.
      previous: `(S, H', W', C')`, the output for the previous input.
      mask: `bool[S, H, W]`, the input pixels that changed.
      strides: (rows, columns).
      padding: ((top, bottom), (left, right)), of zeros; negative values crop.
      dilation: (rows, columns) between the kernel's taps.
      groups: Number of channel groups, C for a depthwise convolution.
      capacity: How many output pixels to make room for, by default all `S * H' * W'`. Where more
        are impacted the convolution runs dense: nothing is ever left out.
      precision: Of the products, as in `lax.conv_general_dilated`.

    Returns:
      `(S, H', W', C')`. Differentiable with respect to `x`, `kernel` and `previous`.

    Raises:
      ValueError: Shapes that do not fit one another, or a capacity below one.

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
        raise ValueError(f"capacity must be at least 1; got {capacity}")
    check_convolution(x, kernel, previous, mask, strides, padding, dilation, groups)
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
      x: `(S, H, W, C)`, the input; zero outside.
      kernel: `(kh, kw, C / groups, C')`.
      stream: `int32[N]`, the stream of each output pixel.
      row: `int32[N]`, its row in the output.
      column: `int32[N]`, its column in the output.
      strides: (rows, columns).
      padding: ((top, bottom), (left, right)); top and left count.
      dilation: (rows, columns) between the kernel's taps.
      groups: Number of channel groups, C for a depthwise convolution.
      precision: Of the products, as in `lax.conv_general_dilated`.
      preferred_element_type: Of the result, as in `lax.conv_general_dilated`.

    Returns:
      `(N, C')`.

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


def check_convolution(
    x: jax.Array,
    kernel: jax.Array,
    previous: jax.Array,
    mask: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Checks that a convolution, its previous output and the mask of its input fit one another.

    Args:
      x: The input, `(S, H, W, C)`.
      kernel: `(kh, kw, C / groups, O)`.
      previous: The output, `(S, H', W', O)`.
      mask: `bool[S, H, W]`.
      strides: (rows, columns).
      padding: ((top, bottom), (left, right)).
      dilation: (rows, columns) between the kernel's taps.
      groups: The number of channel groups.

    Raises:
      ValueError: Where they do not.

    >>> check_convolution(
    ...     jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)), jnp.ones((1, 2, 2, 1)),
    ...     jnp.ones((1, 2, 2), bool), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    Traceback (most recent call last):
    ...
    ValueError: previous must be of the output's shape [1, 0, 0, 1]; got [1, 2, 2, 1]
    """
    if mask.shape != x.shape[:3]:
        raise ValueError(f"mask must be {list(x.shape[:3])} as x; got {list(mask.shape)}")
    if x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"kernel must be (kh, kw, C / groups, O) for C = {x.shape[3]} and groups = {groups}"
            f" with O a multiple of groups; got {list(kernel.shape)}"
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
            f"previous must be of the output's shape {list(expected)}; got {list(previous.shape)}"
        )
