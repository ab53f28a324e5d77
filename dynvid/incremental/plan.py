"""The plan: which operations run on cells, in which segments, and what is kept between frames."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from dynvid.graph.macs import node_macs
from dynvid.graph.primitives import ELEMENTWISE
from dynvid.graph.trace import Graph, Node, Value
from dynvid.incremental import program
from dynvid.incremental.cost import Cost, cost_of
from dynvid.incremental.geometry import Stencil, Table, cells, place
from dynvid.incremental.pixels import PixelSegment, compile_segment
from dynvid.incremental.program import Extent, MisalignedError, Program
from dynvid.incremental.rules import Layout, SpatialOp, Window, kernel_order, spatial_op
from dynvid.kernels.masked_conv import pixels_run_on
from dynvid.ops.cells import chunk_size


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Operations that run together on cells of one grid, and the caches they fill.

    Attributes:
      name: What `truncation` and `explain` call it: its main operation, numbered.
      nodes: Its operations.
      outputs: The values it keeps between frames.
      grid: Rows and columns of its outputs.
      cell: Rows and columns of a cell.
      chunk: How many cells one turn of the loop takes.
      on_cells: How to compute one cell; None where it only runs densely.
      on_frame: How to compute the whole frame.
      on_pixels: The pixel program that computes single positions in one call; None where the loop
        over cells does.
      compared_cell: Rows and columns of what a pixel program compares with the cache as a whole.
      break_even: Above this share of active cells it runs densely.
      macs: Multiply-accumulates of the whole frame, for one stream.
    """

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    grid: tuple[int, int]
    cell: tuple[int, int]
    chunk: int
    on_cells: Program | None
    on_frame: Program
    on_pixels: PixelSegment | None
    compared_cell: tuple[int, int]
    break_even: float
    macs: int

    @property
    def cell_grid(self) -> tuple[int, int]:
        """How many rows and columns of cells there are."""
        return -(-self.grid[0] // self.cell[0]), -(-self.grid[1] // self.cell[1])

    @property
    def cell_macs(self) -> int:
        """Multiply-accumulates of one cell, halo included."""
        if self.on_pixels is not None:
            return self.macs // (self.grid[0] * self.grid[1])
        return self.on_cells.macs() if self.on_cells is not None else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Boundary:
    """Operations without a spatial rule: computed in full, where anything they read changed.

    Attributes:
      name: What `truncation` and `explain` call it.
      nodes: Its operations.
      inputs: The values it reads whose change makes it run.
      outputs: The values it keeps between frames.
      macs: Multiply-accumulates, for one stream.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    macs: int


Unit = Segment | Boundary


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is decided before the first frame.

    Attributes:
      graph: The traced function.
      layouts: The layout of each spatial value.
      streams: The stream axis of each value that has one but no rows and columns.
      ops: The rule of each operation that runs on windows.
      reasons: Why each of the other frame-dependent operations is a dense boundary.
      units: Segments and boundaries, in order of execution.
      kept: The values kept between frames, in the order of `State.caches`.
      halos: How far windows reach out of the frames and each kept value.
      places: Which rows and columns of the frames lie under each position of each kept map.
      names: The unit that each kept value belongs to.
      compared: The kept values whose new values are compared with the old ones, and held back where
        these are near.
      compares: Whether anything may be compared.
    """

    graph: Graph
    layouts: dict[Value, Layout]
    streams: dict[Value, int]
    ops: dict[Node, SpatialOp]
    reasons: dict[Node, str]
    units: tuple[Unit, ...]
    kept: tuple[Value, ...]
    halos: dict[Value, tuple[tuple[int, int], tuple[int, int]]]
    places: dict[Value, tuple[Table, Table]]
    names: tuple[str, ...]
    compared: frozenset[Value]
    compares: bool

    @property
    def stored_halos(self) -> tuple[Extent | None, ...]:
        """The halo of the frames and of each kept value; None for vectors."""
        return tuple(self.halos.get(value) for value in (self.graph.frames, *self.kept))

    @property
    def layers(self) -> tuple[str, ...]:
        """The units that truncation applies to, in order of execution."""
        pairs = zip(self.kept, self.names, strict=True)
        compared = {name for value, name in pairs if value in self.compared}
        return tuple(unit.name for unit in self.units if unit.name in compared)

    @property
    def favours_cells(self) -> bool:
        """Whether most of the arithmetic is cheaper on cells even where all of them are active."""
        segments = [unit for unit in self.units if isinstance(unit, Segment)]
        loops = [unit for unit in segments if unit.on_cells and not unit.on_pixels]
        fast = sum(unit.macs for unit in loops if unit.break_even >= 1)
        return 2 * fast > self.dense_macs

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the dense network, for one stream."""
        return sum(unit.macs for unit in self.units)


def _stream_axis(node: Node, axes: dict[Value, int], count: int) -> int | None:
    """Follows the stream axis through an operation that has no rows and columns."""
    name, p, out = node.primitive.name, node.params, node.outputs[0]
    dependent = [value for value in node.inputs if value.frame_dependent]
    if any(value not in axes for value in dependent):
        return None
    x = dependent[0]
    axis = axes[x]
    same = all(axes[v] == axis for v in dependent)
    if name in ELEMENTWISE and same:
        result = axis + out.ndim - x.ndim
    elif name == "broadcast_in_dim":
        result = p["broadcast_dimensions"][axis]
    elif name == "transpose":
        result = p["permutation"].index(axis)
    elif name == "reshape":
        before = math.prod(x.shape[:axis])
        places = [i for i in range(out.ndim) if math.prod(out.shape[:i]) == before]
        result = next((i for i in places if out.shape[i] == count), -1)
    elif name == "squeeze":
        result = axis - sum(d < axis for d in p["dimensions"])
    elif name.startswith(("reduce_", "argm")) and "axes" in p and axis not in p["axes"]:
        result = axis - sum(d < axis for d in p["axes"])
    elif (name == "concatenate" and same and p["dimension"] != axis) or name in (
        "slice",
        "pad",
        "split",
        "rev",
        "sort",
        "cumsum",
        "reduce_window_max",
    ):
        result = axis
    elif name == "dot_general" and len(dependent) == 1:
        (left, right), (batch_left, batch_right) = p["dimension_numbers"]
        first = x is node.inputs[0]
        mine, batch = (left, batch_left) if first else (right, batch_right)
        if axis in mine or batch:
            return None
        free = [d for d in range(x.ndim) if d not in mine]
        skip = 0 if first else node.inputs[0].ndim - len(left)
        result = skip + free.index(axis)
    elif name == "dot_general":
        (left, right), (batch_left, batch_right) = p["dimension_numbers"]
        pair = (axes[node.inputs[0]], axes[node.inputs[1]])
        pairs = list(zip(batch_left, batch_right, strict=True))
        if pair not in pairs:
            return None
        result = pairs.index(pair)
    elif name == "conv_general_dilated" and not node.inputs[1].frame_dependent:
        spec = p["dimension_numbers"]
        result = spec.out_spec[0] if spec.lhs_spec[0] == axis else -1
    else:
        return None
    fits = 0 <= result < out.ndim and out.shape[result] == count
    return result if fits else None


class _Planner:
    """Assigns every operation to a unit; see `make_plan`."""

    def __init__(self, graph: Graph, cell: int | None, cost: Cost):
        self.graph = graph
        self.cell = cell
        self.cost = cost
        self.pixels = pixels_run_on() is not None
        self.count = graph.frames.shape[0]
        self.layouts: dict[Value, Layout] = {graph.frames: Layout(0, 1, 2)}
        self.streams: dict[Value, int] = {}
        self.ops: dict[Node, SpatialOp] = {}
        self.reasons: dict[Node, str] = {}
        self.home: dict[Node, int] = {}
        self.waits: dict[Value, int] = {}  # of values that no unit computes
        self.members: list[list[Node]] = []
        self.is_segment: list[bool] = []
        self.consumers = graph.consumers()
        for node in graph.nodes:
            if any(value.frame_dependent for value in node.inputs):
                self._classify(node)
                self._assign(node)

    # Which rule applies.

    def _classify(self, node: Node) -> None:
        op = spatial_op(node, self.layouts)
        if any(0 in value.shape for value in node.outputs):
            op = "what it makes is empty"
        if isinstance(op, SpatialOp) and all(
            value.shape[layout.stream] == self.count
            for value, layout in zip(node.outputs, op.layouts, strict=True)
        ):
            self.ops[node] = op
            self.layouts.update(zip(node.outputs, op.layouts, strict=True))
            return
        self.reasons[node] = op if isinstance(op, str) else "it changes the streams"
        source = next((v for v in node.inputs if v in self.layouts), None)
        axes = self.streams | {v: layout.stream for v, layout in self.layouts.items()}
        axis = _stream_axis(node, axes, self.count)
        for value in node.outputs:
            if source is not None and self._keeps_layout(source, value):
                # Its change mask comes from comparing old and new, so that any labelling of the
                # axes would be right; this one lets what follows run on cells again.
                self.layouts[value] = self.layouts[source]
            elif axis is not None:
                self.streams[value] = axis

    def _keeps_layout(self, source: Value, value: Value) -> bool:
        layout = self.layouts[source]
        return (
            value.ndim == source.ndim
            and value.shape[layout.stream] == self.count
            and min(value.shape[layout.row], value.shape[layout.column]) > 1
        )

    # Which unit it runs in.

    def depends(self, value: Value) -> int:
        """The last unit that a value waits for; -1 for the frames alone."""
        if not value.frame_dependent or value.node is None:
            return -1
        if value.node in self.home:
            return self.home[value.node]
        if value not in self.waits:
            self.waits[value] = max((self.depends(v) for v in value.node.inputs), default=-1)
        return self.waits[value]

    def _aligned(self, value: Value, unit: int) -> bool:
        """Whether what a value reads of a segment is the same position of its grid."""
        if self.depends(value) < unit:
            return True
        node = value.node
        assert node is not None
        if node in self.home:
            return node in self.ops and self._grid(value) == self._grid(self._last(unit))
        # A crop that keeps the first rows and columns reads the same positions, of a smaller grid.
        if node not in self.ops or self._grid(value) != self._grid(self._last(unit)):
            return False
        op = self.ops[node]
        return all(
            self.depends(v) < unit
            or (all(r.is_identity for r in receptive_field) and self._aligned(v, unit))
            for v, receptive_field in zip(op.operands, op.receptive_fields, strict=True)
        ) and all(self.depends(v) < unit for v in node.inputs if v not in op.operands)

    def _last(self, unit: int) -> Value:
        return self.members[unit][-1].outputs[0]

    def _grid(self, value: Value) -> tuple[int, int]:
        layout = self.layouts[value]
        return value.shape[layout.row], value.shape[layout.column]

    def _open(self, node: Node, segment: bool) -> None:
        self.home[node] = len(self.members)
        self.members.append([node])
        self.is_segment.append(segment)

    def _join(self, node: Node, unit: int) -> None:
        self.home[node] = unit
        self.members[unit].append(node)

    def _assign(self, node: Node) -> None:
        latest = max(self.depends(value) for value in node.inputs)
        op = self.ops.get(node)
        if op is None:
            if node.primitive.name == "broadcast_in_dim" and node.inputs[0] not in self.layouts:
                return  # repeated where it is read, never stored
            boundary = latest if latest >= 0 and not self.is_segment[latest] else None
            if boundary is None and self.members and not self.is_segment[-1]:
                boundary = len(self.members) - 1
            if boundary is None:
                self._open(node, segment=False)
            else:
                self._join(node, boundary)
        elif op.kind == "move":
            return  # evaluated where it is read
        elif latest == -1 and op.kind == "point" and not op.macs:
            return  # conversion and normalisation of the frames: cheaper again than stored
        elif (
            latest >= 0
            and self.is_segment[latest]
            and all(self._aligned(value, latest) for value in node.inputs)
            and (op.kind == "point" or self._closes(node, latest))
        ):
            self._join(node, latest)
        else:
            self._open(node, segment=True)

    def _closes(self, node: Node, unit: int) -> bool:
        """Whether a pooling without overlap can end a segment that nothing else reads from."""
        op = self.ops[node]
        receptive_field = op.receptive_fields[0]
        apart = all(
            isinstance(r, Stencil) and r.window == r.stride and r.low == 0 and r.dilation == 1
            for r in receptive_field
        )
        if not apart or op.macs or node.primitive.name == "conv_general_dilated":
            return False
        inside = {value for member in self.members[unit] for value in member.outputs}
        mine = set(self.members[unit]) | {node}
        return (
            op.operands[0] in inside
            and all(reader in mine for value in inside for reader in self.consumers.get(value, []))
            and not inside & set(self.graph.outputs)
        )

    # What is kept.

    def _stops(self, value: Value) -> bool:
        return value.node is None or not value.frame_dependent or value.node in self.home

    def _reads(self, values) -> set[Value]:
        """The frames, cached maps and cached vectors that `values` are made of."""
        found: set[Value] = set()
        stack = list(values)
        while stack:
            value = stack.pop()
            if not value.frame_dependent:
                continue
            if self._stops(value):
                found.add(value)
            elif value.node is not None:
                stack.extend(value.node.inputs)
        return found

    def kept(self) -> list[Value]:
        """The values that another unit or the caller reads."""
        kept = self._reads(self.graph.outputs)
        for unit, members in enumerate(self.members):
            reads = self._reads(v for node in members for v in node.inputs)
            kept |= {v for v in reads if v.node is not None and self.home[v.node] != unit}
        kept.discard(self.graph.frames)
        order = {v: (n.index, i) for n in self.graph.nodes for i, v in enumerate(n.outputs)}
        return sorted(kept, key=order.__getitem__)

    def boundary_inputs(self, unit: int) -> list[Value]:
        """What a boundary reads from other units."""
        reads = self._reads(v for node in self.members[unit] for v in node.inputs)
        return [v for v in reads if v.node is None or self.home[v.node] != unit]


def _names(planner: _Planner) -> list[str]:
    """Names units after their main operation, numbered by kind."""
    kinds = {"conv_general_dilated": "conv", "dot_general": "dot"}
    counts: dict[str, int] = {}
    names = []
    for unit, members in enumerate(planner.members):
        if planner.is_segment[unit]:
            main = max(members, key=lambda n: (planner.ops[n].macs, -n.index))
            name = main.primitive.name
            kind = kinds.get(name, "pool" if name.startswith("reduce_window") else name)
        else:
            kind = "boundary"
        counts[kind] = counts.get(kind, 0) + 1
        names.append(f"{kind}_{counts[kind]}")
    return names


def _segment(
    planner: _Planner, unit: int, name: str, outputs: list[Value], stored: set[Value]
) -> Segment:
    """Chooses the cells of a segment and works out its programs."""
    grid = planner._grid(outputs[0])
    arguments: dict[str, Any] = {
        "stored": stored - set(outputs),
        "ops": planner.ops,
        "layouts": planner.layouts,
    }
    on_frame = program.build(outputs, program.whole(*grid), **arguments)
    cost = planner.cost
    on_pixels = None
    by_loop = planner.cell or _is_wide(on_frame, planner.layouts, cost)
    if planner.pixels and not by_loop and grid != (1, 1):
        on_pixels = compile_segment(on_frame, outputs, planner.ops, planner.layouts)
    if on_pixels is not None:
        try:
            pixels = Window(cells(grid[0], 1), cells(grid[1], 1))
            on_cells = program.build(outputs, pixels, **arguments)
        except MisalignedError:  # every other position of what was upsampled, say
            on_cells = None
        return Segment(
            name=name,
            nodes=tuple(planner.members[unit]),
            outputs=tuple(outputs),
            grid=grid,
            cell=(1, 1),
            chunk=1,
            on_cells=on_cells,
            on_frame=on_frame,
            on_pixels=on_pixels,
            # Truncation by cells keeps more of what matters at the same arithmetic.
            compared_cell=(1, 1) if _is_small(grid, cost) else (cost.cells[0], cost.cells[0]),
            break_even=1.0,
            macs=on_frame.macs(),
        )
    pooled = planner._grid(planner.members[unit][0].outputs[0])[0] // grid[0]
    wished = (planner.cell,) if planner.cell else cost.cells
    small = _is_small(grid, cost) and not _uses_winograd(on_frame)
    if small and not planner.cell:
        wished = (1, *wished)
    on_cells = None
    cell = grid
    for size in wished:
        size = max(1, size // max(1, pooled))
        window = Window(cells(grid[0], size), cells(grid[1], size))
        if window.rows.size * window.columns.size >= grid[0] * grid[1]:
            continue
        try:
            on_cells = program.build(outputs, window, **arguments)
        except MisalignedError:
            continue
        cell = (window.rows.size, window.columns.size)
        break
    chunk = 1
    if on_cells is not None:
        number = planner.count * -(-grid[0] // cell[0]) * -(-grid[1] // cell[1])
        chunk = chunk_size(
            number,
            cell[0] * cell[1],
            _window_bytes(on_cells, planner.layouts),
            target_bytes=cost.chunk_bytes,
            rows=cost.chunk_rows,
        )
    return Segment(
        name=name,
        nodes=tuple(planner.members[unit]),
        outputs=tuple(outputs),
        grid=grid,
        cell=cell,
        chunk=chunk,
        on_cells=on_cells,
        on_frame=on_frame,
        on_pixels=None,
        compared_cell=cell,
        break_even=_break_even(on_cells, cost) if on_cells is not None else 0.0,
        macs=on_frame.macs(),
    )


def _is_wide(part: Program, layouts: dict[Value, Layout], cost: Cost) -> bool:
    """Whether Winograd's products save more than single positions do."""
    for step in part.steps:
        if step.op.winograd:
            order = kernel_order(step.node, layouts[step.node.inputs[0]])
            depth, features = (step.node.inputs[1].shape[axis] for axis in order[2:])
            if min(depth, features) >= cost.winograd_channels:
                return True
    return False


def _is_small(grid: tuple[int, int], cost: Cost) -> bool:
    return grid[0] * grid[1] <= cost.single_pixels


def _uses_winograd(part: Program) -> bool:
    return any(step.op.winograd for step in part.steps)


def _break_even(cells_program: Program, cost: Cost) -> float:
    """Above which share of active cells whole frames are faster."""
    fast = sum(step.macs for step in cells_program.steps if step.by_winograd)
    return cost.winograd_break_even if 2 * fast > cells_program.macs() else cost.break_even


def _window_bytes(cells_program: Program, layouts: dict[Value, Layout]) -> int:
    """The memory that one cell's windows take: those gathered and those computed."""
    total = 0
    for value, window in cells_program.gathers:
        rest = math.prod(value.shape[axis] for axis in layouts[value].rest(value.ndim))
        total += window.rows.size * window.columns.size * rest * jnp.dtype(value.dtype).itemsize
    for step in cells_program.steps:
        area = step.out.rows.size * step.out.columns.size
        for value in step.node.outputs:
            rest = math.prod(value.shape[axis] for axis in layouts[value].rest(value.ndim))
            total += area * rest * jnp.dtype(value.dtype).itemsize
    return total


def make_plan(
    graph: Graph,
    *,
    compares: bool = False,
    cell: int | None = None,
    break_even: float | None = None,
    cost: Cost | None = None,
) -> Plan:
    """Decides what runs on cells, what runs densely and what is kept between frames.

    Args:
      graph: The traced function.
      compares: Whether new values are compared with the old ones, to be held back by truncation.
      cell: The side of a cell of convolution outputs; chosen by segment where None.
      break_even: Above which share of active cells a segment runs on whole frames; that of `cost`
        where None.
      cost: What to decide by; that of the default device where None.

    Returns:
      The plan.
    """
    frames = graph.frames
    cost = cost or cost_of()
    if break_even is not None:
        cost = dataclasses.replace(cost, break_even=break_even, winograd_break_even=break_even)
    planner = _Planner(graph, cell, cost)
    kept = planner.kept()
    names = _names(planner)
    stored = {v for v in kept if v in planner.layouts} | {frames}
    units: list[Unit] = []
    halos = {v: ((0, 0), planner._grid(v)) for v in stored}
    for unit, name in enumerate(names):
        outputs = [v for v in kept if v.node is not None and planner.home[v.node] == unit]
        if planner.is_segment[unit]:
            segment = _segment(planner, unit, name, outputs, stored)
            units.append(segment)
            for part in (segment.on_cells, segment.on_frame):
                for value, receptive_field in part.halo().items() if part is not None else ():
                    halos[value] = program.widest(halos[value], receptive_field)
        else:
            nodes = tuple(planner.members[unit])
            macs = sum(map(node_macs, nodes)) // planner.count
            inputs = tuple(planner.boundary_inputs(unit))
            units.append(Boundary(name, nodes, inputs, tuple(outputs), macs))
    grids = {v: planner._grid(v) for v in stored}
    owner = {value: unit.name for unit in units for value in unit.outputs}
    return Plan(
        graph=graph,
        layouts=planner.layouts,
        streams=planner.streams,
        ops=planner.ops,
        reasons=planner.reasons,
        units=tuple(units),
        kept=tuple(kept),
        halos={
            v: (low, (end[0] - grids[v][0], end[1] - grids[v][1]))
            for v, (low, end) in halos.items()
        },
        places=_places(planner, kept),
        names=tuple(owner[v] for v in kept),
        compared=_compared(units, graph) if compares else frozenset(),
        compares=compares,
    )


def _places(planner: _Planner, kept: list[Value]) -> dict[Value, tuple[Table, Table]]:
    """What of the frames lies under each position of the kept maps.

    It follows the operations, as the rows of a letterboxed frame are not those of its picture.
    """
    size = planner._grid(planner.graph.frames)
    identity = tuple(Table(np.arange(n), np.arange(n)) for n in size)
    found: dict[Value, tuple[Table, Table]] = {planner.graph.frames: (identity[0], identity[1])}

    def under(value: Value) -> tuple[Table, Table]:
        if value in found:
            return found[value]
        grid = planner._grid(value)
        op = planner.ops.get(value.node) if value.node is not None else None
        axes = []
        for axis in (0, 1):
            if op is None or not op.operands:  # a map that no rule follows: the frame, resized
                edges = np.arange(grid[axis] + 1) * size[axis] // grid[axis]
                axes.append(Table(edges[:-1], np.maximum(edges[1:] - 1, edges[:-1])))
                continue
            firsts, lasts = [], []
            for v, receptive_field in zip(op.operands, op.receptive_fields, strict=True):
                ends = under(v)[axis]
                first, last = place(receptive_field[axis], grid[axis])
                firsts.append(ends.bounds(first)[0])
                lasts.append(ends.bounds(last)[1])
            axes.append(Table(np.min(firsts, axis=0), np.max(lasts, axis=0)))
        found[value] = (axes[0], axes[1])
        return found[value]

    # In their order, so that a deep network takes no deep recursion.
    for node in planner.graph.nodes:
        for value in node.outputs:
            if value in planner.layouts:
                under(value)
    return {value: found[value] for value in kept if value in planner.layouts}


def _compared(units: list[Unit], graph: Graph) -> frozenset[Value]:
    """The kept values that truncation applies to; none at either end of the network.

    What no further arithmetic reads would save nothing, and do harm: a detector's box offsets are
    small beside the root mean square of the logits in the same map. What no learned kernel went
    into is still a picture, perhaps resized or normalised: its root mean square is that of its
    brightness, and it is the threshold that filters it.
    """
    read: set[Value] = set()
    for unit in units:
        if unit.macs:
            read |= _inputs(unit)
    learned = _learned(graph)
    return frozenset(v for unit in units for v in unit.outputs if v in read & learned)


def _learned(graph: Graph) -> set[Value]:
    """The values that depend on the frames through a convolution or product with weights.

    Weights are what parameters went into. In a function that closes over all its arrays they are
    the kernels of its convolutions that come from outside: what it computes itself, such as the
    matrices of `jax.image.resize`, is no weight, nor is a matrix that joins colours.
    """
    from_parameters: set[Value] = set()
    for node in graph.nodes:
        if any(isinstance(v.argument, int) or v in from_parameters for v in node.inputs):
            from_parameters.update(node.outputs)

    def from_outside(value: Value) -> bool:
        while value.node is not None and value.node.primitive.name in _ARRANGES:
            value = value.node.inputs[0]
        return value.node is None and value.constant is not None

    def is_weight(value: Value, node: Node) -> bool:
        if value.frame_dependent:
            return False
        if takes_parameters:
            return isinstance(value.argument, int) or value in from_parameters
        return node.primitive.name == "conv_general_dilated" and from_outside(value)

    takes_parameters = any(isinstance(v.argument, int) for node in graph.nodes for v in node.inputs)
    learned: set[Value] = set()
    for node in graph.nodes:
        weighted = node_macs(node) > 0 and any(is_weight(v, node) for v in node.inputs)
        if weighted or any(v in learned for v in node.inputs):
            learned.update(v for v in node.outputs if v.frame_dependent)
    return learned


_ARRANGES = frozenset({"broadcast_in_dim", "convert_element_type", "reshape", "rev", "transpose"})


def _inputs(unit: Unit) -> set[Value]:
    """The values that a unit reads from others."""
    if isinstance(unit, Boundary):
        return set(unit.inputs)
    vectors = {v for node in unit.nodes for v in node.inputs if v.frame_dependent}
    return vectors | {value for value, _ in unit.on_frame.gathers}
