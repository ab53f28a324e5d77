"""Checkpoints written by hand, as torch writes them, benign and hostile."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.weights.pytorch import load_pytorch
from tests.data import data_path

STORAGES = {
    "float16": "HalfStorage", "float32": "FloatStorage", "float64": "DoubleStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int32": "IntStorage",
    "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip


@pytest.fixture
def torch(monkeypatch):
    """Stand-ins for the names that torch's pickles refer to; only the writer needs them."""
    modules = {}
    for name in ("torch", "torch._utils", "torch.nn", "models"):
        modules[name] = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, modules[name])

    def define(module, name, kind=type):
        item = type(name, (), {}) if kind is type else types.FunctionType(kind.__code__, {}, name)
        item.__module__, item.__qualname__ = module, name
        setattr(modules[module], name, item)
        return item

    for storage in STORAGES.values():
        define("torch", storage)
    for name in (
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_parameter",
        "_rebuild_tensor_v3",
    ):
        define("torch._utils", name, lambda *_: None)
    define("torch.nn", "Conv2d")
    define("models", "Model")
    return types.SimpleNamespace(**{m.replace(".", "_"): v for m, v in modules.items()})


class Storage:
    def __init__(self, kind, key, count, *, legacy=False):
        self.pid = ("storage", kind, key, "cpu", count) + ((None,) if legacy else ())


class Reduced:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None


