"""Differences against NumPy in integers, and the rules of Eq. 1-2 one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.ops.difference import (
    camera_changes,
    changed_blocks,
    changed_pixels,
    frame_difference,
    scene_similarity,
    trusted_flow,
    unexplained_difference,
)

CHANNELS = ["any", "gray", "mean"]


def byte_frames(shape=(2, 9, 7, 3), seed=0):
    generator = np.random.default_rng(seed)
    frame, reference = generator.integers(0, 256, (2, *shape), np.uint8)
    reference[:, ::2] = frame[:, ::2]  # half of the rows stay
    frame[0, 1, 0], reference[0, 1, 0] = 0, 255  # the two ends
    frame[0, 1, 1], reference[0, 1, 1] = 255, 0
    return frame, reference


def expected_difference(frame, reference, channels):
    """In float64, of thousandths where luma asks for them."""
    signed = frame.astype(np.int64) - reference.astype(np.int64)
    if channels == "any":
        return np.abs(signed).max(-1).astype(float)
    if channels == "mean":
        return np.abs(signed).sum(-1) / frame.shape[-1]
    return np.abs(signed @ np.array([299, 587, 114])) / 1000


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_difference_of_whole_numbers(channels, dtype):
    frame, reference = byte_frames()
    expected = expected_difference(frame, reference, channels)
    # bfloat16 holds whole numbers up to 256. Sums of up to 255,000 are exact in float32; only the
    # division by 3 or 1000 rounds (two roundings where it becomes a product with the inverse).
    measured = frame_difference(
        jnp.asarray(frame, dtype), jnp.asarray(reference, dtype), channels=channels
    )
    assert measured.dtype == ("uint8" if (dtype, channels) == ("uint8", "any") else "float32")
    tolerance = 0 if channels == "any" else 2 * np.finfo(np.float32).eps
    np.testing.assert_allclose(measured, expected, rtol=tolerance, atol=0)
    np.testing.assert_array_equal(measured == 0, expected == 0)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_difference_equal_to_the_threshold_counts(channels, dtype, jit):
    steps = jnp.array([0, 1, 19, 20, 21, 255], dtype)
    frame = jnp.broadcast_to(steps[:, None], (1, 1, 6, 3))
    call = jax.jit(changed_pixels, static_argnames="channels") if jit else changed_pixels
    for low, high in ((frame, jnp.zeros_like(frame)), (jnp.zeros_like(frame), frame)):
        for threshold in (20, 20.0, jnp.float32(20), jnp.int32(20), np.float64(20)):
            changed = call(low, high, threshold=threshold, channels=channels)
            np.testing.assert_array_equal(changed[0, 0], [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (-1, [0, 1, 1, 1, 1]),
        (0, [0, 1, 1, 1, 1]),
        (0.5, [0, 1, 1, 1, 1]),
        (1.5, [0, 0, 1, 1, 1]),
        (254.5, [0, 0, 0, 0, 1]),
        (255, [0, 0, 0, 0, 1]),
        (255.5, [0, 0, 0, 0, 0]),
        (1000, [0, 0, 0, 0, 0]),
        (float("inf"), [0, 0, 0, 0, 0]),
    ],
)
def test_thresholds_of_every_size(threshold, expected, dtype):
    frame = jnp.array([0, 1, 2, 128, 255], dtype).reshape(1, 1, 5, 1)
    changed = changed_pixels(frame, jnp.zeros_like(frame), threshold=threshold)
    np.testing.assert_array_equal(changed[0, 0], expected)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_threshold_of_zero_marks_exactly_what_differs(dtype):
    frame, reference = byte_frames()
    changed = changed_pixels(jnp.asarray(frame, dtype), jnp.asarray(reference, dtype), threshold=0)
    np.testing.assert_array_equal(changed, (frame != reference).any(-1))


@pytest.mark.parametrize("shape", [(1, 3, 5, 1), (2, 5, 3, 3), (1, 4, 4, 5)])
def test_any_is_one_channel_of_however_many(shape):
    frame = jnp.zeros(shape, jnp.uint8)
    for channel in range(shape[-1]):
        changed = changed_pixels(frame.at[0, 1, 2, channel].set(9), frame, threshold=9)
        assert np.argwhere(changed).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("channels", CHANNELS)
def test_nan_on_either_side_counts_as_changed(channels):
    good = jnp.zeros((1, 1, 3, 3))
    bad = good.at[0, 0, 1, 2].set(jnp.nan)
    for frame, reference in ((bad, good), (good, bad), (bad, bad)):
        for threshold in (0, 1e9, float("inf")):
            changed = changed_pixels(frame, reference, threshold=threshold, channels=channels)
            np.testing.assert_array_equal(changed[0, 0], [False, True, False])
        assert np.isnan(frame_difference(frame, reference, channels=channels)[0, 0, 1])


@pytest.mark.parametrize("channels", CHANNELS)
def test_equal_infinities_are_no_change(channels):
    frame = jnp.full((1, 1, 2, 3), jnp.inf)
    assert not changed_pixels(frame, frame, threshold=0, channels=channels).any()
    assert changed_pixels(frame, -frame, threshold=5, channels=channels).all()


def test_similarity_is_the_share_of_unchanged_pixels_per_stream():
    frame = jnp.zeros((3, 4, 5, 3), jnp.uint8)
    other = frame.at[1, 0, :3].set(20).at[2].set(20).at[1, 3, 4].set(19)
    similarity = scene_similarity(other, frame, threshold=20)
    assert similarity.dtype == jnp.float32
    np.testing.assert_array_equal(similarity, np.float32([1, 17 / 20, 0]))


@pytest.mark.parametrize("function", [frame_difference, changed_pixels, scene_similarity])
@pytest.mark.parametrize(
    ("frame", "reference", "options", "message"),
    [
        (
            (1, 4, 4, 3),
            (1, 4, 5, 3),
            {},
            r"reference must be float32\[1, 4, 4, 3\] .*float32\[1, 4, 5, 3\]",
        ),
        ((4, 4, 3), (4, 4, 3), {}, r"float32\[4, 4, 3\]"),
        ((1, 4, 4, 1), (1, 4, 4, 1), {"channels": "gray"}, "frame must have 3 channels .*; got 1"),
        ((1, 4, 4, 3), (1, 4, 4, 3), {"channels": "all"}, "channels must be .*; got 'all'"),
    ],
)
def test_frames_that_do_not_fit_are_named(function, frame, reference, options, message):
    if function is not frame_difference:
        options = {**options, "threshold": 1}
    with pytest.raises(ValueError, match=message):
        function(jnp.zeros(frame), jnp.zeros(reference), **options)


def test_frames_of_other_types_are_named():
    frame = jnp.zeros((1, 2, 2, 3), jnp.uint8)
    with pytest.raises(ValueError, match=r"uint8\[.*float32\["):
        changed_pixels(frame, frame.astype(jnp.float32), threshold=1)
    with pytest.raises(ValueError, match=r"frame must be floating or uint8 .*; got int32"):
        changed_pixels(frame.astype(jnp.int32), frame.astype(jnp.int32), threshold=1)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
def test_each_stream_can_have_its_own_threshold(dtype):
    frames = jnp.broadcast_to(jnp.array([0, 4, 8, 12], dtype)[:, None], (3, 1, 4, 1))
    found = changed_pixels(frames, jnp.zeros_like(frames), threshold=jnp.array([4.0, 5.0, 13.0]))
    np.testing.assert_array_equal(jnp.sum(found, axis=(1, 2)), [3, 2, 0])


def test_blocks_stand_for_their_pixels():
    """Averages of integers over powers of two are exact: the same as frames that are averaged."""
    rng = np.random.default_rng(0)
    current, key = (rng.integers(0, 256, (1, 8, 12, 3)).astype("f") for _ in range(2))
    flow = jnp.asarray(rng.integers(-4, 5, (1, 2, 3, 2)) / 4, jnp.float32)
    small = (x.reshape(1, 4, 2, 6, 2, 3).mean((2, 4)) for x in (current, key))
    expected = unexplained_difference(*map(jnp.asarray, small), flow, (2, 3))
    found = unexplained_difference(*map(jnp.asarray, (current, key)), flow, (2, 3), block=2)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="block must divide the sides"):
        unexplained_difference(*map(jnp.asarray, (current, key)), flow, (2, 3), block=3)


def test_a_motion_is_trusted_only_where_it_explains_more():
    """A square moved by a pixel on still ground: ground that is said to move stays where it is."""
    key = np.zeros((1, 8, 16, 1), "f")
    key[0, 2:6, 2:6] = 100
    current = np.roll(key, 1, axis=2)
    flow = jnp.zeros((1, 2, 4, 2)).at[..., 0].set(-0.25)  # positions of four pixels
    trusted = trusted_flow(jnp.asarray(current), jnp.asarray(key), flow, margin=1)
    expected = np.zeros((2, 4), bool)
    expected[:, :2] = True
    np.testing.assert_array_equal(trusted[0, ..., 0] != 0, expected)
    assert not trusted_flow(jnp.asarray(key), jnp.asarray(key), flow, margin=0).any()


# What a camera's frames are compared by.


def blocks_by_hand(frame, reference, threshold, mean_threshold):
    """The rule of `changed_blocks`, block by block."""
    streams, height, width, channels = frame.shape
    signed = frame.astype(int) - reference.astype(int)
    changed = np.zeros((streams, -(-height // 8), -(-width // 8)), bool)
    for index in np.ndindex(changed.shape):
        s, row, column = index
        block = signed[s, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        quarters = [block[i : i + 4, j : j + 4].sum() for i in (0, 4) for j in (0, 4)]
        highest = np.abs(block).max()
        mean = np.abs(quarters).max() / (16 * channels)
        changed[index] = (highest >= threshold and highest > 0) or (
            mean >= mean_threshold and mean > 0
        )
    return changed


@pytest.mark.parametrize("shape", [(2, 16, 24, 3), (1, 13, 21, 1)])
@pytest.mark.parametrize(("threshold", "mean_threshold"), [(20, 3), (6.5, 99), (99, 0.5), (0, 0)])
def test_changed_blocks(shape, threshold, mean_threshold):
    rng = np.random.default_rng(1)
    reference = rng.integers(8, 240, shape, np.uint8)
    frame = (reference + rng.integers(-3, 4, shape) * rng.integers(0, 2, shape)).astype(np.uint8)
    frame[0, 9, 9] += 7
    frame[:, :4, :4] += 4
    frame[:, 8:, 16:] = reference[:, 8:, 16:]
    measured = changed_blocks(frame, reference, threshold=threshold, mean_threshold=mean_threshold)
    expected = blocks_by_hand(frame, reference, threshold, mean_threshold)
    np.testing.assert_array_equal(measured, expected)


RULE = camera_changes()
STEP = jax.jit(RULE.step)


def camera(*, frames, size=(96, 128), sigma=0.0, gain=None, streams=1, seed=0):
    """A still picture with contrast as a camera sees it, with its noise and its exposure."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    ground = 110 + 60 * np.sin(x / 17) + 40 * np.cos(y / 11)
    ground = ground[..., None] + np.array([0, 10, -10])
    for t in range(frames):
        level = ground * (1.0 if gain is None else gain(t))
        noisy = level + rng.normal(0, sigma, (streams, *level.shape))
        yield np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def follow(frames, threshold=8.0):
    """Runs the rule as a step of `incremental` does; yields what it says of each later frame."""
    first, *frames = frames
    seen, reference = RULE.init(jnp.asarray(first)), jnp.asarray(first)
    theta = jnp.full(len(first), threshold, jnp.float32)
    for frame in frames:
        seen, changed, taken = STEP(seen, frame, reference, theta)
        reference = jnp.where(changed[..., None], taken, reference)
        yield seen, np.asarray(changed), np.asarray(taken), np.asarray(reference)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    threshold=st.sampled_from([0.0, 4.0, 15.0, 60.0]),
    sigma=st.sampled_from([0.0, 2.0, 9.0]),
    gains=st.lists(st.sampled_from([0.5, 0.9, 0.97, 1.0, 1.05, 1.4]), min_size=2, max_size=5),
)
def test_the_reference_never_strays_further_than_the_rule_allows(seed, threshold, sigma, gains):
    frames = camera(
        frames=len(gains), size=(45, 70), sigma=sigma, gain=gains.__getitem__, seed=seed
    )
    for seen, changed, taken, reference in follow(frames, threshold):
        most = min(max(threshold, 8.0 * float(seen.noise.max())), 3 * threshold)
        most_mean = min(max(threshold, 5.0 / 0.3 * float(seen.mean_noise.max())), 3 * threshold)
        signed = taken.astype(int) - reference.astype(int)
        assert np.abs(signed).max() < max(most, 1)
        means = np.abs(signed[:, :44, :68].reshape(1, 11, 4, 17, 4, 3).mean((2, 4, 5)))
        assert means.max() < max(0.3 * most_mean, 1 / 48)
        whole = np.pad(changed, ((0, 0), (0, 3), (0, 2)), mode="edge").reshape(1, 6, 8, 9, 8)
        np.testing.assert_array_equal(whole.all((2, 4)), whole.any((2, 4)))


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0])
def test_noise_is_measured_and_is_no_change(sigma):
    def with_a_car(frames):
        for t, frame in enumerate(frames):
            frame[:, 20:70, 10 + 4 * t : 40 + 4 * t] = (
                255 - frame[:, 20:70, 10 + 4 * t : 40 + 4 * t]
            )
            yield frame

    *_, (seen, changed, _, _) = follow(with_a_car(camera(frames=12, sigma=sigma)))
    expected = sigma * np.sqrt(2)
    counted = np.asarray(seen.noise)[0, 3:5]  # levels with many pixels
    np.testing.assert_allclose(counted, expected, rtol=0.25)
    # Independent in the channels: a mean is sqrt(48) times quieter. Twice that leaves room for the
    # car, which covers an eighth of the frame.
    assert seen.mean_noise[0] < 2 * expected / np.sqrt(48)
    still = changed.copy()
    still[:, 16:72] = False  # the rows of the car
    assert still.mean() < 0.01
    assert changed[:, 24:64, 48:56].all()  # what the car uncovered, at its end


