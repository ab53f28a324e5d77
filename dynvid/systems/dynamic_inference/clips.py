"""Whole clips: a route over frame groups and depths, left at the first checkpoint that is sure."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dynvid.graph import count_macs
from dynvid.ops.early_exit import Exits, Measure, Prediction, confidence, stops
from dynvid.ops.loops import for_each
from dynvid.ops.progressive import ClipNetwork, Node, Route, check_clips
from dynvid.ops.temporal_shift import online_shift_step, shift_cache
from dynvid.systems.dynamic_inference.state import thresholds_of
from dynvid.types import Params, Work

Kept = dict[tuple[Any, ...], Any]
"""What later nodes need of earlier ones, one row a video."""

DecideFn = Callable[..., tuple[Prediction, Work]]
"""`decide(params, clips, thresholds) -> (prediction, work)`."""


def dynamic_inference(
    network: ClipNetwork,
    route: Route,
    *,
    measure: Measure = "max_softmax",
    bidirectional: bool = False,
    chunk: int = 1,
) -> DecideFn:
    """Classifies clips, each with no more computation than it takes to be sure.

    Dynamic Inference (arXiv 2002.03342, Figure 2). Nodes (group, depth) are computed in the order
    of the route. At a checkpoint (g, d):

        z = mean of the features at depth d of the frames computed so far
        logits = head_d(z)
        stop where confidence(logits) >= T_(g,d), else go on; stop at the last one

    Nothing after a checkpoint runs for the clips that stopped there: between two checkpoints there
    is a loop over a worklist of the clips still undecided, whose number of turns is known only when
    it runs. Where all have stopped, it makes no turn. Frames are shifted in time online, from what
    has been computed before (`dynvid.ops.temporal_shift.online_shift_step`).

    Reconstruction: the fusion by means, the criterion and the route; see `dynvid.ops.progressive`.

    Args:
      network: The network, with a head for each depth that has checkpoints.
      route: The route.
      measure: How confidence is measured.
      bidirectional: Whether frames also read from the nearest later frame that is there.
      chunk: How many clips go through the network at once, in each turn of a loop; more than one
        pays on devices that a single clip does not fill. What fills up the last chunk is not
        counted as work.

    Returns:
      `decide(params, clips, thresholds) -> (Prediction, Work)`, jitted, for clips
      `(S, T, H, W, C)` and a threshold, one a checkpoint, or one a clip and checkpoint; new
      thresholds compile nothing again. `work.changed` is the share of frames that were looked at;
      its details are `exit`, `int32[S]`, and `finished`, `bool[S]`, all True. It raises ValueError
      for clips of another length, a route deeper than the network, or thresholds of another shape.

    Raises:
      ValueError: `chunk` is below one.

    Exact: a clip that stops at checkpoint k gets the logits that `checkpoint_logits` has there, bit
    for bit on integers; thresholds of infinity are full inference.

    >>> from dynvid.ops.progressive import frame_groups, make_route
    >>> class Mean:
    ...     depth = 1
    ...     def stage(self, params, depth, x, shift):
    ...         return x
    ...     def features(self, params, depth, maps):
    ...         return maps.mean((1, 2))
    ...     def head(self, params, depth, features):
    ...         return features @ params
    >>> route = make_route(frame_groups(4, 2), depth=1)
    >>> decide = dynamic_inference(Mean(), route)
    >>> clips = jnp.zeros((2, 4, 1, 1, 1)).at[1].set(9.0)
    >>> found, work = decide(jnp.array([[1.0, 0.0]]), clips, 0.9)
    >>> found.exits.exit.tolist(), work.macs.tolist()
    ([1, 0], [4.0, 2.0])
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1; got {chunk}")
    system = _System(network, route, measure, bidirectional, chunk)

    @jax.jit
    def decide(params: Params, clips: jax.Array, thresholds: ArrayLike) -> tuple[Prediction, Work]:
        check_clips(clips.shape, network, route)
        limits = thresholds_of(thresholds, (clips.shape[0], len(route.checkpoints)))
        return system.run(params, clips, limits)

    return decide


