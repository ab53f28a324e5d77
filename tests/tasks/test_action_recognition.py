"""Rankings of classes against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.tasks import ActionRecognition
from dynvid.tasks.action_recognition import Ranking
from dynvid.tasks.preprocessing import Preprocessing

PIXELS = Preprocessing(placement="stretch", white=1)


def test_the_likeliest_classes_come_first():
    scores = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32) * 4
    found = ActionRecognition(preprocessing=PIXELS, top=4).decode(
        None, {"logits": jnp.asarray(scores)}, frame_size=(8, 8)
    )
    exponents = np.exp(scores.astype(float))
    probabilities = exponents / exponents.sum(1, keepdims=True)
    order = np.argsort(-probabilities, 1)[:, :4]
    np.testing.assert_array_equal(found.classes, order)
    # An exponential and a sum of 9 terms, each within a few roundings.
    np.testing.assert_allclose(
        found.probabilities, np.take_along_axis(probabilities, order, 1), rtol=32 * 2**-24
    )


def test_probabilities_stay_what_they_are():
    rows = jnp.array([[0.25, 0.625, 0.125], [0.0, 0.0, 1.0]])
    found = ActionRecognition(preprocessing=PIXELS).decode(None, rows, frame_size=(8, 8))
    np.testing.assert_array_equal(found.probabilities, [[0.625, 0.25, 0.125], [1, 0, 0]])


@pytest.mark.parametrize("shape", [(1, 1), (1, 4, 4), (4,)])
def test_other_outputs_are_refused(shape):
    with pytest.raises(ValueError, match="outputs must"):
        ActionRecognition(preprocessing=PIXELS).decode(None, jnp.zeros(shape), frame_size=(8, 8))


def test_agreement_is_that_of_the_best_class():
    one = Ranking(jnp.array([[3, 1], [2, 0]]), jnp.array([[0.9, 0.1], [0.6, 0.4]]))
    other = Ranking(jnp.array([[3, 0], [0, 2]]), jnp.array([[0.5, 0.2], [0.5, 0.5]]))
    task = ActionRecognition(preprocessing=PIXELS)
    assert task.compare(one, other).score.tolist() == [1, 0]


def test_bars_are_as_long_as_classes_are_likely():
    frame = np.full((480, 640, 3), 100, np.uint8)
    task = ActionRecognition(preprocessing=PIXELS, class_names=("sitting", "walking"))

    def blue(*probabilities):
        ranking = Ranking(np.array([1, 0]), np.array(probabilities))
        picture = task.draw(frame, ranking).astype(int)
        return ((picture - [86, 180, 233] == 0).all(-1)).sum()

    assert 0 == blue(0.0, 0.0) < blue(0.4, 0.1) < blue(0.8, 0.1)