def test_what_is_faint_is_seen_where_it_agrees_over_a_neighbourhood():
    frames = list(camera(frames=8, sigma=2.0))
    frames[-1][:, 40:56, 64:80] += 4  # below the threshold of 8, and within the noise of a pixel
    *_, (_, changed, _, _) = follow(frames)
    assert changed[:, 40:56, 64:80].all()


@pytest.mark.parametrize("strength", [0.02, 0.05])
def test_flicker_is_no_motion_but_what_moves_in_it_is(strength):
    rng = np.random.default_rng(3)
    gains = 1 + strength * rng.uniform(-1, 1, 40)
    frames = list(camera(frames=40, sigma=1.0, gain=gains.__getitem__))
    frames[-1][:, 40:56, 64:80] += 30
    *before, (_, changed, _, _) = follow(frames)
    assert np.mean([c.mean() for _, c, _, _ in before]) < 0.05
    assert changed[:, 40:56, 64:80].all()
    assert changed.mean() < 0.1


def test_an_exposure_that_stays_is_taken_over_whole():
    frames = list(camera(frames=40, gain=lambda t: 1.0 if t < 3 else 0.85))
    followed = list(follow(frames))
    shares = [changed.mean() for _, changed, _, _ in followed]
    assert shares.count(1.0) == 1
    assert np.mean(np.array(shares) > 0.02) < 0.1
    np.testing.assert_array_equal(followed[-1][3], frames[-1])


