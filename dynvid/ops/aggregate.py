"""Aggregation: features of several frames made one, each as far as it resembles the current frame.

Zhu et al., Towards High Performance Video Object Detection, CVPR 2018 ("Zhu" below), 3.1 and 3.2;
the dense form is that of Flow-Guided Feature Aggregation (FGFA, 2017). What is aggregated has been
warped to the current frame (`dynvid.ops.warp`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynvid.ops.refresh import refreshed


class SimilarityWeights(NamedTuple):
    """How much of each frame goes into the aggregated features, position by position.

    They sum to one over the neighbours and the current frame.

    Attributes:
      neighbours: `(N, S, h, w)`, of the frames that were warped.
      current: `(S, h, w)`, of the current frame.
    """

    neighbours: jax.Array
    current: jax.Array


def cosine_similarity(embedding: jax.Array, current: jax.Array) -> jax.Array:
    """The cosine of the angle between two embeddings at every position.

    `s(p) = e(p) . e'(p) / (|e(p)| |e'(p)|)` (Zhu, Eq. 3 before its exponential), in float32 or
    wider, whatever the length of either as long as channels are below 1e37.

    Args:
      embedding: e, `(..., C)` floating, of shapes that broadcast.
      current: e', `(..., C)`.

    Returns:
      `(...)` in [-1, 1], never NaN: 0 where an embedding is zero, as if at right angles, and -1,
      the least similar, where one is infinite or NaN. Gradients are those of the cosine; zero to an
      embedding of zero, not defined to one that is not finite.

    Raises:
      ValueError: The embeddings have another number of channels.

    >>> e = jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0], [jnp.nan, 1.0]])
    >>> cosine_similarity(e, jnp.array([2.0, 0.0])).tolist()
    [1.0, 0.0, 0.0, -1.0]
    """
    if embedding.shape[-1:] != current.shape[-1:]:
        raise ValueError(
            f"current must have the channels of embedding, {embedding.shape[-1:]}; got "
            f"{current.shape[-1:]}"
        )
    similarity = jnp.sum(_unit(embedding) * _unit(current), -1)
    return jnp.where(jnp.isnan(similarity), -1, jnp.clip(similarity, -1, 1))


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length one; zero stays zero and what is not finite becomes NaN."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Dividing by the largest channel keeps squares from overflow. As the result does not depend on
    # the length, neither does its gradient on how the divisor came about.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True))
    zero = largest == 0
    x = x / jnp.where(zero, 1, largest)
    length = jnp.sqrt(jnp.where(zero, 1, jnp.sum(x * x, -1, keepdims=True)))
    return jnp.where(zero, 0, x / length)


def similarity_weights(neighbours: jax.Array, current: jax.Array) -> SimilarityWeights:
    """The weights of the warped frames and of the current one (Zhu, Eq. 3; FGFA, Eq. 3).

    `W_k(p) = exp(s_k(p)) / (e + sum_j exp(s_j(p)))`, and `e` over the same sum for the current
    frame, whose similarity to itself is 1 (`cosine_similarity`): a softmax without temperature, so
    no frame of N + 1 is ever ignored.

    Args:
      neighbours: Embeddings of the warped frames, `(N, S, h, w, C)` floating.
      current: The embedding of the current frame, `(S, h, w, C)`.

    Returns:
      `SimilarityWeights`, float32 or wider. With one neighbour the current frame has at least 0.5,
      where both agree, and at most `1 / (1 + exp(-2))`, 0.881, where they are opposed; so what is
      aggregated again and again is forgotten at least by half each time.

    Raises:
      ValueError: The shapes do not fit each other.

    >>> e = jnp.ones((1, 1, 1, 8))
    >>> weights = similarity_weights(jnp.stack([e, -e]), e)
    >>> weights.neighbours.ravel().tolist(), weights.current.item()
    ([0.468..., 0.0633...], 0.468...)
    """
    if current.ndim != 4 or neighbours.ndim != 5 or neighbours.shape[1:] != current.shape:
        raise ValueError(
            f"neighbours must be (N, S, h, w, C) for current (S, h, w, C); got "
            f"{neighbours.shape} for {current.shape}"
        )
    share = jnp.exp(cosine_similarity(neighbours, current) - 1)  # relative to the current frame
    weight = 1 / (1 + jnp.sum(share, 0))
    return SimilarityWeights(share * weight, weight)


def dense_aggregation(
    neighbours: jax.Array,
    current: jax.Array,
    neighbour_embeddings: jax.Array,
    current_embedding: jax.Array,
) -> jax.Array:
    """The weighted mean of the current features and those of all its neighbours (Zhu, Eq. 2).

    `Fbar_i = sum over k of W_k * W(F_k, M_k)`, k from i - r to i + r, the current frame among them
    (`similarity_weights`); FGFA, Eq. 2.

    Args:
      neighbours: W(F_k, M_k) of the other frames, `(N, S, h, w, C)` floating.
      current: F_i, `(S, h, w, C)`.
      neighbour_embeddings: `(N, S, h, w, E)`, of the warped features or warped themselves.
      current_embedding: `(S, h, w, E)`.

    Returns:
      Fbar_i, `(S, h, w, C)` in the dtype of `current`.

    Raises:
      ValueError: The shapes do not fit each other.

    Exact in that equal features stay as they are within N + 3 roundings.

    >>> f = jnp.ones((1, 1, 1, 1))
    >>> dense_aggregation(jnp.stack([4 * f, 7 * f]), f, jnp.stack([f, f]), f).round(5).item()
    4.0
    """
    if current.ndim != 4 or neighbours.ndim != 5 or neighbours.shape[1:] != current.shape:
        raise ValueError(
            f"neighbours must be (N, S, h, w, C) for current (S, h, w, C); got "
            f"{neighbours.shape} for {current.shape}"
        )
    weights = similarity_weights(neighbour_embeddings, current_embedding)
    if weights.neighbours.shape != neighbours.shape[:-1]:
        raise ValueError(
            f"neighbour_embeddings must be {[*neighbours.shape[:-1], 'E']}; got "
            f"{list(neighbour_embeddings.shape)}"
        )
    mean = current * weights.current[..., None]
    mean = mean + jnp.sum(neighbours * weights.neighbours[..., None], 0)
    return mean.astype(current.dtype)


def recursive_aggregation(
    memory: jax.Array,
    current: jax.Array,
    memory_embedding: jax.Array,
    current_embedding: jax.Array,
) -> jax.Array:
    """The current features with those aggregated up to the last key frame (Zhu, Eq. 4 and 7).

    `Fbar_i = W_k * W(Fbar_k, M) + W_i * Fhat_i`: `dense_aggregation` with one neighbour, which
    stands for all frames before it. Eq. 4 has F_i, of a frame that is computed; Eq. 7 Fhat_i, of
    one that is partly updated.

    Args:
      memory: W(Fbar_k, M), `(S, h, w, C)` floating.
      current: F_i or Fhat_i, `(S, h, w, C)`.
      memory_embedding: `(S, h, w, E)`.
      current_embedding: `(S, h, w, E)`.

    Returns:
      Fbar_i, `(S, h, w, C)` in the dtype of `current`.

    Raises:
      ValueError: The shapes do not fit each other.

    >>> f = jnp.ones((1, 1, 1, 1))
    >>> recursive_aggregation(3 * f, f, f, f).item()
    2.0
    """
    return dense_aggregation(memory[None], current, memory_embedding[None], current_embedding)


@jax.custom_vjp
def partial_update(mask: jax.Array, computed: jax.Array, warped: jax.Array) -> jax.Array:
    """Features computed anew where the mask says so, and the warped ones elsewhere (Zhu, Eq. 6).

    `Fhat = U * N(Fhat') + (1 - U) * W(F_k, M)` for U of 0 and 1. Its gradient is that of this
    formula, to the mask too: `dL/dU(p) = sum_c (computed - warped)(p, c) dL/dFhat(p, c)`.

    Args:
      mask: U, `(S, h, w)` floating, 0 or 1 as of `dynvid.ops.schedule.update_mask`; whatever else
        counts as 1, NaN too. A boolean mask without gradient is what `refreshed` takes.
      computed: `(S, h, w, C)` floating, what the layer gives.
      warped: `(S, h, w, C)`, what was kept of the key frame, warped.

    Returns:
      `(S, h, w, C)`. Reverse-mode differentiation only.

    Exact: to the bit `computed` where U = 1 and `warped` where U = 0, whatever the other one is,
    infinite or NaN too.

    >>> mask = jnp.array([[[1.0, 0.0]]])
    >>> partial_update(mask, jnp.full((1, 1, 2, 1), 5.0), jnp.full((1, 1, 2, 1), jnp.nan)).tolist()
    [[[[5.0], [nan]]]]
    """
    return refreshed(mask != 0, computed, warped)


def _partial_update_forward(
    mask: jax.Array, computed: jax.Array, warped: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return partial_update(mask, computed, warped), (mask, computed, warped)


def _partial_update_backward(
    kept: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    mask, computed, warped = kept
    anew, none = mask != 0, jnp.zeros_like(gradient)
    return (
        jnp.sum((computed - warped) * gradient, -1).astype(mask.dtype),
        refreshed(anew, gradient, none).astype(computed.dtype),
        refreshed(anew, none, gradient).astype(warped.dtype),
    )


partial_update.defvjp(_partial_update_forward, _partial_update_backward)
