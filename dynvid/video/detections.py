"""Detections as data: a line a frame, and the forms that other tools read."""

import contextlib
import csv
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import numpy as np

from dynvid.ops.boxes import Detections

FORMATS = ("mot", "coco", "csv")
"""What is written beside `detections.jsonl` where it is asked for."""

_NAMES = {
    "jsonl": "detections.jsonl",
    "mot": "mot.txt",
    "coco": "coco.json",
    "csv": "detections.csv",
}


class DetectionWriter:
    """A context manager that writes what was found in each frame, as it comes.

    - `detections.jsonl`: a JSON object a frame, `{"frame", "time", "boxes", "scores", "classes"}`:
      its number from 0, seconds (null where nobody knows the rate), corners (x0, y0, x1, y1) in
      pixels of the frame, and the classes' names.
    - `mot.txt`: MOTChallenge's detections, `frame, -1, left, top, width, height, score, -1, -1,
      -1`, frames counted from 1.
    - `coco.json`: COCO's results, `[{"image_id", "category_id", "bbox", "score"}]`; images are
      numbered as frames, categories as the network's classes.
    - `detections.csv`: a line a box, with a heading.

    Args:
      folder: Where to write.
      class_names: The name of each class index.
      fps: Frames per second, None where nobody knows.
      formats: Of `FORMATS`, beside the first.

    >>> import tempfile
    >>> one = Detections(*(np.array(x) for x in ([[1, 2, 5, 8]], [0.5], [0], [True])))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with DetectionWriter(folder, class_names=["car"], fps=25, formats=["mot"]) as writer:
    ...         writer.write(0, one)
    ...     print(pathlib.Path(folder, "detections.jsonl").read_text().strip())
    ...     print(pathlib.Path(folder, "mot.txt").read_text().strip())
    {"frame": 0, "time": 0.0, "boxes": [[1, 2, 5, 8]], "scores": [0.5], "classes": ["car"]}
    1,-1,1,2,4,6,0.5,-1,-1,-1
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        class_names: Sequence[str],
        fps: float | None,
        formats: Sequence[str] = (),
    ):
        self._folder = pathlib.Path(folder)
        self._names, self._fps = class_names, fps
        self._formats = ("jsonl", *formats)
        self._exits = contextlib.ExitStack()
        self._files: dict[str, TextIO] = {}
        self._boxes = 0

    def __enter__(self) -> "DetectionWriter":
        for form in self._formats:
            path = self._folder / _NAMES[form]
            self._files[form] = self._exits.enter_context(path.open("w", newline="\n"))
        if "csv" in self._files:
            self._row("frame", "time", "class", "score", "x0", "y0", "x1", "y1")
        return self

    def write(self, number: int, found: Detections) -> None:
        """Writes the detections of a frame, all of them valid, in pixels of the frame."""
        boxes = np.round(np.asarray(found.boxes, float), 2).reshape(-1, 4)
        scores = [round(float(score), 4) for score in found.scores]
        classes = [int(index) for index in found.classes]
        time = None if self._fps is None else round(number / self._fps, 4)
        corners = [[_short(x) for x in box] for box in boxes]
        write: dict[str, Callable[..., None]] = {
            "jsonl": self._jsonl, "mot": self._mot, "coco": self._coco, "csv": self._csv,
        }  # fmt: skip
        for form in self._formats:
            write[form](number, time, corners, scores, classes)

    def __exit__(self, *error: Any) -> None:
        if "coco" in self._files:
            self._files["coco"].write("\n]\n" if self._boxes else "[]\n")
        self._exits.__exit__(*error)

    def _name(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else f"class {index}"

    def _jsonl(self, number, time, boxes, scores, classes) -> None:
        line = {
            "frame": number,
            "time": time,
            "boxes": boxes,
            "scores": scores,
            "classes": [self._name(index) for index in classes],
        }
        self._files["jsonl"].write(json.dumps(line) + "\n")

    def _mot(self, number, time, boxes, scores, classes) -> None:
        del time, classes
        for box, score in zip(boxes, scores, strict=True):
            place = ",".join(map(str, _left_top_size(box)))
            self._files["mot"].write(f"{number + 1},-1,{place},{score},-1,-1,-1\n")

    def _coco(self, number, time, boxes, scores, classes) -> None:
        del time
        for box, score, index in zip(boxes, scores, classes, strict=True):
            entry = {
                "image_id": number,
                "category_id": index,
                "bbox": _left_top_size(box),
                "score": score,
            }
            self._files["coco"].write((",\n" if self._boxes else "[\n") + json.dumps(entry))
            self._boxes += 1

    def _csv(self, number, time, boxes, scores, classes) -> None:
        for box, score, index in zip(boxes, scores, classes, strict=True):
            self._row(number, time, self._name(index), score, *box)

    def _row(self, *cells: Any) -> None:
        csv.writer(self._files["csv"], lineterminator="\n").writerow(cells)


def _short(number: float) -> float | int:
    return int(number) if float(number).is_integer() else float(number)


def _left_top_size(box: Sequence[float]) -> list[float | int]:
    x0, y0, x1, y1 = box
    return [_short(round(x, 2)) for x in (x0, y0, x1 - x0, y1 - y0)]
