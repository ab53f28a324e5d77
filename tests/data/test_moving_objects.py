import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.data.moving_objects import (
    ObjectFrame,
    ObjectScene,
    object_clip,
    object_pairs,
    object_scene,
    render_objects,
)

SIZE = (96, 96)


def still(scene: ObjectScene, **changes) -> ObjectScene:
    """A scene without mishaps, noise or any motion, but for what is said."""
    settled = {
        "velocity": jnp.zeros_like(scene.velocity),
        "pose": scene.pose.at[:, 1:3].set(0.0),
        "camera_velocity": jnp.zeros(2),
        "mishaps": jnp.float32(0),
        "noise": jnp.float32(0),
    }
    return dataclasses.replace(scene, **settled | changes)


@pytest.fixture(scope="module")
def scene():
    return object_scene(jax.random.key(1), size=SIZE, objects=3)


def test_same_key_draws_the_same_frames_and_another_key_others(scene):
    again, other = (object_scene(jax.random.key(k), size=SIZE, objects=3) for k in (1, 2))
    first = render_objects(scene, 4)
    for part, same in zip(first, render_objects(again, 4), strict=True):
        np.testing.assert_array_equal(part, same)
    assert (np.asarray(first.frame) != render_objects(other, 4).frame).mean() > 0.5


def test_a_still_life_stands_still(scene):
    quiet = still(scene)
    first, later = render_objects(quiet, 0), render_objects(quiet, 50, key_t=7)
    np.testing.assert_array_equal(first.frame, later.frame)
    np.testing.assert_array_equal(first.boxes, later.boxes)
    assert not later.motion.any()
    assert not later.blur.any()


def test_the_background_moves_by_whole_pixels_as_its_motion_says(scene):
    far = scene.start.at[:].set(-1000.0)  # reflected into the frame: so things are made small too
    bare = still(
        scene, start=far, radius=jnp.full_like(scene.radius, 1e-3),
        camera_velocity=jnp.array([3.0, -2.0]), shutter=jnp.float32(0),
    )  # fmt: skip
    key, current = render_objects(bare, 5), render_objects(bare, 7, key_t=5)
    motion = np.asarray(current.motion)
    inner = np.s_[10:-10, 10:-10]
    usual = (motion == [6.0, -4.0]).all(-1)
    assert usual.mean() > 0.99  # all but the specks
    moved = np.roll(np.asarray(key.frame), (4, -6), (0, 1))
    same = (moved == np.asarray(current.frame)).all(-1)
    assert same[inner].mean() > 0.97


def test_motion_leads_to_where_things_were(scene):
    """Carried along the motion, an earlier frame is far more like the later one than as it was."""
    moving = still(
        scene, velocity=scene.velocity, pose=scene.pose, camera_velocity=jnp.array([1.5, 1.0]),
        shutter=jnp.float32(0),
    )  # fmt: skip
    worse = []
    for t in (3, 9):
        key, current = render_objects(moving, t), render_objects(moving, t + 4, key_t=t)
        motion = np.asarray(current.motion)
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        to_x = np.round(x + motion[..., 0]).astype(int).clip(0, SIZE[1] - 1)
        to_y = np.round(y + motion[..., 1]).astype(int).clip(0, SIZE[0] - 1)
        now, before = (np.asarray(f.frame).astype(float) for f in (current, key))
        carried = np.abs(before[to_y, to_x] - now).mean()
        worse.append(np.abs(before - now).mean() / carried)
    assert min(worse) > 1.5


