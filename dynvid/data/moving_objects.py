"""Synthetic videos of moving objects whose single frames are hard: blurred, defocused, occluded.

What an object is, its silhouette and its pattern say together. Motion blur, defocus and what passes
in front take the pattern away for a few frames, so that a single frame is at a loss where its
neighbours are not: what aggregation over frames is for (Zhu et al., Flow-Guided Feature
Aggregation, 2017, Fig. 1). Boxes, identities and motion are exact all the same.

An `ObjectScene` is a frozen pytree drawn from a key; `render_objects(scene, t)` is a pure function
of both, so that any frame can be had at random.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.data.synthetic import noise_background
from dynvid.models.flow_detection import CLASS_NAMES

_DISC, _BOX, _TRIANGLE = range(3)
_PLAIN, _RINGS, _STRIPES, _CHECKS = range(4)
# Silhouette and pattern of each class: it takes both to tell.
_KINDS = np.array(
    [
        (_DISC, _RINGS), (_DISC, _STRIPES), (_BOX, _STRIPES),
        (_BOX, _CHECKS), (_TRIANGLE, _CHECKS), (_TRIANGLE, _RINGS),
    ]
)  # fmt: skip
_PLAIN_THINGS, _BARS = 2, 2  # what is no object: behind the objects, and in front of them
_EXPOSURES = 5  # a frame is the mean of as many instants
_BLOCK = 12  # frames in which everything has at most one mishap
_MARGIN = 8.0  # how far the middle of a thing may leave the frame, pixels of a frame of 256
_LEAST_VISIBLE = 0.3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ObjectScene:
    """Everything that decides what `render_objects` draws; `dataclasses.replace` changes a part.

    N things are drawn one over the other: plain ones, the M objects, and bars that pass in front.
    Pixel x covers `[x, x + 1)`; positions are (x, y), in pixels of the frame.

    Attributes:
      size: `(height, width)` of a frame, static.
      classes: `(M,)` int32, index into `CLASS_NAMES`.
      shapes: `(N,)` int32: disc, box, triangle.
      patterns: `(N,)` int32: none, rings, stripes, checks.
      radius: `(N, 2)` float32, half of the sides.
      start: `(N, 2)` float32, the middle at frame 0.
      velocity: `(N, 2)` float32, pixels per frame, before any bounce.
      pose: `(N, 4)` float32: angle, its swing, how much the thing grows and shrinks, and the phase
        of both, radians.
      colors: `(N, 2, 3)` float32 grey levels: the two colours of the pattern.
      wavelength: `(N,)` float32, of the pattern, pixels.
      background: `(rows, columns, 4)` float32 grey levels, periodic: red, green and blue without
        the fine grey detail, and that.
      camera_velocity: `(2,)` float32, pixels per frame that the camera moves over the background.
      mishaps: `()` float32, how often things and the camera jerk or get out of focus, in [0, 1].
      shutter: `()` float32, how much of the time between two frames the shutter is open.
      noise: `()` float32, standard deviation of the sensor noise, grey levels.
      key: The random key of mishaps and noise.
    """

    size: tuple[int, int] = dataclasses.field(metadata={"static": True})
    classes: jax.Array
    shapes: jax.Array
    patterns: jax.Array
    radius: jax.Array
    start: jax.Array
    velocity: jax.Array
    pose: jax.Array
    colors: jax.Array
    wavelength: jax.Array
    background: jax.Array
    camera_velocity: jax.Array
    mishaps: jax.Array
    shutter: jax.Array
    noise: jax.Array
    key: jax.Array


class ObjectFrame(NamedTuple):
    """One frame of a scene and all that is known of it.

    An object keeps its slot of the M, which is its identity.

    Attributes:
      frame: `(H, W, 3)` uint8, RGB.
      boxes: `(M, 4)` float32, `(x0, y0, x1, y1)` around the silhouettes at the middle of the
        exposure, what others hide included, cut to the frame.
      classes: `(M,)` int32, index into `CLASS_NAMES`.
      present: `(M,)` bool, of which enough shows to be looked for.
      visibility: `(M,)` float32, the share of the silhouette that is in the frame and not hidden.
      blur: `(M,)` float32, standard deviation of the defocus of each object, pixels.
      motion: `(H, W, 2)` float32 (dx, dy) pixels, to an earlier frame: what is seen at (x, y) was
        at (x + dx, y + dy) there.
    """

    frame: jax.Array
    boxes: jax.Array
    classes: jax.Array
    present: jax.Array
    visibility: jax.Array
    blur: jax.Array
    motion: jax.Array


class ObjectPairs(NamedTuple):
    """Key frames and later frames of the same scenes.

    Attributes:
      key: The key frames, `ObjectFrame` of arrays with a leading axis of pairs.
      current: The later frames; their motion is to the key frame.
      gap: `(pairs,)` int32, frames between both.
    """

    key: ObjectFrame
    current: ObjectFrame
    gap: jax.Array


class _Mishaps(NamedTuple):
    """What goes wrong in one block of frames, of the camera (first) and of every thing."""

    jerk: jax.Array  # (1 + N, 2), pixels
    jerk_span: jax.Array  # (1 + N, 2), first frame and length
    defocus: jax.Array  # (1 + N,), pixels
    defocus_span: jax.Array  # (1 + N, 2)


def object_scene(
    key: jax.Array,
    *,
    size: tuple[int, int] = (256, 256),
    objects: int = 4,
    speed: float | jax.Array = 4.5,
    camera_speed: float | jax.Array = 1.5,
    mishaps: float | jax.Array = 0.8,
    noise: float | jax.Array = 4.0,
) -> ObjectScene:
    """Draws a scene: textured objects among plain things, behind passing bars, over clutter.

    A third of the objects each is nearly still, of medium speed and fast.

    Args:
      key: A random key; the same key draws the same scene.
      size: `(height, width)` in pixels. Things are those of a frame of 256 whatever the size.
      objects: M, how many have a class.
      speed: The fastest that things move, pixels per frame; zero for a still life.
      camera_speed: The fastest that the camera moves over the background, pixels per frame.
      mishaps: How often the camera and each object jerk, which blurs them, or get out of focus, in
        each 12 frames, in [0, 1].
      noise: Standard deviation of the sensor noise, grey levels of 255.

    Returns:
      The scene.

    Raises:
      ValueError: Where an option is out of its range.

    >>> scene = object_scene(jax.random.key(0), size=(48, 64), objects=2)
    >>> scene.classes.shape, scene.start.shape
    ((2,), (6, 2))
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size must be (height, width) of at least one pixel; got {size}")
    if objects < 1:
        raise ValueError(f"objects must be one or more; got {objects}")
    for name, value in (("speed", speed), ("camera_speed", camera_speed), ("noise", noise)):
        if not isinstance(value, jax.Array) and value < 0:
            raise ValueError(f"{name} must be zero or more; got {value}")
    if not isinstance(mishaps, jax.Array) and not 0 <= mishaps <= 1:
        raise ValueError(f"mishaps must be in [0, 1]; got {mishaps}")
    options = (jnp.asarray(x, jnp.float32) for x in (speed, camera_speed, mishaps, noise))
    return _draw(key, *options, size=(int(height), int(width)), objects=int(objects))


