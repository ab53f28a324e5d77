"""Synthetic videos with exact ground truth: boxes, masks, motion and classes of every frame.

A `Scene` is a frozen pytree drawn from a key; `render(scene, t)` is a pure function of both, so
that any frame can be had at random, many at once under `jax.vmap`, and a clip inside `lax.scan`.

Positions are dyadic (multiples of 1/16 pixel), so that a path computed in float32 is exact for
as long as it is shorter than 2**20 pixels, and nothing drifts.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

CLASS_NAMES = ("disc", "square", "triangle")
"""The name of each class index."""

_SUBPIXEL = 16  # positions and velocities are multiples of 1 / 16 pixel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything that decides what `render` draws; use `dataclasses.replace` to change a part.

    Pixel x covers `[x, x + 1)`; positions are (x, y), in pixels of the frame.

    Attributes:
      size: `(height, width)` of a frame, static.
      background: `(rows, columns, 3)` float32 grey levels, periodic; as large as the frame for a
        fixed camera, twice as large for a panning one.
      camera_velocity: `(2,)` float32 (dx, dy), pixels per frame that the camera moves.
      classes: `(objects,)` int32, index into `CLASS_NAMES`.
      radius: `(objects,)` float32, half of the object's side.
      start: `(objects, 2)` float32, the centre at frame 0.
      velocity: `(objects, 2)` float32, pixels per frame, before any bounce.
      colors: `(objects, 2, 3)` float32 grey levels: the two colours of the object's stripes.
      stripes: `(objects, 2)` float32, spatial frequency of the stripes, radians per pixel.
      noise: `()` float32, standard deviation of the sensor noise, grey levels.
      key: The random key of the sensor noise.
    """

    size: tuple[int, int] = dataclasses.field(metadata={"static": True})
    background: jax.Array
    camera_velocity: jax.Array
    classes: jax.Array
    radius: jax.Array
    start: jax.Array
    velocity: jax.Array
    colors: jax.Array
    stripes: jax.Array
    noise: jax.Array
    key: jax.Array


class SceneFrame(NamedTuple):
    """One frame of a scene and all that is known of it.

    Attributes:
      frame: `(H, W, 3)` uint8, RGB.
      boxes: `(objects, 4)` float32 (x0, y0, x1, y1), pixel edges; tight around the visible pixels
        of each object, zeros where it shows none.
      classes: `(objects,)` int32, index into `CLASS_NAMES`.
      visible: `(objects,)` bool, whether any pixel of the object shows.
      visibility: `(objects,)` float32, visible pixels as a share of the shape's whole area, in
        [0, 1]; below one where it is hidden by others or cut by the border.
      mask: `(H, W)` int32, the index of the object seen at each pixel, -1 for the background.
      motion: `(H, W, 2)` float32 (dx, dy) pixels, from this frame to the previous one: what is seen
        at (x, y) was at (x + dx, y + dy) in frame t - 1.
    """

    frame: jax.Array
    boxes: jax.Array
    classes: jax.Array
    visible: jax.Array
    visibility: jax.Array
    mask: jax.Array
    motion: jax.Array


