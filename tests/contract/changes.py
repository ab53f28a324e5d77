"""What `State.changes` promises: an output is what it was wherever it is not marked."""

import jax
import numpy as np

from dynvid.incremental.plan import Plan


class Watch:
    """Compares the outputs of a clip, frame after frame, with the changes that the states tell.

    Args:
      plan: Of the function, for the axes of its outputs.
      out: The output of `init`.
      state: The state of `init`: its changes are all True.

    Attributes:
      marked: How many places have been marked, of all outputs.
      spared: How many have not.
    """

    def __init__(self, plan: Plan, out, state):
        assert all(np.asarray(mask).all() for mask in state.changes)
        self._plan = plan
        self._seen = [np.asarray(leaf) for leaf in jax.tree.leaves(out)]
        self._types = [(mask.shape, mask.dtype) for mask in state.changes]
        self.marked = self.spared = 0

    def __call__(self, out, state) -> None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(out)]
        assert [(mask.shape, mask.dtype) for mask in state.changes] == self._types
        values = self._plan.graph.outputs
        rows = list(zip(values, self._seen, leaves, state.changes, strict=True))
        for number, (value, before, now, mask) in enumerate(rows):
            mask = np.asarray(mask)
            differs = self._by_place(
                value, ~((before == now) | ((before != before) & (now != now)))
            )
            assert mask.shape == differs.shape
            assert mask.dtype == bool
            missed = differs & ~mask
            assert not missed.any(), f"output {number} changed unmarked at {np.argwhere(missed)}"
            self.marked += int(mask.sum())
            self.spared += int((~mask).sum())
        self._seen = leaves

    def _by_place(self, value, differs: np.ndarray) -> np.ndarray:
        """`bool[streams, h, w]` of a map; `bool[streams]` of everything else."""
        streams = self._plan.graph.frames.shape[0]
        layout = self._plan.layouts.get(value)
        if layout is not None:
            differs = differs.transpose(layout.order(differs.ndim))
            return differs.any(tuple(range(3, differs.ndim)))
        axis = self._plan.streams.get(value)
        if axis is None:
            return np.full(streams, differs.any())
        return np.moveaxis(differs, axis, 0).reshape(streams, -1).any(1)
