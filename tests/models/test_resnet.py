"""Residual networks: their published size and work, and what dilation instead of stride keeps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dynvid
from dynvid.models.modules import from_nnx
from dynvid.models.resnet import RESNET50, RESNET101, ResNet, ResNet50, start_as_shortcuts
from tests.models import reference
from tests.models.test_modules import filled


def work(make, size):
    """Parameters, and multiply-accumulates of one frame."""
    network = nnx.eval_shape(make)
    fn, params = from_nnx(network)
    frames = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    weights = sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    return weights, dynvid.explain(fn, params, frames).macs


@pytest.mark.parametrize(
    ("depths", "stride_in", "published", "macs"),
    [
        # torchvision's pages of resnet50 and resnet101: num_params, GFLOPS (which are MACs).
        (RESNET50, "3x3", 25_557_032, 4.089e9),
        (RESNET101, "3x3", 44_549_160, 7.801e9),
        # He et al. 2016, Table 1: 3.8 and 7.6 x 10^9, the former cut off rather than rounded.
        (RESNET50, "1x1", 25_557_032, 3.858e9),
        (RESNET101, "1x1", 44_549_160, 7.570e9),
    ],
)
def test_size_and_work_are_as_published(depths, stride_in, published, macs):
    weights, counted = work(
        lambda: ResNet(depths=depths, stride_in=stride_in, rngs=nnx.Rngs(0)), (224, 224)
    )
    assert weights + 2048 * 1000 + 1000 == published  # with the classifier of 1000 classes
    assert counted + 2048 * 1000 == pytest.approx(macs, abs=0.5e6)


@pytest.mark.parametrize(
    ("depths", "published", "macs"),
    # torchvision's pages of resnet18 and resnet34.
    [((2, 2, 2, 2), 11_689_512, 1.814e9), ((3, 4, 6, 3), 21_797_672, 3.664e9)],
)
def test_basic_blocks_make_the_smaller_members_of_the_family(depths, published, macs):
    weights, counted = work(
        lambda: ResNet(depths=depths, block="basic", rngs=nnx.Rngs(0)), (224, 224)
    )
    assert weights + 512 * 1000 + 1000 == published
    assert counted + 512 * 1000 == pytest.approx(macs, abs=0.5e6)


def test_blocks_that_start_as_shortcuts_add_nothing():
    """The map after every stage is that of its projections, whatever is in the blocks."""
    network = ResNet(depths=(2, 1, 1, 1), width=4, block="basic", rngs=nnx.Rngs(0))
    start_as_shortcuts(network)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 3)), jnp.float32)
    expected = network.conv1(x)
    for found, group in zip(network.stages(x), network.groups, strict=True):
        for shortcut in group[0].shortcut:
            expected = nnx.relu(shortcut(expected))
        np.testing.assert_array_equal(found, expected)


def test_resnet50_is_the_member_of_the_family():
    one = nnx.eval_shape(lambda: ResNet50(rngs=nnx.Rngs(0)))
    other = nnx.eval_shape(lambda: ResNet(depths=RESNET50, rngs=nnx.Rngs(0)))
    chex.assert_trees_all_equal_shapes(nnx.as_pure(nnx.state(one)), nnx.as_pure(nnx.state(other)))
    assert rates(one) == rates(other) == [[1] * n for n in RESNET50]


def rates(network):
    """The dilation of every 3x3 convolution, by stage."""
    return [[block.convs[1].conv.kernel_dilation for block in group] for group in network.groups]


def drawn(rng, path, shape):
    """Integers, small enough to stay below 2^24; epsilon is 0 and so all normalisation exact."""
    if path[-1] == "var":
        return np.ones(shape)
    if path[-1] == "kernel":
        return reference.kernel(rng, shape[3], shape[2], shape[0]).transpose(2, 3, 1, 0)
    if path[-1] == "scale":
        return rng.choice([-1, 1, 1], shape)
    return rng.integers(-1, 3, shape)


def stages(x, **options):
    network = filled(
        lambda: ResNet(depths=(1, 2, 2, 3), width=4, epsilon=0.0, rngs=nnx.Rngs(0), **options),
        drawn,
    )
    maps = nnx.jit(lambda network, x: network.stages(x))(network, x)
    assert max(float(abs(m).max()) for m in maps) < reference.LAST_EXACT
    return [np.asarray(m) for m in maps]


@pytest.mark.parametrize("size", [(64, 96), (37, 75)])
@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_dilation_keeps_what_stride_computes(stride_in, size):
    """The same weights see the same pixels: to the bit at every second or fourth position.

    Zeros around the map are where they were, too: a tap beyond the edge of the fine map is one
    beyond the edge of the coarse map.
    """
    x = reference.frames(size)
    plain, sixteen, eight = (
        stages(x, stride_in=stride_in, output_stride=stride) for stride in (32, 16, 8)
    )
    cells = [tuple(-(-n // s) for n in size) for s in (4, 8, 16, 32)]
    assert [m.shape[1:3] for m in plain] == cells
    assert [m.shape[1:3] for m in sixteen] == [*cells[:3], cells[2]]
    assert [m.shape[1:3] for m in eight] == [*cells[:2], cells[1], cells[1]]
    for network, steps in ((sixteen, (1, 1, 1, 2)), (eight, (1, 1, 2, 4))):
        for coarse, fine, step in zip(plain, network, steps, strict=True):
            assert np.unique(coarse).size > 10
            np.testing.assert_array_equal(fine[:, ::step, ::step], coarse)


def test_other_dilations_are_another_network():
    """What PSPNet does: the first 3x3 convolution of a stage dilated too."""
    x = reference.frames((64, 96))
    exact = stages(x, output_stride=16)[3]
    other = stages(x, output_stride=16, dilations={5: (2, 2, 2)})[3]
    assert exact.shape == other.shape
    assert not np.array_equal(exact, other)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # What flow-guided detection uses: conv5 with stride 1 and dilation 2.
        ({"output_stride": 16, "stride_in": "1x1"}, [[1], [1] * 2, [1] * 3, [2, 2]]),
        ({"output_stride": 8, "stride_in": "1x1"}, [[1], [1] * 2, [2] * 3, [4, 4]]),
        ({"output_stride": 8}, [[1], [1] * 2, [1, 2, 2], [2, 4]]),
        ({"dilations": {4: (1, 4, 2), 2: (3,)}}, [[3], [1] * 2, [1, 4, 2], [1, 1]]),
    ],
)
def test_dilations_are_where_they_belong(options, expected):
    network = nnx.eval_shape(
        lambda: ResNet(depths=(1, 2, 3, 2), width=4, rngs=nnx.Rngs(0), **options)
    )
    assert rates(network) == expected


def test_normalisation_follows_the_mode():
    network = ResNet(depths=(1, 1, 1, 1), width=2, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda network, x: network(x))
    x = reference.frames((32, 32))
    before = run(network, x)
    statistics = jax.tree.map(np.asarray, nnx.state(network, nnx.BatchStat))

    def kept(a, b):
        return [np.array_equal(p, q) for p, q in zip(*map(jax.tree.leaves, (a, b)), strict=True)]

    assert all(kept(statistics, nnx.state(network, nnx.BatchStat)))  # made in evaluation mode
    network.train()
    assert not np.array_equal(run(network, x), before)
    assert not any(kept(statistics, nnx.state(network, nnx.BatchStat)))
    statistics = jax.tree.map(np.asarray, nnx.state(network, nnx.BatchStat))
    network.eval()
    run(network, x)
    assert all(kept(statistics, nnx.state(network, nnx.BatchStat)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depths": (3, 4, 6)}, r"depths must be four positive numbers; got \(3, 4, 6\)"),
        ({"depths": (3, 0, 6, 3)}, "depths must be four positive numbers"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32; got 4"),
        ({"stride_in": "5x5"}, r'stride_in must be "1x1" or "3x3"; got \'5x5\''),
        ({"dilations": {6: (1,)}}, r"dilations must be of stages 2 to 5; got \[6\]"),
        ({"dilations": {4: (2,)}}, r"dilations must be 2 positive numbers for stage 4; got \(2,\)"),
        ({"dilations": {4: (2, 0)}}, "dilations must be 2 positive numbers for stage 4"),
    ],
)
def test_options_that_fit_no_network_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        nnx.eval_shape(
            lambda: ResNet(**({"depths": (1, 1, 2, 1), "width": 2} | options), rngs=nnx.Rngs(0))
        )
