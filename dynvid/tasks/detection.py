"""Object detection: boxes with a class and a score."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from dynvid.metrics.average_precision import detection_f1
from dynvid.ops.boxes import Detections
from dynvid.tasks.preprocessing import Preprocessing
from dynvid.tasks.task import Task, class_name
from dynvid.types import Agreement, Output, Params
from dynvid.video.draw import annotate_frame

SCORE_THRESHOLD = 0.3
"""The least score of a detection that is drawn and compared."""

IOU_THRESHOLD = 0.45
"""The greatest overlap at which two boxes of a class both stay."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """Boxes of the objects in a frame.

    Attributes:
      decode_boxes: `decode_boxes(params, outputs, *, size, score_threshold, iou_threshold) ->
        Detections`, in pixels of the network's input of (height, width) `size`.
      preprocessing: How frames become the network's input.
      class_names: The name of each class index.
      score_threshold: The least score of a detection.
      iou_threshold: The greatest overlap at which two boxes of a class both stay.
    """

    name: ClassVar[str] = "detection"
    results: ClassVar[str] = "detections"
    agreement: ClassVar[str] = "F1 against dense, same frame"

    decode_boxes: Callable[..., Detections]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    score_threshold: float = SCORE_THRESHOLD
    iou_threshold: float = IOU_THRESHOLD

    def decode(self, params: Params, outputs: Output, *, frame_size: tuple[int, int]) -> Detections:
        """Boxes in pixels of the frame, clipped to it."""
        geometry = self.geometry(frame_size)
        return geometry.to_frame(
            self.decode_boxes(
                params,
                outputs,
                size=geometry.network_size,
                score_threshold=self.score_threshold,
                iou_threshold=self.iou_threshold,
            )
        )

    def compare(self, expected: Detections, found: Detections) -> Agreement:
        """The F1 score of one run's boxes against the other's: see `detection_f1`."""
        return detection_f1(expected, found)

    def draw(self, frame: np.ndarray, result: Detections) -> np.ndarray:
        """Boxes with their class and score."""
        boxes, scores, classes, valid = map(np.asarray, result)
        classes = classes[valid]
        labels = [
            f"{class_name(self.class_names, int(index))} {score:.2f}"
            for index, score in zip(classes, scores[valid], strict=True)
        ]
        return annotate_frame(frame, boxes=boxes[valid], labels=labels, classes=classes)
