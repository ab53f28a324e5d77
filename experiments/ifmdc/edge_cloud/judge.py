"""What the cloud's answers are worth, beside those of the same detector in one piece."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dynvid.data.mot import parse_mot
from dynvid.metrics.average_precision import (
    average_precision,
    average_precision_by_class,
    of_class,
    pad_boxes,
)
from dynvid.metrics.pseudo_ground_truth import pseudo_ground_truth
from dynvid.ops.boxes import Detections
from dynvid.ops.letterbox import letterbox
from dynvid.video.reader import VideoSource
from experiments.ifmdc.edge_cloud.edge import Result
from experiments.ifmdc.edge_cloud.network import SplitNetwork

SURE = 0.5
"""From which score on the uncut detector's boxes stand in for boxes that nobody drew."""


def drawn_boxes(path: pathlib.Path, source: str, *, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """The persons that somebody drew in a video, in pixels of the network's input.

    Args:
      path: a MOT Challenge ground truth.
      source: the video, whose own size the boxes are drawn in.
      size: (height, width) of the network's input, which frames are letterboxed into.

    Returns:
      `{frame, from 0: (n, 4)}`, `(x0, y0, x1, y1)`.

    Raises:
      ValueError: the ground truth or the video cannot be read.
      OSError: likewise.
    """
    native = VideoSource(source, max_frames=1).size
    place = letterbox(native, size, placement="centre")
    scale = np.array([place.resized[1] / native[1], place.resized[0] / native[0]] * 2)
    offset = np.array([place.left, place.top] * 2)
    drawn = parse_mot(path.read_text())
    return {frame - 1: boxes * scale + offset for frame, boxes in drawn.items()}


def judge(
    network: SplitNetwork,
    frames: Iterable[np.ndarray],
    results: Sequence[Result],
    *,
    persons: dict[int, np.ndarray] | None,
) -> dict[str, Any]:
    """Average precision at IoU 0.5 (VOC, all points) of what came back, over the frames answered.

    The detector in one piece, nothing coded, sees the same frames. Frames that were dropped are not
    judged: how many there were says more.

    Args:
      network: what both sides ran.
      frames: the video once more, `uint8[H, W, 3]`.
      results: of the edge, in the video's order.
      persons: what `drawn_boxes` gives. Where None, the boxes of the detector in one piece that
        score `SURE` or more, of all classes, are what is to be found; classes are averaged.

    Returns:
      "ap50_of": what was judged; "ap50" and "ap50_uncut", in percent: of the cloud's answers and of
      the detector in one piece (None where that is itself the truth). None without any truth.

    Raises:
      ValueError: the network knows no persons.
    """
    if persons is not None and "person" not in network.class_names:
        raise ValueError("boxes of persons cannot judge a network that knows no persons")
    wanted = {result.frame for result in results}
    uncut = []
    for number, frame in enumerate(frames):
        if number > max(wanted, default=-1):
            break
        if number in wanted:
            uncut.append(network.whole(network.params, jnp.asarray(frame)[None]))
    results = results[: len(uncut)]
    figures: dict[str, Any] = {"ap50_of": None, "ap50": None, "ap50_uncut": None}
    if not results:
        return figures
    whole = Detections(*(jnp.concatenate(part) for part in zip(*uncut, strict=True)))
    answers = _answered(results)
    if persons is None:
        truth = pseudo_ground_truth(whole, score_threshold=SURE)
        by_class = average_precision_by_class(
            answers, *truth, class_count=max(1, len(network.class_names))
        )
        figures["ap50_of"] = f"all classes, boxes of the detector in one piece from {SURE:g} on"
        figures["ap50"] = _percent(jnp.nanmean(by_class.value))
        return figures
    boxes, present = pad_boxes([persons.get(r.frame, np.zeros((0, 4))) for r in results])
    person = network.class_names.index("person")
    figures["ap50_of"] = "persons, drawn boxes"
    for name, found in (("ap50", answers), ("ap50_uncut", whole)):
        figures[name] = _percent(average_precision(of_class(found, person), boxes, present).value)
    return figures


def _percent(share: Any) -> float | None:
    return 100 * float(share) if np.isfinite(share) else None


def _answered(results: Sequence[Result]) -> Detections:
    """The answers as one array, filled up to the longest."""
    boxes, valid = pad_boxes([r.answer.boxes for r in results])
    scores = np.zeros(valid.shape, np.float32)
    classes = np.full(valid.shape, -1, np.int32)
    for row, result in enumerate(results):
        count = len(result.answer.scores)
        scores[row, :count], classes[row, :count] = result.answer.scores, result.answer.classes
    return Detections(*map(jnp.asarray, (boxes, scores, classes, valid)))
