"""Frames one by one: the same answers as for whole clips, no work after them, and evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.ops.early_exit import confidence
from dynvid.ops.progressive import FIGURE_2D, checkpoint_logits, frame_groups, make_route
from dynvid.systems.dynamic_inference import dynamic_inference, dynamic_inference_stream
from tests.systems.dynamic_inference.networks import Integers, clips

NETWORK = Integers(2, layers=2)
PARAMS = NETWORK.params()
SINGLE = frame_groups(4, 4)


def run(video, frames, state=None):
    """All frames `(S, T, ...)` in turn; the last state and every output."""
    found = []
    for t in range(frames.shape[1]):
        if state is None:
            state, output = video.init(PARAMS, frames[:, t])
        else:
            state, output = video.step(PARAMS, state, frames[:, t])
        found.append((state.work, output))
    return state, found


@pytest.mark.parametrize("groups", [FIGURE_2D, frame_groups(8, 4, permutation="identity")])
def test_it_ends_as_the_clip_does(groups):
    route = make_route(groups, depth=2)
    x = clips(3, 8, seed=5)
    thresholds = np.asarray(jnp.median(confidence(checkpoint_logits(NETWORK, PARAMS, x, route)), 0))
    clip, work = dynamic_inference(NETWORK, route)(PARAMS, x, thresholds)
    video = dynamic_inference_stream(NETWORK, groups=groups, threshold=thresholds, repeat=False)
    order = np.array([t for group in groups for t in group])
    state, found = run(video, x[:, order])
    _, last = found[-1]
    np.testing.assert_array_equal(last.logits, clip.logits)
    jax.tree.map(np.testing.assert_array_equal, last.exits, clip.exits)
    np.testing.assert_array_equal(sum(work.macs for work, _ in found), work.macs)
    np.testing.assert_array_equal(sum(work.dense_macs for work, _ in found), work.dense_macs)
    assert state.work.details["finished"].all()
    # Once it has stopped, nothing changes and nothing runs.
    again, (after, same) = run(video, x[:, :1], state)[0], run(video, x[:, :1], state)[1][0]
    assert after.macs.sum() == after.changed.sum() == 0
    np.testing.assert_array_equal(same.logits, clip.logits)
    assert again.work.details["finished"].all()


def test_nothing_runs_after_the_answer():
    calls = []
    network = Integers(2, note=lambda depth, frames: calls.append((depth, frames)))
    params = network.params()
    thresholds = np.full(8, np.inf)
    thresholds[2] = -np.inf  # group 2 at depth 1
    video = dynamic_inference_stream(network, groups=SINGLE, threshold=thresholds)
    x = clips(1, 4)
    state, _ = jax.block_until_ready(video.init(params, x[:, 0]))
    finished = []
    for t in (1, 2, 3):
        state, _ = jax.block_until_ready(video.step(params, state, x[:, t]))
        finished.append(bool(state.work.details["finished"][0]))
    assert calls == [(1, 1), (2, 1), (1, 1)]
    assert finished == [False] * 3  # another clip follows
    state, _ = jax.block_until_ready(video.step(params, state, x[:, 0]))
    assert calls[3:] == [(1, 1), (2, 1)]


def test_the_next_clip_begins_anew():
    video = dynamic_inference_stream(NETWORK, groups=SINGLE, threshold=np.inf)
    first, second = clips(2, 4, seed=1), clips(2, 4, seed=2)
    _, alone = run(video, second)
    _, together = run(video, jnp.concatenate([first, second], 1))
    for (work, output), (later_work, later) in zip(alone, together[4:], strict=True):
        np.testing.assert_array_equal(output.logits, later.logits)
        np.testing.assert_array_equal(output.exits.confidences, later.exits.confidences)
        np.testing.assert_array_equal(work.macs, later_work.macs)


def test_the_answer_of_the_clip_before_stays_until_there_is_another():
    video = dynamic_inference_stream(NETWORK, groups=FIGURE_2D, threshold=-np.inf)
    x = clips(1, 8)
    state, found = run(video, x)
    answer = found[3][1]
    assert answer.exits.exit.tolist() == [0]
    _, later = run(video, x[:, :3], state)
    for _, output in later:
        np.testing.assert_array_equal(output.logits, answer.logits)
        assert output.exits.exit.tolist() == [-1]


def test_decaying_evidence_is_a_weighted_mean():
    network = Integers(1)
    params = network.params()
    video = dynamic_inference_stream(network, evidence="decay", decay=0.5, threshold=np.inf)
    x = clips(1, 3)
    route = make_route(frame_groups(3, 3), depth=1)
    # Undo the running means to get each frame's own share; heads are linear.
    means = np.asarray(checkpoint_logits(network, params, x, route))[0]
    shares = [means[0], 2 * means[1] - means[0], 3 * means[2] - 2 * means[1]]
    state = None
    for t in range(3):
        step = video.init(params, x[:, t]) if state is None else video.step(params, state, x[:, t])
        state, found = step
        weights = np.array([0.5 ** (t - i) for i in range(t + 1)])
        expected = sum(w * s for w, s in zip(weights, shares, strict=False)) / weights.sum()
        # Integers below 2^12, halved twice, divided once and undone with 3 roundings.
        eps = np.finfo(np.float32).eps
        np.testing.assert_allclose(found.logits[0], expected, atol=16 * eps * abs(means).max())
        assert found.exits.exit.tolist() == [0]


def test_a_decaying_stream_reads_the_last_frame_that_went_as_deep():
    """Frame 1 stops early: at depth 2, frame 2 follows frame 0."""
    video = dynamic_inference_stream(NETWORK, evidence="decay", decay=0.0, threshold=np.inf)
    x = clips(1, 3)
    state, _ = video.init(PARAMS, x[:, 0])
    shallow, _ = video.step(PARAMS, state.with_settings(threshold=-np.inf), x[:, 1])
    assert shallow.processed.tolist() == [[2, 1]]
    _, found = video.step(PARAMS, shallow.with_settings(threshold=np.inf), x[:, 2])
    cached = shallow.caches[1][0][:, 0]
    np.testing.assert_array_equal(cached, state.caches[1][0][:, 0])
    assert found.exits.exit.tolist() == [1]


def test_settings_change_without_compiling_again():
    video = dynamic_inference_stream(NETWORK, groups=SINGLE, threshold=np.inf)
    x = clips(2, 4)
    state, _ = video.init(PARAMS, x[:, 0])
    video.step(PARAMS, state, x[:, 1])
    after, _ = video.step(PARAMS, state.with_settings(threshold=-np.inf), x[:, 1])
    assert after.exit.tolist() == [2, 2]
    mixed = np.full((2, 8), np.inf)
    mixed[1] = -np.inf
    after, _ = video.step(PARAMS, state.with_settings(threshold=mixed), x[:, 1])
    assert after.exit.tolist() == [-1, 2]
    assert video.step._cache_size() == 1
    with pytest.raises(ValueError, match=r"one for each of 8 checkpoints; got shape \[7\]"):
        state.with_settings(threshold=np.zeros(7))
    with pytest.raises(ValueError, match="thresholds must be numbers; got nan"):
        state.with_settings(threshold=np.nan)


def test_streams_can_be_replaced_in_the_middle_of_a_clip():
    video = dynamic_inference_stream(NETWORK, groups=FIGURE_2D, threshold=np.inf)
    x, y = clips(2, 16, seed=1), clips(1, 16, seed=2)
    state, _ = run(video, x[:, :6])
    new, _ = run(video, y[:, :1])
    joined = dynvid.replace_streams(state, new, jnp.array([True, False]))
    frames = jnp.concatenate([y[:, 1:9], x[1:, 6:14]])
    _, found = run(video, frames, joined)
    _, alone = run(video, y[:, :9])
    _, kept = run(video, x[:, :14])
    for i in range(8):
        np.testing.assert_array_equal(found[i][1].logits[0], alone[i + 1][1].logits[0])
        np.testing.assert_array_equal(found[i][1].logits[1], kept[i + 6][1].logits[1])


def test_a_donated_state_is_taken():
    video = dynamic_inference_stream(NETWORK, groups=FIGURE_2D)
    x = clips(1, 2)
    state, _ = video.init(PARAMS, x[:, 0])
    after, _ = jax.jit(video.step, donate_argnums=1)(PARAMS, state, x[:, 1])
    assert state.caches[0][0].is_deleted()
    assert after.position.tolist() == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evidence": "keep"}, "evidence must be 'reset' or 'decay'; got 'keep'"),
        ({"decay": 1.5}, "decay must be between 0 and 1; got 1.5"),
        ({"chunk": 0}, "chunk must be at least 1; got 0"),
        ({"groups": ((0, 1), (2,))}, "groups must all have as many frames"),
        ({"checkpoints": [(1, 9)]}, r"checkpoints must be nodes of the route; got \(1, 9\)"),
        ({"threshold": [0.5] * 3}, r"one for each of 32 checkpoints; got shape \[3\]"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dynamic_inference_stream(NETWORK, **{k: np.asarray(v) if k == "threshold" else v
                                             for k, v in options.items()})  # fmt: skip


def test_frames_of_another_size_are_refused():
    video = dynamic_inference_stream(NETWORK, groups=SINGLE)
    x = clips(1, 2)
    state, _ = video.init(PARAMS, x[:, 0])
    with pytest.raises(ValueError, match=r"frames must be float32\[1, 4, 5, 4\] as those of init"):
        video.step(PARAMS, state, x[:, 0, :3])
    with pytest.raises(ValueError, match=r"frames must be \(S, H, W, C\)"):
        video.init(PARAMS, x)
