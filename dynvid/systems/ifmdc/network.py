"""A network cut in two with the codec between its parts: edge, channel and cloud in one graph."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dynvid.graph import Features, split
from dynvid.incremental import incremental
from dynvid.incremental.state import is_zero
from dynvid.systems.dense import dense
from dynvid.systems.ifmdc.codec import CodecState, Symbols, ifmdc
from dynvid.systems.ifmdc.rate import count_bits
from dynvid.systems.ifmdc.settings import Settings, clip_range, settings_for
from dynvid.types import Frames, Output, Params, VideoFunction, VideoState, Work


class NetworkState(NamedTuple):
    """What edge and cloud keep between frames: a pytree of arrays.

    Attributes:
      front: The front's state: that of `dynvid.incremental`, where it is.
      encoder: The edge's end of the codec.
      decoder: The cloud's end; its `level` is the encoder's at every frame.
      back: The back's state.
      work: What the last step executed. `macs` are those of front, codec and back, `dense_macs`
        those of the whole network; `changed` is the front's. Its details are `front_macs`,
        `codec_macs` and `back_macs`, `float32[streams]`; `is_key`, `bool[]`; `nonzero`,
        `int32[streams]`: labels other than that of a zero residual, in a key frame all; and `bits`,
        `int32[streams]`: see `count_bits`.
    """

    front: Any
    encoder: CodecState
    decoder: CodecState
    back: Any
    work: Work

    @property
    def reference(self) -> jax.Array:
        """The frames that an incremental front's features belong to, `(streams, H, W, C)`."""
        return self.front.reference

    def with_settings(
        self,
        *,
        threshold: ArrayLike | None = None,
        truncation: ArrayLike | Mapping[str, ArrayLike] | None = None,
    ) -> "NetworkState":
        """The state with other settings of an incremental front: see its own `with_settings`."""
        changed = self.front.with_settings(threshold=threshold, truncation=truncation)
        return self._replace(front=changed)

    def stream_axes(self) -> "NetworkState":
        """The same pytree with the stream axis of each leaf; -1 where it is of all streams."""
        work = jax.tree.map(lambda _: 0, self.work)
        return NetworkState(
            front=self.front.stream_axes(),
            encoder=self.encoder.stream_axes(),
            decoder=self.decoder.stream_axes(),
            back=self.back.stream_axes(),
            work=work._replace(details={**work.details, "is_key": -1}),
        )

    def restarted(self, which: jax.Array) -> "NetworkState":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`.

        Where any was, the next frame is a key frame of all streams.
        """
        return self._replace(
            front=self.front.restarted(which),
            encoder=self.encoder.restarted(which),
            decoder=self.decoder.restarted(which),
            back=self.back.restarted(which),
        )


def ifmdc_network(
    fn: Callable[[Params, Frames], Output],
    *,
    at: str,
    settings: Settings,
    front: Literal["incremental", "dense"] = "incremental",
    back: Literal["incremental", "dense"] = "dense",
    threshold: ArrayLike = 0.0,
    truncation: ArrayLike | Mapping[str, ArrayLike] = 0.0,
) -> VideoFunction:
    """Runs a network as an edge and a cloud with IFMDC between them: the cloud's outputs.

    `back(decode(encode(front(frames))))`, where `back(front(frames)) = fn(frames)`: the front runs
    up to the feature map `at`, of which `ifmdc` sends key frames and quantised differences (IFMDC,
    section III), and the back goes on from their reconstruction. An incremental front tells the
    encoder where its features may have changed: nothing else is read, compared or quantised.

    Args:
      fn: `fn(params, frames) -> outputs`, as `dynvid.incremental` takes it.
      at: Where it is cut: a `jax.ad_checkpoint.checkpoint_name` of `fn`, of a floating feature map
        `(streams, h, w, c)` that is all that crosses there.
      settings: The codec's; `calibrated_settings` chooses them on frames.
      front: "incremental" computes of the front what changed, "dense" all of it.
      back: Likewise of the back: what changed in the reconstruction, exactly.
      threshold: Of an incremental front, as in `dynvid.incremental`.
      truncation: Of an incremental front, likewise; layers are the front's own.

    Returns:
      A `VideoFunction`: `init(params, frames)` and `step(params, state, frames, mask=None)`, both
      jitted; a mask `bool[streams, H, W]` replaces the frame difference of an incremental front.
      `state` is a `NetworkState`; `state.work.details` say what was executed where, and the bits.
      `recalibrate` is the front's; the next frame is then a key frame.

    Raises:
      ValueError: For options outside their range, a threshold or truncation of a dense front; by
        `init` and `step` for frames of another rank, shape or dtype, for a mask of a dense front,
        for a cut that `fn` does not name or where anything else crosses, and for a map that the
        settings do not fit.

    Approximate because the codec rounds: where the bound of `ifmdc` holds, features are within
    `A / (k - 1)` of the clipped ones in every frame, and outputs within what the back makes of
    that; an incremental front adds its own bounds. Exact where features are levels of the grid.

    >>> from jax.ad_checkpoint import checkpoint_name
    >>> fn = lambda gain, x: checkpoint_name(x * gain, "scaled").sum((1, 2, 3))
    >>> settings = Settings(low=0.0, high=8.0, levels=17, key_levels=9)
    >>> video = ifmdc_network(fn, at="scaled", settings=settings)
    >>> state, output = video.init(jnp.float32(2), jnp.ones((1, 8, 8, 1)))
    >>> state, output = video.step(
    ...     jnp.float32(2), state, jnp.ones((1, 8, 8, 1)).at[0, 3, 3].set(3.0))
    >>> output.item(), state.work.details["nonzero"].item(), state.work.details["bits"].item()
    (132.0, 1, 27)
    """
    for name, value in (("front", front), ("back", back)):
        if value not in ("incremental", "dense"):
            raise ValueError(f"{name} must be 'incremental' or 'dense'; got {value!r}")
    taus = truncation.values() if isinstance(truncation, Mapping) else [truncation]
    if front == "dense" and not all(map(is_zero, (threshold, *taus))):
        raise ValueError(
            f"threshold and truncation must be 0 where the front is dense; got {threshold!r} and "
            f"{truncation!r}"
        )
    halves = split(fn, at=at)
    codec = ifmdc(settings)

    def features_of(params: Params, frames: Frames) -> jax.Array:
        return _only_map(halves.front(params, frames), at)

    if front == "dense":
        near = dense(features_of)
    else:
        near = incremental(features_of, threshold=threshold, truncation=truncation)

    def far_of(params: Params, frames: Frames) -> VideoFunction:
        crossing = jax.eval_shape(halves.front, params, frames)
        dtype = _only_map(crossing, at).dtype

        def outputs_of(params: Params, features: jax.Array) -> Output:
            there = dataclasses.replace(crossing, named={at: features.astype(dtype)})
            return halves.back(params, there)

        return dense(outputs_of) if back == "dense" else incremental(outputs_of)

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[NetworkState, Output]:
        front_state, features = near.init(params, frames)
        encoder, symbols = codec.encoder.init((), features)
        decoder, reconstruction = codec.decoder.init((), symbols)
        back_state, output = far_of(params, frames).init(params, reconstruction)
        return state_of(front_state, encoder, decoder, back_state, symbols), output

    @jax.jit
    def step(
        params: Params, state: NetworkState, frames: Frames, mask: jax.Array | None = None
    ) -> tuple[NetworkState, Output]:
        if mask is not None and front == "dense":
            raise ValueError(
                f"mask must be None where the front is dense; got {mask.dtype}{list(mask.shape)}"
            )
        front_state, features = near.step(params, state.front, frames, mask)
        changes = None if front == "dense" else front_state.changes[0]
        encoder, symbols = codec.encoder.step((), state.encoder, features, changes)
        decoder, reconstruction = codec.decoder.step((), state.decoder, symbols)
        back_state, output = far_of(params, frames).step(params, state.back, reconstruction)
        return state_of(front_state, encoder, decoder, back_state, symbols), output

    def state_of(
        front_state: VideoState,
        encoder: CodecState,
        decoder: CodecState,
        back_state: VideoState,
        symbols: Symbols,
    ) -> NetworkState:
        edge, cloud = front_state.work, back_state.work
        coding = encoder.work.macs + decoder.work.macs
        work = Work(
            macs=edge.macs + coding + cloud.macs,
            dense_macs=edge.dense_macs + cloud.dense_macs,
            changed=edge.changed,
            details={
                "front_macs": edge.macs,
                "codec_macs": coding,
                "back_macs": cloud.macs,
                **encoder.work.details,
                "bits": count_bits(symbols, settings=settings),
            },
        )
        return NetworkState(front_state, encoder, decoder, back_state, work)

    def recalibrate(params: Params, state: NetworkState, frames: Frames) -> NetworkState:
        if front == "dense":
            return state
        # The front starts again on these frames, which the encoder has not seen: what it marks as
        # changed from there on is not all.
        return state._replace(
            front=near.recalibrate(params, state.front, frames),
            encoder=state.encoder.restarted(jnp.ones(frames.shape[0], bool)),
        )

    return VideoFunction(init=init, step=step, recalibrate=recalibrate)


def calibrated_settings(
    fn: Callable[[Params, Frames], Output],
    params: Params,
    frames: Iterable[Frames],
    *,
    at: str,
    levels: int = 9,
    block: int = 1,
    group_of_pictures: int = 15,
    percentiles: tuple[float, float] = (0.1, 99.9),
) -> Settings:
    """Chooses settings for a network cut at a name, with the clip range of its features.

    Args:
      fn: `fn(params, frames) -> outputs`.
      params: Its parameters.
      frames: Some frames of the cameras, each `(streams, H, W, C)`.
      at: Where it is cut, as in `ifmdc_network`.
      levels: As in `settings_for`.
      block: Likewise.
      group_of_pictures: Likewise.
      percentiles: As in `clip_range`.

    Returns:
      The settings; `dataclasses.replace` changes what else they hold.

    Raises:
      ValueError: There are no frames, the cut is none, their features are constant, or an option is
        not what it has to be.

    >>> from jax.ad_checkpoint import checkpoint_name
    >>> fn = lambda gain, x: checkpoint_name(x * gain, "scaled").sum()
    >>> frames = [jnp.full((1, 8, 8, 1), value) for value in (0.0, 1.0, 4.0)]
    >>> settings = calibrated_settings(fn, jnp.float32(2), frames, at="scaled", levels=17)
    >>> settings.low, settings.high, settings.levels
    (0.0, 8.0, 17)
    """
    halves = split(fn, at=at)
    front = jax.jit(lambda params, frames: _only_map(halves.front(params, frames), at))
    features = [np.asarray(front(params, jnp.asarray(x)), np.float32) for x in frames]
    if not features:
        raise ValueError("frames must be at least one set of frames; got none")
    low, high = clip_range(np.stack(features), percentiles=percentiles)
    return settings_for(low, high, levels=levels, block=block, group_of_pictures=group_of_pictures)


def _only_map(features: Features, at: str) -> jax.Array:
    """The feature map that crosses the cut, which has to be all that does."""
    found = features[at]
    if isinstance(found, tuple) or features.others:
        others = ", ".join(features.others) or f"{len(found) - 1} more of that name"
        raise ValueError(f"at must name all that crosses the cut; got {at!r} beside {others}")
    streams = features.frames.shape[0]
    if (
        found.ndim != 4
        or found.shape[0] != streams
        or not jnp.issubdtype(found.dtype, jnp.floating)
    ):
        raise ValueError(
            f"at must name a floating feature map ({streams}, h, w, c); got {at!r}, "
            f"{found.dtype}{list(found.shape)}"
        )
    return found
