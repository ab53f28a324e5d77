import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynvid.models.decision_network import DecisionNetwork


def small(**options):
    return DecisionNetwork(
        6, grid=(2, 3), convolution=4, hidden=(8, 5), rngs=nnx.Rngs(0), **options
    )


def test_parameters_are_those_of_the_paper():
    network = nnx.eval_shape(lambda: DecisionNetwork(384, rngs=nnx.Rngs(0)))
    count = sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    assert round(count / 1e6, 2) == 4.54
    assert [layer.out_features for layer in network.dense] == [1024, 1024, 10, 1]


def test_features_of_any_size_give_a_score_each():
    network = nnx.eval_shape(lambda: DecisionNetwork(384, rngs=nnx.Rngs(0)))
    for size in ((5, 9), (4, 8), (2, 3)):
        features = jax.ShapeDtypeStruct((4, *size, 384), jnp.float32)
        assert nnx.eval_shape(lambda n, x: n(x), network, features).shape == (4,)


def test_the_layers_in_order():
    network = small()
    network.eval()
    features = jax.random.normal(jax.random.key(1), (16, 2, 3, 6))

    def leaky(x):
        return np.where(x > 0, x, 0.1 * x)

    padded = np.pad(np.asarray(features), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(network.convolution.kernel[...])
    x = sum(
        padded[:, i : i + 2, j : j + 3] @ kernel[i, j] for i, j in np.ndindex(3, 3)
    ) + np.asarray(network.convolution.bias[...])
    x = leaky(x).reshape(16, -1)
    for layer in network.dense:
        assert (layer.bias[...] == 0.1).all()
        x = x @ np.asarray(layer.kernel[...]) + 0.1
        linear, x = x, leaky(x)
    # Four layers of at most 54 terms, of which each rounds by about sqrt(54) units.
    tolerance = 4 * 8 * np.finfo(np.float32).eps * max(1, np.abs(linear).max())
    np.testing.assert_allclose(network(features), x[:, 0], rtol=0, atol=tolerance)
    straight = small(linear_out=True)
    straight.eval()
    np.testing.assert_allclose(straight(features), linear[:, 0], rtol=0, atol=tolerance)
    assert np.any(linear < 0), "the test needs an output that LeakyReLU changes"


def test_dropout_in_training_only():
    network = small()
    features = jnp.ones((1, 2, 3, 6))
    network.train()
    assert len({network(features).item() for _ in range(8)}) > 1
    network.eval()
    assert len({network(features).item() for _ in range(8)}) == 1


def test_features_are_resized_by_area():
    network = small()
    network.eval()
    # A ramp that is resized with pixel areas aligned stays a ramp between its ends.
    ramp = jnp.broadcast_to(jnp.arange(6.0)[:, None], (1, 4, 6, 6))
    resized = jnp.broadcast_to(jnp.array([0.5, 2.5, 4.5])[:, None], (1, 2, 3, 6))
    # Four layers of at most 54 terms, as above, from inputs that resizing rounds twice.
    found, expected = network(ramp).item(), network(resized).item()
    assert abs(found - expected) <= 4 * 8 * np.finfo(np.float32).eps * max(5, abs(expected))


def test_errors():
    with pytest.raises(ValueError, match=r"features must be \(S, h, w, 6\); got \(1, 2, 3, 5\)"):
        small()(jnp.ones((1, 2, 3, 5)))
