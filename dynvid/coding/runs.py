"""N-run-length tokens as bits: rates R1 (fixed fields) and R2 (Huffman-coded run classes).

IFMDC (arXiv 2411.00984), section III, Figure 6; the fields are ours, the paper names none.
`dynvid.ops.run_length` makes and counts the same tokens inside `jit`; here, on the host, they
follow from the places of the literals alone.
"""

import struct

import numpy as np

from dynvid.coding.bits import bytes_of, pack_fields, unpack_fields
from dynvid.coding.errors import BitstreamError
from dynvid.coding.huffman import (
    code_lengths,
    decode_symbols,
    encode_symbols,
    pack_lengths,
    unpack_lengths,
)

_RUN_BITS = 16
_RUN_CLASSES = 25  # runs of fewer than 2^25 labels
_FEW = 32  # literals are few where there is one in so many labels
_FIXED = struct.Struct("<HBI")  # N, b_r, heads
_HUFFMAN = struct.Struct("<HII")  # N, tokens, bytes of code words


def encode_fixed(labels: np.ndarray, *, run_label: int, levels: int) -> bytes:
    """Writes labels as N-run-length tokens of fixed fields, the literal reading (rate R1).

    A literal takes `w = ceil(log2 k)` bits; a run of N takes w bits for N and `b_r` for its length
    less one, runs over `2^b_r` split; `b_r` is the one of 1 .. 16 that makes the whole shortest.
    All heads come first and then all run lengths: the same bits, but each plane is read at once.

    Args:
      labels: `int[n]` of 0 .. `levels - 1`, in scan order, or `int[streams, h, w, c]`, to be
        scanned channel by channel as `chw` does; n below 2^25.
      run_label: N.
      levels: k.

    Returns:
      The bytes: N, `b_r` and the number of heads in 7, then heads and run lengths.

    Exact: `decode_fixed` gives the labels back.

    >>> len(encode_fixed(np.full(1000, 4), run_label=4, levels=9))
    10
    """
    literals, gaps = _literals(labels, run_label)
    width = _label_bits(levels)
    run_bits = _best_run_bits(gaps, width)
    pieces = (gaps + (1 << run_bits) - 1) >> run_bits
    before = np.cumsum(pieces)
    heads = np.full(len(literals) + before[-1], run_label)
    heads[before[:-1] + np.arange(len(literals))] = literals
    lengths = np.full(before[-1], (1 << run_bits) - 1)
    runs = pieces > 0
    lengths[before[runs] - 1] = (gaps[runs] - 1) & ((1 << run_bits) - 1)
    return (
        _FIXED.pack(run_label, run_bits, len(heads))
        + pack_fields(heads, width)
        + pack_fields(lengths, run_bits)
    )


def decode_fixed(data: bytes, *, levels: int, size: int) -> np.ndarray:
    """Reads what `encode_fixed` wrote.

    Args:
      data: The bytes.
      levels: k.
      size: How many labels there are.

    Returns:
      `int16[size]`.

    Raises:
      BitstreamError: The bytes are not `size` labels of `levels`.

    >>> data = encode_fixed(np.array([4, 4, 1, 4]), run_label=4, levels=9)
    >>> decode_fixed(data, levels=9, size=4)
    array([4, 4, 1, 4], dtype=int16)
    """
    run_label, run_bits, count = _unpack(_FIXED, data)
    if not 1 <= run_bits <= _RUN_BITS or run_label >= levels or count > size:
        raise BitstreamError(
            f"no tokens of {size} labels: run label {run_label}, {run_bits} bits a run, "
            f"{count} heads"
        )
    width = _label_bits(levels)
    body = data[_FIXED.size :]
    heads = unpack_fields(body, width, count=count)
    is_run = heads == run_label
    body = body[bytes_of(count * width) :]
    runs = int(is_run.sum())
    lengths = np.ones(count, np.int64)
    lengths[is_run] += unpack_fields(body, run_bits, count=runs)
    _check_end(body, bytes_of(runs * run_bits))
    return _expand(heads, lengths, levels=levels, size=size)


