"""Planted bugs: the contract's tests must see each of them."""

import dataclasses

import jax
import numpy as np
import pytest

import dynvid
from dynvid.incremental import execute, geometry, plan, program, rules
from tests.contract.test_exact import assert_identical
from tests.contract.zoo import BY_NAME, Network, clip, conv, pool


def _network(p, x):
    # No clipping, so that every pixel counts; and zero is not what lies behind a border.
    x = pool(conv(x + 1, p[0]), 3, 2, "SAME")
    return conv(conv(x + 2, p[1]) + 1, p[2])


NETWORK = Network(
    "planted", _network, [(3, 3, 3, 4), (1, 1, 4, 4), (3, 3, 4, 4)], frame=(26, 30, 3)
)


def exact(network: Network = NETWORK) -> bool:
    """Whether a short clip comes out as the dense network has it."""
    params = network.params(integer=True)
    video = dynvid.incremental(network.fn)
    dense = jax.jit(network.fn)
    frames = clip(network, integer=True)[:8]
    state, _ = video.init(params, frames[0])
    for frame in frames[1:]:
        state, out = video.step(params, state, frame)
        try:
            assert_identical(out, dense(params, frame))
        except AssertionError:
            return False
    return True


def test_without_a_planted_bug_the_network_is_exact():
    assert exact()


def test_a_halo_that_lies_one_off_is_seen(monkeypatch):
    bounds = geometry.Stencil.bounds

    def moved(self, positions):
        first, last = bounds(self, positions)
        return (first, last) if self.window == 1 else (first + 1, last + 1)

    monkeypatch.setattr(geometry.Stencil, "bounds", moved)
    assert not exact()


def test_a_missing_border_mask_is_seen(monkeypatch):
    spatial_op = rules.spatial_op

    def unfilled(node, layouts):
        op = spatial_op(node, layouts)
        return op if isinstance(op, str) else dataclasses.replace(op, fill=None)

    monkeypatch.setattr(plan, "spatial_op", unfilled)
    assert not exact()


def test_a_change_mask_that_does_not_grow_is_seen(monkeypatch):
    grow = execute.mask_through

    def stay(mask, receptive_field, size):
        kept = [
            dataclasses.replace(r, window=1, low=0) if isinstance(r, geometry.Stencil) else r
            for r in receptive_field
        ]
        wide = [max(1, -(-n // r.stride)) for n, r in zip(mask.shape[1:], kept, strict=True)]
        return grow(mask, tuple(kept), tuple(wide))[:, : size[0], : size[1]]

    monkeypatch.setattr(execute, "mask_through", stay)
    assert not exact()


def test_a_mask_that_does_not_pass_a_pooling_is_seen(monkeypatch):
    grow = execute.mask_through

    def forget(mask, receptive_field, size):
        out = grow(mask, receptive_field, size)
        return out if mask.shape[1:] == size else np.zeros(out.shape, bool) & out

    monkeypatch.setattr(execute, "mask_through", forget)
    assert not exact()


@pytest.mark.parametrize("which", [0, -1])
def test_a_stale_cache_is_seen(monkeypatch, which):
    step = execute.Runner.step

    def stale(self, state, *args, **options):
        new = step(self, state, *args, **options)
        caches = list(new.caches)
        caches[which] = state.caches[which]
        self.caches = caches
        return dataclasses.replace(new, caches=tuple(caches))

    monkeypatch.setattr(execute.Runner, "step", stale)
    assert not exact()


def test_a_gate_whose_change_wakes_nothing_is_seen(monkeypatch):
    mask = execute.Runner.mask

    def deaf(self, value):
        found = mask(self, value)
        return found if found.ndim > 1 else np.zeros(found.shape, bool) & found

    network = BY_NAME["inverted_residual"]
    monkeypatch.setattr(execute.Runner, "mask", deaf)
    assert not exact(network)


def test_a_last_cell_that_does_not_move_back_is_seen(monkeypatch):
    cells = geometry.cells

    def first_only(length, cell):
        region = cells(length, cell)
        starts = region.starts.copy()
        starts[-1] = starts[0]
        return geometry.Region(starts, region.size)

    monkeypatch.setattr(plan, "cells", first_only)
    assert not exact()


def test_positions_that_are_filled_too_eagerly_are_seen(monkeypatch):
    build = program.build

    def everywhere(*args, **options):
        made = build(*args, **options)
        steps = [
            dataclasses.replace(
                step,
                reads=tuple(
                    dataclasses.replace(r, fill=0) if step.op.kind == "stencil" else r
                    for r in step.reads
                ),
            )
            for step in made.steps
        ]
        return dataclasses.replace(made, steps=tuple(steps))

    # A maximum over numbers below zero: the border must be -inf, not 0.
    low = Network("low", lambda p, x: pool(-x - 1, 3, 1, "SAME"), frame=(21, 27, 3))
    assert exact(low)
    monkeypatch.setattr(program, "build", everywhere)
    assert not exact(low)
