"""A detector on a video in three lines: frame by frame, what is in it and what it took."""

import dataclasses
import importlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dynvid.types import Limits


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What was found in one frame.

    Attributes:
      frame: `(H, W, 3)` uint8, RGB.
      index: Its number, from 0.
      boxes: `(N, 4)` as (x0, y0, x1, y1) in pixels of the frame, best first.
      scores: `(N,)` in [0, 1].
      classes: `(N,)` int, the index of each class.
      names: The name of each class.
      work: The share of the dense network's multiply-accumulates that the frame took.
    """

    frame: np.ndarray
    index: int
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: list[str]
    work: float

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`.

        Raises:
          ImportError: The package `supervision` is missing.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError as error:
            raise ImportError("needs the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=np.asarray(self.boxes, np.float32).reshape(-1, 4),
            confidence=np.asarray(self.scores, np.float32),
            class_id=np.asarray(self.classes, int),
            data={"class_name": np.array(self.names, dtype=str)},
        )


def detect(
    source: str | pathlib.Path,
    model: str | pathlib.Path | None = None,
    *,
    conf: float | None = None,
    iou: float | None = None,
    classes: Sequence[str | int] | None = None,
    threshold: float = 15.0,
    truncation: float = 0.5,
    max_frames: int | None = None,
    limits: Limits | None = None,
) -> Iterator[Result]:
    """Finds objects in every frame of a video, computing only what changed.

    Args:
      source: A video file, a folder of images, one image, a camera ("0" is the first) or a stream.
      model: The file of a detector, as of `dynvid run --model`; the shipped one where None.
      conf: The least score of a detection; the detector's own where None.
      iou: The greatest overlap at which two boxes of a class both stay, likewise.
      classes: Names or numbers of the classes that are looked for; all where None.
      threshold: As of `dynvid.incremental`, in grey levels.
      truncation: Likewise; 0 is exact.
      max_frames: Stop after so many frames.
      limits: What the file may ask for.

    Yields:
      A `Result` a frame.

    Raises:
      UsageError: The source or the model cannot be read, or the model is no detector (at once).

    >>> for result in detect("street.mp4", "yolo11n.onnx"):  # doctest: +SKIP
    ...     print(result.index, result.names, f"{result.work:.0%}")
    """
    from dynvid.errors import UsageError
    from dynvid.incremental import incremental
    from dynvid.models.zoo import load_model
    from dynvid.runner import run_video
    from dynvid.tasks import Detection
    from dynvid.tasks.detection import chosen_detection
    from dynvid.tasks.task import class_name
    from dynvid.video.reader import VideoSource

    video = VideoSource(source, max_frames=max_frames)
    path = None if model is None else pathlib.Path(model)
    loaded = load_model(path, frame_size=video.size, limits=limits)
    if not isinstance(loaded.task, Detection):
        raise UsageError(f"{loaded.name} is no detector but for {loaded.task.name}")
    task = chosen_detection(loaded.task, conf=conf, iou=iou, classes=classes)
    function = incremental(loaded.on_frames, threshold=threshold, truncation=truncation)

    def results() -> Iterator[Result]:
        found = run_video(task, function, video, params=loaded.params)
        for index, one in enumerate(found):
            boxes, scores, labels, _ = map(np.asarray, task.rows(one.result))
            names = [class_name(task.class_names, int(label)) for label in labels]
            yield Result(one.frame, index, boxes, scores, labels, names, one.measures.mac_fraction)

    return results()
