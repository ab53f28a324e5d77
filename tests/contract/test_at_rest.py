"""Contract, "exact at rest": what truncation held back does not outlive its cause."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.ops.refresh import TURNS
from tests.contract.zoo import BY_NAME, clip, conv

SETTLE = 3


def equal(a, b) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("name", sorted(n for n, network in BY_NAME.items() if network.integer))
def test_a_still_frame_is_exact_once_it_has_settled(name):
    network = BY_NAME[name]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    video = dynvid.incremental(network.fn, threshold=2, truncation=0.7, settle=SETTLE)
    step = jax.jit(video.step)
    dense = jax.jit(network.fn)
    state, out = video.init(params, frames[0])
    for frame in frames[1:]:
        state, out = step(params, state, frame)
    for _ in range(SETTLE + TURNS - 1):  # the last of which settles the last of the blocks
        state, out = step(params, state, frames[-1])
    assert equal(out, dense(params, state.reference))
    state, again = step(params, state, frames[-1])
    assert state.work.macs.max() == 0 or not any(h is not None for h in state.held)
    assert equal(again, out)


def test_every_test_network_would_be_inexact_without():
    """What the test above is for: truncation leaves traces in a network that it applies to."""
    network = BY_NAME["vgg"]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    video = dynvid.incremental(network.fn, threshold=2, truncation=0.7, settle=None)
    state, out = video.init(params, frames[0])
    for frame in [*frames[1:], *[frames[-1]] * 20]:
        state, out = video.step(params, state, frame)
    assert not equal(out, network.fn(params, state.reference))


def two_convolutions(p, x):
    for w in p:
        x = jnp.maximum(conv(x, w), 0)
    return x


def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(-3, 4, (3, 3, c, 4)).astype("f") for c in (1, 4)]


def letterboxed(p, x):
    """The frame is the upper half of what the network sees."""
    return two_convolutions(p, jnp.pad(x, ((0, 0), (0, x.shape[1]), (0, 0), (0, 0))))


@pytest.mark.parametrize("network", [two_convolutions, letterboxed])
def test_what_has_left_is_gone_although_something_else_goes_on_moving(network):
    """A ghost: an object passes on the left and is gone; on the right another moves for ever."""
    params = weights()
    video = dynvid.incremental(network, truncation=3.0, settle=SETTLE)
    dense = jax.jit(network)
    step = jax.jit(video.step)
    ground = np.random.default_rng(1).integers(0, 9, (1, 48, 96, 1)).astype("f")

    def show(t):
        x = ground.copy()
        if t < 8:
            x[:, 30:38, 4 + 2 * t : 12 + 2 * t] += 2 * t
        x[:, 4:12, 70 + t % 5 : 78 + t % 5] += 9
        return x

    state, _ = video.init(params, show(0))
    wrong = []
    for t in range(1, 8 + SETTLE + TURNS):
        state, out = step(params, state, show(t))
        left = np.asarray(out)[:, 24:48, :40]
        wrong.append((left != np.asarray(dense(params, state.reference))[:, 24:48, :40]).any())
    assert any(wrong[:8]), "truncation held nothing back"
    assert not wrong[-1]


def test_the_rotation_takes_over_what_is_too_faint_for_the_threshold():
    params = weights()
    period = 5
    video = dynvid.incremental(
        two_convolutions, threshold=15, truncation=1.0, settle=None, rotation=period
    )
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 9, (1, 70, 50, 1)).astype("f")
    state, _ = video.init(params, frames)
    step = jax.jit(video.step)
    faint = frames + rng.integers(0, 3, frames.shape)
    changed = []
    for _ in range(period):
        assert not np.array_equal(state.reference, faint)
        state, out = step(params, state, faint)
        changed.append(float(state.work.changed[0]))
    assert np.array_equal(state.reference, faint)
    assert max(changed) < 2.5 / period  # a share of the frame each time
    # What crosses from block to block was held back there: a turn more for every layer.
    for _ in range(2 * period):
        state, out = step(params, state, faint)
    assert equal(out, jax.jit(two_convolutions)(params, state.reference))


def test_a_mask_says_all_there_is_to_do():
    params = weights()
    video = dynvid.incremental(two_convolutions, truncation=3.0, settle=1, rotation=2)
    frames = np.random.default_rng(0).integers(0, 9, (1, 32, 32, 1)).astype("f")
    state, _ = video.init(params, frames)
    state, _ = video.step(params, state, frames + 1)
    assert any(np.asarray(h).any() for h in state.held if h is not None)
    nowhere = np.zeros((1, 32, 32), bool)
    for _ in range(4):
        state, _ = video.step(params, state, frames + 1, nowhere)
        assert state.work.macs[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settle": 0}, "settle must be a number of frames or None; got 0"),
        ({"rotation": 2.5}, "rotation must be a number of frames or None; got 2.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        dynvid.incremental(two_convolutions, **options)
