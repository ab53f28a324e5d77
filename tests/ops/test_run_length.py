import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.coding.runs import encode_fixed
from dynvid.ops.run_length import run_length_bits, run_length_tokens

SIZE = 40
tokens_of = jax.jit(run_length_tokens, static_argnames="run_label")


def by_loop(labels, run_label):
    tokens = []
    for label in labels:
        if label == run_label and tokens and tokens[-1][0] == run_label:
            tokens[-1][1] += 1
        else:
            tokens.append([int(label), 1])
    return tokens


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([0, 1, 2, 2, 2, 2]), min_size=SIZE, max_size=SIZE))
def test_tokens_against_a_loop_and_back(labels):
    tokens = tokens_of(jnp.array(labels), run_label=2)
    count = int(tokens.count)
    expected = by_loop(labels, 2)
    assert [
        list(t)
        for t in zip(tokens.labels[:count].tolist(), tokens.lengths[:count].tolist(), strict=True)
    ] == expected
    assert not tokens.labels[count:].any()
    assert not tokens.lengths[count:].any()
    np.testing.assert_array_equal(np.repeat(tokens.labels, tokens.lengths), labels)


@pytest.mark.parametrize("labels", [[2] * SIZE, [0] * SIZE, [2], [0], [2, 0] * 20])
def test_extremes(labels):
    tokens = run_length_tokens(jnp.array(labels, jnp.int16), run_label=2)
    assert int(tokens.count) == len(by_loop(labels, 2))
    np.testing.assert_array_equal(np.repeat(tokens.labels, tokens.lengths), labels)


def test_bits_count_what_a_loop_counts():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(3000) < 0.02, rng.integers(0, 9, 3000), 4)
    tokens = run_length_tokens(jnp.asarray(labels), run_label=4)
    sizes = run_length_bits(tokens, run_label=4, label_bits=4)
    for bits in range(1, 17):
        expected = 0
        for label, length in by_loop(labels, 4):
            if label == 4:
                expected += (4 + bits) * -(-length // 2**bits)
            else:
                expected += 4
        assert sizes[bits - 1] == expected


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 1.0])
def test_the_host_packs_as_many_bits_as_were_counted(share):
    rng = np.random.default_rng(2)
    labels = np.where(rng.random(5000) < share, rng.integers(0, 9, 5000), 4)
    tokens = run_length_tokens(jnp.asarray(labels), run_label=4)
    sizes = np.asarray(run_length_bits(tokens, run_label=4, label_bits=4))
    best = int(np.argmin(sizes)) + 1
    bits = sizes[best - 1]
    data = encode_fixed(labels, run_label=4, levels=9)
    assert data[2] == best
    # Seven bytes of header; heads and run lengths are each filled up to a byte.
    assert 0 <= 8 * (len(data) - 7) - bits < 16


def test_one_executable_for_any_content():
    count = jax.jit(
        lambda x: run_length_bits(run_length_tokens(x, run_label=1), run_label=1, label_bits=2)
    )
    for k in range(3):
        count(jnp.full((SIZE,), k, jnp.int16))
    assert count._cache_size() == 1
