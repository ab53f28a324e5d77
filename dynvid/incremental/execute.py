"""Running a plan: the state, its first frame and every later one."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.graph.evaluate import Evaluator
from dynvid.graph.trace import Node, Value
from dynvid.incremental import program
from dynvid.incremental.geometry import Table
from dynvid.incremental.pixels import PixelSegment, vector, vector_shape
from dynvid.incremental.plan import Boundary, Plan, Segment
from dynvid.incremental.program import Program
from dynvid.incremental.rules import Layout, Window, kernel_order, mask_through
from dynvid.incremental.state import (
    State,
    interior,
    same_sample,
    sample,
    shapes_of,
    write_interior,
)
from dynvid.kernels.masked_conv import CellGrid, prepare_weights, update_cells, update_pixels
from dynvid.kernels.masked_conv.pixels import Product
from dynvid.ops import cells, masks
from dynvid.ops.refresh import BLOCK, moved_beyond, refreshed
from dynvid.types import Work

Reach = Literal["geometry", "mask", "cover"]
"""What a changed pixel marks: all that it reaches through the layers, or what lies under it."""


@dataclasses.dataclass
class _Cells:
    """The context of a program's evaluation: which cells, and where to find everything else."""

    evaluate: Evaluator
    weights: dict[Node, jax.Array]
    stream: jax.Array
    index: tuple[jax.Array, jax.Array]
    dense: bool

    def array(self, value: Value) -> jax.Array:
        return self.evaluate(value)

    def winograd(self, node: Node) -> jax.Array | None:
        return self.weights.get(node)

    def cell_constant(self, table: np.ndarray, axis: int) -> jax.Array:
        if len(table) == 1:
            return jnp.broadcast_to(jnp.asarray(table), (len(self.stream), *table.shape[1:]))
        return jnp.asarray(table)[self.index[axis]]

    def starts(self, window: Window) -> tuple[jax.Array, jax.Array]:
        """The first row and column of each cell's window."""
        rows, columns = (
            self.cell_constant(region.starts.astype(np.int32), axis)
            for axis, region in enumerate(window)
        )
        return rows, columns

    def positions(self, window: Window) -> tuple[jax.Array, jax.Array]:
        """All rows and columns of each cell's window."""
        rows, columns = (
            start[:, None] + jnp.arange(region.size)
            for start, region in zip(self.starts(window), window, strict=True)
        )
        return rows, columns

    def spread(self, value: Value, layout: Layout, out: Window) -> jax.Array:
        if value.ndim == 0:
            return self.evaluate(value)
        node = _broadcast_of(value)
        if node is None:
            array = self.evaluate(value)
        else:
            # Never made in full: only what is repeated over the window is read.
            shape = [1] * value.ndim
            for axis, n in zip(
                node.params["broadcast_dimensions"], node.inputs[0].shape, strict=True
            ):
                shape[axis] = n
            array = self.evaluate(node.inputs[0]).reshape(shape)
        array = jnp.transpose(array, layout.order(value.ndim))
        if array.shape[:3] == (1, 1, 1):
            return array
        if array.shape[1:3] == (1, 1):
            return array[self.stream]
        rows, columns = self.positions(out)
        stream = self.stream[:, None, None] if array.shape[0] > 1 else 0
        row = jnp.clip(rows, 0, array.shape[1] - 1)[:, :, None] if array.shape[1] > 1 else 0
        column = jnp.clip(columns, 0, array.shape[2] - 1)[:, None] if array.shape[2] > 1 else 0
        return array[stream, row, column]


def _broadcast_of(value: Value) -> Node | None:
    """The broadcast that makes a value, if one does."""
    node = value.node
    return node if node is not None and node.primitive.name == "broadcast_in_dim" else None


