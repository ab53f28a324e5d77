"""The rules that choose key frames and key regions."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynvid.ops.schedule import (
    adaptive_target,
    decision_network,
    feature_consistency,
    fixed_period,
    flow_magnitude,
    frame_difference,
    oracle,
    update_mask,
)

SCORES = st.lists(st.floats(-20, 120, width=32), min_size=1, max_size=8)


@settings(deadline=None)
@given(scores=SCORES, low=st.floats(0, 100, width=32), high=st.floats(0, 100, width=32))
def test_a_higher_target_never_segments_less(scores, low, high):
    low, high = sorted((low, high))
    fewer, more = (decision_network(jnp.array(scores), t) for t in (low, high))
    assert not (fewer & ~more).any()


def test_an_equal_score_is_warped_and_an_unknown_one_is_not():
    found = decision_network(jnp.array([91.0, 92.0, 93.0, jnp.nan]), 92)
    assert found.tolist() == [True, False, False, True]


def test_the_ends_of_the_range_mean_everything_and_nothing():
    # Whatever a network expects, which may be less than 0 or more than 100.
    scores = jnp.array([-5.0, 0.0, 50.0, 100.0, 105.0])
    assert decision_network(scores, 100).all()
    assert not decision_network(scores, 0).any()
    assert decision_network(jnp.array([jnp.nan]), 0).all()


def test_signs_do_not_cancel():
    # Eq. 2 as printed, without the absolute value, gives 0 here.
    key = jnp.full((1, 2, 2, 3), 100, jnp.uint8)
    current = key.at[0, 0].set(150).at[0, 1].set(50)
    anew, mean = frame_difference(current, key, 49)
    assert anew.tolist() == [True]
    # Three roundings: the luma, its thousandths, the mean.
    np.testing.assert_allclose(mean, [50.0], rtol=3 * float(jnp.finfo(jnp.float32).eps))
    assert frame_difference(current, key, 51)[0].tolist() == [False]
    assert frame_difference(key, key, 0)[0].tolist() == [False]


def test_grey_levels_are_lumas():
    key = jnp.zeros((1, 4, 4, 3))
    found = [frame_difference(key.at[..., c].set(1.0), key, 0)[1].item() for c in range(3)]
    np.testing.assert_allclose(found, [0.299, 0.587, 0.114], rtol=1e-6)


def test_mean_length_of_the_motion():
    flow = jnp.stack([jnp.zeros((2, 2, 2)), jnp.broadcast_to(jnp.array([3.0, -4.0]), (2, 2, 2))])
    anew, mean = flow_magnitude(flow, 2.5)
    assert (anew.tolist(), mean.tolist()) == ([False, True], [0.0, 5.0])


@pytest.mark.parametrize("rule", [frame_difference, flow_magnitude])
def test_what_is_not_a_number_is_computed_anew(rule):
    if rule is frame_difference:
        anew, _ = rule(jnp.full((1, 2, 2, 3), jnp.nan), jnp.zeros((1, 2, 2, 3)), 1e9)
    else:
        anew, _ = rule(jnp.full((1, 2, 2, 2), jnp.nan), 1e9)
    assert anew.tolist() == [True]


@pytest.mark.parametrize("period", [1, 2, 5])
def test_every_period_th_frame_is_a_key(period):
    keys, age = [], 0
    for i in range(12):
        age += 1
        if i == 0 or bool(fixed_period(jnp.array(age), period)):
            keys.append(i)
            age = 0
    assert keys == list(range(0, 12, period))


def test_the_adaptive_target_segments_every_eleventh_step():
    # With scores that never change, t falls by 1 and rises by 0.1: one in eleven is segmented.
    def step(t, _):
        anew = decision_network(jnp.array([92.0]), t)
        return adaptive_target(t, anew), anew[0]

    t, anew = jax.lax.scan(step, jnp.array([92.05]), length=1100)
    assert abs(int(anew.sum()) - 100) <= 1
    assert 91 <= t[0] <= 92.2


def test_the_adaptive_target_stays_a_percentage():
    found = adaptive_target(jnp.array([0.5, 99.95]), jnp.array([True, False]))
    assert found.tolist() == [0.0, 100.0]


@settings(max_examples=10, deadline=None)
@given(period=st.integers(1, 7))
def test_the_age_of_the_key_counts_frames(period):
    """Zhu, Algorithm 1, line 5: i mod l = 0, without knowing i."""

    def step(age, _):
        key = fixed_period(age, period)
        return jnp.where(key, 1, age + 1), key

    _, keys = jax.lax.scan(step, jnp.int32(1), length=20)  # frames 1 to 20; frame 0 is a key
    assert keys.tolist() == [i % period == 0 for i in range(1, 21)]


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_mask_learns_through_the_straight_line(threshold):
    quality = jnp.linspace(-2, 3, 41).reshape(1, 1, 41)
    weight = jnp.arange(1.0, 42).reshape(1, 1, 41)

    def loss(mask_of):
        return jax.grad(lambda q, t: jnp.sum(weight * mask_of(q, t)), argnums=(0, 1))(
            quality, jnp.float32(threshold)
        )

    found = loss(update_mask)
    # The same line as a function: it falls from 2 to 0 around the threshold. Eighths are exact.
    line = loss(lambda q, t: 1 - jnp.clip(q - t, -1, 1))
    inside = jnp.abs(jnp.abs(quality - threshold) - 1) > 0  # at its ends its slope is a convention
    np.testing.assert_array_equal(found[0][inside], line[0][inside])
    np.testing.assert_array_equal(found[0][~inside], -weight[~inside])
    assert found[1] == -found[0].sum()
    hard = np.asarray(update_mask(quality, threshold))
    np.testing.assert_array_equal(hard, (quality <= threshold).astype(np.float32))


def test_the_mask_in_its_limits():
    quality = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0])
    assert update_mask(quality, 0.0).tolist() == [0, 1, 1, 1]
    gradient = jax.grad(lambda q: update_mask(q, 0.0).sum())(quality)
    assert gradient.tolist() == [0, 0, 0, -1]
    # Forced to either, and nothing to learn then.
    assert update_mask(quality[3:], jnp.inf).tolist() == [1]
    assert update_mask(quality[3:], -jnp.inf).tolist() == [0]
    assert update_mask(quality.astype(jnp.bfloat16), 0.0).dtype == jnp.bfloat16


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), gamma=st.floats(-0.5, 1.5, width=32))
def test_consistency_is_the_share_of_what_has_to_be_updated(seed, gamma):
    quality = jax.random.normal(jax.random.key(seed), (3, 4, 5))
    anew, share = feature_consistency(quality, gamma)
    np.testing.assert_array_equal(share, jnp.mean(update_mask(quality, 0.0), (1, 2)))
    assert anew.tolist() == [s > gamma for s in share.tolist()]


def test_consistency_in_its_limits():
    quality = jnp.stack([jnp.ones((2, 2)), -jnp.ones((2, 2)), jnp.full((2, 2), jnp.nan)])
    assert feature_consistency(quality, -1)[0].all()
    assert not feature_consistency(quality, 1)[0].any()
    assert feature_consistency(quality, 0.2)[0].tolist() == [False, True, True]
    assert feature_consistency(quality, 0.2, quality_threshold=1.0)[0].all()


def test_the_oracle_computes_what_gains():
    computed, kept = jnp.array([0.5, 0.5, 0.5, jnp.nan]), jnp.array([0.25, 0.5, 0.75, 0.5])
    assert oracle(computed, kept, 0).tolist() == [True, False, False, True]
    assert oracle(computed, kept, 0.25).tolist() == [False, False, False, True]
    assert oracle(computed, kept, -1).all()
