"""Detectors, the schemes side by side, and what their detections are worth."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import dynvid
from dynvid.metrics.average_precision import detection_agreement
from dynvid.metrics.pseudo_ground_truth import GroundTruth, pseudo_ground_truth
from dynvid.models import ssd
from dynvid.models.yolo_heads import COCO_CLASSES
from dynvid.models.zoo import HEADS
from dynvid.ops.boxes import Detections
from dynvid.ops.difference import changed_pixels
from dynvid.systems.dyncnn import dyncnn
from dynvid.types import VideoFunction
from dynvid.weights.caffe import load_ssd512
from experiments.bench import console
from experiments.bench.accuracy import SCORE, class_indices, of_classes
from experiments.bench.networks import load_yolov5n, load_yolox_nano
from experiments.bench.videos import Clip

TRUNCATION = 0.7
"""Of the refresh, where it is not tuned: relative to a layer's root mean square."""


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """A network with all that turns its outputs into boxes.

    Attributes:
      name: What the tables call it.
      size: (height, width) of its input.
      fn: `fn(params, frames)` of uint8 RGB frames `(streams, *size, 3)`.
      params: Its weights.
      classes: The index that it gives to each of `CLASSES`.
      decode: `decode(outputs) -> Detections`, in pixels of the input.
      scores: `scores(outputs) -> (streams, places, len(CLASSES))`, of every place that an object
        might be found at, before any suppression.
    """

    name: str
    size: tuple[int, int]
    fn: Callable[[Any, jax.Array], Any]
    params: Any
    classes: tuple[int, ...]
    decode: Callable[[Any], Detections]
    scores: Callable[[Any], jax.Array]

    def detect(self, outputs: Any) -> tuple[Detections, jax.Array]:
        """The detections of `CLASSES` only, numbered as these are, and the scores."""
        return of_classes(self.decode(outputs), self.classes), self.scores(outputs)


def yolov5n() -> Detector:
    """YOLOv5n, trained on COCO, at 640x480."""
    network, params = load_yolov5n()
    size, classes = (480, 640), class_indices(COCO_CLASSES)
    columns = np.array(classes) + 5

    def scores(outputs: Any) -> jax.Array:
        rows = jnp.concatenate([x.reshape(x.shape[0], -1, 85) for x in outputs], 1)
        return jax.nn.sigmoid(rows[..., 4:5]) * jax.nn.sigmoid(rows[..., columns])

    def decode(outputs: Any) -> Detections:
        return HEADS["yolov5"].decode(
            params, outputs, size=size, score_threshold=0.01, iou_threshold=0.45
        )

    return Detector(
        "YOLOv5n 640x480", size, lambda p, x: network(p, x / np.float32(255)), params, classes,
        decode, scores,
    )  # fmt: skip


def ssd512(path: pathlib.Path) -> Detector:
    """The released SSD512, trained on Pascal VOC."""
    network, params = load_ssd512(path)
    classes = class_indices(ssd.VOC_CLASSES)
    columns = np.array(classes) + 1
    return Detector(
        "SSD512", (ssd.SIZE, ssd.SIZE), lambda p, x: network(p, ssd.ssd_preprocess(x)), params,
        classes, lambda outputs: ssd.decode_ssd(*outputs),
        lambda outputs: jax.nn.softmax(outputs[1], -1)[..., columns],
    )  # fmt: skip


