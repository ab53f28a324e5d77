"""The words that everything else speaks: a dynamic network is a pair of pure functions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp

Params = Any
"""A pytree of arrays: the weights of a network."""

Frames = jax.Array
"""`(S, H, W, C)`, floating in [0, 1] or uint8; the leading axis is the S streams, never time."""

Output = Any
"""Whatever pytree the network returns for one set of frames."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a file may ask for before anything is computed for it.

    They are far above what networks of today take on a frame, and low enough that a damaged or
    hostile file is refused before it costs gigabytes or minutes.

    Attributes:
      operations: Of the traced function, and nodes of a graph.
      largest: Numbers in one array that is made.
      total: Numbers in all arrays that are made, and in all tensors of a file together.
      constants: Numbers that folding a graph's constants makes.
      macs: Multiply-accumulates a frame.
      window: Rows or columns of one pooling, which are taken one by one.

    >>> Limits().times(4).macs
    40000000000000
    """

    operations: int = 20_000
    largest: int = 1 << 28
    total: int = 1 << 32
    constants: int = 1 << 26
    macs: int = 10**13
    window: int = 512

    def times(self, factor: float) -> "Limits":
        """Limits that are so many times as high."""
        values = dataclasses.asdict(self)
        return Limits(**{name: int(factor * value) for name, value in values.items()})


class Work(NamedTuple):
    """What one step executed, counted inside the graph.

    Attributes:
      macs: Multiply-accumulates executed, `float32[streams]`: cells with their halo, counted as a
        direct convolution would need them.
      dense_macs: What the dense network takes, `float32[streams]`.
      changed: The share of frame pixels that changed, `float32[streams]`.
      details: What else a system counts, by name: arrays of any shape. The system's docstring says
        which.

    >>> work = Work(jnp.array([1.0]), jnp.array([4.0]), jnp.array([0.1]), {"cells": jnp.array([3])})
    >>> work.mac_fraction.item()
    0.25
    """

    macs: jax.Array
    dense_macs: jax.Array
    changed: jax.Array
    details: Mapping[str, jax.Array]

    @property
    def mac_fraction(self) -> jax.Array:
        """Executed over dense multiply-accumulates of all streams together."""
        return jnp.sum(self.macs) / jnp.maximum(jnp.sum(self.dense_macs), 1.0)


class Agreement(NamedTuple):
    """How far two outputs of the same frames agree, and how much there was to agree on.

    Over several frames the agreement is the mean of `score` weighted by `weight`: for detections,
    where the score is F1 and the weight is how many both have, that is the F1 of all frames
    together, and a frame without any says nothing.

    Attributes:
      score: At most 1, which is where they are the same: floating `(streams,)`.
      weight: At least 0, same shape.

    >>> Agreement(jnp.array([1.0, 0.5]), jnp.array([2.0, 6.0])).mean.item()
    0.625
    """

    score: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The weighted mean; 1 where there is nothing to agree on."""
        total = jnp.sum(self.weight)
        mean = jnp.sum(self.score * self.weight) / jnp.where(total > 0, total, 1)
        return jnp.where(total > 0, mean, 1.0)


Metric = Callable[[Output, Output], Agreement]
"""`metric(expected, found)` of two outputs of the same frames, pure: one `Agreement` a stream."""


class VideoState(Protocol):
    """What every state offers: a frozen pytree of arrays, to donate, save, shard or move.

    Attributes:
      work: What the last step executed.
    """

    @property
    def work(self) -> Work:
        """What the last step executed."""
        ...

    def stream_axes(self) -> Self:
        """The same pytree with, for each leaf, the number of its stream axis; -1 where none is."""
        ...

    def restarted(self, which: jax.Array) -> Self:
        """The state once the streams `which`, `bool[streams]`, have been put in from elsewhere.

        Whatever the state holds of several streams together is no longer theirs; a system that
        holds such things marks here that its next step has to make them anew.
        """
        ...


class InitFn(Protocol):
    """`init(params, frames) -> (state, output)`: the first frame of every stream, dense."""

    def __call__(self, params: Params, frames: Frames) -> tuple[Any, Output]:
        """Runs on the first frames."""
        ...


