"""The network as it is, frame by frame: what every system is compared with."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynvid.incremental.transform import plan_for
from dynvid.types import Frames, Output, Params, VideoFunction, Work


@functools.partial(jax.tree_util.register_dataclass, data_fields=["work"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class State:
    """What is kept between frames: nothing but the account of the work.

    Attributes:
      work: All of it, at every frame.
    """

    work: Work

    def stream_axes(self) -> "State":
        """The same pytree with the stream axis of each leaf."""
        return jax.tree.map(lambda _: 0, self)

    def restarted(self, which: jax.Array) -> "State":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`."""
        del which
        return self


def dense(fn: Callable[[Params, jax.Array], Any]) -> VideoFunction:
    """Runs a frame function in full on every frame, as a `VideoFunction`.

    Args:
      fn: `fn(params, frames) -> outputs`, pure, with frames `(S, H, W, C)`.

    Returns:
      A `VideoFunction` whose `state.work` counts the whole network at every frame, and every pixel
      as changed; a mask given to `step` changes nothing.

    Exact: the outputs are `fn(params, frames)`.

    >>> video = dense(lambda mix, x: x @ mix)
    >>> state, _ = video.init(jnp.ones((1, 1)), jnp.zeros((1, 4, 4, 1)))
    >>> state, out = video.step(jnp.ones((1, 1)), state, jnp.ones((1, 4, 4, 1)))
    >>> out.sum().item(), state.work.mac_fraction.item()
    (16.0, 1.0)
    """

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[State, Output]:
        macs = jnp.full(frames.shape[0], plan_for(fn, params, frames).dense_macs, jnp.float32)
        share = jnp.ones(frames.shape[0], jnp.float32)
        return State(Work(macs, macs, share, {})), fn(params, frames)

    @jax.jit
    def step(
        params: Params, state: State, frames: Frames, mask: jax.Array | None = None
    ) -> tuple[State, Output]:
        del mask
        return state, fn(params, frames)

    return VideoFunction(init=init, step=step)
