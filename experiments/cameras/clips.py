"""The clips, and what may happen to a camera: light, noise, wind, a codec."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator

import av
import numpy as np

from dynvid.data.mot import parse_mot
from dynvid.files import part_file
from dynvid.video.reader import VideoSource
from experiments.bench import DATA

Frames = Iterator[np.ndarray]

BIT_RATE = 400_000
"""Of the H.264 copies, bits per second."""

_FPS = 25  # of those copies


@dataclasses.dataclass(frozen=True)
class Camera:
    """A clip of a fixed camera.

    Attributes:
      name: What tables call it.
      place: Where it lies under DYNVID_DATA.
      start: Its first frame that counts, where something begins to happen.
      every: Only every so many frames are taken.
      truth: Where its persons lie, boxes in MOT format; None where nobody drew any.
    """

    name: str
    place: str
    start: int = 0
    every: int = 1
    truth: str | None = None

    def frames(self, most: int | None) -> Frames:
        """The frames, `(H, W, 3)` uint8, of the camera's own size.

        Args:
          most: How many at most; None takes them all, from the very first.
        """
        stop = None if most is None else self.start + self.every * most
        start = 0 if most is None else self.start
        source = VideoSource(DATA / self.place, max_frames=stop)
        return itertools.islice(iter(source), start, stop, self.every)

    def boxes(self, most: int | None) -> list[np.ndarray] | None:
        """The persons of each of `frames(most)`, `(n, 4)` in its pixels; None where unknown."""
        if self.truth is None:
            return None
        drawn = parse_mot((DATA / self.truth).read_text())
        first = 1 + (0 if most is None else self.start)
        count = max(drawn) // self.every + 1 if most is None else most
        return [drawn.get(first + i * self.every, np.zeros((0, 4))) for i in range(count)]


CAMERAS = {
    camera.name: camera
    for camera in (
        Camera("pets", "pets09_s2l1/img1", truth="pets09_s2l1/gt_mot.txt"),
        Camera("tud", "tud_stadtmitte/img1", truth="tud_stadtmitte/gt/gt.txt"),
        Camera("intel_cars", "intel/car-detection.mp4", every=2),
        Camera("intel_persons", "intel/one-by-one-person-detection.mp4", every=2),
        Camera("highway", "cameras/highway"),
        Camera("traffic_near", "cameras/traffic_near.avi"),
        Camera("traffic_far", "cameras/traffic_far.avi"),
        Camera("car_traffic", "cameras/car_traffic.mp4"),
    )
}
"""The clips by name."""


def _gains(frames: Iterable[np.ndarray], gain: Callable[[int], float]) -> Frames:
    """Frames of which each is as bright as `gain(t)` times what it was, cut at white."""
    for t, frame in enumerate(frames):
        yield np.clip(np.rint(frame * gain(t)), 0, 255).astype(np.uint8)


def _flicker(share: float) -> Callable[[Iterable[np.ndarray], int], Frames]:
    """A lamp whose beat with the shutter never comes back to the same place."""
    return lambda frames, count: _gains(frames, lambda t: 1 + share * np.sin(2.4 * t))


def _noise(deviation: float, seed: int = 0) -> Callable[[Iterable[np.ndarray], int], Frames]:
    """What a sensor adds: Gaussian noise of so many grey levels, by pixel and channel."""

    def noisy(frames: Iterable[np.ndarray], count: int) -> Frames:
        draw = np.random.default_rng(seed)
        for frame in frames:
            added = draw.standard_normal(frame.shape, np.float32) * deviation
            yield np.clip(np.rint(frame + added), 0, 255).astype(np.uint8)

    return noisy


def _black_first(frames: Iterable[np.ndarray], count: int) -> Frames:
    for t, frame in enumerate(frames):
        yield frame if t else np.zeros_like(frame)


def _shake(frames: Iterable[np.ndarray], count: int) -> Frames:
    """A mast in the wind: each frame is moved by up to two whole pixels either way."""
    draw = np.random.default_rng(0)
    for frame in frames:
        down, right = draw.integers(-2, 3, 2)
        padded = np.pad(frame, ((2, 2), (2, 2), (0, 0)), "edge")
        height, width = frame.shape[:2]
        yield padded[2 + down : 2 + down + height, 2 + right : 2 + right + width]


DISTURBANCES: dict[str, Callable[[Iterable[np.ndarray], int], Frames]] = {
    "plain": lambda frames, count: iter(frames),
    # A step up by a quarter a third of the way, and back after another: auto-exposure.
    "gain_step": lambda frames, count: _gains(
        frames, lambda t: 1.25 if count <= 3 * t < 2 * count else 1.0
    ),
    "flicker_2": _flicker(0.02),
    "flicker_5": _flicker(0.05),
    # Dusk: down to 60% at the end.
    "ramp": lambda frames, count: _gains(frames, lambda t: 1 - 0.4 * t / count),
    "noise_2": _noise(2),
    "noise_4": _noise(4),
    "black_first": _black_first,
    "shake": _shake,
    "h264": lambda frames, count: iter(frames),  # see `disturbed`
}
"""What is done to the frames of a clip of `count` frames, by name."""

one_level = _noise(1, seed=1)
"""Noise of one level: what the ceiling is measured with."""


def disturbed(
    camera: Camera, disturbance: str, most: int | None, count: int, cache: pathlib.Path
) -> Frames:
    """The frames of a camera to which something happens.

    Args:
      camera: The clip.
      disturbance: One of `DISTURBANCES`.
      most: As in `Camera.frames`.
      count: How many frames that are.
      cache: Where H.264 copies are kept.
    """
    if disturbance != "h264":
        return DISTURBANCES[disturbance](camera.frames(most), count)
    path = cache / f"{camera.name}-{most or 'all'}.mp4"
    if not path.exists():
        with part_file(path) as part:
            _encode(camera.frames(most), part)
    return iter(VideoSource(path))


def _encode(frames: Iterable[np.ndarray], path: pathlib.Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for frame in frames:
            frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
            if stream is None:
                stream = container.add_stream("libx264", rate=_FPS)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt, stream.bit_rate = "yuv420p", BIT_RATE
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
