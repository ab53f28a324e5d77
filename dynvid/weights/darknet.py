"""Reading Darknet networks: `.cfg` descriptions and `.weights` files."""

import math
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.models.darknet import Convolution, Darknet, build_darknet, parse_cfg
from dynvid.types import Limits, Params

# Added to the variance, as in OpenCV. Darknet's own sources differ, sqrt(v) + 1e-6 in one place and
# sqrt(v + 1e-5) in others: the heads of Yolo-Fastest move by less than 0.01 from one to the other.
_EPSILON = 1e-6


def load_darknet(
    cfg: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    seed: int = 0,
    limits: Limits | None = None,
) -> tuple[Darknet, Params]:
    """The network of a Darknet `.cfg` file and its weights.

    Batch normalisation is folded into each convolution and kernels become HWIO: with gain = scale /
    sqrt(variance + 1e-6), the kernel is W gain, the bias offset - mean gain.

    Args:
      cfg: The description.
      weights: The `.weights` file that goes with it; random weights where there is none.
      seed: Of random weights.
      limits: How many layers and weights there may be; the usual ones where None.

    Returns:
      `(fn, params)`: `fn(params, images)` takes images `(S, H, W, 3)`, RGB, floating in
      [0, 1] or uint8, and returns the raw map of each head, which
      `decode_yolov3(outputs, params["anchors"], ...)` makes boxes of; `fn.size` is the (height,
      width) that the description names.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The description is damaged or asks for what is not supported, or the weights do
        not belong to it: the file, and the line or the layer, are named.

    Approximate because folding rounds once more than normalising by itself.

    >>> fn, params = load_darknet("yolov3.cfg", weights="yolov3.weights")  # doctest: +SKIP
    >>> front, back = dynvid.split(fn, at="layer_12")  # doctest: +SKIP
    """
    with open(cfg, "rb") as file:
        data = file.read()
    try:
        network = build_darknet(parse_cfg(data.decode()))
        _check(network, limits or Limits(), drawn=weights is None)
    except UnicodeDecodeError as error:
        raise ValueError(f"{cfg}: not text (byte {error.start})") from error
    except ValueError as error:
        raise ValueError(f"{cfg}: {error}") from error
    if weights is None:
        return network, network.init(seed=seed)
    with open(weights, "rb") as file:
        data = file.read()
    try:
        return network, _parameters(network, data)
    except ValueError as error:
        raise ValueError(f"{weights}: not the weights of {cfg} ({error})") from error


def _check(network: Darknet, limits: Limits, *, drawn: bool) -> None:
    """Refuses what is too large before a weight is drawn or a layer traced.

    Weights that come in a file have room in it, or are refused for that.
    """
    for count, most, what in (
        (len(network.layers), limits.operations, "layers"),
        (network.parameter_count if drawn else 0, limits.total, "weights"),
    ):
        if count > most:
            raise ValueError(f"it has {count:,} {what}, the limit is {most:,}")


def _header(data: bytes) -> int:
    """The length of the header: version and how many images were seen in training."""
    if len(data) < 12:
        raise ValueError(f"{len(data)} bytes are too few for a header")
    major, minor, _ = struct.unpack_from("<3i", data)
    if not (0 <= major <= 1000 and 0 <= minor <= 1000):
        raise ValueError(f"version {major}.{minor} is none of Darknet's")
    # Since version 0.2 the images are counted in 64 bits.
    return 20 if 10 * major + minor >= 2 else 16


def _stored(layer: Convolution) -> int:
    """How many numbers a convolution has in the file."""
    return math.prod(layer.kernel) + layer.channels * (4 if layer.normalized else 1)


def _parameters(network: Darknet, data: bytes) -> Params:
    start = _header(data)
    needed = start + 4 * sum(map(_stored, network.convolutions.values()))
    if len(data) != needed:
        position, where = start, "after the last layer"
        for i, layer in network.convolutions.items():
            position += 4 * _stored(layer)
            if position > len(data):
                where = f"in layer {i}"
                break
        raise ValueError(
            f"{len(data)} bytes, expected {needed}: it "
            f"{'ends' if len(data) < needed else 'goes on'} {where}"
        )
    numbers = np.frombuffer(data, "<f4", offset=start)
    params, position = {}, 0
    for i, layer in network.convolutions.items():
        part = numbers[position : position + _stored(layer)]
        position += len(part)
        count = layer.channels
        rows = len(part) - math.prod(layer.kernel)
        bias, kernel = part[:count], part[rows:]
        height, width, depth, _ = layer.kernel
        kernel = kernel.reshape(count, depth, height, width).transpose(2, 3, 1, 0)
        if layer.normalized:
            scale, mean, variance = part[count:rows].reshape(3, count)
            if variance.min() < 0:
                raise ValueError(f"layer {i}: a variance is negative")
            with np.errstate(over="ignore", invalid="ignore"):  # reported below
                gain = scale / np.sqrt(variance + np.float32(_EPSILON))
                kernel, bias = kernel * gain, bias - mean * gain
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise ValueError(f"layer {i}: not all numbers are finite")
        params[f"layer_{i}"] = {"kernel": kernel, "bias": bias}
    return jax.tree.map(jnp.asarray, params) | network.constants()
