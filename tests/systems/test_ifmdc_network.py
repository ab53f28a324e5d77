"""Front, codec and back as one function of the frames."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import dynvid
from dynvid.coding.container import LabelCoder
from dynvid.systems.ifmdc import (
    FeatureReader,
    FeatureWriter,
    Settings,
    calibrated_settings,
    clip_range,
    count_bits,
    header_of,
    ifmdc,
    ifmdc_network,
)

SHAPE = (2, 24, 32, 3)
MODES = [("incremental", "dense"), ("dense", "incremental")]


def convolve(x, kernel, stride):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def network(params, frames):
    """Two convolutions, of integers 0 .. 8 between them where parameters and frames are integer."""
    x = convolve(frames.astype(jnp.float32), params["front"], 2)
    x = checkpoint_name(jnp.clip(x, 0, 8), "cut")
    return {"map": convolve(x, params["back"], 1) + params["bias"], "sum": x.sum((1, 2, 3))}


def integers(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "front": jnp.asarray(rng.integers(-1, 2, (3, 3, 3, 4)), jnp.float32),
        "back": jnp.asarray(rng.integers(-2, 3, (3, 3, 4, 2)), jnp.float32),
        "bias": jnp.asarray([3.0, -1.0]),
    }


def video(count, *, seed=0, shape=SHAPE):
    """A still picture in which something moves, of integers 0 .. 5."""
    rng = np.random.default_rng(seed)
    streams, _, width, channels = shape
    frame = rng.integers(0, 6, shape).astype(np.float32)
    for t in range(count):
        frame = frame.copy()
        if t % 4 != 3:  # sometimes nothing does
            left = (5 * t) % (width - 6)
            frame[:, 4:9, left : left + 6] = rng.integers(0, 6, (streams, 5, 6, channels))
        yield jnp.asarray(frame)


@jax.jit
def front_of(params, frames):
    return dynvid.split(network, at="cut").front(params, frames)["cut"]


@functools.cache
def system_of(settings, **options):
    """Each is compiled once for all tests."""
    return ifmdc_network(network, at="cut", settings=settings, **options)


dense = jax.jit(network)
# Integers are levels of this grid, and no difference is beyond a residual: the codec is exact.
EXACT = Settings(low=0.0, high=8.0, levels=17, key_levels=9, group_of_pictures=5)
COARSE = Settings(low=0.0, high=8.0, levels=5, key_levels=9, group_of_pictures=5)


@pytest.mark.parametrize(("front", "back"), MODES)
def test_what_the_codec_keeps_exactly_comes_out_exactly(front, back):
    system = system_of(EXACT, front=front, back=back)
    params = integers()
    state = None
    for frames in video(12):
        if state is None:
            state, output = system.init(params, frames)
        else:
            state, output = system.step(params, state, frames)
        jax.tree.map(np.testing.assert_array_equal, output, dense(params, frames))


@pytest.mark.parametrize(("front", "back"), MODES)
def test_outputs_are_within_what_the_back_makes_of_the_codecs_bound(front, back):
    rng = np.random.default_rng(1)
    params = {
        "front": jnp.asarray(rng.normal(0, 0.3, (3, 3, 3, 4)), jnp.float32),
        "back": jnp.asarray(rng.normal(0, 1, (3, 3, 4, 2)), jnp.float32),
        "bias": jnp.zeros(2),
    }
    system = system_of(COARSE, front=front, back=back)
    bound = 8.0 / (COARSE.levels - 1)
    # Each output is a sum over one kernel of features that are off by the bound at most.
    allowed = np.abs(params["back"]).sum((0, 1, 2)) * bound
    # Rounding: features of at most 8 that are sums of 27 products, outputs sums of 36 of them; as
    # an incremental front computes them in another order, both twice.
    slack = 2 * 2**-23 * np.abs(params["back"]).sum((0, 1, 2)) * 8 * (27 + 36)
    largest, state = 0.0, None
    for frames in video(12):
        frames = frames * 1.37
        if state is None:
            state, output = system.init(params, frames)
        else:
            state, output = system.step(params, state, frames)
        error = np.abs(output["map"] - dense(params, frames)["map"]).max((0, 1, 2))
        assert np.all(error <= allowed + slack)
        largest = max(largest, float(np.max(error / allowed)))
    assert largest > 0.1  # features are off by half the bound, and not all in one direction


def test_a_threshold_bounds_the_front_at_its_reference():
    system = system_of(EXACT, front="incremental", back="dense")
    params = integers()
    frames = list(video(9))
    state, _ = system.init(params, frames[0])
    state = state.with_settings(threshold=3.0)
    kept = False
    for x in frames[1:]:
        state, output = system.step(params, state, x)
        jax.tree.map(np.testing.assert_array_equal, output, dense(params, state.reference))
        kept |= bool(jnp.any(state.reference != x))
    assert kept


def test_a_mask_replaces_the_frame_difference():
    system = system_of(EXACT, front="incremental", back="dense")
    params = integers()
    first, second = list(video(2))
    state, output = system.init(params, first)
    nothing = jnp.zeros(SHAPE[:3], bool)
    state, same = system.step(params, state, second, nothing)
    jax.tree.map(np.testing.assert_array_equal, same, output)
    assert state.work.details["nonzero"].tolist() == [0, 0]
    state, moved = system.step(params, state, second, ~nothing)
    jax.tree.map(np.testing.assert_array_equal, moved, network(params, second))


@pytest.mark.parametrize(("front", "block"), [("incremental", 2), ("dense", 1)])
def test_both_ends_hold_the_same_integers_over_two_hundred_frames(front, block):
    """In one scan, with streams that join on the way."""
    settings = Settings(low=0.0, high=8.0, levels=9, block=block, group_of_pictures=30)
    system = ifmdc_network(network, at="cut", settings=settings, front=front)
    params = integers()
    clip = jnp.stack(list(video(200)))

    def one(state, inputs):
        frames, joins = inputs
        fresh, _ = system.init(params, frames)
        state = dynvid.replace_streams(state, fresh, jnp.array([False, True]) & joins)
        state, output = system.step(params, state, frames)
        same = jnp.all(state.encoder.level == state.decoder.level) & state.decoder.intact
        return state, (same, state.work.details["is_key"], output["sum"])

    joins = jnp.zeros(200, bool).at[jnp.array([17, 77])].set(True)
    state, _ = system.init(params, clip[0])
    state, (same, keys, sums) = jax.jit(lambda s: lax.scan(one, s, (clip[1:], joins[1:])))(state)
    assert same.all()
    assert (np.flatnonzero(keys) + 1).tolist() == sorted([17, 77, *range(30, 200, 30)])
    assert state.encoder.frame == state.decoder.frame == 200
    assert np.isfinite(sums).all()


@pytest.mark.parametrize(("front", "back"), MODES)
def test_a_camera_that_joins_is_right_at_once_and_disturbs_no_other(front, back):
    system = system_of(EXACT, front=front, back=back)
    params = integers()
    one = (1, *SHAPE[1:])
    state, step = None, jax.jit(system.step, donate_argnums=1)
    joined = jax.jit(lambda *inputs: dynvid.replace_streams(*inputs))
    other = list(video(9, seed=5, shape=one))
    for t, frames in enumerate(video(9)):
        if t >= 3:
            frames = frames.at[1].set(other[t][0])
        if state is None:
            state, output = system.init(params, frames)
        else:
            if t == 3:
                newcomer, _ = system.init(params, other[2])
                state = joined(state, newcomer, jnp.array([False, True]))
            state, output = step(params, state, frames)
        assert state.work.details["is_key"] == (t in (0, 3, 5))
        jax.tree.map(np.testing.assert_array_equal, output, dense(params, frames))
    assert joined._cache_size() == step._cache_size() == 1


def test_states_are_donated():
    system = system_of(COARSE, front="dense", back="incremental")
    params = integers()
    frames = list(video(8))
    kept = [system.init(params, frames[0])]
    for x in frames[1:]:
        kept.append(system.step(params, kept[-1][0], x))
    step = jax.jit(system.step, donate_argnums=1)
    state, _ = system.init(params, frames[0])
    for x, (_, expected) in zip(frames[1:], kept[1:], strict=True):
        before = state
        state, output = step(params, state, x)
        assert before.encoder.level.is_deleted()
        jax.tree.map(np.testing.assert_array_equal, output, expected)
    assert not any(x.is_deleted() for x in frames)


def test_work_is_what_each_part_executed():
    params = integers()
    height, width = SHAPE[1] // 2, SHAPE[2] // 2
    front_macs, back_macs = height * width * 27 * 4, height * width * 36 * 2
    found = {}
    for front, back in MODES:
        system = system_of(EXACT, front=front, back=back)
        first = next(video(1))
        state, _ = system.init(params, first)
        assert state.work.details["front_macs"].tolist() == [front_macs] * 2
        assert state.work.details["back_macs"].tolist() == [back_macs] * 2
        state, _ = system.step(params, state, first.at[1, 5, 5].add(1.0))
        work = state.work
        assert work.dense_macs.tolist() == [front_macs + back_macs] * 2
        parts = [work.details[name] for name in ("front_macs", "codec_macs", "back_macs")]
        np.testing.assert_array_equal(work.macs, sum(parts))
        found[front, back] = work
    first_part, second_part = found["dense", "incremental"], found["incremental", "dense"]
    assert first_part.changed.tolist() == [1, 1]
    np.testing.assert_allclose(second_part.changed, [0, 1 / (SHAPE[1] * SHAPE[2])], rtol=1e-6)
    for dense_macs, work, other, name in (
        (back_macs, first_part, second_part, "back_macs"),
        (front_macs, second_part, first_part, "front_macs"),
    ):
        assert other.details[name].tolist() == [dense_macs] * 2
        executed = work.details[name].tolist()
        assert executed[0] == 0
        assert 0 < executed[1] < dense_macs / 2
    # What the codec itself computes, with blocks: both ways of the transform.
    system = system_of(Settings(low=0.0, high=8.0, block=4))
    state, _ = system.init(params, first)
    values = height * width * 4
    assert state.work.details["codec_macs"].tolist() == [2 * values * 16] * 2
    assert state.work.macs.tolist() == [front_macs + back_macs + 2 * values * 16] * 2
    # The encoder only where the front tells it: of 12 blocks one, of 8 x 8 pixels.
    state, _ = system.step(params, state, first.at[1, 12, 12].add(1.0))
    assert state.work.details["codec_macs"].tolist() == [values * 16, values * 16 * 13 / 12]


@pytest.mark.parametrize("scan", ["chw", "hwc"])
@pytest.mark.parametrize("block", [1, 2])
def test_bits_are_those_that_the_host_packs(block, scan):
    settings = Settings(
        low=0.0, high=8.0, levels=9, key_levels=33, group_of_pictures=4, block=block, scan=scan
    )
    codec = ifmdc(settings)
    coder = LabelCoder(header_of(settings, shape=(1, 12, 16, 4), stage="fixed"))
    state, params = codec.blank((2, 12, 16, 4)), integers()
    for frames in video(6):
        state, symbols = codec.encoder.step((), state, front_of(params, frames))
        counted = count_bits(symbols, settings=settings).tolist()
        for labels, bits in zip(np.asarray(symbols.labels), counted, strict=True):
            packed = coder.encode(labels[None], is_key=bool(symbols.is_key))
            # Seven bytes of header; heads and run lengths are each filled up to a byte.
            assert 0 <= 8 * (len(packed) - 7) - bits < 16


def test_work_says_the_bits():
    system, params, codec = (
        system_of(COARSE, front="dense", back="incremental"),
        integers(),
        ifmdc(COARSE),
    )
    frames = list(video(3))
    state, _ = system.init(params, frames[0])
    encoder, symbols = codec.encoder.init((), front_of(params, frames[0]))
    for x in (*frames[1:], frames[-1]):
        state, _ = system.step(params, state, x)
        encoder, symbols = codec.encoder.step((), encoder, front_of(params, x))
        work = state.work.details
        np.testing.assert_array_equal(work["bits"], count_bits(symbols, settings=COARSE))
        np.testing.assert_array_equal(work["nonzero"], encoder.work.details["nonzero"])
    assert work["nonzero"].tolist() == [0, 0]
    assert work["bits"].tolist() == [3 + 10] * 2  # one run of 768, of 2^10 at most


def test_the_wire_carries_the_same():
    """Masks, bytes and all: what a cloud would read from a file is what came out."""
    params = integers()
    system = system_of(COARSE, front="incremental", back="dense")
    halves = dynvid.split(network, at="cut")
    edge = dynvid.incremental(lambda p, x: halves.front(p, x)["cut"])
    file = io.BytesIO()
    writer = FeatureWriter(file, COARSE, shape=(2, 12, 16, 4))
    expected, state = [], None
    for frames in video(9):
        if state is None:
            state, output = system.init(params, frames)
            own, features = edge.init(params, frames)
        else:
            state, output = system.step(params, state, frames)
            own, features = edge.step(params, own, frames)
        writer.write(features, mask=own.changes[0])
        expected.append(output)
    writer.close()
    file.seek(0)
    crossing = halves.front(params, next(video(1)))
    for received, output in zip(FeatureReader(file), expected, strict=True):
        features = dataclasses.replace(crossing, named={"cut": received.map})
        jax.tree.map(np.testing.assert_array_equal, halves.back(params, features), output)


def test_the_clip_range_is_that_of_the_features():
    params = integers()
    frames = list(video(4))
    features = np.stack([front_of(params, x) for x in frames])
    options = {"levels": 17, "group_of_pictures": 7, "percentiles": (10.0, 90.0)}
    settings = calibrated_settings(network, params, frames, at="cut", **options)
    low, high = clip_range(features, percentiles=(10.0, 90.0))
    assert settings == Settings(low=low, high=high, levels=17, group_of_pictures=7)
    settings = calibrated_settings(network, params, iter(frames), at="cut", block=4)
    assert (settings.block, settings.levels, settings.key_levels) == (4, 9, 5)
    system = ifmdc_network(network, at="cut", settings=settings)
    state, _ = system.init(params, frames[0])
    assert state.encoder.level.shape == (2, 3, 4, 64)
    with pytest.raises(ValueError, match="frames must be at least one"):
        calibrated_settings(network, params, [], at="cut")
    with pytest.raises(ValueError, match=r"features must have a range at percentiles"):
        calibrated_settings(network, params, [jnp.zeros(SHAPE)], at="cut")


def test_bfloat16_features_go_on_as_such():
    def fn(params, frames):
        x = checkpoint_name((frames * params).astype(jnp.bfloat16), "cut")
        assert x.dtype == jnp.bfloat16
        return x * 2

    system = ifmdc_network(fn, at="cut", settings=EXACT)
    frames = next(video(1))
    state, output = system.init(jnp.float32(1), frames)
    assert output.dtype == jnp.bfloat16
    _, output = system.step(jnp.float32(1), state, 5 - frames)
    np.testing.assert_array_equal(output, fn(jnp.float32(1), 5 - frames))


def test_a_front_that_is_recalibrated_is_followed_by_a_key_frame():
    params = integers()
    system = system_of(EXACT, front="incremental", back="dense")
    frames = list(video(3))
    state, _ = system.init(params, jnp.zeros(SHAPE))
    again = system.recalibrate(params, state, frames[1])
    assert jax.tree.structure(again) == jax.tree.structure(state)
    # What changed up to there is not in the masks from there on, and still has to be sent.
    again, output = system.step(params, again, frames[2])
    assert again.work.details["is_key"]
    assert 0 < again.work.changed[0] < 0.5
    jax.tree.map(np.testing.assert_array_equal, output, dense(params, frames[2]))
    system = system_of(EXACT, front="dense", back="incremental")
    state, _ = system.init(params, frames[0])
    assert system.recalibrate(params, state, frames[1]) is state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"front": "sparse"}, "front must be 'incremental' or 'dense'; got 'sparse'"),
        ({"back": "sparse"}, "back must be 'incremental' or 'dense'; got 'sparse'"),
        ({"front": "dense", "threshold": 1.0}, "threshold and truncation must be 0 .*; got 1.0"),
        ({"front": "dense", "truncation": {"a": 0.5}}, "threshold and truncation must be 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        ifmdc_network(network, at="cut", settings=EXACT, **options)


def skip(params, frames):
    x = network(params, frames)
    return x["map"], convolve(frames, params["front"], 4) + x["map"].mean()


def twice(params, frames):
    return checkpoint_name(checkpoint_name(frames * 1.0, "cut") * 2, "cut") + 1


def flat(params, frames):
    return checkpoint_name(frames.mean((1, 2)), "cut") + 1


def whole(params, frames):
    return checkpoint_name(frames.astype(jnp.int32), "cut") + 1


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda p, x: x + 1.0, "at must name what the outputs of fn need; got 'cut'"),
        (skip, "at must name all that crosses the cut; got 'cut' beside .*conv"),
        (twice, "at must name all that crosses the cut; got 'cut' beside 1 more of that name"),
        (flat, r"at must name a floating feature map \(2, h, w, c\); got 'cut', float32\[2, 3\]"),
        (whole, r"at must name a floating feature map \(2, h, w, c\); got 'cut', int32"),
    ],
)
@pytest.mark.parametrize("front", ["incremental", "dense"])
def test_cuts_that_cannot_be(fn, message, front):
    frames = next(video(1))
    with pytest.raises(ValueError, match=message):
        ifmdc_network(fn, at="cut", settings=EXACT, front=front).init(integers(), frames)
    with pytest.raises(ValueError, match=message):
        calibrated_settings(fn, integers(), [frames], at="cut")


def test_what_does_not_fit_the_state():
    params, frames = integers(), next(video(1))
    dense = system_of(EXACT, front="dense", back="incremental")
    state, _ = dense.init(params, frames)
    with pytest.raises(ValueError, match=r"mask must be None where the front is dense; got bool"):
        dense.step(params, state, frames, jnp.zeros(SHAPE[:3], bool))
    for front in ("dense", "incremental"):
        system = system_of(EXACT, front=front, back="incremental" if front == "dense" else "dense")
        state, _ = system.init(params, frames)
        with pytest.raises(ValueError, match=r"must be .*as in the state"):
            system.step(params, state, frames[:, :20])
    with pytest.raises(ValueError, match="block must divide height and width, 12 x 16; got 5"):
        ifmdc_network(network, at="cut", settings=Settings(low=0.0, high=8.0, block=5)).init(
            params, frames
        )
