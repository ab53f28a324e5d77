import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dynvid.data import driving
from dynvid.data.driving import (
    Drive,
    DriveFrame,
    drive_motion,
    drive_pairs,
    driving_scene,
    render_drive,
)
from dynvid.models.driving import CLASS_NAMES

SIZE = (60, 80)


@functools.cache
def drive(seed: int = 0, **options) -> Drive:
    return driving_scene(jax.random.key(seed), size=SIZE, **{"noise": 0.0, **options})


def shown(scene: Drive, t: int, *, key_t: int | None = None) -> DriveFrame:
    # With the frame before spelled out: one executable for all tests.
    drawn = render_drive(scene, t, key_t=t - 1 if key_t is None else key_t)
    return DriveFrame(*(np.asarray(part) for part in drawn))


@jax.jit
def looked(scene: Drive, t, key_t):
    now, key = driving._camera(scene, t), driving._camera(scene, key_t)
    return now, key, driving._look(scene, now, key)


def cruising(scene: Drive) -> int:
    """A frame at which the car drives at full speed."""
    accelerating, cruising, *_ = (int(n) for n in scene.frames)
    return accelerating + cruising // 2 - int(scene.start)


def standing(scene: Drive) -> int:
    """The first frame of a stop."""
    return int(scene.frames[:3].sum()) - int(scene.start)


def test_the_same_key_draws_the_same_frames_and_another_key_others():
    first, again, other = (
        shown(driving_scene(jax.random.key(seed), size=SIZE), 9) for seed in (5, 5, 6)
    )
    for part, expected in zip(first, again, strict=True):
        np.testing.assert_array_equal(part, expected)
    assert (first.frame != other.frame).mean() > 0.5
    assert (first.labels != other.labels).mean() > 0.05


def test_frames_are_those_of_one_scene_at_a_time_under_vmap():
    keys = jax.random.split(jax.random.key(3), 3)
    draw = functools.partial(driving_scene, size=SIZE)
    times = jnp.array([4, 90, 1000])
    at_once = jax.vmap(render_drive)(jax.vmap(draw)(keys), times)
    for i in range(3):
        one = shown(draw(keys[i]), int(times[i]))
        # Multiplication and addition may round once or twice, which at an edge is another pixel.
        assert (at_once.labels[i] != one.labels).mean() < 1e-3
        assert (np.abs(at_once.frame[i].astype(int) - one.frame) > 1).mean() < 1e-2
        assert (np.abs(at_once.motion[i] - one.motion) > 1e-2).mean() < 1e-3


def test_every_class_is_there_in_the_share_that_a_network_can_learn():
    counts = np.zeros(len(CLASS_NAMES))
    for seed in range(12):
        scene = drive(seed, noise=2.0)
        for t in range(0, 300, 60):
            counts += np.bincount(shown(scene, t).labels.ravel(), minlength=len(CLASS_NAMES))
    shares = dict(zip(CLASS_NAMES, counts / counts.sum(), strict=True))
    assert min(shares.values()) > 0.003, shares
    assert shares["road"] > 0.2
    assert shares["building"] > 0.1


def test_nothing_changes_before_a_standing_camera_without_others():
    still = drive(1, speed=0.0, traffic=0.0)
    first = shown(still, 3)
    for t in (4, 50, 100_000):
        later = shown(still, t)
        np.testing.assert_array_equal(later.frame, first.frame)
        np.testing.assert_array_equal(later.labels, first.labels)
        assert not later.motion.any()
    # So it is while the car stops, and only then.
    stopping = drive(1, traffic=0.0)
    t = standing(stopping)
    np.testing.assert_array_equal(shown(stopping, t).frame, shown(stopping, t + 10).frame)
    assert not shown(stopping, t + 10, key_t=t).motion.any()
    moving = cruising(stopping)
    assert (shown(stopping, moving).frame != shown(stopping, moving + 1).frame).mean() > 0.3


def test_others_move_while_the_camera_stands():
    scene = drive(3)
    t = standing(scene)
    motion = shown(scene, t + 8, key_t=t).motion
    moves = (motion != 0).any(axis=-1)
    assert moves.any()
    labels = shown(scene, t + 8).labels[moves]
    assert set(np.unique(labels)) <= {CLASS_NAMES.index(n) for n in ("pedestrian", "bicyclist")}


