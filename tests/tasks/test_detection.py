"""Boxes in a frame: where they come from, how far they agree, where they are drawn."""

import jax.numpy as jnp
import numpy as np

from dynvid.ops.boxes import Detections
from dynvid.tasks import Detection
from dynvid.tasks.preprocessing import Preprocessing

BOX = [[[8.0, 8.0, 16.0, 24.0]]]


def decode_boxes(params, outputs, *, size, score_threshold, iou_threshold):
    """One box, where its score reaches the threshold; the options it got are in the outputs."""
    outputs.append((size, score_threshold, iou_threshold))
    valid = jnp.array([[params >= score_threshold]])
    return Detections(jnp.array(BOX), jnp.array([[params]]), jnp.zeros((1, 1), int), valid)


TASK = Detection(
    decode_boxes=decode_boxes,
    preprocessing=Preprocessing(placement="centre", white=1, size=(32, 32)),
    class_names=("car",),
)


def test_boxes_are_in_pixels_of_the_frame():
    outputs: list = []
    found = TASK.decode(0.5, outputs, frame_size=(32, 64))
    assert outputs == [((32, 32), 0.3, 0.45)]
    # The frame is halved and lies 8 rows down.
    np.testing.assert_array_equal(found.boxes, [[[16, 0, 32, 32]]])
    assert TASK.compare(found, found).score.tolist() == [1]
    missed = TASK.decode(0.2, outputs, frame_size=(32, 64))
    agreement = TASK.compare(found, missed)
    assert (agreement.score.tolist(), agreement.weight.tolist()) == ([0], [1])


def test_only_valid_boxes_are_drawn():
    frame = np.full((480, 640, 3), 100, np.uint8)
    boxes = np.array([[100, 200, 200, 300], [300, 200, 400, 300]], float)
    classes, valid = np.array([0, -1]), np.array([True, False])
    drawn = TASK.draw(frame, Detections(boxes, np.array([0.9, 0.0]), classes, valid))
    changed = (drawn != 100).any(-1)
    assert changed[250, 100]
    assert not changed[:, 250:].any()
