"""DynCNN's schemes as a `VideoFunction`: a walk through the network's operations.

What the schemes apply to are the groups of convolutions (`groups.py`), by the paper's layers
(`layers.py`). Everything between them runs densely, as in the paper.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dynvid.graph.evaluate import Evaluator, arguments
from dynvid.graph.trace import Node, Value
from dynvid.incremental.cost import cost_of
from dynvid.incremental.plan import Plan
from dynvid.incremental.program import widest
from dynvid.incremental.rules import Window, mask_through
from dynvid.incremental.state import (
    Halo,
    by_stream,
    check_setting,
    interior,
    same_sample,
    sample,
)
from dynvid.incremental.transform import check_step, plan_for
from dynvid.kernels.masked_conv import CellGrid, update_cells
from dynvid.ops import cells, sparse_conv
from dynvid.ops.difference import Channels
from dynvid.systems.dyncnn.groups import Group, Pair, check_cell, find_groups
from dynvid.systems.dyncnn.layers import (
    Position,
    comparison,
    from_strip,
    position,
    to_strip,
)
from dynvid.types import Params, VideoFunction, Work


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["reference", "stored", "threshold", "parameters", "joined", "work"],
    meta_fields=["names", "halos"],
)
@dataclasses.dataclass(frozen=True)
class State:
    """What DynCNN keeps between frames: a pytree of arrays, to donate or save.

    Attributes:
      reference: What the next frames are compared with, `(streams, H, W, C)`.
      stored: The feature maps with their halo of zeros, `(streams, h', w', C)`.
      threshold: Theta, in the frames' unit, `float32[streams]`.
      parameters: Some values of each array of the parameters that all this was computed with.
      joined: Which streams were put in since the last step, `bool[streams]`.
      work: What the last step executed; its details are the `cells` computed of each stored map, of
        all streams together, `int32[maps]`, and which maps were computed densely, `dense`,
        `bool[maps]`.
      names: Of each stored map, "gp1" where a whole group runs at once, else "gp1_1", "gp1_2", ...
      halos: Of each stored map.
    """

    reference: jax.Array
    stored: tuple[jax.Array, ...]
    threshold: jax.Array
    parameters: jax.Array
    joined: jax.Array
    work: Work
    names: tuple[str, ...]
    halos: tuple[Halo, ...]

    @property
    def maps(self) -> dict[str, jax.Array]:
        """The feature maps by name, `(streams, h, w, C)` whatever the network's own axis order."""
        return {
            name: interior(stored, halo)
            for name, stored, halo in zip(self.names, self.stored, self.halos, strict=True)
        }

    def with_settings(self, *, threshold: ArrayLike | None = None) -> "State":
        """The state with another threshold from the next step on; nothing is compiled again for it.

        Args:
          threshold: As in `dyncnn`: a number, or one a stream. None leaves it as it is.

        Raises:
          ValueError: A threshold below zero, or not one a stream.
        """
        if threshold is None:
            return self
        given = by_stream("threshold", threshold, len(self.threshold))
        return dataclasses.replace(self, threshold=given)

    def stream_axes(self) -> "State":
        """The same pytree with the stream axis of each leaf; -1 where it is of all streams."""
        first = jax.tree.map(lambda _: 0, self)
        work = first.work._replace(details=jax.tree.map(lambda _: -1, first.work.details))
        return dataclasses.replace(first, parameters=-1, work=work)

    def restarted(self, which: jax.Array) -> "State":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`."""
        return dataclasses.replace(self, joined=self.joined | which)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a group is computed; the options of `dyncnn` of the same names."""

    partition: str
    border: str
    layout: str


class _Network:
    """A planned function, cut into units: groups, or single convolutions.

    Attributes:
      units: What runs by the scheme, in the order of execution.
      ends: The unit that ends with each of these operations.
      inside: All other operations of units.
      halos: The halo of each unit's stored map.
      receptive_fields: How far each unit's windows leave its input.
      rest_macs: Multiply-accumulates of everything else, for one stream.
    """

    def __init__(self, plan: Plan, units: Sequence[Group]):
        self.plan = plan
        self.units = tuple(units)
        self.results = {unit.convolutions[-1].result: i for i, unit in enumerate(units)}
        members = [node for unit in units for c in unit.convolutions for node in (c.node, *c.tail)]
        self.ends = {value.node: i for value, i in self.results.items() if value.node is not None}
        self.inside = set(members) - set(self.ends)
        self.receptive_fields = [
            _reach(unit.windows()[0], unit.convolutions[0].input_size) for unit in units
        ]
        own = [_reach(unit.windows()[-1], unit.grid) for unit in units]
        for i, unit in enumerate(units):
            source = self.results.get(unit.convolutions[0].source)
            if source is not None:
                own[source] = widest(own[source], self.receptive_fields[i])
        self.halos = tuple(own)
        self.rest_macs = plan.dense_macs - sum(unit.macs for unit in units)


def _reach(window: Window, size: Pair) -> Halo:
    """How far windows leave a map on each side."""
    low = [max(0, -int(region.starts.min())) for region in window]
    ends = [int(region.starts.max()) + region.size for region in window]
    return (low[0], low[1]), (max(0, ends[0] - size[0]), max(0, ends[1] - size[1]))


class _Walk:
    """One evaluation of a network: every operation in order, units by `run`.

    Attributes:
      evaluate: Makes the values between the units, in the network's own layout.
      stored: The units' maps in canonical layout with their halo.
    """

    def __init__(self, network: _Network, params: Params, frames: jax.Array):
        self.network = network
        self.evaluate = Evaluator(arguments(params), given={network.plan.graph.frames: frames})
        self.stored: list[Any] = [None] * len(network.units)

    def run(self, unit: Callable[[int], jax.Array], visit: Callable[[Node], None]) -> Any:
        """Evaluates everything; `unit(i)` makes the stored map of a unit.

        Args:
          unit: Computes a unit's map with its halo.
          visit: Is shown every operation that is not part of a unit.

        Returns:
          What the network returns.
        """
        plan = self.network.plan
        for node in plan.graph.nodes:
            if node in self.network.inside:
                continue
            if node in self.network.ends:
                i = self.network.ends[node]
                self.stored[i] = unit(i)
                value = self.network.units[i].convolutions[-1].result
                order = plan.layouts[value].order(value.ndim)
                inside = interior(self.stored[i], self.network.halos[i])
                array = jnp.transpose(inside, [order.index(a) for a in range(4)])
                self.evaluate.arrays[value] = array
            else:
                self.evaluate(node.outputs[0])
                visit(node)
        leaves = [self.evaluate(value) for value in plan.graph.outputs]
        return jax.tree.unflatten(plan.graph.structure, leaves)

    def source(self, i: int) -> tuple[jax.Array, Halo]:
        """What a unit reads, in canonical layout with a halo of zeros."""
        value = self.network.units[i].convolutions[0].source
        if value in self.network.results:
            made = self.network.results[value]
            return self.stored[made], self.network.halos[made]
        low, high = self.network.receptive_fields[i]
        order = self.network.plan.layouts[value].order(value.ndim)
        return cells.add_halo(jnp.transpose(self.evaluate(value), order), low=low, high=high), (
            low,
            high,
        )

    def weights(self, i: int) -> list[tuple[jax.Array, list[Any]]]:
        """The kernels and constants of a unit's convolutions."""
        return [c.constants(self.evaluate) for c in self.network.units[i].convolutions]

    def on_frame(self, i: int) -> jax.Array:
        """A unit's map, computed densely."""
        low, high = self.network.halos[i]
        x = interior(*self.source(i))
        for convolution, weights in zip(
            self.network.units[i].convolutions, self.weights(i), strict=True
        ):
            x = convolution.on_frame(x, weights)
        return cells.add_halo(x, low=low, high=high)


class _Step(_Walk):
    """One step: change masks beside the values, and units by the scheme.

    Attributes:
      changed: Where each value changed: `bool[S, h, w]`, or `bool[]` where it has no rows.
      renew: Whether the parameters are others than before, `bool[]`: all maps are computed densely.
      joined: Whether streams were put in, `bool[]`: what mixes the streams is another thing then.
    """

    def __init__(
        self,
        network: _Network,
        params: Params,
        frames: jax.Array,
        changed: jax.Array,
        *,
        renew: jax.Array,
        joined: jax.Array,
    ):
        super().__init__(network, params, frames)
        self.changed: dict[Value, jax.Array] = {network.plan.graph.frames: changed}
        self.renew, self.joined = renew, joined

    def mark(self, node: Node) -> None:
        """Follows the change through an operation: by its geometry, or all of it at once."""
        dependent = [value for value in node.inputs if value.frame_dependent]
        if not dependent:
            return
        plan = self.network.plan
        op = plan.ops.get(node)
        operands = op.operands if op is not None else ()
        anywhere = [jnp.any(self.changed[v]) for v in dependent if v not in operands]
        if op is None:
            anywhere.append(self.joined)
        for value in node.outputs:
            layout = plan.layouts.get(value)
            if layout is None:
                self.changed[value] = functools.reduce(jnp.logical_or, anywhere)
                continue
            size = (value.shape[layout.row], value.shape[layout.column])
            shape = (value.shape[layout.stream], *size)
            parts = [jnp.broadcast_to(one, shape) for one in anywhere]
            if op is not None:
                parts += [
                    mask_through(self.changed[v], receptive_field, size)
                    for v, receptive_field in zip(op.operands, op.receptive_fields, strict=True)
                ]
            self.changed[value] = functools.reduce(jnp.logical_or, parts)


def _update(
    step: _Step, i: int, stored: jax.Array, scheme: Scheme
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Brings a unit's map up to date.

    Returns:
      The map, the cells computed of each stream, their multiply-accumulates, and whether the unit
      ran densely.
    """
    unit = step.network.units[i]
    found = position(
        step.changed[unit.convolutions[0].source],
        [c.receptive_field for c in unit.convolutions],
        [c.size for c in unit.convolutions],
        cell=unit.cell,
    )
    step.changed[unit.convolutions[-1].result] = found.impacted | step.renew
    streams = stored.shape[0]
    counts = jnp.sum(found.cells, axis=(1, 2), dtype=jnp.int32)
    by_pixel = scheme.partition == "pixel"
    limit = cost_of().pixel_break_even * found.cells.size if by_pixel else unit.break_even * streams
    dense = (found.listed.count > limit) | step.renew
    stored = lax.cond(dense, lambda _: step.on_frame(i), lambda kept: kept, stored)
    chunk = _chunk(unit, found, stored.dtype.itemsize)
    low, _ = step.network.halos[i]
    rows, columns = unit.windows()[-1]
    (stored,), _ = update_cells(
        _compute(step, i, scheme),
        [stored],
        found.listed,
        grid=CellGrid(rows.starts, columns.starts, size=(unit.cell, unit.cell), shape=unit.grid),
        origins=[low],
        chunk=chunk,
        count=jnp.where(dense, 0, found.listed.count),
    )
    turns = -(-found.listed.count // chunk)
    macs = jnp.where(dense, jnp.float32(unit.macs), _executed(unit, counts, turns, scheme))
    return stored, counts, macs, dense


def _chunk(unit: Group, found: Position, itemsize: int) -> int:
    """How many cells one turn of the loop takes."""
    windows = unit.windows()
    depths = [unit.convolutions[0].source.shape[-1]]
    depths += [c.result.shape[-1] for c in unit.convolutions]
    values = sum(
        w.rows.size * w.columns.size * depth for w, depth in zip(windows, depths, strict=True)
    )
    cost = cost_of()
    return cells.chunk_size(
        found.cells.size,
        unit.cell**2,
        values * itemsize,
        target_bytes=cost.paper_chunk_bytes,
        rows=cost.chunk_rows,
    )


def _compute(
    step: _Step, i: int, scheme: Scheme
) -> Callable[[jax.Array, jax.Array, jax.Array], list[jax.Array]]:
    """How a unit's cells are computed: `(stream, row, column) -> [(K, c, c, C)]`."""
    unit = step.network.units[i]
    padded, ((above, left), _) = step.source(i)
    weights = step.weights(i)
    windows = unit.windows()
    pitch = _pitch(unit)

    def by_pixel(stream: jax.Array, row: jax.Array, column: jax.Array) -> list[jax.Array]:
        (convolution,), (constants,) = unit.convolutions, weights
        (top, bottom), (before, after) = convolution.padding
        y = sparse_conv.convolve_pixels(
            padded,
            constants[0],
            stream,
            row,
            column,
            padding=((top - above, bottom), (before - left, after)),
            **convolution.geometry,
            **convolution.products,
        )
        return [convolution.activate(y[:, None, None], constants[1])]

    def by_cell(stream: jax.Array, row: jax.Array, column: jax.Array) -> list[jax.Array]:
        starts = [_starts(window, row, column) for window in windows]
        size = (windows[0].rows.size, windows[0].columns.size)
        first_row, first_column = starts[0]
        x = cells.gather_windows(padded, stream, first_row + above, first_column + left, size=size)
        if scheme.layout == "strip":
            x = to_strip(jnp.pad(x, ((0, 0), (0, 0), (0, pitch - size[1]), (0, 0))))[None]
        for k, (convolution, constants) in enumerate(
            zip(unit.convolutions, weights, strict=True), start=1
        ):
            x = convolution.on_windows(x, constants)
            if scheme.border == "exact" and k < len(unit.convolutions):
                rows, columns = windows[k].rows.size, windows[k].columns.size
                columns = columns if scheme.layout == "batch" else pitch
                inside = cells.positions_inside(
                    *starts[k], size=(rows, columns), shape=convolution.size
                )[..., None]
                if scheme.layout == "strip":
                    inside = to_strip(inside)[None, :, : x.shape[2]]
                x = jnp.where(inside, x, lax.full((), 0, x.dtype))
        if scheme.layout == "strip":
            stride = unit.convolutions[0].receptive_field[1].stride
            x = from_strip(x[0], count=len(row), pitch=pitch // stride, width=unit.cell)
        return [x]

    return by_pixel if scheme.partition == "pixel" else by_cell


def _pitch(unit: Group) -> int:
    """The columns from one cell to the next in the strip, in whole strides of the convolution."""
    stride = unit.convolutions[0].receptive_field[1].stride
    return -(-unit.windows()[0].columns.size // stride) * stride


def _executed(unit: Group, counts: jax.Array, turns: jax.Array, scheme: Scheme) -> jax.Array:
    """Multiply-accumulates of the cells of each stream; a strip's seams are convolved too."""
    if scheme.partition == "pixel" or scheme.layout == "batch":
        return counts * jnp.float32(unit.cell_macs)
    every, last = 0, 0  # a cell with its seam; the seam that the last cell of a strip lacks
    pitch = _pitch(unit)
    for convolution, window in zip(unit.convolutions, unit.windows()[1:], strict=True):
        columns = convolution.receptive_field[1]
        pitch //= columns.stride
        every += convolution.macs * window.rows.size * pitch
        last += convolution.macs * window.rows.size * (pitch - window.columns.size)
    saved = turns * jnp.float32(last) / jnp.maximum(jnp.sum(counts), 1)
    return counts * (jnp.float32(every) - saved)


def _starts(window: Window, row: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, columns = (jnp.asarray(region.starts, jnp.int32) for region in window)
    return rows[row], columns[column]


_OPTIONS = {
    "partition": ("pixel", "cell"),
    "reference": ("previous", "last_used"),
    "inputs": ("raw", "composite"),
    "border": ("exact", "paper"),
    "layout": ("batch", "strip"),
    "channels": ("any", "gray", "mean"),
}


def _check_options(*given: str) -> None:
    for (name, allowed), value in zip(_OPTIONS.items(), given, strict=True):
        if value not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise ValueError(f"{name} must be {expected}; got {value!r}")


def dyncnn(
    fn: Callable[[Params, jax.Array], Any],
    *,
    partition: Literal["pixel", "cell"] = "cell",
    continuous: bool = True,
    threshold: ArrayLike = 0.0,
    reference: Literal["previous", "last_used"] = "previous",
    inputs: Literal["raw", "composite"] = "raw",
    border: Literal["exact", "paper"] = "exact",
    groups: Sequence[int] | None = None,
    cell: int | Sequence[int] | None = None,
    layout: Literal["batch", "strip"] = "batch",
    channels: Channels = "any",
) -> VideoFunction:
    """Turns a frame function into the paper's dynamic CNN: recomputes what a changed pixel reaches.

    The comparison layer marks the pixels that differ from the reference (DynCNN, section 3.1, Eq.
    1-2); the position layer follows them through every layer's geometry and lists the impacted
    pixels or cells (3.2); those are gathered into a new array, convolved (3.3-3.4), and written
    into the stored maps by the recovery layer. Between the groups of convolutions (see
    `dyncnn_groups`) everything runs densely on the stored maps. What `dynvid.incremental` adds to
    this: maps that shrink by truncation, nothing dense in between, finer cells.

    Args:
      fn: `fn(params, frames) -> outputs`, pure, with frames `(streams, H, W, C)`, floating or
        uint8, and any pytree of outputs.
      partition: "pixel" gathers the needed pixels of each impacted pixel and sums contributions by
        segment; "cell" shares them within cells (section 3.3).
      continuous: Cells go through all convolutions of a group at once and only its last map is
        stored (section 3.4). Without it, and for pixels, every convolution's map is stored.
      threshold: Theta, in the unit of the frames, a number or one a stream; 20 of 255 in the paper.
      reference: "previous" compares with the previous frame, as the paper does: slow changes are
        never seen. "last_used" keeps the value each pixel had when it last changed.
      inputs: "raw" computes from the new frames, as the paper does; "composite" from the reference.
      border: What continuous convolution does at the image's border. "exact" sets positions outside
        to zero before each convolution, as the dense network pads; "paper" only before the first.
      groups: Which groups run by the scheme, by number; all others are dense. All where None; the
        paper's setting for SSD512 is `range(5)`.
      cell: The side of a cell, or one for each of the groups; by default 14 pixels on maps of 512
        and more, 6 on all others.
      layout: "batch" stacks the cells; "strip" lays them side by side, as the paper's new array:
        the same values, and seams between the cells that are computed for nothing.
      channels: How the channels of a pixel are joined: see `ops.difference.frame_difference`.

    Returns:
      A `VideoFunction`: `init(params, frames)`, dense, and `step(params, state, frames, mask=None)`
      where a mask `bool[streams, H, W]` replaces the frame difference. Both are jitted; wrap them
      in `jax.jit(..., donate_argnums=1)` so that maps are updated in place. A step with other
      parameters computes all maps densely, as `incremental` does. `state.maps` holds the
      stored maps by name, `state.work` what the step executed: a unit whose cells outnumber its
      break-even runs densely (`Group.break_even`).

    Raises:
      ValueError: For options outside their range; by `init` and `step` for frames of another rank,
        shape or dtype and for groups that do not exist.

    Exact with `reference="last_used"`, `inputs="composite"` and `border="exact"`: the outputs are
    `fn(params, state.reference)`, bit for bit on integer-valued networks and within rounding on
    others. Approximate with `reference="previous"` because changes below the threshold add up
    unseen, and with `border="paper"` in the outermost rings of each group's map, one fewer than its
    3x3 convolutions.

    >>> blur = lambda kernel, x: jax.lax.conv_general_dilated(
    ...     x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> video = dyncnn(blur, threshold=0.5)
    >>> state, out = video.init(jnp.ones((3, 3, 1, 1)), jnp.zeros((1, 32, 32, 1)))
    >>> state, out = video.step(
    ...     jnp.ones((3, 3, 1, 1)), state, jnp.zeros((1, 32, 32, 1)).at[0, 8, 8].set(1.0))
    >>> out.sum().item(), state.work.details["cells"]
    (9.0, Array([1], dtype=int32))
    """
    _check_options(partition, reference, inputs, border, layout, channels)
    check_setting("threshold", threshold)
    check_cell(cell)
    scheme = Scheme(partition, border, layout)

    def network(params: Params, frames: jax.Array) -> _Network:
        plan = plan_for(fn, params, frames)
        units = find_groups(plan, groups=groups, cell=cell)
        if partition == "pixel" or not continuous:
            side = 1 if partition == "pixel" else None
            units = [single for unit in units for single in unit.single(cell=side)]
        return _Network(plan, units)

    @jax.jit
    def init(params: Params, frames: jax.Array) -> tuple[State, Any]:
        cut = network(params, frames)
        walk = _Walk(cut, params, jnp.asarray(frames))
        output = walk.run(walk.on_frame, lambda node: None)
        streams = frames.shape[0]
        macs = jnp.full(streams, cut.plan.dense_macs, jnp.float32)
        grids = [unit.cell_grid for unit in cut.units]
        work = Work(
            macs=macs,
            dense_macs=macs,
            changed=jnp.ones(streams, jnp.float32),
            details={
                "cells": jnp.array(
                    [streams * rows * columns for rows, columns in grids], jnp.int32
                ),
                "dense": jnp.ones(len(grids), bool),
            },
        )
        state = State(
            reference=jnp.asarray(frames),
            stored=tuple(walk.stored),
            threshold=by_stream("threshold", threshold, streams),
            parameters=sample(params),
            joined=jnp.zeros(streams, bool),
            work=work,
            names=tuple(unit.name for unit in cut.units),
            halos=cut.halos,
        )
        return state, output

    @jax.jit
    def step(
        params: Params, state: State, frames: jax.Array, mask: jax.Array | None = None
    ) -> tuple[State, Any]:
        old = state.reference
        check_step(frames, old, mask)
        changed = mask
        if changed is None:
            changed = comparison(frames, old, threshold=state.threshold, channels=channels)
        parameters = sample(params)
        renew = ~same_sample(parameters, state.parameters)
        changed = changed | renew
        new = jnp.where(changed[..., None], frames, old) if reference == "last_used" else frames
        cut = network(params, old)
        if (state.names, state.halos) != (tuple(unit.name for unit in cut.units), cut.halos):
            raise ValueError(
                "state must be of this very function, made with the same partition, groups and "
                "cell; got the state of another"
            )
        walk = _Step(
            cut,
            params,
            new if inputs == "composite" else frames,
            changed,
            renew=renew,
            joined=jnp.any(state.joined),
        )
        macs = jnp.full(frames.shape[0], cut.rest_macs, jnp.float32)
        count: list[jax.Array] = []
        dense: list[jax.Array] = []

        def update(i: int) -> jax.Array:
            nonlocal macs
            stored, counts, executed, ran_dense = _update(walk, i, state.stored[i], scheme)
            count.append(jnp.sum(counts))
            dense.append(ran_dense)
            macs += executed
            return stored

        output = walk.run(update, walk.mark)
        work = Work(
            macs=macs,
            dense_macs=jnp.full(frames.shape[0], cut.plan.dense_macs, jnp.float32),
            changed=jnp.mean(changed, axis=(1, 2), dtype=jnp.float32),
            details={
                "cells": jnp.stack(count) if count else jnp.zeros(0, jnp.int32),
                "dense": jnp.stack(dense) if dense else jnp.zeros(0, bool),
            },
        )
        state = dataclasses.replace(
            state,
            reference=new,
            stored=tuple(walk.stored),
            parameters=parameters,
            joined=jnp.zeros_like(state.joined),
            work=work,
        )
        return state, output

    return VideoFunction(init=init, step=step)
