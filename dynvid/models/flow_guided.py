"""The networks of flow-guided video object detection beside its detector (`dynvid.models.rfcn`).

Zhu et al., Deep Feature Flow (DFF), 2017; Flow-Guided Feature Aggregation (FGFA), 2017; Towards
High Performance Video Object Detection, 2018. Where the papers leave something open it is as in
the code of the first two.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from dynvid.models.flownet import FLOW_UNIT, FlowNetS
from dynvid.models.resnet import RESNET101, ResNet
from dynvid.ops.deformable import deformable_convolution
from dynvid.ops.warp import Motion
from dynvid.types import Frames

RGB_MEAN = (123.15, 115.90, 103.06)
"""What all networks here have subtracted from red, green and blue of 0..255."""

_GRID = 8  # pixels of the halved frames per position of the features


_normal = nnx.initializers.normal(0.01)


def centred_frames(frames: Frames) -> jax.Array:
    """Frames as the networks here see them: RGB less its mean, of 0..255.

    Args:
      frames: `(S, H, W, 3)` RGB, uint8 or floating in [0, 1].

    Returns:
      `(S, H, W, 3)` floating, about -128 to 152.

    Raises:
      ValueError: The frames have another shape.

    >>> centred_frames(jnp.full((1, 1, 1, 3), 255, jnp.uint8)).ravel()
    Array([131.85, 139.1 , 151.94], dtype=float32)
    """
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames must be (S, H, W, 3); got {tuple(frames.shape)}")
    if jnp.issubdtype(frames.dtype, jnp.floating):
        frames = frames * 255
    else:
        frames = frames.astype(jnp.float32)
    return frames - jnp.array(RGB_MEAN, frames.dtype)


class DeformableConv(nnx.Module):
    """A deformable convolution without bias, and the convolution that says where its taps go.

    Offsets come from a convolution of the same kernel and dilation on the same map, whose weights
    and biases start at 0, so that it starts as the ordinary one (Dai et al., Deformable
    Convolutional Networks, 2017, 2.1 and Fig. 2).

    Args:
      depth: Input channels.
      features: Output channels.
      kernel: Side of the kernel, odd.
      dilation: Steps between the kernel's taps.
      groups: How many groups of channels have offsets of their own.
      rngs: Where the random weights come from.

    >>> layer = DeformableConv(8, 4, 3, dilation=2, groups=4, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 3, 5, 8))).shape
    (1, 3, 5, 4)
    """

    def __init__(
        self,
        depth: int,
        features: int,
        kernel: int,
        *,
        dilation: int = 1,
        groups: int = 1,
        rngs: nnx.Rngs,
    ):
        self.groups, self.dilation = groups, dilation
        side = dilation * (kernel // 2)
        self.offsets = nnx.Conv(
            depth,
            2 * groups * kernel * kernel,
            (kernel, kernel),
            padding=[(side, side)] * 2,
            kernel_dilation=dilation,
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
        )
        shape = (kernel, kernel, depth, features)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, h, w, depth)` to `(S, h, w, features)`."""
        offsets = self.offsets(x).reshape(*x.shape[:3], self.groups, -1, 2)
        return deformable_convolution(x, offsets, self.kernel[...], dilation=self.dilation)


