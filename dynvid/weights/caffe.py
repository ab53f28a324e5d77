"""Reading released Caffe weights without Caffe: its protobuf files are parsed by hand."""

import codecs
import math
import os
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.models.modules import from_nnx
from dynvid.models.ssd import CAFFE_LAYERS, SSD512
from dynvid.types import Params

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Protobuf's wire types; 3 and 4, groups, Caffe never had."""

_FLOAT, _DOUBLE = np.dtype("<f4"), np.dtype("<f8")

_MAX_AXES = 32  # Caffe's own limit for a blob

# Field numbers of caffe.proto.
_NET_LAYERS = {100: (1, 7), 2: (4, 6)}
"""NetParameter: `layer` and, before 2014, `layers`; in each of them where name and blobs are."""
_BLOB_LEGACY = (1, 2, 3, 4)  # num, channels, height, width
_BLOB_DATA, _BLOB_SHAPE, _BLOB_DOUBLE = 5, 7, 8
_SHAPE_DIM = 1


def load_caffe(path: str | os.PathLike[str]) -> dict[str, tuple[np.ndarray, ...]]:
    """The weights of a Caffe network by layer name, in the order of the file.

    Args:
      path: The `.caffemodel` file, of today's layers (`layer`) or of those before 2014 (`layers`).

    Returns:
      The blobs of every layer that has any: `(kernel, bias)` of a convolution, the kernel OIHW.
      They are float32, or float64 where Caffe saved doubles, and of the shape in the file: a bias
      is `(O,)`, in old files `(1, 1, 1, O)`.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is damaged, incomplete, not a Caffe network or without weights; two
        layers with weights have the same name.

    Exact: every number is as it is in the file.

    >>> kernel, bias = load_caffe("VGG_VOC0712_SSD_512x512.caffemodel")["conv1_1"]  # doctest: +SKIP
    >>> kernel.shape, bias.shape  # doctest: +SKIP
    ((64, 3, 3, 3), (64,))
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return _network(data)
    except ValueError as error:
        reason = _other_format(data) or error
        raise ValueError(f"{path}: not a complete Caffe model ({reason})") from error


def load_ssd512(
    path: str | os.PathLike[str],
) -> tuple[Callable[[Params, jax.Array], tuple[jax.Array, jax.Array]], Params]:
    """The network of a released SSD512 model and its weights.

    Args:
      path: The `.caffemodel` file; how many classes it was trained on follows from its shapes.

    Returns:
      `(fn, params)`: `fn(params, images)` takes images `(S, 512, 512, 3)`, floating, as
      `dynvid.models.ssd.ssd_preprocess` makes them of frames: BGR of 0..255 less (104, 117, 123).
      It returns what `SSD512` does: locations `(S, 24564, 4)` and confidences `(S, 24564, C)`,
      before the softmax. `params` is as `from_nnx(SSD512(C))` gives it, kernels HWIO.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is not a complete Caffe model, or of another network: all layers that
        are missing, unknown or of another shape are named.

    Exact where the file holds float32, as the released ones do; doubles are rounded to it.

    >>> fn, params = load_ssd512("VGG_VOC0712_SSD_512x512.caffemodel")  # doctest: +SKIP
    >>> locations, confidences = jax.jit(fn)(params, ssd_preprocess(frames))  # doctest: +SKIP
    """
    layers = load_caffe(path)
    classes = _ssd_classes(layers)
    ssd512, shapes = from_nnx(nnx.eval_shape(lambda: SSD512(classes=classes, rngs=nnx.Rngs(0))))
    variables: dict[tuple, Any] = dict(nnx.to_flat_state(shapes))
    problems = [f"{_quoted(name)}: no layer of it" for name in layers if name not in CAFFE_LAYERS]
    for name, place in CAFFE_LAYERS.items():
        parts = ("scale",) if (*place, "scale") in variables else ("kernel", "bias")
        expected = [_caffe_shape(variables[*place, part].shape) for part in parts]
        found = layers.get(name)
        if found is None:
            problems.append(f"{name}: missing")
        elif [_without_ones(blob.shape) for blob in found] != expected:
            shapes = " and ".join(str(blob.shape) for blob in found)
            problems.append(f"{name}: expected {' and '.join(map(str, expected))}, found {shapes}")
        else:
            for part, shape, blob in zip(parts, expected, found, strict=True):
                array = blob.reshape(shape).astype(np.float32, copy=False)
                array = array.transpose(2, 3, 1, 0) if part == "kernel" else array
                variables[*place, part] = jnp.asarray(array)
    if problems:
        raise ValueError(
            f"{path}: not the weights of SSD512 with {classes} classes ({'; '.join(problems)})"
        )

    return ssd512, nnx.from_flat_state(variables)


def _ssd_classes(layers: Mapping[str, tuple[np.ndarray, ...]]) -> int:
    """What most heads agree on: a box has 4 locations and as many confidences as classes."""
    found = []
    for name in CAFFE_LAYERS:
        if name.endswith("_mbox_conf"):
            heads = layers.get(name), layers.get(name.replace("_conf", "_loc"))
            outputs = [blobs[0].shape[0] for blobs in heads if blobs and blobs[0].ndim == 4]
            if len(outputs) == 2 and not 4 * outputs[0] % outputs[1]:
                found.append(4 * outputs[0] // outputs[1])
    return statistics.mode(found) if found else 21


def _caffe_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """OIHW where it is HWIO here."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a bias where an old file has `(1, 1, 1, O)`."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


