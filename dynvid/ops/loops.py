"""Loops over as many rows as there are to do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def for_each[Buffers](
    which: jax.Array,
    turn: Callable[[jax.Array, Buffers], Buffers],
    buffers: Buffers,
    *,
    chunk: int = 1,
) -> Buffers:
    """Runs `turn(place, buffers)` on some rows alone, a few at a time.

    The number of turns is known only when it runs: rows that are not chosen cost nothing, and
    another choice compiles nothing again.

    Args:
      which: The rows, `bool[S]`.
      turn: `turn(place, buffers) -> buffers`, with `place`, `int32[chunk]`, the rows of this turn.
      buffers: Any pytree of arrays that turns write into.
      chunk: How many rows a turn has. The last one is filled up with its last row, which is
        computed and written twice, alike.

    Returns:
      The buffers after the last turn.

    Raises:
      ValueError: `chunk` is below one.

    >>> rows = jnp.array([True, False, True, True])
    >>> for_each(rows, lambda place, x: x.at[place].set(place + 1), jnp.zeros(4), chunk=2).tolist()
    [1.0, 0.0, 3.0, 4.0]
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1; got {chunk}")
    chunk = min(chunk, len(which))
    count = jnp.sum(which, dtype=jnp.int32)
    order = jnp.argsort(~which, stable=True).astype(jnp.int32)  # those first, in their order

    def body(i: ArrayLike, buffers: Buffers) -> Buffers:
        place = order[jnp.minimum(i * chunk + jnp.arange(chunk), count - 1)]
        return turn(place, buffers)

    if chunk == len(which):
        # One turn or none. XLA sees that a loop over all rows does the same in every turn and moves
        # its work in front of the loop, where it runs whether or not there is a turn.
        return lax.cond(count > 0, lambda buffers: body(0, buffers), lambda same: same, buffers)
    return lax.fori_loop(0, (count + chunk - 1) // chunk, body, buffers)
