"""How sure a head is, and where a video stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.ops.early_exit import Exits, confidence, exit_of, saved, stops


@pytest.mark.parametrize("measure", ["max_softmax", "margin", "entropy"])
def test_confidence_lies_between_none_and_all(measure):
    # One class certain: exp(-200) is 0 in float32. All alike: within C * eps of the sum.
    sure = jnp.array([[200.0, 0.0, 0.0, 0.0]])
    none = confidence(jnp.zeros((1, 4)), measure=measure)
    least = 0.25 if measure == "max_softmax" else 0.0
    assert abs(float(none[0]) - least) <= 4 * np.finfo(np.float32).eps
    assert confidence(sure, measure=measure).tolist() == [1.0]
    drawn = confidence(jax.random.normal(jax.random.key(0), (50, 4)), measure=measure)
    assert ((drawn > least) & (drawn < 1)).all()


def test_measures_differ():
    logits = jnp.log(jnp.array([[0.5, 0.4, 0.1], [0.5, 0.25, 0.25]]))
    same = confidence(logits)
    np.testing.assert_allclose(same, [0.5, 0.5], rtol=8 * np.finfo(np.float32).eps)
    margin = confidence(logits, measure="margin")
    assert margin[0] < margin[1]


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (jnp.zeros((1, 3)), {"measure": "max"}, "measure must be one of max_softmax, .* 'max'"),
        (jnp.zeros((1, 1)), {}, r"at least 2 classes; got shape \(1, 1\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(logits, options, message):
    with pytest.raises(ValueError, match=message):
        confidence(logits, **options)


def test_it_stops_at_the_first_that_is_sure_and_at_the_last_anyway():
    confidences = jnp.array([[0.9, 0.95, 0.1], [0.2, 0.8, 0.1], [0.2, 0.3, 0.1], [jnp.nan] * 3])
    assert exit_of(confidences, jnp.array([0.9, 0.8, 2.0])).tolist() == [0, 1, 2, 2]
    assert not stops(jnp.nan, -jnp.inf)


def test_saved_counts_as_far_as_it_has_come():
    nan = jnp.nan
    exits = Exits(
        jnp.array([[0.9, nan, nan], [0.1, 0.2, nan], [nan] * 3, [0.1, 0.2, 0.3]]),
        jnp.full((4, 3), 0.5), jnp.array([0, -1, -1, 2]), jnp.array([[1.0, 2.0, 8.0]] * 4),
    )  # fmt: skip
    assert saved(exits)["macs"].tolist() == [1, 2, 0, 8]
    assert saved(exits)["fraction"].tolist() == [0.125, 0.25, 0, 1]
