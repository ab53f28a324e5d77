"""Darknet networks as functions of weights and images, built from their `.cfg` description.

Layers are numbered from 0 as Darknet prints them, `[net]` not counted, and every layer's output
has its number as a name, so that `dynvid.split(network, at="layer_12")` cuts there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from dynvid.models.modules import unit_frames
from dynvid.types import Frames, Params

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "leaky": lambda x: jnp.maximum(x, 0.1 * x),
    "relu": lambda x: jnp.maximum(x, 0),
    "logistic": jax.nn.sigmoid,
    "swish": jax.nn.silu,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
}
"""The activations by their name in Darknet."""

_MOST = 1 << 16  # filters, sizes and strides beyond this are typing errors
_SYNONYMS = {"network": "net", "conv": "convolutional", "max": "maxpool", "avg": "avgpool"}
# What may stand in any layer, and in some, that says how to train and changes no output.
_TRAINING = frozenset((
    "burnin_update", "dont_update", "learning_rate", "onlyforward", "stopbackward", "train_only_bn",
))  # fmt: skip
_TRAINING_YOLO = frozenset((
    "beta_nms", "cls_normalizer", "counters_per_class", "delta_normalizer", "focal_loss",
    "ignore_thresh", "iou_loss", "iou_normalizer", "iou_thresh", "iou_thresh_kind", "jitter",
    "label_smooth_eps", "map", "max", "max_delta", "nms_kind", "obj_normalizer",
    "objectness_smooth", "random", "resize", "truth_thresh", "uc_normalizer",
))  # fmt: skip
_TRAINING_DROPOUT = frozenset(
    ("dropblock", "dropblock_size_abs", "dropblock_size_rel", "probability")
)


class Section(NamedTuple):
    """One section of a `.cfg` file.

    Attributes:
      kind: What stands in its brackets, synonyms made one (`conv` is `convolutional`).
      options: The first value of each key, without spaces.
      line: Where its brackets stand, from 1.
    """

    kind: str
    options: Mapping[str, str]
    line: int


def parse_cfg(text: str) -> tuple[Section, ...]:
    """The sections of a `.cfg` file.

    Spaces count nowhere, lines that begin with `#` or `;` are comments, and the first of several
    equal keys holds, all as in Darknet.

    Args:
      text: The file's contents.

    Returns:
      The sections in order.

    Raises:
      ValueError: A line is neither a section nor `key=value`, or stands before the first section.

    >>> parse_cfg("[net]\\nwidth = 416\\n# a comment\\n[conv]\\nsize=3")[1]
    Section(kind='convolutional', options={'size': '3'}, line=4)
    """
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = "".join(line.split())
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            if line[-1] != "]" or len(line) < 3:
                raise ValueError(f"line {number}: must be [section]; got {_short(line)}")
            kind = line[1:-1]
            sections.append(Section(_SYNONYMS.get(kind, kind), {}, number))
            continue
        key, equals, value = line.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"line {number}: must be key=value; got {_short(line)}")
        if not sections:
            raise ValueError(f"line {number}: {_short(line)} stands before the first section")
        options = sections[-1].options
        assert isinstance(options, dict)
        options.setdefault(key, value)
    return tuple(sections)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a Darknet network.

    Attributes:
      kind: Its section's name.
      sources: The layers that it reads; -1 is the images.
      channels: Of its output.
    """

    kind: str
    sources: tuple[int, ...]
    channels: int


@dataclasses.dataclass(frozen=True)
class Convolution(Layer):
    """A convolution with its normalisation and activation.

    Attributes:
      depth: Channels of its input.
      size: Of the square kernel.
      stride: Both ways.
      padding: Rows and columns of zeros on every side.
      groups: Into how many its channels are divided.
      normalized: Whether batch normalisation follows.
      activation: One of `ACTIVATIONS`.
    """

    depth: int
    size: int
    stride: int
    padding: int
    groups: int
    normalized: bool
    activation: str

    @property
    def kernel(self) -> tuple[int, int, int, int]:
        """The shape of its kernel, HWIO."""
        return self.size, self.size, self.depth // self.groups, self.channels


@dataclasses.dataclass(frozen=True)
class Shortcut(Layer):
    """The sum of layers.

    Attributes:
      activation: One of `ACTIVATIONS`.
    """

    activation: str


