"""The words that everything else speaks: a dynamic network is a pair of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any
"""A pytree of arrays: the weights of a network."""

Frames = jax.Array
"""`(streams, H, W, C)`, floating in [0, 1] or uint8; the leading axis is the camera, never time."""

State = Any
"""A frozen pytree of arrays that a step takes and returns, so that it can be donated or saved."""

Output = Any
"""Whatever pytree the network returns for one set of frames."""


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