def synthetic_scene(
    key: jax.Array,
    *,
    size: tuple[int, int] = (256, 256),
    objects: int = 6,
    camera: Literal["fixed", "panning"] = "fixed",
    noise: float | jax.Array = 2.0,
    speed: float | jax.Array = 2.0,
    object_size: tuple[float, float] = (16.0, 48.0),
) -> Scene:
    """Draws a scene: striped discs, squares and triangles over a textured background.

    The background is value noise in five octaves. Objects move in straight lines over the frame,
    bounce where their centre reaches its border, and hide one another in the order of their index
    (the last is in front). A panning camera moves the background at `speed` and leaves the objects'
    paths in the frame as they are. How much of a frame changes follows from `objects`,
    `object_size` and `speed`: one object of 6 pixels leaves 99.9% of a 256 x 256 frame as it was,
    a speed of zero leaves all of it.

    Args:
      key: A random key; the same key draws the same scene.
      size: `(height, width)` in pixels.
      objects: How many; zero for an empty scene.
      camera: `"fixed"` or `"panning"`.
      noise: Standard deviation of the Gaussian sensor noise, grey levels of 255.
      speed: The fastest an object may move, pixels per frame; each moves at half of it or more.
      object_size: The smallest and the largest side of an object, pixels.

    Returns:
      The scene.

    Raises:
      ValueError: Where an option is out of its range.

    >>> scene = synthetic_scene(jax.random.key(0), size=(48, 64), objects=2)
    >>> scene.start.shape, scene.background.shape
    ((2, 2), (48, 64, 3))
    """
    height, width = size
    smallest, largest = object_size
    if height < 1 or width < 1:
        raise ValueError(f"size must be (height, width) of at least one pixel; got {size}")
    if objects < 0:
        raise ValueError(f"objects must be zero or more; got {objects}")
    if camera not in ("fixed", "panning"):
        raise ValueError(f"camera must be 'fixed' or 'panning'; got {camera!r}")
    if not 1 <= smallest <= largest:
        raise ValueError(f"object_size must be (smallest, largest), at least 1; got {object_size}")
    for name, value in (("noise", noise), ("speed", speed)):
        if not isinstance(value, jax.Array) and value < 0:
            raise ValueError(f"{name} must be zero or more; got {value}")
    return _scene(
        key,
        jnp.asarray(noise, jnp.float32),
        jnp.asarray(speed, jnp.float32),
        jnp.array([smallest, largest], jnp.float32),
        size=(int(height), int(width)),
        objects=int(objects),
        camera=camera,
    )


@jax.jit(static_argnames=("size", "objects", "camera"))
def _scene(key, noise, speed, object_size, *, size, objects, camera) -> Scene:
    keys = jax.random.split(key, 9)
    panning = camera == "panning"
    extent = jnp.array(size[::-1], jnp.float32)
    world = (2 * size[0], 2 * size[1]) if panning else size
    velocity = _velocities(keys[0], objects, speed)
    camera_velocity = _velocities(keys[1], 1, speed)[0] if panning else jnp.zeros(2)
    start = _dyadic(jax.random.uniform(keys[2], (objects, 2)) * extent)
    side = jax.random.uniform(keys[3], (objects,), minval=object_size[0], maxval=object_size[1])
    wavelength = jax.random.uniform(keys[4], (objects,), minval=6.0, maxval=20.0)
    direction = _directions(keys[5], objects)
    return Scene(
        size=size,
        background=noise_background(keys[6], world),
        camera_velocity=camera_velocity,
        classes=jax.random.randint(keys[7], (objects,), 0, len(CLASS_NAMES), jnp.int32),
        radius=_dyadic(side / 2),
        start=start,
        velocity=velocity,
        colors=_object_colors(keys[8], objects),
        stripes=2 * jnp.pi * direction / wavelength[:, None],
        noise=noise,
        key=jax.random.fold_in(key, 1),
    )


