"""What is coded and judged: a detector cut in two, and a sequence with ground truth."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.progress import track

import dynvid
from dynvid.metrics.pseudo_ground_truth import GroundTruth
from dynvid.models.yolo_heads import COCO_CLASSES
from dynvid.models.zoo import HEADS
from dynvid.ops.boxes import Detections
from dynvid.weights.darknet import load_darknet
from experiments.bench import DATA, console
from experiments.bench.accuracy import class_indices, drawn_truth, judge, of_classes
from experiments.bench.networks import load_yolov5n
from experiments.bench.videos import read_clip

SIZE = (480, 640)
"""Height and width of the models' input, in pixels."""

PIXELS = SIZE[0] * SIZE[1]
"""What bits are divided by: pixels of the model's input, whatever is coded."""

EVERY = 2
"""AP is judged on every second frame; with a GOP of 15 these are of all places in it alike."""

SEQUENCES = {
    "PETS": ("pets09_s2l1/img1", "pets09_s2l1/gt_mot.txt"),
    "TUD-Stadtmitte": ("tud_stadtmitte/img1", "tud_stadtmitte/gt/gt.txt"),
}
"""Frames and ground truth of each, both of a fixed camera."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A detector cut in two where one tensor crosses.

    Attributes:
      name: What the tables call it.
      cut: The name of what crosses.
      params: Its weights.
      front: `front(params, frames) -> features (1, h, w, c)` of uint8 RGB frames.
      back: `back(params, features) -> outputs`.
      decode: `decode(params, outputs) -> Detections`, in pixels of the input.
    """

    name: str
    cut: str
    params: Any
    front: Callable[[Any, Any], jax.Array]
    back: Callable[[Any, jax.Array], Any]
    decode: Callable[[Any, Any], Detections]


def _model(name: str, cut: str, fn: Callable, params: Any, head: str) -> Model:
    front, back = dynvid.split(lambda p, x: fn(p, x / np.float32(255)), at=cut)
    frames = jax.ShapeDtypeStruct((1, *SIZE, 3), np.uint8)
    features = jax.eval_shape(front, params, frames)
    if features.others:
        raise ValueError(f"more than {cut!r} crosses the cut: {', '.join(features.others)}")
    classes = class_indices(COCO_CLASSES)

    def replaced(p: Any, feature: jax.Array) -> Any:
        return back(p, dataclasses.replace(features, named={cut: feature}))

    def decode(p: Any, outputs: Any) -> Detections:
        found = HEADS[head].decode(p, outputs, size=SIZE, score_threshold=0.01, iou_threshold=0.45)
        return of_classes(found, classes)

    return Model(name, cut, params, lambda p, x: front(p, x)[cut], replaced, decode)


def yolov5n() -> Model:
    """YOLOv5n after its stage at stride 8: (60, 80, 64), 1 value a pixel."""
    fn, params = load_yolov5n()
    return _model("YOLOv5n", "model.4", fn, params, "yolov5")


def yolo_fastest_xl() -> Model:
    """Yolo-Fastest-xl at the end of stride 8, layer 57: (60, 80, 32), half a value a pixel."""
    path = DATA / "weights" / "yolo_fastest" / "yolo-fastest-1.1-xl"
    fn, params = load_darknet(f"{path}.cfg", weights=f"{path}.weights")
    return _model("Yolo-Fastest-xl", "layer_57", fn, params, "yolov3")


MODELS = {"yolov5n": yolov5n, "yolo_fastest_xl": yolo_fastest_xl}


class Subject:
    """A model on a sequence, the features of all frames computed once.

    Args:
      model: The detector.
      sequence: A key of `SEQUENCES`.
      frames: How many frames to take at most.

    Attributes:
      name: "sequence, model".
      model: The detector.
      clip: The frames.
      features: `float32[frames, h, w, c]`.
      dense: Person AP50 in percent, nothing coded.
    """

    def __init__(self, model: Model, sequence: str, frames: int):
        self.name = f"{sequence}, {model.name}"
        self.model = model
        place, truth = SEQUENCES[sequence]
        self.clip = read_clip(sequence, place, SIZE, most=frames, truth=truth)
        front = jax.jit(model.front)
        self.front = functools.partial(front, model.params)
        self._detect = jax.jit(lambda p, x: model.decode(p, model.back(p, x)))
        shown = track(self.clip.frames, f"{self.name}: features", console=console, transient=True)
        self.features = np.concatenate([np.asarray(self.front(frame)) for frame in shown])
        self.dense = self.average_precision(self.features, "dense")

    def average_precision(self, features: np.ndarray, what: str) -> float:
        """Person AP50, in percent, of the back half on every `EVERY`th of the first frames."""
        judged = slice(0, len(features), EVERY)
        shown = track(
            features[judged], f"{self.name}: {what}", console=console, transient=True
        )  # fmt: skip
        parts = [jax.device_get(self._detect(self.model.params, x[None])) for x in shown]
        found = Detections(*(np.concatenate(x) for x in zip(*parts, strict=True)))
        found = found._replace(boxes=found.boxes * self.clip.scale)
        truth = GroundTruth(*(x[judged] for x in drawn_truth(self.clip)))
        return judge(found, truth)["person"]["ap50"]
