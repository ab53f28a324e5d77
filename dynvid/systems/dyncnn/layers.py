"""DynCNN's own layers (sections 3.1-3.4): comparison, position and the new array.

The recovery layer, which writes computed cells into the stored map, is `kernels.masked_conv`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dynvid.incremental.geometry import ReceptiveField
from dynvid.incremental.rules import mask_through
from dynvid.ops import masks
from dynvid.ops.difference import Channels, changed_pixels
from dynvid.ops.masks import Worklist


class Position(NamedTuple):
    """Where a group of convolutions has to be computed again.

    Attributes:
      impacted: `bool[S, H, W]`, the impacted pixels of the last map (iDM).
      cells: `bool[S, h, w]`, the cells that hold one (CDM).
      listed: Those cells of all streams, one after the other (CIT).
    """

    impacted: jax.Array
    cells: jax.Array
    listed: Worklist


def comparison(
    frames: jax.Array, reference: jax.Array, *, threshold: ArrayLike, channels: Channels = "any"
) -> jax.Array:
    """The comparison layer: which pixels of the frames changed.

    `D = 1 where |I_t - I_ref| >= theta, else 0` (DynCNN, section 3.1, Eq. 1-2), except that equal
    pixels never count as changed.

    Args:
      frames: `(S, H, W, C)`, floating or uint8.
      reference: Same shape and dtype.
      threshold: Theta, in the frames' unit.
      channels: How the channels of a pixel are joined: see `ops.difference.frame_difference`.

    Returns:
      The input difference map (IDM), `bool[S, H, W]`.

    Raises:
      ValueError: As `ops.difference.changed_pixels`.

    >>> comparison(jnp.array([[[[3.0], [5.0]]]]), jnp.zeros((1, 1, 2, 1)), threshold=4)
    Array([[[False,  True]]], dtype=bool)
    """
    return changed_pixels(frames, reference, threshold=threshold, channels=channels)


def position(
    changed: jax.Array,
    receptive_fields: Sequence[tuple[ReceptiveField, ReceptiveField]],
    sizes: Sequence[tuple[int, int]],
    *,
    cell: int,
) -> Position:
    """The position layer: which pixels and cells of a group's last map are impacted.

    An output is impacted where any input in its window is, `m_out(o) = OR_j m_in(o s - p + j d)`,
    through one convolution after the other; a cell is where any of its pixels is (DynCNN, section
    3.2: iDM, CDM and CIT). Continuous convolution predicts the last map's directly (section 3.4).

    Args:
      changed: `bool[S, H, W]`, the impacted pixels of the group's input.
      receptive_fields: The geometry of each convolution over rows and over columns.
      sizes: (rows, columns) of each convolution's output.
      cell: The side of a cell; 1 for the pixel-based partition.

    Returns:
      Impacted pixels, cells, and the list of cells.

    Exact when every tap of the kernels may be non-zero: nothing outside can change.

    >>> from dynvid.incremental.geometry import Stencil
    >>> changed = jnp.zeros((1, 6, 6), bool).at[0, 1, 2].set(True)
    >>> same = (Stencil(window=3, low=1),) * 2
    >>> found = position(changed, [same], [(6, 6)], cell=2)
    >>> found.cells.astype(int)
    Array([[[1, 1, 0],
            [1, 1, 0],
            [0, 0, 0]]], dtype=int32)
    >>> found.listed.count
    Array(4, dtype=int32)
    """
    impacted = changed
    for receptive_field, size in zip(receptive_fields, sizes, strict=True):
        impacted = mask_through(impacted, receptive_field, size)
    active = masks.to_cells(impacted, cell)
    return Position(impacted, active, masks.worklist(active))


def to_strip(windows: jax.Array) -> jax.Array:
    """Lays windows side by side: the new array of the paper's Figure 3 (section 3.2, NA).

    Args:
      windows: `(N, s, t, C)`.

    Returns:
      `(s, N * t, C)`: window q is columns `[q t, (q + 1) t)`.

    >>> to_strip(jnp.arange(8).reshape(2, 2, 2, 1))[..., 0]
    Array([[0, 1, 4, 5],
           [2, 3, 6, 7]], dtype=int32)
    """
    count, rows, columns, channels = windows.shape
    return jnp.moveaxis(windows, 0, 1).reshape(rows, count * columns, channels)


def from_strip(strip: jax.Array, *, count: int, pitch: int, width: int) -> jax.Array:
    """Takes the valid columns of each window from a convolved strip (section 3.4).

    The columns between them mix neighbouring windows: the values that one need not care for.

    Args:
      strip: `(s', W, C)`, with `W` at most `count * pitch`.
      count: How many windows there are.
      pitch: The columns from one window to the next.
      width: The valid columns of each.

    Returns:
      `(count, s', width, C)`: window q is columns `[q pitch, q pitch + width)`.

    >>> from_strip(jnp.arange(7)[None, :, None], count=2, pitch=4, width=2)[:, 0, :, 0]
    Array([[0, 1],
           [4, 5]], dtype=int32)
    """
    rows, columns, channels = strip.shape
    whole = jnp.pad(strip, ((0, 0), (0, count * pitch - columns), (0, 0)))
    return jnp.moveaxis(whole.reshape(rows, count, pitch, channels)[:, :, :width], 1, 0)
