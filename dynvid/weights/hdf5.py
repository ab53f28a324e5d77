"""Reading arrays from HDF5 files, such as the weights that Keras has saved as .h5.

What is read is the part of the format that such files use (HDF5 File Format Specification, version
3.0): superblocks 0 and 1, groups as B-trees with a local heap, object headers of version 1, and
arrays of numbers stored in one piece. Nothing in a file is run.
"""

import math
import os
import struct
from collections.abc import Iterator

import numpy as np

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = 2**64 - 1
_DEEPEST = 32  # groups within groups; more means that they go in circles
_DATASPACE, _DATATYPE, _LAYOUT, _FILTERS, _CONTINUATION, _SYMBOLS = (
    0x01,
    0x03,
    0x08,
    0x0B,
    0x10,
    0x11,
)


def load_hdf5(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of numbers in an HDF5 file by their path, `"model_weights/dense/bias:0"`.

    Arrays of anything else (text, references, compounds) are left out, and so are attributes.

    Args:
      path: The file.

    Returns:
      The arrays, in the file's dtypes.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is no HDF5 file, is cut short, or uses a part of the format that is not read
        (chunks, compression, groups of version 2), which the message names.

    Exact: every number is as it is in the file.

    >>> sorted(load_hdf5("LRCN_model.h5"))[0]  # doctest: +SKIP
    'model_weights/dense/dense/bias:0'
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return dict(_File(data).arrays())
    except (ValueError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"{path}: cannot be read as HDF5 ({error})") from error


class _File:
    """The bytes of a file, and what stands where in them."""

    def __init__(self, data: bytes):
        self.data = data
        if data[:8] != _SIGNATURE:
            raise ValueError("it does not begin as HDF5 files do")
        version, offsets, lengths = self.unpack("<B4xBB", 8)
        if version > 1:
            raise ValueError(f"superblock of version {version}, not 0 or 1")
        if (offsets, lengths) != (8, 8):
            raise ValueError(f"offsets of {offsets} and lengths of {lengths} bytes, not 8")
        # After the flags, version 1 has four bytes more; then four addresses and the root's entry.
        entry = 24 + 4 * version + 32
        _, self.root = self.unpack("<QQ", entry)

    def unpack(self, form: str, place: int) -> tuple:
        """Numbers at a place.

        Raises:
          ValueError: The file ends before.
        """
        if place + struct.calcsize(form) > len(self.data):
            raise ValueError(f"it ends before byte {place + struct.calcsize(form)}")
        return struct.unpack_from(form, self.data, place)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every array with its path."""
        yield from self._below(self.root, "", 0)

    def _below(self, header: int, path: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
        if depth > _DEEPEST:
            raise ValueError(f"groups more than {_DEEPEST} deep at {path}")
        messages = list(self._messages(header))
        kinds = dict(messages)
        if _SYMBOLS in kinds:
            tree, heap = self.unpack("<QQ", kinds[_SYMBOLS])
            for name, place in self._members(tree, heap, 0):
                yield from self._below(place, f"{path}/{name}" if path else name, depth + 1)
        elif _LAYOUT in kinds:
            array = self._array(kinds, path)
            if array is not None:
                yield path, array

    def _messages(self, header: int) -> Iterator[tuple[int, int]]:
        """The kind and the place of each message of an object header of version 1."""
        version, _, total, _, size = self.unpack("<BBHII", header)
        if version != 1:
            raise ValueError(f"an object header of version {version}, not 1")
        blocks, seen = [(header + 16, size)], 0
        while blocks and seen < total:
            place, size = blocks.pop(0)
            end = place + size
            while place + 8 <= end and seen < total:
                kind, length = self.unpack("<HH", place)
                body = place + 8
                if kind == _CONTINUATION:
                    blocks.append(self.unpack("<QQ", body))
                yield kind, body
                seen += 1
                place = body + length

    def _members(self, tree: int, heap: int, depth: int) -> Iterator[tuple[str, int]]:
        """Names in a group, and where their object headers are."""
        if depth > _DEEPEST:
            raise ValueError(f"a tree more than {_DEEPEST} deep")
        mark, kind, level, count = self.unpack("<4sBBH", tree)
        if mark != b"TREE" or kind != 0:
            raise ValueError(f"no group at byte {tree}")
        for i in range(count):
            (child,) = self.unpack("<Q", tree + 24 + 8 + 16 * i)
            if level > 0:
                yield from self._members(child, heap, depth + 1)
            else:
                yield from self._symbols(child, heap)

    def _symbols(self, node: int, heap: int) -> Iterator[tuple[str, int]]:
        mark, _, _, count = self.unpack("<4sBBH", node)
        mark_of_heap, _, _, _, _, names = self.unpack("<4sB3sQQQ", heap)
        if mark != b"SNOD" or mark_of_heap != b"HEAP":
            raise ValueError(f"no names of a group at byte {node}")
        for i in range(count):
            name, header, cached = self.unpack("<QQI", node + 8 + 40 * i)
            if cached == 2:  # a symbolic link leads to what is there anyway
                continue
            end = self.data.find(b"\0", names + name)
            if end < 0:
                raise ValueError(f"it ends within a name at byte {names + name}")
            yield self.data[names + name : end].decode(), header

    def _array(self, kinds: dict[int, int], path: str) -> np.ndarray | None:
        if not {_DATATYPE, _DATASPACE} <= kinds.keys():
            raise ValueError(f"{path} is an array without dtype or shape")
        dtype = self._dtype(kinds[_DATATYPE])
        if dtype is None:
            return None
        if _FILTERS in kinds:
            raise ValueError(f"{path} is compressed")
        shape = self._shape(kinds[_DATASPACE])
        place = kinds[_LAYOUT]
        version, layout = self.unpack("<BB", place)
        if version != 3 or layout not in (0, 1):
            raise ValueError(f"{path} is not stored in one piece (layout {layout}, {version})")
        if layout == 0:
            (size,) = self.unpack("<H", place + 2)
            start = place + 4
        else:
            start, size = self.unpack("<QQ", place + 2)
        wanted = math.prod(shape) * dtype.itemsize
        if start == _UNDEFINED or wanted == 0:  # never written: zeros
            return np.zeros(shape, dtype)
        if size < wanted or start + wanted > len(self.data):
            raise ValueError(f"{path} has {wanted} bytes, more than there are")
        return np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape).copy()

    def _shape(self, place: int) -> tuple[int, ...]:
        version, rank = self.unpack("<BB", place)
        if version not in (1, 2):
            raise ValueError(f"a dataspace of version {version}, not 1 or 2")
        return self.unpack(f"<{rank}Q", place + (8 if version == 1 else 4))

    def _dtype(self, place: int) -> np.dtype | None:
        """The dtype of IEEE floats and integers; None of everything else."""
        kind, flags, _, _, size = self.unpack("<BBBBI", place)
        order = ">" if flags & 1 else "<"
        if kind & 0x0F == 1 and size in (2, 4, 8):
            return np.dtype(f"{order}f{size}")
        if kind & 0x0F == 0 and size in (1, 2, 4, 8):
            return np.dtype(f"{order}{'i' if flags & 8 else 'u'}{size}")
        return None
