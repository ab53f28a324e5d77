"""Reading published YOLOv5 checkpoints."""

import os
from collections.abc import Callable

import jax

from dynvid.models.yolov5 import fold_yolov5, yolov5
from dynvid.types import Frames, Params
from dynvid.weights.pytorch import load_pytorch


def load_yolov5(
    path: str | os.PathLike[str],
) -> tuple[Callable[[Params, Frames], tuple[jax.Array, jax.Array, jax.Array]], Params]:
    """The network of a YOLOv5 checkpoint (version 6, any size) and its weights.

    Args:
      path: The `.pt` file; nothing pickled in it is run.

    Returns:
      `(fn, params)`: `fn` is `dynvid.models.yolov5.yolov5`; `params["anchors"]` are in pixels, as
      `decode_yolov5` takes them.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is not a complete checkpoint, or of another network.

    >>> fn, params = load_yolov5("yolov5n.pt")  # doctest: +SKIP
    >>> outputs = jax.jit(fn)(params, frames)  # doctest: +SKIP
    """
    tensors = load_pytorch(path)
    try:
        return yolov5, fold_yolov5(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
