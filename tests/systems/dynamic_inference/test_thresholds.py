"""Thresholds: MSDNet's procedure, written out once more, and what they are said to cost."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from dynvid.ops.early_exit import confidence
from dynvid.ops.progressive import FIGURE_2D, checkpoint_logits, make_route
from dynvid.systems.dynamic_inference import (
    budgeted_thresholds,
    dynamic_inference,
    exit_shares,
    expected,
    for_accuracy,
    for_budget,
    route_macs,
    shared_thresholds,
)
from dynvid.systems.dynamic_inference.thresholds import NEVER, sweep
from tests.systems.dynamic_inference.networks import Integers, clips


def test_shares_are_geometric():
    for p in range(1, 40):
        shares = exit_shares(p / 20, 5)
        # Five powers and their sum: a rounding each.
        np.testing.assert_allclose(shares[1:] / shares[:-1], p / 20, rtol=1e-14)
        assert shares.sum() == pytest.approx(1, rel=1e-15)


def by_the_loop(confidences, shares):
    """MSDNet's procedure as its text has it, sample by sample."""
    count, heads = confidences.shape
    gone = np.zeros(count, bool)
    found = np.full(heads, NEVER)
    for k in range(heads - 1):
        wanted, seen = int(np.floor(count * shares[k])), 0
        for i in np.argsort(-confidences[:, k], kind="stable"):
            if not gone[i]:
                seen += 1
                if seen == wanted:
                    found[k] = confidences[i, k]
                    break
        gone |= confidences[:, k] >= found[k]
    found[-1] = -np.inf
    return found


CONFIDENCES = arrays.arrays(
    float, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=st.integers(0, 9).map(float)
)


@settings(max_examples=100, deadline=None)
@given(CONFIDENCES, st.integers(1, 39))
def test_budgeted_is_the_procedure_sample_by_sample(confidences, p):
    shares = exit_shares(p / 20, confidences.shape[1])
    np.testing.assert_array_equal(
        budgeted_thresholds(confidences, shares), by_the_loop(confidences, shares)
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 200), st.integers(2, 6), st.integers(1, 39), st.integers(0, 99))
def test_without_ties_the_shares_are_met(count, heads, p, seed):
    confidences = (
        np.random.default_rng(seed).permuted(np.linspace(0, 1, count * heads)).reshape(count, heads)
    )
    shares = exit_shares(p / 20, heads)
    found = expected(
        confidences, np.ones(confidences.shape), range(heads),
        budgeted_thresholds(confidences, shares),
    )  # fmt: skip
    np.testing.assert_array_equal(
        np.round(found.shares[:-1] * count), np.floor(count * shares[:-1])
    )


def test_too_few_left_means_no_exit():
    confidences = np.ones((10, 3))  # all leave at the first that asks for any
    assert budgeted_thresholds(confidences, [0.5, 0.3, 0.2]).tolist() == [1, NEVER, -np.inf]
    assert budgeted_thresholds(confidences, [0.05, 0.5, 0.45]).tolist() == [NEVER, 1, -np.inf]


@settings(max_examples=50, deadline=None)
@given(CONFIDENCES, st.integers(0, 9), st.integers(0, 99))
def test_expectation_is_the_sum_over_exits(confidences, threshold, seed):
    count, heads = confidences.shape
    correct = np.random.default_rng(seed).random((count, heads)) < 0.5
    macs = np.cumsum(np.arange(1.0, heads + 1))
    found = expected(confidences, correct, macs, shared_thresholds(threshold, heads))
    cost = hits = 0
    for row, right in zip(confidences, correct, strict=True):
        k = next((k for k in range(heads - 1) if row[k] >= threshold), heads - 1)
        cost, hits = cost + macs[k], hits + right[k]
    assert found.macs == pytest.approx(cost / count, rel=1e-12)
    assert found.accuracy == pytest.approx(hits / count, rel=1e-12)
    assert found.shares.sum() == pytest.approx(1)


def test_what_is_expected_is_what_is_then_measured():
    network = Integers(2)
    route = make_route(FIGURE_2D, depth=2)
    params, x = network.params(), clips(12, 8, seed=4)
    logits = checkpoint_logits(network, params, x, route)
    labels = np.asarray(logits[:, -1].argmax(1))
    correct = np.asarray(logits.argmax(2)) == labels[:, None]
    macs = route_macs(network, params, x[0], route)
    decide = dynamic_inference(network, route)
    for method in ("budgeted", "shared"):
        chosen = for_budget(confidence(logits), correct, macs, budget=0.7 * macs[-1], method=method)
        found, work = decide(params, x, chosen.thresholds)
        assert float(work.macs.mean()) == pytest.approx(chosen.macs, rel=1e-6)
        right = np.asarray(found.logits.argmax(1)) == labels
        assert right.mean() == pytest.approx(chosen.accuracy)
        shares = np.bincount(found.exits.exit, minlength=4) / 12
        np.testing.assert_allclose(shares, chosen.shares, rtol=1e-12)


def drawn(count=300, heads=4, seed=0):
    """Later heads are right more often; right ones are surer."""
    rng = np.random.default_rng(seed)
    correct = rng.random((count, heads)) < np.linspace(0.6, 0.95, heads)
    return np.clip(0.5 + 0.3 * correct + 0.2 * rng.normal(size=correct.shape), 0, 1), correct


@pytest.mark.parametrize("method", ["budgeted", "shared"])
def test_more_budget_is_never_less_accurate_and_targets_are_met(method):
    confidences, correct = drawn()
    macs = (1, 2, 4, 8)
    chosen = [for_budget(confidences, correct, macs, budget=b, method=method) for b in (3, 4, 6, 8)]
    assert all(a.accuracy <= b.accuracy for a, b in itertools.pairwise(chosen))
    assert all(c.macs <= b for c, b in zip(chosen, (3, 4, 6, 8), strict=True))
    target = chosen[1].accuracy
    found = for_accuracy(confidences, correct, macs, accuracy=target, method=method)
    assert found.accuracy >= target
    assert found.macs <= chosen[1].macs
    every = sweep(confidences, correct, macs, method=method)
    assert [s.macs for s in every] == sorted(s.macs for s in every)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, r: for_budget(c, r, (1, 2, 4, 8), budget=0.5), "budget must be at least 1"),
        (lambda c, r: for_accuracy(c, r, (1, 2, 4, 8), accuracy=1.1), "accuracy must be at most 0"),
        (lambda c, r: for_budget(c, r, (1, 2), budget=9), "macs must be 4 numbers, .* shape"),
        (lambda c, r: expected(c, r, (1, 2, 4, 8), (0.5, 0.5)), "thresholds must be 4 numbers"),
        (lambda c, r: expected(c, r[:5], (1, 2, 4, 8), [0.5] * 4), r"correct must be \(300, 4\)"),
        (lambda c, r: sweep(c, r, (1, 2, 4, 8), method="best"), "method must be 'budgeted' or"),
        (lambda c, r: budgeted_thresholds(c, [1, 0]), "shares must be 4 numbers"),
        (lambda c, r: budgeted_thresholds(c[:0], [0.25] * 4), r"confidences must be \(N, checkp"),
    ],
)
def test_what_cannot_be_had_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*drawn())
