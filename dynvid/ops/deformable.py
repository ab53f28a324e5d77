"""Deformable convolution: every tap reads where its offset says (Dai et al. 2017, section 2.1)."""

import jax
import jax.numpy as jnp

from dynvid.ops.warp import warp


def deformable_convolution(
    x: jax.Array, offsets: jax.Array, kernel: jax.Array, *, dilation: int = 1
) -> jax.Array:
    """A convolution with stride 1 of which every tap is moved, position by position.

    `y(p) = sum_n w(p_n) x(p + p_n + dp_n(p))`, p_n being the taps of the dilated kernel and x
    between its positions bilinear, zero around it (Dai et al., Deformable Convolutional Networks,
    2017, Eq. 2-4). The map keeps its size.

    Args:
      x: `(S, h, w, C)` floating.
      offsets: The dp, `(S, h, w, G, k * k, 2)` floating, (dx, dy) in positions of x, taps row by
        row: the channels of x are divided into G groups that follow one another, each with offsets
        of its own. The authors' code has (dy, dx).
      kernel: w, `(k, k, C, D)`, k odd.
      dilation: Steps between the kernel's taps.

    Returns:
      `(S, h, w, D)`. Differentiable in all three; where a tap hits a position, its gradient to the
      offset is that of one side.

    Raises:
      ValueError: The shapes do not fit, k is even, or C is no multiple of G.

    Exact where every offset is whole: an ordinary convolution where it is zero, within the
    roundings of another order of summation.

    >>> x = jnp.arange(6.0).reshape(1, 1, 6, 1)
    >>> offsets = jnp.zeros((1, 1, 6, 1, 1, 2)).at[..., 0].set(0.5)
    >>> deformable_convolution(x, offsets, jnp.ones((1, 1, 1, 1))).ravel().tolist()
    [0.5, 1.5, 2.5, 3.5, 4.5, 2.5]
    """
    side, taps = kernel.shape[0], kernel.shape[0] * kernel.shape[1]
    if kernel.ndim != 4 or side != kernel.shape[1] or side % 2 == 0 or x.ndim != 4:
        raise ValueError(
            f"x and kernel must be (S, h, w, C) and (k, k, C, D), k odd; got {x.shape} and "
            f"{kernel.shape}"
        )
    if offsets.ndim != 6 or offsets.shape[:3] != x.shape[:3] or offsets.shape[4:] != (taps, 2):
        raise ValueError(
            f"offsets must be {[*x.shape[:3], 'G', taps, 2]}; got {list(offsets.shape)}"
        )
    groups, channels = offsets.shape[3], x.shape[3]
    if channels != kernel.shape[2] or channels % groups:
        raise ValueError(
            f"channels must be those of the kernel, {kernel.shape[2]}, and a multiple of {groups} "
            f"groups; got {channels}"
        )
    parts = jnp.split(x, groups, -1)
    total = jnp.zeros((*x.shape[:3], kernel.shape[3]), jnp.result_type(x, kernel))
    for tap in range(taps):
        row, column = ((index - side // 2) * dilation for index in divmod(tap, side))
        home = jnp.array([column, row], offsets.dtype)
        read = [warp(part, offsets[:, :, :, group, tap] + home) for group, part in enumerate(parts)]
        weights = kernel[tap // side, tap % side]
        total = total + jnp.einsum("shwc,cd->shwd", jnp.concatenate(read, -1), weights)
    return total
