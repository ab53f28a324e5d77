"""What DVSNet keeps between frames."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from dynvid.types import Params, VideoState, Work


class DVSNetParams(NamedTuple):
    """The parameters of the three networks.

    Attributes:
      segmentation: Of the segmentation network.
      flow: Of the flow network.
      decision: Of the decision network; whatever it takes, `()` where there is none.
    """

    segmentation: Params
    flow: Params
    decision: Params = ()


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["key_images", "key_logits", "age", "threshold", "inner", "work"],
    meta_fields=["frame_size", "limits"],
)
@dataclasses.dataclass(frozen=True)
class DVSNetState:
    """The key of every region: a pytree of arrays, to donate or save.

    Attributes:
      key_images: I_k, each region as it was when it was last segmented,
        `(S, regions, h, w, C)` in the frames' dtype.
      key_logits: S_k, what the segmentation network said of it, `(S, regions, h', w', classes)`.
        Warped results never replace it.
      age: How many frames ago that was, `int32[S, regions]`.
      threshold: What the policy compares with, in its unit, `float32[S, regions]`.
      inner: Of an incremental segmentation network its own state, with the stream axis cut into
        (streams, regions); None of one that runs in full.
      work: What the last step executed. `changed` is the share of regions that were segmented. Its
        details are `segmented`, `bool[S, regions]`; `scores`, `float32[S, regions]`, what the
        policy compared with the threshold (NaN in the first frame); and `segmentation_macs`,
        `flow_macs` and `decision_macs`, `float32[S]`.
      frame_size: (height, width) of the frames.
      limits: The least and the greatest threshold that the policy knows.
    """

    key_images: jax.Array
    key_logits: jax.Array
    age: jax.Array
    threshold: jax.Array
    inner: Any
    work: Work
    frame_size: tuple[int, int]
    limits: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        """How many streams there are, and regions in each."""
        return self.age.shape[0], self.age.shape[1]

    def with_settings(self, *, threshold: ArrayLike) -> "DVSNetState":
        """The state with another threshold, from the next step on; nothing is compiled again.

        Args:
          threshold: A number, or one a stream, in the unit of the policy.

        Raises:
          ValueError: It is out of the policy's range, or of another shape.
        """
        new = threshold_of(threshold, self.limits, self.shape)
        return dataclasses.replace(self, threshold=new)

    def stream_axes(self) -> "DVSNetState":
        """The same pytree with the stream axis of each leaf; -1 where it is of all streams."""
        axes = jax.tree.map(lambda _: 0, dataclasses.replace(self, inner=None))
        inner = None if self.inner is None else unfolded(self.inner, self.shape).stream_axes()
        return dataclasses.replace(axes, inner=inner)

    def restarted(self, which: jax.Array) -> "DVSNetState":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`."""
        if self.inner is None:
            return self
        shape = self.shape
        inner = unfolded(self.inner, shape).restarted(jnp.repeat(which, shape[1]))
        return dataclasses.replace(self, inner=folded(inner, shape))


def folded[State: VideoState](state: State, shape: tuple[int, int]) -> State:
    """A state of `S * regions` streams with that axis cut in two, (S, regions)."""

    def cut(x: jax.Array, axis: int) -> jax.Array:
        return x if axis < 0 else x.reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])

    return jax.tree.map(cut, state, state.stream_axes())


def unfolded[State: VideoState](state: State, shape: tuple[int, int]) -> State:
    """The state of `S * regions` streams that `folded` made this one of."""

    def join(x: jax.Array, axis: int) -> jax.Array:
        if axis < 0:
            return x
        return x.reshape(*x.shape[:axis], shape[0] * shape[1], *x.shape[axis + 2 :])

    return jax.tree.map(join, state, state.stream_axes())


def threshold_of(
    given: ArrayLike, limits: tuple[float, float], shape: tuple[int, int]
) -> jax.Array:
    """A threshold for each region of each stream, `float32[S, regions]`.

    Raises:
      ValueError: It is out of the limits, or neither a number nor one a stream.

    >>> threshold_of(92, (0, 100), (1, 2)).tolist()
    [[92.0, 92.0]]
    """
    check_threshold(given, limits)
    array = jnp.asarray(given, jnp.float32)
    if array.shape not in ((), (shape[0],)):
        raise ValueError(
            f"threshold must be a number or one for each of {shape[0]} streams; "
            f"got shape {list(array.shape)}"
        )
    return jnp.broadcast_to(array[..., None], shape)


def check_threshold(given: ArrayLike, limits: tuple[float, float]) -> None:
    """Checks a threshold, as far as it is known.

    Raises:
      ValueError: It is not within the limits.

    >>> check_threshold(101, (0, 100))
    Traceback (most recent call last):
    ...
    ValueError: threshold must be between 0 and 100; got 101
    """
    if isinstance(given, Tracer):
        return
    numbers, (least, most) = np.asarray(given), limits
    if numbers.dtype.kind not in "fiu" or not ((least <= numbers) & (numbers <= most)).all():
        words = f"at least {least:g}" if most == np.inf else f"between {least:g} and {most:g}"
        raise ValueError(f"threshold must be {words}; got {given}")
