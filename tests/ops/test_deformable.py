"""Deformable convolution against the ordinary one, its definition, and finite differences."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from jax import lax
from jax.test_util import check_grads

from dynvid.ops.deformable import deformable_convolution

run = jax.jit(deformable_convolution, static_argnames="dilation")
SIZE = (4, 5)


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def defined(x, offsets, kernel, dilation):
    _, height, width, channels = x.shape
    groups, side = offsets.shape[3], kernel.shape[0]
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for s, r, c, i, j, d in np.ndindex(*x.shape[:3], side, side, channels):
        move = offsets[s, r, c, d // (channels // groups), side * i + j]
        at = (r + (i - side // 2) * dilation + float(move[1]),
              c + (j - side // 2) * dilation + float(move[0]))  # fmt: skip
        for q in np.ndindex(height, width):
            share = [max(0.0, 1 - abs(a - b)) for a, b in zip(at, q, strict=True)]
            out[s, r, c] += share[0] * share[1] * x[s, *q, d] * kernel[i, j, d].astype(np.float64)
    return out


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(dilation=st.integers(1, 2), groups=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_without_offsets_it_is_a_convolution(dilation, groups, seed):
    x, kernel = integers(seed, 2, *SIZE, 4), integers(seed + 1, 3, 3, 4, 3)
    expected = lax.conv_general_dilated(
        x, kernel, (1, 1), ((dilation, dilation),) * 2, rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    found = run(x, np.zeros((2, *SIZE, groups, 9, 2), np.float32), kernel, dilation=dilation)
    np.testing.assert_array_equal(found, expected)  # integers: every sum is exact


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(dilation=st.integers(1, 2), groups=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_with_offsets_it_is_what_it_is_defined_as(dilation, groups, seed):
    x, kernel = integers(seed, 1, *SIZE, 2), integers(seed + 1, 3, 3, 2, 2)
    # Quarters up to four positions away: shares are sixteenths and all sums exact.
    offsets = np.random.default_rng(seed).integers(-16, 17, (1, *SIZE, groups, 9, 2)) / 4
    offsets = offsets.astype(np.float32)
    found = run(x, offsets, kernel, dilation=dilation)
    np.testing.assert_array_equal(found, defined(x, offsets, kernel, dilation))


def test_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = rng.normal(size=(1, 2, 3, 2)), rng.normal(size=(3, 3, 2, 1))
        # Between positions it is a polynomial, and no step crosses one.
        offsets = rng.integers(-1, 2, (1, 2, 3, 1, 9, 2)) + rng.uniform(0.2, 0.8, (9, 2))
        check_grads(jax.jit(deformable_convolution), (x, offsets, kernel), 1, ["rev"], eps=1e-4)


@pytest.mark.parametrize(
    ("x", "offsets", "kernel", "said"),
    [
        ((1, 2, 2, 4), (1, 2, 2, 1, 4, 2), (2, 2, 4, 1), "k odd"),
        ((1, 2, 2, 4), (1, 2, 2, 1, 8, 2), (3, 3, 4, 1), "offsets must be"),
        ((1, 2, 2, 4), (1, 2, 3, 1, 9, 2), (3, 3, 4, 1), "offsets must be"),
        ((1, 2, 2, 4), (1, 2, 2, 3, 9, 2), (3, 3, 4, 1), "a multiple of 3 groups; got 4"),
        ((1, 2, 2, 4), (1, 2, 2, 1, 9, 2), (3, 3, 5, 1), "those of the kernel, 5"),
    ],
)
def test_shapes_that_do_not_fit(x, offsets, kernel, said):
    with pytest.raises(ValueError, match=said):
        deformable_convolution(jnp.ones(x), jnp.ones(offsets), jnp.ones(kernel))
