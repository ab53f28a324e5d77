"""Masked convolution on GPUs from Hopper on: strips of positions by im2col copies and wgmma.

Written for Mosaic GPU. It lowers for sm_90; no GPU has run it yet.
"""

# Pallas re-exports these without saying so.
# pyright: reportAbstractUsage=false, reportPrivateImportUsage=false

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from dynvid.ops import masks

Epilogue = Callable[..., jax.Array]
"""`epilogue(sums, *vectors)`, float32 `(STRIP, O)` each, of the same shape."""

STRIP = 64
"""Positions, consecutive in row-major order, that one warpgroup multiplies together."""

_SWIZZLE = 128  # bytes
_ROWS = 8


def strips(mask: jax.Array) -> jax.Array:
    """Which strips hold a marked position, `bool[S, 1, strips]`.

    >>> strips(jnp.zeros((1, 8, 16), bool).at[0, 7, 0].set(True)).astype(int).tolist()
    [[[0, 1]]]
    """
    flat = mask.reshape(len(mask), 1, -1)
    return masks.to_cells(flat, (1, STRIP))


def convolve_strips(
    x: jax.Array,
    kernel: jax.Array,
    previous: jax.Array,
    marked: jax.Array,
    *,
    padding: Sequence[tuple[int, int]],
    epilogue: Epilogue | None = None,
    vectors: Sequence[jax.Array] = (),
) -> tuple[jax.Array, jax.Array]:
    """Convolves the strips that hold a marked position, and keeps the rest.

    The grid has a block for every strip that there is; those past the list's end return at once, so
    that the host is asked nothing.

    Args:
      x: The input, `(S, H, W, C)`, float16 or bfloat16, C a multiple of 64 and at most 256.
      kernel: `(kh, kw, C, O)`, O a multiple of 64 and at most 256.
      previous: What is kept, `(S, H', W', O)`, H' * W' a multiple of `STRIP`.
      marked: The positions that may have changed, `bool[S, H', W']`.
      padding: ((top, bottom), (left, right)), of zeros.
      epilogue: What follows the convolution at each position; nothing where None.
      vectors: What it takes one of a channel, `(O,)` each.

    Returns:
      The map with whole strips replaced, and which positions were, `bool[S, H', W']`.

    Raises:
      ValueError: Channels or positions that the tensor cores do not take.

    Exact on integers that the input's type holds; sums are float32.
    """
    streams, height, width, features = previous.shape
    kh, kw, depth, _ = kernel.shape
    positions = height * width
    if depth % 64 or features % 64 or max(depth, features) > 256:
        raise ValueError(
            f"channels must be multiples of 64 and at most 256; got {depth} and {features}"
        )
    if positions % STRIP:
        raise ValueError(f"previous must have a multiple of {STRIP} positions; got {positions}")
    active = strips(marked)
    listed = masks.worklist(active)
    transforms = (
        plgpu.TilingTransform((_ROWS, _SWIZZLE // x.dtype.itemsize)),
        plgpu.SwizzleTransform(_SWIZZLE),
    )
    window = plgpu.SMEM((STRIP, depth), x.dtype, transforms=transforms)
    taps = plgpu.SMEM((depth, features), x.dtype, transforms=transforms)
    result = plgpu.SMEM((STRIP, features), previous.dtype, transforms=transforms)
    # In place: a reference to what is kept, which the kernel writes.
    kept = jax.new_ref(previous.reshape(streams * positions, features))

    @plgpu.kernel(
        out_type=(),
        grid=(active.size,),
        grid_names=("strip",),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        scratch_types={
            "window": window,
            "taps": taps,
            "result": result,
            "ready": plgpu.Barrier(num_arrivals=2),
        },
    )
    def run(stream, strip, count, x, kernel, *rest, window, taps, result, ready):
        *vector_refs, kept = rest
        i = lax.axis_index("strip")

        @pl.when(i < count[0])
        def _():
            first = strip[i] * STRIP
            windows = plgpu.im2col_ref(x, window_shape=(kh, kw), padding=tuple(padding))

            def multiply(sums):
                for a in range(kh):
                    for b in range(kw):
                        rows = pl.ds(stream[i] * positions + first, STRIP)
                        source = windows.at[rows, a, b, pl.ds(0, depth)]
                        plgpu.copy_gmem_to_smem(source, window, ready)
                        plgpu.copy_gmem_to_smem(kernel.at[a, b], taps, ready)
                        plgpu.barrier_wait(ready)
                        plgpu.wgmma(sums, window, taps)
                        plgpu.wgmma_wait(0)
                return sums[...]

            sums = pl.run_scoped(multiply, plgpu.ACC((STRIP, features), jnp.float32))
            if epilogue is not None:
                columns = [
                    lax.broadcast_in_dim(
                        plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0)),
                        (STRIP, features),
                        (1,),
                    )
                    for ref in vector_refs
                ]
                sums = epilogue(sums, *columns)
            result[...] = sums.astype(result.dtype)
            plgpu.commit_smem()
            place = pl.ds(stream[i] * positions + first, STRIP)
            plgpu.copy_smem_to_gmem(result, kept.at[place])
            plgpu.wait_smem_to_gmem(0)

    scalars = (listed.stream, listed.column, listed.count[None])
    run(*scalars, x, kernel, *vectors, kept)  # pyright: ignore[reportCallIssue]
    moved = jnp.repeat(active[:, 0], STRIP, axis=1).reshape(marked.shape)
    return jax.freeze(kept).reshape(previous.shape), moved