class _Cursor:
    """Reads the fields of one message; what is announced is checked before it is taken."""

    def __init__(self, data: bytes, start: int, end: int, where: str):
        self.data, self.position, self.end, self.where = data, start, end, where

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.where}, byte {self.position}: {what}")

    def varint(self) -> int:
        """An unsigned number of at most 64 bits, seven in a byte, the lowest first."""
        value = 0
        for k, byte in enumerate(self.data[self.position : min(self.end, self.position + 10)]):
            value |= (byte & 0x7F) << (7 * k)
            if byte < 0x80:
                if value >> 64:
                    break
                self.position += k + 1
                return value
        cut = self.end - self.position < 10
        raise self.error("the data ends within a number" if cut else "a number beyond 64 bits")

    def field(self) -> tuple[int, int]:
        """The next field's number and wire type."""
        tag = self.varint()
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            raise self.error(f"no field has number {number} and wire type {wire}")
        return number, wire

    def take(self, count: int) -> tuple[int, int]:
        """Where the next `count` bytes start and end."""
        start = self.position
        if count > self.end - start:
            raise self.error(f"{count} bytes are announced and {self.end - start} are left")
        self.position += count
        return start, self.position

    def span(self, wire: int) -> tuple[int, int]:
        """Where the content of a field of type `bytes`, a string or a message lies."""
        if wire != _BYTES:
            raise self.error(f"wire type {wire} where a length was expected")
        return self.take(self.varint())

    def skip(self, wire: int) -> None:
        if wire == _VARINT:
            self.varint()
        elif wire == _BYTES:
            self.span(wire)
        else:
            self.take(4 if wire == _FIXED32 else 8)

    def integers(self, wire: int) -> list[int]:
        """Numbers of a repeated field, packed or not; not more than a shape has."""
        if wire == _VARINT:
            return [_signed(self.varint())]
        start, end = self.span(wire)
        packed = _Cursor(self.data, start, end, self.where)
        found = []
        while packed.position < packed.end and len(found) <= _MAX_AXES:
            found.append(_signed(packed.varint()))
        return found

    def floats(self, number: int, wire: int, dtype: np.dtype, values: bytearray) -> None:
        """Appends the bytes of a repeated field, packed or every number with its own tag."""
        width, fixed = dtype.itemsize, _FIXED32 if dtype == _FLOAT else _FIXED64
        if wire == _BYTES:
            start, end = self.span(wire)
            if (end - start) % width:
                raise self.error(f"{end - start} bytes are no whole number of {dtype.name}")
            values += memoryview(self.data)[start:end]
            return
        if wire != fixed:
            raise self.error(f"wire type {wire} where {dtype.name} was expected")
        start, end = self.take(width)
        values += self.data[start:end]
        # Numbers with tags of their own follow in a row, millions of them: as many as there are
        # at a time, but not looking much further than the row goes.
        tag, reach = number << 3 | wire, 1
        while count := min(reach, (self.end - self.position) // (width + 1)):
            size = count * (width + 1)
            rows = np.frombuffer(self.data, np.uint8, size, self.position).reshape(count, -1)
            row = int(np.argmin(np.append(rows[:, 0] == tag, False)))
            values += rows[:row, 1:].tobytes()
            self.position += row * (width + 1)
            if row < reach:
                break
            reach *= 2


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}...")


