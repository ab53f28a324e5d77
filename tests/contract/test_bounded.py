"""Contract, "bounded": every cache stays within its tolerance of its layer's dense result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.incremental.transform import plan_for
from tests.contract.caches import excesses
from tests.contract.changes import Watch
from tests.contract.rounding import rounding_bounds
from tests.contract.zoo import BY_NAME, clip, conv

NAMES = ["vgg", "inverted_residual", "pyramid", "nchw", "boundaries"]


@pytest.mark.parametrize("name", NAMES)
def test_caches_stay_within_their_tolerance(name):
    network = BY_NAME[name]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    video = dynvid.incremental(network.fn, truncation=0.7, threshold=2)
    plan = plan_for(network.fn, params, frames[0], compares=True)
    excess = excesses(plan)
    state, out = video.init(params, frames[0])
    watch = Watch(plan, out, state)
    dense = jax.jit(network.fn)
    truncated = False
    for frame in frames[1:]:
        state, out = video.step(params, state, frame)
        watch(out, state)
        # Integers are exact: the distance is below the tolerance, or the values are equal.
        assert excess(params, state).max() < 0
        exact = dense(params, state.reference)
        pairs = zip(jax.tree.leaves(out), jax.tree.leaves(exact), strict=True)
        truncated |= any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
    assert truncated, "the clip never made a difference"


def test_each_layer_has_its_own_tolerance():
    network = BY_NAME["chain"]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    layers = dynvid.explain(network.fn, params, frames[0]).layers
    video = dynvid.incremental(network.fn, truncation={layers[0]: 0.5})
    state, _ = video.init(params, frames[0])
    first = network.fn(params[:1], frames[0])
    rms = np.sqrt(np.square(np.asarray(first, np.float64)).mean((1, 2, 3)))
    for name, tolerance in zip(state.names, state.tolerances, strict=True):
        # A mean of squares in float32: its rounding is far below one part in 100,000.
        expected = 0.5 * rms if name == layers[0] else 0 * rms
        np.testing.assert_allclose(tolerance, expected, rtol=1e-5)


def test_a_tolerance_saves_work():
    network = BY_NAME["chain"]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    spent = []
    for tau in (0.0, 2.0):
        video = dynvid.incremental(network.fn, truncation=tau)
        state, _ = video.init(params, frames[0])
        total = 0.0
        for frame in frames[1:]:
            state, _ = video.step(params, state, frame)
            total += float(state.work.mac_fraction)
        spent.append(total)
    assert spent[1] < 0.5 * spent[0]


def test_two_thousand_frames_drift_no_further_than_ten():
    def fn(p, x):
        for w in p:
            x = jnp.tanh(conv(x, w))
        return x

    rng = np.random.default_rng(0)
    params = [(rng.normal(size=(3, 3, c, 8)) / np.sqrt(9 * c)).astype("f") for c in (3, 8, 8)]
    first = rng.random((2, 16, 16, 3), np.float32)
    tau, theta = 0.3, 0.02
    video = dynvid.incremental(fn, truncation=tau, threshold=theta)
    excess = excesses(plan_for(fn, params, first, compares=True))

    def show(state, t):
        # A texture that brightens and fades under noise, and an object that comes round.
        noise = 0.01 * jax.random.normal(jax.random.key(t), first.shape)
        x = first * (0.7 + 0.3 * jnp.sin(0.01 * t)) + noise
        at = (0, (t // 3) % 12, (t // 2) % 13, 0)
        x = jax.lax.dynamic_update_slice(x, jnp.full((2, 4, 3, 3), 0.9), at)
        state, out = video.step(params, state, x)
        error = jnp.sqrt(jnp.mean((out - fn(params, state.reference)) ** 2))
        near = jnp.max(jnp.abs(x - state.reference))
        return state, (excess(params, state).max(), error, near, state.work.mac_fraction)

    state, _ = video.init(params, first)
    _, (over, error, near, share) = jax.jit(functools.partial(jax.lax.scan, show))(
        state, jnp.arange(2000)
    )
    # A segment computes again what the checker computes: they differ by rounding alone.
    assert over.max() < max(rounding_bounds(fn, params, first))
    assert near.max() < theta
    assert 0.05 < share[1:].mean() < 0.95
    assert error[-1000:].mean() <= error[:10].mean()
