"""Cells: windows gathered from stored maps, convolved, and written back (DynCNN 3.3-3.4).

A cell is a small square of output positions. Its *needed pixels* are a window of the input, one
halo larger. Stored maps carry their halo of zeros, so that a window is one contiguous read and
borders need no logic.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")

# Winograd's minimal filtering F(2x2, 3x3). All coefficients are powers of two, so that it is
# exact on integers, as the direct convolution is.
_WINOGRAD_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def gather_windows(
    padded: jax.Array,
    stream: jax.Array,
    row: jax.Array,
    column: jax.Array,
    *,
    size: tuple[int, int],
) -> jax.Array:
    """Reads the windows `padded[stream, row:row + h, column:column + w]`.

    Args:
      padded: A map with its halo, `(S, H, W, ...)`.
      stream: Which map each window is read from, `int32[K]`.
      row: The first row of each window in `padded`, `int32[K]`; must lie inside.
      column: The first column of each window, `int32[K]`.
      size: `(h, w)` of every window.

    Returns:
      `(K, h, w, ...)`. Exact: values are copied.

    >>> x = jnp.arange(16).reshape(1, 4, 4)
    >>> zero, two = jnp.array([0]), jnp.array([2])
    >>> gather_windows(x, zero, two, zero, size=(1, 3)).tolist()
    [[[8, 9, 10]]]
    """
    rest = padded.shape[3:]
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(1, padded.ndim)),
        collapsed_slice_dims=(0,),
        start_index_map=(0, 1, 2),
    )
    return lax.gather(
        padded,
        jnp.stack([stream, row, column], axis=1),
        numbers,
        (1, *size, *rest),
        mode="promise_in_bounds",
    )


def scatter_windows(
    padded: jax.Array,
    windows: jax.Array,
    stream: jax.Array,
    row: jax.Array,
    column: jax.Array,
    *,
    combine: bool = False,
) -> jax.Array:
    """Writes windows back to where `gather_windows` would read them.

    Args:
      padded: A map with its halo, `(S, H, W, ...)`; updated in place where it is not used again.
      windows: What to write, `(K, h, w, ...)`. Windows that overlap must agree there.
      stream: Which map each window belongs to, `int32[K]`.
      row: The first row of each window in `padded`, `int32[K]`.
      column: The first column of each window, `int32[K]`.
      combine: Takes the larger of what is written and what is there, of masks the OR: then windows
        that overlap need not agree.

    Returns:
      The map. Exact: values are copied.

    >>> one = jnp.array([1])
    >>> scatter_windows(jnp.zeros((2, 2, 3), int), jnp.ones((1, 1, 2), int), one, one, one).tolist()
    [[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 1]]]
    """
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(1, padded.ndim)),
        inserted_window_dims=(0,),
        scatter_dims_to_operand_dims=(0, 1, 2),
    )
    # One scatter of windows: unrolled slice updates run as fast but compile ten times slower.
    write = lax.scatter_max if combine else lax.scatter
    return write(
        padded,
        jnp.stack([stream, row, column], axis=1),
        windows.astype(padded.dtype),
        numbers,
        mode="promise_in_bounds",
    )


def positions_inside(
    row: jax.Array, column: jax.Array, *, size: tuple[int, int], shape: tuple[int, int]
) -> jax.Array:
    """Which positions of windows lie in a map, `bool[K, h, w]`.

    Args:
      row: The first row of each window, `int32[K]`.
      column: The first column of each window, `int32[K]`.
      size: (h, w) of a window.
      shape: (rows, columns) of the map.

    >>> positions_inside(jnp.array([-1]), jnp.array([1]), size=(2, 3), shape=(5, 3))[0].astype(int)
    Array([[0, 0, 0],
           [1, 1, 0]], dtype=int32)
    """
    rows = row[:, None] + jnp.arange(size[0])
    columns = column[:, None] + jnp.arange(size[1])
    inside_rows = (rows >= 0) & (rows < shape[0])
    inside_columns = (columns >= 0) & (columns < shape[1])
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def winograd_weights(kernel: jax.Array) -> jax.Array:
    """Transforms a 3x3 kernel for `convolve_windows`: `U = G g G^T` (Lavin and Gray, Eq. 8).

    Args:
      kernel: `(3, 3, C, O)`.

    Returns:
      `(16, C, O)`. Exact on integers: every coefficient is a power of two.

    >>> winograd_weights(jnp.ones((3, 3, 1, 1))).shape
    (16, 1, 1)
    """
    g = _WINOGRAD_KERNEL.astype(kernel.dtype)
    u = jnp.einsum("ai,bj,ijco->abco", g, g, kernel, precision="highest")
    return u.reshape(16, *kernel.shape[2:])


def _winograd(windows: jax.Array, weights: jax.Array, precision) -> jax.Array:
    """3x3 convolution of `(K, h + 2, w + 2, C)` with even h and w by F(2x2, 3x3)."""
    count, height, width, channels = windows.shape
    rows, columns = (height - 2) // 2, (width - 2) // 2

    def combine(d):
        return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]

    lines = combine([windows[:, a : a + 2 * rows - 1 : 2] for a in range(4)])
    tiles = [
        tile
        for line in lines
        for tile in combine([line[:, :, b : b + 2 * columns - 1 : 2] for b in range(4)])
    ]
    # One batched product over the 16 positions of the transformed tiles.
    v = jnp.stack([tile.reshape(-1, channels) for tile in tiles])
    m = lax.dot_general(v, weights, (((2,), (1,)), ((0,), (0,))), precision=precision)
    m = m.reshape(4, 4, count, rows, columns, weights.shape[2])

    def reduce(m):
        return m[0] + m[1] + m[2], m[1] - m[2] - m[3]

    halves = [reduce(half) for half in reduce([m[a] for a in range(4)])]
    out = jnp.stack([jnp.stack(half, axis=3) for half in halves], axis=2)
    return out.reshape(count, 2 * rows, 2 * columns, -1)


def _taps(windows: jax.Array, kernel: jax.Array, strides, dilation, size):
    """The slices of `windows` that each tap of the kernel reads, with the tap's weights."""
    for a in range(kernel.shape[0]):
        for b in range(kernel.shape[1]):
            rows = slice(a * dilation[0], a * dilation[0] + (size[0] - 1) * strides[0] + 1)
            columns = slice(b * dilation[1], b * dilation[1] + (size[1] - 1) * strides[1] + 1)
            yield windows[:, rows, columns][:, :: strides[0], :: strides[1]], kernel[a, b]


