import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.coding.entropy import zero_order_entropy
from dynvid.coding.errors import BitstreamError
from dynvid.coding.runs import decode_fixed, decode_huffman, encode_fixed, encode_huffman

CODES = {"fixed": (encode_fixed, decode_fixed), "huffman": (encode_huffman, decode_huffman)}


@pytest.fixture(params=CODES)
def code(request):
    return CODES[request.param]


@settings(deadline=None)
@given(
    labels=st.lists(st.sampled_from([0, 1, 3, 4, 4, 4, 4, 8]), min_size=1, max_size=200),
    name=st.sampled_from(sorted(CODES)),
)
def test_tokens_come_back(labels, name):
    encode, decode = CODES[name]
    data = encode(np.array(labels), run_label=4, levels=9)
    np.testing.assert_array_equal(decode(data, levels=9, size=len(labels)), labels)


@pytest.mark.parametrize("levels", [3, 9, 257, 4097])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 1.0])
def test_any_alphabet_and_any_share_of_runs(code, levels, share):
    encode, decode = code
    rng = np.random.default_rng(0)
    n = levels // 2
    labels = np.where(rng.random(100_000) < share, rng.integers(0, levels, 100_000), n)
    data = encode(labels, run_label=n, levels=levels)
    back = decode(data, levels=levels, size=len(labels))
    np.testing.assert_array_equal(back, labels)
    assert back.dtype == np.int16


def test_runs_longer_than_the_widest_field(code):
    encode, decode = code
    labels = np.full(300_000, 4)
    labels[200_000] = 1
    data = encode(labels, run_label=4, levels=9)
    assert len(data) < 60
    np.testing.assert_array_equal(decode(data, levels=9, size=len(labels)), labels)


def test_sizes_are_those_of_the_definition():
    """Two runs (3 and 2) and two literals: heads of 4 bits, b_r = 2."""
    data = encode_fixed(np.array([4, 4, 4, 0, 4, 4, 1]), run_label=4, levels=9)
    assert data[2] == 1 or data[2] == 2
    heads = int.from_bytes(data[3:7], "little")
    bits = heads * 4 + (heads - 2) * data[2]
    assert bits == min(4 * 4 + 2 * 2, 5 * 4 + 3 * 1)


def test_huffman_takes_fewer_bits_where_there_are_runs():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(100_000) < 0.02, rng.choice([3, 5], 100_000), 4)
    fixed = len(encode_fixed(labels, run_label=4, levels=9))
    huffman = len(encode_huffman(labels, run_label=4, levels=9))
    assert huffman < 0.85 * fixed
    # Labels drawn independently: no code is shorter than their entropy.
    assert 8 * huffman > zero_order_entropy(labels)


def test_damage_is_an_error_or_other_labels_of_the_same_kind(code):
    """Checksums are the container's; here nothing may crash, hang or leave the alphabet."""
    encode, decode = code
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(400) < 0.1, rng.integers(0, 9, 400), 4)
    data = encode(labels, run_label=4, levels=9)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        damaged = damaged[: rng.integers(len(damaged) + 1)] if rng.random() < 0.3 else damaged
        try:
            back = decode(bytes(damaged), levels=9, size=400)
        except BitstreamError:
            refused += 1
        else:
            assert back.shape == (400,)
            assert 0 <= back.min() <= back.max() < 9
    assert refused > 500


def test_entropy():
    assert zero_order_entropy(np.zeros((3, 4), int)) == 0
    assert zero_order_entropy(np.arange(8)) == 24
    counts = np.array([90, 7, 3])
    expected = -np.sum(counts * np.log2(counts / 100))
    assert np.isclose(zero_order_entropy(np.repeat([0, 1, 2], counts)), expected, rtol=1e-12)
