"""FlowNetS, optical flow by one network that sees both frames (Dosovitskiy et al., FlowNet, 2015).

The family: with the training schedule of FlowNet 2.0 (Ilg et al. 2017) and no bias in the
transposed convolutions, width 1 is FlowNet2-S and width 3/8 is FlowNet2-s.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from dynvid.models.modules import unit_frames
from dynvid.ops.warp import Motion, resize_motion
from dynvid.types import Frames, Params

FLOW_UNIT = 20.0
"""Pixels per unit of a prediction: the truth is divided by it in training (FlowNet 2.0)."""

_GRID = 4  # pixels of the halved frames per position of the finest grid
# Name, channels at width 1, kernel and stride.
_CONVOLUTIONS = (
    ("conv1", 64, 7, 2),
    ("conv2", 128, 5, 2),
    ("conv3", 256, 5, 2),
    ("conv3_1", 256, 3, 1),
    ("conv4", 512, 3, 2),
    ("conv4_1", 512, 3, 1),
    ("conv5", 512, 3, 2),
    ("conv5_1", 512, 3, 1),
    ("conv6", 1024, 3, 2),
    ("conv6_1", 1024, 3, 1),
)
# From coarse to fine: the map that is joined, and the channels of the transposed convolution.
_REFINEMENTS = (("conv5_1", 512), ("conv4_1", 256), ("conv3_1", 128), ("conv2", 64))

_he = nnx.initializers.he_normal()


class FlowNetSOutputs(NamedTuple):
    """What the network says of a pair of frames.

    Its finest grid has an eighth of the frames' resolution, h = ceil(H / 8) and w = ceil(W / 8).

    Attributes:
      flow: `(S, h, w, 2)` (dx, dy) in pixels of this grid, pointing from the current frame to the
        key frame.
      scale: `(S, h, w, classes)`, what warped class scores are multiplied by; None without classes.
      features: `(S, ceil(H / 128), ceil(W / 128), 1024 * width)`, conv6_1 after its activation.
      predictions: `predict_flow6` to `predict_flow2`, `(S, h_i, w_i, 2)` from coarse to fine, as
        training compares them: each in units of 20 pixels of the halved frames.
      concatenation: `(S, h, w, 194 * width)` and more by rounding, concat2: what heads are put on.
    """

    flow: jax.Array
    scale: jax.Array | None
    features: jax.Array
    predictions: tuple[jax.Array, ...]
    concatenation: jax.Array


class FlowNetS(nnx.Module):
    """FlowNetS of any width on halved frames, with the scale field of DVSNet.

    The layers are those of Dosovitskiy et al. (2015), section 3, Fig. 2 and 3, each padded by half
    its kernel on every side. Frames are first halved by the mean over 2x2, as Zhu et al. (Deep
    Feature Flow, 2017) do, which keeps what is finer from aliasing.

    Args:
      width: All numbers of channels are those of FlowNetS times this.
      classes: Channels of the scale field; None leaves it out. Its weights start at 0 and its bias
        at 1, so that it is 1 everywhere before training (Xu et al., DVSNet, 2018).
      upsampling_bias: Whether the transposed convolutions of features have a bias: in FlowNetS,
        not in FlowNet2-s. Those of flow have none.
      rngs: Where the random weights come from (He et al. 2015).

    Raises:
      ValueError: `width` does not give whole numbers of channels.

    >>> network = nnx.eval_shape(lambda: FlowNetS(upsampling_bias=True, rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network)))
    38676506
    >>> network = nnx.eval_shape(lambda: FlowNetS(width=3 / 8, classes=19, rngs=nnx.Rngs(0)))
    >>> frames = jax.ShapeDtypeStruct((1, 576, 1088, 3), "uint8")
    >>> outputs = nnx.eval_shape(lambda n, *pair: n(*pair), network, frames, frames)
    >>> outputs.flow.shape, outputs.features.shape
    ((1, 72, 136, 2), (1, 5, 9, 384))
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        classes: int | None = None,
        upsampling_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        def channels(full: int) -> int:
            wanted = full * width
            if wanted < 1 or wanted != int(wanted):
                raise ValueError(
                    f"width must make {full} channels a positive whole number; got {width}"
                )
            return int(wanted)

        def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nnx.Conv:
            pad = [(size // 2, size // 2)] * 2
            return nnx.Conv(
                inputs, outputs, (size, size), stride, padding=pad, kernel_init=_he, rngs=rngs
            )

        convolutions, depths, depth = {}, {}, 6
        for name, full, size, stride in _CONVOLUTIONS:
            depths[name] = channels(full)
            convolutions[name] = conv(depth, depths[name], size, stride)
            depth = depths[name]
        self.convolutions = nnx.Dict(convolutions)
        self.predict_flow = nnx.List([conv(depth, 2, 3)])
        self.deconvolutions, self.upsample_flow = nnx.List(), nnx.List()
        for skip, full in _REFINEMENTS:
            outputs = channels(full)
            self.deconvolutions.append(
                Deconvolution(depth, outputs, use_bias=upsampling_bias, rngs=rngs)
            )
            self.upsample_flow.append(Deconvolution(2, 2, use_bias=False, rngs=rngs))
            depth = depths[skip] + outputs + 2
            self.predict_flow.append(conv(depth, 2, 3))
        self.predict_scale = (
            None
            if classes is None
            else nnx.Conv(
                depth,
                classes,
                (3, 3),
                padding=[(1, 1), (1, 1)],
                kernel_init=nnx.initializers.zeros,
                bias_init=nnx.initializers.ones,
                rngs=rngs,
            )
        )

    def __call__(self, current: Frames, key: Frames) -> FlowNetSOutputs:
        """Estimates the motion from one frame to another.

        The published weights see blue, green and red in [0, 1], the current frame first. The flow
        is that of `predict_flow2` times 5: times 20 in pixels of the halved frames, of which the
        grid has one position to 4 (Xu et al. 2018, their code).

        Args:
          current: `(S, H, W, 3)` RGB, uint8 or floating in [0, 1]; H and W even.
          key: The frame that the flow points to, likewise.

        Returns:
          `FlowNetSOutputs`. What is upsampled is cut to the map that it is joined with, so that
          sizes need not be multiples of 128.

        Raises:
          ValueError: The frames' shapes do not fit.
        """
        maps = self.encode(current, key)
        x = maps["conv6_1"]
        predictions = [self.predict_flow[0](x)]
        for i, (name, _) in enumerate(_REFINEMENTS):
            skip = maps[name]
            size = skip.shape[1:3]
            features = _activation(self.deconvolutions[i](x, size))
            flow = self.upsample_flow[i](predictions[-1], size)
            x = jnp.concatenate([skip, features, flow], -1)
            predictions.append(self.predict_flow[i + 1](x))
        return FlowNetSOutputs(
            flow=FLOW_UNIT / _GRID * predictions[-1],
            scale=None if self.predict_scale is None else self.predict_scale(x),
            features=maps["conv6_1"],
            predictions=tuple(predictions),
            concatenation=x,
        )

    def encode(self, current: Frames, key: Frames) -> dict[str, jax.Array]:
        """The maps of the contracting part, conv1 to conv6_1, by name, after their activations.

        Args:
          current: As of a call.
          key: Likewise.

        Raises:
          ValueError: The frames' shapes do not fit.
        """
        if (
            current.ndim != 4
            or current.shape[3] != 3
            or current.shape[1] % 2 | current.shape[2] % 2
        ):
            raise ValueError(
                f"current must be (S, H, W, 3) with H and W even; got {tuple(current.shape)}"
            )
        if key.shape != current.shape:
            raise ValueError(
                f"key must have the shape of current, {tuple(current.shape)}; got "
                f"{tuple(key.shape)}"
            )
        x = jnp.concatenate([_halved(current), _halved(key)], -1)
        maps = {}
        for name, *_ in _CONVOLUTIONS:
            x = maps[name] = _activation(self.convolutions[name](x))
        return maps


def flow_on_grid(
    network: FlowNetS, *, stride: int
) -> tuple[Callable[[Params, Frames, Frames], Motion], Params]:
    """A FlowNetS as DVSNet takes flow networks, its motion brought to the grid of the logits.

    Args:
      network: The module, on images of a multiple of its own stride or not.
      stride: Pixels of the images per position of the logits.

    Returns:
      `(flow, params)`: `flow(params, current, key) -> Motion`.

    >>> network = nnx.eval_shape(lambda: FlowNetS(width=1 / 64, rngs=nnx.Rngs(0)))
    >>> flow, params = flow_on_grid(network, stride=4)
    >>> images = jax.ShapeDtypeStruct((1, 64, 96, 3), "uint8")
    >>> jax.eval_shape(flow, params, images, images).flow.shape
    (1, 16, 24, 2)
    """
    graph, params = nnx.split(network)

    def flow(params: Params, current: Frames, key: Frames) -> Motion:
        found = nnx.merge(graph, params)(current, key)
        size = (-(-current.shape[1] // stride), -(-current.shape[2] // stride))
        return resize_motion(Motion(found.flow, found.scale, found.features), size)

    return flow, nnx.as_pure(params)


class Deconvolution(nnx.Module):
    """The transposed 4x4 convolution with stride 2 of FlowNet's refinement.

    `y[2 j + k - 1] = sum over j and k of x[j] K[k]`, both ways, with k from 0 to 3: twice the size.

    Args:
      inputs: Channels of x.
      outputs: Channels of y.
      use_bias: Whether a bias is added.
      rngs: Where the random weights come from: every output has a quarter of the kernel's weights
        in it, which is the fan that He et al. (2015) scale by.

    >>> layer = Deconvolution(3, 8, use_bias=False, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 3, 5, 3)), (5, 10)).shape
    (1, 5, 10, 8)
    """

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool, rngs: nnx.Rngs):
        shape = (4, 4, inputs, outputs)
        self.kernel = nnx.Param(2 * _he(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

    def __call__(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Maps `(S, h, w, inputs)` to `(S, *size, outputs)`, cut below and at the right.

        Raises:
          ValueError: `size` is greater than twice the input's.
        """
        streams, height, width, inputs = x.shape
        if size[0] > 2 * height or size[1] > 2 * width:
            raise ValueError(f"size must be at most {(2 * height, 2 * width)}; got {size}")
        outputs = self.kernel.shape[3]
        # Positions 2 i and 2 i + 1 see inputs i - 1 and i: a 2x2 convolution makes the 2 x 2 of
        # every i at once. XLA's own transposed convolution is several times slower on CPUs.
        kernel = self.kernel[...].reshape(2, 2, 2, 2, inputs, outputs)[::-1, :, ::-1]
        kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, inputs, 4 * outputs)
        y = lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y.reshape(streams, height + 1, width + 1, 2, 2, outputs).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(streams, 2 * height + 2, 2 * width + 2, outputs)
        y = y[:, 1 : 1 + size[0], 1 : 1 + size[1]]
        return y if self.bias is None else y + self.bias[...]


def _activation(x: jax.Array) -> jax.Array:
    return nnx.leaky_relu(x, 0.1)


def _halved(frames: jax.Array) -> jax.Array:
    """Frames as blue, green and red in [0, 1], the mean over 2x2."""
    # XLA's windowed sum takes eight times as long on CPUs.
    streams, height, width, channels = frames.shape
    x = unit_frames(frames)[..., ::-1]
    x = x.reshape(streams, height // 2, 2, width // 2, 2, channels)
    return (x[:, :, 0, :, 0] + x[:, :, 0, :, 1] + x[:, :, 1, :, 0] + x[:, :, 1, :, 1]) / 4
