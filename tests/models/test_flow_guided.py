"""The networks of flow-guided detection: published sizes, and what is put on FlowNetS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from dynvid.graph.macs import count_macs
from dynvid.models.flow_guided import (
    RGB_MEAN,
    CorrelationFlowNetwork,
    DeformableConv,
    EmbeddingNetwork,
    FeatureNetwork,
    FlowQualityNetwork,
    centred_frames,
)
from dynvid.models.flownet import FlowNetS
from dynvid.models.resnet import RESNET101, ResNet

EPS = float(jnp.finfo(jnp.float32).eps)


def parameters(module):
    return sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))


def work(make, *shapes, of=lambda n, *x: n(*x)):
    graph, state = nnx.split(nnx.eval_shape(make))
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return count_macs(lambda p, *x: of(nnx.merge(graph, p), *x), state, *shapes)


def test_features_are_resnet_101_and_a_convolution():
    network = nnx.eval_shape(lambda: FeatureNetwork(rngs=nnx.Rngs(0)))
    # torchvision's resnet101 without its classifier, and 3x3 from 2048 to 1024 with a bias.
    backbone = 44_549_160 - 2048 * 1000 - 1000
    assert parameters(network) == backbone + 9 * 2048 * 1024 + 1024
    rates = [[b.convs[1].conv.kernel_dilation for b in g] for g in network.backbone.groups]
    assert rates == [[1] * 3, [1] * 4, [1] * 23, [2] * 3]
    strides = [g[0].convs[0].conv.strides for g in network.backbone.groups]
    assert strides == [1, 2, 2, 1]
    frames = jax.ShapeDtypeStruct((2, 600, 1000, 3), jnp.uint8)
    found = nnx.eval_shape(lambda n, f: n(f), network, frames)
    assert found.shape == (2, 38, 63, 1024)
    # The convolution on top costs what every one of its positions does.
    total = work(lambda: FeatureNetwork(rngs=nnx.Rngs(0)), (1, 600, 1000, 3))
    below = work(
        lambda: ResNet(depths=RESNET101, output_stride=16, stride_in="1x1", rngs=nnx.Rngs(0)),
        (1, 600, 1000, 3),
    )
    assert total - below == 38 * 63 * 9 * 2048 * 1024


def test_frames_go_in_as_blue_green_red_less_their_means():
    frames = jnp.full((1, 1, 1, 3), jnp.array([255, 128, 0], jnp.uint8))
    expected = np.array([255, 128, 0]) - RGB_MEAN
    np.testing.assert_allclose(centred_frames(frames).ravel(), expected, rtol=2 * EPS)
    scaled = centred_frames(frames.astype(jnp.float32) / 255)
    np.testing.assert_allclose(scaled.ravel(), expected, rtol=0, atol=4 * 255 * EPS)
    with pytest.raises(ValueError, match="frames must be"):
        centred_frames(frames[0])
    network = FeatureNetwork(depths=(1, 1, 1, 1), width=1, features=2, rngs=nnx.Rngs(0))
    image = jax.random.randint(jax.random.key(0), (1, 18, 34, 3), 0, 256).astype(jnp.uint8)
    blue_first = image.astype(jnp.float32)[..., ::-1] - jnp.array(RGB_MEAN[::-1])
    found, conv5 = nnx.jit(lambda n, a, b: (n(a), n.backbone(b)))(network, image, blue_first)
    assert found.shape == (1, 2, 3, 2)
    taps = lax.conv_general_dilated(
        conv5, network.reduce.kernel[...], (1, 1), ((6, 6), (6, 6)), rhs_dilation=(6, 6),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ) + network.reduce.bias[...]  # fmt: skip
    # 288 products in either order, and the backbone compiled with and without what follows.
    atol = 9 * 32 * EPS * float(jnp.abs(conv5).max())
    np.testing.assert_allclose(found, jnp.maximum(taps, 0), rtol=0, atol=atol)


def test_flow_is_flownet_s_and_a_branch():
    network = nnx.eval_shape(lambda: FlowQualityNetwork(rngs=nnx.Rngs(0)))
    # Sun et al., PWC-Net, 2018, Table 7: 38.67 million; and 3x3 from 194 channels to one.
    assert (parameters(network) - (9 * 194 + 1)) // 10_000 == 3867
    scaled = nnx.eval_shape(lambda: FlowQualityNetwork(scale=1024, rngs=nnx.Rngs(0)))
    assert parameters(scaled) - parameters(network) == 195 * 1024
    frames = jax.ShapeDtypeStruct((2, 600, 1000, 3), jnp.uint8)
    motion, quality = nnx.eval_shape(lambda n, *pair: n(*pair), scaled, frames, frames)
    assert motion.flow.shape == (2, 38, 63, 2)
    assert motion.scale.shape == (2, 38, 63, 1024)
    assert quality.shape == (2, 38, 63)
    pair = ((1, 600, 1000, 3),) * 2
    total = work(lambda: FlowQualityNetwork(rngs=nnx.Rngs(0)), *pair)
    plain = work(
        lambda: FlowNetS(upsampling_bias=True, rngs=nnx.Rngs(0)), *pair,
        of=lambda n, *x: n(*x).concatenation,
    )  # fmt: skip
    assert total - plain == 38 * 63 * 9 * 194 * 3


def test_heads_read_the_halved_concatenation():
    network = FlowQualityNetwork(width=1 / 64, scale=3, rngs=nnx.Rngs(0))
    for i, layer in enumerate((network.predict_quality, network.predict_scale)):
        assert (layer.bias[...] == 1).all()
        layer.kernel[...] = jax.random.normal(jax.random.key(i), layer.kernel.shape)
    images = jax.random.randint(jax.random.key(2), (2, 2, 40, 56, 3), 0, 256).astype(jnp.uint8)
    motion, quality = nnx.jit(lambda n, c, k: n(c, k))(network, *images)
    # Both sides odd: 5 by 7 positions, of which the last row and column stand alone.
    centred = [(x.astype(jnp.float32) - jnp.array(RGB_MEAN)) / 255 for x in images]
    joined = nnx.jit(lambda n, c, k: n(c, k).concatenation)(network.flownet, *centred)
    assert joined.shape[1:3] == (5, 7)
    padded = np.pad(joined, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=np.nan)
    halved = np.nanmean(padded.reshape(2, 3, 2, 4, 2, -1), (2, 4))
    # The pair may be compiled differently, and a layer sums at most 16 x 19 products.
    tolerance = 1000 * EPS * float(np.abs(halved).max())

    def convolved(layer, pad):
        return lax.conv_general_dilated(
            halved, layer.kernel[...], (1, 1), ((pad, pad),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ) + layer.bias[...]  # fmt: skip

    # 20 pixels a unit, and 8 of them a position: 2.5, as DFF's authors say.
    flow = 2.5 * convolved(network.flownet.predict_flow[-1], 1)
    for found, expected in (
        (motion.flow, flow),
        (motion.scale, convolved(network.predict_scale, 0)),
        (quality[..., None], convolved(network.predict_quality, 1)),
    ):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_training_starts_by_propagating():
    network = FlowQualityNetwork(width=1 / 64, scale=3, rngs=nnx.Rngs(0))
    images = jax.random.randint(jax.random.key(2), (2, 1, 40, 56, 3), 0, 256).astype(jnp.uint8)
    motion, quality = nnx.jit(lambda n, c, k: n(c, k))(network, *images)
    assert (quality > 0).all()
    assert (motion.scale == 1).all()


@pytest.mark.parametrize("shift", [(0, 0), (1, -2), (-4, 3)])
def test_correlation_finds_shifts_by_whole_positions(shift):
    """Before it has learned anything, where the best match counts alone."""
    network = CorrelationFlowNetwork(rngs=nnx.Rngs(0))
    network.sharpness[...] = jnp.float32(1e4)
    network.predict_flow.kernel[...] = jnp.zeros_like(network.predict_flow.kernel[...])
    key = np.random.default_rng(0).integers(0, 256, (1, 256, 224, 3)).astype(np.uint8)
    current = np.roll(key, (16 * shift[1], 16 * shift[0]), (1, 2))
    motion, quality = nnx.jit(lambda n, *pair: n(*pair))(network, current, key)
    assert motion.flow.shape == (1, 16, 14, 2)
    inner = motion.flow[0, 5:-5, 5:-5]  # the borders see what was not rolled
    wanted = np.broadcast_to(-np.array(shift), inner.shape)
    np.testing.assert_allclose(inner, wanted, atol=81 * 4 * EPS)  # a sum of 81 steps of 4 at most
    np.testing.assert_allclose(quality, 1, atol=0.5)  # training starts by propagating


def test_embeddings_are_those_of_fgfa():
    network = nnx.eval_shape(lambda: EmbeddingNetwork(rngs=nnx.Rngs(0)))
    layers = ((1024, 512, 1), (512, 512, 9), (512, 2048, 1))
    assert parameters(network) == sum(i * o * k + o for i, o, k in layers)
    macs = work(lambda: EmbeddingNetwork(rngs=nnx.Rngs(0)), (1, 38, 63, 1024))
    assert macs == 38 * 63 * sum(i * o * k for i, o, k in layers)
    small = EmbeddingNetwork(depth=2, hidden=3, embedding=4, rngs=nnx.Rngs(0))
    # Linear at its end: of both signs.
    found = small(jax.random.normal(jax.random.key(0), (1, 4, 4, 2)))
    assert found.min() < 0 < found.max()


def test_deformable_convolutions_start_as_ordinary_ones():
    layer = DeformableConv(8, 3, 3, dilation=2, groups=4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 6, 8))
    expected = lax.conv_general_dilated(
        x, layer.kernel[...], (1, 1), ((2, 2), (2, 2)), rhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    # 72 products in either order.
    atol = 72 * EPS * float(jnp.abs(x).max() * jnp.abs(layer.kernel[...]).max())
    np.testing.assert_allclose(nnx.jit(lambda n, x: n(x))(layer, x), expected, rtol=0, atol=atol)
    # An offset of its own for each group: two channels of the first move by one to the right.
    layer.offsets.bias[...] = layer.offsets.bias[...].at[: 2 * 9 : 2].set(1.0)
    moved = jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0)))[:, :, 1:]
    shifted = jnp.concatenate([moved[..., :2], x[..., 2:]], -1)
    inside = lax.conv_general_dilated(
        shifted, layer.kernel[...], (1, 1), ((2, 2), (2, 2)), rhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    # Taps left of the shifted map are zero there, but read the map itself here: not compared.
    found = nnx.jit(lambda n, x: n(x))(layer, x)
    np.testing.assert_allclose(found[:, :, 2:], inside[:, :, 2:], rtol=0, atol=atol)


def test_deformable_features_have_offsets_in_conv5():
    plain, deformable = (
        nnx.eval_shape(lambda d=d: FeatureNetwork(deformable=d, rngs=nnx.Rngs(0)))
        for d in (False, True)
    )
    # Three layers with 2 x 4 x 9 offsets each, from 512 channels by 3x3.
    assert parameters(deformable) - parameters(plain) == 3 * 72 * (9 * 512 + 1)
    frames = jax.ShapeDtypeStruct((1, 600, 1000, 3), jnp.uint8)
    assert nnx.eval_shape(lambda n, f: n(f), deformable, frames).shape == (1, 38, 63, 1024)
