"""Sources and networks that several commands are tried on."""

import imageio.v3 as iio
import numpy as np
import pytest

from tests.cli.helpers import moving_square

CFG = """[net]
width=64
height=64
channels=3

[convolutional]
filters=4
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=18
size=1
stride=1
pad=0
activation=linear

[yolo]
mask=0,1,2
anchors=8,8, 16,16, 32,32
classes=1
num=3
"""


@pytest.fixture
def darknet(tmp_path):
    """A small Darknet network with random weights."""
    path = tmp_path / "small.cfg"
    path.write_text(CFG)
    count = (3 * 3 * 3 * 4 + 4) + (4 * 18 + 18)
    weights = np.random.default_rng(0).normal(0, 0.3, count).astype("<f4")
    header = np.array([0, 2, 0], "<i4").tobytes() + np.zeros(1, "<i8").tobytes()
    path.with_suffix(".weights").write_bytes(header + weights.tobytes())
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of five images."""
    images = tmp_path / "street"
    images.mkdir()
    for t, frame in enumerate(moving_square(5)):
        iio.imwrite(images / f"{t}.png", frame)
    return images
