"""Whole clips: where they stop, what they say there, and that nothing else runs."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynvid.ops.early_exit import confidence, exit_of
from dynvid.ops.progressive import (
    FIGURE_2D,
    Route,
    checkpoint_logits,
    frame_groups,
    make_route,
)
from dynvid.systems.dynamic_inference import dynamic_inference, route_macs
from tests.systems.dynamic_inference.networks import Integers, clips

NETWORK = Integers(2, layers=2)
PARAMS = NETWORK.params()
JOINT = make_route(FIGURE_2D, depth=2)


@functools.cache
def joint(chunk=1):
    return dynamic_inference(NETWORK, JOINT, chunk=chunk)


@st.composite
def routes(draw):
    """Any order of nodes in which shallow precedes deep, perhaps cut short, over any groups."""
    order = draw(st.permutations(range(4)))
    groups = tuple(tuple(sorted(order[i::2])) for i in range(2))
    left = {1: 1, 2: 1}
    nodes = []
    for _ in range(draw(st.integers(1, 4))):
        group = draw(st.sampled_from([g for g in left if left[g] <= 2]))
        nodes.append((group, left[group]))
        left[group] += 1
    kept = [node for node in nodes[:-1] if draw(st.booleans())]
    return Route(groups, tuple(nodes), (*kept, nodes[-1]))


@settings(max_examples=8, deadline=None)
@given(routes())
def test_node_by_node_is_the_masked_batch_to_the_bit(route):
    network = Integers(2)
    params, x = network.params(), clips(2, 4, size=(2, 3))
    expected = checkpoint_logits(network, params, x, route)
    decide = dynamic_inference(network, route)
    count = len(route.checkpoints)
    for k in range(count):
        thresholds = jnp.full(count, jnp.inf).at[k].set(-jnp.inf)
        found, _ = decide(params, x, thresholds)
        np.testing.assert_array_equal(found.exits.exit, k)
        np.testing.assert_array_equal(found.logits, expected[:, k])


def test_both_neighbours_are_the_masked_batch_too():
    x = clips(2, 8)
    expected = checkpoint_logits(NETWORK, PARAMS, x, JOINT, bidirectional=True)
    found, _ = dynamic_inference(NETWORK, JOINT, bidirectional=True)(PARAMS, x, jnp.inf)
    np.testing.assert_array_equal(found.logits, expected[:, -1])
    assert (expected != checkpoint_logits(NETWORK, PARAMS, x, JOINT)).any()


def test_never_sure_is_full_inference_and_always_sure_is_the_first_node():
    x = clips(3, 8)
    expected = checkpoint_logits(NETWORK, PARAMS, x, JOINT)
    full, work = joint()(PARAMS, x, jnp.inf)
    assert full.exits.exit.tolist() == [3] * 3
    assert work.mac_fraction == 1
    assert work.changed.tolist() == [1] * 3
    np.testing.assert_array_equal(full.logits, expected[:, -1])
    first, work = joint()(PARAMS, x, -jnp.inf)
    assert first.exits.exit.tolist() == [0] * 3
    assert work.changed.tolist() == [0.5] * 3
    np.testing.assert_array_equal(first.logits, expected[:, 0])
    assert np.isnan(first.exits.confidences[:, 1:]).all()


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_every_clip_stops_where_its_own_confidence_says(chunk):
    x = clips(5, 8, seed=3)
    logits = checkpoint_logits(NETWORK, PARAMS, x, JOINT)
    sure = confidence(logits)
    # Between the confidences of two clips at every checkpoint, so that some stop there.
    thresholds = jnp.median(sure, 0)
    found, work = joint(chunk)(PARAMS, x, thresholds)
    exits = exit_of(sure, thresholds)
    np.testing.assert_array_equal(found.exits.exit, exits)
    assert len(set(exits.tolist())) > 1
    np.testing.assert_array_equal(found.logits, logits[jnp.arange(5), exits])
    reached = np.arange(4) <= np.asarray(exits)[:, None]
    np.testing.assert_array_equal(found.exits.confidences, np.where(reached, sure, np.nan))
    np.testing.assert_array_equal(work.macs, found.exits.macs[0][exits])
    assert work.details["finished"].all()


def test_only_what_is_undecided_runs():
    """Each stage is really called once a clip and node, up to where the clip stops."""
    calls = []
    network = Integers(2, note=lambda depth, frames: calls.append((depth, frames)))
    decide = dynamic_inference(network, JOINT)
    x = clips(3, 8)
    thresholds = np.full((3, 4), np.inf)
    thresholds[0, 0] = thresholds[1, 2] = -np.inf  # the third never stops
    found, _ = jax.block_until_ready(decide(PARAMS_1, x, thresholds))
    assert found.exits.exit.tolist() == [0, 2, 3]
    assert sorted(calls) == [(1, 4)] * (3 + 2) + [(2, 4)] * (2 + 1)
    calls.clear()
    jax.block_until_ready(decide(PARAMS_1, x, np.full((3, 4), -np.inf)))
    assert calls == [(1, 4)] * 3


PARAMS_1 = Integers(2).params()


def test_a_chunk_runs_together_and_the_rest_is_filled_up():
    calls = []
    network = Integers(2, note=lambda depth, frames: calls.append((depth, frames)))
    thresholds = np.full((5, 4), np.inf)
    thresholds[[0, 3], 0] = -np.inf
    decide = dynamic_inference(network, JOINT, chunk=2)
    jax.block_until_ready(decide(PARAMS_1, clips(5, 8), thresholds))
    # Five clips in three pairs, then three in two, at each of the three nodes that are left.
    assert sorted(calls) == [(1, 8)] * (3 + 2) + [(2, 8)] * (2 + 2)


def test_new_thresholds_compile_nothing_again():
    decide = dynamic_inference(NETWORK, JOINT)
    x = clips(2, 8)
    for thresholds in (np.full(4, 0.1, np.float32), np.full(4, 0.9, np.float32)):
        decide(PARAMS, x, thresholds)
    assert decide._cache_size() == 1


def test_macs_are_those_of_the_nodes():
    channels = Integers.channels
    first, second = (4 * cells * 9 * channels**2 * NETWORK.layers for cells in (4 * 5, 2 * 5))
    head = channels * NETWORK.classes
    group = first + second + 2 * head
    macs = route_macs(NETWORK, PARAMS, clips(1, 8)[0], JOINT)
    assert macs == (first + head, group, group + first + head, 2 * group)
    late = make_route(FIGURE_2D, depth=2, checkpoints=[(1, 2), (2, 2)])
    assert route_macs(NETWORK, PARAMS, clips(1, 8)[0], late) == (group - head, 2 * (group - head))


@pytest.mark.parametrize(
    ("shape", "thresholds", "message"),
    [
        ((1, 7), 0.5, r"clips must be \(S, 8, H, W, C\), 8 frames as the route has"),
        ((1, 8), [0.5] * 3, r"one for each of 4 checkpoints; got shape \[3\]"),
        ((2, 8), np.zeros((3, 4)), r"one for each of 4 checkpoints; got shape \[3, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(shape, thresholds, message):
    with pytest.raises(ValueError, match=message):
        joint()(PARAMS, clips(*shape), np.asarray(thresholds))


def test_an_unknown_node_and_no_chunk_are_refused():
    route = make_route(frame_groups(8, 2), depth=4)
    with pytest.raises(ValueError, match=r"depths up to 2, the network's; got node \(1, 3\)"):
        dynamic_inference(NETWORK, route)(PARAMS, clips(1, 8), 0.5)
    with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
        dynamic_inference(NETWORK, JOINT, chunk=0)
