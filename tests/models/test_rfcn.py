"""R-FCN's heads: published anchors and sizes, boxes there and back, and plain loops."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings

from dynvid.graph.macs import count_macs
from dynvid.models.rfcn import (
    ANCHOR_DEVIATIONS,
    RFCN,
    RFCNHead,
    anchor_boxes,
    decode_boxes,
    decode_rfcn,
    encode_boxes,
    proposals,
)
from dynvid.ops.boxes import Detections, intersection_over_union
from dynvid.ops.roi_pooling import position_sensitive_roi_pooling

EPS = float(jnp.finfo(jnp.float32).eps)
SMALL = {"depth": 8, "classes": 3, "grid": 3, "scales": (1.0, 2.0), "max_proposals": 6,
         "max_candidates": 20, "max_detections": 10}  # fmt: skip


def test_anchors_are_the_published_ones():
    # Printed in Faster R-CNN's own code, with pixels counted from 1: [x0 + 1, y0 + 1, x1, y1] here.
    printed = [
        [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
        [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
        [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
    ]  # fmt: skip
    expected = np.array(printed) - [1, 1, 0, 0]
    found = anchor_boxes((38, 63)).reshape(38, 63, 9, 4)
    np.testing.assert_array_equal(found[0, 0], expected)
    np.testing.assert_array_equal(found[5, 7], expected + np.array([7, 5, 7, 5]) * 16)


def parameters(module):
    return sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))


def test_size_and_work_are_as_published():
    """1x1 convolutions to 2 x 9, 4 x 9, 49 x 31 and 49 x 8 channels from 512 each."""
    network = nnx.eval_shape(lambda: RFCN(rngs=nnx.Rngs(0)))
    channels = (2 * 9, 4 * 9, 49 * 31, 49 * 8)
    assert parameters(network) == sum(513 * c for c in channels)
    graph, params = nnx.split(network)
    features = jax.ShapeDtypeStruct((1, 38, 63, 512), jnp.float32)

    def run(params, features):
        module = nnx.merge(graph, params)
        return module.rpn(features), module.head.scores(features), module.head.boxes(features)

    shapes = [x.shape for x in jax.tree.leaves(jax.eval_shape(run, params, features))]
    assert shapes == [(1, 21546, 2), (1, 21546, 4), (1, 38, 63, 1519), (1, 38, 63, 392)]
    assert count_macs(run, params, features) == 38 * 63 * 512 * sum(channels)


SIDE = st.floats(1, 300, width=32)
PLACE = st.floats(-300, 300, width=32)


@settings(max_examples=20, deadline=None)
@given(*[st.tuples(PLACE, PLACE, SIDE, SIDE)] * 2)
def test_boxes_there_and_back(box, anchor):
    box, anchor = (jnp.array([x, y, x + w, y + h]) for x, y, w, h in (box, anchor))
    back = decode_boxes(encode_boxes(box, anchor), anchor)
    # Places are rounded at up to 600 pixels, and once more as shares of a side that may be as small
    # as 1; sides through a logarithm of at most log 300, 6, in units of a fifth.
    np.testing.assert_allclose(back, box, rtol=0, atol=600 * 8 * EPS + 300 * 32 * EPS)


def test_deltas_are_those_of_the_paper():
    found = encode_boxes(
        jnp.array([10.0, 20.0, 50.0, 40.0]), jnp.array([0.0, 0.0, 20.0, 40.0]),
        deviations=(1.0, 1.0, 1.0, 1.0),
    )  # fmt: skip
    np.testing.assert_allclose(found, [20 / 20, 10 / 40, np.log(2), np.log(0.5)], rtol=2 * EPS)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 99))
def test_proposals_are_those_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    anchors = anchor_boxes((3, 4), scales=(1.0, 3.0), ratios=(1.0,))
    logits = rng.normal(size=(1, 24, 2)).astype(np.float32)
    deltas = rng.normal(size=(1, 24, 4)).astype(np.float32)
    deltas[0, 3] = np.nan
    deltas[0, 4, 2] = 1e9
    deltas[0, 5, 0] = 1e6
    logits[0, 6] = np.nan
    boxes = np.asarray(decode_boxes(deltas, anchors, deviations=ANCHOR_DEVIATIONS))[0]
    scores = np.asarray(jax.nn.softmax(logits, -1))[0, :, 1]
    kept = []
    for i in np.argsort(-scores):
        if i in (3, 4, 5, 6):  # not a number, infinite, outside, of unknown score
            continue
        box = np.clip(boxes[i], 0, [64, 48, 64, 48])
        if not kept or intersection_over_union(box[None], np.stack(kept)).max() <= 0.5:
            kept.append(box)
    found = proposals(logits, deltas, anchors, (48, 64), iou_threshold=0.5, max_proposals=24)
    assert found.valid.sum() == len(kept)
    np.testing.assert_array_equal(found.boxes[0, : len(kept)], np.stack(kept))
    # What is none takes no place among the candidates.
    found = proposals(logits, deltas, anchors, (48, 64), max_candidates=1, max_proposals=1)
    np.testing.assert_array_equal(found.boxes[0, 0], kept[0])


def test_the_head_votes_over_the_bins():
    head = RFCNHead(4, classes=2, grid=2, rngs=nnx.Rngs(0))
    features = jax.random.normal(jax.random.key(0), (1, 4, 5, 4))
    boxes = jnp.array([[[3.0, 5.0, 60.0, 50.0], [0.0, 0.0, 0.0, 0.0]]])
    logits, deltas = head(features, boxes)
    for found, maps in ((logits, head.scores(features)), (deltas, head.boxes(features))):
        mean = position_sensitive_roi_pooling(maps, boxes, grid=2).mean((2, 3))
        np.testing.assert_array_equal(found, mean[..., -found.shape[-1] :])


def test_detections_follow_the_head():
    given_boxes = jnp.array([[[0.0, 0, 16, 16], [1.0, 0, 17, 16], [40.0, 0, 80, 16], [0, 0, 0, 0]]])
    valid = jnp.array([[True, True, True, False]])
    found = Detections(given_boxes, jnp.ones((1, 4)), jnp.zeros((1, 4), int), valid)
    logits = jnp.log(jnp.array([[
        [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.5, 0.25, 0.25], [0.1, 0.8, 0.1]
    ]]))  # fmt: skip
    decoded = decode_rfcn(
        found, logits, jnp.zeros((1, 4, 4)), (16, 64), score_threshold=0.2, max_detections=6
    )
    # Of the first two boxes each class keeps its better one; the third is cut; the last is none.
    expected = [(0.7, 0, 0.0, 16.0), (0.6, 1, 1.0, 17.0), (0.25, 0, 40.0, 64.0), (0.25, 1, 40, 64)]
    assert decoded.valid.sum() == 4
    for i, (score, label, left, right) in enumerate(expected):
        np.testing.assert_allclose(decoded.scores[0, i], score, rtol=8 * EPS)
        assert decoded.classes[0, i] == label
        np.testing.assert_array_equal(decoded.boxes[0, i, ::2], [left, right])


@pytest.fixture(scope="module")
def detector():
    network = RFCN(rngs=nnx.Rngs(0), **SMALL)
    return network, nnx.jit(lambda n, f: n(f, (48, 64)))


def test_of_features_to_detections(detector):
    network, run = detector
    features = jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
    found = run(network, features)
    assert found.boxes.shape == (2, 10, 4)
    assert found.valid.any()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= jnp.array([64, 48, 64, 48])).all()
    # The first half proposes; the second classifies what was proposed.
    first, second = network.split(features)
    proposed = network.propose(first, (48, 64))
    expected = decode_rfcn(
        proposed, *network.head(second, proposed.boxes), (48, 64), max_detections=10
    )
    np.testing.assert_array_equal(found.classes, expected.classes)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_of_features_that_are_not_finite_nothing_is_detected(detector, value):
    network, run = detector
    found = run(network, jnp.full((2, 3, 4, 8), value))
    assert not found.valid.any()
    assert np.isfinite(found.boxes).all()


def test_channels_have_two_halves():
    with pytest.raises(ValueError, match="depth must be even; got 7"):
        RFCN(depth=7, rngs=nnx.Rngs(0))