def test_what_the_camera_clipped_is_no_change():
    """Under a brighter exposure the highlights cannot follow."""
    frames = list(camera(frames=3, gain=lambda t: 1.2 if t < 2 else 1.3))
    assert (frames[-1] == 255).mean() > 0.02
    *_, (_, changed, _, _) = follow(frames)
    assert changed.mean() < 0.05


def test_the_motion_of_the_camera_is_not_its_noise():
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 200, (1, 15, 20, 1)).repeat(8, 1).repeat(8, 2) + np.zeros(3)
    noisy = [texture + rng.normal(0, 1, texture.shape) for _ in range(30)]
    frames = [
        np.round(np.clip(np.roll(x, (2 * t % 6, t % 3), (1, 2)), 0, 255)).astype(np.uint8)
        for t, x in enumerate(noisy)
    ]
    for seen, changed, _, _ in follow(frames):
        assert seen.noise.mean() < 3
        assert changed.mean() > 0.8


def test_streams_of_a_camera_rule_are_apart_and_frames_may_be_small():
    both = np.concatenate(
        [
            np.stack(list(camera(frames=6, sigma=3.0, size=(17, 10)))),
            np.stack(list(camera(frames=6, gain=lambda t: 1 + 0.05 * t, size=(17, 10)))),
        ],
        axis=1,
    )
    for i in range(2):
        for alone, together in zip(follow(both[:, i : i + 1]), follow(both), strict=True):
            np.testing.assert_array_equal(alone[1][0], together[1][i])
            np.testing.assert_array_equal(alone[3][0], together[3][i])
    for size in ((3, 2), (4, 4), (9, 30)):
        for _, changed, _, _ in follow(camera(frames=3, sigma=1.0, size=size)):
            assert changed.shape == (1, *size)


def test_a_camera_rule_needs_bytes():
    with pytest.raises(
        ValueError, match=r"uint8 \(S, H, W, C\), as cameras give them; got float32"
    ):
        RULE.init(jnp.zeros((1, 8, 8, 3)))
