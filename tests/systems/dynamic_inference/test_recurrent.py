"""Recurrent networks: the network's own logits up to where it stops, and nothing after."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.ops.early_exit import confidence
from dynvid.systems.dynamic_inference import recurrent_inference

WEIGHTS = jnp.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]])


def step_fn(params, hidden, frames):
    hidden = hidden + jnp.sum(frames, (1, 2))
    return hidden, hidden @ params


def start(params, streams):
    return jnp.zeros((streams, params.shape[0]))


def clips(streams, frames, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(-1, 2, (streams, frames, 2, 2, 2)), jnp.float32)


def reference(x):
    sums = jnp.cumsum(jnp.sum(x, (2, 3)), 1)
    return sums @ WEIGHTS


def test_each_stream_stops_at_its_own_frame():
    x = clips(4, 6)
    logits = reference(x)
    sure = np.asarray(confidence(logits))
    threshold = float(np.median(sure))
    expected = [next((t for t in range(5) if row[t] >= threshold), 5) for row in sure]
    assert len(set(expected)) > 1
    video = recurrent_inference(step_fn, start, length=6, threshold=threshold)
    state, found = video.init(WEIGHTS, x[:, 0])
    macs = state.work.macs
    for t in range(1, 6):
        state, found = video.step(WEIGHTS, state, x[:, t])
        macs = macs + state.work.macs
    assert found.exits.exit.tolist() == expected
    np.testing.assert_array_equal(found.logits, logits[jnp.arange(4), jnp.array(expected)])
    np.testing.assert_array_equal(macs, 6 * (np.array(expected) + 1))
    assert state.work.details["finished"].all()
    later, same = video.step(WEIGHTS, state, x[:, 0])
    assert later.work.macs.sum() == later.work.dense_macs.sum() == 0
    np.testing.assert_array_equal(same.logits, found.logits)


def test_the_network_runs_on_no_frame_after_the_answer():
    calls = []

    def noted(params, hidden, frames):
        def note(x):
            calls.append(len(x))
            return np.zeros((), np.float32)

        hidden, logits = step_fn(params, hidden, frames)
        return hidden, logits + jax.pure_callback(
            note, jax.ShapeDtypeStruct((), jnp.float32), frames
        )

    video = recurrent_inference(noted, start, length=5, threshold=np.inf)
    x = clips(2, 5)
    state, _ = jax.block_until_ready(video.init(WEIGHTS, x[:, 0]))
    limits = np.full((2, 5), np.inf)
    limits[0] = -np.inf
    state = state.with_settings(threshold=limits)
    for t in range(1, 4):
        state, _ = jax.block_until_ready(video.step(WEIGHTS, state, x[:, t]))
    assert calls == [1] * (2 + 2 + 1 + 1)
    assert state.exit.tolist() == [1, -1]
    new, _ = video.init(WEIGHTS, x[:1, 0])
    joined = dynvid.replace_streams(state, new, jnp.array([True, False]))
    assert joined.position.tolist() == [1, 4]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="length must be at least 1; got 0"):
        recurrent_inference(step_fn, start, length=0)
    video = recurrent_inference(step_fn, start, length=3, threshold=np.zeros(4))
    with pytest.raises(ValueError, match=r"one for each of 3 checkpoints; got shape \[4\]"):
        video.init(WEIGHTS, clips(1, 1)[:, 0])
