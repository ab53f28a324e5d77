"""Multiply-accumulates, counted from shapes alone."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from dynvid.graph.evaluate import constant_fold
from dynvid.graph.trace import Node, inlined


def node_macs(node: Node) -> int:
    """Multiply-accumulates of a convolution or product; other operations count nothing.

    A loop counts its body as often as it runs: a `while_loop`, of which nobody knows, once. Of the
    branches of a conditional the largest counts. Of a constant matrix, such as those that resize
    images, the zeros beside its band do not.
    """
    p = node.params
    match node.primitive.name:
        case "dot_general":
            return math.prod(node.outputs[0].shape) * _terms(node)
        case "conv_general_dilated":
            kernel = node.inputs[1]
            features = kernel.shape[p["dimension_numbers"].rhs_spec[0]]
            taps = math.prod(kernel.shape) // features
            return math.prod(node.outputs[0].shape) * taps // math.prod(p["lhs_dilation"])
        case "scan":
            return p["length"] * _total(inlined(p["jaxpr"]))
        case "while":
            return _total(inlined(p["cond_jaxpr"])) + _total(inlined(p["body_jaxpr"]))
        case "cond":
            return max(_total(inlined(branch)) for branch in p["branches"])
    return 0


def _total(nodes: Iterable[Node]) -> int:
    return sum(map(node_macs, nodes))


def _terms(node: Node) -> int:
    """How many products each output of a product is the sum of."""
    (left, right), _ = node.params["dimension_numbers"]
    x, y = node.inputs
    for matrix, contracted in ((x, left), (y, right)):
        if matrix.ndim == 2 and len(contracted) == 1:
            array = constant_fold(matrix)
            if array is not None:
                return band(array if contracted[0] == 0 else array.T)
    return math.prod(x.shape[axis] for axis in left)


def band(matrix: np.ndarray) -> int:
    """How many rows lie between the first and the last that is not zero, in any one column.

    >>> band(np.eye(5)), band(np.ones((5, 2))), band(np.zeros((5, 2)))
    (1, 5, 1)
    """
    used = matrix != 0
    first, last = used.argmax(0), len(used) - 1 - used[::-1].argmax(0)
    return int(np.where(used.any(0), last - first + 1, 1).max(initial=1))


def count_macs(fn: Callable[..., Any], *arguments: Any) -> int:
    """Counts the multiply-accumulates of one call, convolutions and products, without running it.

    Taps that fall into the padding count; zeros between the inputs of a transposed convolution and
    beside the band of a constant matrix do not. Loops and conditionals count as `node_macs` says.

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
    >>> ten = lambda a, b: jax.lax.fori_loop(0, 10, lambda _, a: a @ b, a)
    >>> count_macs(ten, jnp.ones((2, 3)), jnp.ones((3, 3)))
    180
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return _total(inlined(jax.make_jaxpr(fn)(*shapes)))
