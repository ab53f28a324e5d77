"""SPyNet, optical flow from coarse to fine (Ranjan and Black, CVPR 2017), as a plain function."""

import jax
import jax.numpy as jnp
from jax import lax

from dynvid.models.modules import unit_frames
from dynvid.ops.warp import Motion, warp
from dynvid.types import Frames, Params

LEVELS = 6
"""How many levels there are weights for."""

LAYERS = ((8, 32), (32, 64), (64, 32), (32, 16), (16, 2))
"""Input and output channels of the 7x7 convolutions of every level."""

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, red, green and blue
_DEVIATION = (0.229, 0.224, 0.225)
_COARSEST = 32  # the longer side at which the published pyramid ends


def spynet(params: Params, current: Frames, key: Frames, *, levels: int | None = None) -> jax.Array:
    """Estimates the motion from one frame to another (Ranjan and Black 2017, Eq. 1-4).

    From the coarsest level on, each network G_k sees the frame, the other frame warped by what is
    known, and that: `V_k = u(V_{k-1}) + G_k(I, warp(J, u(V_{k-1})), u(V_{k-1}))`, with u for
    bilinear upsampling by two and doubling.

    Args:
      params: What `load_spynet` returns: for each level, from coarse to fine, the `kernel`
        `(7, 7, inputs, outputs)` and `bias` of five convolutions.
      current: `(S, H, W, 3)` RGB, uint8 or floating in [0, 1].
      key: The frame that the flow points to, likewise.
      levels: How many levels to run, from the coarsest; None runs all that the frames' size has.

    Returns:
      M `(S, h, w, 2)`, (dx, dy) in pixels of its own grid, with current(p) ~ key(p + M(p)). As in
      the published code, the frames are halved until the longer side is 32 pixels or less, at most
      five times: n halvings make n + 1 levels, and `levels` of them `h = floor(H / 2^(n + 1 -
      levels))`.

    Raises:
      ValueError: The frames' shapes do not fit or `levels` is more than there are.

    Approximate because it is learned. Where the published code resizes frames to multiples of 32,
    here an odd row or column is left out when halving, and the flow at its place repeated from
    beside it. Beyond the border, frames are warped as their edge, as in the published training.

    >>> spynet([], jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 32, 3)))
    Traceback (most recent call last):
    ...
    ValueError: key must have the shape of current, (1, 64, 64, 3); got (1, 64, 32, 3)
    """
    return spynet_motion(params, current, key, levels=levels).flow


def spynet_motion(
    params: Params, current: Frames, key: Frames, *, levels: int | None = None
) -> Motion:
    """SPyNet's motion together with features that a decision can be made from.

    Args:
      params: As of `spynet`.
      current: Likewise.
      key: Likewise.
      levels: Likewise.

    Returns:
      `Motion` without a scale. Its features, `(S, h, w, 21)` on the grid of the flow, are what the
      last network knows once it has compared both frames: its fourth layer after the activation
      (16), the flow (2), and how far the warped key is from the current frame (3).

    Raises:
      ValueError: As `spynet`.

    >>> layer = lambda a, b: {"kernel": jnp.zeros((7, 7, a, b)), "bias": jnp.zeros(b)}
    >>> params = [[layer(*size) for size in LAYERS]] * LEVELS
    >>> frames = jnp.zeros((1, 64, 64, 3))
    >>> spynet_motion(params, frames, frames, levels=1).features.shape
    (1, 32, 32, 21)
    """
    if current.ndim != 4 or current.shape[3] != 3:
        raise ValueError(f"current must be (S, H, W, 3); got {tuple(current.shape)}")
    if key.shape != current.shape:
        raise ValueError(
            f"key must have the shape of current, {tuple(current.shape)}; got {tuple(key.shape)}"
        )
    first, second = [_normalized(current)], [_normalized(key)]
    while max(first[-1].shape[1:3]) > _COARSEST and len(first) < LEVELS:
        first.append(_halved(first[-1]))
        second.append(_halved(second[-1]))
    if levels is None:
        levels = len(first)
    if not 1 <= levels <= len(first):
        raise ValueError(
            f"levels must be 1 to {len(first)} for frames of {current.shape[1]} x "
            f"{current.shape[2]}; got {levels}"
        )
    if min(first[-1].shape[1:3]) < 2:
        raise ValueError(
            f"current must be at least 2 pixels each way when halved {len(first) - 1} times; "
            f"got {tuple(current.shape)}"
        )
    here, there = first[-1], second[-1]
    x = flow = jnp.zeros((*here.shape[:3], 2), here.dtype)
    for level in range(levels):
        here, there = first[-1 - level], second[-1 - level]
        if level:
            flow = _upsampled(flow, (here.shape[1], here.shape[2]))
            there = warp(there, flow, border="edge")
        x = jnp.concatenate([here, there, flow], -1)
        for layer in params[level][:-1]:
            x = jax.nn.relu(_convolved(x, layer))
        flow = flow + _convolved(x, params[level][-1])
    return Motion(flow, features=jnp.concatenate([x, flow, jnp.abs(here - there)], -1))


def _convolved(x: jax.Array, layer: Params) -> jax.Array:
    y = lax.conv_general_dilated(
        x,
        layer["kernel"],
        window_strides=(1, 1),
        padding=((3, 3), (3, 3)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + layer["bias"]


def _normalized(frames: jax.Array) -> jax.Array:
    frames = unit_frames(frames)
    mean, deviation = (jnp.array(v, frames.dtype) for v in (_MEAN, _DEVIATION))
    return (frames - mean) / deviation


def _halved(x: jax.Array) -> jax.Array:
    """The mean over 2x2; an odd last row or column is left out."""
    total = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return total / 4


def _upsampled(flow: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Twice the flow at twice the size, corners on corners, its edge repeated up to `size`.

    The networks are trained on corners on corners, where dynvid aligns the pixels' areas.
    """
    _, height, width, _ = flow.shape
    scale = jnp.array([(2 * height - 1) / (height - 1), (2 * width - 1) / (width - 1)])
    twice = jax.vmap(
        lambda x: jax.image.scale_and_translate(
            x,
            (2 * height, 2 * width, 2),
            (0, 1),
            scale,
            (1 - scale) / 2,
            "linear",
            antialias=False,
        )
    )(2 * flow)
    rows, columns = size[0] - 2 * height, size[1] - 2 * width
    return jnp.pad(twice, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge")
