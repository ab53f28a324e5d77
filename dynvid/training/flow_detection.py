"""How flow-guided detection's networks are trained together, on pairs of frames.

Zhu et al., Towards High Performance Video Object Detection, 2018 ("Zhu" below), 3.4 with Eq. 12;
what it leaves open is as in the code of Deep Feature Flow (2017, "DFF"), R-FCN (Dai et al. 2016)
and Faster R-CNN (Ren et al. 2015). The small networks are trained on single frames first, with
batch normalisation that learns, and their flow on true motion, for want of pretrained weights.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.models.flow_detection import FlowDetector
from dynvid.models.flow_guided import (
    CorrelationFlowNetwork,
    FeatureNetwork,
    FlowQualityNetwork,
)
from dynvid.models.rfcn import ANCHOR_DEVIATIONS, RFCN, anchor_boxes, encode_boxes
from dynvid.ops.aggregate import partial_update, recursive_aggregation
from dynvid.ops.boxes import intersection_over_union
from dynvid.ops.masks import resize_mask
from dynvid.ops.schedule import update_mask
from dynvid.ops.warp import resize_flow, warp
from dynvid.training._extra import require
from dynvid.types import Frames, Params

Case = Literal["propagated", "computed", "predicted"]
"""Where features are computed anew in a step of training: nowhere, everywhere, or where U says."""

CASES: tuple[Case, Case, Case] = ("propagated", "computed", "predicted")
"""All of them, a third of the steps each (Zhu, 3.4)."""


class DetectionTruth(NamedTuple):
    """What there is to find in images, in M slots each.

    Attributes:
      boxes: `(S, M, 4)` float32, `(x0, y0, x1, y1)` in pixels.
      classes: `(S, M)` int32, without the background.
      present: `(S, M)` bool, which slots hold an object.
    """

    boxes: jax.Array
    classes: jax.Array
    present: jax.Array


class DetectionPairs(NamedTuple):
    """Frames with an earlier one of the same video; or twice the same, of still images.

    Attributes:
      key: I_k, `(S, H, W, 3)` uint8.
      current: I_i, likewise.
      truth: Of `current`.
      gap: `(S,)` int32, frames between both; 0 where they are the same.
    """

    key: jax.Array
    current: jax.Array
    truth: DetectionTruth
    gap: jax.Array


def smooth_l1(x: jax.Array, *, sigma: float = 1.0) -> jax.Array:
    """The absolute value, rounded off near zero (Faster R-CNN's code).

    `sigma^2 x^2 / 2` where `|x| < 1 / sigma^2`, else `|x| - 1 / (2 sigma^2)`.

    Args:
      x: Floating, any shape.
      sigma: 3 for proposals and 1 for detections in that code.

    >>> smooth_l1(jnp.array([0.5, -2.0])).tolist()
    [0.125, 1.5]
    """
    square = sigma * sigma
    return jnp.where(jnp.abs(x) < 1 / square, square * x * x / 2, jnp.abs(x) - 0.5 / square)


def _overlaps(boxes: jax.Array, truth: DetectionTruth) -> jax.Array:
    """IoU of `(S, N, 4)` boxes with every object, -1 with empty slots: `(S, N, M)`."""
    overlap = intersection_over_union(boxes, truth.boxes)
    return jnp.where(truth.present[:, None], overlap, -1)


def _safe(truth: DetectionTruth) -> jax.Array:
    """The boxes, and some with sides in the empty slots, so that their deltas are finite."""
    some = jnp.array([0.0, 0.0, 1.0, 1.0], truth.boxes.dtype)
    return jnp.where(truth.present[..., None], truth.boxes, some)


def anchor_targets(
    anchors: jax.Array | np.ndarray,
    truth: DetectionTruth,
    size: Sequence[int],
    *,
    positive: float = 0.7,
    negative: float = 0.3,
    border: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """What the region proposal network should say of every anchor (Faster R-CNN, 3.1.2).

    An object: anchors that overlap one by `positive`, and of each object those that overlap it
    most. Background: what overlaps none by `negative`. All else, and what reaches beyond the image
    by more than `border`, is not asked for.

    Args:
      anchors: `(A, 4)`.
      truth: The objects.
      size: (height, width) of the images.
      positive: The least overlap of an object's anchors.
      negative: What overlaps of the background's stay below.
      border: Pixels; infinity asks for all anchors.

    Returns:
      `(S, A)` int32: 1 object, 0 background, -1 neither; and the deltas of the object that each
      overlaps most, `(S, A, 4)` in units of `ANCHOR_DEVIATIONS`.

    >>> truth = DetectionTruth(
    ...     jnp.array([[[0.0, 0.0, 20.0, 16.0]]]), jnp.zeros((1, 1), int), jnp.ones((1, 1), bool)
    ... )
    >>> anchors = jnp.array([[0.0, 0.0, 16.0, 16.0], [16, 0, 32, 16], [-9, 0, 7, 16]])
    >>> anchor_targets(anchors, truth, (16, 32))[0].tolist()
    [[1, 0, -1]]
    """
    anchors = jnp.asarray(anchors)
    height, width = size
    limits = jnp.array([width, height], anchors.dtype) + border
    inside = jnp.all(anchors[:, :2] >= -border, -1) & jnp.all(anchors[:, 2:] <= limits, -1)
    overlap = jnp.where(inside[:, None], _overlaps(anchors[None], truth), -1)
    most = jnp.max(overlap, -1)
    best = jnp.max(overlap, 1, keepdims=True)
    first = jnp.any((overlap == best) & (best > 0), -1)
    labels = jnp.where((most >= positive) | first, 1, jnp.where(most < negative, 0, -1))
    own = jnp.argmax(overlap, -1)[..., None]
    boxes = jnp.take_along_axis(_safe(truth), own, 1)
    deltas = encode_boxes(boxes, anchors[None], deviations=ANCHOR_DEVIATIONS)
    return jnp.where(inside, labels, -1).astype(jnp.int32), deltas


def sample_anchors(
    key: jax.Array, labels: jax.Array, *, batch: int = 256, share: float = 0.5
) -> jax.Array:
    """Draws the anchors that count: a number of objects at most, the rest background.

    Args:
      key: A random key.
      labels: `(S, A)` int32, as of `anchor_targets`.
      batch: How many an image (Faster R-CNN, 3.1.3: 256).
      share: How many of them may be objects'.

    Returns:
      `(S, A)` bool. Fewer than `batch` where there are not so many.

    >>> labels = jnp.array([[1, 1, 1, 0, 0, 0, -1, -1]])
    >>> chosen = sample_anchors(jax.random.key(0), labels, batch=4)
    >>> jnp.sum(chosen & (labels == 1)).item(), jnp.sum(chosen & (labels == 0)).item()
    (2, 2)
    """
    luck = jax.random.uniform(key, labels.shape)

    def lucky(those: jax.Array, count: jax.Array | int) -> jax.Array:
        order = jnp.argsort(jnp.where(those, luck, 2.0), -1)
        rank = jnp.argsort(order, -1)
        return those & (rank < count)

    objects = lucky(labels == 1, int(batch * share))
    return objects | lucky(labels == 0, batch - jnp.sum(objects, -1, keepdims=True))


def proposal_loss(
    logits: jax.Array,
    deltas: jax.Array,
    labels: jax.Array,
    targets: jax.Array,
    chosen: jax.Array,
) -> jax.Array:
    """The region proposal network's loss (Faster R-CNN, Eq. 1; lambda as in its later code).

    `1/N sum_i -log p_i(label_i) + 1/N sum over objects of smooth_l1(t_i - t*_i)` over the N chosen.

    Args:
      logits: `(S, A, 2)`.
      deltas: `(S, A, 4)`.
      labels: `(S, A)`, as of `anchor_targets`.
      targets: `(S, A, 4)`, likewise.
      chosen: `(S, A)` bool, as of `sample_anchors`.

    Returns:
      A scalar.

    >>> labels = jnp.array([[1, 0]])
    >>> zeros = jnp.zeros((1, 2, 4))
    >>> loss = proposal_loss(jnp.zeros((1, 2, 2)), zeros, labels, zeros, jnp.ones((1, 2), bool))
    >>> round(loss.item(), 4)
    0.6931
    """
    said = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], -1
    )[..., 0]  # fmt: skip
    objects = chosen & (labels == 1)
    missed = jnp.sum(smooth_l1(deltas - jnp.where(objects[..., None], targets, 0), sigma=3.0), -1)
    total = jnp.sum(jnp.where(chosen, -said, 0)) + jnp.sum(jnp.where(objects, missed, 0))
    return total / jnp.maximum(jnp.sum(chosen), 1)


def region_targets(
    boxes: jax.Array, valid: jax.Array, truth: DetectionTruth, *, foreground: float = 0.5
) -> tuple[jax.Array, jax.Array]:
    """What the R-FCN head should say of every region (R-FCN, 2.3).

    Args:
      boxes: `(S, R, 4)`.
      valid: `(S, R)` bool, which of them there are.
      truth: The objects.
      foreground: The least overlap with an object to be one; all other regions are background.

    Returns:
      `(S, R)` int32: the class plus one, 0 for background, -1 where there is no region; and the
      deltas of the object that each overlaps most, `(S, R, 4)`.

    >>> truth = DetectionTruth(
    ...     jnp.array([[[0.0, 0.0, 16.0, 16.0]]]), jnp.full((1, 1), 2), jnp.ones((1, 1), bool)
    ... )
    >>> boxes = jnp.array([[[0.0, 0.0, 16.0, 12.0], [32.0, 0.0, 48.0, 16.0]]])
    >>> region_targets(boxes, jnp.ones((1, 2), bool), truth)[0].tolist()
    [[3, 0]]
    """
    overlap = _overlaps(boxes, truth)
    own = jnp.argmax(overlap, -1)
    classes = jnp.take_along_axis(truth.classes, own, 1) + 1
    labels = jnp.where(jnp.max(overlap, -1) >= foreground, classes, 0)
    unit = jnp.array([0.0, 0.0, 1.0, 1.0], boxes.dtype)
    safe = jnp.where(valid[..., None], boxes, unit)
    deltas = encode_boxes(jnp.take_along_axis(_safe(truth), own[..., None], 1), safe)
    return jnp.where(valid, labels, -1).astype(jnp.int32), deltas


def region_loss(
    logits: jax.Array,
    deltas: jax.Array,
    labels: jax.Array,
    targets: jax.Array,
    *,
    hard: int = 128,
) -> jax.Array:
    """R-FCN's loss on its hardest regions, those of the greatest loss (R-FCN, Eq. 2 and 2.3: OHEM).

    `1/B sum over the B hardest of -log s(label) + [label > 0] smooth_l1(t - t*)`, B of each image.

    Args:
      logits: `(S, R, C + 1)`.
      deltas: `(S, R, 4)`, the same for all classes.
      labels: `(S, R)`, as of `region_targets`.
      targets: `(S, R, 4)`, likewise.
      hard: B.

    Returns:
      A scalar, the mean over the images.

    >>> logits, labels = jnp.array([[[9.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]), jnp.array([[0, 1, -1]])
    >>> zeros = jnp.zeros((1, 3, 4))
    >>> round(region_loss(logits, zeros, labels, zeros, hard=1).item(), 4)
    0.6931
    """
    said = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], -1
    )[..., 0]  # fmt: skip
    objects = labels > 0
    missed = jnp.sum(smooth_l1(deltas - jnp.where(objects[..., None], targets, 0)), -1)
    loss = jnp.where(labels >= 0, jnp.where(objects, missed, 0) - said, 0)
    return jnp.mean(jnp.sum(jax.lax.top_k(loss, min(hard, loss.shape[1]))[0], -1)) / hard


def detection_loss(
    detector: RFCN,
    features: jax.Array,
    truth: DetectionTruth,
    size: Sequence[int],
    key: jax.Array,
    *,
    anchors: int = 256,
    hard: int = 128,
    border: float = 0.0,
    jittered: int = 0,
) -> jax.Array:
    """The loss of both heads, L_RPN + L_RCNN, the second on the proposals of the first.

    The true boxes are among the proposals, as in Faster R-CNN's code; to the second head all are
    constants.

    Args:
      detector: N_det.
      features: `(S, h, w, depth)`.
      truth: What is to be found.
      size: (height, width) of the images.
      key: A random key, to draw anchors by.
      anchors: How many of an image count in L_RPN.
      hard: How many regions of an image count in L_RCNN.
      border: As of `anchor_targets`.
      jittered: How many regions beside each true box are among the proposals too, moved by up to a
        fifth of its sides: for a start, when few proposals show an object.

    Returns:
      A scalar.
    """
    first, second = detector.split(features)
    logits, deltas = detector.rpn(first)
    references = anchor_boxes(
        features.shape[1:3],
        stride=detector.stride,
        scales=detector.scales,
        ratios=detector.ratios,
    )
    labels, targets = anchor_targets(references, truth, size, border=border)
    keys = jax.random.split(key)
    chosen = sample_anchors(keys[0], labels, batch=anchors)
    proposed = proposal_loss(logits, deltas, labels, targets, chosen)

    found = detector.propose(jax.lax.stop_gradient(first), size)
    sides = jnp.tile(truth.boxes[..., 2:] - truth.boxes[..., :2], 2)
    shape = (jittered, *sides.shape)
    moved = truth.boxes + sides * jax.random.uniform(keys[1], shape, minval=-0.2, maxval=0.2)
    boxes = jnp.concatenate([found.boxes, truth.boxes, *moved], 1)
    valid = jnp.concatenate([found.valid, *[truth.present] * (1 + jittered)], 1)
    wanted, shifts = region_targets(boxes, valid, truth)
    scores, places = detector.head(second, boxes)
    return proposed + region_loss(scores, places, wanted, shifts, hard=hard)


def partial_features(
    network: FeatureNetwork,
    current: Frames,
    key: Frames,
    flow: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Features of the current frame computed where the mask says so, layer by layer (Zhu, Eq. 6).

    `Fhat^(n) = U^(n) N^(n)(Fhat^(n-1)) + (1 - U^(n)) W(F_k^(n), M^(n))` with `Fhat^(0) = I_i`: all
    of it computed densely, so that the mask has a gradient. A layer is a residual block, as of
    `FeatureNetwork.layers`; the motion is resized to its grid (our choice: the paper does not say
    what fills a layer's map where it is not computed).

    Args:
      network: N_feat.
      current: I_i, `(S, H, W, 3)`.
      key: I_k, likewise.
      flow: M, `(S, h, w, 2)` on the grid of the features.
      mask: U, `(S, h, w)` of 0 and 1.

    Returns:
      Fhat_i and F_k, `(S, h, w, C)`.

    Exact: Fhat_i is N_feat(I_i) where U is 1 everywhere, W(F_k, M) where it is 0.
    """
    here, there = current, key
    for layer in network.layers():
        there = layer(there)
        size = (there.shape[1], there.shape[2])
        warped = warp(there, resize_flow(flow, size))
        here = partial_update(resize_mask(mask, size), layer(here), warped)
    return here, there


class PairOutputs(NamedTuple):
    """What the loss of a step was made of.

    Attributes:
      loss: L of Zhu, Eq. 12, a scalar.
      detection: L_RPN + L_RCNN.
      update: The mean of U.
    """

    loss: jax.Array
    detection: jax.Array
    update: jax.Array


def pair_loss(
    network: FlowDetector,
    pairs: DetectionPairs,
    key: jax.Array,
    *,
    case: Case,
    penalty_weight: float = 2.0,
    penalty: Literal["mean", "sum"] = "mean",
    anchors: int = 256,
    hard: int = 128,
    border: float = 0.0,
) -> PairOutputs:
    """The loss that all networks are trained with together (Zhu, Eq. 12).

    `L = L_det(N_det(Fbar_i)) + lambda sum_p U(p)`: features of the key frame go along the motion,
    those of the current frame are computed where U says so, and both are aggregated
    (`recursive_aggregation`, embedded after warping as FGFA trains it). In the forced cases U is a
    constant, so that Q learns nothing. Pairs of equal frames skip the warp (DFF's code).

    Args:
      network: All four networks; batch normalisation is frozen where it is in evaluation mode.
      pairs: The frames.
      key: A random key.
      case: Whether U is 0, 1 or predicted.
      penalty_weight: Lambda.
      penalty: Whether U is summed over the positions, as printed, or averaged. A sum of 2394
        positions times 2 would leave no U above zero; the mean is our reading.
      anchors: As of `detection_loss`.
      hard: Likewise.
      border: Likewise.

    Returns:
      `PairOutputs`.

    Raises:
      ValueError: Another case or penalty.
    """
    if case not in CASES:
        raise ValueError(f"case must be one of {', '.join(CASES)}; got {case!r}")
    if penalty not in ("mean", "sum"):
        raise ValueError(f"penalty must be 'mean' or 'sum'; got {penalty!r}")
    motion, quality = network.flow(pairs.current, pairs.key)
    flow = jnp.where(pairs.gap[:, None, None, None] == 0, 0, motion.flow)
    if case == "propagated":
        mask = jnp.zeros_like(quality)
        aggregated = warp(network.features(pairs.key), flow)  # with itself it stays what it is
    else:
        if case == "computed":
            mask = jnp.ones_like(quality)
            features, memory = (network.features(x) for x in (pairs.current, pairs.key))
        else:
            mask = update_mask(quality, 0.0)
            features, memory = partial_features(
                network.features, pairs.current, pairs.key, flow, mask
            )
        memory = warp(memory, flow)
        embeddings = (network.embedding(x) for x in (memory, features))
        aggregated = recursive_aggregation(memory, features, *embeddings)
    size = (pairs.current.shape[1], pairs.current.shape[2])
    detection = detection_loss(
        network.detector, aggregated, pairs.truth, size, key,
        anchors=anchors, hard=hard, border=border,
    )  # fmt: skip
    update = jnp.mean(mask)
    spent = update if penalty == "mean" else jnp.mean(jnp.sum(mask, (1, 2)))
    loss = detection + (penalty_weight * spent if case == "predicted" else 0)
    return PairOutputs(loss, detection, update)


def consistency_loss(
    features: FeatureNetwork,
    flow: FlowQualityNetwork | CorrelationFlowNetwork,
    current: Frames,
    key: Frames,
    *,
    share: float = 0.25,
) -> jax.Array:
    """Teaches the quality branch alone which warped features are poor, as a start for `pair_loss`.

    Poor is the `share` of a batch's positions at which `|W(F_k, M) - F_i|^2` is greatest; the loss
    is the cross-entropy of `sigmoid(-Q)` against that, so that U = 1 where it is likelier than not.
    Our choice, where training is too short for U to find its place by the detection loss: that
    moves a position only while |Q| <= 1.

    Args:
      features: N_feat; constant.
      flow: N_flow, of which only the quality branch has a gradient.
      current: I_i, `(S, H, W, 3)`.
      key: I_k, likewise.
      share: Of positions, that count as poor.

    Returns:
      A scalar.
    """
    motion, quality = flow.predict(jax.lax.stop_gradient(flow.joined(current, key)))
    reach = jax.lax.stop_gradient(motion.flow)
    now, then = jax.lax.stop_gradient((features(current), features(key)))
    error = jnp.sum((warp(then, reach) - now) ** 2, -1)
    poor = error > jnp.quantile(error, 1 - share)
    return jnp.mean(jnp.where(poor, jax.nn.softplus(quality), jax.nn.softplus(-quality)))


def case_at(seed: int, step: int) -> Case:
    """The case of a step, each with probability 1/3, the same whenever it is asked for.

    Args:
      seed: Of the whole training.
      step: Counted from zero.

    >>> {case_at(0, step) for step in range(20)} == set(CASES)
    True
    """
    return CASES[int(np.random.default_rng((seed, step)).integers(3))]


class ModuleState(NamedTuple):
    """All that the training of a module knows: a pytree of arrays, to donate, save and restore.

    Attributes:
      params: Its parameters.
      statistics: All its other variables, those of batch normalisation.
      optimizer: What the optimizer keeps.
      step: How many updates were made, int32.
    """

    params: Params
    statistics: Params
    optimizer: Any
    step: jax.Array


def start_module(module: nnx.Module, optimizer: Any) -> ModuleState:
    """The state before the first update of a module.

    Args:
      module: It keeps its own arrays: the state has copies.
      optimizer: An optax optimizer.
    """
    _, params, rest = nnx.split(nnx.clone(module), nnx.Param, ...)
    params, rest = jax.tree.map(jnp.array, (nnx.as_pure(params), nnx.as_pure(rest)))
    return ModuleState(params, rest, optimizer.init(params), jnp.zeros((), jnp.int32))


def module_update(
    module: nnx.Module, loss: Callable[[Any, Any], jax.Array], optimizer: Any
) -> Callable[[ModuleState, Any], tuple[ModuleState, jax.Array]]:
    """The update of a gradient descent on a module, jitted; what it keeps of a batch stays.

    Args:
      module: In training mode where its batch normalisation is to learn, in evaluation mode where
        it is frozen; its arrays are not read.
      loss: `loss(module, batch)`, a scalar.
      optimizer: An optax optimizer.

    Returns:
      `update(state, batch) -> (state, loss)`; the old state is donated.

    >>> import optax
    >>> optimizer, module = optax.sgd(0.5), nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
    >>> update = module_update(module, lambda m, x: jnp.sum((m(x) - 3.0) ** 2) / 2, optimizer)
    >>> state = start_module(module, optimizer)
    >>> for _ in range(9): state, value = update(state, jnp.ones((1, 1)))
    >>> abs(state.params["kernel"].item() - 3) < 0.02, state.step.item()
    (True, 9)
    """
    optax = require("optax")
    graph = nnx.split(module)[0]

    @jax.jit(donate_argnums=0)
    def update(state: ModuleState, batch: Any) -> tuple[ModuleState, jax.Array]:
        def value(params: Params) -> tuple[jax.Array, Params]:
            merged = nnx.merge(graph, params, state.statistics)
            result = loss(merged, batch)
            return result, nnx.as_pure(nnx.split(merged, nnx.Param, ...)[2])

        (result, statistics), gradient = jax.value_and_grad(value, has_aux=True)(state.params)
        updates, kept = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return ModuleState(params, statistics, kept, state.step + 1), result

    return update


def put_back(module: nnx.Module, state: ModuleState) -> None:
    """Gives a module the arrays of a training.

    Args:
      module: Of the structure that the training began with.
      state: What the training ended with.
    """
    nnx.update(module, state.params)
    nnx.update(module, state.statistics)


def staged_sgd(
    steps: int,
    *,
    rate: float = 1e-3,
    stages: Sequence[float] = (2 / 3,),
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> Any:
    """The papers' optimizer: SGD whose rate falls to a tenth in stages (Zhu, 5).

    120,000 steps in the paper, 80,000 of 1e-3 and 40,000 of 1e-4. Scales and biases of batch
    normalisation do not move, as in the code of DFF.

    Args:
      steps: How many in all.
      rate: Of the first stage.
      stages: When the next ones begin, in parts of all steps.
      momentum: Of the gradient.
      weight_decay: What of the weights is added to the gradient.

    Returns:
      An optax optimizer.

    Raises:
      ImportError: Where optax is missing (`pip install "dynvid[train]"`).
    """
    optax = require("optax")
    schedule = optax.piecewise_constant_schedule(rate, {int(steps * at): 0.1 for at in stages})

    def normalisation(params: Params) -> Params:
        return jax.tree.map_with_path(
            lambda path, _: any(getattr(k, "key", None) == "norm" for k in path), params
        )

    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum),
        optax.masked(optax.set_to_zero(), normalisation),
    )
