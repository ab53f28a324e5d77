"""DeepLab for semantic segmentation: DeepLab-v2 and DVSNet's faster variant of it.

Both take frames as Caffe's ResNets do, BGR of 0..255 less `dynvid.models.resnet.BGR_MEAN`, and
return logits at their output stride. Scaling these up to the frame, bilinearly, is the caller's.
"""

import functools
import operator
from collections.abc import Iterable, Sequence

import jax
from flax import nnx

from dynvid.models.resnet import RESNET101, ConvNorm, ResNet


def _sum(maps: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, maps)


class DeepLabFast(nnx.Module):
    """DeepLab-Fast: DeepLab-v2 at output stride 16 with another head (DVSNet, Xu et al. 2018).

    The paper only names it; what it is made of is in the authors' code. A ResNet with the stride in
    the 1x1 convolutions, whose 3x3 convolutions have dilations 1, 4, 2, 2, 4, 2, 2, 4, ... in conv4
    and 4, 8, 16 in conv5. On conv5, 3x3 convolutions with dilations 6, 12 and 18 and a 1x1
    convolution, each of 256 channels with batch normalisation, are summed; a 1x1 convolution of 256
    channels with batch normalisation and one that gives the classes follow. There is no ReLU in the
    head, and no bias: batch normalisation would absorb it in the branches, and the last convolution
    has none in that code.

    Where the code leaves it to TensorFlow (all padding at the far end of an even map), stride-2
    windows lie here as in Caffe and PyTorch, with the same padding on both sides.

    It starts in evaluation mode; `train()` and `eval()` switch its batch normalisation.

    Args:
      classes: How many, 19 for Cityscapes.
      depths: Blocks of conv2 to conv5 of the backbone; others than ResNet-101's continue its
        pattern of dilations.
      width: As of `ResNet`; the head has 4 * `width` channels.
      epsilon: What batch normalisation adds to the variance. Its authors' code has 1e-3.
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: DeepLabFast(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    57253184
    >>> frames = jax.ShapeDtypeStruct((1, 576, 1088, 3), "float32")
    >>> nnx.eval_shape(lambda m, x: m(x), network, frames).shape
    (1, 36, 68, 19)
    """

    def __init__(
        self,
        *,
        classes: int = 19,
        depths: Sequence[int] = RESNET101,
        width: int = 64,
        epsilon: float = 1e-3,
        rngs: nnx.Rngs,
    ):
        conv4 = [1, *[4 if i % 3 == 0 else 2 for i in range(depths[2] - 1)]]
        self.backbone = ResNet(
            depths=depths,
            width=width,
            output_stride=16,
            dilations={4: conv4, 5: [4 << i for i in range(depths[3])]},
            stride_in="1x1",
            epsilon=epsilon,
            rngs=rngs,
        )
        depth, features = self.backbone.features, 4 * width

        def layer(depth: int, kernel: int, rate: int) -> ConvNorm:
            return ConvNorm(
                depth, features, kernel, dilation=rate, relu=False, epsilon=epsilon, rngs=rngs
            )

        self.branches = nnx.List([layer(depth, 3, rate) for rate in (6, 12, 18)])
        self.branches.append(layer(depth, 1, 1))
        self.fuse = layer(features, 1, 1)
        self.classify = nnx.Conv(features, classes, (1, 1), use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, 3)` to logits `(S, ceil(H / 16), ceil(W / 16), classes)`."""
        x = self.backbone(x)
        return self.classify(self.fuse(_sum(branch(x) for branch in self.branches)))


class DeepLabV2(nnx.Module):
    """DeepLab-v2 on a ResNet at output stride 8 (Chen et al. 2017, section 3.2, "ASPP-L").

    A ResNet with the stride in the 1x1 convolutions and dilations 2 in conv4, 4 in conv5; then four
    3x3 convolutions with dilations 6, 12, 18 and 24 straight to the classes, with biases, summed.
    Neither the conditional random field nor several scales of the frame: DVSNet's baseline has none
    of them.

    It starts in evaluation mode; `train()` and `eval()` switch its batch normalisation.

    Args:
      classes: How many, 19 for Cityscapes.
      depths: Blocks of conv2 to conv5 of the backbone.
      width: As of `ResNet`.
      epsilon: What batch normalisation adds to the variance.
      rngs: Where the random weights come from; those of the head are N(0, 0.01^2), as in the
        authors' training.

    >>> network = nnx.eval_shape(lambda: DeepLabV2(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    43901068
    >>> frames = jax.ShapeDtypeStruct((1, 512, 1024, 3), "float32")
    >>> nnx.eval_shape(lambda m, x: m(x), network, frames).shape
    (1, 64, 128, 19)
    """

    def __init__(
        self,
        *,
        classes: int = 19,
        depths: Sequence[int] = RESNET101,
        width: int = 64,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        self.backbone = ResNet(
            depths=depths,
            width=width,
            output_stride=8,
            stride_in="1x1",
            epsilon=epsilon,
            rngs=rngs,
        )
        self.branches = nnx.List(
            [
                nnx.Conv(
                    self.backbone.features,
                    classes,
                    (3, 3),
                    padding=[(rate, rate)] * 2,
                    kernel_dilation=rate,
                    kernel_init=nnx.initializers.normal(0.01),
                    rngs=rngs,
                )
                for rate in (6, 12, 18, 24)
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, 3)` to logits `(S, ceil(H / 8), ceil(W / 8), classes)`."""
        x = self.backbone(x)
        return _sum(branch(x) for branch in self.branches)
