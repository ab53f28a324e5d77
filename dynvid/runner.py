"""Running a detector on a video, frame by frame, and measuring what it saves; touches no files."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.incremental import incremental
from dynvid.metrics.average_precision import detection_agreement
from dynvid.models.zoo import Head
from dynvid.ops.boxes import Detections
from dynvid.ops.difference import changed_pixels
from dynvid.ops.letterbox import Letterbox
from dynvid.types import Frames, Output, Params

SCORE_THRESHOLD = 0.3
"""The least score of a detection that is drawn and compared."""

IOU_THRESHOLD = 0.45
"""The greatest overlap at which two boxes of a class both stay."""


@dataclasses.dataclass(frozen=True)
class Detector:
    """A network with all that it takes to run it on frames of any size.

    Attributes:
      name: for reports.
      network: `network(params, images)`, what `load_onnx` or `load_yolov5` gives.
      params: its weights.
      head: how frames go in and boxes come out.
      head_name: the name of the head, for reports.
      network_size: `(height, width)` of the network's input where the model fixes it.
    """

    name: str
    network: Callable[[Params, jax.Array], Output]
    params: Params
    head: Head
    head_name: str
    network_size: tuple[int, int] | None = None

    def geometry(self, frame_size: tuple[int, int]) -> Letterbox:
        """How frames of `(height, width)` lie in the network's input."""
        return self.head.preprocessing.letterbox(frame_size, network_size=self.network_size)

    def on_frames(self, frame_size: tuple[int, int]) -> Callable[[Params, Frames], Output]:
        """The network as a function of uint8 frames: conversion and resizing inside."""
        return self.head.preprocessing.on_frames(self.network, self.geometry(frame_size))

    def decode(self, params: Params, outputs: Output, *, frame_size: tuple[int, int]) -> Detections:
        """Boxes in pixels of the frame from the network's raw outputs."""
        geometry = self.geometry(frame_size)
        return geometry.to_frame(
            self.head.decode(
                params,
                outputs,
                size=geometry.network_size,
                score_threshold=SCORE_THRESHOLD,
                iou_threshold=IOU_THRESHOLD,
            )
        )

    def class_name(self, index: int) -> str:
        """The name of a class, or its number where the head knows no name for it."""
        names = self.head.class_names
        return names[index] if index < len(names) else f"class {index}"


class Measures(NamedTuple):
    """What was measured on one frame; NaN where there is nothing to measure.

    Attributes:
      mac_fraction: multiply-accumulates executed, as a fraction of dense; 1 for the first frame.
      similarity: share of pixels that did not change; NaN for the first frame.
      seconds: time of the incremental step; NaN for the first frame, which is computed densely.
      dense_seconds: time of the dense network on the same frame, where it is compared.
      difference: the largest absolute difference between the raw outputs of the step and of the
        dense network on `state.reference`, where it is compared.
      magnitude: the largest absolute value of those dense outputs, to judge the difference by.
      agreement: F1 of the step's detections against the dense ones, where it is compared.
    """

    mac_fraction: float
    similarity: float
    seconds: float
    dense_seconds: float
    difference: float
    magnitude: float
    agreement: float


class FrameResult(NamedTuple):
    """One frame and all that is known of it.

    Attributes:
      frame: `(H, W, 3)` uint8, RGB.
      changed: `(H, W)` bool, the pixels that differ from the reference; all in the first frame.
      boxes: `(N, 4)` float32, `(x0, y0, x1, y1)` in pixels of the frame.
      scores: `(N,)` float32.
      classes: `(N,)` int32.
      measures: the numbers.
    """

    frame: np.ndarray
    changed: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    measures: Measures


