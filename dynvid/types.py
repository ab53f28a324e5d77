"""The words that everything else speaks: a dynamic network is a pair of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any
"""A pytree of arrays: the weights of a network."""

Frames = jax.Array
"""`(streams, H, W, C)`, floating in [0, 1] or uint8; the leading axis is the camera, never time."""

State = Any
"""A frozen pytree of arrays that a step takes and returns, so that it can be donated or saved."""

Output = Any
"""Whatever pytree the network returns for one set of frames."""


class Work(NamedTuple):
    """What one step executed, counted inside the graph.

    Attributes:
      macs: Multiply-accumulates executed, `float32[streams]`: cells with their halo, counted as a
        direct convolution would need them.
      dense_macs: What the dense network takes, `float32[streams]`.
      changed: The share of frame pixels that changed, `float32[streams]`.
      cells: Active cells of each segment, all streams together, `int32[segments]`.
      dense: Which segments ran on whole frames, `bool[segments]`.

    >>> work = Work(jnp.array([1.0]), jnp.array([4.0]), jnp.array([0.1]), jnp.array([3]), None)
    >>> work.mac_fraction.item()
    0.25
    """

    macs: jax.Array
    dense_macs: jax.Array
    changed: jax.Array
    cells: jax.Array
    dense: jax.Array

    @property
    def mac_fraction(self) -> jax.Array:
        """Executed over dense multiply-accumulates of all streams together."""
        return jnp.sum(self.macs) / jnp.maximum(jnp.sum(self.dense_macs), 1.0)


class VideoFunction(NamedTuple):
    """A dynamic network: `init` on the first frames, `step` on all that follow.

    Attributes:
      init: `init(params, frames) -> (state, output)`, dense.
      step: `step(params, state, frames) -> (state, output)`, computing as little as it can.

    >>> count = VideoFunction(
    ...     init=lambda params, frames: (1, frames), step=lambda params, n, frames: (n + 1, frames)
    ... )
    >>> state, _ = count.init(None, "first")
    >>> count.step(None, state, "second")
    (2, 'second')
    """

    init: Callable[..., tuple[State, Output]]
    step: Callable[..., tuple[State, Output]]
