"""Choosing the threshold and the truncations of an incremental function on calibration frames."""

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynvid.incremental.transform import incremental
from dynvid.types import Frames, Output, Params

THRESHOLDS = (5, 10, 15, 20, 30)
"""Thresholds that `tune` tries where none are given, of 255."""

TRUNCATIONS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.8, 4.0)
"""Truncations that `tune` tries where none are given, relative to a layer's root mean square."""

Metric = Callable[[Output, Output], Any]


class Trial(NamedTuple):
    """One setting, and what it gave on the calibration frames.

    Attributes:
      threshold: Of the frame difference, in the frames' unit.
      truncation: By layer.
      agreement: What the metric says of its outputs.
      mac_fraction: Multiply-accumulates of the frames after the first, as a fraction of dense.
      accepted: Whether it became the best setting so far.
    """

    threshold: float
    truncation: Mapping[str, float]
    agreement: float
    mac_fraction: float
    accepted: bool


class Tuning(NamedTuple):
    """The settings that `tune` chose.

    Attributes:
      threshold: Of the frame difference, in the frames' unit.
      truncation: By layer; empty where only exact layers reach the target.
      agreement: What the metric says of their outputs on the calibration frames.
      mac_fraction: Multiply-accumulates there after the first frame, as a fraction of dense.
      curve: Everything that was tried, in order.
    """

    threshold: float
    truncation: Mapping[str, float]
    agreement: float
    mac_fraction: float
    curve: tuple[Trial, ...]

    @property
    def options(self) -> dict[str, Any]:
        """The settings as options of `incremental`: `incremental(fn, **tuning.options)`."""
        return {"threshold": self.threshold, "truncation": dict(self.truncation)}


def relative_agreement(expected: Output, found: Output) -> float:
    """One minus the relative error: `1 - ||found - expected|| / ||expected||`, over all leaves.

    Args:
      expected: A pytree of floating arrays.
      found: The same structure and shapes.

    Returns:
      1 where they are equal; below 0 where the error is larger than what was expected.

    >>> relative_agreement(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    0.9
    """

    def square(x: Any) -> float:
        return float(np.sum(np.square(np.asarray(x, np.float64))))

    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    error, size = map(sum, zip(*((square(b - a), square(a)) for a, b in pairs), strict=True))
    return 1 - float(np.sqrt(error / size)) if size else 1 - float(np.sqrt(error))


class _Setting(NamedTuple):
    threshold: float
    levels: tuple[int, ...]  # by layer, an index into the truncations; -1 is exact


class _Trials:
    """Runs settings on the calibration frames, several at once: as streams of one step."""

    def __init__(
        self,
        fn: Callable[[Params, jax.Array], Any],
        params: Params,
        frames: Sequence[Frames],
        batch: int,
    ):
        self.params, self.frames, self.batch = params, frames, batch
        self.streams = frames[0].shape[0]
        shape = (batch * self.streams, *frames[0].shape[1:])
        for leaf in jax.tree.leaves(
            jax.eval_shape(fn, params, jax.ShapeDtypeStruct(shape, frames[0].dtype))
        ):
            if leaf.shape[:1] != shape[:1]:
                raise ValueError(
                    f"fn must return arrays with one row a stream, ({shape[0]}, ...) for frames "
                    f"{shape}; got {leaf.shape}. Where fn fixes its batch, pass batch=1"
                )
        # Never on whole frames: settings that share a step must not sway one another.
        video = incremental(fn, truncation=1.0, break_even=1.0)
        repeat = functools.partial(jnp.tile, reps=(batch, 1, 1, 1))
        self._initial, self._first = jax.jit(lambda p, x: video.init(p, repeat(x)))(
            params, frames[0]
        )
        self._step = jax.jit(lambda p, state, x: video.step(p, state, repeat(x)), donate_argnums=1)
        self.layers = list(self._initial.layers)

    def run(
        self, settings: Sequence[_Setting], taus: Sequence[float]
    ) -> Iterator[tuple[Output, float]]:
        """The outputs, `(frames, streams, ...)`, and the share of MACs of each setting."""
        rows = list(settings) + [settings[-1]] * (self.batch - len(settings))

        def by_stream(values: Sequence[float]) -> np.ndarray:
            return np.repeat(np.array(values, np.float32), self.streams)

        levels = [*taus, 0.0]  # level -1 is exact
        state = jax.tree.map(jnp.copy, self._initial).with_settings(
            threshold=by_stream([row.threshold for row in rows]),
            truncation={
                name: by_stream([levels[row.levels[i]] for row in rows])
                for i, name in enumerate(self.layers)
            },
        )
        outputs, fractions = [jax.device_get(self._first)], []
        for frame in self.frames[1:]:
            state, output = self._step(self.params, state, frame)
            outputs.append(jax.device_get(output))
            fractions.append(np.asarray(state.work.macs / state.work.dense_macs))
        for i in range(len(settings)):
            mine = slice(i * self.streams, (i + 1) * self.streams)
            found = jax.tree.map(lambda *x, mine=mine: np.stack([a[mine] for a in x]), *outputs)
            yield found, float(np.mean([f[mine] for f in fractions]))


