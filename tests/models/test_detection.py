"""Letterboxing, decoding and suppression against plain loops and known placements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.models import detection
from dynvid.models.detection import (
    HEADS,
    letterbox,
    multilabel_non_maximum_suppression,
    non_maximum_suppression,
)


def overlap(a, b):
    """IoU of two boxes, by hand."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / max(sum(areas) - width * height, 1)


def greedy(boxes, scores, score_threshold, iou_threshold):
    """The textbook loop: (score, class, box index) of what stays, best first."""
    best, classes = scores.max(-1), scores.argmax(-1)
    kept = []
    for i in np.argsort(-best, kind="stable"):
        if best[i] >= score_threshold and all(
            classes[i] != classes[j] or overlap(boxes[i], boxes[j]) <= iou_threshold for j in kept
        ):
            kept.append(int(i))
    return kept


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_suppression_is_the_greedy_loop(seed):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (2, 30, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 12, corner.shape)], -1)
    # All scores differ, so that the order in which boxes are visited is the same.
    scores = (rng.permutation(2 * 30 * 3).reshape(2, 30, 3) / 180).astype(np.float32)
    # No ratio of these integers lies within float32's rounding of a third.
    found = non_maximum_suppression(
        jnp.asarray(boxes, jnp.float32), jnp.asarray(scores), score_threshold=0.4,
        iou_threshold=0.3301, max_detections=40,
    )  # fmt: skip
    for image in range(2):
        expected = greedy(boxes[image], scores[image], 0.4, 0.3301)
        count = int(found.valid[image].sum())
        assert count == len(expected)
        np.testing.assert_array_equal(found.boxes[image, :count], boxes[image][expected])
        np.testing.assert_array_equal(found.scores[image, :count], scores[image].max(-1)[expected])
        np.testing.assert_array_equal(
            found.classes[image, :count], scores[image].argmax(-1)[expected]
        )
        assert not found.boxes[image, count:].any()
        assert (found.classes[image, count:] == -1).all()


def test_a_box_suppressed_by_a_suppressed_box_stays():
    boxes = jnp.array([[[0, 0, 10, 1], [4, 0, 14, 1], [8, 0, 18, 1], [12, 0, 22, 1]]], jnp.float32)
    scores = jnp.array([[[0.9], [0.8], [0.7], [0.6]]])
    found = non_maximum_suppression(boxes, scores, iou_threshold=0.4, max_detections=4)
    np.testing.assert_array_equal(found.boxes[0, :, 0], [0, 8, 0, 0])


def by_class(boxes, scores, score_threshold, iou_threshold, max_candidates, max_detections):
    """Every class by itself, then the best of all: (score, class, box) best first."""
    found = []
    for label in range(scores.shape[1]):
        of_class = scores[:, label]
        best = np.argsort(-of_class)[:max_candidates]
        kept = greedy(boxes[best], of_class[best, None], score_threshold, iou_threshold)
        found += [(of_class[best[k]], label, *boxes[best[k]]) for k in kept]
    return sorted(found, reverse=True)[:max_detections]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(12, 40), (40, 9), (7, 5)]))
def test_suppression_by_class_gives_a_box_several_classes(seed, most):
    max_candidates, max_detections = most
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (2, 20, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 12, corner.shape)], -1)
    scores = (rng.permutation(2 * 20 * 3).reshape(2, 20, 3) / 120).astype(np.float32)
    found = multilabel_non_maximum_suppression(
        jnp.asarray(boxes, jnp.float32), jnp.asarray(scores), score_threshold=0.4,
        iou_threshold=0.3301, max_candidates=max_candidates, max_detections=max_detections,
    )  # fmt: skip
    for image in range(2):
        expected = by_class(boxes[image], scores[image], 0.4, 0.3301, *most)
        count = int(found.valid[image].sum())
        assert count == len(expected)
        best, labels, *edges = np.array(expected, np.float32).reshape(-1, 6).T
        np.testing.assert_array_equal(found.scores[image, :count], best)
        np.testing.assert_array_equal(found.classes[image, :count], labels)
        np.testing.assert_array_equal(found.boxes[image, :count], np.stack(edges, -1))
        assert not found.boxes[image, count:].any()
        assert not found.scores[image, count:].any()
        assert (found.classes[image, count:] == -1).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_where_boxes_have_one_class_both_suppressions_agree(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 9, (1, 16, 2))
    boxes = jnp.asarray(np.concatenate([corner, corner + rng.uniform(1, 9, corner.shape)], -1))
    boxes = boxes.astype(jnp.float32)
    scores = rng.uniform(0.3, 1, (1, 16, 1)) * (rng.integers(0, 3, (1, 16, 1)) == np.arange(3))
    options = {"score_threshold": 0.25, "iou_threshold": 0.4, "max_detections": 16}
    found = multilabel_non_maximum_suppression(boxes, jnp.asarray(scores, jnp.float32), **options)
    expected = non_maximum_suppression(boxes, jnp.asarray(scores, jnp.float32), **options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_detection_and_fewer_boxes_than_slots():
    boxes = jnp.zeros((2, 3, 4))
    found = non_maximum_suppression(boxes, jnp.zeros((2, 3, 5)), max_detections=7)
    assert found.boxes.shape == (2, 7, 4)
    assert not found.valid.any()


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 4\), \(1, 2, 5\)"):
        non_maximum_suppression(jnp.zeros((1, 3, 4)), jnp.zeros((1, 2, 5)))
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), \(1, 3, 5\)"):
        multilabel_non_maximum_suppression(jnp.zeros((2, 3, 4)), jnp.zeros((1, 3, 5)))
    with pytest.raises(ValueError, match=r"must be \(B, 21, 5 \+ classes\)"):
        detection.decode_yolox(jnp.zeros((1, 20, 85)), size=(32, 32))
    with pytest.raises(ValueError, match="for 2 anchors a cell"):
        detection.decode_yolov5([jnp.zeros((1, 2, 2, 85))], jnp.zeros((1, 2, 2)), size=(16, 16))


