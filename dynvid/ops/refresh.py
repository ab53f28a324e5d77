"""Refresh: what was computed again replaces what is kept only where it moved far enough.

Because the kept value is the one that was passed on, errors do not add up: at every frame it lies
within the tolerance of what its layer makes of the kept inputs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dynvid.ops import masks

BLOCK = 8
"""Pixels a side of the blocks in which a frame comes to rest and is taken over in rotation."""

TOGETHER = 3
"""How many blocks of a neighbourhood change together where something moves."""

TURNS = 4
"""Over how many frames it is spread that all of a frame settles."""

CALM = 4
"""For how many frames a camera has to be at rest before anything is kept of its frames again."""


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


def quiet_frames(quiet: jax.Array, changed: jax.Array, settle: int) -> jax.Array:
    """For how many frames nothing has moved in each block of the frame and in those around it.

    Something moves where at least `TOGETHER` blocks of a neighbourhood of 3x3 changed, a block in
    its middle among them: one alone is noise that reached the threshold, which is everywhere now
    and then. Those around it count because what changes there reaches into it through the layers: a
    block comes to rest together with its surroundings.

    Args:
      quiet: As it was one frame ago, `int32[S, h, w]`.
      changed: Which blocks hold a changed pixel, `bool[S, h, w]`.
      settle: How many quiet frames are rest: it is counted no further. Above it are blocks that
        have settled, see `settling`.

    Returns:
      `int32[S, h, w]`: zero where something moved, else one more up to `settle`.

    >>> quiet = jnp.array([[[2, 2, 2, 2, 4, 5]]])
    >>> moved = jnp.array([[[True, True, True, False, False, False]]])
    >>> quiet_frames(quiet, moved, 4).tolist()
    [[[0, 0, 0, 3, 4, 5]]]
    """
    count = jnp.pad(changed.astype(jnp.uint8), ((0, 0), (1, 1), (1, 1)))
    count = count[:, :-2] + count[:, 1:-1] + count[:, 2:]
    count = count[:, :, :-2] + count[:, :, 1:-1] + count[:, :, 2:]
    moved = changed & (count >= TOGETHER)
    near = masks.stencil(moved, window=(3, 3), padding=((1, 1), (1, 1)))
    return jnp.where(near, 0, jnp.where(quiet < settle, quiet + 1, quiet))


def blocks_in_turn(turn: jax.Array, period: int, blocks: Sequence[int]) -> jax.Array:
    """The blocks whose turn it is, a share of each frame, as encoders refresh intra blocks.

    Blocks follow one another by rows, so that those of one frame lie together and share what they
    reach; after `period` frames each has had its turn once.

    Args:
      turn: How many frames there were, `int32[S]`.
      period: N, frames.
      blocks: (rows, columns) of them.

    Returns:
      `bool[S, rows, columns]`.

    >>> blocks_in_turn(jnp.array([0, 1]), 2, (1, 4)).tolist()
    [[[True, True, False, False]], [[False, False, True, True]]]
    """
    count = blocks[0] * blocks[1]
    mine = jnp.arange(count) * period // count
    return (mine == (turn % period)[:, None]).reshape(len(turn), *blocks)


def settling(quiet: jax.Array, still: jax.Array, settle: int) -> tuple[jax.Array, jax.Array]:
    """The blocks to be computed exactly now: some of those that are at rest and were not yet.

    At most one block in `TURNS` begins to settle in a frame, so that where much comes to rest at
    once it is spread over frames and none pays more than the dense network. A block that settles
    by itself does so beside others that are not exact. So once the whole frame is still they all
    settle once more, and those that have stay exact until the last one has: after `TURNS` frames
    nothing is held back anywhere.

    Args:
      quiet: As of `quiet_frames`, `int32[S, h, w]`.
      still: Whether nothing at all has changed for `settle` frames, `bool[S]`.
      settle: How many quiet frames are rest.

    Returns:
      The blocks to be computed exactly, `bool[S, h, w]`; and `quiet`, where those that have settled
      are one above `settle`, two once the whole frame is still.

    >>> quiet, still = jnp.array([[[2, 2, 3, 0]], [[3, 2, 3, 4]]]), jnp.array([False, True])
    >>> exact, quiet = settling(quiet, still, 2)
    >>> exact.tolist()
    [[[True, False, False, False]], [[True, False, False, True]]]
    >>> quiet.tolist()
    [[[3, 2, 3, 0]], [[4, 2, 3, 4]]]
    """
    still = still[:, None, None]
    quiet = jnp.where(still, quiet, jnp.minimum(quiet, settle + 1))
    due = (quiet == settle) | (still & (quiet <= settle + 1))
    before = jnp.cumsum(due.reshape(len(due), -1), axis=1).reshape(due.shape)
    chosen = due & (before <= -(-due[0].size // TURNS))
    quiet = jnp.where(chosen, settle + 1 + still, quiet)
    return chosen | (quiet == settle + 2), quiet


def moves_everywhere(
    before: jax.Array, calm: jax.Array, share: jax.Array, limit: float
) -> tuple[jax.Array, jax.Array]:
    """Whether so much changes that the dense network is cheaper, and for how long it has not.

    It begins where `share` exceeds the limit and ends once `share` has stayed below three quarters
    of it for `CALM` frames: computing all that is kept anew costs more than the dense network, and
    where motion and rest alternate that must not be paid each time.

    Args:
      before: Whether it did one frame ago, `bool[]`.
      calm: For how many frames it has not, `int32[]`.
      share: Of the blocks, how many changed or lie beside one that did, `float32[]`.
      limit: What share costs as much as the dense network.

    Returns:
      `bool[]` and `int32[]`.

    >>> moves_everywhere(jnp.array(True), jnp.array(2), jnp.array(0.1), 0.5)
    (Array(True, dtype=bool), Array(3, dtype=int32, weak_type=True))
    >>> moves_everywhere(jnp.array(True), jnp.array(3), jnp.array(0.1), 0.5)[0].item()
    False
    """
    much = share > jnp.where(before, 0.75 * limit, limit)
    calm = jnp.where(much, 0, jnp.minimum(calm + 1, CALM))
    return much | (before & (calm < CALM)), calm
