"""The small networks of flow-guided detection: what they cost, and the weights that come along."""

import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynvid.graph.macs import count_macs
from dynvid.models.flow_detection import (
    CLASS_NAMES,
    STRIDE,
    detection_networks,
    load_flow_detection_networks,
    small_flow_detector,
)

SIZE = (256, 256)


@pytest.fixture(scope="module")
def networks():
    return detection_networks(nnx.eval_shape(lambda: small_flow_detector(rngs=nnx.Rngs(0))))


def test_features_cost_far_more_than_flow_and_detector(networks):
    """Else nothing could be won by propagating them."""
    frames = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.uint8)
    features = jax.ShapeDtypeStruct((1, 16, 16, 64), jnp.float32)

    macs = {
        "features": count_macs(networks.features, networks.params[0], frames),
        "flow": count_macs(networks.flow, networks.params[1], frames, frames),
        "embed": count_macs(networks.embed, networks.params[2], features),
        "detect": count_macs(
            lambda p, f: networks.detect(p, f, SIZE), networks.params[3], features
        ),
    }
    assert macs["features"] > 6 * (macs["flow"] + macs["embed"] + macs["detect"])


def test_the_weights_come_with_the_package():
    networks = load_flow_detection_networks()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(networks.params))
    path = importlib.resources.files("dynvid.models") / "data" / "flow_detection.npz"
    with path.open("rb") as file:
        assert len(file.read()) <= 2e6


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


def test_objects_are_found():
    """On one frame of a scene of its own: weights, normalisation and classes fit each other."""
    from dynvid.data.moving_objects import object_scene, render_objects
    from dynvid.ops.boxes import intersection_over_union

    networks = load_flow_detection_networks()

    @jax.jit
    def look(frame):
        features = networks.features(networks.params[0], frame[None])
        return networks.detect(networks.params[3], features, SIZE)

    hits = shown = 0
    for seed in range(3):
        truth = render_objects(object_scene(jax.random.key(1000 + seed), mishaps=0.0), 0)
        found = look(truth.frame)
        overlap = np.asarray(intersection_over_union(truth.boxes, found.boxes[0]))
        right = found.classes[0] == truth.classes[:, None]
        hit = ((overlap >= 0.5) & right & (found.scores[0] > 0.3)).any(1)
        clear = np.asarray(truth.visibility) > 0.8
        hits, shown = hits + hit[clear].sum(), shown + clear.sum()
    assert len(CLASS_NAMES) == 6
    assert hits >= 0.6 * shown
