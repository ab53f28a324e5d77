"""Label maps: the best class of every pixel, and how far two label maps agree (DVSNet, Eq. 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.ops.regions import RegionPaths


class LabelMap(NamedTuple):
    """A class for every pixel.

    Attributes:
      labels: `(S, H, W)`, uint8 where there are at most 256 classes, else int32.
      counts: `(S, classes)` int32, how many pixels each class has.
      paths: Which way each region of the frames went, where a system divides them.
    """

    labels: jax.Array
    counts: jax.Array
    paths: RegionPaths | None = None


def label_map(labels: jax.Array, *, classes: int, paths: RegionPaths | None = None) -> LabelMap:
    """Makes a `LabelMap` of labels by counting them.

    Args:
      labels: `(S, H, W)` integers from 0 to `classes - 1`.
      classes: How many classes there are.
      paths: Which way each region went.

    >>> label_map(jnp.array([[[0, 2], [2, 2]]]), classes=3).counts.tolist()
    [[1, 0, 3]]
    """

    def count(index: jax.Array) -> jax.Array:
        return jnp.sum(labels == index, (1, 2), dtype=jnp.int32)

    # A comparison for each class: a scatter of ones would go pixel by pixel.
    counts = jnp.moveaxis(jax.lax.map(count, jnp.arange(classes)), 0, 1)
    return LabelMap(labels.astype(label_dtype(classes)), counts, paths)


def label_dtype(classes: int) -> jnp.dtype:
    """The dtype of label maps of so many classes.

    >>> label_dtype(19), label_dtype(1000)
    (dtype('uint8'), dtype('int32'))
    """
    return jnp.dtype(jnp.uint8 if classes <= 256 else jnp.int32)


def best_classes(
    scores: jax.Array,
    size: tuple[int, int],
    *,
    window: tuple[float, float, float, float] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The best class of every pixel and its score, of scores that are resized bilinearly.

    `argmax_c up(S)(p, c)` (DVSNet 3.1, after the up-sampling of DeepLab). Between pixel centres,
    as `jax.image.resize(..., "bilinear", antialias=False)`; the resized scores are never stored.

    Args:
      scores: `(S, h, w, classes)` floating.
      size: (height, width) of the result.
      window: The part of the map that is stretched over the result, (top, left, height, width) in
        its pixels, from edge to edge; all of it where None.

    Returns:
      `(labels, winning)`: `(S, *size)` of `label_dtype(classes)`, the lowest of equal ones, and
      `(S, *size)` in the dtype of the scores.

    Raises:
      ValueError: The scores have another rank, or less than one class.

    >>> scores = jnp.array([[[[1.0, 0.0], [0.0, 3.0]]]])
    >>> labels, winning = best_classes(scores, (1, 4))
    >>> labels.tolist(), winning.tolist()
    ([[[0, 0, 1, 1]]], [[[1.0, 0.75, 2.25, 3.0]]])
    """
    if scores.ndim != 4 or scores.shape[3] < 1:
        raise ValueError(f"scores must be (S, h, w, classes); got {scores.shape}")
    top, left, height, width = window or (0, 0, *scores.shape[1:3])
    # Each score is read for many pixels: XLA must not compute it anew for every one of them.
    scores = jax.lax.optimization_barrier(scores)
    rows = _interpolated(scores, 1, size[0], top, height)
    resized = _interpolated(rows, 2, size[1], left, width)
    labels = jnp.argmax(resized, 3).astype(label_dtype(scores.shape[3]))
    return labels, jnp.max(resized, 3)


def _interpolated(x: jax.Array, axis: int, size: int, start: float, length: float) -> jax.Array:
    """`size` samples along an axis from `start`, linear between the two nearest centres.

    Two reads and a blend, which XLA fuses with what follows; `jax.image.resize` is a product with a
    matrix of mostly zeros, five times as slow for maps of a dozen classes.
    """
    count = x.shape[axis]
    if (size, start, length) == (count, 0, count):
        return x
    position = start + (np.arange(size) + 0.5) * (length / size) - 0.5
    position = np.clip(position, 0, count - 1)
    low = np.minimum(np.floor(position).astype(np.int32), max(count - 2, 0))
    shape = [1] * x.ndim
    shape[axis] = size
    share = jnp.asarray((position - low).reshape(shape), x.dtype)
    below = jnp.take(x, low, axis)
    above = jnp.take(x, np.minimum(low + 1, count - 1), axis)
    return below * (1 - share) + above * share


def label_agreement(expected: jax.Array, found: jax.Array, *, ignore: int = 255) -> jax.Array:
    """The confidence score of a region: how much of it two label maps agree on (DVSNet, Eq. 1).

    `confidence = 1/|P| sum_p [found(p) = expected(p)]`, in percent, over the pixels that `expected`
    does not ignore.

    Args:
      expected: `(S, h, w)` integers: what the segmentation network says, or the truth.
      found: Same shape: what was warped.
      ignore: The label in `expected` that counts for nothing.

    Returns:
      `(S,)` float32 in [0, 100]; 100 where everything is ignored.

    Raises:
      ValueError: The shapes differ.

    >>> label_agreement(jnp.array([[[1, 2, 255, 4]]]), jnp.array([[[1, 3, 3, 4]]])).round(2).item()
    66.66999816894531
    """
    if expected.ndim != 3 or expected.shape != found.shape:
        raise ValueError(
            f"expected and found must be (S, h, w) alike; got {expected.shape} and {found.shape}"
        )
    counted = expected != ignore
    same = jnp.sum(counted & (expected == found), (1, 2))
    pixels = jnp.sum(counted, (1, 2))
    return jnp.where(pixels > 0, 100 * same / jnp.maximum(pixels, 1), 100.0).astype(jnp.float32)