def test_noise_changes_every_frame_and_no_label():
    noisy = drive(2, speed=0.0, traffic=0.0, noise=4.0)
    clean = shown(drive(2, speed=0.0, traffic=0.0), 0)
    frames = np.stack([shown(noisy, t).frame for t in range(8)]).astype(float)
    np.testing.assert_array_equal(shown(noisy, 5).labels, clean.labels)
    inside = (clean.frame > 20) & (clean.frame < 235)
    # 8 * 14 400 samples: the deviation is known to 4 / sqrt(2 * 115 200) = 0.008; rounding adds
    # 1 / 12 to the variance.
    deviation = (frames - clean.frame)[:, inside].std()
    assert abs(deviation - np.sqrt(16 + 2 / 12)) < 0.1


@pytest.mark.parametrize("gap", [1, 9])
@pytest.mark.parametrize("seed", [0, 3])
def test_motion_is_the_projection_of_the_points_seen(seed, gap):
    """Against the textbook's projection in float64, from where each pixel's point is."""
    scene = drive(seed)
    t = cruising(scene)
    now, key, seen = looked(scene, t, t - gap)
    depth = np.asarray(seen.depth, np.float64)
    shift = np.asarray(seen.planes.shift, np.float64).reshape(-1, 2)[np.asarray(seen.index)]
    shift = np.where(np.asarray(seen.hit)[..., None], shift, 0.0)
    focal, horizon = float(scene.focal), float(now.horizon)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    across = (columns - SIZE[1] / 2) / focal
    sine = float(now.sine)
    cosine = np.sqrt(1 - sine**2)
    x = float(now.x) + depth * (sine + across * cosine) + shift[..., 0]
    z = int(now.z) / 4096 + depth * (cosine - across * sine) + shift[..., 1]
    y = depth * (horizon - rows) / focal  # above the camera
    dx, dz = x - float(key.x), z - int(key.z) / 4096
    sine = float(key.sine)
    cosine = np.sqrt(1 - sine**2)
    ahead = sine * dx + cosine * dz
    expected_x = SIZE[1] / 2 + focal * (cosine * dx - sine * dz) / ahead - columns
    expected_y = float(key.horizon) - focal * y / ahead - rows
    expected = np.stack([expected_x, expected_y], axis=-1)
    motion = np.asarray(drive_motion(scene, t, t - gap))
    assert np.abs(motion).max() > 3
    # About ten roundings of numbers below the frame's width, in pixels.
    np.testing.assert_allclose(motion, expected, atol=10 * SIZE[1] * 2**-23, rtol=2**-20)
    np.testing.assert_array_equal(motion, shown(scene, t, key_t=t - gap).motion)