class FeatureNetwork(nnx.Module):
    """N_feat: a residual network at output stride 16 and a dilated 3x3 convolution with ReLU.

    ResNet-101 with the stride in the 1x1 convolutions, conv5 with stride 1 and dilation 2; then 3x3
    to 1024 channels with dilation 6 (DFF, section 4, and its code; the papers say only 3x3), whose
    weights start as N(0, 0.01^2). It starts in evaluation mode; DFF trains it so, its batch
    normalisation frozen.

    Args:
      depths: Blocks of conv2 to conv5.
      width: As of `ResNet`.
      features: Channels of the result.
      dilation: Of the last convolution.
      block: As of `ResNet`.
      deformable: For bottlenecks, whether the 3x3 convolutions of conv5 are `DeformableConv` of 4
        groups, as in Deformable R-FCN (Dai et al. 2017, section 3 and its code). The rest of that
        is its head's, deformable pooling, and not here.
      rngs: Where the random weights come from.

    Raises:
      ValueError: Basic blocks are to be deformable, or an option is none of `ResNet`'s.

    >>> network = nnx.eval_shape(lambda: FeatureNetwork(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    61375552
    >>> frames = jax.ShapeDtypeStruct((1, 600, 1000, 3), "uint8")
    >>> nnx.eval_shape(lambda n, f: n(f), network, frames).shape
    (1, 38, 63, 1024)
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = RESNET101,
        width: int = 64,
        features: int = 1024,
        dilation: int = 6,
        block: Literal["bottleneck", "basic"] = "bottleneck",
        deformable: bool = False,
        rngs: nnx.Rngs,
    ):
        self.backbone = ResNet(
            depths=depths,
            width=width,
            output_stride=16,
            block=block,
            stride_in="1x1",
            rngs=rngs,
        )
        if deformable and block != "bottleneck":
            raise ValueError(f'deformable must be False for block "basic"; got {deformable}')
        if deformable:
            for part in self.backbone.groups[-1]:
                part.convs[1].conv = DeformableConv(
                    8 * width, 8 * width, 3, dilation=2, groups=4, rngs=rngs
                )
        self.reduce = nnx.Conv(
            self.backbone.features,
            features,
            (3, 3),
            padding=[(dilation, dilation)] * 2,
            kernel_dilation=dilation,
            kernel_init=_normal,
            rngs=rngs,
        )

    def __call__(self, frames: Frames) -> jax.Array:
        """Maps `(S, H, W, 3)` RGB, uint8 or in [0, 1], to `(S, H / 16, W / 16, features)`.

        Sizes are rounded up. Blue, green and red go in, less their means of 0..255.
        """
        x = frames
        for layer in self.layers():
            x = layer(x)
        return x

    def layers(self) -> list[Callable[[jax.Array], jax.Array]]:
        """The network as functions one after the other, frames into the first.

        They are what Zhu et al., High Performance (2018), Eq. 6 update one by one: conv1 with its
        pooling, every bottleneck, and the last convolution.
        """

        def first(frames: Frames) -> jax.Array:
            return self.backbone.conv1(centred_frames(frames)[..., ::-1])

        def last(x: jax.Array) -> jax.Array:
            return nnx.relu(self.reduce(x))

        return [first, *(block for group in self.backbone.groups for block in group), last]


class FlowQualityNetwork(nnx.Module):
    """N_flow: FlowNetS brought to a sixteenth of the frames, and how far its motion can be trusted.

    The last map of FlowNetS, a concatenation of 194 channels at an eighth, is averaged over 2x2 (at
    odd borders over what there is); the 3x3 convolution that predicts the motion reads that, and so
    do its siblings: 3x3 to the quality Q (High Performance, 3.2) and, for DFF, 1x1 to the scale S
    (DFF, Eq. 4). Averaging before the last convolution is DFF's code; averaging the motion after it
    is nearly the same.

    Q starts as N(0, 0.01^2) with a bias of 1, so that training starts by propagating, which is this
    library's choice; S starts as 1, of which DFF never trains the bias.

    Args:
      width: As of `FlowNetS`.
      scale: Channels of S, those of the features; None leaves it out.
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: FlowQualityNetwork(rngs=nnx.Rngs(0)))
    >>> frames = jax.ShapeDtypeStruct((1, 600, 1000, 3), "uint8")
    >>> motion, quality = nnx.eval_shape(lambda n, *pair: n(*pair), network, frames, frames)
    >>> motion.flow.shape, quality.shape
    ((1, 38, 63, 2), (1, 38, 63))
    """

    def __init__(self, *, width: float = 1.0, scale: int | None = None, rngs: nnx.Rngs):
        self.flownet = FlowNetS(width=width, upsampling_bias=True, rngs=rngs)
        depth = self.flownet.predict_flow[-1].in_features
        self.predict_quality = nnx.Conv(
            depth,
            1,
            (3, 3),
            padding=[(1, 1), (1, 1)],
            kernel_init=_normal,
            bias_init=nnx.initializers.ones,
            rngs=rngs,
        )
        self.predict_scale = (
            None
            if scale is None
            else nnx.Conv(
                depth,
                scale,
                (1, 1),
                kernel_init=nnx.initializers.zeros,
                bias_init=nnx.initializers.ones,
                rngs=rngs,
            )
        )

    def __call__(self, current: Frames, key: Frames) -> tuple[Motion, jax.Array]:
        """Estimates the motion from the current frame to the key frame.

        Args:
          current: `(S, H, W, 3)` RGB, uint8 or floating in [0, 1]; H and W even.
          key: The frame that the motion points to, likewise.

        Returns:
          `Motion` with M, `(S, ceil(H / 16), ceil(W / 16), 2)` in pixels of that grid, and S if
          there is one; and Q on the same grid, `(S, h, w)`, unbounded: the greater, the better.

        Raises:
          ValueError: The frames' shapes do not fit.
        """
        return self.predict(self.joined(current, key))

    def joined(self, current: Frames, key: Frames) -> jax.Array:
        """What motion, quality and scale are read from: FlowNetS's last map, averaged over 2x2.

        Args:
          current: As of a call.
          key: Likewise.

        Returns:
          `(S, ceil(H / 16), ceil(W / 16), 194 * width)` and more by rounding.
        """
        pair = (centred_frames(frames) / 255 for frames in (current, key))
        return _halved(self.flownet(*pair).concatenation)

    def predict(self, joined: jax.Array) -> tuple[Motion, jax.Array]:
        """What a call returns, from `joined`."""
        # In units of 20 pixels of the halved frames, of which the grid has one position to 8.
        flow = FLOW_UNIT / _GRID * self.flownet.predict_flow[-1](joined)
        scale = None if self.predict_scale is None else self.predict_scale(joined)
        return Motion(flow, scale), self.predict_quality(joined)[..., 0]


class CorrelationFlowNetwork(nnx.Module):
    """N_flow, small: motion and quality from how the positions of both frames resemble each other.

    FlowNetC's idea (Dosovitskiy et al., FlowNet, 2015, section 3) on the grid of the features, for
    where a FlowNetS as narrow as the rest learns no large motion: the same convolutions look at
    both halved frames; their maps, of length 1 per position, are compared by scalar products with
    those of the key frame up to `reach` positions away, on a grid of 8 pixels and on one of 16.
    `M = sum_d d p_d + m` of the softmax p of the coarse products and a correction m by convolutions
    that see both, and so do those of the quality Q, whose bias starts as 1.

    Args:
      width: Channels of the maps of 8 pixels; those of 16 have a third more.
      hidden: Channels of the convolutions that read the products.
      reach: Positions of 16 pixels that motion can lead to, each way.
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: CorrelationFlowNetwork(rngs=nnx.Rngs(0)))
    >>> frames = jax.ShapeDtypeStruct((1, 200, 264, 3), "uint8")
    >>> motion, quality = nnx.eval_shape(lambda n, *pair: n(*pair), network, frames, frames)
    >>> motion.flow.shape, quality.shape
    ((1, 13, 17, 2), (1, 13, 17))
    """

    def __init__(self, *, width: int = 24, hidden: int = 40, reach: int = 4, rngs: nnx.Rngs):
        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, pad: int = 1) -> nnx.Conv:
            return nnx.Conv(
                inputs, outputs, (kernel, kernel), stride, padding=[(pad, pad)] * 2,
                kernel_init=nnx.initializers.he_normal(), rngs=rngs,
            )  # fmt: skip

        self.reach = reach
        coarse, beside = 4 * width // 3, 16
        self.conv1, self.conv2 = conv(3, width, 8, 4, pad=2), conv(width, coarse, 3, 2)
        self.near = conv((2 * _NEAR + 1) ** 2, width, 3, 2)
        self.beside = conv(coarse, beside, 1, pad=0)
        depth = (2 * reach + 1) ** 2 + 1 + width + beside
        self.joins = nnx.List([conv(depth, hidden, 3), conv(hidden, hidden, 3)])
        self.sharpness = nnx.Param(jnp.float32(8))
        self.predict_flow = conv(hidden, 2, 3)
        self.predict_quality = nnx.Conv(
            hidden, 1, (3, 3), padding=[(1, 1)] * 2, kernel_init=_normal,
            bias_init=nnx.initializers.ones, rngs=rngs,
        )  # fmt: skip

    def __call__(self, current: Frames, key: Frames) -> tuple[Motion, jax.Array]:
        """Estimates the motion from the current frame to the key frame, as `FlowQualityNetwork`."""
        return self.predict(self.joined(current, key))

    def joined(self, current: Frames, key: Frames) -> jax.Array:
        """What motion and quality are read from, and the motion before its correction.

        Args:
          current: `(S, H, W, 3)` RGB, uint8 or floating in [0, 1].
          key: Likewise.

        Returns:
          `(S, ceil(H / 16), ceil(W / 16), hidden + 2)`.
        """
        frames = jnp.concatenate([centred_frames(current), centred_frames(key)]) / 128
        near = _leaky(self.conv1(_halved(frames)))
        far = self.conv2(near)
        streams = len(current)
        of_near, of_far = (
            _correlation(x[:streams], x[streams:], reach)
            for x, reach in ((_of_length_one(near), _NEAR), (_of_length_one(far), self.reach))
        )
        alike = jax.nn.softmax(self.sharpness[...] * of_far, -1)
        steps = jnp.arange(-self.reach, self.reach + 1, dtype=alike.dtype)
        across, down = jnp.meshgrid(steps, steps)
        matched = alike @ jnp.stack([across.ravel(), down.ravel()], -1)
        x = jnp.concatenate(
            [
                4 * alike,
                jnp.sum(alike * of_far, -1, keepdims=True),
                _leaky(self.near(of_near)),
                _leaky(self.beside(far[:streams])),
            ],
            -1,
        )
        for conv in self.joins:
            x = _leaky(conv(x))
        return jnp.concatenate([x, matched], -1)

    def predict(self, joined: jax.Array) -> tuple[Motion, jax.Array]:
        """What a call returns, from `joined`."""
        x, matched = joined[..., :-2], joined[..., -2:]
        flow = matched + FLOW_UNIT / _GRID * self.predict_flow(x)
        return Motion(flow), self.predict_quality(x)[..., 0]


_NEAR = 3  # positions of 8 pixels


def _leaky(x: jax.Array) -> jax.Array:
    return nnx.leaky_relu(x, 0.1)


def _of_length_one(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)


def _correlation(x: jax.Array, others: jax.Array, reach: int) -> jax.Array:
    """Scalar products of every position with those up to `reach` away in the others, row by row."""
    height, width = x.shape[1:3]
    padded = jnp.pad(others, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    shifts = range(2 * reach + 1)
    # Whole rows against whole rows, of which diagonals are kept, are matrix products.
    rows = jnp.stack([padded[:, i : i + height] for i in shifts], 2)
    products = jnp.einsum("nhwc,nhivc->nhiwv", x, rows)
    own = [jnp.diagonal(products[..., j : j + width], axis1=-2, axis2=-1) for j in shifts]
    return jnp.stack(own, 3).swapaxes(2, 4).swapaxes(3, 4).reshape(*x.shape[:3], -1)


def _halved(x: jax.Array) -> jax.Array:
    """The mean over 2x2; where a side is odd, over the half of the last that there is."""
    window = (1, 2, 2, 1)
    padding = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
    total = lax.reduce_window(x, 0.0, lax.add, window, window, padding)
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return total / lax.reduce_window(ones, 0.0, lax.add, window, window, padding)


class EmbeddingNetwork(nnx.Module):
    """E: what features are compared by, 1x1, 3x3 and 1x1 convolutions, ReLU between (FGFA).

    Its output is compared by cosine (`dynvid.ops.aggregate.similarity_weights`), so its length is
    free. Weights start as N(0, 0.01^2).

    Args:
      depth: Channels of the features.
      hidden: Of the first two convolutions.
      embedding: Of the output.
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: EmbeddingNetwork(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    3935232
    """

    def __init__(
        self,
        *,
        depth: int = 1024,
        hidden: int = 512,
        embedding: int = 2048,
        rngs: nnx.Rngs,
    ):
        self.convs = nnx.List(
            [
                nnx.Conv(inputs, outputs, (kernel, kernel), kernel_init=_normal, rngs=rngs)
                for inputs, outputs, kernel in (
                    (depth, hidden, 1), (hidden, hidden, 3), (hidden, embedding, 1),
                )
            ]
        )  # fmt: skip

    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps `(S, h, w, depth)` to `(S, h, w, embedding)`."""
        *hidden, last = self.convs
        for conv in hidden:
            features = nnx.relu(conv(features))
        return last(features)
