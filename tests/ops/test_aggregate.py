"""Aggregation and partial updates: their weights, their limits, and their gradients."""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.test_util import check_grads

from dynvid.ops.aggregate import (
    cosine_similarity,
    dense_aggregation,
    partial_update,
    recursive_aggregation,
    similarity_weights,
)

EPS = float(jnp.finfo(jnp.float32).eps)
GRID = (2, 3, 4)
MOST = 1 / (1 + math.exp(-2))  # 0.881, the weight where the embeddings are opposed
LENGTHS = st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e20])


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def angles(similarity, length=1.0):
    """Two embeddings of one position of which the cosine is given."""
    turned = length * jnp.array([similarity, math.sqrt(1 - similarity**2)])
    return turned.reshape(1, 1, 1, 2), jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)


@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 3), seed=st.integers(0, 99), length=LENGTHS, other=LENGTHS)
def test_weights_sum_to_one_and_stay_within_bounds(count, seed, length, other):
    current = other * drawn(seed, *GRID, 5)
    neighbours = length * drawn(seed + 1, count, *GRID, 5)
    # The extremes too: the frame itself and its opposite.
    neighbours = neighbours.at[0, 0].set(current[0]).at[0, 1].set(-current[1])
    weights = jax.jit(similarity_weights)(neighbours, current)
    assert weights.neighbours.shape == (count, *GRID)
    total = weights.current + weights.neighbours.sum(0)
    # A division, a product each, and the additions.
    np.testing.assert_allclose(total, 1, rtol=0, atol=(count + 3) * EPS)
    # A neighbour's share of the current frame's weight lies in [exp(-2), 1].
    assert (weights.current >= (1 - 4 * EPS) / (1 + count)).all()
    assert (weights.current <= (1 + 4 * EPS) / (1 + count * math.exp(-2))).all()
    if count == 1:
        assert (weights.current >= 0.5).all()
        assert (weights.current <= MOST * (1 + 4 * EPS)).all()
        assert (weights.neighbours <= 0.5).all()
        # Each is the other's complement, exactly: in [0.5, 1] differences to 1 are.
        np.testing.assert_allclose(1 - weights.current, weights.neighbours[0], rtol=0, atol=2 * EPS)


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [(1.0, 0.5), (0.0, 1 / (1 + math.exp(-1))), (-1.0, MOST), (0.5, 1 / (1 + math.exp(-0.5)))],
)
def test_weight_of_the_current_frame(similarity, expected):
    embedding, current = angles(similarity, 7.0)
    weights = jax.jit(similarity_weights)(embedding[None], current)
    np.testing.assert_allclose(weights.current.item(), expected, rtol=8 * EPS)
    # Eq. 3 as a softmax over (s, 1).
    softmax = jax.nn.softmax(jnp.array([similarity, 1.0]))
    np.testing.assert_allclose(weights.neighbours.item(), softmax[0], rtol=16 * EPS)


def test_similarity_of_what_has_no_direction():
    e = jnp.array([[0.0, 0.0], [1e37, 1e37], [1e-30, 1e-30], [jnp.nan, 1.0], [jnp.inf, 1.0]])
    found = jax.jit(cosine_similarity)(e, jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(found, [0, 1, 1, -1, -1], rtol=4 * EPS)
    slope = jax.grad(lambda e: cosine_similarity(e, jnp.array([1.0, -1.0])).sum())
    gradient = jax.jit(slope)(e[:1])
    np.testing.assert_array_equal(gradient, jnp.zeros((1, 2)))
    weights = jax.jit(similarity_weights)(e.reshape(5, 1, 1, 1, 2), jnp.ones((1, 1, 1, 2)))
    assert all(np.isfinite(w).all() for w in weights)


def test_similarity_is_computed_in_float32():
    # Of 512 halves the squares add up to 128, which bfloat16 sums of ones would not reach.
    e = jnp.full((1, 4096), 0.5, jnp.bfloat16)
    found = cosine_similarity(e, e)
    assert found.dtype == jnp.float32
    assert found.item() == 1.0


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 3), seed=st.integers(0, 99))
def test_dense_aggregation_is_the_weighted_mean(count, seed):
    neighbours, current = drawn(seed, count, *GRID, 3), drawn(seed + 1, *GRID, 3)
    embeddings, own = drawn(seed + 2, count, *GRID, 4), drawn(seed + 3, *GRID, 4)
    frames = np.concatenate([neighbours, current[None]]).astype(np.float64)
    embedded = np.concatenate([embeddings, own[None]]).astype(np.float64)
    unit = embedded / np.linalg.norm(embedded, axis=-1, keepdims=True)
    power = np.exp((unit * unit[-1]).sum(-1))
    expected = (frames * (power / power.sum(0))[..., None]).sum(0)
    # Some ten roundings in the cosine, as many in the weights, N + 2 in the sum.
    tolerance = (count + 22) * EPS * np.abs(frames).max()
    found = jax.jit(dense_aggregation)(neighbours, current, embeddings, own)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_recursive_aggregation_is_dense_with_one_neighbour():
    memory, current, e, own = (drawn(i, *GRID, 3) for i in range(4))
    np.testing.assert_array_equal(
        recursive_aggregation(memory, current, e, own),
        dense_aggregation(memory[None], current, e[None], own),
    )


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99))
def test_what_is_aggregated_is_forgotten_by_half_each_time(seed):
    memory, zero = jnp.ones((*GRID, 1)), jnp.zeros((*GRID, 1))
    for step in range(1, 6):
        e, own = drawn(seed + 2 * step, *GRID, 3), drawn(seed + 2 * step + 1, *GRID, 3)
        memory = jax.jit(recursive_aggregation)(memory, zero, e, own)
        assert (memory <= 0.5**step).all()
        assert (memory > (1 - MOST) ** step * (1 - 8 * step * EPS)).all()


