"""SSD512 against hand arithmetic, plain loops, and the same layers built node by node."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dynvid
from dynvid.models import ssd, zoo
from dynvid.models.ssd import SSD512, L2Norm, decode_ssd, prior_boxes, ssd_preprocess
from dynvid.ops.letterbox import letterbox
from tests.weights.test_onnx import Graph, runtime

EPS = float(np.finfo(np.float32).eps)

# Every layer as the Caffe model's definition has it: side of the output, kernel, channels.
VGG = {
    "conv1_1": (512, 3, 3, 64), "conv1_2": (512, 3, 64, 64),
    "conv2_1": (256, 3, 64, 128), "conv2_2": (256, 3, 128, 128),
    "conv3_1": (128, 3, 128, 256), "conv3_2": (128, 3, 256, 256), "conv3_3": (128, 3, 256, 256),
    "conv4_1": (64, 3, 256, 512), "conv4_2": (64, 3, 512, 512), "conv4_3": (64, 3, 512, 512),
    "conv5_1": (32, 3, 512, 512), "conv5_2": (32, 3, 512, 512), "conv5_3": (32, 3, 512, 512),
}  # fmt: skip
FC = {"fc6": (32, 3, 512, 1024), "fc7": (32, 1, 1024, 1024)}
EXTRAS = {
    "conv6_1": (32, 1, 1024, 256), "conv6_2": (16, 3, 256, 512),
    "conv7_1": (16, 1, 512, 128), "conv7_2": (8, 3, 128, 256),
    "conv8_1": (8, 1, 256, 128), "conv8_2": (4, 3, 128, 256),
    "conv9_1": (4, 1, 256, 128), "conv9_2": (2, 3, 128, 256),
    "conv10_1": (2, 1, 256, 128), "conv10_2": (1, 4, 128, 256),
}  # fmt: skip
SOURCES = {  # side, channels, boxes a position
    "conv4_3_norm": (64, 512, 4), "fc7": (32, 1024, 6), "conv6_2": (16, 512, 6),
    "conv7_2": (8, 256, 6), "conv8_2": (4, 256, 6), "conv9_2": (2, 256, 4),
    "conv10_2": (1, 256, 4),
}  # fmt: skip
HEADS = {
    f"{name}_mbox_{what}": (side, 3, channels, boxes * outputs)
    for name, (side, channels, boxes) in SOURCES.items()
    for what, outputs in (("loc", 4), ("conf", 21))
}
PRIORS = 24564


def macs(layers):
    return {name: side**2 * k**2 * i * o for name, (side, k, i, o) in layers.items()}


ssd512, SHAPES = dynvid.from_nnx(nnx.eval_shape(lambda: SSD512(rngs=nnx.Rngs(0))))
FRAMES = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.uint8)


def detect(params, frames):
    return ssd512(params, ssd_preprocess(frames))


def parameters(make):
    """Weights by the name of their Caffe layer: `make(name, leaf, shape)`."""
    names = {path: name for name, path in ssd.CAFFE_LAYERS.items()}
    return nnx.from_flat_state(
        [
            (path, jnp.asarray(make(names[path[:-1]], path[-1], p.shape), p.dtype))
            for path, p in nnx.to_flat_state(SHAPES)
        ]
    )


@pytest.fixture(scope="module")
def video():
    return dynvid.incremental(detect)


@pytest.fixture(scope="module")
def frames():
    """A frame, and the same with a bright patch on it, so that it outlives the poolings."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 200, FRAMES.shape, np.uint8)
    second = first.copy()
    second[0, 200:208, 300:310] = rng.integers(200, 256, (8, 10, 3), np.uint8)
    return jnp.asarray(first), jnp.asarray(second)


@pytest.fixture(scope="module")
def real():
    """Weights of the size that keeps activations the same from layer to layer."""
    rng = np.random.default_rng(1)

    def make(name, leaf, shape):
        if leaf == "kernel":
            return rng.standard_normal(shape, np.float32) * math.sqrt(2 / math.prod(shape[:3]))
        return rng.uniform(10, 30, shape) if leaf == "scale" else rng.uniform(-1, 1, shape)

    return parameters(make)


# The network.


