"""DVSNet's step: which regions are segmented anew, and which are warped from their key."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dynvid.graph import count_macs
from dynvid.incremental import incremental as make_incremental
from dynvid.ops import schedule
from dynvid.ops.difference import changed_pixels
from dynvid.ops.labels import LabelMap, best_classes, label_dtype, label_map
from dynvid.ops.loops import for_each
from dynvid.ops.regions import RegionPaths, Regions, divide_frame
from dynvid.ops.warp import Motion, warp_by
from dynvid.systems.dvsnet.state import (
    DVSNetParams,
    DVSNetState,
    check_threshold,
    folded,
    threshold_of,
    unfolded,
)
from dynvid.types import Frames, Params, VideoFunction, Work

Policy = Literal["decision_network", "frame_difference", "flow_magnitude", "fixed_period"]

THRESHOLDS: Mapping[str, float] = {
    "decision_network": 92.0,
    "frame_difference": 10.0,
    "flow_magnitude": 2.0,
    "fixed_period": 10.0,
}
"""The threshold of each policy where none is given: percent, the frames' unit, pixels, frames."""

_LIMITS = {"decision_network": (0.0, 100.0), "fixed_period": (1.0, math.inf)}

SegmentFn = Callable[[Params, jax.Array], jax.Array]
FlowFn = Callable[[Params, jax.Array, jax.Array], Any]
DecideFn = Callable[[Params, jax.Array], jax.Array]


