"""Suppression against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.ops import boxes as boxes_module
from dynvid.ops.boxes import (
    multilabel_non_maximum_suppression,
    non_maximum_suppression,
    suppress_sorted,
)

OPTIONS = ("score_threshold", "iou_threshold", "max_candidates", "max_detections")
suppressed = jax.jit(non_maximum_suppression, static_argnames=OPTIONS)
suppressed_by_class = jax.jit(multilabel_non_maximum_suppression, static_argnames=OPTIONS)


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
    found = jax.device_get(suppressed(
        jnp.asarray(boxes, jnp.float32), jnp.asarray(scores), score_threshold=0.4,
        iou_threshold=0.3301, max_detections=40,
    ))  # fmt: skip
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
    found = jax.device_get(suppressed_by_class(
        jnp.asarray(boxes, jnp.float32), jnp.asarray(scores), score_threshold=0.4,
        iou_threshold=0.3301, max_candidates=max_candidates, max_detections=max_detections,
    ))  # fmt: skip
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
    found = suppressed_by_class(boxes, jnp.asarray(scores, jnp.float32), **options)
    expected = suppressed(boxes, jnp.asarray(scores, jnp.float32), **options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_detection_and_fewer_boxes_than_slots():
    boxes = jnp.zeros((2, 3, 4))
    found = non_maximum_suppression(boxes, jnp.zeros((2, 3, 5)), max_detections=7)
    assert found.boxes.shape == (2, 7, 4)
    assert not found.valid.any()


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"got \(1, 3, 4\) and \(1, 2, 5\)"):
        non_maximum_suppression(jnp.zeros((1, 3, 4)), jnp.zeros((1, 2, 5)))
    with pytest.raises(ValueError, match=r"got \(2, 3, 4\) and \(1, 3, 5\)"):
        multilabel_non_maximum_suppression(jnp.zeros((2, 3, 4)), jnp.zeros((1, 3, 5)))


@pytest.mark.parametrize("most", [5, 60])
def test_suppression_by_blocks_is_the_same(monkeypatch, most):
    """Chains of suppression cross the blocks, the last of which is not full."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (2, 53, 2))
    given = (
        jnp.asarray(np.concatenate([corner, corner + rng.uniform(5, 40, (2, 53, 2))], -1)),
        -jnp.sort(-jnp.asarray(rng.uniform(size=(2, 53))), axis=1),
        jnp.asarray(rng.integers(0, 2, (2, 53))),
    )
    options = {"score_threshold": 0.1, "iou_threshold": 0.3, "max_detections": most}
    whole = suppress_sorted(*given, **options)
    assert whole.valid.sum() > 5 or most == 5
    monkeypatch.setattr(boxes_module, "_BLOCK", 8)
    for part, expected in zip(suppress_sorted(*given, **options), whole, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_the_overlaps_of_many_candidates_are_never_all_in_memory():
    shapes = [jax.ShapeDtypeStruct((1, 21546, n), jnp.float32) for n in (4, 1)]  # of 600 x 1000
    compiled = non_maximum_suppression.lower(*shapes, max_candidates=6000).compile()
    # Those of 1024 with all are 6.3 million, a float and a flag each; of all with all 36 million.
    assert compiled.memory_analysis().temp_size_in_bytes < 40e6
