"""Object detection: boxes with a class and a score."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.errors import UsageError
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


def chosen_detection[Kind: "Detection"](
    task: Kind,
    *,
    conf: float | None = None,
    iou: float | None = None,
    classes: Sequence[str | int] | None = None,
) -> Kind:
    """A detection task with what a user wants of it; None leaves it as it is.

    Args:
      task: The task.
      conf: The least score of a detection, 0..1.
      iou: The greatest overlap at which two boxes of a class both stay, 0..1.
      classes: Names or numbers of the classes that are looked for.

    Raises:
      UsageError: A number is out of its range, or the network knows no such class.

    >>> task = Detection(
    ...     decode_boxes=max, preprocessing=Preprocessing(placement="stretch", white=1),
    ...     class_names=("person", "car"),
    ... )
    >>> chosen_detection(task, conf=0.5, classes=["car"]).classes
    (1,)
    """
    changes: dict[str, Any] = {}
    for name, field, value in (("conf", "score_threshold", conf), ("iou", "iou_threshold", iou)):
        if value is not None:
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must be between 0 and 1; got {value:g}")
            changes[field] = value
    if classes is not None:
        changes["classes"] = tuple(_class_index(task.class_names, name) for name in classes)
    return dataclasses.replace(task, **changes)


def _class_index(names: Sequence[str], wanted: str | int) -> int:
    text = str(wanted).strip()
    if text in names:
        return names.index(text)
    if text.isdecimal() and (not names or int(text) < len(names)):
        return int(text)
    known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "numbers"
    raise UsageError(f"classes must be of {known}; got {text[:40]!r}")


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
      classes: The class indices that are looked for; all where None.
    """

    name: ClassVar[str] = "detection"
    results: ClassVar[str] = "detections"
    agreement: ClassVar[str] = "F1 against dense, same frame"

    decode_boxes: Callable[..., Detections]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    score_threshold: float = SCORE_THRESHOLD
    iou_threshold: float = IOU_THRESHOLD
    classes: tuple[int, ...] | None = None

    def decode(self, params: Params, outputs: Output, *, frame_size: tuple[int, int]) -> Detections:
        """Boxes in pixels of the frame, clipped to it."""
        geometry = self.geometry(frame_size)
        found = self.decode_boxes(
            params,
            outputs,
            size=geometry.network_size,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
        )
        return self.of_interest(geometry.to_frame(found))

    def of_interest(self, found: Detections) -> Detections:
        """The detections with those of other classes than are looked for not valid."""
        if self.classes is None:
            return found
        valid = found.valid & jnp.isin(found.classes, jnp.array(self.classes, jnp.int32))
        return Detections(
            jnp.where(valid[..., None], found.boxes, 0),
            jnp.where(valid, found.scores, 0),
            jnp.where(valid, found.classes, -1),
            valid,
        )

    def rows(self, result: Detections) -> Detections:
        """The valid detections of one frame, best first, as NumPy arrays."""
        valid = np.asarray(result.valid)
        return jax.tree.map(lambda values: np.asarray(values)[valid], result)

    def compare(self, expected: Detections, found: Detections) -> Agreement:
        """The F1 score of one run's boxes against the other's: see `detection_f1`."""
        return detection_f1(expected, found)

    def draw(self, frame: np.ndarray, result: Detections) -> np.ndarray:
        """Boxes with their class and score."""
        # By its own name: a task with more to show of each draws its boxes by this too.
        boxes, scores, classes, _ = map(np.asarray, Detection.rows(self, result))
        labels = [
            f"{class_name(self.class_names, int(index))} {score:.2f}"
            for index, score in zip(classes, scores, strict=True)
        ]
        return annotate_frame(frame, boxes=boxes, labels=labels, classes=classes)
