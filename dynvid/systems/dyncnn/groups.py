"""The convolution groups of a network: what DynCNN's schemes apply to (sections 3.3-3.4)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.graph.primitives import ELEMENTWISE
from dynvid.graph.trace import Node, Value
from dynvid.incremental.geometry import Region, Stencil, required
from dynvid.incremental.plan import Plan
from dynvid.incremental.rules import Layout, Window
from dynvid.incremental.transform import plan_for
from dynvid.ops import cells
from dynvid.types import Params

Pair = tuple[int, int]

_LARGE = 512  # a map of this side takes the larger cell
_LARGE_CELL, _CELL = 14, 6


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Convolution:
    """One convolution with the elementwise work (bias, activation) that follows it.

    Attributes:
      node: The convolution.
      tail: The elementwise operations, in order.
      source: What it reads.
      result: What the last of the operations makes.
      layout: Which axes of the result are streams, rows and columns.
      receptive_field: Its geometry over rows and over columns.
      padding: ((top, bottom), (left, right)).
      kernel_order: The permutation that makes the kernel HWIO.
      input_size: (rows, columns) of what it reads.
      size: (rows, columns) of its result.
      macs: Multiply-accumulates for one output position.
    """

    node: Node
    tail: tuple[Node, ...]
    source: Value
    result: Value
    layout: Layout
    receptive_field: tuple[Stencil, Stencil]
    padding: tuple[Pair, Pair]
    kernel_order: tuple[int, ...]
    input_size: Pair
    size: Pair
    macs: int

    @property
    def geometry(self) -> dict[str, Any]:
        """Strides, dilation and channel groups, as `lax.conv_general_dilated` takes them."""
        rows, columns = self.receptive_field
        return {
            "strides": (rows.stride, columns.stride),
            "dilation": (rows.dilation, columns.dilation),
            "groups": self.node.params["feature_group_count"],
        }

    @property
    def products(self) -> dict[str, Any]:
        """Precision and type of the products, as the network asks for them."""
        names = ("precision", "preferred_element_type")
        return {name: self.node.params[name] for name in names}

    def constants(self, read: Callable[[Value], jax.Array]) -> tuple[jax.Array, list[Any]]:
        """The HWIO kernel, and the operands of the elementwise work that are no feature maps.

        Args:
          read: Gives the array of a value that does not depend on the frames.

        Returns:
          The kernel, and for each elementwise operation a list with an array for every constant
          operand, None for the others.
        """
        kernel = jnp.transpose(read(self.node.inputs[1]), self.kernel_order)
        operands = [
            [None if v.frame_dependent else self._per_channel(v, read) for v in node.inputs]
            for node in self.tail
        ]
        return kernel, operands

    def _per_channel(self, value: Value, read: Callable[[Value], jax.Array]) -> jax.Array:
        """An operand that is the same at every position, without its repetitions."""
        if not value.ndim:
            return read(value)
        shape = _shape_once(value)
        source = value.node.inputs[0] if _is_broadcast(value) and value.node else value
        return jnp.transpose(read(source).reshape(shape), self.layout.order(value.ndim))

    def activate(self, x: jax.Array, operands: list[Any]) -> jax.Array:
        """Applies the elementwise work to a map or to windows `(K, h, w, C)`."""
        made: dict[Value, jax.Array] = {self.node.outputs[0]: x}
        for node, constants in zip(self.tail, operands, strict=True):
            arrays = [
                made[v] if v.frame_dependent else constant
                for v, constant in zip(node.inputs, constants, strict=True)
            ]
            made[node.outputs[0]] = node.bind(*jnp.broadcast_arrays(*arrays))[0]
        return made[self.result]

    def on_frame(self, x: jax.Array, weights: tuple[jax.Array, list[Any]]) -> jax.Array:
        """The whole map `(S, H', W', C')` from the whole input `(S, H, W, C)`."""
        kernel, operands = weights
        geometry = self.geometry
        y = lax.conv_general_dilated(
            x,
            kernel,
            geometry["strides"],
            self.padding,
            rhs_dilation=geometry["dilation"],
            feature_group_count=geometry["groups"],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **self.products,
        )
        return self.activate(y, operands)

    def on_windows(self, x: jax.Array, weights: tuple[jax.Array, list[Any]]) -> jax.Array:
        """Windows `(K, h, w, C)` without padding, or a strip `(1, s, K * s, C)` of them."""
        kernel, operands = weights
        # As whole frames: without im2col, which costs more than it gains on windows of this size.
        y = cells.convolve_windows(x, kernel, dense=True, **self.geometry, **self.products)
        return self.activate(y, operands)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Convolutions that follow one another without anything but elementwise work between them.

    Attributes:
      name: "gp1", "gp2", ... in the order of execution.
      convolutions: Its convolutions, each with its elementwise work.
      cell: The side of a cell of the last map, in pixels.
    """

    name: str
    convolutions: tuple[Convolution, ...]
    cell: int

    def __repr__(self) -> str:
        rows, columns = self.grid
        cell_rows, cell_columns = self.cell_grid
        return (
            f"{self.name}: {len(self.convolutions)} convolutions on {rows}x{columns}, "
            f"{cell_rows}x{cell_columns} cells of {self.cell}, heights "
            f"{', '.join(map(str, self.heights))}, break-even at {self.break_even:.0f} cells"
        )

    @property
    def grid(self) -> Pair:
        """Rows and columns of the last map."""
        return self.convolutions[-1].size

    @property
    def cell_grid(self) -> Pair:
        """How many rows and columns of cells there are: `ceil(S / c)`."""
        rows, columns = self.grid
        return -(-rows // self.cell), -(-columns // self.cell)

    def windows(self) -> tuple[Window, ...]:
        """What one cell reads of each map: of the input first, of the last map (the cell) last."""
        rows, columns = (Region(np.arange(n) * self.cell, self.cell) for n in self.cell_grid)
        windows = [Window(rows, columns)]
        for convolution in reversed(self.convolutions):
            pairs = zip(convolution.receptive_field, windows[0], strict=True)
            windows.insert(
                0, Window(*(required(receptive_field, region) for receptive_field, region in pairs))
            )
        return tuple(windows)

    @property
    def heights(self) -> tuple[int, ...]:
        """The rows of the new array before each convolution: 18, 16 for gp1 of VGG16."""
        return tuple(window.rows.size for window in self.windows()[:-1])

    @property
    def break_even(self) -> float:
        """How many cells of one stream cost as much as the whole map.

        The area of the maps that the convolutions read over that of a cell's windows:
        `S^2 / (c + 2)^2` for a single 3x3 convolution (Tables 9 and 10).
        """
        whole = sum(math.prod(c.input_size) for c in self.convolutions)
        return whole / sum(w.rows.size * w.columns.size for w in self.windows()[:-1])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole maps, for one stream."""
        return sum(c.macs * math.prod(c.size) for c in self.convolutions)

    @property
    def cell_macs(self) -> int:
        """Multiply-accumulates of one cell, halo included."""
        return sum(
            convolution.macs * window.rows.size * window.columns.size
            for convolution, window in zip(self.convolutions, self.windows()[1:], strict=True)
        )

    def single(self, *, cell: int | None = None) -> "tuple[Group, ...]":
        """A group for each convolution: what runs without continuous convolution."""
        return tuple(
            Group(f"{self.name}_{i}", (convolution,), cell or self.cell)
            for i, convolution in enumerate(self.convolutions, start=1)
        )


def _is_broadcast(value: Value) -> bool:
    return value.node is not None and value.node.primitive.name == "broadcast_in_dim"


def _shape_once(value: Value) -> tuple[int, ...]:
    """The shape of a value with 1 for each axis along which it is only repeated."""
    if not _is_broadcast(value) or value.node is None:
        return value.shape
    shape = [1] * value.ndim
    source = value.node.inputs[0]
    for axis, n in zip(value.node.params["broadcast_dimensions"], source.shape, strict=True):
        shape[axis] = n
    return tuple(shape)


class _Finder:
    """Finds the groups of a plan; see `find_groups`."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.readers = plan.graph.consumers()

    def convolution(self, node: Node) -> Convolution | None:
        """A convolution with its elementwise work, or None where it has to stay dense."""
        op = self.plan.ops.get(node)
        if op is None or node.primitive.name != "conv_general_dilated":
            return None
        params, spec = node.params, node.params["dimension_numbers"]
        if tuple(params["lhs_dilation"]) != (1, 1):
            return None
        source, made = node.inputs[0], node.outputs[0]
        into, layout = self.plan.layouts[source], self.plan.layouts[made]
        turn = (0, 1) if spec.lhs_spec[2] == into.row else (1, 0)
        rows, columns = op.receptive_fields[0]
        assert isinstance(rows, Stencil)
        assert isinstance(columns, Stencil)
        padding = [tuple(params["padding"][i]) for i in turn]
        tail = self._tail(made, layout)
        return Convolution(
            node=node,
            tail=tail,
            source=source,
            result=tail[-1].outputs[0] if tail else made,
            layout=layout,
            receptive_field=(rows, columns),
            padding=(padding[0], padding[1]),
            kernel_order=(
                *(spec.rhs_spec[2 + i] for i in turn),
                spec.rhs_spec[1],
                spec.rhs_spec[0],
            ),
            input_size=(source.shape[into.row], source.shape[into.column]),
            size=(made.shape[layout.row], made.shape[layout.column]),
            macs=op.macs,
        )

    def _tail(self, made: Value, layout: Layout) -> tuple[Node, ...]:
        """The elementwise operations after a convolution, up to the last that all goes through."""
        inside, found = {made}, []
        start = made.node.index + 1 if made.node is not None else 0
        for node in self.plan.graph.nodes[start:]:
            if self._joins(node, inside, layout):
                found.append(node)
                inside.add(node.outputs[0])
        while found and not self._only_way(made, found):
            found.pop()
        return tuple(found)

    def _joins(self, node: Node, inside: set[Value], layout: Layout) -> bool:
        op = self.plan.ops.get(node)
        if op is None or node.primitive.name not in ELEMENTWISE:
            return False
        return op.layouts[0] == layout and all(
            value in inside
            if value.frame_dependent
            else not value.ndim or all(_shape_once(value)[axis] == 1 for axis in layout)
            for value in node.inputs
        )

    def _only_way(self, made: Value, found: list[Node]) -> bool:
        """Whether nothing but the last operation is read from outside."""
        members = set(found)
        hidden = [made, *(node.outputs[0] for node in found[:-1])]
        return all(self._private(value, members) for value in hidden)

    def _private(self, value: Value, members: set[Node]) -> bool:
        return value not in self.plan.graph.outputs and members.issuperset(
            self.readers.get(value, [])
        )

    def chains(self) -> list[list[Convolution]]:
        """Convolutions of stride one that only read one another; all others alone."""
        chains: list[list[Convolution]] = []
        for node in self.plan.graph.nodes:
            convolution = self.convolution(node)
            if convolution is None:
                continue
            before = next((c for c in chains if c[-1].result is convolution.source), None)
            if (
                before is not None
                and self._private(convolution.source, {node})
                and _unit_stride(before[-1])
                and _unit_stride(convolution)
            ):
                before.append(convolution)
            else:
                chains.append([convolution])
        return chains


def _unit_stride(convolution: Convolution) -> bool:
    return all(receptive_field.stride == 1 for receptive_field in convolution.receptive_field)


def _default_cell(grid: Pair) -> int:
    return _LARGE_CELL if max(grid) >= _LARGE else _CELL


def find_groups(
    plan: Plan, *, groups: Sequence[int] | None, cell: int | Sequence[int] | None
) -> tuple[Group, ...]:
    """The chosen groups of a planned function, with their cells; see `dyncnn`."""
    chains = _Finder(plan).chains()
    chosen = list(range(len(chains))) if groups is None else list(groups)
    wrong = [i for i in chosen if i not in range(len(chains))]
    if wrong or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"groups must be distinct numbers below {len(chains)}, as `dyncnn_groups` counts "
            f"them; got {chosen}"
        )
    sides = [cell] * len(chosen) if cell is None or isinstance(cell, int) else list(cell)
    if len(sides) != len(chosen):
        raise ValueError(
            f"cell must be one side, or one for each of the {len(chosen)} groups; "
            f"got {len(sides)} sides"
        )
    found = {
        i: Group(
            f"gp{i + 1}",
            tuple(chains[i]),
            _default_cell(chains[i][-1].size) if side is None else side,
        )
        for i, side in zip(chosen, sides, strict=True)
    }
    return tuple(found[i] for i in sorted(found))


