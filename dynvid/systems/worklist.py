"""Loops over those of many items that need it: regions or streams, as many turns as there are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def for_each[Buffers](
    which: jax.Array,
    turn: Callable[[jax.Array, Buffers], Buffers],
    buffers: Buffers,
    *,
    chunk: int = 1,
) -> Buffers:
    """Runs a function on some of many items, and on nothing else.

    A loop over a worklist whose number of turns is known only when it runs: nothing is compiled
    again where it varies, and no item at all costs next to nothing.

    Args:
      which: The items, `bool[N]`.
      turn: `turn(places, buffers) -> buffers` of `chunk` items, `int32[chunk]`.
      buffers: What the turns write into, any pytree of arrays.
      chunk: How many items one turn takes. The last one is filled up with its last item, which is
        computed and written twice, alike.

    Returns:
      The buffers after the last turn.

    >>> which = jnp.array([False, True, True, False])
    >>> for_each(which, lambda places, x: x.at[places].set(7), jnp.zeros(4, int)).tolist()
    [0, 7, 7, 0]
    """
    chunk = min(chunk, len(which))
    count = jnp.sum(which, dtype=jnp.int32)
    order = jnp.argsort(~which, stable=True).astype(jnp.int32)  # those first, in their order

    turns = (count + chunk - 1) // chunk

    def body(i: jax.Array, buffers: Buffers) -> Buffers:
        places = order[jnp.minimum(i * chunk + jnp.arange(chunk), count - 1)]
        if chunk < len(which):
            return turn(places, buffers)
        # Of a single chunk XLA sees that every turn is the same, moves what it computes out of the
        # loop and runs it where there is no turn at all; but not out of a condition.
        return lax.cond(i < turns, lambda: turn(places, buffers), lambda: buffers)

    return lax.fori_loop(0, turns, body, buffers)