@dataclasses.dataclass(frozen=True)
class Route(Layer):
    """The channels of layers, one after the other.

    Attributes:
      groups: Into how many parts each layer's channels are divided.
      group: Which part is taken.
    """

    groups: int
    group: int


@dataclasses.dataclass(frozen=True)
class Upsample(Layer):
    """Every pixel repeated.

    Attributes:
      stride: How often, both ways.
    """

    stride: int


@dataclasses.dataclass(frozen=True)
class MaxPool(Layer):
    """The maxima of square windows.

    Attributes:
      size: Of a window.
      stride: From one to the next.
      padding: On both sides together; half of it, rounded down, above and on the left.
    """

    size: int
    stride: int
    padding: int


@dataclasses.dataclass(frozen=True)
class Yolo(Layer):
    """A detection head: hands on its input, which `decode_yolov3` makes boxes of.

    Attributes:
      anchors: (width, height) of its own anchors, those of its mask, in pixels of the input.
      classes: How many.
      scale: By how much a box's centre may leave its cell (`scale_x_y`).
    """

    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale: float


class _Options:
    """Reads the options of one section; what is said is checked where it is read."""

    def __init__(self, section: Section, index: int | None):
        self.section = section
        self.read: set[str] = set(_TRAINING)
        self.where = f"line {section.line}, [{section.kind}]"
        if index is not None:
            self.where += f" (layer {index})"

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.where}: {what}")

    def text(self, key: str) -> str | None:
        self.read.add(key)
        return self.section.options.get(key)

    def numbers(self, key: str, kind: type, default: list | None = None) -> list[Any]:
        text = self.text(key)
        if text is None:
            if default is None:
                raise self.error(f"{key} is missing")
            return default
        try:
            found = [kind(part) for part in text.rstrip(",").split(",")]
        except ValueError:
            found = [math.nan]
        if not all(abs(number) <= _MOST for number in found):
            name = "whole numbers" if kind is int else "numbers"
            raise self.error(f"{key} must be {name} of at most {_MOST}; got {_short(text)}")
        return found

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        found = self.numbers(key, int, None if default is None else [default])
        if len(found) != 1 or found[0] < least:
            raise self.error(
                f"{key} must be one whole number of at least {least}; "
                f"got {_short(str(self.section.options.get(key)))}"
            )
        return found[0]

    def activation(self, default: str) -> str:
        name = self.text("activation") or default
        if name not in ACTIVATIONS:
            raise self.error(
                f"activation must be one of {', '.join(ACTIVATIONS)}; got {_short(name)}"
            )
        return name

    def layers(self, key: str, index: int) -> tuple[int, ...]:
        """Layer numbers: negative ones count back from this layer."""
        found = [n + index if n < 0 else n for n in self.numbers(key, int)]
        if not all(0 <= n < index for n in found):
            raise self.error(
                f"{key} must name layers before this one, 0 to {index - 1}; "
                f"got {_short(self.section.options[key])}"
            )
        return tuple(found)

    def finish(self, ignored: frozenset[str] = frozenset()) -> None:
        if unknown := [key for key in self.section.options if key not in self.read | ignored]:
            raise self.error(f"unknown or unsupported: {', '.join(map(_short, unknown))}")


