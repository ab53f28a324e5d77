"""ResNet with temporal shift: the paper's parameters and MACs, and where it shifts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynvid.models.actions import CLASS_NAMES, FRAMES, GROUPS, SIZE, action_network
from dynvid.models.clip_network import staged
from dynvid.models.resnet import RESNET50, RESNET101, ResNet
from dynvid.models.temporal_shift_resnet import TemporalShiftResNet
from dynvid.ops.progressive import FIGURE_2D, checkpoint_logits, frame_groups, make_route
from dynvid.systems.dynamic_inference import route_macs
from tests.models.test_modules import filled, real

CLIP = jax.ShapeDtypeStruct((16, 224, 224, 3), jnp.float32)


@functools.cache
def shapes(depths):
    return nnx.eval_shape(lambda: TemporalShiftResNet(depths=depths, classes=400, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("depths", "millions", "giga"),
    [(RESNET50, 29.12, (14.5, 26.2, 32.7)), (RESNET101, 48.12, (14.5, 55.9, 62.4))],
)
def test_size_and_work_are_as_printed(depths, millions, giga):
    """Parameters as the slides have them; MACs as the specification's table D4."""
    module = shapes(depths)
    count = sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert round(count / 1e6, 2) == millions
    network, params = staged(module)
    macs = route_macs(network, params, CLIP, make_route(frame_groups(16, 2), depth=3))
    assert tuple(round(m / 1e9, 1) for m in macs[:3]) == giga
    full = tuple(round(m / 1e9, 1) for m in macs[3:])
    # Of 16 frames, with all of group 1 before them: 29.0, 52.5 (111.8) and 65.4 (124.8) are of one
    # group of 16; a second group of 8 comes on top of a first that went all the way.
    assert full[2] == pytest.approx(2 * giga[2], abs=0.1)
    whole = route_macs(network, params, CLIP, make_route(frame_groups(16, 1), depth=3))
    expected = {RESNET50: (29.0, 52.5, 65.4), RESNET101: (29.0, 111.8, 124.8)}[depths]
    assert tuple(round(m / 1e9, 1) for m in whole) == expected


@pytest.mark.parametrize(("depths", "shifts"), [(RESNET50, [7, 6, 3]), (RESNET101, [4, 12, 2])])
def test_every_block_shifts_or_every_second(depths, shifts):
    """As TSM's code has it: 3 + 4, 6 and 3 blocks; of ResNet-101's 3 + 4, 23 and 3 half of them."""
    network, params = staged(shapes(depths))
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    found = []
    for depth in (1, 2, 3):
        calls = []

        def shift(x, *, fold=8, calls=calls):
            calls.append(fold)
            return x

        x = jax.eval_shape(lambda p, x, d=depth, s=shift: network.stage(p, d, x, s), params, x)
        assert set(calls) == {8}
        found.append(len(calls))
    assert found == shifts


def tiny():
    module = filled(
        lambda: TemporalShiftResNet(
            depths=(1, 1, 1, 1), width=8, classes=3, head_features=8, rngs=nnx.Rngs(0)
        ),
        real,
    )
    return module, *staged(module)


def test_without_shift_the_trunk_is_the_resnet():
    module, network, params = tiny()
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    plain = filled(lambda: ResNet(depths=(1, 1, 1, 1), width=8, rngs=nnx.Rngs(0)), real)
    nnx.update(plain, nnx.state(module.trunk))
    maps = plain.stages(x)
    y = x
    for depth in (1, 2, 3):
        y = network.stage(params, depth, y, lambda x, *, fold: x)
        np.testing.assert_array_equal(y, maps[depth])


def test_a_frame_changes_what_comes_after_it_and_nothing_before():
    _, network, params = tiny()
    x = jax.random.normal(jax.random.key(0), (1, 8, 32, 32, 3))
    route = make_route(frame_groups(8, 8), depth=3)

    @jax.jit
    def features(x):
        return checkpoint_logits(network, params, x, route)[0].reshape(8, 3, -1)

    changed = features(x.at[:, 5].add(1.0)) != features(x)
    np.testing.assert_array_equal(changed.any((1, 2)), [False] * 5 + [True] * 3)


def test_order_counts():
    _, network, params = tiny()
    x = jax.random.normal(jax.random.key(0), (1, 8, 32, 32, 3))
    route = make_route(FIGURE_2D, depth=3)
    run = jax.jit(lambda x: checkpoint_logits(network, params, x, route))
    found, turned = run(x), run(x[:, ::-1])
    assert float(jnp.abs(found - turned)[0, -1].max()) > 1e-3


def test_the_small_network_fits_its_clips():
    network, params = staged(nnx.eval_shape(lambda: action_network(rngs=nnx.Rngs(0))))
    clips = jax.ShapeDtypeStruct((2, FRAMES, *SIZE, 3), jnp.float32)
    route = make_route(GROUPS, depth=3)
    found = jax.eval_shape(lambda p, c: checkpoint_logits(network, p, c, route), params, clips)
    assert found.shape == (2, 6, len(CLASS_NAMES))
    assert 2 * sum(p.size for p in jax.tree.leaves(params)) < 1e6  # bytes as float16
