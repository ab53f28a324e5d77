import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.coding.errors import BitstreamError
from dynvid.coding.huffman import (
    LONGEST,
    code_lengths,
    decode_symbols,
    encode_symbols,
    pack_lengths,
    unpack_lengths,
)


def shortest(counts):
    """The bits of an optimal prefix code: the sum of all inner nodes of Huffman's tree."""
    heap = sorted(c for c in counts if c)
    if len(heap) == 1:
        return heap[0]
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60).filter(any))
def test_codes_are_optimal_and_lengths_come_back(counts):
    lengths = code_lengths(np.array(counts))
    assert int((lengths * counts).sum()) == shortest(counts)
    assert np.all((lengths > 0) == (np.array(counts) > 0))
    back, used = unpack_lengths(pack_lengths(lengths) + b"more", symbols=len(counts))
    np.testing.assert_array_equal(back, lengths)
    assert used == len(pack_lengths(lengths))


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=300))
def test_symbols_come_back(symbols):
    symbols = np.array(symbols)
    lengths = code_lengths(np.bincount(symbols, minlength=13))
    data = encode_symbols(symbols, lengths)
    assert len(data) == (int(lengths[symbols].sum()) + 7) // 8
    np.testing.assert_array_equal(decode_symbols(data, lengths, count=len(symbols)), symbols)


def test_no_word_is_longer_than_the_table():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(sum(fibonacci[-2:]))
    lengths = code_lengths(np.array(fibonacci))
    assert lengths.max() <= LONGEST
    assert np.sum(2.0**-lengths) <= 1
    symbols = np.arange(40)
    data = encode_symbols(symbols, lengths)
    np.testing.assert_array_equal(decode_symbols(data, lengths, count=40), symbols)


def test_many_symbols_of_equal_count():
    lengths = code_lengths(np.ones(300, np.int64))
    assert set(lengths) == {8, 9}


def test_nothing():
    assert decode_symbols(b"", np.zeros(4, np.int64), count=0).size == 0
    assert not code_lengths(np.zeros(3, np.int64)).any()


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b"\x68", 9, "do not fit"),
        (b"\x68", 8, "end after"),
        (b"", 1, "do not fit"),
    ],
)
def test_data_that_are_too_short(data, count, message):
    with pytest.raises(BitstreamError, match=message):
        decode_symbols(data, np.array([1, 0, 2, 2]), count=count)


def test_words_that_are_not_in_the_code():
    with pytest.raises(BitstreamError, match="not in the code"):
        decode_symbols(b"\xff", np.array([1, 0, 0, 2]), count=2)
    with pytest.raises(BitstreamError, match="no prefix code"):
        unpack_lengths(pack_lengths(np.array([1, 1, 1])), symbols=3)
