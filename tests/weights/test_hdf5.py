"""HDF5 files: written by hand from the specification, cut short, and a published network."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.models.lrcn import CLASS_NAMES, FRAMES, lrcn_start, lrcn_step
from dynvid.weights.hdf5 import load_hdf5
from dynvid.weights.lrcn import load_lrcn
from tests.data import data_path

PUBLISHED = "lrcn_ucf50/LRCN_model.h5"


def message(kind, body):
    body += b"\0" * (-len(body) % 8)
    return struct.pack("<HHBxxx", kind, len(body), 0) + body


def header(*messages):
    body = b"".join(messages)
    return struct.pack("<BxHIIxxxx", 1, len(messages), 1, len(body)) + body


def written(path, arrays, *, layout=1, kind=None, filters=False):
    """A file with a group `g` of contiguous arrays, in the order of their names."""
    data = bytearray(96)

    def put(block):
        data.extend(b"\0" * (-len(data) % 8))
        place = len(data)
        data.extend(block)
        return place

    def group(members):
        names, offsets = b"\0" * 8, []
        for name in members:
            offsets.append(len(names))
            names += name.encode() + b"\0"
        at = put(names)
        heap = put(struct.pack("<4sB3xQQQ", b"HEAP", 0, len(names), 0xFFFFFFFFFFFFFFFF, at))
        entries = b"".join(
            struct.pack("<QQI20x", offset, place, 0)
            for offset, place in zip(offsets, members.values(), strict=True)
        )
        node = put(struct.pack("<4sBBH", b"SNOD", 1, 0, len(members)) + entries)
        undefined = 2**64 - 1
        tree = put(struct.pack("<4sBBHQQQQQ", b"TREE", 0, 0, 1, undefined, undefined, 0, node, 0))
        return put(header(message(0x11, struct.pack("<QQ", tree, heap))))

    members = {}
    for name, array in arrays.items():
        start = put(array.tobytes())
        shape = struct.pack("<BBB5x", 1, array.ndim, 0) + struct.pack(
            f"<{array.ndim}Q", *array.shape
        )
        big = array.dtype.byteorder == ">"
        code = {"f": 1, "i": 0, "u": 0}[array.dtype.kind] if kind is None else kind
        flags = int(big) | (8 if array.dtype.kind == "i" else 0)
        numbers = struct.pack("<BBBBI12x", 0x10 | code, flags, 0, 0, array.dtype.itemsize)
        place = struct.pack("<BBQQ", 3, layout, start, array.nbytes)
        parts = [message(0x01, shape), message(0x03, numbers), message(0x08, place)]
        if filters:
            parts.append(message(0x0B, b"\2\0"))
        members[name] = put(header(*parts))
    root = group({"g": group(members)})
    undefined = 2**64 - 1
    data[:96] = struct.pack(
        "<8sBBBBBBBBHHIQQQQQQI20x", b"\x89HDF\r\n\x1a\n", 0, 0, 0, 0, 0, 8, 8, 0, 4, 16, 0, 0,
        undefined, len(data), undefined, 0, root, 0,
    )  # fmt: skip
    path.write_bytes(bytes(data))
    return path


ARRAYS = {
    "a": np.arange(6, dtype="<f4").reshape(2, 3),
    "b": np.arange(3, dtype=">f8"),
    "c": np.array(-5, "<i8"),
    "d": np.arange(200, 204, dtype="u1"),
}


def test_arrays_come_as_they_were_written(tmp_path):
    found = load_hdf5(written(tmp_path / "x.h5", ARRAYS))
    assert sorted(found) == ["g/a", "g/b", "g/c", "g/d"]
    for name, array in ARRAYS.items():
        assert found[f"g/{name}"].dtype == array.dtype
        np.testing.assert_array_equal(found[f"g/{name}"], array)


def test_what_is_no_number_is_left_out(tmp_path):
    assert load_hdf5(written(tmp_path / "x.h5", ARRAYS, kind=3)) == {}


def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path):
    path = written(tmp_path / "x.h5", ARRAYS)
    data = path.read_bytes()
    refused = 0
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        try:
            found = load_hdf5(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: cannot be read as HDF5")  # noqa: PT017
            refused += 1
        else:  # what is missing is padding
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(found[f"g/{name}"], array)
    assert refused >= len(data) // 7 - 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layout": 2}, "g/a is not stored in one piece"), ({"filters": True}, "g/a is compressed")],
)
def test_what_is_not_read_is_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_hdf5(written(tmp_path / "x.h5", ARRAYS, **options))


def test_what_is_no_lrcn_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold four convolutions, an LSTM and a classifier"):
        load_lrcn(written(tmp_path / "x.h5", ARRAYS))


def test_the_published_network_is_as_large_as_its_description():
    params = load_lrcn(data_path(PUBLISHED))
    shapes = [layer["kernel"].shape for layer in params["convs"]]
    assert shapes == [(3, 3, 3, 16), (3, 3, 16, 32), (3, 3, 32, 64), (3, 3, 64, 64)]
    assert params["lstm"]["kernel"].shape == (64, 4 * 32)
    assert params["dense"]["bias"].shape == (len(CLASS_NAMES),)
    # Keras starts with a forget gate of 1 and the others at 0: they are still near.
    forget = params["lstm"]["bias"].reshape(4, 32).mean(1)
    assert int(jnp.argmax(forget)) == 1


def test_it_knows_a_horse_race_from_tai_chi():
    from dynvid.video.reader import VideoSource

    params = load_lrcn(data_path(PUBLISHED))
    source = data_path("lrcn_ucf50/Test_Video.mp4")
    frames = np.stack(list(VideoSource(str(source))))
    for begin, name in ((300, "HorseRace"), (800, "TaiChi")):
        clip = frames[begin : begin + FRAMES].astype(np.float32) / 255
        clip = jax.image.resize(clip, (FRAMES, 64, 64, 3), "linear", antialias=False)
        _, logits = jax.lax.scan(
            lambda h, x: lrcn_step(params, h, x[None]), lrcn_start(params, 1), clip
        )
        assert CLASS_NAMES[int(logits[-1, 0].argmax())] == name