def dvsnet(
    segment: SegmentFn,
    flow: FlowFn,
    *,
    decide: DecideFn | None = None,
    grid: tuple[int, int] = (2, 2),
    overlap: int = 64,
    multiple: int = 8,
    policy: Policy = "decision_network",
    threshold: ArrayLike | None = None,
    adaptive: bool = False,
    incremental: Mapping[str, Any] | None = None,
    chunk: int = 1,
) -> VideoFunction:
    """Segments a video region by region, anew only where warping would not be good enough.

    DVSNet (Xu et al., CVPR 2018, section 3.2, Figure 4). For each region r of a frame, with key
    image I_k and key logits S_k of the frame that it was last segmented in:

        flow, scale, features = F(I_i, I_k)
        score_r = D(features)
        score_r < t:   S = N(I_i);  I_k, S_k <- I_i, S;  labels = argmax up(S)
        else:          labels = argmax up(W(up(S_k), flow) * scale)

    The flow network runs on all regions in one batch where the policy reads it, else on those that
    are warped; the decision network on all. The segmentation network runs on the regions that are
    sent to it and on nothing else: a loop over a worklist of the regions of all streams, whose
    number of turns is known only when it runs. What is warped are logits, on the grid of the flow,
    clamped at the border (the published code); warped results never become keys. Regions that
    overlap are stitched by the larger winning logit.

    Args:
      segment: N, `segment(params, images) -> logits`, `(N, h, w, C)` to `(N, h', w', classes)`,
        for regions of a frame and for whole frames.
      flow: F, `flow(params, current, key)`, of such images: a `dynvid.ops.warp.Motion`, or whatever
        has its attributes. The key logits are resized to the grid of its flow and warped there.
      decide: D, `decide(params, features) -> scores`, `(N,)` percent; for the policy
        "decision_network" only.
      grid: (rows, columns) of regions, see `dynvid.ops.regions.divide_frame`.
      overlap: How far a region reaches beyond a cut, pixels.
      multiple: The stride of the networks, which the sides of regions are rounded up to.
      policy: Which regions are segmented: those whose expected confidence is below the threshold
        ("decision_network", percent), whose mean grey level moved by more than it
        ("frame_difference", Eq. 2, the frames' unit), whose mean motion is longer
        ("flow_magnitude", Eq. 3, pixels of the flow's grid), or whose key is that old
        ("fixed_period", frames). The rules are those of `dynvid.ops.schedule`.
      threshold: A number, or one a stream; `THRESHOLDS[policy]` where None. It is kept in the
        state: `state.with_settings(threshold=...)` changes it without compiling again.
      adaptive: Whether t moves by itself, see `dynvid.ops.schedule.adaptive_target`; an option of
        the published code, for "decision_network".
      incremental: Options of `dynvid.incremental`, an empty mapping for its defaults: a region that
        is sent is then computed incrementally, against what its network kept when it was last sent.
        None runs it in full.
      chunk: How many regions go through a network at once, in each turn of the loops; more than one
        pays on devices that a single region does not fill. What fills up the last chunk is not
        counted as work.

    Returns:
      A `VideoFunction` of frames `(S, H, W, C)` with parameters `DVSNetParams`. Its outputs are a
      `LabelMap` with the `paths` of the regions; its state is a `DVSNetState`. A mask given to
      `step`, `bool[S, H, W]`, decides in the policy's place: regions with any pixel set are
      segmented. `step` must get the parameters that `init` got: keys are not computed anew for
      others.

    Raises:
      ValueError: An option is out of its range; in `init` and `step` where the frames have no room
        for the regions, are of another size than those before, or a network returns what does not
        fit.

    Exact, the labels of every region by itself, in a frame where all regions are segmented; with
    one region and no overlap those of the network. Approximate elsewhere because it is warped.

    >>> networks = DVSNetParams(jnp.ones(2), (), ())
    >>> still = lambda params, current, key: Motion(jnp.zeros((*current.shape[:3], 2)))
    >>> video = dvsnet(
    ...     lambda mix, x: x * mix, still, grid=(1, 2), overlap=0, multiple=1,
    ...     policy="fixed_period", threshold=2,
    ... )
    >>> state, found = video.init(networks, jnp.zeros((1, 4, 6, 1)))
    >>> for _ in range(2):
    ...     state, found = video.step(networks, state, jnp.ones((1, 4, 6, 1)))
    ...     found.paths.segmented.tolist()
    [[False, False]]
    [[True, True]]
    """
    if policy not in get_args(Policy):
        raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}; got {policy!r}")
    limits = _LIMITS.get(policy, (0.0, math.inf))
    target = THRESHOLDS[policy] if threshold is None else threshold
    check_threshold(target, limits)
    if policy == "decision_network" and decide is None:
        raise ValueError("decide must be a decision network for the policy 'decision_network'")
    if adaptive and policy != "decision_network":
        raise ValueError(f"adaptive is for the policy 'decision_network'; got it with {policy!r}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1; got {chunk}")
    system = _System(
        segment=segment,
        flow=flow,
        decide=decide,
        policy=policy,
        adaptive=adaptive,
        inner=None if incremental is None else make_incremental(segment, **incremental),
        chunk=chunk,
    )

    def divided(frames: Frames) -> Regions:
        if frames.ndim != 4:
            raise ValueError(f"frames must be (S, H, W, C); got {frames.shape}")
        height, width = frames.shape[1:3]
        return divide_frame((height, width), grid=grid, overlap=overlap, multiple=multiple)

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[DVSNetState, LabelMap]:
        regions = divided(frames)
        shape = (frames.shape[0], len(regions))
        return system.start(
            DVSNetParams(*params), regions, frames, threshold_of(target, limits, shape), limits
        )

    @jax.jit
    def step(
        params: Params, state: DVSNetState, frames: Frames, mask: jax.Array | None = None
    ) -> tuple[DVSNetState, LabelMap]:
        regions = divided(frames)
        expected = state.key_images
        size = (expected.shape[0], *state.frame_size, *expected.shape[4:])
        if frames.shape != size or frames.dtype != expected.dtype:
            raise ValueError(
                f"frames must be {expected.dtype}{list(size)} as those of init; "
                f"got {frames.dtype}{list(frames.shape)}"
            )
        if mask is not None and (mask.shape != size[:3] or mask.dtype != jnp.bool_):
            raise ValueError(
                f"mask must be bool{list(size[:3])}; got {mask.dtype}{list(mask.shape)}"
            )
        return system.advance(DVSNetParams(*params), regions, state, frames, mask)

    return VideoFunction(init=init, step=step)


