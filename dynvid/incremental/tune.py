"""Choosing the threshold and the truncations of an incremental function on calibration frames."""

import collections
import functools
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynvid.incremental.transform import incremental
from dynvid.types import Agreement, Frames, Metric, Output, Params, replace_streams

THRESHOLDS = (4, 6, 8, 12, 20)
"""Thresholds that `tune` tries where none are given, of 255."""

TRUNCATIONS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.8, 4.0)
"""Truncations that `tune` tries where none are given, relative to a layer's root mean square."""

CLEARLY = 0.5
"""How much of the way from the first frame's output to the dense ones a setting has to make."""

FEWEST = 8
"""Frames in which something happens, by weight, below which `tune` warns."""

_BLOCKS = 8  # of calibration frames, whose scatter the margin is told from
_QUANTILE = 1.28  # in standard errors: 9 times in 10 the agreement is higher
_GROUPS = 4  # of layers, at first


class TuningWarning(UserWarning):
    """A calibration that says less than it seems to."""


class Trial(NamedTuple):
    """One setting, and what it gave on the calibration frames.

    Attributes:
      threshold: Of the frame difference, in its own unit.
      truncation: By layer.
      agreement: Of its outputs with the dense ones, over the frames that it ran on.
      lower: What the agreement is not below, 9 times in 10.
      mac_fraction: Multiply-accumulates of those frames but the first, as a fraction of dense.
      frames: How many frames those were: one that fails is stopped.
      accepted: Whether it became the best setting so far.
    """

    threshold: float
    truncation: Mapping[str, float]
    agreement: float
    lower: float
    mac_fraction: float
    frames: int
    accepted: bool


class Tuning(NamedTuple):
    """The settings that `tune` chose.

    Attributes:
      threshold: Of the frame difference, in its own unit.
      truncation: By layer; empty where only exact layers reach the target.
      agreement: Of their outputs with the dense ones on the calibration frames.
      lower: What the agreement is not below, 9 times in 10; at least the target.
      frozen: What the first frame's output for ever would have agreed by.
      mac_fraction: Multiply-accumulates there after the first frame, as a fraction of dense.
      curve: Everything that was tried, in order.
      fixed: The other options of `incremental` that it was tuned with.
    """

    threshold: float
    truncation: Mapping[str, float]
    agreement: float
    lower: float
    frozen: float
    mac_fraction: float
    curve: tuple[Trial, ...]
    fixed: Mapping[str, Any] = {}

    @property
    def options(self) -> dict[str, Any]:
        """The settings as options of `incremental`: `incremental(fn, **tuning.options)`."""
        truncation = dict(self.truncation)
        return {**self.fixed, "threshold": self.threshold, "truncation": truncation}


def relative_agreement(expected: Output, found: Output) -> Agreement:
    """One minus the relative error: `1 - ||found - expected|| / ||expected||`, over all leaves.

    Args:
      expected: A pytree of arrays `(streams, ...)`.
      found: The same structure and shapes.

    Returns:
      The agreement of each stream, all of the same weight: 1 where they are equal; below 0 where
      the error is larger than what was expected.

    >>> relative_agreement(jnp.array([[3.0, 4.0]]), jnp.array([[3.0, 4.5]])).score
    Array([0.9], dtype=float32)
    """

    def square(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x.reshape(x.shape[0], -1)), 1)

    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    wide = [(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)) for a, b in pairs]
    error = functools.reduce(jnp.add, (square(b - a) for a, b in wide))
    size = functools.reduce(jnp.add, (square(a) for a, _ in wide))
    score = 1 - jnp.sqrt(error / jnp.where(size > 0, size, 1))
    return Agreement(score, jnp.ones_like(score))


class _Setting(NamedTuple):
    threshold: float
    levels: tuple[int, ...]  # by layer, an index into the truncations; -1 is exact


class _Series(NamedTuple):
    """What a setting gave on each frame after the first, `(frames, streams)`; and on how many."""

    score: np.ndarray
    weight: np.ndarray
    macs: np.ndarray

    @property
    def mac_fraction(self) -> float:
        return float(np.mean(self.macs))


