"""Torch7 files written by hand, benign and hostile."""

import struct

import numpy as np
import pytest

from dynvid.weights.spynet import load_spynet
from dynvid.weights.torch7 import load_torch7
from tests.data import data_path

KINDS = {
    "Byte": "u1", "Char": "i1", "Short": "<i2", "Int": "<i4", "Long": "<i8",
    "Float": "<f4", "Double": "<f8",
}  # fmt: skip


def named(kind, number, *, version=b"V 1"):
    parts = [struct.pack("<ii", 4, number)]
    for text in (version, f"torch.{kind}".encode()) if version else (f"torch.{kind}".encode(),):
        parts += [struct.pack("<i", len(text)), text]
    return b"".join(parts)


def tensor(array, *, kind="Float", **changes):
    """The file of an array, with any part of it changed."""
    array = np.asarray(array, KINDS[kind])
    parts = {
        "head": named(f"{kind}Tensor", 1), "axes": array.ndim, "shape": array.shape,
        "strides": [s // array.itemsize for s in array.strides], "offset": 1,
        "storage": named(f"{kind}Storage", 2), "count": array.size, "data": array.tobytes(),
    } | changes  # fmt: skip
    return (
        parts["head"]
        + struct.pack("<i", parts["axes"])
        + b"".join(struct.pack("<q", n) for n in (*parts["shape"], *parts["strides"]))
        + struct.pack("<q", parts["offset"])
        + parts["storage"]
        + struct.pack("<q", parts["count"])
        + parts["data"]
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.t7"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number(path, kind):
    array = np.array([[0, 1, 2], [3, 100, 7]], KINDS[kind])
    path.write_bytes(tensor(array, kind=kind))
    found = load_torch7(path)
    assert found.dtype == np.dtype(KINDS[kind])
    np.testing.assert_array_equal(found, array)
    found[0, 0] = 1  # the caller's own


def test_offsets_old_versions_and_emptiness(path):
    numbers = np.arange(6, dtype=np.float32)
    cases = {
        # Offsets count from 1; a part of a storage is a tensor too.
        tensor(numbers, axes=2, shape=(2, 2), strides=(2, 1), offset=3): [[2, 3], [4, 5]],
        # The stride of an axis with one position says nothing.
        tensor(numbers[:3], axes=2, shape=(1, 3), strides=(77, 1)): [[0, 1, 2]],
        tensor([5.0], head=named("FloatTensor", 1, version=None)): [5],
        tensor([], axes=0, shape=(), strides=()): [],
        tensor([], axes=2, shape=(0, 3), strides=(3, 1)): np.zeros((0, 3)),
    }
    for data, expected in cases.items():
        path.write_bytes(data)
        np.testing.assert_array_equal(load_torch7(path), np.array(expected, np.float32))


def test_every_truncation_and_what_follows_is_an_error(path):
    whole = tensor(np.ones((2, 3)))
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"m.t7: not a Torch7 tensor"):
            load_torch7(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="1 bytes follow the tensor"):
        load_torch7(path)


ONES = np.ones((2, 3))
HUGE = 2**62


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": struct.pack("<i", 3)}, "a tensor must be of type 4; got type 3"),  # a table
        ({"head": struct.pack("<i", 6)}, "type 6"),  # a function: nothing is run
        ({"head": named("CudaTensor", 1)}, r"class must be a torch.\*Tensor; got b'torch.Cuda"),
        ({"head": named("FloatStorage", 1)}, "FloatStorage"),
        ({"head": struct.pack("<iii", 4, 1, -5)}, "needs -5 more"),
        ({"head": struct.pack("<iii", 4, 1, 2**31 - 1)}, "needs 2147483647 more"),
        ({"axes": -1}, "axes; got -1"),
        ({"axes": 2**31 - 1}, "axes; got 2147483647"),
        ({"shape": (HUGE, HUGE)}, "does not fit 6 numbers"),
        ({"shape": (2, 4), "strides": (4, 1)}, "does not fit 6 numbers"),
        ({"shape": (-2, -3)}, "does not fit"),
        ({"offset": 0}, "does not fit"),
        ({"offset": 2}, "does not fit"),
        ({"offset": -HUGE}, "does not fit"),
        ({"strides": (1, 2)}, r"strides must be \(3, 1\); got \(1, 2\)"),
        ({"strides": (0, 0)}, "strides must be"),
        ({"count": HUGE}, "needs 18446744073709551616 more"),
        ({"count": -6}, "needs -24 more"),
        ({"count": 7}, "needs 28 more"),
        ({"storage": named("FloatStorage", 1)}, "object 1 is a tensor and its own storage"),
        ({"storage": named("FloatTensor", 2)}, r"class must be a torch.\*Storage"),
        ({"storage": named("DoubleStorage", 2)}, "a tensor of float32 has a storage of float64"),
        ({"storage": struct.pack("<i", 0)}, "a storage must be of type 4; got type 0"),
    ],
)
def test_hostile_files(path, changes, message):
    path.write_bytes(tensor(ONES, **changes))
    with pytest.raises(ValueError, match=f"m.t7: not a Torch7 tensor .*{message}"):
        load_torch7(path)


def test_spynet_names_the_file_that_does_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"modelL1_F-1-weight.t7"):
        load_spynet(tmp_path)
    (tmp_path / "modelL1_C-1-weight.t7").write_bytes(tensor(np.ones((32, 8, 7, 5))))
    with pytest.raises(
        ValueError, match=r"L1_C-1-weight.t7: weight must have shape \(32, 8, 7, 7\)"
    ):
        load_spynet(tmp_path, model="C")


def test_published_weights_load():
    _, params = load_spynet(data_path("weights/spynet"))
    # Ranjan and Black, section 4.4: 240,050 parameters a level, 1,200,250 of the five they count.
    for level in params:
        assert sum(x.size for layer in level for x in layer.values()) == 240050