@jax.jit
def render(scene: Scene, t: jax.typing.ArrayLike) -> SceneFrame:
    """Draws frame `t` of a scene and its ground truth; pure in both.

    Exact: the motion field carries an object's or the background's pixels to where they came from
    bit for bit where motion is whole pixels and noise is zero; a fixed background without noise is
    the same in every frame.

    Args:
      scene: The scene.
      t: Integer `()`, the frame's index; negative ones exist too.

    Returns:
      The frame with its boxes, classes, masks and motion field.

    >>> scene = synthetic_scene(jax.random.key(0), size=(48, 64), objects=2)
    >>> render(scene, 7).frame.shape
    (48, 64, 3)
    >>> clip = jax.vmap(render, in_axes=(None, 0))(scene, jnp.arange(5))
    >>> clip.motion.shape
    (5, 48, 64, 2)
    """
    height, width = scene.size
    t = jnp.asarray(t, jnp.int32)
    now, before = _centres(scene, t), _centres(scene, t - 1)
    rows = jnp.arange(height, dtype=jnp.float32) + 0.5
    columns = jnp.arange(width, dtype=jnp.float32) + 0.5

    dx = columns[None, None, :] - now[:, 0, None, None]
    dy = rows[None, :, None] - now[:, 1, None, None]
    inside = _inside(scene.classes[:, None, None], dx, dy, scene.radius[:, None, None])
    order = jnp.arange(len(scene.classes), dtype=jnp.int32)[:, None, None]
    mask = jnp.max(jnp.where(inside, order, -1), axis=0, initial=-1)

    # Every object has one row of a table; index -1, the background, picks the row added last.
    table = jnp.concatenate(
        [now, before - now, scene.stripes, scene.colors.reshape(-1, 6)], axis=1, dtype=jnp.float32
    )
    table = jnp.concatenate([table, jnp.zeros((1, table.shape[1]))])
    seen = table[mask]
    centre, motion, stripes, colors = jnp.split(seen, (2, 4, 6), axis=-1)
    from_centre = jnp.stack(jnp.meshgrid(columns, rows), axis=-1) - centre
    weight = 0.5 + 0.5 * jnp.sin(jnp.sum(from_centre * stripes, axis=-1, keepdims=True))
    striped = colors[..., :3] + weight * (colors[..., 3:] - colors[..., :3])

    empty = (mask < 0)[..., None]
    image = jnp.where(empty, _background_at(scene, t), striped)
    image = image + jax.lax.cond(
        scene.noise > 0,
        lambda: (
            scene.noise
            * jax.random.normal(jax.random.fold_in(scene.key, t), image.shape, jnp.float32)
        ),
        lambda: jnp.zeros_like(image),
    )
    boxes, visible, visibility = _boxes(scene, mask)
    return SceneFrame(
        frame=jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8),
        boxes=boxes,
        classes=scene.classes,
        visible=visible,
        visibility=visibility,
        mask=mask,
        motion=jnp.where(empty, scene.camera_velocity, motion),
    )


def _dyadic(x: jax.Array) -> jax.Array:
    return jnp.round(x * _SUBPIXEL) / _SUBPIXEL


def _directions(key: jax.Array, count: int) -> jax.Array:
    angle = jax.random.uniform(key, (count,), maxval=2 * jnp.pi)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def _velocities(key: jax.Array, count: int, speed: jax.Array) -> jax.Array:
    magnitude_key, direction_key = jax.random.split(key)
    magnitude = speed * jax.random.uniform(magnitude_key, (count, 1), minval=0.5)
    return _dyadic(magnitude * _directions(direction_key, count))


def _object_colors(key: jax.Array, count: int) -> jax.Array:
    """Two colours of one saturated hue, `(count, 2, 3)`; the background is nearly grey."""
    hue_key, level_key, depth_key = jax.random.split(key, 3)
    hue = jax.random.uniform(hue_key, (count, 1))
    phase = 2 * jnp.pi * (hue + jnp.array([0.0, 1 / 3, 2 / 3]))
    level = jax.random.uniform(level_key, (count, 1), minval=75.0, maxval=180.0)
    depth = jax.random.uniform(depth_key, (count, 1), minval=8.0, maxval=30.0)
    color = level + 60.0 * jnp.cos(phase)
    return jnp.stack([color - depth, color + depth], axis=1).clip(5.0, 250.0)


def noise_background(
    key: jax.Array, size: tuple[int, int], *, cell: float = 64.0, octaves: int = 5
) -> jax.Array:
    """Periodic value noise to put scenes on: octaves of grey, and one of colour.

    Args:
      key: A random key.
      size: (height, width) of one period.
      cell: Pixels from one point of the coarsest grid to the next; each octave halves it.
      octaves: How many there are, each of 0.65 of the amplitude of the one before.

    Returns:
      `(*size, 3)` float32, grey levels around 120.

    >>> noise_background(jax.random.key(0), (32, 48)).shape
    (32, 48, 3)
    """
    grey_key, color_key = jax.random.split(key)
    total = 0.0
    for octave, octave_key in enumerate(jax.random.split(grey_key, octaves)):
        total += 0.65**octave * _value_noise(octave_key, size, cell=cell / 2**octave, channels=1)
    tint = _value_noise(color_key, size, cell=cell, channels=3)
    return (120.0 + 40.0 * total + 12.0 * tint).clip(20.0, 235.0)


