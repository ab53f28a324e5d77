"""Flow-guided video object detection's networks together: small ones, and those of the papers.

The small ones are trained on the synthetic videos of `dynvid.data.moving_objects`; their weights
come with the package, see experiments/flow_detection.
"""

import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.models.driving import named_leaves
from dynvid.models.flow_guided import (
    CorrelationFlowNetwork,
    EmbeddingNetwork,
    FeatureNetwork,
    FlowQualityNetwork,
)
from dynvid.models.rfcn import RFCN
from dynvid.ops.boxes import Detections
from dynvid.ops.warp import Motion
from dynvid.types import Frames, Params

CLASS_NAMES = (
    *("ringed disc", "striped disc", "striped box"),
    *("checked box", "checked triangle", "ringed triangle"),
)
"""The name of each class index of the small networks."""

STRIDE = 16
"""Pixels of the input per position of the features, both ways."""


class FlowDetector(nnx.Module):
    """All four networks of Zhu et al., High Performance Video Object Detection (2018), as modules.

    Args:
      features: N_feat.
      flow: N_flow.
      embedding: E.
      detector: N_det.

    >>> network = nnx.eval_shape(lambda: flow_detector(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network.features, nnx.Param)))
    61375552
    """

    def __init__(
        self,
        features: FeatureNetwork,
        flow: FlowQualityNetwork | CorrelationFlowNetwork,
        embedding: EmbeddingNetwork,
        detector: RFCN,
    ):
        self.features, self.flow = features, flow
        self.embedding, self.detector = embedding, detector


def flow_detector(*, classes: int = 30, deformable: bool = False, rngs: nnx.Rngs) -> FlowDetector:
    """The networks of the paper: ResNet-101, FlowNetS, the embedding of FGFA, R-FCN.

    Args:
      classes: C, without the background; 30 of ImageNet VID.
      deformable: As of `FeatureNetwork`.
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: flow_detector(classes=6, rngs=nnx.Rngs(0)))
    >>> network.detector.head.scores.out_features
    343
    """
    return FlowDetector(
        FeatureNetwork(deformable=deformable, rngs=rngs),
        FlowQualityNetwork(rngs=rngs),
        EmbeddingNetwork(rngs=rngs),
        RFCN(classes=classes, rngs=rngs),
    )


def small_flow_detector(*, rngs: nnx.Rngs) -> FlowDetector:
    """The same networks small, for frames of about 256 pixels and objects of 40 to 110.

    Features are those of a narrow ResNet of basic blocks; motion is by correlation, which a narrow
    FlowNetS does not learn in the time there is (experiments/flow_detection).

    Args:
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: small_flow_detector(rngs=nnx.Rngs(0)))
    >>> frames = jax.ShapeDtypeStruct((1, 256, 256, 3), "uint8")
    >>> nnx.eval_shape(lambda n, f: n.features(f), network, frames).shape
    (1, 16, 16, 96)
    """
    depth = 96
    return FlowDetector(
        FeatureNetwork(
            depths=(2, 2, 4, 1), width=16, features=depth, dilation=2, block="basic", rngs=rngs
        ),
        CorrelationFlowNetwork(rngs=rngs),
        EmbeddingNetwork(depth=depth, hidden=32, embedding=64, rngs=rngs),
        RFCN(
            depth=depth,
            classes=len(CLASS_NAMES),
            grid=3,
            stride=STRIDE,
            scales=(3.0, 4.25, 6.0),
            ratios=(1.0,),
            max_candidates=128,
            max_proposals=32,
            max_detections=32,
            rngs=rngs,
        ),
    )


class FlowDetectionNetworks(NamedTuple):
    """Four networks and their parameters, as pure functions.

    Attributes:
      features: N_feat, `features(params, frames) -> F`, `(S, ceil(H / 16), ceil(W / 16), C)`.
      flow: N_flow, `flow(params, current, key) -> (Motion, Q)` on the grid of the features.
      embed: E, `embed(params, F) -> (S, h, w, E)`.
      detect: N_det, `detect(params, F, size) -> Detections` in pixels of frames of (height, width)
        `size`.
      params: Those of each, in this order.
    """

    features: Callable[[Params, Frames], jax.Array]
    flow: Callable[[Params, Frames, Frames], tuple[Motion, jax.Array]]
    embed: Callable[[Params, jax.Array], jax.Array]
    detect: Callable[[Params, jax.Array, Sequence[int]], Detections]
    params: tuple[Params, Params, Params, Params]


def detection_networks(network: FlowDetector) -> FlowDetectionNetworks:
    """The networks as pure functions of their parameters, in evaluation mode.

    Args:
      network: The modules, which may hold shapes instead of arrays.

    >>> network = nnx.eval_shape(lambda: small_flow_detector(rngs=nnx.Rngs(0)))
    >>> networks = detection_networks(network)
    >>> frames = jax.ShapeDtypeStruct((2, 256, 256, 3), "uint8")
    >>> motion, quality = jax.eval_shape(networks.flow, networks.params[1], frames, frames)
    >>> motion.flow.shape, quality.shape
    ((2, 16, 16, 2), (2, 16, 16))
    """
    parts = (network.features, network.flow, network.embedding, network.detector)
    functions, params = zip(*map(_pure, parts), strict=True)
    return FlowDetectionNetworks(*functions, params=params)


def load_flow_detection_networks() -> FlowDetectionNetworks:
    """Loads the small trained networks that come with the package.

    Returns:
      The networks with their weights, float32.

    >>> networks = load_flow_detection_networks()
    >>> frames = jax.ShapeDtypeStruct((1, 256, 256, 3), "uint8")
    >>> jax.eval_shape(networks.features, networks.params[0], frames).shape
    (1, 16, 16, 96)
    """
    networks = detection_networks(nnx.eval_shape(lambda: small_flow_detector(rngs=nnx.Rngs(0))))
    path = importlib.resources.files("dynvid.models") / "data" / "flow_detection.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        params = [
            jnp.asarray(arrays[name], leaf.dtype) for name, leaf in named_leaves(networks.params)
        ]
    return networks._replace(params=jax.tree.unflatten(jax.tree.structure(networks.params), params))


def _pure(module: nnx.Module) -> tuple[Callable[..., Any], Params]:
    copy: Any = nnx.clone(module)
    copy.eval()
    graph, state = nnx.split(copy)

    def function(params: Params, *given: Any) -> Any:
        return nnx.merge(graph, params)(*given)

    return function, nnx.as_pure(state)
