"""What networks get for pixels."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.models.zoo import HEADS, PIXELS

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", sorted(PIXELS))
def test_pixels_are_what_their_name_says(name):
    preprocessing = dataclasses.replace(PIXELS[name], size=(32, 64))
    images = preprocessing.on_frames(lambda _, images: images)(None, jnp.asarray(FRAMES))
    expected = {
        "bytes": FRAMES.astype(float),
        "unit": FRAMES / 255,
        "imagenet": (FRAMES / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    }[name]
    # Scaling, subtraction and division round once each, the scale once more; values below 256
    # or, normalised, below 3 with terms of up to 5.
    np.testing.assert_allclose(images, expected, rtol=0, atol=4 * 8 * 2**-24)


def test_sizes_that_are_free_keep_the_aspect_or_are_square():
    free = dataclasses.replace(PIXELS["unit"], longest_side=512)
    assert free.network_size((360, 480)) == (384, 512)
    assert dataclasses.replace(free, square=True).network_size((360, 480)) == (512, 512)
    assert dataclasses.replace(free, size=(7, 9)).network_size((360, 480)) == (7, 9)


def test_frames_of_another_shape_are_refused():
    fn = PIXELS["unit"].on_frames(lambda _, images: images)
    with pytest.raises(ValueError, match=r"must be \(S, H, W, 3\); got \(32, 64, 3\)"):
        fn(None, jnp.asarray(FRAMES[0]))


@pytest.mark.parametrize("name", ["imagenet", "yolox", "yolov5", "ssd"])
def test_parts_of_the_resized_frame_are_parts_of_the_input(name):
    known = PIXELS | {head: HEADS[head].preprocessing for head in HEADS}
    preprocessing = dataclasses.replace(known[name], size=(40, 48))
    frames = jnp.asarray(FRAMES)
    whole = preprocessing.on_frames(lambda _, images: images)(None, frames)
    part = preprocessing.normalise(preprocessing.resize(frames)[:, 8:24, 16:])
    np.testing.assert_array_equal(part, whole[:, 8:24, 16:])


def test_frames_of_the_right_size_stay_as_they_are():
    frames = jnp.asarray(FRAMES)
    assert dataclasses.replace(PIXELS["unit"], size=(32, 64)).resize(frames) is frames
    resized = dataclasses.replace(PIXELS["unit"], size=(16, 32)).resize(frames)
    assert (resized.dtype, resized.shape) == (jnp.float32, (2, 16, 32, 3))
    assert 1 < float(resized.max()) <= 255