class StepFn(Protocol):
    """`step(params, state, frames, mask=None) -> (state, output)`: every later frame.

    A mask `bool[streams, H, W]` says which pixels to take as changed; None leaves it to the system.
    """

    def __call__(
        self, params: Params, state: Any, frames: Frames, mask: jax.Array | None = None
    ) -> tuple[Any, Output]:
        """Runs on the next frames."""
        ...


class RecalibrateFn(Protocol):
    """`recalibrate(params, state, frames) -> state`: scales measured anew, on these frames."""

    def __call__(self, params: Params, state: Any, frames: Frames) -> Any:
        """Measures again what tolerances are relative to."""
        ...


def _nothing_to_calibrate(params: Params, state: Any, frames: Frames) -> Any:
    del params, frames
    return state


class VideoFunction(NamedTuple):
    """A dynamic network: `init` on the first frames, `step` on all that follow.

    Attributes:
      init: `init(params, frames) -> (state, output)`, dense.
      step: `step(params, state, frames, mask=None) -> (state, output)`, computing as little as it
        can.
      recalibrate: `recalibrate(params, state, frames) -> state`; a system whose tolerances do not
        depend on what the first frames showed returns the state as it is.

    >>> count = VideoFunction(
    ...     init=lambda params, frames: (1, frames),
    ...     step=lambda params, n, frames, mask=None: (n + 1, frames),
    ... )
    >>> state, _ = count.init(None, "first")
    >>> count.step(None, state, "second")
    (2, 'second')
    """

    init: InitFn
    step: StepFn
    recalibrate: RecalibrateFn = _nothing_to_calibrate


def replace_streams[State: VideoState](state: State, other: State, which: jax.Array) -> State:
    """Puts some streams of one state into another: a camera joins, leaves or starts again.

    Args:
      state: Of the streams that go on.
      other: Of the same function, with as many streams, or with one that goes wherever `which`
        says: `init(params, frame[None])` of a new camera.
      which: The streams to take from `other`, `bool[streams]`.

    Returns:
      The joined state. Under `jit` nothing is compiled again, whatever `which` says.

    Raises:
      ValueError: Where the states are not of one function, or `which` is not `bool[streams]`.

    Exact: the other streams go on as if nothing had happened, bit for bit, in a function that
    treats its streams apart. What mixes them (a mean over the cameras) is computed anew in the next
    step.

    >>> import dynvid
    >>> video = dynvid.incremental(lambda gain, x: x * gain)
    >>> two, _ = video.init(jnp.ones(()), jnp.zeros((2, 4, 4, 1)))
    >>> one, _ = video.init(jnp.ones(()), jnp.ones((1, 4, 4, 1)))
    >>> replace_streams(two, one, jnp.array([False, True])).reference.sum((1, 2, 3)).tolist()
    [0.0, 16.0]
    """
    streams = state.work.macs.shape[0]
    if jnp.shape(which) != (streams,) or jnp.result_type(which) != jnp.bool_:
        raise ValueError(
            f"which must be bool[{streams}]; got {jnp.result_type(which)}{list(jnp.shape(which))}"
        )
    which = jnp.asarray(which)

    def choose(mine: jax.Array, theirs: jax.Array, axis: int) -> jax.Array:
        if axis < 0:
            return mine
        shape = [1] * mine.ndim
        shape[axis] = streams
        one = (*mine.shape[:axis], 1, *mine.shape[axis + 1 :])
        if theirs.dtype != mine.dtype or theirs.shape not in (mine.shape, one):
            raise ValueError(
                f"other must be a state of the same function, of {streams} streams or of one; got "
                f"{theirs.dtype}{list(theirs.shape)} for {mine.dtype}{list(mine.shape)}"
            )
        return jnp.where(which.reshape(shape), theirs, mine)

    if jax.tree.structure(state) != jax.tree.structure(other):
        raise ValueError("other must be a state of the same function; got another structure")
    joined = jax.tree.map(choose, state, other, state.stream_axes())
    return joined.restarted(which)
