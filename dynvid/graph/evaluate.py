"""The one evaluator of traced functions: operation by operation, on demand, each at most once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynvid.graph.trace import Node, Value
from dynvid.types import Params

Load = Callable[[Value], jax.Array | None]


class Evaluator:
    """Evaluates the values of a graph in the model's own layout; remembers what it made.

    Args:
      load: The array of a value that is at hand (an argument, something kept); None for what has to
        be computed.
      given: The arrays of some values, which are not computed either.

    Attributes:
      arrays: What was given, loaded or made so far.

    >>> from dynvid.graph.trace import trace
    >>> graph = trace(lambda gain, x: x * gain + 1, jnp.ones(()), jnp.ones((1, 1, 1, 1)))
    >>> frames = jnp.ones((1, 1, 1, 1))
    >>> Evaluator(arguments(jnp.float32(3)), given={graph.frames: frames})(graph.outputs[0]).item()
    4.0
    """

    def __init__(self, load: Load, *, given: Mapping[Value, jax.Array] | None = None):
        self._load = load
        self.arrays: dict[Value, jax.Array] = dict(given or {})

    def child(self, *, fresh: frozenset[Node] = frozenset()) -> "Evaluator":
        """An evaluator for a nested trace: what it makes does not leak out of it.

        Args:
          fresh: Operations to run again although their results are at hand.
        """
        load = self._load
        return Evaluator(lambda v: None if v.node in fresh else load(v), given=self.arrays)

    def __call__(self, value: Value) -> jax.Array:
        """The array of a value."""
        nodes: dict[int, Node] = {}
        stack = [value]
        while stack:
            wanted = stack.pop()
            if self._at_hand(wanted) is None:
                assert wanted.node is not None
                if wanted.node.index not in nodes:
                    nodes[wanted.node.index] = wanted.node
                    stack.extend(wanted.node.inputs)
        for _, node in sorted(nodes.items()):
            made = node.bind(*(self._at_hand(v) for v in node.inputs))  # type: ignore[arg-type]
            for output, array in zip(node.outputs, made, strict=True):
                self.arrays.setdefault(output, array)
        found = self._at_hand(value)
        assert found is not None
        return found

    def _at_hand(self, value: Value) -> jax.Array | None:
        if value in self.arrays:
            return self.arrays[value]
        if isinstance(value.constant, jax.Array):
            return value.constant
        if value.constant is not None:
            # Not remembered: an array that a nested trace makes must not outlive it.
            return jnp.asarray(value.constant, value.dtype)
        array = self._load(value)
        if array is not None:
            self.arrays[value] = array
        return array


def arguments(params: Params) -> Load:
    """How to load the parameters that a graph was traced with: the leaves, by their numbers."""
    leaves = jax.tree.leaves(params)
    return lambda value: leaves[value.argument] if isinstance(value.argument, int) else None


def evaluate(
    values: Sequence[Value], *, params: Params, given: Mapping[Value, jax.Array]
) -> list[jax.Array]:
    """Evaluates values from parameters and given values, and no more operations than they need.

    Args:
      values: What to evaluate.
      params: The parameters, of the structure that the graph was traced with.
      given: The arrays of the frames, or of other values.

    Returns:
      An array for each value.

    >>> from dynvid.graph.trace import trace
    >>> graph = trace(lambda gain, x: (x * gain, x + 1), jnp.ones(()), jnp.ones((1, 1, 1, 1)))
    >>> x = jnp.full((1, 1, 1, 1), 5.0)
    >>> [a.item() for a in evaluate(graph.outputs, params=jnp.float32(3), given={graph.frames: x})]
    [15.0, 6.0]
    """
    evaluator = Evaluator(arguments(params), given=given)
    return [jnp.asarray(evaluator(value)) for value in values]


def constant_fold(value: Value) -> np.ndarray | None:
    """The contents of a value that depends neither on the frames nor on the parameters.

    Returns:
      A NumPy array, or None where the value cannot be folded.

    >>> from dynvid.graph.trace import trace
    >>> graph = trace(lambda _, x: x * jnp.arange(2.0).sum(), (), jnp.ones((1, 1, 1, 1)))
    >>> [constant_fold(v) is not None for v in graph.nodes[-1].inputs]
    [False, True]
    """
    if value.constant is None:
        stack = [value]
        while stack:
            wanted = stack.pop()
            if wanted.constant is None:
                if wanted.node is None or wanted.frame_dependent:
                    return None
                stack.extend(wanted.node.inputs)
            elif isinstance(wanted.constant, Tracer):
                return None
        # Compiled as one: operation by operation, each would be compiled by itself.
        fold = jax.jit(lambda: Evaluator(lambda _: None)(value)).lower().compile()
        with jax.ensure_compile_time_eval():
            folded: Any = fold()
        value.constant = np.asarray(folded)
    return None if isinstance(value.constant, Tracer) else np.asarray(value.constant)
