"""What is measured on every frame, and what is kept of it: no more in a run without end."""

import collections
import math
from typing import Any, NamedTuple

import numpy as np

POINTS = 4096
"""The most points of a series, and the most times that a median is taken of."""

WINDOW = 5
"""Audits in a row whose agreement is judged together."""


class Measures(NamedTuple):
    """What was measured on one frame; NaN where there is nothing to measure.

    Attributes:
      mac_fraction: Multiply-accumulates executed, as a fraction of dense; 1 for the first frame.
      similarity: Share of pixels that did not change, or of what else a system counts as changed
        (DVSNet: regions); NaN for the first frame.
      seconds: Time of the step; NaN for the first frame, which is computed densely.
      dense_seconds: Time of the dense network on the same frame, where it is compared.
      difference: The largest absolute difference between the raw outputs of the step and of the
        dense network on `state.reference`, where it is compared.
      magnitude: The largest absolute value of those dense outputs, to judge the difference by.
      agreement: How far the step's results agree with the dense ones, where it is compared.
      segmented: Share of the frame's regions that were segmented anew, where it has regions.
      score: Mean of what that was decided by, in the unit of the system's policy.
      audit: How far the step's results agreed with dense ones in an audit; NaN where there was
        none.
      audit_weight: How much there was to agree on in it.
      factor: What the settings are multiplied by from the next step on, where they are audited.
    """

    mac_fraction: float
    similarity: float
    seconds: float
    dense_seconds: float
    difference: float
    magnitude: float
    agreement: float
    segmented: float = math.nan
    score: float = math.nan
    audit: float = math.nan
    audit_weight: float = math.nan
    factor: float = math.nan


class Series:
    """A series of bounded length: halved whenever it is full, by taking the mean of every two.

    Args:
      points: The most it holds, an even number.

    Attributes:
      frames_per_point: How many values one point is the mean of.

    >>> series = Series(points=4)
    >>> for value in (1.0, 2.0, 3.0, 4.0, 6.0):
    ...     series.add(value)
    >>> series.points, series.frames_per_point
    ([1.5, 3.5, 6.0], 2)
    """

    def __init__(self, *, points: int = POINTS):
        self._most = points
        self._sums: list[float] = []
        self._counts: list[int] = []
        self._open = 0  # values that went into the last point, those left out among them
        self.frames_per_point = 1

    def add(self, value: float) -> None:
        """Appends a value; NaN counts as a frame, but not for the mean."""
        if not self._open:
            if len(self._sums) == self._most:
                self._halve()
            self._sums.append(0.0)
            self._counts.append(0)
        if not math.isnan(value):
            self._sums[-1] += value
            self._counts[-1] += 1
        self._open = (self._open + 1) % self.frames_per_point

    def _halve(self) -> None:
        self._sums = [sum(self._sums[i : i + 2]) for i in range(0, self._most, 2)]
        self._counts = [sum(self._counts[i : i + 2]) for i in range(0, self._most, 2)]
        self.frames_per_point *= 2

    @property
    def points(self) -> list[float]:
        """The means so far; NaN where there was no value."""
        pairs = zip(self._sums, self._counts, strict=True)
        return [total / count if count else math.nan for total, count in pairs]


class Sample:
    """Values to take a median of: all of them, or as many of them drawn at random.

    Exact up to `POINTS` values. Beyond, each value so far is as likely as any other to be among
    them (Vitter, Random Sampling with a Reservoir, 1985, algorithm R): the median is that of a
    value whose rank is off by less than 1.6% of the values, in 95 of 100 runs.

    >>> sample = Sample()
    >>> for value in range(5):
    ...     sample.add(value)
    >>> sample.median
    2.0
    """

    def __init__(self):
        self._values: list[float] = []
        self._count = 0
        self._generator = np.random.default_rng(0)

    def add(self, value: float) -> None:
        """Takes a value into account; NaN is none."""
        if math.isnan(value):
            return
        self._count += 1
        if len(self._values) < POINTS:
            self._values.append(value)
        elif (place := int(self._generator.integers(self._count))) < POINTS:
            self._values[place] = value

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self._values)

    @property
    def median(self) -> float:
        """NaN where there is no value."""
        return float(np.median(self._values)) if self._values else math.nan


