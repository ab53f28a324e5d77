"""The loop over those that need it: what it runs, really."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynvid.systems.worklist import for_each


@settings(max_examples=30, deadline=None)
@given(which=st.lists(st.booleans(), min_size=1, max_size=7), chunk=st.integers(1, 8))
def test_those_that_are_asked_for_are_written(which, chunk):
    found = for_each(
        jnp.array(which),
        lambda places, x: x.at[places].set(places + 1),
        jnp.zeros(len(which), jnp.int32),
        chunk=chunk,
    )
    np.testing.assert_array_equal(found, np.where(which, np.arange(len(which)) + 1, 0))


@pytest.mark.parametrize(("items", "chunk"), [(1, 1), (3, 1), (3, 2), (3, 3)])
def test_nothing_else_runs(items, chunk):
    """Nor is a turn that is always the same, of a single item, moved out and run for nothing."""
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

        return for_each(which, turn, jnp.ones(items), chunk=chunk)

    for which in np.ndindex(*(2,) * items):
        calls.clear()
        jax.block_until_ready(run(jnp.array(which, bool), jnp.arange(float(items))))
        assert calls == [chunk] * -(-sum(which) // chunk)
