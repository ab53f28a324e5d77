"""The clips: frames at the size that the network takes, and what is known of them."""

import dataclasses
import itertools
from collections.abc import Iterable

import jax
import numpy as np
from rich.progress import track

from dynvid.data.mot import parse_mot
from dynvid.data.synthetic import render, synthetic_scene
from dynvid.ops.difference import scene_similarity
from dynvid.video.reader import VideoSource, resize_frame
from experiments.bench import DATA, console


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video.

    Attributes:
      name: What the tables call it.
      frames: `(1, H, W, 3)` uint8 each, RGB, at the network's size.
      scale: What boxes at the network's size are multiplied by, to be pixels of the video.
      truth: The persons' boxes of each frame, `(n, 4)` in pixels of the video; None where nobody
        drew any.
    """

    name: str
    frames: list[np.ndarray]
    scale: np.ndarray
    truth: list[np.ndarray] | None = None

    def similarity(self, threshold: float) -> float:
        """The share of pixels that did not change from frame to frame, as the paper has it."""
        pairs = itertools.pairwise(self.frames)
        found = [scene_similarity(b, a, threshold=threshold).item() for a, b in pairs]
        return float(np.mean(found))


def read_clip(
    name: str, place: str, size: tuple[int, int], *, every: int = 1, most: int = 250,
    truth: str | None = None,
) -> Clip:  # fmt: skip
    """Reads the first frames of a folder or a file under DYNVID_DATA.

    Args:
      name: What the tables call it.
      place: Where it lies.
      size: (height, width) to resize to.
      every: Take only every so many frames.
      most: How many frames to take at most.
      truth: Where the MOT ground truth lies.
    """
    source = VideoSource(DATA / place)
    chosen = itertools.islice(source, 0, every * most, every)
    total = None if source.length is None else min(most, -(-source.length // every))
    shown = track(chosen, f"reading {name}", total=total, console=console, transient=True)
    frames = [resize_frame(frame, size)[None] for frame in shown]
    boxes = None
    if truth is not None:
        drawn = parse_mot((DATA / truth).read_text())
        boxes = [drawn.get(1 + i * every, np.zeros((0, 4))) for i in range(len(frames))]
    height, width = source.size
    scale = np.array([width / size[1], height / size[0]] * 2, np.float32)
    return Clip(name, frames, scale, boxes)


def pets(size: tuple[int, int], *, most: int = 250) -> Clip:
    """PETS 2009 S2.L1, View 001: 7 frames a second, a fixed camera."""
    place = "pets09_s2l1"
    return read_clip("PETS", f"{place}/img1", size, most=most, truth=f"{place}/gt_mot.txt")


def tud(size: tuple[int, int]) -> Clip:
    """TUD-Stadtmitte: 25 frames a second, a fixed camera, large people."""
    place = "tud_stadtmitte"
    return read_clip("TUD-Stadtmitte", f"{place}/img1", size, truth=f"{place}/gt/gt.txt")


def intel(size: tuple[int, int]) -> list[Clip]:
    """Intel's two clips of a fixed camera, without ground truth: every second frame."""
    names = {"Intel cars": "car-detection", "Intel persons": "one-by-one-person-detection"}
    return [
        read_clip(name, f"intel/{file}.mp4", size, every=2, most=150)
        for name, file in names.items()
    ]


def synthetic(size: tuple[int, int], *, count: int = 40) -> list[Clip]:
    """Scenes of a fixed camera with noise, from almost still to crowded."""
    clips = []
    for objects, side, speed in ((1, 24.0, 2.0), (3, 48.0, 3.0), (6, 80.0, 5.0), (12, 120.0, 8.0)):
        scene = synthetic_scene(
            jax.random.key(objects), size=size, objects=objects, noise=2.0, speed=speed,
            object_size=(side / 2, side),
        )  # fmt: skip
        frames = [np.asarray(render(scene, t).frame)[None] for t in range(count)]
        name = f"synthetic, {objects} object{'s' if objects > 1 else ''}"
        clips.append(Clip(name, frames, np.ones(4, np.float32)))
    return clips


def unit(frames: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Frames in [0, 1], float32."""
    return [frame.astype(np.float32) / 255 for frame in frames]
