"""How networks with checkpoints are trained: all checkpoints at once, one pass a batch.

Loss and weights are MSDNet's (Huang et al., ICLR 2018, section 4): the slides of Dynamic Inference
name none, so this is our reconstruction.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from rich.console import Console

from dynvid.models.clip_network import live
from dynvid.ops.progressive import Route, checkpoint_logits
from dynvid.training._extra import require
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.loop import fit
from dynvid.types import Params


class ClipTrainState(NamedTuple):
    """All that such a training knows.

    Attributes:
      params: The network's weights.
      statistics: Its batch statistics.
      optimizer: What the optimizer keeps.
      step: How many updates were made, int32.
    """

    params: Params
    statistics: Params
    optimizer: Any
    step: jax.Array


def checkpoint_loss(
    logits: jax.Array, labels: jax.Array, *, weights: ArrayLike | None = None
) -> jax.Array:
    """The sum over checkpoints of their cross-entropy, averaged over the batch.

    `1/S sum_s sum_k w_k -log softmax(l_sk)[y_s]` (MSDNet, section 4, "Loss functions"; equal
    weights as there, a reconstruction for Dynamic Inference).

    Args:
      logits: `(S, checkpoints, classes)`.
      labels: `int[S]`.
      weights: Of each checkpoint, `(checkpoints,)`; 1 where None.

    Returns:
      A scalar.

    >>> round(checkpoint_loss(jnp.zeros((2, 3, 4)), jnp.array([0, 1])).item(), 4)
    4.1589
    """
    likelihood = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(likelihood, labels[:, None, None], 2)[..., 0]
    if weights is not None:
        chosen = chosen * jnp.asarray(weights)
    return -jnp.mean(jnp.sum(chosen, 1))


def train_clips(
    module: nnx.Module,
    routes: Route | Sequence[Route],
    batch_at: Callable[[int], tuple[jax.Array, jax.Array]],
    *,
    optimizer: Any,
    steps: int,
    normalise: Callable[[jax.Array], jax.Array] = lambda frames: frames,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    every: int = 500,
    console: Console | None = None,
) -> ClipTrainState:
    """Trains a network with stages on clips, at all checkpoints of one route or of several.

    Args:
      module: Such as `TemporalShiftResNet`, see `dynvid.models.clip_network.staged`; it stays as it
        is.
      routes: What the network is to run by. Of several, each step takes the next: a network for
        clips whose frames are permuted and for streams, whose frames are not.
      batch_at: `batch_at(i) -> (clips, labels)`, `(S, T, H, W, C)` and `int[S]`, of step i.
      optimizer: An optax optimizer.
      steps: How many updates the whole training has.
      normalise: What is done to frames before the first stage.
      seed: Of dropout.
      checkpoints: Where states are kept; a training that was killed goes on from the last.
      every: How many steps lie between two checkpoints.
      console: Where the progress goes; standard output where None.

    Returns:
      The last state; `trained` puts it into a module.

    Raises:
      ImportError: Where optax is missing (`pip install "dynvid[train]"`).
      ValueError: There is no route, or clips have another number of frames than it.

    Exact: resumed, it ends with the same weights, as `dynvid.training.loop.fit` says.
    """
    optax = require("optax")
    routes = [routes] if isinstance(routes, Route) else list(routes)
    if not routes:
        raise ValueError("routes must have at least one route; got none")
    copy: Any = nnx.clone(module)
    graph, variables, statistics, rest = nnx.split(copy, nnx.Param, nnx.BatchStat, ...)
    params, statistics = nnx.as_pure(variables), nnx.as_pure(statistics)
    rest = nnx.as_pure(rest)  # values, of no trace

    def update_for(route: Route) -> Callable[..., tuple[ClipTrainState, jax.Array]]:
        def loss(
            params: Params, statistics: Params, clips: jax.Array, labels: jax.Array, key: jax.Array
        ) -> tuple[jax.Array, Params]:
            module: Any = nnx.merge(graph, params, statistics, rest)
            module.train()
            nnx.reseed(module, dropout=key)
            network = live(module, normalise=normalise)
            logits = checkpoint_logits(network, None, clips, route)
            return checkpoint_loss(logits, labels), nnx.as_pure(nnx.state(module, nnx.BatchStat))

        @jax.jit(donate_argnums=0)
        def update(
            state: ClipTrainState, clips: jax.Array, labels: jax.Array
        ) -> tuple[ClipTrainState, jax.Array]:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(
                state.params, state.statistics, clips, labels, key
            )
            updates, kept = optimizer.update(gradient, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            return ClipTrainState(params, statistics, kept, state.step + 1), value

        return update

    updates = [update_for(route) for route in routes]

    def update(state: ClipTrainState, batch: Any) -> tuple[ClipTrainState, jax.Array]:
        index, (clips, labels) = batch
        return updates[index % len(updates)](state, clips, labels)

    params, statistics = jax.tree.map(jnp.copy, (params, statistics))
    state = ClipTrainState(params, statistics, optimizer.init(params), jnp.zeros((), jnp.int32))
    return fit(
        update,
        state,
        lambda i: (i, batch_at(i)),
        steps=steps,
        checkpoints=checkpoints,
        every=every,
        name="clips",
        console=console,
    )


def trained(module: nnx.Module, state: ClipTrainState) -> nnx.Module:
    """A copy of the module with the weights and statistics of a training."""
    copy: Any = nnx.clone(module)
    nnx.update(copy, state.params, state.statistics)
    copy.eval()
    return copy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained on a data set (Dynamic Inference with TSM's recipe).

    Attributes:
      classes: How many there are.
      videos: How many videos the data set has, all splits together.
      pretrained: What the weights start from.
      frames: T.
      size: Side of the centre crop, pixels.
      epochs: How often the training set is seen.
      drops: The epochs after which the learning rate is divided by ten.
      learning_rate: Of the first epoch.
      batch: Clips a step.
      weight_decay: Of all weights.
      dropout: Before the classifiers.
      clip_gradient: The longest that a gradient may be.
    """

    classes: int
    videos: int
    pretrained: str
    frames: int = 16
    size: int = 224
    epochs: int = 50
    drops: tuple[int, ...] = (20, 40)
    learning_rate: float = 0.02
    batch: int = 128
    weight_decay: float = 1e-4
    dropout: float = 0.5
    clip_gradient: float = 20.0

    def optimizer(self, training_videos: int) -> Any:
        """Stochastic gradient descent with momentum 0.9, as TSM's code has it.

        Args:
          training_videos: Of one epoch.

        Raises:
          ImportError: Where optax is missing (`pip install "dynvid[train]"`).
        """
        optax = require("optax")
        turns = max(1, training_videos // self.batch)
        rate = optax.piecewise_constant_schedule(
            self.learning_rate, {epoch * turns: 0.1 for epoch in self.drops}
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip_gradient),
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(rate, momentum=0.9),
        )


RECIPES: dict[str, Recipe] = {
    "kinetics400": Recipe(classes=400, videos=306_245, pretrained="imagenet"),
    "ucf101": Recipe(classes=101, videos=13_320, pretrained="kinetics400"),
    "hmdb51": Recipe(classes=51, videos=6_766, pretrained="kinetics400"),
    "something-something-v1": Recipe(classes=174, videos=108_499, pretrained="imagenet"),
    "something-something-v2": Recipe(classes=174, videos=220_847, pretrained="imagenet"),
}
"""The data sets of Dynamic Inference, with TSM's recipe for 16 frames."""
