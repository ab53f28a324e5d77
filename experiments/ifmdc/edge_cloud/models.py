"""The detectors and the videos that the command line knows by name."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dynvid.data.synthetic import render, synthetic_scene
from dynvid.models.synthetic_detector import load_synthetic_detector
from dynvid.models.zoo import HEADS, Head
from dynvid.tasks.detection import IOU_THRESHOLD
from dynvid.types import Params
from dynvid.video.reader import VideoSource
from dynvid.weights.darknet import load_darknet
from dynvid.weights.yolov5 import load_yolov5
from experiments.bench import DATA
from experiments.ifmdc.edge_cloud.network import SplitNetwork, split_network

WEIGHTS = {
    "yolov5n": "weights/yolov5n/yolov5n.pt",
    "yolo-fastest": "weights/yolo_fastest/yolo-fastest-1.1.cfg",
    "yolo-fastest-xl": "weights/yolo_fastest/yolo-fastest-1.1-xl.cfg",
}
"""Where the data folder has the models that have a name."""

CUTS = {"synthetic": "convolution_3", ".pt": "model.4", ".cfg": "layer_24"}
"""Where networks are cut unless told otherwise: at stride 8, where one narrow map crosses."""

VIDEO = "pets09_s2l1/img1"
TRUTH = "pets09_s2l1/gt_mot.txt"
"""What is sent unless told otherwise, and the boxes that somebody drew in it."""

LEAST_SCORE = 0.01
"""From which score on the cloud answers: average precision needs the doubtful ones too."""


def load(model: str | None, *, cut: str | None, size: tuple[int, int]) -> SplitNetwork:
    """Loads a detector and cuts it.

    Args:
      model: one of `WEIGHTS`, "synthetic", a `.pt` (YOLOv5) or a `.cfg` (Darknet, YOLOv3 heads,
        with its `.weights` beside it); None takes YOLOv5n where the data folder has it, and the
        detector that comes with the package where not.
      cut: as in `split_network`; None takes the family's of `CUTS`.
      size: (height, width) of the frames.

    Raises:
      ValueError: there is no such model, or it cannot be cut there or run at that size.
      OSError: its weights cannot be read.
    """
    if model is None:
        model = "yolov5n" if (DATA / WEIGHTS["yolov5n"]).is_file() else "synthetic"
    path = DATA / WEIGHTS[model] if model in WEIGHTS else pathlib.Path(model)
    head: Head
    params: Params
    network: Any
    if model == "synthetic":
        kind, head = "synthetic", HEADS["synthetic"]
        network, params = load_synthetic_detector()
    elif path.suffix == ".pt":
        kind, head = ".pt", HEADS["yolov5"]
        network, params = load_yolov5(path)
    elif path.suffix == ".cfg":
        kind, head = ".cfg", HEADS["yolov3"]
        network, params = load_darknet(path, weights=path.with_suffix(".weights"))
    else:
        raise ValueError(
            f"the model must be synthetic, {', '.join(WEIGHTS)}, a .pt or a .cfg file; got {model}"
        )

    def decode(params: Params, outputs: Any):
        return head.decode(
            params,
            outputs,
            size=size,
            score_threshold=LEAST_SCORE,
            iou_threshold=IOU_THRESHOLD,
        )

    return split_network(
        path.stem if kind != "synthetic" else kind,
        dataclasses.replace(head.preprocessing, size=size).on_frames(network),
        decode,
        params,
        cut=cut or CUTS[kind],
        size=size,
        class_names=head.class_names,
    )


class Scene:
    """Objects that cross the view of a fixed camera: a video where there is none."""

    name = "a synthetic scene"
    fps: float | None = 25.0

    def __init__(self, *, size: tuple[int, int], max_frames: int | None):
        self.size = size
        self.length: int = 250 if max_frames is None else max_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        scene = synthetic_scene(
            jax.random.key(4), size=self.size, objects=8, object_size=(24.0, 56.0)
        )
        for t in range(self.length):
            yield np.asarray(render(scene, t).frame)


def open_video(
    source: str | None, network: SplitNetwork, *, max_frames: int | None
) -> VideoSource | Scene:
    """A video at the network's size: the one that is named, PETS where it is, or a scene.

    Raises:
      VideoError: nothing can be read from the source.
    """
    if source is None:
        if network.name == "synthetic" or not (DATA / VIDEO).is_dir():
            return Scene(size=network.size, max_frames=max_frames)
        source = str(DATA / VIDEO)
    return VideoSource(source, size=network.size, letterbox=True, max_frames=max_frames)
