"""The decision network of DVSNet (Xu et al., Dynamic Video Segmentation Network, CVPR 2018)."""

from collections.abc import Sequence

import jax
from flax import nnx

_he = nnx.initializers.he_normal()


class DecisionNetwork(nnx.Module):
    """Predicts from flow features how well warping will do, section 3.3 and Fig. 6 of DVSNet.

    One 3x3 convolution and fully connected layers of 1024, 1024, 10 and 1: the paper's "three fully
    connected layers" are the hidden ones, as in the authors' code. LeakyReLU (0.1) follows each.

    Args:
      channels: Of the features: 384 for FlowNet2-s.
      grid: (height, width) that features are resized to.
      convolution: Channels of the convolution.
      hidden: Neurons of the fully connected layers before the last.
      linear_out: Leave out the LeakyReLU after the output, which the authors' code has.
      dropout: The share of neurons dropped after each hidden fully connected layer in training,
        `module.train()`; after `module.eval()` none are.
      rngs: Where the random weights (He et al. 2015; biases of fully connected layers 0.1) and
        dropout come from.

    >>> network = nnx.eval_shape(lambda: DecisionNetwork(384, rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    4538485
    """

    def __init__(
        self,
        channels: int,
        *,
        grid: tuple[int, int] = (4, 8),
        convolution: int = 96,
        hidden: Sequence[int] = (1024, 1024, 10),
        linear_out: bool = False,
        dropout: float = 0.5,
        rngs: nnx.Rngs,
    ):
        self.grid, self.linear_out = grid, linear_out
        self.convolution = nnx.Conv(channels, convolution, (3, 3), kernel_init=_he, rngs=rngs)
        self.dense = nnx.List()
        inputs = grid[0] * grid[1] * convolution
        for outputs in (*hidden, 1):
            self.dense.append(
                nnx.Linear(
                    inputs,
                    outputs,
                    kernel_init=_he,
                    bias_init=nnx.initializers.constant(0.1),
                    rngs=rngs,
                )
            )
            inputs = outputs
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Predicts the confidence score of each region (DVSNet, Eq. 1).

        Args:
          features: `(S, h, w, channels)` of any size, conv6_1 of the flow network; resized to
            `grid` bilinearly, pixel areas aligned.

        Returns:
          `(S,)`, percent of pixels on which warping and segmentation are expected to agree; not
          held to 0 .. 100.

        Raises:
          ValueError: The features' shape does not fit.
        """
        channels = self.convolution.in_features
        if features.ndim != 4 or features.shape[3] != channels:
            raise ValueError(f"features must be (S, h, w, {channels}); got {tuple(features.shape)}")
        size = (features.shape[0], *self.grid, channels)
        x = jax.image.resize(features, size, "linear", antialias=False)
        x = _activation(self.convolution(x)).reshape(features.shape[0], -1)
        for layer in self.dense[:-1]:
            x = self.dropout(_activation(layer(x)))
        score = self.dense[-1](x)[:, 0]
        return score if self.linear_out else _activation(score)


def _activation(x: jax.Array) -> jax.Array:
    return nnx.leaky_relu(x, 0.1)
