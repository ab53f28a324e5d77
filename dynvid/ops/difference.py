"""Frame differencing: which pixels changed, and how much of a scene stayed the same.

DynCNN, section 3.1 (comparison layer), Eq. 1-2; and `camera_changes`, which knows of a camera's
noise and of its exposure.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from dynvid.ops import masks
from dynvid.ops.warp import resize_flow, warp

Channels = Literal["any", "gray", "mean"]

BLOCK = 8
"""Pixels a side of the blocks that `camera_changes` takes over whole."""

_QUARTER = 4  # pixels a side of what small differences are averaged over
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


class ChangeRule(NamedTuple):
    """What counts as a change: a pair of pure functions, for `dynvid.incremental(changes=...)`.

    Attributes:
      init: `init(frames) -> seen`: what the rule keeps of the first frames, a pytree of arrays
        whose leading axis is the streams.
      step: `step(seen, frames, reference, threshold) -> (seen, changed, frames)`: what it keeps of
        later frames, which pixels changed, `bool[S, H, W]`, and what the reference takes over of
        them there, of the frames' shape and dtype. `threshold` is `float32[S]`.
    """

    init: Callable[[jax.Array], Any]
    step: Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[Any, jax.Array, jax.Array]]


class Seen(NamedTuple):
    """What `camera_changes` keeps between frames; on a sample of a frame's pixels and means.

    Attributes:
      pixels: The last frame's, `uint8[S, n, m]`.
      means: The last frame's, sums over quarters of a block and the channels, `int16[S, n, m]`.
      noise: The standard deviation of the difference of two frames, for each of 8 levels of
        brightness, `float32[S, 8]`, in grey levels.
      mean_noise: The same of means, `float32[S]`.
      drift: How much brighter frames have lately been than the reference, `float32[S]`.
      count: How many frames the noise was measured on, `int32[S]`.
    """

    pixels: jax.Array
    means: jax.Array
    noise: jax.Array
    mean_noise: jax.Array
    drift: jax.Array
    count: jax.Array


def camera_changes(
    *,
    noise: float = 8.0,
    mean: float = 0.3,
    mean_noise: float = 5.0,
    most: float = 3.0,
    gain: bool = True,
) -> ChangeRule:
    """A rule of change that knows a camera's noise and its exposure.

    Not in the papers. With theta the threshold and sigma the standard deviation of the difference
    of two frames without motion, of pixels and of means over 4x4 pixels and all channels:

    - A block of 8x8 pixels has changed where `|I_t - I_ref| >= clip(noise sigma(level), theta, most
      theta)` in any of its pixels and channels, with the level its middle pixel has in the
      reference.
    - So it has where the mean difference of a quarter of it, with its sign, is at least
      `clip(mean_noise sigma_mean, mean theta, most mean theta)`: what is faint but agrees over a
      neighbourhood.
    - It is taken over whole: a mixture of old and new pixels is a picture that no camera took.
    - Sigma is 3.14 times the lower quartile of the differences of consecutive frames, to which what
      moves adds little, averaged over frames; it rises more slowly than it falls. Where means move
      nearly as much as pixels it is the camera that moves, and that frame is not counted.
    - Where the frame is the reference with another gain and offset (`exposure`), I_t is brought to
      the reference's before all that. Once such a change stays, beyond 4 grey levels on average,
      the frame is taken over whole, as it is.

    Args:
      noise: How many standard deviations of its noise a pixel must move by.
      mean: The threshold of means, in thresholds of pixels.
      mean_noise: How many standard deviations of their noise means must move by.
      most: How many times theta, and mean theta, noise may raise a threshold to at most. So theta
        bounds what is not seen, and a theta of zero leaves nothing unseen.
      gain: Whether to look for changes of exposure.

    Returns:
      A `ChangeRule` for uint8 frames; its `seen` is a `Seen`.

    Exact in this sense: where it says that nothing changed, frame (brought to the reference's
    exposure) and reference differ by less than `most theta` at every pixel, and not at all where
    theta is zero. Approximate because what moves by less is not seen.

    >>> rule = camera_changes()
    >>> frames = jnp.full((1, 16, 16, 3), 100, jnp.uint8)
    >>> moved = frames.at[:, 9, 9].set(120)
    >>> _, changed, _ = rule.step(rule.init(frames), moved, frames, jnp.array([15.0]))
    >>> changed.sum().item(), changed[0, 8:, 8:].all().item()
    (64, True)
    """

    def init(frames: jax.Array) -> Seen:
        if frames.ndim != 4 or frames.dtype != jnp.uint8:
            raise ValueError(
                "camera_changes is for frames uint8 (S, H, W, C), as cameras give them; got "
                f"{frames.dtype}{list(frames.shape)}"
            )
        streams = len(frames)
        return Seen(
            *_sample(frames),
            noise=jnp.zeros((streams, _LEVELS), jnp.float32),
            mean_noise=jnp.zeros(streams, jnp.float32),
            drift=jnp.zeros(streams, jnp.float32),
            count=jnp.zeros(streams, jnp.int32),
        )

    def step(
        seen: Seen, frames: jax.Array, reference: jax.Array, threshold: jax.Array
    ) -> tuple[Seen, jax.Array, jax.Array]:
        pixels, means = _sample(frames)
        seen = _with_noise(seen, pixels, means, frames.shape[-1])
        adopted = jnp.zeros(len(frames), bool)
        if gain:
            per_level = _QUARTER**2 * frames.shape[-1]
            of_reference = _sample(reference)[1]
            slope, offset, shift = exposure(means / per_level, of_reference / per_level)
            drift = seen.drift + (shift - seen.drift) / _MEMORY
            steady = jnp.abs(shift - drift) < _DRIFT / 2
            adopted = (jnp.abs(drift) >= _DRIFT) & steady
            seen = seen._replace(drift=jnp.where(adopted, 0, drift))
            as_it_is = adopted | (threshold <= 0)
            slope, offset = jnp.where(as_it_is, 1, slope), jnp.where(as_it_is, 0, offset)
            frames = lax.cond(
                jnp.any((slope != 1) | (offset != 0)),
                lambda: with_exposure(frames, reference, slope, offset),
                lambda: frames,
            )
        seen = seen._replace(pixels=pixels, means=means)
        rows, columns = (
            np.minimum(np.arange(0, side, BLOCK) + BLOCK // 2, side - 1)
            for side in frames.shape[1:3]
        )
        middle = reference[:, rows][:, :, columns, reference.shape[-1] // 2]
        level = jnp.take_along_axis(
            seen.noise, (middle // (256 // _LEVELS)).reshape(len(frames), -1).astype(int), axis=1
        ).reshape(middle.shape)
        floor = threshold[:, None, None]
        blocks = changed_blocks(
            frames,
            reference,
            threshold=jnp.clip(noise * level, floor, most * floor),
            mean_threshold=jnp.clip(
                mean_noise * seen.mean_noise, mean * threshold, most * mean * threshold
            ),
        )
        # Without a barrier XLA:CPU fuses what makes the blocks into each pixel that reads them.
        blocks = lax.optimization_barrier(blocks | adopted[:, None, None])
        return seen, masks.from_cells(blocks, BLOCK, frames.shape[1:3]), frames

    return ChangeRule(init, step)


_LEVELS = 8  # of brightness that noise is told apart by
_SPACING = 16  # rows between those of the sample
_MEMORY = 8.0  # frames that noise, where it falls, and drift are averaged over
_DRIFT = 4.0  # grey levels


def changed_blocks(
    frame: jax.Array, reference: jax.Array, *, threshold: ArrayLike, mean_threshold: ArrayLike
) -> jax.Array:
    """Marks the blocks of 8x8 pixels in which a pixel, or a quarter's mean, moved far enough.

    `D = any |I_t - I_ref| >= theta, or any |mean over 4x4 and channels of (I_t - I_ref)| >=
    theta_mean`, differences of zero never. Means keep their sign, so that noise cancels in them: a
    mean over 4x4 is four times quieter than a pixel.

    Args:
      frame: `uint8[S, H, W, C]`.
      reference: Same shape.
      threshold: Theta in grey levels: a number, `(S,)`, or one a block, `(S, h, w)`.
      mean_threshold: Likewise. What lies beyond the frame counts as not moved.

    Returns:
      `bool[S, ceil(H / 8), ceil(W / 8)]`.

    >>> frame = jnp.full((1, 8, 16, 1), 100, jnp.uint8).at[:, :4, :4].add(3)
    >>> reference = jnp.full_like(frame, 100)
    >>> changed_blocks(frame, reference, threshold=5, mean_threshold=3).tolist()
    [[[True, False]]]
    >>> changed_blocks(frame, reference, threshold=5, mean_threshold=3.1).tolist()
    [[[False, False]]]
    """
    size = frame.shape[1:3]
    pads = [(0, 0), *((0, -side % BLOCK) for side in size), (0, 0)]
    if any(any(pair) for pair in pads):
        frame, reference = jnp.pad(frame, pads), jnp.pad(reference, pads)
    highest = _in_cells(jnp.maximum, _distance(frame, reference), BLOCK)
    signed = frame.astype(jnp.int16) - reference.astype(jnp.int16)
    sums = jnp.abs(_in_cells(jnp.add, signed, _QUARTER))
    # 16 bits hold the sum over 4x4 pixels of up to 8 channels.
    largest = _in_cells(jnp.maximum, sums[..., None], BLOCK // _QUARTER)
    count = _QUARTER**2 * frame.shape[-1]
    far = highest >= jnp.maximum(_by_block(threshold), 1)
    return far | (largest >= jnp.maximum(jnp.ceil(_by_block(mean_threshold) * count), 1))


def exposure(means: jax.Array, reference: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds the gain and the offset by which a frame as a whole differs from the reference.

    The line `I_t = a I_ref + b` of least absolute residuals, which what moves in less than half of
    the frame does not bend, by reweighted least squares. It is taken for a change of exposure where
    it explains at least 40% of the mean difference (of each at most 16 grey levels), that was
    above half a grey level, with a gain of 0.7 to 1.4.

    Args:
      means: Of parts of the frame, `(S, n, m)` in grey levels.
      reference: Of the same parts of the reference.

    Returns:
      Gain a, offset b, and how much brighter the frame is on average, `float32[S]` each: 1, 0 and
      0 where it is no change of exposure.

    >>> reference = jnp.arange(10.0, 202.0, 3.0).reshape(1, 8, 8)
    >>> gain, offset, shift = exposure(1.1 * reference - 2, reference)
    >>> print(f"{gain[0]:.2f} {offset[0]:.1f} {shift[0]:.1f}")
    1.10 -2.0 8.5
    >>> gain, offset, _ = exposure(reference.at[:, :2].add(40), reference)
    >>> gain.item(), offset.item()
    (1.0, 0.0)
    """
    means, reference = (x.reshape(len(x), -1).astype(jnp.float32) for x in (means, reference))
    usable = (means > 4) & (means < 251) & (reference > 4) & (reference < 251)  # not clipped
    x, y = reference - 128, means - reference
    share = usable / jnp.maximum(jnp.sum(usable, 1, keepdims=True), 1)
    moments = jnp.stack([jnp.ones_like(x), x, y, x * x, x * y], axis=2)
    slope = offset = jnp.zeros((len(x), 1))
    for _ in range(8):
        weight = share / jnp.maximum(jnp.abs(y - slope * x - offset), 0.5)
        total, *sums = jnp.moveaxis(jnp.einsum("sn,snm->sm", weight, moments), 1, 0)[..., None]
        mean_x, mean_y, mean_xx, mean_xy = (z / jnp.maximum(total, 1e-9) for z in sums)
        # One more in the denominator: a picture without contrast tells no gain.
        slope = (mean_xy - mean_x * mean_y) / (jnp.maximum(mean_xx - mean_x * mean_x, 0) + 1)
        offset = mean_y - slope * mean_x

    def residual(z: jax.Array) -> jax.Array:
        return jnp.sum(share * jnp.minimum(jnp.abs(z), 16), 1)

    before, after = residual(y), residual(y - slope * x - offset)
    slope, offset = slope[:, 0], offset[:, 0]
    found = (before > 0.5) & (after < 0.6 * before) & (slope > -0.3) & (slope < 0.4)
    shift = jnp.sum(share * (slope[:, None] * x + offset[:, None]), 1)
    gain, offset = 1 + slope, offset - 128 * slope
    return jnp.where(found, gain, 1), jnp.where(found, offset, 0), jnp.where(found, shift, 0)