def test_every_parameter_is_counted_and_named():
    expected = {
        name: k**2 * i * o + o for name, (_, k, i, o) in (VGG | FC | EXTRAS | HEADS).items()
    }
    expected["conv4_3_norm"] = 512
    names = {path: name for name, path in ssd.CAFFE_LAYERS.items()}
    found = dict.fromkeys(ssd.CAFFE_LAYERS, 0)
    for path, p in nnx.to_flat_state(SHAPES):
        found[names[path[:-1]]] += p.size
    assert found == expected
    assert sum(p.size for p in jax.tree.leaves(SHAPES)) == sum(expected.values())
    kernels = {names[p[:-1]]: x.shape for p, x in nnx.to_flat_state(SHAPES) if p[-1] == "kernel"}
    assert kernels == {n: (k, k, i, o) for n, (_, k, i, o) in (VGG | FC | EXTRAS | HEADS).items()}


def test_macs_of_every_layer_are_the_papers_baseline():
    table = dynvid.explain(detect, SHAPES, FRAMES)
    counted = [r.macs for r in table.rows if r.operation == "conv_general_dilated"]
    assert counted == list(macs(VGG | FC | EXTRAS | HEADS).values())
    assert table.macs == sum(counted)
    # The sums that the specification's figures are roundings of.
    assert f"{sum(macs(VGG).values()):.3e}" == "8.018e+10"
    assert f"{sum(macs(FC).values()):.3e}" == "5.906e+09"
    assert f"{sum(macs(EXTRAS).values()):.2e}" == "6.15e+08"
    assert f"{sum(macs(HEADS).values()):.3e}" == "3.509e+09"
    assert f"{table.macs:.3e}" == "9.021e+10"
    # The paper prints S^2 Cin Cout 9 cut to two digits, and their sum with its last two rows.
    printed = [m // (unit := 10 ** (len(str(m)) - 2)) * unit for m in macs(VGG).values()]
    large = [4.5e8, *[9.6e9, 4.8e9] * 2, 9.6e9, 9.6e9, 4.8e9, 9.6e9, 9.6e9, *[2.4e9] * 3]
    assert printed == large
    assert f"{sum(printed) + 1.3e8 + 1.07e10:.2e}" == "9.05e+10"


def test_convolutions_run_on_cells_and_only_the_ends_are_dense():
    table = dynvid.explain(detect, SHAPES, FRAMES)
    dense = [row for row in table.rows if row.mode == "dense"]
    # Reshaping and joining at the end, and maps of 2 x 2 and 1 x 1, where a cell is the whole map.
    assert {row.operation for row in dense} == {
        "add", "concatenate", "conv_general_dilated", "max", "reshape"
    }  # fmt: skip
    assert all(
        row.operation in ("concatenate", "reshape") or max(row.shape[1:3]) <= 2 for row in dense
    )
    assert table.incremental_macs > 0.9999 * table.macs
    point = [row for row in table.rows if row.operation in ("square", "reduce_sum", "sqrt", "div")]
    assert {row.mode for row in point} == {"incremental"}


def test_sources_shrink_from_64_to_1():
    shapes = [jax.ShapeDtypeStruct((2, s, s, 512), jnp.float32) for s in (64, 32)]
    maps = jax.eval_shape(lambda *xs: SSD512(rngs=nnx.Rngs(0)).sources(*xs), *shapes)
    assert maps.keys() == SOURCES.keys()
    for name, (side, channels, _) in SOURCES.items():
        assert maps[name].shape == (2, side, side, channels)


def test_other_images_are_refused():
    with pytest.raises(ValueError, match=r"\(S, 512, 512, 3\); got \(1, 300, 300, 3\)"):
        jax.eval_shape(
            ssd512,
            SHAPES,
            jax.ShapeDtypeStruct((1, 300, 300, 3), "f4"),
        )
    with pytest.raises(ValueError, match=r"\(S, H, W, 3\); got \(4, 4, 3\)"):
        ssd_preprocess(jnp.zeros((4, 4, 3)))


def test_norm_is_numpys():
    rng = np.random.default_rng(2)
    x = rng.normal(0, 3, (2, 3, 4, 7)).astype(np.float32)
    x[0, 1, 2] = 0  # nothing there: the epsilon keeps it from dividing by zero
    x[1, 0, 0] = 1e-5  # and counts where there is little: 7e-10 of squares and 1e-10
    layer = L2Norm(7)
    np.testing.assert_array_equal(layer.scale[...], np.full(7, 20))
    layer.scale[...] = jnp.asarray(rng.uniform(1, 30, 7), jnp.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).sum(-1, keepdims=True) + 1e-10) * layer.scale[...]
    # Seven squares and their sum, root, quotient and product: fewer than 16 roundings.
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=16 * EPS, atol=0)


