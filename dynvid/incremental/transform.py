"""The transformation: any frame function, run incrementally on a video."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dynvid.graph.trace import trace
from dynvid.incremental.execute import Reach, Runner
from dynvid.incremental.plan import Plan, make_plan
from dynvid.incremental.state import (
    State,
    check_setting,
    interior,
    is_zero,
    shapes_of,
    write_interior,
)
from dynvid.ops import masks
from dynvid.ops.difference import ChangeRule, changed_pixels
from dynvid.ops.refresh import (
    BLOCK,
    blocks_in_turn,
    moves_everywhere,
    quiet_frames,
    settling,
)
from dynvid.types import Params, VideoFunction


def incremental(
    fn: Callable[[Params, jax.Array], Any],
    *,
    threshold: ArrayLike = 0.0,
    truncation: ArrayLike | Mapping[str, ArrayLike] = 0.0,
    reference: Literal["last_used", "previous"] = "last_used",
    channels: Literal["any", "gray", "mean"] = "any",
    changes: ChangeRule | None = None,
    cell: int | None = None,
    break_even: float | None = None,
    reach: Reach = "geometry",
    settle: int | None = None,
    rotation: int | None = None,
    dense_above: float | None = None,
) -> VideoFunction:
    """Turns a frame function into one that recomputes only what changed, as `jax.grad` does grads.

    A pixel changed where it differs from the reference by at least `threshold` (DynCNN 3.1, Eq.
    1-2). Its effect is followed through every layer by the layer's own geometry (3.2), and only
    the cells that it reaches are computed again and written into the layer's cache (3.3-3.4).

    Args:
      fn: `fn(params, frames) -> outputs`, pure, with frames `(streams, H, W, C)`, floating or
        uint8, and any pytree of outputs. What has no incremental rule is computed in full.
      threshold: In the unit of the frames, a number or one a stream. Zero recomputes exactly what
        differs.
      truncation: A recomputed cell replaces the cached one only where a value in it moved by at
        least this, relative to the layer's root mean square on the stream's first frame. One for
        all layers, or a mapping by layer (the names that `explain` prints; those left out are
        exact), of numbers or one a stream. Never held back by it: what no learned kernel went
        into, such as resized or normalised frames, and what no further arithmetic reads, such as a
        detector's boxes. Weights are parameters; a function that closes over all its arrays has
        the kernels of its convolutions for weights. A function made with 0 is exact for good and
        has no comparison to pay for.
      reference: "last_used" compares with the pixels that the caches were computed from;
        "previous" with the previous frame, as the paper does, and drifts.
      channels: How channels are joined into one difference: see `changed_pixels`.
      changes: Another rule of what counts as changed, such as `camera_changes` of
        `dynvid.ops.difference` for frames as cameras give them; `threshold` means what the rule
        says. None compares pixels with the threshold.
      cell: The side of a cell of XLA's loop; None for single positions by the device's own kernel
        where it has one for a layer, else chosen by layer.
      break_even: Above this share of active cells a layer runs on whole frames, 0 to 1; as measured
        on the device where None, never where 1.
      reach: What a changed pixel marks in a layer: with "geometry" all positions that it reaches
        through the layers before; with "mask" those that lie under it, the mask of the frame
        resized to the layer's grid by the nearest neighbour. So the update mask U^(n) of Zhu et
        al. 2018 (3.2, Eq. 6 and 10) picks what layer n computes, and everything else stays what
        `map_caches` made of it: work is in proportion to the mask however deep the network is.
        On grids coarser than the mask's own detail the nearest neighbour reads one position of
        many, and what is small falls through; "cover" marks all positions in which any of it lies.
      settle: After how many frames without motion a block of 8 pixels, and those around it, is at
        rest (4, say): what truncation held back over it is computed once more, in all layers,
        without any; and everywhere once nothing at all has changed for as long. So no trace of what
        has left outlives it by more, but for the frames, `dynvid.ops.refresh.TURNS` at most, that
        it is spread over where much comes to rest at once. A block that changes alone is taken for
        noise and starts no count. None never does any of that.
      rotation: Every so many frames each block has its turn to be taken over: all that differs in
        it by anything at all, without truncation, a share of the frame at each step. So nothing is
        older than that, however faint it moves. None leaves what differs by less than the
        threshold as it is. Where a step gets a mask, that mask alone says what is computed, and
        nothing comes to rest or has its turn.
      dense_above: Where more than this share of the blocks changed or lies beside one that did, of
        all streams together, the step is `fn(params, frames)` itself: a camera that pans, a cut,
        another light. Its output is exact, its work dense, and nothing is kept of it, so that it
        takes no longer than the dense network; once the camera is at rest again, all is computed
        anew in one step, what truncation is relative to measured with it. None never does that, nor
        does a network most of whose arithmetic is cheaper on cells even where all of them are
        active: wide convolutions of 3x3 on a CPU, or any with a `break_even` of 1.

    Returns:
      A `VideoFunction`: `init(params, frames)`, dense; `step(params, state, frames, mask=None)`
      where a mask `bool[streams, H, W]` replaces the frame difference; and
      `recalibrate(params, state, frames)`, which starts again on these frames, with the settings
      that the state holds and with what truncation is relative to measured anew. `init` and
      `step` are jitted; wrap a step in `jax.jit(..., donate_argnums=1)` so that caches are updated
      in place.
      `state.work` says what a step executed, and `state.changes` where each leaf of the output may
      have changed, so that nobody need compare it with the one before. `state.with_settings`
      changes threshold and truncation without compiling anything again.

      A step that comes with other parameters computes everything anew. It tells them by eight
      values of each array: where only others differ, `recalibrate`.

    Raises:
      ValueError: For options outside their range; by `init` and `step` for frames of another rank,
        shape or dtype, for parameters of other shapes, and for the state of a function with other
        cells.

    Exact when all truncation is zero: the output is `fn(params, state.reference)`, bit for bit on
    integer-valued networks and within rounding on others. Approximate where it is not: each cache
    is within its truncation of its layer applied to the cached inputs, at every frame. Outside of
    `state.changes` an output is exactly what it was, on integer-valued networks; on others within
    rounding, as cells are computed whole. With `reference="previous"` and a threshold or a mask,
    what changed unmarked may come along with its neighbours. With `reach="mask"` and `"cover"`
    approximate because what a change reaches beyond the mask is not computed; exact where all is
    marked, and exactly the layer-by-layer blend of Eq. 6 elsewhere.

    >>> blur = lambda kernel, x: jax.lax.conv_general_dilated(
    ...     x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> video = incremental(blur)
    >>> state, out = video.init(jnp.ones((3, 3, 1, 1)), jnp.zeros((1, 32, 32, 1)))
    >>> state, out = video.step(
    ...     jnp.ones((3, 3, 1, 1)), state, jnp.zeros((1, 32, 32, 1)).at[0, 8, 8].set(1.0))
    >>> out.sum().item(), state.work.mac_fraction.item() < 0.1, state.changes[0].sum().item()
    (9.0, True, 9)
    """
    check_setting("threshold", threshold)
    taus: Mapping[str, ArrayLike] = {"truncation": truncation}  # type: ignore[dict-item]
    if isinstance(truncation, Mapping):
        taus = {f"truncation[{name!r}]": tau for name, tau in truncation.items()}
    for name, tau in taus.items():
        check_setting(name, tau)
    compares = not all(map(is_zero, taus.values()))
    if reference not in ("last_used", "previous"):
        raise ValueError(f"reference must be 'last_used' or 'previous'; got {reference!r}")
    if cell is not None and cell < 1:
        raise ValueError(f"cell must be a positive number of pixels or None; got {cell!r}")
    if break_even is not None and not 0 <= break_even <= 1:
        raise ValueError(f"break_even must be between 0 and 1 or None; got {break_even!r}")
    for name, frames_ in (("settle", settle), ("rotation", rotation)):
        if frames_ is not None and not (isinstance(frames_, int) and frames_ >= 1):
            raise ValueError(f"{name} must be a number of frames or None; got {frames_!r}")
    if dense_above is not None and not 0 <= dense_above <= 1:
        raise ValueError(f"dense_above must be between 0 and 1 or None; got {dense_above!r}")
    if reach not in get_args(Reach):
        raise ValueError(f"reach must be one of {', '.join(get_args(Reach))}; got {reach!r}")

    def plan(params: Params, frames: jax.Array) -> Plan:
        return plan_for(fn, params, frames, compares=compares, cell=cell, break_even=break_even)

    @jax.jit
    def init(params: Params, frames: jax.Array) -> tuple[State, Any]:
        runner = Runner(plan(params, frames), params)
        settles = compares and not (settle is None and rotation is None)
        state = runner.init(jnp.asarray(frames), settles=settles)
        state = state.with_settings(threshold=threshold, truncation=truncation)
        if changes is not None:
            state = dataclasses.replace(state, seen=changes.init(jnp.asarray(frames)))
        return state, runner.outputs()

    @jax.jit
    def step(
        params: Params, state: State, frames: jax.Array, mask: jax.Array | None = None
    ) -> tuple[State, Any]:
        old = state.reference
        check_step(frames, old, mask)
        if (shapes := shapes_of(params)) != state.parameter_shapes:
            raise ValueError(
                f"params must have the shapes of those of init, {_differing(state, shapes)}"
            )
        runner = Runner(plan(params, old), params, reach=reach)
        if not runner.fits(state) or (state.seen is None) != (changes is None):
            raise ValueError(_ANOTHER)
        composite = reference == "last_used"

        def update(
            state: State, new: jax.Array, changed: jax.Array, exact: jax.Array | None
        ) -> tuple[State, Any]:
            state = runner.step(state, new, changed, composite=composite, exact=exact)
            return state, runner.outputs()

        if mask is not None:
            return update(state, frames, mask, None)
        new = frames
        if changes is None:
            changed = changed_pixels(frames, old, threshold=state.threshold, channels=channels)
        else:
            seen, changed, new = changes.step(state.seen, frames, old, state.threshold)
            state = dataclasses.replace(state, seen=seen)
        blocks = masks.to_cells(changed, BLOCK)
        state, changed, exact = resting_and_in_turn(
            state, new, changed, blocks, settle=settle, rotation=rotation
        )
        if dense_above is None or break_even == 1 or runner.plan.favours_cells:
            return update(state, new, changed, exact)
        near = masks.stencil(blocks, window=(3, 3), padding=((1, 1), (1, 1)))
        # Of all streams: their cells share one loop, and the function takes them together.
        everywhere, calm = moves_everywhere(
            jnp.any(state.stale), jnp.min(state.calm), jnp.mean(near), dense_above
        )
        state = dataclasses.replace(state, calm=jnp.full_like(state.calm, calm))

        def whole(state: State, *_: Any) -> tuple[State, Any]:
            return runner.passed(state, frames), fn(params, frames)

        return lax.cond(everywhere, whole, update, state, new, changed, exact)

    def recalibrate(params: Params, state: State, frames: jax.Array) -> State:
        frames = jnp.asarray(frames)
        check_step(frames, state.reference, None)
        new, _ = init(params, frames)  # the same executable
        if jax.tree.structure(new) != jax.tree.structure(state):
            raise ValueError(_ANOTHER)
        return dataclasses.replace(
            new, threshold=state.threshold, truncation=state.truncation, seen=state.seen
        )

    return VideoFunction(init=init, step=step, recalibrate=recalibrate)


def resting_and_in_turn(
    state: State,
    frames: jax.Array,
    changed: jax.Array,
    blocks: jax.Array,
    *,
    settle: int | None,
    rotation: int | None,
) -> tuple[State, jax.Array, jax.Array | None]:
    """Where truncation holds nothing back: over what came to rest and what has its turn.

    Args:
      state: Before the step.
      frames: The new ones.
      changed: Their changed pixels, `bool[S, H, W]`.
      blocks: The blocks of `dynvid.ops.refresh.BLOCK` pixels that hold one.
      settle: As of `incremental`.
      rotation: Likewise.

    Returns:
      The state with the age of its blocks; the changed pixels, with those that the rotation takes
      over; and the blocks where nothing is held back, None where that is nowhere ever.
    """
    exact = []
    if settle is not None and state.quiet is not None:
        still = jnp.where(jnp.any(blocks, (1, 2)), 0, jnp.minimum(state.still + 1, settle))
        quiet = quiet_frames(state.quiet, blocks, settle)
        settled, quiet = settling(quiet, still == settle, settle)
        state = dataclasses.replace(state, quiet=quiet, still=still)
        exact.append(settled)
    if rotation is not None:
        turn = blocks_in_turn(state.turn, rotation, blocks.shape[1:])
        state = dataclasses.replace(state, turn=state.turn + 1)
        differs = jnp.any(frames != state.reference, axis=-1)
        changed = changed | (differs & masks.from_cells(turn, BLOCK, changed.shape[1:]))
        exact.append(turn)
    return state, changed, functools.reduce(jnp.logical_or, exact) if exact else None


_ANOTHER = (
    "state must be of this very function, made with the same cell and changes and with a "
    "truncation where this one has a truncation; got the state of another"
)


def _differing(state: State, shapes: tuple[tuple[int, ...], ...]) -> str:
    """What the parameters of a state and others differ by first."""
    mine = state.parameter_shapes
    if len(mine) != len(shapes):
        return f"{len(mine)} arrays; got {len(shapes)}"
    at = next(i for i, pair in enumerate(zip(mine, shapes, strict=True)) if pair[0] != pair[1])
    return f"{list(mine[at])} of array {at}; got {list(shapes[at])}"


def check_step(frames: jax.Array, reference: jax.Array, mask: jax.Array | None) -> None:
    """Checks the frames of a step against what they are compared with, and a mask given for them.

    Raises:
      ValueError: Where a shape or dtype is another.
    """
    shape = reference.shape
    if frames.shape != shape or frames.dtype != reference.dtype:
        raise ValueError(
            f"frames must be as in the state, {reference.dtype}{list(shape)}; "
            f"got {frames.dtype}{list(frames.shape)}"
        )
    if mask is not None and (mask.shape != shape[:3] or mask.dtype != jnp.bool_):
        raise ValueError(f"mask must be bool{list(shape[:3])}; got {mask.dtype}{list(mask.shape)}")


def plan_for(
    fn: Callable[[Params, jax.Array], Any],
    params: Params,
    frames: jax.Array | jax.ShapeDtypeStruct,
    *,
    compares: bool = False,
    cell: int | None = None,
    break_even: float | None = None,
) -> Plan:
    """Traces a function and plans it; `params` and `frames` may be shapes. See `make_plan`."""
    if len(frames.shape) != 4 or 0 in frames.shape:
        raise ValueError(
            f"frames must be (streams, H, W, C), each at least 1; got shape {tuple(frames.shape)}"
        )
    if frames.dtype != jnp.uint8 and not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f"frames must be floating or uint8; got {frames.dtype}")
    shapes = jax.eval_shape(lambda x: x, (params, frames))
    return make_plan(trace(fn, *shapes), compares=compares, cell=cell, break_even=break_even)


def map_caches(
    state: State,
    transform: Callable[[jax.Array, tuple[float, float]], jax.Array],
    *,
    select: Callable[[str, tuple[int, int]], bool] | None = None,
) -> State:
    """Applies a function to cached feature maps, to warp them between steps (Zhu 2018, 3.2).

    Args:
      state: The state of an incremental function.
      transform: `transform(feature_map, stride)` with a map `(streams, h, w, ...)` and how many
        rows and columns of the frame one of its positions stands for; returns a map of the same
        shape and dtype. Vectors without rows and columns stay as they are.

    Returns:
      The state with the transformed maps. The reference frames stay as they are: pass the
      positions that are no longer right as `mask` to the next step, of a function made with
      `reference="previous"`, so that what it computes again reads the new frame beside the mask
      too. The `changes` of that step are against the transformed maps.

    Raises:
      ValueError: Where `transform` changes a shape.

    >>> video = incremental(lambda gain, x: jax.lax.reduce_window(
    ...     x * gain, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"))
    >>> state, _ = video.init(jnp.ones(()), jnp.ones((1, 4, 4, 1)))
    >>> map_caches(state, lambda x, stride: print(x.shape, stride) or x) is not None
    (1, 2, 2, 1) (2.0, 2.0)
    True
    >>> same = map_caches(state, jnp.zeros_like, select=lambda name, grid: grid != (2, 2))
    >>> same.caches[0].sum().item()
    16.0
    """
    height, width = state.reference.shape[1:3]
    caches = []
    for i, (cache, halo) in enumerate(zip(state.caches, state.halos[1:], strict=True)):
        if halo is None:
            caches.append(cache)
            continue
        old = interior(cache, halo)
        if select is not None and not select(state.names[i], (old.shape[1], old.shape[2])):
            caches.append(cache)
            continue
        new = transform(old, (height / old.shape[1], width / old.shape[2]))
        if new.shape != old.shape:
            raise ValueError(
                f"transform must keep the shape of {state.names[i]}, {old.shape}; got {new.shape}"
            )
        caches.append(write_interior(cache, new, halo))
    return dataclasses.replace(state, caches=tuple(caches))