def _signed(value: int) -> int:
    return value - (value >> 63 << 64)


def _network(data: bytes) -> dict[str, tuple[np.ndarray, ...]]:
    cursor = _Cursor(data, 0, len(data), "the network")
    layers = {}
    while cursor.position < cursor.end:
        number, wire = cursor.field()
        if number not in _NET_LAYERS:
            cursor.skip(wire)
            continue
        start, end = cursor.span(wire)
        layer = _Cursor(data, start, end, f"the layer at byte {start}")
        name, blobs = _layer(layer, *_NET_LAYERS[number])
        if name in layers:
            raise layer.error(f"a second layer {_quoted(name)} with weights")
        if blobs:
            layers[name] = blobs
    if not layers:
        raise ValueError("no layer with weights")
    return layers


def _layer(
    cursor: _Cursor, name_field: int, blobs_field: int
) -> tuple[str, tuple[np.ndarray, ...]]:
    name, spans = b"", []
    while cursor.position < cursor.end:
        number, wire = cursor.field()
        if number == name_field:
            start, end = cursor.span(wire)
            name = cursor.data[start:end]
        elif number == blobs_field:
            spans.append(cursor.span(wire))
        else:
            cursor.skip(wire)
    if not spans:
        return "", ()
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise cursor.error(f"its name is not text ({error})") from error
    if not text:
        raise cursor.error("it has weights and no name")
    blobs = []
    for k, (start, end) in enumerate(spans):
        where = f"layer {_quoted(text)}, blob {k}"
        blobs.append(_blob(_Cursor(cursor.data, start, end, where)))
    return text, tuple(blobs)


def _blob(cursor: _Cursor) -> np.ndarray:
    floats, doubles = bytearray(), bytearray()
    shape: list[int] = []
    legacy: dict[int, int] = {}
    while cursor.position < cursor.end:
        number, wire = cursor.field()
        if number == _BLOB_DATA:
            cursor.floats(number, wire, _FLOAT, floats)
        elif number == _BLOB_DOUBLE:
            cursor.floats(number, wire, _DOUBLE, doubles)
        elif number == _BLOB_SHAPE:
            start, end = cursor.span(wire)
            _extend_shape(_Cursor(cursor.data, start, end, cursor.where), shape)
        elif number in _BLOB_LEGACY and wire == _VARINT:
            legacy[number] = _signed(cursor.varint())
        else:
            cursor.skip(wire)
    # As Caffe does: doubles and the old dimensions count where there are any.
    values = np.frombuffer(doubles, _DOUBLE) if doubles else np.frombuffer(floats, _FLOAT)
    dims = tuple(legacy.get(field, 0) for field in _BLOB_LEGACY) if legacy else tuple(shape)
    if len(dims) > _MAX_AXES or any(not 0 < size < 1 << 31 for size in dims):
        raise cursor.error(f"no weights have the shape {dims}")
    if math.prod(dims) != values.size:
        raise cursor.error(f"{values.size} numbers do not make the shape {dims}")
    return values.reshape(dims)


def _extend_shape(cursor: _Cursor, shape: list[int]) -> None:
    while cursor.position < cursor.end and len(shape) <= _MAX_AXES:
        number, wire = cursor.field()
        if number == _SHAPE_DIM:
            shape += cursor.integers(wire)
        else:
            cursor.skip(wire)


def _other_format(data: bytes) -> str | None:
    """What a file is that is no Caffe model, where that can be told."""
    if not data:
        return "it is empty"
    if data.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, the file itself is still to be fetched: git lfs pull"
    if data.startswith(b"\x89HDF\r\n\x1a\n"):
        return "it is HDF5, as Caffe saves with snapshot_format: HDF5, which is not supported"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:4096])
    except UnicodeDecodeError:
        return None
    if all(character.isprintable() or character in "\t\n\r\f" for character in text):
        return "it is text, like a prototxt, which describes a network and holds no weights"
    return None