@jax.jit(static_argnames=("size", "objects"))
def _draw(key, speed, camera_speed, mishaps, noise, *, size, objects) -> ObjectScene:
    keys = iter(jax.random.split(key, 20))
    things = _PLAIN_THINGS + objects + _BARS
    unit = max(size) / 256
    extent = jnp.array(size[::-1], jnp.float32)

    def uniform(shape: tuple[int, ...], low: float, high: float) -> jax.Array:
        return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

    classes = jax.random.randint(next(keys), (objects,), 0, len(CLASS_NAMES), jnp.int32)
    plain = jax.random.randint(next(keys), (_PLAIN_THINGS,), 0, 3, jnp.int32)
    kinds = jnp.array(_KINDS, jnp.int32)[classes]
    bars = jnp.full((_BARS,), _BOX, jnp.int32)
    blank = jnp.zeros((_BARS,), jnp.int32)
    radius = uniform((things, 1), 26.0, 46.0) * uniform((things, 2), 0.85, 1.15)
    bar = jnp.concatenate([uniform((_BARS, 1), 5.0, 9.0), jnp.full((_BARS, 1), 400.0)], 1)
    radius = radius.at[-_BARS:].set(bar)

    # Still, medium and fast, by thirds.
    which = jax.random.randint(next(keys), (things,), 0, 3)
    least, most = jnp.array([[0.0, 0.08], [0.16, 0.4], [0.5, 1.0]]).T
    pace = speed * (least[which] + (most - least)[which] * uniform((things,), 0.0, 1.0))
    heading = uniform((things,), 0.0, 2 * jnp.pi)
    direction = jnp.stack([jnp.cos(heading), jnp.sin(heading)], -1)
    velocity = unit * pace[:, None] * direction
    course = uniform((), 0.0, 2 * jnp.pi)
    camera = unit * camera_speed * uniform((), 0.0, 1.0)
    camera_velocity = camera * jnp.stack([jnp.cos(course), jnp.sin(course)])

    swing = uniform((things, 4), 0.0, 1.0) * jnp.array([0.8, 0.25, 0.12, 2 * jnp.pi])
    pose = (swing - jnp.array([0.4, 0.0, 0.0, 0.0])).at[-_BARS:, 1:3].set(0.0)

    hue = 2 * jnp.pi * (uniform((things, 1), 0.0, 1.0) + jnp.array([0.0, 1 / 3, 2 / 3]))
    level, depth = uniform((things, 1), 80.0, 175.0), uniform((things, 1), 32.0, 55.0)
    middle = level + 45.0 * jnp.cos(hue)
    colors = jnp.stack([middle - depth, middle + depth], 1).clip(5.0, 250.0)
    return ObjectScene(
        size=size,
        classes=classes,
        shapes=jnp.concatenate([plain, kinds[:, 0], bars]),
        patterns=jnp.concatenate([jnp.zeros_like(plain), kinds[:, 1], blank]),
        radius=unit * radius,
        start=uniform((things, 2), 0.0, 1.0) * extent,
        velocity=velocity,
        pose=pose,
        colors=colors,
        wavelength=unit * uniform((things,), 14.0, 20.0),
        background=_background(next(keys), (2 * size[0], 2 * size[1])),
        camera_velocity=camera_velocity,
        mishaps=mishaps,
        shutter=uniform((), 0.4, 0.9),
        noise=noise,
        key=next(keys),
    )


