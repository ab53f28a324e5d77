"""Reading the tensors of PyTorch checkpoints without running anything that is pickled in them."""

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

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


def load_pytorch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch checkpoint by name; pickled code is never run.

    Both a state dict and a checkpoint that pickles whole modules are read: modules become inert
    shells whose parameters and buffers are walked, so that names are those of the state dict
    (`model.0.conv.weight`). A checkpoint that keeps the network under `state_dict`,
    `model_state_dict`, `ema` or `model` is read from there.

    Args:
      path: The `.pt` or `.pth` file: a zip archive, or the older format of PyTorch before 1.6.

    Returns:
      Arrays by name, in the layout and dtype of the file (convolution kernels are OIHW).

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is not a complete checkpoint, or holds no tensors.

    Exact: every number is as it is in the file.

    >>> load_pytorch("yolov5n.pt")["model.0.conv.weight"].shape  # doctest: +SKIP
    (16, 3, 6, 6)
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        checkpoint = _read_zip(data) if zipfile.is_zipfile(io.BytesIO(data)) else _read_old(data)
        tensors = dict(_walk(_network(checkpoint), ""))
    except Exception as error:
        # Whatever a damaged or hostile pickle makes of the reader, the caller gets one line.
        raise ValueError(f"{path}: not a complete PyTorch checkpoint ({error})") from error
    if not tensors:
        raise ValueError(f"{path}: holds no tensors")
    return tensors


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
        self.storage, self.offset = storage, int(offset)
        self.shape, self.strides = tuple(map(int, shape)), tuple(map(int, strides))

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


def _rebuilt(function: Any, _: Any, arguments: tuple, *__: Any) -> Any:
    return function(*arguments) if isinstance(function, _Global) else _Inert()


_GLOBALS: dict[tuple[str, str], _Global] = {
    ("collections", "OrderedDict"): _Global(collections.OrderedDict),
    ("torch._tensor", "_rebuild_from_type_v2"): _Global(_rebuilt),
    ("torch._utils", "_rebuild_parameter"): _Global(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Global(_parameter),
    ("torch._utils", "_rebuild_tensor"): _Global(_Tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Global(_Tensor),
} | {("torch", name): _Global(dtype) for name, dtype in _DTYPES.items()}


class _Unpickler(pickle.Unpickler):
    """Resolves the few names that make up tensors; every other name is an inert class."""

    def __init__(self, file: io.BytesIO, storage: Callable[..., _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if module == "torch._utils" and name.startswith("_rebuild") and "tensor" in name:
            raise pickle.UnpicklingError(f"tensors made by {name} are not supported")
        return _Inert

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *rest = pid
        if kind != "storage" or dtype not in _GLOBALS.values() or any(rest):
            raise pickle.UnpicklingError(f"a persistent object {pid!r}")
        return self._storage(str(key), dtype.value, int(count))


def _read_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in names:
            raise ValueError("no data.pkl in the archive")
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise ValueError("only little-endian files are supported")
        storages: dict[str, _Storage] = {}

        def storage(key: str, dtype: np.dtype, count: int) -> _Storage:
            if key not in storages:
                storages[key] = _Storage(dtype, count, archive.read(names[f"data/{key}"]))
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(names["data.pkl"])), storage).load()


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
        found = storages[str(key)]
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


def _walk(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of nested dicts, lists and modules, by its dotted name."""
    if isinstance(value, _Tensor):
        yield name, value.array()
    elif isinstance(value, _Inert) and isinstance(value.state, Mapping):
        for part in ("_parameters", "_buffers", "_modules"):
            if isinstance(value.state.get(part), Mapping):
                yield from _walk(value.state[part], name)
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _walk(inner, f"{name}.{key}" if name else str(key))
