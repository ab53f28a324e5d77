import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from jax import lax

import dynvid
from dynvid.models.flownet import Deconvolution, FlowNetS

SMALL = 1 / 64  # the narrowest: one channel in conv1
EPS = np.finfo(np.float32).eps


def shapes_of(**options):
    return nnx.eval_shape(lambda: FlowNetS(rngs=nnx.Rngs(0), **options))


def parameters(network):
    return sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))


def outputs_of(network, shape):
    frames = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return nnx.eval_shape(lambda n, c, k: n(c, k), network, frames, frames)


def test_parameters_are_those_of_the_literature():
    # Sun et al., PWC-Net, 2018, Table 7: 38.67 million.
    published = parameters(shapes_of(upsampling_bias=True))
    assert published // 10_000 == 3867
    # Without a bias in the transposed convolutions as many less as they have channels.
    assert published - parameters(shapes_of()) == 512 + 256 + 128 + 64
    # FlowNet2-s: three eighths of the channels, layer by layer.
    layers = ((7, 6, 24), (5, 24, 48), (5, 48, 96), (3, 96, 96), (3, 96, 192), (3, 192, 192),
              (3, 192, 192), (3, 192, 192), (3, 192, 384), (3, 384, 384))  # fmt: skip
    count = sum(k * k * i * o + o for k, i, o in layers)
    for inputs, outputs in ((384, 192), (192 + 192 + 2, 96), (192 + 96 + 2, 48), (96 + 48 + 2, 24)):
        count += 16 * inputs * outputs + 16 * 2 * 2 + 9 * inputs * 2 + 2
    joined = 48 + 24 + 2
    assert joined == 74  # what the scale branch sees in the authors' code
    count += 9 * joined * 2 + 2
    network = shapes_of(width=3 / 8)
    assert parameters(network) == count == 5462306
    assert parameters(shapes_of(width=3 / 8, classes=19)) == count + 9 * 74 * 19 + 19


def test_shapes_of_the_papers_crop():
    outputs = outputs_of(shapes_of(width=3 / 8, classes=19), (4, 576, 1088, 3))
    assert outputs.flow.shape == (4, 72, 136, 2)
    assert outputs.scale.shape == (4, 72, 136, 19)
    assert outputs.features.shape == (4, 5, 9, 384)
    assert outputs.concatenation.shape == (4, 72, 136, 74)
    grids = [(5, 9), (9, 17), (18, 34), (36, 68), (72, 136)]
    assert [p.shape for p in outputs.predictions] == [(4, *grid, 2) for grid in grids]


def test_multiply_accumulates_of_the_papers_crop():
    network = shapes_of(width=3 / 8)
    graph, params = nnx.split(network)
    frames = jax.ShapeDtypeStruct((1, 576, 1088, 6), jnp.uint8)

    def run(params, pair):
        return nnx.merge(graph, params)(pair[..., :3], pair[..., 3:]).flow

    at = {1: (144, 272), 2: (72, 136), 3: (36, 68), 4: (18, 34), 5: (9, 17), 6: (5, 9)}
    pixels = {level: rows * columns for level, (rows, columns) in at.items()}
    expected = sum(
        pixels[level] * k * k * i * o
        for level, k, i, o in (
            (1, 7, 6, 24), (2, 5, 24, 48), (3, 5, 48, 96), (3, 3, 96, 96), (4, 3, 96, 192),
            (4, 3, 192, 192), (5, 3, 192, 192), (5, 3, 192, 192), (6, 3, 192, 384),
            (6, 3, 384, 384), (6, 3, 384, 2), (5, 3, 386, 2), (4, 3, 290, 2), (3, 3, 146, 2),
            (2, 3, 74, 2),
        )
    )  # fmt: skip
    for level, i, o in ((6, 384, 192), (5, 386, 96), (4, 290, 48), (3, 146, 24)):
        rows, columns = at[level]
        # Each input pixel goes into 4 x 4 outputs; one row and column more are cut off again.
        expected += (rows + 1) * (columns + 1) * 16 * (i * o + 2 * 2)
    assert dynvid.explain(run, params, frames).macs == expected


