"""The small networks of flow-guided detection: what they cost, and the weights that come along."""

import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynvid.data.moving_objects import object_pairs
from dynvid.graph.macs import count_macs
from dynvid.metrics.imagenet_vid import vid_average_precision
from dynvid.models.flow_detection import (
    CLASS_NAMES,
    STRIDE,
    detection_networks,
    load_flow_detection_networks,
    small_flow_detector,
)
from dynvid.ops.warp import warp

SIZE = (256, 256)


@pytest.fixture(scope="module")
def networks():
    return detection_networks(nnx.eval_shape(lambda: small_flow_detector(rngs=nnx.Rngs(0))))


def test_features_cost_far_more_than_flow_and_detector(networks):
    """Else nothing could be won by propagating them."""
    frames = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.uint8)
    features = jax.ShapeDtypeStruct((1, 16, 16, 96), jnp.float32)

    macs = {
        "features": count_macs(networks.features, networks.params[0], frames),
        "flow": count_macs(networks.flow, networks.params[1], frames, frames),
        "embed": count_macs(networks.embed, networks.params[2], features),
        "detect": count_macs(
            lambda p, f: networks.detect(p, f, SIZE), networks.params[3], features
        ),
    }
    assert macs["features"] > 5 * (macs["flow"] + macs["embed"] + macs["detect"])


def test_grids_fit_each_other(networks):
    frames = jax.ShapeDtypeStruct((2, 200, 264, 3), jnp.uint8)
    features = jax.eval_shape(networks.features, networks.params[0], frames)
    assert features.shape[:3] == (2, -(-200 // STRIDE), -(-264 // STRIDE))
    motion, quality = jax.eval_shape(networks.flow, networks.params[1], frames, frames)
    assert motion.flow.shape == (*features.shape[:3], 2)
    assert quality.shape == features.shape[:3]
    found = jax.eval_shape(
        lambda p, f: networks.detect(p, f, (200, 264)), networks.params[3], features
    )
    assert found.boxes.shape == (2, 32, 4)


def test_the_weights_come_with_the_package():
    networks = load_flow_detection_networks()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(networks.params))
    path = importlib.resources.files("dynvid.models") / "data" / "flow_detection.npz"
    with path.open("rb") as file:
        assert len(file.read()) <= 2e6


def test_objects_are_found_and_their_features_follow_them():
    """On scenes of their own: weights, normalisation, classes and motion fit each other."""
    networks = load_flow_detection_networks()
    features, flow, _, detect = networks.params

    @jax.jit
    def look(frames, earlier):
        now, then = (networks.features(features, x) for x in (frames, earlier))
        motion, _ = networks.flow(flow, frames, earlier)
        maps = {"computed": now, "warped": warp(then, motion.flow), "copied": then}
        return {name: networks.detect(detect, x, SIZE) for name, x in maps.items()}

    pairs = jax.jit(lambda key: object_pairs(key, pairs=24))(jax.random.key(1000))
    found, truth = look(pairs.current.frame, pairs.key.frame), pairs.current
    reached = {
        name: 100 * jnp.nanmean(vid_average_precision(
            those, truth.boxes, truth.classes, truth.present, class_count=len(CLASS_NAMES)
        ))
        for name, those in found.items()
    }  # fmt: skip
    assert reached["computed"] > 50
    assert reached["computed"] > reached["warped"] > reached["copied"]
    assert np.isfinite(reached["copied"])