def route_macs(network: ClipNetwork, params: Params, clip: Any, route: Route) -> tuple[int, ...]:
    """Multiply-accumulates of one clip up to each checkpoint, all heads on the way included.

    Args:
      network: The network.
      params: Its parameters, or their shapes.
      clip: `(T, H, W, C)`, or its shape and dtype.
      route: The route.

    Returns:
      An integer a checkpoint.

    >>> from dynvid.ops.progressive import FIGURE_2D, make_route
    >>> from dynvid.models.actions import action_network
    >>> from dynvid.models.clip_network import staged
    >>> from flax import nnx
    >>> network, params = staged(nnx.eval_shape(lambda: action_network(rngs=nnx.Rngs(0))))
    >>> clip = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
    >>> macs = route_macs(network, params, clip, make_route(FIGURE_2D, depth=3))
    >>> len(macs), macs[-1] == 2 * macs[2]
    (6, True)
    """
    system = _System(network, route, "max_softmax", False, 1)
    clips = jax.ShapeDtypeStruct((1, *clip.shape), clip.dtype)
    check_clips(clips.shape, network, route)
    return system.macs(params, clips)


class _System(NamedTuple):
    """A network, a route and choices."""

    network: ClipNetwork
    route: Route
    measure: Measure
    bidirectional: bool
    chunk: int

    def segments(self) -> list[list[Node]]:
        """The nodes up to each checkpoint, from the one before."""
        found: list[list[Node]] = [[]]
        for node in self.route.nodes:
            found[-1].append(node)
            if node in self.route.checkpoints:
                found.append([])
        return found[:-1]

    def run(
        self, params: Params, clips: jax.Array, thresholds: jax.Array
    ) -> tuple[Prediction, Work]:
        streams, count = thresholds.shape
        undecided = jnp.ones(streams, bool)
        exits = jnp.full(streams, -1, jnp.int32)
        confidences, kept, logits = [], {}, None
        for k, segment in enumerate(self.segments()):
            kept, logits = self._advance(params, clips, segment, undecided, kept, logits)
            sure = jnp.where(undecided, confidence(logits, measure=self.measure), jnp.nan)
            confidences.append(sure.astype(jnp.float32))
            stop = undecided if k == count - 1 else undecided & stops(sure, thresholds[:, k])
            exits = jnp.where(stop, k, exits)
            undecided = undecided & ~stop
        assert logits is not None
        macs = jnp.array(self.macs(params, clips), jnp.float32)
        found = Exits(
            jnp.stack(confidences, 1), thresholds, exits, jnp.broadcast_to(macs, (streams, count))
        )
        seen = jnp.array([self._seen(node) for node in self.route.checkpoints], jnp.float32)
        work = Work(
            macs=macs[exits],
            dense_macs=jnp.full(streams, macs[-1]),
            changed=seen[exits],
            details={"exit": exits, "finished": jnp.ones(streams, bool)},
        )
        return Prediction(logits, found), work

    def _seen(self, checkpoint: Node) -> float:
        """The share of frames looked at up to a checkpoint."""
        nodes = self.route.nodes[: self.route.nodes.index(checkpoint) + 1]
        groups = {group for group, _ in nodes}
        return sum(len(self.route.groups[g - 1]) for g in groups) / self.route.frames

    def _advance(
        self,
        params: Params,
        clips: jax.Array,
        segment: list[Node],
        which: jax.Array,
        kept: Kept,
        logits: jax.Array | None,
    ) -> tuple[Kept, jax.Array]:
        """Computes the nodes up to the next checkpoint for the clips `which`, and for no others.

        Returns what nodes after them need, and the logits with those of these clips replaced.
        """
        streams = clips.shape[0]

        def compute(clips: jax.Array, kept: Kept) -> tuple[Kept, jax.Array]:
            return self._compute(params, clips, segment, kept)

        one = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), (clips, kept)
        )
        shapes = jax.eval_shape(compute, *one)
        empty = jax.tree.map(lambda x: jnp.zeros((streams, *x.shape[1:]), x.dtype), shapes)
        # What is only read stays outside the loop; what is written anew starts from what there is.
        buffers: Kept = {name: kept.get(name, value) for name, value in empty[0].items()}
        read = {name: value for name, value in kept.items() if name not in buffers}
        passed = {name: buffers.pop(name) for name in list(buffers) if not _written(name, segment)}
        answers = empty[1] if logits is None else logits

        def turn(place: jax.Array, state: tuple[Kept, jax.Array]) -> tuple[Kept, jax.Array]:
            buffers, answers = state
            here = jax.tree.map(lambda x: x[place], {**read, **passed, **buffers})
            found, new = compute(clips[place], here)
            buffers = {
                name: jax.tree.map(lambda x, y: x.at[place].set(y), buffers[name], found[name])
                for name in buffers
            }
            return buffers, answers.at[place].set(new)

        buffers, answers = for_each(which, turn, (buffers, answers), chunk=self.chunk)
        return {**passed, **buffers}, answers

    def _compute(
        self, params: Params, clips: jax.Array, segment: list[Node], kept: Kept
    ) -> tuple[Kept, jax.Array]:
        """Some nodes of a few clips, the last of them a checkpoint: what is kept, and logits."""
        kept = dict(kept)
        streams = clips.shape[0]
        logits = None
        for node in segment:
            group, depth = node
            frames = self.route.group(node)
            if depth == 1:
                x = clips[:, jnp.array(frames)]
                x = x.reshape(-1, *x.shape[2:])
            else:
                x = jax.tree.map(
                    lambda x: x.reshape(-1, *x.shape[2:]), kept[("maps", group, depth - 1)]
                )
            shift = self._shift(node, kept, streams)
            maps = self.network.stage(params, depth, x, shift)
            kept[("maps", group, depth)] = jax.tree.map(
                lambda x: x.reshape(streams, -1, *x.shape[1:]), maps
            )
            if not any(other[1] == depth for other in self._from(node) & self._checkpoints()):
                continue
            features = self.network.features(params, depth, maps)
            total = jnp.sum(features.reshape(streams, len(frames), -1), 1)
            total = total + kept.get(("sum", depth), 0)
            kept[("sum", depth)] = total
            if node in self.route.checkpoints:
                seen = len(frames) + len(self.route.processed(node))
                logits = self.network.head(params, depth, total / seen)
        assert logits is not None
        later = self._from(segment[-1]) - {segment[-1]}
        return {name: value for name, value in kept.items() if _needed(name, later)}, logits

    def _shift(self, node: Node, kept: Kept, streams: int) -> Callable[..., jax.Array]:
        """What shifts the maps of a node; its layers are counted in the order of the calls."""
        frames, depth = np.array(self.route.group(node)), node[1]
        previous = np.array(self.route.previous(node))
        later = np.array(self.route.previous(node, later=True)) if self.bidirectional else None
        layer = 0

        def shift(x: jax.Array, *, fold: int = 8) -> jax.Array:
            nonlocal layer
            name = ("shift", depth, layer)
            layer += 1
            together = x.reshape(streams, len(frames), *x.shape[1:])
            cache = kept.get(name)
            if cache is None:
                cache = shift_cache(together, self.route.frames, fold=fold, both=self.bidirectional)
            y, kept[name] = online_shift_step(
                together, cache, frames, previous, following=later, fold=fold
            )
            return y.reshape(x.shape)

        return shift

    def _from(self, node: Node) -> set[Node]:
        """A node and all that follow."""
        return set(self.route.nodes[self.route.nodes.index(node) :])

    def _checkpoints(self) -> set[Node]:
        return set(self.route.checkpoints)

    def macs(self, params: Params, clips: Any) -> tuple[int, ...]:
        """Of one clip, up to each checkpoint."""
        clip = jax.ShapeDtypeStruct((1, *clips.shape[1:]), clips.dtype)
        kept: Any = {}
        total, found = 0, []
        for segment in self.segments():

            def compute(params: Params, clip: jax.Array, kept: Kept, segment=segment) -> Any:
                return self._compute(params, clip, segment, kept)

            total += count_macs(compute, params, clip, kept)
            kept, _ = jax.eval_shape(compute, params, clip, kept)
            found.append(total)
        return tuple(found)


def _needed(name: tuple[Any, ...], later: set[Node]) -> bool:
    """Whether one of the later nodes reads what goes by a name."""
    if name[0] == "maps":
        return (name[1], name[2] + 1) in later
    return any(depth == name[1] for _, depth in later)


def _written(name: tuple[Any, ...], segment: list[Node]) -> bool:
    """Whether one of these nodes writes it."""
    if name[0] == "maps":
        return (name[1], name[2]) in segment
    return any(depth == name[1] for _, depth in segment)
