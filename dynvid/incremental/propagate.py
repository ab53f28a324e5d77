"""The transformation along a motion: what is kept is warped before it is brought up to date."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynvid.incremental.execute import Reach, Runner
from dynvid.incremental.geometry import cells
from dynvid.incremental.state import Halo, State, interior, write_interior
from dynvid.incremental.transform import check_step, incremental, plan_for
from dynvid.kernels.masked_conv import CellGrid, update_cells
from dynvid.ops import masks
from dynvid.ops.cells import chunk_size
from dynvid.ops.warp import Border, resize_flow, warp, warp_windows
from dynvid.types import InitFn, Params

_CELL = 4  # positions a side of what is warped at once
_CHUNK_BYTES = 1 << 20  # and as much of it in one turn as stays in a second-level cache
_CHUNK_ROWS = 128
_CORNERS = 4  # that a warped value is made of


class AlongMotion(NamedTuple):
    """A frame function that follows a motion.

    Attributes:
      init: `init(params, frames) -> (state, outputs)`, dense; as of `dynvid.incremental`.
      step: `step(params, state, scratch, frames, mask, flow) -> (scratch, outputs)`: a later frame,
        from what `state` keeps of an earlier one.
    """

    init: InitFn
    step: Callable[[Params, State, State, jax.Array, jax.Array, jax.Array], tuple[State, Any]]


def along_motion(
    fn: Callable[[Params, jax.Array], Any],
    *,
    border: Border = "zeros",
    reach: Reach = "mask",
    cell: int | None = None,
    break_even: float | None = None,
) -> AlongMotion:
    """Turns a frame function into one that recomputes what a motion field cannot explain.

    PartialUpdate of Zhu et al., Towards High Performance Video Object Detection, 2018 (Eq. 6 and
    10): at every layer n

        F_i^(n) = U^(n) N^(n)(F_i^(n-1)) + (1 - U^(n)) W(F_k^(n), M^(n)),  F_i^(0) = I_i

    where F_k^(n) is what `state` keeps, M^(n) the motion on that layer's grid with its values
    scaled, and U^(n) the mask there. It is `map_caches` with a warp, then a step of `incremental`
    with U as its mask and `reference="previous"`; but of the maps inside only what the step reads
    is warped, so that time, too, is in proportion to the mask.

    Args:
      fn: As of `incremental`.
      border: What is read outside of a map.
      reach: As of `incremental`. "mask" is the equation's U^(n), and so is "cover" where layers are
        coarser than the mask's own detail; with "geometry" what reads an updated position is
        updated too, layer by layer.
      cell: As of `incremental`.
      break_even: Likewise.

    Returns:
      `init`, and `step` with a mask `bool[S, H, W]` and the flow `(S, h, w, 2)` of any grid, (dx,
      dy) in its pixels, from the new frames to those of the state. `scratch` is any state of the
      same function, such as the state itself or what the last step returned, and is written over:
      donate it, or carry it through a loop, and nothing is allocated. What `step` returns has the
      `work` and `changes` of the step; beyond its outputs its maps are not complete, so that the
      next step, too, has to start from the state of the key frame.

    Raises:
      ValueError: As `incremental`, and for a flow of other streams.

    Exact: `fn(params, frames)` where all is marked and the warped outputs where nothing is. Maps of
    integers are rounded once they are warped.

    >>> largest = lambda _, x: lax.reduce_window(
    ...     x, -jnp.inf, lax.max, (1, 1, 2, 1), (1, 1, 2, 1), "VALID")
    >>> follow = along_motion(largest)
    >>> state, _ = follow.init((), jnp.arange(8.0).reshape(1, 1, 8, 1))
    >>> mask, left = jnp.zeros((1, 1, 8), bool), jnp.zeros((1, 1, 4, 2)).at[..., 0].set(-1.0)
    >>> new = jnp.full((1, 1, 8, 1), 9.0)
    >>> _, out = follow.step((), state, state, new, mask.at[0, 0, :2].set(True), left)
    >>> out.ravel().tolist()
    [9.0, 1.0, 3.0, 5.0]
    """
    video = incremental(fn, reference="previous", reach=reach, cell=cell, break_even=break_even)

    @jax.jit
    def step(
        params: Params,
        state: State,
        scratch: State,
        frames: jax.Array,
        mask: jax.Array,
        flow: jax.Array,
    ) -> tuple[State, Any]:
        check_step(frames, state.reference, mask)
        if flow.ndim != 4 or flow.shape[0] != len(frames) or flow.shape[3] != 2:
            raise ValueError(f"flow must be ({len(frames)}, h, w, 2); got {flow.shape}")
        plan = plan_for(fn, params, frames, cell=cell, break_even=break_even)
        reads = Runner(plan, params, reach=reach).reads(state, mask)
        flows: dict[tuple[int, int], jax.Array] = {}
        caches = list(scratch.caches)
        for i, (value, halo) in enumerate(zip(plan.kept, state.halos[1:], strict=True)):
            if halo is None:
                caches[i] = state.caches[i]
            else:
                (top, left), (bottom, right) = halo
                height, width = caches[i].shape[1:3]
                size = (height - top - bottom, width - left - right)
                if size not in flows:
                    flows[size] = lax.optimization_barrier(resize_flow(flow, size))
                caches[i] = _carried(
                    state.caches[i], caches[i], halo, flows[size], reads[value], border
                )
        carried = dataclasses.replace(state, frames=scratch.frames, caches=tuple(caches))
        return video.step(params, carried, frames, mask)

    return AlongMotion(video.init, step)


def _carried(
    cache: jax.Array,
    scratch: jax.Array,
    halo: Halo,
    flow: jax.Array,
    reads: jax.Array | None,
    border: Border,
) -> jax.Array:
    """A cache warped into another: all of it, or the cells of it that are read."""
    flat = cache.reshape(*cache.shape[:3], -1)
    floating = jnp.issubdtype(cache.dtype, jnp.inexact)
    flat = flat if floating else flat.astype(jnp.float32)

    def stored(warped: jax.Array) -> jax.Array:
        return warped if floating else jnp.round(warped).astype(cache.dtype)

    if reads is None:
        new = stored(warp(interior(flat, halo), flow, border=border))
        return write_interior(scratch, new.reshape(*new.shape[:3], *cache.shape[3:]), halo)
    _, height, width, _ = flow.shape
    rows, columns = cells(height, _CELL), cells(width, _CELL)
    size = (rows.size, columns.size)
    grid = CellGrid(rows.starts, columns.starts, size=size, shape=(height, width))
    listed = masks.worklist(masks.to_cells(reads, size))
    area, depth = size[0] * size[1], flat.shape[3]
    chunk = chunk_size(
        len(listed.stream),
        area,
        _CORNERS * area * depth * flat.dtype.itemsize,
        target_bytes=_CHUNK_BYTES,
        rows=_CHUNK_ROWS,
    )

    def compute(stream: jax.Array, row: jax.Array, column: jax.Array) -> list[jax.Array]:
        first = grid.first(row, column)
        return [
            stored(
                warp_windows(flat, flow, stream, *first, size=size, origin=halo[0], border=border)
            )
        ]

    (new,), _ = update_cells(
        compute,
        [scratch.reshape(flat.shape)],
        listed,
        grid=grid,
        origins=[halo[0]],
        chunk=chunk,
    )
    return new.reshape(cache.shape)
