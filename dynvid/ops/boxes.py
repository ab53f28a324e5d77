"""Boxes: how much two overlap, and which stay where many stand for one object."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_BLOCK = 1024  # candidates whose overlaps with all others are in memory at once


class Detections(NamedTuple):
    """A fixed number of detections per image, best first; the rest is marked as not valid.

    Attributes:
      boxes: `(S, K, 4)` floating, `(x0, y0, x1, y1)` in pixels of the network's input.
      scores: `(S, K)` floating in [0, 1].
      classes: `(S, K)` int32.
      valid: `(S, K)` bool; where it is false, boxes and scores are 0 and classes are -1.
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
      boxes: `(S, N, 4)` floating, `(x0, y0, x1, y1)`.
      scores: `(S, N, C)` floating, one score a class.
      score_threshold: The least score that counts.
      iou_threshold: The greatest overlap at which both boxes stay, in [0, 1].
      max_candidates: How many boxes of an image are looked at.
      max_detections: K, how many are returned.

    Returns:
      `Detections` with K slots an image.

    Raises:
      ValueError: The shapes do not belong together.

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
    return suppress_sorted(
        jnp.take_along_axis(boxes, rows, 1),
        best,
        jnp.argmax(jnp.take_along_axis(scores, rows, 1), -1),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
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
      boxes: `(S, N, 4)` floating, `(x0, y0, x1, y1)`.
      scores: `(S, N, C)` floating, one score a class.
      score_threshold: The least score that counts.
      iou_threshold: The greatest overlap at which both boxes stay, in [0, 1].
      max_candidates: How many boxes of a class are looked at.
      max_detections: K, how many are returned.

    Returns:
      `Detections` with K slots an image.

    Raises:
      ValueError: The shapes do not belong together.

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
            f"boxes and scores must be (S, N, 4) and (S, N, C); got {boxes.shape} and "
            f"{scores.shape}"
        )


def suppress_sorted(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> Detections:
    """Greedy non-maximum suppression among candidates that are sorted by falling score.

    Args:
      boxes: `(S, N, 4)` floating, `(x0, y0, x1, y1)`.
      scores: `(S, N)` floating, falling within each image.
      classes: `(S, N)` int; only boxes of one class suppress each other.
      score_threshold: The least score that counts.
      iou_threshold: The greatest overlap at which both boxes stay, in [0, 1].
      max_detections: K, how many are returned.

    Returns:
      `Detections` with K slots an image.

    >>> boxes = jnp.array([[[0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9]]], jnp.float32)
    >>> found = suppress_sorted(
    ...     boxes, jnp.array([[0.9, 0.7, 0.5]]), jnp.array([[0, 0, 1]]), score_threshold=0.4,
    ...     iou_threshold=0.5, max_detections=2,
    ... )
    >>> found.classes
    Array([[0, 1]], dtype=int32)
    """
    kept = surviving(
        boxes,
        scores,
        classes,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )
    return _best(boxes, scores, classes, kept, max_detections)


def surviving(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> jax.Array:
    """Which candidates `suppress_sorted` keeps, for what else is known of each.

    Returns:
      `bool[S, N]`; the `max_detections` best of them are exact.

    >>> boxes = jnp.array([[[0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9]]], jnp.float32)
    >>> surviving(
    ...     boxes, jnp.array([[0.9, 0.7, 0.5]]), jnp.array([[0, 0, 1]]), score_threshold=0.4,
    ...     iou_threshold=0.5, max_detections=2,
    ... )
    Array([[ True, False,  True]], dtype=bool)
    """
    candidate = scores >= score_threshold
    if boxes.shape[1] > _BLOCK:
        return _block_survivors(boxes, candidate, classes, iou_threshold, max_detections)
    rivals = classes[..., :, None] == classes[..., None, :]
    return _survivors(boxes, candidate, iou_threshold, rivals=rivals)


def _block_survivors(
    boxes: jax.Array,
    candidate: jax.Array,
    classes: jax.Array,
    iou_threshold: float,
    enough: int,
) -> jax.Array:
    """`_survivors` of `(S, N)` candidates, as far as the `enough` best of them.

    A block at a time, each against those before that stay: the overlaps of a block are all that is
    in memory, and where many overlap little the last blocks are never looked at.
    """
    count = boxes.shape[1]
    missing = -count % _BLOCK
    boxes = jnp.pad(boxes, ((0, 0), (0, missing), (0, 0)))
    candidate, classes = (jnp.pad(x, ((0, 0), (0, missing))) for x in (candidate, classes))

    def goes_on(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        start, kept = state
        return (start < count) & jnp.any(jnp.sum(kept, 1) < enough)

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start, kept = state
        places, hopeful, labels = (
            lax.dynamic_slice_in_dim(x, start, _BLOCK, 1) for x in (boxes, candidate, classes)
        )
        beaten = intersection_over_union(places, boxes) > iou_threshold
        beaten &= (labels[:, :, None] == classes[:, None]) & kept[:, None]
        rivals = labels[:, :, None] == labels[:, None]
        own = _survivors(places, hopeful & ~jnp.any(beaten, -1), iou_threshold, rivals=rivals)
        return start + _BLOCK, lax.dynamic_update_slice_in_dim(kept, own, start, 1)

    _, kept = lax.while_loop(goes_on, step, (jnp.int32(0), jnp.zeros_like(candidate)))
    return kept[:, :count]


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
    """The best of the `(S, K)` boxes that are kept."""
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
