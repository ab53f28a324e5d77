"""SSD512 (Liu et al. 2016, SSD: Single Shot MultiBox Detector), as its Caffe model was released."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynvid.models.vgg import VGG16

_EXTRAS = (  # name, channels, kernel, stride, padding; a rectifier follows each
    ("conv6_1", 256, 1, 1, 0), ("conv6_2", 512, 3, 2, 1),
    ("conv7_1", 128, 1, 1, 0), ("conv7_2", 256, 3, 2, 1),
    ("conv8_1", 128, 1, 1, 0), ("conv8_2", 256, 3, 2, 1),
    ("conv9_1", 128, 1, 1, 0), ("conv9_2", 256, 3, 2, 1),
    ("conv10_1", 128, 1, 1, 0), ("conv10_2", 256, 4, 1, 1),
)  # fmt: skip
_SOURCES = (  # name, channels, boxes a position; the heads read these maps
    ("conv4_3_norm", 512, 4), ("fc7", 1024, 6), ("conv6_2", 512, 6), ("conv7_2", 256, 6),
    ("conv8_2", 256, 6), ("conv9_2", 256, 4), ("conv10_2", 256, 4),
)  # fmt: skip

CAFFE_LAYERS: dict[str, tuple[str | int, ...]] = {
    **{
        f"conv{i + 1}_{j + 1}": ("vgg", "groups", i, j)
        for i, count in enumerate((2, 2, 3, 3, 3))
        for j in range(count)
    },
    **{name: (name,) for name in ("fc6", "fc7", "conv4_3_norm")},
    **{name: ("extras", name) for name, *_ in _EXTRAS},
    **{f"{name}_mbox_loc": ("locations", name) for name, *_ in _SOURCES},
    **{f"{name}_mbox_conf": ("confidences", name) for name, *_ in _SOURCES},
}
"""Where each layer of the released Caffe model lies in `nnx.state(SSD512(...))`.

The path leads to the `kernel` (HWIO) and `bias` of a convolution, to the `scale` of `conv4_3_norm`.
"""


def _conv(
    inputs: int, features: int, kernel: int, *, rngs: nnx.Rngs,
    stride: int = 1, padding: int = 0, dilation: int = 1,
) -> nnx.Conv:  # fmt: skip
    return nnx.Conv(
        inputs, features, (kernel, kernel), stride, padding=[(padding, padding)] * 2,
        kernel_dilation=dilation, rngs=rngs,
    )  # fmt: skip


class L2Norm(nnx.Module):
    """Scales every position's channels to norm 1, then each channel by a learned factor.

    y_c = s_c x_c / sqrt(sum_k x_k^2 + 1e-10) (Liu et al. 2015, ParseNet, section 3.3).

    Args:
      channels: C.
      scale: What every s_c starts from.

    >>> L2Norm(2, scale=10.0)(jnp.array([3.0, 4.0]))
    Array([6., 8.], dtype=float32)
    """

    def __init__(self, channels: int, *, scale: float = 20.0):
        self.scale = nnx.Param(jnp.full(channels, scale, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., C)` to `(..., C)`."""
        square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        return x / jnp.sqrt(square + 1e-10) * self.scale[...]


class SSD512(nnx.Module):
    """The network: VGG16 with fully connected layers made convolutions, extras, and seven heads.

    Args:
      classes: C, with the background, which is class 0.
      rngs: Where the random weights come from.

    >>> images = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    >>> [x.shape for x in jax.eval_shape(lambda x: SSD512(rngs=nnx.Rngs(0))(x), images)]
    [(1, 24564, 4), (1, 24564, 21)]
    """

    def __init__(self, classes: int = 21, *, rngs: nnx.Rngs):
        self.classes = classes
        self.vgg = VGG16(rngs=rngs)
        self.fc6 = _conv(512, 1024, 3, padding=6, dilation=6, rngs=rngs)
        self.fc7 = _conv(1024, 1024, 1, rngs=rngs)
        self.extras = nnx.Dict()
        depth = 1024
        for name, features, kernel, stride, padding in _EXTRAS:
            self.extras[name] = _conv(
                depth, features, kernel, stride=stride, padding=padding, rngs=rngs
            )
            depth = features
        self.conv4_3_norm = L2Norm(512)
        self.locations, self.confidences = nnx.Dict(), nnx.Dict()
        for name, channels, boxes in _SOURCES:
            self.locations[name] = _conv(channels, 4 * boxes, 3, padding=1, rngs=rngs)
            self.confidences[name] = _conv(channels, classes * boxes, 3, padding=1, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Runs the whole network; `decode_ssd` makes boxes of what it returns.

        Args:
          images: `(N, 512, 512, 3)` floating, as `ssd_preprocess` gives them.

        Returns:
          Locations `(N, 24564, 4)`, offsets from `prior_boxes` in their variances, and confidences
          `(N, 24564, C)`, before the softmax.

        Raises:
          ValueError: The images have another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (512, 512, 3):
            raise ValueError(f"images must be (N, 512, 512, 3), got {tuple(images.shape)}")
        *_, conv4_3, conv5_3 = self.vgg.stages(images)
        return self.predict(conv4_3, conv5_3)

    def sources(self, conv4_3: jax.Array, conv5_3: jax.Array) -> dict[str, jax.Array]:
        """The seven maps that the heads read, by name, from the two of VGG16.

        Args:
          conv4_3: `(N, 64, 64, 512)`, after its rectifier.
          conv5_3: `(N, 32, 32, 512)`, likewise.

        Returns:
          `(N, S, S, channels)` with S = 64, 32, 16, 8, 4, 2, 1.
        """
        pads: Any = ((1, 1), (1, 1))  # flax documents pairs but annotates a string
        x = nnx.max_pool(conv5_3, (3, 3), strides=(1, 1), padding=pads)
        x = nnx.relu(self.fc6(x))
        x = nnx.relu(self.fc7(x))
        maps = {"conv4_3_norm": self.conv4_3_norm(conv4_3), "fc7": x}
        for name, *_ in _EXTRAS:
            x = nnx.relu(self.extras[name](x))
            maps[name] = x
        return {name: maps[name] for name, *_ in _SOURCES}

    def predict(self, conv4_3: jax.Array, conv5_3: jax.Array) -> tuple[jax.Array, jax.Array]:
        """All that follows VGG16: what `__call__` returns, from the maps that `sources` takes."""
        locations, confidences = [], []
        for name, x in self.sources(conv4_3, conv5_3).items():
            locations.append(self.locations[name](x).reshape(len(x), -1, 4))
            confidences.append(self.confidences[name](x).reshape(len(x), -1, self.classes))
        return jnp.concatenate(locations, 1), jnp.concatenate(confidences, 1)
