"""Synthetic drives through a street, with exact labels and motion of every pixel.

A `Drive` is a frozen pytree drawn from a key; `render_drive(drive, t)` is a pure function of both:
any frame can be had at random, and many at once under `jax.vmap`. The street never ends: what
stands along it is decided by integer hashes of the cells of a grid, not stored.

How it is drawn: everything but the ground and the sky is an upright plane, across the road (the
rear of a car, a tree) or along it (house fronts, the side of a car). The camera pitches by moving
its horizon, which keeps upright lines upright, so that in one column of pixels a plane has one
depth, and what is on it one interval of heights: which plane a pixel sees are two comparisons a
plane, and nearly all else is worked out once per column. x is to the right, y up, z along the road,
in metres.

Positions along the road are int32 in units of 1/4096 m that wrap around, and all cells are powers
of two: the road is a ring of 1048.576 km without a seam, and nothing drifts however long the drive.
Positions across the road, headings and the horizon are rounded to dyadic numbers likewise.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.models.driving import CLASS_NAMES

_SKY, _BUILDING, _POLE, _ROAD, _PAVEMENT, _TREE, _SIGN, _FENCE, _CAR, _PEDESTRIAN, _BICYCLIST = (
    range(len(CLASS_NAMES))
)

_UNIT = 4096  # positions along the road are multiples of 1 / 4096 m
_METRE = 12  # bits of a metre in these units
_BLOCK = _METRE + 7  # bits of the 128 m from one stop to the next
_EYE = 1.4  # height of the camera
_LANE = 1.75  # the middle of a lane, from that of the road
_PARKED = 3.75  # the side of parked cars that faces the road
_FENCE_SETBACK = 1.3  # from the house fronts
_ZEBRA = 10.0  # from where the camera stops to the crossing
_FAR = 1e6  # the depth of the skyline; the sky's is ten times as much
_HALF_CAR = 2.1  # half its length
_HALF_WIDTH = 0.85
_SILL = 0.95  # where a car's windows begin
_LEAD_GAP = 7.0  # to the car ahead where both stand
_NONE = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drive:
    """Everything that decides what `render_drive` draws.

    Use `dataclasses.replace` to change a part.

    Attributes:
      size: `(height, width)` of a frame, static.
      seed: `()` uint32, of what stands along the road.
      side: `()` float32, the side that is driven on: 1 right, -1 left.
      focal: `()` float32, focal length, pixels.
      horizon: `()` float32, the row of the horizon when the car does not pitch, pixels.
      parking: `(2,)` bool, whether cars are parked to the left and to the right.
      curb: `(2,)` float32, from the middle of the road to both curbs, metres.
      facade: `(2,)` float32, from the middle of the road to the house fronts, metres.
      sway: `(2,)` float32, how far the car sways in its lane, metres, once and twice a block.
      phase: `(2,)` float32, of both, turns.
      vibration: `()` float32, largest jitter of the horizon at full speed, pixels.
      speed: `()` float32, metres per frame at cruise; zero stands for ever.
      frames: `(4,)` int32, frames that the car accelerates, cruises, brakes and stands in a block.
      start: `()` int32, the frame of its first block that t = 0 is.
      lead: `()` bool, whether a car drives ahead.
      lead_frames: `()` int32, how many frames it is ahead.
      traffic: `()` float32, share of the places for moving cars, bicyclists and pedestrians taken.
      light: `(4,)` float32, brightness of house fronts to the left, to the right, of walls across
        the road, and of the ground.
      tint: `(3,)` float32, colour and strength of the light: the exposure.
      dusk: `()` float32, in [0, 1].
      cloud: `()` float32, how clouded the sky is, in [0, 1].
      noise: `()` float32, standard deviation of the sensor noise, grey levels.
    """

    size: tuple[int, int] = dataclasses.field(metadata={"static": True})
    seed: jax.Array
    side: jax.Array
    focal: jax.Array
    horizon: jax.Array
    parking: jax.Array
    curb: jax.Array
    facade: jax.Array
    sway: jax.Array
    phase: jax.Array
    vibration: jax.Array
    speed: jax.Array
    frames: jax.Array
    start: jax.Array
    lead: jax.Array
    lead_frames: jax.Array
    traffic: jax.Array
    light: jax.Array
    tint: jax.Array
    dusk: jax.Array
    cloud: jax.Array
    noise: jax.Array


class DriveFrame(NamedTuple):
    """One frame of a drive and what is known of each of its pixels.

    Attributes:
      frame: `(H, W, 3)` uint8, RGB.
      labels: `(H, W)` uint8, index into `CLASS_NAMES` of what the pixel's centre shows.
      motion: `(H, W, 2)` float32 (dx, dy) pixels, from this frame to an earlier one: what is seen
        at (x, y) was at (x + dx, y + dy) there.
    """

    frame: jax.Array
    labels: jax.Array
    motion: jax.Array


class DrivePairs(NamedTuple):
    """Key frames and later frames of the same drives.

    Attributes:
      key: The key frames, `DriveFrame` of arrays with a leading axis of pairs.
      current: The later frames; their motion is to the key frame.
      gap: `(pairs,)` int32, frames between both.
    """

    key: DriveFrame
    current: DriveFrame
    gap: jax.Array


def driving_scene(
    key: jax.Array,
    *,
    size: tuple[int, int] = (240, 320),
    speed: float | jax.Array = 0.9,
    traffic: float | jax.Array = 0.6,
    noise: float | jax.Array = 2.0,
) -> Drive:
    """Draws a drive: a street with houses, trees, parked and moving cars, at some time of the day.

    The car stops every 128 m, before a zebra crossing, for about a fifth of the time: nothing but
    the others moves then. Otherwise the road side changes fast and the sky hardly.

    Args:
      key: A random key; the same key draws the same drive.
      size: `(height, width)` in pixels. Camera and street are those of a frame of 240 x 320
        whatever the size.
      speed: The fastest it may cruise, metres per frame; each drive at 0.6 of it or more. At 15
        frames a second, 0.9 are 49 km/h.
      traffic: Share of the places for moving cars, bicyclists and pedestrians taken, in [0, 1];
        at zero nothing but the camera moves.
      noise: Standard deviation of the sensor noise, grey levels of 255.

    Returns:
      The drive.

    Raises:
      ValueError: Where an option is out of its range.

    >>> drive = driving_scene(jax.random.key(0), size=(48, 64))
    >>> drive.frames.shape, drive.tint.shape
    ((4,), (3,))
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size must be (height, width) of at least one pixel; got {size}")
    if not isinstance(speed, jax.Array) and not 0 <= speed <= 4:
        raise ValueError(f"speed must be in [0, 4] metres per frame; got {speed}")
    if not isinstance(traffic, jax.Array) and not 0 <= traffic <= 1:
        raise ValueError(f"traffic must be in [0, 1]; got {traffic}")
    if not isinstance(noise, jax.Array) and noise < 0:
        raise ValueError(f"noise must be zero or more; got {noise}")
    return _draw(
        key,
        *(jnp.asarray(value, jnp.float32) for value in (speed, traffic, noise)),
        size=(int(height), int(width)),
    )


@jax.jit(static_argnames="size")
def _draw(key, speed, traffic, noise, *, size) -> Drive:
    seed_key, key = jax.random.split(key)
    draws = iter(jax.random.uniform(key, (32,)))

    def uniform(low: float, high: float) -> jax.Array:
        return low + (high - low) * next(draws)

    # The speed that covers a block in whole frames.
    cruise = speed * uniform(0.6, 1.0)
    accelerating, braking, standing = (
        jnp.round(uniform(*span)).astype(jnp.int32) for span in ((20, 40), (18, 35), (35, 75))
    )
    ramps = (accelerating + braking).astype(jnp.float32) / 2
    cruising = jnp.maximum(jnp.round(128 / jnp.maximum(cruise, 1e-2) - ramps), 0.0)
    cruise = jnp.where(cruise > 0, 128 / (cruising + ramps), 0.0)
    frames = jnp.stack([accelerating, cruising.astype(jnp.int32), braking, standing])

    # A frame of any shape sees what one of 240 x 320 would, and more or less of it to a side.
    scale = jnp.float32(max(size[0] / 240, size[1] / 320))
    dusk = jnp.maximum(uniform(-1.2, 1.0), 0.0)
    exposure = uniform(0.85, 1.15) * (1 - 0.45 * dusk)
    warmth = uniform(-0.06, 0.08) + 0.06 * dusk
    sun, front = uniform(-0.22, 0.22), uniform(-0.12, 0.12)
    parking = jnp.stack([next(draws), next(draws)]) < 0.65
    curb = jnp.where(parking, 5.5, 3.9)
    lead_draw, side_draw = next(draws), next(draws)
    return Drive(
        size=size,
        seed=jax.random.bits(seed_key, (), jnp.uint32),
        side=jnp.where(side_draw < 0.7, 1.0, -1.0),
        focal=320 * scale * uniform(0.78, 0.92),
        horizon=size[0] * uniform(0.47, 0.57),
        parking=parking,
        curb=curb,
        facade=curb + jnp.stack([uniform(3.6, 5.4), uniform(3.6, 5.4)]),
        sway=jnp.stack([uniform(0.1, 0.35), uniform(0.05, 0.25)]),
        phase=jnp.stack([uniform(0, 1), uniform(0, 1)]),
        vibration=scale * uniform(0.1, 0.6),
        speed=cruise,
        frames=frames,
        start=(next(draws) * jnp.sum(frames)).astype(jnp.int32),
        lead=lead_draw < 0.6 * jnp.minimum(2 * traffic, 1),
        lead_frames=jnp.round(uniform(12, 26)).astype(jnp.int32),
        traffic=traffic,
        light=jnp.stack([0.95 + sun, 0.95 - sun, 0.9 + front, uniform(0.92, 1.05)]),
        tint=exposure * jnp.stack([1 + warmth, jnp.float32(1.0), 1 - warmth]),
        dusk=dusk,
        cloud=uniform(0.0, 1.0),
        noise=noise,
    )


