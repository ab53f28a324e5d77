"""CamVid, drives through Cambridge with a class for every pixel (Brostow et al. 2009)."""

import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from dynvid.errors import reason
from dynvid.models import driving

CLASS_NAMES = (*driving.CLASS_NAMES, "void")
"""The name of each label in the version with 11 classes; void, the last, is not judged."""

VOID = CLASS_NAMES.index("void")
"""The label of pixels that are not judged."""


class CamVidFrame(NamedTuple):
    """A frame and its truth.

    Attributes:
      name: Of the file, without its ending.
      frame: `(H, W, 3)` uint8, RGB.
      labels: `(H, W)` uint8, index into `CLASS_NAMES`.
    """

    name: str
    frame: np.ndarray
    labels: np.ndarray


class CamVid:
    """The labelled frames of a folder of CamVid, in the version of SegNet (480 x 360, 11 classes).

    Frames lie in `{split}` and labels in `{split}annot`, PNG of one channel, under the same names.
    They come in the order of their names, which is that of the drive, and are read when asked for.

    Args:
      folder: Where both folders are.
      split: Which frames: "train", "val" or "test" in the published version.

    Attributes:
      names: Of the files, without their ending, in order.

    Raises:
      FileNotFoundError: A folder is missing.
      ValueError: There is no frame, or a frame without labels or the other way round. When a frame
        is asked for: a file cannot be read, its labels are no label map, have another size or an
        unknown class; the file is named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part, mode in (("val", "RGB"), ("valannot", "L")):
    ...         (pathlib.Path(folder) / part).mkdir()
    ...         Image.new(mode, (6, 4)).save(f"{folder}/{part}/0016E5_07959.png")
    ...     drive = CamVid(folder)
    ...     len(drive), drive[0].name, drive[0].frame.shape, CLASS_NAMES[drive[0].labels[0, 0]]
    (1, '0016E5_07959', (4, 6, 3), 'sky')
    """

    names: tuple[str, ...]

    def __init__(self, folder: str | os.PathLike[str], *, split: str = "val"):
        self._frames = pathlib.Path(folder) / split
        self._labels = pathlib.Path(folder) / f"{split}annot"
        found, labelled = (
            {path.stem for path in part.iterdir() if path.suffix == ".png"}
            for part in (self._frames, self._labels)
        )
        if alone := sorted(found ^ labelled):
            missing = self._labels if alone[0] in found else self._frames
            raise ValueError(f"{missing} must have {alone[0]}.png as its counterpart has")
        if not found:
            raise ValueError(f"{self._frames} must have frames (.png); got none")
        self.names = tuple(sorted(found))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> CamVidFrame:
        name = self.names[index]
        frame = _read(self._frames / f"{name}.png", "RGB")
        path = self._labels / f"{name}.png"
        labels = _read(path, "L")
        if labels.shape != frame.shape[:2]:
            raise ValueError(
                f"{path}: labels must have the size of the frame, {frame.shape[:2]}; got "
                f"{labels.shape}"
            )
        if labels.max() > VOID:
            raise ValueError(f"{path}: labels must be at most {VOID}; got {labels.max()}")
        return CamVidFrame(name, frame, labels)

    def __iter__(self) -> Iterator[CamVidFrame]:
        return map(self.__getitem__, range(len(self)))


def _read(path: pathlib.Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode != mode:
                raise ValueError(f"pixels must be {mode}; got {image.mode}")
            return np.asarray(image)
    # What Pillow raises on damaged files, and on some that would fill the memory.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not an image of CamVid ({reason(error)})") from error
