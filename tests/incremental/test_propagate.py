"""Along a motion: what is warped, what is computed, and that the rest is not needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import dynvid
from dynvid.incremental import along_motion, map_caches
from dynvid.ops.warp import resize_flow, warp

RNG = np.random.default_rng(0)
KERNELS = [RNG.integers(-1, 2, (3, 3, a, b)).astype("f") for a, b in ((2, 3), (3, 4), (4, 3))]


def network(params, x):
    """Strides, dilation, a skip connection and pooling; all on integers."""

    def conv(x, kernel, *, stride=1, dilation=1):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), [(dilation, dilation)] * 2,
            rhs_dilation=(dilation, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    x = jax.nn.relu(conv(x, params[0]))
    skip = x
    x = jax.nn.relu(conv(x, params[1], stride=2))
    x = conv(x, params[2], dilation=2)
    x = x + lax.reduce_window(skip, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return {"map": x, "skip": skip}


def clip(shape):
    frames = RNG.integers(0, 8, (2, *shape)).astype("f")
    flow = RNG.integers(-6, 7, (shape[0], 3, 4, 2)).astype("f")
    # In blocks of one motion: resizing it by the nearest position leaves whole and half pixels.
    return frames, jnp.broadcast_to(flow[:, :1, :1] / 4, flow.shape)


@pytest.mark.parametrize("reach", ["mask", "geometry"])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 1.0])
def test_warping_what_is_read_is_warping_everything(reach, share):
    """Against `map_caches` and a step, on streams of their own masks; nothing else is read."""
    frames, flow = clip((2, 24, 32, 2))
    mask = np.kron(RNG.random((2, 6, 8)) < share, np.ones((4, 4), bool))
    mask[1] &= share == 1  # a stream that has nothing to do
    follow = along_motion(network, reach=reach)
    plain = dynvid.incremental(network, reference="previous", reach=reach)
    state, _ = follow.init(KERNELS, frames[0])
    whole = map_caches(state, lambda x, stride: warp(x, resize_flow(flow, x.shape[1:3])))
    expected_state, expected = plain.step(KERNELS, whole, frames[1], mask)
    # What lies in the scratch must not matter: neither numbers of another frame nor NaN.
    poisoned = map_caches(state, lambda x, stride: jnp.full_like(x, jnp.nan))
    for scratch in (state, poisoned):
        found_state, found = follow.step(KERNELS, state, scratch, frames[1], mask, flow)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        np.testing.assert_array_equal(found_state.work.macs, expected_state.work.macs)
    if share == 1:
        jax.tree.map(np.testing.assert_array_equal, found, network(KERNELS, frames[1]))


def test_marks_that_do_not_spread():
    """Each layer is computed under the mask and keeps what it had elsewhere."""
    frames, _ = clip((1, 24, 32, 2))
    mask = np.zeros((1, 24, 32), bool)
    mask[:, 8:12, 8:16] = True
    video = dynvid.incremental(network, reference="previous", reach="mask")
    state, before = video.init(KERNELS, frames[0])
    state, after = video.step(KERNELS, state, frames[1], mask)
    for name, side in (("map", 2), ("skip", 1)):
        outside = ~mask[:, side // 2 :: side, side // 2 :: side]
        np.testing.assert_array_equal(after[name][outside], before[name][outside])
        assert (np.asarray(after[name]) != np.asarray(before[name]))[~outside].any()
    np.testing.assert_array_equal(state.changes[0][0], mask[0, 1::2, 1::2])


def test_only_selected_caches_are_mapped():
    frames, _ = clip((1, 24, 32, 2))
    state, _ = dynvid.incremental(network).init(KERNELS, frames[0])
    seen = []

    def coarse(name, grid):
        seen.append((name, grid))
        return grid == (12, 16)

    mapped = map_caches(state, lambda x, stride: jnp.zeros_like(x), select=coarse)
    assert ("conv_1", (24, 32)) in seen
    for (_, grid), old, new in zip(seen, state.caches, mapped.caches, strict=True):
        if grid == (12, 16):
            assert not new.any()
        else:
            assert new is old


def test_flows_that_do_not_fit():
    frames, flow = clip((1, 24, 32, 2))
    follow = along_motion(network)
    state, _ = follow.init(KERNELS, frames[0])
    with pytest.raises(ValueError, match=r"flow must be \(1, h, w, 2\); got \(1, 3, 4\)"):
        follow.step(KERNELS, state, state, frames[1], np.zeros((1, 24, 32), bool), flow[..., 0])
    with pytest.raises(ValueError, match="reach must be one of geometry, mask, cover; got 'far'"):
        along_motion(network, reach="far")  # type: ignore[arg-type]
