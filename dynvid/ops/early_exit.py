"""Early exits: how sure a head is, and what there is to tell of where a video stopped."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

Measure = Literal["max_softmax", "margin", "entropy"]


class Exits(NamedTuple):
    """Where videos stopped, or how far they have come.

    Attributes:
      confidences: `(S, checkpoints)` float32; NaN at checkpoints that were not reached.
      thresholds: `(S, checkpoints)` float32, what they were compared with.
      exit: `int32[S]`, the checkpoint at which it stopped, counted from 0; -1 before.
      macs: `(S, checkpoints)` float32, multiply-accumulates up to each checkpoint.
    """

    confidences: jax.Array
    thresholds: jax.Array
    exit: jax.Array
    macs: jax.Array


class Prediction(NamedTuple):
    """What a network with checkpoints says.

    Attributes:
      logits: `(S, classes)`, of the last checkpoint that was reached; zeros before the first.
      exits: Where it stopped.
    """

    logits: jax.Array
    exits: Exits


def confidence(logits: jax.Array, *, measure: Measure = "max_softmax") -> jax.Array:
    """How sure a classifier is, in [0, 1].

    `max_softmax`: max_c p_c (MSDNet, section 4, "dynamic evaluation"). `margin`: the largest p less
    the second. `entropy`: 1 + sum_c p_c log p_c / log C. The slides of Dynamic Inference name no
    measure; max softmax as the default is our reconstruction.

    Args:
      logits: `(..., classes)` of at least two classes.
      measure: One of the three.

    Returns:
      `(...,)` floating.

    Raises:
      ValueError: It is none of them, or there is one class only.

    >>> logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    >>> [round(confidence(logits, measure=m).item(), 4) for m in ("max_softmax", "margin")]
    [0.5, 0.25]
    >>> confidence(jnp.zeros(3), measure="entropy").item() < 1e-6
    True
    """
    if measure not in get_args(Measure):
        raise ValueError(f"measure must be one of {', '.join(get_args(Measure))}; got {measure!r}")
    if logits.shape[-1] < 2:
        raise ValueError(f"logits must have at least 2 classes; got shape {logits.shape}")
    probabilities = jax.nn.softmax(logits, -1)
    if measure == "max_softmax":
        return jnp.max(probabilities, -1)
    if measure == "margin":
        best = jax.lax.top_k(probabilities, 2)[0]
        return best[..., 0] - best[..., 1]
    surprise = jax.scipy.special.entr(probabilities)
    return 1 - jnp.sum(surprise, -1) / math.log(logits.shape[-1])


def stops(confidence: jax.Array, threshold: jax.Array) -> jax.Array:
    """Whether a checkpoint is sure enough to stop: confidence at least the threshold.

    A confidence that is not a number never is.

    >>> stops(jnp.array([0.9, 0.5, jnp.nan]), jnp.array([0.9, 0.6, 0.0])).tolist()
    [True, False, False]
    """
    return confidence >= threshold


def exit_of(confidences: jax.Array, thresholds: jax.Array) -> jax.Array:
    """The checkpoint at which each video stops: the first that is sure enough, else the last.

    Args:
      confidences: `(S, checkpoints)`.
      thresholds: `(checkpoints,)` or `(S, checkpoints)`; the last is not asked.

    Returns:
      `int32[S]`.

    >>> exit_of(jnp.array([[0.9, 0.2, 0.1], [0.1, 0.2, 0.1]]), jnp.array([0.5, 0.5, 0.5])).tolist()
    [0, 2]
    """
    enough = stops(confidences, thresholds).at[..., -1].set(True)
    return jnp.argmax(enough, -1).astype(jnp.int32)


def saved(exits: Exits) -> Mapping[str, jax.Array]:
    """What stopping early has saved.

    Returns:
      `macs`, those executed; `full`, those up to the last checkpoint; `fraction`, executed over
      full: `(S,)` float32 each. A video that has not stopped counts as far as it has come.

    >>> exits = Exits(
    ...     jnp.array([[0.9, jnp.nan]]), jnp.full((1, 2), 0.5), jnp.array([0]),
    ...     jnp.array([[2.0, 8.0]]),
    ... )
    >>> saved(exits)["fraction"].item()
    0.25
    """
    reached = jnp.sum(~jnp.isnan(exits.confidences), 1)
    last = jnp.where(exits.exit >= 0, exits.exit, reached - 1)
    macs = jnp.take_along_axis(exits.macs, jnp.maximum(last, 0)[:, None], 1)[:, 0]
    macs = jnp.where(last >= 0, macs, 0)
    full = exits.macs[:, -1]
    return {"macs": macs, "full": full, "fraction": macs / jnp.maximum(full, 1)}
