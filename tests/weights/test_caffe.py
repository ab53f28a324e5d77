"""Caffe models written by hand, whole and damaged."""

import itertools
import math
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from dynvid.models.modules import from_nnx
from dynvid.models.ssd import SSD512
from dynvid.weights.caffe import load_caffe, load_ssd512

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def number(field, value):
    return varint(field << 3 | VARINT) + varint(value)


def content(field, data):
    return varint(field << 3 | BYTES) + varint(len(data)) + data


def floats(field, array, *, packed=True):
    if packed:
        return content(field, array.tobytes())
    tag = varint(field << 3 | (FIXED32 if array.itemsize == 4 else FIXED64))
    return b"".join(tag + value.tobytes() for value in array.ravel())


def blob(array, *, packed=True, legacy=False):
    """A BlobProto: the shape first, as Caffe writes it."""
    if legacy:
        dims = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(number(k + 1, size) for k, size in enumerate(dims))
    elif packed:
        shape = content(7, content(1, b"".join(map(varint, array.shape))))
    else:
        shape = content(7, b"".join(number(1, size) for size in array.shape))
    return shape + floats(8 if array.dtype == np.float64 else 5, array, packed=packed)


def layer(name, *blobs, old=False):
    """A layer with other fields around what is read, as in a real file."""
    parts = [content(2, b"below"), content(3, b"above")] if old else []
    parts.append(content(4 if old else 1, name.encode()))
    parts.append(number(5, 4) if old else content(2, b"Convolution"))
    parts += [content(6 if old else 7, data) for data in blobs]
    parts.append(content(10 if old else 106, number(1, 64) + number(4, 3)))
    return content(2 if old else 100, b"".join(parts))


def network(*layers):
    return content(1, b"a network") + content(3, b"data") + b"".join(layers)


def loaded(tmp_path, data):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(data)
    return load_caffe(path)


def refused(tmp_path, data):
    """The message with which a file is refused."""
    with pytest.raises(ValueError, match="not a complete Caffe model") as caught:
        loaded(tmp_path, data)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'net.caffemodel'}: ")
    assert "\n" not in message
    assert len(message) < 600 + len(str(tmp_path))
    return message


def same(found, expected):
    assert list(found) == list(expected)
    for name, arrays in expected.items():
        assert len(found[name]) == len(arrays)
        for a, b in zip(found[name], arrays, strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert a.tobytes() == b.tobytes()  # to the bit: NaN, -0 and all


def bits(rng, *shape, dtype=np.float32):
    """Numbers of any bits at all."""
    return rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_come_back_to_the_bit(tmp_path, rng, old, packed, legacy, dtype):
    kernel, bias = bits(rng, 5, 3, 2, 3, dtype=dtype), bits(rng, 5, dtype=dtype)
    scale = bits(rng, 300, dtype=dtype)  # its length takes two bytes
    options = {"packed": packed, "legacy": legacy}
    data = network(
        layer("second", blob(kernel, **options), blob(bias, **options), old=old),
        layer("nothing", old=old),
        layer("a first, später", blob(scale, **options), old=old),
    )
    if legacy:
        bias, scale = bias.reshape(1, 1, 1, -1), scale.reshape(1, 1, 1, -1)
    same(loaded(tmp_path, data), {"second": (kernel, bias), "a first, später": (scale,)})


def test_both_generations_of_layers_in_one_file(tmp_path, rng):
    a, b = bits(rng, 3), bits(rng, 4)
    data = network(layer("a", blob(a)), layer("b", blob(b), old=True))
    same(loaded(tmp_path, data), {"a": (a,), "b": (b,)})


def test_one_number_without_a_shape_is_a_scalar(tmp_path):
    """So Caffe saves a scale that all channels share."""
    value = np.array(20, np.float32)
    same(loaded(tmp_path, network(layer("norm", blob(value)))), {"norm": (value,)})


def test_pieces_of_a_repeated_field_are_joined(tmp_path, rng):
    """Packed and not in any order, and a shape in two messages, as protobuf asks of readers."""
    values = bits(rng, 12)
    data = b"".join([
        floats(5, values[:3], packed=False),
        content(7, content(1, varint(3))),
        floats(5, values[3:4]),
        number(9999, 7),  # unknown fields are passed over
        floats(5, values[4:9], packed=False),
        floats(5, values[:0]),
        floats(5, values[9:10], packed=False),
        content(7, number(1, 4)),
        content(6, values.tobytes()),  # gradients
        floats(5, values[10:], packed=False),
    ])  # fmt: skip
    same(loaded(tmp_path, network(layer("a", data))), {"a": (values.reshape(3, 4),)})


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9, 1000])
def test_rows_of_single_numbers_end_where_their_tags_end(tmp_path, rng, count):
    """What follows looks like the tag elsewhere than where it should stand."""
    values = np.full(count, np.frombuffer(b"\x2d" * 4, np.float32)[0])
    data = floats(5, values, packed=False) + content(99, b"\x2d" * 50)
    shape = content(7, number(1, count))
    same(loaded(tmp_path, network(layer("a", data + shape))), {"a": (values,)})
    same(loaded(tmp_path, network(layer("a", shape + data[:-53]))), {"a": (values,)})


