"""How each primitive acts on windows: layouts, receptive fields, masks and evaluation.

A *spatial* value has a stream, a row and a column axis, wherever the model puts them. Inside the
transformation it is carried in canonical order `(streams, rows, columns, *rest)`, so that one rule
serves NHWC and NCHW models. A rule returns a `SpatialOp`, or the reason why there is none: the
operation is then a dense boundary.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.graph.evaluate import constant_fold
from dynvid.graph.macs import band
from dynvid.graph.primitives import ELEMENTWISE
from dynvid.graph.trace import Node, Value
from dynvid.incremental.geometry import ReceptiveField, Region, Stencil, Table
from dynvid.ops import cells, masks


class Layout(NamedTuple):
    """Which axes of a spatial value are its streams, rows and columns."""

    stream: int
    row: int
    column: int

    def rest(self, ndim: int) -> tuple[int, ...]:
        """The other axes, in order."""
        return tuple(axis for axis in range(ndim) if axis not in self)

    def order(self, ndim: int) -> tuple[int, ...]:
        """The permutation that brings a value into canonical order."""
        return (*self, *self.rest(ndim))

    def canonical(self, axis: int, ndim: int) -> int:
        """Where an axis is in canonical order."""
        return self.order(ndim).index(axis)


class Window(NamedTuple):
    """The rows and columns of one value that are at hand, for each cell."""

    rows: Region
    columns: Region


class Context(Protocol):
    """What an operation may ask for while it is evaluated."""

    dense: bool

    def array(self, value: Value) -> jax.Array:
        """A value that does not depend on position: a parameter, a constant, a pooled vector."""
        ...

    def spread(self, value: Value, layout: Layout, out: Window) -> jax.Array:
        """A value without spatial layout, broadcastable to the canonical window `out`."""
        ...

    def cell_constant(self, table: np.ndarray, axis: int) -> jax.Array:
        """The entries of `table`, one for each cell of an axis, that belong to these cells."""
        ...

    def winograd(self, node: Node) -> jax.Array | None:
        """The Winograd weights of a convolution, where the state holds them."""
        ...


Evaluate = Callable[[Context, list[jax.Array], Window, list[Window]], Sequence[jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class SpatialOp:
    """An operation that can run on windows.

    Attributes:
      kind: "move" (no arithmetic), "point" (position by position) or "stencil".
      operands: The spatial values it reads.
      receptive_fields: For each operand, which rows and columns an output position reads.
      layouts: The layout of each output.
      evaluate: `(context, windows, out, ins) -> outputs` on canonical windows.
      fill: What positions outside the frame hold: a number, a scalar value, or None (not read).
      macs: Multiply-accumulates for one output position.
      winograd: Whether it can use Winograd weights.
    """

    kind: str
    operands: tuple[Value, ...]
    receptive_fields: tuple[tuple[ReceptiveField, ReceptiveField], ...]
    layouts: tuple[Layout, ...]
    evaluate: Evaluate
    fill: Any = None
    macs: int = 0
    winograd: bool = False


IDENTITY = (Stencil(), Stencil())

_FLEXIBLE = ("clamp", "select_n")  # take scalars where others need full shapes
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or")
_POOLING = {
    "reduce_window_sum": lax.add,
    "reduce_window_max": lax.max,
    "reduce_window_min": lax.min,
}

Rule = Callable[[Node, dict[Value, Layout]], SpatialOp | str]


def mask_through(
    mask: jax.Array, receptive_field: tuple[ReceptiveField, ReceptiveField], size: tuple[int, int]
) -> jax.Array:
    """A change mask `bool[S, H, W]` through an operation: a marked input marks all its readers.

    >>> mask_through(jnp.eye(3, dtype=bool)[None], (Stencil(), Stencil(window=3)), (3, 1))
    Array([[[ True],
            [ True],
            [ True]]], dtype=bool)
    """
    rows, columns = receptive_field
    if isinstance(rows, Stencil) and isinstance(columns, Stencil):
        if rows.is_identity and columns.is_identity and mask.shape[1:] == size:
            return mask
        pair = (rows, columns)
        highs = [r.high(n, m) for r, n, m in zip(pair, mask.shape[1:], size, strict=True)]
        return masks.stencil(
            mask,
            window=(rows.window, columns.window),
            strides=(rows.stride, columns.stride),
            padding=tuple((r.low, high) for r, high in zip(pair, highs, strict=True)),
            dilation=(rows.dilation, columns.dilation),
            input_dilation=(rows.base, columns.base),
        )
    if isinstance(rows, Table):
        mask = _mask_through_table(mask, rows, 1)
        return mask_through(mask, (Stencil(), columns), (mask.shape[1], size[1]))
    assert isinstance(columns, Table)
    mask = mask_through(mask, (rows, Stencil()), (size[0], mask.shape[2]))
    return _mask_through_table(mask, columns, 2)


def _mask_through_table(mask: jax.Array, table: Table, axis: int) -> jax.Array:
    reads = [
        jnp.take(mask, np.minimum(table.first + k, table.last), axis=axis)
        for k in range(int((table.last - table.first).max()) + 1)
    ]
    out = reads[0]
    for read in reads[1:]:
        out = out | read
    return out


def _spatial(node: Node, layouts: dict[Value, Layout]) -> list[Value]:
    return [value for value in node.inputs if value in layouts]


def _static(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    """An elementwise operation: the same position of every operand."""
    operands = _spatial(node, layouts)
    layout = layouts[operands[0]]
    out = node.outputs[0]
    sizes = [out.shape[axis] for axis in layout]
    for value in operands:
        if layouts[value] != layout:
            return "its operands have different layouts"
        if value.ndim != out.ndim or [value.shape[axis] for axis in layout] != sizes:
            return "an operand is broadcast over rows, columns or streams"

    def evaluate(context, windows, at, _):
        spatial = dict(zip(operands, windows, strict=True))
        arrays = [
            spatial[v] if v in spatial else context.spread(v, layout, at) for v in node.inputs
        ]
        if node.primitive.name in _FLEXIBLE or len(arrays) > 1:
            shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
            arrays = [
                a
                if a.ndim == 0 and node.primitive.name in _FLEXIBLE
                else jnp.broadcast_to(a, shape)
                for a in arrays
            ]
        return node.bind(*arrays)

    return SpatialOp("point", tuple(operands), (IDENTITY,) * len(operands), (layout,), evaluate)


def kernel_order(node: Node, layout: Layout) -> tuple[int, ...]:
    """The axes of a convolution's kernel as (rows, columns, in, out), where its operand lies so."""
    spec = node.params["dimension_numbers"]
    plane = spec.rhs_spec[2:]
    if spec.lhs_spec[2] != layout.row:
        plane = tuple(reversed(plane))
    return (*plane, spec.rhs_spec[1], spec.rhs_spec[0])