def with_exposure(
    frame: jax.Array, reference: jax.Array, gain: jax.Array, offset: jax.Array
) -> jax.Array:
    """Brings a frame to the exposure of the reference: `(I_t - b) / a`, rounded.

    What the camera clipped may be anything beyond: there it is the reference where that is.

    Args:
      frame: I_t, `uint8[S, H, W, C]`.
      reference: Same shape.
      gain: The factor a, `float32[S]`.
      offset: b, in grey levels, `float32[S]`.

    Returns:
      `uint8[S, H, W, C]`; the frame itself where a is 1 and b is 0.

    >>> bright = jnp.array([[[[110], [255]]]], jnp.uint8)
    >>> reference = jnp.array([[[[100], [240]]]], jnp.uint8)
    >>> one = jnp.ones(1)
    >>> with_exposure(bright, reference, 1.1 * one, 0 * one).tolist()
    [[[[100], [240]]]]
    """
    gain, offset = (x[:, None, None, None] for x in (gain, offset))
    level = jnp.round((frame.astype(jnp.float32) - offset) / gain)
    level = jnp.clip(level, 0, 255).astype(jnp.uint8)
    changed = (gain != 1) | (offset != 0)
    level = jnp.where((frame >= 254) & changed, jnp.maximum(level, reference), level)
    return jnp.where((frame <= 1) & changed, jnp.minimum(level, reference), level)


