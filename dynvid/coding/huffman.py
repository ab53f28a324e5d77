"""Huffman codes of at most 15 bits, packed and read as arrays."""

import heapq

import numpy as np

from dynvid.coding.bits import pack_fields, unpack_fields
from dynvid.coding.errors import BitstreamError

LONGEST = 15
"""The most bits of a code word: its length fits in four bits, its table in 32,768 entries."""


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Finds the lengths of a prefix code for symbols that occur so often.

    Huffman's; where a word comes out longer than 15 bits, the counts are levelled and it is found
    anew.

    Args:
      counts: `int[symbols]`, not negative.

    Returns:
      `int64[symbols]`: 0 where the symbol does not occur, else 1 .. 15.

    Exact (optimal) where no word has to be shortened, and within a small fraction of a percent
    otherwise.

    >>> code_lengths(np.array([8, 0, 1, 3]))
    array([1, 0, 2, 2])
    """
    lengths = np.zeros(len(counts), np.int64)
    used = np.flatnonzero(counts)
    if len(used) == 1:
        lengths[used] = 1
    weights = np.asarray(counts, np.int64)[used]
    while len(used) > 1:
        # (weight, tie-break, the symbols below this node)
        heap = [(int(w), i, [i]) for i, w in enumerate(weights)]
        heapq.heapify(heap)
        depth = np.zeros(len(used), np.int64)
        for tie in range(len(used), 2 * len(used) - 1):
            w1, _, below1 = heapq.heappop(heap)
            w2, _, below2 = heapq.heappop(heap)
            depth[below1 + below2] += 1
            heapq.heappush(heap, (w1 + w2, tie, below1 + below2))
        if depth.max() <= LONGEST:
            lengths[used] = depth
            break
        weights = (weights + 1) // 2 + 1
    return lengths


def pack_lengths(lengths: np.ndarray) -> bytes:
    """Writes code lengths: a flag for each symbol, then four bits for each that occurs.

    >>> pack_lengths(np.array([1, 0, 2, 2])).hex()
    'b122'
    """
    used = lengths > 0
    values = np.concatenate([used.astype(np.int64), lengths[used]])
    return pack_fields(values, np.repeat([1, 4], [len(lengths), int(used.sum())]))


def unpack_lengths(data: bytes, *, symbols: int) -> tuple[np.ndarray, int]:
    """Reads what `pack_lengths` wrote.

    Returns:
      The lengths, `int64[symbols]`, and how many bytes they took.

    Raises:
      BitstreamError: The data are too short, or no prefix code has these lengths.

    >>> unpack_lengths(bytes.fromhex("b122"), symbols=4)
    (array([1, 0, 2, 2]), 2)
    """
    used = unpack_fields(data, 1, count=symbols) > 0
    widths = np.repeat([1, 4], [symbols, int(used.sum())])
    lengths = np.zeros(symbols, np.int64)
    lengths[used] = unpack_fields(data, widths, count=len(widths))[symbols:]
    if np.any(lengths[used] == 0) or np.sum(2.0 ** -lengths[used]) > 1:
        raise BitstreamError("the code lengths are those of no prefix code")
    return lengths, (int(widths.sum()) + 7) // 8


def encode_symbols(symbols: np.ndarray, lengths: np.ndarray) -> bytes:
    """Writes symbols in the canonical code of these lengths.

    Args:
      symbols: `int[n]`, each with a length above 0.
      lengths: As `code_lengths` returns them.

    >>> encode_symbols(np.array([0, 3, 0, 2]), np.array([1, 0, 2, 2])).hex()
    '68'
    """
    return pack_fields(_words(lengths)[symbols], lengths[symbols])


def decode_symbols(data: bytes, lengths: np.ndarray, *, count: int) -> np.ndarray:
    """Reads what `encode_symbols` wrote.

    What a word that starts at each bit would be is looked up for all bits at once; only stepping
    from word to word is a loop.

    Args:
      data: Exactly the bytes that were written.
      lengths: Of the code words.
      count: How many symbols there are.

    Returns:
      `int64[count]`.

    Raises:
      BitstreamError: The bytes are not that many symbols.

    >>> decode_symbols(bytes.fromhex("68"), np.array([1, 0, 2, 2]), count=4)
    array([0, 3, 0, 2])
    """
    if count > 8 * len(data):
        raise BitstreamError(f"{count} symbols do not fit in {len(data)} bytes")
    if count == 0:
        return np.zeros(0, np.int64)
    used = np.flatnonzero(lengths)
    # The words, left-aligned, are ascending intervals of all 15-bit windows.
    order = used[np.lexsort((used, lengths[used]))]
    sizes = 1 << (LONGEST - lengths[order])
    table = np.full(1 << LONGEST, -1, np.int16)
    filled = np.repeat(order, sizes)
    table[: len(filled)] = filled
    padded = np.frombuffer(data + bytes(3), np.uint8).astype(np.uint32)
    three = (padded[:-2] << 16) | (padded[1:-1] << 8) | padded[2:]
    windows = (three[: len(data), None] >> np.arange(9, 1, -1, dtype=np.uint32)) & 0x7FFF
    found = table[windows.ravel()]
    # An unknown word leads nowhere: to itself.
    after = np.where(found >= 0, lengths[found], 0) + np.arange(len(found))
    follow = after.tolist()
    positions = []
    bit, end = 0, len(follow)
    for _ in range(count):
        if bit >= end:
            raise BitstreamError(f"the data end after {len(positions)} of {count} symbols")
        positions.append(bit)
        bit = follow[bit]
    symbols = found[positions]
    if np.any(symbols < 0) or bit > end:
        raise BitstreamError("the data hold a word that is not in the code")
    return symbols.astype(np.int64)


def _words(lengths: np.ndarray) -> np.ndarray:
    """The canonical code: words ascend with their length, then with their symbol."""
    words = np.zeros(len(lengths), np.int64)
    used = np.flatnonzero(lengths)
    order = used[np.lexsort((used, lengths[used]))]
    sizes = 1 << (LONGEST - lengths[order])
    words[order] = (np.cumsum(sizes) - sizes) >> (LONGEST - lengths[order])
    return words