def _background(key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Clutter of all sizes, its fine part apart: that goes first where the camera blurs."""
    coarse, fine = jax.random.split(key)
    detail = noise_background(fine, size, cell=8.0, octaves=2)[..., :1] - 120.0
    return jnp.concatenate([noise_background(coarse, size, cell=64.0, octaves=3), detail], -1)


def _spans(key: jax.Array, count: int, shortest: float, longest: float) -> jax.Array:
    first, second = jax.random.split(key)
    length = jax.random.uniform(first, (count,), minval=shortest, maxval=longest)
    start = 0.5 + jax.random.uniform(second, (count,)) * (_BLOCK - 1 - length)
    return jnp.stack([start, length], -1)


def _mishaps(scene: ObjectScene, t: jax.Array) -> _Mishaps:
    """Those of the block of frames that `t` is in; bars have none, nor what is plain any jerk."""
    count = 1 + len(scene.shapes)
    unit = max(scene.size) / 256
    block = t // _BLOCK
    keys = jax.random.split(jax.random.fold_in(scene.key, block), 7)
    kind = jax.random.uniform(keys[0], (count,))
    able = jnp.ones((count,), bool).at[-_BARS:].set(False)
    jerks = able & (kind < scene.mishaps / 2)
    blurs = able & (kind >= scene.mishaps / 2) & (kind < scene.mishaps)
    angle = jax.random.uniform(keys[1], (count,), maxval=2 * jnp.pi)
    reach = unit * jax.random.uniform(keys[2], (count,), minval=12.0, maxval=20.0) * jerks
    jerk = reach[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    sigma = unit * jax.random.uniform(keys[3], (count,), minval=6.0, maxval=10.0)
    first = block.astype(jnp.float32) * _BLOCK
    start = jnp.stack([first, jnp.zeros_like(first)])
    return _Mishaps(
        jerk, start + _spans(keys[4], count, 3.0, 5.0),
        sigma * blurs, start + _spans(keys[5], count, 3.0, 7.0),
    )  # fmt: skip


def _bump(time: jax.Array, span: jax.Array) -> jax.Array:
    """From 0 to 1 and back in the span, smoothly."""
    inside = jnp.clip((time - span[:, 0]) / span[:, 1], 0.0, 1.0)
    return jnp.sin(jnp.pi * inside) ** 2


class _State(NamedTuple):
    """Where everything is at one instant."""

    middle: jax.Array  # (N, 2)
    angle: jax.Array  # (N,)
    zoom: jax.Array  # (N,)
    sigma: jax.Array  # (1 + N,), of the camera alone, and of each thing with it
    corner: jax.Array  # (2,), of the frame on the background


def _state(scene: ObjectScene, mishaps: _Mishaps, time: jax.Array) -> _State:
    extent = jnp.array(scene.size[::-1], jnp.float32)
    margin = _MARGIN * max(scene.size) / 256
    room = extent + 2 * margin
    path = scene.start + scene.velocity * time + margin
    path = room - jnp.abs(jnp.mod(path, 2 * room) - room) - margin  # reflected at the borders
    jerk = mishaps.jerk * _bump(time, mishaps.jerk_span)[:, None]
    sigma = mishaps.defocus * jnp.sqrt(_bump(time, mishaps.defocus_span))
    sway = jnp.sin(0.15 * time + scene.pose[:, 3])
    return _State(
        middle=path + jerk[1:] - jerk[0],
        angle=scene.pose[:, 0] + scene.pose[:, 1] * sway,
        zoom=1 + scene.pose[:, 2] * sway,
        sigma=jnp.concatenate([sigma[:1], jnp.hypot(sigma[0], sigma[1:])]),
        corner=scene.camera_velocity * time + jerk[0],
    )


def _own(
    scene: ObjectScene, state: _State, i: jax.Array, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Positions in a thing's own frame, and how far they are outside of it, pixels of the frame."""
    c, s = jnp.cos(state.angle[i]), jnp.sin(state.angle[i])
    dx, dy = x - state.middle[i, 0], y - state.middle[i, 1]
    u, v = (c * dx + s * dy) / state.zoom[i], (c * dy - s * dx) / state.zoom[i]
    a, b = scene.radius[i]
    across, down = jnp.abs(u), jnp.abs(v)
    disc = (jnp.sqrt((u / a) ** 2 + (v / b) ** 2) - 1) * jnp.minimum(a, b)
    box = jnp.maximum(across - a, down - b)
    slope = (2 * b * across - a * (v + b)) / jnp.hypot(2 * b, a)
    triangle = jnp.maximum(v - b, slope)
    shape = scene.shapes[i]
    outside = jnp.where(shape == _DISC, disc, jnp.where(shape == _BOX, box, triangle))
    return u, v, outside * state.zoom[i]


def _wave(x: jax.Array) -> jax.Array:
    """A triangle wave of period 1 in [-1, 1]."""
    return 4 * jnp.abs(x - jnp.floor(x + 0.5)) - 1


def _exposure(scene: ObjectScene, state: _State) -> jax.Array:
    """What the camera sees at one instant, `(H, W, 3)` grey levels."""
    height, width = scene.size
    image = _background_at(scene, state)
    x = jnp.arange(width, dtype=jnp.float32) + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5

    def draw(i: jax.Array, image: jax.Array) -> jax.Array:
        u, v, outside = _own(scene, state, i, x, y)
        sigma, wavelength = state.sigma[1 + i], scene.wavelength[i]
        cover = jnp.clip(0.5 - outside / (1 + 2.5 * sigma), 0, 1)
        cover = cover * cover * (3 - 2 * cover)
        pattern = scene.patterns[i]
        along = jnp.where(pattern == _RINGS, jnp.sqrt(u * u + v * v), u)
        wave = _wave(along / wavelength)
        wave = jnp.where(pattern == _CHECKS, wave * _wave(v / wavelength), wave)
        # A grating out of focus loses its contrast; that of checks is finer by sqrt(2).
        finer = jnp.where(pattern == _CHECKS, 2.0, 1.0)
        contrast = jnp.exp(-2 * finer * (jnp.pi * sigma / wavelength) ** 2) * (pattern != _PLAIN)
        dark, light = scene.colors[i]
        color = (dark + light) / 2 + (contrast * wave)[..., None] * (light - dark) / 2
        return image + cover[..., None] * (color - image)

    return jax.lax.fori_loop(0, len(scene.shapes), draw, image)


def _background_at(scene: ObjectScene, state: _State) -> jax.Array:
    """The part of the periodic background that the camera sees, bilinear between pixels."""
    height, width = scene.size
    rows, columns = scene.background.shape[:2]
    corner = jnp.mod(state.corner, jnp.array([columns, rows], jnp.float32))
    whole = jnp.floor(corner)
    fx, fy = corner - whole
    down = (jnp.arange(height + 1) + whole[1].astype(int)) % rows
    across = (jnp.arange(width + 1) + whole[0].astype(int)) % columns
    view = scene.background[down][:, across]
    view = view[:-1] + fy * (view[1:] - view[:-1])
    view = view[:, :-1] + fx * (view[:, 1:] - view[:, :-1])
    return view[..., :3] + view[..., 3:] / (1 + state.sigma[0] ** 2)


@jax.jit
def render_objects(
    scene: ObjectScene, t: jax.typing.ArrayLike, *, key_t: jax.typing.ArrayLike | None = None
) -> ObjectFrame:
    """Draws frame `t` of a scene, its boxes and its motion; pure in all of them.

    Exact: boxes and motion are those of the middle of the exposure. Where what a pixel shows was
    hidden in frame `key_t`, motion still says where it was; of what bounced off the border or
    jerked in between it says the same. Approximate: the exposure is the mean of five instants, and
    defocus takes contrast from patterns and softens outlines instead of convolving the picture.

    Args:
      scene: The scene.
      t: Integer `()`, the frame's index; negative ones exist too.
      key_t: Integer `()`, the frame that motion leads to; by default `t - 1`.

    Returns:
      The frame with its boxes, classes and motion.

    >>> scene = object_scene(jax.random.key(0), size=(48, 64), objects=2)
    >>> jax.eval_shape(render_objects, scene, 7).motion.shape
    (48, 64, 2)
    """
    t = jnp.asarray(t, jnp.int32)
    key_t = t - 1 if key_t is None else jnp.asarray(key_t, jnp.int32)
    mishaps = _mishaps(scene, t)
    time = t.astype(jnp.float32)
    now = _state(scene, mishaps, time)
    before = _state(scene, _mishaps(scene, key_t), key_t.astype(jnp.float32))
    instants = (jnp.arange(_EXPOSURES) - (_EXPOSURES - 1) / 2) / _EXPOSURES

    def add(total: jax.Array, instant: jax.Array) -> tuple[jax.Array, None]:
        state = _state(scene, mishaps, time + scene.shutter * instant)
        return total + _exposure(scene, state), None

    image, _ = jax.lax.scan(add, jnp.zeros((*scene.size, 3)), instants)
    image = image / _EXPOSURES
    noise = jax.random.normal(jax.random.fold_in(scene.key, t), image.shape, jnp.float32)
    image = image + scene.noise * noise
    mask, motion = _seen(scene, now, before)
    boxes, visibility = _boxes(scene, now, mask)
    return ObjectFrame(
        frame=jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8),
        boxes=boxes,
        classes=scene.classes,
        present=visibility >= _LEAST_VISIBLE,
        visibility=visibility,
        blur=now.sigma[1 + _PLAIN_THINGS : -_BARS],
        motion=motion,
    )


