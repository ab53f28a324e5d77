"""What confidence is enough: thresholds from a calibration set, for a budget or an accuracy."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

NEVER = 1e8
"""The threshold of a checkpoint at which nothing is to stop, as in MSDNet's code."""

Method = Literal["budgeted", "shared"]


class Schedule(NamedTuple):
    """Thresholds and what they cost on the set that they come from.

    Attributes:
      thresholds: `(checkpoints,)` float64; the last is minus infinity.
      macs: The mean multiply-accumulates a video.
      accuracy: The share of videos classified rightly, in [0, 1].
      shares: `(checkpoints,)`, which share of the videos stops at each.
      accuracies: `(checkpoints,)`, of those that stop there; NaN where none does.
    """

    thresholds: np.ndarray
    macs: float
    accuracy: float
    shares: np.ndarray
    accuracies: np.ndarray


def exit_shares(q: float, count: int) -> np.ndarray:
    """Which share of the videos is to stop at each checkpoint.

    `p_k = q^k / sum_j q^j` for k = 1 .. count (MSDNet, section 4, "budgeted batch
    classification").

    Args:
      q: Below 1 for early exits, above for late ones.
      count: How many checkpoints.

    >>> exit_shares(0.5, 2).round(3).tolist()
    [0.667, 0.333]
    """
    powers = q ** np.arange(1, count + 1, dtype=np.float64)
    return powers / powers.sum()


def budgeted_thresholds(confidences: ArrayLike, shares: ArrayLike) -> np.ndarray:
    """Thresholds at which the wanted share of a calibration set stops at each checkpoint.

    MSDNet's procedure, as its code has it: checkpoints in their order, each gets as threshold the
    confidence of the floor(N p_k)-th most confident of the videos that have not stopped before it.
    Where there are fewer, or none is wanted, nothing stops (`NEVER`).

    Args:
      confidences: `(N, checkpoints)`.
      shares: p, `(checkpoints,)`.

    Returns:
      `(checkpoints,)`; the last is minus infinity.

    Raises:
      ValueError: They differ in length.

    >>> budgeted_thresholds([[0.9, 1], [0.5, 1], [0.7, 1]], [0.67, 0.33]).tolist()
    [0.7, -inf]
    """
    confidences, shares = _checked(confidences, shares, "shares")
    count = len(confidences)
    undecided = np.ones(count, bool)
    found = np.full(confidences.shape[1], NEVER)
    for k, share in enumerate(shares[:-1]):
        wanted = math.floor(count * share)
        left = np.sort(confidences[undecided, k])[::-1]
        if 1 <= wanted <= len(left):
            found[k] = left[wanted - 1]
        undecided &= ~(confidences[:, k] >= found[k])
    found[-1] = -np.inf
    return found


def shared_thresholds(threshold: float, count: int) -> np.ndarray:
    """One threshold for all checkpoints but the last, where everything stops.

    >>> shared_thresholds(0.9, 3).tolist()
    [0.9, 0.9, -inf]
    """
    return np.array([threshold] * (count - 1) + [-np.inf])


def expected(
    confidences: ArrayLike, correct: ArrayLike, macs: Sequence[float], thresholds: ArrayLike
) -> Schedule:
    """What thresholds cost and reach on a calibration set.

    `sum_k P(stop at k) * MACs up to k`, and as much for the accuracy.

    Args:
      confidences: `(N, checkpoints)`.
      correct: Whether each checkpoint is right, `bool(N, checkpoints)`.
      macs: Up to each checkpoint, `(checkpoints,)`, such as `route_macs` counts.
      thresholds: `(checkpoints,)`; the last is not asked.

    Returns:
      The thresholds with what they lead to.

    Raises:
      ValueError: The arguments differ in length, or there are no videos.

    Exact on that set; on others an estimate.

    >>> found = expected([[0.9, 1], [0.5, 1]], [[True, True], [False, True]], (1, 4), (0.8, 0))
    >>> found.macs, found.accuracy
    (2.5, 1.0)
    """
    confidences, thresholds = _checked(confidences, thresholds, "thresholds")
    confidences, costs = _checked(confidences, macs, "macs")
    correct = np.asarray(correct, bool)
    if correct.shape != confidences.shape:
        raise ValueError(f"correct must be {confidences.shape} as confidences; got {correct.shape}")
    # As the system compares them: in float32, so that none changes sides.
    enough = confidences.astype(np.float32) >= thresholds.astype(np.float32)
    enough[:, -1] = True
    exits = enough.argmax(1)
    right = correct[np.arange(len(exits)), exits]
    counts = np.bincount(exits, minlength=len(costs))
    hits = np.bincount(exits, weights=right, minlength=len(costs))
    with np.errstate(invalid="ignore"):
        accuracies = hits / counts
    limits = thresholds.copy()
    limits[-1] = -np.inf
    shares = counts / len(exits)
    return Schedule(limits, float(shares @ costs), float(right.mean()), shares, accuracies)


