"""NaN in a frame: changed, no further than its receptive field, and gone with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from tests.contract.test_exact import assert_identical
from tests.contract.zoo import BY_NAME, clip, conv

# For each network, the distance s of two outputs in pixels and a radius r: output o reads no pixel
# outside [s o - r, s o + s - 1 + r].
FIELDS = {
    "chain": (1, 2),
    "vgg": (4, 6),
    "unet_repeat": (1, 14),
    "nchw": (4, 4),
    "shuffle": (2, 2),
    "sums": (6, 9),
}


def reached(length: int, position: int, outputs: int, stride: int, radius: int) -> np.ndarray:
    """Which outputs of an axis may read a pixel."""
    assert outputs in (length // stride, -(-length // stride))
    first = np.arange(outputs) * stride
    return (first - radius <= position) & (position <= first + stride - 1 + radius)


@pytest.mark.parametrize("name", FIELDS)
def test_nan_spreads_no_further_than_its_receptive_field(name):
    network = BY_NAME[name]
    params = network.params(integer=True)
    dense = jax.jit(network.fn)
    frames = clip(network, integer=True)
    height, width, _ = network.frame
    video = dynvid.incremental(network.fn)
    state, out = video.init(params, frames[0])
    turn = (0, 2, 3, 1) if name == "nchw" else (0, 1, 2, 3)
    for places in ([(0, 9, 9)], [(1, 0, 0), (0, 3, 3), (0, 0, width - 1)]):
        # The scene changes elsewhere at the same time, so that cells beside the NaN run as well.
        for frame in frames[2:5]:
            broken = frame.copy()
            for place in places:
                broken[place] = np.nan
            state, out = video.step(params, state, broken)
            assert all(state.work.changed[stream] > 0 for stream, *_ in places)
            out, clean = (np.transpose(x, turn) for x in (out, dense(params, frame)))
            good = np.ones(out.shape[:3], bool)
            for stream, row, column in places:
                rows = reached(height, row, out.shape[1], *FIELDS[name])
                columns = reached(width, column, out.shape[2], *FIELDS[name])
                good[stream] &= ~(rows[:, None] & columns)
            assert good.mean() > 0.1
            np.testing.assert_array_equal(out[good], clean[good])
    state, out = video.step(params, state, frames[4])
    np.testing.assert_array_equal(out, dense(params, frames[4]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("stride", [1, 2])
def test_sums_meet_nan_exactly_where_the_dense_network_does(stride, bad):
    """Without maxima, whose NaN is a matter of XLA's; wide enough for Winograd's algorithm."""

    def fn(p, x):
        return conv(conv(conv(x, p[0]), p[1], stride), p[2]) + 1

    rng = np.random.default_rng(0)
    params = [rng.choice([-1.0, 1.0], (3, 3, c, 16)).astype("f") for c in (3, 16, 16)]
    dense = jax.jit(fn)
    video = dynvid.incremental(fn)
    frames = [f for f in clip(BY_NAME["chain"], integer=True)[:6] for _ in range(2)]
    state, _ = video.init(params, frames[0])
    for t, frame in enumerate(frames[1:]):
        frame = frame.copy()
        if 1 < t < 8:
            frame[0, 4, 4 + t // 4] = frame[1, -1, -1] = bad
        state, out = video.step(params, state, frame)
        assert_identical(out, dense(params, frame))


def resized(p, x):
    n, h, w, c = x.shape
    x = jax.image.resize(x, (n, 3 * h // 2, 5 * w // 4, c), "bilinear")
    return conv(x, p[0])


@pytest.mark.parametrize("first", [False, True])
def test_a_resizing_does_not_spread_nan_over_rows_and_columns(first):
    """The dense product with a band matrix does; what it spoils must not outlast the NaN."""
    params = [BY_NAME["chain"].params(integer=True)[0][0]]
    rng = np.random.default_rng(0)
    good = rng.random((1, 24, 32, 3), np.float32)
    bad = good.copy()
    bad[0, 9, 13] = np.nan
    video = dynvid.incremental(resized)
    state, _ = video.init(params, bad if first else good)
    for _ in range(3):
        # Rows and columns around the bad pixel go on changing.
        bad[0, 6:12, 10:18] = rng.random((6, 8, 3), np.float32)
        bad[0, 9, 13] = np.nan
        state, out = video.step(params, state, bad)
        finite = np.isfinite(np.asarray(out)).all(-1)[0]
        rows, columns = np.nonzero(~finite)
        # Bilinear: one neighbour on either side, times the factor; then the kernel's one.
        assert rows.min() >= 8 * 1.5 - 1
        assert rows.max() <= 11 * 1.5 + 1
        assert columns.min() >= 12 * 1.25 - 1
        assert columns.max() <= 15 * 1.25 + 1
    good[0, 6:12, 10:18] = bad[0, 6:12, 10:18]
    good[0, 9, 13] = 0.5
    state, out = video.step(params, state, good)
    # Sums of at most 27 products with up to 4 taps each, of numbers up to 1.
    np.testing.assert_allclose(out, resized(params, good), atol=8 * 27 * 4 * 2.0**-23)


def test_nan_that_stays_is_computed_again_and_again():
    network = BY_NAME["chain"]
    params = network.params(integer=True)
    frame = clip(network, integer=True)[0]
    frame[0, 4, 4, 1] = np.nan
    video = dynvid.incremental(network.fn, threshold=3, truncation=0.5)
    state, _ = video.init(params, frame)
    for _ in range(2):
        state, out = video.step(params, state, frame)
        assert state.work.changed[0] > 0
        assert state.work.changed[1] == 0
        assert jnp.isnan(out[0]).any()
        assert not jnp.isnan(out[1]).any()
    frame[0, 4, 4, 1] = 1
    state, out = video.step(params, state, frame)
    assert not jnp.isnan(out).any()