def test_doubles_and_old_dimensions_win_as_in_caffe(tmp_path, rng):
    singles, doubles = bits(rng, 6), bits(rng, 6, dtype=np.float64)
    data = blob(singles) + blob(doubles, legacy=True)
    same(loaded(tmp_path, network(layer("a", data))), {"a": (doubles.reshape(1, 1, 1, 6),)})


def test_arrays_do_not_share_memory(tmp_path, rng):
    data = network(layer("a", blob(bits(rng, 4)), blob(bits(rng, 4))))
    first, second = loaded(tmp_path, data)["a"]
    first[:] = 0
    assert second.any()


ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b'name: "VGG"\nlayer {\n  name: "conv1_1"\n}\n' * 200, "text, like a prototxt"),
        ("# Schichten, später\n".encode() * 500, "text, like a prototxt"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (network(), "no layer with weights"),
        (network(layer("a"), layer("b", old=True)), "no layer with weights"),
        (network(layer("a", blob(ONES)), layer("a", blob(ONES))), "a second layer 'a'"),
        (network(layer("a", blob(ONES)), layer("a", blob(ONES), old=True)), "a second layer 'a'"),
        (network(layer("", blob(ONES))), "no name"),
        (network(content(100, content(1, b"\xff") + content(7, blob(ONES)))), "not text"),
        (
            network(layer("a", blob(ONES), blob(ONES)[:-8] + b"\x2a\x04")),
            "layer 'a', blob 1, byte",
        ),
        (network(layer("x" * 10**5, blob(ONES), b"\x2a\x04")), "xxx..."),
        (
            network(layer("a", content(7, content(1, varint(5))) + floats(5, ONES))),
            "layer 'a', blob 0, byte 61: 4 numbers do not make the shape (5,)",
        ),
        (network(layer("a", floats(5, ONES))), "4 numbers do not make the shape ()"),
        (network(layer("a", b"")), "0 numbers do not make the shape ()"),
        (network(layer("a", content(7, content(1, varint(-4))) + floats(5, ONES))), "(-4,)"),
        (network(layer("a", content(7, content(1, b"\x00\x04")))), "shape (0, 4)"),
        (network(layer("a", number(4, 4) + floats(5, ONES))), "shape (0, 0, 0, 4)"),
        (network(layer("a", content(7, content(1, b"\x01" * 33)) + floats(5, ONES[:1]))), "(1, 1"),
        (network(layer("a", content(7, number(1, 1) * 33) + floats(5, ONES[:1]))), "(1, 1"),
        (
            network(layer("a", content(7, content(1, varint(2**62) * 9)))),
            "no weights have the shape",
        ),
        (network(layer("a", content(7, content(1, varint(2**30) * 30)))), "0 numbers do not make"),
        (network(layer("a", content(5, b"12345"))), "5 bytes are no whole number of float32"),
        (network(layer("a", content(8, b"12345"))), "5 bytes are no whole number of float64"),
        (network(layer("a", number(5, 1))), "wire type 0 where float32 was expected"),
        (network(layer("a", number(8, 1))), "wire type 0 where float64 was expected"),
        (network(layer("a", number(7, 1))), "wire type 0 where a length was expected"),
        (network(number(100, 1)), "wire type 0 where a length was expected"),
        (network() + b"\xa2\x06" + varint(2**40), "1099511627776 bytes are announced and 0 are"),
        (network() + b"\xa2\x06" + varint(2**63), "bytes are announced and 0 are"),
        (network() + b"\x28" + b"\xff" * 9 + b"\x01", "no layer with weights"),
        (network() + b"\x28" + b"\xff" * 9 + b"\x02", "a number beyond 64 bits"),
        (network() + b"\x28" + b"\x80" * 10**6, "a number beyond 64 bits"),
        (network() + b"\x28" + b"\x80" * 4, "the data ends within a number"),
        (network() + varint(2**32 << 3), "no field has number 4294967296"),
        (network() + b"\x00\x00", "no field has number 0 and wire type 0"),
        (network() + b"\x2b" * 10**5, "no field has number 5 and wire type 3"),
        (network() + b"\x2f", "no field has number 5 and wire type 7"),
        (network() + b"\x29\x00\x00", "8 bytes are announced and 2 are left"),
        (network() + b"\x2d\x00\x00", "4 bytes are announced and 2 are left"),
    ],
)
def test_bad_files_are_refused_with_one_clear_line(tmp_path, data, reason):
    assert reason in refused(tmp_path, data)


