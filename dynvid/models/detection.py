"""Object detection around a network: letterboxing, decoding, non-maximum suppression, heads."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynvid.types import Frames, Output, Params

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


class Detections(NamedTuple):
    """A fixed number of detections per image, best first; the rest is marked as not valid.

    Attributes:
      boxes: `(B, K, 4)` floating, `(x0, y0, x1, y1)` in pixels of the network's input.
      scores: `(B, K)` floating in [0, 1].
      classes: `(B, K)` int32.
      valid: `(B, K)` bool; where it is false, boxes and scores are 0 and classes are -1.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array


def intersection_over_union(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """How much of the union of two boxes both cover, for every pair.

    Args:
      boxes: `(..., N, 4)`, `(x0, y0, x1, y1)`.
      others: `(..., M, 4)`, likewise.

    Returns:
      `(..., N, M)` in [0, 1]; 0 where both boxes are empty.

    >>> a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
    >>> intersection_over_union(a, jnp.array([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]]))
    Array([[0.33333334, 0.        ]], dtype=float32)
    """
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    shared = jnp.prod(jnp.maximum(high - low, 0), -1)
    area_a = jnp.prod(jnp.maximum(a[..., 2:] - a[..., :2], 0), -1)
    area_b = jnp.prod(jnp.maximum(b[..., 2:] - b[..., :2], 0), -1)
    union = area_a + area_b - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


@functools.partial(jax.jit, static_argnames=("max_candidates", "max_detections"))
def non_maximum_suppression(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    max_candidates: int = 256,
    max_detections: int = 100,
) -> Detections:
    """Greedy non-maximum suppression within each class, of static shape.

    Every box takes its best class; the `max_candidates` best boxes are visited by falling score
    and one is kept unless a kept box of its class overlaps it by more than `iou_threshold`.

    Args:
      boxes: `(B, N, 4)` floating, `(x0, y0, x1, y1)`.
      scores: `(B, N, C)` floating, one score a class.
      score_threshold: the least score that counts.
      iou_threshold: the greatest overlap at which both boxes stay, in [0, 1].
      max_candidates: how many boxes of an image are looked at.
      max_detections: K, how many are returned.

    Returns:
      `Detections` with K slots an image.

    Raises:
      ValueError: the shapes do not belong together.

    Exact when at most `max_candidates` boxes reach the score threshold and at most
    `max_detections` of them stay; otherwise those with the lowest scores are lost.

    >>> boxes = jnp.array([[[0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9]]], jnp.float32)
    >>> found = non_maximum_suppression(
    ...     boxes, jnp.array([[[0.5], [0.9], [0.7]]]), max_detections=4
    ... )
    >>> found.scores
    Array([[0.9, 0.7, 0. , 0. ]], dtype=float32)
    """
    _check_pairs(boxes, scores)
    best, index = lax.top_k(jnp.max(scores, -1), min(max_candidates, boxes.shape[1]))
    rows = index[..., None]
    return _suppress(
        jnp.take_along_axis(boxes, rows, 1),
        best,
        jnp.argmax(jnp.take_along_axis(scores, rows, 1), -1),
        score_threshold,
        iou_threshold,
        max_detections,
    )


@functools.partial(jax.jit, static_argnames=("max_candidates", "max_detections"))
def multilabel_non_maximum_suppression(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    max_candidates: int = 400,
    max_detections: int = 200,
) -> Detections:
    """Greedy non-maximum suppression of each class by itself, so that a box may have several.

    In each class its `max_candidates` best boxes are visited by falling score and one is kept
    unless a kept one overlaps it by more than `iou_threshold`; the `max_detections` best of all
    classes are returned (the output layer of Liu et al. 2016, SSD, section 2.2).

    Args:
      boxes: `(B, N, 4)` floating, `(x0, y0, x1, y1)`.
      scores: `(B, N, C)` floating, one score a class.
      score_threshold: the least score that counts.
      iou_threshold: the greatest overlap at which both boxes stay, in [0, 1].
      max_candidates: how many boxes of a class are looked at.
      max_detections: K, how many are returned.

    Returns:
      `Detections` with K slots an image.

    Raises:
      ValueError: the shapes do not belong together.

    Exact when at most `max_candidates` boxes of a class reach the score threshold and at most
    `max_detections` of them stay; otherwise those with the lowest scores are lost.

    >>> boxes = jnp.array([[[0, 0, 9, 9], [0, 0, 9, 8]]], jnp.float32)
    >>> found = multilabel_non_maximum_suppression(
    ...     boxes, jnp.array([[[0.5, 0.4], [0.9, 0.0]]]), max_detections=3
    ... )
    >>> found.scores, found.classes
    (Array([[0.9, 0.4, 0. ]], dtype=float32), Array([[ 0,  1, -1]], dtype=int32))
    """
    _check_pairs(boxes, scores)
    batch, count, classes = scores.shape
    best, index = lax.top_k(jnp.swapaxes(scores, 1, 2), min(max_candidates, count))
    places = jax.vmap(lambda rows, at: rows[at])(boxes, index)
    kept = _survivors(places, best >= score_threshold, iou_threshold)
    labels = jnp.broadcast_to(jnp.arange(classes)[:, None], index.shape)
    return _best(
        places.reshape(batch, -1, 4),
        best.reshape(batch, -1),
        labels.reshape(batch, -1),
        kept.reshape(batch, -1),
        max_detections,
    )


def _check_pairs(boxes: jax.Array, scores: jax.Array) -> None:
    if boxes.ndim != 3 or boxes.shape[2] != 4 or boxes.shape[:2] != scores.shape[:2]:
        raise ValueError(
            f"boxes and scores must be (B, N, 4) and (B, N, C), got {boxes.shape}, {scores.shape}"
        )


def _suppress(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> Detections:
    """Suppression among `(B, K)` candidates that are sorted by falling score."""
    kept = _survivors(
        boxes,
        scores >= score_threshold,
        iou_threshold,
        rivals=classes[..., :, None] == classes[..., None, :],
    )
    return _best(boxes, scores, classes, kept, max_detections)


def _survivors(
    boxes: jax.Array,
    candidate: jax.Array,
    iou_threshold: float,
    *,
    rivals: jax.Array | bool = True,
) -> jax.Array:
    """Which of `(..., K)` candidates, sorted by falling score, no better rival suppresses."""
    rank = jnp.arange(candidate.shape[-1])
    rivals &= intersection_over_union(boxes, boxes) > iou_threshold
    rivals &= rank[None, :] < rank[:, None]

    # A box stays unless a better one that stays overlaps it. Starting from all and applying this
    # until nothing changes gives the greedy answer, which is the only fixed point, in as many
    # rounds as the longest chain of suppression: a handful, where visiting takes one a box.
    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, _ = state
        return candidate & ~jnp.any(rivals & kept[..., None, :], -1), kept

    kept, _ = lax.while_loop(
        lambda state: jnp.any(state[0] != state[1]), step, step((candidate, candidate))
    )
    return kept


def _best(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, kept: jax.Array, max_detections: int
) -> Detections:
    """The best of the `(B, K)` boxes that are kept."""
    missing = max(max_detections - scores.shape[1], 0)
    _, index = lax.top_k(jnp.where(kept, scores, -jnp.inf), max_detections - missing)
    index = jnp.pad(index, ((0, 0), (0, missing)))
    valid = jnp.arange(max_detections) < jnp.sum(kept, 1, keepdims=True)
    return Detections(
        jnp.where(valid[..., None], jnp.take_along_axis(boxes, index[..., None], 1), 0),
        jnp.where(valid, jnp.take_along_axis(scores, index, 1), 0),
        jnp.where(valid, jnp.take_along_axis(classes, index, 1), -1).astype(jnp.int32),
        valid,
    )


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
      outputs: `(B, N, 5 + C)` floating, scores after their sigmoid; N counts the cells of all
        strides, row by row, finest first.
      size: (height, width) of the network's input, in pixels.
      strides: pixels per cell of each level.
      score_threshold: as in `non_maximum_suppression`, like the three below.
      iou_threshold: the greatest overlap at which both boxes stay.
      max_candidates: how many boxes of an image are looked at.
      max_detections: how many are returned.

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
            f"outputs must be (B, {cells}, 5 + classes) for size {size} and strides "
            f"{strides}, got {outputs.shape}"
        )
    places = jnp.concatenate([_grid(rows, columns, stride) for rows, columns, stride in levels])
    score, index = lax.top_k(
        outputs[..., 4] * jnp.max(outputs[..., 5:], -1), min(max_candidates, cells)
    )
    found = jnp.take_along_axis(outputs, index[..., None], 1)
    column, row, stride = jnp.moveaxis(places[index], -1, 0)
    centre = jnp.stack([(found[..., 0] + column) * stride, (found[..., 1] + row) * stride], -1)
    half = jnp.exp(found[..., 2:4]) * stride[..., None] / 2
    return _suppress(
        jnp.concatenate([centre - half, centre + half], -1),
        score,
        jnp.argmax(found[..., 5:], -1),
        score_threshold,
        iou_threshold,
        max_detections,
    )


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
      outputs: one `(B, h, w, A * (5 + C))` floating a level, before the sigmoid.
      anchors: `(levels, A, 2)` (width, height) in pixels of the network's input.
      size: (height, width) of the network's input, in pixels.
      score_threshold: as in `non_maximum_suppression`, like the three below.
      iou_threshold: the greatest overlap at which both boxes stay.
      max_candidates: how many boxes of an image are looked at.
      max_detections: how many are returned.

    Returns:
      `Detections` in pixels of the network's input.

    Raises:
      ValueError: the outputs and anchors do not belong together.

    >>> outputs = [jnp.full((1, 1, 2, 6), 9.0), jnp.full((1, 1, 1, 6), -9.0)]
    >>> found = decode_yolov5(outputs, jnp.full((2, 1, 2), 1.0), size=(8, 16), max_detections=3)
    >>> found.valid
    Array([[ True,  True, False]], dtype=bool)
    """
    if anchors.ndim != 3 or len(outputs) != len(anchors):
        raise ValueError(
            f"{len(outputs)} outputs need anchors ({len(outputs)}, A, 2), got {anchors.shape}"
        )
    score, found, place = _best_cells(outputs, list(anchors), size, max_candidates)
    p = jax.nn.sigmoid(found[..., :4])
    centre = (2 * p[..., :2] - 0.5 + place[..., :2]) * place[..., 2:4]
    half = (2 * p[..., 2:4]) ** 2 * place[..., 4:6] / 2
    return _suppress(
        jnp.concatenate([centre - half, centre + half], -1),
        score,
        jnp.argmax(found[..., 5:], -1),
        score_threshold,
        iou_threshold,
        max_detections,
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
      outputs: one `(B, h, w, A * (5 + C))` floating a head, before the sigmoid.
      anchors: one `(A, 2)` (width, height) a head, in pixels of the network's input.
      size: (height, width) of the network's input, in pixels.
      scale_x_y: c, one a head; 1 where it is None.
      score_threshold: as in `non_maximum_suppression`, like the three below.
      iou_threshold: the greatest overlap at which both boxes stay.
      max_candidates: how many boxes of an image are looked at.
      max_detections: how many are returned.

    Returns:
      `Detections` in pixels of the network's input.

    Raises:
      ValueError: the outputs, anchors and scales do not belong together.

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
            f"{len(outputs)} outputs need as many anchors (A, 2) and scales, got "
            f"{[a.shape for a in anchors]} and {len(scales)} scales"
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
    return _suppress(
        jnp.concatenate([centre - half, centre + half], -1),
        score,
        jnp.argmax(found[..., 5:], -1),
        score_threshold,
        iou_threshold,
        max_detections,
    )


def _best_cells(
    outputs: Sequence[jax.Array],
    levels: Sequence[jax.Array],
    size: tuple[int, int],
    max_candidates: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best anchors of the best cells of raw head outputs, by objectness times class score.

    Args:
      outputs: one `(B, h, w, A * (5 + C))` a level.
      levels: one `(A, D)` a level, what is to know about each anchor.
      size: (height, width) of the network's input.
      max_candidates: K, the most that are taken.

    Returns:
      Scores `(B, K)`, falling; their outputs `(B, K, 5 + C)`; and `(B, K, 4 + D)`: column, row,
      horizontal and vertical stride, and what the level says.
    """
    rows, places = [], []
    for output, level in zip(outputs, levels, strict=True):
        batch, height, width, channels = output.shape
        count = len(level)
        if channels % count or channels // count < 6:
            raise ValueError(f"output of shape {output.shape} for {count} anchors a cell")
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


Placement = Literal["top_left", "centre", "stretch"]
"""Where a frame lies in the network's input; `stretch` fills it and gives up the aspect."""


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """How frames of one size lie in a network's input of another, made by `letterbox`.

    Attributes:
      frame_size: (height, width) of a frame, in pixels.
      network_size: (height, width) of the network's input.
      resized: (height, width) of the frame once it is resized.
      top: rows of filling above it.
      left: columns of filling left of it.
      fill: the value around it, in the frame's unit.
    """

    frame_size: tuple[int, int]
    network_size: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    fill: float

    def to_network(self, frames: Frames) -> jax.Array:
        """Resizes and pads frames: bilinear between pixel centres, without antialiasing.

        Args:
          frames: `(streams, H, W, C)` of `frame_size`; integers are converted to float32.

        Returns:
          `(streams, *network_size, C)` floating, in the frame's unit.

        Raises:
          ValueError: the frames have another size.

        Exact when the sizes are equal: then nothing is done.

        >>> box = letterbox((2, 4), (4, 4), placement="centre", fill=9)
        >>> box.to_network(jnp.ones((1, 2, 4, 1)))[0, :, :, 0]
        Array([[9., 9., 9., 9.],
               [1., 1., 1., 1.],
               [1., 1., 1., 1.],
               [9., 9., 9., 9.]], dtype=float32)
        """
        if frames.ndim != 4 or tuple(frames.shape[1:3]) != self.frame_size:
            raise ValueError(
                f"frames must be (streams, {self.frame_size[0]}, {self.frame_size[1]}, C), "
                f"got {frames.shape}"
            )
        x = frames if jnp.issubdtype(frames.dtype, jnp.floating) else frames.astype(jnp.float32)
        if self.resized != self.frame_size:
            shape = (x.shape[0], *self.resized, x.shape[3])
            x = jax.image.resize(x, shape, "bilinear", antialias=False)
        if self.resized != self.network_size:
            bottom = self.network_size[0] - self.resized[0] - self.top
            right = self.network_size[1] - self.resized[1] - self.left
            padding = ((0, 0), (self.top, bottom), (self.left, right), (0, 0))
            x = jnp.pad(x, padding, constant_values=self.fill)
        return x

    def to_frame(self, detections: Detections) -> Detections:
        """Detections with their boxes in pixels of the frame, clipped to it.

        >>> box = letterbox((20, 40), (10, 10))
        >>> one = Detections(
        ...     jnp.array([[[1.0, 1.0, 5.0, 9.0]]]), jnp.ones((1, 1)), jnp.zeros((1, 1), int),
        ...     jnp.ones((1, 1), bool),
        ... )
        >>> box.to_frame(one).boxes
        Array([[[ 4.,  4., 20., 20.]]], dtype=float32)
        """
        (height, width), (rows, columns) = self.frame_size, self.resized
        offset = jnp.array([self.left, self.top] * 2, jnp.float32)
        scale = jnp.array([width / columns, height / rows] * 2, jnp.float32)
        limit = jnp.array([width, height] * 2, jnp.float32)
        boxes = jnp.clip((detections.boxes - offset) * scale, 0, limit)
        return detections._replace(boxes=jnp.where(detections.valid[..., None], boxes, 0))


def letterbox(
    frame_size: tuple[int, int],
    network_size: tuple[int, int],
    *,
    placement: Placement = "top_left",
    fill: float = 114,
) -> Letterbox:
    """The largest copy of a frame that fits a network's input with its aspect kept.

    Args:
      frame_size: (height, width) of the frames, in pixels.
      network_size: (height, width) of the network's input.
      placement: `top_left` as YOLOX, `centre` as YOLOv5, `stretch` to fill the input.
      fill: the value around the frame, in the frame's unit.

    Returns:
      The geometry: `to_network` for frames, `to_frame` for boxes.

    Raises:
      ValueError: a size is not positive.

    >>> letterbox((576, 768), (416, 416)).resized
    (312, 416)
    """
    if min(*frame_size, *network_size) < 1:
        raise ValueError(f"sizes must be positive, got {frame_size} and {network_size}")
    (height, width), (rows, columns) = frame_size, network_size
    if placement == "stretch":
        resized = (rows, columns)
    elif rows * width < columns * height:  # the height decides; in integers, so nothing is lost
        resized = (rows, max(width * rows // height, 1))
    else:
        resized = (max(height * columns // width, 1), columns)
    centred = placement == "centre"
    top = (rows - resized[0]) // 2 if centred else 0
    left = (columns - resized[1]) // 2 if centred else 0
    return Letterbox((height, width), (rows, columns), resized, top, left, fill)


@dataclasses.dataclass(frozen=True)
class Head:
    """What a runner has to know about a family of detectors.

    Attributes:
      class_names: the name of each class index.
      decode: `decode(params, outputs, *, size, score_threshold, iou_threshold) -> Detections`, in
        pixels of the network's input of (height, width) `size`.
      placement: how a frame is laid into the network's input.
      channel_order: of the network's input; frames are RGB.
      white: the value that the network's input gives to white, 255 or 1.
      fill: the value of the padding, of 0..255.
      mean: what the network's input has subtracted, by channel, of 0..`white`.
      longest_side: of the network's input where the model does not fix its size, in pixels.
      square: whether that input is square; else it keeps the frame's aspect.
      multiple: what height and width of the input must be multiples of.
    """

    class_names: tuple[str, ...]
    decode: Callable[..., Detections]
    placement: Placement
    channel_order: Literal["rgb", "bgr"]
    white: float
    fill: float = 114
    mean: tuple[float, float, float] = (0, 0, 0)
    longest_side: int = 640
    square: bool = False
    multiple: int = 32

    def network_size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of the network's input for frames of a size, where it is free.

        >>> HEADS["yolov5"].network_size((576, 768)), HEADS["yolox"].network_size((576, 768))
        ((480, 640), (416, 416))
        """
        if self.square:
            return self.longest_side, self.longest_side
        longest = max(frame_size)
        height, width = (
            -(-side * self.longest_side // (longest * self.multiple)) * self.multiple
            for side in frame_size
        )
        return height, width

    def letterbox(
        self, frame_size: tuple[int, int], *, network_size: tuple[int, int] | None = None
    ) -> Letterbox:
        """How frames of a size lie in the network's input, of the head's own choice by default."""
        size = self.network_size(frame_size) if network_size is None else network_size
        return letterbox(frame_size, size, placement=self.placement, fill=self.fill)

    def on_frames(
        self, network: Callable[[Params, jax.Array], Output], geometry: Letterbox
    ) -> Callable[[Params, Frames], Output]:
        """The network as a function of a camera's frames: conversion and resizing inside.

        Args:
          network: `network(params, images)`, what `load_onnx` or `load_yolov5` gives.
          geometry: what `letterbox` gives for the frames' size.

        Returns:
          `fn(params, frames)` for uint8 RGB frames `(streams, H, W, 3)` of `geometry.frame_size`,
          with the network's raw outputs, ready for `dynvid.incremental`.

        >>> head, geometry = HEADS["yolox"], letterbox((2, 2), (2, 2))
        >>> fn = head.on_frames(lambda params, images: images, geometry)
        >>> fn(None, jnp.full((1, 2, 2, 3), jnp.array([1, 2, 3], jnp.uint8)))[0, 0, 0]
        Array([3., 2., 1.], dtype=float32)
        """

        def fn(params: Params, frames: Frames) -> Output:
            images = geometry.to_network(frames)
            images = images[..., ::-1] if self.channel_order == "bgr" else images
            images = images if self.white == 255 else images * (self.white / 255)
            images = images - jnp.array(self.mean, images.dtype) if any(self.mean) else images
            return network(params, images)

        return fn


def _yolox(params: Params, outputs: Output, **options) -> Detections:
    return decode_yolox(outputs, **options)


def _yolov5(params: Params, outputs: Output, **options) -> Detections:
    return decode_yolov5(outputs, params["anchors"], **options)


def _yolov3(params: Params, outputs: Output, **options) -> Detections:
    return decode_yolov3(outputs, params["anchors"], scale_x_y=params["scale_x_y"], **options)


HEADS: dict[str, Head] = {
    "yolox": Head(
        COCO_CLASSES, _yolox, "top_left", "bgr", white=255, longest_side=416, square=True
    ),
    "yolov5": Head(COCO_CLASSES, _yolov5, "centre", "rgb", white=1),
    # Darknet pads with 0.5 of 1.
    "yolov3": Head(
        COCO_CLASSES, _yolov3, "centre", "rgb", white=1, fill=127.5, longest_side=416, square=True
    ),
}
"""The detector families that a runner knows by name."""
