"""Reading tensors that Torch7, PyTorch's predecessor in Lua, has saved in its binary format."""

import math
import os
import struct

import numpy as np

_DTYPES = {
    "Byte": np.dtype("u1"),
    "Char": np.dtype("i1"),
    "Short": np.dtype("<i2"),
    "Int": np.dtype("<i4"),
    "Long": np.dtype("<i8"),
    "Float": np.dtype("<f4"),
    "Double": np.dtype("<f8"),
}

_OBJECT = 4  # the type that precedes every object of a class
_MOST_AXES = 16


def load_torch7(path: str | os.PathLike[str]) -> np.ndarray:
    """The tensor in a Torch7 file, `torch.save(path, tensor)`; nothing in it is run.

    Read is what one tensor is made of, in the binary format of little-endian 64-bit machines: the
    tensor's sizes and strides, and the storage with its numbers. Tables, functions and whole
    networks are not.

    Args:
      path: The `.t7` file.

    Returns:
      The array in the layout and dtype of the file (convolution kernels are OIHW).

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file holds something else, is cut short or goes on, or its sizes contradict
        each other; so does a tensor that is not contiguous.

    Exact: every number is as it is in the file.

    >>> load_torch7("modelL1_F-1-weight.t7").shape  # doctest: +SKIP
    (32, 8, 7, 7)
    """
    with open(path, "rb") as file:
        reader = _Reader(file.read())
    try:
        tensor = _tensor(reader)
        if reader.position != len(reader.data):
            raise ValueError(f"{len(reader.data) - reader.position} bytes follow the tensor")
    except ValueError as error:
        raise ValueError(f"{path}: not a Torch7 tensor ({error})") from error
    return tensor


class _Reader:
    """Takes one value after the other from the bytes."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        left = len(self.data) - self.position
        if not 0 <= count <= left:
            raise ValueError(f"byte {self.position} needs {count} more, {left} are left")
        self.position += count
        return self.data[self.position - count : self.position]

    def int32(self) -> int:
        return struct.unpack("<i", self.take(4))[0]

    def int64s(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}q", self.take(8 * count))

    def object(self, kind: str) -> tuple[int, np.dtype]:
        """The number of an object and, from its class `torch.<Dtype><kind>`, its dtype."""
        found = self.int32()
        if found != _OBJECT:
            raise ValueError(f"a {kind.lower()} must be of type {_OBJECT}; got type {found}")
        number = self.int32()
        name = self.take(self.int32())
        if name.startswith(b"V "):  # the version; files before it have the class at once
            name = self.take(self.int32())
        for prefix, dtype in _DTYPES.items():
            if name == f"torch.{prefix}{kind}".encode():
                return number, dtype
        raise ValueError(f"class must be a torch.*{kind}; got {name[:40]!r}")


def _tensor(reader: _Reader) -> np.ndarray:
    number, dtype = reader.object("Tensor")
    axes = reader.int32()
    if not 0 <= axes <= _MOST_AXES:
        raise ValueError(f"a tensor must have 0 to {_MOST_AXES} axes; got {axes}")
    shape, strides = reader.int64s(axes), reader.int64s(axes)
    (offset,) = reader.int64s(1)
    storage_number, stored = reader.object("Storage")
    # An object is written once and from then on referred to by its number.
    if storage_number == number:
        raise ValueError(f"object {number} is a tensor and its own storage")
    if stored != dtype:
        raise ValueError(f"a tensor of {dtype} has a storage of {stored}")
    (count,) = reader.int64s(1)
    numbers = np.frombuffer(reader.take(count * dtype.itemsize), dtype)

    size = math.prod(shape) if axes else 0
    contiguous = tuple(math.prod(shape[axis + 1 :]) for axis in range(axes))
    # Offsets count from 1.
    if min(shape, default=0) < 0 or offset < 1 or offset - 1 + size > count:
        raise ValueError(f"a tensor of shape {shape} at {offset} does not fit {count} numbers")
    if size and any(
        n > 1 and found != expected
        for n, found, expected in zip(shape, strides, contiguous, strict=True)
    ):
        raise ValueError(f"strides must be {contiguous}; got {strides}")
    return numbers[offset - 1 : offset - 1 + size].reshape(shape if axes else (0,)).copy()
