"""Boxes of single cells, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.models.yolo_heads import COCO_CLASSES, decode_yolov5, decode_yolox


def test_yolox_cell_is_decoded_where_it_lies():
    size, strides = (64, 96), (8, 16, 32)
    cells = [(h, w) for h, w in ((8, 12), (4, 6), (2, 3))]
    outputs = np.zeros((1, sum(h * w for h, w in cells), 5 + 3), np.float32)
    row, column = 2, 4  # of the middle level
    outputs[0, 8 * 12 + row * 6 + column] = [0.25, 0.75, np.log(2), 0, 0.8, 0, 0.5, 0.1]
    found = decode_yolox(outputs, size=size, strides=strides, score_threshold=0.3)
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
    found = decode_yolov5(outputs, jnp.asarray(anchors), size=(48, 64))
    assert found.valid.sum() == 1
    x, y = (2 * 0.5 - 0.5 + 1) * 16, (2 * 0.25 - 0.5 + 2) * 16
    w, h = anchors[1, 1] * [1, 1.5**2]
    np.testing.assert_allclose(
        found.boxes[0, 0], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], atol=1e-4
    )
    assert found.classes[0, 0] == 1


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"must be \(S, 21, 5 \+ classes\)"):
        decode_yolox(jnp.zeros((1, 20, 85)), size=(32, 32))
    with pytest.raises(ValueError, match="for 2 anchors a cell; got"):
        decode_yolov5([jnp.zeros((1, 2, 2, 85))], jnp.zeros((1, 2, 2)), size=(16, 16))


def test_the_classes_are_those_of_coco():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
