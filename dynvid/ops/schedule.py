"""When to compute anew: the rules that choose key frames, key regions and positions, by name.

DVSNet 3.2 and 4.3 with Eq. 2-3; Zhu et al., Towards High Performance Video Object Detection, 2018
("Zhu"), 3.2 and 3.3. Each rule is a pure function of what is at hand and of a threshold in the unit
of what it is compared with, and says yes where the kept result is no longer good enough.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dynvid.ops.difference import frame_difference as _difference


def decision_network(scores: jax.Array, threshold: ArrayLike) -> jax.Array:
    """Where the expected confidence score is below the threshold (DVSNet 3.2, Fig. 4).

    `score_r < t`. The paper's text sends regions "higher than t" to the warping path and its code
    those of at least t, a difference of measure zero: here equal scores are warped. What networks
    expect may lie outside of 0..100; a threshold of 100 computes everything anew all the same, one
    of 0 nothing.

    Args:
      scores: Expected confidence scores, percent, any shape.
      threshold: t, percent, of a shape that broadcasts.

    Returns:
      Bool of the scores' shape. NaN computes anew.

    >>> decision_network(jnp.array([80.0, 92.0, 99.0]), 92).tolist()
    [True, False, False]
    """
    threshold = jnp.asarray(threshold)
    below = ~(scores >= threshold)
    return jnp.where(threshold <= 0, jnp.isnan(scores), below | (threshold >= 100))


def frame_difference(
    current: jax.Array, key: jax.Array, threshold: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Where the mean grey level of the difference to the key exceeds the threshold (DVSNet, Eq. 2).

    `d = 1/|P| sum_p |G(I_k)(p) - G(I_i)(p)| > threshold`, G the luma of Rec. 601. As printed, Eq. 2
    lacks the absolute value, so that signs would cancel.

    Args:
      current: `(S, h, w, 3)`, uint8 or floating, RGB.
      key: Same shape and dtype.
      threshold: In the frames' unit, grey levels of 0..255 for uint8.

    Returns:
      `(anew, d)`, bool and float32 `(S,)`. NaN computes anew.

    Raises:
      ValueError: The frames differ in shape or dtype, or are not of three channels.

    >>> key = jnp.zeros((2, 2, 2, 3), jnp.uint8)
    >>> anew, d = frame_difference(key.at[1, 0].set(40), key, 10)
    >>> anew.tolist(), d.tolist()
    ([False, True], [0.0, 20.0])
    """
    mean = jnp.mean(_difference(current, key, channels="gray"), (1, 2))
    return ~(mean <= threshold), mean


