"""Average precision of a detector, and how far two of its runs agree."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.ops.boxes import Detections, intersection_over_union
from dynvid.types import Agreement


class AveragePrecision(NamedTuple):
    """Average precision and what it is made of.

    Attributes:
      value: Scalar in [0, 1]; NaN where there is no ground truth.
      precision: `(N,)` of the detections with the n + 1 highest scores, for n < N = B K.
      recall: `(N,)`, likewise.
      true_positives: How many detections match a box of the ground truth.
      false_positives: How many do not; both add up to the number of detections.
      total: How many boxes the ground truth has.
    """

    value: jax.Array
    precision: jax.Array
    recall: jax.Array
    true_positives: jax.Array
    false_positives: jax.Array
    total: jax.Array


def of_class(detections: Detections, class_index: int) -> Detections:
    """The detections with only those of one class marked as valid.

    >>> found = Detections(
    ...     jnp.ones((1, 2, 4)), jnp.ones((1, 2)), jnp.array([[0, 3]]), jnp.ones((1, 2), bool)
    ... )
    >>> of_class(found, 3).valid
    Array([[False,  True]], dtype=bool)
    """
    return detections._replace(valid=detections.valid & (detections.classes == class_index))


def pad_boxes(boxes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of boxes of different lengths as one array and its mask.

    Args:
      boxes: One `(n, 4)` an image.

    Returns:
      `(B, M, 4)` float32 with zeros where there is no box, and `(B, M)` bool.

    >>> pad_boxes([np.ones((1, 4)), np.ones((2, 4))])[1]
    array([[ True, False],
           [ True,  True]])
    """
    most = max((len(b) for b in boxes), default=0)
    padded = np.zeros((len(boxes), most, 4), np.float32)
    present = np.zeros((len(boxes), most), bool)
    for image, b in enumerate(boxes):
        padded[image, : len(b)], present[image, : len(b)] = b, True
    return padded, present


