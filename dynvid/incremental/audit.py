"""Audits: every so often a frame is computed densely too, and the settings follow what it says."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dynvid.incremental.tune import relative_agreement
from dynvid.types import Agreement, Frames, Metric, Output, Params, VideoFunction, Work

PATIENCE = 3
"""Audits in a row that must be safely above the target before settings become looser."""

_MOST_PATIENCE = 48
_MOST = 4  # steps of the ladder that one audit moves the settings by


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "inner",
        "turn",
        "level",
        "matched",
        "mass",
        "audits",
        "patience",
        "rising",
        "base_threshold",
        "base_truncation",
        "work",
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class AuditedState:
    """What an audited function keeps between frames.

    Attributes:
      inner: The state of the function that is audited.
      turn: How many steps there were, `int32[]`.
      level: Where each stream stands on the ladder of factors, `int32[streams]`.
      matched: The agreement of its audits since it last moved, weighted, `float32[streams]`.
      mass: The weights of those audits, likewise.
      audits: How many of them there were that had anything to say, `int32[streams]`.
      patience: How many of them it takes to become looser, likewise.
      rising: Whether its last move was to looser settings, `bool[streams]`.
      base_threshold: The threshold where the factor is 1, as in `inner`.
      base_truncation: The truncation where the factor is 1, as in `inner`.
      work: What the last step executed, an audit included. Beside the details of `inner.work`:
        `audit`, the agreement of each stream in this step's audit, NaN where there was none,
        `audit_weight`, and `factor`, what the settings are multiplied by from the next step on;
        all `float32[streams]`.
    """

    inner: Any
    turn: jax.Array
    level: jax.Array
    matched: jax.Array
    mass: jax.Array
    audits: jax.Array
    patience: jax.Array
    rising: jax.Array
    base_threshold: jax.Array
    base_truncation: jax.Array
    work: Work

    @property
    def reference(self) -> jax.Array:
        """The frames that the outputs belong to, `(streams, H, W, C)`."""
        return self.inner.reference

    @property
    def threshold(self) -> jax.Array:
        """The threshold as it is now, `float32[streams]`."""
        return self.inner.threshold

    @property
    def truncation(self) -> jax.Array:
        """The truncation as it is now, `float32[layers, streams]`."""
        return self.inner.truncation

    @property
    def changes(self) -> tuple[jax.Array, ...]:
        """Where each leaf of the output may differ from what it was before the last step."""
        return self.inner.changes

    def with_settings(
        self,
        *,
        threshold: ArrayLike | None = None,
        truncation: ArrayLike | Mapping[str, ArrayLike] | None = None,
    ) -> "AuditedState":
        """The state with other settings, from which the audits go on: see `State.with_settings`."""
        base = self.inner.with_settings(threshold=threshold, truncation=truncation)
        new: dict[str, Any] = {"inner": base}
        if threshold is not None:
            new["base_threshold"] = base.threshold
        if truncation is not None:
            new["base_truncation"] = base.truncation
        return dataclasses.replace(self, **new)

    def stream_axes(self) -> "AuditedState":
        """The same pytree with the stream axis of each leaf; -1 where it is of all streams."""
        inner = self.inner.stream_axes()
        return dataclasses.replace(
            jax.tree.map(lambda _: 0, self),
            inner=inner,
            turn=-1,
            base_truncation=1,
            work=_logged(inner.work, {"audit": 0, "audit_weight": 0, "factor": 0}),
        )

    def restarted(self, which: jax.Array) -> "AuditedState":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`."""
        return dataclasses.replace(self, inner=self.inner.restarted(which))


