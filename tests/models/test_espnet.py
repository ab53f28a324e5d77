"""The network against the same architecture built node by node for onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.data.camvid import VOID, CamVid
from dynvid.metrics.segmentation import (
    confusion_matrix,
    global_accuracy,
    mean_intersection_over_union,
)
from dynvid.models.espnet import espnet, fold_espnet
from dynvid.weights.espnet import load_espnet
from tests.data import data_path
from tests.weights.test_onnx import Graph, runtime

CLASSES, FIRST, MIDDLE, DEEP = 6, 4, 11, 17
MEAN, DEVIATION = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)  # blue, green, red


def random_tensors():
    """A checkpoint's tensors for a narrow network: p = 1, q = 2."""
    rng = np.random.default_rng(0)
    tensors = {}

    def conv(name, inputs, outputs, size):
        scale = 1 / np.sqrt(inputs * size * size)
        tensors[f"{name}.weight"] = rng.normal(0, 2 * scale, (outputs, inputs, size, size))

    def norm(name, channels):
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels)
        tensors[f"{name}.bias"] = rng.normal(0, 0.2, channels)
        tensors[f"{name}.running_mean"] = rng.normal(0, 0.2, channels)
        tensors[f"{name}.running_var"] = rng.uniform(0.01, 1.5, channels)

    def norm_act(name, channels):
        norm(f"{name}.bn", channels)
        tensors[f"{name}.act.weight"] = rng.uniform(0, 0.5, channels)

    def pyramid(name, inputs, outputs, size):
        part = outputs // 5
        conv(f"{name}.c1.conv", inputs, part, size)
        for d in (1, 2, 4, 8, 16):
            conv(f"{name}.d{d}.conv", part, outputs - 4 * part if d == 1 else part, 3)

    conv("encoder.level1.conv", 3, FIRST, 3)
    norm_act("encoder.level1", FIRST)
    fine = FIRST + 3
    norm_act("encoder.b1", fine)
    for level, inputs, outputs, blocks in (
        ("encoder.level2", fine, MIDDLE, 1),
        ("encoder.level3", 2 * MIDDLE + 3, DEEP, 2),
    ):
        pyramid(f"{level}_0", inputs, outputs, 3)
        norm_act(f"{level}_0", outputs)
        for i in range(blocks):
            pyramid(f"{level}.{i}", outputs, outputs, 1)
            norm_act(f"{level}.{i}.bn", outputs)
    norm_act("encoder.b2", 2 * MIDDLE + 3)
    norm_act("encoder.b3", 2 * DEEP)
    conv("encoder.classifier.conv", 2 * DEEP, CLASSES, 1)
    norm("br", CLASSES)
    conv("level3_C.conv", 2 * MIDDLE + 3, CLASSES, 1)
    norm_act("combine_l2_l3.0", 2 * CLASSES)
    pyramid("combine_l2_l3.1", 2 * CLASSES, CLASSES, 1)
    norm_act("combine_l2_l3.1.bn", CLASSES)
    norm_act("up_l2.1", CLASSES)
    conv("conv.conv", fine + CLASSES, CLASSES, 3)
    norm_act("conv", CLASSES)
    for name in ("up_l3.0", "up_l2.0", "classifier"):
        conv(name, CLASSES, CLASSES, 2)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def graph_of(tensors, size):
    """The published module, normalisation unfolded, each node where it says."""
    graph = Graph(shape=(1, 3, *size))

    def conv(name, x, stride=1, dilation=1):
        kernel = tensors[f"{name}.weight"]
        pad = kernel.shape[2] // 2 * dilation
        return graph.node(
            "Conv", x, kernel, pads=[pad] * 4, strides=[stride] * 2, dilations=[dilation] * 2
        )

    def norm(name, x):
        parts = [tensors[f"{name}.{p}"] for p in ("weight", "bias", "running_mean", "running_var")]
        return graph.node("BatchNormalization", x, *parts, epsilon=1e-3)

    def norm_act(name, x):
        slope = tensors[f"{name}.act.weight"][:, None, None]
        return graph.node("PRelu", norm(f"{name}.bn", x), slope)

    def join(*parts):
        return graph.node("Concat", *parts, axis=1)

    def pyramid(name, x, stride=1):
        x = conv(f"{name}.c1.conv", x, stride)
        d1, d2, d4, d8, d16 = (conv(f"{name}.d{d}.conv", x, 1, d) for d in (1, 2, 4, 8, 16))
        a2 = graph.node("Add", d2, d4)
        a3 = graph.node("Add", a2, d8)
        return join(d1, d2, a2, a3, graph.node("Add", a3, d16))

    def block(name, x):
        return norm_act(f"{name}.bn", graph.node("Add", x, pyramid(name, x)))

    def twice(name, x):
        return graph.node("ConvTranspose", x, tensors[f"{name}.weight"], strides=[2, 2])

    def pool(x):
        return graph.node(
            "AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2],
            count_include_pad=1,
        )  # fmt: skip

    at_2 = pool("x")
    at_4 = pool(at_2)
    x = norm_act("encoder.level1", conv("encoder.level1.conv", "x", 2))
    fine = norm_act("encoder.b1", join(x, at_2))
    first = norm_act("encoder.level2_0", pyramid("encoder.level2_0", fine, 2))
    x = block("encoder.level2.0", first)
    middle = norm_act("encoder.b2", join(x, first, at_4))
    first = norm_act("encoder.level3_0", pyramid("encoder.level3_0", middle, 2))
    x = block("encoder.level3.1", block("encoder.level3.0", first))
    x = norm_act("encoder.b3", join(first, x))
    x = twice("up_l3.0", norm("br", conv("encoder.classifier.conv", x)))
    x = norm_act("combine_l2_l3.0", join(conv("level3_C.conv", middle), x))
    x = norm_act("combine_l2_l3.1.bn", pyramid("combine_l2_l3.1", x))
    x = norm_act("up_l2.1", twice("up_l2.0", x))
    x = norm_act("conv", conv("conv.conv", join(x, fine)))
    return graph, twice("classifier", x)


