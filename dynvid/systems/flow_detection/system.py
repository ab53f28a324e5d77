"""Algorithm 1 of flow-guided video object detection, and every row of its Table 1."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from dynvid.graph import count_macs
from dynvid.incremental import AlongMotion, along_motion
from dynvid.incremental.execute import Reach
from dynvid.ops import schedule
from dynvid.ops.aggregate import dense_aggregation, recursive_aggregation
from dynvid.ops.difference import unexplained_difference
from dynvid.ops.loops import for_each
from dynvid.ops.masks import resize_mask, stencil
from dynvid.ops.refresh import refreshed
from dynvid.ops.warp import Border, Motion, resize_flow, resize_motion, warp_by
from dynvid.systems.flow_detection.state import (
    FlowDetectionParams,
    FlowDetectionState,
    Limits,
    Window,
    check_setting,
    empty_streams,
    setting_of,
    with_stream,
)
from dynvid.types import Frames, Output, Params, VideoFunction, Work

KeyRule = Literal["all", "every", "feature_consistency"]
Aggregation = Literal["none", "recursive", "window"]
Propagated = Literal["key", "aggregated"]
Consistency = Literal["quality", "residual"]

THRESHOLDS: Mapping[str, float] = {"all": 0.0, "every": 10.0, "feature_consistency": 0.2}
"""The threshold of each key rule where none is given: nothing, l in frames, gamma as a share."""

CONSISTENCY_THRESHOLDS: Mapping[str, float] = {"quality": 0.0, "residual": 15.0}
"""What consistency is judged by where nothing is given: tau, and the unit of uint8 frames."""

TABLE_1: Mapping[str, Mapping[str, Any]] = {
    "per-frame": {"key": "all"},
    "DFF": {"key": "every"},
    "FGFA": {"key": "all", "aggregate": "window"},
    "c1": {"key": "every", "aggregate": "recursive"},
    "c2": {"key": "every", "aggregate": "recursive", "spatial": True},
    "c3": {"key": "feature_consistency", "aggregate": "recursive", "spatial": True},
}
"""The rows of the paper's Table 1, as options: `flow_detection(..., **TABLE_1["c3"])`."""

_LIMITS: Mapping[str, Limits] = {
    "all": (-math.inf, math.inf),
    "every": (1.0, math.inf),
    "feature_consistency": (-1.0, 1.0),
    "quality": (-math.inf, math.inf),
    "residual": (0.0, math.inf),
}

Features = Any
FeatureFn = Callable[[Params, jax.Array], Features]
DetectFn = Callable[[Params, Features], Output]
FlowFn = Callable[[Params, jax.Array, jax.Array], Any]
EmbedFn = Callable[[Params, Features], Features]


