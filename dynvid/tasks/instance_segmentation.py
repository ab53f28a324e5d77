"""Instance segmentation: boxes with a class and a score, and the outline of each object."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from dynvid.models.yolo_heads import Instances
from dynvid.ops.boxes import Detections
from dynvid.tasks.detection import Detection
from dynvid.types import Agreement, Output, Params
from dynvid.video.draw import draw_instances


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstanceSegmentation(Detection):
    """Boxes of the objects in a frame, and where in them each object is.

    Attributes are those of `Detection`; `decode_boxes` returns `Instances`.
    """

    name: ClassVar[str] = "instance-segmentation"
    results: ClassVar[str] = "outlined detections"
    agreement: ClassVar[str] = "F1 of the boxes against dense, same frame"

    def decode(self, params: Params, outputs: Output, *, frame_size: tuple[int, int]) -> Instances:
        """Boxes in pixels of the frame, clipped to it; masks as the network has them."""
        geometry = self.geometry(frame_size)
        found: Any = self.decode_boxes(
            params,
            outputs,
            size=geometry.network_size,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
        )
        return Instances(self.of_interest(geometry.to_frame(found.detections)), found.masks)

    def rows(self, result: Instances) -> Detections:
        """The valid detections of one frame, best first."""
        return super().rows(result.detections)

    def compare(self, expected: Instances, found: Instances) -> Agreement:
        """The F1 score of one run's boxes against the other's: see `detection_f1`."""
        return super().compare(expected.detections, found.detections)

    def draw(self, frame: np.ndarray, result: Instances) -> np.ndarray:
        """Each object in its class's colour, then the boxes with their class and score."""
        detections, masks = result
        valid = np.asarray(detections.valid)
        height, width = frame.shape[:2]
        window = self.geometry((height, width)).window((masks.shape[-2], masks.shape[-1]))
        masked = draw_instances(
            frame,
            np.asarray(masks)[valid],
            classes=np.asarray(detections.classes)[valid],
            window=window,
        )
        return super().draw(masked, detections)
