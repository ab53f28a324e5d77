import dataclasses
import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from jax import lax

import dynvid
from dynvid.coding.container import BitstreamReader, BitstreamWriter
from dynvid.ops.block_transform import frequency_order
from dynvid.ops.run_length import run_length_tokens
from dynvid.systems.ifmdc import (
    FeatureReader,
    FeatureWriter,
    Settings,
    Symbols,
    clip_range,
    header_of,
    ifmdc,
)

SHAPE = (2, 5, 6, 3)
BLOCKY = (2, 8, 12, 3)  # what blocks of 1, 2 and 4 divide


def walk(frames, *, seed=0, shape=SHAPE, speed=0.4):
    """Features that wander, with jumps, and beyond the clip range."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2, shape)
    for _ in range(frames):
        x = 0.98 * x + rng.normal(0, speed, shape)
        x = np.where(rng.random(shape) < 0.02, rng.normal(0, 4, shape), x)
        yield jnp.asarray(x, jnp.float32)


def steps(codec):
    """`encode(state, features, mask)` and `decode(state, symbols)`."""
    return tuple(functools.partial(end.step, ()) for end in (codec.encoder, codec.decoder))


def run(codec, features, change=None, *, shape=SHAPE):
    """Yields the feature, the encoder's state, symbols, the decoder's state, reconstruction."""
    encode, decode = steps(codec)
    here = there = codec.blank(shape)
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
        {"block": 2, "levels": 9},
        {"block": 4, "levels": 3, "key_levels": 257},
        {"block": 4, "levels": 5, "residual_divisor": 3, "key_levels": 17},
        {"block": 2, "levels": 7, "dead_zone": 0.8, "key_dead_zone": 0.7},
        {"block": 4, "levels": 33, "low": (-2.0, 0.0, 1.0), "high": (4.0, 3.0, 5.0)},
        {"block": 4, "levels": 33, "low": (-4.0, -3.0, -5.0), "high": (0.0, -1.0, 0.1)},
    ],
)
def test_both_ends_hold_the_same_integers(options):
    codec = ifmdc(Settings(**({"low": -2.0, "high": 4.0} | options)))
    assert codec.settings.key_step * (codec.settings.labels_of_key - 1) == codec.settings.grid
    ends = run(codec, walk(35, shape=BLOCKY), shape=BLOCKY)
    for n, (_, here, symbols, there, _) in enumerate(ends):
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
            here, symbols = codec.encoder.step((), here, x)
            there, reconstruction = codec.decoder.step((), there, symbols)
            error = jnp.max(jnp.abs(jnp.clip(x, -2, 4) - reconstruction))
            return (here, there, x), (jnp.all(here.level == there.level), error, symbols.is_key)

        start = (codec.blank(SHAPE), codec.blank(SHAPE), jnp.zeros(SHAPE))
        return lax.scan(one, start, jax.random.split(key, 10_000))

    (here, there, _), (same, errors, keys) = go(jax.random.key(0))
    assert same.all()
    np.testing.assert_array_equal(here.level, there.level)
    assert here.frame == there.frame == 10_000
    assert keys.sum() == 1
    assert errors.max() <= 6 / 4 + 6 * 6 * 2**-23


@pytest.mark.parametrize("key_levels", [9, 3])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_a_still_feature_map_costs_one_run_a_frame(block, key_levels):
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9, key_levels=key_levels, block=block))
    still = next(walk(1, shape=BLOCKY))
    for n, (_, _, symbols, _, _) in enumerate(run(codec, [still] * 14, shape=BLOCKY)):
        if n == 0:
            continue
        # A coarse key frame leaves something to the first residual.
        unchanged = jnp.all(symbols.labels == codec.settings.run_label)
        assert unchanged == (n > 1 or key_levels == 9)
        tokens = run_length_tokens(symbols.labels.ravel(), run_label=codec.settings.run_label)
        assert n == 1 or tokens.count == 1


def test_n_is_the_most_frequent_label():
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9))
    for _, _, symbols, _, _ in run(codec, walk(14, speed=0.2)):
        if not symbols.is_key:
            assert np.argmax(np.bincount(np.ravel(symbols.labels))) == codec.settings.run_label


def test_even_levels_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"levels must be odd.*; got 8.*no label for a residual"):
        Settings(low=0.0, high=1.0, levels=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "levels must be odd and of 3"),
        ({"key_levels": 1}, "key_levels must be of 2"),
        ({"group_of_pictures": 0}, "group_of_pictures must be of 1 .. 2.32 - 1; got 0"),
        ({"group_of_pictures": 1 << 32}, "group_of_pictures must be of 1 .. 2.32 - 1"),
        ({"scan": "whc"}, "scan must be"),
        ({"residual_divisor": 0}, "residual_divisor must be at least 1"),
        ({"dead_zone": 0.4}, "dead_zone must be 0.5"),
        ({"dead_zone": float("nan")}, "dead_zone must be 0.5"),
        ({"key_dead_zone": 0.4}, "key_dead_zone must be 0.5"),
        ({"key_dead_zone": float("inf")}, "key_dead_zone must be 0.5"),
        ({"block": 0}, "block must be of 1 .. 16; got 0"),
        ({"block": 17}, "block must be of 1 .. 16; got 17"),
        ({"block": 2, "key_levels": 8}, "key_levels must be odd where block is more than 1; got 8"),
        ({"low": 1.0}, "low must be below high"),
        ({"low": float("nan")}, "low must be below high"),
        ({"low": -3e38, "high": 3e38}, "low must be below high"),
        ({"high": 3e38, "block": 16}, "low must be below high.*2.120 apart"),
        ({"high": 1e-44}, "low must be below high.*2.-100"),
        ({"low": (0.0, 0.5)}, "one a channel"),
        ({"levels": 4097, "key_levels": 4096}, "no common grid"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**({"low": 0.0, "high": 1.0} | options))


def test_what_does_not_fit_the_state():
    codec = ifmdc(Settings(low=(0.0, 0.0), high=(1.0, 2.0)))
    with pytest.raises(
        ValueError, match=r"features must be \(streams, h, w, 2\); got shape \(1, 2, 3, 4\)"
    ):
        codec.blank((1, 2, 3, 4))
    state = codec.blank((1, 2, 3, 2))
    with pytest.raises(ValueError, match="features must be floating"):
        codec.encoder.step((), state, jnp.zeros((1, 2, 3, 3)))
    with pytest.raises(ValueError, match=r"mask must be bool\[1, 2, 3\]; got float32"):
        codec.encoder.step((), state, jnp.zeros((1, 2, 3, 2)), jnp.zeros((1, 2, 3)))


@pytest.mark.parametrize("shape", [(1, 6, 8, 2), (1, 8, 6, 2)])
def test_a_map_that_blocks_do_not_divide(shape):
    with pytest.raises(
        ValueError, match=f"block must divide height and width, {shape[1]} x {shape[2]}; got 4"
    ):
        ifmdc(Settings(low=0.0, high=1.0, block=4)).blank(shape)


def test_what_does_not_fit_the_state_of_blocks():
    codec = ifmdc(Settings(low=0.0, high=1.0, block=2))
    state = codec.blank((1, 4, 6, 2))
    assert state.level.shape == (1, 2, 3, 8)
    with pytest.raises(
        ValueError, match=r"features must be floating as in the state, \(1, 4, 6, 2\)"
    ):
        codec.encoder.step((), state, jnp.zeros((1, 2, 3, 8)))
    with pytest.raises(ValueError, match=r"mask must be bool\[1, 4, 6\]; got bool\[1, 2, 3\]"):
        codec.encoder.step((), state, jnp.zeros((1, 4, 6, 2)), jnp.zeros((1, 2, 3), bool))


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


# ---- blocks


def coefficients(feature, settings):
    """Of features that are clipped, from what is nearest to zero: float64, by frequency."""
    low, high = (np.asarray(end, np.float64) for end in (settings.low, settings.high))
    block = settings.block
    x = np.clip(np.float64(feature), low, high) - np.clip(0, low, high)
    n, height, width, channels = x.shape
    parts = x.reshape(n, height // block, block, width // block, block, channels)
    found = np.asarray(scipy.fft.dctn(parts, axes=(2, 4), norm="ortho"))
    rows, columns = frequency_order(block).T
    return np.moveaxis(found[:, :, rows, :, columns], 0, 3)  # [n, h / b, w / b, b * b, c]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"levels": 33, "key_levels": 17},
        {"levels": 5, "key_levels": 257, "key_dead_zone": 0.8},
        {"levels": 17, "dead_zone": 0.7},
        {"levels": 9, "residual_divisor": 4},
        {"low": (-2.0, 0.0, 1.0), "high": (4.0, 3.0, 5.0)},
    ],
)
@pytest.mark.parametrize("block", [2, 4])
def test_the_error_of_every_coefficient_is_bounded_at_every_frame(block, options):
    settings = Settings(**({"low": -2.0, "high": 4.0, "levels": 9, "block": block} | options))
    low, high = (np.asarray(end, np.float64) for end in (settings.low, settings.high))
    origin = np.clip(0, low, high)
    span = 2 * block * np.maximum(high - origin, origin - low)  # A, of each channel
    # Of a mean 1, of its two neighbours 4/3, of all others 5/3.
    relative = np.array([1, 4 / 3, 4 / 3, *[5 / 3] * (block**2 - 3)])[:, None]
    residual = span * 2 / (settings.levels - 1) / settings.residual_divisor * relative
    key = span / (settings.labels_of_key - 1) * relative
    allowed_of_key = np.where(relative == 1, 0.5, settings.key_dead_zone) * key
    allowed = settings.dead_zone * residual
    # Rounding, in 2^-24: of x - origin, weights, products and sums b^2 + 3 times the norm of a
    # block, which is at most A / 2; of its product with M / A, three times A / 2; then of A each,
    # that of adding M / 2, of subtracting the level, and of dividing by the step (two).
    slack = ((block**2 + 6) / 2 + 4) * 2**-24 * span
    largest = np.zeros(2)
    ends = run(ifmdc(settings), walk(32, shape=BLOCKY, speed=2.0), shape=BLOCKY)
    for feature, _, symbols, there, _ in ends:
        level = np.asarray(there.level).reshape(2, 8 // block, 12 // block, block**2, 3)
        found = (level - settings.grid / 2) * (span / settings.grid)
        error = np.abs(coefficients(feature, settings) - found)
        if symbols.is_key:
            assert np.all(error <= allowed_of_key + slack)
            continue
        # What exceeds B, which the least and the largest label tell, comes with later frames.
        labels = np.asarray(symbols.labels).reshape(level.shape)
        whole = (labels > 0) & (labels < settings.levels - 1) | (settings.residual_divisor == 1)
        assert np.mean(whole) > 0.5
        assert np.all((error <= allowed + slack) | ~whole)
        reached = (error / allowed).reshape(-1, block**2, 3).max((0, 2), where=True)
        largest = np.maximum(largest, [reached[0], reached[1:].max()])
    assert np.all(largest > 0.8)  # the bound is one that is reached


@pytest.mark.parametrize("block", [2, 4])
def test_the_decoder_transforms_back(block):
    settings = Settings(low=-2.0, high=4.0, levels=9, block=block)
    span = 2 * block * 4.0
    # As of the forward transform, and of adding the origin, with the norms of coefficients: those
    # of a block's values, of b^2 that are half a step off at most.
    slack = (block**2 + 6) * 2**-24 * span
    for _, _, _, there, reconstruction in run(
        ifmdc(settings), walk(20, shape=BLOCKY), shape=BLOCKY
    ):
        level = np.asarray(there.level).reshape(2, 8 // block, 12 // block, block**2, 3)
        grid = np.zeros((2, 8 // block, block, 12 // block, block, 3))
        rows, columns = frequency_order(block).T
        values = (level - settings.grid / 2) * (span / settings.grid)
        grid[:, :, rows, :, columns] = np.moveaxis(values, 3, 0)
        expected = np.asarray(scipy.fft.idctn(grid, axes=(2, 4), norm="ortho")).reshape(BLOCKY)
        np.testing.assert_allclose(
            np.asarray(reconstruction), np.clip(expected, -2, 4), rtol=0, atol=slack
        )


@pytest.mark.parametrize(("low", "high"), [(-2.0, 4.0), ((-0.1, 0.0, -7.0), (0.3, 0.7, 0.0))])
@pytest.mark.parametrize("block", [2, 4])
def test_zero_stays_zero(block, low, high):
    codec = ifmdc(Settings(low=low, high=high, levels=9, block=block, group_of_pictures=8))
    for n, (feature, *_, reconstruction) in enumerate(
        run(codec, (x.at[:, :4, :8].set(0) for x in walk(12, shape=BLOCKY)), shape=BLOCKY)
    ):
        quiet = np.asarray(reconstruction[:, :4, :8])
        assert np.all(quiet == 0), n
        assert np.any(reconstruction != 0)
        assert np.all(feature[:, :4, :8] == 0)


@pytest.mark.parametrize("block", [2, 4])
def test_the_nearest_to_zero_stays_where_zero_is_out_of_range(block):
    codec = ifmdc(Settings(low=(1.25, -4.0), high=(3.0, -0.3), levels=9, block=block))
    feature = jnp.zeros((1, 4, 8, 2))
    for *_, reconstruction in run(codec, [feature] * 3, shape=(1, 4, 8, 2)):
        assert np.all(reconstruction == np.array([1.25, -0.3], np.float32))


# ---- the change mask


@pytest.mark.parametrize("block", [1, 2, 4])
def test_what_is_masked_out_keeps_its_level_and_all_else_is_coded_alike(block):
    shape = (2, 15 * block, 17 * block, 3)  # more positions, or blocks, than a chunk
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=33, block=block))
    encode, _ = steps(codec)
    first, second = walk(2, shape=shape, speed=1.0)
    # A key frame is whole, whatever the mask says.
    state, _ = encode(codec.blank(shape), first, jnp.zeros(shape[:3], bool))
    whole, _ = encode(codec.blank(shape), first)
    np.testing.assert_array_equal(state.level, whole.level)
    dense, expected = encode(state, second)
    # One chunk exactly, one block more, all.
    some = np.random.default_rng(3).permutation(510).reshape(2, 15, 17)
    for count in (0, 1, 5, 128, 129, 300, 510):
        touched = some < count
        # One position of each block, a different one from block to block.
        i, j, k = np.nonzero(touched)
        change = np.zeros(shape[:3], bool)
        change[i, j * block + (j + k) % block, k * block + k // 2 % block] = True
        # Blocks that nothing touches are not even read: NaN there does no harm.
        read = touched.repeat(block, 1).repeat(block, 2)[..., None]
        masked, symbols = encode(state, jnp.where(read, second, jnp.nan), jnp.asarray(change))
        # In chunks the transform may round otherwise; that it shows takes a tie of two labels.
        keep = touched[..., None]
        np.testing.assert_array_equal(symbols.labels, jnp.where(keep, expected.labels, 16))
        np.testing.assert_array_equal(masked.level, jnp.where(keep, dense.level, state.level))
        assert count < 5 or np.any(symbols.labels != 16)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_a_block_is_coded_whole_where_one_position_is_marked(block):
    shape = (1, 4, 8, 1)
    codec = ifmdc(Settings(low=0.0, high=8.0, levels=9, block=block))
    change = jnp.zeros(shape[:3], bool).at[0, 1, 6].set(True)
    features = [jnp.zeros(shape), jnp.full(shape, 8.0)]
    *_, last = run(codec, features, change, shape=shape)
    row, column = 1 // block * block, 6 // block * block
    expected = np.zeros(shape)
    expected[:, row : row + block, column : column + block] = 8
    np.testing.assert_array_equal(last[-1], expected)


@pytest.mark.parametrize("block", [1, 2])
def test_what_exceeds_the_residual_range_waits_for_the_mask_or_a_key_frame(block):
    shape = (1, 4, 4, 1)
    codec = ifmdc(
        Settings(
            low=0.0,
            high=8.0,
            levels=5,
            residual_divisor=4 if block == 1 else 8,
            group_of_pictures=7,
            block=block,
        )
    )
    marked = [True, True, False, False, True, False, False, False]
    encode, decode = steps(codec)
    here = there = codec.blank(shape)
    means = []
    for n, mark in enumerate(marked):
        feature = jnp.full(shape, 0.0 if n == 0 else 8.0)
        here, symbols = encode(here, feature, jnp.full(shape[:3], mark))
        there, reconstruction = decode(there, symbols)
        means.append(float(reconstruction.mean()))
    assert means == [0, 2, 2, 2, 4, 4, 4, 8]


# ---- losses


@pytest.mark.parametrize("block", [1, 4])
def test_a_lost_frame_is_noticed_and_repaired_at_the_next_key_frame(block):
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9, group_of_pictures=6, block=block))
    encode, decode = steps(codec)
    here = there = codec.blank(BLOCKY)
    for n, feature in enumerate(walk(14, shape=BLOCKY)):
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
    encode, decode = steps(codec)
    here = there = codec.blank(SHAPE)
    for n, feature in enumerate(walk(9)):
        here, symbols = encode(here, feature)
        if n >= 2:
            there, _ = decode(there, symbols)
            assert there.intact == (n >= 6)


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("stage", ["fixed", "huffman", "arithmetic"])
def test_a_corrupted_packet_is_repaired_at_the_next_key_frame(stage, block):
    settings = Settings(
        low=-2.0, high=4.0, levels=9, key_levels=17, group_of_pictures=5, block=block
    )
    codec = ifmdc(settings)
    file = io.BytesIO()
    writer = BitstreamWriter(file, header_of(settings, shape=BLOCKY, stage=stage))
    encode, decode = steps(codec)
    here = codec.blank(BLOCKY)
    levels, starts = [], []
    for feature in walk(12, shape=BLOCKY):
        here, symbols = encode(here, feature)
        starts.append(file.tell())
        writer.write(np.asarray(symbols.labels))
        levels.append(np.asarray(here.level))
    writer.close()
    data = bytearray(file.getvalue())
    data[starts[6] + 14] ^= 16  # in the payload of frame 6

    there = codec.blank(BLOCKY)
    seen = []
    for frame in BitstreamReader(io.BytesIO(bytes(data)), skip_damaged=True):
        symbols = Symbols(*map(jnp.asarray, (frame.labels, frame.is_key, frame.number)))
        there, _ = decode(there, symbols)
        assert there.intact
        np.testing.assert_array_equal(there.level, levels[frame.number])
        seen.append(frame.number)
    assert seen == [0, 1, 2, 3, 4, 5, 10, 11]


# ---- the protocol


OPTIONS = [
    {},
    {"levels": 5, "residual_divisor": 3, "key_levels": 17, "dead_zone": 0.8},
    {"block": 2, "levels": 33, "key_levels": 17, "key_dead_zone": 0.6},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_init_is_a_step_from_blank(options):
    codec = ifmdc(Settings(**({"low": -2.0, "high": 4.0} | options)))
    (features,) = walk(1, shape=BLOCKY)
    started = codec.encoder.init((), features)
    stepped = codec.encoder.step((), codec.blank(BLOCKY), features)
    jax.tree.map(np.testing.assert_array_equal, started, stepped)
    symbols = started[1]
    assert symbols.is_key
    started = codec.decoder.init((), symbols)
    stepped = codec.decoder.step((), codec.blank(BLOCKY), symbols)
    jax.tree.map(np.testing.assert_array_equal, started, stepped)
    # Before its first key frame a decoder shows what is nearest to zero, or the lower end.
    late, shown = codec.decoder.init((), symbols._replace(is_key=jnp.zeros((), bool)))
    assert not late.intact
    np.testing.assert_array_equal(shown, 0.0 if codec.settings.block > 1 else -2.0)


def test_a_decoder_takes_no_mask_and_no_other_labels():
    codec = ifmdc(Settings(low=-2.0, high=4.0))
    state, symbols = codec.encoder.init((), next(walk(1)))
    state, _ = codec.decoder.init((), symbols)
    with pytest.raises(ValueError, match=r"mask must be None, .*; got bool\[2, 5, 6\]"):
        codec.decoder.step((), state, symbols, jnp.ones(SHAPE[:3], bool))
    for labels in (symbols.labels[:1], symbols.labels.astype(jnp.float32)):
        with pytest.raises(ValueError, match=r"symbols.labels must be integers .*\(2, 5, 6, 3\)"):
            codec.decoder.step((), state, symbols._replace(labels=labels))


def test_equal_settings_share_their_executables():
    settings = {"low": -2.0, "high": 4.0, "levels": 11}
    assert ifmdc(Settings(**settings)) is ifmdc(Settings(**settings))
    assert ifmdc(Settings(**settings)) is not ifmdc(Settings(**settings, dead_zone=0.6))


@pytest.mark.parametrize("block", [1, 2])
def test_work_counts_labels_and_the_transform(block):
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9, group_of_pictures=4, block=block))
    encode, decode = steps(codec)
    here = there = codec.blank(BLOCKY)
    _, height, width, channels = BLOCKY
    dense = height * width * channels * block**2 if block > 1 else 0
    rng = np.random.default_rng(0)
    for n, features in enumerate(walk(9, shape=BLOCKY)):
        mask = rng.random(BLOCKY[:3]) < 0.1 if n in (2, 3, 4) else None
        here, symbols = encode(here, features, mask)
        labels = np.asarray(symbols.labels)
        coded = (labels != codec.settings.run_label) | (n % 4 == 0)
        marked = np.ones(labels.shape[:3], bool)
        if mask is not None and n != 4:  # a key frame is whole
            shape = (2, height // block, block, width // block, block)
            marked = mask.reshape(shape).any((2, 4))
        lost = n in (5, 6, 7)  # 5 never arrives
        before = there
        there, _ = decode(there, symbols) if n != 5 else (there, None)
        for state in (here, there) if n != 5 else (here,):
            work = state.work
            ignored = state is there and lost
            counts = np.zeros(2) if ignored else coded.sum((1, 2, 3))
            shares = np.zeros(2) if ignored else coded.any(-1).mean((1, 2))
            done = marked if state is here else np.ones_like(marked)
            np.testing.assert_array_equal(work.details["nonzero"], counts)
            np.testing.assert_allclose(work.changed, shares, rtol=1e-6)
            np.testing.assert_allclose(work.macs, dense * done.mean((1, 2)), rtol=1e-6)
            np.testing.assert_array_equal(work.dense_macs, [dense, dense])
            assert work.details["is_key"] == (n % 4 == 0)
        assert jax.tree.structure(there) == jax.tree.structure(before)
        assert n == 0 or 0 < coded.mean() < 1 or n % 4 == 0


@pytest.mark.parametrize("block", [1, 4])
def test_a_stream_that_joins_begins_with_a_key_frame_of_all(block):
    codec = ifmdc(
        Settings(low=-2.0, high=4.0, levels=9, group_of_pictures=50, block=block, key_levels=9)
    )
    encode, decode = steps(codec)
    joined = jax.jit(dynvid.replace_streams)
    here = there = codec.blank(BLOCKY)
    newcomer = walk(120, shape=(1, *BLOCKY[1:]), seed=7)
    keys = []
    for n, features in enumerate(walk(120, shape=BLOCKY)):
        if n in (7, 23, 60, 61):
            which = jnp.array([False, True]) if n < 60 else jnp.array([True, True])
            first = next(newcomer)
            features = jnp.where(which[:, None, None, None], first, features)
            # What is put in does not matter, nor that a decoder is told.
            other = codec.blank((1, *BLOCKY[1:])) if n == 7 else codec.encoder.init((), first)[0]
            here = joined(here, other, which)
            assert not here.intact
            if n == 23:
                there = joined(there, codec.blank(BLOCKY), which)
        elif n == 40:  # nobody joins: nothing changes
            here = joined(here, codec.blank(BLOCKY), jnp.zeros(2, bool))
        here, symbols = encode(here, features)
        there, reconstruction = decode(there, symbols)
        assert there.intact
        np.testing.assert_array_equal(here.level, there.level)
        if block == 1:
            error = np.abs(np.clip(features, -2, 4) - reconstruction)
            assert error.max() <= 6 / 8 + 6 * 6 * 2**-23
        if symbols.is_key:
            keys.append(n)
    assert keys == [0, 7, 23, 50, 60, 61, 100]


def test_the_streams_that_stay_keep_their_levels_until_the_key_frame():
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9))
    *_, (_, here, *_) = run(codec, walk(5))
    joined = dynvid.replace_streams(here, codec.blank(SHAPE), jnp.array([True, False]))
    np.testing.assert_array_equal(joined.level[0], 0)
    np.testing.assert_array_equal(joined.level[1], here.level[1])
    assert joined.frame == here.frame == 5
    assert joined.work.details["nonzero"][1] == here.work.details["nonzero"][1]


@pytest.mark.parametrize("block", [1, 2])
def test_states_can_be_donated_and_scanned(block):
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9, group_of_pictures=6, block=block))
    features = list(walk(14, shape=BLOCKY))
    expected = [
        (symbols, reconstruction)
        for _, _, symbols, _, reconstruction in run(codec, features, shape=BLOCKY)
    ]
    encode, decode = (jax.jit(end.step, donate_argnums=1) for end in (codec.encoder, codec.decoder))
    # Of blank and of init: no buffer is given twice.
    here, there = codec.blank(BLOCKY), codec.blank(BLOCKY)
    states = [codec.encoder.init((), features[0])[0]]
    states.append(encode((), states[0], features[1])[0])
    assert states[0].level.is_deleted()
    for x, (symbols, reconstruction) in zip(features, expected, strict=True):
        here, found = encode((), here, x)
        jax.tree.map(np.testing.assert_array_equal, found, symbols)
        there, shown = decode((), there, found)
        np.testing.assert_array_equal(shown, reconstruction)

    def one(carry, x):
        here, there = carry
        here, symbols = codec.encoder.step((), here, x)
        there, reconstruction = codec.decoder.step((), there, symbols)
        return (here, there), (symbols, reconstruction)

    _, found = lax.scan(one, (codec.blank(BLOCKY), codec.blank(BLOCKY)), jnp.stack(features))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    jax.tree.map(np.testing.assert_array_equal, found, stacked)


@pytest.mark.parametrize("start", [2**31 - 3, 2**32 - 3])
def test_frames_are_numbered_in_thirty_two_unsigned_bits(start):
    """Number 2^31 is like any other; after 2^32 - 1 comes 0, a key frame."""
    period = 7  # 2^31 mod 7 = 2, 2^32 mod 7 = 4
    codec = ifmdc(Settings(low=-2.0, high=4.0, levels=9, group_of_pictures=period))
    encode, decode = steps(codec)
    here = codec.blank(SHAPE)._replace(frame=jnp.asarray(start, jnp.uint32))
    there = codec.blank(SHAPE)
    for n, features in enumerate(walk(20)):
        number = (start + n) % 2**32
        here, symbols = encode(here, features)
        there, _ = decode(there, symbols)
        assert symbols.frame.dtype == here.frame.dtype == there.frame.dtype == jnp.uint32
        assert int(symbols.frame) == number
        assert symbols.is_key == (n == 0 or number % period == 0)
        assert there.intact
        np.testing.assert_array_equal(here.level, there.level)


def test_the_longest_group():
    codec = ifmdc(Settings(low=-2.0, high=4.0, group_of_pictures=2**32 - 1))
    encode, _ = steps(codec)
    state, _ = encode(codec.blank(SHAPE), next(walk(1)))
    for number, is_key in ((1, False), (2**31, False), (2**32 - 2, False), (2**32 - 1, True)):
        at = state._replace(frame=jnp.asarray(number, jnp.uint32))
        assert encode(at, next(walk(1)))[1].is_key == is_key


# ---- files


@pytest.mark.parametrize("block", [1, 4])
def test_a_file_gives_back_what_the_encoder_holds(block):
    settings = Settings(
        low=(-2.0, 0.0, 1.0),
        high=(4.0, 3.0, 5.0),
        levels=5,
        key_levels=17,
        group_of_pictures=4,
        residual_divisor=2,
        block=block,
        dead_zone=0.7,
        key_dead_zone=0.6,
    )
    features = list(walk(9, shape=BLOCKY, speed=1.0))
    change = jnp.asarray(np.random.default_rng(0).random(BLOCKY[:3]) < 0.3)
    ends = run(ifmdc(settings), features, change, shape=BLOCKY)
    expected = [np.asarray(reconstruction) for *_, reconstruction in ends]
    ways: Any = (("fixed", "hwc"), ("huffman", "chw"), ("arithmetic", "chw"))
    for stage, scan in ways:
        scanned = dataclasses.replace(settings, scan=scan)
        file = io.BytesIO()
        writer = FeatureWriter(file, scanned, shape=BLOCKY, stage=stage)
        sizes = [writer.write(feature, mask=change)[0] for feature in features]
        writer.close()
        reader = FeatureReader(io.BytesIO(file.getvalue()))
        assert reader.header == header_of(scanned, shape=BLOCKY, stage=stage)
        frames = list(reader)
        assert [frame.bits for frame in frames] == [8 * size for size in sizes]
        np.testing.assert_array_equal([frame.map for frame in frames], expected)


@pytest.mark.parametrize("first", [2**31 - 3, 2**32 - 12])
def test_a_reader_decodes_frames_from_two_to_the_thirty_first_on(first):
    settings = Settings(low=-2.0, high=4.0, levels=9, group_of_pictures=first)
    codec = ifmdc(settings)
    file = io.BytesIO()
    writer = BitstreamWriter(file, header_of(settings, shape=SHAPE))
    writer._frames = first  # a camera that has run for years
    here = codec.blank(SHAPE)
    levels = []
    for features in walk(8):
        here, symbols = codec.encoder.step((), here, features)
        writer.write(np.asarray(symbols.labels), is_key=bool(symbols.is_key))
        levels.append(np.asarray(here.level))
    writer.close()
    frames = list(FeatureReader(io.BytesIO(file.getvalue()), skip_damaged=True))
    assert [frame.number for frame in frames] == list(range(first, first + 8))
    for frame, level in zip(frames, levels, strict=True):
        np.testing.assert_allclose(frame.map, -2 + level * 6 / settings.grid, rtol=0, atol=1e-5)


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
    with pytest.raises(ValueError, match="features must have a range at percentiles"):
        clip_range(np.zeros((2, 3, 3, 2)))