class Audits:
    """What audits say of a run, in memory that does not grow with its length.

    >>> audits = Audits()
    >>> for score, weight in ((1.0, 2.0), (math.nan, math.nan), (0.5, 6.0), (0.0, 0.0)):
    ...     audits.add(Measures(0.3, *[math.nan] * 6, audit=score, audit_weight=weight))
    >>> audits.summary()["agreement"], audits.summary()["audits"]
    (0.625, 3)
    """

    def __init__(self):
        self._count = self._frames = 0
        self._matched = self._mass = 0.0
        self._window: collections.deque[tuple[float, float]] = collections.deque(maxlen=WINDOW)
        self._worst = math.inf
        self._factors = (math.inf, -math.inf, math.nan)  # the least, the greatest, the last
        self._seconds, self._others = Sample(), Sample()

    def add(self, measures: Measures) -> None:
        """Takes the next frame after the first into account."""
        self._frames += 1
        if not math.isnan(factor := measures.factor):
            low, high, _ = self._factors
            self._factors = (min(low, factor), max(high, factor), factor)
        if math.isnan(measures.audit):
            self._others.add(measures.seconds)
            return
        self._count += 1
        self._seconds.add(measures.seconds)
        if measures.audit_weight > 0:
            matched = measures.audit * measures.audit_weight
            self._matched, self._mass = self._matched + matched, self._mass + measures.audit_weight
            self._window.append((matched, measures.audit_weight))
            if len(self._window) == WINDOW:
                self._worst = min(self._worst, self._of_window)

    @property
    def _of_window(self) -> float:
        matched, mass = map(sum, zip(*self._window, strict=True))
        return matched / mass

    def summary(self) -> dict[str, Any]:
        """What was kept and what it cost; nothing where there was no audit.

        Returns:
          `audits`, how many; `agreement`, of all of them together; `worst_window`, the least of
          `window` audits that follow one another, of all where there were fewer; `factor`, what the
          settings were multiplied by in the end, at least and at most; `mac_fraction`, dense frames
          for audits over all frames; `seconds`, what an audit adds to a frame, by medians. None
          where there is nothing to measure.
        """
        if not self._count:
            return {}
        worst = self._worst
        if self._window and math.isinf(worst):
            worst = self._of_window
        times = (self._seconds, self._others)
        extra = self._seconds.median - self._others.median if all(t.size for t in times) else None
        low, high, last = self._factors
        return {
            "audits": self._count,
            "agreement": self._matched / self._mass if self._mass else None,
            "worst_window": worst if self._window else None,
            "window": min(WINDOW, len(self._window)),
            "factor": None if math.isnan(last) else {"last": last, "least": low, "most": high},
            "mac_fraction": self._count / self._frames,
            "seconds": extra,
        }


class RunMeasures:
    """The figures of a run, in memory that does not grow with its length.

    Means and maxima are of all frames but the first, which is computed densely; medians of times
    are exact for runs of up to `POINTS` frames, else of as many of them (`Sample`); series hold the
    first frame and then at most `POINTS` points (`Series`).

    Attributes:
      frames: How many frames there were, the first one included.
      first: The measures of the first frame, None before it.
      last: Those of the last one.
      audits: What audits say, where there are any.

    >>> nan = math.nan
    >>> run = RunMeasures()
    >>> run.add(Measures(1.0, *[nan] * 6))
    >>> run.add(Measures(0.25, 0.9, 0.01, nan, nan, nan, nan))
    >>> run.summary(agreement="detection_agreement")
    {'frames': 2, 'mac_fraction': 0.25, 'scene_similarity': 0.9, 'seconds_per_frame': 0.01}
    """

    def __init__(self):
        self.frames = 0
        self.first: Measures | None = None
        self.last: Measures | None = None
        self.audits = Audits()
        self._sums = dict.fromkeys(Measures._fields, 0.0)
        self._counts = dict.fromkeys(Measures._fields, 0)
        self._largest = dict.fromkeys(Measures._fields, -math.inf)
        self._times = {name: Sample() for name in ("seconds", "dense_seconds")}
        self._series = {name: Series() for name in Measures._fields}

    def add(self, measures: Measures) -> None:
        """Takes the next frame's measures into account."""
        self.frames += 1
        self.last = measures
        if self.first is None:
            self.first = measures
            return
        self.audits.add(measures)
        for name, value in measures._asdict().items():
            self._series[name].add(value)
            if not math.isnan(value):
                self._sums[name] += value
                self._counts[name] += 1
                self._largest[name] = max(self._largest[name], value)
        for name, sample in self._times.items():
            sample.add(getattr(measures, name))

    @property
    def frames_per_point(self) -> int:
        """How many frames a point of `series` stands for, the first one by itself excepted."""
        return self._series["mac_fraction"].frames_per_point

    @property
    def median_of(self) -> int:
        """How many frames the medians of times are taken of."""
        return self._times["seconds"].size

    def series(self) -> dict[str, list[float]]:
        """Every measure by name: the first frame, then means of `frames_per_point` frames."""
        if self.first is None:
            return {name: [] for name in Measures._fields}
        return {
            name: [first, *self._series[name].points]
            for name, first in self.first._asdict().items()
        }

    def summary(self, *, agreement: str) -> dict[str, Any]:
        """The figures of the whole run.

        Args:
          agreement: What the mean agreement is called.

        Returns:
          `frames`, `mac_fraction`, `scene_similarity` and `seconds_per_frame` (median); where the
          dense network was compared, also `dense_seconds_per_frame` (median), `speedup` (the ratio
          of both), `fraction_of_ideal` (`speedup` times `mac_fraction`),
          `max_abs_difference_at_reference`, `max_abs_output_at_reference` and the mean agreement;
          where frames have regions, the means `segmented` and `score` (where there are scores).
          None where there is nothing to measure.
        """

        def mean(name: str) -> float | None:
            return self._sums[name] / self._counts[name] if self._counts[name] else None

        def largest(name: str) -> float | None:
            return self._largest[name] if math.isfinite(self._largest[name]) else None

        def median(name: str) -> float | None:
            return self._times[name].median if self._times[name].size else None

        report: dict[str, Any] = {
            "frames": self.frames,
            "mac_fraction": mean("mac_fraction"),
            "scene_similarity": mean("similarity"),
            "seconds_per_frame": median("seconds"),
        }
        dense_seconds = median("dense_seconds")
        if dense_seconds is not None:
            speedup = dense_seconds / report["seconds_per_frame"]
            report |= {
                "dense_seconds_per_frame": dense_seconds,
                "speedup": speedup,
                "fraction_of_ideal": speedup * report["mac_fraction"],
                "max_abs_difference_at_reference": largest("difference"),
                "max_abs_output_at_reference": largest("magnitude"),
                agreement: mean("agreement"),
            }
        of_regions = {name: mean(name) for name in ("segmented", "score")}
        return report | {name: value for name, value in of_regions.items() if value is not None}
