"""The network against the same architecture built node by node for onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.models.yolov5 import fold_yolov5, yolov5
from dynvid.models.zoo import HEADS
from dynvid.weights.yolov5 import load_yolov5
from tests.data import data_path
from tests.weights.test_onnx import ROI, Graph, runtime

WIDTHS = (4, 8, 16, 24, 32)  # of strides 2, 4, 8, 16, 32
DEPTHS = {2: 1, 4: 2, 6: 3, 8: 1, 13: 1, 17: 1, 20: 1, 23: 1}


def random_tensors():
    """A checkpoint's tensors for a narrow network: two classes, two anchors a cell."""
    rng = np.random.default_rng(0)
    tensors = {}

    def conv(name, inputs, outputs, size):
        scale = 1 / np.sqrt(inputs * size * size)
        tensors[f"{name}.conv.weight"] = rng.normal(0, 2 * scale, (outputs, inputs, size, size))
        tensors[f"{name}.bn.weight"] = rng.uniform(0.5, 1.5, outputs)
        tensors[f"{name}.bn.bias"] = rng.normal(0, 0.2, outputs)
        tensors[f"{name}.bn.running_mean"] = rng.normal(0, 0.2, outputs)
        tensors[f"{name}.bn.running_var"] = rng.uniform(0.01, 1.5, outputs)

    def c3(index, inputs, outputs):
        half = outputs // 2
        conv(f"model.{index}.cv1", inputs, half, 1)
        conv(f"model.{index}.cv2", inputs, half, 1)
        conv(f"model.{index}.cv3", 2 * half, outputs, 1)
        for block in range(DEPTHS[index]):
            conv(f"model.{index}.m.{block}.cv1", half, half, 1)
            conv(f"model.{index}.m.{block}.cv2", half, half, 3)

    a, b, c, d, e = WIDTHS
    conv("model.0", 3, a, 6)
    for index, inputs, outputs in ((1, a, b), (3, b, c), (5, c, d), (7, d, e)):
        conv(f"model.{index}", inputs, outputs, 3)
        c3(index + 1, outputs, outputs)
    conv("model.9.cv1", e, e // 2, 1)
    conv("model.9.cv2", 2 * e, e, 1)
    conv("model.10", e, d, 1)
    c3(13, 2 * d, d)
    conv("model.14", d, c, 1)
    c3(17, 2 * c, c)
    conv("model.18", c, c, 3)
    c3(20, 2 * c, d)
    conv("model.21", d, d, 3)
    c3(23, 2 * d, e)
    for level, width in enumerate((c, d, e)):
        tensors[f"model.24.m.{level}.weight"] = rng.normal(0, 0.2, (14, width, 1, 1))
        tensors[f"model.24.m.{level}.bias"] = rng.normal(0, 0.2, 14)
    tensors["model.24.anchors"] = rng.uniform(1, 9, (3, 2, 2))
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def graph_of(tensors, size):
    """The published module list, normalisation unfolded, each node where it says."""
    graph = Graph(shape=(1, 3, *size))

    def conv(name, x, stride=1):
        kernel = tensors[f"{name}.conv.weight"]
        pad = {6: 2, 3: 1, 1: 0}[kernel.shape[2]]
        y = graph.node("Conv", x, kernel, pads=[pad] * 4, strides=[stride] * 2)
        parts = [
            tensors[f"{name}.bn.{p}"] for p in ("weight", "bias", "running_mean", "running_var")
        ]
        y = graph.node("BatchNormalization", y, *parts, epsilon=1e-3)
        return graph.node("Mul", y, graph.node("Sigmoid", y))

    def c3(index, x, shortcut):
        y = conv(f"model.{index}.cv1", x)
        for block in range(DEPTHS[index]):
            z = conv(f"model.{index}.m.{block}.cv2", conv(f"model.{index}.m.{block}.cv1", y))
            y = graph.node("Add", y, z) if shortcut else z
        side = conv(f"model.{index}.cv2", x)
        return conv(f"model.{index}.cv3", graph.node("Concat", y, side, axis=1))

    def pooling(x):
        x = conv("model.9.cv1", x)
        pools = [
            graph.node("MaxPool", x, kernel_shape=[k, k], pads=[k // 2] * 4) for k in (5, 9, 13)
        ]
        return conv("model.9.cv2", graph.node("Concat", x, *pools, axis=1))

    def join(x, other, twice=False):
        if twice:
            x = graph.node("Resize", x, ROI, np.array([1, 1, 2, 2], np.float32))
        return graph.node("Concat", x, other, axis=1)

    x = conv("model.1", conv("model.0", "x", 2), 2)
    x4 = c3(4, conv("model.3", c3(2, x, True), 2), True)
    x6 = c3(6, conv("model.5", x4, 2), True)
    x10 = conv("model.10", pooling(c3(8, conv("model.7", x6, 2), True)))
    x14 = conv("model.14", c3(13, join(x10, x6, True), False))
    x17 = c3(17, join(x14, x4, True), False)
    x20 = c3(20, join(conv("model.18", x17, 2), x14), False)
    x23 = c3(23, join(conv("model.21", x20, 2), x10), False)
    return graph, [
        graph.node("Conv", x, tensors[f"model.24.m.{k}.weight"], tensors[f"model.24.m.{k}.bias"])
        for k, x in enumerate((x17, x20, x23))
    ]


def test_network_is_the_published_one(tmp_path):
    tensors = random_tensors()
    graph, outputs = graph_of(tensors, (64, 96))
    graph.save(tmp_path / "m.onnx", *outputs)
    frames = np.random.default_rng(1).uniform(0, 1, (2, 64, 96, 3)).astype(np.float32)
    found = jax.jit(yolov5)(fold_yolov5(tensors), frames)
    references = runtime(tmp_path / "m.onnx", frames.transpose(0, 3, 1, 2))
    for output, reference in zip(found, references, strict=True):
        reference = reference.transpose(0, 2, 3, 1)
        # About 60 convolutions follow one another, each rounding its sums (at most 9 * 16 terms,
        # so sqrt(144) units in the last place) and handing on the error of the one before.
        tolerance = 60 * 12 * np.finfo(np.float32).eps * np.abs(reference).max()
        np.testing.assert_allclose(output, reference, rtol=0, atol=tolerance)


def test_integer_frames_are_scaled_inside():
    params = fold_yolov5(random_tensors())
    frames = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), np.uint8)
    found = yolov5(params, jnp.asarray(frames))
    expected = yolov5(params, jnp.asarray(frames, jnp.float32) / 255)
    for output, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(output, reference)


def test_anchors_are_in_pixels():
    tensors = random_tensors()
    anchors = fold_yolov5(tensors)["anchors"]
    np.testing.assert_array_equal(anchors[2], tensors["model.24.anchors"][2] * 32)


def test_missing_tensors_are_named():
    tensors = random_tensors()
    for name in ("model.6.m.1.cv2.bn.bias", "model.24.m.1.bias", "model.20.cv3.conv.weight"):
        with pytest.raises(ValueError, match=f"{name} .*missing|{name} is missing"):
            fold_yolov5({k: v for k, v in tensors.items() if k != name})


def test_published_weights_load_and_run():
    fn, params = load_yolov5(data_path("weights/yolov5n/yolov5n.pt"))
    assert params["model.0"]["kernel"].shape == (6, 6, 3, 16)
    outputs = jax.jit(fn)(params, jnp.full((1, 64, 64, 3), 114, jnp.uint8))
    assert [o.shape for o in outputs] == [(1, 8, 8, 255), (1, 4, 4, 255), (1, 2, 2, 255)]
    found = HEADS["yolov5"].decode(params, outputs, size=(64, 64))
    assert not found.valid.any()  # nothing is seen in a grey frame
