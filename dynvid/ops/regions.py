"""Regions of a frame: division with overlap, and stitching in any order (DVSNet, 3.1)."""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class RegionPaths(NamedTuple):
    """Which way each region went.

    Attributes:
      boxes: `(S, regions, 4)` float32 (x0, y0, x1, y1), each region without its overlap, pixels.
      scores: `(S, regions)` float32, what the policy compared with its threshold.
      segmented: `(S, regions)` bool, whether the region was computed anew; else it was warped.
    """

    boxes: jax.Array
    scores: jax.Array
    segmented: jax.Array


@dataclasses.dataclass(frozen=True)
class Regions:
    """How frames of a size are divided, made by `divide_frame`; regions go row by row.

    Attributes:
      frame_size: (height, width) of the frames, in pixels.
      grid: (rows, columns) of regions.
      size: (height, width) of every region.
      tops: The first row of each row of regions.
      lefts: The first column of each column of regions.
      cuts: Where frames would be cut without overlap: `(rows - 1, columns - 1)` positions.
    """

    frame_size: tuple[int, int]
    grid: tuple[int, int]
    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    cuts: tuple[tuple[int, ...], tuple[int, ...]]

    def __len__(self) -> int:
        """How many regions there are."""
        return self.grid[0] * self.grid[1]

    @property
    def corners(self) -> list[tuple[int, int]]:
        """The (top, left) pixel of each region."""
        return list(itertools.product(self.tops, self.lefts))

    @property
    def parts(self) -> list[tuple[int, int, int, int]]:
        """Each region without its overlap, (x0, y0, x1, y1) in pixels.

        >>> divide_frame((4, 6), grid=(1, 2), overlap=1).parts
        [(0, 0, 3, 4), (3, 0, 6, 4)]
        """
        (height, width), (above, before) = self.frame_size, self.cuts
        rows = list(itertools.pairwise((0, *above, height)))
        columns = list(itertools.pairwise((0, *before, width)))
        return [(x0, y0, x1, y1) for (y0, y1), (x0, x1) in itertools.product(rows, columns)]

    def divide(self, frames: jax.Array) -> jax.Array:
        """Cuts the regions out of frames.

        Args:
          frames: `(S, H, W, ...)` of `frame_size`.

        Returns:
          `(S, regions, h, w, ...)`.

        Raises:
          ValueError: The frames have another size.

        >>> halves = divide_frame((2, 8), grid=(1, 2), overlap=1)
        >>> halves.divide(jnp.arange(16).reshape(1, 2, 8))[0, :, 0].tolist()
        [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]]
        """
        if frames.ndim < 3 or tuple(frames.shape[1:3]) != self.frame_size:
            raise ValueError(
                f"frames must be (S, {self.frame_size[0]}, {self.frame_size[1]}, ...); "
                f"got {frames.shape}"
            )
        height, width = self.size
        return jnp.stack(
            [frames[:, y : y + height, x : x + width] for y, x in self.corners], axis=1
        )

    def stitch(self, labels: jax.Array, scores: jax.Array) -> jax.Array:
        """Joins what each region says into frames: where they overlap, the surest region speaks.

        At every pixel the label of the region whose winning score is largest; of equal ones the
        region of lower index. DVSNet 3.1 leaves this open and the published code depends on the
        order of pasting; this does not.

        Args:
          labels: `(S, regions, h, w)`, the class of each pixel of each region.
          scores: `(S, regions, h, w)` floating, the score (logit) with which that class won.

        Returns:
          `(S, H, W)` labels.

        Raises:
          ValueError: The shapes do not fit these regions or each other.

        >>> halves = divide_frame((1, 4), grid=(1, 2), overlap=1)
        >>> labels = jnp.array([[[[1, 1, 1]], [[2, 2, 2]]]])
        >>> halves.stitch(labels, jnp.array([[[[5.0, 5.0, 0.0]], [[5.0, 1.0, 1.0]]]])).tolist()
        [[[1, 1, 2, 2]]]
        """
        expected = (len(self), *self.size)
        if labels.shape[1:] != expected or labels.shape != scores.shape:
            raise ValueError(
                f"labels and scores must be (S, {', '.join(map(str, expected))}); "
                f"got {labels.shape} and {scores.shape}"
            )
        streams, (height, width) = labels.shape[0], self.size
        best = jnp.full((streams, *self.frame_size), -jnp.inf, scores.dtype)
        joined = jnp.zeros(best.shape, labels.dtype)
        covered = np.zeros(self.frame_size, bool)
        for region, (y, x) in enumerate(self.corners):
            window = (slice(None), slice(y, y + height), slice(x, x + width))
            # The first region of a pixel has its say even where its score is no number.
            surer = (scores[:, region] > best[window]) | ~covered[window[1:]]
            covered[window[1:]] = True
            joined = joined.at[window].set(jnp.where(surer, labels[:, region], joined[window]))
            best = best.at[window].set(jnp.where(surer, scores[:, region], best[window]))
        return joined


