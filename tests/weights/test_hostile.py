"""Files that are damaged or lie: one line, soon, and little memory. Nothing here is compiled."""

import itertools
import zipfile

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynvid.errors import UsageError
from dynvid.models.zoo import load_model
from dynvid.types import Limits
from dynvid.weights.onnx import load_onnx
from dynvid.weights.pytorch import load_pytorch

NODE = helper.make_node
SHAPE = (1, 3, 16, 16)


def i64(*values):
    return np.array(values, np.int64)


def save(path, nodes, output, *, shape=SHAPE, dtype=TensorProto.FLOAT, **constants):
    source = helper.make_tensor_value_info("x", dtype, shape)
    graph = helper.make_graph(
        nodes,
        "graph",
        [source],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def added(*nodes):
    """Nodes that make `c` of constants, and what reads it."""
    return [*nodes, NODE("ReduceSum", ["c"], ["z"], keepdims=0), NODE("Add", ["x", "z"], ["y"])]


def doubling(start, count, axis):
    names = [start, *(f"d{k}" for k in range(count - 1)), "c"]
    return [NODE("Concat", [a, a], [b], axis=axis) for a, b in itertools.pairwise(names)]


ONE = np.ones((1, 1), np.float32)
REFUSED_BY_THE_READER = {
    "constant": (added(NODE("ConstantOfShape", ["s"], ["c"])), {"s": i64(10**5, 10**5)}),
    "range": (
        added(NODE("Range", ["a", "b", "d"], ["r"]), NODE("Cast", ["r"], ["c"], to=1)),
        {"a": np.int64(0), "b": np.int64(10**10), "d": np.int64(1)},
    ),
    "tile": (added(NODE("Tile", ["k", "s"], ["c"])), {"k": ONE, "s": i64(10**5, 10**5)}),
    "expand": (added(NODE("Expand", ["k", "s"], ["c"])), {"k": ONE, "s": i64(10**5, 10**5)}),
    "pad": (added(NODE("Pad", ["k", "s"], ["c"])), {"k": ONE, "s": i64(0, 0, 10**5, 10**5)}),
    "doubling": (added(*doubling("k", 40, 0)), {"k": ONE}),
    "chain": (
        added(NODE("Tile", ["k", "s"], ["d0"]), *(
            NODE("Neg", [f"d{k}"], [f"d{k + 1}" if k < 39 else "c"]) for k in range(40)
        )),
        {"k": ONE, "s": i64(2000, 2000)},
    ),
    "cycle": ([NODE("Add", ["x", "y"], ["a"]), NODE("Relu", ["a"], ["y"])], {}),
    "order": ([NODE("Relu", ["a"], ["y"]), NODE("Relu", ["x"], ["a"])], {}),
    "twice": ([NODE("Relu", ["x"], ["y"]), NODE("Neg", ["x"], ["y"])], {}),
    "nowhere": ([NODE("Add", ["x", "q"], ["y"])], {}),
    "no output": ([NODE("Relu", ["x"], ["a"])], {}),
    "attribute": ([NODE("Relu", ["x"], ["y"], stride=1)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_BY_THE_READER)
def test_graphs_that_are_none_or_too_large(name, tmp_path):
    nodes, constants = REFUSED_BY_THE_READER[name]
    with pytest.raises(ValueError, match=r"m\.onnx: ") as info:
        load_onnx(save(tmp_path / "m.onnx", nodes, "y", **constants))
    assert "\n" not in str(info.value).strip()


def test_what_nobody_reads_is_not_computed_and_limits_can_be_raised(tmp_path):
    unused = NODE("ConstantOfShape", ["s"], ["c"])
    nodes = [unused, NODE("Relu", ["x"], ["y"])]
    fn, _ = load_onnx(save(tmp_path / "m.onnx", nodes, "y", s=i64(10**5, 10**5)))
    assert [node.op for node in fn.nodes] == ["Relu"]
    path = save(tmp_path / "n.onnx", added(unused), "y", s=i64(1000, 100))
    few = Limits(constants=50_000)
    with pytest.raises(ValueError, match="would make 100,000 numbers of constants, where 50,000"):
        load_onnx(path, limits=few)
    load_onnx(path, limits=few.times(4))


REFUSED_BY_THE_ESTIMATE = {
    "tile": ([NODE("Tile", ["x", "s"], ["y"])], {"s": i64(1, 1, 10**4, 10**5)}),
    "pad": ([NODE("Pad", ["x", "s"], ["y"])], {"s": i64(0, 0, 10**5, 0, 0, 0, 0, 10**5)}),
    "reflect": (
        [NODE("Pad", ["x", "s"], ["y"], mode="reflect")], {"s": i64(0, 0, 10**9, 1, 0, 0, 1, 1)},
    ),
    "resize": ([NODE("Resize", ["x", "", "s"], ["y"])], {"s": np.float32([1, 1, 1e5, 1e5])}),
    "linear": (
        [NODE("Resize", ["x", "", "s"], ["y"], mode="linear")],
        {"s": np.float32([1, 1, 1e5, 1e5])},
    ),
    "doubling": ([*doubling("x", 60, 1), NODE("Relu", ["c"], ["y"])], {}),
    "window": (
        [NODE("MaxPool", ["x"], ["y"], kernel_shape=[10**5] * 2, pads=[10**5 - 1] * 4)], {},
    ),
    "stride 0": ([NODE("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[0, 0])], {}),
    "stride 0 of a convolution": (
        [NODE("Conv", ["x", "k"], ["y"], strides=[0, 0])], {"k": np.ones((4, 3, 3, 3), np.float32)},
    ),
    "dilation": (
        [NODE("Conv", ["x", "k"], ["y"], dilations=[10**5] * 2, pads=[10**5] * 4)],
        {"k": np.ones((4, 3, 3, 3), np.float32)},
    ),
    "transposed": (
        [NODE("ConvTranspose", ["x", "k"], ["y"], strides=[10**5] * 2)],
        {"k": np.ones((3, 4, 3, 3), np.float32)},
    ),
    "normalisation": ([NODE("LRN", ["x"], ["y"], size=10**6 + 1)], {}),
    "negative": ([NODE("Reshape", ["x", "s"], ["y"])], {"s": i64(-2, -384)}),
    "block of 0": ([NODE("DepthToSpace", ["x"], ["y"], blocksize=0)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_BY_THE_ESTIMATE)
def test_operations_that_are_too_large_or_make_no_sense(name, tmp_path):
    nodes, constants = REFUSED_BY_THE_ESTIMATE[name]
    path = save(tmp_path / "m.onnx", nodes, "y", **constants)
    with pytest.raises(UsageError) as info:
        load_model(path, frame_size=(16, 16), task="none")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((1, 10), TensorProto.FLOAT, r"takes no images \(N, C, H, W\)"),
        (SHAPE, TensorProto.STRING, "has elements of type 8, which is no number"),
        ((1, 3, 10**5, 10**5), TensorProto.FLOAT, "30 billion numbers, where the limit is 0.268"),
    ],
)
def test_inputs_that_are_no_images(shape, dtype, words, tmp_path):
    op = "Relu" if dtype == TensorProto.FLOAT else "Identity"
    path = save(tmp_path / "m.onnx", [NODE(op, ["x"], ["y"])], "y", shape=shape, dtype=dtype)
    with pytest.raises(UsageError, match=words):
        load_model(path, frame_size=(16, 16), task="none")


def small_onnx(path):
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        NODE("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        NODE("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        NODE("Reshape", ["b", "s"], ["c"]),
        NODE("Softmax", ["c"], ["y"], axis=1),
    ]
    return save(path, nodes, "y", k=kernel, s=i64(1, 4, -1))


def mutations(data, count, *, seed):
    """The bytes with bits flipped, parts overwritten, taken out, repeated, and cut off."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at, size = int(rng.integers(len(changed))), int(rng.integers(1, 12))
            match rng.integers(6):
                case 0:
                    changed[at] ^= 1 << int(rng.integers(8))
                case 1:
                    changed[at : at + size] = rng.bytes(size)
                case 2:
                    del changed[at : at + size]
                case 3:
                    changed[at:at] = changed[at : at + size]
                case 4:
                    changed[at : at + 1] = rng.choice([b"\x00", b"\x7f", b"\xff"])
                case 5:
                    changed = changed[: max(at, 1)]
        yield bytes(changed)


def test_mutated_graphs_are_read_or_refused_in_one_line(tmp_path):
    data = small_onnx(tmp_path / "good.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    said = []
    for changed in mutations(data, 150, seed=1):
        path.write_bytes(changed)
        try:
            fn, params = load_onnx(path)
            if len(fn.shape) == 4 and None not in fn.frame_shape:
                frames = jax.ShapeDtypeStruct((1, *fn.frame_shape), fn.dtype)
                jax.eval_shape(fn, params, frames)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 50
    assert not any("\n" in text for text in said)


def test_mutated_checkpoints_are_read_or_refused_in_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "good.pt", "w") as archive:
        array = np.arange(12, dtype=np.float32)
        archive.writestr(
            "archive/data.pkl",
            b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07"
            b"\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00"
            b"\x00cpuq\x06K\x0ctq\x07QK\x00K\x03K\x04\x86q\x08K\x04K\x01\x86q\x09\x89)tq\nRq\x0bs.",
        )
        archive.writestr("archive/data/0", array.tobytes())
    data = (tmp_path / "good.pt").read_bytes()
    np.testing.assert_array_equal(load_pytorch(tmp_path / "good.pt")["w"], array.reshape(3, 4))
    said = []
    for changed in mutations(data, 300, seed=2):
        (tmp_path / "m.pt").write_bytes(changed)
        try:
            load_pytorch(tmp_path / "m.pt")
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 150
    assert max(map(len, said)) < 1000