@dataclasses.dataclass(frozen=True)
class Darknet:
    """A Darknet network, a function of weights and images.

    Attributes:
      size: (height, width) of the input that the description names, in pixels; others work too.
      channels: Of the input.
      layers: In order, numbered from 0.
    """

    size: tuple[int, int]
    channels: int
    layers: tuple[Layer, ...]

    @property
    def convolutions(self) -> dict[int, Convolution]:
        """The convolutions by layer number, in the order of a `.weights` file."""
        return {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, Convolution)}

    @property
    def heads(self) -> tuple[Yolo, ...]:
        """The detection heads, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Yolo))

    @property
    def parameter_count(self) -> int:
        """How many numbers are learned: kernels, biases and scales."""
        convolutions = self.convolutions.values()
        return sum(math.prod(c.kernel) + c.channels * (1 + c.normalized) for c in convolutions)

    def init(self, *, seed: int = 0) -> Params:
        """Random weights: normal kernels of variance 2 / (taps times depth), biases of zero.

        Args:
          seed: Of the random numbers.

        Returns:
          `{"layer_0": {"kernel": (k, k, I, O), "bias": (O,)}, ..., "anchors": ((A, 2), ...),
          "scale_x_y": ((), ...)}`, float32; the last two with one entry for each head.

        >>> network = build_darknet(parse_cfg("[net]\\nwidth=8\\nheight=8\\nchannels=3\\n"
        ...     "[convolutional]\\nfilters=4\\nsize=3\\npad=1\\nactivation=leaky"))
        >>> network.init()["layer_0"]["kernel"].shape
        (3, 3, 3, 4)
        """
        params = {}
        for i, layer in self.convolutions.items():
            key = jax.random.fold_in(jax.random.key(seed), i)
            deviation = math.sqrt(2 / math.prod(layer.kernel[:3]))
            kernel = deviation * jax.random.normal(key, layer.kernel)
            params[f"layer_{i}"] = {"kernel": kernel, "bias": jnp.zeros(layer.channels)}
        return params | self.constants()

    def constants(self) -> Params:
        """What a decoder needs besides the outputs: `anchors` and `scale_x_y` of each head."""
        return {
            "anchors": tuple(jnp.array(head.anchors, jnp.float32) for head in self.heads),
            "scale_x_y": tuple(jnp.float32(head.scale) for head in self.heads),
        }

    def __call__(self, params: Params, images: Frames) -> tuple[jax.Array, ...]:
        """Runs the network; `decode_yolov3` makes boxes of what it returns.

        Args:
          params: What `init` or `load_darknet` returns.
          images: `(S, H, W, channels)` RGB, floating in [0, 1] or uint8.

        Returns:
          The raw map of each `[yolo]` layer, `(S, h, w, A * (5 + classes))` before the
          sigmoid; without such layers the last layer's output alone.

        Raises:
          ValueError: The images do not fit.
        """
        if images.ndim != 4 or images.shape[3] != self.channels:
            raise ValueError(
                f"images must be (S, H, W, {self.channels}); got {tuple(images.shape)}"
            )
        outputs = {-1: unit_frames(images)}
        for i, layer in enumerate(self.layers):
            inputs = [outputs[n] for n in layer.sources]
            if len({x.shape[:3] for x in inputs}) > 1:
                raise ValueError(
                    f"images must be of a size that fits; got {tuple(images.shape[1:3])}: "
                    f"layer {i} joins maps of {' and '.join(str(x.shape[1:3]) for x in inputs)}"
                )
            x = _apply(layer, inputs, params.get(f"layer_{i}"))
            if not x.size:
                raise ValueError(
                    f"images must be large enough for layer {i}; got {tuple(images.shape[1:3])}"
                )
            outputs[i] = checkpoint_name(x, f"layer_{i}")
        heads = [i for i, layer in enumerate(self.layers) if isinstance(layer, Yolo)]
        return tuple(outputs[i] for i in heads or [len(self.layers) - 1])


def _apply(layer: Layer, inputs: list[jax.Array], params: Params) -> jax.Array:
    x = inputs[0]
    if isinstance(layer, Convolution):
        x = lax.conv_general_dilated(
            x,
            params["kernel"],
            window_strides=(layer.stride, layer.stride),
            padding=((layer.padding, layer.padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=layer.groups,
        )
        return ACTIVATIONS[layer.activation](x + params["bias"])
    if isinstance(layer, Shortcut):
        return ACTIVATIONS[layer.activation](functools.reduce(jnp.add, inputs))
    if isinstance(layer, Route):
        parts = [x.shape[3] // layer.groups for x in inputs]
        pairs = zip(inputs, parts, strict=True)
        return jnp.concatenate(
            [x[..., layer.group * n : (layer.group + 1) * n] for x, n in pairs], -1
        )
    if isinstance(layer, Upsample):
        return jnp.repeat(jnp.repeat(x, layer.stride, axis=1), layer.stride, axis=2)
    if isinstance(layer, MaxPool):
        low = layer.padding // 2
        pads = []
        for n in x.shape[1:3]:
            count = (n + layer.padding - layer.size) // layer.stride + 1
            pads.append((low, max((count - 1) * layer.stride + layer.size - n - low, 0)))
        window, strides = (1, layer.size, layer.size, 1), (1, layer.stride, layer.stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, ((0, 0), *pads, (0, 0)))
    if layer.kind == "avgpool":
        return jnp.mean(x, (1, 2), keepdims=True)
    return x  # dropout and yolo


def build_darknet(sections: tuple[Section, ...]) -> Darknet:
    """The network of a parsed `.cfg` file.

    Convolutional layers (batch normalisation, groups, any activation of `ACTIVATIONS`), shortcut,
    route (with groups), upsample, maxpool, avgpool, dropout and yolo are known; options that only
    training reads are left aside.

    Args:
      sections: What `parse_cfg` returns.

    Returns:
      The network.

    Raises:
      ValueError: A section or an option is missing, unknown or not supported, or does not fit the
        others; the line says where.

    >>> build_darknet(parse_cfg("[net]\\nwidth=8\\nheight=8\\n[lstm]\\n"))
    Traceback (most recent call last):
    ...
    ValueError: line 4, [lstm] (layer 0): unknown or unsupported layer
    """
    if not sections or sections[0].kind != "net":
        raise ValueError("the first section must be [net]")
    if len(sections) == 1:
        raise ValueError("there is no layer")
    net = _Options(sections[0], None)  # its other options concern training
    size = net.integer("height"), net.integer("width")
    channels = net.integer("channels", 3)
    layers: list[Layer] = []
    for index, section in enumerate(sections[1:]):
        options = _Options(section, index)
        builder = _BUILDERS.get(section.kind)
        if builder is None:
            raise options.error("unknown or unsupported layer")
        layer = builder(options, index, lambda n: layers[n].channels if n >= 0 else channels)
        if layer.channels > _MOST:
            raise options.error(f"more than {_MOST} channels")
        layers.append(layer)
    return Darknet(size, channels, tuple(layers))


Depth = Callable[[int], int]
"""The channels of a layer's output."""


