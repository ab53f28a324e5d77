"""Contract, "never much worse": where everything moves a step is the dense network, and exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dynvid
from dynvid.ops.refresh import CALM
from tests.contract.test_static import compilations
from tests.contract.zoo import conv

SIZE = (2, 40, 48, 1)
EVERYTHING, PART, NOTHING = "everything", "part", "nothing"


def network(p, x):
    maps = jnp.maximum(conv(jnp.maximum(conv(x, p[0]), 0), p[1], 2), 0)
    return maps, maps.sum((1, 2))


def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(-3, 4, (3, 3, c, 4)).astype("f") for c in (1, 4)]


def show(history: list[str], seed: int = 0):
    """Frames of two cameras, each of which does to the one before what the history says."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 9, SIZE).astype("f")
    yield frame
    for what in history:
        frame = frame.copy()
        if what == EVERYTHING:
            frame = rng.integers(0, 9, SIZE).astype("f")
        elif what == PART:
            row, column = rng.integers(0, 30, 2)
            frame[:, row : row + 5, column : column + 5] += 1
        yield frame


def make(**options):
    video = dynvid.incremental(network, **{"break_even": 0.6} | options)
    return video, jax.jit(video.step), jax.jit(network), weights()


def equal(a, b) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


EXACT = make(dense_above=0.5)
TRUNCATED = make(dense_above=0.5, truncation=0.7, settle=2)


@settings(max_examples=25, deadline=None)
@given(
    history=st.lists(st.sampled_from([EVERYTHING, PART, NOTHING]), max_size=14),
    seed=st.integers(0, 99),
)
def test_every_output_is_exact_whatever_came_before(history, seed):
    video, step, dense, params = EXACT
    first, *frames = show(history, seed)
    state, _ = video.init(params, first)
    for frame in frames:
        state, out = step(params, state, frame)
        assert equal(out, dense(params, frame))
        assert np.array_equal(state.reference, frame)


def test_nothing_compiles_after_the_first_step():
    video, step, _, params = EXACT
    first, *frames = show([PART, EVERYTHING, *[NOTHING] * (CALM + 1)])
    state, _ = video.init(params, first)
    state, _ = step(params, state, frames[0])
    with compilations() as seen:
        for frame in frames[1:]:
            state, _ = step(params, state, frame)
    assert not seen


def test_what_moves_everywhere_is_the_function_itself():
    """With truncation, too, and its work is that of the dense network."""
    video, step, dense, params = TRUNCATED
    first, *frames = show([PART, *[EVERYTHING] * 6])
    state, _ = video.init(params, first)
    state, _ = step(params, state, frames[0])
    kept = state.caches
    for frame in frames[1:]:
        state, out = step(params, state, frame)
        assert equal(out, dense(params, frame))
        assert np.array_equal(state.reference, frame)
        assert equal(state.caches, kept), "something was kept"
        assert np.array_equal(state.work.macs, state.work.dense_macs)
        assert state.work.details["whole"]
        assert all(np.asarray(change).all() for change in state.changes)


def test_once_it_is_at_rest_the_caches_are_made_anew_once():
    video, step, dense, params = TRUNCATED
    first, *frames = show([EVERYTHING, *[NOTHING] * CALM, PART, NOTHING])
    state, _ = video.init(params, first * 0)
    scales = state.scales
    for frame in frames[:CALM]:
        state, out = step(params, state, frame)
        assert state.work.details["whole"]
    state, out = step(params, state, frames[CALM])
    assert not state.work.details["whole"]
    assert equal(out, dense(params, frames[CALM]))
    assert equal(state.scales, video.init(params, frames[CALM])[0].scales)
    assert not equal(state.scales, scales), "the scales of a black frame stayed"
    for frame in frames[CALM + 1 :]:
        state, _ = step(params, state, frame)
        assert state.work.mac_fraction < 0.5


def test_motion_and_rest_do_not_take_turns():
    """Two frames of motion in every five: the caches would be made anew for one frame of use."""
    video, step, _, params = EXACT
    first, *frames = show([EVERYTHING, EVERYTHING, NOTHING, NOTHING, NOTHING] * 4)
    state, _ = video.init(params, first)
    for frame in frames:
        state, _ = step(params, state, frame)
        assert state.work.details["whole"]


def test_streams_decide_together():
    """One camera of two moves: half of all blocks. It is not above one half, but above 0.4."""
    for limit, whole in ((0.55, False), (0.4, True)):
        video, step, dense, params = make(dense_above=limit)
        first, second = show([EVERYTHING])
        second[1] = first[1]
        state, _ = video.init(params, first)
        state, out = step(params, state, second)
        assert bool(state.work.details["whole"]) == whole
        assert equal(out, dense(params, second))


def test_a_camera_that_joins_does_not_hide_what_is_stale():
    video, step, dense, params = EXACT
    first, second = show([EVERYTHING])
    state, _ = video.init(params, first)
    state, _ = step(params, state, second)
    other, _ = video.init(params, first)
    state = dynvid.replace_streams(state, other, jnp.array([True, False]))
    frames = np.stack([first[0], second[1]])
    for _ in range(CALM + 1):
        state, out = step(params, state, frames)
        assert equal(out, dense(params, frames))


def test_a_mask_on_a_stale_state_computes_everything():
    video, step, dense, params = EXACT
    first, second, third = show([EVERYTHING, PART])
    state, _ = video.init(params, first)
    state, _ = step(params, state, second)
    state, out = video.step(params, state, third, jnp.zeros(SIZE[:3], bool))
    assert equal(out, dense(params, third))


def test_where_cells_always_win_no_step_is_the_function():
    video, step, dense, params = make(dense_above=0.5, break_even=1.0)
    first, second = show([EVERYTHING])
    state, _ = video.init(params, first)
    state, out = step(params, state, second)
    assert not state.work.details["whole"]
    assert equal(out, dense(params, second))


@pytest.mark.parametrize("limit", [-0.1, 1.5])
def test_bad_options(limit):
    with pytest.raises(ValueError, match="dense_above must be between 0 and 1 or None; got"):
        dynvid.incremental(network, dense_above=limit)
