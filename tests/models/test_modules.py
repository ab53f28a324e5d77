"""Flax modules as functions: what the module says in evaluation mode, whatever mode it is in."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import dynvid
from dynvid.models.resnet import ResNet50
from dynvid.models.vgg import VGG16


def filled(make, draw):
    """What `make` makes, each weight `draw(rng, path, shape)` instead of what it would draw."""
    rng = np.random.default_rng(3)
    graph, state = nnx.split(nnx.eval_shape(make))

    def value(path, variable):
        if isinstance(variable, nnx.RngKey):
            return jax.random.key(0)
        if isinstance(variable, nnx.RngCount):
            return jnp.zeros((), jnp.uint32)
        return jnp.asarray(draw(rng, path, variable.shape), variable.dtype)

    flat = [(path, value(path, variable)) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def integer(rng, path, shape):
    if path[-1] == "var":
        return np.ones(shape)
    return rng.choice([-1, 0, 0, 0, 1], shape)


def real(rng, path, shape):
    values = rng.normal(size=shape) / max(1, np.prod(shape[:-1])) ** 0.5
    return np.abs(values) + 0.5 if path[-1] in ("var", "scale") else values


class Small(nnx.Module):
    """What only evaluation mode makes a function, and two convolutions that share a kernel."""

    def __init__(self, *, rngs):
        self.first = nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, epsilon=0.0, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(6, 6, (3, 3), rngs=rngs)])
        self.again = self.blocks[0]

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return {"maps": self.again(self.drop(self.blocks[0](x)))}


def small(draw=integer):
    return filled(lambda: Small(rngs=nnx.Rngs(0)), draw)


def in_evaluation(module):
    module.eval()
    return module


@pytest.mark.parametrize("kind", [VGG16, ResNet50])
def test_a_network_is_the_module_to_the_bit(kind):
    module = filled(lambda: kind(rngs=nnx.Rngs(0)), real)
    frames = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    fn, params = dynvid.from_nnx(module)
    found = jax.jit(fn)(params, frames)
    chex.assert_trees_all_equal(found, nnx.jit(lambda module, x: module(x))(module, frames))
    assert float(jnp.std(found)) > 1e-3


def test_batch_statistics_and_dropout_are_as_in_evaluation():
    module = small(real)
    frames = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    fn, params = dynvid.from_nnx(module)
    found = fn(params, frames)
    assert params["norm"]["mean"].shape == (6,)
    # The caller's module is still in training, and nothing was written into it.
    assert not module.norm.use_running_average
    assert not module.drop.deterministic
    chex.assert_trees_all_equal(dynvid.from_nnx(module)[1], params)
    chex.assert_trees_all_equal(found, in_evaluation(module)(frames))


def test_parameters_are_what_the_function_reads():
    fn, params = dynvid.from_nnx(small())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert len(jax.tree.leaves(params)) == 8  # a shared kernel once, nothing of the generators
    frames = np.random.default_rng(0).integers(-3, 4, (1, 8, 8, 3)).astype(np.float32)
    other = small()
    other.norm.mean[...] += 2
    other.first.kernel[...] *= 2
    changed = dynvid.from_nnx(other)[1]
    expected = in_evaluation(other)(frames)
    chex.assert_trees_all_equal(jax.jit(fn)(changed, frames), expected)
    # They may be given away.
    copies = jax.tree.map(jnp.copy, changed)
    both = jax.jit(lambda params, x: (fn(params, x), params), donate_argnums=0)(copies, frames)
    chex.assert_trees_all_equal(both, (expected, changed))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(copies))


def test_through_incremental_it_is_the_module_bit_for_bit():
    module = small()
    fn, params = dynvid.from_nnx(module)
    video = dynvid.incremental(fn)
    dense = jax.jit(in_evaluation(module).__call__)
    rng = np.random.default_rng(1)
    frames = rng.integers(-2, 3, (2, 24, 32, 3)).astype(np.float32)
    state, found = video.init(params, frames)
    for _ in range(3):
        chex.assert_trees_all_equal(found, dense(frames))
        frames = frames.copy()
        frames[1, 4:9, 5:12] = rng.integers(-2, 3, (5, 7, 3))
        state, found = video.step(params, state, frames)
    chex.assert_trees_all_equal(found, dense(frames))
    assert 0 < state.work.mac_fraction < 0.5


class Counting(nnx.Module):
    """Writes into a variable and draws a random number at each call, inside a transform too."""

    def __init__(self, *, rngs):
        self.calls = nnx.Variable(jnp.zeros(()))
        self.conv = nnx.Conv(1, 1, (1, 1), rngs=rngs)
        self.rngs = rngs

    def __call__(self, x):
        def body(module, x):
            module.calls[...] += 1
            return module.conv(x) + module.calls[...] + jax.random.normal(module.rngs.noise(), ())

        return nnx.remat(body)(self, x)


def test_every_call_starts_from_the_parameters():
    module = Counting(rngs=nnx.Rngs(0))
    fn, params = dynvid.from_nnx(module)
    frames = jnp.zeros((1, 2, 2, 1))
    first = fn(params, frames)
    chex.assert_trees_all_equal(jax.jit(fn)(params, frames), first)
    chex.assert_trees_all_equal(fn(params, frames), first)
    assert module.calls[...] == 0
    chex.assert_trees_all_equal(module(frames), first)


def test_shapes_are_enough_to_explain():
    fn, params = dynvid.from_nnx(nnx.eval_shape(lambda: Small(rngs=nnx.Rngs(0))))
    table = dynvid.explain(fn, params, jax.ShapeDtypeStruct((1, 24, 32, 3), jnp.float32))
    assert {"incremental"} <= {row.mode for row in table.rows}


class Silent(nnx.Module):
    pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (linen.Dense(3), "linen module Dense.*module.apply"),
        (VGG16, "the class VGG16"),
        (lambda params, frames: frames, "got function"),
        (None, "got NoneType"),
        (Silent(), "callable.* got Silent"),
    ],
)
def test_what_is_no_module_is_refused_by_name(given, said):
    with pytest.raises(TypeError, match=said):
        dynvid.from_nnx(given)


def test_linen_modules_work_as_the_error_says():
    module = linen.Conv(2, (3, 3))
    frames = jnp.ones((1, 16, 16, 3))
    params = module.init(jax.random.key(0), frames)
    state, _ = dynvid.incremental(module.apply).init(params, frames)
    assert state.reference.shape == frames.shape
