"""Recurrent networks: frames one by one until what has been seen suffices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dynvid.graph import count_macs
from dynvid.ops.early_exit import Exits, Measure, Prediction, confidence, stops
from dynvid.ops.loops import for_each
from dynvid.systems.dynamic_inference.state import thresholds_of
from dynvid.types import Frames, Params, VideoFunction, Work


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["hidden", "position", "logits", "confidences", "exit", "threshold", "work"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class RecurrentState:
    """What a recurrent network remembers of every stream, and where it stopped.

    Attributes:
      hidden: The network's own, `(S, ...)` each.
      position: How many frames of the clip have come, `int32[S]`.
      logits: Those of the last frame that was looked at, `(S, classes)`.
      confidences: `float32[S, length]`, NaN at frames that were not looked at.
      exit: The frame at which it stopped, `int32[S]`, -1 before.
      threshold: `float32[S, length]`.
      work: What the last step executed; details as of `StreamState`.
    """

    hidden: Any
    position: jax.Array
    logits: jax.Array
    confidences: jax.Array
    exit: jax.Array
    threshold: jax.Array
    work: Work

    def with_settings(self, *, threshold: ArrayLike) -> "RecurrentState":
        """The state with other thresholds, from the next step on; nothing is compiled again.

        Args:
          threshold: A number, one a frame, or one a stream and frame.

        Raises:
          ValueError: It has another shape, or is not a number.
        """
        shape = (self.threshold.shape[0], self.threshold.shape[1])
        return dataclasses.replace(self, threshold=thresholds_of(threshold, shape))

    def stream_axes(self) -> "RecurrentState":
        """The same pytree with the stream axis of each leaf."""
        return jax.tree.map(lambda _: 0, self)

    def restarted(self, which: jax.Array) -> "RecurrentState":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`."""
        del which
        return self


def recurrent_inference(
    step_fn: Callable[[Params, Any, Frames], tuple[Any, jax.Array]],
    start: Callable[[Params, int], Any],
    *,
    length: int,
    threshold: ArrayLike = 0.9,
    measure: Measure = "max_softmax",
) -> VideoFunction:
    """Classifies a clip with a recurrent network, frame by frame until it is sure.

    The input axis of Dynamic Inference with a network's own memory in place of the mean (our
    extension): every frame is a checkpoint. After it has stopped, frames cost nothing.

    Args:
      step_fn: `step_fn(params, hidden, frames) -> (hidden, logits)`, such as
        `dynvid.models.lrcn.lrcn_step`.
      start: `start(params, streams) -> hidden`, before the first frame.
      length: The frames of a clip; at the last it stops anyway.
      threshold: A number, one a frame, or one a stream and frame.
      measure: How confidence is measured.

    Returns:
      A `VideoFunction` of frames `(S, H, W, C)` whose outputs are `Prediction`s and whose state is
      a `RecurrentState`; `work.details["finished"]` says where it has stopped.

    Raises:
      ValueError: `length` is below one, or the thresholds have another shape.

    Exact: up to where it stops, the logits are those of the network.

    >>> total = lambda params, hidden, x: (hidden + x.sum((1, 2)),) * 2
    >>> video = recurrent_inference(total, lambda p, n: jnp.zeros((n, 2)), length=3)
    >>> state, found = video.init(None, jnp.zeros((1, 2, 2, 2)).at[..., 0].set(1))
    >>> found.exits.exit.tolist(), found.logits.tolist()
    ([0], [[4.0, 0.0]])
    """
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}")

    def advance(
        params: Params, state: RecurrentState, frames: Frames
    ) -> tuple[RecurrentState, Prediction]:
        rows = jnp.arange(len(frames))
        looked = (state.exit < 0) & (state.position < length)

        def turn(place: jax.Array, buffers: Any) -> Any:
            hidden, _ = buffers
            new = step_fn(params, jax.tree.map(lambda x: x[place], hidden), frames[place])
            return jax.tree.map(lambda x, y: x.at[place].set(y), buffers, new)

        hidden, logits = for_each(looked, turn, (state.hidden, state.logits), chunk=1)
        sure = confidence(logits, measure=measure).astype(jnp.float32)
        k = jnp.minimum(state.position, length - 1)
        enough = stops(sure, state.threshold[rows, k]) | (k == length - 1)
        exits = jnp.where(looked & enough, k, state.exit)
        confidences = state.confidences.at[rows, k].set(
            jnp.where(looked, sure, state.confidences[rows, k])
        )
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), state.hidden)
        image = jax.ShapeDtypeStruct((1, *frames.shape[1:]), frames.dtype)
        macs = jnp.float32(count_macs(step_fn, params, one, image))
        work = Work(
            macs=jnp.where(looked, macs, 0.0),
            dense_macs=jnp.where(state.position < length, macs, 0.0),
            changed=looked.astype(jnp.float32),
            details={"exit": exits, "finished": exits >= 0},
        )
        position = jnp.minimum(state.position + 1, length)
        upto = jnp.broadcast_to(macs * jnp.arange(1, length + 1), confidences.shape)
        after = RecurrentState(hidden, position, logits, confidences, exits, state.threshold, work)
        return after, Prediction(logits, Exits(confidences, state.threshold, exits, upto))

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[RecurrentState, Prediction]:
        streams = len(frames)
        hidden = start(params, streams)
        _, logits = jax.eval_shape(step_fn, params, hidden, frames)
        never = jnp.full(streams, -1, jnp.int32)
        none = jnp.zeros(streams, jnp.float32)
        blank = RecurrentState(
            hidden=hidden,
            position=jnp.zeros(streams, jnp.int32),
            logits=jnp.zeros(logits.shape, logits.dtype),
            confidences=jnp.full((streams, length), jnp.nan, jnp.float32),
            exit=never,
            threshold=thresholds_of(threshold, (streams, length)),
            work=Work(none, none, none, {"exit": never, "finished": never >= 0}),
        )
        return advance(params, blank, frames)

    @jax.jit
    def step(
        params: Params, state: RecurrentState, frames: Frames, mask: jax.Array | None = None
    ) -> tuple[RecurrentState, Prediction]:
        del mask
        return advance(params, state, frames)

    return VideoFunction(init=init, step=step)
