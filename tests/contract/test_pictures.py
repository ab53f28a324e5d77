"""What is still a picture is never held back by truncation, however it was brought to size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from onnx import TensorProto, helper, numpy_helper

import dynvid
from dynvid.incremental.transform import plan_for
from dynvid.models.ssd import SSD512
from dynvid.weights.darknet import load_darknet
from dynvid.weights.onnx import load_onnx
from dynvid.weights.yolov5 import load_yolov5
from tests.contract.zoo import act, conv
from tests.data import data_path

SIZE = (32, 48)  # of the networks' input
MEAN = np.array([123.7, 116.3, 103.5], np.float32)
COLOURS = np.array([[0.3, 0.6, 0.1], [-0.2, -0.3, 0.5], [0.5, -0.4, -0.1]], np.float32)


def resized(x, size):
    return jax.image.resize(x, (len(x), *size, 3), "bilinear", antialias=False)


WAYS = {
    "resize": resized,
    "antialiased": lambda x, size: jax.image.resize(x, (len(x), *size, 3), "cubic"),
    "letterbox": lambda x, size: jnp.pad(
        resized(x, (size[0] - 8, size[1])), ((0, 0), (4, 4), (0, 0), (0, 0)), constant_values=114
    ),
    "crop": lambda x, size: resized(x[:, 3:, 5:-1], size),
    "normalise": lambda x, size: (resized(x, size) - MEAN) / np.full((1, 1, 1, 3), 57.0, "f"),
    "colours": lambda x, size: resized(x, size) @ COLOURS,
    "colours_first": lambda x, size: resized(jnp.einsum("shwc,cd->shwd", x, COLOURS), size),
}


def flax_network(_):
    class Network(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layers = nnx.List(nnx.Conv(c, 16, (3, 3), rngs=rngs) for c in (3, 16, 16))

        def __call__(self, x):
            for layer in self.layers:
                x = nnx.relu(layer(x))
            return x

    return dynvid.from_nnx(Network())


def onnx_network(folder):
    """Weights as initialisers, as constants, and as constants that are folded."""
    rng = np.random.default_rng(0)
    first, second, third = (
        rng.normal(size=(8, c, 3, 3)).astype("f") / np.sqrt(9 * c) for c in (3, 8, 8)
    )
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Constant", [], ["second"], value=numpy_helper.from_array(second)),
        helper.make_node("Conv", ["a", "second"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["turned"], ["third"], perm=[3, 2, 1, 0]),
        helper.make_node("Conv", ["b", "third"], ["y"], pads=[1, 1, 1, 1]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "network",
        [value("x", TensorProto.FLOAT, [1, 3, *SIZE])],
        [value("y", TensorProto.FLOAT, [1, 8, *SIZE])],
        [numpy_helper.from_array(a, n) for a, n in ((first, "first"), (third.T.copy(), "turned"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "network.onnx").write_bytes(model.SerializeToString())
    return load_onnx(folder / "network.onnx")


def darknet_network(folder):
    layer = "[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\npad=1\nactivation=leaky\n"
    (folder / "n.cfg").write_text(f"[net]\nwidth={SIZE[1]}\nheight={SIZE[0]}\n" + 3 * layer)
    return load_darknet(folder / "n.cfg")


def closed_over_network(_):
    rng = np.random.default_rng(0)
    kernels = [jnp.asarray(rng.normal(size=(3, 3, c, 8)) / np.sqrt(9 * c), "f") for c in (3, 8, 8)]

    def fn(_, x):
        for kernel in kernels:
            x = act(conv(x, kernel))
        return x

    return fn, ()


def caffe_network(_):
    return dynvid.from_nnx(nnx.eval_shape(lambda: SSD512(classes=21, rngs=nnx.Rngs(0))))


def pytorch_network(_):
    fn, params = load_yolov5(data_path("weights/yolov5n/yolov5n.pt"))
    return lambda p, x: fn(p, x / 255), params


SMALL = {
    "flax": flax_network,
    "onnx": onnx_network,
    "darknet": darknet_network,
    "closed_over": closed_over_network,
}
LARGE = {"caffe": (caffe_network, (512, 512)), "pytorch": (pytorch_network, (320, 320))}


def with_picture(way, network, size):
    def fn(params, frames):
        picture = checkpoint_name(WAYS[way](frames.astype(jnp.float32), size), "picture")
        return network(params, picture), picture

    return fn


def held_back_and_pictures(fn, params, frames):
    """The values that truncation may hold back, and those that the picture is made of."""
    plan = plan_for(fn, params, frames, compares=True)
    (mark,) = [n for n in plan.graph.nodes if n.params.get("name") == "picture"]
    pictures, stack = set(), [mark.outputs[0]]
    while stack:
        value = stack.pop()
        if value not in pictures:
            pictures.add(value)
            stack += value.node.inputs if value.node is not None else ()
    return plan.compared, pictures


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", [*SMALL, *LARGE])
def test_only_what_a_learned_kernel_went_into_may_be_held_back(model, way, tmp_path):
    make, size = LARGE[model] if model in LARGE else (SMALL[model], SIZE)
    network, params = make(tmp_path)
    frames = jax.ShapeDtypeStruct((1, 75, 101, 3), jnp.uint8)
    compared, pictures = held_back_and_pictures(with_picture(way, network, size), params, frames)
    assert compared, "nothing can be held back at all"
    assert not compared & pictures


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", SMALL)
def test_a_picture_follows_the_frame_whatever_is_held_back_behind_it(model, way, tmp_path):
    network, params = SMALL[model](tmp_path)
    fn = with_picture(way, network, SIZE)
    video = dynvid.incremental(fn, threshold=15, truncation=1e6)
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (1, 75, 101, 3)).astype(np.uint8)
    second = first.copy()
    second[:, 20:60, 30:70] = 255 - second[:, 20:60, 30:70]
    state, (_, picture) = video.init(params, first)
    state, (_, seen) = video.step(params, state, second)
    expected = jax.jit(lambda x: WAYS[way](x.astype(jnp.float32), SIZE))(state.reference)
    assert np.abs(np.asarray(picture) - expected).max() > 0.4 * np.ptp(expected)
    # Two resizings, each a sum of at most 8 products of grey levels with weights below 2, and one
    # product of 3 with the colours.
    bound = 8 * np.finfo("f").eps * 8 * 255 * 2 * 3
    np.testing.assert_allclose(seen, expected, rtol=0, atol=bound)
    assert state.layers, "nothing was held back"


def test_the_matrices_of_a_resizing_are_no_weights_where_everything_is_closed_over():
    """Nothing but its kernels tells such a function's weights."""
    frames = jax.ShapeDtypeStruct((1, 75, 101, 3), jnp.float32)
    fn = lambda _, x: resized(x, SIZE) @ COLOURS  # noqa: E731
    assert not plan_for(fn, (), frames, compares=True).compared
