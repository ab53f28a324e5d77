"""What the detectors that go by a name are fed."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from dynvid.models.zoo import HEADS


def test_heads_give_what_their_networks_expect():
    yolov5, yolox = (HEADS[name].preprocessing for name in ("yolov5", "yolox"))
    frames = jnp.full((1, 4, 8, 3), jnp.array([255, 0, 51], jnp.uint8))
    yolov5, yolox = (dataclasses.replace(x, size=(8, 8)) for x in (yolov5, yolox))
    image = yolov5.on_frames(lambda _, x: x)(None, frames)
    # Scaling by 1 / 255 rounds once.
    np.testing.assert_allclose(image[0, 2, 0], [1, 0, 0.2], rtol=2e-7)
    np.testing.assert_allclose(image[0, 1, 0], [114 / 255] * 3, rtol=2e-7)
    image = yolox.on_frames(lambda _, x: x)(None, frames)
    np.testing.assert_array_equal(image[0, 0, 0], [51, 0, 255])
    np.testing.assert_array_equal(image[0, 4, 0], [114] * 3)


def test_inputs_of_a_free_size_follow_the_frames():
    assert HEADS["yolov5"].preprocessing.network_size((576, 768)) == (480, 640)
    assert HEADS["yolox"].preprocessing.network_size((576, 768)) == (416, 416)
