"""What `incremental` makes of a function, operation by operation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
from rich.console import Console
from rich.table import Table

from dynvid.graph.macs import node_macs
from dynvid.graph.trace import Node, Value
from dynvid.incremental.plan import Plan, Segment
from dynvid.incremental.transform import plan_for
from dynvid.types import Params

Mode = Literal["incremental", "deferred", "dense", "fixed"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One operation.

    Attributes:
      operation: The JAX primitive.
      shape: The shape of its first output.
      mode: "incremental" (runs on cells), "deferred" (no arithmetic: evaluated where it is read),
        "dense" (computed in full where anything it reads changed) or "fixed" (does not depend on
        the frames).
      layer: The segment or boundary that it belongs to, a name for `truncation`.
      macs: Multiply-accumulates on one whole frame.
      note: Why it is dense, or the cell and what ends the segment.
      everywhere: Whether it runs on cells but reads something of the whole picture, such as a mean:
        where that moves, all of them run.
    """

    operation: str
    shape: tuple[int, ...]
    mode: Mode
    layer: str
    macs: int
    note: str
    everywhere: bool = False


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The table that `explain` returns; prints as text.

    Attributes:
      rows: One for each operation, in order of execution.
      layers: The names that `truncation` may map, in order of execution.
    """

    rows: tuple[Row, ...]
    layers: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one whole frame."""
        return sum(row.macs for row in self.rows)

    @property
    def incremental_macs(self) -> int:
        """The part of them that can run on cells."""
        return sum(row.macs for row in self.rows if row.mode == "incremental")

    @property
    def everywhere_macs(self) -> int:
        """The part of these that any change makes run as a whole, where nothing is held back."""
        return sum(row.macs for row in self.rows if row.mode == "incremental" and row.everywhere)

    def table(self) -> Table:
        """The rows as a rich table."""
        share = self.incremental_macs / self.macs if self.macs else 0.0
        caption = f"{self.macs / 1e9:.3f} GMACs a frame, {share:.1%} of them incremental"
        if self.everywhere_macs:
            caption += (
                f"; {self.everywhere_macs / self.macs:.1%} come after a statistic of the whole "
                "picture (marked *): any change computes them anew, unless truncation holds the "
                "statistic back"
            )
        table = Table(caption=caption, caption_justify="left")
        for name, justify in (
            ("operation", "left"),
            ("shape", "left"),
            ("mode", "left"),
            ("layer", "left"),
            ("MMACs", "right"),
            ("note", "left"),
        ):
            table.add_column(name, justify=justify, no_wrap=name != "note")  # type: ignore[arg-type]
        styles = {"incremental": "green", "dense": "red", "deferred": "cyan", "fixed": "dim"}
        for row in self.rows:
            table.add_row(
                row.operation,
                "x".join(map(str, row.shape)),
                f"[{styles[row.mode]}]{row.mode}[/]{'*' * row.everywhere}",
                row.layer,
                f"{row.macs / 1e6:,.2f}" if row.macs else "",
                row.note,
            )
        return table

    def __str__(self) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()

    __repr__ = __str__


def explain(
    fn: Callable[[Params, jax.Array], Any],
    params: Params,
    frames: jax.Array | jax.ShapeDtypeStruct,
    *,
    cell: int | None = None,
) -> Explanation:
    """Says, operation by operation, what `incremental(fn)` runs on cells, and what densely and why.

    Args:
      fn: `fn(params, frames) -> outputs`.
      params: Its parameters, arrays or shapes.
      frames: Frames `(streams, H, W, C)`, an array or a shape.
      cell: As in `incremental`.

    Returns:
      A table that prints; its `layers` are the names that `truncation` takes.

    Raises:
      ValueError: As `incremental`.

    >>> import jax.numpy as jnp
    >>> print(explain(lambda gain, x: jnp.tanh(x * gain).mean((1, 2)), jnp.ones(()),
    ...     jnp.ones((1, 8, 8, 3))).rows[-2].note)
    it works across streams, rows or columns
    """
    plan = plan_for(fn, params, frames, cell=cell)
    where = {node: unit for unit in plan.units for node in unit.nodes}
    after = _after_statistics(plan)
    rows = tuple(
        dataclasses.replace(_row(plan, node, where.get(node)), everywhere=node in after)
        for node in plan.graph.nodes
    )
    return Explanation(rows, tuple(unit.name for unit in plan.units))


def _after_statistics(plan: Plan) -> set[Node]:
    """The operations on maps that read what depends on the frames but has no rows and columns."""
    found: set[Node] = set()
    moved: set[Value] = set()
    for node in plan.graph.nodes:
        reads = [value for value in node.inputs if value.frame_dependent]
        if any(value in moved or value not in plan.layouts for value in reads):
            moved.update(value for value in node.outputs if value in plan.layouts)
            found.update([node] if moved.intersection(node.outputs) else [])
    return found


def _row(plan: Plan, node: Node, unit: Any) -> Row:
    shape = node.outputs[0].shape
    macs = node_macs(node) // plan.graph.frames.shape[0]
    mode: Mode
    if not any(value.frame_dependent for value in node.inputs):
        mode, macs, note = "fixed", 0, ""
    elif node in plan.reasons:
        mode, note = "dense", plan.reasons[node]
        if node.primitive.name == "while" and macs:
            note += "; one turn of it is counted, nobody knows how many it takes"
    elif unit is None:
        mode, note = "deferred", ""
    else:
        mode, note = "incremental", ""
        if isinstance(unit, Segment):
            if unit.on_pixels is not None:
                note = f"positions of {unit.grid[0]}x{unit.grid[1]} by the CPU kernel"
            elif unit.on_cells is None:
                mode, note = "dense", "its cells would be as large as the frame"
            else:
                note = f"cells of {unit.cell[0]}x{unit.cell[1]} in {unit.grid[0]}x{unit.grid[1]}"
    return Row(node.primitive.name, shape, mode, "" if unit is None else unit.name, macs, note)
