"""ImageNet VID's metric, and its division of objects by how fast they move.

The rules are those of the development kit and of the code of Flow-Guided Feature Aggregation (Zhu
et al. 2017, "FGFA"), which divides objects by their motion. Boxes are `(x0, y0, x1, y1)`
from edge to edge; the kit's name the last pixel, x1 - 1 and y1 - 1, and count one more for sides.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dynvid.ops.boxes import Detections, intersection_over_union

MOTION_RANGES = {"all": (0.0, 1.0), "slow": (0.9, 1.0), "medium": (0.7, 0.9), "fast": (0.0, 0.7)}
"""The least and the greatest motion IoU of each group of objects; ends belong to both."""

REACH = 10
"""Frames before and after that motion IoU looks at."""


def overlap_thresholds(boxes: jax.Array) -> jax.Array:
    """The intersection over union that it takes to find a box: less for small ones.

    `min(0.5, w h / ((w + 10) (h + 10)))`: five pixels may be missed on each side.

    Args:
      boxes: `(..., 4)` floating, in pixels.

    Returns:
      `(...)` in [0, 0.5].

    >>> overlap_thresholds(jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 90.0, 40.0]])).tolist()
    [0.25, 0.5]
    """
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return jnp.minimum(width * height / ((width + 10) * (height + 10)), 0.5)


def motion_iou(boxes: jax.Array, present: jax.Array, *, reach: int = REACH) -> jax.Array:
    """How much each object overlaps itself in the frames nearby: slow ones do more (FGFA).

    The mean of `IoU(b_t, b_u)` over the frames u with `0 < |u - t| <= reach` that have the object.

    Args:
      boxes: `(T, M, 4)` floating of consecutive frames; an object stays in its slot of the M.
      present: `(T, M)` bool, which of them there are.
      reach: How many frames before and after.

    Returns:
      `(T, M)` float32 in [0, 1]; 0 of objects that are not there, or in no frame nearby, as that
      code has it for what it knows nothing of.

    >>> boxes = jnp.array([[[0.0, 0.0, 4.0, 4.0]], [[0.0, 0.0, 4.0, 4.0]], [[0.0, 0.0, 4.0, 2.0]]])
    >>> motion_iou(boxes, jnp.ones((3, 1), bool)).ravel().tolist()
    [0.75, 0.75, 0.5]
    """
    tracks, there = jnp.swapaxes(boxes, 0, 1), present.T
    time = jnp.arange(boxes.shape[0])
    distance = jnp.abs(time[:, None] - time)
    near = (distance > 0) & (distance <= reach) & there[:, :, None] & there[:, None, :]
    total = jnp.sum(jnp.where(near, intersection_over_union(tracks, tracks), 0), -1)
    return (total / jnp.maximum(jnp.sum(near, -1), 1)).T.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="class_count")
def vid_average_precision(
    detections: Detections,
    boxes: jax.Array,
    classes: jax.Array,
    present: jax.Array,
    *,
    class_count: int,
    motion: jax.Array | None = None,
    motion_range: tuple[float, float] = MOTION_RANGES["all"],
) -> jax.Array:
    """Average precision of every class over a set of images, as ImageNet VID defines it.

    By falling score, a detection is right if it overlaps a box of its class that is not yet taken
    by at least `overlap_thresholds`, and takes the one that it overlaps most. The value is the area
    under the greatest precision at each recall or above.

    Of a group by motion only the boxes in its range are to be found. To find another is neither
    right nor wrong. A detection that finds nothing is wrong if the box that it overlaps most, of
    any class and taken or not, is in the range, and nothing if that is out of it. Where both kinds
    are overlapped alike, not at all for the most part, it is wrong by the share of the image's
    boxes that are out of the range; in an image without boxes, by the share of the whole set's that
    are in it (FGFA's code).

    Args:
      detections: `(B, K)` of any classes; invalid ones do not count.
      boxes: `(B, M, 4)` ground truth, in the detections' unit, pixels of the frames.
      classes: `(B, M)` int, the class of each box, numbered as the detections' are.
      present: `(B, M)` bool, which of `boxes` there are.
      class_count: C; boxes and detections of other classes than 0 to C - 1 count in no average.
      motion: `(B, M)`, `motion_iou` of each box; all of them are to be found where it is left out.
      motion_range: The least and the greatest that is to be found, as of `MOTION_RANGES`.

    Returns:
      `(C,)` float32 in [0, 1], NaN for classes without a box to be found; `jnp.nanmean` of it is
      the mean average precision.

    Raises:
      ValueError: The shapes do not belong together.

    >>> found = Detections(
    ...     jnp.array([[[0.0, 0, 10, 3], [0, 0, 90, 40]]]), jnp.array([[0.9, 0.5]]),
    ...     jnp.array([[0, 1]]), jnp.ones((1, 2), bool),
    ... )
    >>> truth = jnp.array([[[0.0, 0, 10, 10], [0, 0, 90, 90]]])
    >>> vid_average_precision(
    ...     found, truth, jnp.array([[0, 1]]), jnp.ones((1, 2), bool), class_count=3
    ... )
    Array([ 1.,  0., nan], dtype=float32)
    """
    batch, count = detections.scores.shape
    if boxes.ndim != 3 or boxes.shape[0] != batch or boxes.shape[2] != 4:
        raise ValueError(f"boxes must be ({batch}, M, 4) for these detections; got {boxes.shape}")
    for name, value in (("classes", classes), ("present", present), ("motion", motion)):
        if value is not None and value.shape != boxes.shape[:2]:
            raise ValueError(f"{name} must be {boxes.shape[:2]}; got {value.shape}")
    # One more detection and one more box, which are never there: every image has one to look at.
    detections = Detections(
        jnp.pad(detections.boxes, ((0, 0), (0, 1), (0, 0))),
        *(jnp.pad(x, ((0, 0), (0, 1))) for x in detections[1:]),
    )
    boxes = jnp.pad(boxes, ((0, 0), (0, 1), (0, 0)))
    classes, present = (jnp.pad(x, ((0, 0), (0, 1))) for x in (classes, present))
    low, high = motion_range
    if motion is None:
        wanted = present
    else:
        motion = jnp.pad(motion, ((0, 0), (0, 1)))
        wanted = present & (motion >= low) & (motion <= high)
    unwanted = present & ~wanted
    overlap = intersection_over_union(detections.boxes, boxes)
    alike = detections.classes[:, :, None] == classes[:, None, :]
    enough = alike & present[:, None] & (overlap >= overlap_thresholds(boxes)[:, None])
    candidate = jnp.where(enough & detections.valid[:, :, None], overlap, -1)
    order = jnp.argsort(jnp.where(detections.valid, -detections.scores, jnp.inf), axis=1)
    images = jnp.arange(batch)

    def visit(taken: jax.Array, slot: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        own = jnp.where(taken, -1, candidate[images, slot])
        best = jnp.argmax(own, 1)
        hit = own[images, best] >= 0
        return taken.at[images, best].max(hit), (hit, hit & wanted[images, best])

    _, (hit, right) = lax.scan(visit, jnp.zeros(present.shape, bool), order.T)
    rows = images[:, None]
    hit, right = (
        jnp.zeros((batch, count + 1), bool).at[rows, order].set(x.T) for x in (hit, right)
    )

    def most(those: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(those[:, None], overlap, -1), 2)

    inside, outside = most(wanted), most(unwanted)
    total = jnp.sum(present, 1)
    share = jnp.sum(wanted) / jnp.maximum(jnp.sum(total), 1)
    undecided = jnp.where(total > 0, jnp.sum(unwanted, 1) / jnp.maximum(total, 1), share)
    wrong = jnp.where(inside == outside, undecided[:, None], inside > outside)
    wrong = jnp.where(hit | ~detections.valid, 0, wrong)

    ranking = jnp.argsort(jnp.where(detections.valid, -detections.scores, jnp.inf).reshape(-1))
    right, wrong, labels = (x.reshape(-1)[ranking] for x in (right, wrong, detections.classes))

    def of_one(index: jax.Array) -> jax.Array:
        own = labels == index
        hits, misses = jnp.cumsum(right & own), jnp.cumsum(jnp.where(own, wrong, 0))
        precision = hits / jnp.maximum(hits + misses, jnp.finfo(jnp.float32).eps)
        best = lax.cummax(precision, reverse=True)
        boxes_of_class = jnp.sum(wanted & (classes == index))
        return jnp.sum(jnp.where(right & own, best, 0)) / boxes_of_class

    return lax.map(of_one, jnp.arange(class_count))
