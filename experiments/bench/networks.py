"""Networks to run, as `fn(params, frames)` and its parameters."""

from collections.abc import Callable

from flax import nnx

from dynvid.models.modules import from_nnx
from dynvid.types import Frames, Output, Params
from dynvid.weights.onnx import load_onnx
from dynvid.weights.yolov5 import load_yolov5
from experiments.bench import DATA

Network = Callable[[Params, Frames], Output]

YOLOX_NANO = DATA / "weights" / "yolox_nano" / "yolox_nano.onnx"
"""As published, which onnxruntime runs too."""


def network(kind: Callable[..., nnx.Module]) -> tuple[Network, Params]:
    """A flax module with random weights."""
    return from_nnx(kind(rngs=nnx.Rngs(0)))


def load_yolov5n() -> tuple[Network, Params]:
    """YOLOv5n, trained on COCO: RGB frames in [0, 1]."""
    return load_yolov5(DATA / "weights" / "yolov5n" / "yolov5n.pt")


def load_yolox_nano() -> tuple[Network, Params]:
    """YOLOX-nano, trained on COCO: BGR frames in [0, 255]."""
    return load_onnx(YOLOX_NANO)
