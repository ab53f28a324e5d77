"""Synthetic clips of short actions: some one frame tells, some motion, some the order of events.

A clip is a pure function of a key. An object moves over a noisy background that it enters again on
the other side, so that where it is tells nothing of where it goes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dynvid.models.actions import CLASS_NAMES, FRAMES, SIZE

KINDS = ("appearance",) * 4 + ("motion",) * 4 + ("order",) * 4
"""What tells each class of `CLASS_NAMES`."""

_RED, _BLUE = (205.0, 70.0, 60.0), (60.0, 85.0, 205.0)
_DIRECTIONS = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))  # (dx, dy): left, right, up, down
_FIRST_EVENT = 3  # the earliest frame at which something turns or comes, and from the end likewise


class ActionClips(NamedTuple):
    """Clips and what happens in them.

    Attributes:
      frames: `(N, T, H, W, 3)` uint8, RGB.
      labels: `(N,)` int32, index into `CLASS_NAMES`.
    """

    frames: jax.Array
    labels: jax.Array


def action_clips(
    key: jax.Array,
    *,
    count: int,
    frames: int = FRAMES,
    size: tuple[int, int] = SIZE,
    noise: ArrayLike = 12.0,
    labels: ArrayLike | None = None,
) -> ActionClips:
    """Draws clips.

    Square, triangle, ring and cross are told by one frame, whatever they do. A disc that moves
    left, right, up or down looks alike in every single frame, and in the frames out of order. A
    disc that turns from red to blue, or back, and one that appears or vanishes, at some moment of
    the clip: only the order of the frames before and after tells which.

    Args:
      key: A random key; the same key draws the same clips.
      count: N.
      frames: T, at least 8.
      size: (height, width) in pixels.
      noise: Standard deviation of the sensor noise, grey levels of 255.
      labels: `int[N]`, what is to happen; drawn, all classes alike, where None.

    Returns:
      The clips.

    Raises:
      ValueError: There are fewer than 8 frames.

    >>> clips = action_clips(jax.random.key(0), count=2, labels=[0, 9])
    >>> clips.frames.shape, clips.frames.dtype
    ((2, 16, 64, 64, 3), dtype('uint8'))
    """
    if frames < 8:
        raise ValueError(f"frames must be at least 8, room for an event; got {frames}")
    label_key, key = jax.random.split(key)
    if labels is None:
        labels = jax.random.randint(label_key, (count,), 0, len(CLASS_NAMES), jnp.int32)
    return _clips(
        key, jnp.broadcast_to(jnp.asarray(labels, jnp.int32), (count,)),
        jnp.asarray(noise, jnp.float32), frames=int(frames), size=(int(size[0]), int(size[1])),
    )  # fmt: skip


@jax.jit(static_argnames=("frames", "size"))
def _clips(key, labels, noise, *, frames, size) -> ActionClips:
    def one(key: jax.Array, label: jax.Array) -> jax.Array:
        return _clip(key, label, noise, frames=frames, size=size)

    return ActionClips(jax.vmap(one)(jax.random.split(key, len(labels)), labels), labels)


def _clip(key, label, noise, *, frames: int, size: tuple[int, int]) -> jax.Array:
    """One clip, `(T, H, W, 3)` uint8."""
    height, width = size
    keys = jax.random.split(key, 8)
    kind = label // 4  # 0 appearance, 1 motion, 2 order
    time = jnp.arange(frames, dtype=jnp.float32)[:, None]

    extent = jnp.array([width, height], jnp.float32)
    radius = 0.5 * min(size) * jax.random.uniform(keys[0], minval=0.24, maxval=0.36)
    start = jax.random.uniform(keys[1], (2,)) * extent
    angle, fast = jax.random.uniform(keys[2], (2,))
    aimless = 1.5 * fast * jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)])
    along = jnp.array(_DIRECTIONS)[label % 4]
    aside = 0.5 * (angle - 0.5) * along[::-1]
    velocity = jnp.where(kind == 1, (1.2 + 2.3 * fast) * along + aside, aimless) * min(size) / 64
    centre = jnp.mod(start + velocity * time, extent)  # (T, 2)

    event = jax.random.randint(keys[3], (), _FIRST_EVENT, frames - _FIRST_EVENT + 1)
    after = (time[:, 0] >= event)[:, None]
    plain = _plain_color(keys[4])
    red, blue = jnp.array(_RED), jnp.array(_BLUE)
    before_color = jnp.where(label == 8, red, jnp.where(label == 9, blue, plain))
    after_color = jnp.where(label == 8, blue, jnp.where(label == 9, red, plain))
    shade = jax.random.uniform(keys[5], minval=0.8, maxval=1.15)
    color = shade * jnp.where(after, after_color, before_color)  # (T, 3)
    there = jnp.where(label == 10, after[:, 0], jnp.where(label == 11, ~after[:, 0], True))

    rows = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    columns = jnp.arange(width, dtype=jnp.float32)[None] + 0.5
    dx, dy = (  # the shorter way around, (T, H, W)
        jnp.mod(place - centre[:, axis, None, None] + side / 2, side) - side / 2
        for axis, (place, side) in enumerate(((columns, width), (rows, height)))
    )
    shape = jnp.where(kind == 0, label, 4)
    inside = _inside(shape, dx, dy, radius) & there[:, None, None]
    image = jnp.where(inside[..., None], color[:, None, None], _background(keys[6], size))
    # Sensor noise is alike in all channels: a third of the random numbers.
    image += noise * jax.random.normal(keys[7], (frames, height, width, 1))
    return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)


def _plain_color(key: jax.Array) -> jax.Array:
    """Yellow to cyan: neither red nor blue."""
    hue = jax.random.uniform(key, minval=1 / 6, maxval=1 / 2)
    phase = 2 * jnp.pi * (hue - jnp.array([0.0, 1 / 3, 2 / 3]))
    return 130.0 + 60.0 * jnp.cos(phase)


def _background(key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Smooth noise of two scales, `(H, W, 3)` grey levels."""
    coarse_key, tint_key, fine_key = jax.random.split(key, 3)
    coarse = 25 * jax.random.normal(coarse_key, (4, 4, 1))
    coarse += 12 * jax.random.normal(tint_key, (4, 4, 3))
    fine = 18 * jax.random.normal(fine_key, (12, 12, 1))
    coarse, fine = (jax.image.resize(x, (*size, x.shape[2]), "cubic") for x in (coarse, fine))
    return 115 + coarse + fine


def _inside(shape: jax.Array, dx: jax.Array, dy: jax.Array, radius: jax.Array) -> jax.Array:
    across, down = jnp.abs(dx), jnp.abs(dy)
    distance = jnp.sqrt(dx**2 + dy**2)
    square = jnp.maximum(across, down) <= 0.85 * radius
    triangle = (2 * across <= dy + radius) & (dy <= 0.8 * radius)  # its tip is up
    ring = (distance <= radius) & (distance >= 0.5 * radius)
    cross = (jnp.minimum(across, down) <= 0.3 * radius) & (jnp.maximum(across, down) <= radius)
    return jnp.select(
        [shape == 0, shape == 1, shape == 2, shape == 3],
        [square, triangle, ring, cross],
        distance <= radius,
    )
