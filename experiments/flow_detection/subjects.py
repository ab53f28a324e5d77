"""What flow-guided detection is tried on: networks trained here, clips none of them has seen.

Clips are arrays `(T, N, ...)`: time, and the clips beside one another as streams.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

from dynvid.data.moving_objects import ObjectFrame, object_clip, object_scene, render_objects
from dynvid.metrics.imagenet_vid import motion_iou
from dynvid.models.driving import named_leaves
from dynvid.models.flow_detection import (
    FlowDetectionNetworks,
    detection_networks,
    load_flow_detection_networks,
    small_flow_detector,
)
from dynvid.ops.boxes import Detections
from dynvid.systems.flow_detection import TABLE_1, FlowDetectionParams, flow_detection
from dynvid.types import Params, VideoFunction
from experiments.bench import console

SIZE = (256, 256)
TEST = 20261129
"""The key of every clip here; pairs of training come from the keys of their seeds, 0 to 2."""

CLIPS, FRAMES = 12, 32
PAN = 3.0
"""Pixels per frame of the panning camera."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clips:
    """Videos of one size and their truth.

    Attributes:
      name: What the tables call them.
      frames: `(T, N, H, W, 3)` uint8.
      boxes: `(T, N, M, 4)` pixels.
      classes: `(T, N, M)` int.
      present: `(T, N, M)` bool.
      motion: `(T, N, M)`, the motion IoU of every object.
    """

    name: str
    frames: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    present: np.ndarray
    motion: np.ndarray

    def first(self, clips: int) -> "Clips":
        """The first of the clips."""
        arrays = (self.frames, self.boxes, self.classes, self.present, self.motion)
        return Clips(self.name, *(x[:, :clips] for x in arrays))


def _clips(name: str, draw: Callable[[jax.Array], ObjectFrame], count: int) -> Clips:
    """`count` clips, each of `draw(key)` with a leading axis of time."""
    root = jax.random.fold_in(jax.random.key(TEST), sum(map(ord, name)))

    @jax.jit
    def one(key: jax.Array) -> tuple[jax.Array, ...]:
        clip = draw(key)
        motion = motion_iou(clip.boxes, clip.present)
        return clip.frame, clip.boxes, clip.classes, clip.present, motion

    shown = track(range(count), f"drawing {name}", console=console, transient=True)
    drawn = [jax.tree.map(np.asarray, one(jax.random.fold_in(root, i))) for i in shown]
    return Clips(name, *(np.stack(part, 1) for part in zip(*drawn, strict=True)))


@functools.cache
def moving_objects(count: int = CLIPS, frames: int = FRAMES) -> Clips:
    """The test set: scenes as those of training, in motion."""

    def draw(key: jax.Array) -> ObjectFrame:
        return object_clip(key, frames=frames, size=SIZE)

    return _clips("moving objects", draw, count)


@functools.cache
def varied(count: int = 6, scene: int = 16) -> Clips:
    """Still lives, fast scenes and ordinary ones by turns, with cuts between them."""

    def draw(key: jax.Array) -> ObjectFrame:
        kinds: Sequence[dict[str, float]] = (
            {"speed": 0.0, "camera_speed": 0.0, "mishaps": 0.0},
            {"speed": 8.0, "camera_speed": 3.0},
            {"speed": 0.0, "camera_speed": 0.0, "mishaps": 0.0},
            {},
        )
        keys = jax.random.split(key, len(kinds))
        parts = [
            object_clip(keys[i], frames=scene, size=SIZE, **kind) for i, kind in enumerate(kinds)
        ]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    return _clips("cuts, stills and fast motion", draw, count)


@functools.cache
def panning(count: int = 6, frames: int = FRAMES, *, pan: float = PAN) -> Clips:
    """A camera that pans over scenes that hardly move: every pixel changes, motion explains it."""

    def draw(key: jax.Array) -> ObjectFrame:
        scene = object_scene(key, size=SIZE, speed=0.4, camera_speed=0.0, mishaps=0.2)
        away = jnp.array([pan, 0.0])
        # Nothing bounces off the border within the clip: things start far enough to the right.
        share = scene.start[:, :1] / SIZE[1]
        reach = pan * frames
        start = scene.start.at[:, :1].set(reach + share * (SIZE[1] - reach))
        scene = dataclasses.replace(
            scene, camera_velocity=away, velocity=scene.velocity - away, start=start
        )
        return jax.lax.map(lambda t: render_objects(scene, t), jnp.arange(frames))

    return _clips("a panning camera", draw, count)


def load_params(path: pathlib.Path | None) -> FlowDetectionParams:
    """The weights of a training.

    Args:
      path: What `experiments.flow_detection.train` wrote; None for those that come with the
        package, of seed 0.
    """
    if path is None:
        found = load_flow_detection_networks().params
    else:
        found = networks().params
        with np.load(path) as arrays:
            leaves = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in named_leaves(found)]
        found = jax.tree.unflatten(jax.tree.structure(found), leaves)
    features, flow, embedding, detection = found
    return FlowDetectionParams(features, detection, flow, embedding)


@functools.cache
def networks() -> FlowDetectionNetworks:
    """The small networks, with random weights."""
    module = small_flow_detector(rngs=nnx.Rngs(0))
    module.eval()
    return detection_networks(module)


def detect(params: Params, features: jax.Array) -> Detections:
    """N_det on frames of `SIZE`."""
    return networks().detect(params, features, SIZE)


@functools.cache
def system(row: str, **options: Any) -> VideoFunction:
    """A row of Table 1, or what differs from it by an option; one object for the same ones."""
    parts = networks()
    return flow_detection(
        parts.features, detect, flow=parts.flow, embed=parts.embed, **TABLE_1[row], **options
    )