@jax.jit
def render_drive(
    drive: Drive, t: jax.typing.ArrayLike, *, key_t: jax.typing.ArrayLike | None = None
) -> DriveFrame:
    """Draws frame `t` of a drive, its labels and its motion; pure in all of them.

    Exact: labels are those of the pixels' centres, and motion is that of the point of the world
    seen there. Where that point was hidden by something nearer in frame `key_t`, motion still says
    where it was, and that frame shows something else there; where it was outside of the frame,
    motion leads out of it. The shadows under moving cars are on the road and have its motion.
    What stands along the road is drawn from where it is some 100 to 200 m ahead.

    Args:
      drive: The drive.
      t: Integer `()`, the frame's index; negative ones exist too.
      key_t: Integer `()`, the frame that motion leads to, an earlier one; by default `t - 1`.

    Returns:
      The frame with its labels and its motion.

    >>> drive = driving_scene(jax.random.key(0), size=(24, 32))
    >>> clip = jax.vmap(render_drive, in_axes=(None, 0))(drive, jnp.arange(2))
    >>> clip.frame.shape, clip.labels.shape, clip.motion.shape
    ((2, 24, 32, 3), (2, 24, 32), (2, 24, 32, 2))
    """
    t = jnp.asarray(t, jnp.int32)
    key_t = t - 1 if key_t is None else jnp.asarray(key_t, jnp.int32)
    now, key = _camera(drive, t), _camera(drive, key_t)
    seen = _look(drive, now, key)
    frame, labels = _paint(drive, now, seen)
    return DriveFrame(frame=frame, labels=labels, motion=_motion(drive, now, key, seen))


@jax.jit
def drive_motion(drive: Drive, t: jax.typing.ArrayLike, key_t: jax.typing.ArrayLike) -> jax.Array:
    """Motion from frame `t` to frame `key_t`, as `render_drive` gives it, without the picture.

    Args:
      drive: The drive.
      t: Integer `()`, the frame's index.
      key_t: Integer `()`, the frame that motion leads to, an earlier one.

    Returns:
      `(H, W, 2)` float32 (dx, dy), pixels; zeros where both frames are the same.

    >>> drive = driving_scene(jax.random.key(0), size=(24, 32))
    >>> jax.eval_shape(drive_motion, drive, 9, 5).shape
    (24, 32, 2)
    """
    now, key = (_camera(drive, jnp.asarray(at, jnp.int32)) for at in (t, key_t))
    return _motion(drive, now, key, _look(drive, now, key))


def drive_pairs(
    key: jax.Array,
    *,
    pairs: int,
    size: tuple[int, int] = (240, 320),
    longest_gap: int = 9,
    speed: float | jax.Array = 0.9,
    noise: float | jax.Array = 2.0,
) -> DrivePairs:
    """Draws pairs of a key frame and a frame up to `longest_gap` later, each of a drive of its own.

    What DVSNet's networks are trained on: its authors' pairs are 0 to 9 frames apart.

    Args:
      key: A random key.
      pairs: How many.
      size: `(height, width)` in pixels.
      longest_gap: The largest number of frames between both; all from zero on are as likely.
      speed: As for `driving_scene`.
      noise: As for `driving_scene`.

    Returns:
      The pairs.

    Raises:
      ValueError: Where an option is out of its range.

    >>> drawn = jax.eval_shape(lambda key: drive_pairs(key, pairs=2), jax.random.key(0))
    >>> drawn.current.motion.shape, drawn.gap.shape
    ((2, 240, 320, 2), (2,))
    """
    if pairs < 1:
        raise ValueError(f"pairs must be one or more; got {pairs}")
    if longest_gap < 0:
        raise ValueError(f"longest_gap must be zero or more; got {longest_gap}")

    def pair(key: jax.Array) -> DrivePairs:
        scene_key, time_key, gap_key = jax.random.split(key, 3)
        drive = driving_scene(scene_key, size=size, speed=speed, noise=noise)
        t = jax.random.randint(time_key, (), 0, 1 << 20)
        gap = jax.random.randint(gap_key, (), 0, longest_gap + 1)
        return DrivePairs(render_drive(drive, t), render_drive(drive, t + gap, key_t=t), gap)

    return jax.vmap(pair)(jax.random.split(key, pairs))


# Hashes, which are the same wherever integers are.


def _mix(h: jax.Array) -> jax.Array:
    """Every bit of the result depends on every bit of `h`, uint32."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


def _hash(seed: jax.Array, salt: int, *values: jax.Array) -> jax.Array:
    h = seed + np.uint32(salt * 0x9E3779B1 & 0xFFFFFFFF)
    for value in values:
        h = _mix(h ^ (value.astype(jnp.uint32) * np.uint32(0x85EBCA77)))
    return h


def _draws(h: jax.Array, salt: int) -> jax.Array:
    """Uniform in [0, 1), a new one for every salt."""
    mixed = _mix(h + np.uint32(salt * 0x9E3779B9 & 0xFFFFFFFF))
    return (mixed >> 8).astype(jnp.float32) * np.float32(2**-24)


def _value_noise(x: jax.Array, y: jax.Array, bits: jax.Array) -> jax.Array:
    """Value noise in [-1, 1] at integer positions, on a grid of `2**bits` of them."""

    def interpolation(position):
        cell = position >> bits
        fraction = (position - (cell << bits)).astype(jnp.float32) * step
        return cell.astype(jnp.uint32), fraction * fraction * (3 - 2 * fraction)

    # 2**-bits, from the bits of a float32.
    step = jax.lax.bitcast_convert_type((127 - bits) << 23, jnp.float32)
    (x0, fx), (y0, fy) = interpolation(x), interpolation(y)
    left = x0 * np.uint32(0x9E3779B1) + bits.astype(jnp.uint32) * np.uint32(0x27D4EB2F)
    right = left + np.uint32(0x9E3779B1)
    up = y0 * np.uint32(0x85EBCA77)
    down = up + np.uint32(0x85EBCA77)

    def corner(h):
        h = (h ^ (h >> 15)) * np.uint32(0x2C1B3C6D)
        h = (h ^ (h >> 12)) * np.uint32(0x297A2D39)
        return (h >> 8).astype(jnp.float32)

    above = corner(left ^ up) * (1 - fx) + corner(right ^ up) * fx
    below = corner(left ^ down) * (1 - fx) + corner(right ^ down) * fx
    return (above * (1 - fy) + below * fy) * np.float32(2**-23) - 1


def _texture(x: jax.Array, y: jax.Array, footprint: jax.Array) -> jax.Array:
    """Noise anchored to the surface, of about two to eight pixels whatever the distance.

    `footprint` is what a pixel covers, in units. Octaves fade in and out as it changes.
    """
    bits = jax.lax.bitcast_convert_type(jnp.clip(2 * footprint, 16, 2.0**20), jnp.int32)
    octave = (bits >> 23) - 127
    fine = (bits & 0x7FFFFF).astype(jnp.float32) * np.float32(2**-23)
    return (
        (1 - fine) * _value_noise(x, y, octave)
        + _value_noise(x, y, octave + 1)
        + fine * _value_noise(x, y, octave + 2)
    )


# Where the camera is.


class _Camera(NamedTuple):
    """Pose and time of the camera: all that changes from frame to frame.

    Attributes:
      t: `()` int32, the frame.
      z: `()` int32 units, how far along the road.
      x: `()` float32, metres right of its middle.
      sine: `()` float32, sine of the heading: positive is to the right.
      cosine: `()` float32.
      horizon: `()` float32, row, pixels.
      standing: `()` float32, how much of its stop is over, in [0, 1]; 1 while it drives.
      lead_z: `()` int32 units, the rear of the car ahead.
    """

    t: jax.Array
    z: jax.Array
    x: jax.Array
    sine: jax.Array
    cosine: jax.Array
    horizon: jax.Array
    standing: jax.Array
    lead_z: jax.Array


def _round(x: jax.Array, bits: int) -> jax.Array:
    return jnp.round(x * 2.0**bits) * 2.0**-bits


class _Progress(NamedTuple):
    """How far the car is along the road, and how it moves there."""

    z: jax.Array  # int32 units
    speed: jax.Array  # as a share of that at cruise
    thrust: jax.Array  # in [-1, 1], positive where it accelerates
    standing: jax.Array  # how much of its stop is over; 1 while it drives


def _progress(drive: Drive, t: jax.Array) -> _Progress:
    """Speed rises and falls linearly: the way is a sum of parabolas and straight lines."""
    period = jnp.sum(drive.frames)
    elapsed = t + drive.start
    block, frame = elapsed // period, (elapsed % period).astype(jnp.float32)
    accelerating, cruising, braking, standing = drive.frames.astype(jnp.float32)
    rising = jnp.minimum(frame, accelerating) / accelerating
    falling = jnp.clip(frame - accelerating - cruising, 0, braking) / braking
    level = jnp.clip(frame - accelerating, 0, cruising)
    way = accelerating * rising**2 / 2 + level + braking * (falling - falling**2 / 2)
    stood = (frame - accelerating - cruising - braking) / standing
    moves = drive.speed > 0
    z = jnp.where(moves, block << _BLOCK, 0) + jnp.round(drive.speed * way * _UNIT).astype(
        jnp.int32
    )
    return _Progress(
        z=z,
        speed=jnp.where(moves, rising - falling, 0.0),
        thrust=jnp.where(moves, 4 * (rising * (1 - rising) - falling * (1 - falling)), 0.0),
        standing=jnp.where(moves & (stood >= 0), stood, 1.0),
    )


def _path(drive: Drive, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where in the road one drives at z, and its slope: the heading follows the path."""
    share = (z & ((1 << _BLOCK) - 1)).astype(jnp.float32) * 2.0**-_BLOCK
    turns = jnp.array([1.0, 2.0])
    angle = 2 * jnp.pi * (turns * share + drive.phase)
    x = drive.side * _LANE + jnp.sum(drive.sway * jnp.sin(angle))
    slope = jnp.sum(drive.sway * turns * jnp.cos(angle)) * (2 * np.pi / 128)
    return _round(x, _METRE), slope


