"""Reading published ESPNet checkpoints."""

import os
from collections.abc import Callable, Sequence

import jax

from dynvid.models.espnet import CAMVID_DEVIATION, CAMVID_MEAN, espnet, fold_espnet
from dynvid.types import Frames, Params
from dynvid.weights.pytorch import load_pytorch


def load_espnet(
    path: str | os.PathLike[str],
    *,
    mean: Sequence[float] = CAMVID_MEAN,
    deviation: Sequence[float] = CAMVID_DEVIATION,
) -> tuple[Callable[[Params, Frames], jax.Array], Params]:
    """The network of an ESPNet checkpoint with a decoder (any q and classes) and its weights.

    Args:
      path: The `.pth` file; nothing pickled in it is run.
      mean: Of the training images, blue, green and red, of 0..255: it is not in the checkpoint.
      deviation: Their standard deviation, likewise.

    Returns:
      `(fn, params)`: `fn` is `dynvid.models.espnet.espnet`.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is not a complete checkpoint, or of another network.

    >>> fn, params = load_espnet("espnet_p_2_q_8_camvid.pth")  # doctest: +SKIP
    >>> labels = jax.jit(fn)(params, frames).argmax(-1)  # doctest: +SKIP
    """
    tensors = load_pytorch(path)
    try:
        return espnet, fold_espnet(tensors, mean=mean, deviation=deviation)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