def flow_detection(
    features: FeatureFn,
    detect: DetectFn,
    *,
    flow: FlowFn | None = None,
    embed: EmbedFn | None = None,
    key: KeyRule = "feature_consistency",
    threshold: ArrayLike | None = None,
    aggregate: Aggregation = "none",
    window: tuple[int, int] = (10, 10),
    spatial: bool = False,
    propagate: Propagated = "key",
    consistency: Consistency = "quality",
    consistency_threshold: ArrayLike | None = None,
    consistency_block: int = 1,
    margin: int = 0,
    cut_threshold: float | None = None,
    border: Border = "zeros",
    reach: Reach = "mask",
    multiple: int = 1,
) -> VideoFunction:
    """Detects objects in a video from features that are carried along its motion.

    Zhu et al., Towards High Performance Video Object Detection, CVPR 2018, Algorithm 1, with key
    frame k:

        frame 0:  F_0 = N_feat(I_0);  Fbar_0 = F_0;  y_0 = N_det(F_0);  k = 0
        frame i:  M, Q = N_flow(I_i, I_k)
                  key = is_key(Q)
                  U = 1 if key;  1[Q <= tau] if spatial;  else 0
                  F_i = PartialUpdate(I_i, F_k, M, U)
                  Fbar_i = G(W(Fbar_k, M), F_i) if aggregate, else F_i
                  y_i = N_det(Fbar_i)
                  k, I_k, F_k, Fbar_k = i, I_i, F_i, Fbar_i if key

    The rows of its Table 1 are options of it, `TABLE_1`: per-frame detection, Deep Feature Flow
    (DFF, 2017), Flow-Guided Feature Aggregation (FGFA, 2017) and the paper's c1, c2 and c3.

    Each stream has its own key frame. The feature network runs on key frames and on nothing else:
    a loop over the streams that have one, whose number of turns is known only when it runs. Between
    key frames PartialUpdate (Eq. 6 and 10) is `dynvid.incremental`: where any of U is set, the maps
    that the feature network keeps of the key frame are warped by the motion, each on its own grid,
    and stepped with U as the mask; where none is, the last features are warped and no more. What is
    warped or partly updated never becomes a key.

    Args:
      features: N_feat, `features(params, images) -> F` of `(N, H, W, C)`: a map `(N, h, w, C')`, or
        any pytree of such maps on grids of their own.
      detect: N_det, `detect(params, F)`: any pytree of `(N, ...)`.
      flow: N_flow, `flow(params, current, key)`: a `dynvid.ops.warp.Motion`, or a pair of one and
        Q, `(N, h, w)`, of any grid. Its scale, where it has one, multiplies warped features (DFF,
        Eq. 4).
      embed: E, `embed(params, F)`: what features are compared by (Eq. 3), a map for each of F.
      key: What makes a key frame: "every" `threshold`-th frame (l); "feature_consistency", where
        the share of positions of U exceeds `threshold` (gamma, Eq. 9); "all".
      threshold: A number, or one a stream; `THRESHOLDS[key]` where None. It is kept in the state:
        `state.with_settings(threshold=...)` changes it without compiling again.
      aggregate: "recursive", Eq. 4 and 7; "window", Eq. 2 as FGFA has it, with all frames key
        frames; "none".
      window: How many frames before and after the one that is detected are aggregated densely. The
        detections come as many frames late as there are frames after: those of `step` are of frame
        `max(0, i - window[1])`, and the last frame repeated `window[1]` times gets the last ones.
        Before frame 0 frame 0 is repeated, as in FGFA's code.
      spatial: Whether features are updated in part between key frames.
      propagate: What frames between key frames get where U = 0: with "key" as in Algorithm 1 a mix
        of the key frame's own features and the aggregated ones; with "aggregated" those alone, as
        sections 5.1 and 5.2 say, without the embedding network's work. For recursive aggregation.
      consistency: What U is made of: the flow network's "quality" Q, where it is at most
        `consistency_threshold` (tau); or, beyond the paper, the "residual", where what the warp of
        the key image leaves unexplained is at least that, in the unit of the frames, as a mean over
        the pixels of a position (`dynvid.ops.difference.unexplained_difference`). What moves as the
        flow says costs nothing, and nothing has to be learned for it.
      consistency_threshold: A number, or one a stream; `CONSISTENCY_THRESHOLDS[consistency]` where
        None. Kept in the state likewise.
      consistency_block: For the residual, the side of the blocks of pixels over which frames are
        averaged before they are compared, which divides the sides of padded frames: what is finer
        than the features matters less to them, and it is so much less work.
      margin: How many positions around each one that consistency marks are updated with it: what
        reads the new values reads beyond them. The key rule does not count these. Not in the paper,
        where the flow network learns how much to mark.
      cut_threshold: Where the mean grey level of the difference to the key frame exceeds it, the
        frame becomes a key frame whatever the rule says, in the unit of the frames: a net below
        "every" for scene cuts. Not in the paper; off where None.
      border: What is read outside of maps that are warped.
      reach: As of `dynvid.incremental`: "mask" is the paper's U^(n), for networks whose maps are
        all as fine as the features or finer; "cover" is that for others, too, where the nearest
        neighbour would lose what is small; "geometry" also updates what reads an updated position,
        layer by layer, to the price of that.
      multiple: What the sides of frames are rounded up to, by repeating their last row and column,
        for networks that ask for it. Positions in pixels stay what they are.

    Returns:
      A `VideoFunction` of frames `(S, H, W, C)`, uint8 or floating, with `FlowDetectionParams`. Its
      outputs are those of `detect`, its state a `FlowDetectionState`. A mask given to `step`,
      `bool[S, H, W]`, is U in place of what consistency says, for the key rule too. `step` must get
      the parameters that `init` got: key features are not computed anew for others.

    Raises:
      ValueError: An option is out of its range, or a network that it needs is missing; in `init`
        and `step` for frames unlike those before, or where a network returns what does not fit.

    Exact on key frames without aggregation. Between them approximate because features are warped;
    with U = 1 everywhere exactly N_feat(I_i), and with U = 0 exactly W(F_k, M).

    >>> networks = FlowDetectionParams(jnp.float32(2), ())
    >>> still = lambda params, current, key: Motion(jnp.zeros((*current.shape[:3], 2)))
    >>> video = flow_detection(
    ...     lambda gain, x: x * gain, lambda params, f: f.sum((1, 2, 3)),
    ...     flow=still, threshold=2, **TABLE_1["DFF"],
    ... )
    >>> state, found = video.init(networks, jnp.ones((1, 2, 2, 1)))
    >>> for level in (2.0, 3.0):
    ...     state, found = video.step(networks, state, jnp.full((1, 2, 2, 1), level))
    ...     found.tolist(), state.work.details["key"].tolist()
    ([8.0], [False])
    ([24.0], [True])
    """
    for name, value, known in (
        ("key", key, KeyRule), ("aggregate", aggregate, Aggregation),
        ("propagate", propagate, Propagated), ("consistency", consistency, Consistency),
        ("border", border, Border), ("reach", reach, Reach),
    ):  # fmt: skip
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}; got {value!r}")
    limits = (_LIMITS[key], _LIMITS[consistency])
    target = THRESHOLDS[key] if threshold is None else threshold
    tau = CONSISTENCY_THRESHOLDS[consistency]
    tau = tau if consistency_threshold is None else consistency_threshold
    check_setting("threshold", target, limits[0])
    check_setting("consistency_threshold", tau, limits[1])
    if flow is None and (key != "all" or aggregate != "none"):
        raise ValueError(f"flow must be a flow network for key={key!r}, aggregate={aggregate!r}")
    if embed is None and aggregate != "none":
        raise ValueError(f"embed must be an embedding network for aggregate={aggregate!r}")
    if aggregate == "window" and (key != "all" or spatial):
        raise ValueError(
            "aggregate must be 'recursive' or 'none' between key frames; got 'window' with "
            f"key={key!r}, spatial={spatial}"
        )
    if min(window) < 0 or sum(window) < 1:
        raise ValueError(f"window must be frames before and after, at least one; got {window}")
    if propagate == "aggregated" and aggregate != "recursive":
        raise ValueError(
            f"propagate must be 'key' for aggregate={aggregate!r}; got 'aggregated', which is for "
            "recursive aggregation"
        )
    if cut_threshold is not None and not cut_threshold >= 0:
        raise ValueError(f"cut_threshold must be at least 0 or None; got {cut_threshold}")
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1; got {multiple}")
    if consistency_block < 1:
        raise ValueError(f"consistency_block must be at least 1; got {consistency_block}")
    if margin < 0:
        raise ValueError(f"margin must be at least 0; got {margin}")
    spatial = spatial and key != "all"
    system = _System(
        features=features,
        detect=detect,
        flow=flow,
        embed=embed,
        key=key,
        aggregate=aggregate,
        window=window,
        propagate=propagate,
        consistency=consistency,
        consistency_block=consistency_block,
        margin=margin,
        cut_threshold=cut_threshold,
        border=border,
        inner=along_motion(features, border=border, reach=reach) if spatial else None,
    )

    def padded(frames: jax.Array) -> jax.Array:
        rows, columns = (-n % multiple for n in frames.shape[1:3])
        pads = ((0, 0), (0, rows), (0, columns), *[(0, 0)] * (frames.ndim - 3))
        return jnp.pad(frames, pads, mode="edge") if rows or columns else frames

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[FlowDetectionState, Output]:
        floating = jnp.issubdtype(frames.dtype, jnp.floating)
        if frames.ndim != 4 or 0 in frames.shape or not (floating or frames.dtype == jnp.uint8):
            raise ValueError(
                "frames must be floating or uint8 (S, H, W, C), each at least 1; got "
                f"{frames.dtype}{list(frames.shape)}"
            )
        streams = len(frames)
        settings = (
            setting_of("threshold", target, limits[0], streams),
            setting_of("consistency_threshold", tau, limits[1], streams),
        )
        size = (frames.shape[1], frames.shape[2])
        return system.start(FlowDetectionParams(*params), padded(frames), settings, limits, size)

    @jax.jit
    def step(
        params: Params,
        state: FlowDetectionState,
        frames: Frames,
        mask: jax.Array | None = None,
    ) -> tuple[FlowDetectionState, Output]:
        expected = state.key_images
        size = (expected.shape[0], *state.frame_size, *expected.shape[3:])
        if frames.shape != size or frames.dtype != expected.dtype:
            raise ValueError(
                f"frames must be {expected.dtype}{list(size)} as those of init; "
                f"got {frames.dtype}{list(frames.shape)}"
            )
        if mask is not None:
            if mask.shape != size[:3] or mask.dtype != jnp.bool_:
                raise ValueError(
                    f"mask must be bool{list(size[:3])}; got {mask.dtype}{list(mask.shape)}"
                )
            if not spatial and key != "feature_consistency":
                raise ValueError(
                    "mask must be None where nothing asks for it: it is for spatial=True and for "
                    f"key='feature_consistency'; got one for key={key!r}, spatial={spatial}"
                )
            mask = padded(mask)
        return system.advance(FlowDetectionParams(*params), state, padded(frames), mask)

    return VideoFunction(init=init, step=step)