def test_a_missing_file_and_a_folder_are_the_plain_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_caffe(tmp_path / "missing.caffemodel")
    with pytest.raises(IsADirectoryError):
        load_caffe(tmp_path)


def small():
    rng = np.random.default_rng(1)
    return network(
        layer("conv1", blob(bits(rng, 2, 3, 1, 1)), blob(bits(rng, 2), packed=False)),
        layer("relu"),
        layer("conv2", blob(bits(rng, 2, dtype=np.float64), legacy=True), old=True),
        layer("norm", blob(bits(rng, 3, dtype=np.float64), packed=False), old=True),
    )


def survives(path, data):
    """A damaged file is read or refused with one line; returns what it gave."""
    path.write_bytes(data)
    try:
        found = load_caffe(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: not a complete Caffe model (")  # noqa: PT017
        return None
    for name, arrays in found.items():
        assert name
        assert arrays
    return found


def test_every_truncation_is_refused_or_loses_whole_layers(tmp_path):
    data, path = small(), tmp_path / "net.caffemodel"
    whole = survives(path, data)
    assert list(whole) == ["conv1", "conv2", "norm"]
    counts = []
    for length in range(len(data)):
        found = survives(path, data[:length])
        if found is not None:
            same(found, dict(itertools.islice(whole.items(), len(found))))
            counts.append(len(found))
    # Between two layers a cut cannot be seen: after conv1, after relu, after conv2.
    assert counts == [1, 1, 2]


def test_flipped_and_inserted_bytes_never_crash(tmp_path):
    rng = np.random.default_rng(2)
    data, path = small(), tmp_path / "net.caffemodel"
    read = 0
    for place, bit in itertools.product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        read += survives(path, bytes(damaged)) is not None
    for _ in range(3000):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        if rng.random() < 0.5:
            place = rng.integers(0, len(data))
            damaged[place:place] = rng.bytes(rng.integers(1, 12))
        read += survives(path, bytes(damaged)) is not None
    assert read > 1000  # most flips fall on numbers and names


@given(st.binary(max_size=60))
def test_random_bytes_never_crash(tmp_path_factory, data):
    survives(tmp_path_factory.getbasetemp() / "random.caffemodel", data)
    survives(tmp_path_factory.getbasetemp() / "random.caffemodel", content(100, data))
    survives(tmp_path_factory.getbasetemp() / "random.caffemodel", layer("a", data))


def protobuf_network():
    """The messages of caffe.proto that carry weights, made by protobuf's own library."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe_test.proto", package="caffe_test")

    def message(name, *fields):
        made = file.message_type.add(name=name)
        for field, place, kind, repeated in fields:
            options = {"type_name": f".caffe_test.{kind}"} if kind[0].isupper() else {}
            made.field.add(
                name=field,
                number=place,
                type=kinds.TYPE_MESSAGE if options else getattr(kinds, f"TYPE_{kind.upper()}"),
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                **options,
            )
            if repeated and kind in ("float", "double", "int64"):
                made.field[-1].options.packed = True

    message("Shape", ("dim", 1, "int64", True))
    message(
        "Blob", ("num", 1, "int32", False), ("channels", 2, "int32", False),
        ("height", 3, "int32", False), ("width", 4, "int32", False), ("data", 5, "float", True),
        ("shape", 7, "Shape", False), ("double_data", 8, "double", True),
    )  # fmt: skip
    message("Layer", ("name", 1, "bytes", False), ("blobs", 7, "Blob", True))
    message("V1Layer", ("name", 4, "bytes", False), ("blobs", 6, "Blob", True))
    message("Net", ("layers", 2, "V1Layer", True), ("layer", 100, "Layer", True))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe_test.Net"))


def by_protobuf(kind, data):
    net = kind.FromString(data)
    return {
        found.name.decode(): [
            np.array(b.double_data) if b.double_data else np.array(b.data, np.float32)
            for b in found.blobs
        ]
        for found in (*net.layers, *net.layer)
        if found.blobs
    }


def test_protobuf_itself_reads_the_same(tmp_path):
    """Whatever of the damaged files is read is what protobuf's library reads in them."""
    kind, rng = protobuf_network(), np.random.default_rng(3)
    data, path = small(), tmp_path / "net.caffemodel"
    read = 0
    for damage in range(1500):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), min(damage, 2)):
            damaged[place] = rng.integers(0, 256)
        found = survives(path, bytes(damaged))
        if found is None:
            continue
        read += 1
        expected = by_protobuf(kind, bytes(damaged))
        assert set(found) == set(expected)
        for name, arrays in expected.items():
            for a, b in zip(found[name], arrays, strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a.ravel(), b)
    assert read > 300