def audited(
    video_function: VideoFunction,
    *,
    every: int = 50,
    decode: Callable[[Params, Output], Output] = lambda params, outputs: outputs,
    metric: Metric = relative_agreement,
    target: float = 0.9,
    bounds: tuple[float, float] = (0.0, 2.0),
) -> VideoFunction:
    """Audits an incremental function, and moves its settings so that it keeps what was promised.

    Every so many steps the frame is computed densely as well, by `init`. What the results of both
    agree by is logged, and threshold and truncation, those that the function came with times one
    factor a stream, follow. With the agreement A of all audits since they last moved:

    - A below the target T: tighter, by as many steps of a ladder of factors, sqrt(2) apart, as it
      takes if 1 - A is in proportion to the factor: `ceil(2 log2((1 - A) / (1 - T)))`, at most 4;
    - 1 - A at most half of 1 - T, over three audits: looser, by one step.

    In between they stay (hysteresis): a step looser from there is not expected to miss the target.
    Where it does all the same, twice as many audits are waited for before the next attempt, and so
    on up to 48. So the target is kept in the long run, and a camera that changes is noticed within
    `every` frames.

    The dense frame is not thrown away: it is what the step returns, and the next one goes on from
    its caches. What is logged is what agreed before, after all the frames since the audit before;
    no error outlives an audit.

    Args:
      video_function: `incremental(fn, ...)` with a threshold or a truncation above zero.
      every: How many steps there are from one audit to the next; an audit costs one dense frame.
      decode: `decode(params, outputs) -> results`, pure: what is compared.
      metric: `metric(expected, found) -> Agreement`, as in `tune`. An audit of no weight, of a
        frame without any detection, say, moves nothing.
      target: T, less than 1.
      bounds: The least and the greatest factor, about 1; a factor of 0 is exact.

    Returns:
      A `VideoFunction` of `AuditedState`: pure, to be jitted, scanned and donated like the one
      inside. Nothing is compiled again when settings move.

    Raises:
      ValueError: For options outside their range; by `init` for a function whose state has no
        settings to move.

    Exact where the function inside is, and in every audit: from one to the next it is that function
    with the settings in the state, bit for bit.

    >>> import dynvid
    >>> video = audited(dynvid.incremental(lambda gain, x: x * gain, threshold=0.5), every=2)
    >>> state, _ = video.init(jnp.ones(()), jnp.ones((1, 8, 8, 1)))
    >>> for level in (1.2, 1.4):  # never as much as the threshold
    ...     state, _ = video.step(jnp.ones(()), state, jnp.full((1, 8, 8, 1), level))
    >>> print(f"{state.work.details['audit'][0]:.3f}, {state.threshold[0]:.2f}")
    0.714, 0.12
    """
    low, high = bounds
    if not 0 <= low <= 1 <= high < float("inf"):
        raise ValueError(
            f"bounds must be a factor of at most 1 and one of at least 1; got {bounds}"
        )
    if every < 1:
        raise ValueError(f"every must be a positive number of steps; got {every}")
    if not target < 1:
        raise ValueError(f"target must be less than 1; got {target}")
    steps = [f for k in range(-6, 20) if low < (f := 2 ** (k / 2)) < high]
    ladder = jnp.array(sorted({low, *steps, 1.0, high}), jnp.float32)

    def move(inner: Any, state: AuditedState, level: jax.Array) -> Any:
        factor = ladder[level]
        new: dict[str, Any] = {"threshold": factor * state.base_threshold}
        if inner.layers:
            rows = factor * state.base_truncation
            new["truncation"] = dict(zip(inner.layers, rows, strict=True))
        return inner.with_settings(**new)

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[AuditedState, Output]:
        inner, outputs = video_function.init(params, frames)
        if not hasattr(inner, "with_settings"):
            raise ValueError(
                "video_function must have settings to move, as incremental has; its state is a "
                f"{type(inner).__name__}"
            )
        zero = jnp.zeros(len(inner.threshold), jnp.float32)
        log = {"audit": zero * jnp.nan, "audit_weight": zero, "factor": zero + 1}
        state = AuditedState(
            inner=inner,
            turn=jnp.zeros((), jnp.int32),
            level=jnp.full(zero.shape, jnp.searchsorted(ladder, 1.0), jnp.int32),
            matched=zero,
            mass=zero,
            audits=zero.astype(jnp.int32),
            patience=jnp.full(zero.shape, PATIENCE, jnp.int32),
            rising=zero > 0,
            base_threshold=inner.threshold,
            base_truncation=inner.truncation,
            work=_logged(inner.work, log),
        )
        return state, outputs

    @jax.jit
    def step(
        params: Params, state: AuditedState, frames: Frames, mask: jax.Array | None = None
    ) -> tuple[AuditedState, Output]:
        inner, outputs = video_function.step(params, state.inner, frames, mask)
        work, turn = inner.work, state.turn + 1
        due = turn % every == 0
        nothing = jnp.zeros_like(state.mass)

        def audit(inner: Any, outputs: Output) -> tuple[Any, Output, Agreement]:
            new, expected = video_function.init(params, frames)
            new = dataclasses.replace(new, seen=inner.seen)  # the camera is the same
            found = metric(decode(params, expected), decode(params, outputs))
            return new, expected, Agreement(*(x.astype(jnp.float32) for x in found))

        def none(inner: Any, outputs: Output) -> tuple[Any, Output, Agreement]:
            return inner, outputs, Agreement(nothing, nothing)

        inner, outputs, found = lax.cond(due, audit, none, inner, outputs)
        matched = state.matched + found.score * found.weight
        mass = state.mass + found.weight
        audits = state.audits + (found.weight > 0)
        error = 1 - matched / jnp.where(mass > 0, mass, 1)
        allowed = 1 - target
        tighter = due & (mass > 0) & (error > allowed)
        looser = due & (audits >= state.patience) & (error <= allowed / 2)
        needed = jnp.ceil(2 * jnp.log2(jnp.maximum(error, allowed) / allowed))
        down = jnp.clip(needed, 1, _MOST).astype(jnp.int32)
        level = jnp.where(tighter, state.level - down, state.level + looser)
        level = jnp.clip(level, 0, len(ladder) - 1)
        moved = tighter | looser
        longer = jnp.minimum(2 * state.patience, _MOST_PATIENCE)
        patience = jnp.where(tighter & state.rising, longer, state.patience)
        patience = jnp.where(looser & state.rising, PATIENCE, patience)
        log = {
            "audit": jnp.where(due, found.score, jnp.nan),
            "audit_weight": found.weight,
            "factor": ladder[level],
        }
        work = work._replace(macs=work.macs + due * work.dense_macs)
        state = dataclasses.replace(
            state,
            inner=move(inner, state, level),
            turn=turn,
            level=level,
            matched=jnp.where(moved, 0, matched),
            mass=jnp.where(moved, 0, mass),
            audits=jnp.where(moved, 0, audits),
            patience=patience,
            rising=jnp.where(moved, looser, state.rising),
            work=_logged(work, log),
        )
        return state, outputs

    def recalibrate(params: Params, state: AuditedState, frames: Frames) -> AuditedState:
        inner = video_function.recalibrate(params, state.inner, frames)
        return dataclasses.replace(state, inner=inner)

    return VideoFunction(init=init, step=step, recalibrate=recalibrate)


def _logged(work: Work, log: Mapping[str, Any]) -> Work:
    return work._replace(details={**work.details, **log})
