"""Frame groups and routes: permutations, what precedes what, and what is refused."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings

from dynvid.ops.progressive import (
    FIGURE_2D,
    Route,
    checkpoint_logits,
    frame_groups,
    make_route,
)
from dynvid.ops.temporal_shift import NONE
from tests.systems.dynamic_inference.networks import Integers, clips


def of_every_run(groups):
    """Whether each group has one frame of every run of as many frames as there are groups."""
    return all([t // len(groups) for t in group] == list(range(len(group))) for group in groups)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_permutations_are_bijections_with_a_frame_of_every_run(size, count, seed):
    frames = size * count
    for groups in (
        frame_groups(frames, count),
        frame_groups(frames, count, permutation="stratified", key=jax.random.key(seed)),
    ):
        assert sorted(t for group in groups for t in group) == list(range(frames))
        assert of_every_run(groups)
    plain = frame_groups(frames, count, permutation="identity")
    assert [t for group in plain for t in group] == list(range(frames))


def test_figure_2d_is_stratified_and_not_strided():
    assert of_every_run(FIGURE_2D)
    assert FIGURE_2D == ((0, 3, 5, 7), (1, 2, 4, 6))
    assert frame_groups(8, 2) != FIGURE_2D


def test_stratified_depends_on_the_key_alone():
    draws = {
        frame_groups(8, 2, permutation="stratified", key=jax.random.key(seed))
        for seed in (0, 0, 1, 2, 3)
    }
    assert 2 <= len(draws) <= 4


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((16, 3), {}, "groups must divide the number of frames, 16; got 3"),
        ((16, 0), {}, "groups must divide"),
        ((16, 2), {"permutation": "stratified"}, "key must be given"),
        ((16, 2), {"key": jax.random.key(0)}, 'key must be given for "stratified", and only'),
        ((16, 2), {"permutation": "random"}, "permutation must be 'strided', .* got 'random'"),
    ],
)
def test_groups_that_cannot_be_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        frame_groups(*arguments, **options)


def test_schemes_are_those_of_figure_2():
    groups = frame_groups(4, 2)
    depth = make_route(groups, depth=3, scheme="depth")
    assert depth.nodes == depth.checkpoints == ((1, 1), (1, 2), (1, 3))
    joint = make_route(groups, depth=2)
    assert joint.nodes == joint.checkpoints == ((1, 1), (1, 2), (2, 1), (2, 2))
    assert make_route(groups, depth=2, scheme="input").checkpoints == ((1, 2), (2, 2))
    breadth = make_route(groups, depth=2, order="breadth")
    assert breadth.nodes == ((1, 1), (2, 1), (1, 2), (2, 2))


def test_what_a_frame_reads_depends_on_the_depth():
    """Group 2 is at depth 1 before group 1 is at depth 2: there it goes first."""
    nodes = ((1, 1), (2, 1), (2, 2), (1, 2))
    route = Route(FIGURE_2D, nodes, nodes)
    assert route.previous((2, 1)) == (0, 1, 3, 5)
    assert route.previous((2, 2)) == (NONE, 1, 2, 4)
    assert route.previous((1, 2)) == (NONE, 2, 4, 6)
    assert route.previous_at(2) == (NONE, NONE, 1, 2, 2, 4, 4, 6)
    partial = Route(FIGURE_2D, nodes[:3], nodes[:3])
    assert partial.previous_at(2) == (NONE, NONE, 1, NONE, 2, NONE, 4, NONE)


@pytest.mark.parametrize(
    ("groups", "nodes", "checkpoints", "message"),
    [
        (((0, 1), (3,)), ((1, 1),), ((1, 1),), "groups must have every frame from 0 on once"),
        (((1, 0),), ((1, 1),), ((1, 1),), "ascending within a group"),
        ((), ((1, 1),), ((1, 1),), "groups must have every frame"),
        (((0, 1),), (), (), "at least one node"),
        (((0, 1),), ((2, 1),), ((2, 1),), r"groups 1 to 1 .* got \(2, 1\)"),
        (((0, 1),), ((1, 0),), ((1, 0),), r"depths from 1 on; got \(1, 0\)"),
        (((0, 1),), ((1, 2),), ((1, 2),), r"compute \(1, 1\) before \(1, 2\)"),
        (((0, 1),), ((1, 1), (1, 1)), ((1, 1),), r"each node once; got \(1, 1\) twice"),
        (((0, 1),), ((1, 1), (1, 2)), ((1, 1),), r"end with its last node, \(1, 2\)"),
        (((0, 1),), ((1, 1),), ((1, 3), (1, 1)), r"checkpoints must be nodes .* got \(1, 3\)"),
        (((0,), (1,)), ((1, 1), (2, 1)), ((2, 1), (1, 1)), "in the order of the route"),
    ],
)
def test_routes_that_cannot_be_are_refused(groups, nodes, checkpoints, message):
    with pytest.raises(ValueError, match=message):
        Route(groups, nodes, checkpoints)


@pytest.mark.parametrize("options", [{"scheme": "both"}, {"order": "width"}, {"depth": 0}])
def test_options_of_a_route_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        make_route(FIGURE_2D, **({"depth": 2} | options))


def test_clips_and_routes_that_do_not_fit_are_refused():
    network = Integers(2)
    route = make_route(FIGURE_2D, depth=2)
    with pytest.raises(
        ValueError, match=r"clips must be \(S, 8, H, W, C\).* got \(1, 7, 4, 5, 4\)"
    ):
        checkpoint_logits(network, network.params(), clips(1, 7), route)
    deep = make_route(FIGURE_2D, depth=3)
    with pytest.raises(ValueError, match=r"depths up to 2, the network's; got node \(1, 3\)"):
        checkpoint_logits(network, network.params(), clips(1, 8), deep)


def test_evidence_is_the_mean_of_what_was_seen():
    class Mean:
        depth = 1

        def stage(self, params, depth, x, shift):
            return x

        def features(self, params, depth, maps):
            return maps.mean((1, 2))

        def head(self, params, depth, features):
            return features

    x = jnp.arange(8.0).reshape(1, 8, 1, 1, 1)
    found = checkpoint_logits(Mean(), None, x, make_route(FIGURE_2D, depth=1))
    assert found.ravel().tolist() == [15 / 4, 28 / 8]
