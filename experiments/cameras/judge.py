"""What is said of a run: agreement with dense, what was missed, what should not be there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.metrics.average_precision import (
    average_precision,
    detection_agreement,
    of_class,
    pad_boxes,
)
from dynvid.ops.boxes import Detections, intersection_over_union

SCORE = 0.3
"""The least score of a detection that is compared, as in `dynvid run`."""

SURE = 0.45
"""From this score on a detection is sure, and an error where the other side has none there."""

WINDOW = 100
"""Frames of a window."""

LEAST = 0.01
"""The least score of a detection that is kept, for average precision."""

_SLOTS = 50  # detections of a frame that are compared; the sure ones of all frames fit


class Agreement(NamedTuple):
    """How far detections agree with dense ones on the same frames.

    Attributes:
      f1: Of all frames together: twice the pairs over the detections of both sides.
      worst_window: The least F1 of `WINDOW` frames that follow one another.
      sure: How many sure detections dense has.
      misses: Those of which the other side has nothing, as a share.
      ghosts: Sure detections of which dense has nothing, as a share of dense's sure ones.
      oldest_ghost: For how many frames a ghost has outlived the last dense detection at its place,
        at most; 0 where there is none that followed something real.
      old_ghosts: Ghosts that did so by more than 9 frames.
    """

    f1: float
    worst_window: float
    sure: int
    misses: float
    ghosts: float
    oldest_ghost: int
    old_ghosts: int


def join(parts: list[Detections]) -> Detections:
    """The detections of single frames, `(K, ...)`, as one `(frames, K, ...)`."""
    return Detections(*(np.stack(x) for x in zip(*parts, strict=True)))


def at_least(detections: Detections, score: float) -> Detections:
    """Those of a score, in as many slots as matter: they are sorted by it."""
    few = Detections(*(x[:, :_SLOTS] for x in detections))
    return few._replace(valid=few.valid & (few.scores >= score))


def agree(dense: Detections, found: Detections, *, start: int = 1) -> Agreement:
    """Compares detections frame by frame.

    Args:
      dense: `(frames, K)`, best first, down to a score of `SCORE`.
      found: Likewise.
      start: The first frame that counts; frame 0 both compute alike.
    """
    dense, found = (Detections(*(np.asarray(x)[start:] for x in side)) for side in (dense, found))
    pair = [at_least(side, SCORE) for side in (dense, found)]
    both = np.asarray(pair[0].valid.sum(1) + pair[1].valid.sum(1), float)
    matched = np.asarray(detection_agreement(*map(_on_device, pair)), float) * both
    misses = _missing(dense, found)
    ghosts = _missing(found, dense)
    ages = _ages(dense, found, ghosts)
    sure = int(at_least(dense, SURE).valid.sum())
    return Agreement(
        f1=_ratio(matched, both),
        worst_window=min(_ratio(matched[w], both[w]) for w in windows(len(both))),
        sure=sure,
        misses=float(misses.sum() / max(sure, 1)),
        ghosts=float(ghosts.sum() / max(sure, 1)),
        oldest_ghost=max(ages, default=0),
        old_ghosts=sum(age > 9 for age in ages),
    )


def windows(count: int) -> list[slice]:
    """Windows of `WINDOW` frames; what is left over belongs to the last one if it is short.

    >>> windows(249)
    [slice(0, 100, None), slice(100, 249, None)]
    """
    starts = range(0, max(count - WINDOW // 2, 1), WINDOW)
    ends = [*starts[1:], count]
    return [slice(a, b) for a, b in zip(starts, ends, strict=True)]


def _ratio(matched: np.ndarray, both: np.ndarray) -> float:
    return float(matched.sum() / both.sum()) if both.sum() else 1.0


def _on_device(detections: Detections) -> Detections:
    return Detections(*map(jnp.asarray, detections))


@jax.jit
def _overlap(boxes: jax.Array, others: jax.Array) -> jax.Array:
    return intersection_over_union(boxes, others)


def _missing(there: Detections, elsewhere: Detections) -> np.ndarray:
    """Which sure detections the other side has not, of whatever class: `bool[frames, n]`."""
    sure, any_ = at_least(there, SURE), at_least(elsewhere, SCORE)
    overlap = np.asarray(_overlap(sure.boxes, any_.boxes))
    seen = np.any((overlap >= 0.5) & any_.valid[:, None, :], -1)
    return sure.valid & ~seen


def _ages(dense: Detections, found: Detections, ghosts: np.ndarray) -> list[int]:
    """For each ghost, the frames since dense last had something at its place, if ever."""
    had = at_least(dense, SCORE)
    ages = []
    for t, slot in zip(*np.nonzero(ghosts), strict=True):
        box = found.boxes[t, slot]
        overlap = np.asarray(_overlap(had.boxes, jnp.asarray(box)[None, None]))[:, :, 0]
        times = np.nonzero(np.any((overlap >= 0.5) & had.valid, 1)[:t])[0]
        if len(times):
            ages.append(int(t - times[-1]))
    return ages


def person_ap50(found: Detections, truth: list[np.ndarray], person: int) -> float:
    """Person AP50 in percent, of detections in pixels of the video."""
    boxes, present = pad_boxes(truth[: len(found.scores)])
    persons = of_class(_on_device(found), person)
    return 100 * float(average_precision(persons, boxes, present).value)


def as_figures(agreement: Agreement) -> dict[str, Any]:
    """For a file of figures."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in agreement._asdict().items()}
