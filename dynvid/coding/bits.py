"""Fields of bits in bytes, the most significant bit first."""

import numpy as np

from dynvid.coding.errors import BitstreamError

WIDEST = 24
"""The most bits of one field: with its offset into a byte it lies within four bytes."""


def pack_fields(values: np.ndarray, widths: np.ndarray | int) -> bytes:
    """Writes unsigned numbers one after the other, the last byte filled up with zeros.

    Args:
      values: `int[n]`, each below `2^width`.
      widths: Of each field, `int[n]` or one for all, 0 .. 24.

    Returns:
      The bytes; a field of width 0 takes none.

    Exact: `unpack_fields` gives the numbers back.

    >>> pack_fields(np.array([1, 0, 5]), np.array([1, 2, 3])).hex()
    '94'
    """
    values = np.asarray(values, np.uint32)
    starts, total = _starts(widths, len(values))
    out = np.zeros((total + 7) // 8 + 3, np.uint8)
    # The field in 32 bits, where it begins within its first byte.
    shifts = (32 - np.asarray(widths) - (starts & 7)).astype(np.uint32)
    words = values << np.minimum(shifts, 31)
    first = starts >> 3
    for k in range(4):
        part = (words >> np.uint32(24 - 8 * k)) & np.uint32(255)
        # Fields do not overlap: the sum of their parts of a byte is their union.
        out += np.bincount(first + k, weights=part, minlength=len(out))[: len(out)].astype(np.uint8)
    return out[: (total + 7) // 8].tobytes()


def unpack_fields(data: bytes, widths: np.ndarray | int, *, count: int) -> np.ndarray:
    """Reads what `pack_fields` wrote.

    Args:
      data: The bytes; what lies beyond the last field is not looked at.
      widths: Of each field, `int[count]` or one for all, 0 .. 24.
      count: How many fields there are.

    Returns:
      `int64[count]`.

    Raises:
      BitstreamError: The data are too short.

    >>> unpack_fields(bytes.fromhex("94"), np.array([1, 2, 3]), count=3)
    array([1, 0, 5])
    """
    if np.ndim(widths) == 0 and count * int(widths) > 8 * len(data):  # before anything is allocated
        raise BitstreamError(f"{count} fields of {widths} bits do not fit in {len(data)} bytes")
    starts, total = _starts(widths, count)
    if total > 8 * len(data):
        raise BitstreamError(f"{total} bits were announced, {8 * len(data)} are there")
    padded = np.frombuffer(data + bytes(4), np.uint8)
    first = starts >> 3
    words = padded[first].astype(np.uint32)
    for k in range(1, 4):
        words = (words << np.uint32(8)) | padded[first + k]
    # Shifted in 64 bits: a field of width 0 asks for a shift by 32.
    down = (32 - np.asarray(widths) - (starts & 7)).astype(np.int64)
    return (words.astype(np.int64) >> down) & ((np.int64(1) << np.asarray(widths, np.int64)) - 1)


def bytes_of(bits: int) -> int:
    """How many bytes hold that many bits.

    >>> bytes_of(9)
    2
    """
    return (bits + 7) // 8


def _starts(widths: np.ndarray | int, count: int) -> tuple[np.ndarray, int]:
    if np.ndim(widths) == 0:
        return np.arange(count, dtype=np.int64) * int(widths), count * int(widths)
    ends = np.cumsum(widths, dtype=np.int64)
    return ends - widths, int(ends[-1]) if count else 0
