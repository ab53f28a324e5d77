"""How good a segmentation is: confusion matrix, intersection over union, accuracy."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames=("classes",))
def confusion_matrix(truth: jax.Array, predicted: jax.Array, *, classes: int) -> jax.Array:
    """Counts the pixels of each class of the truth by the class that they are taken for.

    Matrices of several images add up; add them as int64 (NumPy) beyond 2**31 pixels.

    Args:
      truth: Integer labels of any shape. Pixels whose label is none of `0 .. classes - 1` (void,
        255) are ignored.
      predicted: Integer labels of the same shape.
      classes: How many classes are judged.

    Returns:
      `(classes, classes + 1)` int32: rows are the truth, columns the prediction. The last column
      counts what is taken for none of the classes (a network may predict void).

    Raises:
      ValueError: The shapes differ, the labels are no integers, or there is no class.

    >>> confusion_matrix(jnp.array([0, 0, 1, 255]), jnp.array([0, 1, 7, 0]), classes=2)
    Array([[1, 1, 0],
           [0, 0, 1]], dtype=int32)
    """
    truth, predicted = jnp.asarray(truth), jnp.asarray(predicted)
    if truth.shape != predicted.shape:
        raise ValueError(
            f"predicted must have the shape of truth, {truth.shape}; got {predicted.shape}"
        )
    for name, labels in (("truth", truth), ("predicted", predicted)):
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"{name} must be integer labels; got {labels.dtype}")
    if classes < 1:
        raise ValueError(f"classes must be at least 1; got {classes}")
    truth, predicted = truth.astype(jnp.int32).ravel(), predicted.astype(jnp.int32).ravel()
    judged = (truth >= 0) & (truth < classes)
    known = (predicted >= 0) & (predicted < classes)
    columns = classes + 1
    index = jnp.where(judged, truth * columns + jnp.where(known, predicted, classes), -1)
    # One more bin for what is ignored: bincount takes no negative numbers.
    counts = jnp.bincount(index + 1, length=classes * columns + 1)[1:]
    return counts.reshape(classes, columns).astype(jnp.int32)


def intersection_over_union(confusion: jax.Array) -> jax.Array:
    """The share that truth and prediction of a class have in common of what either has.

    IoU_c = n_cc / (sum_j n_cj + sum_i n_ic - n_cc), with n_ij the pixels of class i that are taken
    for j (Everingham et al., The PASCAL VOC Challenge, 2015, section 4.2; Long et al. 2015,
    section 5).

    Args:
      confusion: `(classes, columns)` as `confusion_matrix` counts; `columns` at least `classes`.

    Returns:
      `(classes,)` in [0, 1]; NaN for a class that neither has.

    >>> intersection_over_union(jnp.array([[3, 1, 0], [0, 4, 0]])).tolist()
    [0.75, 0.800000011920929]
    """
    confusion = jnp.asarray(confusion, jnp.float32)
    classes = confusion.shape[0]
    both = jnp.diagonal(confusion)
    union = confusion.sum(1) + confusion[:, :classes].sum(0) - both
    return jnp.where(union > 0, both / jnp.maximum(union, 1), jnp.nan)


def mean_intersection_over_union(confusion: jax.Array) -> jax.Array:
    """Mean IoU of the classes that truth or prediction have, mIoU of the papers.

    Args:
      confusion: As `intersection_over_union` takes it, of all images together: the mean of the
        images' mIoU is another number.

    Returns:
      Scalar in [0, 1]; NaN without any class.

    >>> round(mean_intersection_over_union(jnp.array([[3, 1, 0], [0, 4, 0]])).item(), 3)
    0.775
    """
    return jnp.nanmean(intersection_over_union(confusion))


def global_accuracy(confusion: jax.Array) -> jax.Array:
    """The share of judged pixels whose class is right: sum_c n_cc / sum_ij n_ij.

    Args:
      confusion: As `intersection_over_union` takes it.

    Returns:
      Scalar in [0, 1]; NaN where no pixel is judged.

    >>> global_accuracy(jnp.array([[3, 1, 0], [0, 4, 0]])).item()
    0.875
    """
    confusion = jnp.asarray(confusion, jnp.float32)
    return jnp.diagonal(confusion).sum() / confusion.sum()
