"""The weights of an LRCN that Keras has saved."""

import os

import jax.numpy as jnp

from dynvid.types import Params
from dynvid.weights.hdf5 import load_hdf5


def load_lrcn(path: str | os.PathLike[str]) -> Params:
    """Reads a network of `dynvid.models.lrcn` from a Keras .h5 file; nothing in it is run.

    Layers are told by the shapes of their weights: convolutions in the order of their channels'
    chain, the LSTM, the classifier.

    Args:
      path: The file.

    Returns:
      `convs` (`kernel` HWIO, `bias`), `lstm` (`kernel`, `recurrent`, `bias`) and `dense`, float32.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It cannot be read, or holds another network.

    >>> load_lrcn("LRCN_model.h5")["dense"]["bias"].shape  # doctest: +SKIP
    (7,)
    """
    arrays = {
        name.removeprefix("model_weights/"): array
        for name, array in load_hdf5(path).items()
        if name.startswith("model_weights/")
    }
    layers: dict[str, dict[str, jnp.ndarray]] = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition("/")
        layers.setdefault(layer, {})[kind.removesuffix(":0")] = jnp.asarray(array, jnp.float32)
    convs = {
        int(x["kernel"].shape[2]): x
        for x in layers.values()
        if "kernel" in x and x["kernel"].ndim == 4 and x["kernel"].shape[2] != x["kernel"].shape[3]
    }
    square = [
        x for x in layers.values()
        if "kernel" in x and x["kernel"].ndim == 4 and x["kernel"].shape[2] == x["kernel"].shape[3]
    ]  # fmt: skip
    lstm = [x for x in layers.values() if "recurrent_kernel" in x]
    dense = [
        x for x in layers.values()
        if "recurrent_kernel" not in x and "kernel" in x and x["kernel"].ndim == 2
    ]  # fmt: skip
    chain, depth = [], 3
    while depth in convs:
        chain.append(convs.pop(depth))
        depth = int(chain[-1]["kernel"].shape[3])
    chain += square
    if len(chain) != 4 or convs or len(lstm) != 1 or len(dense) != 1:
        raise ValueError(
            f"{path}: must hold four convolutions, an LSTM and a classifier; got "
            f"{', '.join(sorted(layers)) or 'no weights of a model'}"
        )
    return {
        "convs": [{"kernel": x["kernel"], "bias": x["bias"]} for x in chain],
        "lstm": {
            "kernel": lstm[0]["kernel"],
            "recurrent": lstm[0]["recurrent_kernel"],
            "bias": lstm[0]["bias"],
        },
        "dense": {"kernel": dense[0]["kernel"], "bias": dense[0]["bias"]},
    }
