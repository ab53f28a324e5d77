"""The small networks of flow-guided detection: what they cost, and whether they fit."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dynvid.graph.macs import count_macs
from dynvid.models.flow_detection import (
    STRIDE,
    detection_networks,
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
