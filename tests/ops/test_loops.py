"""Loops over chosen rows."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynvid.ops.loops import for_each


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 4))
def test_chosen_rows_are_visited_and_no_others(which, chunk):
    def turn(place, state):
        turns, seen = state
        return turns + 1, seen.at[place].set(1)

    @jax.jit
    def run(which):
        return for_each(which, turn, (0, jnp.zeros(len(which), int)), chunk=chunk)

    turns, seen = run(np.array(which))
    assert seen.tolist() == which
    assert turns == -(-sum(which) // min(chunk, len(which)))


@pytest.mark.parametrize(("rows", "chunk"), [(1, 1), (2, 1), (3, 3), (1, 4)])
def test_nothing_is_computed_in_front_of_the_loop(rows, chunk):
    """XLA moves what is alike in every turn out of a loop, where it runs for no row too."""

    def run(which, x, weights):
        def turn(place, found):
            return found.at[place].set(x[place] @ weights)

        return for_each(which, turn, jnp.zeros((rows, 64)), chunk=chunk)

    arguments = jnp.zeros(rows, bool), jnp.ones((rows, 32, 64)).sum(1), jnp.ones((64, 64))
    text = jax.jit(run).lower(*arguments).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert " dot(" not in entry
    assert "dot" in text


@pytest.mark.parametrize(("rows", "chunk"), [(1, 1), (3, 1), (3, 2), (3, 3)])
def test_as_many_turns_run_as_are_needed(rows, chunk):
    calls = []

    def note(x):
        calls.append(len(x))
        return np.zeros(x.shape, np.float32)

    @jax.jit
    def run(which, values):
        def turn(places, buffers):
            x = values[places]
            new = jax.pure_callback(note, jax.ShapeDtypeStruct(x.shape, jnp.float32), x)
            return buffers.at[places].set(new)

        return for_each(which, turn, jnp.ones(rows), chunk=chunk)

    for which in np.ndindex(*(2,) * rows):
        calls.clear()
        jax.block_until_ready(run(jnp.array(which, bool), jnp.arange(float(rows))))
        assert calls == [chunk] * -(-sum(which) // chunk)


def test_a_chunk_of_none_is_refused():
    with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
        for_each(jnp.ones(2, bool), lambda place, x: x, 0, chunk=0)
