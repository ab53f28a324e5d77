"""Ground truth where nobody drew any: what a better detector is sure of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynvid.ops.boxes import Detections


class GroundTruth(NamedTuple):
    """A fixed number of boxes per image, in the order that the metrics take them in.

    Attributes:
      boxes: `(B, M, 4)` floating, `(x0, y0, x1, y1)`; zero where there is none.
      classes: `(B, M)` int32; -1 where there is no box.
      present: `(B, M)` bool, which of them there are.
    """

    boxes: jax.Array
    classes: jax.Array
    present: jax.Array


@jax.jit
def pseudo_ground_truth(detections: Detections, *, score_threshold: float = 0.5) -> GroundTruth:
    """The detections of a better detector that score at least so much, as ground truth.

    Where a video has no annotation, DynCNN is judged by a detector trained on more data (DynCNN,
    section 4). The paper does not say from which score on a detection becomes ground truth.

    Args:
      detections: `(B, K)` of the better detector.
      score_threshold: The least score of a box that counts, in [0, 1].

    Returns:
      `GroundTruth` with M = K, in the detections' unit, order and classes.

    Approximate because the better detector errs too: what it misses counts against whoever finds
    it, and what both get wrong in the same way counts for them.

    >>> better = Detections(
    ...     jnp.ones((1, 3, 4)), jnp.array([[0.9, 0.5, 0.4]]), jnp.array([[0, 2, 2]]),
    ...     jnp.ones((1, 3), bool),
    ... )
    >>> pseudo_ground_truth(better).classes
    Array([[ 0,  2, -1]], dtype=int32)
    """
    present = detections.valid & (detections.scores >= score_threshold)
    return GroundTruth(
        boxes=jnp.where(present[..., None], detections.boxes, 0),
        classes=jnp.where(present, detections.classes, -1),
        present=present,
    )
