"""True and false positives, misses and totals of every class, which add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.metrics.average_precision import average_precision, of_class
from dynvid.metrics.detection_counts import count_detections
from dynvid.ops.boxes import Detections

BOX = np.array([0.0, 0, 10, 10])


def counted(found, truth, classes, *, score_threshold=0.5, class_count=3, **options):
    """Counts of one image, as a list of (TP, FP, FN, predictions, truths) a class."""
    boxes, scores, labels = (jnp.asarray([x]) for x in zip(*found, strict=True))
    counts = count_detections(
        Detections(boxes, scores, labels, jnp.ones(scores.shape, bool)),
        jnp.asarray([truth]), jnp.asarray([classes]), jnp.ones((1, len(classes)), bool),
        class_count=class_count, score_threshold=score_threshold, **options,
    )  # fmt: skip
    return np.stack(counts, 1).tolist()


def test_by_hand():
    found = [
        (BOX, 0.9, 0),  # right
        (BOX + 1, 0.8, 0),  # the same box once more: wrong
        (BOX + 40, 0.7, 1),  # right place, wrong class
        (BOX + 80, 0.5, 1),  # right, its score just enough
        (BOX + 120, 0.4, 0),  # right, but not sure enough
    ]
    truth, classes = [BOX, BOX + 40, BOX + 80, BOX + 120], [0, 0, 1, 0]
    assert counted(found, truth, classes) == [[1, 1, 2, 2, 3], [1, 1, 0, 2, 1], [0, 0, 0, 0, 0]]
    # A class more to count, or one less, changes nothing for the others.
    assert counted(found, truth, classes, class_count=1) == [[1, 1, 2, 2, 3]]
    assert counted(found, truth, classes, score_threshold=0.4)[0] == [2, 1, 1, 3, 3]
    # BOX + 1 overlaps by 81 / 119: at 0.6 it would do, but the first was better.
    assert counted(found[1:], truth, classes, iou=0.6)[0] == [1, 0, 2, 1, 3]
    assert counted(found[1:], truth, classes, iou=0.7)[0] == [0, 1, 3, 1, 3]


def test_a_low_score_does_not_take_a_box():
    found = [(BOX, 0.3, 0), (BOX + 1, 0.9, 0)]
    assert counted(found, [BOX], [0]) == [[1, 0, 0, 1, 1], [0] * 5, [0] * 5]


def random_case(seed):
    """Boxes and detections that overlap by chance, in few places, of -1 to 3 for classes."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (3, 16, 2))
    boxes = np.concatenate([corner, corner + rng.integers(4, 10, corner.shape)], -1)
    classes = rng.integers(-1, 4, (3, 16))
    here = rng.random((3, 16)) < 0.8
    found = Detections(
        jnp.asarray(boxes[:, :10], jnp.float32), jnp.asarray(rng.random((3, 10)), jnp.float32),
        jnp.asarray(classes[:, :10]), jnp.asarray(here[:, :10]),
    )  # fmt: skip
    return found, jnp.asarray(boxes[:, 10:], jnp.float32), classes[:, 10:], here[:, 10:]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.sampled_from([0.1, 0.5]))
def test_rows_add_up(seed, score_threshold, iou):
    found, boxes, classes, present = random_case(seed)
    counts = count_detections(
        found, boxes, classes, present, class_count=3, score_threshold=score_threshold, iou=iou
    )
    assert all((count >= 0).all() for count in counts)
    np.testing.assert_array_equal(
        counts.true_positives + counts.false_positives, counts.predictions
    )
    np.testing.assert_array_equal(counts.true_positives + counts.false_negatives, counts.truths)
    for c in range(3):
        sure = found.valid & (found.scores >= score_threshold) & (found.classes == c)
        assert counts.predictions[c] == sure.sum()
        assert counts.truths[c] == (present & (classes == c)).sum()
        alone = average_precision(
            of_class(found._replace(valid=sure), c), boxes, present & (classes == c), iou=iou
        )
        assert counts.true_positives[c] == alone.true_positives
        assert counts.false_positives[c] == alone.false_positives


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_greater_score_threshold_never_adds_predictions(seed):
    found, *truth = random_case(seed)
    rows = [count_detections(found, *truth, class_count=3, score_threshold=t) for t in (0.2, 0.7)]
    # Matching goes by falling score, so that the surest are judged the same without the rest.
    for many, few in zip(
        *(jax.tree.leaves(row) for row in (rows[0][:2], rows[1][:2])), strict=True
    ):
        assert (few <= many).all()
    assert (rows[1].false_negatives >= rows[0].false_negatives).all()
    np.testing.assert_array_equal(rows[0].truths, rows[1].truths)


def test_nothing_to_count():
    nothing = Detections(
        jnp.zeros((2, 0, 4)), jnp.zeros((2, 0)), jnp.zeros((2, 0), jnp.int32),
        jnp.zeros((2, 0), bool),
    )  # fmt: skip
    boxes, classes, present = jnp.ones((2, 1, 4)), jnp.zeros((2, 1), int), jnp.ones((2, 1), bool)
    counts = count_detections(nothing, boxes, classes, present, class_count=1, score_threshold=0.5)
    assert np.stack(counts, 1).tolist() == [[0, 0, 2, 0, 2]]
    counts = count_detections(
        nothing, boxes[:, :0], classes[:, :0], present[:, :0], class_count=1, score_threshold=0.5
    )
    assert not np.stack(counts).any()


def test_classes_of_another_shape_are_refused():
    found, boxes, classes, present = random_case(0)
    with pytest.raises(ValueError, match=r"classes must be \(3, 6\) .*; got \(3, 5\)"):
        count_detections(found, boxes, classes[:, :5], present, class_count=3, score_threshold=0.5)
