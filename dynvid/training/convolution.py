"""Convolutions whose gradients are fast on CPUs: to put under a module before it is trained.

XLA's own gradient of a convolution of few channels takes several times what the convolution takes
on CPUs: that of the kernel is one convolution with a kernel as large as the map, that of a strided
input one with holes in it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

type _Pads = tuple[tuple[int, int], tuple[int, int]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def trained_convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: _Pads,
    dilation: tuple[int, int],
) -> jax.Array:
    """A convolution; its gradients are sums of matrix products, and plain convolutions.

    `y(p) = sum_n x(s p + d n) K(n)`, so `dL/dK(n) = sum_p x(s p + d n)^T dL/dy(p)`, a product of
    matrices, and `dL/dx` is the convolution of dL/dy, spread to steps of s, with K turned
    around.

    Args:
      x: `(S, H, W, C)` floating.
      kernel: `(k, l, C, D)`.
      strides: Down and across.
      padding: Before and after, down and across.
      dilation: Steps between taps, down and across.

    Returns:
      `(S, h, w, D)`. Reverse-mode differentiation only.

    Exact: the gradients are those of the convolution but for the order of summation.

    >>> x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
    >>> pads = ((1, 1), (1, 1))
    >>> total = lambda kernel: trained_convolution(x, kernel, (2, 2), pads, (1, 1)).sum()
    >>> jax.grad(total)(kernel)[..., 0, 0].tolist()
    [[1.0, 2.0, 2.0], [2.0, 4.0, 4.0], [2.0, 4.0, 4.0]]
    """
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=_DIMENSIONS
    )


def _forward(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: _Pads,
    dilation: tuple[int, int],
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return trained_convolution(x, kernel, strides, padding, dilation), (x, kernel)


def _backward(
    strides: tuple[int, int],
    padding: _Pads,
    dilation: tuple[int, int],
    kept: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    size, channels = kernel.shape[:2], kernel.shape[2]
    reach = [(n - 1) * s + 1 for n, s in zip(gradient.shape[1:3], strides, strict=True)]
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows = gradient.size // gradient.shape[3]

    def tap(row: int, column: int) -> jax.Array:
        i, j = row * dilation[0], column * dilation[1]
        seen = padded[:, i : i + reach[0] : strides[0], j : j + reach[1] : strides[1]]
        return seen.reshape(rows, channels)

    # All taps beside each other: one product of larger matrices is faster than many of small ones.
    taps = jnp.concatenate([tap(*divmod(n, size[1])) for n in range(size[0] * size[1])], 1)
    by_kernel = lax.dot_general(taps, gradient.reshape(rows, -1), (((0,), (0,)), ((), ())))

    spread = lax.pad(
        gradient,
        jnp.zeros((), gradient.dtype),
        ((0, 0, 0), (0, 0, strides[0] - 1), (0, 0, strides[1] - 1), (0, 0, 0)),
    )
    around = [
        (
            (k - 1) * d - low,
            length + low - there,  # the last of the input that the kernel has reached
        )
        for k, d, (low, _), length, there in zip(
            size, dilation, padding, x.shape[1:3], reach, strict=True
        )
    ]
    by_input = lax.conv_general_dilated(
        spread,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        around,
        rhs_dilation=dilation,
        dimension_numbers=_DIMENSIONS,
    )
    return by_input, by_kernel.reshape(kernel.shape)


trained_convolution.defvjp(_forward, _backward)


def trainable_convolutions(module: nnx.Module) -> None:
    """Has the convolutions of a module use `trained_convolution`, where it can do what they do.

    Args:
      module: In it every `nnx.Conv` is changed; its results stay what they are.

    >>> module = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    >>> trainable_convolutions(module)
    >>> jax.grad(lambda x: module(x).sum())(jnp.ones((1, 5, 5, 3))).shape
    (1, 5, 5, 3)
    """
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.Conv):
            part.conv_general_dilated = _convolution


def _convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Any,
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    feature_group_count: int,
    **others: Any,
) -> jax.Array:
    if x.ndim != 4 or max(lhs_dilation) > 1 or feature_group_count > 1:
        return lax.conv_general_dilated(
            x, kernel, strides, padding, lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers, feature_group_count=feature_group_count, **others,
        )  # fmt: skip
    if isinstance(padding, str):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape, rhs_dilation, strict=False)]
        padding = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
    (top, bottom), (left, right) = padding
    return trained_convolution(
        x,
        kernel,
        (strides[0], strides[1]),
        ((top, bottom), (left, right)),
        (rhs_dilation[0], rhs_dilation[1]),
    )
