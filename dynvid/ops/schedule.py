"""When to compute anew: the rules that choose key frames and key regions, by name.

DVSNet 3.2 and 4.3 with Eq. 2-3. Each rule is a pure function of what is at hand and of a threshold
in the unit of what it is compared with, and says yes where the kept result is no longer good
enough.
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

    Args:
      age: How many frames ago the key was computed, integers of any shape, 1 right after it.
      period: l, frames between two keys; 1 computes every frame.

    Returns:
      Bool of the shape of `age`.

    >>> fixed_period(jnp.array([1, 2, 3]), 3).tolist()
    [False, False, True]
    """
    return age >= period


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
