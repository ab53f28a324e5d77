"""NaN in a frame: changed, no further than its receptive field, and gone with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from tests.contract.test_exact import assert_identical
from tests.contract.zoo import BY_NAME, clip, conv

# Networks whose dense form spreads a NaN by its receptive field only.
LOCAL = ["chain", "vgg", "dilated", "unet_repeat", "nchw", "transposed", "sums", "shuffle"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", LOCAL)
def test_nan_spreads_and_goes_as_in_the_dense_network(name, bad):
    network = BY_NAME[name]
    params = network.params(integer=True)
    dense = jax.jit(network.fn)
    frames = clip(network, integer=True)
    height, width, _ = network.frame
    video = dynvid.incremental(network.fn)
    step = video.step
    state, _ = video.init(params, frames[0])
    for places in ([(0, height // 2, width // 2)], [(1, 0, 0), (0, 3, 3), (0, 0, width - 1)], []):
        # The scene changes elsewhere at the same time, so that cells beside the NaN run as well.
        for frame in frames[2:5]:
            broken = frame.copy()
            for place in places:
                broken[place] = bad
            state, out = step(params, state, broken)
            if places:
                assert (state.work.changed > 0)[[stream for stream, *_ in places]].all()
            assert_identical(out, dense(params, broken))


def resized(p, x):
    n, h, w, c = x.shape
    x = jax.image.resize(x, (n, 3 * h // 2, 5 * w // 4, c), "bilinear")
    return conv(x, p[0]) if len(p) else x


@pytest.mark.parametrize("first", [False, True])
def test_a_resizing_does_not_spread_nan_over_rows_and_columns(first):
    """The dense product with a band matrix does; what it spoils must not outlast the NaN."""
    params = [BY_NAME["dilated"].params(integer=True)[0]]
    rng = np.random.default_rng(0)
    good = rng.random((1, 24, 32, 3), np.float32)
    bad = good.copy()
    bad[0, 9, 13] = np.nan
    video = dynvid.incremental(resized)
    state, _ = video.init(params, bad if first else good)
    for t in range(3):
        # Rows and columns around the bad pixel go on changing.
        bad[0, 6:12, 10:18] = rng.random((6, 8, 3), np.float32)
        bad[0, 9, 13] = np.nan
        state, out = video.step(params, state, bad)
        finite = np.isfinite(np.asarray(out)).all(-1)[0]
        if t or not first:
            rows, columns = np.nonzero(~finite)
            # Bilinear: one neighbour on either side, times the factor; then the kernel's two.
            assert rows.min() >= 8 * 1.5 - 2
            assert rows.max() <= 11 * 1.5 + 2
            assert columns.min() >= 12 * 1.25 - 2
            assert columns.max() <= 15 * 1.25 + 2
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