class Runner:
    """One init or step of a plan: what is kept, while it is brought up to date unit by unit."""

    def __init__(self, plan: Plan, params: Any, *, reach: Reach = "geometry"):
        self.plan = plan
        self.reach = reach
        self.count = plan.graph.frames.shape[0]
        self.slot = {value: i for i, value in enumerate(plan.kept)}
        self.caches: list[Any] = [None] * len(plan.kept)
        self.evaluate = Evaluator(self._load)
        self.weights: dict[Node, jax.Array] = {}
        self.change: dict[Value, jax.Array] = {}
        self._params = params
        self._arguments = jax.tree.leaves(params)
        # With the product that a pixel program makes of it; None of one in Winograd's form.
        self._prepared: list[tuple[Node, Product | None]] = []
        for unit in plan.units:
            if isinstance(unit, Segment) and unit.on_pixels is not None:
                self._prepared += unit.on_pixels.products
            elif isinstance(unit, Segment) and unit.on_cells is not None:
                steps = unit.on_cells.steps
                self._prepared += [(step.node, None) for step in steps if step.by_winograd]

    # What is kept.

    def _load(self, value: Value) -> jax.Array | None:
        """An argument or a kept value as the model sees it; None for everything else."""
        if value in self.slot or value is self.plan.graph.frames:
            if value not in self.plan.layouts:
                return self.caches[self.slot[value]]
            order = self.plan.layouts[value].order(value.ndim)
            inside = interior(self.padded(value), self.plan.halos[value])
            return jnp.transpose(inside, tuple(order.index(axis) for axis in range(value.ndim)))
        return None if value.argument is None else self._arguments[value.argument]

    def padded(self, value: Value) -> jax.Array:
        """A map that is kept, in canonical order with its halo."""
        return self.frames if value is self.plan.graph.frames else self.caches[self.slot[value]]

    def _prepare(self) -> tuple[jax.Array, ...]:
        """The kernels of convolutions as the cells or the pixel programs read them."""
        weights = []
        for node, product in self._prepared:
            order = kernel_order(node, self.plan.layouts[node.inputs[0]])
            kernel = jnp.transpose(self.evaluate(node.inputs[1]), order)
            weights.append(
                cells.winograd_weights(kernel)
                if product is None
                else prepare_weights(product, kernel)
            )
        return tuple(weights)

    # Change masks.

    def mask(self, value: Value) -> jax.Array:
        """Where a value may have changed: `bool[S, h, w]`, or `bool[S]` for a vector."""
        if value in self.change:
            return self.change[value]
        op = self.plan.ops.get(value.node) if value.node is not None else None
        inputs = value.node.inputs if value.node is not None else ()
        if self.reach != "geometry" and value in self.plan.layouts:
            layout = self.plan.layouts[value]
            frame = self.change[self.plan.graph.frames]
            resized = masks.resize_mask if self.reach == "mask" else masks.cover_mask
            mask = resized(frame, (value.shape[layout.row], value.shape[layout.column]))
            self.change[value] = mask
            return mask
        moved = [self.mask(v) for v in inputs if v.frame_dependent and v not in self.plan.layouts]
        if op is None:
            mask = functools.reduce(jnp.logical_or, moved)
        else:
            layout = self.plan.layouts[value]
            size = (value.shape[layout.row], value.shape[layout.column])
            parts = [
                mask_through(self.mask(v), receptive_field, size)
                for v, receptive_field in zip(op.operands, op.receptive_fields, strict=True)
            ]
            mask = functools.reduce(jnp.logical_or, [*parts, *(m[:, None, None] for m in moved)])
        self.change[value] = mask
        return mask

    def _output_mask(self, value: Value) -> jax.Array:
        still = jnp.zeros(self._mask_shape(value), bool)
        return (self.mask(value) if value.frame_dependent else still) | self.renew

    def _mask_shape(self, value: Value) -> tuple[int, ...]:
        """`(S, h, w)` of a map, `(S,)` of everything else."""
        layout = self.plan.layouts.get(value)
        if layout is None:
            return (self.count,)
        return self.count, value.shape[layout.row], value.shape[layout.column]

    # Programs.

    def _run(self, part: Program, stream, index, *, dense: bool) -> list[jax.Array]:
        """Evaluates a program on some cells, or on whole frames."""
        context = _Cells(self.evaluate.child(), self.weights, stream, index, dense)

        def gather(value: Value, window: Window) -> jax.Array:
            (top, left), _ = self.plan.halos[value]
            rows, columns = context.starts(window)
            size = (window.rows.size, window.columns.size)
            if dense:
                row, column = (int(region.starts[0]) for region in window)
                held = self.padded(value)[:, row + top :, column + left :]
                return held[:, : size[0], : size[1]]
            padded = self.padded(value)
            return cells.gather_windows(padded, stream, rows + top, columns + left, size=size)

        return program.run(part, gather, context, context.positions, self.plan.layouts)

    def _on_frame(self, segment: Segment) -> list[jax.Array]:
        zero = jnp.zeros(self.count, jnp.int32)
        return self._run(segment.on_frame, jnp.arange(self.count), (zero, zero), dense=True)

    def _on_boundary(self, boundary: Boundary) -> list[jax.Array]:
        evaluate = self.evaluate.child(fresh=frozenset(boundary.nodes))
        found = [evaluate(value) for value in boundary.outputs]
        layouts = [self.plan.layouts.get(value) for value in boundary.outputs]
        return [
            array if layout is None else jnp.transpose(array, layout.order(array.ndim))
            for array, layout in zip(found, layouts, strict=True)
        ]

    def _prefetch(self, segment: Segment) -> None:
        """Evaluates what a loop needs of the parameters once, outside the loop."""
        for step in segment.on_frame.steps:
            for value in step.node.inputs:
                if value not in step.op.operands:
                    node = _broadcast_of(value)
                    self.evaluate(value if node is None else node.inputs[0])

    # The first frame.

    def init(self, frames: jax.Array, *, settles: bool = False) -> State:
        """Computes everything densely and keeps what later frames will need.

        Args:
          frames: The first frames.
          settles: Whether to note where truncation holds something back, for `step(exact=...)`.
        """
        plan = self.plan
        low, high = plan.halos[plan.graph.frames]
        self.frames = cells.add_halo(frames, low=low, high=high)
        made: list[Any] = [None] * len(plan.kept)
        for unit in plan.units:
            run = self._on_frame if isinstance(unit, Segment) else self._on_boundary
            for value, array in zip(unit.outputs, run(unit), strict=True):  # type: ignore[arg-type]
                i = self.slot[value]
                made[i] = self._rms(value, array)
                if value in plan.layouts:
                    low, high = plan.halos[value]
                    array = cells.add_halo(array, low=low, high=high)
                self.caches[i] = array
        scales = jnp.stack(made) if made else jnp.zeros((0, self.count), jnp.float32)
        layers = plan.layers
        return State(
            frames=self.frames,
            caches=tuple(self.caches),
            threshold=jnp.zeros(self.count, jnp.float32),
            truncation=jnp.zeros((len(layers), self.count), jnp.float32),
            scales=scales,
            weights=self._prepare(),
            parameters=sample(self._params),
            joined=jnp.zeros(self.count, bool),
            held=tuple(
                jnp.zeros(self._mask_shape(v), bool) if settles and v in plan.compared else None
                for v in plan.kept
            ),
            quiet=jnp.zeros(self._blocks(frames), jnp.int32) if settles else None,
            still=jnp.zeros(self.count, jnp.int32),
            turn=jnp.zeros(self.count, jnp.int32),
            stale=jnp.zeros(self.count, bool),
            calm=jnp.zeros(self.count, jnp.int32),
            seen=None,
            work=self._all_work(),
            changes=self._all_changed(),
            names=plan.names,
            layers=layers,
            rows=tuple(
                layers.index(name) if value in plan.compared else -1
                for value, name in zip(plan.kept, plan.names, strict=True)
            ),
            halos=plan.stored_halos,
            layouts=tuple(plan.layouts.get(v) for v in (plan.graph.frames, *plan.kept)),
            axes=tuple(0 if v in plan.layouts else plan.streams.get(v, -1) for v in plan.kept),
            compares=plan.compares,
            parameter_shapes=shapes_of(self._params),
        )

    def _all_work(self) -> Work:
        """What the dense network executes."""
        dense = jnp.full(self.count, self.plan.dense_macs, jnp.float32)
        segments = [unit for unit in self.plan.units if isinstance(unit, Segment)]
        return Work(
            macs=dense,
            dense_macs=dense,
            changed=jnp.ones(self.count, jnp.float32),
            details={
                "cells": jnp.array([self.count * _cell_count(s) for s in segments], jnp.int32),
                "dense": jnp.ones(len(segments), bool),
                "settled": jnp.zeros((), jnp.int32),
                "whole": jnp.ones((), bool),
            },
        )

    def _all_changed(self) -> tuple[jax.Array, ...]:
        """The changes of outputs that are all new."""
        return tuple(jnp.ones(self._mask_shape(v), bool) for v in self.plan.graph.outputs)

    def _blocks(self, frames: jax.Array) -> tuple[int, int, int]:
        """(S, rows, columns) of the blocks that come to rest."""
        return (self.count, -(-frames.shape[1] // BLOCK), -(-frames.shape[2] // BLOCK))

    def _scales(self, state: State) -> jax.Array:
        """The scales of a state, measured anew once frames went by without it."""
        if not (self.plan.compares and self.plan.kept):
            return state.scales

        def measure() -> jax.Array:
            arrays = [
                interior(cache, halo) if halo is not None else cache
                for cache, halo in zip(self.caches, state.halos[1:], strict=True)
            ]
            return jnp.stack(list(map(self._rms, self.plan.kept, arrays)))

        return lax.cond(jnp.any(state.stale), measure, lambda: state.scales)

    def _rms(self, value: Value, array: jax.Array) -> jax.Array:
        """The root mean square of a new cache, for each stream."""
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return jnp.zeros(self.count, jnp.float32)
        axis = 0 if value in self.plan.layouts else self.plan.streams.get(value)
        others = tuple(a for a in range(array.ndim) if a != axis)
        rms = jnp.sqrt(jnp.mean(jnp.square(array.astype(jnp.float32)), axis=others))
        return jnp.broadcast_to(rms, (self.count,))

    # Every later frame.

    def fits(self, state: State) -> bool:
        """Whether a state is of this function."""
        plan = self.plan
        mine = (plan.names, plan.layers, plan.stored_halos, len(self._prepared))
        return (state.names, state.layers, state.halos, len(state.weights)) == mine

    def reads(self, state: State, changed: jax.Array) -> dict[Value, jax.Array | None]:
        """Which positions of each kept map the next step reads, itself or as output.

        Args:
          state: What is kept; of a plan that compares nothing.
          changed: The pixels that will be marked, `bool[S, H, W]`.

        Returns:
          `bool[S, h, w]` of each; None for all of it.
        """
        plan = self.plan
        segments = [unit for unit in plan.units if isinstance(unit, Segment)]
        boundaries = [unit for unit in plan.units if isinstance(unit, Boundary)]
        made = {value for unit in boundaries for value in unit.outputs}
        used = {v for unit in segments for node in unit.nodes for v in self._kept(node.inputs)}
        whole = self._kept(plan.graph.outputs) | {v for unit in boundaries for v in unit.inputs}
        if made & used:  # where those change is not known before they are computed
            whole |= plan.layouts.keys() & self.slot.keys()
        self.renew = ~same_sample(sample(self._params), state.parameters)
        self.change = {plan.graph.frames: changed | self.renew}
        found: dict[Value, jax.Array | None] = {
            value: None if value in whole else jnp.zeros(self._mask_shape(value), bool)
            for value in plan.layouts.keys() & self.slot.keys()
        }
        for segment in [] if made & used else segments:
            marked = functools.reduce(jnp.logical_or, map(self.mask, segment.outputs))
            active = masks.to_cells(marked, segment.cell)
            part = segment.on_cells
            dense = jnp.sum(active, dtype=jnp.int32) > segment.break_even * active.size
            for value, window in (part or segment.on_frame).gathers:
                held = found.get(value)  # None of the frames too
                if held is not None:
                    more = _covered(active, window, held.shape[1:]) | (dense if part else True)
                    found[value] = held | more
        return found

    def _kept(self, values: Iterable[Value]) -> set[Value]:
        """What is kept that some values are made of."""
        found: set[Value] = set()
        stack = [value for value in values if value.frame_dependent]
        while stack:
            value = stack.pop()
            if value in self.slot:
                found.add(value)
            elif value.node is not None:
                stack += [v for v in value.node.inputs if v.frame_dependent]
        return found

    def step(
        self,
        state: State,
        frames: jax.Array,
        changed: jax.Array,
        *,
        composite: bool,
        exact: jax.Array | None = None,
    ) -> State:
        """Brings what is kept up to date with the changed pixels of new frames.

        Args:
          state: What is kept.
          frames: The new frames.
          changed: Which pixels changed, `bool[S, H, W]`.
          composite: Whether unchanged pixels keep their reference value (else: the new one).
          exact: The blocks of the frame where nothing is held back and what was is computed again,
            `bool[S, rows, columns]` of blocks of `dynvid.ops.refresh.BLOCK`; nowhere where None.
        """
        plan = self.plan
        # Other parameters than before, or frames that went by: nothing that is kept is right.
        parameters = sample(self._params)
        self.renew = ~same_sample(parameters, state.parameters) | jnp.any(state.stale)
        self.joined = jnp.any(state.joined)
        changed = changed | self.renew
        weights = state.weights
        if weights:
            weights = lax.cond(self.renew, self._prepare, lambda: state.weights)
        nodes = [node for node, _ in self._prepared]
        self.weights = dict(zip(nodes, weights, strict=True))
        self.caches = list(state.caches)
        self.tolerances = jnp.where(self.renew, 0, state.tolerances)
        new = jnp.where(changed[..., None], frames, state.reference) if composite else frames
        halo = plan.halos[plan.graph.frames]
        self.frames = write_interior(state.frames, new, halo)
        self.change = {plan.graph.frames: changed}
        self.held = list(state.held)
        self.exact = exact
        self.over: dict[bytes, jax.Array] = {}
        self.settled = jnp.zeros((), jnp.int32)
        macs = jnp.zeros(self.count, jnp.float32)
        active, dense = [], []
        for unit in plan.units:
            if isinstance(unit, Segment):
                counts, ran_dense = self._segment(unit)
                active.append(jnp.sum(counts))
                dense.append(ran_dense)
                macs += jnp.where(
                    ran_dense, jnp.float32(unit.macs), counts * jnp.float32(unit.cell_macs)
                )
            else:
                macs += self._boundary(unit) * jnp.float32(unit.macs)
        work = Work(
            macs=macs,
            dense_macs=jnp.full(self.count, plan.dense_macs, jnp.float32),
            changed=jnp.mean(changed, axis=(1, 2), dtype=jnp.float32),
            details={
                "cells": jnp.array(active, jnp.int32) if active else jnp.zeros(0, jnp.int32),
                "dense": jnp.array(dense, bool) if dense else jnp.zeros(0, bool),
                "settled": self.settled,
                "whole": jnp.zeros((), bool),
            },
        )
        return dataclasses.replace(
            state,
            scales=self._scales(state),
            stale=jnp.zeros_like(state.stale),
            frames=self.frames,
            caches=tuple(self.caches),
            weights=weights,
            parameters=parameters,
            joined=jnp.zeros_like(state.joined),
            held=tuple(self.held),
            work=work,
            changes=tuple(map(self._output_mask, plan.graph.outputs)),
        )

    def passed(self, state: State, frames: jax.Array) -> State:
        """The state after frames that went through the function itself: nothing is kept of them."""
        halo = self.plan.halos[self.plan.graph.frames]
        return dataclasses.replace(
            state,
            frames=write_interior(state.frames, frames, halo),
            stale=jnp.ones(self.count, bool),
            work=self._all_work(),
            changes=self._all_changed(),
        )

    def _segment(self, segment: Segment) -> tuple[jax.Array, jax.Array]:
        """Runs a segment; returns active cells by stream, and whether it ran on whole frames."""
        slots = [self.slot[value] for value in segment.outputs]
        marked = [self.mask(value) | self.renew | self._due(value) for value in segment.outputs]
        if segment.on_pixels is not None:
            return self._on_pixels(segment, segment.on_pixels, marked), jnp.zeros((), bool)
        self._prefetch(segment)
        active = masks.to_cells(functools.reduce(jnp.logical_or, marked), segment.cell)
        counts = jnp.sum(active, axis=(1, 2), dtype=jnp.int32)
        total = jnp.sum(counts)
        limit = segment.break_even * active.size if segment.on_cells is not None else 0
        dense = total > limit
        # A cell may hold positions that are not marked. What they are computed as is what they were
        # but where marks do not follow the geometry: then only what is marked is replaced.
        held = self.reach != "geometry"
        refresh = [held or value in self.plan.compared for value in segment.outputs]
        halos = [self.plan.halos[value] for value in segment.outputs]
        carry = (
            [self.caches[i] for i in slots],
            [jnp.zeros_like(m) if r else m for m, r in zip(marked, refresh, strict=True)],
        )
        strict = self._strict(segment)
        if strict is not None:
            strict = masks.to_cells(strict, segment.cell)

        def on_frame(carry):
            caches, marks = list(carry[0]), list(carry[1])
            for i, new in enumerate(self._on_frame(segment)):
                if refresh[i]:
                    old = interior(caches[i], halos[i])
                    least = self.tolerances[slots[i]]
                    if strict is not None:
                        positions = masks.from_cells(strict, segment.cell, segment.grid)
                        least = jnp.where(positions, 0, least[:, None, None])
                    moved = marked[i] & moved_beyond(new, old, least, axes=range(3, new.ndim))
                    whole = masks.to_cells(moved, segment.cell)
                    moved = marked[i] & masks.from_cells(whole, segment.cell, segment.grid)
                    new = refreshed(moved, new, old)
                    marks[i] = moved
                caches[i] = write_interior(caches[i], new, halos[i])
            return caches, marks

        if segment.break_even < 1:
            carry = lax.cond(dense, on_frame, lambda carry: carry, carry)
        if segment.on_cells is not None:
            count = jnp.where(dense, 0, total)
            carry = self._loop(segment, active, count, marked, refresh, carry, strict)
        for i, cache in zip(slots, carry[0], strict=True):
            self.caches[i] = cache
        for value, mark, moved in zip(segment.outputs, marked, carry[1], strict=True):
            self._keep_held(value, mark, moved)
        if not held:
            self.change.update(zip(segment.outputs, carry[1], strict=True))
        return counts, dense

    def _on_pixels(
        self, segment: Segment, part: PixelSegment, marked: list[jax.Array]
    ) -> jax.Array:
        """Runs a segment as one call of the kernel; returns active positions by stream."""
        layouts, outputs = self.plan.layouts, segment.outputs
        held = self.reach != "geometry"
        compared = [held or value in self.plan.compared for value in outputs]
        slots = [self.slot[value] for value in outputs]
        layout = layouts[outputs[0]]
        vectors = []
        for value, channels in part.vectors:
            node = _broadcast_of(value)
            array = self.evaluate(value if node is None else node.inputs[0])
            vectors.append(vector(array, vector_shape(value, layout), layout, channels))
        maps, moved, counts = update_pixels(
            part.program(
                outputs, compared, segment.grid, segment.compared_cell, layouts, self.plan.halos
            ),
            [self.padded(value) for value in part.maps],
            [self.weights[node] for node, _ in part.products],
            vectors,
            [self.caches[i] for i in slots],
            marked,
            tolerances=jnp.stack([self.tolerances[i] for i in slots]),
            strict=self._strict(segment),
        )
        for i, value, cache, mark, change in zip(slots, outputs, maps, marked, moved, strict=True):
            self.caches[i] = cache
            self._keep_held(value, mark, change)
            if not held:
                self.change[value] = change
        return counts

    # What was held back.

    def _exactly(self, value: Value) -> jax.Array:
        """Where a value has no tolerance: of a map what lies over `exact`."""
        assert self.exact is not None
        if value not in self.plan.places:
            return jnp.all(self.exact, (1, 2))
        rows, columns = (
            Table(table.first // BLOCK, table.last // BLOCK) for table in self.plan.places[value]
        )
        key = b"/".join(x.tobytes() for t in (rows, columns) for x in (t.first, t.last))
        if key not in self.over:
            size = (len(rows.first), len(columns.first))
            self.over[key] = mask_through(self.exact, (rows, columns), size)
        return self.over[key]

    def _strict(self, segment: Segment) -> jax.Array | None:
        """Where the outputs of a segment have no tolerance; None where that is nowhere ever."""
        compared = [value for value in segment.outputs if value in self.plan.compared]
        if self.exact is None or not compared:
            return None
        return functools.reduce(jnp.logical_or, map(self._exactly, compared))

    def _due(self, value: Value) -> jax.Array | bool:
        """Where a value was held back and must not be any longer."""
        held = self.held[self.slot[value]]
        if self.exact is None or held is None:
            return False
        due = held & self._exactly(value)
        self.settled += jnp.sum(due, dtype=jnp.int32)
        return due

    def _keep_held(self, value: Value, computed: jax.Array, moved: jax.Array) -> None:
        """Notes where what was computed did not replace what is kept."""
        held = self.held[self.slot[value]]
        if held is None:
            return
        kept = ~moved
        if self.exact is not None:
            # What did not move without tolerance is right as it is.
            kept &= ~self._exactly(value)
        self.held[self.slot[value]] = jnp.where(computed, kept, held)

    def _loop(self, segment: Segment, active, total, marked, refresh: list[bool], carry, strict):
        """Computes the active cells."""
        part = segment.on_cells
        assert part is not None
        rows, columns = part.window
        slots = [self.slot[value] for value in segment.outputs]
        return update_cells(
            lambda stream, row, column: self._run(part, stream, (row, column), dense=False),
            carry[0],
            masks.worklist(active),
            grid=CellGrid(rows.starts, columns.starts, size=segment.cell, shape=segment.grid),
            origins=[self.plan.halos[value][0] for value in segment.outputs],
            chunk=segment.chunk,
            count=total,
            marked=marked,
            moved=carry[1],
            tolerances=[
                self.tolerances[i] if r else None for i, r in zip(slots, refresh, strict=True)
            ],
            strict=strict,
        )

    def _boundary(self, boundary: Boundary) -> jax.Array:
        """Runs a boundary where anything it reads changed; returns whether it ran."""
        moved = [jnp.any(self.mask(value)) for value in boundary.inputs]
        # What mixes the streams is another thing once one of them has been replaced.
        run = functools.reduce(jnp.logical_or, moved, self.renew | self.joined)
        for value in boundary.outputs:
            run |= jnp.any(self._due(value))
        slots = [self.slot[value] for value in boundary.outputs]
        keep = [self.caches[i] for i in slots]

        def compute():
            caches, marks = [], []
            for value, old, i, new in zip(
                boundary.outputs, keep, slots, self._on_boundary(boundary), strict=True
            ):
                cache, mark = self._renew(value, old, new, self._tolerance(value, i))
                caches.append(cache)
                marks.append(mark)
            return caches, marks

        def skip():
            shapes = jax.eval_shape(compute)[1]
            return keep, [jnp.zeros(m.shape, m.dtype) for m in shapes]

        caches, marks = lax.cond(run, compute, skip)
        for value, i, cache, mark in zip(boundary.outputs, slots, caches, marks, strict=True):
            self.caches[i] = cache
            self._keep_held(value, jnp.broadcast_to(run, mark.shape), mark)
            if self.reach == "geometry" or value not in self.plan.layouts:
                self.change[value] = mark
        return run.astype(jnp.float32)

    def _tolerance(self, value: Value, i: int) -> jax.Array:
        """What a boundary's output must move by: `float32[S]`, or of a map's every position."""
        if self.exact is None or self.held[i] is None:
            return self.tolerances[i]
        exact = self._exactly(value)
        return jnp.where(exact, 0, self.tolerances[i].reshape(-1, *(1,) * (exact.ndim - 1)))

    def _renew(self, value: Value, old, new, tolerance) -> tuple[jax.Array, jax.Array]:
        """Replaces a boundary's output where it changed; a vector changes by whole streams."""
        if value in self.plan.layouts:
            halo = self.plan.halos[value]
            inside = interior(old, halo)
            moved = self.renew | moved_beyond(new, inside, tolerance, axes=range(3, new.ndim))
            if self.reach != "geometry":
                moved &= self.mask(value)
            return write_interior(old, refreshed(moved, new, inside), halo), moved
        axis = self.plan.streams.get(value)
        if axis is None:
            moved = moved_beyond(new, old, jnp.min(tolerance)[None], axes=range(new.ndim))
            moved |= self.renew | self.joined
            return jnp.where(moved, new, old), jnp.broadcast_to(moved, (self.count,))
        front = jnp.moveaxis(new, axis, 0)
        kept = jnp.moveaxis(old, axis, 0)
        moved = self.renew | moved_beyond(front, kept, tolerance, axes=range(1, new.ndim))
        shape = [1] * new.ndim
        shape[axis] = self.count
        return jnp.where(moved.reshape(shape), new, old), moved

    def outputs(self) -> Any:
        """What the function returns."""
        leaves = [self.evaluate(value) for value in self.plan.graph.outputs]
        return jax.tree.unflatten(self.plan.graph.structure, leaves)


def _covered(active: jax.Array, window: Window, size: tuple[int, ...]) -> jax.Array:
    """The positions of a map that the windows of active cells hold, `bool[S, h, w]`."""
    covered = active.astype(jnp.float32)
    for axis, (region, length) in enumerate(zip(window, size, strict=True), start=1):
        at = np.arange(length)[:, None] - region.starts
        holds = jnp.asarray((at >= 0) & (at < region.size), jnp.float32)
        covered = jnp.moveaxis(jnp.tensordot(holds, covered, (1, axis)), 0, axis)
    return covered > 0


def _cell_count(segment: Segment) -> int:
    rows, columns = segment.cell_grid
    return rows * columns
