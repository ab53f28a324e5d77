"""ESPNet, a small segmentation network (Mehta et al., ESPNet, ECCV 2018), as a plain function.

Depth and classes are read from the weights' names and shapes, so that every published version with
a decoder (p = 2; q = 3, 5 or 8) is the same function.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.types import Frames, Params

CAMVID_MEAN = (110.331, 108.409, 105.033)
"""Of CamVid's training images: blue, green and red, of 0..255."""

CAMVID_DEVIATION = (72.126, 72.691, 69.905)
"""The standard deviation of CamVid's training images: blue, green and red, of 0..255."""

_EPSILON = 1e-3  # of the batch normalisation these networks are trained with
_DILATIONS = (1, 2, 4, 8, 16)


def fold_espnet(
    tensors: Mapping[str, np.ndarray],
    *,
    mean: Sequence[float],
    deviation: Sequence[float],
) -> Params:
    """The parameters of `espnet` from a checkpoint's tensors.

    Batch normalisation becomes one gain and one offset a channel, gain = scale / sqrt(variance +
    0.001), and is not folded further: nearly all of it follows a concatenation or a sum, where
    there is no one convolution to fold it into. Kernels become HWIO.

    Args:
      tensors: By name as the published checkpoints have them (`encoder.level1.conv.weight`).
      mean: Of the training images, blue, green and red, of 0..255: the checkpoints leave it out.
      deviation: Their standard deviation, likewise.

    Returns:
      By layer `{"kernel": ...}`, `{"gain": ..., "offset": ...}` and `{"slope": ...}`, and `"input"`
      with `mean` and `deviation`; float32.

    Raises:
      ValueError: A tensor that the network needs is missing, or `mean` and `deviation` are not
        three numbers each.

    Exact up to the rounding of gain and offset.

    >>> fold_espnet({}, mean=(0, 0, 0), deviation=(1, 1, 1))
    Traceback (most recent call last):
    ...
    ValueError: not the weights of ESPNet with a decoder: encoder.level1.conv.weight is missing
    """
    for name, value in (("mean", mean), ("deviation", deviation)):
        if len(value) != 3:
            raise ValueError(f"{name} must be three numbers; got {value}")
    tensors = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    params: dict[str, dict[str, np.ndarray]] = {
        "input": {
            "mean": np.array(mean, np.float32),
            "deviation": np.array(deviation, np.float32),
        }
    }

    def conv(name: str) -> None:
        params[name] = {"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)}

    def transposed(name: str) -> None:
        # From (inputs, outputs, 2, 2): every input pixel makes 2 x 2 pixels of its own.
        params[name] = {"kernel": tensors[f"{name}.weight"].transpose(0, 2, 3, 1)}

    def norm(name: str) -> None:
        gain = tensors[f"{name}.weight"] / np.sqrt(tensors[f"{name}.running_var"] + _EPSILON)
        offset = tensors[f"{name}.bias"] - tensors[f"{name}.running_mean"] * gain
        params[name] = {"gain": gain, "offset": offset}

    def norm_act(name: str) -> None:
        norm(f"{name}.bn")
        params[f"{name}.act"] = {"slope": tensors[f"{name}.act.weight"]}

    def pyramid(name: str) -> None:
        for part in ("c1", *(f"d{d}" for d in _DILATIONS)):
            conv(f"{name}.{part}.conv")

    try:
        conv("encoder.level1.conv")
        norm_act("encoder.level1")
        for i in (1, 2, 3):
            norm_act(f"encoder.b{i}")
        for level in ("encoder.level2", "encoder.level3"):
            pyramid(f"{level}_0")
            norm_act(f"{level}_0")
            for i in range(_blocks(tensors, level, ".c1.conv.weight")):
                pyramid(f"{level}.{i}")
                norm_act(f"{level}.{i}.bn")
        conv("encoder.classifier.conv")
        norm("br")
        transposed("up_l3.0")
        conv("level3_C.conv")
        norm_act("combine_l2_l3.0")
        pyramid("combine_l2_l3.1")
        norm_act("combine_l2_l3.1.bn")
        transposed("up_l2.0")
        norm_act("up_l2.1")
        conv("conv.conv")
        norm_act("conv")
        transposed("classifier")
    except KeyError as error:
        raise ValueError(
            f"not the weights of ESPNet with a decoder: {error.args[0]} is missing"
        ) from error
    return jax.tree.map(jnp.asarray, params)


def espnet(params: Params, frames: Frames, *, stride: int = 1) -> jax.Array:
    """Runs the network (Mehta et al. 2018, section 3 and Fig. 4d).

    Args:
      params: What `fold_espnet` returns.
      frames: `(S, H, W, 3)` RGB, uint8 or floating in [0, 1]; H and W multiples of 8.
      stride: Pixels per position of the result, 1 or 2. The published network ends in a transposed
        convolution that makes 2 x 2 positions of each; with 2, the result is their mean.

    Returns:
      Logits `(S, H / stride, W / stride, classes)`.

    Raises:
      ValueError: The frames' shape does not fit, or `stride` is neither.

    Exact: with stride 1 the published network, with stride 2 its logits' 2 x 2 mean, up to
    rounding.

    >>> espnet({}, jnp.zeros((1, 30, 64, 3)))
    Traceback (most recent call last):
    ...
    ValueError: frames must be (S, H, W, 3) with H and W multiples of 8; got (1, 30, 64, 3)
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[1] % 8 or frames.shape[2] % 8:
        raise ValueError(
            f"frames must be (S, H, W, 3) with H and W multiples of 8; got {tuple(frames.shape)}"
        )
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2; got {stride}")
    integer = jnp.issubdtype(frames.dtype, jnp.integer)
    x = frames.astype(jnp.float32) if integer else 255 * frames
    given = params["input"]
    # The authors divide by 255 once more, after the deviation.
    x = (x[..., ::-1] - given["mean"]) / (255 * given["deviation"])

    at_2, at_4 = _pool(x), _pool(_pool(x))
    x = _norm_act(params, "encoder.level1", _conv(params, "encoder.level1.conv", x, stride=2))
    fine = _norm_act(params, "encoder.b1", jnp.concatenate([x, at_2], -1))

    first = x = _norm_act(params, "encoder.level2_0", _pyramid(params, "encoder.level2_0", fine))
    for i in range(_blocks(params, "encoder.level2", ".c1.conv")):
        x = _block(params, f"encoder.level2.{i}", x)
    middle = _norm_act(params, "encoder.b2", jnp.concatenate([x, first, at_4], -1))

    first = x = _norm_act(params, "encoder.level3_0", _pyramid(params, "encoder.level3_0", middle))
    for i in range(_blocks(params, "encoder.level3", ".c1.conv")):
        x = _block(params, f"encoder.level3.{i}", x)
    x = _norm_act(params, "encoder.b3", jnp.concatenate([first, x], -1))

    x = _norm(params["br"], _conv(params, "encoder.classifier.conv", x))
    x = jnp.concatenate(
        [_conv(params, "level3_C.conv", middle), _upsample(params["up_l3.0"], x)], -1
    )
    x = _pyramid(params, "combine_l2_l3.1", _norm_act(params, "combine_l2_l3.0", x))
    x = _norm_act(params, "combine_l2_l3.1.bn", x)
    x = _norm_act(params, "up_l2.1", _upsample(params["up_l2.0"], x))
    x = _conv(params, "conv.conv", jnp.concatenate([x, fine], -1))
    x = _norm_act(params, "conv", x)
    if stride == 2:
        return x @ params["classifier"]["kernel"].mean((1, 2))
    return _upsample(params["classifier"], x)


def _blocks(layers: Mapping[str, object], level: str, part: str) -> int:
    """How many blocks a level has: p or q of the paper."""
    count = 0
    while f"{level}.{count}{part}" in layers:
        count += 1
    return count


def _conv(
    params: Params, name: str, x: jax.Array, *, stride: int = 1, dilation: int = 1
) -> jax.Array:
    kernel = params[name]["kernel"]
    pad = (kernel.shape[0] // 2) * dilation
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _norm(layer: Params, x: jax.Array) -> jax.Array:
    return x * layer["gain"] + layer["offset"]


def _norm_act(params: Params, name: str, x: jax.Array) -> jax.Array:
    x = _norm(params[f"{name}.bn"], x)
    return jnp.where(x >= 0, x, params[f"{name}.act"]["slope"] * x)


def _pyramid(params: Params, name: str, x: jax.Array) -> jax.Array:
    """The efficient spatial pyramid: reduce, split, transform, and sum hierarchically (Fig. 1)."""
    # What comes down in resolution is reduced by a 3x3 convolution, what stays by a 1x1.
    stride = 2 if params[f"{name}.c1.conv"]["kernel"].shape[0] == 3 else 1
    x = _conv(params, f"{name}.c1.conv", x, stride=stride)
    near, *far = [_conv(params, f"{name}.d{d}.conv", x, dilation=d) for d in _DILATIONS]
    sums = [far[0]]
    for part in far[1:]:
        sums.append(sums[-1] + part)
    return jnp.concatenate([near, *sums], -1)


def _block(params: Params, name: str, x: jax.Array) -> jax.Array:
    return _norm_act(params, f"{name}.bn", x + _pyramid(params, name, x))


def _pool(x: jax.Array) -> jax.Array:
    """The mean over 3x3 with stride 2; zeros beyond the border count."""
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, 0.0, lax.add, window, strides, padding) / 9


def _upsample(layer: Params, x: jax.Array) -> jax.Array:
    """The transposed 2x2 convolution with stride 2: a product at each pixel, laid out as 2 x 2."""
    streams, height, width, channels = x.shape
    y = x @ layer["kernel"].reshape(channels, -1)
    y = y.reshape(streams, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(streams, 2 * height, 2 * width, -1)
