"""Refresh: what was computed again replaces what is kept only where it moved far enough.

Because the kept value is the one that was passed on, errors do not add up: at every frame it lies
within the tolerance of what its layer makes of the kept inputs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dynvid.ops import masks

BLOCK = 16
"""Pixels a side of the blocks in which a frame comes to rest and is taken over in rotation."""


def moved_beyond(
    new: jax.Array, old: jax.Array, tolerance: jax.Array, *, axes: Sequence[int]
) -> jax.Array:
    """Marks where a value moved by at least the tolerance: by anything at all where that is zero.

    `m = any_axes(|new - old| >= tau and new != old)`. NaN on either side has moved; integers move
    by any difference.

    Args:
      new: `(n, ...)`.
      old: Same shape and dtype.
      tolerance: Tau, in the value's unit: `float32[n]`, `float32[1]`, or one a position,
        `float32[n, h, w]`.
      axes: Which axes are joined: any value that moved marks the position.

    Returns:
      `bool`, of `new`'s shape without `axes`.

    >>> old, new = jnp.zeros((1, 3)), jnp.array([[0.0, 0.2, 0.5]])
    >>> moved_beyond(new, old, jnp.array([0.5]), axes=()).tolist()
    [[False, False, True]]
    """
    same = new == old
    if jnp.issubdtype(new.dtype, jnp.floating):
        axes_left = (1,) * (new.ndim - tolerance.ndim)
        shape = (*tolerance.shape, *axes_left) if new.ndim else ()
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


def quiet_frames(quiet: jax.Array, changed: jax.Array) -> jax.Array:
    """For how many frames nothing has changed in each block of the frame and in those around it.

    Those around it count because what changes there reaches into it through the layers: a block
    comes to rest together with its surroundings.

    Args:
      quiet: As it was one frame ago, `int32[S, h, w]`.
      changed: Which blocks hold a changed pixel, `bool[S, h, w]`.

    Returns:
      `int32[S, h, w]`: zero where something changed, else one more.

    >>> quiet_frames(jnp.full((1, 1, 3), 3), jnp.array([[[True, False, False]]])).tolist()
    [[[0, 0, 4]]]
    """
    near = masks.stencil(changed, window=(3, 3), padding=((1, 1), (1, 1)))
    return jnp.where(near, 0, quiet + 1)


def rotation(turn: jax.Array, period: int, blocks: Sequence[int]) -> jax.Array:
    """The blocks whose turn it is, a share of each frame, as encoders refresh intra blocks.

    Blocks follow one another by rows, so that those of one frame lie together and share what they
    reach; after `period` frames each has had its turn once.

    Args:
      turn: How many frames there were, `int32[S]`.
      period: N, frames.
      blocks: (rows, columns) of them.

    Returns:
      `bool[S, rows, columns]`.

    >>> rotation(jnp.array([0, 1]), 2, (1, 4)).tolist()
    [[[True, True, False, False]], [[False, False, True, True]]]
    """
    count = blocks[0] * blocks[1]
    mine = jnp.arange(count) * period // count
    return (mine == (turn % period)[:, None]).reshape(len(turn), *blocks)


def settling(quiet: jax.Array, settle: int) -> jax.Array:
    """The blocks to be computed exactly now: those that just came to rest, or all of a still frame.

    Args:
      quiet: As of `quiet_frames`, `int32[S, h, w]`.
      settle: How many quiet frames are rest.

    Returns:
      `bool[S, h, w]`.

    >>> settling(jnp.array([[[2, 5, 0]], [[7, 5, 6]]]), 2).tolist()
    [[[True, False, False]], [[True, True, True]]]
    """
    still = jnp.all(quiet >= settle, axis=(1, 2), keepdims=True)
    return (quiet == settle) | still
