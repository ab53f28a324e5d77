"""Masked convolution on TPUs: tiles from a prefetched worklist, with their halo, in place.

One launch: the grid is as long as the list, so that nothing is computed of what did not change and
the host is asked nothing. The tile of the next turn is fetched while this one is multiplied.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dynvid.ops import masks

Epilogue = Callable[..., jax.Array]
"""`epilogue(sums, *vectors)`, float32 `(T, T, O)` and `(1, 1, O)` each, of the same shape."""

TILE = 8
_SUBLANES = 8  # the columns of a window are a multiple of it


def tiled(mask: jax.Array, tile: int) -> jax.Array:
    """A mask `bool[S, H, W]` by tiles, `int32[S * rows * columns, tile, tile]`."""
    streams, height, width = mask.shape
    rows, columns = -(-height // tile), -(-width // tile)
    grown = jnp.pad(mask, ((0, 0), (0, rows * tile - height), (0, columns * tile - width)))
    split = grown.reshape(streams, rows, tile, columns, tile).transpose(0, 1, 3, 2, 4)
    return split.reshape(-1, tile, tile).astype(jnp.int32)


def untiled(tiles: jax.Array, shape: tuple[int, ...], tile: int) -> jax.Array:
    """The mask that `tiled` made tiles of."""
    streams, height, width = shape
    rows, columns = -(-height // tile), -(-width // tile)
    split = tiles.reshape(streams, rows, columns, tile, tile).transpose(0, 1, 3, 2, 4)
    return split.reshape(streams, rows * tile, columns * tile)[:, :height, :width] != 0


def convolve_tiles(
    x: jax.Array,
    kernel: jax.Array,
    previous: jax.Array,
    marked: jax.Array,
    *,
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int] = (1, 1),
    epilogue: Epilogue | None = None,
    vectors: Sequence[jax.Array] = (),
    tolerances: jax.Array | None = None,
    tile: int = TILE,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, jax.Array]:
    """Convolves the marked positions, tile by tile, and keeps the rest.

    Args:
      x: The input, `(S, H, W, C)`, float32 or bfloat16.
      kernel: `(kh, kw, C, O)`.
      previous: What is kept, `(S, H', W', O)`; written in place where it is given away and made of
        whole tiles.
      marked: The positions that may be replaced, `bool[S, H', W']`.
      padding: ((top, bottom), (left, right)), of zeros.
      dilation: (rows, columns) between the kernel's taps.
      epilogue: What follows the convolution at each position; nothing where None.
      vectors: What it takes one of a channel, `(O,)` each.
      tolerances: How far a value must move for its position to be replaced, `float32[S]`; zero
        where None.
      tile: The side of a tile.
      precision: Of the products; float32 is otherwise rounded to bfloat16.
      interpret: How it runs where there is no TPU: True, or the simulator's parameters.

    Returns:
      The map, and what was replaced, `bool[S, H', W']`.

    Exact on integers; sums are float32 whatever the input is.
    """
    streams, height, width, features = previous.shape
    kh, kw, depth, _ = kernel.shape
    rows, columns = -(-height // tile), -(-width // tile)
    reach = ((kh - 1) * dilation[0], (kw - 1) * dilation[1])
    window = (tile + reach[0], -(-(tile + reach[1]) // _SUBLANES) * _SUBLANES)
    # Room for the windows of the last tiles, which may lie beyond the map.
    needs = ((rows - 1) * tile + window[0], (columns - 1) * tile + window[1])
    low = (padding[0][0], padding[1][0])
    pads = [(n, max(0, m - n - k)) for n, m, k in zip(low, needs, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    # Whole tiles only: a map that is none is copied into one that is.
    spare = ((0, 0), (0, rows * tile - height), (0, columns * tile - width), (0, 0))
    kept = jnp.pad(previous, spare)
    listed = masks.worklist(masks.to_cells(marked, tile))
    if tolerances is None:
        tolerances = jnp.zeros(streams, jnp.float32)

    def body(stream, row, column, least, *refs):
        del row, column
        x_ref, kernel_ref, *vector_refs, previous_ref, marked_ref, _, out_ref, moved_ref = refs
        sums = jnp.zeros((tile * tile, features), jnp.float32)
        for a in range(kh):
            for b in range(kw):
                top, left = a * dilation[0], b * dilation[1]
                part = x_ref[0, top : top + tile, left : left + tile, :]
                sums += jnp.dot(
                    part.reshape(tile * tile, depth),
                    kernel_ref[a, b],
                    preferred_element_type=jnp.float32,
                    precision=precision,
                )
        sums = sums.reshape(tile, tile, features)
        if epilogue is not None:
            sums = epilogue(sums, *(ref[...].reshape(1, 1, features) for ref in vector_refs))
        old = previous_ref[0]
        new = sums.astype(old.dtype)
        distance = jnp.abs(new.astype(jnp.float32) - old.astype(jnp.float32))
        same = (new == old) | (distance < least[stream[pl.program_id(0)]])
        # As float32 maxima: a reduction of booleans over lanes has no lowering.
        beyond = jnp.max(jnp.where(same, 0.0, 1.0), axis=2, keepdims=True)
        change = jnp.where(marked_ref[0][:, :, None] != 0, beyond, 0.0)
        out_ref[0] = jnp.where(change > 0, new, old)
        moved_ref[0] = change[:, :, 0].astype(jnp.int32)

    def at_tile(i, stream, row, column, least):
        del least
        return stream[i], row[i], column[i], 0

    def at_number(i, stream, row, column, least):
        del least
        return (stream[i] * rows + row[i]) * columns + column[i], 0, 0

    def at_window(i, stream, row, column, least):
        del least
        return stream[i], row[i] * tile, column[i] * tile, 0

    def whole(array):
        return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)

    halo = pl.BlockSpec(tuple(pl.Element(n) for n in (1, *window, depth)), at_window)
    block = pl.BlockSpec((1, tile, tile, features), at_tile)
    small = pl.BlockSpec((1, tile, tile), at_number)
    vectors = [vector.reshape(1, features) for vector in vectors]
    tiles = tiled(marked, tile)
    first = 4 + 2 + len(vectors)  # prefetched scalars, input and kernel come before `previous`
    out, moved = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(listed.count,),
            in_specs=[
                halo,
                whole(kernel),
                *map(whole, vectors),
                block,
                small,
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=[block, small],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(kept.shape, kept.dtype),
            jax.ShapeDtypeStruct(tiles.shape, jnp.int32),
        ],
        # What no tile of the list visits stays: the map as it was, and nothing moved.
        input_output_aliases={first: 0, first + 2: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
    )(*listed[:3], tolerances, x, kernel, *vectors, kept, tiles, jnp.zeros_like(tiles))
    return out[:, :height, :width], untiled(moved, marked.shape, tile)
