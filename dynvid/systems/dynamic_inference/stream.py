"""Frames that arrive one by one: an answer as soon as the evidence suffices."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dynvid.graph import count_macs
from dynvid.ops.early_exit import Exits, Measure, Prediction, confidence, stops
from dynvid.ops.loops import for_each
from dynvid.ops.progressive import ClipNetwork, Groups, Node, Route, frame_groups, make_route
from dynvid.ops.temporal_shift import NONE, online_shift_step, shift_cache
from dynvid.systems.dynamic_inference.state import StreamState, thresholds_of
from dynvid.types import Frames, Params, VideoFunction, Work

Evidence = Literal["reset", "decay"]

SINGLE_FRAMES: Groups = frame_groups(16, 16)
"""Sixteen frames in their order in time, each a group of its own."""


def dynamic_inference_stream(
    network: ClipNetwork,
    *,
    groups: Groups = SINGLE_FRAMES,
    checkpoints: Sequence[Node] | None = None,
    threshold: ArrayLike = 0.9,
    measure: Measure = "max_softmax",
    evidence: Evidence = "reset",
    decay: float = 0.8,
    repeat: bool = True,
    chunk: int = 1,
) -> VideoFunction:
    """Classifies what streams show, looking no longer and no deeper than it takes to be sure.

    The route of `dynamic_inference`, depth first within a group, on frames that come one by one: a
    group runs once its last frame is there, and whatever follows a checkpoint that is sure enough
    does not run, in that step or in any later one of the clip. Our reconstruction: the paper has
    whole clips only.

    What becomes of the evidence. "reset": a clip is as many frames as the groups have. After it has
    stopped, its remaining frames are passed over at no cost; then features, caches and confidences
    begin anew with the next clip, unless `repeat` is off: then it is finished. The last answer
    stays until the next clip has one. "decay": there are no clips. Every frame is a group of its
    own, the features so far count `decay` times as much with each, and every frame goes as deep as
    it takes to be sure of the decayed mean; a frame reads its shifted channels from the last one
    that went as deep.

    Args:
      network: The network.
      groups: The frames of each group, all of one size, in the order in which they arrive: first
        those of group 1, ascending. Anything but consecutive frames is for recorded clips. For
        "decay" it is not used.
      checkpoints: (group, depth) of those to keep, the last node among them; all where None.
      threshold: A number, one a checkpoint, or one a stream and checkpoint. It is kept in the
        state: `state.with_settings(threshold=...)` changes it without compiling again.
      measure: How confidence is measured.
      evidence: What becomes of it, see above.
      decay: By which the weight of earlier frames is multiplied with each new one.
      repeat: Whether another clip follows.
      chunk: How many streams go through the network at once, see `dynamic_inference`.

    Returns:
      A `VideoFunction` of frames `(S, H, W, C)` whose outputs are `Prediction`s and whose state is
      a `StreamState`. `init` takes the first frame like any other. A mask given to `step` changes
      nothing.

    Raises:
      ValueError: An option is out of its range; in `init` and `step` where frames or thresholds
        have another shape.

    Exact: on the frames of a clip in the order of its groups it ends with the logits of
    `dynamic_inference`, at the same checkpoint, bit for bit on integers.

    >>> class Mean:
    ...     depth = 1
    ...     def stage(self, params, depth, x, shift):
    ...         return x
    ...     def features(self, params, depth, maps):
    ...         return maps.mean((1, 2))
    ...     def head(self, params, depth, features):
    ...         return features @ params
    >>> video = dynamic_inference_stream(Mean(), threshold=0.9, repeat=False)
    >>> state, _ = video.init(jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 2, 1)))
    >>> state, found = video.step(jnp.array([[1.0, 0.0]]), state, jnp.full((1, 2, 2, 1), 9.0))
    >>> found.exits.exit.tolist(), state.work.details["finished"].tolist()
    ([1], [True])
    """
    if evidence not in ("reset", "decay"):
        raise ValueError(f"evidence must be 'reset' or 'decay'; got {evidence!r}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be between 0 and 1; got {decay}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1; got {chunk}")
    fading = evidence == "decay"
    groups = ((0,),) if fading else groups
    if len({len(group) for group in groups}) != 1:
        raise ValueError(f"groups must all have as many frames; got {groups}")
    route = make_route(groups, depth=network.depth, checkpoints=checkpoints)
    thresholds_of(threshold, (1, len(route.checkpoints)) if jnp.ndim(threshold) < 2 else
                  (jnp.shape(threshold)[0], len(route.checkpoints)))  # fmt: skip
    system = _Stream(network, route, measure, decay if fading else None, repeat or fading, chunk)

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[StreamState, Prediction]:
        return system.advance(params, system.blank(params, frames, threshold), frames)

    @jax.jit
    def step(
        params: Params, state: StreamState, frames: Frames, mask: jax.Array | None = None
    ) -> tuple[StreamState, Prediction]:
        del mask
        waiting = state.waiting
        expected = (waiting.shape[0], *waiting.shape[2:])
        if frames.shape != expected or frames.dtype != waiting.dtype:
            raise ValueError(
                f"frames must be {waiting.dtype}{list(expected)} as those of init; got "
                f"{frames.dtype}{list(frames.shape)}"
            )
        return system.advance(params, state, frames)

    return VideoFunction(init=init, step=step)


class _Stream(NamedTuple):
    """A network, a route and choices; `decay` is None where evidence is reset."""

    network: ClipNetwork
    route: Route
    measure: Measure
    decay: float | None
    repeat: bool
    chunk: int

    @property
    def size(self) -> int:
        """The frames of a group."""
        return len(self.route.groups[0])

    @property
    def slots(self) -> int:
        """The frames that a cache keeps: all of a clip, or the last one and its successor."""
        return self.route.frames if self.decay is None else 2

    def blank(self, params: Params, frames: Frames, threshold: ArrayLike) -> StreamState:
        """The state before any frame."""
        if frames.ndim != 4:
            raise ValueError(f"frames must be (S, H, W, C); got {frames.shape}")
        streams, depths = frames.shape[0], self.network.depth
        shape = (streams, len(self.route.checkpoints))
        x: Any = jax.ShapeDtypeStruct((streams * self.size, *frames.shape[1:]), frames.dtype)
        caches, sums, logits = [], [], None
        for depth in range(1, depths + 1):
            maps, here = self._shapes(params, depth, x)
            features = jax.eval_shape(
                lambda params, maps, d=depth: self.network.features(params, d, maps), params, maps
            )
            logits = jax.eval_shape(
                lambda params, z, d=depth: self.network.head(params, d, z),
                params,
                jax.ShapeDtypeStruct((streams, features.shape[1]), features.dtype),
            )
            caches.append(tuple(jnp.zeros((streams, *x.shape[1:]), x.dtype) for x in here))
            sums.append(jnp.zeros((streams, features.shape[1]), features.dtype))
            x = maps
        assert logits is not None
        nothing = jnp.zeros(streams, jnp.float32)
        never = jnp.full(streams, -1, jnp.int32)
        return StreamState(
            waiting=jnp.zeros((streams, self.size - 1, *frames.shape[1:]), frames.dtype),
            caches=tuple(caches),
            sums=tuple(sums),
            counts=jnp.zeros((streams, depths), jnp.float32),
            processed=jnp.zeros((streams, depths), jnp.int32),
            position=jnp.zeros(streams, jnp.int32),
            decided=jnp.zeros(streams, bool),
            logits=jnp.zeros(logits.shape, logits.dtype),
            confidences=jnp.full(shape, jnp.nan, jnp.float32),
            exit=never,
            threshold=thresholds_of(threshold, shape),
            work=Work(
                nothing, nothing, nothing, {"exit": never, "finished": jnp.zeros(streams, bool)}
            ),
        )

    def _shapes(self, params: Params, depth: int, x: Any) -> tuple[Any, list[Any]]:
        """The shapes of a stage's maps, and of the caches that it needs."""
        found: list[Any] = []

        def shift(x: jax.Array, *, fold: int = 8) -> jax.Array:
            found.append(
                jax.eval_shape(
                    lambda: shift_cache(
                        jax.ShapeDtypeStruct((1, 1, *x.shape[1:]), x.dtype), self.slots, fold=fold
                    )
                )
            )
            return x

        maps = jax.eval_shape(
            lambda params, x: self.network.stage(params, depth, x, shift), params, x
        )
        return maps, found

    def advance(
        self, params: Params, state: StreamState, frames: Frames
    ) -> tuple[StreamState, Prediction]:
        """One more frame of every stream."""
        streams, total = frames.shape[0], self.route.frames
        state = self._begun(state)
        over = state.position >= total  # only where nothing repeats
        looked = ~state.decided & ~over
        group, place = state.position // self.size, state.position % self.size
        group = jnp.minimum(group, len(self.route.groups) - 1)
        complete = ~over & (place == self.size - 1)
        x = jnp.concatenate([state.waiting, frames[:, None]], 1)
        state, macs, full = self._run(params, state, x, complete & looked, group)
        waiting = state.waiting
        if self.size > 1:
            held = jnp.where(looked, place, self.size)  # beyond the end: dropped
            waiting = waiting.at[jnp.arange(streams), held].set(frames, mode="drop")
        decided = state.decided
        position = jnp.minimum(state.position + 1, total)
        finished = decided & (not self.repeat)
        work = Work(
            macs=macs,
            dense_macs=jnp.where(complete, full, 0.0),
            changed=looked.astype(jnp.float32),
            details={"exit": state.exit, "finished": finished},
        )
        state = dataclasses.replace(state, waiting=waiting, position=position, work=work)
        shape = state.threshold.shape
        upto = jnp.broadcast_to(jnp.array(self._upto(params, frames), jnp.float32), shape)
        return state, Prediction(
            state.logits, Exits(state.confidences, state.threshold, state.exit, upto)
        )

    def _begun(self, state: StreamState) -> StreamState:
        """The state with another clip begun where one has ended, and with evidence decayed."""
        sums, counts = state.sums, state.counts
        if self.decay is not None:
            sums = tuple(self.decay * x for x in sums)
            counts = self.decay * counts
        if not self.repeat:
            return state
        ended = state.position >= self.route.frames
        if self.decay is None:
            sums = tuple(jnp.where(ended[:, None], 0, x) for x in sums)
            counts = jnp.where(ended[:, None], 0, counts)
        return dataclasses.replace(
            state,
            sums=sums,
            counts=counts,
            position=jnp.where(ended, 0, state.position),
            decided=state.decided & ~ended,
            confidences=jnp.where(ended[:, None], jnp.nan, state.confidences),
            exit=jnp.where(ended, -1, state.exit),
        )

    def _run(
        self,
        params: Params,
        state: StreamState,
        frames: jax.Array,
        which: jax.Array,
        group: jax.Array,
    ) -> tuple[StreamState, jax.Array, jax.Array]:
        """All stages of a group for the streams `which`, each until it is sure enough.

        Returns:
          The state, the multiply-accumulates executed `(S,)`, and those of all stages.
        """
        streams, depths = len(which), self.network.depth
        slots, sources, wanted, index = self._tables()
        x: Any = frames
        caches, sums = list(state.caches), list(state.sums)
        counts, processed = state.counts, state.processed
        logits, confidences, exits = state.logits, state.confidences, state.exit
        macs = jnp.zeros(streams, jnp.float32)
        costs = self._costs(params, frames)
        rows = jnp.arange(streams)
        for depth in range(1, depths + 1):
            d = depth - 1
            if self.decay is None:
                here, before = slots[group], sources[group]
            else:
                last = processed[:, d]
                here = (last % 2)[:, None]
                before = jnp.where(last > 0, (last - 1) % 2, NONE)[:, None]
            counts = counts.at[:, d].add(jnp.where(which, self.size, 0))
            processed = processed.at[:, d].add(jnp.where(which, self.size, 0))
            compute = self._stage(params, depth)
            inputs = (x, caches[d], sums[d], counts[:, d], here, before)
            one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), inputs)
            maps = jax.eval_shape(compute, *one)[0]
            empty = jax.tree.map(lambda x: jnp.zeros((streams, *x.shape[1:]), x.dtype), maps)

            def turn(place: jax.Array, buffers: Any, inputs=inputs, compute=compute) -> Any:
                x, _, _, *rest = inputs
                given = jax.tree.map(lambda v: v[place], (x, buffers[1], buffers[2], *rest))
                return jax.tree.map(lambda v, new: v.at[place].set(new), buffers, compute(*given))

            buffers = (empty, caches[d], sums[d], logits)
            x, caches[d], sums[d], said = for_each(which, turn, buffers, chunk=self.chunk)
            macs = macs + jnp.where(which, jnp.float32(costs[d]), 0.0)
            # A node without a checkpoint leaves answer and confidences as they were.
            asked = which & wanted[group, d]
            logits = jnp.where(asked[:, None], said, logits)
            sure = confidence(said, measure=self.measure).astype(jnp.float32)
            k = index[group, d]
            threshold = state.threshold[rows, k]
            last = k == len(self.route.checkpoints) - 1
            stop = asked & (stops(sure, threshold) | last)
            confidences = confidences.at[rows, k].set(jnp.where(asked, sure, confidences[rows, k]))
            exits = jnp.where(stop, k, exits)
            which = which & ~stop
        state = dataclasses.replace(
            state,
            caches=tuple(caches),
            sums=tuple(sums),
            counts=counts,
            processed=processed,
            decided=exits >= 0,
            logits=logits,
            confidences=confidences,
            exit=exits,
        )
        return state, macs, jnp.float32(sum(costs))

    def _stage(self, params: Params, depth: int) -> Callable[..., Any]:
        """`(x, caches, sums, count, slots, sources) -> (maps, caches, sums, logits)` of a depth."""

        def compute(
            x: Any,
            caches: tuple[jax.Array, ...],
            total: jax.Array,
            count: jax.Array,
            slots: jax.Array,
            sources: jax.Array,
        ) -> Any:
            streams = total.shape[0]
            written: list[jax.Array] = []

            def shift(x: jax.Array, *, fold: int = 8) -> jax.Array:
                together = x.reshape(streams, self.size, *x.shape[1:])
                cache = caches[len(written)]
                y, cache = online_shift_step(together, cache, slots, sources, fold=fold)
                written.append(cache)
                return y.reshape(x.shape)

            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), x)
            maps = self.network.stage(params, depth, flat, shift)
            features = self.network.features(params, depth, maps)
            total = total + jnp.sum(features.reshape(streams, self.size, -1), 1)
            logits = self.network.head(params, depth, total / count[:, None].astype(total.dtype))
            maps = jax.tree.map(lambda x: x.reshape(streams, self.size, *x.shape[1:]), maps)
            return maps, tuple(written), total, logits

        return compute

    def _tables(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """By group: its frames and what they read; by node: whether and which checkpoint it is."""
        groups, depths = self.route.groups, self.network.depth
        sources = [self.route.previous((g, 1)) for g in range(1, len(groups) + 1)]
        wanted = np.zeros((len(groups), depths), bool)
        index = np.zeros((len(groups), depths), np.int32)
        for k, (group, depth) in enumerate(self.route.checkpoints):
            wanted[group - 1, depth - 1] = True
            index[group - 1, depth - 1] = k
        return jnp.array(groups), jnp.array(sources), jnp.array(wanted), jnp.array(index)

    def _costs(self, params: Params, frames: jax.Array | jax.ShapeDtypeStruct) -> list[int]:
        """Multiply-accumulates of a group of one stream at each depth."""
        x: Any = jax.ShapeDtypeStruct((1, self.size, *frames.shape[2:]), frames.dtype)
        found = []
        for depth in range(1, self.network.depth + 1):
            flat = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((self.size, *x.shape[2:]), x.dtype), x
            )
            _, caches = self._shapes(params, depth, flat)
            features = jax.eval_shape(
                lambda params, x, d=depth: self.network.features(
                    params, d, self.network.stage(params, d, x, lambda x, *, fold=8: x)
                ),
                params,
                flat,
            )
            places = jax.ShapeDtypeStruct((1, self.size), jnp.int32)
            inputs = (
                x,
                tuple(caches),
                jax.ShapeDtypeStruct((1, features.shape[1]), features.dtype),
                jax.ShapeDtypeStruct((1,), jnp.float32),
                places,
                places,
            )
            found.append(count_macs(self._stage(params, depth), *inputs))
            x = jax.eval_shape(self._stage(params, depth), *inputs)[0]
        return found

    def _upto(self, params: Params, frames: Frames) -> list[int]:
        """Multiply-accumulates of a clip up to each checkpoint."""
        shape = jax.ShapeDtypeStruct((1, self.size, *frames.shape[1:]), frames.dtype)
        costs = self._costs(params, shape)
        order = self.route.nodes
        return [
            sum(costs[depth - 1] for _, depth in order[: order.index(node) + 1])
            for node in self.route.checkpoints
        ]