class _Search:
    """Walks from one setting to a cheaper one that still reaches the target."""

    def __init__(
        self,
        trials: _Trials,
        expected: Output,
        metric: Metric,
        target: float,
        taus: Sequence[float],
        budget: int,
        advance: Callable[[int, str], None],
    ):
        self.trials, self.expected, self.metric = trials, expected, metric
        self.target, self.taus = target, taus
        self.left = budget
        self.advance = advance
        self.curve: list[Trial] = []
        self.best: _Setting | None = None
        self.found: dict[_Setting, Trial] = {}

    def try_all(self, settings: Sequence[_Setting]) -> bool:
        """Tries settings, as far as the budget goes; returns whether one became the best."""
        new = [s for s in dict.fromkeys(settings) if s not in self.found][: self.left]
        self.left -= len(new)
        before = self.best
        for start in range(0, len(new), self.trials.batch):
            group = new[start : start + self.trials.batch]
            runs = self.trials.run(group, self.taus)
            for setting, (found, fraction) in zip(group, runs, strict=True):
                self._judge(setting, float(self.metric(self.expected, found)), fraction)
            self.advance(len(group), f"{self.cheapest.mac_fraction:.1%} of dense")
        return self.best is not before

    def _judge(self, setting: _Setting, agreement: float, fraction: float) -> None:
        if self.best is None and not agreement >= self.target:
            raise ValueError(
                f"target must be at most {agreement}, by which exact outputs agree with dense "
                f"ones; got {self.target}"
            )
        accepted = agreement >= self.target and (
            self.best is None or fraction < self.cheapest.mac_fraction
        )
        names = zip(self.trials.layers, setting.levels, strict=True)
        truncation = {name: self.taus[level] for name, level in names if level >= 0}
        trial = Trial(setting.threshold, truncation, agreement, fraction, accepted)
        self.found[setting] = trial
        self.curve.append(trial)
        if accepted:
            self.best = setting

    @property
    def cheapest(self) -> Trial:
        """The best setting so far."""
        assert self.best is not None
        return self.found[self.best]

    def one_for_all(self, thresholds: Sequence[float]) -> None:
        """Tries the same truncation in every layer, then every threshold about the best of them."""
        count = len(self.trials.layers)
        middle = sorted(thresholds)[len(thresholds) // 2]
        levels = range(len(self.taus))
        self.try_all([_Setting(middle, (i,) * count) for i in levels])
        assert self.best is not None
        best = max(self.best.levels)
        near = [i for i in (best, best + 1, best - 1) if i in levels]
        self.try_all([_Setting(t, (i,) * count) for i in near for t in thresholds])

    def trade(self) -> bool:
        """Lowers the layers that gain most agreement for what they cost, and raises the others.

        Each layer is moved up and down alone. If losses add up, the best setting within one step of
        each layer follows: from all layers down, raise in the order of the agreement lost for each
        multiply-accumulate saved, as far as the target allows. They do not quite add up: settings
        that stop earlier and later on this path are tried together, and the best is taken.
        """
        assert self.best is not None
        here, now = self.best, self.cheapest
        layers = range(len(here.levels))
        self.try_all([self._moved(here, {i: way}) for i in layers for way in (1, -1)])
        steps, predicted, lowest = [], now.agreement, {}
        for i in layers:
            down, up = (self.found.get(self._moved(here, {i: way}), now) for way in (-1, 1))
            price = -np.inf
            for a, b in ((down, now), (now, up)):
                if a is not b:
                    # A layer is raised only after it has come back from being lowered.
                    saved = max(a.mac_fraction - b.mac_fraction, 1e-9)
                    price = max(price, (a.agreement - b.agreement) / saved)
                    steps.append((price, i, a.agreement - b.agreement))
            if down is not now:
                predicted += down.agreement - now.agreement
                lowest[i] = -1
        steps.sort()
        left = predicted - np.cumsum([loss for *_, loss in steps])
        enough = int(np.sum(left >= self.target))
        spread = np.arange(self.trials.batch) - self.trials.batch // 2
        together = []
        for count in np.clip(enough + spread * max(1, len(steps) // 24), 0, len(steps)):
            moves = collections.Counter(i for _, i, _ in steps[:count])
            moves.update(lowest)
            together.append(self._moved(here, moves))
        self.try_all(together)
        return self.best is not here

    def exchange(self, generator: np.random.Generator, thresholds: Sequence[float]) -> None:
        """Tries random steps from the best setting: some layers up, fewer down."""
        while self.left > 0 and self.trials.layers:
            assert self.best is not None
            settings = []
            for _ in range(self.trials.batch):
                count = len(self.best.levels)
                size = min(count, 1 + generator.poisson(2))
                chosen = generator.choice(count, size, replace=False)
                ways = np.where(generator.random(size) < 0.3, -1, 1)
                moves = {int(i): int(w) for i, w in zip(chosen, ways, strict=True)}
                setting = self._moved(self.best, moves)
                if generator.random() < 0.1:
                    setting = setting._replace(threshold=float(generator.choice(thresholds)))
                settings.append(setting)
            before = self.left
            self.try_all(settings)
            if self.left == before:
                return  # every neighbour that was drawn is known

    def _moved(self, setting: _Setting, moves: Mapping[int, int]) -> _Setting:
        levels = list(setting.levels)
        for i, way in moves.items():
            levels[i] = min(max(levels[i] + way, 0), len(self.taus) - 1)
        return setting._replace(levels=tuple(levels))


def tune(
    fn: Callable[[Params, jax.Array], Any],
    params: Params,
    frames: Sequence[Frames],
    *,
    target: float,
    metric: Metric = relative_agreement,
    thresholds: Sequence[float] | None = None,
    truncations: Sequence[float] = TRUNCATIONS,
    trials: int = 256,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
) -> Tuning:
    """Chooses a threshold and a truncation for each layer that keep outputs close to dense ones.

    Minimises the multiply-accumulates over (theta, tau_1 ... tau_n) subject to `metric >= target`.
    First one truncation for all layers is tried, and every threshold about the best of them. Then
    each layer is moved up and down alone, and what that gave says which to raise and which to
    lower, together, for the target; again, until nothing is gained. What is left of the trials
    goes to random exchanges: some layers up, fewer down.

    Args:
      fn: `fn(params, frames) -> outputs` as for `incremental`, with outputs `(streams, ...)`. Let
        it end in what is judged: the outputs of all calibration frames are held in memory.
      params: Its parameters.
      frames: Calibration frames in order, each `(streams, H, W, C)`: at least two.
      target: The least agreement, in the metric's unit.
      metric: `metric(expected, found) -> number`, the greater the better, of the dense and the
        incremental outputs of all frames: pytrees of NumPy arrays `(frames, streams, ...)`.
      thresholds: To choose from, in the frames' unit; by default 5, 10, 15, 20 and 30 of 255.
      truncations: To choose from, positive and rising.
      trials: How many settings are tried at most.
      seed: Of the random exchanges: the same seed gives the same answer.
      batch: How many settings share a step, as streams of it; 1 where `fn` fixes its batch.
      progress: Whether a progress bar is shown.

    Returns:
      The settings with all that was tried: `incremental(fn, **tuning.options)`.

    Raises:
      ValueError: For options outside their range, outputs without a row for each stream, or a
        target that even exact outputs do not reach.

    Approximate because the target holds on the calibration frames only: report on others. Work is
    counted on cells throughout, without the dense fallback of `incremental`.

    >>> def fn(kernel, x):
    ...     return jax.lax.conv_general_dilated(
    ...         x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> clip = [jnp.zeros((1, 16, 16, 1)).at[0, t, t].set(1.0) for t in range(4)]
    >>> tuning = tune(fn, jnp.ones((3, 3, 1, 1)), clip, target=0.99, progress=False)
    >>> tuning.agreement >= 0.99, tuning.mac_fraction < 0.5
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
    for name, number in (("trials", trials), ("batch", batch)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}")

    runs = _Trials(fn, params, frames, batch)
    dense = jax.jit(fn)
    outputs = [jax.device_get(dense(params, frame)) for frame in frames]
    expected = jax.tree.map(lambda *x: np.stack(x), *outputs)
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

        search = _Search(runs, expected, metric, target, truncations, trials, advance)
        exact = (-1,) * len(runs.layers)
        search.try_all([_Setting(0.0, exact)])
        if runs.layers:
            search.one_for_all(thresholds)
        search.try_all([_Setting(t, exact) for t in thresholds])
        if search.best is not None and search.best.levels != exact:
            while search.left > 0 and search.trade():
                pass
            search.exchange(np.random.default_rng(seed), thresholds)
    best = search.cheapest
    return Tuning(
        best.threshold, best.truncation, best.agreement, best.mac_fraction, tuple(search.curve)
    )
