"""Window programs: a piece of the graph, evaluated on the windows of some cells."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.graph.evaluate import constant_fold
from dynvid.graph.trace import Node, Value
from dynvid.incremental.geometry import Region, Stencil, hull, required
from dynvid.incremental.rules import Context, Layout, SpatialOp, Window

Extent = tuple[tuple[int, int], tuple[int, int]]
"""How far something extends: `((above, left), (below, right))`."""


class MisalignedError(Exception):
    """The cells do not line up with an operation of the program; larger cells do."""


@dataclasses.dataclass(frozen=True)
class Read:
    """One operand of a step: which gathered or computed window, and which part of it.

    Attributes:
      source: The number of a gather, or the value computed by an earlier step.
      held: The window that is at hand.
      window: The part of it that the operation reads.
      fill: What positions outside the frame must hold; None where they already do or do not count.
    """

    source: int | Value
    held: Window
    window: Window
    fill: Any


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a program."""

    node: Node
    op: SpatialOp
    out: Window
    reads: tuple[Read, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one cell."""
        return self.op.macs * self.out.rows.size * self.out.columns.size

    @property
    def by_winograd(self) -> bool:
        """Whether cells of this size can take Winograd's 2x2 tiles."""
        return self.op.winograd and self.out.rows.size % 2 == self.out.columns.size % 2 == 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A piece of the graph on windows.

    Attributes:
      gathers: Which windows of which stored values it reads.
      steps: Its operations, in order.
      targets: What it computes, each on exactly the window asked for.
      window: That window.
    """

    gathers: tuple[tuple[Value, Window], ...]
    steps: tuple[Step, ...]
    targets: tuple[Read, ...]
    window: Window

    def macs(self) -> int:
        """Multiply-accumulates for one cell."""
        return sum(step.macs for step in self.steps)

    def halo(self) -> dict[Value, Extent]:
        """How far its windows leave each stored value: `((above, left), (below, right))`."""
        receptive_field: dict[Value, Extent] = {}
        for value, window in self.gathers:
            low = tuple(max(0, -int(region.starts.min())) for region in window)
            ends = [int(region.starts.max()) + region.size for region in window]
            receptive_field[value] = widest(
                receptive_field.get(value, ((0, 0), (0, 0))), ((low[0], low[1]), (ends[0], ends[1]))
            )
        return receptive_field


def widest(a: Extent, b: Extent) -> Extent:
    """The larger of two extents on every side."""
    (above, left), (below, right) = a
    return (
        (max(above, b[0][0]), max(left, b[0][1])),
        (max(below, b[1][0]), max(right, b[1][1])),
    )


def build(
    targets: Sequence[Value],
    window: Window,
    *,
    stored: set[Value],
    ops: dict[Node, SpatialOp],
    layouts: dict[Value, Layout],
) -> Program:
    """Works out, from the outputs backwards, which windows the operations need.

    Args:
      targets: The values to compute.
      window: The cells of their grid.
      stored: Values that can be read from memory.
      ops: The rule of each operation.
      layouts: The layout of each spatial value.

    Returns:
      The program.

    Raises:
      MisalignedError: Where some cells would need other parts of a window than others.
    """
    wanted: dict[Value, Window] = {}
    gathers: list[tuple[Value, Window]] = []
    nodes: dict[int, Node] = {}

    def ask(value: Value, window: Window) -> None:
        if value in stored:
            for i, (other, held) in enumerate(gathers):
                merged = _hull(held, window) if other is value else None
                if merged is not None:
                    gathers[i] = (value, merged)
                    return
            gathers.append((value, window))
            return
        merged = _hull(wanted.get(value, window), window)
        if merged is None or value.node is None:
            raise MisalignedError
        wanted[value] = merged
        nodes[value.node.index] = value.node

    for value in targets:
        ask(value, window)
    order: list[tuple[Node, Window]] = []
    while nodes:
        node = nodes.pop(max(nodes))
        outs = [wanted[value] for value in node.outputs if value in wanted]
        out: Window | None = outs[0]
        for other in outs[1:]:
            out = _hull(out, other) if out is not None else None
        if out is None:
            raise MisalignedError
        op = ops[node]
        for value, receptive_fields in zip(op.operands, op.receptive_fields, strict=True):
            for receptive_field, region in zip(receptive_fields, out, strict=True):
                if isinstance(receptive_field, Stencil) and receptive_field.base > 1:
                    phase = (
                        region.starts * receptive_field.stride - receptive_field.low
                    ) % receptive_field.base
                    if (phase != phase[0]).any():
                        raise MisalignedError
            ask(
                value, Window(*(required(r, g) for r, g in zip(receptive_fields, out, strict=True)))
            )
        order.append((node, out))
    order.reverse()
    held = {value: out for node, out in order for value in node.outputs}

    def read(value: Value, window: Window, fill: Any) -> Read:
        source: int | Value = value
        if value in stored:
            source, at = next(
                (i, at) for i, (v, at) in enumerate(gathers) if v is value and _within(at, window)
            )
        else:
            at = held[value]
        if isinstance(fill, Value):
            constant = constant_fold(fill)
            fill = fill if constant is None else constant[()]
        size = [value.shape[axis] for axis in layouts[value][1:]]
        inside = all(region.inside(n) for region, n in zip(window, size, strict=True))
        # Stored values carry a halo of zeros.
        zeros = value in stored and not isinstance(fill, Value) and fill == 0
        return Read(source, at, window, None if fill is None or inside or zeros else fill)

    steps = tuple(
        Step(
            node,
            ops[node],
            out,
            tuple(
                read(
                    value,
                    Window(*(required(r, g) for r, g in zip(receptive_fields, out, strict=True))),
                    ops[node].fill,
                )
                for value, receptive_fields in zip(
                    ops[node].operands, ops[node].receptive_fields, strict=True
                )
            ),
        )
        for node, out in order
    )
    return Program(
        tuple(gathers), steps, tuple(read(value, window, None) for value in targets), window
    )


def _hull(a: Window, b: Window) -> Window | None:
    rows, columns = hull(a.rows, b.rows), hull(a.columns, b.columns)
    return None if rows is None or columns is None else Window(rows, columns)


def _within(held: Window, window: Window) -> bool:
    return all(h.offset(w) is not None for h, w in zip(held, window, strict=True))


def run(
    program: Program,
    gather: Callable[[Value, Window], jax.Array],
    context: Context,
    positions: Callable[[Window], tuple[jax.Array, jax.Array]],
    layouts: dict[Value, Layout],
) -> list[jax.Array]:
    """Evaluates a program.

    Args:
      program: What to evaluate.
      gather: Reads a window of a stored value, `(K, h, w, ...)`.
      context: Where operations find parameters, constants and pooled vectors.
      positions: The row and column numbers of a window, `(K, h)` and `(K, w)`.
      layouts: The layout of each spatial value.

    Returns:
      The targets, `(K, h, w, ...)` each.
    """
    windows: dict[int | Value, jax.Array] = {
        i: gather(value, window) for i, (value, window) in enumerate(program.gathers)
    }

    def load(read: Read, value: Value) -> jax.Array:
        array = windows[read.source]
        for axis, (held, part) in enumerate(zip(read.held, read.window, strict=True), start=1):
            first = held.offset(part)
            assert first is not None
            if first != 0 or part.size != held.size:
                array = jax.lax.slice_in_dim(array, first, first + part.size, axis=axis)
        if read.fill is None:
            return array
        fill = context.array(read.fill) if isinstance(read.fill, Value) else read.fill
        rows, columns = positions(read.window)
        height, width = (value.shape[axis] for axis in layouts[value][1:])
        inside = ((rows >= 0) & (rows < height))[:, :, None]
        inside = inside & ((columns >= 0) & (columns < width))[:, None, :]
        inside = inside.reshape(*inside.shape, *(1,) * (array.ndim - 3))
        return jnp.where(inside, array, jnp.asarray(fill, array.dtype))

    for step in program.steps:
        inputs = [
            load(read, value) for read, value in zip(step.reads, step.op.operands, strict=True)
        ]
        with jax.named_scope(step.node.primitive.name):
            outputs = step.op.evaluate(
                context, inputs, step.out, [read.window for read in step.reads]
            )
        windows.update(zip(step.node.outputs, outputs, strict=True))
    return [
        load(
            read, read.source if isinstance(read.source, Value) else program.gathers[read.source][0]
        )
        for read in program.targets
    ]


def whole(height: int, width: int) -> Window:
    """One cell as large as the grid: how a segment runs densely."""
    zero = np.zeros(1, np.int64)
    return Window(Region(zero, height), Region(zero, width))
