"""What a function would take, from shapes alone: asked of files before anything is computed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from dynvid.graph.macs import node_macs
from dynvid.graph.trace import Node, inlined
from dynvid.types import Limits

_WINDOW_TERM = 36
"""As many multiply-accumulates of a convolution as one term of a pooling takes the time of: XLA's
`reduce_window` is a loop over scalars on the CPU (5x5 over 320x320x32 beside a 3x3 convolution)."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one call of a function would take.

    Attributes:
      operations: How many there are.
      largest: The numbers in the largest array that is made.
      total: The numbers in all arrays that are made.
      macs: Multiply-accumulates, and what poolings take, in their time.
      window: The longest side of a pooling's windows.
    """

    operations: int
    largest: int
    total: int
    macs: int
    window: int = 0

    def check(self, limits: Limits) -> None:
        """Refuses what is beyond limits.

        Raises:
          ValueError: Says what would be needed, and what is allowed.

        >>> Estimate(10, 0, 0, 3 * 10**13).check(Limits())
        Traceback (most recent call last):
        ...
        ValueError: it would take 30,000 billion multiply-accumulates a frame, where the limit is
        10,000 billion
        """
        for found, most, what, unit in (
            (self.operations, limits.operations, "it has {} operations", ""),
            (self.largest, limits.largest, "it would make an array of {} numbers", "billion"),
            (self.total, limits.total, "it would make arrays of {} numbers in all", "billion"),
            (self.window, limits.window, "it has windows of {} positions a side", ""),
            (self.macs, limits.macs, "it would take {} multiply-accumulates a frame", "billion"),
        ):
            if found > most:
                raise ValueError(
                    f"{what.format(_number(found, unit))}, where the limit is {_number(most, unit)}"
                )


def _number(count: float, unit: str) -> str:
    if not unit:
        return f"{count:,}"
    billions = count / 1e9
    return f"{billions:,.3g} billion" if billions < 1000 else f"{round(billions, -2):,.0f} billion"


def estimate(fn: Callable[..., Any], *arguments: Any) -> Estimate:
    """Estimates what one call takes, by tracing it; nothing is computed and nothing allocated.

    Padding around a convolution or a pooling counts as an array. What it counts of loops is what
    `node_macs` says.

    Args:
      fn: Any function that JAX can trace.
      arguments: What it is called with: pytrees of arrays or of their shapes.

    Returns:
      The estimate.

    Raises:
      ValueError: Where an operation of `fn` has side effects.

    >>> import jax.numpy as jnp
    >>> estimate(lambda x: x @ jnp.ones((8, 2)), jax.ShapeDtypeStruct((4, 8), jnp.float32))
    Estimate(operations=2, largest=16, total=24, macs=64, window=0)
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    nodes = inlined(jax.make_jaxpr(fn)(*shapes))
    sizes = [size for node in nodes for size in _sizes(node)]
    largest = max(sizes, default=0)
    # A constant matrix is looked into for its band: not where it is too large to be made.
    macs = sum(map(_work, nodes)) if largest <= Limits().largest else 0
    windows = [n for node in nodes for n in node.params.get("window_dimensions", ())]
    return Estimate(len(nodes), largest, sum(sizes), macs, max(windows, default=0))


def _sizes(node: Node) -> list[int]:
    """The numbers in each array that an operation makes, its padded input among them."""
    sizes = [math.prod(value.shape) for value in node.outputs]
    p: dict[str, Any] = node.params
    x: tuple[Any, ...] = node.inputs[0].shape if node.inputs else ()
    if node.primitive.name == "conv_general_dilated":
        spec = p["dimension_numbers"].lhs_spec
        dilated = [(x[a] - 1) * b + 1 for a, b in zip(spec[2:], p["lhs_dilation"], strict=True)]
        padded = [n + low + high for n, (low, high) in zip(dilated, p["padding"], strict=True)]
        sizes.append(x[spec[0]] * x[spec[1]] * math.prod(max(n, 0) for n in padded))
    elif node.primitive.name.startswith("reduce_window"):
        padded = [n + low + high for n, (low, high) in zip(x, p["padding"], strict=True)]
        sizes.append(math.prod(max(n, 0) for n in padded))
    return sizes


def _work(node: Node) -> int:
    if node.primitive.name.startswith("reduce_window"):
        terms = math.prod(node.params["window_dimensions"])
        return _WINDOW_TERM * terms * math.prod(node.outputs[0].shape)
    return node_macs(node)
