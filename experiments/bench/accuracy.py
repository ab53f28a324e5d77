"""Average precision of persons and cars against ground truth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.metrics.average_precision import (
    average_precision,
    average_precision_by_class,
    of_class,
    pad_boxes,
)
from dynvid.metrics.detection_counts import count_detections
from dynvid.metrics.pseudo_ground_truth import GroundTruth
from dynvid.models.zoo import Head
from dynvid.ops.boxes import Detections
from dynvid.types import Params
from experiments.bench.videos import Clip

CLASSES = ("person", "car")
"""What is judged, as in the paper's Tables 3-5."""

SCORE = 0.25
"""The least score of a detection that is counted or drawn."""


def class_indices(names: tuple[str, ...]) -> tuple[int, ...]:
    """The index that a network with these class names gives to each of `CLASSES`."""
    return tuple(names.index(name) for name in CLASSES)


def of_classes(detections: Detections, classes: tuple[int, ...]) -> Detections:
    """The detections of some classes, numbered anew."""
    same = detections.classes[..., None] == jnp.array(classes)
    valid = detections.valid & jnp.any(same, -1)
    numbered = jnp.where(valid, jnp.argmax(same, -1), -1)
    return detections._replace(classes=numbered.astype(jnp.int32), valid=valid)


def drawn_truth(clip: Clip) -> GroundTruth:
    """The persons that somebody drew, in pixels of the video."""
    boxes, present = pad_boxes(clip.truth or [])
    return GroundTruth(boxes, np.where(present, 0, -1), present)


def judge(
    detections: Detections, truth: GroundTruth, frames: slice = slice(None)
) -> dict[str, dict[str, float]]:
    """Average precision and counts of each class that the ground truth has.

    Args:
      detections: Of every frame, in pixels of the video.
      truth: Likewise.
      frames: Which frames to judge.

    Returns:
      For each class AP50 in percent by both of VOC's interpolations, and how many detections of a
      score of at least `SCORE` are right, wrong and all together.
    """
    found = Detections(*(np.asarray(x)[frames] for x in detections))
    real = GroundTruth(*(np.asarray(x)[frames] for x in truth))
    place = (real.boxes, real.classes, real.present)
    options: dict[str, Any] = {"class_count": len(CLASSES)}
    area = average_precision_by_class(found, *place, **options).value
    steps = average_precision_by_class(found, *place, interpolation="11_points", **options).value
    counted = count_detections(found, *place, score_threshold=SCORE, **options)
    return {
        name: {
            "ap50": 100 * float(area[i]),
            "ap50_11_points": 100 * float(steps[i]),
            "true_positives": int(counted.true_positives[i]),
            "false_positives": int(counted.false_positives[i]),
            "predictions": int(counted.predictions[i]),
            "truths": int(counted.truths[i]),
        }
        for i, name in enumerate(CLASSES)
        if counted.truths[i]
    }


class Accuracy:
    """Person AP50 of dense and incremental outputs on the first frames of a clip.

    Args:
      head: What turns the network's outputs into boxes.
      params: The network's.
      size: (height, width) of its input.
      clip: The frames, with ground truth.
    """

    def __init__(self, head: Head, params: Params, size: tuple[int, int], clip: Clip):
        self.decode = jax.jit(
            lambda outputs: of_class(
                head.decode(params, outputs, size=size, score_threshold=0.01, iou_threshold=0.45), 0
            )
        )
        self.clip = clip
        self.found: list[list[Detections]] = [[], []]

    def __call__(self, index: int, *outputs: Any) -> None:
        """Takes the dense and the incremental outputs of the next frame."""
        for found, output in zip(self.found, outputs, strict=True):
            found.append(jax.tree.map(np.asarray, self.decode(output)))

    def result(self) -> dict[str, float]:
        """`ap50_dense` and `ap50_incremental`, in percent."""
        boxes, present = pad_boxes((self.clip.truth or [])[: len(self.found[0])])
        values = {}
        for name, found in zip(("dense", "incremental"), self.found, strict=True):
            joined = Detections(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
            joined = joined._replace(boxes=joined.boxes * self.clip.scale)
            value = average_precision(joined, boxes, present).value
            values[f"ap50_{name}"] = 100 * float(value)
        return values
