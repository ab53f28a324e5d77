"""How many detections are right and wrong, and how many objects are missed, class by class."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynvid.metrics.average_precision import match_detections
from dynvid.ops.boxes import Detections


class DetectionCounts(NamedTuple):
    """What detections come to over a set of images; each `(C,)` int32, one entry a class.

    Attributes:
      true_positives: Detections that match a box of the ground truth, each box once.
      false_positives: Detections that do not.
      false_negatives: Boxes of the ground truth that no detection matches.
      predictions: All detections: `true_positives + false_positives`.
      truths: All boxes of the ground truth: `true_positives + false_negatives`.
    """

    true_positives: jax.Array
    false_positives: jax.Array
    false_negatives: jax.Array
    predictions: jax.Array
    truths: jax.Array


@functools.partial(jax.jit, static_argnames="class_count")
def count_detections(
    detections: Detections,
    boxes: jax.Array,
    classes: jax.Array,
    present: jax.Array,
    *,
    class_count: int,
    score_threshold: float,
    iou: float = 0.5,
) -> DetectionCounts:
    """True and false positives, misses and all predictions of every class (DynCNN, Tables 3-5).

    TP + FP = TotalPred and TP + FN = boxes of the ground truth, for every class. In the paper half
    of the rows do not add up.

    Args:
      detections: `(B, K)` of any classes; invalid ones do not count.
      boxes: `(B, M, 4)` ground truth, `(x0, y0, x1, y1)` in the detections' unit.
      classes: `(B, M)` int, the class of each box, numbered as the detections' are.
      present: `(B, M)` bool, which of `boxes` there are.
      class_count: C; boxes and detections of other classes than 0 to C - 1 do not count.
      score_threshold: The least score of a detection that counts, in [0, 1].
      iou: The least intersection over union of a match.

    Returns:
      `DetectionCounts`; summed over images, of each class by itself.

    Raises:
      ValueError: The shapes do not belong together.

    >>> found = Detections(
    ...     jnp.array([[[0.0, 0, 4, 4], [9, 9, 12, 12]]]), jnp.array([[0.9, 0.5]]),
    ...     jnp.array([[0, 1]]), jnp.ones((1, 2), bool),
    ... )
    >>> counts = count_detections(
    ...     found, found.boxes, jnp.array([[0, 2]]), found.valid, class_count=3, score_threshold=0.5
    ... )
    >>> counts.true_positives, counts.predictions
    (Array([1, 0, 0], dtype=int32), Array([1, 1, 0], dtype=int32))
    """
    counted = detections.valid & (detections.scores >= score_threshold)
    detections = detections._replace(valid=counted)
    right = match_detections(detections, boxes, present, classes=classes, iou=iou)
    own = detections.classes == jnp.arange(class_count)[:, None, None]
    own_truth = classes == jnp.arange(class_count)[:, None, None]

    def count(which: jax.Array) -> jax.Array:
        return jnp.sum(which, (1, 2), dtype=jnp.int32)

    true_positives, truths = count(own & right), count(own_truth & present)
    return DetectionCounts(
        true_positives=true_positives,
        false_positives=count(own & counted & ~right),
        false_negatives=truths - true_positives,
        predictions=count(own & counted),
        truths=truths,
    )
