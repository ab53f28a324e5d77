"""Which inputs an output reads along one spatial axis: receptive fields and their regions."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Region(NamedTuple):
    """A stretch of one axis for each cell of that axis: `[starts[i], starts[i] + size)`.

    Positions are those of the frame-sized array; a stretch may leave it on either side.
    """

    starts: np.ndarray
    size: int

    def inside(self, length: int) -> bool:
        """Whether no stretch leaves `[0, length)`."""
        return bool((self.starts >= 0).all() and (self.starts + self.size <= length).all())

    def offset(self, other: "Region") -> int | None:
        """Where `other` starts within this region, the same for every cell; None if it differs."""
        difference = other.starts - self.starts
        first = int(difference[0])
        fits = first >= 0 and first + other.size <= self.size
        return first if fits and (difference == first).all() else None


def hull(a: Region, b: Region) -> Region | None:
    """The smallest region that holds both; None where they lie differently from cell to cell.

    >>> hull(Region(np.array([0, 4]), 4), Region(np.array([-1, 3]), 6))
    Region(starts=array([-1,  3]), size=6)
    """
    starts = np.minimum(a.starts, b.starts)
    ends = np.maximum(a.starts + a.size, b.starts + b.size)
    region = Region(starts, int((ends - starts).max()))
    fits = region.offset(a) is not None and region.offset(b) is not None
    return region if fits else None


@dataclasses.dataclass(frozen=True)
class Stencil:
    """Output `o` reads inputs `(o * stride - low + k * dilation) / base` that are whole.

    Attributes:
      window: The number of taps.
      stride: The distance of two outputs' windows.
      low: The padding before the first position.
      dilation: The distance of two taps.
      base: The dilation of the input (transposed convolution).
    """

    window: int = 1
    stride: int = 1
    low: int = 0
    dilation: int = 1
    base: int = 1

    @property
    def is_identity(self) -> bool:
        """Whether output `o` reads input `o` and nothing else."""
        return self == Stencil()

    def bounds(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last input that each output position reads."""
        first = positions * self.stride - self.low
        last = first + (self.window - 1) * self.dilation
        return -(-first // self.base), last // self.base

    def high(self, length_in: int, length_out: int) -> int:
        """The padding after the last position that makes `length_out` outputs."""
        reached = (length_out - 1) * self.stride + (self.window - 1) * self.dilation + 1
        return reached - self.low - ((length_in - 1) * self.base + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Output `o` reads inputs `first[o]` to `last[o]`: resizing by any factor.

    Attributes:
      first: The first input of each output, not decreasing.
      last: The last input of each output, not decreasing.
    """

    first: np.ndarray
    last: np.ndarray
    is_identity = False

    def bounds(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last input that each output position reads."""
        index = np.clip(positions, 0, len(self.first) - 1)
        return self.first[index], self.last[index]


ReceptiveField = Stencil | Table


def required(receptive_field: ReceptiveField, region: Region) -> Region:
    """The inputs that a region of outputs reads.

    >>> required(Stencil(window=3, low=1), Region(np.array([0, 4]), 4))
    Region(starts=array([-1,  3]), size=6)
    """
    first, _ = receptive_field.bounds(region.starts)
    _, last = receptive_field.bounds(region.starts + region.size - 1)
    return Region(first, max(1, int((last - first).max()) + 1))


def cells(length: int, cell: int) -> Region:
    """Cuts an axis into cells; the last one is moved back so that none leaves the axis.

    >>> cells(10, 4)
    Region(starts=array([0, 4, 6]), size=4)
    """
    if cell >= length:
        return Region(np.zeros(1, np.int64), length)
    starts = np.minimum(np.arange(-(-length // cell)) * cell, length - cell)
    return Region(starts, cell)


def place(receptive_field: ReceptiveField, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Which inputs lie under each output, whatever else it reads around them.

    Under an output of a convolution of stride s lie the s inputs in the middle of its window.

    Args:
      receptive_field: Of the operation.
      length: How many outputs there are.

    Returns:
      The first and the last of them, `int[length]`; they may leave the axis.

    >>> first, last = place(Stencil(window=3, stride=2, low=1), 3)
    >>> first.tolist(), last.tolist()
    ([0, 2, 4], [1, 3, 5])
    """
    positions = np.arange(length)
    r = receptive_field
    if not isinstance(r, Stencil):
        return r.bounds(positions)
    beyond = max(0, (r.window - 1) * r.dilation + 1 - r.stride)
    first = positions * r.stride - r.low + -(-beyond // 2)
    return first // r.base, (first + r.stride - 1) // r.base