def object_pairs(
    key: jax.Array, *, pairs: int, longest_gap: int = 9, **options: Any
) -> ObjectPairs:
    """Draws pairs of a key frame and a frame up to `longest_gap` later, each of a scene of its own.

    Args:
      key: A random key.
      pairs: How many.
      longest_gap: The largest number of frames between both; all from zero on are as likely.
      options: As of `object_scene`.

    Returns:
      The pairs.

    Raises:
      ValueError: Where an option is out of its range.

    >>> drawn = jax.eval_shape(lambda key: object_pairs(key, pairs=2), jax.random.key(0))
    >>> drawn.current.motion.shape, drawn.gap.shape
    ((2, 256, 256, 2), (2,))
    """
    if pairs < 1:
        raise ValueError(f"pairs must be one or more; got {pairs}")
    if longest_gap < 0:
        raise ValueError(f"longest_gap must be zero or more; got {longest_gap}")

    def pair(key: jax.Array) -> ObjectPairs:
        scene_key, time_key, gap_key = jax.random.split(key, 3)
        scene = object_scene(scene_key, **options)
        t = jax.random.randint(time_key, (), 0, 1 << 10)
        gap = jax.random.randint(gap_key, (), 0, longest_gap + 1)
        return ObjectPairs(
            render_objects(scene, t), render_objects(scene, t + gap, key_t=t), gap
        )  # fmt: skip

    return jax.lax.map(pair, jax.random.split(key, pairs))