@jax.jit
def match_detections(
    detections: Detections,
    boxes: jax.Array,
    present: jax.Array,
    *,
    classes: jax.Array | None = None,
    iou: float = 0.5,
) -> jax.Array:
    """Which detections are true positives: each box of the ground truth is found once.

    By falling score, a detection is right where the box that it overlaps most is overlapped by at
    least `iou` and not yet taken (Everingham et al., The PASCAL VOC Challenge, 2010, section 4.2).

    Args:
      detections: `(B, K)`; the order within an image does not matter.
      boxes: `(B, M, 4)` ground truth, `(x0, y0, x1, y1)` in the detections' unit.
      present: `(B, M)` bool, which of `boxes` there are.
      classes: `(B, M)` int, the class of each box: only detections of that class look at it. Where
        it is left out, all are taken to be of one class.
      iou: The least intersection over union of a match.

    Returns:
      `(B, K)` bool.

    Raises:
      ValueError: The shapes do not belong together.

    >>> found = Detections(
    ...     jnp.array([[[0.0, 0, 4, 4], [0, 0, 4, 3]]]), jnp.array([[0.5, 0.9]]),
    ...     jnp.zeros((1, 2), int), jnp.ones((1, 2), bool),
    ... )
    >>> match_detections(found, jnp.array([[[0.0, 0, 4, 4]]]), jnp.ones((1, 1), bool))
    Array([[False,  True]], dtype=bool)
    """
    batch, count = detections.scores.shape
    if boxes.ndim != 3 or boxes.shape != (batch, *present.shape[1:], 4):
        raise ValueError(
            f"boxes and present must be (B, M, 4) and (B, M) for {batch} images of detections; got "
            f"{boxes.shape} and {present.shape}"
        )
    if classes is not None and classes.shape != present.shape:
        raise ValueError(f"classes must be {present.shape} as present is; got {classes.shape}")
    if not count or not boxes.shape[1]:
        return jnp.zeros((batch, count), bool)
    order = jnp.argsort(jnp.where(detections.valid, -detections.scores, jnp.inf), axis=1)
    overlap = intersection_over_union(detections.boxes, jnp.asarray(boxes))
    overlap = jnp.where(present[:, None, :], overlap, -1)
    if classes is not None:
        alike = detections.classes[:, :, None] == classes[:, None, :]
        overlap = jnp.where(alike, overlap, -1)
    images = jnp.arange(batch)

    def visit(taken: jax.Array, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = overlap[images, slot]
        best = jnp.argmax(own, 1)
        right = (own[images, best] >= iou) & ~taken[images, best] & detections.valid[images, slot]
        return taken.at[images, best].max(right), right

    _, right = lax.scan(visit, jnp.zeros(boxes.shape[:2], bool), order.T)
    return jnp.zeros((batch, count), bool).at[images[:, None], order].set(right.T)


@functools.partial(jax.jit, static_argnames="interpolation")
def average_precision(
    detections: Detections,
    boxes: jax.Array,
    present: jax.Array,
    *,
    iou: float = 0.5,
    interpolation: Literal["all_points", "11_points"] = "all_points",
) -> AveragePrecision:
    """Average precision of one class over a set of images, as PASCAL VOC defines it.

    With p(r) the greatest precision at a recall of at least r, all points: the area under p (VOC
    2010 and later); 11 points: the mean of p at 0, 0.1, ..., 1 (Everingham et al., The PASCAL VOC
    Challenge, 2010, section 4.2).

    Args:
      detections: `(B, K)` of one class (see `of_class`); invalid ones do not count.
      boxes: `(B, M, 4)` ground truth, `(x0, y0, x1, y1)` in the detections' unit.
      present: `(B, M)` bool, which of `boxes` there are.
      iou: The least intersection over union of a match.
      interpolation: `all_points` or `11_points`.

    Returns:
      `AveragePrecision`, with the counts that it follows from.

    Raises:
      ValueError: The shapes do not belong together or the interpolation is not known.

    >>> found = Detections(
    ...     jnp.array([[[0.0, 0, 4, 4], [9, 9, 12, 12]]]), jnp.array([[0.9, 0.5]]),
    ...     jnp.zeros((1, 2), int), jnp.ones((1, 2), bool),
    ... )
    >>> truth = jnp.array([[[0.0, 0, 4, 4], [20, 20, 24, 24]]])
    >>> float(average_precision(found, truth, jnp.ones((1, 2), bool)).value)
    0.5
    """
    right = match_detections(detections, boxes, present, iou=iou)
    return _average_precision(
        right, detections.valid, detections.scores, jnp.sum(present), interpolation
    )


@functools.partial(jax.jit, static_argnames=("class_count", "interpolation"))
def average_precision_by_class(
    detections: Detections,
    boxes: jax.Array,
    classes: jax.Array,
    present: jax.Array,
    *,
    class_count: int,
    iou: float = 0.5,
    interpolation: Literal["all_points", "11_points"] = "all_points",
) -> AveragePrecision:
    """Average precision of every class over a set of images, as PASCAL VOC defines it.

    `average_precision` of each class by itself; `jnp.nanmean(result.value)` is the mean average
    precision, over the classes that the ground truth has.

    Args:
      detections: `(B, K)` of any classes; invalid ones do not count.
      boxes: `(B, M, 4)` ground truth, `(x0, y0, x1, y1)` in the detections' unit.
      classes: `(B, M)` int, the class of each box, numbered as the detections' are.
      present: `(B, M)` bool, which of `boxes` there are.
      class_count: C; boxes and detections of other classes than 0 to C - 1 do not count.
      iou: The least intersection over union of a match.
      interpolation: `all_points` or `11_points`.

    Returns:
      `AveragePrecision`, each array with C as its first axis.

    Raises:
      ValueError: The shapes do not belong together or the interpolation is not known.

    >>> found = Detections(
    ...     jnp.array([[[0.0, 0, 4, 4], [9, 9, 12, 12]]]), jnp.array([[0.9, 0.5]]),
    ...     jnp.array([[0, 1]]), jnp.ones((1, 2), bool),
    ... )
    >>> result = average_precision_by_class(
    ...     found, found.boxes, jnp.array([[0, 2]]), found.valid, class_count=3
    ... )
    >>> result.value
    Array([ 1., nan,  0.], dtype=float32)
    """
    right = match_detections(detections, boxes, present, classes=classes, iou=iou)

    def of_one(index: jax.Array) -> AveragePrecision:
        own = detections.classes == index
        return _average_precision(
            right & own,
            detections.valid & own,
            detections.scores,
            jnp.sum(present & (classes == index)),
            interpolation,
        )

    return lax.map(of_one, jnp.arange(class_count))


def _average_precision(
    right: jax.Array, valid: jax.Array, scores: jax.Array, total: jax.Array, interpolation: str
) -> AveragePrecision:
    """Average precision of the `(B, K)` valid detections, given which of them are right."""
    right, valid, scores = right.reshape(-1), valid.reshape(-1), scores.reshape(-1)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf))
    right, valid = right[order], valid[order]
    hits, seen = jnp.cumsum(right), jnp.cumsum(valid)
    precision = hits / jnp.maximum(seen, 1)
    best = lax.cummax(precision, reverse=True)
    if interpolation == "all_points":
        area = jnp.sum(jnp.where(right, best, 0))
        value = area / total
    elif interpolation == "11_points":
        # Recalls are compared as integers: 3 of 10 are at least 0.3.
        reached = hits[None, :] * 10 >= jnp.arange(11)[:, None] * total
        value = jnp.mean(jnp.max(jnp.where(reached, precision, 0), 1, initial=0))
        value = jnp.where(total > 0, value, jnp.nan)
    else:
        raise ValueError(
            f"interpolation must be 'all_points' or '11_points'; got {interpolation!r}"
        )
    return AveragePrecision(
        value=value,
        precision=precision,
        recall=hits / jnp.maximum(total, 1),
        true_positives=jnp.sum(right),
        false_positives=jnp.sum(valid & ~right),
        total=total,
    )


