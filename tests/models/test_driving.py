"""The shipped networks: that they were trained, and what they are good for."""

import jax
import jax.numpy as jnp
import pytest

from dynvid.data.driving import driving_scene, render_drive
from dynvid.models.driving import CLASS_NAMES, driving_flow, load_driving_networks
from dynvid.ops.labels import best_classes
from dynvid.ops.regions import divide_frame
from dynvid.ops.warp import warp_by
from dynvid.training.dvsnet import confidence_scores

SIZE = (240, 320)
REGIONS = divide_frame(SIZE, overlap=16, multiple=8)


@pytest.fixture(scope="module")
def networks():
    return load_driving_networks()


@pytest.fixture(scope="module")
def drive():
    """Two frames of drives that nothing was trained on, three frames apart."""
    draw = jax.jit(
        lambda key: (lambda scene: (render_drive(scene, 40), render_drive(scene, 43, key_t=40)))(
            driving_scene(key, speed=0.3)
        )
    )
    pairs = [draw(jax.random.fold_in(jax.random.key(99), i)) for i in range(4)]
    return jax.tree.map(lambda *x: jnp.stack(x), *pairs)


def regions_of(frames):
    return REGIONS.divide(frames).reshape(-1, *REGIONS.size, *frames.shape[3:])


def test_most_pixels_get_the_right_class(networks, drive):
    _, now = drive
    labels, _ = best_classes(networks.segment(networks.params[0], now.frame), SIZE)
    assert jnp.mean(labels == now.labels) > 0.9
    for name in ("road", "sky", "building", "car"):
        index = CLASS_NAMES.index(name)
        both = jnp.sum((labels == index) & (now.labels == index))
        assert both / jnp.sum((labels == index) | (now.labels == index)) > 0.7, name


def test_motion_is_found_with_its_sign(networks, drive):
    key, now = drive
    current, before, truth = map(regions_of, (now.frame, key.frame, now.motion))
    flow = networks.flow(networks.params[1], current, before).flow
    truth = truth[:, 2::4, 2::4] / 4
    seen = jnp.hypot(truth[..., 0], truth[..., 1]) < 8  # not what has passed by

    def mean(x):
        return jnp.sum(jnp.where(seen, x, 0)) / jnp.sum(seen)

    error = mean(jnp.hypot(*jnp.moveaxis(flow - truth, -1, 0)))
    turned = mean(jnp.hypot(*jnp.moveaxis(-flow - truth, -1, 0)))
    length = mean(jnp.hypot(*jnp.moveaxis(truth, -1, 0)))
    assert length > 0.25
    assert error < 0.8 * length < turned


def test_warped_is_better_than_copied_and_decisions_know_how_good(networks, drive):
    key, now = drive
    segmentation, flow, decision = networks.params
    current, before, labels = map(regions_of, (now.frame, key.frame, now.labels))
    logits = networks.segment(segmentation, before)
    motion = networks.flow(flow, current, before)
    moved, _ = best_classes(warp_by(logits, motion, border="edge"), REGIONS.size)
    copied, _ = best_classes(logits, REGIONS.size)
    assert jnp.mean(moved == labels) > jnp.mean(copied == labels)
    features, scores = confidence_scores(
        networks.segment, networks.flow, (segmentation, flow), current, before
    )
    error = jnp.abs(networks.decide(decision, features) - scores)
    assert error.mean() < 4  # percent; 1.8 on the pairs that were held out in training


@pytest.mark.parametrize("size", [(8, 8), (8, 200), (300, 9), (33, 65), (1, 1)])
def test_small_and_thin_images_have_a_motion_too(networks, size):
    images = jnp.zeros((1, *size, 3), jnp.uint8)
    motion = jax.eval_shape(driving_flow, networks.params[1], images, images)
    assert motion.flow.shape == (1, -(-size[0] // 4), -(-size[1] // 4), 2)
    assert motion.features.shape == (1, 8, 10, 13)


def test_what_was_trained_is_far_from_where_it_began(networks):
    _, flow, decision = networks.params
    assert jnp.abs(flow["scale"]["kernel"]).max() > 0
    assert jnp.abs(decision["dense"][0]["bias"] - 0.1).max() > 0
