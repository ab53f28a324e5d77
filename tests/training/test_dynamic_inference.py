"""Training all checkpoints at once: the loss, statistics that move, and resumption."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from dynvid.models.clip_network import staged
from dynvid.ops.progressive import checkpoint_logits, frame_groups, make_route
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.dynamic_inference import RECIPES, checkpoint_loss, train_clips, trained

QUIET = Console(quiet=True)
ROUTE = make_route(frame_groups(4, 2), depth=2)


def test_the_loss_is_the_sum_over_checkpoints():
    logits = jax.random.normal(jax.random.key(0), (5, 3, 4))
    labels = jnp.array([0, 3, 2, 1, 1])
    each = [
        optax.softmax_cross_entropy_with_integer_labels(logits[:, k], labels).mean()
        for k in range(3)
    ]
    # A few roundings of three sums of five numbers below 8.
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(checkpoint_loss(logits, labels), sum(each), rtol=32 * eps)
    weighted = checkpoint_loss(logits, labels, weights=[0, 2, 0])
    np.testing.assert_allclose(weighted, 2 * each[1], rtol=32 * eps)


class Small(nnx.Module):
    """Two stages of a normalised product, which shift; dropout before their heads."""

    depth = 2

    def __init__(self, *, rngs):
        self.products = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.norms = nnx.List([nnx.BatchNorm(4, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(4, 2, rngs=rngs) for _ in range(2)])

    def stage(self, depth, x, shift):
        x = self.products[depth - 1](shift(x, fold=3))
        return nnx.relu(self.norms[depth - 1](x))

    def features(self, depth, maps):
        return maps.mean((1, 2))

    def head(self, depth, features):
        return self.heads[depth - 1](self.dropout(features))


def network():
    return Small(rngs=nnx.Rngs(0))


def batch_at(step):
    """Bright clips and dark ones."""
    key = jax.random.key(step)
    labels = jnp.arange(8) % 2
    noise = jax.random.normal(key, (8, 4, 5, 6, 3))
    return noise + 2.0 * (2 * labels - 1)[:, None, None, None, None], labels


def train(steps, **options):
    return train_clips(
        network(), ROUTE, batch_at, optimizer=optax.adam(0.02), steps=steps, console=QUIET,
        **options,
    )  # fmt: skip


def test_it_learns_and_goes_on_where_it_was_killed(tmp_path):
    whole = train(40)
    checkpoints = Checkpoints(tmp_path / "run")
    train(15, checkpoints=checkpoints, every=15)
    resumed = train(40, checkpoints=checkpoints, every=15)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    module = trained(network(), whole)
    before = nnx.as_pure(nnx.state(network(), nnx.BatchStat))
    after = nnx.as_pure(nnx.state(module, nnx.BatchStat))
    assert not any(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )
    staged_network, params = staged(module)
    clips, labels = batch_at(99)
    found = checkpoint_logits(staged_network, params, clips, ROUTE)
    assert (found[:, -1].argmax(1) == labels).all()


def test_without_a_route_there_is_nothing_to_train():
    with pytest.raises(ValueError, match="routes must have at least one route; got none"):
        train_clips(network(), [], batch_at, optimizer=optax.adam(0.1), steps=1, console=QUIET)


def test_recipes_are_those_of_the_protocol():
    assert {name: (r.classes, r.videos) for name, r in RECIPES.items()} == {
        "kinetics400": (400, 306_245),
        "ucf101": (101, 13_320),
        "hmdb51": (51, 6_766),
        "something-something-v1": (174, 108_499),
        "something-something-v2": (174, 220_847),
    }
    recipe = RECIPES["ucf101"]
    assert (recipe.frames, recipe.size, recipe.epochs, recipe.drops) == (16, 224, 50, (20, 40))
    optimizer = recipe.optimizer(1280)  # ten steps an epoch
    params, gradient = {"w": jnp.ones(())}, {"w": jnp.zeros(())}
    state = optimizer.init(params)
    updates, _ = optimizer.update(gradient, state, params)
    # Of the weight decay alone: 0.02 * 1e-4.
    np.testing.assert_allclose(updates["w"], -2e-6, rtol=8 * np.finfo(np.float32).eps)
