"""Darknet files: what is read from them, and what is said of those that are damaged."""

import struct

import cv2
import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.data.mot import parse_mot
from dynvid.graph import estimate
from dynvid.metrics.average_precision import average_precision, of_class, pad_boxes
from dynvid.models.darknet import build_darknet, parse_cfg
from dynvid.models.zoo import HEADS
from dynvid.ops.boxes import Detections
from dynvid.types import Limits
from dynvid.weights.darknet import load_darknet
from tests.data import data_path

CFG = """[net]
width=32
height=32
[convolutional]
batch_normalize=1
filters=4
size=3
pad=1
activation=leaky
[convolutional]
filters=6
groups=2
size=1
activation=linear
"""


def random_layers(network, *, seed=0):
    """What a file holds of each convolution, as Darknet has it: kernels OIHW."""
    rng = np.random.default_rng(seed)
    layers = {}
    for i, layer in network.convolutions.items():
        height, width, depth, count = layer.kernel
        scale = 1.5 / np.sqrt(height * width * depth)
        layers[i] = {"bias": rng.normal(0, 0.3, count)}
        if layer.normalized:
            layers[i] |= {
                "scale": rng.uniform(0.5, 1.5, count),
                "mean": rng.normal(0, 0.2, count),
                "variance": rng.uniform(0.3, 1.5, count),
            }
        layers[i]["kernel"] = rng.normal(0, scale, (count, depth, height, width))
    return {i: {k: v.astype("<f4") for k, v in layer.items()} for i, layer in layers.items()}


HEADER = struct.pack("<3iQ", 0, 2, 5, 77)


def outcome(make):
    """What a function returns, or what its ValueError says."""
    try:
        return make(), ""
    except ValueError as error:
        return None, str(error)


def weights_file(network, *, header=HEADER, layers=None):
    """A `.weights` file with random numbers."""
    layers = random_layers(network) if layers is None else layers
    return header + b"".join(part.tobytes() for layer in layers.values() for part in layer.values())


@pytest.fixture
def files(tmp_path):
    """A description, its network, and a way to load it with some bytes as weights."""
    (tmp_path / "n.cfg").write_text(CFG)

    def load(data):
        (tmp_path / "n.weights").write_bytes(data)
        return load_darknet(tmp_path / "n.cfg", weights=tmp_path / "n.weights")

    return build_darknet(parse_cfg(CFG)), load


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<3iQ", 0, 2, 0, 32_013_312),
        struct.pack("<3iQ", 1, 0, 0, 2**40),
        struct.pack("<3iI", 0, 1, 0, 100),
    ],
)
def test_numbers_are_read_in_darknet_s_order(files, header):
    network, load = files
    layers = random_layers(network)
    fn, params = load(weights_file(network, header=header, layers=layers))
    x = np.random.default_rng(1).random((1, 5, 6, 3)).astype(np.float32)
    a, b = layers[0], layers[1]
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    y = np.zeros((5, 6, 4))
    for r, c, o in np.ndindex(5, 6, 4):
        y[r, c, o] = (padded[r : r + 3, c : c + 3].transpose(2, 0, 1) * a["kernel"][o]).sum()
    y = (y - a["mean"]) / np.sqrt(a["variance"] + 1e-6) * a["scale"] + a["bias"]
    y = np.where(y > 0, y, 0.1 * y)
    z = np.zeros((5, 6, 6))
    for o in range(6):
        half = y[..., :2] if o < 3 else y[..., 2:]
        z[..., o] = half @ b["kernel"][o, :, 0, 0] + b["bias"][o]
    (found,) = fn(params, jnp.asarray(x))
    # Sums of 27 and of 2 products, folding, and their largest values.
    np.testing.assert_allclose(found[0], z, rtol=0, atol=40 * np.finfo(np.float32).eps * 4)


def test_random_weights_where_there_is_no_file(files, tmp_path):
    files[1](weights_file(files[0]))
    fn, params = load_darknet(tmp_path / "n.cfg")
    same = load_darknet(tmp_path / "n.cfg", seed=0)[1]
    other = load_darknet(tmp_path / "n.cfg", seed=1)[1]
    kernel = lambda p: p["layer_0"]["kernel"]  # noqa: E731
    np.testing.assert_array_equal(kernel(params), kernel(same))
    assert (kernel(params) != kernel(other)).any()
    assert fn(params, jnp.ones((1, 8, 8, 3)))[0].shape == (1, 8, 8, 6)


def test_weights_of_another_length_say_where_they_end(files):
    network, load = files
    data = weights_file(network)
    # 4 x 4 numbers and 4 kernels of 27 in layer 0.
    for cut, where in ((3, "layer 1"), (19 * 4, "layer 0"), (4, "layer 1"), (1, "layer 1")):
        with pytest.raises(ValueError, match=f"n.weights: not the weights of .*n.cfg .*in {where}"):
            load(data[:-cut])
    with pytest.raises(ValueError, match="goes on after the last layer"):
        load(data + bytes(4))
    for short in (b"", data[:11], data[:12], data[:20]):
        with pytest.raises(ValueError, match=r"too few for a header|ends in layer 0"):
            load(short)


