"""DVSNet around any segmentation network, as `--system dvsnet` builds it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dynvid.models.driving import DrivingNetworks
from dynvid.models.zoo import Model
from dynvid.ops.labels import best_classes
from dynvid.ops.regions import divide_frame
from dynvid.ops.warp import Motion
from dynvid.systems import registry
from dynvid.tasks import Segmentation
from dynvid.tasks.preprocessing import Preprocessing

CLASSES = 4
SIZE = (48, 64)
KERNEL = jax.random.randint(jax.random.key(0), (4, 4, 3, CLASSES), -4, 5).astype(jnp.float32)
ALWAYS = {"policy": "fixed_period", "threshold": 1}
NEVER = {"policy": "fixed_period", "threshold": 1000}


def network(kernel, images):
    """Integer scores at half the resolution."""
    return lax.conv_general_dilated(
        images.astype(jnp.float32), kernel, (2, 2), [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def classes_first(kernel, images):
    return jnp.moveaxis(network(kernel, images), 3, 1)


def model(fn=network, *, params=KERNEL, **options):
    options = {"placement": "stretch", "white": 255, "size": SIZE, "multiple": 8} | options
    return Model("small", fn, params, Segmentation(preprocessing=Preprocessing(**options)))


def clip(count, size=SIZE):
    frames = np.random.default_rng(0).integers(0, 256, (count, 1, *size, 3))
    return jnp.asarray(frames.astype(np.uint8))


@pytest.fixture(autouse=True)
def still(monkeypatch):
    """Puts a flow network in the shipped one's place that sees no motion and trusts class 0."""

    def flow(params, current, key):
        pixels = (*current.shape[:1], current.shape[1] // 4, current.shape[2] // 4)
        if jnp.issubdtype(current.dtype, jnp.floating):
            brightest = jnp.maximum(jnp.max(current), jnp.max(key))
            current = jnp.where(brightest <= 1, current, jnp.nan)  # images are in [0, 1]
        known = jnp.isfinite(jnp.sum(current.astype(jnp.float32)))
        scale = jnp.ones((*pixels, CLASSES)).at[..., 0].set(1e6)
        motion = jnp.where(known, jnp.zeros((*pixels, 2)), jnp.nan)
        return Motion(motion, scale, jnp.zeros((*pixels[:1], 1, 1, 1)))

    def decide(params, features):
        return jnp.full(len(features), 50.0)

    networks = DrivingNetworks(network, flow, decide, ((), (), ()))
    monkeypatch.setattr(registry, "load_driving_networks", lambda: networks)


def build(of, frames, **options):
    system = registry.SYSTEMS["dvsnet"]
    return system.build(of, frames, **system.settings(options))


@pytest.mark.parametrize("fn", [network, classes_first])
def test_one_region_segmented_in_every_frame_is_the_network(fn):
    frames, of = clip(3), model(fn)
    video = build(of, frames, rows=1, columns=1, **ALWAYS)
    state, found = video.init(KERNEL, frames[0])
    for frame in frames[1:]:
        state, found = video.step(KERNEL, state, frame)
        dense = of.task.decode(KERNEL, of.on_frames(KERNEL, frame), frame_size=SIZE)
        np.testing.assert_array_equal(found.labels, dense.labels)
        np.testing.assert_array_equal(found.counts, dense.counts)


@pytest.mark.parametrize("incremental", [False, True])
def test_regions_are_parts_of_the_resized_frame(incremental):
    size = (37, 53)
    frames, of = clip(3, size), model(size=None, longest_side=64)
    assert of.network_size(size) == SIZE
    given = {"pixel_threshold": 0, "truncation": 0} if incremental else {}
    video = build(of, frames, overlap=8, incremental=incremental, **given, **ALWAYS)
    regions = divide_frame(SIZE, overlap=8, multiple=8)
    state, _ = video.init(KERNEL, frames[0])
    for frame in frames[1:]:
        state, found = video.step(KERNEL, state, frame)
        parts = regions.divide(of.resize(frame))[0]
        labels, winning = best_classes(network(KERNEL, parts), regions.size)
        expected = regions.stitch(labels[None], winning[None])
        # Sums of 48 products of resized pixels: a few may lie within rounding of another class.
        assert np.mean(np.asarray(found.labels) != np.asarray(expected)) < 1e-3
        there = of.task.decode(KERNEL, found, frame_size=size)
        assert there.labels.shape == (1, *size)
        assert there.paths.boxes[0, -1].tolist() == pytest.approx([26.5, 18.5, 53, 37])


def test_the_scale_field_is_for_as_many_classes_only():
    frames = clip(2)
    for classes in (CLASSES, CLASSES - 1):
        kernel = jnp.abs(KERNEL[..., :classes])  # scores are positive: the scale makes class 0 win
        video = build(model(params=kernel), frames, **NEVER)
        state, first = video.init(kernel, frames[0])
        _, warped = video.step(kernel, state, frames[1])
        assert not warped.paths.segmented.any()
        if classes == CLASSES:
            assert not warped.labels.any()
        else:  # and no motion: on the grid of the scores, which are twice as fine, nothing is lost
            np.testing.assert_array_equal(warped.labels, first.labels)


@pytest.mark.parametrize("size", [SIZE, (37, 53)])
def test_flow_networks_see_the_pixels_in_their_unit(size):
    frames = clip(2, size)
    video = build(model(size=None, longest_side=64), frames, policy="flow_magnitude")
    state, _ = video.init(KERNEL, frames[0])
    _, found = video.step(KERNEL, state, frames[1])
    assert (found.paths.scores == 0).all()


def test_a_mask_of_the_frame_says_which_regions_are_segmented():
    size = (24, 32)
    frames = clip(2, size)
    video = build(model(), frames, overlap=8)
    state, _ = video.init(KERNEL, frames[0])
    mask = jnp.zeros((1, *size), bool).at[0, 23, 0].set(True)
    _, found = video.step(KERNEL, state, frames[1], mask)
    assert found.paths.segmented.tolist() == [[False, False, True, False]]


def test_another_frame_size_is_named():
    frames = clip(2)
    video = build(model(), frames)
    state, _ = video.init(KERNEL, frames[0])
    with pytest.raises(ValueError, match=r"uint8\(S, 48, 64, 3\) .*; got uint8\[1, 40, 64, 3\]"):
        video.step(KERNEL, state, frames[1][:, :40])


@pytest.mark.parametrize(("options", "match"), [
    ({"threshold": 400}, "threshold must be between 0 and 100; got 400"),
    ({"policy": "fixed_period", "threshold": 0}, "threshold must be at least 1; got 0"),
    ({"overlap": 12}, "overlap must be a multiple of 8 pixels, at least 0; got 12"),
    ({"overlap": 32}, "room for 2 regions of 24 pixels and an overlap of 32; got frames 48 high"),
    ({"rows": 100}, "room for 100 regions of 1 pixels"),
    ({"truncation": 1}, "truncation is for incremental=true; got 1"),
    ({"pixel_threshold": 1}, "pixel_threshold is for incremental=true; got 1"),
    ({"policy": "flow_magnitude", "adaptive": True}, "adaptive is for the policy"),
])  # fmt: skip
def test_what_does_not_fit_is_named(options, match):
    with pytest.raises(ValueError, match=match):
        build(model(), clip(1), **options)


def test_a_network_of_whole_frames_only_says_what_to_set():
    def whole(kernel, images):
        if images.shape[1:3] != SIZE:
            raise ValueError(f"images must be 48 x 64; got {images.shape[1]} x {images.shape[2]}")
        return network(kernel, images)

    with pytest.raises(ValueError, match=r"regions of 48x40 \(images must.*; rows=1 columns=1"):
        build(model(whole), clip(1))
    frames = clip(2)
    video = build(model(whole), frames, rows=1, columns=1)
    state, _ = video.init(KERNEL, frames[0])
    video.step(KERNEL, state, frames[1])


def test_a_network_of_a_larger_stride_gets_regions_that_fit():
    def strided(kernel, images):
        assert images.shape[1] % 32 == images.shape[2] % 32 == 0
        return network(kernel, images)

    frames = clip(1, (96, 128))
    of = model(strided, size=None, longest_side=128, multiple=32)
    state, _ = build(of, frames).init(KERNEL, frames[0])  # overlaps by 32
    assert state.key_images.shape[2:4] == (96, 96)
    with pytest.raises(ValueError, match="overlap must be a multiple of 32 pixels"):
        build(of, frames, overlap=16)


def test_networks_of_other_tasks_are_refused():
    of = dataclasses.replace(model(), network=lambda kernel, images: images.mean((1, 2)))
    with pytest.raises(ValueError, match="outputs must be one array"):
        build(of, clip(1), rows=1, columns=1)
