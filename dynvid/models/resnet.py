"""Residual networks (He et al. 2016), plain and dilated."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from flax import nnx

RESNET50 = (3, 4, 6, 3)
"""Blocks of conv2, conv3, conv4 and conv5 in ResNet-50 (He et al. 2016, Table 1)."""

RESNET101 = (3, 4, 23, 3)
"""The same in ResNet-101."""

BGR_MEAN = (103.939, 116.779, 123.68)
"""What Caffe's ResNets, DeepLab and PSPNet have subtracted from blue, green and red of 0..255.

DVSNet's training scripts subtract (104.007, 116.669, 122.679), about 1 less at most.
"""

RGB_MEAN = (0.485, 0.456, 0.406)
"""What torchvision's ResNets have subtracted from red, green and blue of 0..1."""

RGB_DEVIATION = (0.229, 0.224, 0.225)
"""What torchvision's ResNets are divided by then."""


class ConvNorm(nnx.Module):
    """A convolution without bias, batch normalisation and, where asked for, ReLU.

    Zeros around the map keep its size: a kernel of k with dilation d has d * (k - 1) / 2 of them on
    each side. It starts in evaluation mode; `train()` and `eval()` switch the batch normalisation.

    Args:
      depth: Input channels.
      features: Output channels.
      kernel: Side of the kernel, odd.
      stride: Of the convolution.
      dilation: Steps between the kernel's taps.
      relu: Whether ReLU follows.
      epsilon: What batch normalisation adds to the variance.
      rngs: Where the random weights come from.

    >>> import jax.numpy as jnp
    >>> layer = ConvNorm(3, 8, 3, stride=2, dilation=4, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 9, 16, 3))).shape
    (1, 5, 8, 8)
    """

    def __init__(
        self,
        depth: int,
        features: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        side = dilation * (kernel // 2)
        self.conv = nnx.Conv(
            depth,
            features,
            (kernel, kernel),
            stride,
            padding=[(side, side)] * 2,
            kernel_dilation=dilation,
            use_bias=False,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(features, use_running_average=True, epsilon=epsilon, rngs=rngs)
        self.relu = relu

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, depth)` to `(S, ceil(H / stride), ceil(W / stride), features)`."""
        x = self.norm(self.conv(x))
        return nnx.relu(x) if self.relu else x


class _Residual(nnx.Module):
    """Convolutions and a shortcut around them, projected where the shape changes."""

    def __init__(
        self,
        convs: Sequence[ConvNorm],
        depth: int,
        features: int,
        stride: int,
        **common: Any,
    ):
        self.convs = nnx.List(convs)
        project = stride != 1 or depth != features
        self.shortcut = nnx.List(
            [ConvNorm(depth, features, 1, stride=stride, relu=False, **common)] if project else []
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, depth)` to `(S, ceil(H / stride), ceil(W / stride), features)`."""
        y = x
        for layer in self.shortcut:
            y = layer(y)
        for layer in self.convs:
            x = layer(x)
        return nnx.relu(x + y)


class Bottleneck(_Residual):
    """1x1, 3x3 and 1x1 convolutions with batch normalisation, and a shortcut (He et al., Fig. 5).

    Args:
      depth: Input channels.
      width: Channels of the 3x3 convolution; the output has four times as many.
      stride: Of the block and its shortcut.
      dilation: Of the 3x3 convolution.
      stride_in: Which convolution strides, the first 1x1 or the 3x3.
      epsilon: What batch normalisation adds to the variance.
      rngs: Where the random weights come from.

    >>> import jax.numpy as jnp
    >>> block = Bottleneck(64, 16, 2, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((1, 8, 8, 64))).shape
    (1, 4, 4, 64)
    """

    def __init__(
        self,
        depth: int,
        width: int,
        stride: int,
        *,
        dilation: int = 1,
        stride_in: Literal["1x1", "3x3"] = "3x3",
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        common: dict[str, Any] = {"epsilon": epsilon, "rngs": rngs}
        convs = [
            ConvNorm(depth, width, 1, stride=first, **common),
            ConvNorm(width, width, 3, stride=second, dilation=dilation, **common),
            ConvNorm(width, 4 * width, 1, relu=False, **common),
        ]
        super().__init__(convs, depth, 4 * width, stride, **common)


class BasicBlock(_Residual):
    """Two 3x3 convolutions with batch normalisation, and a shortcut (He et al., Fig. 5, left).

    Args:
      depth: Input channels.
      width: Channels of both convolutions.
      stride: Of the first convolution and the shortcut.
      dilation: Of both convolutions.
      epsilon: What batch normalisation adds to the variance.
      rngs: Where the random weights come from.

    >>> import jax.numpy as jnp
    >>> block = BasicBlock(64, 128, 2, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((1, 8, 8, 64))).shape
    (1, 4, 4, 128)
    """

    def __init__(
        self,
        depth: int,
        width: int,
        stride: int,
        *,
        dilation: int = 1,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"epsilon": epsilon, "rngs": rngs}
        convs = [
            ConvNorm(depth, width, 3, stride=stride, dilation=dilation, **common),
            ConvNorm(width, width, 3, dilation=dilation, relu=False, **common),
        ]
        super().__init__(convs, depth, width, stride, **common)


def start_as_shortcuts(module: nnx.Module) -> None:
    """Has every residual block of a module begin as its shortcut alone.

    The scale of a block's last batch normalisation becomes 0, which speeds up the first steps of a
    training (Goyal et al. 2017, section 5.1).

    Args:
      module: Its `Bottleneck`s and `BasicBlock`s are changed.

    >>> import jax.numpy as jnp
    >>> block = BasicBlock(4, 4, 1, rngs=nnx.Rngs(0))
    >>> start_as_shortcuts(block)
    >>> block(jnp.ones((1, 1, 1, 4))).tolist()
    [[[[1.0, 1.0, 1.0, 1.0]]]]
    """
    for _, part in nnx.iter_graph(module):
        if isinstance(part, _Residual):
            scale: Any = part.convs[-1].norm.scale
            scale[...] = 0 * scale[...]


class ResNet(nnx.Module):
    """The convolutional part of a residual network (He et al. 2016, Table 1).

    With an output stride below 32 the last stages keep the resolution and dilate their 3x3
    convolutions instead, so that the same weights see the same pixels (Chen et al. 2017, section
    3.1; Yu et al. 2017, section 2). Exact in that sense: at every second (fourth) position the map
    is that of the network with twice (four times) the output stride, whatever the frames' size.
    With the stride in the 3x3 convolution, that takes the dilation of the stage before for a
    stage's first 3x3 convolution, as in torchvision; PSPNet's own networks dilate it too, which
    `dilations` can say.

    It starts in evaluation mode; `train()` and `eval()` switch its batch normalisation.

    Args:
      depths: How many blocks conv2, conv3, conv4 and conv5 have: `RESNET50`, `RESNET101`.
      width: Channels of conv1 and of the 3x3 convolutions of conv2, 64 in the paper; all others
        are multiples of it.
      output_stride: Pixels of the input per cell of conv5: 8, 16 or 32.
      dilations: For stages by their number (2 to 5), the dilation of the 3x3 convolution of each
        of its blocks, in cells of the map that it works on; of stages left out it follows from
        the output stride. DeepLab calls such a list a multi-grid.
      block: What the stages are made of: bottlenecks, as ResNet-50 and -101, or pairs of 3x3
        convolutions ("basic"), as ResNet-18 and -34, whose stages have a fourth of the channels.
      stride_in: Where the first bottleneck of a stage strides: in its first 1x1 convolution ("1x1",
        He et al. and what is trained in Caffe), or in its 3x3 convolution ("3x3", later practice).
      deep_stem: Whether conv1 is three 3x3 convolutions (Zhao et al. 2017, their code: `width`,
        `width` and 2 * `width` channels, the first with stride 2) instead of one of 7x7.
      epsilon: What batch normalisation adds to the variance.
      rngs: Where the random weights come from.

    Raises:
      ValueError: An option is none of the above, or a stage has another number of dilations than
        of blocks.

    >>> network = nnx.eval_shape(
    ...     lambda: ResNet(depths=RESNET101, output_stride=8, rngs=nnx.Rngs(0))
    ... )
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    42500160
    >>> frames = jax.ShapeDtypeStruct((1, 64, 96, 3), "float32")
    >>> [x.shape for x in nnx.eval_shape(lambda m, x: m.stages(x), network, frames)]
    [(1, 16, 24, 256), (1, 8, 12, 512), (1, 8, 12, 1024), (1, 8, 12, 2048)]
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        width: int = 64,
        output_stride: int = 32,
        dilations: Mapping[int, Sequence[int]] | None = None,
        block: Literal["bottleneck", "basic"] = "bottleneck",
        stride_in: Literal["1x1", "3x3"] = "3x3",
        deep_stem: bool = False,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        if len(depths) != 4 or min(depths) < 1:
            raise ValueError(f"depths must be four positive numbers; got {tuple(depths)}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32; got {output_stride}")
        if block not in ("bottleneck", "basic"):
            raise ValueError(f'block must be "bottleneck" or "basic"; got {block!r}')
        if stride_in not in ("1x1", "3x3"):
            raise ValueError(f'stride_in must be "1x1" or "3x3"; got {stride_in!r}')
        given = dict(dilations or {})
        if not given.keys() <= {2, 3, 4, 5}:
            raise ValueError(f"dilations must be of stages 2 to 5; got {sorted(given)}")

        common: dict[str, Any] = {"epsilon": epsilon, "rngs": rngs}
        stem = ((width, 3, 2), (width, 3, 1), (2 * width, 3, 1)) if deep_stem else ((width, 7, 2),)
        depth = 3
        self.stem = nnx.List()
        for features, kernel, stride in stem:
            self.stem.append(ConvNorm(depth, features, kernel, stride=stride, **common))
            depth = features

        self.groups = nnx.List()
        reached, dilation = 4, 1  # pixels per cell after conv1 and its pooling
        for stage, count in enumerate(depths, start=2):
            stride, before = 1, dilation
            if stage > 2:
                if reached < output_stride:
                    stride, reached = 2, 2 * reached
                else:
                    dilation *= 2
            first = before if stride_in == "3x3" else dilation
            rates = tuple(given.get(stage, (first, *[dilation] * (count - 1))))
            if len(rates) != count or min(rates) < 1:
                raise ValueError(
                    f"dilations must be {count} positive numbers for stage {stage}; got {rates}"
                )
            group = nnx.List()
            for i, rate in enumerate(rates):
                given_to = (depth, width << (stage - 2), stride if i == 0 else 1)
                if block == "basic":
                    group.append(BasicBlock(*given_to, dilation=rate, **common))
                    depth = given_to[1]
                else:
                    group.append(
                        Bottleneck(*given_to, dilation=rate, stride_in=stride_in, **common)
                    )
                    depth = 4 * given_to[1]
            self.groups.append(group)
        self.features = depth

    def conv1(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, 3)` through conv1 and its pooling to `(S, H / 4, W / 4, C)`."""
        for layer in self.stem:
            x = layer(x)
        pads: Any = ((1, 1), (1, 1))  # flax documents pairs but annotates a string
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=pads)

    def stages(self, x: jax.Array) -> list[jax.Array]:
        """Maps `(S, H, W, 3)` to the last maps of conv2, conv3, conv4 and conv5.

        Returns:
          Four maps of 4, 8, 16 and 32 times `width` channels, `(S, H / 4, W / 4, 4 * width)` to
          `(S, H / output_stride, W / output_stride, 32 * width)`; sizes are rounded up.
        """
        maps = []
        x = self.conv1(x)
        for group in self.groups:
            for block in group:
                x = block(x)
            maps.append(x)
        return maps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, 3)` to conv5, with one cell for every `output_stride` pixels."""
        return self.stages(x)[-1]


class ResNet50(ResNet):
    """The convolutional part of ResNet-50, with the stride in the 3x3 convolutions.

    Args:
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: ResNet50(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    23508032
    """

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(depths=RESNET50, rngs=rngs)