def sweep(
    confidences: ArrayLike,
    correct: ArrayLike,
    macs: Sequence[float],
    *,
    method: Method = "budgeted",
) -> list[Schedule]:
    """All schedules that a method offers, from cheap to dear.

    "budgeted": q = p / 20 for p = 1 .. 39 (MSDNet's code). "shared": every confidence at which
    something changes, up to 200 of them, evenly spaced in rank.

    Args:
      confidences: `(N, checkpoints)`.
      correct: `bool(N, checkpoints)`.
      macs: Up to each checkpoint.
      method: One of the two.

    Returns:
      The schedules, by their expected cost.

    Raises:
      ValueError: The method is neither; see `expected` too.

    >>> conf, right = [[0.9, 1.0], [0.5, 1.0]], [[True, True], [False, True]]
    >>> [s.macs for s in sweep(conf, right, (1, 4), method="shared")]
    [1.0, 2.5, 4.0]
    """
    found = [
        expected(confidences, correct, macs, thresholds)
        for thresholds in _candidates(np.asarray(confidences, float), method)
    ]
    return sorted(found, key=lambda schedule: schedule.macs)


def for_budget(
    confidences: ArrayLike,
    correct: ArrayLike,
    macs: Sequence[float],
    *,
    budget: float,
    method: Method = "budgeted",
) -> Schedule:
    """The most accurate schedule of a method whose mean cost on the set is within a budget.

    Args:
      confidences: `(N, checkpoints)`.
      correct: `bool(N, checkpoints)`.
      macs: Up to each checkpoint.
      budget: Multiply-accumulates a video, on average.
      method: See `sweep`.

    Returns:
      The schedule; the cheaper one of those equally accurate.

    Raises:
      ValueError: None is that cheap.

    >>> conf, right = [[0.9, 1.0], [0.5, 1.0]], [[True, True], [False, True]]
    >>> for_budget(conf, right, (1, 4), budget=3, method="shared").thresholds.tolist()
    [0.9, -inf]
    """
    every = sweep(confidences, correct, macs, method=method)
    within = [schedule for schedule in every if schedule.macs <= budget]
    if not within:
        raise ValueError(
            f"budget must be at least {every[0].macs:.6g} MACs, the cheapest there is; got "
            f"{budget:.6g}"
        )
    return max(within, key=lambda schedule: (schedule.accuracy, -schedule.macs))


def for_accuracy(
    confidences: ArrayLike,
    correct: ArrayLike,
    macs: Sequence[float],
    *,
    accuracy: float,
    method: Method = "budgeted",
) -> Schedule:
    """The cheapest schedule of a method that is accurate enough on the set.

    Args:
      confidences: `(N, checkpoints)`.
      correct: `bool(N, checkpoints)`.
      macs: Up to each checkpoint.
      accuracy: The share of videos to classify rightly, in [0, 1].
      method: See `sweep`.

    Returns:
      The schedule.

    Raises:
      ValueError: None is that accurate.

    >>> conf, right = [[0.9, 1.0], [0.5, 1.0]], [[True, True], [False, True]]
    >>> for_accuracy(conf, right, (1, 4), accuracy=1.0, method="shared").macs
    2.5
    """
    every = sweep(confidences, correct, macs, method=method)
    enough = [schedule for schedule in every if schedule.accuracy >= accuracy]
    if not enough:
        best = max(schedule.accuracy for schedule in every)
        raise ValueError(f"accuracy must be at most {best:.4g}, the best there is; got {accuracy}")
    return enough[0]


def _candidates(confidences: np.ndarray, method: Method) -> Iterator[np.ndarray]:
    count = confidences.shape[1]
    if method == "budgeted":
        for p in range(1, 40):
            yield budgeted_thresholds(confidences, exit_shares(p / 20, count))
    elif method == "shared":
        values = np.unique(confidences[:, :-1])
        most = 200
        if len(values) > most:
            values = values[np.linspace(0, len(values) - 1, most).round().astype(int)]
        for value in values:
            yield shared_thresholds(float(value), count)
        yield shared_thresholds(np.inf, count)
    else:
        raise ValueError(f"method must be 'budgeted' or 'shared'; got {method!r}")


def _checked(confidences: ArrayLike, others: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    confidences, others = np.asarray(confidences, float), np.asarray(others, float)
    if confidences.ndim != 2 or not confidences.size:
        raise ValueError(f"confidences must be (N, checkpoints); got shape {confidences.shape}")
    if others.shape != (confidences.shape[1],):
        raise ValueError(
            f"{name} must be {confidences.shape[1]} numbers, one a checkpoint; got shape "
            f"{others.shape}"
        )
    return confidences, others