@pytest.mark.parametrize("height", [2, 64, 130, 180])
@pytest.mark.parametrize("width", [128, 254])
def test_sizes_need_not_be_multiples_of_128(height, width):
    outputs = outputs_of(shapes_of(width=SMALL), (1, height, width, 3))
    rows, columns = -(-height // 8), -(-width // 8)
    assert outputs.flow.shape == (1, rows, columns, 2)
    assert outputs.features.shape == (1, -(-height // 128), -(-width // 128), 16)


@settings(max_examples=6, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.booleans(),
)
def test_deconvolution_is_the_transposed_convolution(size, cut, use_bias):
    layer = Deconvolution(3, 2, use_bias=use_bias, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    layer.kernel[...] = jnp.asarray(rng.integers(-8, 9, (4, 4, 3, 2)), jnp.float32)
    if layer.bias is not None:
        layer.bias[...] = jnp.array([3.0, -5.0])
    x = rng.integers(-8, 9, (2, *size, 3)).astype(np.float32)
    full = np.zeros((2, 2 * size[0] + 2, 2 * size[1] + 2, 2), np.float32)
    for i, j, k, m in np.ndindex(*size, 4, 4):
        full[:, 2 * i + k, 2 * j + m] += x[:, i, j] @ np.asarray(layer.kernel[...])[k, m]
    rows, columns = 2 * size[0] - cut[0], 2 * size[1] - cut[1]
    expected = full[:, 1 : 1 + rows, 1 : 1 + columns]
    expected = expected + (np.array([3.0, -5.0]) if use_bias else 0)
    # Integers: every sum is exact.
    np.testing.assert_array_equal(layer(jnp.asarray(x), (rows, columns)), expected)
    with pytest.raises(ValueError, match=r"size must be at most"):
        layer(jnp.asarray(x), (2 * size[0] + 1, 1))


def test_halving_units_and_heads():
    network = FlowNetS(width=SMALL, classes=3, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    current, key = (rng.integers(0, 256, (2, 20, 36, 3), np.uint8) for _ in range(2))
    run = nnx.jit(lambda n, c, k: n(c, k))
    outputs = run(network, current, key)
    np.testing.assert_array_equal(outputs.flow, 5 * outputs.predictions[-1])
    np.testing.assert_array_equal(outputs.scale, jnp.ones((2, 3, 5, 3)))
    # The halved frames, blue first and the current frame first, are what conv1 sees.
    halved = [x[..., ::-1].reshape(2, 10, 2, 18, 2, 3).mean((2, 4)) / 255 for x in (current, key)]
    x = jnp.asarray(np.concatenate(halved, -1), jnp.float32)
    conv_names = ("conv1", "conv2", "conv3", "conv3_1", "conv4", "conv4_1", "conv5", "conv5_1",
                  "conv6", "conv6_1")  # fmt: skip
    for name, stride in zip(conv_names, (2, 2, 2, 1, 2, 1, 2, 1, 2, 1), strict=True):
        layer = network.convolutions[name]
        pad = layer.kernel.shape[0] // 2
        x = lax.conv_general_dilated(
            x, layer.kernel[...], (stride, stride), ((pad, pad),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ) + layer.bias[...]  # fmt: skip
        x = jnp.where(x > 0, x, 0.1 * x)
    # Ten layers of at most 9 * 16 terms (sqrt(144) units in the last place each).
    tolerance = 10 * 12 * EPS * np.abs(x).max()
    np.testing.assert_allclose(outputs.features, x, rtol=0, atol=tolerance)
    # Joined at the finest grid: conv2, what is upsampled of the level before, and its flow.
    joined, coarse = outputs.concatenation, outputs.predictions[-2]
    assert joined.shape[-1] == 2 + 1 + 2
    np.testing.assert_allclose(
        joined[..., 3:], network.upsample_flow[-1](coarse, (3, 5)), rtol=0, atol=tolerance
    )
    flow = network.predict_flow[-1](joined)
    np.testing.assert_allclose(outputs.predictions[-1], flow, rtol=0, atol=tolerance)
    # Floating frames in [0, 1] are the same frames.
    again = run(network, jnp.asarray(current) / 255.0, jnp.asarray(key) / 255.0)
    np.testing.assert_array_equal(again.flow, outputs.flow)


def test_errors():
    with pytest.raises(
        ValueError, match=r"width must make 64 channels a positive whole .*; got 0\.3"
    ):
        FlowNetS(width=0.3, rngs=nnx.Rngs(0))
    network = shapes_of(width=SMALL)
    with pytest.raises(ValueError, match=r"current must be .* even; got \(1, 9, 8, 3\)"):
        outputs_of(network, (1, 9, 8, 3))
    frames = jnp.zeros((1, 8, 8, 3))
    with pytest.raises(ValueError, match="key must have the shape of current"):
        network(frames, frames[:, :4])
