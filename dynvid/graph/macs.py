"""Multiply-accumulates, counted from shapes alone."""

import math
from collections.abc import Callable
from typing import Any

import jax

from dynvid.graph.trace import Node, inlined


def node_macs(node: Node) -> int:
    """Multiply-accumulates of a convolution or product; other operations count nothing."""
    p = node.params
    if node.primitive.name == "dot_general":
        (contract, _), _ = p["dimension_numbers"]
        depth = math.prod(node.inputs[0].shape[axis] for axis in contract)
        return math.prod(node.outputs[0].shape) * depth
    if node.primitive.name == "conv_general_dilated":
        kernel = node.inputs[1]
        features = kernel.shape[p["dimension_numbers"].rhs_spec[0]]
        taps = math.prod(kernel.shape) // features
        return math.prod(node.outputs[0].shape) * taps // math.prod(p["lhs_dilation"])
    return 0


def count_macs(fn: Callable[..., Any], *arguments: Any) -> int:
    """Counts the multiply-accumulates of one call, convolutions and products, without running it.

    Taps that fall into the padding count; zeros between the inputs of a transposed convolution do
    not. Bodies of loops and conditionals count nothing.

    Args:
      fn: Any function that JAX can trace.
      arguments: What it is called with: pytrees of arrays or of their shapes.

    Returns:
      The number, over all streams of the arguments together.

    Raises:
      ValueError: Where an operation of `fn` has side effects.

    Exact.

    >>> import jax.numpy as jnp
    >>> count_macs(lambda a, b: jnp.tanh(a @ b), jnp.ones((2, 3)), jnp.ones((3, 5)))
    30
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return sum(map(node_macs, inlined(jax.make_jaxpr(fn)(*shapes))))