def _sample(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pixels and quarters' sums of a sixteenth of a frame's rows, every eighth column."""
    spacing = min(_SPACING, max(_QUARTER, frames.shape[1] // _QUARTER * _QUARTER))
    height = frames.shape[1] // _QUARTER * _QUARTER
    width = (
        frames.shape[2] // (2 * _QUARTER) * 2 * _QUARTER or frames.shape[2] // _QUARTER * _QUARTER
    )
    rows = [frames[:, k:height:spacing, :width] for k in range(_QUARTER)]
    total = functools.reduce(jnp.add, (row.astype(jnp.int16) for row in rows))
    flat = total.reshape(*total.shape[:2], width * frames.shape[3])
    step = _QUARTER * frames.shape[3]
    apart = 2 * step if width >= 2 * _QUARTER else step
    sums = functools.reduce(jnp.add, (flat[..., k::apart] for k in range(step)))
    pixels = rows[0][:, :, :: 2 * _QUARTER, frames.shape[3] // 2]
    return lax.optimization_barrier((pixels, sums))


def _with_noise(seen: Seen, pixels: jax.Array, means: jax.Array, channels: int) -> Seen:
    """Measures the noise once more."""
    difference = jnp.abs(pixels.astype(jnp.int16) - seen.pixels.astype(jnp.int16))
    level = (seen.pixels // (256 // _LEVELS)).astype(jnp.int32)
    counts = _histogram(difference, level, _LEVELS)
    total = jnp.sum(counts, axis=1, keepdims=True)
    # A level that few pixels have has the noise of all.
    few = jnp.sum(counts, -1, keepdims=True) < _FEW
    of_levels = _SPREAD * _quartile(jnp.where(few, total, counts))
    of_all = _SPREAD * _quartile(total[:, 0])
    finer = 16 / (_QUARTER**2 * channels)  # means are counted in sixteenths of a grey level
    moved = jnp.abs(means - seen.means) * finer
    counted = _histogram(moved.astype(jnp.int16), jnp.zeros(moved.shape, jnp.int32), 1)
    of_means = _SPREAD * _quartile(counted[:, 0]) / 16
    # Noise cancels in a mean over 16 pixels; what the camera's own motion shifts does not.
    still = of_means < jnp.minimum(0.55 * of_all + 0.1, _LOUDEST)

    def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
        count, counts_now = (x.reshape(-1, *(1,) * (old.ndim - 1)) for x in (seen.count, still))
        rate = jnp.where(new > old, _RISE, 1 / _MEMORY)
        return old + jnp.where(counts_now, jnp.maximum(rate, 1 / (count + 1.0)), 0) * (new - old)

    return seen._replace(
        noise=averaged(seen.noise, of_levels),
        mean_noise=averaged(seen.mean_noise, of_means),
        count=seen.count + still,
    )


_SPREAD = 1 / 0.3186  # standard deviations in the lower quartile of absolute normal values
_RISE = 1 / 32
_LOUDEST = 8.0  # grey levels: no camera's means are that noisy
_FEW = 64  # pixels
_BINS = 64


def _histogram(values: jax.Array, group: jax.Array, groups: int) -> jax.Array:
    """How often each whole number occurs in each group, `float32[S, groups, bins]`.

    As a product of two one-hot matrices, where XLA:CPU takes a microsecond for each value that it
    scatters.
    """
    values, group = (x.reshape(len(x), -1, 1) for x in (values, group))
    value_is = (jnp.minimum(values, _BINS - 1) == jnp.arange(_BINS)).astype(jnp.float32)
    group_is = (group == jnp.arange(groups)).astype(jnp.float32)
    return jnp.einsum("sng,snb->sgb", group_is, value_is)


def _quartile(counts: jax.Array) -> jax.Array:
    """The lower quartile of rounded numbers >= 0, of their histogram along the last axis.

    Between the bins it is interpolated: n stands for all from n - 1/2 to n + 1/2.
    """
    cumulated = jnp.cumsum(counts, axis=-1)
    share = cumulated[..., -1:] / 4
    at = jnp.sum(cumulated < share, axis=-1, keepdims=True)
    inside = jnp.take_along_axis(counts, at, axis=-1)
    before = jnp.take_along_axis(cumulated, at, axis=-1) - inside
    low = jnp.maximum(at - 0.5, 0)
    return (low + (at + 0.5 - low) * (share - before) / jnp.maximum(inside, 1))[..., 0]


def _by_block(threshold: ArrayLike) -> jax.Array:
    array = jnp.asarray(threshold, jnp.float32)
    return array[:, None, None] if array.ndim == 1 else array


def _in_cells(
    combine: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, side: int
) -> jax.Array:
    """Joins the values of each cell and all channels, `(S, H, W, C)` to `(S, H / n, W / n)`.

    By rows, whose slices lie together in memory, then by columns.
    """
    rows = functools.reduce(combine, (x[:, k::side] for k in range(side)))
    flat = rows.reshape(*rows.shape[:2], -1)
    step = side * x.shape[3]
    return functools.reduce(combine, (flat[..., k::step] for k in range(step)))


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
