"""Checkpoints: what a training has to keep so that it can be killed at any moment."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dynvid.training._extra import require


class Checkpoints:
    """A folder with the last few states of a training, written by orbax.

    A checkpoint is there whole or not at all: it is written under another name, which it loses
    when all of it is on the disk. What a killed process left half written is never read.

    Args:
      folder: Where they lie; made where it is missing.
      keep: How many of the latest stay.

    Raises:
      ImportError: Where orbax-checkpoint is missing (`pip install "dynvid[train]"`).
      ValueError: For a `keep` below one.
      NotADirectoryError: Where `folder` is a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder, keep=2)
    ...     for step in (10, 20, 30):
    ...         checkpoints.save(step, {"weight": np.float32(step)})
    ...     checkpoints.steps(), checkpoints.restore({"weight": np.float32(0)})
    ([20, 30], {'weight': array(30., dtype=float32)})
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep must be at least 1; got {keep}")
        orbax = require("orbax.checkpoint")
        self.folder = pathlib.Path(folder).resolve()
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder}: must be a folder; got a file")
        self._args = orbax.args
        self._manager = orbax.CheckpointManager(
            self.folder,
            item_handlers=orbax.StandardCheckpointHandler(),
            options=orbax.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False
            ),
        )

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint, and deletes the oldest where there are more than enough.

        Args:
          step: How many steps were made; more than at any checkpoint in the folder.
          state: Any pytree of arrays.

        Raises:
          ValueError: Where there is a checkpoint of this step or a later one.
        """
        done = self.steps()
        if done and step <= done[-1]:
            raise ValueError(f"step must be above {done[-1]}, which {self.folder} has; got {step}")
        self._manager.save(step, args=self._args.StandardSave(state))

    def restore(self, like: Any) -> Any:
        """Reads the latest checkpoint.

        Args:
          like: A state of the same structure, shapes and dtypes; its values do not matter.

        Returns:
          The state as it was saved, bit for bit, on the devices that `like` is on.

        Raises:
          FileNotFoundError: Where there is no checkpoint.
          ValueError: For a checkpoint of another structure, or one that cannot be read.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"{self.folder}: no checkpoint in it")
        place = self.folder / str(steps[-1])

        def read[T](what: Callable[[], T]) -> T:
            try:
                return what()
            except Exception as error:  # orbax lets through whatever its file formats raise
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise ValueError(f"{place}: cannot read the checkpoint ({reason})") from error

        stored = read(lambda: self._manager.item_metadata(steps[-1]))
        if stored is None:
            raise ValueError(f"{place}: cannot read the checkpoint (its description is missing)")
        there, here = _described(stored.tree), _described(like)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise ValueError(
                    f"{place}: must be a checkpoint of the same training; got {name} "
                    f"{there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
                )
        shapes = jax.tree.map(_shape, like)
        return read(
            lambda: self._manager.restore(steps[-1], args=self._args.StandardRestore(shapes))
        )


def _dtype(leaf: Any) -> np.dtype:
    return np.dtype(leaf.dtype if hasattr(leaf, "dtype") else jax.dtypes.result_type(leaf))


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        np.shape(leaf), _dtype(leaf), sharding=getattr(leaf, "sharding", None)
    )


def _described(tree: Any) -> dict[str, str]:
    """`dtype[shape]` of each leaf by its path; named tuples and mappings read alike."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        keys = (getattr(k, "name", getattr(k, "key", getattr(k, "idx", k))) for k in path)
        found["/".join(map(str, keys))] = f"{_dtype(leaf)}{list(np.shape(leaf))}"
    return found
