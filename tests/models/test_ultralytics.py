"""What Ultralytics exports: told from metadata and outputs, and decoded."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynvid.errors import UsageError
from dynvid.models.yolo_heads import Instances, decode_ultralytics
from dynvid.models.zoo import load_model
from dynvid.tasks import Classification, Detection, InstanceSegmentation, Measuring, Segmentation

SIDE, CLASSES = 32, 3
CELLS = 16 + 4 + 1  # of strides 8, 16 and 32
NAMES = "{0: 'person', 1: 'car', 2: 'bicycle'}"
METADATA = {"stride": "32", "task": "detect", "imgsz": "[32, 32]", "names": NAMES}


def conv(name, source, channels, side, constants, seed):
    kernel = np.random.default_rng(seed).normal(0, 0.1, (channels, 3, side, side))
    constants.append(numpy_helper.from_array(kernel.astype(np.float32), f"{name}_kernel"))
    return helper.make_node("Conv", [source, f"{name}_kernel"], [name], strides=[side, side])


def save(path, nodes, outputs, constants, metadata):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def export(path, *, rows=4 + CLASSES, protos=0, metadata=METADATA):
    """A graph with the outputs of an export: three grids of cells, and maps where wanted."""
    constants = [numpy_helper.from_array(np.array([1, rows + protos, -1]), "flat")]
    nodes = []
    for side in (8, 16, 32):
        nodes.append(conv(f"at_{side}", "images", rows + protos, side, constants, side))
        nodes.append(helper.make_node("Reshape", [f"at_{side}", "flat"], [f"row_{side}"]))
    joined = [f"row_{side}" for side in (8, 16, 32)]
    nodes.append(helper.make_node("Concat", joined, ["output0"], axis=2))
    if protos:
        nodes.append(conv("output1", "images", protos, 4, constants, 4))
    return save(path, nodes, ["output0", "output1"][: 1 + bool(protos)], constants, metadata)


def outputs_of(seed=0, more=0):
    """Boxes in pixels and scores, `(S, 4 + C + more, N)`."""
    rng = np.random.default_rng(seed)
    box = rng.uniform([8, 8, 4, 4], [24, 24, 12, 12], (2, CELLS, 4))
    rest = np.concatenate([rng.random((2, CELLS, CLASSES)), rng.normal(size=(2, CELLS, more))], 2)
    return np.concatenate([box, rest], 2).swapaxes(1, 2).astype(np.float32)


def expected(outputs, *, score=0.5, overlap=0.45):
    """Greedy suppression within each class, by a loop over one image's candidates."""
    found = []
    for row in sorted(outputs.T, key=lambda row: -row[4 : 4 + CLASSES].max()):
        label, best = int(row[4 : 4 + CLASSES].argmax()), row[4 : 4 + CLASSES].max()
        box = np.concatenate([row[:2] - row[2:4] / 2, row[:2] + row[2:4] / 2])
        for other, _, kind, _ in found:
            low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
            shared = np.prod(np.maximum(high - low, 0))
            union = np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared
            if kind == label and shared / union > overlap:
                break
        else:
            if best >= score:
                found.append((box, best, label, row[4 + CLASSES :]))
    return found


def test_boxes_are_those_of_a_loop_over_candidates():
    outputs = outputs_of()
    found = decode_ultralytics(
        jnp.asarray(outputs), size=(SIDE, SIDE), classes=CLASSES, score_threshold=0.5
    )
    assert found.boxes.shape == (2, 300, 4)
    for stream in range(2):
        wanted = expected(outputs[stream])
        assert 1 < len(wanted) == found.valid[stream].sum()
        np.testing.assert_allclose(
            found.boxes[stream, : len(wanted)], [box for box, *_ in wanted], atol=1e-5
        )
        assert found.classes[stream, : len(wanted)].tolist() == [label for *_, label, _ in wanted]


def test_masks_belong_to_their_boxes():
    outputs, maps = outputs_of(more=4), np.random.default_rng(1).normal(size=(2, 4, 8, 8))
    given = {"output0": jnp.asarray(outputs), "output1": jnp.asarray(maps, jnp.float32)}
    found = decode_ultralytics(given, size=(SIDE, SIDE), score_threshold=0.5)
    assert isinstance(found, Instances)
    assert found.masks.shape == (2, 300, 8, 8)
    centre = 4 * np.arange(8) + 2
    for stream in range(2):
        wanted = expected(outputs[stream])
        for k, (box, _, _, coefficients) in enumerate(wanted):
            inside = (centre >= box[0]) & (centre < box[2])
            inside = ((centre >= box[1]) & (centre < box[3]))[:, None] & inside
            level = np.tensordot(coefficients, maps[stream], 1)
            np.testing.assert_array_equal(found.masks[stream, k], inside & (level > 0))
        assert not found.masks[stream, len(wanted) :].any()


