"""Contract, "reference" and "exact", under a rule of change that knows the camera."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.ops.difference import camera_changes
from tests.contract.test_static import compilations
from tests.contract.zoo import conv


def network(p, x):
    return conv(jnp.maximum(conv(x.astype(jnp.float32), p[0], 2), 0), p[1]).sum(-1)


def clip():
    """Two cameras with noise: one flickers, in one something moves, both change their exposure."""
    rng = np.random.default_rng(0)
    ground = rng.integers(40, 180, (2, 5, 7, 3)).repeat(10, 1).repeat(8, 2).astype(float)
    for t in range(16):
        frame = ground.copy()
        frame[0] *= 1 + 0.02 * (t % 3)
        frame[1, 8:20, 2 * t : 2 * t + 12] += 40
        if t >= 8:
            frame *= 1.2
        noisy = frame + rng.normal(0, 1.5, frame.shape)
        yield np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def test_the_output_belongs_to_the_reference_which_stays_near_the_frame():
    rng = np.random.default_rng(3)
    params = [rng.integers(-3, 4, (3, 3, c, 4)).astype("f") for c in (3, 4)]
    video = dynvid.incremental(network, threshold=8, changes=camera_changes())
    step, dense = jax.jit(video.step), jax.jit(network)
    first, *frames = clip()
    state, _ = video.init(params, first)
    fractions = []
    for t, frame in enumerate(frames):
        with compilations() as seen:
            state, out = step(params, state, frame)
        assert t < 1 or not seen
        np.testing.assert_array_equal(out, dense(params, state.reference))
        # Brought to one exposure, they differ by less than noise may raise the threshold to, and by
        # what is rounded.
        ratio = frame.mean((1, 2, 3)) / np.asarray(state.reference).mean((1, 2, 3))
        level = np.asarray(state.reference) * ratio[:, None, None, None]
        assert np.abs(frame - level).max() < 3 * 8 + 4
        fractions.append(float(state.work.mac_fraction))
    assert np.median(fractions) < 0.5


def test_a_state_without_the_rule_is_refused():
    params = [np.ones((3, 3, c, 4), "f") for c in (3, 4)]
    first = next(clip())
    plain = dynvid.incremental(network)
    state, _ = plain.init(params, first)
    with pytest.raises(ValueError, match="made with the same cell and changes"):
        dynvid.incremental(network, changes=camera_changes()).step(params, state, first)
