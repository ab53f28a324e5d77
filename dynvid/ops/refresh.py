"""Refresh: what was computed again replaces what is kept only where it moved far enough.

Because the kept value is the one that was passed on, errors do not add up: at every frame it lies
within the tolerance of what its layer makes of the kept inputs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def moved_beyond(
    new: jax.Array, old: jax.Array, tolerance: jax.Array, *, axes: Sequence[int]
) -> jax.Array:
    """Marks where a value moved by at least the tolerance: by anything at all where that is zero.

    `m = any_axes(|new - old| >= tau and new != old)`. NaN on either side has moved; integers move
    by any difference.

    Args:
      new: `(n, ...)`.
      old: Same shape and dtype.
      tolerance: Tau, in the value's unit, `float32[n]` or `float32[1]`.
      axes: Which axes are joined: any value that moved marks the position.

    Returns:
      `bool`, of `new`'s shape without `axes`.

    >>> old, new = jnp.zeros((1, 3)), jnp.array([[0.0, 0.2, 0.5]])
    >>> moved_beyond(new, old, jnp.array([0.5]), axes=()).tolist()
    [[False, False, True]]
    """
    same = new == old
    if jnp.issubdtype(new.dtype, jnp.floating):
        shape = (-1, *(1,) * (new.ndim - 1)) if new.ndim else ()
        same = same | (jnp.abs(new - old) < tolerance.reshape(shape))
    return jnp.any(~same, axis=tuple(axes))


def refreshed(moved: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """The new value at positions that moved, the old one elsewhere.

    Args:
      moved: `bool[n, h, w]`.
      new: `(n, h, w, ...)`.
      old: Same shape.

    Returns:
      `(n, h, w, ...)`.

    >>> refreshed(jnp.array([[[True, False]]]), jnp.ones((1, 1, 2, 1)), jnp.zeros((1, 1, 2, 1)))
    Array([[[[1.],
             [0.]]]], dtype=float32)
    """
    return jnp.where(moved.reshape(*moved.shape, *(1,) * (new.ndim - 3)), new, old)
