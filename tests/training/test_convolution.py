"""Gradients that are XLA's own, to the bit on integers."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given, settings
from jax import lax

from dynvid.training.convolution import trainable_convolutions, trained_convolution


def integers(rng, *shape):
    return jnp.asarray(rng.integers(-4, 5, shape), jnp.float32)


@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1)]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_the_convolution(size, kernel, strides, padding, dilation, seed):
    rng = np.random.default_rng(seed)
    x, k = integers(rng, 2, *size, 3), integers(rng, *kernel, 3, 2)
    reach = [
        n + sum(p) - (c - 1) * d for n, p, c, d in zip(size, padding, kernel, dilation, strict=True)
    ]
    if min(reach) < 1:
        return

    def plain(x, k):
        return lax.conv_general_dilated(
            x, k, strides, padding, rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    expected, pull = jax.vjp(plain, x, k)
    found, own = jax.vjp(lambda x, k: trained_convolution(x, k, strides, padding, dilation), x, k)
    np.testing.assert_array_equal(found, expected)
    weight = integers(rng, *expected.shape)
    for part, wanted in zip(own(weight), pull(weight), strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_modules_do_what_they_did():
    rng = np.random.default_rng(0)
    rngs = nnx.Rngs(0)
    module = nnx.List(
        [
            nnx.Conv(4, 4, (3, 3), 2, padding="SAME", kernel_dilation=2, rngs=rngs),
            nnx.Conv(4, 6, (3, 3), padding=[(1, 1), (0, 2)], use_bias=False, rngs=rngs),
            nnx.Conv(6, 6, (3, 3), feature_group_count=2, rngs=rngs),
        ]
    )
    for conv in module:
        conv.kernel[...] = integers(rng, *conv.kernel.shape)
    x = integers(rng, 1, 9, 10, 4)

    def run(x):
        for conv in module:
            x = conv(x)
        return x

    before, pull = jax.vjp(run, x)
    trainable_convolutions(module)
    after, own = jax.vjp(run, x)
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(own(jnp.ones_like(after))[0], pull(jnp.ones_like(after))[0])
