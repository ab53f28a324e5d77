"""Small networks of integers: whatever the order, float32 keeps every sum exactly."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Integers:
    """Stages of a 3x3 convolution on shifted maps, a residual sum, and counted calls.

    Args:
      depth: D.
      classes: Of every head.
      layers: Shifted convolutions of a stage.
      note: `note(depth, frames)`, called whenever a stage really runs.
    """

    channels = 4

    def __init__(self, depth=2, classes=3, *, layers=1, note=None):
        self.depth, self.classes, self.layers, self.note = depth, classes, layers, note

    def params(self, seed=0):
        rng = np.random.default_rng(seed)
        shape = (self.depth, self.layers, 3, 3, self.channels, self.channels)
        kernels = rng.choice([-1, 0, 0, 0, 0, 1], shape)
        heads = rng.integers(-2, 3, (self.depth, self.channels, self.classes))
        return jnp.asarray(kernels, jnp.float32), jnp.asarray(heads, jnp.float32)

    def stage(self, params, depth, x, shift):
        for layer in range(self.layers):
            y = lax.conv_general_dilated(
                shift(x, fold=2), params[0][depth - 1, layer], (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            x = x + y
        x = x[:, ::2] if depth < self.depth else x  # smaller maps, the deeper
        if self.note is not None:

            def called(x):
                self.note(depth, len(x))
                return np.zeros((), np.float32)

            x = x + jax.pure_callback(called, jax.ShapeDtypeStruct((), jnp.float32), x)
        return x

    def features(self, params, depth, maps):
        return jnp.sum(maps, (1, 2))

    def head(self, params, depth, features):
        return features @ params[1][depth - 1]


def clips(streams, frames, *, seed=0, size=(4, 5)):
    rng = np.random.default_rng(seed)
    shape = (streams, frames, *size, Integers.channels)
    return jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)
