"""Pixel programs: what a masked convolution computes of one position, and what it writes there.

A program is a list of steps, each of which makes one value, a vector of channels at the position: a
product of a window of stored maps with weights, a maximum over a window, or a formula of what is at
hand at the position. It says nothing of a device: `xla.update_pixels` is what it means.
"""

import dataclasses
import math
from typing import Literal, NamedTuple


class Steps(NamedTuple):
    """Where a window begins along one axis: `(position * stride + offset) // repeat`.

    >>> Steps(2, -1).first(3), Steps(repeat=2).first(3)
    (5, 1)
    """

    stride: int = 1
    offset: int = 0
    repeat: int = 1

    def first(self, position):
        """The first row or column of the window of an output position."""
        return (position * self.stride + self.offset) // self.repeat


class Part(NamedTuple):
    """Channels that a product reads, side by side with those of other parts.

    Attributes:
      source: The number of a stored map; of the value of an earlier step where `computed`.
      computed: Whether it is such a value, which is there at the very position alone.
      channel: The first of its channels that is read.
      channels: How many are.
      rows: Where the window begins in the map without its halo.
      columns: Likewise.
    """

    source: int
    computed: bool
    channel: int
    channels: int
    rows: Steps = Steps()
    columns: Steps = Steps()


class Product(NamedTuple):
    """A step that joins a window.

    Attributes:
      kind: "dense", a convolution: every output channel reads every channel of every part;
        "depthwise", where each reads its own; "maximum", which has no weights and takes positions
        outside the map for minus infinity.
      parts: What it reads; one alone where it is not dense.
      features: Its output channels.
      window: Rows and columns of the window.
      dilation: Between its taps.
      weights: The number of its weights.
    """

    kind: Literal["dense", "depthwise", "maximum"]
    parts: tuple[Part, ...]
    features: int
    window: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    weights: int = -1

    @property
    def macs(self) -> int:
        """Multiply-accumulates at one position."""
        channels = sum(part.channels for part in self.parts) if self.kind == "dense" else 1
        taps = math.prod(self.window) if self.kind != "maximum" else 0
        return taps * channels * self.features


class Leaf(NamedTuple):
    """What a formula reads.

    Attributes:
      kind: "value" of an earlier step, "map" at the very position, "vector" of channels, `(1, C)`
        or `(S, C)`, "number".
      index: The number of the value, stored map or vector.
      number: The number itself.
      channel: The first channel of a map that is read.
      channels: How many channels a map or vector is read at.
      rows: Which row of a map is read.
      columns: Which column.
    """

    kind: Literal["value", "map", "vector", "number"]
    index: int = 0
    number: float = 0.0
    channel: int = 0
    channels: int = 0
    rows: Steps = Steps()
    columns: Steps = Steps()


class Instruction(NamedTuple):
    """One operation of a formula, named as JAX names its primitive.

    Attributes:
      name: One of `FORMULA_OPERATIONS`.
      operands: Numbers of leaves, and beyond those of earlier instructions.
      exponent: Of `integer_pow`.
    """

    name: str
    operands: tuple[int, ...]
    exponent: int = 0


class Formula(NamedTuple):
    """A step that computes each channel from the same channel of its leaves.

    Attributes:
      leaves: What it reads.
      code: Its operations; the last one's result is the value, or the first leaf where none is.
      features: Its channels.
    """

    leaves: tuple[Leaf, ...]
    code: tuple[Instruction, ...]
    features: int


FORMULA_OPERATIONS: dict[str, int] = {
    **dict.fromkeys(("abs", "exp", "integer_pow", "logistic", "neg", "rsqrt", "sqrt", "square"), 1),
    **dict.fromkeys(("floor", "tanh"), 1),
    **dict.fromkeys(("add", "div", "max", "min", "mul", "sub"), 2),
    **dict.fromkeys(("eq", "ge", "gt", "le", "lt", "ne"), 2),
    **dict.fromkeys(("clamp", "select_n"), 3),
}
"""What formulas may be made of, and how many operands each operation takes."""


class Output(NamedTuple):
    """A value that is kept.

    Attributes:
      value: The number of the step that makes it.
      compared: Whether it replaces what is kept only where it is marked and moved beyond a
        tolerance; else it is written at every position that is computed.
    """

    value: int
    compared: bool


class Source(NamedTuple):
    """A stored map: `(S, H + halo, W + halo, C)`.

    Attributes:
      shape: Rows, columns and channels without the halo.
      origin: How many rows and columns of halo lie before it.
      stored: Rows and columns with the halo.
    """

    shape: tuple[int, int, int]
    origin: tuple[int, int]
    stored: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PixelProgram:
    """What is computed of each active position of a grid.

    Attributes:
      grid: Rows and columns.
      sources: The stored maps that it reads.
      steps: What it computes, in order.
      outputs: What it keeps, with where each lies in memory.
      places: The stored map of each output.
      cell: Rows and columns of the cells, cut from the first position on, that are compared as a
        whole: where one marked position of a cell moved, all its marked positions are replaced.
        At most 4 positions, sides a power of two.

    Raises:
      ValueError: Another size of cells.
    """

    grid: tuple[int, int]
    sources: tuple[Source, ...]
    steps: tuple[Product | Formula, ...]
    outputs: tuple[Output, ...]
    places: tuple[Source, ...]
    cell: tuple[int, int] = (1, 1)

    def __post_init__(self):
        if any(side not in (1, 2, 4) for side in self.cell) or math.prod(self.cell) > 4:
            raise ValueError(
                f"cell must be sides of 1, 2 or 4, at most 4 together; got {self.cell}"
            )

    @property
    def macs(self) -> int:
        """Multiply-accumulates at one position."""
        return sum(step.macs for step in self.steps if isinstance(step, Product))
