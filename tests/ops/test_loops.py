"""Loops over chosen rows."""

import hypothesis.strategies as st
import jax.numpy as jnp
import pytest
from hypothesis import given, settings

from dynvid.ops.loops import for_each


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 4))
def test_chosen_rows_are_visited_and_no_others(which, chunk):
    def turn(place, state):
        turns, seen = state
        return turns + 1, seen.at[place].set(1)

    turns, seen = for_each(jnp.array(which), turn, (0, jnp.zeros(len(which), int)), chunk=chunk)
    assert seen.tolist() == which
    assert turns == -(-sum(which) // min(chunk, len(which)))


def test_a_chunk_of_none_is_refused():
    with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
        for_each(jnp.ones(2, bool), lambda place, x: x, 0, chunk=0)
