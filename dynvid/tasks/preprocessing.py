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
      placement: how a frame is laid into the network's input.
      channel_order: of the network's input; frames are RGB.
      white: the value that the network's input gives to white, 255 or 1.
      fill: the value of the padding, of 0..255.
      mean: what the network's input has subtracted, by channel, of 0..`white`.
      longest_side: of the network's input where the model does not fix its size, in pixels.
      square: whether that input is square; else it keeps the frame's aspect.
      multiple: what height and width of the input must be multiples of.
    """

    placement: Placement
    channel_order: Literal["rgb", "bgr"]
    white: float
    fill: float = 114
    mean: tuple[float, float, float] = (0, 0, 0)
    longest_side: int = 640
    square: bool = False
    multiple: int = 32

    def network_size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of the network's input for frames of a size, where it is free.

        >>> Preprocessing(placement="centre", channel_order="rgb", white=1).network_size((576, 768))
        (480, 640)
        """
        if self.square:
            return self.longest_side, self.longest_side
        longest = max(frame_size)
        height, width = (
            -(-side * self.longest_side // (longest * self.multiple)) * self.multiple
            for side in frame_size
        )
        return height, width

    def letterbox(
        self, frame_size: tuple[int, int], *, network_size: tuple[int, int] | None = None
    ) -> Letterbox:
        """How frames of a size lie in the network's input, of its own choice by default."""
        size = self.network_size(frame_size) if network_size is None else network_size
        return letterbox(frame_size, size, placement=self.placement, fill=self.fill)

    def on_frames(
        self, network: Callable[[Params, jax.Array], Output], geometry: Letterbox
    ) -> Callable[[Params, Frames], Output]:
        """The network as a function of a camera's frames: conversion and resizing inside.

        Args:
          network: `network(params, images)`, what `load_onnx` or `load_yolov5` gives.
          geometry: what `letterbox` gives for the frames' size.

        Returns:
          `fn(params, frames)` for uint8 RGB frames `(streams, H, W, 3)` of `geometry.frame_size`,
          with the network's raw outputs, ready for `dynvid.incremental`.

        >>> bgr = Preprocessing(placement="top_left", channel_order="bgr", white=255)
        >>> fn = bgr.on_frames(lambda params, images: images, letterbox((2, 2), (2, 2)))
        >>> fn(None, jnp.full((1, 2, 2, 3), jnp.array([1, 2, 3], jnp.uint8)))[0, 0, 0]
        Array([3., 2., 1.], dtype=float32)
        """

        def fn(params: Params, frames: Frames) -> Output:
            images = geometry.to_network(frames)
            images = images[..., ::-1] if self.channel_order == "bgr" else images
            images = images if self.white == 255 else images * (self.white / 255)
            images = images - jnp.array(self.mean, images.dtype) if any(self.mean) else images
            return network(params, images)

        return fn
