"""What conftest.py sets up: executables are kept, and a broken one is only compiled again."""

import pathlib

import jax
import numpy as np
import pytest


def fresh():
    """The same program each time, for jax a new one."""

    def a_program_of_this_test(x):
        return 3 * x + 1234.5

    return jax.jit(a_program_of_this_test)


def test_a_broken_entry_is_compiled_again():
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(fresh()(x), 3 * x + 1234.5)
    (entry,) = folder.glob("jit_a_program_of_this_test-*-cache")
    whole = entry.read_bytes()
    for content in (b"", b"something else", whole[: len(whole) // 2]):
        entry.write_bytes(content)
        np.testing.assert_array_equal(fresh()(x), 3 * x + 1234.5)
    # It was read, and found to be broken: jax tells so where warnings are not turned off.
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        fresh()(x)
    entry.unlink()
