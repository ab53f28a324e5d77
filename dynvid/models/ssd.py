"""SSD512 (Liu et al. 2016, SSD: Single Shot MultiBox Detector), as its Caffe model was released."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.models.vgg import VGG16
from dynvid.ops.boxes import Detections, multilabel_non_maximum_suppression
from dynvid.ops.letterbox import letterbox
from dynvid.types import Frames

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""The 20 classes of the Pascal VOC detection task, in the order of the released outputs."""

SIZE = 512
"""Height and width of the network's input, in pixels."""

MEAN = (104.0, 117.0, 123.0)
"""What the network's input has subtracted, by channel (BGR), of 0..255."""

_EXTRAS = (  # name, channels, kernel, stride, padding; a rectifier follows each
    ("conv6_1", 256, 1, 1, 0), ("conv6_2", 512, 3, 2, 1),
    ("conv7_1", 128, 1, 1, 0), ("conv7_2", 256, 3, 2, 1),
    ("conv8_1", 128, 1, 1, 0), ("conv8_2", 256, 3, 2, 1),
    ("conv9_1", 128, 1, 1, 0), ("conv9_2", 256, 3, 2, 1),
    ("conv10_1", 128, 1, 1, 0), ("conv10_2", 256, 4, 1, 1),
)  # fmt: skip
_SOURCES = (  # name, channels, side, least size, aspects; the heads read these maps
    ("conv4_3_norm", 512, 64, 35.84, (2,)),
    ("fc7", 1024, 32, 76.8, (2, 3)),
    ("conv6_2", 512, 16, 153.6, (2, 3)),
    ("conv7_2", 256, 8, 230.4, (2, 3)),
    ("conv8_2", 256, 4, 307.2, (2, 3)),
    ("conv9_2", 256, 2, 384.0, (2,)),
    ("conv10_2", 256, 1, 460.8, (2,)),
)
_LARGEST = 537.6  # what the last source has for the least size of the next
_VARIANCES = (0.1, 0.1, 0.2, 0.2)

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

    def __init__(self, *, classes: int = 21, rngs: nnx.Rngs):
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
        for name, channels, _, _, aspects in _SOURCES:
            boxes = 2 + 2 * len(aspects)
            self.locations[name] = _conv(channels, 4 * boxes, 3, padding=1, rngs=rngs)
            self.confidences[name] = _conv(channels, classes * boxes, 3, padding=1, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Runs the whole network; `decode_ssd` makes boxes of what it returns.

        Args:
          images: `(S, 512, 512, 3)` floating, as `ssd_preprocess` gives them.

        Returns:
          Locations `(S, 24564, 4)`, offsets from `prior_boxes` in their variances, and confidences
          `(S, 24564, C)`, before the softmax.

        Raises:
          ValueError: The images have another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"images must be (S, {SIZE}, {SIZE}, 3); got {tuple(images.shape)}")
        *_, conv4_3, conv5_3 = self.vgg.stages(images)
        return self.predict(conv4_3, conv5_3)

    def sources(self, conv4_3: jax.Array, conv5_3: jax.Array) -> dict[str, jax.Array]:
        """The seven maps that the heads read, by name, from the two of VGG16.

        Args:
          conv4_3: `(S, 64, 64, 512)`, after its rectifier.
          conv5_3: `(S, 32, 32, 512)`, likewise.

        Returns:
          `(S, side, side, channels)` with side = 64, 32, 16, 8, 4, 2, 1.
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
        maps = self.sources(conv4_3, conv5_3)
        for name, *_ in _SOURCES:
            x = maps[name]
            locations.append(self.locations[name](x).reshape(len(x), -1, 4))
            confidences.append(self.confidences[name](x).reshape(len(x), -1, self.classes))
        return jnp.concatenate(locations, 1), jnp.concatenate(confidences, 1)


def ssd_preprocess(frames: Frames) -> jax.Array:
    """The network's input: frames stretched to 512 x 512, as BGR of 0..255 less its mean.

    The bilinear resizing is that of `Letterbox.to_network`; the mean is `MEAN`.

    Args:
      frames: `(S, H, W, 3)` RGB, floating in [0, 1] or uint8.

    Returns:
      `(S, 512, 512, 3)` floating.

    Raises:
      ValueError: The frames have another shape.

    Exact when H = W = 512; else approximate because Caffe's resizing rounds to whole values.

    >>> ssd_preprocess(jnp.full((1, 4, 8, 3), jnp.array([123, 117, 105], jnp.uint8)))[0, 0, 0]
    Array([1., 0., 0.], dtype=float32)
    """
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames must be (S, H, W, 3); got {tuple(frames.shape)}")
    frames = frames * 255 if jnp.issubdtype(frames.dtype, jnp.floating) else frames
    geometry = letterbox((frames.shape[1], frames.shape[2]), (SIZE, SIZE), placement="stretch")
    images = geometry.to_network(frames)[..., ::-1]
    return images - jnp.array(MEAN, images.dtype)


def prior_boxes() -> np.ndarray:
    """The boxes that the network's outputs are relative to (Liu et al. 2016, section 2.2).

    A position of a source of side s in row i, column j has boxes centred at ((j + 0.5) / s,
    (i + 0.5) / s): squares of the least size m and of sqrt(m m'), m' that of the next source; then
    of m sqrt(a) by m / sqrt(a) for each aspect a = 2, 1/2 and, where a source has them, 3, 1/3.

    Returns:
      `(24564, 4)` float32: centre x, centre y, width and height, as shares of the image; source by
      source, row by row, in the order of the network's outputs. Boxes may reach beyond the image.

    >>> prior_boxes()[0].tolist()
    [0.0078125, 0.0078125, 0.07..., 0.07...]
    """
    boxes = []
    least = [size for *_, size, _ in _SOURCES] + [_LARGEST]
    for (_, _, side, size, aspects), larger in zip(_SOURCES, least[1:], strict=True):
        shapes = [(size, size), (np.sqrt(size * larger),) * 2]
        for aspect in aspects:
            wide, narrow = size * np.sqrt(aspect), size / np.sqrt(aspect)
            shapes += [(wide, narrow), (narrow, wide)]
        middle = (np.arange(side) + 0.5) / side
        y, x = np.meshgrid(middle, middle, indexing="ij")
        centres = np.stack([x, y], -1)[:, :, None]
        place = (side, side, len(shapes), 2)
        parts = [np.broadcast_to(centres, place), np.broadcast_to(np.array(shapes) / SIZE, place)]
        boxes.append(np.concatenate(parts, -1).reshape(-1, 4))
    return np.concatenate(boxes).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("size", "max_candidates", "max_detections"))
def decode_ssd(
    locations: jax.Array,
    confidences: jax.Array,
    *,
    size: tuple[int, int] = (SIZE, SIZE),
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    max_candidates: int = 400,
    max_detections: int = 200,
) -> Detections:
    """Boxes from the raw outputs of `SSD512`, as its Caffe model gives them.

    With p a prior box, v = (0.1, 0.1, 0.2, 0.2) and l a location: the centre is p_xy + v l p_wh,
    the size p_wh exp(v l) (Liu et al. 2016, Eq. 2); the scores are the softmax of the confidences
    without the background.

    Args:
      locations: `(S, 24564, 4)` floating.
      confidences: `(S, 24564, C)` floating, before the softmax; class 0 is the background.
      size: (height, width) of what the boxes shall be pixels of: the network's input, or a frame
        that was stretched to it.
      score_threshold: As in `multilabel_non_maximum_suppression`, like the three below.
      iou_threshold: The greatest overlap at which both boxes of a class stay.
      max_candidates: How many boxes of a class are looked at.
      max_detections: How many of all classes are returned.

    Returns:
      `Detections`, not clipped to the image; class k is the network's class k + 1.

    Raises:
      ValueError: The shapes are not those of the network's outputs.

    >>> locations, confidences = jnp.zeros((1, 24564, 4)), jnp.zeros((1, 24564, 3))
    >>> found = decode_ssd(locations, confidences.at[0, -2, 2].set(9.0), score_threshold=0.5)
    >>> found.boxes[0, 0].tolist(), int(found.classes[0, 0])
    ([-69.8..., 93.0..., 581.8..., 418.9...], 1)
    """
    priors = jnp.asarray(prior_boxes())
    if (
        locations.ndim != 3
        or locations.shape[1:] != priors.shape
        or confidences.ndim != 3
        or confidences.shape[:2] != locations.shape[:2]
        or confidences.shape[2] < 2
    ):
        raise ValueError(
            f"locations and confidences must be (S, {len(priors)}, 4) and (S, {len(priors)}, C); "
            f"got {locations.shape} and {confidences.shape}"
        )
    shifts = locations * jnp.array(_VARIANCES, locations.dtype)
    centre = priors[:, :2] + shifts[..., :2] * priors[:, 2:]
    half = jnp.exp(shifts[..., 2:]) * priors[:, 2:] / 2
    height, width = size
    return multilabel_non_maximum_suppression(
        jnp.concatenate([centre - half, centre + half], -1) * jnp.array([width, height] * 2),
        jax.nn.softmax(confidences, -1)[..., 1:],
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_candidates=max_candidates,
        max_detections=max_detections,
    )