def test_other_forms():
    rows = np.zeros((1, 10, 6), np.float32)
    rows[0, :3] = [[1, 2, 9, 8, 0.9, 2], [3, 3, 5, 5, 0.2, 0], [0, 0, 4, 4, 0.6, 1]]
    found = decode_ultralytics(jnp.asarray(rows), size=(SIDE, SIDE), score_threshold=0.5)
    assert found.classes[0, :3].tolist() == [2, 1, -1]
    assert found.boxes[0, 0].tolist() == [1, 2, 9, 8]
    anchors = np.zeros((1, 3 * CELLS, 5 + CLASSES), np.float32)
    anchors[0, 7] = [10, 10, 4, 6, 0.5, 0.1, 0.8, 0.2]
    found = decode_ultralytics(jnp.asarray(anchors), size=(SIDE, SIDE), score_threshold=0.3)
    assert found.boxes[0, 0].tolist() == [8, 7, 12, 13]
    assert (float(found.scores[0, 0]), int(found.classes[0, 0])) == (pytest.approx(0.4), 1)
    for shape in ((1, 7, CELLS + 1), (1, 3, CELLS), (1, CELLS + 5, 6), (1, 7)):
        with pytest.raises(ValueError, match="outputs must"):
            decode_ultralytics(jnp.zeros(shape), size=(SIDE, SIDE))
    with pytest.raises(ValueError, match="must score 80 classes; got 3"):
        decode_ultralytics(jnp.zeros((1, 7, CELLS)), size=(SIDE, SIDE), classes=80)


def test_detectors_and_outlines_are_told_from_their_metadata(tmp_path):
    model = load_model(export(tmp_path / "m.onnx"), frame_size=(48, 64))
    assert (type(model.task), model.head) == (Detection, "ultralytics")
    assert model.task.class_names == ("person", "car", "bicycle")
    assert model.network_size((48, 64)) == (SIDE, SIDE)
    segment = METADATA | {"task": "segment"}
    path = export(tmp_path / "s.onnx", protos=32, metadata=segment)
    model = load_model(path, frame_size=(48, 64))
    assert type(model.task) is InstanceSegmentation
    frame = np.full((48, 64, 3), 90, np.uint8)
    outputs = model.on_frames(model.params, frame[None])
    detections, masks = model.task.decode(model.params, outputs, frame_size=(48, 64))
    detections = detections._replace(
        valid=detections.valid.at[0, 0].set(True), classes=detections.classes.at[0, 0].set(1)
    )
    detections = detections._replace(
        boxes=detections.boxes.at[0, 0].set(jnp.array([10.0, 10.0, 30.0, 40.0]))
    )
    one = jax.tree.map(lambda x: np.asarray(x)[0], Instances(detections, masks.at[0, 0].set(True)))
    assert (model.task.draw(frame, one)[40, 40] != 90).any()  # tinted and enlarged
    # Without metadata the outputs alone say it.
    model = load_model(export(tmp_path / "n.onnx", metadata={}), frame_size=(48, 64))
    assert model.head == "ultralytics"


def test_what_an_export_is_not_for_is_told(tmp_path):
    pose = export(tmp_path / "pose.onnx", metadata=METADATA | {"task": "pose"})
    with pytest.raises(UsageError, match=r"is for 'pose', which dynvid does not know: --task none"):
        load_model(pose, frame_size=(48, 64))
    assert isinstance(load_model(pose, frame_size=(48, 64), task="none").task, Measuring)
    assert isinstance(load_model(None, frame_size=(48, 64), task="none").task, Measuring)
    names = METADATA | {"names": "{0: 'person'}"}
    with pytest.raises(UsageError, match="does not fit"):
        load_model(export(tmp_path / "few.onnx", metadata=names), frame_size=(48, 64))


def test_classification_and_segmentation_are_told_from_the_outputs(tmp_path):
    constants = []
    nodes = [conv("maps", "images", 5, 8, constants, 0)]
    nodes.append(conv("aux", "images", 5, 8, constants, 1))
    path = save(tmp_path / "maps.onnx", nodes, ["maps", "aux"], constants, {})
    assert isinstance(load_model(path, frame_size=(48, 64)).task, Segmentation)
    nodes = [
        conv("maps", "images", 5, 32, constants, 0),
        helper.make_node("Flatten", ["maps"], ["y"]),
    ]
    path = save(tmp_path / "rows.onnx", nodes, ["y"], constants[-1:], {})
    assert type(load_model(path, frame_size=(48, 64)).task) is Classification
    classify = METADATA | {"task": "classify", "names": "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}"}
    path = save(tmp_path / "named.onnx", nodes, ["y"], constants[-1:], classify)
    model = load_model(path, frame_size=(48, 64))
    assert type(model.task) is Classification
    assert model.task.class_names == ("a", "b", "c", "d", "e")
    action = load_model(path, frame_size=(48, 64), task="action-recognition")
    assert action.task.name == "action-recognition"
