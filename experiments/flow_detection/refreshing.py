"""Beyond the paper: features that are refreshed cell by cell by what a motion leaves unexplained.

Zhu et al. update in part what was warped of a key frame, and forget it again: the key frame stays
what it was until there is another. Here the last frame is the key frame of the next. All that
`dynvid.incremental` keeps is warped by the motion from frame to frame, and so is the picture that
it was computed from; where the new frame differs from that, it is computed anew, and stays.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dynvid.graph import count_macs
from dynvid.incremental import incremental, map_caches
from dynvid.incremental.execute import Reach
from dynvid.ops.difference import unexplained_difference
from dynvid.ops.masks import resize_mask
from dynvid.ops.refresh import refreshed
from dynvid.ops.warp import resize_flow, warp
from dynvid.systems.flow_detection import FlowDetectionParams
from dynvid.types import Frames, Output, Params, VideoFunction, Work


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["inner", "frames", "seen", "threshold", "work"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class RefreshingState:
    """What is kept between frames.

    Attributes:
      inner: What the feature network keeps, warped up to the last frame.
      frames: The last frame, `(S, H, W, C)`.
      seen: The picture that the features are of, likewise, float32: warped where they were, new
        where they were computed.
      threshold: In the unit of the frames, `float32[S]`.
      work: What the last step executed.
    """

    inner: Any
    frames: jax.Array
    seen: jax.Array
    threshold: jax.Array
    work: Work

    def with_settings(self, *, threshold: ArrayLike) -> "RefreshingState":
        """The state with another threshold."""
        given = jnp.broadcast_to(jnp.asarray(threshold, jnp.float32), self.threshold.shape)
        return dataclasses.replace(self, threshold=given)


def refreshing(
    features: Callable[[Params, jax.Array], jax.Array],
    detect: Callable[[Params, jax.Array], Output],
    flow: Callable[..., Any],
    *,
    threshold: float = 15.0,
    reach: Reach = "geometry",
) -> VideoFunction:
    """A detector whose features go along with the motion for good, and are mended where it fails.

    Args:
      features: N_feat, one map.
      detect: N_det.
      flow: N_flow, `flow(params, current, last)`: a `Motion`, or a pair of one and what is ignored.
      threshold: What a position's mean difference to the warped picture must reach to be computed.
      reach: As of `incremental`.

    Returns:
      A `VideoFunction` with `FlowDetectionParams`.
    """
    video = incremental(features, reference="previous", reach=reach)

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[RefreshingState, Output]:
        params = FlowDetectionParams(*params)
        inner, found = video.init(params.features, frames)
        given = jnp.full(len(frames), threshold, jnp.float32)
        state = RefreshingState(inner, frames, frames.astype(jnp.float32), given, inner.work)
        work = _work(params, state, jnp.ones(len(frames)), 0.0)
        return dataclasses.replace(state, work=work), detect(params.detection, found)

    @jax.jit
    def step(
        params: Params, state: RefreshingState, frames: Frames
    ) -> tuple[RefreshingState, Output]:
        params = FlowDetectionParams(*params)
        given = flow(params.flow, frames, state.frames)
        motion = (given if hasattr(given, "flow") else given[0]).flow
        size, grid = frames.shape[1:3], motion.shape[1:3]
        new = frames.astype(jnp.float32)
        left = unexplained_difference(new, state.seen, motion, grid)
        mask = ~(left < state.threshold[:, None, None])
        pixels = resize_mask(mask, size)

        def carried(x: jax.Array) -> jax.Array:
            return warp(x, resize_flow(motion, (x.shape[1], x.shape[2])))

        inner = map_caches(state.inner, lambda x, stride: carried(x))
        inner, found = video.step(params.features, inner, frames, pixels)
        pair = jax.ShapeDtypeStruct((1, *frames.shape[1:]), frames.dtype)
        state = RefreshingState(
            inner, frames, refreshed(pixels, new, carried(state.seen)), state.threshold, inner.work
        )
        macs = count_macs(flow, params.flow, pair, pair)
        work = _work(params, state, jnp.mean(mask, (1, 2)), float(macs))
        return dataclasses.replace(state, work=work), detect(params.detection, found)

    def _work(params: Any, state: RefreshingState, changed: jax.Array, flow_macs: float) -> Work:
        shape = jax.eval_shape(features, params.features, state.frames[:1])
        detection = float(count_macs(detect, params.detection, shape))
        inner = state.inner.work
        streams = len(changed)
        return Work(
            macs=inner.macs + detection + flow_macs,
            dense_macs=inner.dense_macs + detection,
            changed=changed,
            details={
                "feature_macs": inner.macs,
                "flow_macs": jnp.full(streams, flow_macs, jnp.float32),
            },
        )

    return VideoFunction(init, step)