def _value_noise(key: jax.Array, size: tuple[int, int], *, cell: float, channels: int) -> jax.Array:
    """Uniform noise in [-1, 1] on a grid of about `cell` pixels, smoothly interpolated."""

    def interpolation(pixels: int, cells: int) -> jax.Array:
        position = jnp.arange(pixels) * (cells / pixels)
        left = jnp.floor(position)
        fraction = position - left
        fraction = fraction**2 * (3 - 2 * fraction)
        near = jax.nn.one_hot(left.astype(int), cells)
        far = jax.nn.one_hot((left.astype(int) + 1) % cells, cells)
        return near + fraction[:, None] * (far - near)

    grid = [max(1, round(pixels / cell)) for pixels in size]
    values = jax.random.uniform(key, (*grid, channels), minval=-1.0)
    down, across = (interpolation(p, g) for p, g in zip(size, grid, strict=True))
    return jnp.einsum("hi,wj,ijc->hwc", down, across, values, precision="highest")


def _centres(scene: Scene, t: jax.Array) -> jax.Array:
    """Where the objects are, `(objects, 2)`: straight paths reflected at the frame's borders."""
    extent = jnp.array(scene.size[::-1], jnp.float32)
    unfolded = scene.start + scene.velocity * t.astype(jnp.float32)
    return extent - jnp.abs(jnp.mod(unfolded, 2 * extent) - extent)


def _inside(classes: jax.Array, dx: jax.Array, dy: jax.Array, radius: jax.Array) -> jax.Array:
    disc = dx**2 + dy**2 <= radius**2
    square = (jnp.abs(dx) <= radius) & (jnp.abs(dy) <= radius)
    triangle = (2 * jnp.abs(dx) <= dy + radius) & (dy <= radius)  # its tip is up
    return jnp.where(classes == 0, disc, jnp.where(classes == 1, square, triangle))


def _background_at(scene: Scene, t: jax.Array) -> jax.Array:
    """The part of the periodic background that the camera sees, bilinear between pixels."""
    height, width = scene.size
    extent = jnp.array(scene.background.shape[1::-1], jnp.float32)
    corner = jnp.mod(scene.camera_velocity * t.astype(jnp.float32), extent)
    whole = jnp.floor(corner)
    fx, fy = corner - whole
    rows = (jnp.arange(height + 1) + whole[1].astype(int)) % scene.background.shape[0]
    columns = (jnp.arange(width + 1) + whole[0].astype(int)) % scene.background.shape[1]
    view = scene.background[rows][:, columns]
    view = view[:-1] + fy * (view[1:] - view[:-1])
    return view[:, :-1] + fx * (view[:, 1:] - view[:, :-1])


def _boxes(scene: Scene, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tight boxes of the visible pixels, whether there are any, and what share of all shows."""
    height, width = scene.size
    own = mask == jnp.arange(len(scene.classes))[:, None, None]
    in_column, in_row = own.any(axis=1), own.any(axis=2)
    visible = in_row.any(axis=1)
    x0, y0 = jnp.argmax(in_column, axis=1), jnp.argmax(in_row, axis=1)
    x1 = width - jnp.argmax(in_column[:, ::-1], axis=1)
    y1 = height - jnp.argmax(in_row[:, ::-1], axis=1)
    boxes = jnp.stack([x0, y0, x1, y1], axis=-1).astype(jnp.float32)
    area = jnp.array([jnp.pi, 4.0, 2.0])[scene.classes] * scene.radius**2
    visibility = jnp.minimum(own.sum(axis=(1, 2)) / area, 1.0)
    return jnp.where(visible[:, None], boxes, 0.0), visible, visibility.astype(jnp.float32)