def encode_huffman(labels: np.ndarray, *, run_label: int, levels: int) -> bytes:
    """Writes labels as N-run-length tokens in a Huffman code (rate R2).

    One alphabet of literals and run classes: class j holds the runs of `2^j .. 2^(j+1) - 1`, and j
    further bits tell which (Exp-Golomb). The code is made for each call and sent.

    Args:
      labels: `int[n]` of 0 .. `levels - 1`, in scan order, or `int[streams, h, w, c]`, to be
        scanned channel by channel as `chw` does; n below 2^25.
      run_label: N.
      levels: k.

    Returns:
      The bytes: 10 of sizes, code lengths, code words, bits of run lengths.

    Exact: `decode_huffman` gives the labels back.

    >>> len(encode_huffman(np.full(1000, 4), run_label=4, levels=9))
    18
    """
    literals, gaps = _literals(labels, run_label)
    is_run = gaps > 0
    # Token i: the run before literal i, where there is one, and then the literal.
    at_literal = np.cumsum(is_run[:-1]) + np.arange(len(literals))
    symbols = np.empty(len(literals) + np.count_nonzero(is_run), np.int64)
    there = np.ones(len(symbols), bool)
    there[at_literal] = False
    symbols[at_literal] = literals
    runs = gaps[is_run]
    classes = np.frexp(runs.astype(np.float64))[1] - 1
    symbols[there] = levels + classes
    lengths = code_lengths(np.bincount(symbols, minlength=levels + _RUN_CLASSES))
    words = encode_symbols(symbols, lengths)
    return (
        _HUFFMAN.pack(run_label, len(symbols), len(words))
        + pack_lengths(lengths)
        + words
        + pack_fields(runs - (1 << classes), classes)
    )


def decode_huffman(data: bytes, *, levels: int, size: int) -> np.ndarray:
    """Reads what `encode_huffman` wrote.

    Args:
      data: The bytes.
      levels: k.
      size: How many labels there are.

    Returns:
      `int16[size]`.

    Raises:
      BitstreamError: The bytes are not `size` labels of `levels`.

    >>> data = encode_huffman(np.array([4, 4, 1, 4]), run_label=4, levels=9)
    >>> decode_huffman(data, levels=9, size=4)
    array([4, 4, 1, 4], dtype=int16)
    """
    run_label, count, word_bytes = _unpack(_HUFFMAN, data)
    if run_label >= levels or count > size:
        raise BitstreamError(f"no tokens of {size} labels: run label {run_label}, {count} tokens")
    body = data[_HUFFMAN.size :]
    lengths, used = unpack_lengths(body, symbols=levels + _RUN_CLASSES)
    body = body[used:]
    if word_bytes > len(body):
        raise BitstreamError(f"{word_bytes} bytes of code words announced, {len(body)} are there")
    symbols = decode_symbols(body[:word_bytes], lengths, count=count)
    body = body[word_bytes:]
    is_run = symbols >= levels
    classes = symbols[is_run] - levels
    repeats = np.ones(count, np.int64)
    repeats[is_run] = (1 << classes) + unpack_fields(body, classes, count=len(classes))
    _check_end(body, bytes_of(int(classes.sum())))
    return _expand(np.where(is_run, run_label, symbols), repeats, levels=levels, size=size)


def _literals(labels: np.ndarray, run_label: int) -> tuple[np.ndarray, np.ndarray]:
    """The literals, and how many N stand before each of them and after the last."""
    differs = labels != run_label
    if labels.ndim > 1 and _FEW * np.count_nonzero(differs) > labels.size:
        labels, differs = (x.transpose(0, 3, 1, 2).ravel() for x in (labels, differs))
    places = np.flatnonzero(differs)
    literals = labels.ravel()[places].astype(np.int64)
    if labels.ndim > 1:
        # Few: they are put in order, where all labels would have to be.
        _, height, width, channels = labels.shape
        position, channel = np.divmod(places, channels)
        stream, position = np.divmod(position, height * width)
        places = (stream * channels + channel) * (height * width) + position
        order = np.argsort(places)
        places, literals = places[order], literals[order]
    edges = np.concatenate([[-1], places, [labels.size]])
    return literals, np.diff(edges) - 1


def _best_run_bits(gaps: np.ndarray, width: int) -> int:
    # Less one, a run of 2^b takes one token of b bits; runs of equal length are counted once.
    runs, counts = np.unique(gaps[gaps > 0] - 1, return_counts=True)
    bits = np.arange(1, _RUN_BITS + 1)
    tokens = counts @ ((runs[:, None] >> bits) + 1)
    return int(np.argmin((width + bits) * tokens)) + 1


def _label_bits(levels: int) -> int:
    return (levels - 1).bit_length()


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) < layout.size:
        raise BitstreamError(f"a payload of {len(data)} bytes is shorter than its own header")
    return layout.unpack_from(data)


def _check_end(data: bytes, used: int) -> None:
    if len(data) != used:
        raise BitstreamError(f"{len(data) - used} bytes follow the last token")


def _expand(labels: np.ndarray, repeats: np.ndarray, *, levels: int, size: int) -> np.ndarray:
    if int(repeats.sum()) != size or np.any(labels >= levels):
        raise BitstreamError(f"the tokens are not {size} labels of {levels} levels")
    return np.repeat(labels.astype(np.int16), repeats)