def divide_frame(
    frame_size: tuple[int, int],
    *,
    grid: tuple[int, int] = (2, 2),
    overlap: int = 0,
    multiple: int = 1,
) -> Regions:
    """Divides frames into regions that reach `overlap` pixels beyond every cut (DVSNet, 3.1).

    Frames are cut into `grid` equal parts, and each region is its part with `overlap` pixels more
    on every side that is a cut. All regions have one size, so that they go through a network
    together: with three or more in a row, those at the border reach as far inwards as the ones
    between them do to both sides. With an overlap of 64, four regions of 1024x2048 are 576x1088 and
    share bands of 128.

    Args:
      frame_size: (height, width) of the frames, in pixels.
      grid: (rows, columns) of regions: (1, 1) whole frames, (1, 2) left and right half.
      overlap: How far a region reaches beyond a cut, pixels.
      multiple: What a region's sides are rounded up to where the frame has room, and the overlap
        must be a multiple of: the stride of the networks that read them.

    Returns:
      The division: `divide` for frames, `stitch` for results.

    Raises:
      ValueError: The grid has no region or more than the frame has room for, the overlap is
        negative or no multiple of `multiple`, or a region with its overlap is larger than the
        frame.

    >>> divide_frame((1024, 2048), overlap=64).size
    (576, 1088)
    >>> divide_frame((90, 90), grid=(3, 3), overlap=4).tops
    (0, 26, 52)
    """
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(f"grid must be (rows, columns) of at least 1; got {grid}")
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1; got {multiple}")
    if overlap < 0 or overlap % multiple:
        raise ValueError(
            f"overlap must be a multiple of {multiple} pixels, at least 0; got {overlap}"
        )
    height, tops, above = _along("high", frame_size[0], rows, overlap, multiple)
    width, lefts, before = _along("wide", frame_size[1], columns, overlap, multiple)
    return Regions(
        (frame_size[0], frame_size[1]), (rows, columns), (height, width), tops, lefts,
        (above, before),
    )  # fmt: skip


def _along(
    word: str, side: int, count: int, overlap: int, multiple: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The side of the regions, their first pixels and the cuts, along one axis."""
    cuts = tuple(side * i // count for i in range(count + 1))
    longest = max(b - a for a, b in itertools.pairwise(cuts))
    size = longest + min(count - 1, 2) * overlap
    if longest < 1 or min(b - a for a, b in itertools.pairwise(cuts)) < 1 or size > side:
        raise ValueError(
            f"frame_size must have room for {count} regions of {longest} pixels and an overlap of "
            f"{overlap}; got frames {side} {word}"
        )
    size = min(-(-size // multiple) * multiple, side)
    # Each region is centred on its part, as far as the frame allows.
    starts = tuple(
        min(max((a + b - size) // 2, 0), side - size) for a, b in itertools.pairwise(cuts)
    )
    return size, starts, cuts[1:-1]