def drawn(size, streams=2):
    return np.random.default_rng(1).integers(0, 256, (streams, *size, 3), np.uint8)


def test_network_is_the_published_one(tmp_path):
    tensors, frames = random_tensors(), drawn((40, 56))
    graph, output = graph_of(tensors, (40, 56))
    graph.save(tmp_path / "m.onnx", output)
    images = (frames[..., ::-1] - np.array(MEAN)) / np.array(DEVIATION) / 255
    (reference,) = runtime(tmp_path / "m.onnx", images.astype(np.float32).transpose(0, 3, 1, 2))
    reference = reference.transpose(0, 2, 3, 1)
    params = fold_espnet(tensors, mean=MEAN, deviation=DEVIATION)
    found = jax.jit(espnet)(params, frames)
    # About 20 convolutions follow one another, each rounding its sums (at most 9 * 25 terms, so
    # sqrt(225) units in the last place) and handing on the error of the one before.
    tolerance = 20 * 15 * np.finfo(np.float32).eps * np.abs(reference).max()
    np.testing.assert_allclose(found, reference, rtol=0, atol=tolerance)
    # At half resolution: the mean of 2 x 2.
    half = jax.jit(espnet, static_argnames="stride")(params, frames, stride=2)
    mean = reference.reshape(2, 20, 2, 28, 2, CLASSES).mean((2, 4))
    np.testing.assert_allclose(half, mean, rtol=0, atol=tolerance)


def test_floating_frames_are_those_of_cameras():
    params = fold_espnet(random_tensors(), mean=MEAN, deviation=DEVIATION)
    frames = drawn((16, 24), streams=1)
    run = jax.jit(espnet)
    found = run(params, jnp.asarray(frames, jnp.float32) / 255)
    reference = np.asarray(run(params, frames))
    # x / 255 * 255 is within two roundings of x, which is at most (255 + 120) / (155 - 120) times
    # as large as what is left of it after the mean: nothing beside the rounding of the network.
    tolerance = 20 * 15 * np.finfo(np.float32).eps * np.abs(reference).max()
    np.testing.assert_allclose(found, reference, rtol=0, atol=tolerance)


def test_what_does_not_fit_is_named():
    tensors = random_tensors()
    for name in ("encoder.level3.1.d16.conv.weight", "br.running_var", "classifier.weight"):
        with pytest.raises(ValueError, match=f"{name} is missing"):
            fold_espnet(
                {k: v for k, v in tensors.items() if k != name}, mean=MEAN, deviation=DEVIATION
            )
    with pytest.raises(ValueError, match=r"deviation must be three numbers; got \(1, 2\)"):
        fold_espnet(tensors, mean=MEAN, deviation=(1, 2))
    with pytest.raises(ValueError, match="stride must be 1 or 2; got 4"):
        espnet({}, jnp.zeros((1, 8, 8, 3)), stride=4)


def test_published_weights_on_the_drive():
    fn, params = load_espnet(data_path("weights/espnet/espnet_p_2_q_8_camvid.pth"))
    drive = CamVid(data_path("camvid"))
    run = jax.jit(lambda frames: fn(params, frames).argmax(-1))
    confusion = sum(
        confusion_matrix(item.labels[None], run(item.frame[None]), classes=VOID)
        for item in (drive[i] for i in range(0, len(drive), 20))
    )
    # All 101 frames give 0.701 and 0.927; channels in the wrong order 0.21, Cityscapes' mean and
    # deviation 0.17.
    assert mean_intersection_over_union(confusion) > 0.66
    assert global_accuracy(confusion) > 0.91