class _Found(NamedTuple):
    """What is known of the motion of each stream."""

    motion: Motion  # as the flow network gives it
    quality: jax.Array | None  # (S, h, w)


class _Macs(NamedTuple):
    """Multiply-accumulates of each network on one image, or on one pair."""

    features: float
    detection: float
    flow: float
    embedding: float


class _System(NamedTuple):
    """The networks and choices of one flow-guided detector."""

    features: FeatureFn
    detect: DetectFn
    flow: FlowFn | None
    embed: EmbedFn | None
    key: KeyRule
    aggregate: Aggregation
    window: tuple[int, int]
    propagate: Propagated
    consistency: Consistency
    consistency_block: int
    margin: int
    cut_threshold: float | None
    border: Border
    inner: AlongMotion | None

    def start(
        self,
        params: FlowDetectionParams,
        images: jax.Array,
        settings: tuple[jax.Array, jax.Array],
        limits: tuple[Limits, Limits],
        frame_size: tuple[int, int],
    ) -> tuple[FlowDetectionState, Output]:
        """Frame 0: a key frame, whose aggregated features are its own."""
        streams = len(images)
        everywhere = jnp.ones(streams, bool)
        shapes = self._features_of(params, images)
        inner = scratch = None
        if self.inner is not None:
            one, _ = jax.eval_shape(self.inner.init, params.features, images[:1])
            inner = scratch = empty_streams(one, streams)
        empty = _zeros(_of_streams(shapes, streams))
        features, inner = self._on_keys(params, images, everywhere, empty, inner)
        window = None
        if self.aggregate == "window":
            count = sum(self.window) + 1
            window = jax.tree.map(
                lambda x: jnp.repeat(x[:, None], count, 1), Window(images, features)
            )
        macs, grid = self._macs(params, images, shapes), _grid(shapes)
        none = jnp.zeros(streams, jnp.float32)
        state = FlowDetectionState(
            key_images=images,
            features=features,
            memory=features if self.aggregate == "recursive" else None,
            age=jnp.zeros(streams, jnp.int32),
            threshold=settings[0],
            consistency_threshold=settings[1],
            inner=inner,
            scratch=scratch,
            window=window,
            work=_work(
                macs,
                key=everywhere,
                score=jnp.full(streams, jnp.nan, jnp.float32),
                update=jnp.ones((streams, *grid), bool),
                grid=grid,
                motion=jnp.zeros((streams, *grid, 2)),
                feature_macs=jnp.full(streams, macs.features, jnp.float32),
                flow_macs=none,
                aggregation_macs=none,
            ),
            frame_size=frame_size,
            limits=limits,
        )
        return state, self.detect(params.detection, features)

    def advance(
        self,
        params: FlowDetectionParams,
        state: FlowDetectionState,
        images: jax.Array,
        mask: jax.Array | None,
    ) -> tuple[FlowDetectionState, Output]:
        """A later frame: Algorithm 1, from line 7."""
        streams = len(images)
        shapes = self._features_of(params, images)
        macs = self._macs(params, images, shapes)
        grid = _grid(shapes)
        age = state.age + 1

        # Before a stream is known to have a key frame, its motion is estimated only where the key
        # rule or the aggregation reads it there too.
        judges = self.key == "feature_consistency" and mask is None
        found, pairs = None, jnp.full(streams, judges or self.aggregate == "recursive")
        if judges or self.aggregate == "recursive":
            found = self._found(params, images, state.key_images)
        judged = None
        if mask is not None:
            judged = _Judged(jnp.where(mask, -1.0, 1.0), jnp.zeros(streams))
        elif judges:
            judged = self._judged(found, images, state, grid)
        key, score = self._is_key(state, images, age, judged)
        if found is None and self.key != "all":
            found, pairs = self._found(params, images, state.key_images, which=~key), ~key
        update = jnp.zeros((streams, *grid), bool)
        if self.inner is not None:
            if judged is None:
                judged = self._judged(found, images, state, grid)
            update = schedule.update_mask(judged.quality, judged.least[:, None, None]) != 0
            if self.margin and mask is None:
                side, pad = 2 * self.margin + 1, (self.margin, self.margin)
                update = stencil(update, window=(side, side), padding=(pad, pad))
        update &= ~key[:, None, None]

        features, scratch, feature_macs = self._carried(params, state, images, key, update, found)
        features, inner = self._on_keys(params, images, key, features, state.inner)
        update |= key[:, None, None]

        flow_macs = jnp.float32(macs.flow) * pairs
        aggregation_macs = jnp.zeros(streams, jnp.float32)
        aggregated, memory, window = features, None, None
        if self.aggregate == "recursive":
            assert found is not None
            aggregated, embedded = self._aggregated(params, state, features, found.motion, update)
            aggregation_macs = jnp.float32(2 * macs.embedding) * embedded
            memory = _chosen(key, aggregated, state.memory)
        elif self.aggregate == "window":
            window = jax.tree.map(
                lambda old, new: jnp.concatenate([old[:, 1:], new[:, None]], 1),
                state.window,
                Window(images, features),
            )
            aggregated = self._over_window(params, window)
            others = sum(self.window)
            flow_macs = jnp.full(streams, others * macs.flow, jnp.float32)
            aggregation_macs = jnp.full(streams, (others + 1) * macs.embedding, jnp.float32)

        motion = jnp.zeros((streams, *grid, 2))
        if found is not None:
            motion = resize_flow(found.motion.flow, grid).astype(jnp.float32)
        state = FlowDetectionState(
            key_images=_chosen(key, images, state.key_images),
            features=_chosen(key, features, state.features),
            memory=memory,
            age=jnp.where(key, 0, age),
            threshold=state.threshold,
            consistency_threshold=state.consistency_threshold,
            inner=inner,
            scratch=scratch,
            window=window,
            work=_work(
                macs,
                key=key,
                score=score,
                update=update,
                grid=grid,
                motion=motion,
                feature_macs=jnp.where(key, macs.features, feature_macs),
                flow_macs=flow_macs,
                aggregation_macs=aggregation_macs,
            ),
            frame_size=state.frame_size,
            limits=state.limits,
        )
        return state, self.detect(params.detection, aggregated)

    # Motion, and where it can be trusted.

    def _found(
        self,
        params: FlowDetectionParams,
        images: jax.Array,
        keys: jax.Array,
        *,
        which: jax.Array | None = None,
    ) -> _Found:
        """The motion of all streams in one batch, or of some of them and zero of the others."""

        def run(current: jax.Array, key: jax.Array) -> _Found:
            assert self.flow is not None
            given = self.flow(params.flow, current, key)
            motion, quality = (given, None) if hasattr(given, "flow") else given
            return _Found(Motion(motion.flow, getattr(motion, "scale", None)), quality)

        if which is None:
            return run(images, keys)
        shapes = jax.eval_shape(run, images, keys)

        def turn(place: jax.Array, found: _Found) -> _Found:
            new = run(images[place], keys[place])
            return jax.tree.map(lambda x, y: x.at[place].set(y), found, new)

        return for_each(which, turn, _zeros(shapes))

    def _judged(
        self,
        found: _Found | None,
        images: jax.Array,
        state: FlowDetectionState,
        grid: tuple[int, int],
    ) -> "_Judged":
        """How far the motion can be trusted.

        Raises:
          ValueError: The flow network does not say it.
        """
        assert found is not None
        if self.consistency == "residual":
            residual = unexplained_difference(
                images, state.key_images, found.motion.flow, grid, block=self.consistency_block
            )
            return _Judged(-residual, -state.consistency_threshold)
        shape = getattr(found.quality, "shape", None)
        if shape is None or len(shape) != 3:
            raise ValueError(
                "flow must return a pair, motion and quality (S, h, w), for consistency='quality'; "
                f"got {'a motion alone' if shape is None else f'quality {list(shape)}'}"
            )
        assert found.quality is not None
        return _Judged(found.quality, state.consistency_threshold)

    def _is_key(
        self,
        state: FlowDetectionState,
        images: jax.Array,
        age: jax.Array,
        judged: "_Judged | None",
    ) -> tuple[jax.Array, jax.Array]:
        """Which streams have a key frame, `bool[S]`, and what the rule saw, `float32[S]`."""
        if self.key == "all":
            key, score = jnp.ones(len(age), bool), jnp.full(len(age), jnp.nan, jnp.float32)
        elif self.key == "every":
            key = schedule.fixed_period(age, state.threshold)
            score = age.astype(jnp.float32)
        else:
            assert judged is not None
            key, score = schedule.feature_consistency(
                judged.quality, state.threshold, quality_threshold=judged.least[:, None, None]
            )
        if self.cut_threshold is not None:
            cut, _ = schedule.frame_difference(images, state.key_images, self.cut_threshold)
            key |= cut
        return key, score

    # Features.

    def _on_keys(
        self,
        params: FlowDetectionParams,
        images: jax.Array,
        key: jax.Array,
        features: Features,
        inner: Any,
    ) -> tuple[Features, Any]:
        """The feature network on key frames, and on nothing else."""

        def turn(place: jax.Array, carry: tuple[Features, Any]) -> tuple[Features, Any]:
            features, inner = carry
            if self.inner is None:
                new = self.features(params.features, images[place])
            else:
                one, new = self.inner.init(params.features, images[place])
                # Without truncation nothing is relative to them; so they are not computed.
                one = dataclasses.replace(one, scales=jnp.zeros_like(one.scales))
                inner = with_stream(inner, one, place[0])
            return jax.tree.map(lambda x, y: x.at[place].set(y), features, new), inner

        return for_each(key, turn, (features, inner))

    def _carried(
        self,
        params: FlowDetectionParams,
        state: FlowDetectionState,
        images: jax.Array,
        key: jax.Array,
        update: jax.Array,
        found: _Found | None,
    ) -> tuple[Features, Any, jax.Array]:
        """PartialUpdate of all streams but those with a key frame, and what it took."""
        macs = jnp.zeros(len(images), jnp.float32)
        if found is None:  # there are key frames only
            return jax.tree.map(jnp.zeros_like, state.features), state.scratch, macs

        def turn(place: jax.Array, features: Features) -> Features:
            kept, motion = _at((state.features, found.motion), place)
            new = self._warped(kept, motion)
            return jax.tree.map(lambda x, y: x.at[place].set(y), features, new)

        features = for_each(~key, turn, state.features)
        if self.inner is None:
            return features, None, macs
        follow, scratch = self.inner, state.scratch

        def turn_of_all(
            i: jax.Array, carry: tuple[Features, Any, jax.Array]
        ) -> tuple[Features, Any, jax.Array]:
            features, scratch, _ = carry
            # Tied to the turn, or XLA moves what it computes of them out of the loop.
            _, mask, motion = lax.optimization_barrier((i, update, found.motion.flow))
            mask = resize_mask(mask, images.shape[1:3])
            scratch, new = follow.step(params.features, state.inner, scratch, images, mask, motion)
            leaves, structure = jax.tree.flatten(features)
            # Elsewhere they are the warped features, with the scale field if there is one.
            leaves = [
                refreshed(changed, x, y)
                for changed, x, y in zip(scratch.changes, jax.tree.leaves(new), leaves, strict=True)
            ]
            return jax.tree.unflatten(structure, leaves), scratch, scratch.work.macs

        # A loop of one turn or none, where a condition would copy the scratch.
        once = jnp.any(update).astype(jnp.int32)
        return lax.fori_loop(0, once, turn_of_all, (features, scratch, macs))

    def _warped(self, features: Features, motion: Motion) -> Features:
        """W(F_k, M), each map on its own grid."""
        return jax.tree.map(
            lambda x: warp_by(
                x, resize_motion(motion, (x.shape[1], x.shape[2])), border=self.border
            ),
            features,
        )

    # Aggregation.

    def _aggregated(
        self,
        params: FlowDetectionParams,
        state: FlowDetectionState,
        features: Features,
        motion: Motion,
        update: jax.Array,
    ) -> tuple[Features, jax.Array]:
        """G of the warped memory and the features, and which streams were embedded for it."""
        memory = self._warped(state.memory, motion)

        def mixed(place: jax.Array) -> Features:
            mine, theirs = _at((features, memory), place)
            return jax.tree.map(
                recursive_aggregation,
                theirs,
                mine,
                self._embedded(params, theirs),
                self._embedded(params, mine),
            )

        streams = jnp.arange(len(update))
        if self.propagate == "key":
            return mixed(streams), jnp.ones(len(update), bool)
        which = jnp.any(update, (1, 2))

        def turn(place: jax.Array, aggregated: Features) -> Features:
            new = jax.tree.map(
                lambda x, y: refreshed(resize_mask(update[place], x.shape[1:3]), x, y),
                mixed(place),
                _at(memory, place),
            )
            return jax.tree.map(lambda x, y: x.at[place].set(y), aggregated, new)

        return for_each(which, turn, memory), which

    def _over_window(self, params: FlowDetectionParams, window: Window) -> Features:
        """Fbar of the frame in the middle of the window (Eq. 2)."""
        middle = self.window[0]
        others = jnp.array([i for i in range(sum(self.window) + 1) if i != middle])
        image, current = jax.tree.map(lambda x: x[:, middle], window)

        def neighbour(i: jax.Array) -> tuple[Features, Features]:
            key, features = jax.tree.map(lambda x: x[:, i], window)
            warped = self._warped(features, self._found(params, image, key).motion)
            return warped, self._embedded(params, warped)

        warped, embedded = lax.map(neighbour, others)
        return jax.tree.map(
            dense_aggregation, warped, current, embedded, self._embedded(params, current)
        )

    def _embedded(self, params: FlowDetectionParams, features: Features) -> Features:
        """E of each map.

        Raises:
          ValueError: The embedding network does not return a map for each.
        """
        assert self.embed is not None
        found = self.embed(params.embedding, features)
        if jax.tree.structure(found) != jax.tree.structure(features):
            raise ValueError("embed must return one map for each map of features")
        return found

    # What is known before the first frame.

    def _features_of(self, params: FlowDetectionParams, images: jax.Array) -> Features:
        """The shapes of the features of one image.

        Raises:
          ValueError: They are no maps.
        """
        found = jax.eval_shape(self.features, params.features, images[:1])
        maps = jax.tree.leaves(found)
        if not maps or not all(
            x.ndim == 4 and x.shape[0] == 1 and jnp.issubdtype(x.dtype, jnp.floating) for x in maps
        ):
            shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", found)
            raise ValueError(
                f"features must return floating maps (N, h, w, C); got {shapes} for N = 1"
            )
        return found

    def _macs(self, params: FlowDetectionParams, images: jax.Array, shapes: Features) -> _Macs:
        """Multiply-accumulates of each network, counted while tracing."""
        image = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
        flow = embedding = 0  # not integers in what follows: those of 32 bits are too small
        if self.flow is not None:
            flow = count_macs(self.flow, params.flow, image, image)
        if self.embed is not None:
            embedding = count_macs(self.embed, params.embedding, shapes)
        return _Macs(
            features=float(count_macs(self.features, params.features, image)),
            detection=float(count_macs(self.detect, params.detection, shapes)),
            flow=float(flow),
            embedding=float(embedding),
        )


