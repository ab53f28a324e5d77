"""Losses of flow-guided detection by hand, what each case trains, and the layer-by-layer update."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings

from dynvid.models.flow_detection import FlowDetector
from dynvid.models.flow_guided import EmbeddingNetwork, FeatureNetwork
from dynvid.models.rfcn import ANCHOR_DEVIATIONS, RFCN, encode_boxes
from dynvid.ops.boxes import intersection_over_union
from dynvid.ops.warp import Motion, warp
from dynvid.training.flow_detection import (
    CASES,
    DetectionPairs,
    DetectionTruth,
    anchor_targets,
    case_at,
    consistency_loss,
    module_update,
    pair_loss,
    partial_features,
    proposal_loss,
    put_back,
    region_loss,
    region_targets,
    sample_anchors,
    smooth_l1,
    staged_sgd,
    start_module,
)

EPS = float(jnp.finfo(jnp.float32).eps)
SIZE = (32, 48)


def truth_of(*boxes, slots=3):
    """Objects of classes 0, 1, ... in one image, with empty slots after them."""
    n = len(boxes)
    array = np.zeros((1, slots, 4), np.float32)
    array[0, :n] = np.reshape(boxes, (n, 4))
    return DetectionTruth(
        jnp.asarray(array),
        jnp.arange(slots, dtype=jnp.int32)[None],
        jnp.arange(slots)[None] < n,
    )


def test_smooth_l1_meets_itself():
    # At |x| = 1 / sigma^2 both branches are half of that.
    for sigma in (1.0, 3.0):
        border = 1 / sigma**2
        x = jnp.array([border - 1e-6, border, border + 1e-6])
        np.testing.assert_allclose(smooth_l1(x, sigma=sigma), border / 2, atol=2e-6)
        slope = jax.grad(lambda x, s=sigma: smooth_l1(x, sigma=s))(0.05)
        np.testing.assert_allclose(slope, 0.05 * sigma**2, rtol=4 * EPS)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_anchors_are_labelled_as_by_a_loop(seed):
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.integers(-4, 40, (n, 2))
        return np.concatenate([corner, corner + rng.integers(4, 16, (n, 2))], -1)

    anchors, objects = boxes(24), boxes(2).clip(0)
    truth = truth_of(*objects)
    # No ratio of these integers, below 512 each, is within float32's rounding of those.
    found, deltas = anchor_targets(
        jnp.asarray(anchors, jnp.float32), truth, SIZE, positive=0.6001, negative=0.3001
    )
    overlap = np.asarray(intersection_over_union(
        jnp.asarray(anchors, jnp.float32), jnp.asarray(objects, jnp.float32)
    ))  # fmt: skip
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] <= [SIZE[1], SIZE[0]]).all(1)
    for i in range(24):
        best = any(
            overlap[i, j] > 0 and overlap[i, j] == overlap[inside, j].max() for j in range(2)
        ) if inside[i] else False  # fmt: skip
        if not inside[i]:
            expected = -1
        elif best or overlap[i].max() >= 0.6001:
            expected = 1
        else:
            expected = 0 if overlap[i].max() < 0.3001 else -1
        assert found[0, i] == expected
        if expected == 1:
            own = jnp.asarray(objects[overlap[i].argmax()], jnp.float32)
            wanted = encode_boxes(
                own, jnp.asarray(anchors[i], jnp.float32), deviations=ANCHOR_DEVIATIONS
            )
            np.testing.assert_allclose(deltas[0, i], wanted, rtol=1e-5, atol=1e-5)


def test_images_without_objects_are_background():
    truth = truth_of()
    anchors = jnp.array([[0.0, 0.0, 16.0, 16.0], [-1.0, 0.0, 15.0, 16.0]])
    labels, deltas = anchor_targets(anchors, truth, SIZE)
    assert labels.tolist() == [[0, -1]]
    assert anchor_targets(anchors, truth, SIZE, border=np.inf)[0].tolist() == [[0, 0]]
    assert jnp.isfinite(deltas).all()
    wanted, shifts = region_targets(anchors[None], jnp.array([[True, False]]), truth)
    assert wanted.tolist() == [[0, -1]]
    assert jnp.isfinite(shifts).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 1), min_size=20, max_size=20), st.integers(0, 99))
def test_anchors_are_drawn_up_to_the_batch(labels, seed):
    labels = np.array([labels])
    chosen = np.asarray(sample_anchors(jax.random.key(seed), jnp.asarray(labels), batch=8))
    objects = min(4, (labels == 1).sum())
    assert (chosen & (labels == 1)).sum() == objects
    assert (chosen & (labels == 0)).sum() == min(8 - objects, (labels == 0).sum())
    assert not (chosen & (labels == -1)).any()


def test_anchors_are_drawn_anew_each_time():
    labels = jnp.zeros((1, 20), jnp.int32)
    drawn = [sample_anchors(jax.random.key(seed), labels, batch=4) for seed in range(40)]
    often = np.sum(drawn, 0)[0]
    assert often.sum() == 160
    # Of 40 draws with probability 1/5 each, 8 on average with a deviation of 2.5.
    assert often.min() >= 1
    assert often.max() <= 18


def test_the_proposal_loss_by_hand():
    logits = jnp.array([[[0.0, 2.0], [1.0, 0.0], [5.0, -5.0]]])
    labels, chosen = jnp.array([[1, 0, 1]]), jnp.array([[True, True, False]])
    deltas = jnp.zeros((1, 3, 4)).at[0, 0].set(jnp.array([0.1, 2.0, 0.0, 0.0]))
    found = proposal_loss(logits, deltas, labels, jnp.zeros((1, 3, 4)), chosen)
    said = np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))
    missed = 9 * 0.1**2 / 2 + 2 - 0.5 / 9
    np.testing.assert_allclose(found, (said + missed) / 2, rtol=8 * EPS)


def test_only_the_hardest_regions_count():
    logits = jnp.array([[[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0], [9.0, 0.0, 0.0]]])
    labels = jnp.array([[0, 1, 1, -1]])
    deltas = jnp.zeros((1, 4, 4)).at[0, 1, 0].set(3.0)
    targets = jnp.zeros((1, 4, 4))

    def loss(logits, deltas):
        return region_loss(logits, deltas, labels, targets, hard=2)

    right, wrong = np.log(1 + 2 * np.exp(-4)), np.log(2 + np.exp(4))
    np.testing.assert_allclose(loss(logits, deltas), (right + 2.5 + wrong) / 2, rtol=8 * EPS)
    by_logits, by_deltas = jax.grad(loss, (0, 1))(logits, deltas)
    assert not by_logits[0, 0].any()  # the easy one, and the one that is none
    assert not by_logits[0, 3].any()
    assert by_logits[0, 1:3].any(-1).all()
    assert by_deltas[0, :, 0].tolist() == [0, 0.5, 0, 0]


class Flow(nnx.Module):
    """What `FlowQualityNetwork` says, from one convolution: FlowNetS takes long to compile."""

    def __init__(self, rngs):
        self.trunk = nnx.Conv(6, 4, (16, 16), 16, rngs=rngs)
        self.predict_flow = nnx.Linear(4, 2, rngs=rngs)
        self.predict_quality = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, current, key):
        return self.predict(self.joined(current, key))

    def joined(self, current, key):
        return self.trunk(jnp.concatenate([current, key], -1) / 255)

    def predict(self, joined):
        return Motion(self.predict_flow(joined)), self.predict_quality(joined)[..., 0]


@pytest.fixture(scope="module")
def network():
    rngs = nnx.Rngs(0)
    found = FlowDetector(
        FeatureNetwork(depths=(1, 1, 1, 1), width=2, features=8, dilation=1, rngs=rngs),
        Flow(rngs),
        EmbeddingNetwork(depth=8, hidden=4, embedding=4, rngs=rngs),
        RFCN(depth=8, classes=3, grid=2, scales=(1.0,), ratios=(1.0,), max_candidates=6,
             max_proposals=4, max_detections=4, rngs=rngs),
    )  # fmt: skip
    # Small weights would leave gradients below what float32 tells from nothing.
    found.features.reduce.kernel[...] *= 10
    found.eval()
    return found


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.integers(0, 256, (2, *SIZE, 3), np.uint8)) for _ in range(2)]


def test_the_update_layer_by_layer_has_both_limits(network, frames):
    current, key = frames
    flow = jnp.full((2, 2, 3, 2), 0.25)

    @nnx.jit
    def both(features, mask):
        return (
            *partial_features(features, current, key, flow, mask),
            features(current), features(key),
        )  # fmt: skip

    everything, kept, now, then = both(network.features, jnp.ones((2, 2, 3)))
    np.testing.assert_array_equal(everything, now)
    np.testing.assert_array_equal(kept, then)
    nothing, *_ = both(network.features, jnp.zeros((2, 2, 3)))
    # The warp is compiled into another program: four products and their sums.
    np.testing.assert_allclose(nothing, warp(then, flow), rtol=0, atol=8 * EPS * float(then.max()))
    half, *_ = both(network.features, jnp.zeros((2, 2, 3)).at[:, :, 0].set(1.0))
    assert (half != everything).any()
    assert (half != nothing).any()


def pairs_of(frames, gap):
    truth = truth_of((4, 4, 20, 24), (20, 8, 40, 28))
    truth = jax.tree.map(lambda x: jnp.concatenate([x, x]), truth)
    return DetectionPairs(key=frames[1], current=frames[0], truth=truth, gap=jnp.asarray(gap))


OPTIONS = {"anchors": 8, "hard": 4, "border": float("inf")}


@pytest.mark.parametrize("case", CASES)
def test_what_each_case_trains(network, frames, case):
    """Only predicted masks teach the quality; equal frames teach the flow nothing."""
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    @jax.jit
    def gradient(params, gap):
        def loss(params):
            merged = nnx.merge(graph, params, rest)
            pairs = pairs_of(frames, gap)
            return pair_loss(merged, pairs, jax.random.key(1), case=case, **OPTIONS).loss

        return jax.grad(loss)(params)

    found = gradient(params, jnp.array([3, 5]))
    quality = found["flow"]["predict_quality"]["kernel"][...]
    assert jnp.any(quality != 0) == (case == "predicted")
    assert jnp.any(found["flow"]["predict_flow"]["kernel"][...] != 0)
    assert jnp.any(found["features"]["reduce"]["kernel"][...] != 0)
    embedding = found["embedding"]["convs"][0]["kernel"][...]
    assert jnp.any(embedding != 0) == (case != "propagated")
    still = gradient(params, jnp.array([0, 0]))
    assert not jnp.any(still["flow"]["predict_flow"]["bias"][...] != 0)


def test_the_penalty_is_a_mean_or_a_sum(network, frames):
    pairs = pairs_of(frames, jnp.array([3, 5]))
    all_anew = nnx.clone(network)
    all_anew.flow.predict_quality.bias[...] = jnp.array([-1e3])

    @nnx.jit(static_argnames=("penalty", "weight", "case"))
    def loss(network, penalty, weight, case="predicted"):
        return pair_loss(
            network, pairs, jax.random.key(1), case=case, penalty=penalty, penalty_weight=weight,
            **OPTIONS,
        )  # fmt: skip

    mean, total = loss(all_anew, "mean", 2.0), loss(all_anew, "sum", 2.0)
    assert mean.update == total.update == 1
    rounding = 4 * EPS * float(total.loss)
    np.testing.assert_allclose(mean.loss - mean.detection, 2, atol=rounding)
    np.testing.assert_allclose(total.loss - total.detection, 2 * 2 * 3, atol=rounding)
    forced = loss(all_anew, "mean", 2.0, "computed")
    assert forced.loss == forced.detection
    # U = 1 everywhere is the forced case, by another program.
    np.testing.assert_allclose(forced.detection, mean.detection, rtol=1e-4)


def test_options_that_there_are_not(network, frames):
    pairs = pairs_of(frames, jnp.array([3, 5]))
    with pytest.raises(ValueError, match="case must be one of propagated, computed, predicted"):
        pair_loss(network, pairs, jax.random.key(0), case="half")
    with pytest.raises(ValueError, match="penalty must be 'mean' or 'sum'; got 'none'"):
        pair_loss(network, pairs, jax.random.key(0), case="predicted", penalty="none")


def test_consistency_trains_the_quality_alone(network, frames):
    graph, params, rest = nnx.split(network.flow, nnx.Param, ...)

    def loss(params):
        return consistency_loss(network.features, nnx.merge(graph, params, rest), *frames)

    value, found = jax.jit(jax.value_and_grad(loss))(params)
    assert value > 0
    quality = {"predict_quality"}
    for name, part in nnx.as_pure(found).items():
        moved = any(jnp.any(x != 0) for x in jax.tree.leaves(part))
        assert moved == (name in quality)


def test_cases_come_a_third_each_and_again_the_same():
    drawn = [case_at(3, step) for step in range(600)]
    assert drawn == [case_at(3, step) for step in range(600)]
    # 200 each, with a deviation of 11.5.
    assert all(140 < drawn.count(case) < 260 for case in CASES)


class Normed(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(2, momentum=0.5, rngs=nnx.Rngs(0))
        self.linear = nnx.Linear(2, 1, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.linear(self.norm(x))


@pytest.mark.parametrize("learns", [True, False])
def test_batch_normalisation_learns_or_is_frozen(learns):
    module = Normed()
    module.train() if learns else module.eval()
    optimizer = staged_sgd(4, rate=0.1)
    update = module_update(module, lambda m, x: jnp.mean(m(x) ** 2), optimizer)
    state = start_module(module, optimizer)
    before = jax.tree.map(np.asarray, state)
    batch = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    state, _ = update(state, batch)
    put_back(module, state)
    mean = [1.0, 2.0] if learns else [0.0, 0.0]  # half of the batch's, after half of nothing
    np.testing.assert_array_equal(module.norm.mean[...], mean)
    assert (state.params["linear"]["kernel"] != before.params["linear"]["kernel"]).any()
    for name in ("scale", "bias"):  # which SGD leaves alone
        np.testing.assert_array_equal(state.params["norm"][name], before.params["norm"][name])


def test_the_rate_falls_in_stages():
    optimizer = staged_sgd(3, rate=1.0, stages=(2 / 3,), momentum=0.0, weight_decay=0.0)
    params = {"kernel": jnp.zeros(())}
    state = optimizer.init(params)
    steps = []
    for _ in range(3):
        updates, state = optimizer.update({"kernel": jnp.ones(())}, state, params)
        params = optax.apply_updates(params, updates)
        steps.append(round(float(updates["kernel"]), 6))
    assert steps == [-1.0, -1.0, -0.1]