def schemes(fn: Callable[[Any, jax.Array], Any]) -> dict[str, VideoFunction]:
    """The paper's three schemes, as the paper runs them, and the transformation."""
    return {
        "pixel": dyncnn(fn, partition="pixel", continuous=False),
        "cell": dyncnn(fn, partition="cell", continuous=False),
        "continuous": dyncnn(fn, partition="cell", continuous=True),
        "transformation": dynvid.incremental(fn),
        "with refresh": dynvid.incremental(fn, truncation=TRUNCATION),
    }


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run over a clip gave.

    Attributes:
      detections: Of every frame, in pixels of the video: the first axis is time.
      scores: `(frames, anchors, classes)`.
      macs: Multiply-accumulates of each frame after the first, as a share of dense.
      changed: The share of pixels that were marked, likewise.
    """

    detections: Detections
    scores: np.ndarray
    macs: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(1))
    changed: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(1))


class Contest:
    """A detector, dense and by every scheme: each is compiled once, for all clips and thetas."""

    def __init__(self, detector: Detector):
        self.detector = detector
        self.schemes = schemes(detector.fn)
        self.detect = jax.jit(detector.detect)
        self._dense = jax.jit(detector.fn)

    @functools.cache  # noqa: B019
    def _step(self, video: VideoFunction) -> Callable:
        def step(params: Any, state: Any, frames: jax.Array, threshold: jax.Array) -> Any:
            # Given as a mask, theta need not be known when the step is compiled.
            mask = changed_pixels(frames, state.reference, threshold=threshold)
            return video.step(params, state, frames, mask)

        return jax.jit(step, donate_argnums=1)

    def _join(self, clip: Clip, parts: list[Any], *measured: list[float]) -> Found:
        detections, scores = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        detections = detections._replace(boxes=detections.boxes * clip.scale)
        return Found(detections, scores, *map(np.array, measured))

    def dense(self, clip: Clip) -> Found:
        """The network on every frame by itself."""
        shown = track(clip.frames, f"{clip.name}, dense", console=console, transient=True)
        params = self.detector.params
        return self._join(
            clip, [jax.device_get(self.detect(self._dense(params, frame))) for frame in shown]
        )

    def run(
        self, clip: Clip, scheme: str | VideoFunction, theta: float, *, scale: float = 1.0
    ) -> Found:
        """A scheme over a clip.

        Args:
          clip: What to run it over.
          scheme: One of `schemes`, or another one.
          theta: Of 255.
          scale: What all truncations of the transformation are multiplied by.
        """
        video = self.schemes[scheme] if isinstance(scheme, str) else scheme
        params, step = self.detector.params, self._step(video)
        state, outputs = video.init(params, clip.frames[0])
        if scale != 1:
            state = dataclasses.replace(state, truncation=scale * state.truncation)
        parts, macs, changed = [jax.device_get(self.detect(outputs))], [], []
        name = scheme if isinstance(scheme, str) else "tuned"
        what = f"{clip.name}, {name}, theta {theta:g}"
        for frame in track(clip.frames[1:], what, console=console, transient=True):
            state, outputs = step(params, state, frame, np.float32(theta))
            parts.append(jax.device_get(self.detect(outputs)))
            macs.append(float(state.work.mac_fraction))
            changed.append(float(jnp.mean(state.work.changed)))
        return self._join(clip, parts, macs, changed)


def second_detector(clip: Clip) -> GroundTruth:
    """What YOLOX-nano gives at least a score of 0.5, where nobody drew any boxes.

    It sees the same frames, letterboxed to 416x416; on PETS its average precision is four points
    above YOLOv5n's.
    """
    network, params = load_yolox_nano()
    head, shape = HEADS["yolox"], clip.frames[0].shape[1:3]
    geometry = head.preprocessing.letterbox((shape[0], shape[1]))
    network = head.preprocessing.on_frames(network)

    @jax.jit
    def judge(frames: jax.Array) -> Detections:
        found = head.decode(
            params, network(params, frames), size=geometry.network_size, score_threshold=0.5,
            iou_threshold=0.45,
        )  # fmt: skip
        return of_classes(geometry.to_frame(found), class_indices(COCO_CLASSES))

    shown = track(clip.frames, f"{clip.name}, YOLOX-nano", console=console, transient=True)
    parts = [jax.device_get(judge(frame)) for frame in shown]
    found = Detections(*(np.concatenate(x) for x in zip(*parts, strict=True)))
    return pseudo_ground_truth(found._replace(boxes=found.boxes * clip.scale), score_threshold=0.5)


def agreement(dense: Found, found: Found) -> float:
    """The share of detections that score at least `SCORE` in common with dense, in percent."""
    pair = [
        x.detections._replace(valid=x.detections.valid & (x.detections.scores >= SCORE))
        for x in (dense, found)
    ]
    return 100 * float(np.mean(detection_agreement(*pair)))


def score_agreement(expected: np.ndarray, found: np.ndarray) -> float:
    """How far two runs agree on where objects are: `1 - sum |s - s'| / sum max(s, s')`, in percent.

    A smooth stand-in for average precision: no threshold, no suppression, no ground truth.

    >>> score_agreement(np.array([0.5, 0.5]), np.array([0.5, 0.25]))
    75.0
    """
    larger = np.sum(np.maximum(expected, found), dtype=np.float64)
    return 100 * (1 - float(np.sum(np.abs(expected - found), dtype=np.float64) / larger))
