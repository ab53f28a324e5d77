"""Change masks: through a layer's geometry, to cells and to worklists.

DynCNN, section 3.2 (position layer). A mask is `bool[..., H, W]`: True where a value has to be
computed again. Windows are boxes, so every operation here goes by rows and then by columns, as ORs
of shifted slices: XLA compiles those to a few vector instructions, where `lax.reduce_window` is a
scalar loop on CPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WORD = 32


class Worklist(NamedTuple):
    """The active cells of all streams in row-major order, at the static length of all cells.

    Attributes:
      stream: `int32[N]`, the stream of each active cell, `N = S * h * w`.
      row: `int32[N]`, its row in the grid of cells.
      column: `int32[N]`, its column in the grid of cells.
      count: `int32[]`, how many cells are active. Entries past it repeat the last active cell
        (zeros where none is), so that the last chunk of a loop may read past `count` and compute
        the same cell twice.
    """

    stream: jax.Array
    row: jax.Array
    column: jax.Array
    count: jax.Array


def stencil(
    mask: jax.Array,
    *,
    window: Sequence[int],
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1),
    input_dilation: Sequence[int] = (1, 1),
) -> jax.Array:
    """Marks every output of a convolution or pooling that reads a marked input.

    `m_out(o) = OR_j m_in(o * s - p + j * d)`, out-of-frame = False (DynCNN, section 3.2: the
    impacted pixels). The arguments mean what they mean to `lax.conv_general_dilated`, and the
    result has the size of its output.

    Args:
      mask: `bool[..., H, W]`, any leading axes.
      window: (rows, columns) of the kernel.
      strides: (rows, columns).
      padding: ((top, bottom), (left, right)); negative values crop.
      dilation: (rows, columns) between the kernel's taps.
      input_dilation: (rows, columns) between the input's positions: the stride of a transposed
        convolution.

    Returns:
      `bool[..., H', W']`.

    Raises:
      ValueError: The mask is not boolean or has fewer than two axes.

    Exact when every tap of the kernel may be non-zero: no output outside the result can change.

    >>> mask = jnp.zeros((1, 5, 6), bool).at[0, 2, 3].set(True)
    >>> stencil(mask, window=(3, 3), padding=((1, 1), (1, 1))).astype(int)
    Array([[[0, 0, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0]]], dtype=int32)
    """
    _check(mask, "mask", 2)
    # Rows first: a stride over rows leaves less to do for the columns, whose slices are unaligned.
    for axis, index in ((mask.ndim - 2, 0), (mask.ndim - 1, 1)):
        mask = _stencil_axis(
            mask,
            axis,
            window[index],
            strides[index],
            padding[index],
            dilation[index],
            input_dilation[index],
        )
    return mask


def _stencil_axis(
    mask: jax.Array,
    axis: int,
    window: int,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    input_dilation: int,
) -> jax.Array:
    spread = max(0, (mask.shape[axis] - 1) * input_dilation + 1)
    span = (window - 1) * dilation
    positions = spread + padding[0] + padding[1] - span  # at stride one
    if positions <= 0 or spread == 0:
        shape = list(mask.shape)
        shape[axis] = max(0, -(-positions // stride))
        return jnp.zeros(shape, bool)
    config = [(0, 0, 0)] * mask.ndim
    config[axis] = (*padding, input_dilation - 1)
    if config[axis] != (0, 0, 0):
        mask = lax.pad(mask, np.bool_(False), config)
    # The OR of a run of n taps and the same run shifted by m <= n taps is a run of n + m taps, so
    # a window takes log2(window) steps.
    run = 1
    while run < window:
        step = min(run, window - run)
        length = mask.shape[axis] - step * dilation
        head = lax.slice_in_dim(mask, 0, length, axis=axis)
        tail = lax.slice_in_dim(mask, step * dilation, None, axis=axis)
        mask = head | tail
        run += step
    return lax.slice_in_dim(mask, 0, None, stride=stride, axis=axis)


def resize_mask(mask: jax.Array, size: Sequence[int]) -> jax.Array:
    """Brings a mask to the grid of another layer, by the nearest neighbour.

    `m'(o) = m(floor((o + 1/2) n / n'))` along each axis of n positions that becomes n' long: U^(n)
    from U (Zhu et al., Towards High Performance Video Object Detection, 2018, 3.2).

    Args:
      mask: `[..., h, w]` of any dtype, at least one position each way.
      size: (height, width) of the other grid, at least 1.

    Returns:
      `[..., *size]` in the dtype of `mask`; a gradient goes back to the position that was read.

    Raises:
      ValueError: The mask has fewer than two axes, or a side is below one.

    Exact where the sides become a whole multiple or stay: every position is repeated.

    >>> resize_mask(jnp.array([[True, False]]), (2, 4)).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0]]
    """
    if mask.ndim < 2 or min(*mask.shape[-2:], *size) < 1:
        raise ValueError(
            f"mask and size must have at least 1 position each way; got {list(mask.shape)} and "
            f"{tuple(size)}"
        )
    for axis, length in zip((mask.ndim - 2, mask.ndim - 1), size, strict=True):
        count = mask.shape[axis]
        if length != count:
            at = (2 * np.arange(length) + 1) * count // (2 * length)
            mask = jnp.take(mask, at, axis)
    return mask


def cover_mask(mask: jax.Array, size: Sequence[int]) -> jax.Array:
    """Brings a mask to the grid of another layer; coarser positions cover all that lies in them.

    `m'(o) = any of m(i) with floor((i + 1/2) n' / n) = o` along each axis of n positions that
    becomes n' < n long, and `resize_mask` along the others. Of a coarser grid the nearest
    neighbour reads one position of many, and what is small falls through.

    Args:
      mask: `bool[..., h, w]`, at least one position each way.
      size: (height, width) of the other grid, at least 1.

    Returns:
      `bool[..., *size]`.

    Raises:
      ValueError: As `resize_mask`.

    >>> mask = jnp.array([[True, False, False, False]])
    >>> cover_mask(mask, (1, 2)).tolist(), resize_mask(mask, (1, 2)).tolist()
    ([[True, False]], [[False, False]])
    """
    finer = [max(old, new) for old, new in zip(mask.shape[-2:], size, strict=True)]
    mask = resize_mask(mask, finer)
    for axis, length in zip((mask.ndim - 2, mask.ndim - 1), size, strict=True):
        count = mask.shape[axis]
        if length != count:
            at = (2 * np.arange(count) + 1) * length // (2 * count)
            inside = jnp.asarray(at == np.arange(length)[:, None], jnp.float32)
            held = jnp.tensordot(inside, mask.astype(jnp.float32), (1, axis)) > 0
            mask = jnp.moveaxis(held, 0, axis)
    return mask


def to_cells(mask: jax.Array, cell: int | Sequence[int]) -> jax.Array:
    """Marks every cell of pixels that holds a marked pixel.

    DynCNN, section 3.2 (the cell-based dynamic map, CDM). Cells at the bottom and right edge may
    reach beyond the frame.

    Args:
      mask: `bool[S, H, W]`.
      cell: Side of a cell in pixels, or (rows, columns).

    Returns:
      `bool[S, ceil(H / rows), ceil(W / columns)]`.

    Raises:
      ValueError: The mask is not boolean or does not have three axes.

    >>> to_cells(jnp.zeros((1, 5, 8), bool).at[0, 4, 1].set(True), 4).astype(int)
    Array([[[0, 0],
            [1, 0]]], dtype=int32)
    """
    _check(mask, "mask", 3, exactly=True)
    rows, columns = _cell_shape(cell)
    _, height, width = mask.shape
    return stencil(
        mask,
        window=(rows, columns),
        strides=(rows, columns),
        padding=((0, -height % rows), (0, -width % columns)),
    )


def from_cells(cells: jax.Array, cell: int | Sequence[int], size: Sequence[int]) -> jax.Array:
    """Marks every pixel of the marked cells.

    Args:
      cells: `bool[S, h, w]`, as `to_cells` gives it.
      cell: Side of a cell in pixels, or (rows, columns).
      size: (H, W) of the frame, with `h = ceil(H / rows)` and `w = ceil(W / columns)`.

    Returns:
      `bool[S, H, W]`.

    Raises:
      ValueError: The cells are not boolean or do not have three axes, or are not those of `size`.

    >>> from_cells(jnp.array([[[False], [True]]]), (1, 3), (2, 3)).astype(int)
    Array([[[0, 0, 0],
            [1, 1, 1]]], dtype=int32)
    """
    _check(cells, "cells", 3, exactly=True)
    rows, columns = _cell_shape(cell)
    height, width = size
    batch, h, w = cells.shape
    if (h, w) != (-(-height // rows), -(-width // columns)):
        raise ValueError(
            f"cells must be {(-(-height // rows), -(-width // columns))} cells of "
            f"{(rows, columns)} for a frame of {(height, width)}; got {(h, w)}"
        )
    pixels = jnp.broadcast_to(cells[:, :, None, :, None], (batch, h, rows, w, columns))
    return pixels.reshape(batch, h * rows, w * columns)[:, :height, :width]


def worklist(cells: jax.Array) -> Worklist:
    """Lists the marked cells of all streams, in row-major order.

    DynCNN, section 3.2 (the cell index table, CIT).

    Args:
      cells: `bool[S, h, w]`.

    Returns:
      A `Worklist` of static length `S * h * w`: cells of all streams in one list, and their count.

    Raises:
      ValueError: The cells are not boolean or do not have three axes.

    >>> work = worklist(jnp.array([[[False, True]], [[True, False]]]))
    >>> print(work.count, work.stream, work.row, work.column)
    2 [0 1 1 1] [0 0 0 0] [1 0 0 0]
    """
    _check(cells, "cells", 3, exactly=True)
    _, height, width = cells.shape
    active = cells.reshape(-1)
    index = jnp.arange(active.size, dtype=jnp.int32)
    rank = _count_up_to(active)
    count = rank[-1]
    slot = jnp.where(active, rank - 1, active.size)
    listed = jnp.zeros(active.size, jnp.int32).at[slot].set(index, mode="drop")
    listed = jnp.where(index < count, listed, listed[jnp.maximum(count - 1, 0)])
    return Worklist(
        stream=listed // (height * width),
        row=listed // width % height,
        column=listed % width,
        count=count,
    )


def _count_up_to(active: jax.Array) -> jax.Array:
    """Counts the marks up to and with each position: `jnp.cumsum` at half the time.

    32 marks make a word whose population count is theirs, so that only one count in 32 goes through
    a cumsum.
    """
    words = -(-active.size // _WORD)
    grid = jnp.pad(active, (0, words * _WORD - active.size)).reshape(words, _WORD)
    bit = np.uint32(1) << np.arange(_WORD, dtype=np.uint32)
    word = jnp.sum(jnp.where(grid, bit, np.uint32(0)), axis=1, dtype=jnp.uint32)
    total = lax.population_count(word).astype(jnp.int32)
    before = jnp.cumsum(total) - total
    within = lax.population_count(word[:, None] & (bit | (bit - np.uint32(1)))).astype(jnp.int32)
    return (before[:, None] + within).reshape(-1)[: active.size]


def _cell_shape(cell: int | Sequence[int]) -> tuple[int, int]:
    return (cell, cell) if isinstance(cell, int) else (cell[0], cell[1])


def _check(mask: jax.Array, name: str, axes: int, *, exactly: bool = False) -> None:
    fits = mask.ndim == axes if exactly else mask.ndim >= axes
    if mask.dtype != bool or not fits:
        raise ValueError(
            f"{name} must be boolean and of {axes}{'' if exactly else ' or more'} axes; "
            f"got {mask.dtype}{list(mask.shape)}"
        )