@jax.jit
def detection_agreement(dense: Detections, dynamic: Detections, *, iou: float = 0.5) -> jax.Array:
    """The share of detections that two runs have in common, image by image.

    With m pairs of the same class that overlap by at least `iou`, paired greedily by falling
    overlap, among n and k detections: 2 m / (n + k), the F1 score of one run against the other.

    Args:
      dense: `(B, K)` detections.
      dynamic: `(B, J)` detections in the same unit, clipped in the same way.
      iou: The least intersection over union of a pair.

    Returns:
      `(B,)` in [0, 1]: 1 where both agree on everything, also where neither has any detection.

    >>> found = Detections(
    ...     jnp.array([[[0.0, 0, 4, 4], [9, 9, 12, 12]]]), jnp.array([[0.9, 0.5]]),
    ...     jnp.zeros((1, 2), int), jnp.ones((1, 2), bool),
    ... )
    >>> detection_agreement(found, found._replace(valid=jnp.array([[True, False]])))
    Array([0.6666667], dtype=float32)
    """
    overlap = intersection_over_union(dense.boxes, dynamic.boxes)
    alike = (dense.classes[:, :, None] == dynamic.classes[:, None, :]) & (
        dense.valid[:, :, None] & dynamic.valid[:, None, :]
    )
    overlap = jnp.where(alike & (overlap >= iou), overlap, -1.0)
    batch, rows, columns = overlap.shape
    images = jnp.arange(batch)

    def pair(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, pairs = state
        best = jnp.argmax(left.reshape(batch, -1), 1)
        row, column = best // columns, best % columns
        found = left[images, row, column] >= 0
        left = left.at[images, row, :].set(-1.0).at[images, :, column].set(-1.0)
        return left, pairs + found

    start = (overlap, jnp.zeros(batch, jnp.int32))
    _, pairs = lax.fori_loop(0, min(rows, columns), pair, start)
    total = jnp.sum(dense.valid, 1) + jnp.sum(dynamic.valid, 1)
    return jnp.where(total > 0, 2 * pairs / jnp.maximum(total, 1), 1.0)


def detection_f1(dense: Detections, dynamic: Detections) -> Agreement:
    """`detection_agreement`, weighted by how many detections both runs have.

    So its mean is the F1 score of all images together. It is what `dynvid.tune` and
    `dynvid.audited` take as `metric=` where outputs are decoded to detections.

    Args:
      dense: `(B, K)` detections.
      dynamic: `(B, J)` detections in the same unit, clipped in the same way.

    Returns:
      An `Agreement`, `(B,)`.

    >>> found = Detections(
    ...     jnp.array([[[0.0, 0, 4, 4], [9, 9, 12, 12]]]), jnp.array([[0.9, 0.5]]),
    ...     jnp.zeros((1, 2), int), jnp.ones((1, 2), bool),
    ... )
    >>> detection_f1(found, found._replace(valid=jnp.array([[True, False]]))).weight
    Array([3.], dtype=float32)
    """
    count = jnp.sum(dense.valid, 1) + jnp.sum(dynamic.valid, 1)
    return Agreement(detection_agreement(dense, dynamic), count.astype(jnp.float32))
