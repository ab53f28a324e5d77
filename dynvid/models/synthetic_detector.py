"""A small detector of discs, squares and triangles, trained on the synthetic scenes.

It is anchor-free: one map of class scores at stride 8 whose peaks are the objects' centres, with
the box's size and the centre's place inside its cell read at the peak (Zhou et al., Objects as
Points, 2019, section 3). Its weights come with the package, see experiments/synthetic_detector.
"""

import importlib.resources
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.models.modules import unit_frames
from dynvid.ops.boxes import Detections, non_maximum_suppression
from dynvid.types import Frames, Params

CLASS_NAMES = ("disc", "square", "triangle")
"""The name of each class index."""

STRIDE = 8
"""Pixels of the input per cell of the output, both ways."""

_SIZE_UNIT = 32.0  # pixels; the network gives the logarithm of a side in this unit
_LAYERS = ((32, 2), (64, 2), (96, 2), (96, 1), (96, 1), (7, 1))  # output channels, stride


class SyntheticOutputs(NamedTuple):
    """What the network says of every cell of 8 x 8 pixels.

    Attributes:
      heatmap: `(S, H / 8, W / 8, 3)` logits: is the centre of an object of this class here.
      size: `(S, H / 8, W / 8, 2)` logarithm of (width, height) in units of 32 pixels.
      offset: `(S, H / 8, W / 8, 2)` the centre (x, y) within the cell, in cells.
    """

    heatmap: jax.Array
    size: jax.Array
    offset: jax.Array


def synthetic_detector(params: Params, frames: Frames) -> SyntheticOutputs:
    """Runs the network: six 3x3 convolutions, ReLU between them, 32 to 96 channels.

    Args:
      params: `kernel0`, `bias0` and so on, as `init_synthetic_detector` makes them.
      frames: `(S, H, W, 3)` RGB, uint8 or floating in [0, 1]; H and W multiples of 8.

    Returns:
      The raw output maps; `decode_synthetic` makes boxes of them.

    Raises:
      ValueError: The frames' shape does not fit.

    >>> outputs = synthetic_detector(
    ...     init_synthetic_detector(jax.random.key(0)), jnp.zeros((2, 64, 96, 3))
    ... )
    >>> outputs.heatmap.shape
    (2, 8, 12, 3)
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[1] % 8 or frames.shape[2] % 8:
        raise ValueError(
            "frames must be (S, H, W, 3) with H and W multiples of 8; "
            f"got shape {tuple(frames.shape)}"
        )
    x = 4.0 * unit_frames(frames) - 2.0
    last = len(_LAYERS) - 1
    for i, (_, stride) in enumerate(_LAYERS):
        x = jax.lax.conv_general_dilated(
            x,
            params[f"kernel{i}"].astype(x.dtype),
            window_strides=(stride, stride),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = x + params[f"bias{i}"].astype(x.dtype)
        if i < last:
            x = jax.nn.relu(x)
    return SyntheticOutputs(heatmap=x[..., :3], size=x[..., 3:5], offset=x[..., 5:7])


def init_synthetic_detector(key: jax.Array) -> dict[str, jax.Array]:
    """Draws untrained weights: He et al. (2015), Eq. 10, and a low prior for every class.

    Args:
      key: A random key.

    Returns:
      `kernel{i}` `(3, 3, inputs, outputs)` and `bias{i}` `(outputs,)` of each layer, float32.

    >>> params = init_synthetic_detector(jax.random.key(0))
    >>> sum(p.size for p in params.values())
    246919
    """
    params = {}
    inputs = 3
    for i, (layer_key, (outputs, _)) in enumerate(
        zip(jax.random.split(key, len(_LAYERS)), _LAYERS, strict=True)
    ):
        scale = (2 / (9 * inputs)) ** 0.5
        params[f"kernel{i}"] = scale * jax.random.normal(layer_key, (3, 3, inputs, outputs))
        params[f"bias{i}"] = jnp.zeros(outputs)
        inputs = outputs
    # Centres are rare: start from a probability of 1% everywhere, and the middle of the cell.
    params[f"bias{len(_LAYERS) - 1}"] = jnp.array([-4.6, -4.6, -4.6, 0.0, 0.0, 0.5, 0.5])
    params[f"kernel{len(_LAYERS) - 1}"] *= 0.1
    return params


def load_synthetic_detector() -> tuple[
    Callable[[Params, Frames], SyntheticOutputs], dict[str, jax.Array]
]:
    """Loads the trained detector that comes with the package.

    Returns:
      `(fn, params)`: `fn(params, frames) -> SyntheticOutputs`, and its weights, float32.

    >>> fn, params = load_synthetic_detector()
    >>> fn(params, jnp.zeros((1, 64, 64, 3), jnp.uint8)).size.shape
    (1, 8, 8, 2)
    """
    path = importlib.resources.files("dynvid.models") / "data" / "synthetic_detector.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        params = {name: jnp.asarray(arrays[name], jnp.float32) for name in arrays.files}
    return synthetic_detector, params


def decode_synthetic(
    outputs: SyntheticOutputs,
    *,
    score_threshold: float = 0.3,
    iou_threshold: float = 0.5,
    max_candidates: int = 64,
    max_detections: int = 32,
) -> Detections:
    """Reads boxes at the peaks of the heat map (Zhou et al. 2019, section 3, "From points").

    A peak is a cell that no neighbour among the 3 x 3 of its class exceeds. Unlike in the paper,
    non-maximum suppression follows: an object cut in two by another may have two peaks.

    Args:
      outputs: The network's output maps.
      score_threshold: The least score of a detection, in [0, 1].
      iou_threshold: The greatest overlap at which two boxes of a class both stay.
      max_candidates: How many peaks of an image are looked at.
      max_detections: K, how many detections are returned.

    Returns:
      `Detections` in pixels of the input.

    >>> heatmap = jnp.full((1, 4, 4, 3), -9.0).at[0, 1, 2, 1].set(9.0)
    >>> outputs = SyntheticOutputs(heatmap, jnp.zeros((1, 4, 4, 2)), jnp.full((1, 4, 4, 2), 0.5))
    >>> found = decode_synthetic(outputs, max_detections=3)
    >>> found.boxes[0, 0].tolist(), int(found.classes[0, 0]), found.valid[0].tolist()
    ([4.0, -4.0, 36.0, 28.0], 1, [True, False, False])
    """
    scores = jax.nn.sigmoid(outputs.heatmap.astype(jnp.float32))
    streams, height, width, classes = scores.shape
    around = jax.lax.reduce_window(
        scores, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    )
    peaks = jnp.where(scores == around, scores, 0.0).reshape(streams, -1)
    top, index = jax.lax.top_k(peaks, min(max_candidates, peaks.shape[1]))
    cell, label = index // classes, index % classes

    def at_peaks(values: jax.Array) -> jax.Array:
        flat = values.reshape(streams, height * width, 2).astype(jnp.float32)
        return jnp.take_along_axis(flat, cell[..., None], axis=1)

    corner = jnp.stack([cell % width, cell // width], axis=-1).astype(jnp.float32)
    centre = STRIDE * (corner + at_peaks(outputs.offset))
    half = 0.5 * _SIZE_UNIT * jnp.exp(at_peaks(outputs.size))
    return non_maximum_suppression(
        jnp.concatenate([centre - half, centre + half], axis=-1),
        top[..., None] * jax.nn.one_hot(label, classes),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_candidates=max_candidates,
        max_detections=max_detections,
    )