def dumps(value):
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def tensor(torch, key, array, *, offset=0, shape=None, strides=None, legacy=False):
    """The pickled form of a view of storage `key`, which holds `array`."""
    kind = getattr(torch.torch, STORAGES[array.dtype.name])
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = [s // array.itemsize for s in array.strides]
    storage = Storage(kind, key, array.size, legacy=legacy)
    rebuild = torch.torch__utils._rebuild_tensor_v2
    return Reduced(
        rebuild, storage, offset, tuple(shape), tuple(strides), False, collections.OrderedDict()
    )


def write_zip(path, value, storages, *, byteorder=b"little"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(value))
        archive.writestr("archive/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", b"3\n")


def module(torch, kind, *, parameters=(), buffers=(), modules=()):
    made = getattr(torch.torch_nn if kind == "Conv2d" else torch.models, kind)()
    made.__dict__.update(
        training=False, hook={"a", "b"}, _parameters=collections.OrderedDict(parameters),
        _buffers=collections.OrderedDict(buffers), _modules=collections.OrderedDict(modules),
    )  # fmt: skip
    return made


@pytest.mark.parametrize("dtype", STORAGES)
def test_every_kind_of_number(torch, dtype, tmp_path):
    kind = jnp.bfloat16.dtype if dtype == "bfloat16" else np.dtype(dtype)
    array = np.array([[0, 1, 2], [3, 100, 7]]).astype(kind)
    state = collections.OrderedDict({"layer.weight": tensor(torch, "0", array)})
    write_zip(tmp_path / "m.pt", state, {"0": array})
    found = load_pytorch(tmp_path / "m.pt")
    assert list(found) == ["layer.weight"]
    assert found["layer.weight"].dtype == kind
    np.testing.assert_array_equal(found["layer.weight"], array)


def test_views_with_offsets_and_strides(torch, tmp_path):
    data = np.arange(12, dtype=np.float32)
    state = {
        "part": tensor(torch, "0", data, offset=2, shape=(2, 3), strides=(4, 1)),
        "turned": tensor(torch, "0", data, offset=0, shape=(4, 3), strides=(1, 4)),
        "repeated": tensor(torch, "0", data, offset=5, shape=(2, 2), strides=(0, 1)),
        "scalar": tensor(torch, "0", data, offset=7, shape=(), strides=()),
        "empty": tensor(torch, "0", data, offset=0, shape=(0, 3), strides=(3, 1)),
    }
    write_zip(tmp_path / "m.pt", state, {"0": data})
    found = load_pytorch(tmp_path / "m.pt")
    grid = data.reshape(3, 4)
    np.testing.assert_array_equal(found["part"], [[2, 3, 4], [6, 7, 8]])
    np.testing.assert_array_equal(found["turned"], grid.T)
    np.testing.assert_array_equal(found["repeated"], [[5, 6], [5, 6]])
    assert found["scalar"] == 7
    assert found["empty"].shape == (0, 3)
    found["turned"][0, 0] = 99  # every array is the caller's own
    assert found["part"].max() == 8


def test_modules_give_the_names_of_their_state_dict(torch, tmp_path):
    weight, mean = np.ones((2, 1, 3, 3), np.float16), np.arange(2, dtype=np.float16)
    parameter = Reduced(torch.torch__utils._rebuild_parameter, tensor(torch, "0", weight), True, {})
    conv = module(torch, "Conv2d", parameters={"weight": parameter, "bias": None}.items(),
                  buffers={"mean": tensor(torch, "1", mean)}.items())  # fmt: skip
    inner = module(torch, "Model", modules={"0": conv}.items())
    outer = module(torch, "Model", modules={"model": inner}.items())
    checkpoint = {"epoch": 3, "ema": None, "model": outer, "optimizer": {"x": [mean.sum().item()]}}
    write_zip(tmp_path / "m.pt", checkpoint, {"0": weight, "1": mean})
    found = load_pytorch(tmp_path / "m.pt")
    assert list(found) == ["model.0.weight", "model.0.mean"]
    np.testing.assert_array_equal(found["model.0.weight"], weight)


def test_the_format_before_zip(torch, tmp_path):
    weight = np.arange(6, dtype=np.float32)
    state = collections.OrderedDict({
        "a": tensor(torch, "7", weight, shape=(2, 3), strides=(3, 1), legacy=True),
        "b": tensor(torch, "7", weight, offset=4, shape=(2,), strides=(1,), legacy=True),
    })  # fmt: skip
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, state, ["7"]]
    data = b"".join(dumps(p) for p in parts) + struct.pack("<q", weight.size) + weight.tobytes()
    (tmp_path / "m.pth").write_bytes(data)
    found = load_pytorch(tmp_path / "m.pth")
    np.testing.assert_array_equal(found["a"], weight.reshape(2, 3))
    np.testing.assert_array_equal(found["b"], [4, 5])
    for kept in (len(data) - 1, len(data) // 2, 20, 0):
        (tmp_path / "cut.pth").write_bytes(data[:kept])
        with pytest.raises(ValueError, match="not a complete PyTorch checkpoint"):
            load_pytorch(tmp_path / "cut.pth")


def test_pickled_code_is_not_run(torch, tmp_path):
    witness = tmp_path / "witness"
    array = np.ones(3, np.float32)
    command = f"touch {witness}"
    hostile = {
        "system": Reduced(os.system, command),
        "eval": Reduced(eval, f"open({str(witness)!r}, 'w')"),
        "nested": [Reduced(getattr, Reduced(__import__, "os"), "system")],
        "weight": tensor(torch, "0", array),
    }
    write_zip(tmp_path / "m.pt", hostile, {"0": array})
    pickle.loads(dumps({"system": Reduced(os.system, command)}))
    assert witness.exists()  # the same pickle does run where nobody stops it
    witness.unlink()
    found = load_pytorch(tmp_path / "m.pt")
    assert not witness.exists()
    assert list(found) == ["weight"]


def test_a_pickle_cannot_change_the_reader(torch, tmp_path):
    array = np.ones(3, np.float32)
    good = {"weight": tensor(torch, "0", array)}
    write_zip(tmp_path / "good.pt", good, {"0": array})
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        # BUILD on the global itself, with attributes to set.
        attack = b"\x80\x02ctorch._utils\n" + name.encode() + b"\nN}X\x05\x00\x00\x00valueNs\x86b."
        with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
            archive.writestr("archive/data.pkl", attack)
        with pytest.raises(ValueError, match=r"bad\.pt"):
            load_pytorch(tmp_path / "bad.pt")
        np.testing.assert_array_equal(load_pytorch(tmp_path / "good.pt")["weight"], array)


def test_damaged_files_give_one_clear_error(torch, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_pytorch(tmp_path / "missing.pt")
    array = np.ones((4, 4), np.float32)
    write_zip(tmp_path / "m.pt", {"weight": tensor(torch, "0", array)}, {"0": array})
    whole = (tmp_path / "m.pt").read_bytes()
    for kept in (0, 1, 60, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"cut.pt: not a complete PyTorch checkpoint"):
            load_pytorch(tmp_path / "cut.pt")
    write_zip(tmp_path / "short.pt", {"weight": tensor(torch, "0", array)}, {"0": array[:2]})
    with pytest.raises(ValueError, match="storage of 16 float32 is not whole"):
        load_pytorch(tmp_path / "short.pt")
    write_zip(tmp_path / "lost.pt", {"weight": tensor(torch, "0", array)}, {})
    with pytest.raises(ValueError, match="not a complete PyTorch checkpoint"):
        load_pytorch(tmp_path / "lost.pt")
    for shape, strides in (((5, 4), (4, 1)), ((4, 4), (4, -1)), ((4, 4), (4,))):
        far = {"weight": tensor(torch, "0", array, shape=shape, strides=strides)}
        write_zip(tmp_path / "far.pt", far, {"0": array})
        with pytest.raises(ValueError, match="not a complete PyTorch checkpoint"):
            load_pytorch(tmp_path / "far.pt")
    write_zip(tmp_path / "big.pt", {}, {}, byteorder=b"big")
    with pytest.raises(ValueError, match="little-endian"):
        load_pytorch(tmp_path / "big.pt")
    write_zip(tmp_path / "none.pt", {"epoch": 3}, {})
    with pytest.raises(ValueError, match="holds no tensors"):
        load_pytorch(tmp_path / "none.pt")
    new = {"weight": Reduced(torch.torch__utils._rebuild_tensor_v3, 1)}
    write_zip(tmp_path / "new.pt", new, {})
    with pytest.raises(ValueError, match="_rebuild_tensor_v3 are not supported"):
        load_pytorch(tmp_path / "new.pt")


def doubled(opening, closing, times):
    """A pickle of something that holds twice what holds twice what ...: 2^times in few bytes."""
    # (memo 0 is the innermost; each further one is built of two of the one before)
    data = b"\x80\x02" + opening + closing + b"q\x00"
    for n in range(times):
        data += b"0" + opening + b"h" + bytes([n]) + b"h" + bytes([n]) + closing
        data += b"q" + bytes([n + 1])
    return data


HOSTILE = {
    # What it is, and the pickle.
    "lists of lists": (doubled(b"(", b"l", 60) + b".", "it holds itself, or more than a network"),
    "a key that hashes for ever": (
        doubled(b"(", b"t", 60) + b"0}h\x3cNs.", "keys that are no names",
    ),
    "a set of it": (
        doubled(b"(", b"t", 60).replace(b"\x80\x02", b"\x80\x04") + b"0\x8f(h\x3c\x90.",
        "keys that are no names",
    ),
    "its name": (doubled(b"(", b"t", 60) + b"Q.", "not a complete PyTorch checkpoint"),
    "a list that holds itself": (b"\x80\x02]q\x00h\x00a.", "it holds itself"),
    "an index of 2^31": (b"\x80\x02]r\xff\xff\xff\x7f.", "holds no tensors"),
    "a buffer of 2^40 bytes": (
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".", "not a complete",
    ),
    "a long number": (b"\x80\x02L" + b"9" * 100_000 + b"L\n.", "not a complete"),
    "many opcodes": (b"\x80\x02" + b"N0" * 600_000 + b"N.", "more than 1,048,576 opcodes"),
    "a method replaced": (
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb.", "holds no tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_that_ask_for_too_much(name, tmp_path):
    data, message = HOSTILE[name]
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with pytest.raises(ValueError, match=message) as info:
        load_pytorch(tmp_path / "m.pt")
    assert len(str(info.value)) < 300


def test_files_that_ask_for_more_memory_than_they_have_numbers(torch, tmp_path):
    array = np.zeros(1 << 20, np.float32)
    views = {f"{n}": tensor(torch, "0", array, shape=(1 << 19,), strides=(1,)) for n in range(200)}
    write_zip(tmp_path / "views.pt", views, {"0": array})
    with pytest.raises(ValueError, match="its tensors have 104,857,600 numbers in all, the limit"):
        load_pytorch(tmp_path / "views.pt")
    wide = {"w": tensor(torch, "0", array[:1], shape=(1 << 17, 1 << 17), strides=(0, 0))}
    write_zip(tmp_path / "wide.pt", wide, {"0": array[:1]})
    with pytest.raises(ValueError, match="its tensors have 17,179,869,184 numbers"):
        load_pytorch(tmp_path / "wide.pt")
    axes = {"w": tensor(torch, "0", array[:1], shape=(1,) * 40, strides=(1,) * 40)}
    write_zip(tmp_path / "axes.pt", axes, {"0": array[:1]})
    with pytest.raises(ValueError, match="a tensor of 40 axes"):
        load_pytorch(tmp_path / "axes.pt")
    far = {"w": tensor(torch, "0", array[:1], shape=(1 << 70,), strides=(1,))}
    write_zip(tmp_path / "far.pt", far, {"0": array[:1]})
    with pytest.raises(ValueError, match="a size that is no number, or a very large one"):
        load_pytorch(tmp_path / "far.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dumps({"w": tensor(torch, "0", array)}))
        archive.writestr("archive/data/0", array.tobytes())
    with pytest.raises(ValueError, match="it unzips to more than 20 times its size"):
        load_pytorch(tmp_path / "bomb.pt")


def test_published_checkpoints():
    found = load_pytorch(data_path("weights/yolov5n/yolov5n.pt"))
    assert found["model.0.conv.weight"].shape == (16, 3, 6, 6)
    assert found["model.0.conv.weight"].dtype == np.float16
    assert found["model.24.anchors"].shape == (3, 3, 2)
    trained = [v.size for k, v in found.items() if k.endswith((".weight", ".bias"))]
    assert sum(trained) == 1_872_157  # the published parameter count
    found = load_pytorch(data_path("weights/espnet/espnet_p_2_q_8_camvid.pth"))
    assert found["encoder.level1.conv.weight"].shape == (16, 3, 3, 3)