def _camera(drive: Drive, t: jax.Array) -> _Camera:
    z, speed, thrust, standing = _progress(drive, t)
    x, slope = _path(drive, z)
    sine = _round(slope / jnp.sqrt(1 + slope * slope), 16)
    jitter = drive.vibration * (2 * _draws(_hash(drive.seed, 1, t), 0) - 1)
    pitch = speed * jitter + drive.focal / 140 * thrust
    return _Camera(
        t=t,
        z=z,
        x=x,
        sine=sine,
        cosine=jnp.sqrt(1 - sine * sine),
        horizon=_round(drive.horizon + pitch, 6),
        standing=standing,
        lead_z=_progress(drive, t + drive.lead_frames).z + int(_LEAD_GAP * _UNIT),
    )


class _Rays(NamedTuple):
    """Directions of the pixels: (across, up, ahead) in the camera, then in the world."""

    across: jax.Array  # (W,), and 1 ahead
    up: jax.Array  # (H,)
    x: jax.Array  # (W,)
    z: jax.Array  # (W,)


def _rays(drive: Drive, camera: _Camera) -> _Rays:
    height, width = drive.size
    across = (jnp.arange(width, dtype=jnp.float32) + (0.5 - width / 2)) / drive.focal
    up = (camera.horizon - (jnp.arange(height, dtype=jnp.float32) + 0.5)) / drive.focal
    x = camera.sine + across * camera.cosine
    return _Rays(across, up, x, camera.cosine - across * camera.sine)


# The upright planes: what each shows in each column of pixels.


class _Planes(NamedTuple):
    """Upright planes by columns of pixels, all `(planes, W, ...)`.

    Attributes:
      depth: Float32, along the camera's axis, metres.
      low: Float32, where what is on the plane begins, metres above the ground.
      high: Float32, where it ends; below `low` where the column does not show it.
      levels: `(..., 3)` float32, heights between the four bands of paint.
      paint: `(..., 4, 4)` float32, colour and label of each band from the ground up.
      along: Int32, position on the plane in units, for its texture.
      texture: Float32, contrast of the texture.
      ragged: Float32, how far the texture moves the bands, metres.
      window: Float32, share of the column that is window, in [0, 1].
      window_seed: Uint32, of its windows.
      slant: Float32, how many times larger a pixel's footprint is than on a plane facing it.
      shift: `(..., 2)` float32, (dx, dz) from where the plane is to where it was, metres.
    """

    depth: jax.Array
    low: jax.Array
    high: jax.Array
    levels: jax.Array
    paint: jax.Array
    along: jax.Array
    texture: jax.Array
    ragged: jax.Array
    window: jax.Array
    window_seed: jax.Array
    slant: jax.Array
    shift: jax.Array


def _planes(
    shape: tuple[int, ...],
    depth: jax.Array,
    low: jax.typing.ArrayLike,
    high: jax.typing.ArrayLike,
    levels: Sequence[jax.typing.ArrayLike],
    colors: Sequence[jax.typing.ArrayLike],
    labels: Sequence[jax.typing.ArrayLike],
    along: jax.Array,
    *,
    texture: float,
    there: jax.typing.ArrayLike = True,
    ragged: float = 0.0,
    window: jax.typing.ArrayLike = 0.0,
    window_seed: jax.typing.ArrayLike = 0,
    slant: jax.typing.ArrayLike = 1.0,
    shift: Sequence[jax.typing.ArrayLike] = (0.0, 0.0),
) -> _Planes:
    """Puts together what may be given with fewer axes than all planes and columns have."""

    def full(value, *axes, dtype=jnp.float32):
        return jnp.broadcast_to(jnp.asarray(value, dtype), (*shape, *axes))

    def last(values, *axes):
        return jnp.stack([full(value, *axes) for value in values], axis=len(shape))

    paint = jnp.concatenate([last(colors, 3), last(labels)[..., None]], axis=-1)
    there = there & (depth > 0.6)
    return _Planes(
        depth=full(depth),
        low=full(low),
        high=jnp.where(there, full(high), -1.0),
        levels=last(levels),
        paint=paint,
        along=full(along, dtype=jnp.int32),
        texture=full(texture),
        ragged=full(ragged),
        window=full(window),
        window_seed=full(window_seed, dtype=jnp.uint32),
        slant=full(slant),
        shift=last(shift),
    )


def _pick(h: jax.Array, salt: int, palette: np.ndarray) -> jax.Array:
    index = (_draws(h, salt) * len(palette)).astype(jnp.int32)
    return jnp.asarray(palette, jnp.float32)[index]


def _units(metres: jax.Array) -> jax.Array:
    return jnp.round(metres * _UNIT).astype(jnp.int32)


def _metres(units: jax.Array) -> jax.Array:
    return units.astype(jnp.float32) * np.float32(1 / _UNIT)


_WALLS = np.array(
    [[156, 96, 78], [186, 150, 116], [205, 190, 162], [150, 142, 134], [128, 84, 70],
     [214, 206, 192], [172, 128, 96], [120, 116, 118], [190, 168, 140], [140, 108, 88]]
)  # fmt: skip
_BODIES = np.array(
    [[178, 28, 30], [30, 60, 128], [206, 208, 210], [38, 40, 44], [120, 124, 130],
     [228, 228, 222], [66, 92, 74], [150, 132, 100], [24, 84, 140], [92, 22, 34]]
)  # fmt: skip
_CLOTHES = np.array(
    [[176, 52, 48], [46, 70, 128], [60, 62, 68], [206, 196, 180], [86, 110, 72],
     [200, 150, 52], [120, 70, 110], [44, 44, 50]]
)  # fmt: skip
_TROUSERS = np.array([[40, 46, 70], [34, 34, 38], [92, 84, 74], [58, 64, 84]])
_SKIN = np.array([[224, 178, 148], [196, 146, 112], [140, 96, 70]])
_HAIR = np.array([[40, 32, 28], [96, 70, 44], [24, 24, 26], [150, 120, 80]])
_HELMETS = np.array([[230, 230, 226], [200, 40, 40], [40, 44, 50], [224, 190, 60]])
_BOARDS = np.array([[28, 74, 168], [190, 28, 34], [232, 190, 40], [24, 110, 70], [190, 28, 34]])
_FACES = np.array(
    [[236, 238, 240], [240, 240, 238], [40, 38, 30], [238, 240, 238], [236, 236, 232]]
)
_LEAVES = np.array([[78, 108, 48], [62, 92, 46], [98, 118, 52], [112, 104, 46], [58, 84, 56]])
_PLANKS = np.array([[134, 100, 70], [210, 208, 200], [92, 98, 96], [150, 128, 102]])
_TYRE = np.array([26.0, 26, 28])
_GLASS = np.array([52.0, 62, 72])
_STEEL = np.array([112.0, 116, 118])


