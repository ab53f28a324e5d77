"""Detections as ground truth, in the form that the metrics take."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.metrics.average_precision import average_precision_by_class, detection_agreement
from dynvid.metrics.detection_counts import count_detections
from dynvid.metrics.pseudo_ground_truth import pseudo_ground_truth
from dynvid.ops.boxes import Detections


def random_detections(seed, images=3, count=8, classes=4):
    """Detections that do not overlap by half, with distinct scores, some of them not valid."""
    rng = np.random.default_rng(seed)
    corner = 20.0 * np.stack([rng.permutation(count) for _ in range(images)])[..., None]
    corner = np.concatenate([corner, corner + 5], -1)
    boxes = np.concatenate([corner, corner + rng.integers(8, 15, corner.shape)], -1)
    scores = (rng.permutation(images * count).reshape(images, count) + 1) / (images * count)
    valid = rng.random((images, count)) < 0.8
    return Detections(
        jnp.asarray(np.where(valid[..., None], boxes, 0), jnp.float32),
        jnp.asarray(np.where(valid, scores, 0), jnp.float32),
        jnp.asarray(np.where(valid, rng.integers(0, classes, valid.shape), -1), jnp.int32),
        jnp.asarray(valid),
    )


def test_by_hand():
    better = Detections(
        jnp.arange(16.0).reshape(1, 4, 4), jnp.array([[0.9, 0.5, 0.49, 0.0]]),
        jnp.array([[3, 1, 2, -1]]), jnp.array([[True, True, True, False]]),
    )  # fmt: skip
    truth = pseudo_ground_truth(better)
    assert truth.present.tolist() == [[True, True, False, False]]
    assert truth.classes.tolist() == [[3, 1, -1, -1]]
    np.testing.assert_array_equal(truth.boxes[0, :2], better.boxes[0, :2])
    assert not truth.boxes[0, 2:].any()
    # A slot that is not valid is no ground truth however low the threshold.
    assert pseudo_ground_truth(better, score_threshold=0.0).present.sum() == 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_detector_is_perfect_by_its_own_ground_truth(seed):
    found = random_detections(seed)
    truth = pseudo_ground_truth(found)
    sure = found._replace(valid=truth.present)
    for interpolation in ("all_points", "11_points"):
        result = average_precision_by_class(
            sure, *truth, class_count=4, interpolation=interpolation
        )
        np.testing.assert_allclose(
            result.value[result.total > 0], 1, rtol=found.valid.size * 2**-23
        )  # a mean of up to so many ones
        # What it is less sure of comes after all boxes are found and takes nothing away.
        assert (
            average_precision_by_class(
                found, *truth, class_count=4, interpolation=interpolation
            ).value[result.total > 0]
            == result.value[result.total > 0]
        ).all()
    assert int(result.total.sum()) == int(truth.present.sum())
    counts = count_detections(found, *truth, class_count=4, score_threshold=0.5)
    assert not counts.false_positives.any()
    assert not counts.false_negatives.any()
    assert (detection_agreement(sure, sure) == 1).all()
