"""How DVSNet's networks are trained: losses, pairs, and the decision network (DVSNet 3.3).

The order of the paper: the segmentation network and the flow network alone; then flow and scale
field together with segmentation frozen (`warped_loss`); then pairs of features and confidence
scores are computed once (`confidence_scores`), and the decision network learns them
(`train_decision`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from rich.console import Console

from dynvid.models.flownet import FLOW_UNIT
from dynvid.ops.labels import best_classes, label_agreement
from dynvid.ops.warp import Motion, warp_by
from dynvid.training._extra import require
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.loop import fit
from dynvid.types import Frames, Params

# Of the mean endpoint error from predict_flow6 to predict_flow2. FlowNet's 0.32, 0.08, 0.02, 0.01
# and 0.005 are of sums, over four times as many positions from each prediction to the next.
_LEVEL_WEIGHTS = (0.32, 0.32, 0.32, 0.64, 1.28)


class Pairs(NamedTuple):
    """Frames with an earlier or later frame of the same video.

    Attributes:
      current: I_i, `(N, h, w, 3)` uint8.
      key: I_k, likewise.
      labels: `(N, h, w)` integers, the classes of `current`.
    """

    current: jax.Array
    key: jax.Array
    labels: jax.Array


def draw_pairs(
    key: jax.Array,
    frames: jax.Array,
    labels: jax.Array,
    *,
    batch: int,
    size: tuple[int, int],
    gap: int = 9,
) -> Pairs:
    """Draws pairs from a labelled video: somewhere in it, up to so many frames apart.

    The key lies before or after the current frame and pairs are mirrored, each half of the time, so
    that a short video shows more motions than it has (our choice: the paper's keys lie before).

    Args:
      key: A random key.
      frames: The video, `(frames, H, W, 3)`.
      labels: Of each frame, `(frames, H, W)`.
      batch: How many pairs.
      size: (height, width) of the part of the frames that is cut out.
      gap: How many frames apart they are at most; DVSNet's 9.

    Returns:
      The pairs; a gap that leads out of the video ends at its border.

    Raises:
      ValueError: The frames are smaller than `size`.

    >>> video = jnp.zeros((5, 8, 8, 3), jnp.uint8)
    >>> draw_pairs(jax.random.key(0), video, video[..., 0], batch=2, size=(4, 6)).labels.shape
    (2, 4, 6)
    """
    count, height, width, _ = frames.shape
    if size[0] > height or size[1] > width:
        raise ValueError(f"size must be at most {(height, width)}, that of the frames; got {size}")

    def draw(key: jax.Array) -> Pairs:
        keys = jax.random.split(key, 5)
        i = jax.random.randint(keys[0], (), 0, count)
        step = jax.random.randint(keys[1], (), -gap, gap + 1)
        y = jax.random.randint(keys[2], (), 0, height - size[0] + 1)
        x = jax.random.randint(keys[3], (), 0, width - size[1] + 1)
        mirrored = jax.random.bernoulli(keys[4])

        def cut(video: jax.Array, index: jax.Array) -> jax.Array:
            start = (index, y, x, *(0,) * (video.ndim - 3))
            part = jax.lax.dynamic_slice(video, start, (1, *size, *video.shape[3:]))[0]
            return jnp.where(mirrored, part[:, ::-1], part)

        j = jnp.clip(i + step, 0, count - 1)
        return Pairs(cut(frames, i), cut(frames, j), cut(labels, i))

    return jax.vmap(draw)(jax.random.split(key, batch))


def cross_entropy(logits: jax.Array, labels: jax.Array, *, ignore: int = 255) -> jax.Array:
    """The mean negative log-likelihood of the labels, the loss that segmentation is trained with.

    `-1/|P| sum_p log softmax(S(p))[y(p)]` over the positions of the logits, each with the label at
    its centre.

    Args:
      logits: `(N, h, w, classes)` floating.
      labels: `(N, H, W)` integers, as large as the logits or larger.
      ignore: The label that counts for nothing.

    Returns:
      A scalar; zero where everything is ignored.

    >>> logits = jnp.zeros((1, 1, 2, 4))
    >>> round(cross_entropy(logits, jnp.array([[[0, 255]]])).item(), 4)
    1.3863
    """
    rows, columns = (
        (2 * np.arange(here) + 1) * there // (2 * here)
        for here, there in zip(logits.shape[1:3], labels.shape[1:3], strict=True)
    )
    wanted = labels[:, rows][:, :, columns].astype(jnp.int32)
    counted = wanted != ignore
    chosen = jnp.where(counted, wanted, 0)[..., None]
    likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, -1)[..., 0]
    return -jnp.sum(jnp.where(counted, likelihood, 0)) / jnp.maximum(jnp.sum(counted), 1)


def endpoint_loss(predictions: tuple[jax.Array, ...], motion: jax.Array) -> jax.Array:
    """FlowNet's loss on all its levels: the mean endpoint error of each, weighted.

    `sum_l w_l 1/|P_l| sum_p |V_l(p) - M_l(p)|`, the truth averaged down to each level and in the
    predictions' unit (Dosovitskiy et al. 2015, 5.1; the weights of FlowNet 2.0 on sums).

    Args:
      predictions: Of `FlowNetS`, from coarse to fine.
      motion: The truth, `(N, H, W, 2)` in pixels of whole frames.

    Returns:
      A scalar.

    >>> truth = jnp.full((1, 64, 64, 2), 40.0)  # 20 pixels of halved frames: one unit
    >>> levels = tuple(jnp.ones((1, n, n, 2)) for n in (1, 2, 4, 8, 16))
    >>> endpoint_loss(levels, truth).item() < 1e-5
    True
    """
    total = jnp.zeros(())
    for weight, prediction in zip(_LEVEL_WEIGHTS, predictions, strict=True):
        shape = (len(motion), *prediction.shape[1:3], 2)
        truth = jax.image.resize(motion, shape, "linear", antialias=True) / (2 * FLOW_UNIT)
        squared = jnp.sum((prediction - truth) ** 2, -1)
        total += weight * jnp.mean(jnp.sqrt(squared + 1e-12))  # its slope at zero is finite
    return total


def pyramid_loss(flows: Sequence[jax.Array], motion: jax.Array) -> jax.Array:
    """SPyNet's loss on all its levels: the mean endpoint error of each, halved from coarse to fine.

    `sum_l 2^(L - l) 1/|P_l| sum_p |V_l(p) - M_l(p)|` in pixels of each level's own grid (Ranjan and
    Black 2017, section 3.2, where each level is trained by itself; together here).

    Args:
      flows: Of each level from coarse to fine, `(N, h_l, w_l, 2)`.
      motion: The truth, `(N, H, W, 2)` in pixels of whole frames.

    Returns:
      A scalar.

    >>> truth = jnp.full((1, 8, 8, 2), 4.0)
    >>> round(pyramid_loss([jnp.ones((1, 2, 2, 2)), jnp.full((1, 4, 4, 2), 5.0)], truth).item(), 3)
    4.263
    """
    total = jnp.zeros(())
    for level, flow in enumerate(reversed(flows)):
        size = (flow.shape[1], flow.shape[2])
        shape = (len(motion), *size, 2)
        smaller = jax.image.resize(motion, shape, "linear", antialias=True)
        scale = jnp.array([size[1] / motion.shape[2], size[0] / motion.shape[1]])
        squared = jnp.sum((flow - smaller * scale) ** 2, -1)
        total += 2**level * jnp.mean(jnp.sqrt(squared + 1e-4))  # its slope at zero is finite
    return total


def warped_loss(
    motion: Motion, key_logits: jax.Array, labels: jax.Array, *, ignore: int = 255
) -> jax.Array:
    """How well warped key logits say what the current frame shows, to fine-tune flow and scale.

    Cross-entropy of `W(up(S_k), M) * S` against the current frame's labels (DVSNet 3.3, with the
    loss of Deep Feature Flow); the segmentation network, whose logits come in, stays as it is.

    Args:
      motion: Of the flow network.
      key_logits: Of the frozen segmentation network, `(N, h, w, classes)`.
      labels: Of the current frames, `(N, H, W)`.
      ignore: The label that counts for nothing.

    Returns:
      A scalar.

    >>> logits = jnp.zeros((1, 2, 2, 4))
    >>> round(warped_loss(Motion(jnp.zeros((1, 2, 2, 2))), logits, jnp.zeros((1, 2, 2))).item(), 4)
    1.3863
    """
    warped = warp_by(jax.lax.stop_gradient(key_logits), motion, border="edge")
    return cross_entropy(warped, labels, ignore=ignore)


def confidence_scores(
    segment: Callable[[Params, Frames], jax.Array],
    flow: Callable[[Params, Frames, Frames], Motion],
    params: tuple[Params, Params],
    current: Frames,
    key: Frames,
) -> tuple[jax.Array, jax.Array]:
    """Computes what the decision network learns: features and the score that warping reaches.

    The confidence score (DVSNet, Eq. 1): the share of a region on which warped key logits and the
    segmentation network choose the same class, in percent.

    Args:
      segment: `segment(params, images) -> logits`.
      flow: `flow(params, current, key) -> Motion`, with features.
      params: Of both.
      current: Regions, `(N, h, w, 3)`.
      key: The same regions of their key frames.

    Returns:
      `(features, scores)`: `(N, a, b, c)`, and `(N,)` float32 percent.

    >>> segment = lambda params, x: x[..., :2].astype(jnp.float32)
    >>> features = jnp.ones((1, 1, 1, 3))
    >>> still = lambda params, a, b: Motion(jnp.zeros((1, 2, 2, 2)), features=features)
    >>> image = jnp.arange(12).reshape(1, 2, 2, 3)
    >>> confidence_scores(segment, still, (None, None), image, image)[1].tolist()
    [100.0]
    """
    size = (current.shape[1], current.shape[2])
    motion = flow(params[1], current, key)
    if motion.features is None:
        raise ValueError("flow must return features for the decision network; got None")
    warped = warp_by(segment(params[0], key), motion, border="edge")
    expected, _ = best_classes(segment(params[0], current), size)
    found, _ = best_classes(warped, size)
    return motion.features, label_agreement(expected, found, ignore=-1)


class BestState(NamedTuple):
    """All that a training knows that keeps its best, epoch by epoch.

    Attributes:
      params: The network's parameters.
      optimizer: What the optimizer keeps.
      step: How many epochs were made, int32.
      best: The parameters with the least error so far.
      error: Theirs on the validation pairs, percent: the mean absolute error of decisions.
    """

    params: Params
    optimizer: Any
    step: jax.Array
    best: Params
    error: jax.Array


def train_decision(
    network: nnx.Module,
    training: tuple[ArrayLike, ArrayLike],
    validation: tuple[ArrayLike, ArrayLike],
    *,
    epochs: int = 100,
    batch: int = 32,
    learning_rate: float = 2e-3,
    decay: float = 0.99,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    console: Console | None = None,
) -> BestState:
    """Trains a decision network on features and confidence scores (DVSNet 3.3 and 4.1).

    Mean squared error on percent, Adam, the learning rate times `decay` after every epoch; the
    parameters with the least mean absolute error on the validation pairs are kept, which Table 2
    calls the error rate. The last bias starts at the mean score (our choice: from 0.1, whole epochs
    go into finding it).

    Args:
      network: A `DecisionNetwork` or alike: features to scores, `(N, ...)` to `(N,)` percent, with
        layers in `dense`, of which the last has a bias.
      training: `(features, scores)`, `(N, h, w, c)` and `(N,)`.
      validation: Likewise.
      epochs: How often all pairs are seen.
      batch: Pairs a step; a rest that fills none is left out of its epoch.
      learning_rate: Of the first epoch.
      decay: Of the learning rate, per epoch.
      seed: Of the order of the pairs and of dropout.
      checkpoints: Where states are kept, ten in all; a training that was killed goes on from the
        last and ends with the same parameters.
      console: Where the progress goes; standard output where None.

    Returns:
      The last state; `best` are the parameters to use.

    Raises:
      ImportError: Where optax is missing (`pip install "dynvid[train]"`).
      ValueError: There are fewer pairs than a batch has, or none to validate on.

    >>> from dynvid.models.decision_network import DecisionNetwork
    >>> network = DecisionNetwork(1, grid=(1, 1), convolution=2, hidden=(2,), rngs=nnx.Rngs(0))
    >>> features = jnp.linspace(0, 1, 32).reshape(32, 1, 1, 1)
    >>> pairs = (features, 80 + 20 * features.ravel())
    >>> trained = train_decision(network, pairs, pairs, epochs=3, console=Console(quiet=True))
    >>> trained.error.item() < 6
    True
    """
    optax = require("optax")
    features, scores = (jnp.asarray(x, jnp.float32) for x in training)
    held_features, held_scores = (jnp.asarray(x, jnp.float32) for x in validation)
    if len(scores) < batch or len(held_scores) < 1:
        raise ValueError(
            f"training must have at least a batch of {batch} pairs, validation one; got "
            f"{len(scores)} and {len(held_scores)}"
        )
    turns = len(scores) // batch
    optimizer = optax.adam(optax.exponential_decay(learning_rate, turns, decay, staircase=True))
    graph, variables, rest = nnx.split(network, nnx.Param, ...)
    params: Any = nnx.as_pure(variables)
    rest = nnx.as_pure(rest)  # values, of no trace
    last = max(params["dense"])
    params["dense"][last]["bias"] = jnp.full_like(params["dense"][last]["bias"], scores.mean())

    def scores_of(params: Params, features: jax.Array, key: jax.Array | None) -> jax.Array:
        module = nnx.merge(graph, params, rest)
        if key is None:
            module.eval()
        else:
            module.train()
            nnx.reseed(module, dropout=key)
        return module(features)

    def loss(params: Params, chosen: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.mean((scores_of(params, features[chosen], key) - scores[chosen]) ** 2)

    # Not a `scan` over the batches: on a CPU XLA runs gradients of convolutions ten times as slowly
    # in a loop.
    @jax.jit(donate_argnums=(0, 1))
    def update(params: Params, kept: Any, chosen: jax.Array, key: jax.Array) -> tuple[Params, Any]:
        updates, kept = optimizer.update(jax.grad(loss)(params, chosen, key), kept, params)
        return optax.apply_updates(params, updates), kept

    @jax.jit
    def validated(state: BestState) -> BestState:
        found = scores_of(state.params, held_features, None)
        error = jnp.mean(jnp.abs(found - held_scores))
        better = error < state.error
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.best)
        least = jnp.where(better, error, state.error)
        return state._replace(step=state.step + 1, best=best, error=least)

    def epoch(state: BestState, key: jax.Array) -> tuple[BestState, jax.Array]:
        order_key, dropout_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(scores))[: turns * batch]
        params, kept = state.params, state.optimizer
        for i, chosen in enumerate(order.reshape(turns, batch)):
            params, kept = update(params, kept, chosen, jax.random.fold_in(dropout_key, i))
        state = validated(state._replace(params=params, optimizer=kept))
        return state, state.error

    state = BestState(
        params,
        optimizer.init(params),
        jnp.zeros((), jnp.int32),
        jax.tree.map(jnp.copy, params),
        jnp.float32(jnp.inf),
    )
    key = jax.random.key(seed)
    return fit(
        epoch,
        state,
        lambda i: jax.random.fold_in(key, i),
        steps=epochs,
        checkpoints=checkpoints,
        every=max(1, epochs // 10),
        name="decision network",
        measure="least mean absolute error",
        console=console,
    )
