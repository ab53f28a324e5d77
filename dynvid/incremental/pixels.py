"""From a segment to a pixel program: what one call of `kernels.masked_conv` computes."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.graph.evaluate import constant_fold
from dynvid.graph.trace import Node, Value
from dynvid.incremental.geometry import Stencil
from dynvid.incremental.program import Program
from dynvid.incremental.rules import Layout, SpatialOp, kernel_order
from dynvid.kernels.masked_conv.pixels import (
    FORMULA_OPERATIONS,
    Formula,
    Instruction,
    Leaf,
    Output,
    Part,
    PixelProgram,
    Product,
    Source,
    Steps,
)

Halos = dict[Value, tuple[tuple[int, int], tuple[int, int]]]

_SAME = ("copy", "name", "stop_gradient")  # hand on what they get


class UnsupportedError(Exception):
    """The segment holds what no pixel program can say."""


@dataclasses.dataclass(frozen=True, eq=False)
class PixelSegment:
    """A segment as a pixel program.

    Attributes:
      steps: What is computed of a position.
      values: Which step makes each output.
      maps: The stored values that the steps read, by their numbers.
      products: The operation of each product with weights, and the product, by their numbers.
      vectors: The values that are one a channel, by their numbers, and of how many channels.
    """

    steps: tuple[Product | Formula, ...]
    values: tuple[int, ...]
    maps: tuple[Value, ...]
    products: tuple[tuple[Node, Product], ...]
    vectors: tuple[tuple[Value, int], ...]

    def program(
        self,
        outputs: Sequence[Value],
        compared: Sequence[bool],
        grid: tuple[int, int],
        cell: tuple[int, int],
        layouts: dict[Value, Layout],
        halos: Halos,
    ) -> PixelProgram:
        """The program, once it is known how the maps are stored.

        Args:
          outputs: The values that the segment keeps.
          compared: Which of them are compared with what is kept.
          grid: Rows and columns of them.
          cell: Rows and columns of what is compared as a whole.
          layouts: The layout of every stored value.
          halos: Its halo.
        """

        def source(value: Value) -> Source:
            (top, left), (bottom, right) = halos[value]
            height, width, channels = _shape(value, layouts[value])
            stored = (top + height + bottom, left + width + right)
            return Source((height, width, channels), (top, left), stored)

        return PixelProgram(
            grid=grid,
            sources=tuple(map(source, self.maps)),
            steps=self.steps,
            outputs=tuple(map(Output, self.values, compared)),
            places=tuple(map(source, outputs)),
            cell=cell,
        )


def _shape(value: Value, layout: Layout) -> tuple[int, int, int]:
    """Rows, columns and channels of a map."""
    rest = layout.rest(value.ndim)
    if len(rest) != 1:
        raise UnsupportedError
    return value.shape[layout.row], value.shape[layout.column], value.shape[rest[0]]


def compile_segment(
    part: Program,
    outputs: Sequence[Value],
    ops: dict[Node, SpatialOp],
    layouts: dict[Value, Layout],
) -> PixelSegment | None:
    """Says a segment as a pixel program; None where that is not possible.

    Args:
      part: How the whole frame is computed.
      outputs: The values that it keeps.
      ops: The rule of each operation.
      layouts: The layout of each spatial value.
    """
    try:
        return _Compiler(part, outputs, ops, layouts).result()
    except UnsupportedError:
        return None


class _Compiler:
    def __init__(self, part, outputs, ops: dict[Node, SpatialOp], layouts: dict[Value, Layout]):
        self.ops, self.layouts, self.outputs = ops, layouts, outputs
        self.stored = {value for value, _ in part.gathers}
        self.maps: list[Value] = []
        self.steps: list[Product | Formula] = []
        self.made: dict[Value, int] = {}
        self.products: list[tuple[Node, Product]] = []
        self.vectors: list[tuple[Value, int]] = []
        if any(value.dtype != np.float32 for value in (*self.stored, *outputs)):
            raise UnsupportedError
        for step in part.steps:
            if any(read.fill is not None for read in step.reads) and not step.op.kind == "stencil":
                raise UnsupportedError
            name = step.node.primitive.name
            if name == "conv_general_dilated":
                self._convolution(step.node)
            elif name == "reduce_window_max":
                self._maximum(step.node)
            elif step.op.kind == "stencil":
                raise UnsupportedError
            for value in step.node.outputs:
                if value in outputs:
                    self._materialise(value)

    def result(self) -> PixelSegment:
        """What was compiled."""
        values = tuple(self._materialise(value) for value in self.outputs)
        return PixelSegment(
            tuple(self.steps), values, tuple(self.maps), tuple(self.products), tuple(self.vectors)
        )

    def _map(self, value: Value) -> int:
        _shape(value, self.layouts[value])
        if value not in self.maps:
            self.maps.append(value)
        return self.maps.index(value)

    def _add(self, step: Product | Formula) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    # What is read where it is.

    def _parts(self, value: Value) -> list[Part]:
        """The channels of a value, in order, as parts of what is stored or computed."""
        if value in self.made:
            return [Part(self.made[value], True, 0, self.steps[self.made[value]].features)]
        _, _, channels = _shape(value, self.layouts[value])
        if value in self.stored:
            return [Part(self._map(value), False, 0, channels)]
        node = value.node
        assert node is not None
        name, params = node.primitive.name, node.params
        if name in _SAME:
            return self._parts(node.inputs[0])
        if name == "concatenate":
            return [part for v in node.inputs for part in self._parts(self._spatial(v))]
        if name in ("slice", "split") and self._keeps_place(node):
            (axis,) = self.layouts[value].rest(value.ndim)
            if name == "slice":
                if params["strides"] is not None and params["strides"][axis] != 1:
                    raise UnsupportedError
                first = params["start_indices"][axis]
            else:
                first = sum(params["sizes"][: node.outputs.index(value)])
            return _slice(self._parts(node.inputs[0]), first, channels)
        if self.ops[node].kind == "move":
            return [self._moved(value)]
        return [Part(self._materialise(value), True, 0, channels)]

    def _spatial(self, value: Value) -> Value:
        if value not in self.layouts:
            raise UnsupportedError
        return value

    def _keeps_place(self, node: Node) -> bool:
        fields = self.ops[node].receptive_fields
        return all(r.is_identity for pair in fields for r in pair)

    def _moved(self, value: Value) -> Part:
        """What was only moved about, as nearest upsampling is: found by moving numbers instead."""
        source, numbers = self._numbered(value)
        layout = self.layouts[value]
        canonical = numbers.transpose(layout.order(value.ndim))[0]
        height, width, channels = _shape(source, self.layouts[source])
        where = np.unravel_index(canonical, (height, width, channels))
        rows, columns, channel = where[0][:, 0, 0], where[1][0, :, 0], where[2][0, 0, :]
        expected = (
            np.broadcast_to(rows[:, None, None], canonical.shape),
            np.broadcast_to(columns[None, :, None], canonical.shape),
            np.broadcast_to(np.arange(len(channel)) + channel[0], canonical.shape),
        )
        if not all(map(np.array_equal, where, expected)):
            raise UnsupportedError
        place = (_steps(rows, height), _steps(columns, width))
        return Part(self._map(source), False, int(channel[0]), len(channel), *place)

    def _numbered(self, value: Value) -> tuple[Value, np.ndarray]:
        """The stored value that a moved one comes from, and the number of each of its entries."""
        if value in self.stored:
            layout = self.layouts[value]
            shape = _shape(value, layout)
            numbers = np.arange(np.prod(shape), dtype=np.int32).reshape(1, *shape)
            numbers = np.repeat(numbers, value.shape[layout.stream], 0)
            order = layout.order(value.ndim)
            return value, numbers.transpose([order.index(axis) for axis in range(value.ndim)])
        node = value.node
        if node is None or node not in self.ops or self.ops[node].kind != "move":
            raise UnsupportedError
        if len(node.inputs) != 1 or len(node.outputs) != 1:
            raise UnsupportedError
        source, numbers = self._numbered(node.inputs[0])
        with jax.ensure_compile_time_eval():
            (moved,) = node.bind(jnp.asarray(numbers))
        return source, np.asarray(moved)

    # Steps.

    def _convolution(self, node: Node) -> None:
        op, p = self.ops[node], node.params
        kernel = node.inputs[1]
        preferred = p["preferred_element_type"]
        if kernel.dtype != np.float32 or preferred not in (None, np.dtype(np.float32)):
            raise UnsupportedError
        x = op.operands[0]
        order = kernel_order(node, self.layouts[x])
        kh, kw, depth, features = (kernel.shape[axis] for axis in order)
        groups = p["feature_group_count"]
        kind = "dense" if groups == 1 else "depthwise"
        if groups > 1 and not (depth == 1 and groups == features):
            raise UnsupportedError
        parts, dilation = self._windows(x, op)
        if kind == "depthwise" and len(parts) != 1:
            raise UnsupportedError
        product = Product(kind, parts, features, (kh, kw), dilation, len(self.products))
        self.products.append((node, product))
        self.made[node.outputs[0]] = self._add(product)

    def _maximum(self, node: Node) -> None:
        op = self.ops[node]
        x = op.operands[0]
        parts, dilation = self._windows(x, op)
        rows, columns = op.receptive_fields[0]
        assert isinstance(rows, Stencil)
        assert isinstance(columns, Stencil)
        if len(parts) != 1:
            raise UnsupportedError
        window = (rows.window, columns.window)
        channels = parts[0].channels
        self.made[node.outputs[0]] = self._add(
            Product("maximum", parts, channels, window, dilation)
        )

    def _windows(self, x: Value, op: SpatialOp) -> tuple[tuple[Part, ...], tuple[int, int]]:
        """The parts of an operand with where their windows begin, and the dilation."""
        rows, columns = op.receptive_fields[0]
        if not (isinstance(rows, Stencil) and isinstance(columns, Stencil)):
            raise UnsupportedError
        if rows.base != 1 or columns.base != 1:
            raise UnsupportedError
        plain = rows.is_identity and columns.is_identity
        alone = rows.window == columns.window == 1 and rows.low == columns.low == 0
        parts = []
        for part in self._parts(x):
            if part.computed and not plain:
                raise UnsupportedError
            if (part.rows, part.columns) != (Steps(), Steps()) and not alone:
                raise UnsupportedError
            parts.append(
                part._replace(
                    rows=_through(rows, part.rows), columns=_through(columns, part.columns)
                )
            )
        return tuple(parts), (rows.dilation, columns.dilation)

    def _materialise(self, value: Value) -> int:
        """The step that makes a value."""
        if value in self.made:
            return self.made[value]
        leaves: list[Leaf] = []
        code: list[tuple[str, tuple[object, ...], int]] = []
        known: dict[Value, object] = {}
        _, _, channels = _shape(value, self.layouts[value])

        def leaf(new: Leaf) -> object:
            if new not in leaves:
                leaves.append(new)
            return new

        def visit(wanted: Value) -> object:
            if wanted not in known:
                known[wanted] = look_up(wanted)
            return known[wanted]

        def look_up(wanted: Value) -> object:
            if wanted not in self.layouts:
                return leaf(self._constant(wanted, self.layouts[value], channels))
            node = wanted.node
            if wanted not in self.made and wanted not in self.stored:
                assert node is not None
                name = node.primitive.name
                if name in _SAME:
                    return visit(node.inputs[0])
                if name in FORMULA_OPERATIONS and self.ops[node].kind == "point":
                    if node.params.get("accuracy") is not None:
                        raise UnsupportedError
                    operands = tuple(visit(v) for v in node.inputs)
                    code.append((name, operands, int(node.params.get("y", 0))))
                    return len(code) - 1
                if self.ops[node].kind != "move":
                    raise UnsupportedError
            (part, *more) = self._parts(wanted)
            if more or part.channels != channels or wanted.dtype != np.float32:
                raise UnsupportedError
            if not part.computed:
                place = (part.channel, part.channels, part.rows, part.columns)
                return leaf(Leaf("map", part.source, 0.0, *place))
            if part.channel:
                raise UnsupportedError
            return leaf(Leaf("value", part.source))

        visit(value)

        def number(operand: object) -> int:
            return leaves.index(operand) if isinstance(operand, Leaf) else len(leaves) + operand  # type: ignore[operator]

        instructions = tuple(
            Instruction(name, tuple(map(number, operands)), exponent)
            for name, operands, exponent in code
        )
        if not any(leaf_.kind in ("map", "value") for leaf_ in leaves):
            raise UnsupportedError
        self.made[value] = self._add(Formula(tuple(leaves), instructions, channels))
        return self.made[value]

    def _constant(self, value: Value, layout: Layout, channels: int) -> Leaf:
        """A value that does not depend on rows and columns."""
        if value.dtype != np.float32:
            raise UnsupportedError
        folded = constant_fold(value) if not value.frame_dependent else None
        if folded is not None and folded.size and (folded == folded.reshape(-1)[0]).all():
            return Leaf("number", number=float(folded.reshape(-1)[0]))
        if vector_shape(value, layout)[1:3] != (1, 1):
            raise UnsupportedError
        if (value, channels) not in self.vectors:
            self.vectors.append((value, channels))
        return Leaf("vector", self.vectors.index((value, channels)), channels=channels)


def _through(field: Stencil, steps: Steps) -> Steps:
    """Where the window of a convolution begins in what its operand reads."""
    return Steps(field.stride * steps.stride, steps.offset - field.low * steps.stride, steps.repeat)


def _steps(reads: np.ndarray, length: int) -> Steps:
    """Which positions are read, as a rule."""
    count = len(reads)
    apart = int(reads[1] - reads[0]) if count > 1 else 1
    candidates = [Steps(apart, int(reads[0]))]
    if count % length == 0:
        candidates.append(Steps(repeat=count // length))
    for steps in candidates:
        if np.array_equal(steps.first(np.arange(count)), reads):
            return steps
    raise UnsupportedError


def _slice(parts: list[Part], first: int, channels: int) -> list[Part]:
    """Some channels of parts that lie side by side."""
    found, at = [], 0
    for part in parts:
        begin, end = max(first, at), min(first + channels, at + part.channels)
        if begin < end:
            found.append(part._replace(channel=part.channel + begin - at, channels=end - begin))
        at += part.channels
    return found


def vector_shape(value: Value, layout: Layout) -> tuple[int, ...]:
    """The shape of a value without layout, in canonical order, before it is repeated."""
    if value.ndim == 0:
        return (1, 1, 1, 1)
    shape = list(value.shape)
    node = value.node
    if node is not None and node.primitive.name == "broadcast_in_dim":
        shape = [1] * value.ndim
        for axis, n in zip(node.params["broadcast_dimensions"], node.inputs[0].shape, strict=True):
            shape[axis] = n
    return tuple(shape[axis] for axis in layout.order(value.ndim))


def vector(array: jax.Array, shape: tuple[int, ...], layout: Layout, channels: int) -> jax.Array:
    """Such a value as one row of channels, or one a stream."""
    if array.ndim:
        model = [0] * len(shape)
        for n, axis in zip(shape, layout.order(len(shape)), strict=True):
            model[axis] = n
        array = jnp.transpose(array.reshape(model), layout.order(len(shape)))
        array = array.reshape(shape[0], -1)
    else:
        array = array.reshape(1, 1)
    return jnp.broadcast_to(array, (len(array), channels))
