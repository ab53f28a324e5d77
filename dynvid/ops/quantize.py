"""Uniform quantisation, and the closed loop of differential coding on integers.

IFMDC (arXiv 2411.00984), Eq. 3 and 5; in Eq. 5 with `+A` for the `-A` that is printed.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def uniform_quantize(
    values: jax.Array, *, low: float | jax.Array, high: float | jax.Array, levels: int
) -> jax.Array:
    """Quantises values to evenly spaced levels, the first at `low` and the last at `high`.

    `q = clip(round((v - low) / s), 0, k - 1)`, `s = (high - low) / (k - 1)`. With `low = -A, high =
    A` this is IFMDC's Eq. 5, with `+A` where the paper prints `-A` (which shifts every label by `k
    - 1`).

    Args:
      values: `float[...]`, in the unit of `low` and `high`.
      low: The value of label 0; a number, or what broadcasts against `values`.
      high: The value of label `levels - 1`, above `low`.
      levels: k, at least 2.

    Returns:
      Labels, `int32[...]` of 0 .. `levels - 1`. Values beyond the range take the label at its end;
      NaN takes some label.

    Raises:
      ValueError: Fewer than 2 levels.

    Approximate because it rounds: half a step, `s / 2`, within the range.

    >>> uniform_quantize(jnp.array([-9.0, -1.0, 0.1, 1.0, 9.0]), low=-2, high=2, levels=5)
    Array([0, 1, 2, 3, 4], dtype=int32)
    """
    steps = (jnp.clip(values, low, high) - low) / _step(low, high, levels)
    # Clipped again as integers: what NaN becomes is the machine's choice.
    return jnp.clip(jnp.round(steps).astype(jnp.int32), 0, levels - 1)


def uniform_dequantize(
    labels: jax.Array, *, low: float | jax.Array, high: float | jax.Array, levels: int
) -> jax.Array:
    """Gives each label the value of its level, the mid-tread inverse of `uniform_quantize`.

    `v = low + q s`, `s = (high - low) / (k - 1)`.

    Args:
      labels: `int[...]` of 0 .. `levels - 1`.
      low: The value of label 0; a number, or what broadcasts against `labels`.
      high: The value of label `levels - 1`.
      levels: k, at least 2.

    Returns:
      `float32[...]`.

    Raises:
      ValueError: Fewer than 2 levels.

    >>> uniform_dequantize(jnp.array([0, 1, 4]), low=-2, high=2, levels=5)
    Array([-2., -1.,  2.], dtype=float32)
    """
    return low + jnp.asarray(labels, jnp.float32) * _step(low, high, levels)


def quantize_residual(
    target: jax.Array,
    prediction: jax.Array,
    *,
    step: ArrayLike,
    levels: ArrayLike,
    dead_zone: ArrayLike = 0.5,
) -> jax.Array:
    """Labels how far a target lies from an integer prediction, in whole steps.

    `q = clip((k - 1) / 2 + round((x - m) / s), 0, k - 1)`: IFMDC, Eq. 3 and 5, on a grid of
    integers; `q = (k - 1) / 2` where `|x - m| < z s`.

    Args:
      target: x, `float32[...]`, in units of the grid.
      prediction: m, `int32[...]`, broadcastable.
      step: s, the grid units of one step, an integer of at least 1.
      levels: k, odd and at least 3, so that a residual of zero has a label of its own.
      dead_zone: z, in steps, at least 0.5: what is nearer than this counts as no change. 0.5 is the
        plain quantiser.

    Returns:
      `int32[...]` of 0 .. `levels - 1`; NaN takes some label.

    Approximate because it rounds: where the label did not have to be clipped,
    `integrate_residual` comes within `max(z, 0.5)` steps of the target.

    >>> quantize_residual(jnp.array([7.0, 3.9, 4.1]), jnp.array([4, 4, 4]), step=2, levels=5)
    Array([4, 2, 2], dtype=int32)
    """
    residual = target - prediction.astype(jnp.float32)
    steps = jnp.round(residual * (1 / jnp.asarray(step, jnp.float32))).astype(jnp.int32)
    steps = jnp.where(jnp.abs(residual) < jnp.asarray(dead_zone, jnp.float32) * step, 0, steps)
    half = (jnp.asarray(levels, jnp.int32) - 1) // 2
    return jnp.clip(steps, -half, half) + half


def integrate_residual(
    prediction: jax.Array, labels: jax.Array, *, step: ArrayLike, levels: ArrayLike, top: int
) -> jax.Array:
    """Adds labelled residuals to an integer prediction: the decoder's half of the closed loop.

    `m <- clip(m + s (q - (k - 1) / 2), 0, M)`.

    Args:
      prediction: m, `int32[...]` of 0 .. `top`.
      labels: q, `int[...]` of 0 .. `levels - 1`, broadcastable.
      step: s, the grid units of one step.
      levels: k, odd.
      top: M, the last level of the grid.

    Returns:
      `int32[...]` of 0 .. `top`.

    Exact on every device: integers only.

    >>> integrate_residual(jnp.array([4, 4]), jnp.array([4, 2]), step=2, levels=5, top=7)
    Array([7, 4], dtype=int32)
    """
    half = (jnp.asarray(levels, jnp.int32) - 1) // 2
    return jnp.clip(prediction + jnp.asarray(step, jnp.int32) * (labels - half), 0, top)


def _step(low: float | jax.Array, high: float | jax.Array, levels: int) -> jax.Array:
    """The distance of two levels, `float32[...]`."""
    if levels < 2:
        raise ValueError(f"levels must be at least 2; got {levels}")
    # Of Python's numbers in float64, and rounded once.
    return jnp.asarray((high - low) / (levels - 1), jnp.float32)
