"""From a camera's frames to a network's input."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from dynvid.ops.letterbox import Letterbox, Placement, letterbox
from dynvid.types import Frames, Output, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How frames become the input that a network was trained on.

    Attributes:
      placement: How a frame is laid into the network's input.
      channel_order: Of the network's input; frames are RGB.
      white: The value that the network's input gives to white, 255 or 1.
      fill: The value of the padding, of 0..255.
      mean: What the network's input has subtracted, by channel, of 0..`white`.
      deviation: What it is divided by then, by channel.
      size: `(height, width)` of the network's input where the model fixes it.
      longest_side: Of that input where the model does not fix its size, in pixels.
      square: Whether it is square then; else it keeps the frame's aspect.
      multiple: What its height and width must be multiples of then.
    """

    placement: Placement
    channel_order: Literal["rgb", "bgr"] = "rgb"
    white: float
    fill: float = 114
    mean: tuple[float, float, float] = (0, 0, 0)
    deviation: tuple[float, float, float] = (1, 1, 1)
    size: tuple[int, int] | None = None
    longest_side: int = 640
    square: bool = False
    multiple: int = 32

    def network_size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of the network's input for frames of a size.

        >>> Preprocessing(placement="centre", white=1).network_size((576, 768))
        (480, 640)
        """
        if self.size is not None:
            return self.size
        if self.square:
            return self.longest_side, self.longest_side
        longest = max(frame_size)
        height, width = (
            -(-side * self.longest_side // (longest * self.multiple)) * self.multiple
            for side in frame_size
        )
        return height, width

    def letterbox(self, frame_size: tuple[int, int]) -> Letterbox:
        """How frames of a size lie in the network's input."""
        size = self.network_size(frame_size)
        return letterbox(frame_size, size, placement=self.placement, fill=self.fill)

    def on_frames(
        self, network: Callable[[Params, jax.Array], Output]
    ) -> Callable[[Params, Frames], Output]:
        """The network as a function of a camera's frames: conversion and resizing inside.

        Args:
          network: `network(params, images)`, what `load_onnx` or `load_yolov5` gives.

        Returns:
          `fn(params, frames)` for uint8 RGB frames `(S, H, W, 3)` of any size, with the network's
          raw outputs, ready for `dynvid.incremental`. It raises ValueError for another shape.

        >>> bgr = Preprocessing(placement="top_left", channel_order="bgr", white=255, size=(2, 2))
        >>> fn = bgr.on_frames(lambda params, images: images)
        >>> fn(None, jnp.full((1, 2, 2, 3), jnp.array([1, 2, 3], jnp.uint8)))[0, 0, 0]
        Array([3., 2., 1.], dtype=float32)
        """

        return lambda params, frames: network(params, self.normalise(self.resize(frames)))

    def resize(self, frames: Frames) -> jax.Array:
        """The first half of `on_frames`: frames laid into the network's input, still RGB of 0..255.

        Args:
          frames: `(S, H, W, 3)` RGB of any size, of 0..255.

        Returns:
          `(S, h, w, 3)` of `network_size((H, W))`: float32, or the frames themselves where they
          have that size already.

        Raises:
          ValueError: The frames have another shape.

        >>> small = Preprocessing(placement="stretch", white=1, size=(1, 2))
        >>> small.resize(jnp.full((1, 2, 4, 3), 51, jnp.uint8)).dtype
        dtype('float32')
        >>> small.resize(jnp.full((1, 1, 2, 3), 51, jnp.uint8)).dtype
        dtype('uint8')
        """
        if frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames must be (S, H, W, 3); got {frames.shape}")
        geometry = self.letterbox((frames.shape[1], frames.shape[2]))
        same = geometry.network_size == geometry.frame_size
        return frames if same else geometry.to_network(frames)

    def normalise(self, images: jax.Array) -> jax.Array:
        """The second half: the network's own channel order, white, mean and deviation.

        Args:
          images: `(S, h, w, 3)` RGB of 0..255: what `resize` returns, or any part of it.

        Returns:
          Same shape, floating.

        >>> unit = Preprocessing(placement="stretch", white=1, mean=(1, 0, 0))
        >>> unit.normalise(jnp.full((1, 1, 1, 3), 255, jnp.uint8)).tolist()
        [[[[0.0, 1.0, 1.0]]]]
        """
        floating = jnp.issubdtype(images.dtype, jnp.floating)
        images = images if floating else images.astype(jnp.float32)
        images = images[..., ::-1] if self.channel_order == "bgr" else images
        images = images if self.white == 255 else images * (self.white / 255)
        images = images - jnp.array(self.mean, images.dtype) if any(self.mean) else images
        if self.deviation != (1, 1, 1):
            images = images / jnp.array(self.deviation, images.dtype)
        return images
