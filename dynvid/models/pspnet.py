"""PSPNet, the pyramid scene parsing network, for semantic segmentation (Zhao et al. 2017).

It takes frames as Caffe's ResNets do, BGR of 0..255 less `dynvid.models.resnet.BGR_MEAN`, and
returns logits at stride 8. Scaling these up to the frame, bilinearly, is the caller's.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.models.resnet import RESNET101, ConvNorm, ResNet

_BINS = (1, 2, 3, 6)


def adaptive_average_pool(x: jax.Array, bins: int) -> jax.Array:
    """The mean of each of `bins` x `bins` parts of a map, whatever its size.

    Part i of n rows is the rows floor(i n / bins) to ceil((i + 1) n / bins), without the latter;
    where `bins` does not divide n, neighbouring parts share a row. Columns alike.

    Args:
      x: `(S, H, W, C)`.
      bins: How many parts each way.

    Returns:
      `(S, bins, bins, C)`.

    >>> adaptive_average_pool(jnp.arange(5.0).reshape(1, 1, 5, 1), 2).squeeze()
    Array([[1., 3.],
           [1., 3.]], dtype=float32)
    """
    for axis in (1, 2):
        size = x.shape[axis]
        parts = [
            jax.lax.slice_in_dim(x, i * size // bins, -(-(i + 1) * size // bins), axis=axis)
            for i in range(bins)
        ]
        x = jnp.concatenate([part.mean(axis, keepdims=True) for part in parts], axis)
    return x


def _spread(x: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear resizing of `(S, h, w, C)` whose corner cells keep their places in the corners."""

    def weights(n: int, bins: int) -> np.ndarray:
        places = np.linspace(0, bins - 1, n)[:, None]
        return np.maximum(0, 1 - np.abs(places - np.arange(bins))).astype(x.dtype)

    return jnp.einsum(
        "shwc,ih,jw->sijc", x, weights(height, x.shape[1]), weights(width, x.shape[2])
    )


class PSPNet(nnx.Module):
    """PSPNet on a ResNet at output stride 8 (Zhao et al. 2017, section 3.2 and Fig. 3).

    The backbone has a deep stem, and dilations 2 in all of conv4 and 4 in all of conv5. Its map is
    averaged in 1x1, 2x2, 3x3 and 6x6 parts; each result gets a 1x1 convolution to a quarter of its
    channels, is resized bilinearly to the map and laid beside it. A 3x3 convolution of 512 channels
    and a 1x1 convolution with bias that gives the classes follow.

    Where the paper is silent it follows the authors' networks: ReLU and batch normalisation after
    each convolution but the last, and a resizing that keeps corners in corners. The parts adapt to
    the map, in the order 1, 2, 3, 6 after it; the authors' fixed windows suit one size of frames
    only. Neither the auxiliary loss of training (section 4; it starts from conv4, which
    `backbone.stages` gives) nor dropout is part of it.

    It starts in evaluation mode; `train()` and `eval()` switch its batch normalisation.

    Args:
      classes: How many, 19 for Cityscapes.
      depths: Blocks of conv2 to conv5 of the backbone: `RESNET101`, `RESNET50`.
      width: As of `ResNet`; the head has 8 * `width` channels.
      epsilon: What batch normalisation adds to the variance.
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: PSPNet(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    65707475
    >>> frames = jax.ShapeDtypeStruct((1, 576, 1088, 3), "float32")
    >>> nnx.eval_shape(lambda m, x: m(x), network, frames).shape
    (1, 72, 136, 19)
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
            dilations={4: [2] * depths[2], 5: [4] * depths[3]},
            deep_stem=True,
            epsilon=epsilon,
            rngs=rngs,
        )
        depth, features = self.backbone.features, 8 * width
        self.pyramid = nnx.List(
            [ConvNorm(depth, features, 1, epsilon=epsilon, rngs=rngs) for _ in _BINS]
        )
        beside = depth + len(_BINS) * features
        self.fuse = ConvNorm(beside, features, 3, epsilon=epsilon, rngs=rngs)
        self.classify = nnx.Conv(features, classes, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, 3)` to logits `(S, ceil(H / 8), ceil(W / 8), classes)`."""
        x = self.backbone(x)
        pooled = [
            _spread(layer(adaptive_average_pool(x, bins)), *x.shape[1:3])
            for bins, layer in zip(_BINS, self.pyramid, strict=True)
        ]
        return self.classify(self.fuse(jnp.concatenate([x, *pooled], axis=-1)))