def detect_video(
    detector: Detector,
    frames: Iterable[np.ndarray],
    *,
    threshold: float,
    truncation: float,
    compare_dense: bool = False,
) -> Iterator[FrameResult]:
    """Detects on every frame of one camera, computing only what changed.

    The first frame goes through `init`; a step on that same frame, which changes nothing, then
    compiles `step`, so that no compilation is in any time. Times cover the network alone, from
    frames on the device to outputs that are ready; not reading, decoding of boxes or drawing. The
    dense network takes its turn on the same frame, before and after the step alternately.

    Args:
      detector: the network.
      frames: `(H, W, 3)` uint8 each, all of one size.
      threshold: as in `incremental`, in grey levels of 0..255.
      truncation: as in `incremental`.
      compare_dense: whether to run the dense network on the same frames, and on the reference.

    Yields:
      One result a frame.

    Raises:
      ValueError: the network cannot run on frames of this size.

    >>> from dynvid.models.synthetic_detector import load_synthetic_detector
    >>> from dynvid.models.zoo import HEADS
    >>> detector = Detector(
    ...     "shipped", *load_synthetic_detector(), HEADS["synthetic"], "synthetic", (32, 32)
    ... )
    >>> still = [np.zeros((32, 32, 3), np.uint8)] * 2
    >>> for result in detect_video(detector, still, threshold=15, truncation=0.5):
    ...     print(result.measures.mac_fraction, len(result.boxes))
    1.0 0
    0.0 0
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    size = first.shape[:2]
    params = detector.params
    network = detector.on_frames(size)
    x = jnp.asarray(first)[None]
    video = incremental(network, threshold=threshold, truncation=truncation)
    step = jax.jit(video.step, donate_argnums=1)
    dense = jax.jit(network)
    decode = jax.jit(lambda params, outputs: detector.decode(params, outputs, frame_size=size))
    agreement = jax.jit(detection_agreement)
    changed_in = jax.jit(
        lambda state, frames: changed_pixels(frames, state.reference, threshold=threshold)[0]
    )

    state, outputs = video.init(params, x)
    state, outputs = step(params, state, x)
    if compare_dense:
        jax.block_until_ready(dense(params, x))
    unknown = float("nan")
    measures = Measures(1.0, *[unknown] * 6)
    yield _result(first, np.ones(size, bool), decode(params, outputs), measures)

    for index, frame in enumerate(frames):
        x = jax.block_until_ready(jnp.asarray(frame)[None])
        changed = np.asarray(changed_in(state, x))
        dense_seconds = difference = magnitude = agreed = unknown
        dense_outputs = None
        if compare_dense and index % 2 == 0:
            dense_outputs, dense_seconds = _timed(dense, params, x)
        (state, outputs), seconds = _timed(step, params, state, x)
        if compare_dense and index % 2 == 1:
            dense_outputs, dense_seconds = _timed(dense, params, x)
        found = decode(params, outputs)
        if compare_dense:
            expected = dense(params, state.reference)
            difference, magnitude = map(float, _largest_difference(outputs, expected))
            agreed = float(agreement(decode(params, dense_outputs), found)[0])
        measures = Measures(
            float(state.work.mac_fraction),
            1.0 - float(state.work.changed[0]),
            seconds,
            dense_seconds,
            difference,
            magnitude,
            agreed,
        )
        yield _result(frame, changed, found, measures)


def summarize(measures: Sequence[Measures]) -> dict[str, Any]:
    """The figures of a whole run: means over all frames but the first, medians of times.

    Args:
      measures: of every frame, the first one included.

    Returns:
      `frames`, `mac_fraction`, `scene_similarity` and `seconds_per_frame` (median); where the
      dense network was compared, also `dense_seconds_per_frame` (median), `speedup` (the ratio of
      both), `fraction_of_ideal` (`speedup` times `mac_fraction`),
      `max_abs_difference_at_reference`, `max_abs_output_at_reference` and `detection_agreement`
      (mean F1). None where there is nothing to measure.

    >>> nan = float("nan")
    >>> first, later = Measures(1.0, *[nan] * 6), Measures(0.25, 0.9, 0.01, nan, nan, nan, nan)
    >>> summarize([first, later])
    {'frames': 2, 'mac_fraction': 0.25, 'scene_similarity': 0.9, 'seconds_per_frame': 0.01}
    """
    later = measures[1:]

    def over(reduce: Callable[[list[float]], Any], name: str) -> float | None:
        value = reduce([getattr(m, name) for m in later]) if later else None
        return None if value is None or not np.isfinite(value) else float(value)

    report: dict[str, Any] = {
        "frames": len(measures),
        "mac_fraction": over(np.mean, "mac_fraction"),
        "scene_similarity": over(np.mean, "similarity"),
        "seconds_per_frame": over(np.median, "seconds"),
    }
    dense_seconds = over(np.median, "dense_seconds")
    if dense_seconds is not None:
        speedup = dense_seconds / report["seconds_per_frame"]
        report |= {
            "dense_seconds_per_frame": dense_seconds,
            "speedup": speedup,
            "fraction_of_ideal": speedup * report["mac_fraction"],
            "max_abs_difference_at_reference": over(np.max, "difference"),
            "max_abs_output_at_reference": over(np.max, "magnitude"),
            "detection_agreement": over(np.mean, "agreement"),
        }
    return report


def _timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    outputs = jax.block_until_ready(function(*arguments))
    return outputs, time.perf_counter() - start


@jax.jit
def _largest_difference(outputs: Output, expected: Output) -> tuple[jax.Array, jax.Array]:
    """The largest absolute difference of two pytrees, and the largest value of the second."""
    pairs = list(zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True))
    pairs = [(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in pairs]
    difference = jnp.max(jnp.stack([jnp.max(jnp.abs(a - b)) for a, b in pairs]))
    return difference, jnp.max(jnp.stack([jnp.max(jnp.abs(b)) for _, b in pairs]))


def _result(
    frame: np.ndarray, changed: np.ndarray, found: Detections, measures: Measures
) -> FrameResult:
    boxes, scores, classes, valid = (np.asarray(part)[0] for part in found)
    return FrameResult(frame, changed, boxes[valid], scores[valid], classes[valid], measures)