def graph_of(params):
    """The released definition, layer by layer, as Caffe lays it out: NCHW, flattened heads."""
    flat = {path: np.asarray(p[...]) for path, p in nnx.to_flat_state(params)}
    graph = Graph(shape=(1, 3, 512, 512))

    def conv(name, x, **attributes):
        path = ssd.CAFFE_LAYERS[name]
        kernel = flat[(*path, "kernel")].transpose(3, 2, 0, 1)
        return graph.node("Conv", x, kernel, flat[(*path, "bias")], **attributes)

    def rectified(name, x, **attributes):
        return graph.node("Relu", conv(name, x, **attributes))

    maps, x = {}, "x"
    for group, count in enumerate((2, 2, 3, 3, 3), start=1):
        for layer in range(1, count + 1):
            x = rectified(f"conv{group}_{layer}", x, pads=[1] * 4)
        if group == 4:
            norm = graph.node("ReduceL2", x, axes=[1], keepdims=1)
            scale = flat[("conv4_3_norm", "scale")].reshape(1, -1, 1, 1)
            maps["conv4_3_norm"] = graph.node("Mul", graph.node("Div", x, norm), scale)
        if group < 5:
            x = graph.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.node("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
    x = rectified("fc6", x, pads=[6] * 4, dilations=[6, 6])
    x = maps["fc7"] = rectified("fc7", x)
    for block in (6, 7, 8, 9):
        x = rectified(f"conv{block}_1", x)
        x = rectified(f"conv{block}_2", x, pads=[1] * 4, strides=[2, 2])
        maps[f"conv{block}_2"] = x
    maps["conv10_2"] = rectified("conv10_2", rectified("conv10_1", x), pads=[1] * 4)

    def flattened(what):
        parts = []
        for name in SOURCES:
            x = conv(f"{name}_mbox_{what}", maps[name], pads=[1] * 4)
            parts.append(graph.node("Flatten", graph.node("Transpose", x, perm=[0, 2, 3, 1])))
        return graph.node("Concat", *parts, axis=1)

    return graph, [flattened("loc"), flattened("conf")]


def close(found, expected):
    """Within rounding: 26 convolutions follow one another, each with sums of at most 9 x 1024.

    The roundings are independent, so that their variances add up: a sum of K terms is off by
    sqrt(K) units in the last place, and 26 of them by sqrt(26 K).
    """
    for output, reference in zip(found, expected, strict=True):
        tolerance = math.sqrt(26 * 9 * 1024) * EPS * np.abs(reference).max()
        np.testing.assert_allclose(output, reference, rtol=0, atol=tolerance)


def test_network_is_the_published_one(real, frames, tmp_path):
    graph, outputs = graph_of(real)
    graph.save(tmp_path / "ssd.onnx", *outputs)
    images = ssd_preprocess(frames[0])
    locations, confidences = jax.jit(ssd512)(real, images)
    assert locations.shape == (1, PRIORS, 4)
    assert confidences.shape == (1, PRIORS, 21)
    expected = runtime(tmp_path / "ssd.onnx", np.asarray(images).transpose(0, 3, 1, 2))
    close([x.reshape(1, -1) for x in (locations, confidences)], expected)


def test_a_small_change_gives_the_dense_outputs(video, real, frames):
    first, second = frames
    state, before = video.init(real, first)
    state, after = video.step(real, state, second)
    np.testing.assert_array_equal(state.reference, second)
    close(after, jax.jit(detect)(real, second))
    assert np.abs(after[1] - before[1]).max() > 1e-2  # it does change something
    assert state.work.mac_fraction < 0.2


def test_a_small_change_gives_the_dense_outputs_to_the_bit(video, frames):
    rng = np.random.default_rng(3)

    def make(name, leaf, shape):
        """One weight of 1 for each output: integers that never grow, so that no sum is rounded."""
        if leaf == "bias":
            return rng.integers(-1, 2, shape)
        if leaf == "scale":
            return np.full(shape, 16)
        kernel = np.zeros((math.prod(shape[:3]), shape[3]))
        kernel[rng.integers(0, len(kernel), shape[3]), np.arange(shape[3])] = 1
        return kernel.reshape(shape)

    params = parameters(make)
    state, before = video.init(params, frames[0])
    state, after = video.step(params, state, frames[1])
    normalised = 64 * 64 * 4  # the boxes of conv4_3_norm: a root and a quotient are not integers
    for output, old, reference in zip(
        after, before, jax.jit(detect)(params, frames[1]), strict=True
    ):
        np.testing.assert_array_equal(output[:, normalised:], reference[:, normalised:])
        # Root, quotient and product, each in two ways, then a bias: fewer than 8 roundings.
        tolerance = 8 * EPS * np.abs(reference[:, :normalised]).max()
        np.testing.assert_allclose(
            output[:, :normalised], reference[:, :normalised], rtol=0, atol=tolerance
        )
        assert (output[:, normalised:] != old[:, normalised:]).any()


# Around the network.


def test_frames_are_stretched_and_lose_the_mean():
    frames = np.random.default_rng(4).integers(0, 256, (2, 512, 512, 3), np.uint8)
    expected = frames[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    np.testing.assert_array_equal(ssd_preprocess(jnp.asarray(frames)), expected)
    # v / 255 * 255 rounds twice, numbers of up to 255.
    np.testing.assert_allclose(
        ssd_preprocess(jnp.asarray(frames, jnp.float32) / 255), expected, rtol=0, atol=255 * EPS
    )
    half = jnp.asarray(np.repeat([[[[10, 20, 30]], [[50, 60, 70]]]], 5, axis=2), jnp.uint8)
    image = ssd_preprocess(half)
    assert image.shape == (1, 512, 512, 3)
    np.testing.assert_allclose(image[0, 0, 99], [30 - 104, 20 - 117, 10 - 123], atol=255 * EPS)
    np.testing.assert_allclose(image[0, -1, 99], [70 - 104, 60 - 117, 50 - 123], atol=255 * EPS)


def test_prior_boxes_are_the_loops():
    """Caffe's order: least, middle, then each aspect and its inverse, of every place by rows."""
    least = [0.07, 0.15, 0.30, 0.45, 0.60, 0.75, 0.90, 1.05]  # shares of the image
    aspects = [[2, 1 / 2], *[[2, 1 / 2, 3, 1 / 3]] * 4, [2, 1 / 2], [2, 1 / 2]]
    expected = []
    for level, side in enumerate((64, 32, 16, 8, 4, 2, 1)):
        for row in range(side):
            for column in range(side):
                x, y = (column + 0.5) / side, (row + 0.5) / side
                size = least[level]
                expected.append((x, y, size, size))
                middle = math.sqrt(size * least[level + 1])
                expected.append((x, y, middle, middle))
                for a in aspects[level]:
                    expected.append((x, y, size * math.sqrt(a), size / math.sqrt(a)))
    priors = prior_boxes()
    assert priors.shape == (PRIORS, 4)
    assert priors.dtype == np.float32
    np.testing.assert_allclose(priors, expected, rtol=EPS)  # rounded to float32 once


def test_some_prior_boxes_by_hand():
    priors = prior_boxes() * 512
    starts = np.cumsum([0] + [side**2 * boxes for side, _, boxes in SOURCES.values()])
    assert starts[-1] == PRIORS
    np.testing.assert_allclose(priors[0], [4, 4, 35.84, 35.84], rtol=1e-6)
    np.testing.assert_allclose(priors[1, 2:], [math.sqrt(35.84 * 76.8)] * 2, rtol=1e-6)
    np.testing.assert_allclose(priors[4], [12, 4, 35.84, 35.84], rtol=1e-6)  # the next column
    np.testing.assert_allclose(priors[4 * 64], [4, 12, 35.84, 35.84], rtol=1e-6)  # the next row
    at = starts[2] + 6 * (16 * 3 + 5)  # conv6_2, row 3, column 5
    np.testing.assert_allclose(priors[at, :2], [176, 112], rtol=1e-6)
    np.testing.assert_allclose(priors[at + 4, 2:], [153.6 * 3**0.5, 153.6 / 3**0.5], rtol=1e-6)
    np.testing.assert_allclose(priors[-3], [256, 256] + [math.sqrt(460.8 * 537.6)] * 2, rtol=1e-6)


def overlaps(box, others):
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    areas = np.prod(others[:, 2:] - others[:, :2], -1)
    return shared / (np.prod(box[2:] - box[:2]) + areas - shared)


def detections(locations, confidences, width, height):
    """Caffe's output layer as loops, in float64: rows of score, class and box, best first."""
    boxes = []
    for (x, y, w, h), shift in zip(prior_boxes().astype(np.float64), locations, strict=True):
        cx, cy = x + 0.1 * shift[0] * w, y + 0.1 * shift[1] * h
        bw, bh = w * math.exp(0.2 * shift[2]), h * math.exp(0.2 * shift[3])
        boxes.append([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2])
    boxes = np.array(boxes) * [width, height, width, height]
    scores = np.exp(confidences.astype(np.float64))
    scores /= scores.sum(-1, keepdims=True)
    found = []
    for label in range(1, scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")
        kept = []
        for i in order[:400]:
            if scores[i, label] > 0.01 and (
                not kept or overlaps(boxes[i], boxes[kept]).max() <= 0.45
            ):
                kept.append(int(i))
        found += [(scores[i, label], label - 1, *boxes[i]) for i in kept]
    return sorted(found, reverse=True)[:200]


@pytest.mark.parametrize("background", [0.0, 12.0])  # all slots filled; some left
def test_decoding_is_the_loop(background):
    rng = np.random.default_rng(5)
    locations = rng.normal(0, 1, (2, PRIORS, 4)).astype(np.float32)
    confidences = rng.normal(0, 1.5, (2, PRIORS, 4)).astype(np.float32)
    confidences[..., 0] += background
    found = decode_ssd(jnp.asarray(locations), jnp.asarray(confidences), size=(576, 768))
    assert found.boxes.shape == (2, 200, 4)
    for image in range(2):
        expected = detections(locations[image], confidences[image], 768, 576)
        count = int(found.valid[image].sum())
        assert count == len(expected)
        assert (count == 200) == (background == 0)
        scores, classes, *boxes = np.array(expected).T
        np.testing.assert_array_equal(found.classes[image, :count], classes)
        # Numbers below 1000 and exponents below 4, a few roundings of each.
        np.testing.assert_allclose(found.scores[image, :count], scores, rtol=32 * EPS)
        np.testing.assert_allclose(
            found.boxes[image, :count], np.stack(boxes, -1), atol=8 * 1000 * EPS
        )
        assert (found.classes[image, count:] == -1).all()


def test_the_head_finds_a_box_in_a_stretched_frame():
    at = 64 * 64 * 4 + 6 * (32 * 9 + 21)  # fc7, row 9, column 21: the square of 76.8
    confidences = jnp.zeros((1, PRIORS, 21)).at[..., 0].set(20).at[0, at, 15].set(40)
    outputs = jnp.zeros((1, PRIORS, 4)), confidences
    head = zoo.HEADS["ssd"]
    geometry = head.preprocessing.letterbox((256, 1024))
    assert geometry == letterbox((256, 1024), (512, 512), placement="stretch")
    found = head.decode(None, outputs, size=geometry.network_size, score_threshold=0.5)
    boxes = geometry.to_frame(found).boxes
    x, y = 21.5 * 16, 9.5 * 16
    edges = [(x - 38.4) * 2, (y - 38.4) / 2, (x + 38.4) * 2, (y + 38.4) / 2]
    np.testing.assert_allclose(boxes[0, 0], edges, rtol=8 * EPS)
    assert found.valid.sum() == 1
    assert head.class_names[int(found.classes[0, 0])] == "person"
    assert len(ssd.VOC_CLASSES) == len(set(ssd.VOC_CLASSES)) == 20


def test_outputs_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"\(S, 24564, 4\) .* got \(1, 8732, 4\)"):
        decode_ssd(jnp.zeros((1, 8732, 4)), jnp.zeros((1, 8732, 21)))
    with pytest.raises(ValueError, match=r"and \(2, 24564, 21\)"):
        decode_ssd(jnp.zeros((1, PRIORS, 4)), jnp.zeros((2, PRIORS, 21)))
