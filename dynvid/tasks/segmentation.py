"""Semantic segmentation: a class for every pixel."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.ops.labels import LabelMap, best_classes, label_map
from dynvid.ops.letterbox import Letterbox
from dynvid.tasks.preprocessing import Preprocessing
from dynvid.tasks.task import Task, class_name
from dynvid.types import Agreement, Output, Params
from dynvid.video.draw import draw_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """The class of every pixel, of any network that scores classes on a map.

    The network returns one array, `(S, h, w, classes)` or `(S, classes, h, w)`. Which of both is
    told from the network's input: rows and columns are scaled down alike.

    Attributes:
      preprocessing: How frames become the network's input.
      class_names: The name of each class index.
      channels_first: Which of both it is where the shapes leave it open.
      percent: Whether the scores of regions, where a system divides frames, are percentages.

    >>> task = Segmentation(preprocessing=Preprocessing(placement="stretch", white=1, size=(8, 16)))
    >>> scores = jnp.zeros((1, 3, 4, 8)).at[:, 0, :, :4].set(1.0).at[:, 2, :, 4:].set(1.0)
    >>> task.decode(None, scores, frame_size=(8, 16)).counts
    Array([[64,  0, 64]], dtype=int32)
    """

    name: ClassVar[str] = "segmentation"
    results: ClassVar[str] = "label maps"
    agreement: ClassVar[str] = "mean IoU against dense, same frame"

    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    channels_first: bool = False
    percent: bool = False

    def decode(self, params: Params, outputs: Output, *, frame_size: tuple[int, int]) -> LabelMap:
        """The best class of every pixel of the frame, of scores that are resized bilinearly.

        What a system has labelled already, a `LabelMap` of the network's input, is resized by the
        nearest pixel where the frame is of another size.

        Raises:
          ValueError: The outputs are not scores of at least two classes on a map.
        """
        del params
        geometry = self.geometry(frame_size)
        if isinstance(outputs, LabelMap):
            return _to_frame(outputs, geometry)
        scores = self.class_scores(outputs, size=geometry.network_size)
        window = geometry.window((scores.shape[1], scores.shape[2]))
        labels, _ = best_classes(scores, frame_size, window=window)
        return label_map(labels, classes=scores.shape[3])

    def compare(self, expected: LabelMap, found: LabelMap) -> Agreement:
        """Mean intersection over union of the classes that either label map has.

        All frames weigh the same.
        """
        classes = expected.counts.shape[1]
        same = jnp.where(expected.labels == found.labels, expected.labels, classes)
        shared = jax.vmap(lambda x: jnp.bincount(x.reshape(-1), length=classes))(
            same.astype(jnp.int32)
        )
        union = expected.counts + found.counts - shared
        overlap = jnp.where(union > 0, shared / jnp.maximum(union, 1), 0)
        mean = jnp.sum(overlap, 1) / jnp.sum(union > 0, 1)
        return Agreement(mean, jnp.ones_like(mean))

    def draw(self, frame: np.ndarray, result: LabelMap) -> np.ndarray:
        """A colour for each class over the frame, and a legend of those that are in it.

        Regions of the frame, where a system divides it, get a border in the colour of the path that
        they went and their score.
        """
        names = [class_name(self.class_names, index) for index in range(len(result.counts))]
        return draw_labels(
            frame, np.asarray(result.labels), names=names, paths=result.paths,
            percent=self.percent,
        )  # fmt: skip

    def class_scores(self, outputs: Output, *, size: tuple[int, int]) -> jax.Array:
        """The network's scores with the classes last.

        Args:
          outputs: What the network returned.
          size: (height, width) of the images that it returned them for.

        Returns:
          `(S, h, w, classes)` float32.

        Raises:
          ValueError: The outputs are not scores of at least two classes on a map.

        >>> task = Segmentation(preprocessing=Preprocessing(placement="stretch", white=1))
        >>> task.class_scores(jnp.zeros((1, 3, 4, 8)), size=(16, 32)).shape
        (1, 4, 8, 3)
        """
        leaves = jax.tree.leaves(outputs)
        if len(leaves) != 1 or leaves[0].ndim != 4:
            raise ValueError(
                "outputs must be one array (S, h, w, classes) or (S, classes, h, w); got "
                f"{[leaf.shape for leaf in leaves]}"
            )
        (scores,) = leaves
        first = _is_channels_first(scores.shape, size, default=self.channels_first)
        scores = jnp.moveaxis(scores, 1, 3) if first else scores
        if scores.shape[3] < 2:
            raise ValueError(f"outputs must score at least 2 classes; got {scores.shape[3]}")
        return scores.astype(jnp.float32)


def _is_channels_first(
    shape: Sequence[int], network_size: tuple[int, int], *, default: bool
) -> bool:
    """Whether the classes come before rows and columns: those are scaled down alike."""
    height, width = network_size

    def skew(rows: int, columns: int) -> float:
        return abs(math.log(rows / height) - math.log(columns / width))

    last, first = skew(shape[1], shape[2]), skew(shape[2], shape[3])
    return default if math.isclose(last, first, abs_tol=1e-9) else first < last


def _to_frame(found: LabelMap, geometry: Letterbox) -> LabelMap:
    """Labels of the network's input, as labels of the frame."""
    size, inside = geometry.frame_size, geometry.resized
    if geometry.network_size == size:
        return found
    rows, columns = (
        start + (2 * np.arange(there) + 1) * here // (2 * there)
        for start, there, here in zip((geometry.top, geometry.left), size, inside, strict=True)
    )
    labels = found.labels[:, rows][:, :, columns]
    paths = found.paths
    if paths is not None:
        corner = jnp.array([geometry.left, geometry.top] * 2, jnp.float32)
        scale = jnp.array([size[1] / inside[1], size[0] / inside[0]] * 2, jnp.float32)
        limit = jnp.array([size[1], size[0]] * 2, jnp.float32)
        paths = paths._replace(boxes=jnp.clip((paths.boxes - corner) * scale, 0, limit))
    return label_map(labels, classes=found.counts.shape[1], paths=paths)