def _convolution(options: _Options, index: int, depth: Depth) -> Layer:
    inputs = depth(index - 1)
    filters, size = options.integer("filters", 1), options.integer("size", 1)
    groups = options.integer("groups", 1)
    if inputs % groups or filters % groups:
        raise options.error(f"{groups} groups do not divide {inputs} and {filters} channels")
    padding = options.integer("padding", 0, least=0)
    layer = Convolution(
        "convolutional",
        (index - 1,),
        filters,
        depth=inputs,
        size=size,
        stride=options.integer("stride", 1),
        # Any pad but 0 keeps the size at stride 1, whatever padding says.
        padding=size // 2 if options.integer("pad", 0, least=0) else padding,
        groups=groups,
        normalized=bool(options.integer("batch_normalize", 0, least=0)),
        activation=options.activation("logistic"),
    )
    options.finish()
    return layer


def _shortcut(options: _Options, index: int, depth: Depth) -> Layer:
    sources = (index - 1, *options.layers("from", index))
    if index == 0 or len({depth(n) for n in sources}) > 1:
        raise options.error(
            f"from must name layers of as many channels; got {[depth(n) for n in sources]}"
        )
    layer = Shortcut("shortcut", sources, depth(index - 1), options.activation("linear"))
    options.finish()
    return layer


