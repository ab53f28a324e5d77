"""Small networks for street scenes: what DVSNet runs where no weights are given.

A segmentation network, a narrow SPyNet with a scale field and a small decision network, trained on
the synthetic drives of `dynvid.data.driving`; their weights come with the package, see
experiments/dvsnet.
"""

import importlib.resources
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.models.decision_network import DecisionNetwork
from dynvid.models.modules import from_nnx, unit_frames
from dynvid.models.spynet import spynet_motion
from dynvid.ops.warp import Motion, resize_motion
from dynvid.types import Frames, Params

CLASS_NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
"""The name of each class index: those of CamVid, in its order."""

STRIDE = 4
"""Pixels of the input per position of the logits, both ways."""

MULTIPLE = 8
"""What the sides of frames and regions should be multiples of."""

_WIDTH = 48
_DILATIONS = (1, 2, 4, 8, 1, 2, 4, 8)
_FLOW_LAYERS = ((8, 16, 32, 16, 16, 2), (8, 8, 12, 8, 2))  # channels of both levels of 7x7
_DECISION_GRID = (8, 10)

_he = nnx.initializers.he_normal()


class DrivingSegmenter(nnx.Module):
    """A residual network of dilated 3x3 convolutions at a quarter of the resolution.

    Two convolutions of stride 2, eight residual blocks of two convolutions with dilations 1, 2, 4
    and 8, and a classifier. No normalisation: the second convolution of each block starts at zero.

    Args:
      classes: How many classes are scored.
      width: Channels.
      rngs: Where the random weights come from (He et al. 2015).

    >>> network = nnx.eval_shape(lambda: DrivingSegmenter(rngs=nnx.Rngs(0)))
    >>> frames = jax.ShapeDtypeStruct((1, 240, 320, 3), "uint8")
    >>> nnx.eval_shape(lambda n, x: n(x), network, frames).shape
    (1, 60, 80, 11)
    """

    def __init__(self, *, classes: int = len(CLASS_NAMES), width: int = _WIDTH, rngs: nnx.Rngs):
        def conv(inputs: int, outputs: int, *, stride=1, dilation=1, init=_he) -> nnx.Conv:
            pad = [(dilation, dilation)] * 2
            return nnx.Conv(
                inputs, outputs, (3, 3), stride, padding=pad, kernel_dilation=dilation,
                kernel_init=init, rngs=rngs,
            )  # fmt: skip

        self.stem = nnx.List([conv(3, width // 2, stride=2), conv(width // 2, width, stride=2)])
        self.blocks = nnx.List(
            nnx.List(
                [
                    conv(width, width, dilation=dilation),
                    conv(width, width, init=nnx.initializers.zeros),
                ]
            )
            for dilation in _DILATIONS
        )
        self.classifier = conv(width, classes)

    def __call__(self, frames: Frames) -> jax.Array:
        """Maps RGB frames `(S, H, W, 3)`, uint8 or floating in [0, 1], to logits of a quarter.

        Returns:
          `(S, ceil(H / 4), ceil(W / 4), classes)`.

        Raises:
          ValueError: The frames have another shape.
        """
        if frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames must be (S, H, W, 3); got {tuple(frames.shape)}")
        x = 4 * unit_frames(frames) - 2
        for conv in self.stem:
            x = nnx.relu(conv(x))
        for first, second in self.blocks:
            x = nnx.relu(x + second(nnx.relu(first(x))))
        return self.classifier(x)


class DrivingNetworks(NamedTuple):
    """Three networks and their parameters, as `dynvid.systems.dvsnet` takes them.

    Attributes:
      segment: `segment(params, images) -> logits` at a quarter of the resolution.
      flow: `flow(params, current, key) -> Motion` on the grid of those logits.
      decide: `decide(params, features) -> scores`, percent.
      params: Those of each, in this order.
    """

    segment: Callable[[Params, Frames], jax.Array]
    flow: Callable[[Params, Frames, Frames], Motion]
    decide: Callable[[Params, jax.Array], jax.Array]
    params: tuple[Params, Params, Params]


def driving_networks(*, rngs: nnx.Rngs) -> DrivingNetworks:
    """The networks with random weights, to train.

    Args:
      rngs: Where they come from.

    >>> networks = nnx.eval_shape(lambda: driving_networks(rngs=nnx.Rngs(0)).params)
    >>> [sum(p.size for p in jax.tree.leaves(part)) for part in networks]
    [348395, 85298, 340501]
    """
    segment, segmentation = from_nnx(DrivingSegmenter(rngs=rngs))
    decide, decision = from_nnx(decision_network(rngs=rngs))
    flow = init_driving_flow(rngs.params())
    return DrivingNetworks(segment, driving_flow, decide, (segmentation, flow, decision))


def driving_flow(params: Params, current: Frames, key: Frames) -> Motion:
    """A narrow SPyNet of two levels with DVSNet's scale field, on the grid of the logits.

    Its coarsest levels only: regions of the size it was trained on, some 136x176, get a motion for
    every four pixels. The scale field is a 3x3 convolution of what the last level knows, which
    starts at 1 everywhere, as that of FlowNet2-s.

    Args:
      params: As `init_driving_flow` makes them.
      current: `(S, H, W, 3)` RGB, uint8 or floating in [0, 1].
      key: The frame that the flow points to, likewise.

    Returns:
      `Motion` on `(ceil(H / 4), ceil(W / 4))`, features `(S, 8, 10, 13)`. Images of a side below
      64, or more than eight times as long as they are wide, are stretched first.

    Raises:
      ValueError: The images' shapes do not fit.

    >>> images = jax.ShapeDtypeStruct((1, 136, 176, 3), "uint8")
    >>> motion = jax.eval_shape(driving_flow, init_driving_flow(jax.random.key(0)), images, images)
    >>> motion.flow.shape, motion.scale.shape
    ((1, 34, 44, 2), (1, 34, 44, 11))
    """
    size = (-(-current.shape[1] // STRIDE), -(-current.shape[2] // STRIDE))
    current, key = _large_enough(current), _large_enough(key)
    motion = spynet_motion(params["levels"], current, key, levels=len(_FLOW_LAYERS))
    assert motion.features is not None
    scale = jax.lax.conv_general_dilated(
        motion.features,
        params["scale"]["kernel"],
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    shape = (motion.features.shape[0], *_DECISION_GRID, motion.features.shape[3])
    features = jax.image.resize(motion.features, shape, "linear", antialias=True)
    return resize_motion(Motion(motion.flow, scale + params["scale"]["bias"], features), size)


def _large_enough(images: Frames) -> Frames:
    """Images that the pyramid can be made of: small ones and thin ones are stretched."""
    streams, height, width, channels = images.shape
    tall, wide = max(height, 64, -(-width // 8)), max(width, 64, -(-height // 8))
    if (tall, wide) == (height, width):
        return images
    shape = (streams, tall, wide, channels)
    return jax.image.resize(unit_frames(images), shape, "bilinear", antialias=False)


def init_driving_flow(key: jax.Array) -> Params:
    """Draws untrained weights: He et al. (2015), a tenth of it in the last layer of each level.

    Args:
      key: A random key.

    Returns:
      `levels`, as of `spynet`, and `scale` with its `kernel` and `bias`, float32.

    >>> sum(p.size for p in jax.tree.leaves(init_driving_flow(jax.random.key(0))))
    85298
    """
    levels = []
    for channels in _FLOW_LAYERS:
        layers = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
            key, layer_key = jax.random.split(key)
            spread = (2 / (49 * inputs)) ** 0.5 * (0.1 if i == len(channels) - 2 else 1.0)
            kernel = spread * jax.random.normal(layer_key, (7, 7, inputs, outputs))
            layers.append({"kernel": kernel, "bias": jnp.zeros(outputs)})
        levels.append(layers)
    features, classes = _FLOW_LAYERS[-1][-2] + 5, len(CLASS_NAMES)
    scale = {"kernel": jnp.zeros((3, 3, features, classes)), "bias": jnp.ones(classes)}
    return {"levels": levels, "scale": scale}


def decision_network(*, rngs: nnx.Rngs) -> DecisionNetwork:
    """The decision network, narrower than DVSNet's for fewer features.

    >>> nnx.eval_shape(lambda: decision_network(rngs=nnx.Rngs(0))).convolution.out_features
    32
    """
    return DecisionNetwork(
        _FLOW_LAYERS[-1][-2] + 5,
        grid=_DECISION_GRID,
        convolution=32,
        hidden=(128, 64, 10),
        rngs=rngs,
    )


def load_driving_networks() -> DrivingNetworks:
    """Loads the trained networks that come with the package.

    Returns:
      The networks with their weights, float32.

    >>> networks = load_driving_networks()
    >>> frames = jax.ShapeDtypeStruct((1, 64, 96, 3), "uint8")
    >>> jax.eval_shape(networks.segment, networks.params[0], frames).shape
    (1, 16, 24, 11)
    """
    networks = driving_networks(rngs=nnx.Rngs(0))
    path = importlib.resources.files("dynvid.models") / "data" / "driving.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        params = [
            jnp.asarray(arrays[name], leaf.dtype) for name, leaf in named_leaves(networks.params)
        ]
    return networks._replace(params=jax.tree.unflatten(jax.tree.structure(networks.params), params))


def named_leaves(params: Params) -> list[tuple[str, jax.Array]]:
    """The arrays of a pytree of parameters with the names that they are stored by.

    >>> named_leaves(({"kernel": jnp.ones(2)},))[0][0]
    '0/kernel'
    """
    return [
        ("/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path), leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    ]
