"""The one seam where cells, their worklist and the kept maps become work."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.kernels.masked_conv import cpu, xla
from dynvid.kernels.masked_conv.cell_grid import CellGrid
from dynvid.kernels.masked_conv.pixels import (
    Output,
    Part,
    PixelProgram,
    Product,
    Source,
    Steps,
)
from dynvid.ops import cells, masks
from dynvid.ops.masks import Worklist
from dynvid.ops.sparse_conv import check_convolution

Compute = Callable[[jax.Array, jax.Array, jax.Array], Sequence[jax.Array]]
"""`compute(stream, row, column)` of K cells -> what they hold now, `(K, h, w, ...)` of each map."""

Implementation = Literal["xla"]
PixelImplementation = Literal["cpu", "xla"]
ConvolutionImplementation = Literal["cpu", "pallas_tpu", "xla"]

_IMPLEMENTATIONS = {"xla": xla.update_cells}


def update_cells(
    compute: Compute,
    maps: Sequence[jax.Array],
    listed: Worklist,
    *,
    grid: CellGrid,
    origins: Sequence[tuple[int, int]],
    chunk: int,
    count: jax.Array | None = None,
    marked: Sequence[jax.Array] = (),
    moved: Sequence[jax.Array] = (),
    tolerances: Sequence[jax.Array | None] | None = None,
    strict: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Computes the listed cells of some maps and writes them into the maps in place.

    A loop whose number of turns follows the amount of change (DynCNN 3.3-3.4): nothing is compiled
    again where that varies, nothing is left out, and no cell at all costs next to nothing.

    Args:
      compute: What the cells `(stream, row, column)` of a chunk hold now, one array a map.
      maps: The kept maps with their halo of zeros, `(S, H, W, ...)`.
      listed: The cells to compute; of all streams in one list.
      grid: Where the cells lie; the same for all maps. Positions beyond the map are written as
        zeros.
      origins: Of each map, how many rows and columns of halo lie before it.
      chunk: How many cells one turn takes.
      count: How many of the listed cells are computed, `int32[]`; all where None.
      marked: Of each map that has a tolerance, the positions that may be replaced, `bool[S, h, w]`;
        all other maps are replaced by whole cells.
      moved: Of each map that has a tolerance, the positions marked as moved before, likewise.
      tolerances: Of each map, how far a value in a cell must move for the cell to be replaced,
        `float32[S]` in its own unit; None replaces every listed cell. All None by default.
      strict: The cells whose tolerance is zero whatever the others' is, `bool[S, rows, columns]` of
        the grid's cells; none where None.
      implementation: "xla", or None for the best that the device has.

    Returns:
      The maps, and `moved` with what was replaced marked beside what was marked before.

    Raises:
      ValueError: An implementation that does not exist.

    Exact: what `compute` gives is copied. Where cells overlap it must give the same for both; the
    order of writing does not matter.

    >>> grid = CellGrid(np.array([0, 1]), np.array([0]), size=(1, 1), shape=(2, 1))
    >>> listed = masks.worklist(jnp.array([[[False], [True]]]))
    >>> ones = lambda stream, row, column: [jnp.ones((len(row), 1, 1))]
    >>> maps, _ = update_cells(
    ...     ones, [jnp.zeros((1, 2, 1))], listed, grid=grid, origins=[(0, 0)], chunk=2)
    >>> maps[0].tolist()
    [[[0.0], [1.0]]]
    """
    if implementation is not None and implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {sorted(_IMPLEMENTATIONS)} or None; "
            f"got {implementation!r}"
        )
    return _IMPLEMENTATIONS[implementation or "xla"](
        compute,
        maps,
        listed,
        grid=grid,
        origins=origins,
        chunk=chunk,
        count=listed.count if count is None else count,
        marked=marked,
        moved=moved,
        tolerances=[None] * len(maps) if tolerances is None else tolerances,
        strict=strict,
    )


