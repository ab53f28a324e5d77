"""Letterboxing against known placements."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynvid.ops.boxes import Detections
from dynvid.ops.letterbox import letterbox


@pytest.mark.parametrize("placement", ["top_left", "centre", "stretch"])
@pytest.mark.parametrize("frame_size", [(30, 40), (40, 30), (64, 48), (7, 90)])
def test_boxes_come_back_to_the_frame(placement, frame_size):
    geometry = letterbox(frame_size, (48, 64), placement=placement)
    frames = np.zeros((1, *frame_size, 1), np.uint8)
    top, left = frame_size[0] // 3, frame_size[1] // 3
    bottom, right = 2 * frame_size[0] // 3 + 1, 2 * frame_size[1] // 3 + 1
    frames[:, top:bottom, left:right] = 255
    image = np.asarray(geometry.to_network(frames))[0, :, :, 0]
    assert image.shape == (48, 64)
    content = np.zeros((48, 64), bool)
    rows, columns = geometry.resized
    content[geometry.top : geometry.top + rows, geometry.left : geometry.left + columns] = True
    assert (image[~content] == 114).all()
    ys, xs = np.nonzero(np.where(content, image, 0) >= 127)
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    found = Detections(
        jnp.array([[box]], jnp.float32), jnp.ones((1, 1)), jnp.zeros((1, 1), int),
        jnp.ones((1, 1), bool),
    )  # fmt: skip
    back = geometry.to_frame(found).boxes[0, 0]
    # Edges of the thresholded copy lie within half a pixel of the network's input.
    scale = np.array([frame_size[1] / columns, frame_size[0] / rows] * 2)
    assert (np.abs(back - np.array([left, top, right, bottom])) <= 0.5 * scale + 1e-3).all()


def test_equal_sizes_leave_the_frame_alone():
    frames = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3)
    image = letterbox((2, 3), (2, 3)).to_network(frames)
    np.testing.assert_array_equal(image, frames)
    names = {
        e.primitive.name for e in jax.make_jaxpr(letterbox((2, 3), (2, 3)).to_network)(frames).eqns
    }
    assert names == {"convert_element_type"}


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(S, 4, 8, C\); got \(1, 4, 9, 3\)"):
        letterbox((4, 8), (8, 8)).to_network(jnp.zeros((1, 4, 9, 3)))
    with pytest.raises(ValueError, match="must be positive"):
        letterbox((0, 8), (8, 8))


@settings(max_examples=25, deadline=None)
@given(
    frame_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    network_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    placement=st.sampled_from(["top_left", "centre", "stretch"]),
    seed=st.integers(0, 99),
)
def test_masks_mark_what_a_marked_pixel_lies_in(frame_size, network_size, placement, seed):
    geometry = letterbox(frame_size, network_size, placement=placement)
    mask = np.random.default_rng(seed).random((2, *frame_size)) < 0.1
    expected = np.zeros((2, *network_size), bool)
    for stream, y, x in zip(*np.nonzero(mask), strict=True):
        (top, bottom), (left, right) = (
            (start + at * inside // size, start - (-(at + 1) * inside // size))
            for at, size, inside, start in zip(
                (y, x), frame_size, geometry.resized, (geometry.top, geometry.left), strict=True
            )
        )
        expected[stream, top:bottom, left:right] = True
    found = np.asarray(jax.jit(geometry.mask_to_network)(mask))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found.any((1, 2)), mask.any((1, 2)))


@pytest.mark.parametrize("mask", [np.zeros((1, 3, 4), bool), np.zeros((1, 4, 4), np.uint8)])
def test_masks_of_other_frames_are_refused(mask):
    with pytest.raises(ValueError, match=r"mask must be bool\(S, 4, 4\)"):
        letterbox((4, 4), (2, 2)).mask_to_network(jnp.asarray(mask))