class _Column(NamedTuple):
    """What every column of pixels needs to meet a plane."""

    drive: Drive
    camera: _Camera
    rays: _Rays
    right: jax.Array  # (W,) bool: a ray that starts in the road goes to one side of it only
    sign: jax.Array  # (W,) 1 right, -1 left

    def across(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Depth at a plane across the road `z` metres ahead, and x there."""
        depth = z / self.rays.z
        return depth, self.camera.x + self.rays.x * depth

    def along(self, outward: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Depth at planes along the road at x = `sign * outward`, metres ahead, and the slant."""
        slope = jnp.maximum(jnp.abs(self.rays.x), 1e-4)
        depth = (jnp.asarray(outward) - self.sign * self.camera.x) / slope
        return depth, depth * self.rays.z, jnp.maximum(1 / slope, 1.0)

    def beside(self, value: jax.Array) -> jax.Array:
        """For every column that of its side, of `(2,)`."""
        return jnp.where(self.right, value[1], value[0])

    def own(self, value: jax.Array) -> jax.Array:
        """For every column that of its side, of `(slots, 2, ...)`."""
        right = self.right.reshape(1, -1, *(1,) * (value.ndim - 2))
        return jax.lax.optimization_barrier(jnp.where(right, value[:, 1:], value[:, :1]))

    def together(self, *groups: tuple[int, tuple]) -> list[jax.Array]:
        """Every attribute of several groups of so many planes each, `(planes, W)`."""
        width = self.drive.size[1]
        attributes = [
            jnp.concatenate(
                [
                    jnp.broadcast_to(v, (count, width))
                    for v, (count, _) in zip(vs, groups, strict=True)
                ]
            )
            for vs in zip(*(values for _, values in groups), strict=True)
        ]
        return jax.lax.optimization_barrier(attributes)


def _cells(
    drive: Drive, origin: jax.Array, bits: int, count: int, salt: int
) -> tuple[jax.Array, jax.Array]:
    """The next cells of `2**bits` units from `origin` on: a hash for both sides, metres to each."""
    cells = (origin >> bits) + jnp.arange(count, dtype=jnp.int32)
    to = _metres((cells << bits) - origin)
    return _cell_hash(drive, cells[:, None], bits, salt, jnp.arange(2)), to[:, None]


def _cell_hash(drive: Drive, cell, bits: int, salt: int, side) -> jax.Array:
    # Cells beyond the end of the ring are those of its beginning.
    ring = cell & ((1 << (32 - bits)) - 1)
    return jax.lax.optimization_barrier(_hash(drive.seed, salt, ring, side))


def _house(h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether a cell of 16 m has a house, its height and its colour."""
    floors = jnp.floor(2 + 3.4 * _draws(h, 1))
    color = _pick(h, 2, _WALLS) * (0.85 + 0.25 * _draws(h, 3))[..., None]
    return _draws(h, 0) < 0.74, 3.1 * floors + 0.9, color


_HOUSES = 2  # salts of hashes
_STREET_CELL = _METRE + 4


def _house_bands(h, height, color, light):
    """Levels and colours of a wall: plinth, ground floor, upper floors, cornice or roof."""
    roofed = _draws(h, 4) < 0.5
    roof = jnp.where(roofed[..., None], jnp.array([96.0, 72, 66]) * 0.95, 1.12 * color)
    shop = jnp.where(_draws(h, 5)[..., None] < 0.4, _pick(h, 6, _BODIES) * 0.5 + 60, 0.92 * color)
    levels = (0.5, 3.3, height - jnp.where(roofed, 1.5, 0.35))
    return levels, tuple(light * c for c in (0.62 * color, shop, color, roof))


def _box(position, half, edge):
    """Coverage of `|position| < half` by a pixel `edge` wide."""
    return jnp.clip((half - jnp.abs(position)) / edge + 0.5, 0.0, 1.0)


def _windows(offset, pitch, footprint):
    """Share of each column that is window, and which window it is."""
    number = jnp.floor(offset / pitch)
    inside = offset - (number + 0.5) * pitch
    share = _box(inside, 0.27 * pitch, footprint)
    # Windows narrower than a few pixels become the grey that they are on average.
    blur = jnp.clip(footprint / pitch * 3 - 0.5, 0.0, 1.0)
    return share + blur * (0.54 - share), number


def _facades(column: _Column) -> _Planes:
    drive, camera = column.drive, column.camera
    depth, ahead, slant = column.along(column.beside(drive.facade))
    ahead = jnp.minimum(ahead, 1000.0)
    z = camera.z + _units(ahead)
    h = _cell_hash(drive, z >> _STREET_CELL, _STREET_CELL, _HOUSES, column.right)
    there, height, color = _house(h)
    light = jnp.where(column.right, drive.light[1], drive.light[0])[:, None]
    levels, colors = _house_bands(h, height, color, light)
    offset = _metres(z & ((1 << _STREET_CELL) - 1))
    pitch = 16 / jnp.floor(5 + 3 * _draws(h, 7))
    footprint = depth / drive.focal * slant
    window, number = _windows(offset, pitch, footprint)
    return _planes(
        (1, drive.size[1]), depth, 0.0, height, levels, colors, [_BUILDING] * 4, z,
        texture=0.07, slant=slant, window=window, window_seed=_hash(h, 8, number),
        there=there & (ahead < 600),
    )  # fmt: skip


def _house_walls(column: _Column) -> _Planes:
    """The walls across the road, seen where the house before is lower or there is none."""
    drive, count = column.drive, 12
    h, to = _cells(drive, column.camera.z, _STREET_CELL, count, _HOUSES)
    there, height, color = _house(h)
    levels, colors = _house_bands(h, height, color, drive.light[2])
    h, there, height, to = (column.own(v) for v in (h, there, height, jnp.tile(to, (1, 2))))
    levels = (*levels[:2], column.own(levels[2]))
    colors = tuple(column.own(c) for c in colors)
    depth, x = column.across(to)
    outward = column.sign * x - column.beside(drive.facade)
    window, number = _windows(outward - 1.0, 3.1, depth / drive.focal)
    window = jnp.where((outward > 1.0) & (outward < 10.0), window, 0.0)
    return _planes(
        depth.shape, depth, 0.0, height, levels, colors, [_BUILDING] * 4,
        _units(outward) + h.astype(jnp.int32), texture=0.07,
        window=window, window_seed=_hash(h, 9, number),
        there=there & (outward > 0) & (outward < 12),
    )  # fmt: skip


def _fences(column: _Column) -> _Planes:
    drive, camera = column.drive, column.camera
    depth, ahead, slant = column.along(column.beside(drive.facade) - _FENCE_SETBACK)
    ahead = jnp.minimum(ahead, 1000.0)
    z = camera.z + _units(ahead)
    h = _cell_hash(drive, z >> _STREET_CELL, _STREET_CELL, _HOUSES, column.right)
    house, *_ = _house(h)
    height = jnp.where(house, 0.9, 1.5) + 0.3 * _draws(h, 10)
    offset = _metres(z & ((1 << _STREET_CELL) - 1))
    footprint = depth / drive.focal * slant
    pitch = 0.32
    plank = _box(jnp.mod(offset, pitch) - pitch / 2, 0.11, footprint)
    plank = plank + jnp.clip(footprint / pitch * 3 - 0.5, 0, 1) * (0.7 - plank)
    color = _pick(h, 11, _PLANKS) * jnp.where(column.right, drive.light[1], drive.light[0])[:, None]
    planks = color * (0.5 + 0.5 * plank)[:, None]
    post = _box(jnp.mod(offset, 2.0) - 1.0, 0.08, footprint)
    top = height + 0.12 * post
    return _planes(
        (1, drive.size[1]), depth, 0.0, top, (0.25, 0.38, height - 0.14),
        (0.85 * planks, color, planks, color), [_FENCE] * 4, z,
        texture=0.08, slant=slant, there=(ahead < 400) & (~house | (_draws(h, 12) < 0.4)),
    )  # fmt: skip


def _trees(column: _Column) -> _Planes:
    drive, count = column.drive, 12
    h, to = _cells(drive, column.camera.z, _STREET_CELL, count, _HOUSES)
    house, *_ = _house(h)
    garden = ~house
    there = _draws(h, 20) < jnp.where(garden, 0.95, 0.6)
    to = to + 2 + 12 * _draws(h, 21)
    outward = jnp.where(garden, drive.facade + 2.5, drive.curb + 0.9)
    radius = jnp.where(garden, 2.6, 1.5) + 1.0 * _draws(h, 22)
    half = radius * (0.8 + 0.5 * _draws(h, 23))
    middle = half + jnp.where(garden, 1.2, 2.1) + 0.6 * _draws(h, 24)
    color = _pick(h, 25, _LEAVES)
    h, there, to, outward, radius, half, middle, color = (
        column.own(v) for v in (h, there, to, outward, radius, half, middle, color)
    )
    depth, x = column.across(to)
    u = column.sign * x - outward
    along = _units(u) + h.astype(jnp.int32)
    # The outline is as rough as leaves are.
    fixed = jnp.full(along.shape, 10, jnp.int32)
    rough = _value_noise(along, along >> 9, fixed + 2) + 0.6 * _value_noise(along, -along, fixed)
    reach = jnp.sqrt(jnp.maximum(1 - (u / radius) ** 2, 0.0))
    upper = half * reach * (1 + 0.22 * rough)
    lower = half * reach * (0.9 - 0.22 * rough)
    trunk = jnp.abs(u) < 0.05 * radius + 0.05
    levels = (middle - lower, middle - 0.25 * half, middle + 0.45 * half)
    bark = jnp.array([78.0, 62, 50])
    colors = (bark, 0.62 * color, 0.88 * color, 1.2 * color)
    return _planes(
        depth.shape, depth, jnp.where(trunk, 0.0, middle - lower), middle + upper, levels, colors,
        [_TREE] * 4, along, texture=0.26, ragged=0.3, there=there & (jnp.abs(u) < radius),
    )  # fmt: skip


def _poles(column: _Column) -> _Planes:
    """Lamp posts, traffic signs and lights at the curb."""
    drive, count, bits = column.drive, 16, _METRE + 3
    h, to = _cells(drive, column.camera.z, bits, count, 3)
    to = to + 1 + 6 * _draws(h, 1)
    h, to = column.own(h), column.own(to)
    depth, x = column.across(to)
    u = column.sign * x - column.beside(drive.curb) - 0.35
    kind = _draws(h, 0)
    lamp, light = kind < 0.22, (kind >= 0.22) & (kind < 0.32)
    sign = (kind >= 0.32) & (kind < 0.68)
    # A sign is a disc, a square or a triangle of half its size.
    half = 0.34 + 0.14 * _draws(h, 2)
    shape = _draws(h, 3)
    inside = jnp.abs(u) / half
    rise = jnp.where(
        shape < 0.4,
        jnp.sqrt(jnp.maximum(1 - inside**2, 0.0)),
        jnp.where(shape < 0.75, 0.85 * (inside < 1), 0.0),
    )
    middle = 2.1 + 0.7 * _draws(h, 4)
    triangle = shape >= 0.75
    top = middle + half * jnp.where(triangle, 0.9 - 1.8 * inside, rise)
    bottom = middle - half * jnp.where(triangle, 0.9, rise)
    rim = 0.2 * half
    pole = jnp.abs(u) < jnp.where(lamp, 0.1, 0.065)
    on_board = sign & (inside < 1) & (top > bottom)
    face = (inside < 0.8) & on_board
    # Lights: a box of three; lamps: an arm over the road.
    box = light & (jnp.abs(u) < 0.2)
    arm = lamp & (u < 0) & (u > -1.9)
    high = jnp.where(lamp, 6.6, jnp.where(light, 3.4, jnp.where(on_board, top, middle)))
    low = jnp.where(
        pole, 0.0, jnp.where(box, 2.45, jnp.where(arm, jnp.where(u < -1.1, 6.3, 6.45), bottom))
    )
    first = jnp.where(box, 2.45, jnp.where(on_board, bottom, 99.0))
    levels = (
        first,
        first + jnp.where(box, 0.32, jnp.where(face, rim, 99.0)),
        jnp.where(box, 3.08, jnp.where(face, top - jnp.where(triangle, 2, 1) * rim, 99.0)),
    )
    lit = (jnp.abs(u) < 0.1)[..., None]
    dark = jnp.array([34.0, 36, 38])
    green = _draws(h, 6)[..., None] < 0.5
    index = (_draws(h, 5) * len(_BOARDS)).astype(jnp.int32)
    board, inner = jnp.asarray(_BOARDS, jnp.float32)[index], jnp.asarray(_FACES, jnp.float32)[index]
    is_box = box[..., None]
    steel = _STEEL * (0.75 + 0.3 * _draws(h, 7))[..., None]
    colors = (
        steel,
        jnp.where(is_box, jnp.where(lit & green, jnp.array([50.0, 220, 130]), dark), board),
        jnp.where(is_box, dark, inner),
        jnp.where(is_box, jnp.where(lit & ~green, jnp.array([235.0, 50, 40]), dark), board),
    )
    there = (lamp & (pole | arm)) | (light & (pole | box)) | (sign & (pole | on_board))
    return _planes(
        depth.shape, depth, low, high, levels, colors, (_POLE, _SIGN, _SIGN, _SIGN),
        _units(u) + h.astype(jnp.int32), texture=0.04, there=there,
    )  # fmt: skip


# Cars: a side along the road, the bumper across it, and the cabin across it, further back.


def _car(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Height of the roof, colour of the body."""
    color = _pick(h, 41, _BODIES) * (0.85 + 0.3 * _draws(h, 42))[..., None]
    return 1.38 + 0.2 * _draws(h, 40), color


def _car_side(position, roof, color):
    """Outline, levels and colours at `position` metres from its middle towards its nose."""
    screen = _SILL + (1.05 - position) * (roof - _SILL) / 0.75
    hood = _SILL - 0.12 * jnp.maximum(position - 1.05, 0.0)
    back = roof - 0.9 * jnp.maximum(-1.7 - position, 0.0)
    high = jnp.minimum(jnp.maximum(jnp.minimum(roof, screen), hood), back)
    radius = 0.32
    arc2 = radius**2 - (jnp.abs(position) - 1.28) ** 2
    arc, wheel = jnp.sqrt(jnp.maximum(arc2, 0.0)), arc2 > 0
    glass = (position > -1.75) & (position < 0.8) & (jnp.abs(position + 0.45) > 0.06)
    door = (jnp.abs(position + 0.45) < 0.025) | (jnp.abs(position - 0.6) < 0.025)
    levels = (
        jnp.where(wheel, radius + arc, 0.3),
        jnp.full_like(high, _SILL),
        jnp.maximum(high - 0.09, _SILL),
    )
    body = jnp.where(door[..., None], 0.6, 0.85) * color
    colors = (_TYRE, body, jnp.where(glass[..., None], _GLASS, body), body)
    return jnp.where(wheel, radius - arc, 0.2), high, levels, colors


def _car_bumper(u, front, roof, color):
    """Outline, levels and colours at `u` metres from its middle, of its front or of its rear."""
    del roof
    front = front[..., None]
    far = jnp.abs(u)
    high = _SILL - 0.5 * jnp.maximum(far - 0.72, 0.0)
    tyre = (far > 0.55) & (far < 0.78)
    lamp = jnp.where(front, jnp.array([244.0, 240, 220]), jnp.array([176.0, 22, 24]))
    plate = jnp.where(front, jnp.array([226.0, 226, 220]), jnp.array([222.0, 196, 90]))
    middle = jnp.where(front, 0.35, 0.8) * color
    colors = (
        _TYRE,
        jnp.where((far < 0.26)[..., None], plate, 0.7 * color),
        jnp.where((far > 0.54)[..., None], lamp, middle),
        color,
    )
    return jnp.where(tyre, 0.0, 0.2), high, (0.38, 0.54, 0.76), colors


def _car_cabin(u, front, roof, color):
    """The same of the windows and the roof, and of the hood before them."""
    del front
    far = jnp.abs(u)
    high = _SILL + (roof - _SILL) * jnp.clip((_HALF_WIDTH - far) / 0.05, 0.0, 1.0)
    levels = (_SILL, _SILL + 0.06, jnp.maximum(high - 0.1, _SILL + 0.06))
    glass = jnp.where((far < 0.74)[..., None], _GLASS, 0.9 * color)
    return 0.3, high, levels, (1.06 * color, 0.9 * color, glass, color)


_PARKED_CARS = 4
_PARKED_CELL = _METRE + 3


def _parked_car(drive: Drive, h: jax.Array, side: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a cell of 8 m has a parked car, and where its middle is."""
    return (_draws(h, 0) < 0.5) & drive.parking[side], 2.6 + 2.8 * _draws(h, 1)


_ONCOMING = 5
_ONCOMING_CELL = _METRE + 5
_ONCOMING_STOP = int((_ZEBRA + 6) * _UNIT)  # where they stop, beyond the crossing


def _oncoming_origin(camera: _Camera) -> jax.Array:
    """The camera in the world of the oncoming cars, who drive and stop as it does."""
    return 2 * camera.z - _ONCOMING_STOP


def _lane(drive: Drive) -> jax.Array:
    return -drive.side * _LANE  # that of the oncoming


def _cars(column: _Column, key: _Camera) -> list[_Planes]:
    """The parked, the oncoming and the one ahead: all across the road, then all along it."""
    drive, camera = column.drive, column.camera
    # Where each car's near end and its middle are, whether its front is seen, how far it moves.
    h, to = _cells(drive, camera.z, _PARKED_CELL, 12, _PARKED_CARS)
    there, middle = _parked_car(drive, h, jnp.arange(2))
    parked = (
        column.own(h),
        column.own(there),
        column.own(to + middle - _HALF_CAR),
        column.sign * (_PARKED + _HALF_WIDTH),
        column.sign * drive.side < 0,
        0.0,
        0.0,
    )
    h, to = _cells(drive, _oncoming_origin(camera), _ONCOMING_CELL, 4, _ONCOMING)
    oncoming = (
        h[:, :1],
        _draws(h[:, :1], 0) < 1.3 * drive.traffic,
        to,
        _lane(drive),
        True,
        0.0,
        -_metres(key.z - camera.z),
    )
    (x, _), (key_x, _) = _path(drive, camera.lead_z), _path(drive, key.lead_z)
    lead = (
        _hash(drive.seed, 6, jnp.zeros((1, 1), jnp.int32)),
        drive.lead & (drive.traffic > 0),
        _metres(camera.lead_z - camera.z),
        x,
        False,
        key_x - x,
        _metres(key.lead_z - camera.lead_z),
    )
    cars = column.together((12, parked), (4, oncoming), (1, lead))
    h, there, near, x, front, *shift = cars
    roof, color = _car(h)
    found = []
    for back, profile in ((0.0, _car_bumper), (jnp.where(front, 1.15, 0.2), _car_cabin)):
        depth, at = column.across(near + back)
        u = at - x
        low, high, levels, colors = profile(u, front, roof, color)
        planes = _planes(
            depth.shape, depth, low, high, levels, colors, [_CAR] * 4,
            _units(u) + h.astype(jnp.int32), texture=0.03, shift=shift,
            there=there & (jnp.abs(u) < _HALF_WIDTH),
        )  # fmt: skip
        found.append(planes)

    # The sides: all that are parked on one side of the road have theirs in one plane.
    depth, ahead, slant = column.along(_PARKED)
    ahead = jnp.minimum(ahead, 1000.0)
    z = camera.z + _units(ahead)
    parked_h = _cell_hash(drive, z >> _PARKED_CELL, _PARKED_CELL, _PARKED_CARS, column.right)
    parked_there, middle = _parked_car(drive, parked_h, column.right.astype(jnp.int32))
    position = _metres(z & ((1 << _PARKED_CELL) - 1)) - middle
    # Of the others that which faces the camera, unless it is right behind or before the car.
    moving_depth, moving_ahead, _ = column.along(column.sign * x[12:] - _HALF_WIDTH)
    h = jnp.concatenate([parked_h[None], h[12:]])
    depth = jnp.concatenate([depth[None], moving_depth])
    position = jnp.concatenate([position[None], moving_ahead - near[12:] - _HALF_CAR])
    there = jnp.concatenate([(parked_there & (ahead < 100))[None], there[12:]])
    front = jnp.concatenate([front[:1], front[12:]])
    shift = [jnp.concatenate([v[:1], v[12:]]) for v in shift]
    roof, color = _car(h)
    position = position.clip(-9, 9)
    low, high, levels, colors = _car_side(jnp.where(front, -position, position), roof, color)
    sides = _planes(
        depth.shape, depth, low, high, levels, colors, [_CAR] * 4,
        _units(position) + h.astype(jnp.int32), texture=0.03, slant=slant, shift=shift,
        there=there & (jnp.abs(position) < _HALF_CAR),
    )  # fmt: skip
    return [*found, sides]


_WALK = _UNIT * 9 // 100  # 4.9 km/h at 15 frames a second
_RIDE = _UNIT * 30 // 100


def _pedestrians(column: _Column, key: _Camera) -> _Planes:
    """Those who walk on the pavements, either way, and those who cross the road."""
    drive, camera = column.drive, column.camera
    room = drive.facade - _FENCE_SETBACK - drive.curb - 1.2
    groups = []
    for direction, salt in ((1, 7), (-1, 8)):
        h, to = _cells(drive, camera.z - direction * _WALK * camera.t, _METRE + 3, 6, salt)
        there = _draws(h, 0) < 0.75 * drive.traffic
        to = to + 7.5 * _draws(h, 10)
        x = jnp.array([-1, 1]) * (drive.curb + 0.8 + room * _draws(h, 11))
        moved = _metres(direction * _WALK * (key.t - camera.t))
        groups.append((6, (*(column.own(v) for v in (h, there, to, x)), 0.0, moved)))
    # Those who cross before the camera while it stands; those of the last stop have arrived.
    h, to = _cells(drive, camera.z, _BLOCK, 2, 9)
    order = jnp.arange(2, dtype=jnp.float32)
    to = to + _ZEBRA + 0.9 + 1.2 * order
    x, was = (_crossing(drive, c, (camera.z >> _BLOCK) + jnp.arange(2)) for c in (camera, key))
    there = (_draws(h, 0) < 1.3 * drive.traffic) & ~drive.lead
    groups.append((4, (*(v.reshape(4, 1) for v in (h, there, to, x, was - x)), 0.0)))
    h, there, to, x, *shift = column.together(*groups)
    depth, at = column.across(to)
    u = at - x
    far = jnp.abs(u)
    head = 1.64 + 0.13 * jnp.sqrt(jnp.maximum(1 - (far / 0.105) ** 2, 0.0))
    shoulder = 1.5 - 1.2 * jnp.maximum(far - 0.13, 0.0) ** 2 * 8
    # Legs apart by a gap, arms to the height of the hips.
    arm = far > 0.215
    low = jnp.where(far < 0.03, 0.6, jnp.where(far < 0.185, 0.0, jnp.where(arm, 0.8, 0.7)))
    high = jnp.where(far < 0.105, head, shoulder)
    bare = arm & (_draws(h, 5) < 0.3)
    skin = _pick(h, 4, _SKIN)
    colors = (
        _pick(h, 6, _TROUSERS),
        jnp.where(bare[..., None], skin, _pick(h, 3, _CLOTHES)),
        skin,
        _pick(h, 2, _HAIR),
    )
    tall = 0.94 + 0.1 * _draws(h, 1)
    levels = tuple(tall * level for level in (jnp.where(arm, 0.0, 0.86), 1.5, 1.67))
    return _planes(
        depth.shape, depth, low * tall, high * tall, levels, colors, [_PEDESTRIAN] * 4,
        _units(u) + h.astype(jnp.int32), texture=0.06, shift=shift, there=there & (far < 0.285),
    )  # fmt: skip


def _crossing(drive: Drive, camera: _Camera, cells: jax.Array) -> jax.Array:
    """Where those are who cross at the beginning of `cells`, x in metres, `(cells, 2)`.

    One from each side, while the camera stands; before that they wait, and after it they stay.
    """
    blocks = (camera.z >> _BLOCK) - cells  # that the camera is ahead of their beginning
    share = jnp.where(blocks < 0, 0.0, jnp.where(blocks > 0, 1.0, camera.standing))
    share = jnp.clip(share[:, None] * jnp.array([1.1, 1.3]), 0, 1)
    left, right = -drive.curb[0] - 0.7, drive.curb[1] + 0.7
    first, last = jnp.stack([left, right]), jnp.stack([right, left])
    return _round(first + share * (last - first), _METRE)


def _bicyclists(column: _Column, key: _Camera) -> _Planes:
    """They ride beside the parked cars, seen from behind or from the front."""
    drive, camera = column.drive, column.camera
    both = jnp.array([-1, 1]) * drive.side.astype(jnp.int32)  # the way of either side
    found = []
    for side in range(2):
        h, to = _cells(drive, camera.z - both[side] * _RIDE * camera.t, _METRE + 4, 3, 10)
        found.append((h[:, side], to[:, 0] + 15 * _draws(h[:, side], 10)))
    h, to = (jnp.stack(parts, axis=1) for parts in zip(*found, strict=True))
    there = column.own(_draws(h, 0) < 0.9 * drive.traffic)
    h, to = column.own(h), column.own(to)
    depth, x = column.across(to)
    u = column.sign * x - (_PARKED - 0.75)
    far = jnp.abs(u)
    wheel, head, body = far < 0.03, far < 0.12, far < 0.26
    legs = jnp.where(far < 0.17, 0.28 + 3 * jnp.maximum(far - 0.1, 0.0), 0.85)
    low = jnp.where(wheel, 0.0, jnp.where(body, legs, 0.97))
    crown = 1.67 + 0.16 * jnp.sqrt(jnp.maximum(1 - (far / 0.12) ** 2, 0.0))
    high = jnp.where(head, crown, jnp.where(body, 1.54 - 9 * (far - 0.12) ** 2, 1.06))
    levels = (jnp.where(wheel, 0.8, 0.93), 1.54, 1.68)
    colors = (
        jnp.where(wheel[..., None], _TYRE, _pick(h, 3, _TROUSERS)),
        jnp.where(body[..., None], _pick(h, 2, _CLOTHES), _TYRE),
        _pick(h, 5, _SKIN),
        _pick(h, 4, _HELMETS),
    )
    moved = _metres(_RIDE * (key.t - camera.t)) * drive.side * column.sign
    return _planes(
        depth.shape, depth, low, high, levels, colors, [_BICYCLIST] * 4,
        _units(u) + h.astype(jnp.int32), texture=0.06, shift=(0.0, moved),
        there=there & (far < 0.32),
    )  # fmt: skip


def _skyline(column: _Column) -> _Planes:
    """Trees and houses so far away that only turning moves them."""
    drive = column.drive
    along = _units(40 * column.rays.x / column.rays.z) + drive.seed.astype(jnp.int32)
    cell = jnp.full_like(along, _METRE)
    rough = _value_noise(along, jnp.zeros_like(along), cell - 1)
    slow = _value_noise(along, jnp.ones_like(along), cell + 2)
    blocks = _draws(_hash(drive.seed, 11, along >> (_METRE + 1)), 0)
    trees = slow > -0.1
    rise = jnp.where(trees, 0.03 + 0.012 * rough + 0.012 * slow, 0.035 + 0.04 * blocks)
    color = jnp.where(trees[:, None], jnp.array([70.0, 92, 62]), jnp.array([140.0, 132, 128]))
    labels = [jnp.where(trees, _TREE, _BUILDING)] * 4
    return _planes(
        (1, drive.size[1]), jnp.float32(_FAR), 0.0, _EYE + rise * _FAR, (0.0, 0.0, 0.0),
        [color] * 4, labels, along, texture=0.1,
    )  # fmt: skip


# What each pixel sees.


class _Seen(NamedTuple):
    """What every pixel sees, `(H, W)` each.

    Attributes:
      planes: All upright planes.
      index: Int32, which of them times W plus the column; any where there is none.
      hit: Bool, whether it is one of them.
      ground: Bool, whether it is the ground.
      depth: Float32, along the camera's axis, metres.
    """

    planes: _Planes
    index: jax.Array
    hit: jax.Array
    ground: jax.Array
    depth: jax.Array


def _look(drive: Drive, camera: _Camera, key: _Camera) -> _Seen:
    height, width = drive.size
    rays = _rays(drive, camera)
    right = rays.x > 0
    column = _Column(drive, camera, rays, right, jnp.where(right, 1.0, -1.0))
    groups = [
        _facades(column), _house_walls(column), _fences(column), _trees(column), _poles(column),
        *_cars(column, key), _pedestrians(column, key), _bicyclists(column, key), _skyline(column),
    ]  # fmt: skip
    # Without barriers XLA computes what belongs to a column again for each of its pixels.
    groups = jax.lax.optimization_barrier(groups)
    planes = _Planes(*(jnp.concatenate(parts) for parts in zip(*groups, strict=True)))
    planes = jax.lax.optimization_barrier(planes)
    count = planes.depth.shape[0]
    # Depth and index in one number: float32 above zero are ordered as their bits are.
    low_bits = max(count - 1, 1).bit_length()
    nearness = jax.lax.bitcast_convert_type(planes.depth, jnp.int32) >> low_bits << low_bits
    nearness = nearness | jnp.arange(count, dtype=jnp.int32)[:, None]
    top, bottom = (
        camera.horizon - drive.focal * (edge - _EYE) / planes.depth
        for edge in (planes.high, planes.low)
    )
    nearness = jnp.where(planes.high > planes.low, nearness, _NONE)
    planes, nearness, top, bottom = jax.lax.optimization_barrier((planes, nearness, top, bottom))
    rows = (jnp.arange(height, dtype=jnp.float32) + 0.5)[:, None]

    def nearer(nearest, plane):
        top, bottom, nearness = plane
        within = (rows >= top) & (rows < bottom)
        return jnp.minimum(nearest, jnp.where(within, nearness, _NONE)), None

    nothing = jnp.full((height, width), _NONE, jnp.int32)
    nearest, _ = jax.lax.scan(nearer, nothing, (top, bottom, nearness), unroll=4)
    hit = nearest < _NONE
    plane = jnp.where(hit, nearest & ((1 << low_bits) - 1), 0)
    index = plane * width + jnp.arange(width, dtype=jnp.int32)
    up = rays.up[:, None]
    ground = ~hit & (up < 0)
    beyond = jnp.where(ground, _EYE / jnp.maximum(-up, 1e-6), 10 * _FAR)
    depth = jnp.where(hit, planes.depth.reshape(-1)[index], beyond)
    return jax.lax.optimization_barrier(_Seen(planes, index, hit, ground, depth))


def _motion(drive: Drive, now: _Camera, key: _Camera, seen: _Seen) -> jax.Array:
    """Projects what each pixel sees into the earlier camera.

    With the ray (a, b, 1) at depth s, turned by the angle between both headings and moved by T,
    the earlier camera has it at (a', b') = (a c + n + Tx / s, b) / (c - a n + Tz / s), c and n the
    angle's cosine and sine. The differences a' - a and b' - b are written so that they are zero,
    not nearly zero, where nothing moved.
    """
    rays = _rays(drive, now)
    a, b = rays.across, rays.up[:, None]
    sine = now.sine * key.cosine - now.cosine * key.sine
    cosine = now.cosine * key.cosine + now.sine * key.sine
    # 1 - cosine without cancellation; and exactly zero for one and the same heading.
    versine = sine * sine / (1 + cosine)
    shift = seen.planes.shift.reshape(-1, 2)[seen.index]
    shift = jnp.where(seen.hit[..., None], shift, 0.0)
    moved_x = shift[..., 0] + (now.x - key.x)
    moved_z = shift[..., 1] + _metres(now.z - key.z)
    tx = key.cosine * moved_x - key.sine * moved_z
    tz = key.sine * moved_x + key.cosine * moved_z
    near = 1 / seen.depth
    ahead = jnp.maximum(1 - versine - a * sine + near * tz, 1e-3)
    dx = (sine * (1 + a * a) + near * (tx - a * tz)) / ahead
    dy = b * (versine + a * sine - near * tz) / ahead
    horizon = key.horizon - now.horizon
    return jnp.stack([drive.focal * dx, horizon - drive.focal * dy], axis=-1)


def _paint(drive: Drive, camera: _Camera, seen: _Seen) -> tuple[jax.Array, jax.Array]:
    """The picture and its labels."""
    rays = _rays(drive, camera)
    up = rays.up[:, None]
    planes, index, hit, ground, depth = seen

    # Position on the surface, in units, and what a pixel covers of it.
    x = camera.x + rays.x * depth
    z = camera.z + _units(jnp.where(ground, rays.z * depth, 0.0).clip(0, 2000))
    y = _EYE + up * depth
    real = jnp.stack(
        [planes.levels[..., 0], planes.levels[..., 1], planes.levels[..., 2], planes.texture,
         planes.ragged, planes.window, planes.slant], axis=-1
    ).reshape(-1, 7)[index]  # fmt: skip
    whole = jnp.stack([planes.along, planes.window_seed.astype(jnp.int32)], axis=-1)
    whole = whole.reshape(-1, 2)[index]
    sky_x, sky_y = 12 * rays.x / rays.z / (up / rays.z + 0.12), 12 / (up / rays.z + 0.12)
    along = jnp.where(hit, whole[..., 0], jnp.where(ground, _units(x.clip(-99, 99)), _units(sky_x)))
    other = jnp.where(
        hit, _units(jnp.where(depth >= _FAR, 40 * up, y).clip(-99, 99)),
        jnp.where(ground, z, _units(sky_y.clip(0, 999))),
    )  # fmt: skip
    pixel = jnp.minimum(depth, 2000) / drive.focal
    footprint = pixel * jnp.where(hit, real[..., 6], jnp.where(ground, depth / _EYE * 0.7, 1.0))
    footprint = jnp.where(depth >= _FAR, jnp.where(hit, 0.15, 2.5), footprint)
    real, whole, along, other, footprint = jax.lax.optimization_barrier(
        (real, whole, along, other, footprint)
    )
    noise = jax.lax.optimization_barrier(_texture(along, other, footprint * _UNIT))

    # What is on the planes.
    ragged_y = y + real[..., 4] * noise
    band = sum((ragged_y >= real[..., i]).astype(jnp.int32) for i in range(3))
    painted = planes.paint.reshape(-1, 4)[index * 4 + band]
    painted = jax.lax.optimization_barrier(painted)
    color, label = painted[..., :3], painted[..., 3]
    color = _with_windows(drive, color, y, band, real[..., 5], whole[..., 1], pixel)
    contrast = real[..., 3]

    road, road_label = _ground_color(drive, camera, x, z, depth)
    sky = _sky_color(drive, up / rays.z, noise)
    below, above = ground[..., None], ~(hit | ground)[..., None]
    color = jnp.where(below, road, color)
    contrast = jnp.where(hit, contrast, jnp.where(ground, 0.06, 0.0))
    color = color * (1 + contrast * noise)[..., None]
    haze = jnp.where(depth >= _FAR, 0.55, 1 - jnp.exp(-depth / 450))[..., None]
    color = color + haze * (_haze_color(drive) - color)
    color = jnp.where(above, sky, color)
    labels = jnp.where(hit, label, jnp.where(ground, road_label, _SKY)).astype(jnp.uint8)
    color = jax.lax.optimization_barrier(color)
    frame = _expose(drive, camera, color)
    return frame, labels


def _with_windows(drive, color, y, band, share, seed, pixel):
    floor = jnp.floor((y - 3.3) / 3.1)
    height = jnp.where(band == 1, y - 1.75, y - 3.3 - 3.1 * floor - 1.6)
    rows = _box(height, jnp.where(band == 1, 1.0, 0.8), pixel)
    rows = jnp.where((band == 1) | (band == 2), rows, 0.0)
    h = _mix(seed.astype(jnp.uint32) + floor.astype(jnp.int32).astype(jnp.uint32))
    tone, lit = _draws(h, 0), _draws(h, 1) < 0.55 * drive.dusk
    glass = jnp.array([58.0, 68, 80]) * (0.7 + 0.8 * tone)[..., None]
    glass = jnp.where(lit[..., None], jnp.array([250.0, 214, 140]), glass)
    # A sill of light stone below.
    sill = _box(height + 0.9, 0.1, pixel) * (band == 2)
    color = color + (share * sill)[..., None] * (206.0 - color) * 0.6
    return color + (share * rows)[..., None] * (glass - color)


def _ground_color(drive, camera, x, z, depth):
    """Asphalt, markings, curbs and slabs, by position; and their labels."""
    far = jnp.abs(x)
    edge = jnp.where(x > 0, drive.curb[1], drive.curb[0])
    on_road = far < edge
    wide = depth / drive.focal
    deep = wide * depth / _EYE
    asphalt, slabs = jnp.array([104.0, 104, 108]), jnp.array([158.0, 152, 146])

    def place(bits):  # metres into the cell
        return _metres(z & ((1 << bits) - 1))

    dash = place(_METRE + 3)
    block = place(_BLOCK)
    line = _box(far, 0.07, wide) * _box(dash - 4, 1.5, deep)
    line = jnp.maximum(line, 0.8 * _box(far - 3.5, 0.06, wide))
    line = jnp.where(jnp.abs(block - _ZEBRA - 1) < 3, 0.0, line)  # none where people cross
    stripes = _box(jnp.mod(far, 1.0) - 0.5, 0.25, wide) * _box(block - _ZEBRA - 1.5, 1.5, deep)
    zebra = jnp.where(far < 3.4, stripes, 0.0)
    stop = _box(block - _ZEBRA + 1.2, 0.2, deep) * ((x * drive.side > 0.1) & (far < 3.4))
    bay = _box(jnp.mod(dash, 8.0) - 0.2, 0.06, deep) * ((far > 3.5) & (far < edge - 0.1))
    line = jnp.maximum(jnp.maximum(line, zebra), jnp.maximum(stop, 0.8 * bay))
    lane = 1 - 0.08 * jnp.exp(-((jnp.abs(far - _LANE) - 0.8) ** 2) * 6)  # where wheels roll
    shade = lane * _shadows(drive, camera, x, z)
    road = asphalt * shade[..., None]
    road = road + (0.9 * line * (0.4 + 0.6 * shade))[..., None] * (222.0 - road)

    joint = jnp.maximum(
        _box(jnp.mod(far - edge, 0.8) - 0.4, 0.015, wide),
        _box(jnp.mod(dash, 1.0) - 0.5, 0.015, deep),
    )
    joint = joint * jnp.clip(1.5 - deep * 6, 0, 1)
    curb = _box(far - edge - 0.1, 0.1, wide)
    side = slabs * (1 - 0.16 * joint)[..., None]
    side = side + curb[..., None] * (186.0 - side)
    color = jnp.where(on_road[..., None], road, side) * drive.light[3]
    return color, jnp.where(on_road, _ROAD, _PAVEMENT)


def _shadows(drive, camera, x, z):
    """Darkness under cars: of the parked, of the oncoming and of the one ahead."""

    def under(across, along):
        """Of a car whose middle is this far away."""
        outside = jnp.maximum(jnp.abs(across) / 1.05, jnp.abs(along) / (_HALF_CAR + 0.15))
        return 1 - 0.72 * jnp.clip((1.12 - outside) * 5, 0.0, 1.0)

    far = jnp.abs(x)
    h = _cell_hash(drive, z >> _PARKED_CELL, _PARKED_CELL, _PARKED_CARS, x > 0)
    there, middle = _parked_car(drive, h, (x > 0).astype(jnp.int32))
    position = _metres(z & ((1 << _PARKED_CELL) - 1))
    parked = jnp.where(there, under(far - _PARKED - _HALF_WIDTH, position - middle), 1.0)

    moved = z + (_oncoming_origin(camera) - camera.z)
    # Before and after a car of the same cell; those of the next are too far away.
    cell = (moved + _UNIT) >> _ONCOMING_CELL
    h = _cell_hash(drive, cell, _ONCOMING_CELL, _ONCOMING, jnp.int32(0))
    position = _metres(moved - (cell << _ONCOMING_CELL)) - _HALF_CAR
    oncoming = under(x - _lane(drive), position)
    oncoming = jnp.where(_draws(h, 0) < 1.3 * drive.traffic, oncoming, 1.0)

    lead_x, _ = _path(drive, camera.lead_z)
    lead = under(x - lead_x, _metres(z - camera.lead_z) - _HALF_CAR)
    lead = jnp.where(drive.lead & (drive.traffic > 0), lead, 1.0)
    return jnp.minimum(jnp.minimum(parked, oncoming), lead)


def _haze_color(drive: Drive) -> jax.Array:
    day, evening = jnp.array([206.0, 214, 222]), jnp.array([236.0, 190, 160])
    return day + drive.dusk * (evening - day)


def _sky_color(drive, rise, noise):
    """A gradient from the horizon up, and clouds."""
    day, evening = jnp.array([112.0, 160, 216]), jnp.array([96.0, 112, 168])
    grey = jnp.array([190.0, 196, 204])
    zenith = day + drive.dusk * (evening - day)
    zenith = zenith + 0.6 * drive.cloud * (grey - zenith)
    up = jnp.clip(rise * 2.2, 0.0, 1.0)[..., None]
    sky = _haze_color(drive) + jnp.sqrt(up) * (zenith - _haze_color(drive))
    cover = jnp.clip((noise + 1.2 * drive.cloud - 0.7) * 0.9, 0.0, 1.0) * jnp.clip(rise * 8, 0, 1)
    cloud = jnp.array([244.0, 244, 246]) * (1 - 0.25 * drive.cloud)
    cloud = cloud - drive.dusk * jnp.array([0.0, 30, 40])
    return sky + 0.85 * cover[..., None] * (cloud - sky)


def _expose(drive: Drive, camera: _Camera, color: jax.Array) -> jax.Array:
    """The lens, which blurs a little, the exposure, the sensor's noise, and rounding."""
    color = color * drive.tint
    padded = jnp.pad(color, ((1, 1), (0, 0), (0, 0)), mode="edge")
    color = (padded[:-2] + 4 * padded[1:-1] + padded[2:]) * (1 / 6)
    padded = jnp.pad(color, ((0, 0), (1, 1), (0, 0)), mode="edge")
    color = (padded[:, :-2] + 4 * padded[:, 1:-1] + padded[:, 2:]) * (1 / 6)
    # The sum of four bytes of a hash is nearly Gaussian, with a variance of 4 (256**2 - 1) / 12.
    seed = _mix(_hash(drive.seed, 12, camera.t))
    h = _mix(jnp.arange(color.size, dtype=jnp.uint32).reshape(color.shape) + seed)
    total = sum(((h >> shift) & 0xFF).astype(jnp.float32) for shift in (0, 8, 16, 24))
    color = color + drive.noise * (total - 510) * (1 / 147.8)
    return jnp.clip(jnp.round(color), 0, 255).astype(jnp.uint8)