def masked_conv(
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
    chunk: int = 32,
    precision: lax.PrecisionLike = None,
    implementation: ConvolutionImplementation | None = None,
) -> jax.Array:
    """Convolves the cells that a change reaches and keeps the previous output elsewhere.

    The same function as `ops.sparse_conv.pixel_sparse_conv`, which is its reference, by DynCNN's
    cell-based partition (sections 3.3-3.4): impacted pixels are grouped into cells, a loop gathers
    a chunk of cells with their halo, convolves it and writes it back.

    Args:
      x: The input, `(S, H, W, C)`.
      kernel: `(kh, kw, C / groups, O)`.
      previous: The output for the previous input, `(S, H', W', O)`.
      mask: The input pixels that changed, `bool[S, H, W]`.
      strides: (rows, columns).
      padding: ((top, bottom), (left, right)), of zeros; negative values crop.
      dilation: (rows, columns) between the kernel's taps.
      groups: The number of channel groups, C for a depthwise convolution.
      cell: The side of a cell, in output pixels.
      chunk: How many cells one turn of the loop takes.
      precision: Of the products, as in `lax.conv_general_dilated`.
      implementation: "xla", the loop over cells; "cpu", single positions by the CPU's own kernel
        (float32, one group or depthwise); "pallas_tpu", tiles by a TPU's (strides of one, one
        group). None for the kernel of the device where it serves, else the loop.

    Returns:
      `(S, H', W', O)`. Not differentiable in reverse: the work has no fixed size.

    Raises:
      ValueError: Shapes that do not fit one another, a cell or a chunk below one, an implementation
        that does not exist or does not serve here.

    Exact when `previous` is the convolution of an input that differs from `x` under the mask only;
    bit for bit on integer values, up to the order of summation on others.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> mask = jnp.zeros((1, 4, 4), bool).at[0, 0, 0].set(True)
    >>> kernel, padding = jnp.ones((3, 3, 1, 1)), ((1, 1), (1, 1))
    >>> masked_conv(x, kernel, jnp.zeros_like(x), mask, padding=padding)[0, ..., 0]
    Array([[10., 18.,  0.,  0.],
           [27., 45.,  0.,  0.],
           [ 0.,  0.,  0.,  0.],
           [ 0.,  0.,  0.,  0.]], dtype=float32)
    """
    for name, value in (("cell", cell), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    check_convolution(x, kernel, previous, mask, strides, padding, dilation, groups)
    window = kernel.shape[:2]
    step, spread = (strides[0], strides[1]), (dilation[0], dilation[1])
    impacted = masks.stencil(
        mask, window=window, strides=strides, padding=padding, dilation=dilation
    )
    if not impacted.size:
        return previous
    height, width = impacted.shape[1:]
    chosen = _convolution_by(x, kernel, previous, strides, groups, implementation)
    if chosen == "cpu":
        return _by_pixels(x, kernel, previous, impacted, step, padding, spread)
    if chosen == "pallas_tpu":
        from dynvid.kernels.masked_conv import pallas_tpu  # slow to import

        options: dict[str, Any] = {} if precision is None else {"precision": precision}
        return pallas_tpu.convolve_tiles(
            x, kernel, previous, impacted, padding=padding, dilation=dilation, **options
        )[0]
    size = (min(cell, height), min(cell, width))
    # The last cell is moved back so that none leaves the output.
    starts = [
        np.minimum(np.arange(-(-length // side)) * side, length - side)
        for length, side in zip((height, width), size, strict=True)
    ]
    grid = CellGrid(starts[0], starts[1], size=size, shape=(height, width))
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

    def compute(stream: jax.Array, row: jax.Array, column: jax.Array) -> list[jax.Array]:
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
        return [fresh.astype(previous.dtype)]

    (out,), _ = update_cells(
        compute,
        [previous],
        listed,
        grid=grid,
        origins=[(0, 0)],
        chunk=min(chunk, len(listed.row)),
        marked=[impacted],
        moved=[jnp.zeros_like(impacted)],
        tolerances=[jnp.zeros(len(x), jnp.float32)],
    )
    return out


def _convolution_by(
    x: jax.Array,
    kernel: jax.Array,
    previous: jax.Array,
    strides: Sequence[int],
    groups: int,
    implementation: ConvolutionImplementation | None,
) -> ConvolutionImplementation:
    """What runs a single convolution."""
    known = get_args(ConvolutionImplementation)
    if implementation not in (None, *known):
        raise ValueError(
            f"implementation must be one of {sorted(known)} or None; got {implementation!r}"
        )
    single = all(array.dtype == jnp.float32 for array in (x, kernel, previous))
    depthwise = kernel.shape[2] == 1 and groups == kernel.shape[3]
    if implementation == "pallas_tpu":
        serves = groups == 1 and tuple(strides) == (1, 1)
    elif implementation == "xla":
        serves = True
    else:
        serves = single and (groups == 1 or depthwise) and pixels_run_on() == "cpu"
    if implementation is None:
        return "cpu" if serves else "xla"
    if not serves:
        raise ValueError(
            f"implementation {implementation!r} does not serve a convolution of {x.dtype} in "
            f"{groups} groups with strides of {tuple(strides)} here"
        )
    return implementation


def _by_pixels(
    x: jax.Array,
    kernel: jax.Array,
    previous: jax.Array,
    impacted: jax.Array,
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
    dilation: tuple[int, int],
) -> jax.Array:
    """A single convolution as a pixel program."""
    streams, height, width, features = previous.shape
    shape, window = x.shape[1:3], kernel.shape[:2]
    low = [max(0, pad[0]) for pad in padding]
    steps = [Steps(n, -pad[0]) for n, pad in zip(strides, padding, strict=True)]
    ends = [
        step.first(count - 1) + (taps - 1) * apart + 1
        for step, count, taps, apart in zip(steps, (height, width), window, dilation, strict=True)
    ]
    high = [max(0, end - length) for end, length in zip(ends, shape, strict=True)]
    stored = [a + n + b for a, n, b in zip(low, shape, high, strict=True)]
    channels = x.shape[3]
    product = Product(
        "dense" if kernel.shape[2] == channels else "depthwise",
        (Part(0, False, 0, channels, *steps),),
        features,
        (window[0], window[1]),
        dilation,
        weights=0,
    )
    program = PixelProgram(
        grid=(height, width),
        sources=(Source((shape[0], shape[1], channels), (low[0], low[1]), (stored[0], stored[1])),),
        steps=(product,),
        outputs=(Output(0, compared=True),),
        places=(Source((height, width, features), (0, 0), (height, width)),),
    )
    (out,), _, _ = update_pixels(
        program,
        [cells.add_halo(x, low=(low[0], low[1]), high=(high[0], high[1]))],
        [prepare_weights(product, kernel)],
        [],
        [previous],
        [impacted],
        tolerances=jnp.zeros((1, streams), jnp.float32),
    )
    return out


def pixels_run_on(*, device: Any = None) -> PixelImplementation | None:
    """What runs pixel programs on a device beside the reference; None where nothing does.

    Args:
      device: A `jax.Device`; the default device where None.
    """
    device = device or jax.config.jax_default_device or jax.local_devices()[0]
    if getattr(device, "platform", device) != "cpu":
        return None
    return "cpu" if cpu.library() is not None else None


def prepare_weights(step: Product, kernel: jax.Array) -> jax.Array:
    """The weights of a product as `update_pixels` reads them; see `cpu.prepare`."""
    return cpu.prepare(step, kernel) if pixels_run_on() == "cpu" else kernel


def update_pixels(
    program: PixelProgram,
    sources: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    vectors: Sequence[jax.Array],
    previous: Sequence[jax.Array],
    marked: Sequence[jax.Array],
    *,
    tolerances: jax.Array,
    strict: jax.Array | None = None,
    implementation: PixelImplementation | None = None,
) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """Computes the marked positions of some maps and writes them into the maps in place.

    Args:
      program: What is computed of a position.
      sources: The stored maps that it reads, `float32(S, h, w, C)` with their halo of zeros.
      weights: Of each product, `prepare_weights` of its kernel.
      vectors: What its formulas take one of a channel, `float32(1 or S, C)`.
      previous: What is kept of each output, with its halo.
      marked: Of each output, the positions that may have changed, `bool[S, H, W]`; what any of them
        marks is computed.
      tolerances: Of each output, how far a value must move for its position to be replaced,
        `float32[outputs, S]`; only of those that are compared.
      strict: The positions whose tolerance is zero whatever the others' is, `bool[S, H, W]`.
      implementation: "cpu" or "xla", the reference, which computes everything; None for the best
        that the device has.

    Returns:
      The maps; of each output what was replaced, `bool[S, H, W]`, or where it is not compared what
      was marked; how many positions were computed, `int32[S]`.

    Raises:
      ValueError: An implementation that does not exist or does not run here.

    Exact as the convolution itself is: bit for bit on integers, up to the order of summation on
    others.
    """
    here = pixels_run_on()
    if implementation not in (None, "xla", here):
        raise ValueError(f"implementation must be 'xla', {here!r} or None; got {implementation!r}")
    chosen = xla.update_pixels if (implementation or here) != "cpu" else cpu.update_pixels
    return chosen(
        program, sources, weights, vectors, previous, marked, tolerances=tolerances, strict=strict
    )
