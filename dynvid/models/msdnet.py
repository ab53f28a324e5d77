"""MSDNet (Huang et al., Multi-Scale Dense Networks, ICLR 2018), with temporal shift for clips."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from dynvid.models.resnet import ConvNorm
from dynvid.ops.progressive import ShiftFn

Maps = list[jax.Array]
"""A map of each scale that is left, from fine to coarse."""


class MSDNet(nnx.Module):
    """MSDNet as for ImageNet: maps of several scales, densely connected, a classifier a block.

    `x_s^l = [x_s^(l-1), h_s(x_s^(l-1)), g_s(x_(s-1)^(l-1))]` (MSDNet, section 4, Figure 2): every
    layer adds maps to each scale, half of them from the same scale and half by a convolution of
    stride 2 from the finer one; all of them from the same one at the finest. Each convolution is
    preceded by a 1x1 bottleneck. Of L layers each L / scales-th drops the finest scale, followed by
    1x1 convolutions that halve all channels (their "network reduction" and "lazy computation").

    The defaults are MSDNet-38 of Dynamic Inference: 5 blocks of 7 layers, 62.31 M parameters with
    1000 classes. For clips the inputs of a layer's convolutions are temporally shifted at every
    scale, what is passed on as it is is not (reconstruction: the slides do not say).

    Args:
      classes: How many classes there are.
      blocks: D, how many blocks, each with a classifier.
      layers: Of a block.
      channels: Of the first map, before `growth_factors`.
      growth: Maps that a layer adds, before `growth_factors`.
      growth_factors: Of each scale.
      bottleneck_factors: Channels of the bottleneck, in units of those that follow it.
      reduction: What is left of the channels where a scale is dropped.
      fold: Which part of the channels is shifted.
      rngs: Where the random weights come from.

    Raises:
      ValueError: The factors are not as many, or there is nothing to compute.

    >>> network = nnx.eval_shape(lambda: MSDNet(classes=1000, rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    62314472
    """

    def __init__(
        self,
        *,
        classes: int,
        blocks: int = 5,
        layers: int = 7,
        channels: int = 32,
        growth: int = 16,
        growth_factors: Sequence[int] = (1, 2, 4, 4),
        bottleneck_factors: Sequence[int] = (1, 2, 4, 4),
        reduction: float = 0.5,
        fold: int = 8,
        rngs: nnx.Rngs,
    ):
        scales = len(growth_factors)
        if scales < 1 or len(bottleneck_factors) != scales:
            raise ValueError(
                f"bottleneck_factors must be {scales} numbers as growth_factors; got "
                f"{tuple(bottleneck_factors)}"
            )
        if blocks < 1 or layers < 1:
            raise ValueError(f"blocks and layers must be at least 1; got {blocks} and {layers}")
        self.depth = blocks
        self.fold = fold
        self.first = _First(channels, growth_factors, rngs=rngs)
        self.blocks = nnx.List()
        self.classifiers = nnx.List()
        interval = math.ceil(blocks * layers / scales)
        depth, count = channels, 0
        for _ in range(blocks):
            block = nnx.List()
            for _ in range(layers):
                left = scales - max(0, count - 1) // interval
                after = scales - count // interval
                count += 1
                drop = scales - after
                factors = tuple(zip(growth_factors, bottleneck_factors, strict=True))
                block.append(_Layer(depth, growth, factors, drop, left > after, rngs=rngs))
                depth += growth
                if left > after:
                    smaller = math.floor(reduction * depth)
                    sizes = [(f * depth, f * smaller) for f in growth_factors[drop:]]
                    block.append(_Transition(sizes, rngs=rngs))
                    depth = smaller
            self.blocks.append(block)
            self.classifiers.append(_Classifier(depth * growth_factors[-1], classes, rngs=rngs))

    def stage(self, depth: int, x: jax.Array | Maps, shift: ShiftFn) -> Maps:
        """The maps of all scales after a block.

        Args:
          depth: 1 to `blocks`.
          x: Frames `(N, H, W, 3)`, or the maps of the block before.
          shift: What shifts a map in time.
        """
        maps: Maps = self.first(x) if isinstance(x, jax.Array) else list(x)
        for layer in self.blocks[depth - 1]:
            if isinstance(layer, _Layer):
                maps = layer(maps, [shift(x, fold=self.fold) for x in maps])
            else:
                maps = layer(maps)
        return maps

    def features(self, depth: int, maps: Maps) -> jax.Array:
        """What a block's classifier takes: two convolutions of stride 2 and 2x2 average pooling."""
        return self.classifiers[depth - 1].features(maps[-1])

    def head(self, depth: int, features: jax.Array) -> jax.Array:
        """Logits `(..., classes)`."""
        return self.classifiers[depth - 1].linear(features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of every classifier for images `(N, H, W, 3)`: `(N, blocks, classes)`.

        Nothing is shifted here: images are no frames.
        """
        logits = []
        maps = x
        for depth in range(1, self.depth + 1):
            maps = self.stage(depth, maps, lambda x, *, fold=8: x)
            logits.append(self.head(depth, self.features(depth, maps)))
        return jnp.stack(logits, 1)


class _First(nnx.Module):
    """The first layer: 7x7 with stride 2, pooling, and a convolution of stride 2 a scale."""

    def __init__(self, channels: int, factors: Sequence[int], *, rngs: nnx.Rngs):
        depth = channels * factors[0]
        # With a bias, unlike all the others: so it is in the published code.
        self.conv = nnx.Conv(3, depth, (7, 7), 2, padding=[(3, 3)] * 2, rngs=rngs)
        self.norm = nnx.BatchNorm(depth, use_running_average=True, epsilon=1e-5, rngs=rngs)
        self.down = nnx.List()
        for factor in factors[1:]:
            self.down.append(ConvNorm(depth, channels * factor, 3, stride=2, rngs=rngs))
            depth = channels * factor

    def __call__(self, x: jax.Array) -> Maps:
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # type: ignore[arg-type]
        maps = [x]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        return maps


class _Layer(nnx.Module):
    """Adds maps to every scale that is left; `dropped` says that the finest was there until now."""

    def __init__(
        self,
        depth: int,
        growth: int,
        factors: Sequence[tuple[int, int]],
        drop: int,
        dropped: bool,
        *,
        rngs: nnx.Rngs,
    ):
        def path(scale: int, outputs: int, stride: int) -> nnx.List:
            growth_factor, bottleneck = factors[scale]
            inputs = depth * growth_factor
            inner = min(inputs, bottleneck * outputs)
            return nnx.List(
                [
                    ConvNorm(inputs, inner, 1, rngs=rngs),
                    ConvNorm(inner, outputs, 3, stride=stride, rngs=rngs),
                ]
            )

        self.dropped = dropped
        self.same = nnx.List()
        self.finer = nnx.List()
        for scale in range(drop, len(factors)):
            outputs = growth * factors[scale][0]
            alone = scale == drop and not dropped
            if not alone:
                self.finer.append(path(scale - 1, outputs // 2, 2))
            self.same.append(path(scale, outputs if alone else outputs // 2, 1))

    def __call__(self, maps: Maps, shifted: Maps) -> Maps:
        """The maps of the scales that are left; `shifted` are the same maps, shifted in time."""
        found = []
        first = 1 if self.dropped else 0  # of the scales that came in
        for i, same in enumerate(self.same):
            scale = first + i
            parts = [maps[scale]]
            if scale > 0:
                finer = self.finer[scale - 1]
                parts.append(_run(finer, shifted[scale - 1]))
            parts.append(_run(same, shifted[scale]))
            found.append(jnp.concatenate(parts, -1))
        return found


class _Transition(nnx.Module):
    """1x1 convolutions to fewer channels, a scale each."""

    def __init__(self, sizes: Sequence[tuple[int, int]], *, rngs: nnx.Rngs):
        self.layers = nnx.List([ConvNorm(a, b, 1, rngs=rngs) for a, b in sizes])

    def __call__(self, maps: Maps) -> Maps:
        return [layer(x) for layer, x in zip(self.layers, maps, strict=True)]


class _Classifier(nnx.Module):
    """A block's classifier."""

    def __init__(self, depth: int, classes: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List([ConvNorm(depth, depth, 3, stride=2, rngs=rngs) for _ in range(2)])
        self.linear = nnx.Linear(depth, classes, rngs=rngs)

    def features(self, x: jax.Array) -> jax.Array:
        size = x.shape[1:3]
        x = _run(self.layers, x)
        if min(x.shape[1:3]) < 2:
            raise ValueError(
                f"frames must be large enough for maps of 5x5 at the coarsest scale; got {size}"
            )
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        # One cell for frames of 224x224; of larger ones the mean, so that any size can be run.
        return jnp.mean(x, (1, 2))


def _run(layers: nnx.List, x: jax.Array) -> jax.Array:
    for layer in layers:
        x = layer(x)
    return x