class _Judged(NamedTuple):
    """What says how far the motion can be trusted, the greater, the better, and what is enough."""

    quality: jax.Array  # (S, h, w)
    least: jax.Array  # (S,): at most this much is too little


def _at(tree: Any, place: jax.Array) -> Any:
    """Some streams of everything."""
    return jax.tree.map(lambda x: x[place], tree)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _of_streams(shapes: Any, streams: int) -> Any:
    """The shapes of one stream as those of several."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((streams, *x.shape[1:]), x.dtype), shapes)


def _grid(shapes: Features) -> tuple[int, int]:
    """The finest grid of the features."""
    height, width = max((x.shape[1:3] for x in jax.tree.leaves(shapes)), key=math.prod)
    return height, width


def _chosen(key: jax.Array, new: Any, old: Any) -> Any:
    """The new of streams with a key frame, the old of the others."""
    return jax.tree.map(
        lambda x, y: jnp.where(key.reshape(-1, *(1,) * (x.ndim - 1)), x, y), new, old
    )


def _work(
    macs: _Macs,
    *,
    key: jax.Array,
    score: jax.Array,
    update: jax.Array,
    grid: tuple[int, int],
    motion: jax.Array,
    feature_macs: jax.Array,
    flow_macs: jax.Array,
    aggregation_macs: jax.Array,
) -> Work:
    detection = jnp.full(len(key), macs.detection, jnp.float32)
    return Work(
        macs=feature_macs + flow_macs + aggregation_macs + detection,
        dense_macs=detection + jnp.float32(macs.features),
        changed=jnp.mean(update, (1, 2), dtype=jnp.float32),
        details={
            "key": key,
            "score": score,
            "update_mask": resize_mask(update, grid),
            "motion": motion,
            "feature_macs": feature_macs,
            "flow_macs": flow_macs,
            "aggregation_macs": aggregation_macs,
            "detection_macs": detection,
        },
    )
