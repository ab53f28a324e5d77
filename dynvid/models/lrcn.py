"""LRCN (Donahue et al., Long-term Recurrent Convolutional Networks, CVPR 2015), a small one.

Four convolutions a frame and an LSTM over frames, as the network for UCF50 that
`dynvid.weights.lrcn` reads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynvid.types import Frames, Params

CLASS_NAMES = (
    *("WalkingWithDog", "TaiChi", "Swing", "HorseRace"),
    *("Lunges", "Punch", "PushUps"),
)
"""The classes of UCF50 that the network knows, in the order of its outputs."""

FRAMES = 20
"""The frames of a clip."""

SIZE = (64, 64)
"""(height, width) of a frame, pixels."""

_POOLS = (4, 4, 2, 2)


class Hidden(NamedTuple):
    """What an LSTM remembers.

    Attributes:
      output: h, `(S, units)`.
      cell: c, `(S, units)`.
    """

    output: jax.Array
    cell: jax.Array


def encode_frame(params: Params, frames: Frames) -> jax.Array:
    """Four 3x3 convolutions with ReLU and max-pooling: a vector a frame.

    Args:
      params: `convs`, four of `kernel` HWIO and `bias`.
      frames: `(S, 64, 64, 3)` RGB, uint8 or floating in [0, 1].

    Returns:
      `(S, 64)` for the published weights.

    >>> conv = lambda i, o: {"kernel": jnp.zeros((3, 3, i, o)), "bias": jnp.zeros(o)}
    >>> params = {"convs": [conv(3, 4), conv(4, 4), conv(4, 4), conv(4, 8)]}
    >>> encode_frame(params, jnp.zeros((2, 64, 64, 3), jnp.uint8)).shape
    (2, 8)
    """
    x = frames[..., ::-1]  # the network was trained on blue, green, red
    if jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.float32) / 255
    for layer, pool in zip(params["convs"], _POOLS, strict=True):
        x = lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + layer["bias"])
        window = (1, pool, pool, 1)
        x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
    return x.reshape(len(x), -1)


def lstm_step(params: Params, hidden: Hidden, x: jax.Array) -> Hidden:
    """One step of an LSTM with Keras's gates, in the order i, f, c, o.

    `c' = s(f) c + s(i) tanh(g)`, `h' = s(o) tanh(c')` with `[i f g o] = x W + h U + b`
    (Hochreiter and Schmidhuber 1997, with Gers's forget gate).

    Args:
      params: `kernel` W `(inputs, 4 * units)`, `recurrent` U and `bias` b.
      hidden: What it remembers.
      x: `(S, inputs)`.

    >>> params = {"kernel": jnp.ones((2, 4)), "recurrent": jnp.ones((1, 4)), "bias": jnp.zeros(4)}
    >>> zero = jnp.zeros((1, 1))
    >>> lstm_step(params, Hidden(zero, zero), jnp.zeros((1, 2))).output.tolist()
    [[0.0]]
    """
    gates = x @ params["kernel"] + hidden.output @ params["recurrent"] + params["bias"]
    i, f, g, o = jnp.split(gates, 4, -1)
    cell = jax.nn.sigmoid(f) * hidden.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return Hidden(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


def lrcn_step(params: Params, hidden: Hidden, frames: Frames) -> tuple[Hidden, jax.Array]:
    """One more frame: what is remembered, and the logits after it.

    Args:
      params: As `dynvid.weights.lrcn.load_lrcn` reads them.
      hidden: What is remembered; `lrcn_start` before the first frame.
      frames: As of `encode_frame`.

    Returns:
      `(hidden, logits)`, logits `(S, classes)`.

    >>> conv = lambda i, o: {"kernel": jnp.zeros((3, 3, i, o)), "bias": jnp.zeros(o)}
    >>> params = {
    ...     "convs": [conv(3, 4), conv(4, 4), conv(4, 4), conv(4, 8)],
    ...     "lstm": {"kernel": jnp.ones((8, 4)), "recurrent": jnp.ones((1, 4)),
    ...              "bias": jnp.zeros(4)},
    ...     "dense": {"kernel": jnp.ones((1, 7)), "bias": jnp.zeros(7)},
    ... }
    >>> lrcn_step(params, lrcn_start(params, 2), jnp.zeros((2, 64, 64, 3)))[1].shape
    (2, 7)
    """
    hidden = lstm_step(params["lstm"], hidden, encode_frame(params, frames))
    return hidden, hidden.output @ params["dense"]["kernel"] + params["dense"]["bias"]


def lrcn_start(params: Params, streams: int) -> Hidden:
    """What is remembered before the first frame: zeros.

    >>> lrcn_start({"lstm": {"recurrent": jnp.ones((1, 4))}}, 3).cell.shape
    (3, 1)
    """
    zero = jnp.zeros((streams, params["lstm"]["recurrent"].shape[0]), jnp.float32)
    return Hidden(zero, zero)
