"""Reading the tensors of PyTorch checkpoints without running anything that is pickled in them."""

# The unpickler that is written in Python has no stubs.
# pyright: reportAttributeAccessIssue=false

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from dynvid.errors import one_line
from dynvid.types import Limits

_DTYPES = {
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "BoolStorage": np.dtype(np.bool_),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "ShortStorage": np.dtype(np.int16),
}

_WRAPPERS = ("state_dict", "model_state_dict", "ema", "model")
"""Keys under which training scripts save the network, beside optimiser and counters."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # opens files of PyTorch before 1.6

_MOST_OPCODES = 1 << 20  # of one pickle, and of what is walked of it: large networks have 10^5
_MOST_DEPTH = 64  # of lists, dicts and modules in each other
_MOST_AXES = 16
_MOST_SAID = 300  # characters of a message, which may quote the file
_MOST_INTEGER = 1 << 62
_MOST_UNZIPPED = 20  # times as large as the file; torch does not compress at all


def load_pytorch(
    path: str | os.PathLike[str], *, limits: Limits | None = None
) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch checkpoint by name; pickled code is never run.

    Both a state dict and a checkpoint that pickles whole modules are read: modules become inert
    shells whose parameters and buffers are walked, so that names are those of the state dict
    (`model.0.conv.weight`). A checkpoint that keeps the network under `state_dict`,
    `model_state_dict`, `ema` or `model` is read from there.

    Args:
      path: The `.pt` or `.pth` file: a zip archive, or the older format of PyTorch before 1.6.
      limits: How many numbers the tensors may have together beyond those that the file has room
        for (`limits.constants`); the usual ones where None.

    Returns:
      Arrays by name, in the layout and dtype of the file (convolution kernels are OIHW).

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is not a complete checkpoint, holds no tensors, or asks for more time or
        memory than a checkpoint takes.

    Exact: every number is as it is in the file.

    >>> load_pytorch("yolov5n.pt")["model.0.conv.weight"].shape  # doctest: +SKIP
    (16, 3, 6, 6)
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        checkpoint = _read_zip(data) if zipfile.is_zipfile(io.BytesIO(data)) else _read_old(data)
        found = dict(_Walk().tensors(_network(checkpoint), ""))
        most = (limits or Limits()).constants + len(data)
        if (numbers := sum(math.prod(view.shape) for view in found.values())) > most:
            raise ValueError(f"its tensors have {numbers:,} numbers in all, the limit is {most:,}")
        tensors = {name: view.array() for name, view in found.items()}
    except Exception as error:
        # Whatever a damaged or hostile pickle makes of the reader, the caller gets one line.
        said = one_line(error)[:_MOST_SAID]
        raise ValueError(f"{path}: not a complete PyTorch checkpoint ({said})") from error
    if not tensors:
        raise ValueError(f"{path}: holds no tensors")
    return tensors


def _integer(value: Any) -> int:
    """A whole number of a size that something may have; anything else is refused, and not shown."""
    if not isinstance(value, int) or not -_MOST_INTEGER < value < _MOST_INTEGER:
        raise ValueError("a size that is no number, or a very large one")
    return value


class _Storage:
    """A run of numbers that tensors are views of."""

    def __init__(self, dtype: np.dtype, count: int, data: bytes | None = None):
        self.dtype, self.count, self.data = dtype, count, data

    def array(self) -> np.ndarray:
        if self.data is None or len(self.data) != self.count * self.dtype.itemsize:
            raise ValueError(f"a storage of {self.count} {self.dtype} is not whole")
        return np.frombuffer(self.data, self.dtype)


class _Tensor:
    """A view that is made once all storages are read: in the old format they come last."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any):
        if max(len(shape), len(strides)) > _MOST_AXES:
            raise ValueError(f"a tensor of {len(shape)} axes")
        self.storage, self.offset = storage, _integer(offset)
        self.shape, self.strides = tuple(map(_integer, shape)), tuple(map(_integer, strides))

    def array(self) -> np.ndarray:
        if not isinstance(self.storage, _Storage) or len(self.shape) != len(self.strides):
            raise ValueError("a tensor without its storage")
        if min((self.offset, *self.shape, *self.strides)) < 0:
            raise ValueError(f"a tensor of shape {self.shape} and strides {self.strides}")
        data = self.storage.array()
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((size - 1) * stride for size, stride in steps)
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, data.dtype)
        if last >= data.size:
            raise ValueError(f"a tensor of shape {self.shape} reaches beyond its storage")
        view = np.lib.stride_tricks.as_strided(
            data[self.offset :], self.shape, [stride * data.itemsize for stride in self.strides]
        )
        return view.copy()