def check_cell(cell: int | Sequence[int] | None) -> None:
    """Refuses cells that have no pixel."""
    sides = [] if cell is None else [cell] if isinstance(cell, int) else cell
    if not all(side >= 1 for side in sides):
        raise ValueError(f"cell must be of at least 1 pixel; got {cell!r}")


def dyncnn_groups(
    fn: Callable[[Params, jax.Array], Any],
    params: Params,
    frames: jax.Array | jax.ShapeDtypeStruct,
    *,
    cell: int | Sequence[int] | None = None,
) -> tuple[Group, ...]:
    """Lists the convolution groups of a network: `dyncnn` numbers them in this order, from 0.

    A group is a chain of convolutions of stride one with nothing but elementwise work between and
    after them; it ends where a map is pooled, read twice, added to another or returned (DynCNN,
    Figure 4: gp1 to gp5 of VGG16). A convolution of another stride is a group of its own.

    Args:
      fn: `fn(params, frames) -> outputs`.
      params: Its parameters, arrays or shapes.
      frames: `(streams, H, W, C)`, an array or a shape.
      cell: The side of a cell, or one for each group; by default 14 pixels on maps of 512 and
        more, 6 on all others (inferred from the paper's array sizes, Tables 9-11).

    Returns:
      The groups, with their maps' sizes, cells and break-even counts.

    Raises:
      ValueError: A cell below one pixel, or not one for each group.

    >>> same = dict(padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> def fn(kernel, x):
    ...     x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), **same))
    ...     x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), **same))
    ...     return jax.lax.conv_general_dilated(x, kernel, (2, 2), **same)
    >>> dyncnn_groups(fn, jnp.ones((3, 3, 4, 4)), jnp.ones((1, 32, 32, 4)))
    (gp1: 2 convolutions on 32x32, 6x6 cells of 6, heights 10, 8, break-even at 12 cells,
     gp2: 1 convolutions on 16x16, 3x3 cells of 6, heights 13, break-even at 6 cells)
    """
    check_cell(cell)
    return find_groups(plan_for(fn, params, frames), groups=None, cell=cell)