def convolve_windows(
    windows: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    winograd: jax.Array | None = None,
    dense: bool = False,
    precision: lax.PrecisionLike = None,
    preferred_element_type: jnp.dtype | None = None,
) -> jax.Array:
    """Convolves windows without padding, choosing what is fastest for their shape.

    Depthwise kernels run as shifted multiply-adds, grouped ones as one product a group, 1x1 ones
    as a matrix product, small windows as im2col and one product, or by Winograd's F(2x2, 3x3)
    where its weights are given, and whole frames as `lax.conv_general_dilated`.

    Args:
      windows: `(K, h, w, C)`.
      kernel: `(kh, kw, C / groups, O)`.
      strides: Of the windows' rows and columns.
      dilation: Of the kernel's taps.
      groups: Feature groups; C for a depthwise convolution.
      winograd: `winograd_weights(kernel)`, used where the geometry allows it.
      dense: The windows are whole frames.
      precision: Of the products, as in `lax.dot_general`.
      preferred_element_type: Of the result, as in `lax.dot_general`.

    Returns:
      `(K, h', w', O)`. Exact on integer-valued arrays; on real ones within the rounding of a sum
      of `kh * kw * C / groups` products.

    >>> convolve_windows(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)))[0, :, :, 0].tolist()
    [[18.0, 18.0], [18.0, 18.0]]
    """
    kh, kw, depth, features = kernel.shape
    size = (
        (windows.shape[1] - (kh - 1) * dilation[0] - 1) // strides[0] + 1,
        (windows.shape[2] - (kw - 1) * dilation[1] - 1) // strides[1] + 1,
    )
    products = {"precision": precision, "preferred_element_type": preferred_element_type}
    if depth == 1 and groups > 1:
        # feature_group_count is about 30 times slower than this on XLA:CPU.
        multiplier = features // groups
        out = None
        for part, weight in _taps(windows, kernel, strides, dilation, size):
            if multiplier > 1:
                part = jnp.repeat(part, multiplier, axis=-1)
            if preferred_element_type is not None:
                part, weight = (x.astype(preferred_element_type) for x in (part, weight))
            out = part * weight[0] if out is None else out + part * weight[0]
        assert out is not None
        return out
    count = windows.shape[0]
    if groups > 1:
        parts = [
            part.reshape(-1, groups, depth)
            for part, _ in _taps(windows, kernel, strides, dilation, size)
        ]
        weights = kernel.reshape(kh * kw * depth, groups, features // groups)
        out = lax.dot_general(
            jnp.concatenate(parts, axis=-1), weights, (((2,), (0,)), ((1,), (1,))), **products
        )
        return jnp.moveaxis(out, 0, 1).reshape(count, *size, features)
    if (kh, kw) == (1, 1):
        part, weight = next(_taps(windows, kernel, strides, dilation, size))
        return lax.dot_general(part, weight, (((3,), (0,)), ((), ())), **products)
    even = size[0] % 2 == 0 and size[1] % 2 == 0
    if winograd is not None and even and not dense:
        return _winograd_if_finite(windows, kernel, winograd, precision)
    if dense or depth < 16:
        return lax.conv_general_dilated(
            windows,
            kernel,
            strides,
            "VALID",
            rhs_dilation=dilation,
            dimension_numbers=_CHANNELS_LAST,
            **products,
        )
    parts = [part for part, _ in _taps(windows, kernel, strides, dilation, size)]
    rows = jnp.concatenate(parts, axis=-1).reshape(-1, kh * kw * depth)
    out = lax.dot_general(rows, kernel.reshape(-1, features), (((1,), (0,)), ((), ())), **products)
    return out.reshape(count, *size, features)


def _winograd_if_finite(windows, kernel, winograd, precision):
    """Winograd, but directly where a NaN or infinity would spread over a whole 2x2 tile."""
    return lax.cond(
        jnp.isfinite(jnp.sum(windows)),
        lambda: _winograd(windows, winograd, precision),
        lambda: lax.conv_general_dilated(
            windows,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=_CHANNELS_LAST,
            precision=precision,
        ),
    )


def winograd_applies(
    kernel_shape: tuple[int, ...],
    *,
    strides: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    dtype: Any,
) -> bool:
    """Whether `convolve_windows` can use Winograd's F(2x2, 3x3) and gains from it.

    Args:
      kernel_shape: `(kh, kw, C / groups, O)`.
      strides: Of the convolution.
      dilation: Of the kernel.
      groups: Feature groups.
      dtype: Of the kernel.

    >>> winograd_applies((3, 3, 64, 64), strides=(1, 1), dilation=(1, 1), groups=1, dtype="float32")
    True
    """
    kh, kw, depth, features = kernel_shape
    plain = strides == dilation == (1, 1) and groups == 1
    # float32 only: two more bits are needed than half precision leaves.
    return (
        (kh, kw) == (3, 3)
        and plain
        and min(depth, features) >= 16
        and np.dtype(dtype) == np.float32
    )


def chunk_size(cells: int, area: int, window_bytes: int, *, target_bytes: int, rows: int) -> int:
    """How many cells one turn of the loop takes.

    As many as stay in a second-level cache, but enough positions for a matrix product to run at
    full speed, as long as their windows take no more than eight times the target.

    Args:
      cells: The number of cells there are; a chunk is never larger.
      area: The positions of a cell.
      window_bytes: What one cell's windows take.
      target_bytes: What all of them may take.
      rows: How many positions a chunk has at least.

    >>> chunk_size(1000, 16, 1 << 16, target_bytes=1 << 20, rows=128)
    16
    """
    fitting = target_bytes // max(1, window_bytes)
    # Windows of widely dilated kernels are so large that reading them costs more than it gains.
    count = max(fitting, min(rows // area, 8 * target_bytes // max(1, window_bytes)), 1)
    return min(cells, 1 << int(math.log2(count)))


@functools.partial(jax.jit, static_argnames=("low", "high"))
def add_halo(x: jax.Array, *, low: tuple[int, int], high: tuple[int, int]) -> jax.Array:
    """Surrounds a map `(S, H, W, ...)` with a halo of zeros.

    >>> add_halo(jnp.ones((1, 1, 1)), low=(1, 0), high=(0, 1)).tolist()
    [[[0.0, 0.0], [1.0, 0.0]]]
    """
    pads = [(0, 0), (low[0], high[0]), (low[1], high[1])] + [(0, 0)] * (x.ndim - 3)
    return jnp.pad(x, pads)
