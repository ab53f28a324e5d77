"""Small networks for street scenes: what DVSNet runs where no weights are given.

A segmentation network, a narrow FlowNetS with its scale field and a small decision network, trained
on the synthetic drives of `dynvid.data.driving`; their weights come with the package, see
experiments/dvsnet.
"""

import importlib.resources
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.models.decision_network import DecisionNetwork
from dynvid.models.flownet import FlowNetS
from dynvid.models.modules import from_nnx
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
_FLOW_WIDTH = 3 / 32

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
        x = frames
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = x.astype(jnp.float32) / 255
        x = 4 * x - 2
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
    [348395, 350731, 167797]
    """
    segment, segmentation = from_nnx(DrivingSegmenter(rngs=rngs))
    flow, flow_params = flow_on_grid(flow_network(rngs=rngs), stride=STRIDE)
    decide, decision = from_nnx(decision_network(rngs=rngs))
    return DrivingNetworks(segment, flow, decide, (segmentation, flow_params, decision))


def flow_network(*, rngs: nnx.Rngs) -> FlowNetS:
    """The flow network: FlowNetS at a quarter of FlowNet2-s's width, with a scale field.

    >>> nnx.eval_shape(lambda: flow_network(rngs=nnx.Rngs(0))).predict_scale.out_features
    11
    """
    return FlowNetS(width=_FLOW_WIDTH, classes=len(CLASS_NAMES), rngs=rngs)


def decision_network(*, rngs: nnx.Rngs) -> DecisionNetwork:
    """The decision network, narrower than DVSNet's for narrower features.

    >>> nnx.eval_shape(lambda: decision_network(rngs=nnx.Rngs(0))).convolution.out_features
    32
    """
    width = int(1024 * _FLOW_WIDTH)
    return DecisionNetwork(width, convolution=32, hidden=(128, 64, 10), rngs=rngs)


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
