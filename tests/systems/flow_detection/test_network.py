"""Detectors cut in two: the parts make the whole, and what crosses is carried."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from dynvid.ops.warp import Motion
from dynvid.systems.flow_detection import FlowDetectionParams, flow_detection, split_detector


def detector(gain, x):
    """Two maps that are named, the first of them read after the second too."""
    fine = checkpoint_name(x * gain, "fine")
    coarse = checkpoint_name(fine[:, ::2, ::2] + 1, "coarse")
    return fine.sum((1, 2)), coarse * gain


FRAMES = jnp.arange(96.0).reshape(2, 4, 6, 2)
GAIN = jnp.float32(3)


@pytest.mark.parametrize(
    ("at", "maps"),
    [(None, 2), ("coarse", 2), ("fine", 1), (["fine", "coarse"], 2)],
)
def test_the_parts_make_the_whole(at, maps):
    parts = split_detector(detector, GAIN, FRAMES[:1], at=at)
    features = parts.features(GAIN, FRAMES)
    assert len(features) == maps
    assert set(parts.at) <= set(features)
    found = parts.detect(GAIN, features)
    jax.tree.map(np.testing.assert_array_equal, found, detector(GAIN, FRAMES))


def test_a_detector_without_names_has_its_outputs_carried():
    def plain(gain, x):
        return {"b": x * gain, "a": x[:, ::2, ::2]}

    parts = split_detector(plain, GAIN, FRAMES)
    assert parts.at == ()
    found = parts.detect(GAIN, parts.features(GAIN, FRAMES))
    jax.tree.map(np.testing.assert_array_equal, found, plain(GAIN, FRAMES))


def test_names_that_are_not_there():
    with pytest.raises(ValueError, match="at must name what the outputs of fn need; got 'head'"):
        split_detector(detector, GAIN, FRAMES, at="head").features(GAIN, FRAMES)


def test_a_cut_detector_is_carried_by_flow_detection():
    parts = split_detector(detector, GAIN, FRAMES, at="fine")

    def right(params, current, key):
        return Motion(jnp.full((len(current), 4, 6, 2), jnp.array([-1.0, 0.0])))

    video = flow_detection(parts.features, parts.detect, flow=right, key="every")
    params = FlowDetectionParams(GAIN, GAIN)
    state, found = video.init(params, FRAMES)
    jax.tree.map(np.testing.assert_array_equal, found, detector(GAIN, FRAMES))
    _, (sums, _) = video.step(params, state, FRAMES)
    moved = jnp.pad(FRAMES, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
    np.testing.assert_array_equal(sums, detector(GAIN, moved)[0])
