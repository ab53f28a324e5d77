"""What the figures of `experiments/dyncnn/pets` rest on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.incremental.tune import Trial
from dynvid.ops.boxes import Detections
from dynvid.ops.difference import changed_pixels
from dynvid.systems.dyncnn import dyncnn
from experiments.bench.accuracy import CLASSES, GroundTruth, judge, of_classes
from experiments.dyncnn.pets.evaluate import schemes
from experiments.dyncnn.pets.tuned import LOSS, choose_targets


def network(kernel, frames):
    def layer(x):
        return jax.nn.relu(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )

    return layer(layer(frames.astype(jnp.float32)))


@pytest.mark.parametrize("reference", ["previous", "last_used"])
@pytest.mark.parametrize("kind", [dyncnn, dynvid.incremental])
def test_theta_as_a_mask_is_theta_as_an_option(kind, reference):
    """One executable serves every theta: the mask must do what the option does, step by step."""
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.integers(-2, 3, (3, 3, 3, 3)), jnp.float32)
    clip = rng.integers(0, 40, (6, 1, 32, 32, 3)).astype(np.uint8)
    clip[:, :, 8:] = clip[0, :, 8:]
    option, mask = (
        kind(network, threshold=20, reference=reference),
        kind(network, reference=reference),
    )
    a, _ = option.init(kernel, clip[0])
    b, _ = mask.init(kernel, clip[0])
    for frame in clip[1:]:
        changed = changed_pixels(frame, b.reference, threshold=jnp.float32(20))
        assert 0 < int(changed.sum()) < changed.size
        a, expected = option.step(kernel, a, frame)
        b, found = mask.step(kernel, b, frame, changed)
        assert np.array_equal(expected, found)
        assert np.array_equal(a.reference, b.reference)
        assert np.array_equal(a.work.macs, b.work.macs)


def test_the_schemes_of_the_paper_compare_with_the_previous_frame():
    kernel = jnp.ones((3, 3, 1, 1))
    ramp = [np.full((1, 32, 32, 1), value, np.uint8) for value in (0, 15, 30)]
    for name, video in schemes(network).items():
        state, _ = video.init(kernel, ramp[0])
        marked = []
        for frame in ramp[1:]:
            changed = changed_pixels(frame, state.reference, threshold=20)
            state, _ = video.step(kernel, state, frame, changed)
            marked.append(bool(changed.any()))
        # A slow change is never seen by the paper's rule.
        assert marked[1] == (name in ("transformation", "with refresh"))


def detections(boxes, scores, classes):
    return Detections(
        np.array([boxes], np.float32), np.array([scores], np.float32), np.array([classes]),
        np.ones((1, len(scores)), bool),
    )  # fmt: skip


def test_other_classes_are_left_out_and_the_rest_is_numbered_anew():
    found = of_classes(detections([[0, 0, 1, 1]] * 3, [0.9, 0.8, 0.7], [14, 6, 3]), (14, 6))
    assert found.classes.tolist() == [[0, 1, -1]]
    assert found.valid.tolist() == [[True, True, False]]


def test_counts_add_up_and_a_class_without_truth_is_not_judged():
    box, far = [0, 0, 10, 10], [50, 50, 60, 60]
    found = detections([box, box, far, far], [0.9, 0.8, 0.7, 0.1], [0, 0, 0, 1])
    truth = GroundTruth(np.array([[box]], np.float32), np.zeros((1, 1), int), np.ones((1, 1), bool))
    result = judge(found, truth)
    assert list(result) == [CLASSES[0]]
    row = result["person"]
    assert (row["true_positives"], row["false_positives"]) == (1, 2)
    assert row["predictions"] == 3
    assert row["ap50"] == 100


def trial(tau, agreement):
    truncation = {"conv_1": tau} if tau else {}
    return Trial(15.0, truncation, agreement, agreement, 0.5, 50, False)


def test_the_targets_are_before_the_first_loss_and_a_step_before_the_last_setting_without():
    walk = [(trial(0, 100.0), 80.0), (trial(0.4, 95.0), 80.5), (trial(0.5, 90.0), 79.0)]
    walk += [
        (trial(0.7, 85.0), 81.0),
        (trial(1.0, 80.0), 80.0 - LOSS / 2),
        (trial(1.2, 70.0), 79.0),
    ]
    assert choose_targets(walk) == (95.0, 85.0)


def test_the_targets_are_exact_where_any_truncation_costs_too_much():
    assert choose_targets([(trial(0, 99.0), 80.0), (trial(0.5, 90.0), 70.0)]) == (99.0, 99.0)


def test_scaled_tolerances_are_scaled_truncations():
    """One executable serves every scale: `Contest.run` multiplies what the state holds."""
    rng = np.random.default_rng(1)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 3)), jnp.float32)
    clip = rng.integers(0, 255, (4, 1, 32, 32, 3)).astype(np.uint8)
    once, twice = (dynvid.incremental(network, truncation=tau) for tau in (0.25, 0.5))
    a, _ = once.init(kernel, clip[0])
    b, _ = twice.init(kernel, clip[0])
    a = dataclasses.replace(a, truncation=2 * a.truncation)
    assert float(b.tolerances.max()) > 0
    for frame in clip[1:]:
        a, found = once.step(kernel, a, frame)
        b, expected = twice.step(kernel, b, frame)
        assert np.array_equal(expected, found)
