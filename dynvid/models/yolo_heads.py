"""Boxes from the outputs of YOLO networks: YOLOX, YOLOv5, YOLOv3, and exports of Ultralytics."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynvid.ops.boxes import Detections, suppress_sorted, surviving

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of the COCO detection task, in the order of its networks' outputs."""


_STRIDES = (8, 16, 32)


@functools.partial(jax.jit, static_argnames=("size", "strides", "max_candidates", "max_detections"))
def decode_yolox(
    outputs: jax.Array,
    *,
    size: tuple[int, int],
    strides: tuple[int, ...] = (8, 16, 32),
    score_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    max_candidates: int = 256,
    max_detections: int = 100,
) -> Detections:
    """Boxes from the raw output of a YOLOX network.

    A cell of column u, row v and stride s says (x, y, w, h, objectness, class scores): the centre
    is ((x + u) s, (y + v) s), the size (exp(w) s, exp(h) s), the score objectness times class
    score (Ge et al., YOLOX, 2021, section 2.1, anchor-free).

    Args:
      outputs: `(S, N, 5 + C)` floating, scores after their sigmoid; N counts the cells of all
        strides, row by row, finest first.
      size: (height, width) of the network's input, in pixels.
      strides: Pixels per cell of each level.
      score_threshold: As in `non_maximum_suppression`, like the three below.
      iou_threshold: The greatest overlap at which both boxes stay.
      max_candidates: How many boxes of an image are looked at.
      max_detections: How many are returned.

    Returns:
      `Detections` in pixels of the network's input.

    Raises:
      ValueError: N is not the number of cells that `size` and `strides` make.

    >>> outputs = jnp.zeros((1, 21, 6)).at[0, 0].set(jnp.array([0.5, 0.5, 0.0, 0.0, 0.9, 1.0]))
    >>> decode_yolox(outputs, size=(32, 32), max_detections=1).boxes
    Array([[[0., 0., 8., 8.]]], dtype=float32)
    """
    levels = [(-(-size[0] // stride), -(-size[1] // stride), stride) for stride in strides]
    cells = sum(rows * columns for rows, columns, _ in levels)
    if outputs.ndim != 3 or outputs.shape[1] != cells or outputs.shape[2] < 6:
        raise ValueError(
            f"outputs must be (S, {cells}, 5 + classes) for size {size} and strides "
            f"{strides}; got {outputs.shape}"
        )
    places = jnp.concatenate([_grid(rows, columns, stride) for rows, columns, stride in levels])
    score, index = lax.top_k(
        outputs[..., 4] * jnp.max(outputs[..., 5:], -1), min(max_candidates, cells)
    )
    found = jnp.take_along_axis(outputs, index[..., None], 1)
    column, row, stride = jnp.moveaxis(places[index], -1, 0)
    centre = jnp.stack([(found[..., 0] + column) * stride, (found[..., 1] + row) * stride], -1)
    half = jnp.exp(found[..., 2:4]) * stride[..., None] / 2
    return suppress_sorted(
        jnp.concatenate([centre - half, centre + half], -1),
        score,
        jnp.argmax(found[..., 5:], -1),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )


class Instances(NamedTuple):
    """Detections, each with its outline.

    Attributes:
      detections: The boxes.
      masks: `(S, K, h, w)` bool, where each is, on a coarser grid over the network's input.
    """

    detections: Detections
    masks: jax.Array


@functools.partial(jax.jit, static_argnames=("size", "classes", "max_candidates", "max_detections"))
def decode_ultralytics(
    outputs: jax.Array | Mapping[str, jax.Array],
    *,
    size: tuple[int, int],
    classes: int | None = None,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    max_candidates: int = 1024,
    max_detections: int = 300,
) -> Detections | Instances:
    """Boxes, and outlines where there are any, from what Ultralytics exports to ONNX.

    The exported networks decode their boxes themselves, into pixels of their input. Three forms are
    known:

    - `(S, 4 + C, N)`: centre and size of each box, then its class scores (YOLOv8, YOLO11, YOLO26,
      YOLOv5u);
    - `(S, N, 5 + C)`, three anchors a cell: the same with an objectness before them, the score
      being their product (YOLOv5's own exporter);
    - `(S, K, 6)`: corners, score and class of what is left after suppression (`end2end`).

    A network that outlines objects (`-seg`) has 32 coefficients more for each box, and a second
    output of as many maps, `(S, 32, h, w)`: the mask is where the sum of the maps, weighted by the
    coefficients, is above 0, cut off at the box.

    Args:
      outputs: Of the network; a dict where it has two.
      size: (height, width) of the network's input, in pixels.
      classes: C where it is known.
      score_threshold: As in `non_maximum_suppression`, like the three below.
      iou_threshold: The greatest overlap at which both boxes stay.
      max_candidates: How many boxes of an image are looked at.
      max_detections: How many are returned.

    Returns:
      `Detections` in pixels of the network's input, as `Instances` where there are masks.

    Raises:
      ValueError: The outputs have none of these forms.

    >>> outputs = jnp.zeros((1, 4 + 2, 21)).at[0, :, 5].set(jnp.array([8, 8, 4, 6, 0.1, 0.9]))
    >>> found = decode_ultralytics(outputs, size=(32, 32), max_detections=1)
    >>> found.boxes.tolist(), found.classes.tolist()
    ([[[6.0, 5.0, 10.0, 11.0]]], [[1]])
    """
    leaves = list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]
    maps = [leaf for leaf in leaves if leaf.ndim == 4]
    rows = [leaf for leaf in leaves if leaf.ndim == 3]
    if len(rows) != 1 or len(maps) > 1:
        raise ValueError(
            "outputs must be (S, 4 + classes, N), (S, N, 5 + classes) or (S, K, 6), and masks "
            f"(S, 32, h, w) beside it; got {[leaf.shape for leaf in leaves]}"
        )
    (found,) = rows
    more = maps[0].shape[1] if maps else 0  # coefficients of a mask
    cells = sum(-(-size[0] // s) * -(-size[1] // s) for s in _STRIDES)
    if found.shape[1] != cells and found.shape[2] == cells and found.shape[1] > 4 + more:
        found = jnp.swapaxes(found, 1, 2)
        box, scores, rest = jnp.split(found, [4, found.shape[2] - more], 2)
    elif found.shape[1] == 3 * cells and found.shape[2] > 5 + more:
        box, objectness, scores, rest = jnp.split(found, [4, 5, found.shape[2] - more], 2)
        scores = objectness * scores
    elif found.shape[2] == 6 + more and found.shape[1] <= cells:
        return _end_to_end(found, maps, size, score_threshold, max_detections)
    else:
        raise ValueError(
            f"outputs must have {cells} boxes for an input of {size}; got {found.shape}"
        )
    if classes is not None and scores.shape[2] != classes:
        raise ValueError(f"outputs must score {classes} classes; got {scores.shape[2]}")
    score, index = lax.top_k(jnp.max(scores, -1), min(max_candidates, scores.shape[1]))
    take = lambda x: jnp.take_along_axis(x, index[..., None], 1)  # noqa: E731
    centre, half = take(box[..., :2]), take(box[..., 2:]) / 2
    label = jnp.argmax(take(scores), -1)
    boxes = jnp.concatenate([centre - half, centre + half], -1)
    options = {
        "score_threshold": score_threshold,
        "iou_threshold": iou_threshold,
        "max_detections": max_detections,
    }
    detections = suppress_sorted(boxes, score, label, **options)
    if not maps:
        return detections
    kept = surviving(boxes, score, label, **options)
    best = lax.top_k(jnp.where(kept, score, -jnp.inf), min(max_detections, score.shape[1]))[1]
    best = jnp.pad(best, ((0, 0), (0, max_detections - best.shape[1])))
    coefficients = jnp.take_along_axis(take(rest), best[..., None], 1)
    return Instances(detections, _masks(coefficients, detections, maps[0], size))


def _end_to_end(
    found: jax.Array,
    maps: list[jax.Array],
    size: tuple[int, int],
    score_threshold: float,
    max_detections: int,
) -> Detections | Instances:
    """What the network has suppressed itself: best first, with scores of 0 where there is none."""
    score, index = lax.top_k(found[..., 4], min(max_detections, found.shape[1]))
    found = jnp.take_along_axis(found, index[..., None], 1)
    valid = score >= score_threshold
    detections = Detections(
        jnp.where(valid[..., None], found[..., :4], 0),
        jnp.where(valid, score, 0),
        jnp.where(valid, found[..., 5], -1).astype(jnp.int32),
        valid,
    )
    if not maps:
        return detections
    return Instances(detections, _masks(found[..., 6:], detections, maps[0], size))


def _masks(
    coefficients: jax.Array, detections: Detections, maps: jax.Array, size: tuple[int, int]
) -> jax.Array:
    """Where the weighted sum of the maps is above 0, inside of each box."""
    rows, columns = maps.shape[2:]
    level = jnp.einsum("skm,smhw->skhw", coefficients, maps)
    x0, y0, x1, y1 = (detections.boxes[..., k, None, None] for k in range(4))
    y = (jnp.arange(rows)[:, None] + 0.5) * size[0] / rows
    x = (jnp.arange(columns) + 0.5) * size[1] / columns
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    return (level > 0) & inside & detections.valid[..., None, None]


def _grid(rows: int, columns: int, stride: int) -> jax.Array:
    """`(rows * columns, 3)`: column, row and stride of every cell."""
    row, column = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    cells = jnp.stack([column, row, jnp.full_like(row, stride)], -1)
    return cells.reshape(-1, 3).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("size", "max_candidates", "max_detections"))
def decode_yolov5(
    outputs: Sequence[jax.Array],
    anchors: jax.Array,
    *,
    size: tuple[int, int],
    score_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    max_candidates: int = 256,
    max_detections: int = 100,
) -> Detections:
    """Boxes from the raw head outputs of a YOLOv5 network (version 6).

    With p the sigmoid of a cell's outputs, u and v its column and row, s its stride: the centre is
    ((2 p_x - 0.5 + u) s, (2 p_y - 0.5 + v) s), the size ((2 p_w)^2 a_w, (2 p_h)^2 a_h) with the
    anchor a, the score p_objectness p_class.

    Args:
      outputs: One `(S, h, w, A * (5 + C))` floating a level, before the sigmoid.
      anchors: `(levels, A, 2)` (width, height) in pixels of the network's input.
      size: (height, width) of the network's input, in pixels.
      score_threshold: As in `non_maximum_suppression`, like the three below.
      iou_threshold: The greatest overlap at which both boxes stay.
      max_candidates: How many boxes of an image are looked at.
      max_detections: How many are returned.

    Returns:
      `Detections` in pixels of the network's input.

    Raises:
      ValueError: The outputs and anchors do not belong together.

    >>> outputs = [jnp.full((1, 1, 2, 6), 9.0), jnp.full((1, 1, 1, 6), -9.0)]
    >>> found = decode_yolov5(outputs, jnp.full((2, 1, 2), 1.0), size=(8, 16), max_detections=3)
    >>> found.valid
    Array([[ True,  True, False]], dtype=bool)
    """
    if anchors.ndim != 3 or len(outputs) != len(anchors):
        raise ValueError(
            f"anchors must be ({len(outputs)}, A, 2), as there are outputs; got {anchors.shape}"
        )
    score, found, place = _best_cells(outputs, list(anchors), size, max_candidates)
    p = jax.nn.sigmoid(found[..., :4])
    centre = (2 * p[..., :2] - 0.5 + place[..., :2]) * place[..., 2:4]
    half = (2 * p[..., 2:4]) ** 2 * place[..., 4:6] / 2
    return suppress_sorted(
        jnp.concatenate([centre - half, centre + half], -1),
        score,
        jnp.argmax(found[..., 5:], -1),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )


@functools.partial(jax.jit, static_argnames=("size", "max_candidates", "max_detections"))
def decode_yolov3(
    outputs: Sequence[jax.Array],
    anchors: Sequence[jax.Array],
    *,
    size: tuple[int, int],
    scale_x_y: Sequence[jax.Array | float] | None = None,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    max_candidates: int = 256,
    max_detections: int = 100,
) -> Detections:
    """Boxes from the raw head outputs of a YOLOv3 network, or another of Darknet's with its heads.

    With t a cell's outputs, u and v its column and row, s its stride, c the head's scale and p the
    sigmoid: the centre is ((c p(t_x) - (c - 1) / 2 + u) s, (c p(t_y) - (c - 1) / 2 + v) s), the
    size (exp(t_w) a_w, exp(t_h) a_h) with the anchor a, the score p(objectness) p(class) (Redmon
    and Farhadi, YOLOv3, 2018, section 2.1, where c is 1).

    Args:
      outputs: One `(S, h, w, A * (5 + C))` floating a head, before the sigmoid.
      anchors: One `(A, 2)` (width, height) a head, in pixels of the network's input.
      size: (height, width) of the network's input, in pixels.
      scale_x_y: c, one a head; 1 where it is None.
      score_threshold: As in `non_maximum_suppression`, like the three below.
      iou_threshold: The greatest overlap at which both boxes stay.
      max_candidates: How many boxes of an image are looked at.
      max_detections: How many are returned.

    Returns:
      `Detections` in pixels of the network's input.

    Raises:
      ValueError: The outputs, anchors and scales do not belong together.

    >>> outputs = [jnp.zeros((1, 1, 2, 6)).at[0, 0, 1, 4:].set(9.0)]
    >>> found = decode_yolov3(outputs, [jnp.array([[4.0, 2.0]])], size=(8, 16), max_detections=1)
    >>> found.boxes
    Array([[[10.,  3., 14.,  5.]]], dtype=float32)
    """
    scales = [1.0] * len(outputs) if scale_x_y is None else scale_x_y
    if not len(outputs) == len(anchors) == len(scales) or any(
        a.ndim != 2 or a.shape[1] != 2 for a in anchors
    ):
        raise ValueError(
            "anchors and scale_x_y must be (A, 2) and a number for each of "
            f"{len(outputs)} outputs; got {[a.shape for a in anchors]} and {len(scales)} scales"
        )
    levels = [
        jnp.concatenate([level, jnp.full((len(level), 1), scale)], 1)
        for level, scale in zip(anchors, scales, strict=True)
    ]
    score, found, place = _best_cells(outputs, levels, size, max_candidates)
    scale = place[..., 6:]
    offset = scale * jax.nn.sigmoid(found[..., :2]) - (scale - 1) / 2
    centre = (offset + place[..., :2]) * place[..., 2:4]
    half = jnp.exp(found[..., 2:4]) * place[..., 4:6] / 2
    return suppress_sorted(
        jnp.concatenate([centre - half, centre + half], -1),
        score,
        jnp.argmax(found[..., 5:], -1),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )


def _best_cells(
    outputs: Sequence[jax.Array],
    levels: Sequence[jax.Array],
    size: tuple[int, int],
    max_candidates: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best anchors of the best cells of raw head outputs, by objectness times class score.

    Args:
      outputs: One `(S, h, w, A * (5 + C))` a level.
      levels: One `(A, D)` a level, what is to know about each anchor.
      size: (height, width) of the network's input.
      max_candidates: K, the most that are taken.

    Returns:
      Scores `(S, K)`, falling; their outputs `(S, K, 5 + C)`; and `(S, K, 4 + D)`: column, row,
      horizontal and vertical stride, and what the level says.
    """
    rows, places = [], []
    for output, level in zip(outputs, levels, strict=True):
        batch, height, width, channels = output.shape
        count = len(level)
        if channels % count or channels // count < 6:
            raise ValueError(
                f"outputs must be (S, h, w, {count} * (5 + C)) for {count} anchors a cell; got "
                f"{output.shape}"
            )
        rows.append(output.reshape(batch, height * width * count, channels // count))
        stride = jnp.array([size[1] / width, size[0] / height], jnp.float32)
        cells = _grid(height, width, 0)[:, :2]
        place = jnp.concatenate([cells, jnp.tile(stride, (len(cells), 1))], -1)
        place = jnp.repeat(place, count, 0)
        places.append(jnp.concatenate([place, jnp.tile(level, (len(cells), 1))], -1))
    # The sigmoid is monotonic: the best class is found before it is taken.
    score = jnp.concatenate(
        [jax.nn.sigmoid(r[..., 4]) * jax.nn.sigmoid(jnp.max(r[..., 5:], -1)) for r in rows], 1
    )
    score, index = lax.top_k(score, min(max_candidates, score.shape[1]))
    found = jnp.take_along_axis(jnp.concatenate(rows, 1), index[..., None], 1)
    return score, found, jnp.concatenate(places)[index]