def flow_magnitude(flow: jax.Array, threshold: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Where things moved further than the threshold on average (DVSNet, Eq. 3).

    `f = 1/|P| sum_p sqrt(u(p)^2 + v(p)^2) > threshold`.

    Args:
      flow: `(S, h, w, 2)`, (dx, dy) in pixels of its own grid.
      threshold: Pixels of that grid.

    Returns:
      `(anew, f)`, bool and floating `(S,)`. NaN computes anew.

    >>> anew, f = flow_magnitude(jnp.full((1, 2, 2, 2), jnp.array([3.0, -4.0])), 4)
    >>> anew.tolist(), f.tolist()
    ([True], [5.0])
    """
    mean = jnp.mean(jnp.hypot(flow[..., 0], flow[..., 1]), (1, 2))
    return ~(mean <= threshold), mean


def fixed_period(age: jax.Array, period: ArrayLike) -> jax.Array:
    """Where the key is `period` frames old: every period-th frame is a key frame (DFF, 3).

    So in Zhu, 3.1, too. The papers count frames, `i mod l = 0`; as each key restarts the count, the
    age of the last key says the same, and also after a key that another rule asked for.

    Args:
      age: How many frames ago the key was computed, integers of any shape, 1 right after it.
      period: l, frames between two keys; 1 computes every frame.

    Returns:
      Bool of the shape of `age`.

    >>> fixed_period(jnp.array([1, 2, 3]), 3).tolist()
    [False, False, True]
    """
    return age >= period


def update_mask(quality: jax.Array, threshold: ArrayLike) -> jax.Array:
    """Where warped features are too poor to stay: U, with a straight-through gradient (Zhu, 3.2).

    `U(p) = 1[Q(p) <= tau]`. Flat but for a step, it is learned through
    `dU/dQ = -1 where |Q - tau| <= 1, else 0`, and the opposite for tau.

    Args:
      quality: Q, floating of any shape: how consistent warped features are; unbounded.
      threshold: Tau, 0 in the paper, of a shape that broadcasts to that of Q.

    Returns:
      0 or 1 in the dtype and shape of Q. NaN computes anew, without a gradient. Reverse-mode
      differentiation only.

    >>> q = jnp.array([-3.0, -1.0, 0.0, 0.5, 2.0, jnp.nan])
    >>> update_mask(q, 0.0).tolist()
    [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    >>> jax.grad(lambda q: update_mask(q, 0.0).sum())(q).tolist()
    [0.0, -1.0, -1.0, -1.0, 0.0, 0.0]
    """
    threshold = jnp.broadcast_to(jnp.asarray(threshold, quality.dtype), quality.shape)
    return _straight_through(quality, threshold)


@jax.custom_vjp
def _straight_through(quality: jax.Array, threshold: jax.Array) -> jax.Array:
    return (~(quality > threshold)).astype(quality.dtype)


def _straight_through_forward(
    quality: jax.Array, threshold: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _straight_through(quality, threshold), jnp.abs(quality - threshold) <= 1


def _straight_through_backward(near: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(near, -gradient, 0), jnp.where(near, gradient, 0)


_straight_through.defvjp(_straight_through_forward, _straight_through_backward)


def feature_consistency(
    quality: jax.Array, threshold: ArrayLike, *, quality_threshold: ArrayLike = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Where too much of a frame would have to be updated: it becomes a key frame (Zhu, Eq. 9).

    `is_key = 1/|P| sum_p 1[Q(p) <= tau] > gamma`.

    Args:
      quality: Q, `(S, h, w)` floating, as of `update_mask`.
      threshold: Gamma, a share: 0.2 in the paper. Below 0 every frame is a key frame, and from 1 on
        none is.
      quality_threshold: Tau.

    Returns:
      `(anew, share)`, bool and float32 `(S,)`. Positions of NaN count as to be updated.

    >>> q = jnp.array([[[1.0, 1.0], [1.0, -1.0]], [[-1.0, 0.0], [1.0, 1.0]]])
    >>> anew, share = feature_consistency(q, 0.25)
    >>> anew.tolist(), share.tolist()
    ([False, True], [0.25, 0.5])
    """
    poor = update_mask(quality, quality_threshold)
    share = jnp.mean(poor, (1, 2), dtype=jnp.float32)
    return ~(share <= threshold), share


def oracle(computed: jax.Array, kept: jax.Array, margin: ArrayLike) -> jax.Array:
    """Where computing anew gives the better result, as the truth tells (Zhu, Fig. 7).

    `computed - kept > margin`. The paper's oracle tries both for every frame and takes what detects
    better; how it measures that is left open, and so is here: any score of one frame will do.

    Args:
      computed: How good the result is if computed anew, floating of any shape, greater is better.
      kept: How good it is if not, of the same shape.
      margin: What computing must gain at least to be worth it, in the unit of the scores; at 0
        equals are kept.

    Returns:
      Bool of the shape of the scores. NaN computes anew.

    >>> oracle(jnp.array([0.9, 0.5, 0.5]), jnp.array([0.4, 0.5, 0.6]), 0).tolist()
    [True, False, False]
    """
    return ~(computed - kept <= margin)


def adaptive_target(threshold: ArrayLike, anew: jax.Array) -> jax.Array:
    """The threshold of the next step: lower where a region was segmented, else a little higher.

    `t - 1` after segmentation, `t + 0.1` after warping, within 0..100 percent: an option of
    DVSNet's published code ("dynamic"), not of its paper. About every eleventh step segments.

    Args:
      threshold: t of each region, percent.
      anew: Whether that region was segmented.

    Returns:
      The new thresholds, float32.

    >>> adaptive_target(jnp.array([92.0, 92.0]), jnp.array([True, False])).round(1).tolist()
    [91.0, 92.0999984741211]
    """
    return jnp.clip(jnp.asarray(threshold, jnp.float32) + jnp.where(anew, -1.0, 0.1), 0, 100)
