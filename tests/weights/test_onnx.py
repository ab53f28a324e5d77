"""Every operator against onnxruntime, on small graphs, with one and with three streams."""

import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynvid.weights.onnx import load_onnx
from tests.data import data_path

EPS = np.finfo(np.float32).eps
SHAPE = (1, 6, 9, 8)  # (N, C, H, W), all different


class Graph:
    """Collects nodes and constants by name, to be saved as an ONNX file."""

    def __init__(self, *, shape=SHAPE, opset=17, dtype=TensorProto.FLOAT):
        self.shape, self.opset, self.dtype = shape, opset, dtype
        self.nodes, self.constants = [], []

    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op, *inputs, outputs=1, **attributes):
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        inputs = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names if outputs > 1 else names[0]

    def save(self, path, *outputs):
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", self.dtype, self.shape)],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def integers(shape, seed=0, low=-8, high=9):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.float32)


def reals(shape, seed=0, low=-3.0, high=3.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def runtime(path, images):
    """onnxruntime's outputs, image by image: the graphs are exported for a batch of one."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: image[None]}) for image in images]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def compare(path, images, *, tolerance=0.0):
    """Both runtimes agree within `tolerance` times the output's scale (0: bit for bit)."""
    fn, params = load_onnx(path)
    for streams in (1, 3):
        given = np.concatenate([images, -images, images[..., ::-1]])[:streams]
        frames = given.transpose(0, 2, 3, 1) if given.ndim == 4 else given
        outputs = jax.tree.leaves(jax.jit(fn)(params, frames))
        references = runtime(path, given)
        assert len(outputs) == len(references)
        for output, reference in zip(outputs, references, strict=True):
            assert output.shape == reference.shape
            assert np.issubdtype(output.dtype, np.integer) == np.issubdtype(
                reference.dtype, np.integer
            )
            scale = np.abs(reference).max() if reference.size else 0
            np.testing.assert_allclose(output, reference, rtol=0, atol=tolerance * scale)


KERNEL = integers((4, 6, 3, 3), 1)
DEPTHWISE = integers((6, 1, 3, 3), 2)
BIAS = integers(4, 3)
UP = np.array([1, 1, 2, 3], np.float32)
ROI = np.zeros(0, np.float32)
I64 = np.int64


def one(op, *constants, opset=17, shape=SHAPE, **attributes):
    graph = Graph(opset=opset, shape=shape)
    return graph, graph.node(op, "x", *constants, **attributes)


EXACT = {
    "conv": lambda: one("Conv", KERNEL, BIAS, pads=[1, 1, 1, 1]),
    "conv_strided_uneven": lambda: one("Conv", KERNEL, pads=[0, 2, 1, 1], strides=[2, 3]),
    "conv_dilated": lambda: one("Conv", KERNEL, pads=[2, 2, 2, 2], dilations=[2, 2]),
    "conv_groups": lambda: one("Conv", integers((4, 3, 3, 3)), group=2),
    "conv_depthwise": lambda: one("Conv", DEPTHWISE, group=6, pads=[1] * 4),
    "conv_same_upper": lambda: one("Conv", KERNEL, auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv_same_lower": lambda: one("Conv", KERNEL, auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv_valid": lambda: one("Conv", KERNEL, auto_pad="VALID"),
    "conv_1x1": lambda: one("Conv", KERNEL[:, :, :1, :1], BIAS),
    "conv_one_output": lambda: one("Conv", KERNEL[:1], BIAS[:1]),
    "transposed": lambda: one("ConvTranspose", integers((6, 4, 3, 3)), BIAS, strides=[2, 2]),
    "transposed_padded": lambda: one(
        "ConvTranspose", integers((6, 4, 3, 3)), strides=[2, 3], pads=[1, 0, 0, 1],
        output_padding=[1, 0], dilations=[1, 2],
    ),
    "transposed_groups": lambda: one(
        "ConvTranspose", integers((6, 2, 3, 3)), strides=[2, 2], group=2
    ),
    "transposed_same": lambda: one(
        "ConvTranspose", integers((6, 4, 3, 3)), strides=[2, 2], auto_pad="SAME_UPPER"
    ),
    "transposed_shape": lambda: one(
        "ConvTranspose", integers((6, 4, 3, 3)), strides=[2, 2], output_shape=[18, 16]
    ),
    "relu": lambda: one("Relu"),
    "prelu": lambda: one("PRelu", integers((6, 1, 1))),
    "prelu_one": lambda: one("PRelu", np.array([2.0], np.float32)),
    "clip": lambda: one("Clip", np.float32(-2), np.float32(3)),
    "clip_low": lambda: one("Clip", np.float32(-2)),
    "clip_attributes": lambda: one("Clip", opset=6, min=0.0, max=6.0),
    "abs": lambda: one("Abs"),
    "neg": lambda: one("Neg"),
    "sign": lambda: one("Sign"),
    "add": lambda: one("Add", integers((6, 1, 1))),
    "add_vector": lambda: one("Add", integers(8)),
    "sub": lambda: one("Sub", integers((1, 6, 9, 1))),
    "mul": lambda: one("Mul", integers((9, 1))),
    "div": lambda: one("Div", np.float32(2)),
    "pow": lambda: one("Pow", np.float32(2)),
    "min": lambda: one("Min", integers((6, 1, 1)), np.float32(5)),
    "max": lambda: one("Max", integers((6, 1, 1))),
    "sum": lambda: one("Sum", integers((6, 1, 1)), integers((6, 1, 1), 7)),
    "batch_normalization": lambda: one(
        "BatchNormalization", integers(6), integers(6, 4), integers(6, 5),
        np.array([1, 4, 16, 1, 4, 16], np.float32), epsilon=0.0,
    ),
    "max_pool": lambda: one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "max_pool_ceil": lambda: one("MaxPool", kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1),
    "max_pool_ceil_padded": lambda: one(
        "MaxPool", kernel_shape=[2, 2], strides=[3, 3], pads=[1] * 4, ceil_mode=1
    ),
    "max_pool_dilated": lambda: one("MaxPool", kernel_shape=[2, 3], dilations=[3, 2]),
    "max_pool_same": lambda: one(
        "MaxPool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"
    ),
    "average_pool": lambda: one("AveragePool", kernel_shape=[2, 4], strides=[2, 2]),
    "average_pool_include": lambda: one(
        "AveragePool", kernel_shape=[2, 2], pads=[1] * 4, count_include_pad=1
    ),
    "global_max_pool": lambda: one("GlobalMaxPool"),
    "split": lambda: split_graph(np.array([1, 3, 2], I64)),
    "split_even": lambda: split_graph(None),
    "split_attribute": lambda: split_graph(None, opset=11, split=[1, 3, 2]),
    "slice": lambda: one(
        "Slice", np.array([1, -5], I64), np.array([2**62, -1], I64),
        np.array([3, 2], I64), np.array([2, 3], I64),
    ),
    "slice_backwards": lambda: one(
        "Slice", np.array([-1], I64), np.array([-(2**62)], I64), np.array([2], I64),
        np.array([-2], I64),
    ),
    "slice_plain": lambda: one("Slice", np.array([0, 2], I64), np.array([2**40, 5], I64)),
    "slice_attributes": lambda: one("Slice", opset=9, starts=[1], ends=[3], axes=[1]),
    "pad": lambda: one("Pad", np.array([0, 0, 1, 2, 0, 1, 0, 3], I64), np.float32(7)),
    "pad_attributes": lambda: one("Pad", opset=9, pads=[0, 0, 1, 2, 0, 0, 0, 3], value=2.0),
    "pad_axes": lambda: one(
        "Pad", np.array([1, 2], I64), np.float32(7), np.array([2], I64), opset=18
    ),
    "pad_crop": lambda: one("Pad", np.array([0, 0, -1, 2, 0, 0, 0, -3], I64)),
    "pad_reflect": lambda: one("Pad", np.array([0, 0, 1, 2, 0, 0, 3, 3], I64), mode="reflect"),
    "pad_edge": lambda: one("Pad", np.array([0, 0, 1, 2, 0, 0, 3, 3], I64), mode="edge"),
    "reshape": lambda: one("Reshape", np.array([1, 6, -1], I64)),
    "reshape_keep": lambda: one("Reshape", np.array([0, 2, 3, 9, -1], I64)),
    "reshape_mix": lambda: one("Reshape", np.array([1, 4, 12, 9], I64)),
    "flatten": lambda: one("Flatten"),
    "transpose": lambda: one("Transpose", perm=[0, 2, 3, 1]),
    "transpose_spatial": lambda: one("Transpose", perm=[0, 3, 1, 2]),
    "unsqueeze": lambda: one("Unsqueeze", np.array([1, -1], I64)),
    "unsqueeze_attributes": lambda: one("Unsqueeze", opset=11, axes=[2]),
    "gather": lambda: one("Gather", np.array([4, 0, -1], I64), axis=1),
    "gather_scalar": lambda: one("Gather", np.array(-2, I64), axis=1),
    "gather_strided": lambda: one("Gather", np.array([1, 3, 5], I64), axis=2),
    "gather_matrix": lambda: one("Gather", np.array([[1, 3], [5, 0]], I64), axis=3),
    "expand": lambda: expand_graph(),
    "tile": lambda: one("Tile", np.array([1, 2, 1, 3], I64)),
    "depth_to_space": lambda: one("DepthToSpace", blocksize=2, shape=(1, 12, 3, 5)),
    "depth_to_space_crd": lambda: one(
        "DepthToSpace", blocksize=2, mode="CRD", shape=(1, 12, 3, 5)
    ),
    "space_to_depth": lambda: one("SpaceToDepth", blocksize=2, shape=(1, 3, 6, 8)),
    "reduce_sum": lambda: one("ReduceSum", np.array([2, 3], I64), keepdims=0),
    "reduce_max": lambda: one("ReduceMax", axes=[1], keepdims=1),
    "reduce_min": lambda: one("ReduceMin", axes=[-1], keepdims=0),
    "reduce_max_input": lambda: one("ReduceMax", np.array([1], I64), opset=18),
    "arg_max": lambda: one("ArgMax", axis=1),
    "arg_max_dropped": lambda: one("ArgMax", axis=1, keepdims=0),
    "identity": lambda: one("Identity"),
    "dropout": lambda: one("Dropout"),
    "cast": lambda: one("Cast", to=TensorProto.INT64),
    "nearest": lambda: one("Resize", ROI, UP, mode="nearest", nearest_mode="floor",
                           coordinate_transformation_mode="asymmetric"),
    "nearest_default": lambda: one("Resize", ROI, UP),
    "nearest_down": lambda: one("Resize", ROI, np.array([1, 1, 1 / 3, 0.5], np.float32)),
    "nearest_sizes": lambda: one(
        "Resize", ROI, np.zeros(0, np.float32), np.array([1, 6, 13, 5], I64), nearest_mode="ceil"
    ),
    "nearest_uneven": lambda: one(
        "Resize", ROI, np.array([1, 1, 1.7, 2.3], np.float32),
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ),
    "nearest_ceil": lambda: one("Resize", ROI, UP, nearest_mode="round_prefer_ceil"),
    "nearest_opset10": lambda: one("Resize", UP, opset=10),
    "upsample": lambda: one("Upsample", UP, opset=9),
    "linear_half_pixel": lambda: one(
        "Resize", ROI, np.array([1, 1, 2, 2], np.float32), mode="linear"
    ),
    "linear_asymmetric": lambda: one(
        "Resize", ROI, np.array([1, 1, 4, 4], np.float32), mode="linear",
        coordinate_transformation_mode="asymmetric",
    ),
    "linear_align": lambda: one(
        "Resize", ROI, np.zeros(0, np.float32), np.array([1, 6, 17, 15], I64), mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    "linear_sizes": lambda: one(
        "Resize", ROI, np.zeros(0, np.float32), np.array([1, 6, 18, 4], I64), mode="linear",
        coordinate_transformation_mode="pytorch_half_pixel",
    ),
    "mod": lambda: one("Mod", np.float32(3), fmod=1),
    "cumulative_sum": lambda: one("CumSum", np.array(2, I64)),
    "cumulative_sum_exclusive": lambda: one("CumSum", np.array(-1, I64), exclusive=1, reverse=1),
    "top_k": lambda: top_k_graph(axis=1),
    "top_k_smallest": lambda: top_k_graph(largest=0),
    "gather_elements": lambda: one(
        "GatherElements", np.array([[[[0, -1]], [[3, 2]]]], I64), axis=3, shape=(1, 2, 1, 5)
    ),
    "gather_nd": lambda: one("GatherND", np.array([[[0, 1, 2], [0, -1, 3]]], I64)),
    "scatter_nd": lambda: one(
        "ScatterND", np.array([[0, 1, 2], [0, 5, 3]], I64), integers((2, 8))
    ),
    "scatter_nd_add": lambda: one(
        "ScatterND", np.array([[0, 1]], I64), integers((1, 9, 8)), opset=18, reduction="add"
    ),
    "einsum": lambda: one("Einsum", integers((8, 5)), equation="nchw,wv->nhcv"),
    "quantize": lambda: one("QuantizeLinear", np.float32(2), np.int8(3)),
    "quantize_by_channel": lambda: one(
        "QuantizeLinear", np.float32([1, 2, 4, 1, 2, 4]), np.zeros(6, np.uint8), axis=1
    ),
    "dequantize": lambda: quantized_graph(),
    "quantized_convolution": lambda: quantized_convolution_graph(),
    "grid_sample_nearest": lambda: one(
        "GridSample", reals((1, 5, 7, 2), 4, -1.2, 1.2), mode="nearest"
    ),
    "matmul": lambda: one("MatMul", integers((8, 5))),
    "gemm": lambda: gemm_graph(transB=1),
    "gemm_scaled": lambda: gemm_graph(alpha=2.0, beta=3.0),
}  # fmt: skip


def split_graph(sizes, *, opset=13, **attributes):
    graph = Graph(opset=opset)
    given = () if sizes is None else (sizes,)
    return graph, *graph.node("Split", "x", *given, outputs=3, axis=1, **attributes)


def top_k_graph(**attributes):
    graph = Graph()
    return graph, *graph.node("TopK", "x", np.array([3], I64), outputs=2, **attributes)


def quantized_graph():
    graph = Graph()
    levels = graph.node("QuantizeLinear", "x", np.float32(1), np.uint8(9))
    return graph, graph.node("DequantizeLinear", levels, np.float32(0.5), np.uint8(9))


def quantized_convolution_graph():
    graph = Graph()
    levels = graph.node("QuantizeLinear", "x", np.float32(1), np.uint8(8))
    kernel = integers((4, 6, 3, 3), 1, -3, 4).astype(np.int8)
    scale = np.float32([0.5, 1, 2, 4])
    return graph, graph.node(
        "QLinearConv", levels, np.float32(1), np.uint8(8), kernel, scale, np.zeros(4, np.int8),
        np.float32(8), np.uint8(100), np.arange(4, dtype=np.int32), pads=[1, 1, 1, 1],
    )  # fmt: skip


def expand_graph():
    graph = Graph()
    pooled = graph.node("GlobalMaxPool", "x")
    return graph, graph.node("Expand", pooled, np.array([1, 6, 4, 5], I64))


def gemm_graph(**attributes):
    graph = Graph()
    flat = graph.node("Flatten", graph.node("GlobalMaxPool", "x"))
    shape = (5, 6) if attributes.get("transB") else (6, 5)
    return graph, graph.node("Gemm", flat, integers(shape, 9), integers(5, 8), **attributes)


@pytest.mark.parametrize("case", EXACT)
def test_integer_valued_graphs_are_exact(case, tmp_path):
    graph, *outputs = EXACT[case]()
    graph.save(tmp_path / "m.onnx", *outputs)
    compare(tmp_path / "m.onnx", integers(graph.shape, 11))


FUNCTIONS = {
    "sigmoid": lambda: one("Sigmoid"),
    "hard_sigmoid": lambda: one("HardSigmoid", alpha=0.3, beta=0.4),
    "hard_swish": lambda: one("HardSwish"),
    "leaky_relu": lambda: one("LeakyRelu", alpha=0.1),
    "tanh": lambda: one("Tanh"),
    "softplus": lambda: one("Softplus"),
    "softsign": lambda: one("Softsign"),
    "mish": lambda: one("Mish", opset=18),
    "elu": lambda: one("Elu", alpha=0.7),
    "selu": lambda: one("Selu"),
    "gelu": lambda: one("Gelu", opset=20),
    "gelu_tanh": lambda: one("Gelu", opset=20, approximate="tanh"),
    "erf": lambda: one("Erf"),
    "exp": lambda: one("Exp"),
    "sin": lambda: one("Sin"),
    "cos": lambda: one("Cos"),
    "floor": lambda: one("Floor"),
    "ceil": lambda: one("Ceil"),
    "round": lambda: one("Round"),
    "reciprocal": lambda: one("Reciprocal"),
    "log_of_square": lambda: chain(("Mul", "x"), ("Add", np.float32(1)), ("Log",)),
    "sqrt_of_abs": lambda: chain(("Abs",), ("Sqrt",)),
    "pow_half": lambda: chain(("Abs",), ("Pow", np.float32(1.5))),
    "softmax": lambda: one("Softmax", axis=1),
    "softmax_of_the_batch": lambda: one("Softmax", axis=0),
    "softmax_flat": lambda: one("Softmax", opset=11),
    "log_softmax": lambda: one("LogSoftmax", axis=-1),
    "reduce_mean": lambda: one("ReduceMean", axes=[2, 3], keepdims=0),
    "reduce_mean_all": lambda: chain(("ReduceMean",), ("Add", "x")),
    "reduce_l2": lambda: one("ReduceL2", axes=[1]),
    "global_average_pool": lambda: one("GlobalAveragePool"),
    "average_pool_border": lambda: one("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
    "average_pool_ceil": lambda: one(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 3], ceil_mode=1, opset=19
    ),
    "average_pool_ceil_include": lambda: one(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 3], pads=[1] * 4, ceil_mode=1,
        count_include_pad=1, opset=19,
    ),
    "local_response_normalization": lambda: one("LRN", size=5, alpha=0.1, beta=0.75, bias=2.0),
    "instance_normalization": lambda: one("InstanceNormalization", reals(6, 1), reals(6, 2)),
    "layer_normalization": lambda: one("LayerNormalization", reals(8, 1), reals(8, 2)),
    "layer_normalization_of_channels": lambda: one(
        "LayerNormalization", reals((6, 9, 8), 1), axis=1
    ),
    "group_normalization": lambda: one(
        "GroupNormalization", reals(6, 1), reals(6, 2), num_groups=3, opset=21
    ),
    "grid_sample": lambda: one("GridSample", reals((1, 5, 7, 2), 4, -1.2, 1.2)),
    "grid_sample_border": lambda: one(
        "GridSample", reals((1, 5, 7, 2), 4, -1.2, 1.2), padding_mode="border", align_corners=1
    ),
    "linear_uneven": lambda: one(
        "Resize", ROI, np.array([1, 1, 1.7, 0.6], np.float32), mode="linear"
    ),
    "folded_normalization": lambda: chain(
        ("Conv", reals((4, 6, 3, 3), 5)),
        ("BatchNormalization", reals(4, 1), reals(4, 2), reals(4, 3), reals(4, 4, 0.5, 2.0)),
    ),
}  # fmt: skip


def chain(*steps, opset=17):
    graph, value = Graph(opset=opset), "x"
    for op, *others in steps:
        value = graph.node(op, value, *others)
    return graph, value


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_agree_with_onnxruntime(case, tmp_path):
    graph, *outputs = FUNCTIONS[case]()
    graph.save(tmp_path / "m.onnx", *outputs)
    # Both runtimes' functions are good to a few units in the last place; the longest sum here has
    # 72 terms, whose rounding adds up to sqrt(72) < 9 units of its scale: 16 units cover both.
    compare(tmp_path / "m.onnx", reals(graph.shape, 12), tolerance=16 * EPS)


def test_folded_normalization_leaves_a_convolution_alone(tmp_path):
    graph, output = FUNCTIONS["folded_normalization"]()
    graph.save(tmp_path / "m.onnx", output)
    fn, params = load_onnx(tmp_path / "m.onnx")
    assert [node.op for node in fn.nodes] == ["Conv"]
    assert len(params) == 2


def test_normalization_is_not_folded_into_a_convolution_that_others_read(tmp_path):
    graph = Graph()
    conv = graph.node("Conv", "x", KERNEL)
    normal = graph.node(
        "BatchNormalization", conv, BIAS, BIAS, BIAS, np.ones(4, np.float32), epsilon=0.0
    )
    graph.save(tmp_path / "m.onnx", graph.node("Add", conv, normal))
    compare(tmp_path / "m.onnx", integers(SHAPE, 5))


def test_kernel_shared_by_two_convolutions_is_folded_for_one(tmp_path):
    graph = Graph()
    kernel = graph.constant(KERNEL)
    first = graph.node("Conv", "x", kernel)
    scale = np.array([1, 2, 3, 4], np.float32)
    variance = np.array([1, 4, 1, 4], np.float32)
    second = graph.node("Conv", "x", kernel)
    second = graph.node("BatchNormalization", second, scale, BIAS, BIAS, variance, epsilon=0.0)
    graph.save(tmp_path / "m.onnx", graph.node("Concat", first, second, axis=1))
    compare(tmp_path / "m.onnx", integers(SHAPE, 5))


def test_shape_arithmetic_is_folded_while_tracing(tmp_path):
    graph = Graph(shape=("n", 6, "h", "w"))
    shape = graph.node("Shape", "x")
    height = graph.node("Gather", shape, np.array(2, I64))
    width = graph.node("Gather", shape, np.array(3, I64))
    area = graph.node("Unsqueeze", graph.node("Mul", height, width), np.array([0], I64))
    target = graph.node("Concat", np.array([0, 6], I64), area, axis=0)
    graph.save(tmp_path / "m.onnx", graph.node("Reshape", "x", target))
    fn, params = load_onnx(tmp_path / "m.onnx")
    assert fn.frame_shape == (None, None, 6)
    frames = integers((3, 5, 4, 6))
    expected = frames.transpose(0, 3, 1, 2).reshape(3, 6, 20)
    np.testing.assert_array_equal(jax.jit(fn)(params, frames), expected)
    names = {equation.primitive.name for equation in jax.make_jaxpr(fn)(params, frames).eqns}
    assert names == {"reshape", "transpose"}


def test_channel_shuffle_and_attention_with_several_streams(tmp_path):
    graph = Graph(shape=(1, 6, 4, 5))
    split = graph.node("Reshape", "x", np.array([1, 2, 3, 4, 5], I64))
    swapped = graph.node("Transpose", split, perm=[0, 2, 1, 3, 4])
    shuffled = graph.node("Reshape", swapped, np.array([1, 6, 4, 5], I64))
    tokens = graph.node("Reshape", shuffled, np.array([1, 6, 20], I64))
    scores = graph.node("MatMul", graph.node("Transpose", tokens, perm=[0, 2, 1]), tokens)
    graph.save(tmp_path / "m.onnx", shuffled, scores)
    images = integers((1, 6, 4, 5))
    fn, params = load_onnx(tmp_path / "m.onnx")
    frames = np.concatenate([images, images + 1]).transpose(0, 2, 3, 1)
    outputs = jax.jit(fn)(params, frames)
    references = runtime(tmp_path / "m.onnx", np.concatenate([images, images + 1]))
    for name, reference in zip(fn.outputs, references, strict=True):
        np.testing.assert_array_equal(outputs[name], reference)


@pytest.mark.parametrize(
    "steps",
    [
        [("ReduceMax",), ("Add", "x")],
        [("Transpose",), ("Add", np.ones((8, 9, 6, 1), np.float32)), ("Transpose",)],
        [("Reshape", np.array([6, 72], I64)), ("Relu",), ("Reshape", np.array([1, 6, 9, 8], I64))],
        [("Squeeze", np.array([0], I64)), ("Relu",), ("Unsqueeze", np.array([0], I64))],
        [("Gather", np.array(0, I64)), ("Unsqueeze", np.array([0], I64))],
        [("GlobalMaxPool",), ("Squeeze",), ("Unsqueeze", np.array([0], I64))],
    ],
    ids=["reduce_all", "transpose_all", "fold_batch", "squeeze", "gather", "squeeze_all"],
)
def test_graphs_that_drop_their_batch_of_one_take_several_streams(steps, tmp_path):
    graph, output = chain(*steps)
    graph.save(tmp_path / "m.onnx", output)
    compare(tmp_path / "m.onnx", integers(SHAPE, 6))


def test_no_transposition_between_convolutions(tmp_path):
    graph = Graph()
    value = graph.node("Conv", "x", KERNEL, pads=[1, 1, 1, 1])
    pooled = graph.node("MaxPool", value, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    joined = graph.node("Concat", value, pooled, axis=1)
    sliced = graph.node("Slice", joined, *(np.array([k], I64) for k in (1, 7, 1)))
    bigger = graph.node("Resize", sliced, ROI, np.array([1, 1, 2, 2], np.float32))
    last = graph.node("Conv", bigger, KERNEL)
    flat = graph.node("Reshape", last, np.array([1, 4, -1], I64))
    joined = graph.node("Concat", flat, flat, axis=2)
    graph.save(tmp_path / "m.onnx", graph.node("Transpose", joined, perm=[0, 2, 1]))
    fn, params = load_onnx(tmp_path / "m.onnx")
    frames = integers((2, 9, 8, 6))
    text = str(jax.make_jaxpr(fn)(params, frames))
    assert "transpose" not in text
    assert "gather" not in text
    compare(tmp_path / "m.onnx", integers(SHAPE, 5))


def test_streams_take_the_place_of_the_batch_of_one(tmp_path):
    graph = Graph()
    value = graph.node("Conv", "x", KERNEL)
    split = graph.node("Reshape", value, np.array([1, 2, 2, 7, 6], I64))
    swapped = graph.node("Transpose", split, perm=[0, 2, 1, 3, 4])
    graph.save(tmp_path / "m.onnx", graph.node("Reshape", swapped, np.array([1, -1], I64)))
    fn, params = load_onnx(tmp_path / "m.onnx")
    one_stream, three = (
        [equation.primitive.name for equation in jax.make_jaxpr(fn)(params, frames).eqns]
        for frames in (np.zeros((1, 9, 8, 6), np.float32), np.zeros((3, 9, 8, 6), np.float32))
    )
    assert one_stream == three


def test_channels_last_graph_takes_frames_as_they_are(tmp_path):
    graph = Graph(shape=(1, 9, 8, 3))
    first = graph.node("Transpose", "x", perm=[0, 3, 1, 2])
    graph.save(tmp_path / "m.onnx", graph.node("Conv", first, KERNEL[:, :3]))
    fn, params = load_onnx(tmp_path / "m.onnx")
    assert fn.frame_shape == (9, 8, 3)
    frames = integers((2, 9, 8, 3))
    (reference,) = runtime(tmp_path / "m.onnx", frames)
    np.testing.assert_array_equal(jax.jit(fn)(params, frames), reference)


def test_yolox_nano_agrees_with_onnxruntime():
    path = data_path("weights/yolox_nano/yolox_nano.onnx")
    fn, params = load_onnx(path)
    assert fn.frame_shape == (416, 416, 3)
    frames = reals((3, 416, 416, 3), low=0, high=255)
    (reference,) = runtime(path, frames.transpose(0, 3, 1, 2))
    scale = np.abs(reference).max()
    run = jax.jit(fn)
    for streams in (1, 3):
        output = run(params, frames[:streams])
        np.testing.assert_allclose(output, reference[:streams], rtol=0, atol=1e-4 * scale)
    assert "transpose" not in str(jax.make_jaxpr(fn)(params, frames))


def test_unknown_operators_are_named_at_once(tmp_path):
    graph = Graph()
    first = graph.node("Hardmax", "x")
    graph.save(tmp_path / "m.onnx", graph.node("Det", first))
    with pytest.raises(ValueError, match="not supported: Det, Hardmax"):
        load_onnx(tmp_path / "m.onnx")


def test_unsupported_attribute_names_the_node(tmp_path):
    graph, output = one("Resize", ROI, np.array([1, 1, 2, 2], np.float32), mode="cubic")
    graph.save(tmp_path / "m.onnx", output)
    fn, params = load_onnx(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"node 'v0_0' \(Resize\): mode 'cubic'"):
        fn(params, integers((2, 9, 8, 6)))


def test_wrong_frames_are_refused(tmp_path):
    graph, output = one("Relu")
    graph.save(tmp_path / "m.onnx", output)
    fn, params = load_onnx(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"frames must be \(S, 9, 8, 6\); got \(1, 9, 9, 6\)"):
        fn(params, np.zeros((1, 9, 9, 6), np.float32))
    with pytest.raises(ValueError, match="frames must be float32; got uint8"):
        fn(params, np.zeros((1, 9, 8, 6), np.uint8))


def test_bad_files_give_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_onnx(tmp_path / "missing.onnx")
    graph, output = one("Conv", KERNEL)
    graph.save(tmp_path / "m.onnx", output)
    whole = (tmp_path / "m.onnx").read_bytes()
    for kept in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.onnx").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="not a complete ONNX model"):
            load_onnx(tmp_path / "cut.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match="not a complete ONNX model"):
        load_onnx(tmp_path / "text.onnx")


def test_two_inputs_are_refused(tmp_path):
    graph, output = one("Relu")
    graph.save(tmp_path / "m.onnx", output)
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="one input, the frames; got x, y"):
        load_onnx(tmp_path / "m.onnx")


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"dynvid\[onnx\]"):
        load_onnx(tmp_path / "m.onnx")
