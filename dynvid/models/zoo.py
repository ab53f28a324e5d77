"""The families of detectors that go by a name."""

from collections.abc import Callable
from typing import NamedTuple

from dynvid.models import ssd, synthetic_detector
from dynvid.models.ssd import VOC_CLASSES, decode_ssd
from dynvid.models.synthetic_detector import CLASS_NAMES, SyntheticOutputs, decode_synthetic
from dynvid.models.yolo_heads import COCO_CLASSES, decode_yolov3, decode_yolov5, decode_yolox
from dynvid.ops.boxes import Detections
from dynvid.tasks.preprocessing import Preprocessing
from dynvid.types import Output, Params


class Head(NamedTuple):
    """What there is to know about a family of detectors.

    Attributes:
      class_names: the name of each class index.
      decode: `decode(params, outputs, *, size, score_threshold, iou_threshold) -> Detections`, in
        pixels of the network's input of (height, width) `size`.
      preprocessing: how frames become the network's input.
    """

    class_names: tuple[str, ...]
    decode: Callable[..., Detections]
    preprocessing: Preprocessing


def _yolox(params: Params, outputs: Output, **options) -> Detections:
    return decode_yolox(outputs, **options)


def _yolov5(params: Params, outputs: Output, **options) -> Detections:
    return decode_yolov5(outputs, params["anchors"], **options)


def _yolov3(params: Params, outputs: Output, **options) -> Detections:
    return decode_yolov3(outputs, params["anchors"], scale_x_y=params["scale_x_y"], **options)


def _ssd(params: Params, outputs: Output, **options) -> Detections:
    return decode_ssd(*outputs, **options)


def _synthetic(
    params: Params,
    outputs: SyntheticOutputs,
    *,
    size: tuple[int, int],
    score_threshold: float,
    iou_threshold: float,
) -> Detections:
    return decode_synthetic(outputs, score_threshold=score_threshold, iou_threshold=iou_threshold)


HEADS: dict[str, Head] = {
    "yolox": Head(
        COCO_CLASSES,
        _yolox,
        Preprocessing(
            placement="top_left", channel_order="bgr", white=255, longest_side=416, square=True
        ),
    ),
    "yolov5": Head(
        COCO_CLASSES, _yolov5, Preprocessing(placement="centre", channel_order="rgb", white=1)
    ),
    "yolov3": Head(
        COCO_CLASSES,
        _yolov3,
        Preprocessing(
            placement="centre",
            channel_order="rgb",
            white=1,
            fill=127.5,  # Darknet pads with 0.5 of 1
            longest_side=416,
            square=True,
        ),
    ),
    "ssd": Head(
        VOC_CLASSES,
        _ssd,
        Preprocessing(
            placement="stretch",
            channel_order="bgr",
            white=255,
            mean=ssd.MEAN,
            longest_side=ssd.SIZE,
            square=True,
        ),
    ),
    "synthetic": Head(
        CLASS_NAMES,
        _synthetic,
        Preprocessing(
            placement="top_left",
            channel_order="rgb",
            white=1,
            longest_side=256,
            multiple=synthetic_detector.STRIDE,
        ),
    ),
}
"""The detector families that a runner knows by name."""
