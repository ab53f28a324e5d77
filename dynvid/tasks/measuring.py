"""No task at all: a network that is only measured."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.tasks.preprocessing import Preprocessing
from dynvid.tasks.task import Task
from dynvid.types import Agreement, Output, Params
from dynvid.video.draw import annotate_frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measuring(Task):
    """What a network's outputs mean is not asked: work and time are measured, and agreement of raw
    outputs.

    Attributes:
      preprocessing: How frames become the network's input.

    >>> task = Measuring(preprocessing=Preprocessing(placement="stretch", white=1))
    >>> a = task.decode(None, {"y": jnp.ones((1, 4)), "n": jnp.int32(3)}, frame_size=(8, 8))
    >>> a.shape, task.compare(a, a).score.tolist(), task.compare(a, 0.5 * a).score.tolist()
    ((1, 4), [1.0], [0.5])
    """

    name: ClassVar[str] = "none"
    results: ClassVar[str] = "outputs"
    agreement: ClassVar[str] = "1 - relative error of all outputs, same frame"

    preprocessing: Preprocessing

    def decode(self, params: Params, outputs: Output, *, frame_size: tuple[int, int]) -> jax.Array:
        """All floating outputs of a stream in one row, `(S, N)` float32."""
        del params, frame_size
        leaves = [leaf for leaf in jax.tree.leaves(outputs) if leaf.ndim]
        rows = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if not rows:
            return jnp.zeros((leaves[0].shape[0] if leaves else 1, 0), jnp.float32)
        streams = rows[0].shape[0]
        rows = [row for row in rows if row.shape[0] == streams]
        return jnp.concatenate([row.reshape(streams, -1).astype(jnp.float32) for row in rows], 1)

    def compare(self, expected: jax.Array, found: jax.Array) -> Agreement:
        """One less the relative error, at least 0; all frames weigh the same."""
        error = jnp.linalg.norm(found - expected, axis=1)
        size = jnp.linalg.norm(expected, axis=1)
        share = jnp.clip(1 - error / jnp.where(size > 0, size, 1), 0, 1)
        return Agreement(share, jnp.ones_like(share))

    def draw(self, frame: np.ndarray, result: np.ndarray) -> np.ndarray:
        """The frame as it is."""
        del result
        return annotate_frame(frame)
