"""R-FCN's two heads, and the boxes they give (Dai et al., R-FCN, 2016; Ren et al., Faster R-CNN).

Boxes are `(x0, y0, x1, y1)` in pixels of the image, from edge to edge. The papers' code names the
last pixel instead, which is x1 - 1 and y1 - 1; widths, overlaps and what the networks learn are the
same.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.ops.boxes import (
    Detections,
    multilabel_non_maximum_suppression,
    non_maximum_suppression,
)
from dynvid.ops.roi_pooling import position_sensitive_roi_pooling

SCALES = (8.0, 16.0, 32.0)
"""Sides of the anchors in strides: 128, 256 and 512 pixels (Faster R-CNN, 3.1.1)."""

RATIOS = (0.5, 1.0, 2.0)
"""Heights of the anchors in widths (Faster R-CNN, 3.1.1)."""

ANCHOR_DEVIATIONS = (0.1, 0.1, 0.4, 0.4)
"""What one unit of the region proposal network's output is in the deltas of `encode_boxes`."""

BOX_DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
"""The same for the output of the R-FCN head."""


def anchor_boxes(
    size: Sequence[int],
    *,
    stride: int = 16,
    scales: Sequence[float] = SCALES,
    ratios: Sequence[float] = RATIOS,
) -> np.ndarray:
    """The boxes that proposals start from, the same at every position (Faster R-CNN, 3.1.1).

    For each ratio a box of `stride` squared pixels, its sides rounded to whole pixels, times each
    scale; all are centred at the middle of the position's `stride` by `stride` pixels.

    Args:
      size: (h, w) of the map of features.
      stride: Pixels of the image per position.
      scales: Sides of the square anchor in strides.
      ratios: Height by width.

    Returns:
      `(h * w * A, 4)` float32, A = len(ratios) * len(scales): row by row, position by position,
      ratio by ratio. Boxes may reach beyond the image.

    >>> anchor_boxes((1, 1))[:2].tolist()
    [[-84.0, -40.0, 100.0, 56.0], [-176.0, -88.0, 192.0, 104.0]]
    """
    shapes = []
    for ratio in ratios:
        width = np.round(np.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        shapes += [(scale * width, scale * height) for scale in scales]
    half = np.array(shapes) / 2
    middle = [stride * (np.arange(n) + 0.5) for n in size]
    y, x = np.meshgrid(*middle, indexing="ij")
    centre = np.stack([x, y], -1)[:, :, None]
    return np.concatenate([centre - half, centre + half], -1).reshape(-1, 4).astype(np.float32)


def encode_boxes(
    boxes: jax.Array, references: jax.Array, *, deviations: Sequence[float] = BOX_DEVIATIONS
) -> jax.Array:
    """What a network has to say for a reference box to become another (Faster R-CNN, Eq. 2).

    `t_x = (x - x_a) / w_a`, `t_y = (y - y_a) / h_a`, `t_w = log(w / w_a)`, `t_h = log(h / h_a)` of
    centres and sides, each in units of its deviation.

    Args:
      boxes: `(..., 4)` floating, with sides above zero.
      references: `(..., 4)`, anchors or proposals, likewise.
      deviations: Of the four, what a unit is.

    Returns:
      `(..., 4)`.

    >>> box, anchor = jnp.array([8.0, 0.0, 24.0, 16.0]), jnp.array([0.0, 0.0, 16.0, 16.0])
    >>> encode_boxes(box, anchor).tolist()
    [5.0, 0.0, 0.0, 0.0]
    """
    centre, side = _centred(boxes)
    origin, unit = _centred(references)
    deltas = jnp.concatenate([(centre - origin) / unit, jnp.log(side / unit)], -1)
    return deltas / jnp.array(deviations, deltas.dtype)


def decode_boxes(
    deltas: jax.Array, references: jax.Array, *, deviations: Sequence[float] = BOX_DEVIATIONS
) -> jax.Array:
    """The boxes that a network's outputs stand for: what `encode_boxes` undoes.

    Args:
      deltas: `(..., 4)` floating, in units of the deviations.
      references: `(..., 4)`, anchors or proposals.
      deviations: Of the four.

    Returns:
      `(..., 4)`. Sides may overflow to infinity, as they do for outputs that grow without bounds.

    >>> anchor = jnp.array([0.0, 0.0, 16.0, 16.0])
    >>> decode_boxes(jnp.array([5.0, 0.0, 0.0, 0.0]), anchor).tolist()
    [8.0, 0.0, 24.0, 16.0]
    """
    shifts = deltas * jnp.array(deviations, deltas.dtype)
    origin, unit = _centred(references)
    centre = origin + shifts[..., :2] * unit
    half = jnp.exp(shifts[..., 2:]) * unit / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def _centred(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    side = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + side / 2, side


def _within(boxes: jax.Array, size: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Boxes cut to an image, and which of them there are: finite ones of which a part is in it."""
    height, width = size
    inside = jnp.clip(boxes, 0, jnp.array([width, height] * 2, boxes.dtype))
    there = jnp.all(inside[..., 2:] > inside[..., :2], -1) & jnp.all(jnp.isfinite(boxes), -1)
    return jnp.where(there[..., None], inside, 0), there


def _conv(depth: int, features: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        depth, features, (1, 1), kernel_init=nnx.initializers.normal(0.01), rngs=rngs
    )  # fmt: skip


class RegionProposalNetwork(nnx.Module):
    """Says of every anchor whether there is an object, and where (Faster R-CNN, 3.1).

    Two 1x1 convolutions. The 3x3 convolution before them is the one that makes the features, as in
    the code of Deep Feature Flow. Their weights start as N(0, 0.01^2).

    Args:
      depth: Channels of the features.
      anchors: A, how many boxes a position has.
      rngs: Where the random weights come from.

    >>> network = RegionProposalNetwork(8, rngs=nnx.Rngs(0))
    >>> logits, deltas = network(jnp.ones((1, 2, 3, 8)))
    >>> logits.shape, deltas.shape
    ((1, 54, 2), (1, 54, 4))
    """

    def __init__(self, depth: int, *, anchors: int = 9, rngs: nnx.Rngs):
        self.objectness = _conv(depth, 2 * anchors, rngs)
        self.boxes = _conv(depth, 4 * anchors, rngs)

    def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Looks at every anchor.

        Args:
          features: `(S, h, w, depth)` floating.

        Returns:
          Logits of background and object, `(S, h * w * A, 2)`, and deltas in units of
          `ANCHOR_DEVIATIONS`, `(S, h * w * A, 4)`, in the order of `anchor_boxes`.
        """
        streams = features.shape[0]
        logits = self.objectness(features).reshape(streams, -1, 2)
        return logits, self.boxes(features).reshape(streams, -1, 4)


def proposals(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: jax.Array | np.ndarray,
    size: Sequence[int],
    *,
    iou_threshold: float = 0.7,
    max_candidates: int = 6000,
    max_proposals: int = 300,
) -> Detections:
    """The boxes worth a second look, best first (Faster R-CNN, 3.3).

    Decoded, cut to the image, and thinned by non-maximum suppression; to training they are
    constants, as in that paper's approximate joint training. Memory grows in proportion to
    `max_candidates`; most of them are not looked at where the best overlap little.

    Args:
      logits: `(S, N, 2)` floating, as of `RegionProposalNetwork`.
      deltas: `(S, N, 4)`.
      anchors: `(N, 4)`.
      size: (height, width) of the image.
      iou_threshold: The greatest overlap at which both of two boxes stay.
      max_candidates: How many of the best anchors are looked at.
      max_proposals: R, how many are returned.

    Returns:
      `Detections` of R slots and one class, the score being that of an object, without gradient.
      Boxes that are not finite or lie outside of the image are none.

    >>> anchors = anchor_boxes((1, 2), scales=(1.0,), ratios=(1.0,))
    >>> logits, deltas = jnp.array([[[0.0, 0.0], [0.0, 9.0]]]), jnp.zeros((1, 2, 4))
    >>> found = proposals(logits, deltas, anchors, (16, 32), max_proposals=2)
    >>> found.boxes[0].tolist(), found.scores[0].round(2).tolist()
    ([[16.0, 0.0, 32.0, 16.0], [0.0, 0.0, 16.0, 16.0]], [1.0, 0.5])
    """
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    boxes = decode_boxes(deltas, jnp.asarray(anchors), deviations=ANCHOR_DEVIATIONS)
    boxes, there = _within(boxes, size)
    scores = jax.nn.softmax(logits, -1)[..., 1]
    there &= ~jnp.isnan(scores)
    return non_maximum_suppression(
        boxes,
        jnp.where(there, scores, -1)[..., None],
        score_threshold=0.0,
        iou_threshold=iou_threshold,
        max_candidates=max_candidates,
        max_detections=max_proposals,
    )


class RFCNHead(nnx.Module):
    """Classes and places of boxes by position-sensitive score maps (R-FCN, 2.2).

    Two 1x1 convolutions of grid^2 (C + 1) and grid^2 8 channels, pooled
    (`position_sensitive_roi_pooling`) and averaged over the bins. Places are class-agnostic: four
    numbers of an object and four of background, which nothing reads and which are as in the
    authors' code. Weights start as N(0, 0.01^2).

    Args:
      depth: Channels of the features.
      classes: C, without the background: 30 of ImageNet VID.
      grid: Bins each way.
      stride: Pixels of the image per position of the features.
      rngs: Where the random weights come from.

    >>> head = RFCNHead(8, classes=3, grid=2, rngs=nnx.Rngs(0))
    >>> logits, deltas = head(jnp.ones((1, 4, 6, 8)), jnp.ones((1, 5, 4)))
    >>> logits.shape, deltas.shape
    ((1, 5, 4), (1, 5, 4))
    """

    def __init__(
        self, depth: int, *, classes: int = 30, grid: int = 7, stride: int = 16, rngs: nnx.Rngs
    ):
        self.grid, self.stride = grid, stride
        self.scores = _conv(depth, grid * grid * (classes + 1), rngs)
        self.boxes = _conv(depth, grid * grid * 8, rngs)

    def __call__(self, features: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Looks at every box.

        Args:
          features: `(S, h, w, depth)` floating.
          boxes: `(S, R, 4)`, pixels of the image. The gradient to them is zero.

        Returns:
          Logits `(S, R, C + 1)`, class 0 being the background, and deltas in units of
          `BOX_DEVIATIONS`, `(S, R, 4)`.
        """

        def vote(maps: jax.Array) -> jax.Array:
            pooled = position_sensitive_roi_pooling(maps, boxes, grid=self.grid, stride=self.stride)
            return jnp.mean(pooled, (2, 3))

        return vote(self.scores(features)), vote(self.boxes(features))[..., 4:]


def decode_rfcn(
    boxes: Detections,
    logits: jax.Array,
    deltas: jax.Array,
    size: Sequence[int],
    *,
    score_threshold: float = 1e-3,
    iou_threshold: float = 0.3,
    max_detections: int = 300,
) -> Detections:
    """Detections from what the head says of proposals.

    Scores are the softmax of the logits without the background; each class is thinned by itself.

    Args:
      boxes: R proposals.
      logits: `(S, R, C + 1)` floating, as of `RFCNHead`.
      deltas: `(S, R, 4)`.
      size: (height, width) of the image.
      score_threshold: The least score that counts: 1e-4 in the code of Deep Feature Flow, 1e-3 in
        that of Flow-Guided Feature Aggregation.
      iou_threshold: The greatest overlap at which both boxes of a class stay.
      max_detections: How many of all classes are returned.

    Returns:
      `Detections`, cut to the image; class k is the head's class k + 1.

    >>> found = Detections(
    ...     jnp.array([[[0.0, 0, 16, 16]]]), jnp.ones((1, 1)), jnp.zeros((1, 1), int),
    ...     jnp.ones((1, 1), bool),
    ... )
    >>> logits = jnp.array([[[0.0, 0.0, 9.0]]])
    >>> decoded = decode_rfcn(found, logits, jnp.zeros((1, 1, 4)), (16, 16), max_detections=1)
    >>> decoded.classes.item(), decoded.scores.round(2).item()
    (1, 1.0)
    """
    places, there = _within(decode_boxes(deltas, boxes.boxes), size)
    scores = jax.nn.softmax(logits, -1)[..., 1:]
    there = (there & boxes.valid)[..., None] & ~jnp.isnan(scores)
    return multilabel_non_maximum_suppression(
        places,
        jnp.where(there, scores, -1),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_candidates=places.shape[1],
        max_detections=max_detections,
    )


class RFCN(nnx.Module):
    """N_det of Deep Feature Flow and its successors: features in, detections out.

    The first half of the channels goes to the region proposal network, the second to the R-FCN head
    (Zhu et al., Deep Feature Flow, 2017, section 4).

    Args:
      depth: Channels of the features, even: 1024 in the papers.
      classes: C, without the background.
      grid: Bins each way of a box.
      stride: Pixels of the image per position of the features.
      scales: As of `anchor_boxes`.
      ratios: Likewise.
      max_candidates: As of `proposals`.
      max_proposals: Likewise.
      max_detections: As of `decode_rfcn`.
      rngs: Where the random weights come from.

    Raises:
      ValueError: `depth` is odd.

    >>> network = nnx.eval_shape(lambda: RFCN(rngs=nnx.Rngs(0)))
    >>> features = jax.ShapeDtypeStruct((1, 38, 63, 1024), "float32")
    >>> nnx.eval_shape(lambda n, f: n(f, (600, 1000)), network, features).boxes.shape
    (1, 300, 4)
    """

    def __init__(
        self,
        *,
        depth: int = 1024,
        classes: int = 30,
        grid: int = 7,
        stride: int = 16,
        scales: Sequence[float] = SCALES,
        ratios: Sequence[float] = RATIOS,
        max_candidates: int = 6000,
        max_proposals: int = 300,
        max_detections: int = 300,
        rngs: nnx.Rngs,
    ):
        if depth % 2:
            raise ValueError(f"depth must be even; got {depth}")
        self.stride, self.scales, self.ratios = stride, tuple(scales), tuple(ratios)
        self.max_candidates, self.max_proposals = max_candidates, max_proposals
        self.max_detections = max_detections
        self.rpn = RegionProposalNetwork(
            depth // 2, anchors=len(self.scales) * len(self.ratios), rngs=rngs
        )
        self.head = RFCNHead(depth // 2, classes=classes, grid=grid, stride=stride, rngs=rngs)

    def split(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The halves of `(S, h, w, depth)` for the region proposal network and for the head."""
        half = features.shape[-1] // 2
        return features[..., :half], features[..., half:]

    def propose(self, features: jax.Array, size: Sequence[int]) -> Detections:
        """Proposals from the first half of the features, for images of (height, width) `size`."""
        logits, deltas = self.rpn(features)
        anchors = anchor_boxes(
            features.shape[1:3], stride=self.stride, scales=self.scales, ratios=self.ratios
        )
        return proposals(
            logits, deltas, anchors, size,
            max_candidates=self.max_candidates, max_proposals=self.max_proposals,
        )  # fmt: skip

    def __call__(self, features: jax.Array, size: Sequence[int]) -> Detections:
        """Detects objects.

        Args:
          features: `(S, h, w, depth)` floating.
          size: (height, width) of the images that they are of.

        Returns:
          `Detections` in pixels of the images.
        """
        first, second = self.split(features)
        found = self.propose(first, size)
        return decode_rfcn(
            found, *self.head(second, found.boxes), size, max_detections=self.max_detections
        )