def test_unpacked_numbers_are_not_read_one_by_one(tmp_path):
    values = np.arange(2_000_000, dtype=np.float32)
    rows = np.zeros((len(values), 5), np.uint8)
    rows[:, 0] = 5 << 3 | FIXED32
    rows[:, 1:] = values.view(np.uint8).reshape(-1, 4)
    data = network(layer("a", content(7, number(1, len(values))) + rows.tobytes()))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(data)
    start = time.process_time()
    found = load_caffe(path)
    assert time.process_time() - start < 1  # a loop over them takes two seconds and more
    same(found, {"a": (values,)})


# The released SSD512's layers with weights, written out once more: name, kernel, outputs, inputs.
SSD512_LAYERS = [
    ("conv1_1", 3, 64, 3), ("conv1_2", 3, 64, 64),
    ("conv2_1", 3, 128, 64), ("conv2_2", 3, 128, 128),
    ("conv3_1", 3, 256, 128), ("conv3_2", 3, 256, 256), ("conv3_3", 3, 256, 256),
    ("conv4_1", 3, 512, 256), ("conv4_2", 3, 512, 512), ("conv4_3", 3, 512, 512),
    ("conv5_1", 3, 512, 512), ("conv5_2", 3, 512, 512), ("conv5_3", 3, 512, 512),
    ("fc6", 3, 1024, 512), ("fc7", 1, 1024, 1024),
    ("conv6_1", 1, 256, 1024), ("conv6_2", 3, 512, 256),
    ("conv7_1", 1, 128, 512), ("conv7_2", 3, 256, 128),
    ("conv8_1", 1, 128, 256), ("conv8_2", 3, 256, 128),
    ("conv9_1", 1, 128, 256), ("conv9_2", 3, 256, 128),
    ("conv10_1", 1, 128, 256), ("conv10_2", 4, 256, 128),
]  # fmt: skip
SSD512_HEADS = [  # source, boxes, inputs
    ("conv4_3_norm", 4, 512), ("fc7", 6, 1024), ("conv6_2", 6, 512), ("conv7_2", 6, 256),
    ("conv8_2", 6, 256), ("conv9_2", 4, 256), ("conv10_2", 4, 256),
]  # fmt: skip


