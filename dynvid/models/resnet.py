"""ResNet-50 (He et al. 2016), with the stride on the 3x3 convolution as in later practice."""

from typing import Any

import jax
from flax import nnx

_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with batch normalisation, and a shortcut (He et al., Fig. 5).

    Args:
      depth: Input channels.
      width: Channels of the 3x3 convolution; the output has four times as many.
      stride: Of the 3x3 convolution and the shortcut.
      rngs: Where the random weights come from.

    >>> import jax.numpy as jnp
    >>> block = Bottleneck(64, 16, 2, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((1, 8, 8, 64))).shape
    (1, 4, 4, 64)
    """

    def __init__(self, depth: int, width: int, stride: int, *, rngs: nnx.Rngs):
        def conv(a: int, b: int, k: int, s: int = 1) -> nnx.Conv:
            pad = [(k // 2, k // 2)] * 2
            return nnx.Conv(a, b, (k, k), s, padding=pad, use_bias=False, rngs=rngs)

        def norm(channels: int) -> nnx.BatchNorm:
            return nnx.BatchNorm(channels, use_running_average=True, rngs=rngs)

        self.convs = nnx.List(
            [conv(depth, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1)]
        )
        self.norms = nnx.List([norm(width), norm(width), norm(4 * width)])
        project = stride != 1 or depth != 4 * width
        self.shortcut = nnx.List(
            [conv(depth, 4 * width, 1, stride), norm(4 * width)] if project else []
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, C)` to `(S, H / stride, W / stride, 4 * width)`."""
        y = x
        for layer in self.shortcut:
            y = layer(y)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            if i < 2:
                x = nnx.relu(x)
        return nnx.relu(x + y)


class ResNet50(nnx.Module):
    """The convolutional part of ResNet-50.

    Args:
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: ResNet50(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    23508032
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 64, (7, 7), 2, padding=[(3, 3), (3, 3)], use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(64, use_running_average=True, rngs=rngs)
        self.blocks = nnx.List()
        depth = 64
        for width, count, stride in _STAGES:
            for i in range(count):
                self.blocks.append(Bottleneck(depth, width, stride if i == 0 else 1, rngs=rngs))
                depth = 4 * width

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, 3)` to conv5, `(S, H / 32, W / 32, 2048)`."""
        x = nnx.relu(self.norm(self.stem(x)))
        pads: Any = ((1, 1), (1, 1))  # flax documents pairs but annotates a string
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=pads)
        for block in self.blocks:
            x = block(x)
        return x
