"""Darknet networks against OpenCV, layer by layer, and YOLOv3 against its published figures."""

import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.graph.trace import trace
from dynvid.incremental.plan import node_macs
from dynvid.models.darknet import Section, Yolo, build_darknet, parse_cfg, yolov3_cfg
from dynvid.models.yolo_heads import decode_yolov3
from dynvid.models.zoo import HEADS
from dynvid.weights.darknet import load_darknet
from tests.weights.test_darknet import outcome, weights_file

NET = "[net]\nwidth=32\nheight=32\nchannels=3\n"


def build(layers, *, net=NET):
    return build_darknet(parse_cfg(net + layers))


def conv(filters, size=3, **options):
    text = f"[convolutional]\nfilters={filters}\nsize={size}\npad=1\n"
    return text + "".join(f"{key}={value}\n" for key, value in options.items())


# Against OpenCV.


def opencv_layers(layers, x, tmp_path):
    """The output of the last layer in OpenCV, and ours, from the same files."""
    (tmp_path / "n.cfg").write_text(NET + layers)
    network = build(layers)
    (tmp_path / "n.weights").write_bytes(weights_file(network))
    theirs = cv2.dnn.readNetFromDarknet(str(tmp_path / "n.cfg"), str(tmp_path / "n.weights"))
    theirs.enableWinograd(False)
    theirs.setInput(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    reference = theirs.forward()
    fn, params = load_darknet(tmp_path / "n.cfg", weights=tmp_path / "n.weights")
    (found,) = fn(params, jnp.asarray(x))
    return np.asarray(found), reference.transpose(0, 2, 3, 1)


CASES = {
    **{
        name: conv(4, activation=name, batch_normalize=1)
        for name in ("linear", "leaky", "relu", "logistic", "swish", "mish")
    },
    "bias": conv(5, activation="linear"),
    "strides": conv(4, 5, stride=2, activation="leaky") + conv(6, 1, activation="linear"),
    "no padding": "[convolutional]\nfilters=4\nsize=3\nactivation=linear\n",
    "padding": "[convolutional]\nfilters=4\nsize=3\npadding=2\nactivation=linear\n",
    "groups": conv(8, activation="leaky") + conv(16, groups=4, activation="leaky"),
    "depthwise": conv(8, activation="leaky") + conv(8, 5, groups=8, stride=2, activation="relu"),
    "shortcut": conv(4, activation="leaky")
    + conv(4, activation="linear")
    + "[dropout]\nprobability=.5\n[shortcut]\nfrom=-3\nactivation=linear\n",
    "shortcut by number": conv(4, activation="leaky")
    + conv(4, activation="linear")
    + "[shortcut]\nfrom=0\nactivation=leaky\n",
    "route": conv(4, activation="leaky")
    + conv(6, activation="linear")
    + "[route]\nlayers=-1, 0\n"
    + conv(3, 1, activation="linear"),
    "route of groups": conv(8, activation="leaky")
    + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n"
    + conv(3, 1, activation="linear"),
    "upsample": conv(4, stride=2, activation="leaky") + "[upsample]\nstride=2\n",
    "maxpool": conv(4, activation="leaky") + "[maxpool]\nsize=2\nstride=2\n",
    "maxpool of stride 1": conv(4, activation="linear") + "[maxpool]\nsize=2\nstride=1\n",
    "maxpool of size 3": conv(4, activation="linear") + "[maxpool]\nsize=3\nstride=2\n",
    "pyramid pooling": conv(4, activation="linear")
    + "[maxpool]\nsize=5\nstride=1\n[route]\nlayers=-2\n[maxpool]\nsize=9\nstride=1\n"
    + "[route]\nlayers=-1,-3,0\n",
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_layer_is_as_in_opencv(name, tmp_path):
    x = np.random.default_rng(3).random((1, 32, 32, 3)).astype(np.float32)
    found, reference = opencv_layers(CASES[name], x, tmp_path)
    assert found.shape == reference.shape
    # One or two sums of at most K = 9 x 8 products, each off by sqrt(K) units in the last place
    # of its largest value, and activations of slope 1 (mish: 1.1), evaluated to a few units.
    tolerance = 2 * (math.sqrt(72) + 4) * np.finfo(np.float32).eps * max(np.abs(reference).max(), 1)
    np.testing.assert_allclose(found, reference, rtol=0, atol=tolerance)


def test_uneven_maps_pool_as_darknet_says():
    # Darknet: out = (n + padding - size) / stride + 1, padding = size - 1, half of it in front.
    network = build("[maxpool]\nsize=2\nstride=2\n")
    x = np.arange(2 * 5 * 7 * 3, dtype=np.float32).reshape(2, 5, 7, 3)
    (found,) = network({}, jnp.asarray(x))
    assert found.shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(found[:, :2, :3], x[:, 1:4:2, 1:6:2])
    np.testing.assert_array_equal(found[:, 2, 3], x[:, 4, 6])


def test_avgpool_is_the_mean_of_a_map():
    (found,) = build("[avgpool]\n")({}, jnp.arange(24.0).reshape(1, 2, 4, 3))
    np.testing.assert_array_equal(found, [[[[10.5, 11.5, 12.5]]]])


def test_bytes_are_scaled_inside():
    network = build(conv(2, activation="linear"))
    params = network.init()
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    found, expected = network(params, x), network(params, x.astype(np.float32) / 255)
    np.testing.assert_array_equal(found[0], expected[0])


# YOLOv3.


@pytest.fixture(scope="module")
def yolov3():
    return build_darknet(parse_cfg(yolov3_cfg()))


@pytest.fixture(scope="module")
def shapes(yolov3):
    return jax.eval_shape(yolov3.init), jax.ShapeDtypeStruct((1, 416, 416, 3), jnp.float32)


def test_yolov3_has_its_published_size(yolov3, shapes):
    assert len(yolov3.layers) == 107
    assert len(yolov3.convolutions) == 75
    assert yolov3.parameter_count == 61_949_149
    # The published file holds the running means and variances as well, behind a header of 20 bytes.
    running = sum(2 * c.channels for c in yolov3.convolutions.values() if c.normalized)
    assert 20 + 4 * (yolov3.parameter_count + running) == 248_007_048
    outputs = jax.eval_shape(yolov3, *shapes)
    assert [o.shape for o in outputs] == [(1, 13, 13, 255), (1, 26, 26, 255), (1, 52, 52, 255)]
    assert [layer.anchors for layer in yolov3.heads] == [
        ((116, 90), (156, 198), (373, 326)),
        ((30, 61), (62, 45), (59, 119)),
        ((10, 13), (16, 30), (33, 23)),
    ]
    # 65.86 billion operations, two a multiply-accumulate, as Darknet prints it.
    macs = sum(map(node_macs, trace(yolov3, *shapes).nodes))
    assert macs * 2 / 1e9 == pytest.approx(65.86, abs=0.05)


def test_yolov3_at_layer_12_gives_52x52x256(yolov3, shapes):
    front, back = dynvid.split(yolov3, at="layer_12")
    features = jax.eval_shape(front, *shapes)
    assert features["layer_12"].shape == (1, 52, 52, 256)
    assert not features.others  # no connection skips layer 12
    assert features["layer_12"].size == 4 * 416 * 416
    outputs = jax.eval_shape(back, shapes[0], features)
    assert [o.shape for o in outputs] == [(1, 13, 13, 255), (1, 26, 26, 255), (1, 52, 52, 255)]


@pytest.mark.parametrize(
    ("at", "others"),
    [
        (36, []),
        (37, ["layer_36"]),
        (38, ["layer_36", "layer_37"]),
        (61, ["layer_36"]),
        (79, ["layer_36", "layer_61"]),
    ],
)
def test_yolov3_carries_what_later_layers_read(yolov3, shapes, at, others):
    features = jax.eval_shape(dynvid.split(yolov3, at=f"layer_{at}").front, *shapes)
    assert list(features.others) == others


def test_unknown_layers_are_reported(yolov3, shapes):
    with pytest.raises(ValueError, match=r"'layer_107'.* layer_0, layer_1"):
        jax.eval_shape(dynvid.split(yolov3, at="layer_107").front, *shapes)


SMALL = (
    conv(8, batch_normalize=1, activation="leaky", stride=2)
    + conv(8, groups=8, activation="leaky")
    + conv(8, 1, activation="linear")
    + "[dropout]\nprobability=.15\n[shortcut]\nfrom=-4\nactivation=linear\n"
    + conv(14, 1, stride=2, activation="linear")
    + "[yolo]\nmask=1,2\nanchors=1,2,3,4,5,6\nclasses=2\nnum=3\n[route]\nlayers=-4\n"
    + "[upsample]\nstride=2\n"
    + conv(7, 1, activation="linear")
    + "[yolo]\nmask=0\nanchors=1,2,3,4,5,6\nclasses=2\nnum=3\n"
)


def integer_params(network):
    rng = np.random.default_rng(5)
    draw = lambda p: jnp.asarray(rng.integers(-1, 2, p.shape), jnp.float32)  # noqa: E731
    params = {k: jax.tree.map(draw, v) for k, v in network.init().items() if k[:5] == "layer"}
    return params | network.constants()


def test_cut_at_every_layer_gives_the_whole():
    network = build(SMALL.replace("leaky", "relu"))
    params = integer_params(network)
    x = jnp.asarray(np.random.default_rng(1).integers(0, 4, (1, 16, 16, 3)), jnp.float32)
    expected = jax.jit(network)(params, x)
    for i in range(len(network.layers)):
        front, back = dynvid.split(network, at=f"layer_{i}")
        for a, b in zip(back(params, front(params, x)), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_network_runs_incrementally():
    network = build(SMALL.replace("leaky", "relu"))
    params = integer_params(network)
    rng = np.random.default_rng(2)
    x = rng.integers(0, 4, (1, 48, 64, 3)).astype(np.float32)
    video = dynvid.incremental(network)
    state, _ = video.init(params, x)
    x = x.copy()  # what has been handed over must stay as it is
    x[:, 10:14, 20:26] += 1
    state, outputs = video.step(params, state, x)
    for a, b in zip(outputs, jax.jit(network)(params, x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert 0 < state.work.mac_fraction < 0.3
    rows = dynvid.explain(network, params, x).rows
    assert {row.mode for row in rows if row.operation == "conv_general_dilated"} == {"incremental"}


# Decoding.


def decode_by_loops(outputs, anchors, scales, size):
    """Redmon and Farhadi's formulas, a box at a time."""
    sigmoid = lambda t: 1 / (1 + math.exp(-t))  # noqa: E731
    boxes = []
    for output, level, scale in zip(outputs, anchors, scales, strict=True):
        height, width = output.shape[1:3]
        for v, u, a in np.ndindex(height, width, len(level)):
            t = output[0, v, u].reshape(len(level), -1)[a]
            x = (scale * sigmoid(t[0]) - (scale - 1) / 2 + u) / width * size[1]
            y = (scale * sigmoid(t[1]) - (scale - 1) / 2 + v) / height * size[0]
            w, h = math.exp(t[2]) * level[a][0], math.exp(t[3]) * level[a][1]
            best = max(sigmoid(c) for c in t[5:])
            boxes.append([sigmoid(t[4]) * best, x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(sorted(boxes, reverse=True))


@pytest.mark.parametrize("scales", [None, (1.0, 1.2)])
def test_boxes_are_those_of_the_paper(scales):
    rng = np.random.default_rng(0)
    outputs = [rng.normal(0, 1, (1, 2, 4, 14)), rng.normal(0, 1, (1, 4, 8, 7))]
    outputs = [o.astype(np.float32) for o in outputs]
    anchors = [np.array([[30, 20], [9, 12]], np.float32), np.array([[5, 4]], np.float32)]
    found = decode_yolov3(
        outputs, anchors, size=(64, 128), scale_x_y=scales, score_threshold=0, iou_threshold=1
    )
    expected = decode_by_loops(outputs, anchors, scales or (1, 1), (64, 128))
    count = len(expected)
    assert found.valid[0, :count].all()
    assert not found.valid[0, count:].any()
    np.testing.assert_allclose(found.scores[0, :count], expected[:, 0], rtol=1e-6)
    # Coordinates below 256: a few roundings of at most 2^-17 each.
    np.testing.assert_allclose(found.boxes[0, :count], expected[:, 1:], rtol=0, atol=2**-14)


def test_outputs_and_anchors_must_belong_together():
    output, anchors = jnp.zeros((1, 2, 2, 12)), jnp.ones((2, 2))
    for given, scales in (([], None), ([anchors, anchors], None), ([anchors[0]], None)):
        with pytest.raises(ValueError, match=r"anchors and scale_x_y must be .* each of 1 outputs"):
            decode_yolov3([output], given, size=(8, 8), scale_x_y=scales)
    with pytest.raises(ValueError, match=r"anchors and scale_x_y must be .* each of 1 outputs"):
        decode_yolov3([output], [anchors], size=(8, 8), scale_x_y=[1.0, 1.0])
    with pytest.raises(ValueError, match="for 2 anchors a cell; got"):
        decode_yolov3([output[..., :11]], [anchors], size=(8, 8))


def test_the_head_knows_the_scale():
    network = build(
        conv(7, 1, activation="linear") + "[yolo]\nanchors=4,2\nclasses=2\nscale_x_y=1.5\n"
    )
    params = network.init()
    output = jnp.full((1, 1, 1, 7), 9.0).at[..., 2:4].set(0)
    found = HEADS["yolov3"].decode(params, [output], size=(8, 8))
    centre = 8 * (1.5 * jax.nn.sigmoid(9.0) - 0.25)
    np.testing.assert_allclose(found.boxes[0, 0, [0, 2]].mean(), centre, rtol=1e-6)


# Descriptions that cannot be.


def test_descriptions_are_read_as_darknet_reads_them():
    text = " [ net ]\r\nwidth = 3 2\n;comment\n#[lstm]\n[conv]\nsize=3\nsize=5\nanchors = 1,\t2\n"
    net, layer = parse_cfg(text)
    assert net == Section("net", {"width": "32"}, 1)
    assert layer.options == {"size": "3", "anchors": "1,2"}
    assert (layer.kind, layer.line) == ("convolutional", 5)


def test_absolute_and_relative_layers_mean_the_same():
    text = conv(4, activation="linear") * 3
    one, other = (build(text + f"[route]\nlayers={n}\n").layers[3].sources for n in ("-3", "0"))
    assert one == other == (0,)


YOLO = conv(14, activation="linear") + "[yolo]\nanchors=1,2,3,4\nclasses=2\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", r"first section must be \[net\]"),
        ("[convolutional]\n", r"first section must be \[net\]"),
        ("width=3\n", "line 1: 'width=3' stands before"),
        ("[net\nwidth=3\n", r"line 1: must be \[section\]; got '\[net'"),
        ("[net]\nwidth\n", "line 2: must be key=value; got 'width'"),
        ("[net]\nwidth=\n", "line 2: must be key=value"),
        ("[net]\nwidth=8\n" + YOLO, r"line 1, \[net\]: height is missing"),
        ("[net]\nwidth=8\nheight=-8\n" + YOLO, "height must be one whole number of at least 1"),
        (NET, "there is no layer"),
        (NET + "[lstm]\n", r"line 5, \[lstm\] \(layer 0\): unknown or unsupported layer"),
        (NET + conv(4, activation="lstm"), "activation must be one of linear, .*; got 'lstm'"),
        (NET + conv(0), "filters must be one whole number of at least 1; got '0'"),
        (NET + conv("1e3"), "filters must be whole numbers of at most 65536; got '1e3'"),
        (NET + conv(10**30), "filters must be whole numbers of at most 65536"),
        (NET + conv("9" * 5000), "filters must be whole numbers of at most 65536"),
        (NET + conv("4,4"), "filters must be one whole number"),
        (NET + conv(4, dilation=2), "unknown or unsupported: 'dilation'"),
        (NET + conv(4, colour=2, flipped=1), "unsupported: 'colour', 'flipped'"),
        (NET + conv(4, groups=2), "2 groups do not divide 3 and 4 channels"),
        (NET + conv(4, stride=0), "stride must be one whole number of at least 1"),
        (NET + "[shortcut]\nfrom=-1\n", "from must name layers before this one"),
        (NET + conv(4) + "[shortcut]\nfrom=5\n", r"0 to 0; got '5'"),
        (NET + conv(4) + conv(5) + "[shortcut]\nfrom=0\n", r"as many channels; got \[5, 4\]"),
        (NET + conv(4) + "[route]\n", r"line 9, \[route\] \(layer 1\): layers is missing"),
        (NET + conv(4) + "[route]\nlayers=-1\ngroups=3\n", "group 0 of 3 does not fit"),
        (NET + conv(4) + "[route]\nlayers=-1\ngroups=2\ngroup_id=2\n", "group 2 of 2 does not fit"),
        (NET + conv(60000) + "[route]\nlayers=-1,-1\n", "more than 65536 channels"),
        (NET + "[maxpool]\nsize=2\npadding=4\n", "padding must be less than twice the size 2"),
        (NET + YOLO.replace("1,2,3,4", "1,2,3"), "anchors must be pairs of positive"),
        (NET + YOLO.replace("1,2,3,4", "1,2,3,nan"), "anchors must be numbers"),
        (NET + YOLO.replace("1,2,3,4", "1,2,3,0"), "anchors must be pairs of positive"),
        (NET + YOLO + "mask=2\n", "mask must hold numbers of anchors, 0 to 1"),
        (NET + YOLO + "num=3\n", "num does not fit 2 anchors"),
        (NET + YOLO + "scale_x_y=0\n", "scale_x_y must be one positive number"),
        (NET + YOLO + "new_coords=1\n", "unsupported: 'new_coords'"),
        (NET + YOLO.replace("classes=2", "classes=3"), "need 16 channels; layer 0 has 14"),
    ],
)
def test_what_a_description_may_not_say(text, what):
    with pytest.raises(ValueError, match=what):
        build_darknet(parse_cfg(text))


def test_images_that_do_not_fit_are_refused():
    network = build(SMALL)
    params = network.init()
    with pytest.raises(ValueError, match=r"images must be \(S, H, W, 3\); got \(1, 8, "):
        network(params, jnp.zeros((1, 8, 8, 1)))
    joined = build(
        conv(4, stride=2) + "[upsample]\nstride=2\n" + conv(4) + "[route]\nlayers=-1,0\n"
    )
    with pytest.raises(ValueError, match=r"layer 3 joins maps of \(8, 8\) and \(4, 4\)"):
        joined(joined.init(), jnp.zeros((1, 8, 8, 3)))
    narrow = build("[convolutional]\nfilters=2\nsize=5\nactivation=linear\n")
    with pytest.raises(ValueError, match=r"images must be large enough for layer 0; got \(4, 8\)"):
        narrow(narrow.init(), jnp.zeros((1, 4, 8, 3)))


def test_any_damage_to_a_description_is_one_clear_error():
    rng = np.random.default_rng(0)
    original, refused = NET + SMALL, 0
    letters = np.array(list("[]=,-0123456789.xe\n#"))
    for _ in range(400):
        chars = list(original)
        for place in rng.integers(0, len(chars), rng.integers(1, 4)):
            chars[place] = str(rng.choice(letters))
        text = "".join(chars)
        network, error = outcome(lambda: build_darknet(parse_cfg(text)))  # noqa: B023
        if network is None:
            assert "\n" not in error
            refused += 1
        else:
            assert all(layer.channels >= 1 for layer in network.layers)
            assert all(isinstance(head, Yolo) for head in network.heads)
    assert refused > 100
