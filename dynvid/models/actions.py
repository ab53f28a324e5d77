"""A small network for short clips: what Dynamic Inference runs where no weights are given.

A narrow residual network with temporal shift and three heads, trained on the synthetic clips of
`dynvid.data.action_clips`; its weights come with the package, see experiments/dynamic_inference.
"""

import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.models.clip_network import StagedNetwork, staged
from dynvid.models.driving import named_leaves
from dynvid.models.temporal_shift_resnet import TemporalShiftResNet
from dynvid.ops.progressive import Groups, frame_groups
from dynvid.types import Params

CLASS_NAMES = (
    *("square", "triangle", "ring", "cross"),
    *("moves left", "moves right", "moves up", "moves down"),
    *("red, then blue", "blue, then red", "appears", "vanishes"),
)
"""The name of each class index: what one frame tells, what motion tells, what the order tells."""

FRAMES = 16
"""T, the frames of a clip."""

SIZE = (64, 64)
"""(height, width) of a frame, pixels."""

GROUPS: Groups = frame_groups(FRAMES, 2)
"""The frame groups that it was trained with."""


def action_network(*, rngs: nnx.Rngs) -> TemporalShiftResNet:
    """The network with random weights, to train.

    Args:
      rngs: Where they come from.

    >>> network = nnx.eval_shape(lambda: action_network(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    330336
    """
    return TemporalShiftResNet(
        depths=(1, 1, 1, 1), width=12, classes=len(CLASS_NAMES), head_features=128, patch=4,
        dropout=0.1, rngs=rngs,
    )  # fmt: skip


def normalise_clips(frames: jax.Array) -> jax.Array:
    """What the network does to frames: RGB, uint8 or floating in [0, 1], to [-2, 2].

    >>> normalise_clips(jnp.array([0, 255], jnp.uint8)).tolist()
    [-2.0, 2.0]
    """
    if jnp.issubdtype(frames.dtype, jnp.integer):
        frames = frames.astype(jnp.float32) / 255
    return 4 * frames - 2


def load_action_network() -> tuple[StagedNetwork, Params]:
    """Loads the trained network that comes with the package.

    Returns:
      `(network, params)`, float32; it takes RGB frames `(N, 64, 64, 3)`, uint8 or in [0, 1].

    >>> network, params = load_action_network()
    >>> network.depth
    3
    """
    network, shapes = staged(
        nnx.eval_shape(lambda: action_network(rngs=nnx.Rngs(0))), normalise=normalise_clips
    )
    path = importlib.resources.files("dynvid.models") / "data" / "actions.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        params = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in named_leaves(shapes)]
    return network, jax.tree.unflatten(jax.tree.structure(shapes), params)
