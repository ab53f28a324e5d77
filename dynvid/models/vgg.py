"""VGG16's convolutions (Simonyan and Zisserman 2015, configuration D)."""

import jax
from flax import nnx

_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nnx.Module):
    """The 13 convolutions of VGG16 with ReLU, and the four poolings between their groups.

    Args:
      rngs: Where the random weights come from.

    >>> network = nnx.eval_shape(lambda: VGG16(rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network)))
    14714688
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.groups = nnx.List()
        depth = 3
        for features in _GROUPS:
            group = nnx.List()
            for width in features:
                group.append(nnx.Conv(depth, width, (3, 3), rngs=rngs))
                depth = width
            self.groups.append(group)

    def stages(self, x: jax.Array) -> list[jax.Array]:
        """Maps `(S, H, W, 3)` to the last map of each group, before its pooling.

        Returns:
          Maps conv1_2, conv2_2, conv3_3, conv4_3 and conv5_3: `(S, H / 2^i, W / 2^i, C)`, i from 0.
        """
        maps = []
        for i, group in enumerate(self.groups):
            if i:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            for conv in group:
                x = nnx.relu(conv(x))
            maps.append(x)
        return maps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(S, H, W, 3)` to conv5_3, `(S, H / 16, W / 16, 512)`."""
        return self.stages(x)[-1]