def ssd_blobs(classes, fill):
    """Every layer's kernel (OIHW) and bias, or scale; `fill(*shape)` makes the numbers."""
    convolutions = list(SSD512_LAYERS)
    for source, boxes, inputs in SSD512_HEADS:
        convolutions += [
            (f"{source}_mbox_loc", 3, 4 * boxes, inputs),
            (f"{source}_mbox_conf", 3, classes * boxes, inputs),
        ]
    blobs = {name: (fill(o, i, k, k), fill(o)) for name, k, o, i in convolutions}
    return {**blobs, "conv4_3_norm": (fill(512),)}


def ssd_module(blobs, classes):
    """The module with these weights, set by hand, layer by layer."""
    module = nnx.eval_shape(lambda: SSD512(classes=classes, rngs=nnx.Rngs(0)))

    def put(conv, name):
        kernel, bias = blobs[name]
        assert conv.kernel.shape == (*kernel.shape[2:], kernel.shape[1], kernel.shape[0])
        conv.kernel = nnx.Param(jnp.asarray(np.moveaxis(kernel, (2, 3, 1, 0), (0, 1, 2, 3))))
        conv.bias = nnx.Param(jnp.asarray(bias))

    for i, group in enumerate(module.vgg.groups):
        for j, conv in enumerate(group):
            put(conv, f"conv{i + 1}_{j + 1}")
    put(module.fc6, "fc6")
    put(module.fc7, "fc7")
    for name, conv in module.extras.items():
        put(conv, name)
    for name in module.locations:
        put(module.locations[name], f"{name}_mbox_loc")
        put(module.confidences[name], f"{name}_mbox_conf")
    module.conv4_3_norm.scale = nnx.Param(jnp.asarray(blobs["conv4_3_norm"][0]))
    return module


@pytest.fixture(scope="module")
def ssd_file(tmp_path_factory):
    """A whole model of 21 classes, 109 MB, with other layers between those with weights."""
    rng = np.random.default_rng(4)

    def fill(*shape):
        fan_in = math.prod(shape[1:])
        return rng.standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** 0.5)

    blobs = ssd_blobs(21, fill)
    path = tmp_path_factory.mktemp("ssd") / "ssd512.caffemodel"
    with open(path, "wb") as file:
        file.write(network(layer("data")))
        for name, arrays in blobs.items():
            file.write(layer(name, *(blob(array) for array in arrays)))
            file.write(layer(f"{name}_relu"))
    yield path, blobs
    path.unlink()


def test_ssd512_is_the_module_with_these_weights(ssd_file):
    path, blobs = ssd_file
    start = time.process_time()
    fn, params = load_ssd512(path)
    jax.block_until_ready(params)
    assert time.process_time() - start < 2

    module = ssd_module(blobs, 21)
    dense, weights = from_nnx(module)
    chex.assert_trees_all_equal(params, weights)  # every weight in its place, to the bit
    images = jax.random.uniform(jax.random.key(0), (1, 512, 512, 3), minval=-120, maxval=150)
    expected = jax.jit(dense)(weights, images)
    found = jax.jit(fn)(params, images)
    assert [x.shape for x in found] == [(1, 24564, 4), (1, 24564, 21)]
    # The same operations on the same numbers in one process: nothing is left to round.
    chex.assert_trees_all_equal(found, expected)
    assert float(jnp.std(found[1])) > 0.01  # the weights keep the signal alive to the last source
    assert float(jnp.std(found[1][:, -4:])) > 0.01


def zeros(*shape):
    """A blob of zeros, of which a file takes as many bytes but no time to make."""
    return np.zeros(shape, np.float32)


def saved(path, blobs, *, old=()):
    with open(path, "wb") as file:
        for name, arrays in blobs.items():
            file.write(layer(name, *(blob(array, legacy=name in old) for array in arrays)))
    return path