class _Buffers(NamedTuple):
    """What the segmentation path writes into, region by region; N regions of all streams."""

    labels: jax.Array  # (N, h, w)
    winning: jax.Array  # (N, h, w), the logits with which the labels won
    key_images: jax.Array  # (N, h, w, C)
    key_logits: jax.Array  # (N, h', w', classes)


class _System(NamedTuple):
    """The networks and choices of one DVSNet."""

    segment: SegmentFn
    flow: FlowFn
    decide: DecideFn | None
    policy: Policy
    adaptive: bool
    inner: VideoFunction | None
    chunk: int

    def start(
        self,
        params: DVSNetParams,
        regions: Regions,
        frames: Frames,
        threshold: jax.Array,
        limits: tuple[float, float],
    ) -> tuple[DVSNetState, LabelMap]:
        """Frame 0: every region through the segmentation network."""
        shape = (threshold.shape[0], threshold.shape[1])
        images = _together(regions.divide(frames))
        logits = self._logits_of(params, images)
        buffers = _Buffers(
            labels=jnp.zeros(images.shape[:3], label_dtype(logits.shape[3])),
            winning=jnp.zeros(images.shape[:3], logits.dtype),
            key_images=images,
            key_logits=jnp.zeros((len(images), *logits.shape[1:]), logits.dtype),
        )
        inner = None
        if self.inner is not None:
            inner, kept = self.inner.init(params.segmentation, images)
            buffers = buffers._replace(key_logits=kept)
        everywhere = jnp.ones(len(images), bool)
        buffers = self._segment(params, images, everywhere, buffers)
        macs = self._macs(params, regions, frames, images)
        full = jnp.full(shape[0], macs.segmentation * shape[1], jnp.float32)
        segmented = everywhere.reshape(shape)
        state = DVSNetState(
            key_images=_apart(buffers.key_images, shape),
            key_logits=_apart(buffers.key_logits, shape),
            age=jnp.zeros(shape, jnp.int32),
            threshold=threshold,
            inner=None if inner is None else folded(inner, shape),
            work=_work(
                segmented, jnp.full(shape, jnp.nan, jnp.float32), full, 0 * full, 0 * full, macs
            ),
            frame_size=regions.frame_size,
            limits=limits,
        )
        return state, _output(regions, buffers, logits.shape[3], state.work)

    def advance(
        self,
        params: DVSNetParams,
        regions: Regions,
        state: DVSNetState,
        frames: Frames,
        mask: jax.Array | None,
    ) -> tuple[DVSNetState, LabelMap]:
        """A later frame: each region down its path."""
        shape = state.shape
        images, keys = _together(regions.divide(frames)), _together(state.key_images)
        age = state.age + 1
        reads_flow = self.policy in ("decision_network", "flow_magnitude")
        motion = self._motion(params, images, keys) if reads_flow and mask is None else None
        if mask is None:
            anew, scores = self._decide(params, images, keys, age, state.threshold, motion)
        else:
            anew = jnp.any(regions.divide(mask), (2, 3)).reshape(-1)
            scores = jnp.full(shape, jnp.nan, jnp.float32)
        logits = _together(state.key_logits)
        labels, winning = self._warp(params, images, keys, logits, motion, ~anew)
        buffers = _Buffers(labels, winning, key_images=keys, key_logits=logits)
        macs = self._macs(params, regions, frames, images)
        sent = anew.reshape(shape)
        inner = state.inner
        if self.inner is None:
            segmentation = jnp.float32(macs.segmentation) * jnp.sum(sent, 1, dtype=jnp.float32)
        else:
            inner = unfolded(inner, shape)
            moved = changed_pixels(images, inner.reference, threshold=inner.threshold)
            inner, kept = self.inner.step(
                params.segmentation, inner, images, moved & anew[:, None, None]
            )
            segmentation = jnp.sum(inner.work.macs.reshape(shape), 1)
            inner = folded(inner, shape)
            buffers = buffers._replace(key_logits=kept)
        buffers = self._segment(params, images, anew, buffers)
        flows = jnp.sum(jnp.full(shape, True) if motion is not None else ~sent, 1)
        decisions = shape[1] if self.policy == "decision_network" and mask is None else 0
        threshold = state.threshold
        if self.adaptive and mask is None:
            threshold = schedule.adaptive_target(threshold, sent)
        work = _work(
            sent,
            scores,
            segmentation,
            jnp.float32(macs.flow) * flows.astype(jnp.float32),
            jnp.full(shape[0], macs.decision * decisions, jnp.float32),
            macs,
        )
        state = DVSNetState(
            key_images=_apart(buffers.key_images, shape),
            key_logits=_apart(buffers.key_logits, shape),
            age=jnp.where(sent, 0, age),
            threshold=threshold,
            inner=inner,
            work=work,
            frame_size=state.frame_size,
            limits=state.limits,
        )
        return state, _output(regions, buffers, logits.shape[3], work)

    def _decide(
        self,
        params: DVSNetParams,
        images: jax.Array,
        keys: jax.Array,
        age: jax.Array,
        threshold: jax.Array,
        motion: Motion | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Which regions are segmented, `bool[N]`, and what the policy saw, `(S, regions)`."""
        target = threshold.reshape(-1)
        if self.policy == "fixed_period":
            return schedule.fixed_period(age.reshape(-1), target), age.astype(jnp.float32)
        if self.policy == "frame_difference":
            anew, seen = schedule.frame_difference(images, keys, target)
        else:
            assert motion is not None
            if self.policy == "flow_magnitude":
                anew, seen = schedule.flow_magnitude(motion.flow, target)
            else:
                assert self.decide is not None
                if motion.features is None:
                    raise ValueError("flow must return features for the policy 'decision_network'")
                seen = self.decide(params.decision, motion.features)
                if seen.shape != target.shape:
                    raise ValueError(
                        f"decide must return a score for each of {len(target)} regions; got "
                        f"{list(seen.shape)}"
                    )
                anew = schedule.decision_network(seen, target)
        return anew, seen.astype(jnp.float32).reshape(age.shape)

    def _segment(
        self, params: DVSNetParams, images: jax.Array, which: jax.Array, buffers: _Buffers
    ) -> _Buffers:
        """The segmentation path: computes the key logits of some regions anew, and their labels.

        An incremental network has computed them already.
        """
        size = (images.shape[1], images.shape[2])

        def turn(place: jax.Array, buffers: _Buffers) -> _Buffers:
            if self.inner is None:
                logits = self.segment(params.segmentation, images[place])
                key_logits = buffers.key_logits.at[place].set(logits)
            else:
                logits, key_logits = buffers.key_logits[place], buffers.key_logits
            labels, winning = best_classes(logits, size)
            return _Buffers(
                labels=buffers.labels.at[place].set(labels),
                winning=buffers.winning.at[place].set(winning),
                key_images=buffers.key_images.at[place].set(images[place]),
                key_logits=key_logits,
            )

        return for_each(which, turn, buffers, chunk=self.chunk)

    def _warp(
        self,
        params: DVSNetParams,
        images: jax.Array,
        keys: jax.Array,
        key_logits: jax.Array,
        motion: Motion | None,
        which: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """The warping path: labels of regions from their keys, and the logits that won.

        All regions are warped in one batch, those too that the segmentation path then overwrites:
        next to any network it costs nothing. A flow network that has not run yet runs on the
        regions `which` alone.
        """
        if motion is None:
            motion = self._motion_of(params, images, which, keys)
        warped = warp_by(key_logits, motion, border="edge")
        labels, winning = best_classes(warped, (images.shape[1], images.shape[2]))
        return labels, winning.astype(key_logits.dtype)

    def _motion_of(
        self, params: DVSNetParams, images: jax.Array, which: jax.Array, keys: jax.Array
    ) -> Motion:
        """The motion of the regions `which`, zero of the others."""
        shapes = jax.eval_shape(self._motion, params, images, keys)
        motion = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def turn(place: jax.Array, motion: Motion) -> Motion:
            found = self._motion(params, images[place], keys[place])
            return jax.tree.map(lambda x, new: x.at[place].set(new), motion, found)

        return for_each(which, turn, motion, chunk=self.chunk)

    def _motion(self, params: DVSNetParams, images: jax.Array, keys: jax.Array) -> Motion:
        return _as_motion(self.flow(params.flow, images, keys))

    def _logits_of(self, params: DVSNetParams, images: jax.Array) -> jax.ShapeDtypeStruct:
        """The shape of the logits of one region.

        Raises:
          ValueError: They are no logits.
        """
        found = jax.eval_shape(self.segment, params.segmentation, images[:1])
        shape: Any = getattr(found, "shape", ())
        floating = len(shape) == 4 and jnp.issubdtype(found.dtype, jnp.floating)
        if not floating or shape[0] != 1 or shape[3] < 2:
            raise ValueError(
                "segment must return floating logits (N, h, w, classes) of at least 2 classes; "
                f"got {jax.tree.map(lambda x: f'{x.dtype}{list(x.shape)}', found)}"
            )
        return found

    def _macs(
        self, params: DVSNetParams, regions: Regions, frames: Frames, images: jax.Array
    ) -> "_Macs":
        """Multiply-accumulates of each network, counted while tracing."""
        image = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
        frame = jax.ShapeDtypeStruct((1, *frames.shape[1:]), frames.dtype)
        decision = 0
        motion = _as_motion(jax.eval_shape(self.flow, params.flow, image, image))
        if self.policy == "decision_network" and motion.features is not None:
            assert self.decide is not None
            decision = count_macs(self.decide, params.decision, motion.features)
        return _Macs(
            dense=count_macs(self.segment, params.segmentation, frame),
            segmentation=count_macs(self.segment, params.segmentation, image),
            flow=count_macs(self.flow, params.flow, image, image),
            decision=decision,
        )


class _Macs(NamedTuple):
    """Multiply-accumulates: of the segmentation of a whole frame, and of one region each."""

    dense: int
    segmentation: int
    flow: int
    decision: int


def _as_motion(found: Any) -> Motion:
    """What a flow network returns, which may be more than a `Motion` has."""
    return Motion(found.flow, getattr(found, "scale", None), getattr(found, "features", None))


def _together(x: jax.Array) -> jax.Array:
    """`(S, regions, ...)` as `(N, ...)`."""
    return x.reshape(-1, *x.shape[2:])


def _apart(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """`(N, ...)` as `(S, regions, ...)`."""
    return x.reshape(*shape, *x.shape[1:])


def _work(
    segmented: jax.Array,
    scores: jax.Array,
    segmentation: jax.Array,
    flow: jax.Array,
    decision: jax.Array,
    macs: _Macs,
) -> Work:
    return Work(
        macs=segmentation + flow + decision,
        dense_macs=jnp.full(len(segmented), macs.dense, jnp.float32),
        changed=jnp.mean(segmented.astype(jnp.float32), 1),
        details={
            "segmented": segmented,
            "scores": scores,
            "segmentation_macs": segmentation,
            "flow_macs": flow,
            "decision_macs": decision,
        },
    )


def _output(regions: Regions, buffers: _Buffers, classes: int, work: Work) -> LabelMap:
    shape = (len(work.macs), len(regions))
    labels = regions.stitch(_apart(buffers.labels, shape), _apart(buffers.winning, shape))
    boxes = jnp.broadcast_to(jnp.array(regions.parts, jnp.float32), (*shape, 4))
    paths = RegionPaths(boxes, work.details["scores"], work.details["segmented"])
    return label_map(labels, classes=classes, paths=paths)
