"""Differences against NumPy in integers, and the rules of Eq. 1-2 one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.ops.difference import (
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
