"""Frame differencing: which pixels changed, and how much of a scene stayed the same.

DynCNN, section 3.1 (comparison layer), Eq. 1-2.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dynvid.ops.warp import resize_flow, warp

Channels = Literal["any", "gray", "mean"]

_LUMA = (299, 587, 114)  # thousandths, Rec. 601


def frame_difference(
    frame: jax.Array, reference: jax.Array, *, channels: Channels = "any"
) -> jax.Array:
    """Measures how far each pixel of a frame is from the reference.

    `|I_t - I_ref|` (DynCNN, Eq. 1), with the channels taken together by

    - `"any"`: `max_c |I_t,c - I_ref,c|`,
    - `"gray"`: `|Y(I_t) - Y(I_ref)|`, `Y = 0.299 R + 0.587 G + 0.114 B` (Rec. 601),
    - `"mean"`: `mean_c |I_t,c - I_ref,c|`.

    Args:
      frame: `(S, H, W, C)`, floating or uint8; `C = 3` (red, green, blue) for `"gray"`.
      reference: Same shape and dtype.
      channels: How the channels of a pixel are taken together.

    Returns:
      `(S, H, W)` in the frame's unit: uint8 for `"any"` on uint8 frames, else float32 or wider. NaN
      where a pixel of either side holds NaN.

    Raises:
      ValueError: The frames differ in shape or dtype, are neither floating nor uint8, or do not
        have the channels that `"gray"` asks for; an unknown value of `channels`.

    Exact for uint8, `"any"`. Approximate for `"gray"` because colours of equal luma are equal to
    it.

    >>> frame = jnp.array([[[[10, 250, 0]]]], jnp.uint8)
    >>> reference = jnp.array([[[[12, 5, 0]]]], jnp.uint8)
    >>> frame_difference(frame, reference)
    Array([[[245]]], dtype=uint8)
    """
    _check(frame, reference, channels)
    if channels == "any":
        return functools.reduce(jnp.maximum, _split(_distance(frame, reference)))
    signed = _split(_signed(frame, reference))
    if channels == "mean":
        return functools.reduce(jnp.add, map(jnp.abs, signed)) / frame.shape[-1]
    weighted = (weight * colour for weight, colour in zip(_LUMA, signed, strict=True))
    return jnp.abs(functools.reduce(jnp.add, weighted)) / 1000


def changed_pixels(
    frame: jax.Array, reference: jax.Array, *, threshold: ArrayLike, channels: Channels = "any"
) -> jax.Array:
    """Marks the pixels of a frame that differ from the reference by the threshold or more.

    `D = 1 where |I_t - I_ref| >= theta and > 0, else 0` (DynCNN, Eq. 1-2): a difference equal to
    the threshold counts as changed, a difference of zero never does. So a threshold of zero marks
    exactly what differs. NaN on either side, or on both, counts as changed.

    Args:
      frame: `(S, H, W, C)`, floating or uint8.
      reference: Same shape and dtype.
      threshold: Theta, in the frame's unit (0..255 for uint8); a number, or `(S,)`, one a stream.
      channels: How the channels of a pixel are taken together, see `frame_difference`.

    Returns:
      `bool[S, H, W]`.

    Raises:
      ValueError: As `frame_difference`.

    Exact for uint8. On floating frames the difference is rounded before it is compared.

    >>> frame = jnp.array([[[[0], [19], [20], [255]]]], jnp.uint8)
    >>> changed_pixels(frame, jnp.zeros_like(frame), threshold=20)
    Array([[[False, False,  True,  True]]], dtype=bool)
    >>> changed_pixels(frame, jnp.zeros_like(frame), threshold=0)
    Array([[[False,  True,  True,  True]]], dtype=bool)
    """
    if channels != "any":
        return _reaches(frame_difference(frame, reference, channels=channels), threshold)
    _check(frame, reference, channels)
    # The same as comparing the maximum, in one pass: XLA:CPU reduces booleans ten times faster.
    return jnp.any(_reaches(_distance(frame, reference), threshold), axis=-1)


def scene_similarity(
    frame: jax.Array, reference: jax.Array, *, threshold: ArrayLike, channels: Channels = "any"
) -> jax.Array:
    """Measures the share of a frame's pixels that did not change.

    `1 - mean(D)` (DynCNN, section 5: scene similarity, there a mean over the frames of a video).

    Args:
      frame: `(S, H, W, C)`, floating or uint8.
      reference: Same shape and dtype.
      threshold: Theta, in the frame's unit.
      channels: How the channels of a pixel are taken together, see `frame_difference`.

    Returns:
      `float32[S]`, from 0 (every pixel changed) to 1 (none did).

    Raises:
      ValueError: As `frame_difference`.

    >>> frame = jnp.array([[[[0], [19], [20], [255]]]], jnp.uint8)
    >>> scene_similarity(frame, jnp.zeros_like(frame), threshold=20)
    Array([0.5], dtype=float32)
    """
    changed = changed_pixels(frame, reference, threshold=threshold, channels=channels)
    pixels = changed.shape[1] * changed.shape[2]
    same = pixels - jnp.sum(changed, axis=(1, 2), dtype=jnp.int32)
    return same.astype(jnp.float32) / pixels


def unexplained_difference(
    current: jax.Array, key: jax.Array, flow: jax.Array, size: Sequence[int], *, block: int = 1
) -> jax.Array:
    """Measures what a motion field leaves unexplained, position by position of a coarser grid.

    `r(p) = mean over the pixels q of p of mean_c |I_i,c(q) - W(I_k, M)_c(q)|`, where q belongs to
    the position `floor((q + 1/2) h / H)`: small where things moved as the field says, large where
    something was uncovered, came in or changed. Not in the paper, which learns what to trust.

    Args:
      current: I_i, `(S, H, W, C)`, uint8 or floating.
      key: I_k, same shape and dtype.
      flow: M, `(S, a, b, 2)` floating, (dx, dy) in pixels of its own grid, from I_i to I_k.
      size: (h, w) of the coarser grid, at most (H, W).
      block: A side in pixels that divides H and W: both frames are first averaged over such
        blocks, which stand for the pixels then. Noise and what is finer than features are made of
        count less, and it is so much less work.

    Returns:
      `(S, h, w)` floating, in the unit of the frames. What comes from outside the key frame counts
      as zero there.

    Raises:
      ValueError: The shapes or dtypes do not fit, or the grid is not coarser.

    >>> key = jnp.zeros((1, 2, 4, 1)).at[0, :, 0].set(8.0)
    >>> right = jnp.zeros((1, 2, 4, 2)).at[..., 0].set(-1.0)
    >>> unexplained_difference(jnp.roll(key, 1, axis=2), key, right, (1, 2)).tolist()
    [[[0.0, 0.0]]]
    >>> unexplained_difference(jnp.roll(key, 3, axis=2), key, right, (1, 2)).tolist()
    [[[4.0, 4.0]]]
    """
    _check(current, key, "mean")
    if block < 1 or any(length % block for length in current.shape[1:3]):
        raise ValueError(
            f"block must divide the sides of frames of {tuple(current.shape[1:3])}; got {block}"
        )
    height, width = (length // block for length in current.shape[1:3])
    if not all(1 <= n <= length for n, length in zip(size, (height, width), strict=True)):
        raise ValueError(
            f"size must be a grid of 1 to {(height, width)} positions; got {tuple(size)}"
        )
    wide = jnp.promote_types(current.dtype, jnp.float32)
    current, key = (_averaged(x.astype(wide), block) for x in (current, key))
    warped = warp(key, resize_flow(flow, (height, width)))
    difference = frame_difference(current, warped, channels="mean")
    for axis, count in ((1, size[0]), (2, size[1])):
        length = difference.shape[axis]
        at = (2 * np.arange(length) + 1) * count // (2 * length)
        share = (at == np.arange(count)[:, None]) / np.bincount(at, minlength=count)[:, None]
        share = jnp.asarray(share, difference.dtype)
        difference = jnp.moveaxis(jnp.tensordot(share, difference, (1, axis)), 0, axis)
    return difference


def trusted_flow(
    current: jax.Array, key: jax.Array, flow: jax.Array, *, margin: float, block: int = 1
) -> jax.Array:
    """A motion field where it explains the current frame better than no motion does; else zero.

    `M(p) where r_0(p) - r_M(p) > margin`, r the `unexplained_difference` on the grid of the field.
    Flow networks see motion in what stands still, in noise and on even ground; where a camera is
    fixed, that is most of what they see. Not in the papers.

    Args:
      current: I_i, `(S, H, W, C)`, uint8 or floating.
      key: I_k, same shape and dtype.
      flow: M, `(S, h, w, 2)` floating, (dx, dy) in pixels of its own grid, from I_i to I_k.
      margin: By how much the motion has to be better, in the unit of the frames.
      block: As of `unexplained_difference`.

    Returns:
      `(S, h, w, 2)`.

    Raises:
      ValueError: As `unexplained_difference`.

    >>> key = jnp.zeros((1, 2, 4, 1)).at[0, :, 0].set(8.0)
    >>> right = jnp.zeros((1, 1, 2, 2)).at[..., 0].set(-0.5)
    >>> trusted_flow(jnp.roll(key, 1, axis=2), key, right, margin=0)[0, 0, :, 0].tolist()
    [-0.5, 0.0]
    >>> trusted_flow(key, key, right, margin=0)[0, 0, :, 0].tolist()
    [0.0, 0.0]
    """
    grid = (flow.shape[1], flow.shape[2])
    moved, still = (
        unexplained_difference(current, key, m, grid, block=block)
        for m in (flow, jnp.zeros((len(flow), 1, 1, 2), flow.dtype))
    )
    return jnp.where((still - moved > margin)[..., None], flow, 0)


def _averaged(image: jax.Array, block: int) -> jax.Array:
    """The means over square blocks of pixels."""
    if block == 1:
        return image
    streams, height, width, channels = image.shape
    rows = image.reshape(streams, height, width // block, block * channels)
    rows = functools.reduce(
        jnp.add, [rows[..., i * channels : (i + 1) * channels] for i in range(block)]
    )
    blocks = rows.reshape(streams, height // block, block, width // block, channels)
    return functools.reduce(jnp.add, [blocks[:, :, i] for i in range(block)]) / block**2


def _reaches(difference: jax.Array, threshold: ArrayLike) -> jax.Array:
    if jnp.ndim(threshold):
        threshold = jnp.reshape(threshold, (-1, *(1,) * (difference.ndim - 1)))
    if difference.dtype == jnp.uint8:
        # Compared as 8 bits: the smallest whole number that is not below the threshold.
        least = jnp.ceil(jnp.asarray(threshold, jnp.float32))
        bound = jnp.clip(least, 1, 255).astype(jnp.uint8)
        return (difference >= bound) & (least <= 255)
    return ~(difference < threshold) & (difference != 0)  # both True for NaN


def _distance(frame: jax.Array, reference: jax.Array) -> jax.Array:
    if frame.dtype == jnp.uint8:  # does not wrap around, and stays 8 bits wide
        return jnp.maximum(frame, reference) - jnp.minimum(frame, reference)
    return jnp.abs(_signed(frame, reference))


def _signed(frame: jax.Array, reference: jax.Array) -> jax.Array:
    if frame.dtype == jnp.uint8:
        return frame.astype(jnp.int32) - reference.astype(jnp.int32)
    wide = jnp.promote_types(frame.dtype, jnp.float32)
    difference = frame.astype(wide) - reference.astype(wide)
    # Equal infinities are no difference, though they subtract to NaN.
    return jnp.where(frame == reference, jnp.zeros((), wide), difference)


def _split(image: jax.Array) -> list[jax.Array]:
    # A handful of slices: XLA:CPU reduces over a short last axis an order of magnitude slower.
    return [image[..., channel] for channel in range(image.shape[-1])]


def _check(frame: jax.Array, reference: jax.Array, channels: str) -> None:
    if channels not in ("any", "gray", "mean"):
        raise ValueError(f"channels must be 'any', 'gray' or 'mean'; got {channels!r}")
    if frame.shape != reference.shape or frame.dtype != reference.dtype:
        raise ValueError(
            f"reference must be {frame.dtype}{list(frame.shape)} as frame; got "
            f"{reference.dtype}{list(reference.shape)}"
        )
    if frame.ndim != 4 or not (
        frame.dtype == jnp.uint8 or jnp.issubdtype(frame.dtype, jnp.floating)
    ):
        raise ValueError(
            f"frame must be floating or uint8 (S, H, W, C); got {frame.dtype}{list(frame.shape)}"
        )
    if channels == "gray" and frame.shape[-1] != 3:
        raise ValueError(
            f"frame must have 3 channels where channels is 'gray'; got {frame.shape[-1]}"
        )
