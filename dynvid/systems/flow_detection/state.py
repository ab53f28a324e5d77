"""What flow-guided detection keeps between frames."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from dynvid.types import Params, VideoState, Work

Limits = tuple[float, float]
"""The least and the greatest value of a setting."""


class FlowDetectionParams(NamedTuple):
    """The parameters of the four networks; `()` for one that is not there.

    Attributes:
      features: Of the feature network.
      detection: Of the detection network.
      flow: Of the flow network.
      embedding: Of the embedding network.
    """

    features: Params
    detection: Params
    flow: Params = ()
    embedding: Params = ()


class Window(NamedTuple):
    """The last frames, oldest first; before the first frame, the first frame.

    Attributes:
      images: `(S, N, H, W, C)`.
      features: What the feature network made of each, any pytree of `(S, N, h, w, C')`.
    """

    images: jax.Array
    features: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "key_images",
        "features",
        "memory",
        "age",
        "threshold",
        "consistency_threshold",
        "inner",
        "scratch",
        "window",
        "work",
    ],
    meta_fields=["frame_size", "limits"],
)
@dataclasses.dataclass(frozen=True)
class FlowDetectionState:
    """The key frame of every stream: a pytree of arrays, to donate or save.

    Frames between key frames leave all of it but `age` and `work` as it is.

    Attributes:
      key_images: I_k, `(S, H', W', C)` in the frames' dtype, padded to the networks' multiple.
      features: F_k, the key frame's own features, a pytree of maps `(S, h, w, C')`.
      memory: Fbar_k, the aggregated ones, likewise; None without recursive aggregation.
      age: How many frames ago the key frame was, `int32[S]`.
      threshold: What the key rule compares with, in its unit, `float32[S]`.
      consistency_threshold: Tau, or the largest difference that the warp may leave, `float32[S]`.
      inner: With `spatial` what the feature network keeps inside of the key frame: the state of its
        incremental version. Else None.
      scratch: Another one, which frames between key frames write what they need of it into.
      window: The frames that are aggregated densely, and their features; else None.
      work: What the last step executed. `changed` is the mean of U, the share of positions whose
        features were computed anew. Its details are `key`, `bool[S]`; `score`, `float32[S]`, what
        the key rule compared with the threshold (NaN in the first frame and without a rule);
        `update_mask`, U, `bool[S, h, w]`; `motion`, M, `(S, h, w, 2)` in pixels of that grid and
        zero where none was estimated; and `feature_macs`, `flow_macs`, `aggregation_macs` and
        `detection_macs`, `float32[S]`.
      frame_size: (height, width) of the frames.
      limits: Of `threshold` and of `consistency_threshold`.
    """

    key_images: jax.Array
    features: Any
    memory: Any
    age: jax.Array
    threshold: jax.Array
    consistency_threshold: jax.Array
    inner: Any
    scratch: Any
    window: Window | None
    work: Work
    frame_size: tuple[int, int]
    limits: tuple[Limits, Limits]

    def with_settings(
        self,
        *,
        threshold: ArrayLike | None = None,
        consistency_threshold: ArrayLike | None = None,
    ) -> "FlowDetectionState":
        """The state with other settings, from the next step on; nothing is compiled again.

        Args:
          threshold: A number, or one a stream, in the unit of the key rule. None leaves it.
          consistency_threshold: Likewise, in the unit of what consistency is judged by.

        Raises:
          ValueError: One is out of its range, or of another shape.
        """
        streams = len(self.age)
        given = (("threshold", threshold), ("consistency_threshold", consistency_threshold))
        return dataclasses.replace(
            self,
            **{
                name: setting_of(name, value, limits, streams)
                for (name, value), limits in zip(given, self.limits, strict=True)
                if value is not None
            },
        )

    def stream_axes(self) -> "FlowDetectionState":
        """The same pytree with the stream axis of each leaf; -1 where it is of all streams."""
        axes = jax.tree.map(lambda _: 0, dataclasses.replace(self, inner=None, scratch=None))
        if self.inner is None:
            return axes
        inner = self.inner.stream_axes()
        return dataclasses.replace(axes, inner=inner, scratch=inner)

    def restarted(self, which: jax.Array) -> "FlowDetectionState":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`."""
        if self.inner is None:
            return self
        return dataclasses.replace(self, inner=self.inner.restarted(which))


def with_stream[State: VideoState](state: State, one: State, place: jax.Array) -> State:
    """The state of several streams with that of one of them replaced."""

    def put(x: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        return new if axis < 0 else lax.dynamic_update_slice_in_dim(x, new, place, axis)

    return jax.tree.map(put, state, one, state.stream_axes())


def empty_streams[State: VideoState](one: State, streams: int) -> State:
    """A state of several streams, zero everywhere, from the shapes of that of one."""

    def zeros(x: jax.ShapeDtypeStruct, axis: int) -> jax.Array:
        shape = x.shape if axis < 0 else (*x.shape[:axis], streams, *x.shape[axis + 1 :])
        return jnp.zeros(shape, x.dtype)

    return jax.tree.map(zeros, one, one.stream_axes())


def setting_of(name: str, given: ArrayLike, limits: Limits, streams: int) -> jax.Array:
    """A setting for each stream, `float32[S]`.

    Raises:
      ValueError: It is out of the limits, or neither a number nor one a stream.

    >>> setting_of("threshold", 0.2, (-1, 1), 2).round(1).tolist()
    [0.20000000298023224, 0.20000000298023224]
    """
    check_setting(name, given, limits)
    array = jnp.asarray(given, jnp.float32)
    if array.shape not in ((), (streams,)):
        raise ValueError(
            f"{name} must be a number or one for each of {streams} streams; "
            f"got shape {list(array.shape)}"
        )
    return jnp.broadcast_to(array, (streams,))


def check_setting(name: str, given: ArrayLike, limits: Limits) -> None:
    """Checks a setting, as far as it is known.

    Raises:
      ValueError: It is not within the limits.

    >>> check_setting("threshold", 0, (1, float("inf")))
    Traceback (most recent call last):
    ...
    ValueError: threshold must be a number of at least 1; got 0
    """
    if isinstance(given, Tracer):
        return
    numbers, (least, most) = np.asarray(given), limits
    if numbers.dtype.kind not in "fiu" or not ((least <= numbers) & (numbers <= most)).all():
        words = "a number"
        if least > -math.inf:
            words += f" of at least {least:g}" if most == math.inf else f" in [{least:g}, {most:g}]"
        raise ValueError(f"{name} must be {words}; got {given}")