def object_clip(
    key: jax.Array, *, frames: int, cuts: Sequence[int] = (), **options: Any
) -> ObjectFrame:
    """Draws consecutive frames, of one scene or of one after the other with cuts between them.

    Args:
      key: A random key.
      frames: T, how many.
      cuts: The first frame of every further scene, rising.
      options: As of `object_scene`.

    Returns:
      `ObjectFrame` of arrays with a leading axis of T. After a cut the M slots hold the objects of
      another scene, and motion of its first frame leads to a frame that is not shown.

    Raises:
      ValueError: The cuts are not rising frames within the clip, or an option is out of its range.

    >>> draw = lambda key: object_clip(key, frames=4, cuts=(2,), size=(48, 64))
    >>> jax.eval_shape(draw, jax.random.key(0)).frame.shape
    (4, 48, 64, 3)
    """
    borders = (0, *cuts, frames)
    if any(b <= a for a, b in itertools.pairwise(borders)):
        raise ValueError(f"cuts must rise from 1 to below {frames}, the frames; got {tuple(cuts)}")
    starts = jnp.array(cuts, jnp.int32)
    keys = jax.random.split(key, len(borders) - 1)
    scenes = jax.lax.map(lambda key: object_scene(key, **options), keys)

    def draw(t: jax.Array) -> ObjectFrame:
        which = jnp.sum(t >= starts)
        return render_objects(jax.tree.map(lambda x: x[which], scenes), t)

    return jax.lax.map(draw, jnp.arange(frames))


