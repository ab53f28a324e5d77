"""Masked convolution in plain XLA: the reference that every other implementation is held to."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.kernels.masked_conv.cell_grid import CellGrid
from dynvid.kernels.masked_conv.pixels import (
    FORMULA_OPERATIONS,
    Formula,
    Part,
    PixelProgram,
    Product,
)
from dynvid.ops import cells, masks
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


def update_pixels(
    program: PixelProgram,
    sources: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    vectors: Sequence[jax.Array],
    previous: Sequence[jax.Array],
    marked: Sequence[jax.Array],
    *,
    tolerances: jax.Array,
    strict: jax.Array | None,
) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """What a pixel program means: all positions are computed; see `api.update_pixels`."""
    values: list[jax.Array] = []

    def window(read: Part, taps: tuple[int, int], dilation: tuple[int, int]) -> list[jax.Array]:
        """What a part holds under each tap, `(S, H, W, channels)`, taps in row-major order."""
        channels = slice(read.channel, read.channel + read.channels)
        if read.computed:
            return [values[read.source][..., channels]]
        source = program.sources[read.source]
        found = []
        for a, b in np.ndindex(*taps):
            rows = read.rows.first(np.arange(program.grid[0])) + a * dilation[0]
            columns = read.columns.first(np.arange(program.grid[1])) + b * dilation[1]
            part = sources[read.source][:, rows + source.origin[0]][..., channels]
            found.append(part[:, :, columns + source.origin[1]])
        return found

    def inside(read: Part, step: Product) -> list[np.ndarray]:
        """Which positions under each tap lie in the map."""
        height, width, _ = program.sources[read.source].shape
        found = []
        for a, b in np.ndindex(*step.window):
            rows = read.rows.first(np.arange(program.grid[0])) + a * step.dilation[0]
            columns = read.columns.first(np.arange(program.grid[1])) + b * step.dilation[1]
            held = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
            found.append(held[None, :, :, None])
        return found

    def product(step: Product) -> jax.Array:
        taps = [window(read, step.window, step.dilation) for read in step.parts]
        if step.kind == "maximum":
            held = inside(step.parts[0], step)
            masked = [jnp.where(i, x, -jnp.inf) for x, i in zip(taps[0], held, strict=True)]
            return functools.reduce(jnp.maximum, masked)
        kernel = weights[step.weights]
        flat = kernel.reshape(-1, *kernel.shape[2:])
        if step.kind == "depthwise":
            return sum(x * w[0] for x, w in zip(taps[0], flat, strict=True))  # type: ignore[return-value]
        joined = [jnp.concatenate(parts, axis=-1) for parts in zip(*taps, strict=True)]
        return sum(  # type: ignore[return-value]
            jnp.einsum("shwc,co->shwo", x, w, precision="highest")
            for x, w in zip(joined, flat, strict=True)
        )

    def formula(step: Formula) -> jax.Array:
        found: list[jax.Array] = []
        for leaf in step.leaves:
            if leaf.kind == "number":
                found.append(jnp.float32(leaf.number))
            elif leaf.kind == "value":
                found.append(values[leaf.index])
            elif leaf.kind == "vector":
                found.append(vectors[leaf.index][:, None, None])
            else:
                place = (leaf.channel, leaf.channels, leaf.rows, leaf.columns)
                found += window(Part(leaf.index, False, *place), (1, 1), (1, 1))
        for name, operands, exponent in step.code:
            taken = [found[n] for n in operands]
            if name == "integer_pow":
                found.append(lax.integer_pow(taken[0], exponent))
            else:
                found.append(_FORMULA[name](*jnp.broadcast_arrays(*taken)))
        return jnp.broadcast_to(found[-1], (*found[-1].shape[:3], step.features))

    for step in program.steps:
        values.append(product(step) if isinstance(step, Product) else formula(step))
    active = functools.reduce(jnp.logical_or, marked)
    maps, moved = [], []
    for i, (output, place) in enumerate(zip(program.outputs, program.places, strict=True)):
        new = values[output.value]
        (top, left), (height, width) = place.origin, program.grid
        old = previous[i][:, top : top + height, left : left + width]
        least = tolerances[i][:, None, None]
        if strict is not None:
            least = jnp.where(strict, 0, least)
        least = jnp.broadcast_to(least, active.shape)
        change = marked[i] & moved_beyond(new, old, least, axes=(3,))
        whole = masks.to_cells(change, program.cell)
        change = marked[i] & masks.from_cells(whole, program.cell, program.grid)
        moved.append(change if output.compared else marked[i])
        written = refreshed(change if output.compared else active, new, old)
        maps.append(lax.dynamic_update_slice(previous[i], written, (0, top, left, 0)))
    return maps, moved, jnp.sum(active, axis=(1, 2), dtype=jnp.int32)


_FORMULA = {name: getattr(lax, name) for name in FORMULA_OPERATIONS}
