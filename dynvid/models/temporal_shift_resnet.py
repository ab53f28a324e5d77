"""ResNet with temporal shift and a head after three of its stages (Dynamic Inference; TSM)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from dynvid.models.resnet import ResNet
from dynvid.ops.progressive import ShiftFn

_ROUND = 23  # blocks of conv4 from which on only every second block shifts (TSM's code)


class TemporalShiftResNet(nnx.Module):
    """ResNet-50 or alike, whose blocks look at an earlier frame, with heads on conv3, 4 and 5.

    A block's residual branch starts from shifted maps, its shortcut from the maps as they are
    (TSM, section 3.3, "residual"); in networks as deep as ResNet-101 every second block does.

    Heads are our reconstruction from the reported number of parameters (29.12 M and 48.12 M with
    400 classes): those of conv3 and conv4 are a linear layer to as many features as conv5 has, with
    bias, batch normalisation, ReLU and a classifier; that of conv5 is the classifier alone. All
    follow global average pooling.

    Args:
      depths: Blocks of conv2, conv3, conv4 and conv5.
      classes: How many classes there are.
      width: Channels of conv1, see `ResNet`.
      head_features: Of the two extra heads; as many as conv5 has where None.
      patch: Where given, conv1 and its pooling are one convolution of so many pixels a side without
        overlap, for small frames; None is the paper's 7x7.
      fold: Which part of a block's channels is shifted.
      dropout: Before every classifier, in training (TSM: 0.5).
      rngs: Where the random weights come from.

    Attributes:
      depth: 3 stages: conv1 to conv3, conv4, conv5.

    Raises:
      ValueError: As `ResNet` does.

    >>> from dynvid.models.resnet import RESNET50
    >>> network = nnx.eval_shape(
    ...     lambda: TemporalShiftResNet(depths=RESNET50, classes=400, rngs=nnx.Rngs(0))
    ... )
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    29124848
    """

    depth = 3

    def __init__(
        self,
        *,
        depths: Sequence[int],
        classes: int,
        width: int = 64,
        head_features: int | None = None,
        patch: int | None = None,
        fold: int = 8,
        dropout: float = 0.5,
        rngs: nnx.Rngs,
    ):
        self.trunk = ResNet(depths=depths, width=width, rngs=rngs)
        if patch is not None:
            side = (patch, patch)
            stem = nnx.Conv(3, width, side, side, padding="VALID", rngs=rngs)
            self.trunk.stem = nnx.List([stem])
        self.pooled = patch is None
        top = self.trunk.features
        hidden = top if head_features is None else head_features
        self.heads = nnx.List(
            [
                _Head(top // 4, hidden, classes, dropout=dropout, rngs=rngs),
                _Head(top // 2, hidden, classes, dropout=dropout, rngs=rngs),
                _Head(top, None, classes, dropout=dropout, rngs=rngs),
            ]
        )
        self.fold = fold
        self.every = 2 if depths[2] >= _ROUND else 1

    def stage(self, depth: int, x: jax.Array, shift: ShiftFn) -> jax.Array:
        """The last map of conv3, conv4 or conv5.

        Args:
          depth: 1, 2 or 3.
          x: Frames `(N, H, W, 3)`, or the maps of the stage before.
          shift: What shifts a map in time.
        """
        groups = self.trunk.groups[:2] if depth == 1 else self.trunk.groups[depth : depth + 1]
        if depth == 1:
            x = self.trunk.conv1(x) if self.pooled else self.trunk.stem[0](x)
        for group in groups:
            for i, block in enumerate(group):
                y = shift(x, fold=self.fold) if i % self.every == 0 else x
                for layer in block.shortcut:
                    x = layer(x)
                for layer in block.convs:
                    y = layer(y)
                x = nnx.relu(x + y)
        return x

    def features(self, depth: int, maps: jax.Array) -> jax.Array:
        """Global average pooling, `(N, h, w, C)` to `(N, C)`."""
        del depth
        return jnp.mean(maps, (1, 2))

    def head(self, depth: int, features: jax.Array) -> jax.Array:
        """Logits of the stage's own head, `(..., C)` to `(..., classes)`."""
        return self.heads[depth - 1](features)


class _Head(nnx.Module):
    """A classifier, after a hidden layer where there is one."""

    def __init__(
        self, depth: int, hidden: int | None, classes: int, *, dropout: float, rngs: nnx.Rngs
    ):
        self.hidden = nnx.List([])
        if hidden is not None:
            norm = nnx.BatchNorm(hidden, use_running_average=True, epsilon=1e-5, rngs=rngs)
            self.hidden.append(nnx.Linear(depth, hidden, rngs=rngs))
            self.hidden.append(norm)
            depth = hidden
        self.dropout = nnx.Dropout(dropout, deterministic=True, rngs=rngs)
        self.classifier = nnx.Linear(depth, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = layer(x)
        x = nnx.relu(x) if len(self.hidden) else x
        return self.classifier(self.dropout(x))