def test_boxes_are_around_what_is_seen(scene):
    """An object alone, its colours unlike the background: its box is that of its pixels."""
    for kind in range(3):
        alone = still(
            scene,
            shapes=scene.shapes.at[:].set(kind),
            patterns=jnp.zeros_like(scene.patterns),
            radius=jnp.full_like(scene.radius, 1e-3).at[2].set(jnp.array([20.0, 14.0])),
            start=scene.start.at[2].set(jnp.array([50.0, 46.0])),
            pose=jnp.zeros_like(scene.pose).at[2, 0].set(0.35),
            colors=jnp.full_like(scene.colors, 120.0).at[2].set(jnp.array([255.0, 0.0, 255.0])),
            background=jnp.zeros_like(scene.background).at[..., :3].set(120.0),
            shutter=jnp.float32(0),
        )
        found = render_objects(alone, 0)
        # At least half covered: magenta's green falls from 120 to 0.
        rows, columns = np.nonzero(np.asarray(found.frame)[..., 1] < 60)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # A pixel's middle may be in while its edge is not, and corners are thin.
        np.testing.assert_allclose(found.boxes[0], seen, atol=2.0)
        assert found.visibility[0] == pytest.approx(1, abs=0.05)
        assert found.present.tolist()[0]


def test_mishaps_take_the_pattern_away(scene):
    """Somewhere in a hundred frames an object is out of focus, and its picture is smoother then."""
    troubled = still(scene, mishaps=jnp.float32(1))
    blur = np.stack([render_objects(troubled, t).blur for t in range(0, 96, 2)])
    assert (blur > 2).any()
    assert (blur == 0).any()

    def roughness(t: int) -> float:
        frame = np.asarray(render_objects(troubled, t).frame).astype(float)
        return np.abs(np.diff(frame, axis=0)).mean()

    sharpest, softest = (2 * int(f(blur.sum(1))) for f in (np.argmin, np.argmax))
    assert roughness(softest) < roughness(sharpest)


def test_a_clip_is_its_scenes_one_after_the_other():
    key = jax.random.key(3)
    options = {"size": (48, 64), "objects": 2}
    clip = jax.jit(lambda key: object_clip(key, frames=5, cuts=(2,), **options))(key)
    assert clip.frame.shape == (5, 48, 64, 3)
    scenes = [object_scene(k, **options) for k in jax.random.split(key, 2)]
    for t in range(5):
        expected = render_objects(scenes[t >= 2], t)
        # Compiled for itself a grey level may round the other way.
        near = np.abs(clip.frame[t].astype(int) - expected.frame.astype(int))
        assert near.max() <= 1
        np.testing.assert_array_equal(clip.classes[t], expected.classes)
        np.testing.assert_allclose(clip.boxes[t], expected.boxes, atol=1e-3)


def test_pairs_are_frames_of_one_scene():
    pairs = jax.jit(lambda key: object_pairs(key, pairs=6, size=(48, 64), objects=2))(
        jax.random.key(0)
    )
    assert isinstance(pairs.key, ObjectFrame)
    np.testing.assert_array_equal(pairs.key.classes, pairs.current.classes)
    assert set(np.asarray(pairs.gap)) <= set(range(10))
    for i in range(6):
        if pairs.gap[i] == 0:
            assert not pairs.current.motion[i].any()
            np.testing.assert_array_equal(pairs.key.frame[i], pairs.current.frame[i])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 5)}, "size must be"),
        ({"objects": 0}, "objects must be one or more; got 0"),
        ({"speed": -1}, "speed must be zero or more; got -1"),
        ({"camera_speed": -1}, "camera_speed must be zero or more; got -1"),
        ({"noise": -1}, "noise must be zero or more; got -1"),
        ({"mishaps": 2}, r"mishaps must be in \[0, 1\]; got 2"),
    ],
)
def test_options_out_of_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        object_scene(jax.random.key(0), **options)


def test_cuts_and_pairs_out_of_their_range():
    for cuts in ((0,), (3, 2), (9,)):
        with pytest.raises(ValueError, match="cuts must rise from 1 to below 9"):
            object_clip(jax.random.key(0), frames=9, cuts=cuts)
    with pytest.raises(ValueError, match="pairs must be one or more; got 0"):
        object_pairs(jax.random.key(0), pairs=0)
    with pytest.raises(ValueError, match="longest_gap must be zero or more; got -1"):
        object_pairs(jax.random.key(0), pairs=1, longest_gap=-1)
