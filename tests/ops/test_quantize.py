import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.ops.quantize import (
    integrate_residual,
    quantize_residual,
    uniform_dequantize,
    uniform_quantize,
)


@pytest.mark.parametrize("levels", [2, 3, 8, 9, 33, 257])
def test_each_level_is_its_own_label(levels):
    labels = jnp.arange(levels)
    values = uniform_dequantize(labels, low=-1.5, high=2.5, levels=levels)
    assert values[0] == -1.5
    np.testing.assert_allclose(values[-1], 2.5, rtol=3e-7)  # one multiplication and one addition
    np.testing.assert_array_equal(
        uniform_quantize(values, low=-1.5, high=2.5, levels=levels), labels
    )


@pytest.mark.parametrize("levels", [3, 9, 33])
def test_eq_5_differs_from_the_printed_one_by_a_constant(levels):
    """Printed with -A, labels are -(k-1) .. 0: the same quantiser, shifted."""
    a = 3.0
    r = np.random.default_rng(0).uniform(-a, a, 1000).astype(np.float32)
    printed = np.round((r - a) / (2 * a) * (levels - 1))
    labels = uniform_quantize(jnp.asarray(r), low=-a, high=a, levels=levels)
    np.testing.assert_array_equal(labels, printed + levels - 1)


def test_the_error_is_at_most_half_a_step():
    values = jax.random.uniform(jax.random.key(0), (10_000,), minval=-2.0, maxval=5.0)
    back = uniform_dequantize(
        uniform_quantize(values, low=-2, high=5, levels=17), low=-2, high=5, levels=17
    )
    # Rounding: three operations on numbers of at most 7, each to 2^-24.
    assert jnp.max(jnp.abs(back - values)) <= 7 / 16 / 2 + 3 * 7 * 2**-24


def test_what_lies_outside_takes_the_label_at_the_end():
    values = jnp.array([-jnp.inf, -9.0, 9.0, jnp.inf])
    labels = uniform_quantize(values, low=-1, high=1, levels=5)
    np.testing.assert_array_equal(labels, [0, 0, 4, 4])
    assert 0 <= uniform_quantize(jnp.array(jnp.nan), low=-1, high=1, levels=5) < 5


def test_ranges_by_channel():
    labels = uniform_quantize(
        jnp.full((2, 3), 1.0),
        low=jnp.array([0.0, 1.0, -1.0]),
        high=jnp.array([4.0, 3.0, 1.0]),
        levels=5,
    )
    np.testing.assert_array_equal(labels, [[1, 0, 4]] * 2)


def test_too_few_levels():
    with pytest.raises(ValueError, match="levels must be at least 2; got 1"):
        uniform_quantize(jnp.zeros(3), low=0, high=1, levels=1)
    with pytest.raises(ValueError, match="levels must be at least 2; got 0"):
        uniform_dequantize(jnp.zeros(3, int), low=0, high=1, levels=0)


@pytest.mark.parametrize(("levels", "step", "top"), [(3, 4, 4), (9, 2, 8), (9, 64, 256), (5, 3, 6)])
def test_one_step_of_the_loop_against_plain_python(levels, step, top):
    rng = np.random.default_rng(1)
    target = (rng.integers(0, 8 * top + 1, 500) / 8).astype(np.float32)
    prediction = rng.integers(0, top + 1, 500)
    labels = quantize_residual(
        jnp.asarray(target), jnp.asarray(prediction), step=step, levels=levels
    )
    new = integrate_residual(jnp.asarray(prediction), labels, step=step, levels=levels, top=top)
    half = (levels - 1) // 2
    for x, m, q, n in zip(target, prediction, np.asarray(labels), np.asarray(new), strict=True):
        expected = max(-half, min(half, round((float(x) - int(m)) / step))) + half
        assert q == expected
        assert n == min(max(int(m) + step * (expected - half), 0), top)
        assert abs(n - x) <= step / 2 or abs(expected - half) == half


def test_the_dead_zone_keeps_what_moved_little():
    target = jnp.array([4.0, 5.9, 6.1, 7.9, 2.1, 1.9])
    labels = quantize_residual(target, jnp.full(6, 4), step=2, levels=9, dead_zone=1.0)
    np.testing.assert_array_equal(labels, [4, 4, 5, 6, 4, 3])


def test_nan_has_a_valid_label():
    label = quantize_residual(jnp.array(jnp.nan), jnp.array(3), step=2, levels=9)
    assert 0 <= label <= 8
