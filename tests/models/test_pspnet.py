"""PSPNet: size, work, pooling by its definition, and the head against NumPy."""

import itertools
import math

import jax
import numpy as np
import pytest
from flax import nnx

from dynvid.models.pspnet import PSPNet, adaptive_average_pool
from dynvid.models.resnet import RESNET50, RESNET101
from tests.models import reference
from tests.models.test_deeplab import logits, narrow, out
from tests.models.test_resnet import rates, work

UNIT = 2.0**-24  # the relative error of one rounding to float32


@pytest.mark.parametrize(
    ("depths", "classes", "weights", "macs"),
    [
        # github.com/osmr/imgclsmob, PSPNet on dilated ResNets with a deep stem, without auxiliary
        # branch (with it 68,073,706): parameters, and "FLOPs/2" of 480 x 480 pixels.
        (RESNET101, 21, 65_708_501, 230_771.01e6),
        (RESNET101, 19, 65_707_475, 230_767.33e6),
        (RESNET50, 150, 46_782_550, 162_595.14e6),
    ],
)
def test_size_and_work_are_as_published(depths, classes, weights, macs):
    found, counted = work(
        lambda: PSPNet(depths=depths, classes=classes, rngs=nnx.Rngs(0)), (480, 480)
    )
    assert found == weights
    # Theirs counts normalisation, activation and pooling besides, 0.3 % of all.
    assert 0.995 * macs < counted < macs


@pytest.mark.parametrize("size", [(576, 1088), (713, 713), (512, 1024), (64, 40)])
def test_size_of_the_logits(size):
    network = nnx.eval_shape(lambda: PSPNet(rngs=nnx.Rngs(0)))
    frames = jax.ShapeDtypeStruct((2, *size, 3), np.float32)
    found = nnx.eval_shape(lambda m, x: m(x), network, frames)
    assert found.shape == (2, *(-(-n // 8) for n in size), 19)


def test_the_backbone_is_dilated_in_all_blocks():
    """conv4_1 to conv4_23 and conv5_1 to conv5_3 of the authors' `pspnet101_cityscapes_713`."""
    backbone = nnx.eval_shape(lambda: PSPNet(rngs=nnx.Rngs(0))).backbone
    assert rates(backbone) == [[1] * 3, [1] * 4, [2] * 23, [4] * 3]
    strides = [[layer.conv.strides for layer in group[0].convs] for group in backbone.groups]
    assert strides == [[1, 1, 1], [1, 2, 1], [1, 1, 1], [1, 1, 1]]
    stem = [(layer.conv.kernel.shape, layer.conv.strides) for layer in backbone.stem]
    assert stem == [((3, 3, 3, 64), 2), ((3, 3, 64, 64), 1), ((3, 3, 64, 128), 1)]


def pooled(x, bins):
    """The definition, part by part, in float64."""
    height, width = x.shape[1:3]
    found = np.zeros((x.shape[0], bins, bins, x.shape[3]))
    for i, j in itertools.product(range(bins), range(bins)):
        rows = slice(math.floor(i * height / bins), math.ceil((i + 1) * height / bins))
        columns = slice(math.floor(j * width / bins), math.ceil((j + 1) * width / bins))
        found[:, i, j] = x[:, rows, columns].astype(float).mean((1, 2))
    return found


def interpolated(x, height, width):
    """Bilinear, corners on corners, by NumPy's interpolation along one axis after the other."""
    for axis, n in ((1, height), (2, width)):
        places = np.linspace(0, x.shape[axis] - 1, n)
        x = np.apply_along_axis(
            lambda line, places=places: np.interp(places, np.arange(line.size), line), axis, x
        )
    return x


@pytest.mark.parametrize("size", [(7, 13), (12, 18), (72, 136), (3, 5), (1, 4)])
def test_adaptive_pooling_is_its_definition(size):
    x = np.random.default_rng(0).integers(-99, 100, (2, *size, 3)).astype(np.float32)
    found = jax.jit(lambda x: [adaptive_average_pool(x, bins) for bins in (1, 2, 3, 6)])(x)
    for bins, mean in zip((1, 2, 3, 6), found, strict=True):
        # Sums of a column's integers are exact. Then come a division (2 roundings, should it be a
        # product with the reciprocal), the sum of at most `columns` rounded means, a division.
        columns = -(-size[1] // bins) + 1
        bound = (columns + 4) * UNIT * 99
        np.testing.assert_allclose(mean, pooled(x, bins), rtol=0, atol=bound)


def test_the_head_is_its_definition():
    network = narrow(PSPNet, epsilon=0.0)
    x = reference.frames((61, 88))
    features = np.asarray(nnx.jit(lambda m, x: m.backbone(x))(network, x)).astype(float)
    size = features.shape[1:3]
    assert size == (8, 11)  # neither 3 nor 6 parts divide it

    def head(features, magnitude):
        """The head, or with `magnitude` the same of absolute values without what cancels."""
        absolute = np.abs if magnitude else lambda a: a

        def layer(layer, x):
            x = reference.conv(x, absolute(out(layer.conv.kernel)))
            mean, scale, bias = (
                absolute(np.asarray(v[...]))
                for v in (layer.norm.mean, layer.norm.scale, layer.norm.bias)
            )
            return (
                (x + mean) * scale + bias if magnitude else np.maximum((x - mean) * scale + bias, 0)
            )

        parts = [features]
        for bins, own in zip((1, 2, 3, 6), network.pyramid, strict=True):
            parts.append(interpolated(layer(own, pooled(features, bins)), *size))
        x = layer(network.fuse, np.concatenate(parts, axis=-1))
        kernel = absolute(out(network.classify.kernel))
        return reference.conv(x, kernel) + absolute(np.asarray(network.classify.bias[...]))

    expected, magnitude = head(features, False), head(np.abs(features), True)
    found = logits(network, x)
    assert found.shape == (2, 8, 11, 19)
    # A sum of n terms is off by at most n roundings of the sum of their magnitudes. In a row come
    # pooling (8 + 11 terms and 4), 1x1 (channels), normalisation (8), interpolation (2 x 8, its
    # zero weights included), 3x3 (9 x channels), normalisation, 1x1 and bias.
    channels = features.shape[3] + 4 * 16
    roundings = 23 + features.shape[3] + 8 + 16 + 9 * channels + 8 + 16 + 1
    bound = 1.01 * roundings * UNIT * magnitude
    assert bound.max() < 0.1 * expected.std()
    assert (np.abs(found - expected) <= bound).all()


def test_every_weight_has_a_gradient():
    """In training mode, through the backbone that DeepLab has too."""
    network = PSPNet(depths=(1, 1, 1, 1), width=2, rngs=nnx.Rngs(0))
    network.train()
    x = reference.frames((40, 40))
    gradients = nnx.jit(nnx.grad(lambda m: (m(x) ** 2).mean()))(network)
    assert all(float(abs(g).max()) > 0 for g in jax.tree.leaves(gradients))
