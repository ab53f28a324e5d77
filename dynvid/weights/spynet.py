"""Reading published SPyNet weights."""

import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynvid.models.spynet import LAYERS, LEVELS, spynet
from dynvid.types import Params
from dynvid.weights.torch7 import load_torch7


def load_spynet(
    folder: str | os.PathLike[str], *, model: str = "F"
) -> tuple[Callable[..., jax.Array], Params]:
    """SPyNet and its published weights, a Torch7 file for every tensor.

    Args:
      folder: Where `modelL{level}_{model}-{layer}-weight.t7` and `...-bias.t7` are, levels 1 to 6
        from coarse to fine, layers 1 to 5.
      model: Which of the published trainings: "F" is sintel-final.

    Returns:
      `(fn, params)`: `fn` is `dynvid.models.spynet.spynet`.

    Raises:
      FileNotFoundError: A file is missing.
      ValueError: A file is not a tensor of the right shape; it is named.

    >>> fn, params = load_spynet("weights/spynet")  # doctest: +SKIP
    >>> flow = jax.jit(fn)(params, current, key)  # doctest: +SKIP
    """
    params = []
    for level in range(1, LEVELS + 1):
        layers = []
        for layer, (inputs, outputs) in enumerate(LAYERS, 1):
            found = {}
            for part, shape in (("weight", (outputs, inputs, 7, 7)), ("bias", (outputs,))):
                path = pathlib.Path(folder) / f"modelL{level}_{model}-{layer}-{part}.t7"
                found[part] = load_torch7(path)
                if found[part].shape != shape:
                    raise ValueError(
                        f"{path}: {part} must have shape {shape}; got {found[part].shape}"
                    )
            kernel = found["weight"].transpose(2, 3, 1, 0)
            layers.append(
                {
                    "kernel": jnp.asarray(kernel, jnp.float32),
                    "bias": jnp.asarray(found["bias"], jnp.float32),
                }
            )
        params.append(layers)
    return spynet, params
