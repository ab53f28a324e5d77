"""Temporal shift: which channels come from which frame, at once and call by call."""

import itertools

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynvid.ops.progressive import FIGURE_2D
from dynvid.ops.temporal_shift import (
    NONE,
    nearest_processed,
    offline_shift,
    online_shift,
    online_shift_step,
    shift_cache,
)


def written_out(x, fold):
    """TSM's own shift, loop by loop."""
    depth, y = x.shape[-1] // fold, np.array(x)
    frames = x.shape[1]
    for t in range(frames):
        y[:, t, ..., :depth] = x[:, t + 1, ..., :depth] if t + 1 < frames else 0
        y[:, t, ..., depth : 2 * depth] = x[:, t - 1, ..., depth : 2 * depth] if t else 0
    return y


@pytest.mark.parametrize(("channels", "fold"), [(16, 8), (12, 8), (7, 3), (4, 8)])
def test_offline_is_that_of_tsm(channels, fold):
    x = np.random.default_rng(0).integers(0, 100, (2, 5, 3, 2, channels))
    np.testing.assert_array_equal(offline_shift(jnp.asarray(x), fold=fold), written_out(x, fold))


def test_online_in_order_is_half_of_offline():
    x = np.random.default_rng(0).integers(0, 100, (2, 6, 3, 2, 8))
    previous = nearest_processed(range(6), ())
    assert previous == (NONE, 0, 1, 2, 3, 4)
    y = np.asarray(online_shift(jnp.asarray(x), previous, fold=4))
    np.testing.assert_array_equal(y[:, 1:, ..., :2], x[:, :-1, ..., :2])
    assert not y[:, 0, ..., :2].any()
    np.testing.assert_array_equal(y[..., 2:], x[..., 2:])


def test_frames_of_figure_2d_find_their_true_predecessors():
    first, second = FIGURE_2D
    assert nearest_processed(first, ()) == (NONE, 0, 3, 5)
    assert nearest_processed(second, first) == (0, 1, 3, 5)
    assert nearest_processed(second, first, later=True) == (2, 3, 5, 7)


@st.composite
def orders(draw):
    """Frames in a random order, cut into calls; some are never computed."""
    frames = 6
    order = draw(st.permutations(range(frames)))[: draw(st.integers(1, frames))]
    cuts = sorted(draw(st.sets(st.integers(1, len(order)), max_size=2)) | {0, len(order)})
    calls = [tuple(sorted(order[a:b])) for a, b in itertools.pairwise(cuts)]
    return frames, calls


@settings(max_examples=25, deadline=None)
@given(orders(), st.booleans(), st.booleans())
def test_call_by_call_is_the_masked_batch_to_the_bit(order, both, by_stream):
    frames, calls = order
    fold = 4
    x = jnp.asarray(np.random.default_rng(frames).integers(-9, 9, (2, frames, 2, 1, 8)), jnp.int32)
    previous, following = [NONE] * frames, [NONE] * frames
    done = []
    for call in calls:
        for table, later in ((previous, False), (following, True)):
            sources = nearest_processed(call, done, later=later)
            for t, source in zip(call, sources, strict=True):
                table[t] = source
        done += call
    expected = online_shift(x, previous, following=following if both else None, fold=fold)
    cache = shift_cache(x, frames, fold=fold, both=both)
    for call in calls:
        place, sources = np.array(call), np.array([previous[t] for t in call])
        after = np.array([following[t] for t in call]) if both else None
        if by_stream:
            place, sources = (np.broadcast_to(a, (2, len(call))) for a in (place, sources))
        found, cache = online_shift_step(
            x[:, np.array(call)], cache, place, sources, following=after, fold=fold
        )
        np.testing.assert_array_equal(found, expected[:, np.array(call)])


def test_streams_may_be_at_different_frames():
    x = jnp.arange(1, 5).reshape(2, 1, 2)
    cache = jnp.array([[[7], [8]], [[9], [10]]])
    found, after = online_shift_step(x, cache, np.array([[0], [1]]), np.array([[1], [0]]), fold=2)
    assert found.tolist() == [[[8, 2]], [[9, 4]]]
    assert after.tolist() == [[[1], [8]], [[9], [3]]]


def test_what_is_not_there_is_zero_even_beside_nan():
    x = jnp.array([[[jnp.nan, 1.0]]])
    assert online_shift(x, (NONE,), fold=2).tolist() == [[[0.0, 1.0]]]