class _Inert:
    """What every other pickled object becomes: it takes anything and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, *_: Any) -> None:
        pass

    extend = add = append


class _Global:
    """A name that may be called but, unlike a function or class, not changed by a pickle."""

    def __init__(self, value: Any):
        self.value = value

    def __call__(self, *arguments: Any) -> Any:
        return self.value(*arguments)

    def __setstate__(self, state: Any) -> None:
        pass


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _ordered(items: Any = ()) -> collections.OrderedDict:
    pairs = [(key, value) for key, value in items]
    _check_names(key for key, _ in pairs)
    return collections.OrderedDict(pairs)


def _rebuilt(function: Any, _: Any, arguments: tuple, *__: Any) -> Any:
    return function(*arguments) if isinstance(function, _Global) else _Inert()


_GLOBALS: dict[tuple[str, str], _Global] = {
    ("collections", "OrderedDict"): _Global(_ordered),
    ("torch._tensor", "_rebuild_from_type_v2"): _Global(_rebuilt),
    ("torch._utils", "_rebuild_parameter"): _Global(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Global(_parameter),
    ("torch._utils", "_rebuild_tensor"): _Global(_Tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Global(_Tensor),
} | {("torch", name): _Global(dtype) for name, dtype in _DTYPES.items()}


def _check_names(keys: Iterable[Any]) -> None:
    """Refuses keys that may take time to hash: tuples of tuples of tuples take for ever."""
    plain = (str, int, float, bytes, type(None), type, _Global, _Inert)
    for key in keys:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, plain) for part in parts):
            raise pickle.UnpicklingError("keys that are no names")


class _Opcodes(dict):
    """What each opcode does, for a limited number of them."""

    left = _MOST_OPCODES

    def __getitem__(self, opcode: int) -> Callable[[Any], None]:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"more than {_MOST_OPCODES:,} opcodes")
        return super().__getitem__(opcode)


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Resolves the few names that make up tensors; every other name is an inert class.

    Unlike the unpickler in C it allocates nothing for an index or a length that the file only
    states; what it does is limited, and what is built of it cannot change what was there before.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, storage: Callable[..., _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self.dispatch = _Opcodes(self.opcodes)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if module == "torch._utils" and name.startswith("_rebuild") and "tensor" in name:
            raise pickle.UnpicklingError(f"tensors made by {name} are not supported")
        return _Inert

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *rest = pid
        storage = isinstance(dtype, _Global) and isinstance(dtype.value, np.dtype)
        if kind != "storage" or not storage or not isinstance(key, str | int) or any(rest):
            raise pickle.UnpicklingError("a persistent object that is no storage")
        return self._storage(str(key), dtype.value, _integer(count))

    # What is built from the stack, with keys that are looked at first.

    def _items(self) -> None:
        items = self.pop_mark()
        _check_names(items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][key] = value

    def _item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _check_names([key])
        self.stack[-1][key] = value

    def _dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        _check_names(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _members(self) -> None:
        members = self.pop_mark()
        _check_names(members)
        for member in members:
            self.stack[-1].add(member)

    def _frozen(self) -> None:
        members = self.pop_mark()
        _check_names(members)
        self.stack.append(frozenset(members))

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Inert):
            self.stack[-1].state = state

    opcodes: ClassVar = {
        opcode: load
        for opcode, load in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
        # Those of buffers allocate what a length states.
        if bytes([opcode]) not in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
    } | {
        pickle.SETITEM[0]: _item,
        pickle.SETITEMS[0]: _items,
        pickle.DICT[0]: _dict,
        pickle.ADDITEMS[0]: _members,
        pickle.FROZENSET[0]: _frozen,
        pickle.BUILD[0]: _build,
    }


def _read_zip(data: bytes) -> Any:
    left = _MOST_UNZIPPED * len(data)

    def read(archive: zipfile.ZipFile, name: str) -> bytes:
        nonlocal left
        left -= archive.getinfo(name).file_size
        if left < 0:
            raise ValueError(f"it unzips to more than {_MOST_UNZIPPED} times its size")
        return archive.read(name)

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in names:
            raise ValueError("no data.pkl in the archive")
        if "byteorder" in names and read(archive, names["byteorder"]) != b"little":
            raise ValueError("only little-endian files are supported")
        storages: dict[str, _Storage] = {}

        def storage(key: str, dtype: np.dtype, count: int) -> _Storage:
            if key not in storages:
                storages[key] = _Storage(dtype, count, read(archive, names[f"data/{key}"]))
            return storages[key]

        return _Unpickler(io.BytesIO(read(archive, names["data.pkl"])), storage).load()


def _read_old(data: bytes) -> Any:
    file = io.BytesIO(data)
    storages: dict[str, _Storage] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, count))

    def load() -> Any:
        return _Unpickler(file, storage).load()

    if load() != _LEGACY_MAGIC:
        raise ValueError("neither a zip archive nor PyTorch's older format")
    load()  # the protocol's version
    if not load()["little_endian"]:
        raise ValueError("only little-endian files are supported")
    checkpoint = load()
    for key in load():
        found = storages[str(key) if isinstance(key, int) else key]
        if int.from_bytes(file.read(8), "little") != found.count:
            raise ValueError(f"storage {key} is not where it should be")
        found.data = file.read(found.count * found.dtype.itemsize)
    return checkpoint


def _network(checkpoint: Any) -> Any:
    if isinstance(checkpoint, Mapping):
        for key in _WRAPPERS:
            if isinstance(checkpoint.get(key), Mapping | _Inert):
                return checkpoint[key]
    return checkpoint


class _Walk:
    """A walk through nested dicts, lists and modules, which may hold each other over and over."""

    def __init__(self):
        self._left = _MOST_OPCODES

    def tensors(self, value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, _Tensor]]:
        """Every tensor by its dotted name."""
        self._left -= 1
        if self._left < 0 or depth > _MOST_DEPTH:
            raise ValueError("it holds itself, or more than a network does")
        if isinstance(value, _Tensor):
            yield name, value
        elif isinstance(value, _Inert) and isinstance(value.state, dict):
            for part in ("_parameters", "_buffers", "_modules"):
                if isinstance(value.state.get(part), dict):
                    yield from self.tensors(value.state[part], name, depth + 1)
        elif isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in items:
                yield from self.tensors(inner, f"{name}.{key}" if name else str(key), depth + 1)
