"""Masked convolution in plain XLA: the reference that every other implementation is held to."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dynvid.kernels.masked_conv.cell_grid import CellGrid
from dynvid.ops import cells
from dynvid.ops.masks import Worklist
from dynvid.ops.refresh import moved_beyond, refreshed


def update_cells(
    compute,
    maps: Sequence[jax.Array],
    listed: Worklist,
    *,
    grid: CellGrid,
    origins: Sequence[tuple[int, int]],
    chunk: int,
    count: jax.Array,
    marked: Sequence[jax.Array],
    moved: Sequence[jax.Array],
    tolerances: Sequence[jax.Array | None],
    strict: jax.Array | None,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The hot loop; see `api.update_cells`."""

    def turn(k: jax.Array, carry: tuple[list[jax.Array], list[jax.Array]]):
        maps, moved = list(carry[0]), list(carry[1])
        stream, row, column = (lax.dynamic_slice(x, (k * chunk,), (chunk,)) for x in listed[:3])
        rows, columns = grid.first(row, column)
        here = (stream, rows, columns)
        for i, new in enumerate(compute(stream, row, column)):
            top, left = origins[i]
            at = (stream, rows + top, columns + left)
            tolerance = tolerances[i]
            if tolerance is not None:
                old = cells.gather_windows(maps[i], *at, size=grid.size)
                least = tolerance[stream]
                if strict is not None:
                    least = jnp.where(strict[stream, row, column], 0, least)
                beyond = moved_beyond(new, old, least, axes=range(3, new.ndim))
                # A cell is replaced as a whole: the border of what moved would stay behind.
                whole = jnp.any(beyond, axis=(1, 2), keepdims=True)
                whole &= cells.gather_windows(marked[i], *here, size=grid.size)
                # The last turn may come to cells a second time: what they marked stays marked.
                moved[i] = cells.scatter_windows(moved[i], whole, *here, combine=True)
                if grid.overlap:
                    # What any cell marked is replaced in every cell that holds it: they write the
                    # same values, in whichever order the device writes them.
                    whole = cells.gather_windows(moved[i], *here, size=grid.size)
                new = refreshed(whole, new, old)
            elif grid.exceed:
                # Zero, not dropped: a halo that is zero is what the next gather reads.
                inside = cells.positions_inside(rows, columns, size=grid.size, shape=grid.shape)
                new = refreshed(inside, new, lax.full((), 0, new.dtype))
            maps[i] = cells.scatter_windows(maps[i], new, *at)
        return maps, moved

    return lax.fori_loop(0, -(-count // chunk), turn, (list(maps), list(moved)))
