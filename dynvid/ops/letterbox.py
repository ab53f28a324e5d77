"""How frames of one size lie in an input of another: the only place that computes it."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.ops.boxes import Detections
from dynvid.types import Frames

Placement = Literal["top_left", "centre", "stretch"]
"""Where a frame lies in the network's input; `stretch` fills it and gives up the aspect."""


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """How frames of one size lie in a network's input of another, made by `letterbox`.

    Attributes:
      frame_size: (height, width) of a frame, in pixels.
      network_size: (height, width) of the network's input.
      resized: (height, width) of the frame once it is resized.
      top: Rows of filling above it.
      left: Columns of filling left of it.
      fill: The value around it, in the frame's unit.
    """

    frame_size: tuple[int, int]
    network_size: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    fill: float

    def to_network(self, frames: Frames) -> jax.Array:
        """Resizes and pads frames: bilinear between pixel centres, without antialiasing.

        Args:
          frames: `(S, H, W, C)` of `frame_size`; integers are converted to float32.

        Returns:
          `(S, *network_size, C)` floating, in the frame's unit.

        Raises:
          ValueError: The frames have another size.

        Exact when the sizes are equal: then nothing is done.

        >>> box = letterbox((2, 4), (4, 4), placement="centre", fill=9)
        >>> box.to_network(jnp.ones((1, 2, 4, 1)))[0, :, :, 0]
        Array([[9., 9., 9., 9.],
               [1., 1., 1., 1.],
               [1., 1., 1., 1.],
               [9., 9., 9., 9.]], dtype=float32)
        """
        if frames.ndim != 4 or tuple(frames.shape[1:3]) != self.frame_size:
            raise ValueError(
                f"frames must be (S, {self.frame_size[0]}, {self.frame_size[1]}, C); "
                f"got {frames.shape}"
            )
        x = frames if jnp.issubdtype(frames.dtype, jnp.floating) else frames.astype(jnp.float32)
        if self.resized != self.frame_size:
            shape = (x.shape[0], *self.resized, x.shape[3])
            x = jax.image.resize(x, shape, "bilinear", antialias=False)
        if self.resized != self.network_size:
            bottom = self.network_size[0] - self.resized[0] - self.top
            right = self.network_size[1] - self.resized[1] - self.left
            padding = ((0, 0), (self.top, bottom), (self.left, right), (0, 0))
            x = jnp.pad(x, padding, constant_values=self.fill)
        return x

    def mask_to_network(self, mask: jax.Array) -> jax.Array:
        """Marks every pixel of the network's input that a marked pixel of the frame lies in.

        Args:
          mask: `bool[S, H, W]` of `frame_size`.

        Returns:
          `bool[S, *network_size]`; what is filled is not marked.

        Raises:
          ValueError: The mask has another size, or is not boolean.

        >>> box = letterbox((4, 4), (2, 4))
        >>> box.mask_to_network(jnp.zeros((1, 4, 4), bool).at[0, 3, 3].set(True)).astype(int)
        Array([[[0, 0, 0, 0],
                [0, 1, 0, 0]]], dtype=int32)
        """
        if mask.dtype != bool or mask.ndim != 3 or tuple(mask.shape[1:]) != self.frame_size:
            raise ValueError(
                f"mask must be bool(S, {self.frame_size[0]}, {self.frame_size[1]}); "
                f"got {mask.dtype}{list(mask.shape)}"
            )
        if self.network_size == self.frame_size:
            return mask
        rows, columns = (
            _touched(frame, resized, start, network)
            for frame, resized, start, network in zip(
                self.frame_size, self.resized, (self.top, self.left), self.network_size, strict=True
            )
        )
        counts = jnp.asarray(rows) @ mask.astype(jnp.float32) @ jnp.asarray(columns.T)
        return counts > 0

    def window(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Where the frame lies in a map of the network's input: (top, left, height, width).

        Args:
          size: (height, width) of the map, which covers the whole input.

        Returns:
          In pixels of the map, from edge to edge.

        >>> letterbox((2, 4), (4, 4), placement="centre").window((8, 8))
        (2.0, 0.0, 4.0, 8.0)
        """
        tall, wide = size[0] / self.network_size[0], size[1] / self.network_size[1]
        top, left = self.top * tall, self.left * wide
        return top, left, self.resized[0] * tall, self.resized[1] * wide

    def to_frame(self, detections: Detections) -> Detections:
        """Detections with their boxes in pixels of the frame, clipped to it.

        >>> box = letterbox((20, 40), (10, 10))
        >>> one = Detections(
        ...     jnp.array([[[1.0, 1.0, 5.0, 9.0]]]), jnp.ones((1, 1)), jnp.zeros((1, 1), int),
        ...     jnp.ones((1, 1), bool),
        ... )
        >>> box.to_frame(one).boxes
        Array([[[ 4.,  4., 20., 20.]]], dtype=float32)
        """
        (height, width), (rows, columns) = self.frame_size, self.resized
        offset = jnp.array([self.left, self.top] * 2, jnp.float32)
        scale = jnp.array([width / columns, height / rows] * 2, jnp.float32)
        limit = jnp.array([width, height] * 2, jnp.float32)
        boxes = jnp.clip((detections.boxes - offset) * scale, 0, limit)
        return detections._replace(boxes=jnp.where(detections.valid[..., None], boxes, 0))


def _touched(frame: int, resized: int, start: int, network: int) -> np.ndarray:
    """Which pixels of the network's input each pixel of a frame lies in, along one axis: 0 or 1."""
    first = np.arange(frame) * resized // frame
    last = -(-(np.arange(frame) + 1) * resized // frame) - 1
    pixel = np.arange(network)[:, None] - start
    return ((first <= pixel) & (pixel <= last)).astype(np.float32)


def letterbox(
    frame_size: tuple[int, int],
    network_size: tuple[int, int],
    *,
    placement: Placement = "top_left",
    fill: float = 114,
) -> Letterbox:
    """The largest copy of a frame that fits a network's input with its aspect kept.

    Args:
      frame_size: (height, width) of the frames, in pixels.
      network_size: (height, width) of the network's input.
      placement: `top_left` as YOLOX, `centre` as YOLOv5, `stretch` to fill the input.
      fill: The value around the frame, in the frame's unit.

    Returns:
      The geometry: `to_network` for frames, `to_frame` for boxes.

    Raises:
      ValueError: A size is not positive.

    >>> letterbox((576, 768), (416, 416)).resized
    (312, 416)
    """
    if min(*frame_size, *network_size) < 1:
        raise ValueError(f"sizes must be positive; got {frame_size} and {network_size}")
    (height, width), (rows, columns) = frame_size, network_size
    if placement == "stretch":
        resized = (rows, columns)
    elif rows * width < columns * height:  # the height decides; in integers, so nothing is lost
        resized = (rows, max(width * rows // height, 1))
    else:
        resized = (max(height * columns // width, 1), columns)
    centred = placement == "centre"
    top = (rows - resized[0]) // 2 if centred else 0
    left = (columns - resized[1]) // 2 if centred else 0
    return Letterbox((height, width), (rows, columns), resized, top, left, fill)
