"""What DVSNet's networks are trained with: losses by hand, pairs by their frames, the best kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from dynvid.models.decision_network import DecisionNetwork
from dynvid.ops.warp import Motion
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.dvsnet import (
    confidence_scores,
    cross_entropy,
    draw_pairs,
    endpoint_loss,
    pyramid_loss,
    train_decision,
    warped_loss,
)

QUIET = Console(quiet=True)
EPS = float(jnp.finfo(jnp.float32).eps)


def test_cross_entropy_by_hand():
    logits = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 4, (2, 4, 6))
    labels[0, :2, :2] = 9
    at_centres = labels[:, [1, 3]][:, :, [1, 3, 5]]
    total, count = 0.0, 0
    for place in np.ndindex(at_centres.shape):
        if at_centres[place] != 9:
            scores = logits[place].astype(np.float64)
            total += np.log(np.exp(scores).sum()) - scores[at_centres[place]]
            count += 1
    assert count == 11
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), ignore=9)
    # Twelve terms of at most ten, each within a few roundings.
    np.testing.assert_allclose(found, total / count, rtol=0, atol=12 * 10 * EPS)
    assert cross_entropy(jnp.asarray(logits), jnp.full((2, 4, 6), 9), ignore=9) == 0


def test_the_endpoint_error_of_each_level_and_its_weight():
    # The truth is one unit, 40 pixels of whole frames, to the right; each level is wrong by itself.
    motion = jnp.zeros((1, 64, 64, 2)).at[..., 0].set(40.0)
    right = [jnp.zeros((1, n, n, 2)).at[..., 0].set(1.0) for n in (1, 2, 4, 8, 16)]
    base = endpoint_loss(tuple(right), motion)
    for level, weight in enumerate((0.32, 0.32, 0.32, 0.64, 1.28)):
        wrong = [x.at[..., 1].add(3.0) if i == level else x for i, x in enumerate(right)]
        found = endpoint_loss(tuple(wrong), motion) - base
        np.testing.assert_allclose(found, 3 * weight, rtol=1e-5)
    slope = jax.grad(lambda x: endpoint_loss((x, *right[1:]), motion))(right[0])
    assert jnp.isfinite(slope).all()


def test_the_pyramids_error_is_in_pixels_of_each_level():
    truth = jnp.zeros((1, 16, 32, 2)).at[..., 1].set(8.0)  # down by half the frame's height
    right = [jnp.zeros((1, n, 2 * n, 2)).at[..., 1].set(n / 2) for n in (2, 4, 8)]
    assert pyramid_loss(right, truth) <= 7 * 0.01 * (1 + EPS)  # what keeps its slope finite
    for level, weight in enumerate((4, 2, 1)):
        wrong = [x.at[..., 0].add(50.0) if i == level else x for i, x in enumerate(right)]
        np.testing.assert_allclose(pyramid_loss(wrong, truth), 50 * weight, atol=0.07)


def test_only_flow_and_scale_learn_from_warped_logits():
    logits = jnp.zeros((1, 4, 4, 3)).at[0, :, 1, 1].set(9.0)
    labels = jnp.zeros((1, 4, 4), int).at[0, :, 2].set(1)  # what was at column 1 is at column 2 now

    def loss(flow, scale, logits):
        return warped_loss(Motion(flow, scale), logits, labels)

    still, ones = jnp.zeros((1, 4, 4, 2)), jnp.ones((1, 4, 4, 3))
    moved = still.at[..., 0].set(-1.0)
    assert loss(moved, ones, logits) < loss(still, ones, logits) / 2
    slopes = jax.grad(loss, argnums=(0, 1, 2))(moved * 0.5, ones, logits)
    assert jnp.abs(slopes[0]).max() > 0
    assert jnp.abs(slopes[1]).max() > 0
    assert jnp.abs(slopes[2]).max() == 0


def test_scores_are_the_share_of_pixels_that_warping_gets_right():
    segment = lambda params, x: jax.nn.one_hot(x[..., 0] // 100, 3)  # noqa: E731
    key = jnp.zeros((2, 4, 8, 3), jnp.uint8).at[:, :, 2].set(200)
    current = jnp.zeros((2, 4, 8, 3), jnp.uint8).at[:, :, 3].set(200)

    def flow(params, current, key):
        right = jnp.zeros((2, 4, 8, 2)).at[0, ..., 0].set(-1.0)  # only the first pair's
        return Motion(right, features=current[:, :1, :1].astype(jnp.float32))

    features, scores = confidence_scores(segment, flow, (None, None), current, key)
    np.testing.assert_array_equal(scores, [100.0, 75.0])
    assert features.shape == (2, 1, 1, 3)
    with pytest.raises(ValueError, match="flow must return features"):
        confidence_scores(segment, lambda *a: flow(*a)._replace(features=None), (0, 0), key, key)


def test_pairs_are_frames_of_the_video_at_most_so_far_apart():
    count, height, width = 12, 9, 10
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(count)[:, None, None]  # which frame
    frames[..., 1] = np.arange(height * width).reshape(height, width)  # and where
    labels = frames[..., 0] * 3
    draw = jax.jit(
        lambda key: draw_pairs(
            key, jnp.asarray(frames), jnp.asarray(labels), batch=64, size=(4, 5), gap=3
        )
    )
    pairs = draw(jax.random.key(0))
    i, j = (np.asarray(x[..., 0], int) for x in (pairs.current, pairs.key))
    assert (np.asarray(pairs.labels) == 3 * i).all()
    gaps = (i - j)[:, 0, 0]
    assert set(gaps) == set(range(-3, 4))
    np.testing.assert_array_equal(pairs.current[..., 1], pairs.key[..., 1])  # the same part
    steps = np.diff(np.asarray(pairs.current[..., 1], int), axis=2)[:, 0, 0]
    assert set(steps) == {1, -1}, "half of them are mirrored"
    with pytest.raises(ValueError, match=r"size must be at most \(9, 10\).* got \(10, 5\)"):
        draw_pairs(jax.random.key(0), frames, labels, batch=1, size=(10, 5))


def decisions(folder=None, *, epochs=8, **options):
    """Scores that follow from the features but for noise, which more epochs learn by heart."""
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, (96, 2, 2, 3)).astype(np.float32)
    scores = 80 + 10 * features[:, 0, 0, 0] + rng.normal(0, 2, 96)
    network = DecisionNetwork(
        3, grid=(2, 2), convolution=4, hidden=(8, 4), rngs=nnx.Rngs(options.pop("init", 0))
    )
    checkpoints = None if folder is None else Checkpoints(folder, keep=20)
    pairs, held = (features[:64], scores[:64]), (features[64:], scores[64:])
    state = train_decision(
        network, pairs, held, epochs=epochs, batch=16, learning_rate=2e-2,
        checkpoints=checkpoints, console=QUIET, **options,
    )  # fmt: skip
    return network, state, held


def test_the_best_parameters_are_those_of_the_least_error():
    network, state, held = decisions()
    graph, _, rest = nnx.split(network, nnx.Param, ...)

    def error(params):
        module = nnx.merge(graph, params, nnx.as_pure(rest))
        module.eval()
        return float(jnp.mean(jnp.abs(module(jnp.asarray(held[0])) - held[1])))

    np.testing.assert_allclose(error(state.best), state.error, rtol=1e-5)
    assert state.error <= error(state.params) * (1 + 1e-5)
    assert state.error < 0.8 * np.abs(held[1] - 80).mean(), "something was learned"


def test_a_killed_training_ends_with_the_same_decisions(tmp_path):
    _, whole, _ = decisions(tmp_path / "whole")
    decisions(tmp_path / "killed", epochs=5)
    _, resumed, _ = decisions(tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_too_few_pairs_are_refused():
    network = DecisionNetwork(1, grid=(1, 1), convolution=1, hidden=(1,), rngs=nnx.Rngs(0))
    few = np.zeros((3, 1, 1, 1)), np.zeros(3)
    with pytest.raises(ValueError, match="at least a batch of 32 pairs, validation one; got 3 and"):
        train_decision(network, few, few, console=QUIET)