def test_damaged_numbers_are_named(files):
    network, load = files
    for value, key, where in (
        (np.nan, "kernel", "layer 1: not all numbers are finite"),
        (np.inf, "bias", "layer 1: not all numbers are finite"),
    ):
        layers = random_layers(network)
        layers[1][key].flat[1] = value
        with pytest.raises(ValueError, match=where):
            load(weights_file(network, layers=layers))
    layers = random_layers(network)
    layers[0]["variance"][2] = -1
    with pytest.raises(ValueError, match="layer 0: a variance is negative"):
        load(weights_file(network, layers=layers))


def test_other_files_are_refused(files, tmp_path):
    network, load = files
    with pytest.raises(ValueError, match="none of Darknet's"):
        load(b"\x93NUMPY" + weights_file(network))
    (tmp_path / "bad.cfg").write_bytes(b"[net]\nwidth=\xff")
    with pytest.raises(ValueError, match=r"bad.cfg: not text \(byte 12\)"):
        load_darknet(tmp_path / "bad.cfg")
    (tmp_path / "bad.cfg").write_text("[net]\nwidth=8\nheight=8\n[gru]\n")
    with pytest.raises(ValueError, match=r"bad.cfg: line 4, \[gru\]"):
        load_darknet(tmp_path / "bad.cfg")
    with pytest.raises(FileNotFoundError):
        load_darknet(tmp_path / "none.cfg")


def test_a_description_that_asks_for_too_much_reserves_nothing(tmp_path):
    layer = "[convolutional]\nfilters=65536\nsize=65535\nactivation=linear\n"
    (tmp_path / "n.cfg").write_text("[net]\nwidth=8\nheight=8\n" + layer * 3)
    (tmp_path / "n.weights").write_bytes(bytes(2000))
    with pytest.raises(ValueError, match="2000 bytes, expected"):
        load_darknet(tmp_path / "n.cfg", weights=tmp_path / "n.weights")


def test_any_damage_to_weights_is_one_clear_error_or_other_numbers(files):
    network, load = files
    data, refused = weights_file(network), 0
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] ^= 1 << rng.integers(8)
        damaged = damaged[: rng.integers(0, len(data))] if rng.random() < 0.3 else damaged
        loaded, error = outcome(lambda: load(bytes(damaged)))  # noqa: B023
        if loaded is None:
            assert "\n" not in error
            assert "n.weights" in error
            refused += 1
        else:
            assert all(jnp.isfinite(p).all() for p in jax.tree.leaves(loaded[1]))
    assert refused > 50


# The released networks.


@pytest.fixture(scope="module", params=["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def released(request):
    paths = [data_path(f"weights/yolo_fastest/{request.param}.{e}") for e in ("cfg", "weights")]
    fn, params = load_darknet(paths[0], weights=paths[1])
    theirs = cv2.dnn.readNetFromDarknet(*map(str, paths))
    theirs.enableWinograd(False)
    return jax.jit(fn), params, theirs


def test_released_networks_are_as_in_opencv(released):
    fn, params, theirs = released
    x = np.random.default_rng(0).integers(0, 256, (1, 576, 768, 3), np.uint8)
    theirs.setInput(cv2.dnn.blobFromImage(x[0], 1 / 255))
    # What OpenCV calls conv_120 and conv_129 are the heads before their sigmoid.
    for output, name in zip(fn(params, x), ("conv_120", "conv_129"), strict=True):
        reference = theirs.forward(name).transpose(0, 2, 3, 1)
        assert np.abs(reference).max() > 10
        np.testing.assert_allclose(output, reference, rtol=0, atol=1e-4)


def test_released_networks_find_the_people_of_pets(released):
    fn, params, _ = released
    folder = data_path("pets09_s2l1")
    truth = parse_mot((folder / "gt_mot.txt").read_text())
    numbers = range(1, 251, 50)
    found = []
    for n in numbers:
        image = iio.imread(sorted((folder / "img1").glob("*.jpg"))[n - 1])[None]
        found.append(
            of_class(
                HEADS["yolov3"].decode(
                    params, fn(params, image), size=image.shape[1:3], score_threshold=0.01
                ),
                0,
            )
        )
    joined = Detections(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    boxes, present = pad_boxes([truth.get(n, np.zeros((0, 4))) for n in numbers])
    assert average_precision(joined, boxes, present).value > 0.8


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("[maxpool]\nsize=2000\nstride=1\npadding=1999", "windows of 2,000 positions a side"),
        ("[upsample]\nstride=9000", "would make an array of"),
        ("[convolutional]\nfilters=60000\nsize=1\nactivation=linear", "billion numbers"),
    ],
)
def test_what_a_description_asks_for_is_estimated_first(layer, words, tmp_path):
    cfg = f"[net]\nwidth=256\nheight=256\nchannels=3\n{layer}\n"
    (tmp_path / "m.cfg").write_text(cfg)
    network = build_darknet(parse_cfg(cfg))
    shapes = jax.eval_shape(lambda: network.init())
    found = estimate(network, shapes, jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32))
    with pytest.raises(ValueError, match=words):
        found.check(Limits())


def test_a_description_with_more_weights_than_allowed_draws_none(tmp_path):
    wide = "[convolutional]\nfilters=65536\nsize=1\nactivation=linear\n" * 2
    (tmp_path / "m.cfg").write_text(f"[net]\nwidth=8\nheight=8\nchannels=3\n{wide}")
    with pytest.raises(ValueError, match=r"m.cfg: it has 4,295,294,976 weights, the limit is"):
        load_darknet(tmp_path / "m.cfg")
