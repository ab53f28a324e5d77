"""DeepLab: size, work, and the heads against NumPy."""

import jax
import numpy as np
import pytest
from flax import nnx

from dynvid.models.deeplab import DeepLabFast, DeepLabV2
from dynvid.models.modules import from_nnx
from dynvid.models.resnet import RESNET101
from tests.models import reference
from tests.models.test_modules import filled
from tests.models.test_resnet import drawn, rates, work

BACKBONE = 42_500_160  # ResNet-101 without classifier, see test_resnet


def backbone_macs(cells):
    """By hand: conv1, and conv2 to conv5 of ResNet-101 on maps of so many cells each.

    With the stride in the first 1x1 convolution all of a stage is done at its own resolution.
    """
    macs = 4 * cells[0] * 7 * 7 * 3 * 64
    depth = 64
    for stage, (count, blocks) in enumerate(zip(cells, RESNET101, strict=True)):
        width = 64 << stage
        first = depth * width + 9 * width**2 + 4 * width**2 + depth * 4 * width
        macs += count * (first + (blocks - 1) * (4 + 9 + 4) * width**2)
        depth = 4 * width
    return macs


@pytest.mark.parametrize("classes", [19, 21])  # Cityscapes, and Pascal VOC
def test_size_of_deeplab_v2(classes):
    weights, macs = work(lambda: DeepLabV2(classes=classes, rngs=nnx.Rngs(0)), (512, 1024))
    assert weights == BACKBONE + 4 * (9 * 2048 + 1) * classes
    # 43.9 and 44.0 million: its authors print none.
    assert weights == {19: 43_901_068, 21: 44_048_532}[classes]
    cells = 64 * 128
    head = cells * 4 * 9 * 2048 * classes
    assert macs == backbone_macs([4 * cells, cells, cells, cells]) + head


def test_size_of_deeplab_fast():
    weights, macs = work(lambda: DeepLabFast(rngs=nnx.Rngs(0)), (576, 1088))
    head = 2048 * 256 * (9 + 9 + 9 + 1) + 256 * 256 + 256 * 19
    assert weights == BACKBONE + head + 2 * 256 * 5
    cells = 36 * 68
    assert macs == backbone_macs([16 * cells, 4 * cells, cells, cells]) + cells * head


def test_dilations_of_deeplab_fast_are_those_of_the_authors():
    """Block by block, res4a to res4b22 and res5a to res5c, of their `deeplabmodel.py`."""
    network = nnx.eval_shape(lambda: DeepLabFast(rngs=nnx.Rngs(0)))
    conv4 = [1, 4, 2, 2, 4, 2, 2, 4, 2, 2, 4, 2, 2, 4, 2, 2, 4, 2, 2, 4, 2, 2, 4]
    assert rates(network.backbone) == [[1] * 3, [1] * 4, conv4, [4, 8, 16]]
    assert [layer.conv.kernel_dilation for layer in network.branches] == [6, 12, 18, 1]
    # The stride is in the 1x1 convolutions, and conv5 has none.
    strides = [
        [layer.conv.strides for layer in group[0].convs] for group in network.backbone.groups
    ]
    assert strides == [[1, 1, 1], [2, 1, 1], [2, 1, 1], [1, 1, 1]]


def test_dilations_of_deeplab_v2():
    network = nnx.eval_shape(lambda: DeepLabV2(rngs=nnx.Rngs(0)))
    assert rates(network.backbone) == [[1] * 3, [1] * 4, [2] * 23, [4] * 3]
    assert [layer.kernel_dilation for layer in network.branches] == [6, 12, 18, 24]


@pytest.mark.parametrize(
    ("kind", "size", "cells"),
    [
        (DeepLabFast, (576, 1088), (36, 68)),  # DVSNet's regions with their overlap
        (DeepLabFast, (512, 1024), (32, 64)),
        (DeepLabFast, (321, 321), (21, 21)),
        (DeepLabV2, (576, 1088), (72, 136)),
        (DeepLabV2, (321, 321), (41, 41)),  # as Chen et al. train it
    ],
)
def test_size_of_the_logits(kind, size, cells):
    network = nnx.eval_shape(lambda: kind(rngs=nnx.Rngs(0)))
    frames = jax.ShapeDtypeStruct((2, *size, 3), np.float32)
    assert nnx.eval_shape(lambda m, x: m(x), network, frames).shape == (2, *cells, 19)


DEPTHS = (1, 1, 2, 1)


def narrow(kind, **options):
    """Integers, with heads that look at all of their input."""

    def dense(rng, path, shape):
        if path[0] != "backbone" and path[-1] == "kernel":
            return rng.integers(-1, 2, shape)
        return drawn(rng, path, shape)

    return filled(lambda: kind(depths=DEPTHS, width=2, rngs=nnx.Rngs(0), **options), dense)


def logits(network, x):
    fn, params = from_nnx(network)
    return np.asarray(jax.jit(fn)(params, x))


def out(kernel):
    """OIHW, of a kernel HWIO."""
    return np.asarray(kernel[...]).transpose(3, 2, 0, 1)


def normalised(layer, x, dilation=1):
    x = reference.conv(x, out(layer.conv.kernel), dilation=dilation)
    mean, scale, bias = (
        np.asarray(v[...]) for v in (layer.norm.mean, layer.norm.scale, layer.norm.bias)
    )
    return (x - mean) * scale + bias


def test_the_head_of_deeplab_fast_is_its_definition():
    network = narrow(DeepLabFast, epsilon=0.0)
    x = reference.frames((90, 330))  # 21 cells wide: every branch's outer taps lie on the map
    features = np.asarray(nnx.jit(lambda m, x: m.backbone(x))(network, x))
    summed = sum(
        normalised(layer, features, rate)
        for layer, rate in zip(network.branches, (6, 12, 18, 1), strict=True)
    )
    expected = reference.conv(normalised(network.fuse, summed), out(network.classify.kernel))
    assert (summed < 0).any()  # a ReLU in between would show
    assert np.abs(expected).max() < reference.LAST_EXACT
    np.testing.assert_array_equal(logits(network, x), expected)


def test_the_head_of_deeplab_v2_is_its_definition():
    network = narrow(DeepLabV2, epsilon=0.0, classes=5)
    x = reference.frames((90, 210))  # 27 cells wide
    features = np.asarray(nnx.jit(lambda m, x: m.backbone(x))(network, x))
    expected = sum(
        reference.conv(features, out(layer.kernel), dilation=rate) + np.asarray(layer.bias[...])
        for layer, rate in zip(network.branches, (6, 12, 18, 24), strict=True)
    )
    found = logits(network, x)
    assert found.shape == (2, 12, 27, 5)
    assert np.abs(expected).max() < reference.LAST_EXACT
    np.testing.assert_array_equal(found, expected)