def test_classes_come_from_the_shapes_and_old_dimensions_fit(tmp_path):
    blobs = ssd_blobs(3, zeros)
    bias = np.arange(64, dtype=np.float32)
    kernel = np.arange(64 * 3 * 9, dtype=np.float64).reshape(64, 3, 3, 3)
    blobs["conv1_1"] = (kernel, bias)
    path = saved(tmp_path / "net.caffemodel", blobs, old=("conv1_1", "conv4_3_norm"))
    fn, params = load_ssd512(path)
    images = jax.ShapeDtypeStruct((2, 512, 512, 3), jnp.float32)
    shapes = [x.shape for x in jax.eval_shape(fn, params, images)]
    assert shapes == [(2, 24564, 4), (2, 24564, 3)]
    first = params["vgg"]["groups"][0][0]
    assert first["kernel"][...].dtype == jnp.float32
    np.testing.assert_array_equal(first["kernel"][...][1, 2, 0, 5], kernel[5, 0, 1, 2])
    np.testing.assert_array_equal(first["bias"][...], bias)
    path.unlink()


def test_every_layer_that_does_not_fit_is_named(tmp_path):
    blobs = ssd_blobs(2, lambda *shape: np.zeros(shape if len(shape) == 1 else (shape[0], 1, 1, 1)))
    blobs |= {name: (zeros(*kernel), zeros(o)) for name, kernel, o in [
        ("conv1_1", (64, 3, 3, 3), 64),
        ("conv6_1", (256, 1024, 1, 1), 255),
        ("conv8_1", (128, 256, 1, 1), 128),
        ("conv10_2", (256, 128, 3, 3), 256),
    ]}  # fmt: skip
    blobs["conv8_1"] = blobs["conv8_1"][:1]
    blobs["conv4_3_norm"] = (zeros(),)
    blobs["conv10_2_mbox_conf"] = (zeros(20, 256, 3, 3), zeros(20))
    del blobs["fc7"], blobs["conv7_2_mbox_loc"]
    blobs["fc\n8"] = (zeros(1000, 1), zeros(1000))
    blobs["bn"] = ()
    with pytest.raises(ValueError, match="not the weights of SSD512 with 2 classes") as caught:
        load_ssd512(saved(tmp_path / "net.caffemodel", blobs))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'net.caffemodel'}: ")
    assert "\n" not in message
    named = message[message.index("(") + 1 : -1].split("; ")
    for problem in (
        r"'fc\n8': no layer of it",
        "fc7: missing",
        "conv7_2_mbox_loc: missing",
        "conv6_1: expected (256, 1024, 1, 1) and (256,), found (256, 1024, 1, 1) and (255,)",
        "conv8_1: expected (128, 256, 1, 1) and (128,), found (128, 256, 1, 1)",
        "conv10_2: expected (256, 128, 4, 4) and (256,), found (256, 128, 3, 3) and (256,)",
        "conv4_3_norm: expected (512,), found ()",
        "conv10_2_mbox_conf: expected (8, 256, 3, 3) and (8,), found (20, 256, 3, 3) and (20,)",
        "conv10_2_mbox_loc: expected (16, 256, 3, 3) and (16,), found (16, 1, 1, 1) and (16,)",
    ):
        assert problem in named
    assert len(named) == len(blobs)  # all but conv1_1 and bn, and two that are missing


@pytest.mark.parametrize(
    "blobs",
    [
        {"ip1": (zeros(3, 4), zeros(3))},
        {"fc7_mbox_conf": (zeros(42),)},
        {"fc7_mbox_conf": (zeros(),), "fc7_mbox_loc": (zeros(),)},
        {"fc7_mbox_conf": (zeros(8, 1),), "fc7_mbox_loc": (zeros(4, 1),)},
        {"fc7_mbox_conf": (zeros(2, 1, 1, 1),), "fc7_mbox_loc": (zeros(24, 1, 1, 1),)},
    ],
)
def test_a_file_of_another_network_is_refused(tmp_path, blobs):
    """Where its shapes do not tell the classes, those of Pascal VOC are expected."""
    with pytest.raises(ValueError, match=r"SSD512 with 21 classes \(.*conv1_1: missing; conv1_2: "):
        load_ssd512(saved(tmp_path / "net.caffemodel", blobs))


def test_a_damaged_file_is_refused_before_its_layers_are_looked_at(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(network(layer("conv1_1", blob(ONES)))[:-20])
    with pytest.raises(ValueError, match="not a complete Caffe model"):
        load_ssd512(path)
