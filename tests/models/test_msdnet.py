"""MSDNet: the paper's parameters and MACs to the printed digits, and its maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynvid.models.clip_network import staged
from dynvid.models.msdnet import MSDNet
from dynvid.ops.progressive import checkpoint_logits, frame_groups, make_route
from dynvid.systems.dynamic_inference import dynamic_inference, route_macs
from tests.models.test_modules import filled, real

# Channels of the coarsest scale after every block, what its classifier takes.
TOPS = (576, 640, 608, 528, 976)


@functools.cache
def shapes(classes):
    return nnx.eval_shape(lambda: MSDNet(classes=classes, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(("classes", "millions"), [(1000, 62.31), (400, 60.31)])
def test_parameters_are_as_printed(classes, millions):
    count = sum(p.size for p in jax.tree.leaves(nnx.state(shapes(classes), nnx.Param)))
    assert round(count / 1e6, 2) == millions


def test_an_image_takes_what_sixteen_frames_are_printed_with():
    """16 x 3.246 = 51.94 GMACs, the slides' 52 G."""
    network, params = staged(shapes(1000))
    clip = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    macs = route_macs(network, params, clip, make_route(((0,),), depth=5))
    assert round(macs[-1] / 1e9, 3) == 3.246
    assert round(16 * macs[-1] / 1e9, 2) == 51.94


@pytest.mark.parametrize(
    ("groups", "giga"),
    [
        (1, (9.79, 22.88, 36.40, 47.34, 51.91)),
        (2, (4.89, 11.44, 18.20, 23.67, 25.95, 30.85, 37.39, 44.16, 49.62, 51.91)),
    ],
)
def test_every_node_takes_what_the_table_says(groups, giga):
    """Table D4 counts classifiers frame by frame; ours run once, on the mean of all frames."""
    network, params = staged(shapes(400))
    clip = jax.ShapeDtypeStruct((16, 224, 224, 3), jnp.float32)
    route = make_route(frame_groups(16, groups), depth=5)
    macs = np.array(route_macs(network, params, clip, route))
    size = 16 // groups
    spared = np.cumsum([400 * TOPS[depth - 1] * (size - 1) for _, depth in route.nodes])
    # The table has been rounded, 25.95 from 25.953; nothing is off by more than half a digit.
    np.testing.assert_allclose((macs + spared) / 1e9, giga, atol=0.005, rtol=0)
    assert (macs < macs + spared).all()
    assert (spared / macs < 5e-4).all()


def tiny():
    module = filled(
        lambda: MSDNet(
            classes=3, blocks=3, layers=2, channels=8, growth=4, growth_factors=(1, 2),
            bottleneck_factors=(1, 2), fold=4, rngs=nnx.Rngs(0),
        ),
        real,
    )  # fmt: skip
    return module, *staged(module)


def test_scales_are_dropped_and_channels_halved():
    """6 layers over 2 scales: the finest is dropped with layer 4, by its interval of 3."""
    _, network, params = tiny()
    x = jax.ShapeDtypeStruct((1, 48, 64, 3), jnp.float32)
    found = []
    for depth in (1, 2, 3):
        x = jax.eval_shape(
            lambda p, x, d=depth: network.stage(p, d, x, lambda x, *, fold: x), params, x
        )
        found.append([maps.shape[1:] for maps in x])
    first = 8 + 2 * 4
    second = (first + 2 * 4) // 2
    assert found == [
        [(12, 16, first), (6, 8, 2 * first)],
        [(6, 8, 2 * second)],
        [(6, 8, 2 * (second + 2 * 4))],
    ]


def test_it_is_the_image_network_on_every_frame_without_shift():
    module, network, params = tiny()
    x = jax.random.normal(jax.random.key(0), (2, 48, 64, 3))
    logits = module(x)
    assert logits.shape == (2, 3, 3)
    y = x
    for depth in (1, 2, 3):
        y = network.stage(params, depth, y, lambda x, *, fold: x)
        found = network.head(params, depth, network.features(params, depth, y))
        np.testing.assert_array_equal(found, logits[:, depth - 1])
    assert float(jnp.std(logits)) > 1e-3


def test_on_clips_it_stops_where_it_is_told():
    _, network, params = tiny()
    clips = jax.random.normal(jax.random.key(0), (1, 4, 48, 48, 3))
    route = make_route(frame_groups(4, 2), depth=3)
    expected = checkpoint_logits(network, params, clips, route)
    thresholds = jnp.full(6, jnp.inf).at[4].set(0)
    found, work = dynamic_inference(network, route)(params, clips, thresholds)
    assert found.exits.exit.tolist() == [4]
    assert 0 < work.mac_fraction < 1
    # Convolutions of other batches add up in another order: a few roundings of eps at each of 20
    # layers, each of which may double what came in.
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found.logits, expected[:, 4], atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck_factors": (1, 2)}, r"bottleneck_factors must be 4 numbers .* got \(1, 2\)"),
        ({"blocks": 0}, "blocks and layers must be at least 1; got 0 and 7"),
    ],
)
def test_options_that_fit_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MSDNet(classes=2, rngs=nnx.Rngs(0), **options)


def test_frames_that_are_too_small_are_refused():
    module, _, _ = tiny()
    with pytest.raises(ValueError, match=r"maps of 5x5 at the coarsest scale; got \(4, 4\)"):
        nnx.eval_shape(lambda m, x: m(x), module, jnp.zeros((1, 32, 32, 3)))