class _Judge:
    """What agreement over some frames is, how sure that is, and what is enough.

    A frame weighs by how much there is to agree on in it, times how far the first frame's output
    is from its own: where nothing has happened, any setting agrees, and that says nothing.
    """

    def __init__(self, frozen: Agreement, *, target: float):
        # (frames, streams), the first frame excepted.
        self.busy = np.maximum(1 - np.asarray(frozen.score, float), 0)
        mass = self.busy * np.asarray(frozen.weight, float)
        if not mass.sum() > 0:
            raise ValueError(
                "frames must show something that happens: the first frame's output is right for "
                "all of them"
            )
        self.effective = float(mass.sum() ** 2 / np.square(mass.sum(1)).sum())
        self.expected = mass
        series = _Series(np.asarray(frozen.score), np.asarray(frozen.weight), np.empty(0))
        self.frozen = self.agreement(series)
        self.bar = max(target, self.frozen + CLEARLY * (1 - self.frozen))
        self.target = target

    def doubts(self) -> list[str]:
        """What makes the calibration say less than it seems to, a line each."""
        found = []
        if self.bar > self.target:
            found.append(
                f"a target of {self.target:g} says little on these frames, as the first frame's "
                f"output for ever agrees by {self.frozen:.3f}; tuned for {self.bar:.3f}"
            )
        if self.effective < FEWEST:
            found.append(
                f"something happens in {self.effective:.1f} of {len(self.busy)} frames only, by "
                f"weight; tune on at least {FEWEST} busy ones"
            )
        return found

    def _sums(self, series: _Series) -> tuple[np.ndarray, np.ndarray]:
        mass = self.busy[: len(series.score)] * series.weight
        return mass * series.score, mass

    def agreement(self, series: _Series) -> float:
        """Over all frames of a series; 1 where there is nothing to agree on."""
        matched, mass = map(np.sum, self._sums(series))
        return float(matched / mass) if mass > 0 else 1.0

    def lower(self, series: _Series) -> float:
        """What the agreement is not below, 9 times in 10, by its scatter over blocks of frames.

        The standard error of a ratio of sums over K blocks of frames that follow one another, and
        so are not independent: `se^2 = K / (K - 1) sum (a_k - R b_k)^2 / (sum b_k)^2`.
        """
        ratio = self.agreement(series)
        length = max(1, len(self.busy) // _BLOCKS)
        starts = range(0, len(series.score), length)
        a, b = (np.add.reduceat(x, starts).ravel() for x in self._sums(series))
        count = np.count_nonzero(b)
        if count < 2:
            return ratio
        error = np.sqrt(count / (count - 1) * np.square(a - ratio * b).sum()) / b.sum()
        return float(ratio - _QUANTILE * error)

    def reaches(self, series: _Series) -> bool:
        """Whether a whole series is good enough."""
        return self.lower(series) >= self.bar

    def fails(self, series: _Series) -> bool:
        """Whether a series that has begun cannot become good enough, or will hardly."""
        matched, mass = (float(np.sum(x)) for x in self._sums(series))
        left = float(self.expected[len(series.score) :].sum())
        if matched + left < self.bar * (mass + left):
            return True
        return mass > left and self.agreement(series) < self.bar - 0.02


class _Runs:
    """Runs settings on the calibration frames, several at once: as streams of one step.

    Each has its own place in the clip: where one ends or fails, the next takes over its stream.
    """

    def __init__(
        self,
        fn: Callable[[Params, jax.Array], Any],
        params: Params,
        frames: Sequence[Frames],
        *,
        decode: Callable[[Params, Output], Output],
        metric: Metric,
        batch: int,
        options: Mapping[str, Any],
    ):
        self.params, self.batch = params, batch
        self.streams, self.count = frames[0].shape[0], len(frames)
        shape = (batch * self.streams, *frames[0].shape[1:])
        shapes = jax.ShapeDtypeStruct(shape, frames[0].dtype)
        for leaf in jax.tree.leaves(
            jax.eval_shape(lambda p, x: decode(p, fn(p, x)), params, shapes)
        ):
            if leaf.shape[:1] != shape[:1]:
                raise ValueError(
                    f"fn must return arrays with one row a stream, ({shape[0]}, ...) for frames "
                    f"{shape}; got {leaf.shape}. Where fn fixes its batch, pass batch=1"
                )
        dense = jax.jit(lambda p, x: decode(p, fn(p, x)))
        outputs = [dense(params, frame) for frame in frames]
        self._expected = jax.tree.map(lambda *x: jnp.stack(x), *outputs)
        self._clip = jnp.stack(frames)
        compare = jax.jit(metric)
        found = [compare(output, outputs[0]) for output in outputs[1:]]
        self.frozen = Agreement(*(jnp.stack(x) for x in zip(*found, strict=True)))

        # Never on whole frames: settings that share a step must not sway one another.
        alone = {"truncation": 1.0, "break_even": 1.0, "dense_above": None}
        video = incremental(fn, **{**options, **alone})
        self._initial, _ = jax.jit(video.init)(params, self._at(self._clip, np.zeros(batch, int)))
        self.layers = list(self._initial.layers)

        @functools.partial(jax.jit, donate_argnums=1)
        def step(params: Params, state: Any, times: jax.Array, clip: jax.Array, expected: Any):
            state, output = video.step(params, state, self._at(clip, times))
            found = metric(self._at(expected, times), decode(params, output))
            return state, (*found, state.work.macs / state.work.dense_macs)

        self._step = step
        self._replace = jax.jit(replace_streams, donate_argnums=0)

    def _at(self, series: Any, times: Any) -> Any:
        """What each setting sees at its own time, `(batch * streams, ...)`."""
        return jax.tree.map(lambda x: x[times].reshape(-1, *x.shape[2:]), series)

    def run(
        self,
        settings: Sequence[_Setting],
        taus: Sequence[float],
        ended: Callable[[_Setting, _Series], bool],
    ) -> None:
        """Runs settings until `ended(setting, series so far)` says so, or there are no frames."""
        waiting = collections.deque(settings)
        slots: list[_Setting | None] = [None] * self.batch
        times = np.zeros(self.batch, np.int32)
        rows: list[list[Any]] = [[] for _ in slots]
        levels = [*taus, 0.0]  # level -1 is exact
        threshold = np.zeros(self.batch, np.float32)
        truncation = np.zeros((len(self.layers), self.batch), np.float32)
        state = jax.tree.map(jnp.copy, self._initial)
        while True:
            new = np.zeros(self.batch, bool)
            for i in (i for i, slot in enumerate(slots) if slot is None and waiting):
                slots[i] = setting = waiting.popleft()
                times[i], rows[i], new[i] = 0, [], True
                threshold[i] = setting.threshold
                truncation[:, i] = [levels[level] for level in setting.levels]
            if all(slot is None for slot in slots):
                return
            if new.any():
                which = np.repeat(new, self.streams)
                state = self._replace(state, self._initial, which).with_settings(
                    threshold=np.repeat(threshold, self.streams),
                    truncation={
                        name: np.repeat(row, self.streams)
                        for name, row in zip(self.layers, truncation, strict=True)
                    },
                )
            times += [slot is not None for slot in slots]  # others see a still picture
            state, found = self._step(self.params, state, times, self._clip, self._expected)
            found = np.stack([np.asarray(x, float).reshape(self.batch, -1) for x in found])
            for i, setting in enumerate(slots):
                if setting is None:
                    continue
                rows[i].append(found[:, i])
                if ended(setting, _Series(*np.stack(rows[i], 1))) or times[i] == self.count - 1:
                    slots[i] = None


class _Search:
    """Walks from one setting to a cheaper one that is still good enough."""

    def __init__(
        self,
        runs: _Runs,
        judge: _Judge,
        taus: Sequence[float],
        budget: int,
        advance: Callable[[int, str], None],
    ):
        self.runs, self.judge, self.taus = runs, judge, taus
        self.left = budget
        self.advance = advance
        self.curve: list[Trial] = []
        self.best: _Setting | None = None
        self.series: dict[_Setting, _Series] = {}

    def try_all(self, settings: Sequence[_Setting], *, probe: bool = False) -> bool:
        """Tries settings, as far as the budget goes; returns whether one became the best.

        Args:
          settings: Those that are known are not tried again.
          probe: Whether those too are run to the end that cost more than the best one.
        """
        new = [s for s in dict.fromkeys(settings) if s not in self.series][: self.left]
        self.left -= len(new)
        before = self.best
        whole = self.runs.count - 1

        def ended(setting: _Setting, series: _Series) -> bool:
            dear = False
            if self.best is not None and not probe:
                dear = bool(series.macs.sum() >= self.series[self.best].macs.sum())
            done = len(series.score) == whole or dear or self.judge.fails(series)
            if done:
                self._note(setting, series, whole=len(series.score) == whole)
            return done

        self.runs.run(new, self.taus, ended)
        return self.best is not before

    def _note(self, setting: _Setting, series: _Series, *, whole: bool) -> None:
        cheaper = self.best is None or series.macs.sum() < self.series[self.best].macs.sum()
        accepted = whole and bool(cheaper) and self.judge.reaches(series)
        self.series[setting] = series
        names = zip(self.runs.layers, setting.levels, strict=True)
        self.curve.append(
            Trial(
                setting.threshold,
                {name: self.taus[level] for name, level in names if level >= 0},
                self.judge.agreement(series),
                self.judge.lower(series),
                series.mac_fraction,
                1 + len(series.score),
                accepted,
            )
        )
        if accepted:
            self.best = setting
        least = "" if self.best is None else f"{self.series[self.best].mac_fraction:.1%} of dense"
        self.advance(1, least)

    def one_for_all(self, thresholds: Sequence[float]) -> None:
        """Tries the same truncation in every layer, then every threshold about the best of them.

        Where none is good enough, all layers are exact, with the largest threshold that is; with
        none at all, in the end.
        """
        count = len(self.runs.layers)
        middle = sorted(thresholds)[len(thresholds) // 2]

        def uniform(threshold: float, level: int) -> _Setting:
            return _Setting(threshold, (min(level, len(self.taus) - 1),) * count)

        if count:
            # Every second one first, from the middle outwards: the others are between these.
            half = sorted(range(1, len(self.taus), 2), key=lambda i: abs(self.taus[i] - 0.5))
            self.try_all([uniform(middle, level) for level in half])
        level = -1 if self.best is None else self.best.levels[0]
        self.try_all([uniform(threshold, level) for threshold in thresholds])
        if self.best is None:
            self.try_all([uniform(0.0, -1)])
        elif level >= 0:
            self.try_all([uniform(self.best.threshold, level + 1)])

    def trade(self, groups: Sequence[Sequence[int]], stride: int) -> bool:
        """Lowers the layers that gain most agreement for what they cost, and raises the others.

        Each group of layers is moved up and down alone. If losses add up, the best setting within
        one move of each group follows: from all groups down, raise in the order of the agreement
        lost for each multiply-accumulate saved, as far as the target allows. They do not quite add
        up: settings that stop earlier and later on this path are tried together, and the best is
        taken.

        Args:
          groups: Of layers, by index.
          stride: How many levels a move is.
        """
        assert self.best is not None
        here, every = self.best, range(len(groups))
        down, up = (
            [self._moved(here, {g: way}, groups) for g in every] for way in (-stride, stride)
        )
        self.try_all([*down, *up], probe=True)
        steps, predicted, lowest = [], self.judge.lower(self.series[here]), {}
        for g in every:
            raises = []
            if (change := self._change(down[g], here)) is not None:
                raises.append(change)
                predicted += change[0]
                lowest[g] = -stride
            if (change := self._change(here, up[g])) is not None:
                raises.append(change)
            price = -np.inf
            for lost, saved in raises:
                # A group is raised only after it has come back from being lowered.
                price = max(price, lost / max(saved, 1e-9))
                steps.append((price, g, lost))
        steps.sort()
        left = predicted - np.cumsum([lost for *_, lost in steps])
        enough = int(np.sum(left >= self.judge.bar))
        spread = np.arange(self.runs.batch) - self.runs.batch // 2
        together = []
        for count in np.unique(np.clip(enough + spread, 0, len(steps))):
            moves = collections.Counter(lowest)
            for _, g, _ in steps[:count]:
                moves[g] += stride
            together.append(self._moved(here, moves, groups))
        self.try_all(together)
        return self.best is not here

    def _change(self, low: _Setting, high: _Setting) -> tuple[float, float] | None:
        """Agreement lost and work saved from one to the other, on the frames that both ran on."""
        if low == high or low not in self.series or high not in self.series:
            return None
        count = min(len(self.series[s].score) for s in (low, high))
        a, b = (_Series(*(x[:count] for x in self.series[s])) for s in (low, high))
        return self.judge.agreement(a) - self.judge.agreement(b), a.mac_fraction - b.mac_fraction

    def exchange(self, generator: np.random.Generator, thresholds: Sequence[float]) -> None:
        """Tries random steps from the best setting: some layers up, fewer down."""
        count = len(self.runs.layers)
        while self.left > 0 and count:
            assert self.best is not None
            settings = []
            for _ in range(self.runs.batch):
                size = min(count, 1 + generator.poisson(2))
                chosen = generator.choice(count, size, replace=False)
                ways = np.where(generator.random(size) < 0.3, -1, 1)
                moves = {int(i): int(w) for i, w in zip(chosen, ways, strict=True)}
                setting = self._moved(self.best, moves, [[i] for i in range(count)])
                if generator.random() < 0.1:
                    setting = setting._replace(threshold=float(generator.choice(thresholds)))
                settings.append(setting)
            before = self.left
            self.try_all(settings)
            if self.left == before:
                return  # every neighbour that was drawn is known

    def _moved(
        self, setting: _Setting, moves: Mapping[int, int], groups: Sequence[Sequence[int]]
    ) -> _Setting:
        levels = list(setting.levels)
        for group, way in moves.items():
            for i in groups[group]:
                levels[i] = min(max(levels[i] + way, -1), len(self.taus) - 1)
        return setting._replace(levels=tuple(levels))


def tune(
    fn: Callable[[Params, jax.Array], Any],
    params: Params,
    frames: Sequence[Frames],
    *,
    target: float,
    decode: Callable[[Params, Output], Output] = lambda params, outputs: outputs,
    metric: Metric = relative_agreement,
    thresholds: Sequence[float] | None = None,
    truncations: Sequence[float] = TRUNCATIONS,
    trials: int = 32,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
    **options: Any,
) -> Tuning:
    """Chooses a threshold and a truncation for each layer that keep outputs close to dense ones.

    Minimises the multiply-accumulates over (theta, tau_1 ... tau_n) subject to an agreement that 9
    times in 10 is at least the target, told from its scatter over the frames. First one truncation
    for all layers is tried, and every threshold about the best of them. Then groups of layers, ever
    smaller ones, are moved up and down alone, and what that gave says which to raise and which to
    lower, together. What is left of the trials goes to random exchanges: some layers up, fewer
    down. A setting that fails, or that costs more than the best one, is stopped early.

    A frame weighs as much as the metric says, times how far the first frame's output is from its
    own: where nothing has happened yet, every setting agrees. And a setting has to be clearly
    better than that output for ever, which on raw outputs, mostly background, may well agree by
    0.93: it makes at least half of the way from there to 1, whatever the target says.

    Args:
      fn: `fn(params, frames) -> outputs` as for `incremental`.
      params: Its parameters.
      frames: Calibration frames in order, each `(streams, H, W, C)`: at least two, and better 40 in
        which a lot happens.
      target: The least agreement, at most 1.
      decode: `decode(params, outputs) -> results`, pure: what is compared, such as detections.
        Arrays `(streams, ...)`; those of all frames are held in memory.
      metric: `metric(expected, found) -> Agreement` of the dense and the incremental results of the
        same frames, pure: `dynvid.metrics.average_precision.detection_f1` of detections. The
        `decode` and `compare` of a task in `dynvid.tasks` fit here.
      thresholds: To choose from, in the threshold's unit; by default 4, 6, 8, 12 and 20 of 255.
      truncations: To choose from, positive and rising.
      trials: How many settings are tried at most.
      seed: Of the random exchanges: the same seed gives the same answer.
      batch: How many settings share a step, as streams of it; 1 where `fn` fixes its batch.
      progress: Whether a progress bar is shown.
      **options: Other options of `incremental`, such as `changes` and `settle`.

    Returns:
      The settings with all that was tried: `incremental(fn, **tuning.options)`.

    Raises:
      ValueError: For options outside their range, outputs without a row for each stream, or frames
        in which nothing happens.

    Warns:
      TuningWarning: Where the first frame's output for ever is nearly good enough, or where
        something happens in few frames only.

    Approximate because the target holds for frames like these: judge on others, and see `audited`.
    Work is counted on cells throughout, without the dense fallback of `incremental`.

    >>> def fn(kernel, x):
    ...     return jax.lax.conv_general_dilated(
    ...         x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> clip = [jnp.zeros((1, 16, 16, 1)).at[0, t, t].set(1.0) for t in range(12)]
    >>> tuning = tune(fn, jnp.ones((3, 3, 1, 1)), clip, target=0.9, trials=12, progress=False)
    >>> tuning.lower >= 0.9, tuning.mac_fraction < 0.5
    (True, True)
    """
    frames = [jnp.asarray(frame) for frame in frames]
    if len(frames) < 2:
        raise ValueError(f"frames must be at least 2, to see a change; got {len(frames)}")
    floating = jnp.issubdtype(frames[0].dtype, jnp.floating)
    if thresholds is None:
        thresholds = [t / 255 if floating else float(t) for t in THRESHOLDS]
    if not thresholds or not all(t >= 0 for t in thresholds):
        raise ValueError(f"thresholds must be numbers of at least 0; got {thresholds!r}")
    rising = all(a < b for a, b in itertools.pairwise(truncations))
    if not truncations or not rising or not truncations[0] > 0:
        raise ValueError(f"truncations must be positive and rising; got {truncations!r}")
    if not target <= 1:
        raise ValueError(f"target must be at most 1, where outputs are the same; got {target}")
    for name, number in (("trials", trials), ("batch", batch)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}")

    runs = _Runs(fn, params, frames, decode=decode, metric=metric, batch=batch, options=options)
    judge = _Judge(runs.frozen, target=target)
    for doubt in judge.doubts():
        warnings.warn(doubt, TuningWarning, stacklevel=2)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("tuning", total=trials)

        def advance(count: int, what: str) -> None:
            bar.update(task, advance=count, description=f"tuning: {what}")

        search = _Search(runs, judge, truncations, trials, advance)
        search.one_for_all(thresholds)
        layers, count, stride = len(runs.layers), _GROUPS, 2
        while search.best is not None and layers and search.left > 0:
            groups = [list(map(int, g)) for g in np.array_split(range(layers), min(count, layers))]
            if not search.trade(groups, stride):
                if count >= layers and stride == 1:
                    break
                count, stride = 2 * count, 1
        if search.best is not None:
            search.exchange(np.random.default_rng(seed), thresholds)
    if search.best is None:
        raise ValueError(
            f"trials must be enough to find a setting that agrees by {judge.bar:.3f}; "
            f"none of {trials} did"
        )
    best = next(trial for trial in reversed(search.curve) if trial.accepted)
    return Tuning(
        threshold=best.threshold,
        truncation=best.truncation,
        agreement=best.agreement,
        lower=best.lower,
        frozen=judge.frozen,
        mac_fraction=best.mac_fraction,
        curve=tuple(search.curve),
        fixed=options,
    )