def _route(options: _Options, index: int, depth: Depth) -> Layer:
    sources = options.layers("layers", index)
    groups = options.integer("groups", 1)
    group = options.integer("group_id", 0, least=0)
    if group >= groups or any(depth(n) % groups for n in sources):
        raise options.error(
            f"group {group} of {groups} does not fit {[depth(n) for n in sources]} channels"
        )
    options.finish()
    channels = sum(depth(n) // groups for n in sources)
    return Route("route", sources, channels, groups, group)


def _upsample(options: _Options, index: int, depth: Depth) -> Layer:
    layer = Upsample("upsample", (index - 1,), depth(index - 1), options.integer("stride", 2))
    options.finish()
    return layer


def _maxpool(options: _Options, index: int, depth: Depth) -> Layer:
    stride = options.integer("stride", 1)
    size = options.integer("size", stride)
    padding = options.integer("padding", size - 1, least=0)
    if padding // 2 >= size:
        raise options.error(f"padding must be less than twice the size {size}; got {padding}")
    options.finish()
    return MaxPool("maxpool", (index - 1,), depth(index - 1), size, stride, padding)


def _plain(kind: str, ignored: frozenset[str]) -> Callable[[_Options, int, Depth], Layer]:
    def build(options: _Options, index: int, depth: Depth) -> Layer:
        options.finish(ignored)
        return Layer(kind, (index - 1,), depth(index - 1))

    return build


def _yolo(options: _Options, index: int, depth: Depth) -> Layer:
    flat = options.numbers("anchors", float)
    if len(flat) % 2 or min(flat) <= 0:
        raise options.error("anchors must be pairs of positive numbers")
    anchors = list(zip(flat[::2], flat[1::2], strict=True))
    if options.integer("num", len(anchors)) != len(anchors):
        raise options.error(f"num does not fit {len(anchors)} anchors")
    mask = options.numbers("mask", int, list(range(len(anchors))))
    if not all(0 <= n < len(anchors) for n in mask):
        raise options.error(f"mask must hold numbers of anchors, 0 to {len(anchors) - 1}")
    classes = options.integer("classes", 20)
    scale = options.numbers("scale_x_y", float, [1.0])
    if len(scale) != 1 or scale[0] <= 0:
        raise options.error("scale_x_y must be one positive number")
    if depth(index - 1) != len(mask) * (5 + classes):
        raise options.error(
            f"{len(mask)} anchors and {classes} classes need {len(mask) * (5 + classes)} channels; "
            f"layer {index - 1} has {depth(index - 1)}"
        )
    options.finish(_TRAINING_YOLO)
    own = tuple(anchors[n] for n in mask)
    return Yolo("yolo", (index - 1,), depth(index - 1), own, classes, scale[0])


_BUILDERS: dict[str, Callable[[_Options, int, Depth], Layer]] = {
    "convolutional": _convolution,
    "shortcut": _shortcut,
    "route": _route,
    "upsample": _upsample,
    "maxpool": _maxpool,
    "avgpool": _plain("avgpool", frozenset()),
    "dropout": _plain("dropout", _TRAINING_DROPOUT),
    "yolo": _yolo,
}


def yolov3_cfg(*, size: tuple[int, int] = (416, 416), classes: int = 80) -> str:
    """The description of YOLOv3 (Redmon and Farhadi 2018, sections 2.3 and 2.4), 107 layers.

    Darknet-53 without its classifier (their Table 1), then three heads, each after the first with
    an upsampled map of the one before and one from the backbone.

    Args:
      size: (height, width) of the input, in pixels, multiples of 32.
      classes: How many classes it tells apart.

    Returns:
      The text of a `.cfg` file.

    >>> network = build_darknet(parse_cfg(yolov3_cfg()))
    >>> len(network.layers), network.layers[12].channels, network.parameter_count
    (107, 256, 61949149)
    """
    sections = [f"[net]\nheight={size[0]}\nwidth={size[1]}\nchannels=3"]

    def conv(filters: int, kernel: int, stride: int = 1) -> None:
        sections.append(
            f"[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize={kernel}\n"
            f"stride={stride}\npad=1\nactivation=leaky"
        )

    def route(layers: str) -> None:
        sections.append(f"[route]\nlayers={layers}")

    conv(32, 3)
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        conv(filters, 3, 2)
        for _ in range(blocks):
            conv(filters // 2, 1)
            conv(filters, 3)
            sections.append("[shortcut]\nfrom=-3\nactivation=linear")
    # The last layers of strides 16 and 8 are 61 and 36.
    for filters, mask, lateral in ((512, "6,7,8", None), (256, "3,4,5", 61), (128, "0,1,2", 36)):
        if lateral is not None:
            route("-4")
            conv(filters, 1)
            sections.append("[upsample]\nstride=2")
            route(f"-1,{lateral}")
        for _ in range(3):
            conv(filters, 1)
            conv(2 * filters, 3)
        sections.append(
            f"[convolutional]\nfilters={3 * (5 + classes)}\nsize=1\nstride=1\npad=1\n"
            "activation=linear"
        )
        sections.append(
            f"[yolo]\nmask={mask}\nclasses={classes}\nnum=9\nanchors=10,13, 16,30, 33,23, 30,61, "
            "62,45, 59,119, 116,90, 156,198, 373,326"
        )
    return "\n\n".join(sections) + "\n"