def warped(array: np.ndarray, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the key frame has at the nearest pixel of where motion leads, and whether there is."""
    rows, columns = np.mgrid[: array.shape[0], : array.shape[1]]
    x = np.rint(columns + motion[..., 0]).astype(int)
    y = np.rint(rows + motion[..., 1]).astype(int)
    inside = (x >= 0) & (x < array.shape[1]) & (y >= 0) & (y < array.shape[0])
    return array[y.clip(0, array.shape[0] - 1), x.clip(0, array.shape[1] - 1)], inside


def inner(labels: np.ndarray) -> np.ndarray:
    """Where all neighbours have the label of the pixel."""
    return ndimage.maximum_filter(labels, 3) == ndimage.minimum_filter(labels, 3)


def test_labels_and_frames_move_as_the_motion_says():
    agreement, errors = [], []
    for seed in range(6):
        scene = drive(seed)
        t = cruising(scene)
        now, key = shown(scene, t), shown(scene, t - 1)
        for motion in (now.motion, 0 * now.motion, -now.motion):
            labels, inside = warped(key.labels, motion)
            clear, _ = warped(inner(key.labels), motion)
            frame, _ = warped(key.frame, motion)
            difference = np.abs(frame.astype(float) - now.frame).mean(axis=-1)
            agreement.append((labels == now.labels)[inside & clear & inner(now.labels)].mean())
            errors.append(difference[inside].mean())
    right, none, wrong = np.mean(np.reshape(agreement, (6, 3)), axis=0)
    # Between one frame and the next little comes from behind anything, other than at its border.
    assert right > 0.995
    assert 1 - right < (1 - none) / 2 < (1 - wrong) / 2
    right, none, wrong = np.mean(np.reshape(errors, (6, 3)), axis=0)
    assert right < 0.7 * none < 0.7 * wrong


@pytest.mark.parametrize("at", [cruising, standing])
def test_what_moves_by_itself_moves_as_the_motion_says(at):
    """Cars on the road while the camera drives, people and bicyclists while it stands."""
    gap, names = (2, ["car"]) if at is cruising else (6, ["pedestrian", "bicyclist"])
    indices = [CLASS_NAMES.index(name) for name in names]
    moved = {"found": 0, "where it is": 0, "all": 0}
    for seed in range(8):
        scene = dataclasses.replace(drive(seed, traffic=1.0), parking=jnp.zeros(2, bool))
        t = at(scene) + gap
        now, key = shown(scene, t, key_t=t - gap), shown(scene, t - gap)
        labels, inside = warped(key.labels, now.motion)
        asked = np.isin(now.labels, indices) & inside & (now.motion != 0).any(axis=-1)
        moved["all"] += asked.sum()
        moved["found"] += (labels == now.labels)[asked].sum()
        moved["where it is"] += (key.labels == now.labels)[asked].sum()
    assert moved["all"] > 500
    # At this size they are a few pixels wide, and some come from behind others.
    assert moved["found"] > 0.75 * moved["all"], moved
    assert moved["where it is"] < 0.6 * moved["all"], moved


def test_the_road_is_a_ring_without_a_seam():
    scene = dataclasses.replace(drive(4, traffic=0.0), vibration=jnp.float32(0), start=jnp.int32(0))
    period = int(scene.frames.sum())
    ring = 8192 * period  # of blocks of 128 m
    t = cruising(scene)
    for part, expected in zip(shown(scene, t + ring), shown(scene, t), strict=True):
        np.testing.assert_array_equal(part, expected)
    # From the last block of units below 2**31 to the first above.
    seam = ring // 2
    for t in range(seam - 2, seam + 45, 6):
        motion = shown(scene, t, key_t=t - 3).motion
        assert np.abs(motion[: SIZE[0] // 2]).max() < SIZE[1]
        labels, inside = warped(shown(scene, t - 3).labels, motion)
        assert (labels == shown(scene, t).labels)[inside].mean() > 0.93


@pytest.mark.parametrize("t", [-1_000_003, 123_456_789, 2**30])
def test_any_frame_can_be_drawn(t):
    scene = drive(0)
    found = shown(scene, t)
    assert len(np.unique(found.labels)) >= 6
    assert np.isfinite(found.motion).all()
    assert found.frame.std() > 20


@pytest.mark.parametrize("size", [(1, 1), (7, 33)])
def test_frames_of_any_size(size):
    scene = driving_scene(jax.random.key(0), size=size)
    found = shown(scene, 5)
    assert found.frame.shape == (*size, 3)
    assert found.labels.shape == size
    assert found.motion.shape == (*size, 2)
    assert found.frame.dtype == found.labels.dtype == np.uint8
    assert np.isfinite(found.motion).all()
    assert found.labels.max() < len(CLASS_NAMES)


def test_pairs_are_frames_of_one_drive():
    pairs = drive_pairs(jax.random.key(1), pairs=5, size=SIZE, longest_gap=2, noise=0.0)
    gaps = np.asarray(pairs.gap)
    assert set(gaps) == {0, 1, 2}
    for i, gap in enumerate(gaps):
        labels, inside = warped(
            np.asarray(pairs.key.labels[i]), np.asarray(pairs.current.motion[i])
        )
        assert (labels == pairs.current.labels[i])[inside].mean() > 0.93
        if gap == 0:
            np.testing.assert_array_equal(pairs.key.frame[i], pairs.current.frame[i])
            assert not np.asarray(pairs.current.motion[i]).any()
    assert (pairs.key.labels[0] != pairs.key.labels[1]).mean() > 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 4)}, r"size must be .*; got \(0, 4\)"),
        ({"speed": -1}, "speed must be .*; got -1"),
        ({"speed": 5.0}, "speed must be .*; got 5.0"),
        ({"traffic": 1.5}, "traffic must be .*; got 1.5"),
        ({"noise": -0.5}, "noise must be .*; got -0.5"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        driving_scene(jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pairs": 0}, "pairs must be .*; got 0"), ({"longest_gap": -1}, "longest_gap .*; got -1")],
)
def test_pairs_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        drive_pairs(jax.random.key(0), **{"pairs": 1, "size": SIZE, **options})