def _convolution(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    x, kernel = node.inputs
    if x not in layouts or kernel.frame_dependent:
        return "its kernel depends on the frames"
    p = node.params
    spec = p["dimension_numbers"]
    layout = layouts[x]
    if len(spec.lhs_spec) != 4 or p["batch_group_count"] != 1:
        return "only two-dimensional convolutions without batch groups run on cells"
    batch, _, *plane = spec.lhs_spec
    if batch != layout.stream or set(plane) != {layout.row, layout.column}:
        return "it convolves over other axes than rows and columns"
    turn = (0, 1) if tuple(plane) == (layout.row, layout.column) else (1, 0)
    out_plane = [spec.out_spec[2 + i] for i in turn]
    order = kernel_order(node, layout)
    strides, padding, base, dilation = (
        tuple(p[name][i] for i in turn)
        for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    )
    groups = p["feature_group_count"]
    kh, kw, depth, features = (kernel.shape[axis] for axis in order)
    receptive_field = tuple(
        Stencil(k, s, low, d, b)
        for k, s, (low, _), d, b in zip((kh, kw), strides, padding, dilation, base, strict=True)
    )
    plain = base == (1, 1)

    def evaluate(context, windows, at, ins):
        weights = jnp.transpose(context.array(kernel), order)
        products = {
            "precision": p["precision"],
            "preferred_element_type": p["preferred_element_type"],
        }
        if plain:
            return [
                cells.convolve_windows(
                    windows[0],
                    weights,
                    strides=strides,
                    dilation=dilation,
                    groups=groups,
                    winograd=context.winograd(node),
                    dense=context.dense,
                    **products,
                )
            ]
        pads = []
        for axis, r in enumerate(receptive_field):
            # The first dilated position the window holds, seen from the first one it needs.
            first = ins[0][axis].starts * r.base - (at[axis].starts * r.stride - r.low)
            held = (ins[0][axis].size - 1) * r.base + 1
            needs = (at[axis].size - 1) * r.stride + (r.window - 1) * r.dilation + 1
            pads.append((int(first[0]), int(needs - held - first[0])))
        return [
            lax.conv_general_dilated(
                windows[0],
                weights,
                strides,
                pads,
                lhs_dilation=base,
                rhs_dilation=dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
                **products,
            )
        ]

    return SpatialOp(
        "point" if all(r.is_identity for r in receptive_field) else "stencil",
        (x,),
        ((receptive_field[0], receptive_field[1]),),
        (Layout(spec.out_spec[0], out_plane[0], out_plane[1]),),
        evaluate,
        fill=0,
        macs=kh * kw * depth * features // (base[0] * base[1]),
        winograd=plain
        and cells.winograd_applies(
            (kh, kw, depth, features),
            strides=strides,
            dilation=dilation,
            groups=groups,
            dtype=kernel.dtype,
        ),
    )


def _pooling(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    (x,) = node.inputs
    p, layout = node.params, layouts[x]
    on_rest = any(
        p[name][axis] != unit
        for name, unit in (
            ("window_dimensions", 1),
            ("window_strides", 1),
            ("padding", (0, 0)),
            ("base_dilation", 1),
            ("window_dilation", 1),
        )
        for axis in range(x.ndim)
        if axis not in layout[1:]
    )
    base = [p["base_dilation"][axis] for axis in layout[1:]]
    if base != [1, 1]:
        return "its input is dilated"
    if on_rest:
        return "it pools over other axes than rows and columns"
    receptive_field = tuple(
        Stencil(
            p["window_dimensions"][axis],
            p["window_strides"][axis],
            p["padding"][axis][0],
            p["window_dilation"][axis],
        )
        for axis in layout[1:]
    )
    combine = _POOLING[node.primitive.name]
    fill = 0
    if node.primitive.name != "reduce_window_sum":
        lowest = node.primitive.name == "reduce_window_max"
        fill = _extreme(x.dtype, lowest=lowest)

    def evaluate(context, windows, at, _):
        out = windows[0]
        # Rows, then columns: lax.reduce_window is a slow scalar loop on XLA:CPU.
        for axis, r in enumerate(receptive_field, start=1):
            parts = [
                lax.slice_in_dim(
                    out,
                    k * r.dilation,
                    k * r.dilation + (at[axis - 1].size - 1) * r.stride + 1,
                    r.stride,
                    axis,
                )
                for k in range(r.window)
            ]
            out = parts[0]
            for part in parts[1:]:
                out = combine(out, part)
        return [out]

    return SpatialOp(
        "stencil", (x,), ((receptive_field[0], receptive_field[1]),), (layout,), evaluate, fill=fill
    )


def _extreme(dtype: Any, *, lowest: bool) -> Any:
    """The neutral element of a maximum (lowest) or a minimum."""
    if dtype == jnp.bool_:
        return not lowest
    if jnp.issubdtype(dtype, jnp.inexact):
        return -jnp.inf if lowest else jnp.inf
    limits = jnp.iinfo(dtype)
    return limits.min if lowest else limits.max


def _dot(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    left, right = node.inputs
    p = node.params
    (contract_left, contract_right), (batch, _) = p["dimension_numbers"]
    if batch or (left.frame_dependent and right.frame_dependent):
        return "both factors depend on the frames" if not batch else "it is a batched product"
    first = left in layouts
    x, matrix = (left, right) if first else (right, left)
    mine, other = (contract_left, contract_right) if first else (contract_right, contract_left)
    layout = layouts[x]
    contracted = [axis for axis in layout if axis in mine]
    free = [axis for axis in range(x.ndim) if axis not in mine]
    matrix_free = [axis for axis in range(matrix.ndim) if axis not in other]
    products = {
        "precision": p["precision"],
        "preferred_element_type": p["preferred_element_type"],
    }
    if contracted:
        return _resize(node, x, matrix, mine, other, first, layout, products)
    shift = 0 if first else len(matrix_free)
    out_layout = Layout(*(shift + free.index(axis) for axis in layout))

    def evaluate(context, windows, *_):
        axes = [layout.canonical(axis, x.ndim) for axis in mine]
        out = lax.dot_general(
            windows[0], context.array(matrix), ((axes, other), ((), ())), **products
        )
        if not first and matrix_free:
            kept = out.ndim - len(matrix_free)
            out = jnp.transpose(out, (0, 1, 2, *range(kept, out.ndim), *range(3, kept)))
        return [out]

    columns = math.prod(matrix.shape[axis] for axis in matrix_free)
    rest = math.prod(x.shape[axis] for axis in layout.rest(x.ndim))
    return SpatialOp("point", (x,), (IDENTITY,), (out_layout,), evaluate, macs=rest * columns)


def _resize(node, x, matrix, mine, other, first, layout, products) -> SpatialOp | str:
    """A product with a constant band matrix over rows or columns: bilinear resizing, say."""
    if len(mine) != 1 or matrix.ndim != 2 or mine[0] == layout.stream:
        return "it contracts rows or columns together with other axes"
    weights = constant_fold(matrix)
    if weights is None:
        return "it contracts rows or columns with a matrix that is no constant"
    if other[0] == 1:
        weights = weights.T
    used = weights != 0
    used[0] |= ~used.any(0)  # an output that reads nothing may as well read the first input
    begin = used.argmax(0)
    end = len(used) - 1 - used[::-1].argmax(0)
    if (np.diff(begin) < 0).any() or (np.diff(end) < 0).any():
        return "it contracts rows or columns with a matrix that is no resizing"
    axis = 0 if mine[0] == layout.row else 1
    table = Table(begin, end)
    receptive_field = (table, Stencil()) if axis == 0 else (Stencil(), table)
    free = [a for a in range(x.ndim) if a != mine[0]]
    place = {a: i + (0 if first else 1) for i, a in enumerate(free)}
    place[mine[0]] = len(free) if first else 0
    out_layout = Layout(*(place[a] for a in layout))
    order = layout.rest(x.ndim)
    taps = band(weights)

    def evaluate(context, windows, at, ins):
        region_in, region_out = ins[0][axis], at[axis]
        rows = region_in.starts[:, None] + np.arange(region_in.size)
        columns = region_out.starts[:, None] + np.arange(region_out.size)
        columns = np.clip(columns, 0, weights.shape[1] - 1)
        flat = windows[0].reshape(*windows[0].shape[:3], -1)

        def banded():
            valid = (rows >= 0) & (rows < weights.shape[0])
            clipped = np.clip(rows, 0, weights.shape[0] - 1)
            block = weights[clipped[:, :, None], columns[:, None, :]]
            block = np.where(valid[:, :, None], block, 0).astype(weights.dtype)
            letters = "kiwc,kio->kowc" if axis == 0 else "khic,kio->khoc"
            return jnp.einsum(letters, flat, context.cell_constant(block, axis), **products)

        def tapped():
            read = begin[columns][..., None] + np.arange(taps)
            within = read <= end[columns][..., None]
            read = np.minimum(read, end[columns][..., None])
            weight = np.where(within, weights[read, columns[..., None]], 0).astype(weights.dtype)
            index = np.clip(read - region_in.starts[:, None, None], 0, region_in.size - 1)
            index = context.cell_constant(index.astype(np.int32), axis)
            weight = context.cell_constant(weight, axis)
            take = jax.vmap(lambda window, i: jnp.take(window, i, axis=axis))
            letters = "kotwc,kot->kowc" if axis == 0 else "khotc,kot->khoc"
            return jnp.einsum(letters, take(flat, index), weight, **products)

        # Zero times NaN is NaN: the product would spread one over the window, and what it spoils
        # there is in no change mask.
        out = lax.cond(jnp.isfinite(jnp.sum(flat)), banded, tapped)
        return [out.reshape(*out.shape[:3], *windows[0].shape[3:])]

    del node
    rest = math.prod(x.shape[a] for a in order)
    return SpatialOp(
        "stencil", (x,), (receptive_field,), (out_layout,), evaluate, fill=0, macs=taps * rest
    )


def _transpose(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    (x,) = node.inputs
    permutation = node.params["permutation"]
    layout = layouts[x]
    out_layout = Layout(*(permutation.index(axis) for axis in layout))
    order = [layout.canonical(permutation[a], x.ndim) for a in out_layout.order(x.ndim)]

    def evaluate(context, windows, *_):
        del context
        return [jnp.transpose(windows[0], order)]

    return SpatialOp("move", (x,), (IDENTITY,), (out_layout,), evaluate)


def _broadcast(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    (x,) = node.inputs[:1]
    shape, dims = node.params["shape"], node.params["broadcast_dimensions"]
    layout = layouts[x]
    if any(shape[dims[axis]] != x.shape[axis] for axis in layout):
        return "it repeats rows, columns or streams"
    out_layout = Layout(*(dims[axis] for axis in layout))
    out_rest = out_layout.rest(len(shape))
    source = {dims[axis]: axis for axis in range(x.ndim)}

    def evaluate(context, windows, *_):
        del context
        (window,) = windows
        sizes = [x.shape[source[a]] if a in source else 1 for a in out_rest]
        window = window.reshape(*window.shape[:3], *sizes)
        return [jnp.broadcast_to(window, (*window.shape[:3], *(shape[a] for a in out_rest)))]

    return SpatialOp("move", (x,), (IDENTITY,), (out_layout,), evaluate)


def _squeeze(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    (x,) = node.inputs
    layout, removed = layouts[x], node.params["dimensions"]
    if any(axis in layout for axis in removed):
        return "it removes the streams, rows or columns"
    kept = [axis for axis in range(x.ndim) if axis not in removed]
    out_layout = Layout(*(kept.index(axis) for axis in layout))
    sizes = [x.shape[a] for a in kept if a not in layout]

    def evaluate(context, windows, *_):
        del context
        return [windows[0].reshape(*windows[0].shape[:3], *sizes)]

    return SpatialOp("move", (x,), (IDENTITY,), (out_layout,), evaluate)


def _groups(shape: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pairs the axes of two shapes into the smallest groups of equal product."""
    groups, i, j = [], 0, 0
    while i < len(shape) or j < len(new):
        a, b = [], []
        m = n = 1
        if i < len(shape):
            a.append(i)
            m, i = shape[i], i + 1
        if j < len(new):
            b.append(j)
            n, j = new[j], j + 1
        while m != n:
            if m < n and i < len(shape):
                a.append(i)
                m, i = m * shape[i], i + 1
            elif j < len(new):
                b.append(j)
                n, j = n * new[j], j + 1
            else:
                return []
        groups.append((a, b))
    return groups


def _reshape(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    """Keeps rows and columns, splits them (space to depth) or merges into them (depth to space)."""
    (x,) = node.inputs[:1]
    new = node.params["new_sizes"]
    layout = layouts[x]
    if node.params.get("dimensions") is not None or 0 in x.shape:
        return "it reorders while it reshapes"
    place: dict[int, int] = {}
    # By how much an axis is split (> 1) or merged (< -1), and which axis holds the factor.
    factor: dict[int, tuple[int, int]] = {axis: (1, -1) for axis in layout}
    for a, b in _groups(x.shape, new):
        special = [axis for axis in a if axis in layout]
        if not special:
            continue
        if len(special) > 1 and len(b) != len(a):
            return "it merges streams, rows or columns"
        (axis, *others) = special
        if others:
            return "it merges streams, rows or columns"
        a_big = [k for k in a if x.shape[k] != 1 or k == axis]
        b_big = [k for k in b if new[k] != 1]
        if (
            len(a_big) == 1
            and len(b_big) <= 1
            and new[b_big[0] if b_big else b[0]] == x.shape[axis]
        ):
            place[axis] = b_big[0] if b_big else b[0]
        elif axis != layout.stream and a_big == [axis] and len(b_big) == 2:
            place[axis] = b_big[0]
            factor[axis] = (new[b_big[1]], b_big[1])
        elif axis != layout.stream and a_big[0] == axis and len(a_big) == 2 and len(b_big) == 1:
            place[axis] = b_big[0]
            factor[axis] = (-x.shape[a_big[1]], a_big[1])
        else:
            return "it merges or splits streams, rows or columns with other axes"
    out_layout = Layout(*(place[axis] for axis in layout))
    receptive_field = []
    for axis in layout[1:]:
        f = factor[axis][0]
        if f >= 1:
            receptive_field.append(Stencil(window=f, stride=f))
        else:
            receptive_field.append(Stencil(window=-f, low=-f - 1, base=-f))
    out_rest = out_layout.rest(len(new))
    in_rest = layout.rest(x.ndim)

    def evaluate(context, windows, at, ins):
        del context
        (window,) = windows
        k = window.shape[0]
        # Canonical order with the rows' and columns' factors made explicit, merged ones first.
        sizes = [x.shape[a] for a in in_rest]
        window = window.reshape(*window.shape[:3], *sizes)
        merged = []
        for axis in layout[1:]:
            f, holder = factor[axis]
            merged.append(3 + in_rest.index(holder) if f < 0 else None)
        others = [i for i in range(3, window.ndim) if i not in merged]
        order = [0, 1, *([merged[0]] if merged[0] else []), 2, *([merged[1]] if merged[1] else [])]
        window = jnp.transpose(window, (*order, *others))
        h, w = (region.size for region in ins[0])
        parts = []
        for axis, n in zip(layout[1:], (h, w), strict=True):
            f = factor[axis][0]
            parts.append((n * -f, 1) if f < 0 else (n // f, f))
        left = [sizes[i - 3] for i in others]
        window = window.reshape(k, *parts[0], *parts[1], *left)
        window = jnp.transpose(window, (0, 1, 3, 2, 4, *range(5, window.ndim)))
        # Now (k, h, w, fh, fw, *others): bring the split factors to their place among the rest.
        rows = [factor[layout.row], factor[layout.column]]
        holders = [holder for f, holder in rows if f > 1]
        window = window.reshape(*window.shape[:3], *(f for f, _ in rows if f > 1), *left)
        plain = [a for a in out_rest if a not in holders]
        window = window.reshape(*window.shape[: 3 + len(holders)], *(new[a] for a in plain))
        source = holders + plain
        window = jnp.transpose(window, (0, 1, 2, *(3 + source.index(a) for a in out_rest)))
        for i, axis in enumerate(layout[1:]):
            f = -factor[axis][0]
            if f > 1:
                skip = int(at[i].starts[0] - ins[0][i].starts[0] * f)
                window = lax.slice_in_dim(window, skip, skip + at[i].size, axis=1 + i)
        return [window]

    return SpatialOp(
        "move", (x,), ((receptive_field[0], receptive_field[1]),), (out_layout,), evaluate
    )


def _slice(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    (x,) = node.inputs
    layout, p = layouts[x], node.params
    starts, limits = p["start_indices"], p["limit_indices"]
    strides = p["strides"] or (1,) * x.ndim
    if starts[layout.stream] != 0 or limits[layout.stream] != x.shape[layout.stream]:
        return "it takes some of the streams"
    if strides[layout.stream] != 1:
        return "it takes some of the streams"
    receptive_field = tuple(Stencil(1, strides[axis], -starts[axis]) for axis in layout[1:])
    rest = layout.rest(x.ndim)

    def evaluate(context, windows, at, _):
        del context
        (window,) = windows
        index = [slice(None)]
        for region, r in zip(at, receptive_field, strict=True):
            index.append(slice(0, (region.size - 1) * r.stride + 1, r.stride))
        index += [slice(starts[a], limits[a], strides[a]) for a in rest]
        return [window[tuple(index)]]

    return SpatialOp("move", (x,), ((receptive_field[0], receptive_field[1]),), (layout,), evaluate)


def _pad(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    x, value = node.inputs
    if x not in layouts or value.frame_dependent:
        return "its padding depends on the frames"
    layout, config = layouts[x], node.params["padding_config"]
    if config[layout.stream] != (0, 0, 0) or any(config[axis][2] for axis in layout[1:]):
        return "it pads streams, or between rows or columns"
    receptive_field = tuple(Stencil(low=config[axis][0]) for axis in layout[1:])
    rest = [config[axis] for axis in layout.rest(x.ndim)]

    def evaluate(context, windows, *_):
        (window,) = windows
        if any(c != (0, 0, 0) for c in rest):
            window = lax.pad(window, context.array(value), [(0, 0, 0)] * 3 + rest)
        return [window]

    return SpatialOp(
        "move", (x,), ((receptive_field[0], receptive_field[1]),), (layout,), evaluate, fill=value
    )


def _concatenate(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    operands = _spatial(node, layouts)
    layout, axis = layouts[operands[0]], node.params["dimension"]
    if axis in layout:
        return "it concatenates streams, rows or columns"
    if any(layouts[value] != layout for value in operands):
        return "its operands have different layouts"

    def evaluate(context, windows, at, _):
        spatial = dict(zip(operands, windows, strict=True))
        shape = windows[0].shape[:3]
        parts = []
        for v in node.inputs:
            if v in spatial:
                parts.append(spatial[v])
            else:
                rest = tuple(v.shape[a] for a in layout.rest(v.ndim))
                parts.append(jnp.broadcast_to(context.spread(v, layout, at), (*shape, *rest)))
        return [jnp.concatenate(parts, axis=layout.canonical(axis, node.outputs[0].ndim))]

    return SpatialOp("move", tuple(operands), (IDENTITY,) * len(operands), (layout,), evaluate)


def _split(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    (x,) = node.inputs
    layout, axis = layouts[x], node.params["axis"]
    if axis in layout:
        return "it splits streams, rows or columns"
    ends = np.cumsum([int(n) for n in node.params["sizes"]])[:-1]

    def evaluate(context, windows, *_):
        del context
        return jnp.split(windows[0], ends, axis=layout.canonical(axis, x.ndim))

    return SpatialOp("move", (x,), (IDENTITY,), (layout,) * len(node.outputs), evaluate)


def _gather(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    """Taking constant positions along one axis: nearest-neighbour resizing, channel shuffles."""
    x, indices = node.inputs
    if x not in layouts or indices.frame_dependent:
        return "its indices depend on the frames"
    layout, numbers = layouts[x], node.params["dimension_numbers"]
    sizes, table = node.params["slice_sizes"], constant_fold(indices)
    if table is None:
        return "its indices are no constants"
    axes = numbers.collapsed_slice_dims
    whole = [a for a in range(x.ndim) if sizes[a] == x.shape[a] and a not in axes]
    if (
        len(axes) != 1
        or numbers.start_index_map != axes
        or numbers.operand_batching_dims
        or table.ndim != 2
        or len(whole) != x.ndim - 1
        or axes[0] == layout.stream
    ):
        return "it does not take whole positions along one axis"
    (axis,) = axes
    index = table[:, 0].astype(np.int64)
    if (index < 0).any() or (index >= x.shape[axis]).any():
        return "it takes positions outside the array"
    place = next(a for a in range(x.ndim) if a not in numbers.offset_dims)
    out_axes = dict(zip(whole, numbers.offset_dims, strict=True)) | {axis: place}
    out_layout = Layout(*(out_axes[a] for a in layout))
    if axis in layout:
        if (np.diff(index) < 0).any():
            return "it reorders rows or columns"
        steps = Table(index, index)
        which = layout.index(axis) - 1
        receptive_field = (steps, Stencil()) if which == 0 else (Stencil(), steps)

        def evaluate_table(context, windows, at, ins):
            positions = at[which].starts[:, None] + np.arange(at[which].size)
            read = index[np.clip(positions, 0, len(index) - 1)] - ins[0][which].starts[:, None]
            if (read == read[0]).all():
                return [jnp.take(windows[0], read[0], axis=1 + which)]
            per_cell = context.cell_constant(read.astype(np.int32), which)
            take = jax.vmap(lambda window, i: jnp.take(window, i, axis=which))
            return [take(windows[0], per_cell)]

        return SpatialOp("move", (x,), (receptive_field,), (out_layout,), evaluate_table)
    in_rest, out_rest = layout.rest(x.ndim), out_layout.rest(x.ndim)
    moved = {out_axes[a]: a for a in in_rest}
    order = (0, 1, 2, *(3 + in_rest.index(moved[a]) for a in out_rest))

    def evaluate(context, windows, *_):
        del context
        taken = jnp.take(windows[0], index, axis=layout.canonical(axis, x.ndim))
        return [jnp.transpose(taken, order)]

    return SpatialOp("move", (x,), (IDENTITY,), (out_layout,), evaluate)


def _along_rest(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    """Reductions, sorting and the like over axes that are not streams, rows or columns."""
    operands = _spatial(node, layouts)
    if len(operands) != len(node.inputs):
        return "some of its operands do not depend on the frames"
    x = operands[0]
    layout = layouts[x]
    name = next(k for k in ("axes", "axis", "dimension", "dimensions") if k in node.params)
    given = node.params[name]
    axes = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if any(axis in layout for axis in axes):
        return "it works across streams, rows or columns"
    if any(layouts[value] != layout for value in operands):
        return "its operands have different layouts"
    reduced = axes if node.outputs[0].ndim < x.ndim else ()
    kept = [axis for axis in range(x.ndim) if axis not in reduced]
    out_layout = Layout(*(kept.index(axis) for axis in layout))
    canonical = tuple(layout.canonical(axis, x.ndim) for axis in axes)
    params = dict(node.params)
    params[name] = canonical if isinstance(given, (tuple, list)) else canonical[0]
    moved = dataclasses.replace(node, params=params)

    def evaluate(context, windows, *_):
        del context
        return moved.bind(*windows)

    return SpatialOp(
        "point",
        tuple(operands),
        (IDENTITY,) * len(operands),
        (out_layout,) * len(node.outputs),
        evaluate,
    )


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _static),
    **dict.fromkeys(_POOLING, _pooling),
    **dict.fromkeys(_REDUCTIONS, _along_rest),
    **dict.fromkeys(
        ("argmax", "argmin", "cumsum", "cumprod", "cummax", "cummin", "rev", "sort"), _along_rest
    ),
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "slice": _slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "split": _split,
    "gather": _gather,
}


def spatial_op(node: Node, layouts: dict[Value, Layout]) -> SpatialOp | str:
    """The rule for an operation, or the reason why it is a dense boundary."""
    rule = RULES.get(node.primitive.name)
    if rule is None:
        return "there is no rule for this primitive"
    if not _spatial(node, layouts):
        return "it reads nothing that has rows and columns"
    return rule(node, layouts)