def test_aggregation_keeps_the_dtype():
    f = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    assert recursive_aggregation(f, f, f, f).dtype == jnp.bfloat16


def test_gradients_of_aggregation_are_those_of_finite_differences():
    shapes = ((2, 1, 2, 2, 2), (1, 2, 2, 2), (2, 1, 2, 2, 3), (1, 2, 2, 3))
    with jax.enable_x64(True):
        values = [np.asarray(drawn(i, *s), np.float64) for i, s in enumerate(shapes)]
        check_grads(jax.jit(dense_aggregation), values, order=1, modes=["fwd", "rev"], eps=1e-5)


@pytest.mark.parametrize("other", [0.0, jnp.nan, jnp.inf])
def test_partial_update_takes_either_bit_for_bit(other):
    computed = drawn(0, *GRID, 3).at[0, 0, 0].set(-0.0)
    warped = drawn(1, *GRID, 3).at[0, 0, 0].set(-0.0)

    def bits(x):
        return np.asarray(x).view(np.int32)

    spoiled = jnp.full_like(computed, other)
    all_anew, all_kept = jnp.ones(GRID), jnp.zeros(GRID)
    np.testing.assert_array_equal(bits(partial_update(all_anew, computed, spoiled)), bits(computed))
    np.testing.assert_array_equal(bits(partial_update(all_kept, spoiled, warped)), bits(warped))
    # Unlike Eq. 6 as a formula: -0 + 0 is 0, and nothing times infinity is NaN.
    literal = all_anew[..., None] * computed + (1 - all_anew[..., None]) * spoiled
    assert not np.array_equal(bits(literal), bits(computed))


def test_partial_update_follows_the_mask():
    mask = (drawn(2, *GRID) > 0).astype(jnp.float32)
    computed, warped = drawn(0, *GRID, 3), drawn(1, *GRID, 3)
    expected = mask[..., None] * computed + (1 - mask[..., None]) * warped
    np.testing.assert_array_equal(partial_update(mask, computed, warped), expected)
    unknown = partial_update(jnp.full(GRID, jnp.nan), computed, warped)
    np.testing.assert_array_equal(unknown, computed)


def test_gradients_of_partial_update_are_those_of_equation_6():
    mask = (drawn(2, *GRID) > 0).astype(jnp.float32)
    values = (mask, drawn(0, *GRID, 3), drawn(1, *GRID, 3))
    weight = drawn(3, *GRID, 3)

    def literal(mask, computed, warped):
        return mask[..., None] * computed + (1 - mask[..., None]) * warped

    def gradient(fn):
        return jax.grad(lambda *v: jnp.sum(weight * jnp.tanh(fn(*v))), argnums=(0, 1, 2))(*values)

    for found, expected in zip(gradient(partial_update), gradient(literal), strict=True):
        # Sums of three products of numbers of at most about ten.
        np.testing.assert_allclose(found, expected, rtol=0, atol=100 * EPS)
    with jax.enable_x64(True):
        rest = [np.asarray(v, np.float64) for v in values[1:]]
        check_grads(
            lambda *v: partial_update(jnp.asarray(mask, jnp.float64), *v), rest, 1, modes=["rev"]
        )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda f, e: similarity_weights(f, e), "neighbours must be"),
        (lambda f, e: similarity_weights(f[None, :, :1], e), "neighbours must be"),
        (lambda f, e: dense_aggregation(f, f, e, e), "neighbours must be"),
        (lambda f, e: recursive_aggregation(f, f, e, e[:, :1]), "neighbours must be"),
        (lambda f, e: recursive_aggregation(f, f, e[:, :1], e[:, :1]), "neighbour_embeddings must"),
        (lambda f, e: cosine_similarity(e, f), "current must have the channels of embedding"),
    ],
)
def test_shapes_that_do_not_fit(call, said):
    with pytest.raises(ValueError, match=said):
        call(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 2, 5)))
