import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.data.synthetic import Scene, SceneFrame, render, synthetic_scene

SIZE = (96, 120)


def whole_pixel_scene(camera: str = "panning", *, noise: float = 0.0) -> Scene:
    """A scene whose objects and camera move by whole pixels."""
    scene = synthetic_scene(
        jax.random.key(3), size=SIZE, objects=5, camera=camera, noise=noise, object_size=(16, 40)
    )
    return dataclasses.replace(
        scene,
        start=jnp.round(scene.start),
        velocity=jnp.array([[3.0, 1], [-2, 2], [0, -1], [1, 0], [-4, -3]]),
        camera_velocity=jnp.array([2.0, -3.0]) if camera == "panning" else jnp.zeros(2),
    )


def clip(scene: Scene, frames: int) -> SceneFrame:
    # One after the other, not under vmap: the tests share one executable.
    rendered = [render(scene, t) for t in range(frames)]
    return SceneFrame(*(np.stack(part) for part in zip(*rendered, strict=True)))


def test_same_key_draws_the_same_frames_and_another_key_others():
    scenes = [synthetic_scene(jax.random.key(seed), size=SIZE, objects=5) for seed in (5, 5, 6)]
    first, again, other = (np.asarray(render(scene, 4).frame) for scene in scenes)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_frames_are_the_same_under_vmap_and_scan():
    scene = synthetic_scene(jax.random.key(0), size=SIZE, objects=5, camera="panning")
    _, scanned = jax.lax.scan(lambda c, t: (c, render(scene, t)), None, jnp.arange(4))
    at_once = clip(scene, 4)
    # XLA may divide by a constant as it likes, so the last bit of `visibility` is left open.
    np.testing.assert_array_max_ulp(at_once.visibility, np.asarray(scanned.visibility), maxulp=1)
    for part, expected in zip(at_once, scanned._replace(visibility=at_once[4]), strict=True):
        np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(render(scene, 2).frame, scanned.frame[2])


def test_scenes_are_pytrees_that_can_be_drawn_in_batches():
    keys = jax.random.split(jax.random.key(0), 3)
    noise = jnp.array([0.0, 2.0, 5.0])
    draw = functools.partial(synthetic_scene, size=SIZE, objects=5)
    scenes = jax.vmap(lambda key, level: draw(key, noise=level))(keys, noise)
    frames = jax.vmap(render, in_axes=(0, None))(scenes, 1)
    one = render(draw(keys[1], noise=2.0), 1)
    assert frames.frame.shape == (3, *SIZE, 3)
    np.testing.assert_array_equal(frames.mask[1], one.mask)
    np.testing.assert_array_equal(frames.boxes[1], one.boxes)


@pytest.mark.parametrize("camera", ["fixed", "panning"])
def test_boxes_are_tight_around_the_visible_pixels(camera):
    frames = clip(
        synthetic_scene(
            jax.random.key(1), size=SIZE, objects=12, camera=camera, object_size=(16, 60), speed=5.0
        ),
        20,
    )
    hidden = cut = 0
    for t in range(20):
        for i in range(12):
            rows, columns = np.nonzero(frames.mask[t] == i)
            assert frames.visible[t, i] == (len(rows) > 0)
            if len(rows) == 0:
                expected = np.zeros(4)
                assert frames.visibility[t, i] == 0
                hidden += 1
            else:
                expected = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                cut += columns.min() == 0 or rows.min() == 0
                assert 0 < frames.visibility[t, i] <= 1
            np.testing.assert_array_equal(frames.boxes[t, i], expected)
    assert hidden > 0, "the crowded scene should hide some object, or the test shows nothing"
    assert cut > 0, "some object should be cut by the border"


def test_front_objects_hide_those_behind():
    scene = whole_pixel_scene("fixed")
    scene = dataclasses.replace(
        scene,
        start=jnp.full((5, 2), 50.0),
        velocity=jnp.zeros((5, 2)),
        radius=jnp.array([10.0, 20, 5, 4, 3]),
        classes=jnp.array([1, 1, 1, 0, 2]),
    )
    frame = render(scene, 0)
    np.testing.assert_array_equal(frame.visible, [False, True, True, True, True])
    np.testing.assert_array_equal(frame.boxes[1], [30, 30, 70, 70])
    assert frame.mask[49, 49] == 4
    # A square of side 40 minus the square of side 10 in front of it.
    assert float(frame.visibility[1]) == pytest.approx((1600 - 100) / 1600)


def test_shapes_are_what_their_class_says():
    scene = whole_pixel_scene("fixed")
    for index, area in enumerate([np.pi, 4.0, 2.0]):
        alone = dataclasses.replace(
            scene,
            start=jnp.array([[60.0, 48.0]] * 5),
            radius=jnp.array([1.0, 1, 1, 1, 30]),
            velocity=jnp.zeros((5, 2)),
            classes=jnp.full(5, index),
        )
        pixels = int((render(alone, 0).mask == 4).sum())
        # Pixels counted by their centres: the error is at most the pixels along the perimeter.
        assert abs(pixels - area * 30**2) <= 2 * np.pi * 30 if index != 1 else pixels == 3600