def test_yolox_cell_is_decoded_where_it_lies():
    size, strides = (64, 96), (8, 16, 32)
    cells = [(h, w) for h, w in ((8, 12), (4, 6), (2, 3))]
    outputs = np.zeros((1, sum(h * w for h, w in cells), 5 + 3), np.float32)
    row, column = 2, 4  # of the middle level
    outputs[0, 8 * 12 + row * 6 + column] = [0.25, 0.75, np.log(2), 0, 0.8, 0, 0.5, 0.1]
    found = detection.decode_yolox(outputs, size=size, strides=strides, score_threshold=0.3)
    assert found.valid.sum() == 1
    x, y = (column + 0.25) * 16, (row + 0.75) * 16
    # A few roundings of numbers below 96.
    np.testing.assert_allclose(found.boxes[0, 0], [x - 16, y - 8, x + 16, y + 8], atol=1e-4)
    assert found.classes[0, 0] == 1
    np.testing.assert_allclose(found.scores[0, 0], 0.4, rtol=1e-6)


def test_yolov5_cell_is_decoded_where_it_lies():
    anchors = np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2) * 4
    outputs = [np.full((1, 6, 8, 3 * 7), -20.0, np.float32),
               np.full((1, 3, 4, 3 * 7), -20.0, np.float32)]  # fmt: skip

    def logit(p):
        return np.log(p / (1 - p))

    cell = [logit(0.5), logit(0.25), logit(0.5), logit(0.75), 20.0, -20.0, 20.0]
    outputs[1][0, 2, 1, 7:14] = cell
    found = detection.decode_yolov5(outputs, jnp.asarray(anchors), size=(48, 64))
    assert found.valid.sum() == 1
    x, y = (2 * 0.5 - 0.5 + 1) * 16, (2 * 0.25 - 0.5 + 2) * 16
    w, h = anchors[1, 1] * [1, 1.5**2]
    np.testing.assert_allclose(
        found.boxes[0, 0], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], atol=1e-4
    )
    assert found.classes[0, 0] == 1


@pytest.mark.parametrize("placement", ["top_left", "centre", "stretch"])
@pytest.mark.parametrize("frame_size", [(30, 40), (40, 30), (64, 48), (7, 90)])
def test_boxes_come_back_to_the_frame(placement, frame_size):
    geometry = letterbox(frame_size, (48, 64), placement=placement)
    frames = np.zeros((1, *frame_size, 1), np.uint8)
    top, left = frame_size[0] // 3, frame_size[1] // 3
    bottom, right = 2 * frame_size[0] // 3 + 1, 2 * frame_size[1] // 3 + 1
    frames[:, top:bottom, left:right] = 255
    image = np.asarray(geometry.to_network(frames))[0, :, :, 0]
    assert image.shape == (48, 64)
    content = np.zeros((48, 64), bool)
    rows, columns = geometry.resized
    content[geometry.top : geometry.top + rows, geometry.left : geometry.left + columns] = True
    assert (image[~content] == 114).all()
    ys, xs = np.nonzero(np.where(content, image, 0) >= 127)
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    found = detection.Detections(
        jnp.array([[box]], jnp.float32), jnp.ones((1, 1)), jnp.zeros((1, 1), int),
        jnp.ones((1, 1), bool),
    )  # fmt: skip
    back = geometry.to_frame(found).boxes[0, 0]
    # Edges of the thresholded copy lie within half a pixel of the network's input.
    scale = np.array([frame_size[1] / columns, frame_size[0] / rows] * 2)
    assert (np.abs(back - np.array([left, top, right, bottom])) <= 0.5 * scale + 1e-3).all()


def test_equal_sizes_leave_the_frame_alone():
    frames = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3)
    image = letterbox((2, 3), (2, 3)).to_network(frames)
    np.testing.assert_array_equal(image, frames)
    names = {
        e.primitive.name for e in jax.make_jaxpr(letterbox((2, 3), (2, 3)).to_network)(frames).eqns
    }
    assert names == {"convert_element_type"}


def test_heads_give_what_their_networks_expect():
    frames = jnp.full((1, 4, 8, 3), jnp.array([255, 0, 51], jnp.uint8))
    geometry = HEADS["yolov5"].letterbox((4, 8), network_size=(8, 8))
    image = HEADS["yolov5"].on_frames(lambda _, x: x, geometry)(None, frames)
    # Scaling by 1 / 255 rounds once.
    np.testing.assert_allclose(image[0, 2, 0], [1, 0, 0.2], rtol=2e-7)
    np.testing.assert_allclose(image[0, 1, 0], [114 / 255] * 3, rtol=2e-7)
    image = HEADS["yolox"].on_frames(lambda _, x: x, letterbox((4, 8), (8, 8)))(None, frames)
    np.testing.assert_array_equal(image[0, 0, 0], [51, 0, 255])
    np.testing.assert_array_equal(image[0, 4, 0], [114] * 3)
    assert len(detection.COCO_CLASSES) == len(set(detection.COCO_CLASSES)) == 80


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(streams, 4, 8, C\), got \(1, 4, 9, 3\)"):
        letterbox((4, 8), (8, 8)).to_network(jnp.zeros((1, 4, 9, 3)))
    with pytest.raises(ValueError, match="must be positive"):
        letterbox((0, 8), (8, 8))
