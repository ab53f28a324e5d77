"""What Dynamic Inference keeps between the frames of a stream."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from dynvid.types import Work


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("waiting", "caches", "sums", "counts", "processed", "position", "decided", "logits"),
        *("confidences", "exit", "threshold", "work"),
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class StreamState:
    """The evidence so far of every stream: a pytree of arrays, to donate or save.

    Attributes:
      waiting: The frames of a group that is not complete, `(S, n - 1, H, W, C)`.
      caches: Of every depth, the channels of processed frames that later ones read: a tuple of
        arrays `(S, slots, h, w, f)`, one a shifted layer.
      sums: Of every depth, the sum of the features of the frames so far, `(S, F)`.
      counts: How many frames that is, with decayed weight where evidence decays,
        `float32[S, depths]`.
      processed: How many frames have been computed at each depth, `int32[S, depths]`.
      position: How many frames of the clip have come, `int32[S]`.
      decided: Whether it has stopped, `bool[S]`.
      logits: The answer of the last checkpoint that was reached, `(S, classes)`.
      confidences: `float32[S, checkpoints]` of this clip, NaN where not reached.
      exit: The checkpoint at which it stopped, `int32[S]`, -1 before.
      threshold: `float32[S, checkpoints]`.
      work: What the last step executed. `dense_macs` is what full inference executes in the same
        step, `changed` whether the frame was looked at. Its details are `exit`, as above, and
        `finished`, `bool[S]`: no later frame changes the answer.
    """

    waiting: jax.Array
    caches: tuple[tuple[jax.Array, ...], ...]
    sums: tuple[jax.Array, ...]
    counts: jax.Array
    processed: jax.Array
    position: jax.Array
    decided: jax.Array
    logits: jax.Array
    confidences: jax.Array
    exit: jax.Array
    threshold: jax.Array
    work: Work

    def with_settings(self, *, threshold: ArrayLike) -> "StreamState":
        """The state with other thresholds, from the next step on; nothing is compiled again.

        Args:
          threshold: A number, one a checkpoint, or one a stream and checkpoint.

        Raises:
          ValueError: It has another shape, or is not a number.
        """
        shape = (self.threshold.shape[0], self.threshold.shape[1])
        return dataclasses.replace(self, threshold=thresholds_of(threshold, shape))

    def stream_axes(self) -> "StreamState":
        """The same pytree with the stream axis of each leaf."""
        return jax.tree.map(lambda _: 0, self)

    def restarted(self, which: jax.Array) -> "StreamState":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`."""
        del which
        return self


def thresholds_of(given: ArrayLike | Sequence[float], shape: tuple[int, int]) -> jax.Array:
    """Thresholds of every stream and checkpoint, `float32[S, checkpoints]`.

    Args:
      given: A number, one a checkpoint, or one a stream and checkpoint; infinite ones never stop,
        or always.
      shape: (streams, checkpoints).

    Raises:
      ValueError: They have another shape, or are no numbers.

    >>> thresholds_of([0.5, 0.9], (1, 2)).shape
    (1, 2)
    >>> thresholds_of([0.5, 0.9], (1, 3))
    Traceback (most recent call last):
    ...
    ValueError: thresholds must be a number or one for each of 3 checkpoints; got shape [2]
    """
    if isinstance(given, Sequence):
        given = jnp.asarray(given)
    size = jnp.shape(given)
    if size not in ((), (shape[1],), shape):
        raise ValueError(
            f"thresholds must be a number or one for each of {shape[1]} checkpoints; "
            f"got shape {list(size)}"
        )
    if not isinstance(given, Tracer):
        numbers = np.asarray(given)
        if numbers.dtype.kind not in "fiu" or np.isnan(numbers).any():
            raise ValueError(f"thresholds must be numbers; got {given}")
    return jnp.broadcast_to(jnp.asarray(given, jnp.float32), shape)
