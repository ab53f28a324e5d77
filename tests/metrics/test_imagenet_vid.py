"""ImageNet VID's metric: cases by hand, and the rules as a plain loop."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings

from dynvid.metrics.imagenet_vid import (
    MOTION_RANGES,
    motion_iou,
    overlap_thresholds,
    vid_average_precision,
)
from dynvid.ops.boxes import Detections

EPS = float(jnp.finfo(jnp.float32).eps)


def test_small_boxes_are_found_by_less():
    """(20 x 20) / (30 x 30) = 4/9; from 24.2 pixels on a square needs a half."""
    sides = jnp.array([1.0, 20.0, 24.0, 25.0, 400.0])
    boxes = jnp.stack([0 * sides, 0 * sides, sides, sides], -1) + 7
    expected = [1 / 121, 4 / 9, (24 / 34) ** 2, 0.5, 0.5]
    np.testing.assert_allclose(overlap_thresholds(boxes), expected, rtol=4 * EPS)


def detections_of(*rows):
    """Images of (box, score, class), made as long as the longest."""
    most = max(map(len, rows))
    filled = [[*row, *[([0] * 4, 0, -1)] * (most - len(row))] for row in rows]
    boxes, scores, classes = (
        jnp.array([[entry[i] for entry in row] for row in filled]) for i in range(3)
    )
    valid = jnp.array([[i < len(row) for i in range(most)] for row in rows])
    return Detections(boxes.astype(jnp.float32), scores.astype(jnp.float32), classes, valid)


def test_a_case_by_hand():
    """Two images, one class; three boxes, of which one is small.

    By falling score: 0.9 finds a box (1/1); 0.8 overlaps it too, but it is taken (1/2); 0.7 finds
    the small box at an overlap of 0.4, its threshold 0.25 (2/3); 0.6 overlaps a large one by 0.4
    (2/4). One box is never found: AP = (1 + 2/3) / 3.
    """
    found = detections_of(
        [([0, 0, 100, 100], 0.9, 0), ([0, 0, 100, 90], 0.8, 0), ([200, 0, 210, 4], 0.7, 0)],
        [([0, 0, 100, 40], 0.6, 0)],
    )
    truth = jnp.array([
        [[0, 0, 100, 100], [200, 0, 210, 10]], [[0, 0, 100, 100], [0, 0, 0, 0]]
    ], jnp.float32)  # fmt: skip
    present = jnp.array([[True, True], [True, False]])
    classes = jnp.zeros((2, 2), int)
    value = vid_average_precision(found, truth, classes, present, class_count=2)
    np.testing.assert_allclose(value, [5 / 9, np.nan], rtol=4 * EPS)
    # As fast, medium and slow objects. Slow, the second image's: both detections of the first
    # that lie on boxes count for nothing; the last is wrong, and nothing is found.
    motion = jnp.array([[0.5, 0.8], [0.95, 0.0]])
    values = {
        name: vid_average_precision(
            found, truth, classes, present, class_count=1, motion=motion, motion_range=limits
        ).item()
        for name, limits in MOTION_RANGES.items()
    }
    assert values["all"] == value[0]
    assert values["slow"] == 0
    # Fast: 0.9 finds the only one. Medium: 0.9 and 0.8 are on another box, 0.7 finds it.
    assert values["fast"] == values["medium"] == 1


def test_a_taken_box_does_not_keep_from_the_next():
    """PASCAL VOC looks only at the box that is overlapped most; ImageNet at all that are left."""
    found = detections_of([([0, 0, 100, 100], 0.9, 0), ([0, 0, 100, 98], 0.8, 0)])
    truth = jnp.array([[[0, 0, 100, 100], [0, 0, 100, 60.0]]])
    value = vid_average_precision(
        found, truth, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool), class_count=1
    )
    assert value.tolist() == [1.0]


def overlap_of(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def by_a_loop(found, boxes, classes, present, motion, limits, index):
    def wanted(image, k):
        return limits[0] <= motion[image, k] <= limits[1]

    everything = [(i, k) for i, k in np.ndindex(*present.shape) if present[i, k]]
    share = np.mean([wanted(*at) for at in everything])
    ranked = []
    for image in range(len(boxes)):
        there = [k for k in range(present.shape[1]) if present[image, k]]
        taken = set()
        for j in np.argsort(-found.scores[image], kind="stable"):
            if not found.valid[image, j]:
                continue
            overlaps = {k: overlap_of(found.boxes[image, j], boxes[image, k]) for k in there}
            hits = [
                k for k in there
                if k not in taken and classes[image, k] == found.classes[image, j]
                and overlaps[k] >= overlap_thresholds(boxes[image, k])
            ]  # fmt: skip
            right = wrong = 0.0
            if hits:
                best = max(hits, key=lambda k: overlaps[k])
                taken.add(best)
                right = float(wanted(image, best))
            else:
                inside = max([v for k, v in overlaps.items() if wanted(image, k)], default=-1)
                outside = max([v for k, v in overlaps.items() if not wanted(image, k)], default=-1)
                if inside != outside:
                    wrong = float(inside > outside)
                else:
                    wrong = np.mean([not wanted(image, k) for k in there]) if there else share
            if found.classes[image, j] == index:
                ranked.append((found.scores[image, j], right, wrong))
    total = sum(wanted(*at) and classes[at] == index for at in everything)
    if not total:
        return np.nan
    ranked = np.array(sorted(ranked, reverse=True)).reshape(-1, 3)
    hits, misses = np.cumsum(ranked[:, 1]), np.cumsum(ranked[:, 2])
    precision = hits / np.maximum(hits + misses, 1e-30)
    best = [precision[i:].max() for i in range(len(ranked))]
    return float(np.sum(ranked[:, 1] * best) / total)


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 999), name=st.sampled_from(sorted(MOTION_RANGES)))
def test_the_rules_as_a_loop(seed, name):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 60, (4, 3, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 40, (4, 3, 2))], -1).astype(np.float32)
    present = rng.random((4, 3)) < 0.7
    present[0], present[1, 0] = False, True  # an image without a box
    near = boxes[:, rng.integers(0, 3, 6)] + rng.integers(-4, 5, (4, 6, 4))
    near[..., 2:] = np.maximum(near[..., 2:], near[..., :2] + 1)
    near[:, ::3] += 300  # on nothing
    found = Detections(
        near.astype(np.float32),
        rng.permutation(24).reshape(4, 6).astype(np.float32) / 32,
        rng.integers(0, 2, (4, 6)),
        rng.random((4, 6)) < 0.9,
    )
    classes = rng.integers(0, 2, (4, 3))
    motion = rng.choice([0.3, 0.7, 0.8, 0.95], (4, 3)).astype(np.float32)
    limits = tuple(np.float32(x) for x in MOTION_RANGES[name])
    value = vid_average_precision(
        Detections(*map(jnp.asarray, found)), jnp.asarray(boxes), jnp.asarray(classes),
        jnp.asarray(present), class_count=2, motion=jnp.asarray(motion), motion_range=limits,
    )  # fmt: skip
    expected = [by_a_loop(found, boxes, classes, present, motion, limits, c) for c in range(2)]
    # Two dozen additions and a division each; overlaps of small integers differ by more.
    np.testing.assert_allclose(value, expected, rtol=64 * EPS, atol=64 * EPS)


def test_motion_of_a_sliding_box():
    """A square of 10 that moves a pixel a frame: after n frames it overlaps by (10-n)/(10+n)."""
    time = np.arange(30.0)
    boxes = np.stack([time, 0 * time, time + 10, 0 * time + 10], -1)
    still = np.broadcast_to(boxes[:1], boxes.shape)
    there = np.ones((30, 2), bool)
    there[15:, 1] = False
    found = motion_iou(jnp.asarray(np.stack([boxes, still], 1), jnp.float32), jnp.asarray(there))
    overlap = [(10 - n) / (10 + n) for n in range(1, 11)]
    np.testing.assert_allclose(found[15, 0], np.mean(overlap), rtol=16 * EPS)  # on both sides
    np.testing.assert_allclose(found[0, 0], np.mean(overlap), rtol=16 * EPS)  # on one
    np.testing.assert_allclose(found[2, 0], np.sum(overlap + overlap[:2]) / 12, rtol=16 * EPS)
    assert (found[:15, 1] == 1).all()
    assert (found[15:, 1] == 0).all()


def test_an_object_seen_once_has_no_motion():
    there = jnp.zeros((30, 1), bool).at[5].set(True).at[16].set(True)
    boxes = jnp.broadcast_to(jnp.array([0.0, 0.0, 9.0, 9.0]), (30, 1, 4))
    assert not motion_iou(boxes, there).any()
    assert motion_iou(boxes, there, reach=11).ravel()[jnp.array([5, 16])].tolist() == [1, 1]


def test_nothing_found_and_nothing_there():
    nothing = Detections(
        jnp.zeros((1, 0, 4)), jnp.zeros((1, 0)), jnp.zeros((1, 0), int), jnp.zeros((1, 0), bool)
    )
    box, label = jnp.ones((1, 1, 4)), jnp.zeros((1, 1), int)
    value = vid_average_precision(nothing, box, label, jnp.ones((1, 1), bool), class_count=1)
    assert value.tolist() == [0]
    found = detections_of([([0, 0, 9, 9], 0.5, 0)])
    empty = jnp.zeros((1, 0))
    value = vid_average_precision(
        found, jnp.zeros((1, 0, 4)), empty.astype(int), empty.astype(bool), class_count=1
    )
    assert np.isnan(value).all()


def test_shapes_that_do_not_fit():
    found = detections_of([([0, 0, 9, 9], 0.5, 0)])
    box, label, there = jnp.ones((1, 1, 4)), jnp.zeros((1, 1), int), jnp.ones((1, 1), bool)
    for arguments, said in (
        ((box[0], label, there, None), r"boxes must be \(1, M, 4\)"),
        ((box, label[0], there, None), r"classes must be \(1, 1\); got \(1,\)"),
        ((box, label, there[0], None), "present must be"),
        ((box, label, there, jnp.ones((1, 2))), "motion must be"),
    ):
        boxes, classes, present, motion = arguments
        with pytest.raises(ValueError, match=said):
            vid_average_precision(found, boxes, classes, present, class_count=1, motion=motion)
