"""Pairs of frames of ImageNet VID and images of DET, as flow-guided detection is trained on them.

Zhu et al., Towards High Performance Video Object Detection, 2018 ("Zhu" below), section 5, and the
code of Deep Feature Flow (2017, "DFF").
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from dynvid.data.imagenet_vid import Example, ImageNetDET, ImageNetVID
from dynvid.models.flow_guided import RGB_MEAN
from dynvid.training._extra import require
from dynvid.training.flow_detection import DetectionPairs, DetectionTruth


class ImageNetPairs:
    """Batches of pairs in the order of the training: a random-access source, as grain has it.

    Every second pair is of VID, a frame drawn from a snippet drawn, its key frame up to
    `longest_gap` frames before it (Zhu, 3.4; where there is none so early, the first); the others
    are images of DET, twice the same with a gap of 0. Half of them are mirrored. Pictures are
    resized to a short side of `short` pixels, or to a long side of `long` where that is less (DFF),
    and padded with the mean colour at the right and below. A batch has sides of `short` and `long`
    rounded up to `multiple`, upright where all of its pictures are, square where only some are: so
    there are three shapes at most.

    Args:
      videos: The snippets.
      images: The still images; None takes VID alone.
      steps: How many batches there are.
      batch: Pairs in one.
      short: Pixels, 600 in the papers.
      long: Pixels, 1000 in the papers.
      multiple: What sides are rounded up to, the stride of the features.
      longest_gap: Frames; 9 is that of DFF's code.
      slots: Objects of a picture; those beyond, the smallest, are left out.
      seed: Of all draws: a batch is the same whenever it is asked for.

    Raises:
      ValueError: A number is out of its range, or there are no videos or images. When a batch is
        asked for: a file cannot be read; the message names it.
    """

    def __init__(
        self,
        videos: ImageNetVID,
        images: ImageNetDET | None,
        *,
        steps: int,
        batch: int = 1,
        short: int = 600,
        long: int = 1000,
        multiple: int = 16,
        longest_gap: int = 9,
        slots: int = 40,
        seed: int = 0,
    ):
        least = {"steps": 0, "batch": 1, "short": 1, "long": short, "multiple": 1, "slots": 1}
        least |= {"longest_gap": 0, "seed": 0}
        given = dict(
            steps=steps, batch=batch, short=short, long=long, multiple=multiple, slots=slots,
            longest_gap=longest_gap, seed=seed,
        )  # fmt: skip
        for name, value in given.items():
            if value < least[name]:
                raise ValueError(f"{name} must be at least {least[name]}; got {value}")
        if not len(videos) or (images is not None and not len(images)):
            raise ValueError("videos and images must not be empty; got none of one of them")
        self._videos, self._images, self._steps = videos, images, steps
        self._batch, self._short, self._long, self._multiple = batch, short, long, multiple
        self._longest_gap, self._slots, self._seed = longest_gap, slots, seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> DetectionPairs:
        if not 0 <= step < self._steps:
            raise IndexError(f"step must be from 0 to below {self._steps}; got {step}")
        pairs = [self._pair(step * self._batch + i) for i in range(self._batch)]
        pictures = [example.frame for key, current, _ in pairs for example in (key, current)]
        heights, widths = ([x.shape[axis] for x in pictures] for axis in (0, 1))
        short, long = (
            -(-side // self._multiple) * self._multiple for side in (self._short, self._long)
        )
        upright, lying = max(heights) > short, max(widths) > short
        size = (long if upright else short, long if lying or not upright else short)
        truths = zip(*(self._slotted(current) for _, current, _ in pairs), strict=True)
        truth: list[Any] = [np.stack(part) for part in truths]
        # Arrays of NumPy: they go to the device when they are used.
        key: Any = np.stack([_padded(key.frame, size) for key, _, _ in pairs])
        current: Any = np.stack([_padded(current.frame, size) for _, current, _ in pairs])
        gap: Any = np.array([gap for _, _, gap in pairs], np.int32)
        return DetectionPairs(key, current, DetectionTruth(*truth), gap)

    def _pair(self, index: int) -> tuple[Example, Example, int]:
        """Key frame, current frame and gap of a pair."""
        rng = np.random.default_rng((self._seed, index))
        mirrored = bool(rng.integers(2))
        if self._images is not None and index % 2:
            image = self._ready(self._images[int(rng.integers(len(self._images)))], mirrored)
            return image, image, 0
        snippet = int(rng.integers(len(self._videos)))
        at = int(rng.integers(len(self._videos.snippets[snippet].frames)))
        gap = min(at, int(rng.integers(self._longest_gap + 1)))
        key, current = (
            self._ready(self._videos.frame(snippet, i), mirrored) for i in (at - gap, at)
        )
        return key, current, gap

    def _ready(self, example: Example, mirrored: bool) -> Example:
        """A picture and its boxes resized, and mirrored or not."""
        height, width = example.frame.shape[:2]
        scale = min(self._short / min(height, width), self._long / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        frame = np.asarray(Image.fromarray(example.frame).resize(size, Image.Resampling.BILINEAR))
        boxes = example.annotation.boxes * (np.array(size * 2) / np.array([width, height] * 2))
        if mirrored:
            frame = frame[:, ::-1]
            boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [size[0], 0, size[0], 0]
        annotation = example.annotation._replace(size=size[::-1], boxes=boxes.astype(np.float32))
        return example._replace(frame=frame, annotation=annotation)

    def _slotted(self, example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, classes and which slots hold an object, the largest first."""
        boxes, classes = example.annotation.boxes, example.annotation.classes
        order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], -1), kind="stable")[: self._slots]
        empty = self._slots - len(order)
        return (
            np.pad(boxes[order], ((0, empty), (0, 0))),
            np.pad(classes[order], (0, empty)),
            np.arange(self._slots) < len(order),
        )


def _padded(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = np.round(RGB_MEAN)
    canvas[: frame.shape[0], : frame.shape[1]] = frame
    return canvas


def read_ahead(
    source: Any, *, threads: int = 8, ahead: int = 16
) -> Callable[[int], DetectionPairs]:
    """Has batches of a source read by threads before they are asked for.

    Args:
      source: `ImageNetPairs`, or any random-access source of grain.
      threads: How many read.
      ahead: How many batches wait at most.

    Returns:
      `batch_at(step)` for `dynvid.training.loop.fit`: of steps that follow one another, from any.

    Raises:
      ImportError: Where grain is missing (`pip install "dynvid[train]"`).
      ValueError: When a batch is asked for: another than the one after the last.

    >>> batch_at = read_ahead([10, 11, 12, 13], threads=1, ahead=1)
    >>> batch_at(2), batch_at(3)
    (12, 13)
    """
    grain = require("grain")
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    batches: Any = None
    following = 0

    def batch_at(step: int) -> DetectionPairs:
        nonlocal batches, following
        if batches is None:
            batches = iter(grain.MapDataset.source(source)[step:].to_iter_dataset(options))
            following = step
        if step != following:
            raise ValueError(f"step must be {following}, the next; got {step}")
        following += 1
        return next(batches)

    return batch_at
