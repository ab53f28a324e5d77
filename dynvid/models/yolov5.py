"""YOLOv5 (version 6) object detection networks as a plain function of weights and frames.

The architecture is the published one (CSP backbone, spatial pyramid pooling, path aggregation
neck); width, depth, classes and anchors are read from the weights' names and shapes, so that the
sizes n, s, m, l and x are all the same function.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from dynvid.models.modules import unit_frames
from dynvid.types import Frames, Params

_EPSILON = 1e-3  # of the batch normalisation these networks are trained with
_STRIDES = (8, 16, 32)


def fold_yolov5(tensors: Mapping[str, np.ndarray]) -> Params:
    """The parameters of `yolov5` from a checkpoint's tensors.

    Batch normalisation is folded into each convolution, kernels become HWIO and anchors pixels:
    with gain = scale / sqrt(variance + 0.001), the kernel is W gain, the bias offset - mean gain.

    Args:
      tensors: By name as the published checkpoints have them (`model.0.conv.weight`), any float.

    Returns:
      `{"model.0": {"kernel": ..., "bias": ...}, ..., "anchors": (3, A, 2)}`, float32.

    Raises:
      ValueError: A tensor that the network needs is missing.

    Approximate because folding rounds once more than normalising by itself.

    >>> fold_yolov5({})
    Traceback (most recent call last):
    ...
    ValueError: not the weights of a YOLOv5 network (version 6): model.24.anchors is missing
    """
    tensors = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    params = {}
    try:
        anchors = tensors["model.24.anchors"]
        for name in [name for name in tensors if name.endswith(".conv.weight")]:
            layer = name.removesuffix(".conv.weight")
            normal = f"{layer}.bn"
            gain = tensors[f"{normal}.weight"] / np.sqrt(
                tensors[f"{normal}.running_var"] + _EPSILON
            )
            params[layer] = {
                "kernel": (tensors[name] * gain[:, None, None, None]).transpose(2, 3, 1, 0),
                "bias": tensors[f"{normal}.bias"] - tensors[f"{normal}.running_mean"] * gain,
            }
        for level in range(len(_STRIDES)):
            layer = f"model.24.m.{level}"
            params[layer] = {
                "kernel": tensors[f"{layer}.weight"].transpose(2, 3, 1, 0),
                "bias": tensors[f"{layer}.bias"],
            }
    except KeyError as error:
        raise ValueError(
            f"not the weights of a YOLOv5 network (version 6): {error.args[0]} is missing"
        ) from error
    needed = [f"model.{k}" for k in (0, 1, 3, 5, 7, 10, 14, 18, 21)]
    needed += [f"model.{k}.cv{c}" for k in (2, 4, 6, 8, 13, 17, 20, 23) for c in (1, 2, 3)]
    needed += ["model.9.cv1", "model.9.cv2"]
    if missing := [layer for layer in needed if layer not in params]:
        raise ValueError(
            "not the weights of a YOLOv5 network (version 6): "
            f"{', '.join(f'{layer}.conv.weight' for layer in missing)} missing"
        )
    params["anchors"] = anchors * np.array(_STRIDES, np.float32)[:, None, None]
    return jax.tree.map(jnp.asarray, params)


def yolov5(params: Params, frames: Frames) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs the network; `decode_yolov5` makes boxes of what it returns.

    Args:
      params: What `fold_yolov5` returns.
      frames: `(S, H, W, 3)` RGB, floating in [0, 1] or uint8; H and W multiples of 32.

    Returns:
      The raw outputs at strides 8, 16 and 32: `(S, H / s, W / s, A * (5 + classes))`, before
      the sigmoid. The outputs of the stages with branches carry their names in the checkpoint,
      `model.2` to `model.23`, for `dynvid.split`: it is one tensor that crosses `model.2` (stride
      4) and `model.4` (stride 8).

    Raises:
      ValueError: The frames' shape does not fit.

    >>> yolov5({}, jnp.zeros((1, 30, 64, 3)))
    Traceback (most recent call last):
    ...
    ValueError: frames must be (S, H, W, 3) with H and W multiples of 32; got (1, 30, 64, 3)
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[1] % 32 or frames.shape[2] % 32:
        raise ValueError(
            f"frames must be (S, H, W, 3) with H and W multiples of 32; got {tuple(frames.shape)}"
        )
    x = _conv(params, "model.0", unit_frames(frames), stride=2)
    x = _conv(params, "model.1", x, stride=2)
    x = _c3(params, "model.2", x, shortcut=True)  # stride 4
    x = _conv(params, "model.3", x, stride=2)
    fine = _c3(params, "model.4", x, shortcut=True)  # stride 8
    x = _conv(params, "model.5", fine, stride=2)
    middle = _c3(params, "model.6", x, shortcut=True)  # stride 16
    x = _conv(params, "model.7", middle, stride=2)
    x = _c3(params, "model.8", x, shortcut=True)  # stride 32
    x = _pyramid_pooling(params, "model.9", x)

    coarse = _conv(params, "model.10", x)
    x = jnp.concatenate([_twice(coarse), middle], -1)
    x = _c3(params, "model.13", x, shortcut=False)
    middle = _conv(params, "model.14", x)
    x = jnp.concatenate([_twice(middle), fine], -1)
    at_8 = _c3(params, "model.17", x, shortcut=False)
    x = jnp.concatenate([_conv(params, "model.18", at_8, stride=2), middle], -1)
    at_16 = _c3(params, "model.20", x, shortcut=False)
    x = jnp.concatenate([_conv(params, "model.21", at_16, stride=2), coarse], -1)
    at_32 = _c3(params, "model.23", x, shortcut=False)
    return (
        _linear(params["model.24.m.0"], at_8),
        _linear(params["model.24.m.1"], at_16),
        _linear(params["model.24.m.2"], at_32),
    )


def _linear(layer: Params, x: jax.Array, *, stride: int = 1) -> jax.Array:
    """A convolution and its bias, padded so that stride 1 keeps the size (6x6: by 2)."""
    pad = (layer["kernel"].shape[0] - 1) // 2
    y = lax.conv_general_dilated(
        x,
        layer["kernel"],
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + layer["bias"]


def _conv(params: Params, name: str, x: jax.Array, *, stride: int = 1) -> jax.Array:
    return jax.nn.silu(_linear(params[name], x, stride=stride))


def _c3(params: Params, name: str, x: jax.Array, *, shortcut: bool) -> jax.Array:
    """Two 1x1 branches, one through bottlenecks, joined by a third 1x1."""
    y = _conv(params, f"{name}.cv1", x)
    block = 0
    while f"{name}.m.{block}.cv1" in params:
        z = _conv(params, f"{name}.m.{block}.cv1", y)
        z = _conv(params, f"{name}.m.{block}.cv2", z)
        y = y + z if shortcut else z
        block += 1
    joined = jnp.concatenate([y, _conv(params, f"{name}.cv2", x)], -1)
    return checkpoint_name(_conv(params, f"{name}.cv3", joined), name)


def _pyramid_pooling(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Maxima over 5x5, 9x9 and 13x13, each from the one before."""
    x = _conv(params, f"{name}.cv1", x)
    pooled = [x]
    for _ in range(3):
        pooled.append(
            lax.reduce_window(pooled[-1], -jnp.inf, lax.max, (1, 5, 5, 1), (1, 1, 1, 1), "SAME")
        )
    return _conv(params, f"{name}.cv2", jnp.concatenate(pooled, -1))


def _twice(x: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling by two."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