def _seen(scene: ObjectScene, now: _State, before: _State) -> tuple[jax.Array, jax.Array]:
    """Which thing each pixel shows, -1 for the background, and where that was before."""
    height, width = scene.size
    x = jnp.arange(width, dtype=jnp.float32) + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    away = now.corner - before.corner
    dx, dy = (jnp.full((height, width), away[axis]) for axis in range(2))
    mask = jnp.full((height, width), -1, jnp.int32)
    turn, grown = before.angle - now.angle, before.zoom / now.zoom

    def look(i: jax.Array, seen: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        mask, dx, dy = seen
        inside = _own(scene, now, i, x, y)[2] <= 0
        c, s = grown[i] * jnp.cos(turn[i]), grown[i] * jnp.sin(turn[i])
        from_x, from_y = x - now.middle[i, 0], y - now.middle[i, 1]
        to_x = before.middle[i, 0] + c * from_x - s * from_y - x
        to_y = before.middle[i, 1] + s * from_x + c * from_y - y
        return (
            jnp.where(inside, i, mask), jnp.where(inside, to_x, dx), jnp.where(inside, to_y, dy)
        )  # fmt: skip

    mask, dx, dy = jax.lax.fori_loop(0, len(scene.shapes), look, (mask, dx, dy))
    return mask, jnp.stack([dx, dy], -1)


def _boxes(scene: ObjectScene, now: _State, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Boxes of the objects' silhouettes, cut to the frame, and what share of each shows."""
    own = slice(_PLAIN_THINGS, len(scene.shapes) - _BARS)
    shapes, radius = scene.shapes[own], scene.radius[own]
    c, s = jnp.cos(now.angle[own])[:, None], jnp.sin(now.angle[own])[:, None]
    # Corners of box and triangle; the disc has the extents of its ellipse instead.
    boxes = jnp.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    triangle = jnp.array([[0.0, -1.0], [0.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    corners = jnp.where((shapes == _BOX)[:, None, None], boxes, triangle) * radius[:, None]
    u, v = corners[..., 0], corners[..., 1]
    turned = jnp.stack([c * u - s * v, s * u + c * v], -1)
    a, b = radius[:, :1], radius[:, 1:]
    ellipse = jnp.concatenate([jnp.hypot(a * c, b * s), jnp.hypot(a * s, b * c)], 1)
    disc = (shapes == _DISC)[:, None]
    low = jnp.where(disc, -ellipse, turned.min(1))
    high = jnp.where(disc, ellipse, turned.max(1))
    zoom, middle = now.zoom[own][:, None], now.middle[own]
    extent = jnp.array(scene.size[::-1] * 2, jnp.float32)
    found = jnp.concatenate([middle + zoom * low, middle + zoom * high], 1)
    area = jnp.array([jnp.pi, 4.0, 2.0])[shapes] * radius[:, 0] * radius[:, 1] * zoom[:, 0] ** 2
    index = jnp.arange(_PLAIN_THINGS, len(scene.shapes) - _BARS)
    shown = jnp.sum(mask == index[:, None, None], (1, 2))
    return jnp.clip(found, 0, extent), jnp.minimum(shown / area, 1.0).astype(jnp.float32)
