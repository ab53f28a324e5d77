import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dynvid.coding.container import BitstreamReader, BitstreamWriter, Header
from dynvid.ops.run_length import run_length_tokens
from dynvid.systems.ifmdc import Settings, Symbols, clip_range, ifmdc

SHAPE = (2, 5, 6, 3)


def walk(frames, *, seed=0, shape=SHAPE, speed=0.4):
    """Features that wander, with jumps, and beyond the clip range."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2, shape)
    for _ in range(frames):
        x = 0.98 * x + rng.normal(0, speed, shape)
        x = np.where(rng.random(shape) < 0.02, rng.normal(0, 4, shape), x)
        yield jnp.asarray(x, jnp.float32)


def run(codec, features, change=None):
    """Yields the feature, the encoder's state, symbols, the decoder's state, reconstruction."""
    encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
    here = there = codec.init(SHAPE)
    for feature in features:
        here, symbols = encode(here, feature, change)
        there, reconstruction = decode(there, symbols)
        yield feature, here, symbols, there, reconstruction


@pytest.mark.parametrize("key_levels", [None, 257])
@pytest.mark.parametrize("levels", [3, 5, 9, 33])
def test_the_error_is_bounded_at_every_frame(levels, key_levels):
    a = 6.0
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=levels, key_levels=key_levels))
    # Rounding: (f - low) * M / A to three roundings of numbers of at most M, in units of A / M, and
    # as much again for the reconstruction.
    slack = 6 * a * 2**-23
    largest = 0.0
    for feature, _, symbols, _, reconstruction in run(codec, walk(40)):
        error = float(jnp.max(jnp.abs(jnp.clip(feature, -2, 4) - reconstruction)))
        assert error <= a / (levels - 1) + slack
        if symbols.is_key:
            assert error <= a / ((key_levels or levels) - 1) / 2 + slack
        largest = max(largest, error)
    assert largest > 0.9 * a / (levels - 1)  # the bound is one that is reached


def test_an_open_loop_drifts():
    """Differences of features instead of differences from the reconstruction: errors add up."""
    low, high, levels = -2.0, 4.0, 9
    step = 2 * (high - low) / (levels - 1)
    before, open_loop = None, None
    errors = []
    for feature in walk(60, speed=0.3):
        clipped = np.clip(feature, low, high)
        if before is None:
            open_loop = np.array(clipped)
        else:
            open_loop = open_loop + step * np.round((clipped - before) / step)
        before = clipped
        errors.append(np.max(np.abs(open_loop - clipped)))
    assert max(errors) > 3 * (high - low) / (levels - 1)


@pytest.mark.parametrize(
    "options",
    [
        {"levels": 9},
        {"levels": 3, "key_levels": 257},
        {"levels": 7, "key_levels": 256},
        {"levels": 5, "residual_divisor": 3, "key_levels": 17},
        {"levels": 9, "dead_zone": 0.8},
    ],
)
def test_both_ends_hold_the_same_integers(options):
    codec = ifmdc(Settings(low=-2.0, high=4.0, **options))
    assert codec.settings.key_step * (codec.settings.labels_of_key - 1) == codec.settings.grid
    for n, (_, here, symbols, there, _) in enumerate(run(codec, walk(35))):
        np.testing.assert_array_equal(here.level, there.level)
        assert there.intact
        assert symbols.frame == n
        assert symbols.is_key == (n % 15 == 0)
        top = codec.settings.labels_of_key if symbols.is_key else codec.settings.levels
        assert symbols.labels.min() >= 0
        assert symbols.labels.max() < top
        assert here.level.min() >= 0
        assert here.level.max() <= codec.settings.grid


def test_both_ends_hold_the_same_after_ten_thousand_frames():
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=5, group_of_pictures=100_000))

    @jax.jit
    def go(key):
        def one(carry, key):
            here, there, x = carry
            x = 0.98 * x + 0.4 * jax.random.normal(key, SHAPE)
            here, symbols = codec.encode(here, x)
            there, reconstruction = codec.decode(there, symbols)
            error = jnp.max(jnp.abs(jnp.clip(x, -2, 4) - reconstruction))
            return (here, there, x), (jnp.all(here.level == there.level), error, symbols.is_key)

        start = (codec.init(SHAPE), codec.init(SHAPE), jnp.zeros(SHAPE))
        return lax.scan(one, start, jax.random.split(key, 10_000))

    (here, there, _), (same, errors, keys) = go(jax.random.key(0))
    assert same.all()
    np.testing.assert_array_equal(here.level, there.level)
    assert here.frame == there.frame == 10_000
    assert keys.sum() == 1
    assert errors.max() <= 6 / 4 + 6 * 6 * 2**-23


def test_a_still_feature_map_costs_one_run_a_frame():
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9))
    still = next(walk(1))
    for n, (_, _, symbols, _, _) in enumerate(run(codec, [still] * 14)):
        if n == 0:
            continue
        # The first residual may still refine what the coarser step reaches.
        assert jnp.all(symbols.labels == codec.settings.run_label) or n == 1
        tokens = run_length_tokens(symbols.labels.ravel(), run_label=codec.settings.run_label)
        assert n == 1 or tokens.count == 1


def test_n_is_the_most_frequent_label():
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9))
    for _, _, symbols, _, _ in run(codec, walk(14, speed=0.2)):
        if not symbols.is_key:
            assert np.argmax(np.bincount(np.ravel(symbols.labels))) == codec.settings.run_label


def test_even_levels_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"levels must be odd.*got 8.*no label for a residual"):
        Settings(low=0.0, high=1.0, levels=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "levels must be odd and of 3"),
        ({"key_levels": 1}, "key_levels must be of 2"),
        ({"group_of_pictures": 0}, "group_of_pictures must be at least 1"),
        ({"scan": "whc"}, "scan must be"),
        ({"residual_divisor": 0}, "residual_divisor must be at least 1"),
        ({"dead_zone": 0.4}, "dead_zone must be 0.5"),
        ({"dead_zone": float("nan")}, "dead_zone must be 0.5"),
        ({"low": 1.0}, "low must be below high"),
        ({"low": float("nan")}, "low must be below high"),
        ({"low": (0.0, 0.5)}, "one a channel"),
        ({"levels": 4097, "key_levels": 4096}, "no common grid"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**({"low": 0.0, "high": 1.0} | options))


def test_what_does_not_fit_the_state():
    codec = ifmdc(Settings(low=(0.0, 0.0), high=(1.0, 2.0)))
    with pytest.raises(ValueError, match=r"shape must be \(streams, h, w, 2\)"):
        codec.init((1, 2, 3, 4))
    state = codec.init((1, 2, 3, 2))
    with pytest.raises(ValueError, match="feature must be floating"):
        codec.encode(state, jnp.zeros((1, 2, 3, 3)))
    with pytest.raises(ValueError, match="change must be bool"):
        codec.encode(state, jnp.zeros((1, 2, 3, 2)), jnp.zeros((1, 2, 3)))


def test_a_range_for_each_channel():
    low, high = (-1.0, 0.0, -4.0), (1.0, 8.0, 4.0)
    codec = ifmdc(Settings(low=low, high=high, levels=9))
    for feature, _, _, _, reconstruction in run(codec, walk(20)):
        error = jnp.abs(jnp.clip(feature, jnp.array(low), jnp.array(high)) - reconstruction)
        for c, a in enumerate((2.0, 8.0, 8.0)):
            assert error[..., c].max() <= a / 8 + 6 * a * 2**-23


def test_what_exceeds_the_residual_range_comes_with_the_next_frames():
    codec = ifmdc(Settings(low=0.0, high=8.0, levels=5, residual_divisor=4))
    features = [jnp.zeros(SHAPE)] + [jnp.full(SHAPE, 8.0)] * 4
    means = [float(r.mean()) for *_, r in run(codec, features)]
    assert means == [0, 2, 4, 6, 8]


# ---- the change mask


def test_masked_out_positions_keep_their_level_and_the_others_are_coded_alike():
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9))
    encode = jax.jit(codec.encode)
    first, second = walk(2)
    state, _ = encode(codec.init(SHAPE), first, jnp.zeros(SHAPE[:3], bool))  # a key frame is whole
    whole, _ = encode(codec.init(SHAPE), first)
    np.testing.assert_array_equal(state.level, whole.level)
    change = jnp.asarray(np.random.default_rng(3).random(SHAPE[:3]) < 0.4)
    masked, symbols = encode(state, second, change)
    dense, expected = encode(state, second)
    keep = change[..., None]
    np.testing.assert_array_equal(symbols.labels, jnp.where(keep, expected.labels, 4))
    np.testing.assert_array_equal(masked.level, jnp.where(keep, dense.level, state.level))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_masks_of_any_size_on_more_positions_than_a_chunk(share):
    shape = (2, 15, 17, 3)
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9))
    encode = jax.jit(codec.encode)
    first, second = walk(2, shape=shape)
    state, _ = encode(codec.init(shape), first)
    change = jnp.asarray(np.random.default_rng(3).random(shape[:3]) < share)
    # What is masked out is not even read: NaN there does no harm.
    poisoned = jnp.where(change[..., None], second, jnp.nan)
    masked, symbols = encode(state, poisoned, change)
    dense, expected = encode(state, second)
    np.testing.assert_array_equal(symbols.labels, jnp.where(change[..., None], expected.labels, 4))
    np.testing.assert_array_equal(
        masked.level, jnp.where(change[..., None], dense.level, state.level)
    )


# ---- losses


def test_a_lost_frame_is_noticed_and_repaired_at_the_next_key_frame():
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9, group_of_pictures=6))
    encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
    here = there = codec.init(SHAPE)
    for n, feature in enumerate(walk(14)):
        here, symbols = encode(here, feature)
        if n == 3:
            continue
        before = there
        there, _ = decode(there, symbols)
        if n in (4, 5):
            assert not there.intact
            np.testing.assert_array_equal(there.level, before.level)  # held, not garbled
        else:
            assert there.intact
            np.testing.assert_array_equal(there.level, here.level)


def test_a_decoder_that_starts_late_waits_for_a_key_frame():
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9, group_of_pictures=6))
    here = there = codec.init(SHAPE)
    for n, feature in enumerate(walk(9)):
        here, symbols = codec.encode(here, feature)
        if n >= 2:
            there, _ = codec.decode(there, symbols)
            assert there.intact == (n >= 6)


@pytest.mark.parametrize("stage", ["fixed", "huffman", "arithmetic"])
def test_a_corrupted_packet_is_repaired_at_the_next_key_frame(stage):
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9, key_levels=17, group_of_pictures=5))
    header = Header(
        shape=SHAPE, low=-2.0, high=4.0, levels=9, key_levels=17, group_of_pictures=5, stage=stage
    )
    file = io.BytesIO()
    writer = BitstreamWriter(file, header)
    encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
    here = codec.init(SHAPE)
    levels, starts = [], []
    for feature in walk(12):
        here, symbols = encode(here, feature)
        starts.append(file.tell())
        writer.write(np.asarray(symbols.labels))
        levels.append(np.asarray(here.level))
    writer.close()
    data = bytearray(file.getvalue())
    data[starts[6] + 14] ^= 16  # in the payload of frame 6

    there = codec.init(SHAPE)
    seen = []
    for frame in BitstreamReader(io.BytesIO(bytes(data)), skip_damaged=True):
        symbols = Symbols(*map(jnp.asarray, (frame.labels, frame.is_key, frame.number)))
        there, _ = decode(there, symbols)
        assert there.intact
        np.testing.assert_array_equal(there.level, levels[frame.number])
        seen.append(frame.number)
    assert seen == [0, 1, 2, 3, 4, 5, 10, 11]


# ---- calibration


def test_the_clip_range_is_two_percentiles():
    values = np.random.default_rng(0).normal(size=(4, 10, 10, 5)).astype(np.float32)
    low, high = clip_range(values)
    np.testing.assert_allclose([low, high], np.percentile(values, [0.1, 99.9]), rtol=1e-6)
    assert Settings(low=low, high=high).low == low
    low, high = clip_range(values, percentiles=(0, 100), by_channel=True)
    np.testing.assert_array_equal(low, values.min((0, 1, 2)))
    np.testing.assert_array_equal(high, values.max((0, 1, 2)))


def test_a_channel_that_never_moves_gets_a_range_nevertheless():
    values = np.random.default_rng(0).normal(size=(4, 10, 10, 3)).astype(np.float32)
    values[..., 1] = 2.0
    Settings(**dict(zip(("low", "high"), clip_range(values, by_channel=True), strict=True)))
    with pytest.raises(ValueError, match="leave no range"):
        clip_range(np.zeros((2, 3, 3, 2)))