@pytest.mark.parametrize("camera", ["fixed", "panning"])
def test_motion_carries_pixels_bit_for_bit_when_whole(camera):
    frames = clip(whole_pixel_scene(camera), 60)
    rows, columns = np.indices(SIZE)
    carried = np.zeros(6, int)
    for t in range(1, 60):
        motion = frames.motion[t]
        np.testing.assert_array_equal(motion, np.round(motion))
        x, y = columns + motion[..., 0].astype(int), rows + motion[..., 1].astype(int)
        seen = (x >= 0) & (x < SIZE[1]) & (y >= 0) & (y < SIZE[0])
        x, y = x.clip(0, SIZE[1] - 1), y.clip(0, SIZE[0] - 1)
        seen &= frames.mask[t - 1][y, x] == frames.mask[t]
        np.testing.assert_array_equal(frames.frame[t][seen], frames.frame[t - 1][y, x][seen])
        carried += np.bincount(frames.mask[t][seen] + 1, minlength=6)
        # Only what was hidden, or out of sight, has nowhere to come from.
        assert seen.mean() > 0.85
    assert (carried > 0).all(), "every object and the background must have been carried somewhere"


def test_subpixel_motion_is_the_difference_of_positions():
    scene = synthetic_scene(jax.random.key(4), size=SIZE, objects=5, camera="panning", noise=0)
    scene = dataclasses.replace(
        scene,
        start=jnp.tile(jnp.array([60.0, 50.0]), (5, 1)),
        radius=jnp.array([20.0, 1, 1, 1, 1]),
        velocity=jnp.tile(jnp.array([1.25, -0.5]), (5, 1)),
    )
    frame = render(scene, 3)
    mask = np.asarray(frame.mask)
    motion = np.asarray(frame.motion)
    np.testing.assert_array_equal(motion[mask >= 0], [[-1.25, 0.5]] * (mask >= 0).sum())
    np.testing.assert_array_equal(
        motion[mask < 0], np.tile(scene.camera_velocity, ((mask < 0).sum(), 1))
    )


def test_objects_bounce_and_never_leave():
    scene = whole_pixel_scene("fixed")
    frames = clip(scene, 300)
    alone = frames.visible[:, 4]  # the front one is hidden by nothing
    assert alone.all()
    motion = frames.motion[frames.mask == 4]
    # Four directions on a straight path; at a bounce the path is folded and steps are shorter.
    assert {(4, 3), (-4, 3), (4, -3), (-4, -3)} <= {tuple(m) for m in motion.astype(int)}
    assert np.abs(motion).max() == 4


def test_fixed_background_without_noise_stays_bit_for_bit():
    frames = clip(synthetic_scene(jax.random.key(2), size=SIZE, objects=5, noise=0.0), 12)
    background = frames.mask < 0
    for t in range(1, 12):
        both = background[t] & background[0]
        assert both.mean() > 0.3
        np.testing.assert_array_equal(frames.frame[t][both], frames.frame[0][both])


@pytest.mark.parametrize("level", [1.0, 2.0, 5.0])
def test_noise_has_the_level_that_was_asked_for(level):
    scene = synthetic_scene(jax.random.key(2), size=SIZE, objects=0, noise=level)
    frames = clip(scene, 16).frame.astype(float)
    deviation = frames.std(axis=0, ddof=1)
    # Rounding to whole grey levels adds a variance of 1/12. The relative standard error of a
    # variance from n samples is sqrt(2 / n); six of them, and 2% for the one place where rounding
    # is not quite uniform (level 1), are allowed.
    expected = level**2 + 1 / 12
    samples = frames.size - deviation.size
    np.testing.assert_allclose(
        (deviation**2).mean(), expected, rtol=6 * (2 / samples) ** 0.5 + 0.02
    )
    # Noise is new in every frame: neighbouring frames do not go together.
    residual = frames - frames.mean(axis=0)
    correlation = (residual[1:] * residual[:-1]).mean() / expected
    assert abs(correlation + 1 / 16) < 6 / residual[1:].size ** 0.5


def test_background_keeps_its_distance_from_the_ends_of_the_scale():
    scene = synthetic_scene(jax.random.key(2), objects=1)
    assert 20 <= float(scene.background.min()) < float(scene.background.max()) <= 235
    assert float(scene.background.std()) > 15


def test_panning_camera_moves_the_whole_background():
    scene = synthetic_scene(
        jax.random.key(2), size=SIZE, objects=5, camera="panning", noise=0.0, object_size=(2, 4)
    )
    assert float(jnp.abs(scene.camera_velocity).max()) > 0.5
    frames = clip(scene, 2)
    assert (frames.frame[0] != frames.frame[1]).any(axis=-1).mean() > 0.8


def test_activity_is_controlled_by_number_size_and_speed():
    def similarity(**options):
        scene = synthetic_scene(jax.random.key(0), noise=0.0, **options)
        frames = clip(scene, 10).frame
        return (frames[1:] == frames[:-1]).all(axis=-1).mean()

    assert similarity(objects=1, speed=0.0) == 1.0
    # A square of side 8 touches at most 10 x 10 pixels a frame at one pixel per frame: 0.15%.
    assert similarity(objects=1, object_size=(8, 8), speed=1.0) >= 0.998
    assert similarity(objects=1, object_size=(6, 6), speed=1.0) >= 0.999
    assert similarity(objects=1, object_size=(160, 200), speed=4.0) < 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 10)}, r"size must be .*; got \(0, 10\)"),
        ({"objects": -1}, "objects must be zero or more; got -1"),
        ({"camera": "zoom"}, "camera must be 'fixed' or 'panning'; got 'zoom'"),
        ({"object_size": (30, 20)}, r"object_size must be .*; got \(30, 20\)"),
        ({"noise": -1.0}, "noise must be zero or more"),
        ({"speed": -1.0}, "speed must be zero or more"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic_scene(jax.random.key(0), **options)
