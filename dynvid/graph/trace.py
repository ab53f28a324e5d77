"""From a frame function to a flat graph of operations: what the planner reads."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

# Calls that mean exactly their body: they are inlined, so that the planner sees one flat graph.
_BODY = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}


@dataclasses.dataclass(eq=False)
class Value:
    """One array of the traced function.

    Attributes:
      shape: Its shape.
      dtype: Its dtype.
      node: The operation that makes it; None for arguments, constants and literals.
      constant: Its contents where it is a constant (literals, closed-over arrays).
      frame_dependent: Whether it depends on the frames.
      argument: Which argument it is: a leaf's number among the parameters, "frames", or None.
    """

    shape: tuple[int, ...]
    dtype: Any
    node: "Node | None" = None
    constant: Any = None
    frame_dependent: bool = False
    argument: Any = None

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)


@dataclasses.dataclass(eq=False)
class Node:
    """One operation: a jaxpr equation with its nested calls inlined.

    Attributes:
      primitive: The JAX primitive.
      params: The primitive's parameters.
      inputs: What it reads.
      outputs: What it makes.
      index: Its place in the order of execution.
    """

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()
    index: int = 0

    def bind(self, *arrays: jax.Array) -> list[jax.Array]:
        """Runs the operation as it stands; always returns a list."""
        bound = self.primitive.get_bind_params(self.params)
        functions, params = bound if isinstance(bound, tuple) else ((), bound)  # jax < 0.12, newer
        out = self.primitive.bind(*functions, *arrays, **params)
        return list(out) if self.primitive.multiple_results else [out]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A traced frame function.

    Attributes:
      frames: The frames `(streams, H, W, C)`.
      nodes: The operations that the outputs need, in order of execution.
      outputs: The leaves of what the function returns.
      structure: The pytree that the outputs are leaves of.
    """

    frames: Value
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    structure: Any

    def consumers(self) -> dict[Value, list[Node]]:
        """Which operations read each value."""
        readers: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                readers.setdefault(value, []).append(node)
        return readers


def _inline(jaxpr: Any, constants: Sequence[Value], arguments: Sequence[Value], nodes: list[Node]):
    """Appends the operations of `jaxpr` to `nodes`; returns the values it returns."""
    env: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom) -> Value:
        if isinstance(atom, Literal):
            return _value(atom, constant=atom.val)
        return env[atom]

    for equation in jaxpr.eqns:
        inputs = tuple(read(atom) for atom in equation.invars)
        body = equation.params.get(_BODY.get(equation.primitive.name, ""))
        if body is not None:
            closed = hasattr(body, "consts")
            consts = [_constant(c) for c in body.consts] if closed else []
            outputs = _inline(body.jaxpr if closed else body, consts, inputs, nodes)
        else:
            if equation.effects:
                raise ValueError(
                    f"fn must be without side effects; got {equation.effects} of operation "
                    f"'{equation.primitive.name}'"
                )
            node = Node(equation.primitive, dict(equation.params), inputs)
            frame_dependent = any(value.frame_dependent for value in inputs)
            node.outputs = tuple(
                _value(v, node=node, frame_dependent=frame_dependent) for v in equation.outvars
            )
            nodes.append(node)
            outputs = node.outputs
        env.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def inlined(closed: Any) -> list[Node]:
    """The operations of a closed jaxpr in order, with its nested calls inlined.

    Raises:
      ValueError: Where one of them has side effects.

    >>> import jax.numpy as jnp
    >>> [node.primitive.name for node in inlined(jax.make_jaxpr(jnp.sinc)(1.0))][-1]
    'select_n'
    """
    nodes: list[Node] = []
    arguments = [_value(v) for v in closed.jaxpr.invars]
    _inline(closed.jaxpr, [_constant(c) for c in closed.consts], arguments, nodes)
    for index, node in enumerate(nodes):
        node.index = index
    return nodes


def _value(atom: Any, **what: Any) -> Value:
    return Value(tuple(atom.aval.shape), atom.aval.dtype, **what)


def _constant(array: Any) -> Value:
    return Value(tuple(np.shape(array)), array.dtype, constant=array)


def trace(fn: Callable[..., Any], params: Any, frames: Any) -> Graph:
    """Traces `fn(params, frames)` into a flat graph without unused operations.

    Args:
      fn: The frame function.
      params: Its parameters, arrays or shapes.
      frames: Frames `(streams, H, W, C)`, an array or a shape.

    Returns:
      The graph.

    Raises:
      ValueError: Where an operation of `fn` has side effects.

    >>> import jax.numpy as jnp
    >>> graph = trace(lambda p, x: jnp.maximum(x * p, 0), jnp.ones(3), jnp.ones((1, 4, 4, 3)))
    >>> [node.primitive.name for node in graph.nodes]
    ['broadcast_in_dim', 'mul', 'max']
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(params, frames)
    leaves = jax.tree.leaves(params)
    arguments = [_value(v, argument=i) for i, v in enumerate(closed.jaxpr.invars[: len(leaves)])]
    source = _value(closed.jaxpr.invars[-1], frame_dependent=True, argument="frames")
    nodes: list[Node] = []
    consts = [_constant(c) for c in closed.consts]
    outputs = _inline(closed.jaxpr, consts, [*arguments, source], nodes)
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(value in needed for value in node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    kept.reverse()
    for index, node in enumerate(kept):
        node.index = index
    return Graph(source, tuple(kept), tuple(outputs), jax.tree.structure(shape))
