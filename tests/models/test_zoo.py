"""What `--model` takes: what networks are fed, and what files are told to be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.errors import UsageError
from dynvid.models.zoo import HEADS, load_model
from tests.data import data_path
from tests.weights.test_onnx import Graph


def test_heads_give_what_their_networks_expect():
    yolov5, yolox = (HEADS[name].preprocessing for name in ("yolov5", "yolox"))
    frames = jnp.full((1, 4, 8, 3), jnp.array([255, 0, 51], jnp.uint8))
    yolov5, yolox = (dataclasses.replace(x, size=(8, 8)) for x in (yolov5, yolox))
    image = yolov5.on_frames(lambda _, x: x)(None, frames)
    # Scaling by 1 / 255 rounds once.
    np.testing.assert_allclose(image[0, 2, 0], [1, 0, 0.2], rtol=2e-7)
    np.testing.assert_allclose(image[0, 1, 0], [114 / 255] * 3, rtol=2e-7)
    image = yolox.on_frames(lambda _, x: x)(None, frames)
    np.testing.assert_array_equal(image[0, 0, 0], [51, 0, 255])
    np.testing.assert_array_equal(image[0, 4, 0], [114] * 3)


def test_inputs_of_a_free_size_follow_the_frames():
    assert HEADS["yolov5"].preprocessing.network_size((576, 768)) == (480, 640)
    assert HEADS["yolox"].preprocessing.network_size((576, 768)) == (416, 416)


# Files.


class Yolox(Graph):
    """A file with the outputs of YOLOX for its own input, and nothing else of it."""

    def __init__(self, size=(64, 64), classes=1):
        super().__init__(shape=(1, 3, *size))
        cells = sum(-(-size[0] // s) * -(-size[1] // s) for s in (8, 16, 32))
        mean = self.node("Flatten", self.node("GlobalAveragePool", "x"), axis=1)
        row = self.node("Gemm", mean, np.zeros((3, cells * (5 + classes)), np.float32))
        self.result = self.node("Reshape", row, np.array([1, cells, 5 + classes]))


def maps(path, *, shape=(1, 3, None, None), outputs=1):
    graph = Graph(shape=shape)
    kernels = (np.ones((4 + k, 3, 2, 2), np.float32) for k in range(outputs))
    graph.save(path, *(graph.node("Conv", "x", kernel, strides=[2, 2]) for kernel in kernels))


def test_what_a_file_is_for_is_told_from_its_outputs(tmp_path):
    graph = Yolox()
    graph.save(tmp_path / "yolox.onnx", graph.result)
    model = load_model(tmp_path / "yolox.onnx", frame_size=(48, 80))
    assert (model.kind, model.network_size((48, 80))) == ("yolox head", (64, 64))
    maps(tmp_path / "maps.onnx")
    model = load_model(tmp_path / "maps.onnx", frame_size=(48, 80))
    assert (model.kind, model.head) == ("segmentation", None)
    assert model.network_size((48, 80)) == (320, 512)
    maps(tmp_path / "small.onnx", shape=(1, 3, 32, 32))
    model = load_model(tmp_path / "small.onnx", frame_size=(48, 80), class_names=["a", "b"])
    assert model.network_size((48, 80)) == (32, 32)
    assert model.task.class_names == ("a", "b")
    model.check((480, 640))
    with pytest.raises(UsageError, match=r"yolov5 head does not fit maps\.onnx"):
        load_model(tmp_path / "maps.onnx", frame_size=(48, 80), head="yolov5")


def test_a_file_with_several_outputs_is_asked_about(tmp_path):
    maps(tmp_path / "two.onnx", outputs=2)
    with pytest.raises(UsageError, match=r"cannot tell the task of two.onnx.*--task.*--head"):
        load_model(tmp_path / "two.onnx", frame_size=(48, 80))
    model = load_model(tmp_path / "two.onnx", frame_size=(48, 80), task="segmentation")
    outputs = jax.eval_shape(
        model.on_frames, model.params, jax.ShapeDtypeStruct((2, 48, 80, 3), jnp.uint8)
    )
    assert outputs.shape == (2, 4, 160, 256)


def test_every_error_is_one_line(tmp_path):
    (tmp_path / "text.onnx").write_text("no\nmodel\n")
    maps(tmp_path / "grey.onnx", shape=(1, 1, 32, 32))
    for name, options in (
        ("text.onnx", {}), ("grey.onnx", {}), ("missing.pt", {}), ("text.txt", {}),
        ("grey.onnx", {"task": "segmentation"}), ("grey.onnx", {"head": "ssd"}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name.partition(".")[0]) as error:
            load_model(tmp_path / name, frame_size=(32, 32), **options)
        assert "\n" not in str(error.value)


def test_weights_are_known_by_their_bytes(tmp_path):
    maps(tmp_path / "one.onnx")
    maps(tmp_path / "same.onnx")
    maps(tmp_path / "other.onnx", shape=(1, 3, 64, 64))
    digests = [
        load_model(tmp_path / f"{name}.onnx", frame_size=(32, 32)).digest
        for name in ("one", "same", "other")
    ]
    assert digests[0] == digests[1] != digests[2]
    assert load_model(None, frame_size=(32, 32)).digest is None


def test_the_shipped_detector_sees_frames_at_their_size():
    model = load_model(None, frame_size=(50, 33))
    assert model.network_size((50, 33)) == (56, 40)
    assert load_model(None, frame_size=(480, 640)).task.geometry((480, 640)).resized == (480, 640)


@pytest.mark.parametrize(("frame_size", "size"), [
    ((240, 320), (240, 320)), ((241, 319), (248, 320)), ((16, 16), (16, 16)), ((1, 1), (8, 8)),
    ((1080, 1920), (360, 640)),
])  # fmt: skip
def test_the_shipped_segmenter_sees_frames_at_their_size_up_to_a_limit(frame_size, size):
    model = load_model(None, frame_size=frame_size, task="segmentation")
    assert (model.kind, model.head, model.digest) == ("segmentation", None, None)
    assert model.network_size(frame_size) == size
    assert model.task.class_names[3] == "road"
    images = jax.eval_shape(model.resize, jax.ShapeDtypeStruct((1, *frame_size, 3), jnp.uint8))
    assert images.shape == (1, *size, 3)
    scores = jax.eval_shape(model.class_scores, model.params, images)
    assert scores.shape == (1, -(-size[0] // 4), -(-size[1] // 4), 11)


def test_scores_come_with_the_classes_last(tmp_path):
    maps(tmp_path / "maps.onnx")
    model = load_model(tmp_path / "maps.onnx", frame_size=(48, 80), pixels="unit")
    images = jnp.full((1, 8, 12, 3), 51, jnp.uint8)
    scores = model.class_scores(model.params, images)
    # 12 products of 1 with 51 / 255, each rounded once, as are their sums.
    np.testing.assert_allclose(scores, np.full((1, 4, 6, 4), 2.4), rtol=13 * 2**-24)
    with pytest.raises(ValueError, match=r"shipped detector must be for segmentation"):
        load_model(None, frame_size=(32, 32)).class_scores((), images)


@pytest.mark.parametrize(("options", "match"), [
    ({"head": "yolox"}, "--head is for detectors"),
    ({"pixels": "unit"}, "--pixels is for other models: shipped segmenter knows its own"),
])  # fmt: skip
def test_the_shipped_segmenter_knows_what_it_takes(options, match):
    with pytest.raises(UsageError, match=match):
        load_model(None, frame_size=(32, 32), task="segmentation", **options)


def test_espnet_segments_and_nothing_else(tmp_path):
    path = data_path("weights/espnet/espnet_p_2_q_8_camvid.pth")
    for options in ({"task": "detection"}, {"head": "yolox"}):
        with pytest.raises(UsageError, match=r"camvid\.pth is a network of segmentation; got"):
            load_model(path, frame_size=(32, 32), **options)
    other = tmp_path / "other.pth"
    other.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UsageError, match=r"cannot read the model: .*other\.pth"):
        load_model(other, frame_size=(32, 32))
