"""Progressive inference: a static route over frame groups and depths, with checkpoints on it.

Dynamic Inference (arXiv 2002.03342, abstract and Figure 2): computation is a grid of frame groups
(the input axis) and stages of the network (the depth axis); a route visits its nodes one by one,
and at some of them, the checkpoints, a head says what it would answer if it stopped there.

The number of groups, the order of the nodes, where heads sit and how features are fused are our
reconstruction, as far as the slides leave them open.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.ops.temporal_shift import NONE, nearest_processed, online_shift
from dynvid.types import Params

Groups = tuple[tuple[int, ...], ...]
"""Frames of each group, ascending, counted from 0."""

Node = tuple[int, int]
"""(group, depth), both counted from 1 as in the paper."""

Scheme = Literal["depth", "input", "joint"]
Permutation = Literal["strided", "stratified", "identity"]

FIGURE_2D: Groups = ((0, 3, 5, 7), (1, 2, 4, 6))
"""The permutation of Dynamic Inference's Figure 2d: 8 frames, 2 groups."""


class ShiftFn(Protocol):
    """`shift(x, fold=8)`: a map `(N, h, w, C)` of N frames, temporally shifted."""

    def __call__(self, x: jax.Array, *, fold: int = 8) -> jax.Array:
        """Shifts."""
        ...


class ClipNetwork(Protocol):
    """A network that is computed stage by stage, with a head after every stage.

    Attributes:
      depth: D, how many stages there are.
    """

    @property
    def depth(self) -> int:
        """How many stages there are."""
        ...

    def stage(self, params: Params, depth: int, x: Any, shift: ShiftFn) -> Any:
        """The maps of stage `depth`, from frames `(N, H, W, C)` or from the maps before it.

        It calls `shift` wherever frames look at each other, as often and in the same order every
        time.
        """
        ...

    def features(self, params: Params, depth: int, maps: Any) -> jax.Array:
        """What is averaged over frames: `(N, F)` of the maps of a stage."""
        ...

    def head(self, params: Params, depth: int, features: jax.Array) -> jax.Array:
        """Logits `(..., classes)` of averaged features `(..., F)`."""
        ...


def frame_groups(
    frames: int,
    groups: int,
    *,
    permutation: Permutation = "strided",
    key: jax.Array | None = None,
) -> Groups:
    """Divides the frames of a clip into groups, each of which spans all of it where permuted.

    Dynamic Inference's frame permutation. The rule is our reconstruction from Figure 2d, which
    takes one frame of every pair: T frames are cut into T / G runs of G consecutive ones, each
    group gets one frame of every run, in its order in time.

    Args:
      frames: T.
      groups: G, which divides T.
      permutation: "strided": frame i goes to group i mod G. "stratified": at random within every
        run. "identity": no permutation, consecutive frames stay together.
      key: A random key, for "stratified" only; draw once and keep the result with the network.

    Returns:
      The frames of each group.

    Raises:
      ValueError: G does not divide T, or there is a key where none belongs or none where one does.

    >>> frame_groups(8, 2)
    ((0, 2, 4, 6), (1, 3, 5, 7))
    >>> frame_groups(8, 2, permutation="identity")
    ((0, 1, 2, 3), (4, 5, 6, 7))
    """
    if frames < 1 or groups < 1 or frames % groups:
        raise ValueError(f"groups must divide the number of frames, {frames}; got {groups}")
    if (permutation == "stratified") != (key is not None):
        raise ValueError(f'key must be given for "stratified", and only there; got {permutation!r}')
    runs = np.arange(frames).reshape(-1, groups)
    if permutation == "identity":
        found = runs.reshape(groups, -1)
    elif permutation == "strided":
        found = runs.T
    elif permutation == "stratified":
        assert key is not None
        draws = jax.random.uniform(key, runs.shape)
        found = np.take_along_axis(runs, np.argsort(np.asarray(draws), axis=1), axis=1).T
    else:
        raise ValueError(
            f"permutation must be 'strided', 'stratified' or 'identity'; got {permutation!r}"
        )
    return tuple(tuple(sorted(map(int, group))) for group in found)


@dataclasses.dataclass(frozen=True)
class Route:
    """The order in which nodes are computed, and at which of them it may stop.

    Attributes:
      groups: The frames of each group.
      nodes: (group, depth) in the order of computation, counted from 1.
      checkpoints: Those with a head, in their order on the route; the last node is one.
    """

    groups: Groups
    nodes: tuple[Node, ...]
    checkpoints: tuple[Node, ...]

    def __post_init__(self):
        frames = [frame for group in self.groups for frame in group]
        ascending = all(tuple(sorted(group)) == group for group in self.groups)
        if not frames or sorted(frames) != list(range(len(frames))) or not ascending:
            raise ValueError(
                "groups must have every frame from 0 on once, ascending within a group; got "
                f"{self.groups}"
            )
        if not self.nodes:
            raise ValueError("route must have at least one node; got none")
        done: set[Node] = set()
        for node in self.nodes:
            group, depth = node
            if not 1 <= group <= len(self.groups) or depth < 1:
                raise ValueError(
                    f"route must have nodes (group, depth) of groups 1 to {len(self.groups)} and "
                    f"depths from 1 on; got {node}"
                )
            if node in done:
                raise ValueError(f"route must have each node once; got {node} twice")
            if depth > 1 and (group, depth - 1) not in done:
                raise ValueError(
                    f"route must compute {(group, depth - 1)} before {node}; got {self.nodes}"
                )
            done.add(node)
        if unknown := [node for node in self.checkpoints if node not in done]:
            raise ValueError(f"checkpoints must be nodes of the route; got {unknown[0]}")
        expected = tuple(node for node in self.nodes if node in self.checkpoints)
        if self.checkpoints != expected or self.nodes[-1] not in self.checkpoints:
            raise ValueError(
                "checkpoints must be in the order of the route and end with its last node, "
                f"{self.nodes[-1]}; got {self.checkpoints}"
            )

    @property
    def frames(self) -> int:
        """T, the frames of a clip."""
        return sum(map(len, self.groups))

    @property
    def depth(self) -> int:
        """The deepest stage that is computed."""
        return max(depth for _, depth in self.nodes)

    def group(self, node: Node) -> tuple[int, ...]:
        """The frames of a node."""
        return self.groups[node[0] - 1]

    def processed(self, node: Node) -> tuple[int, ...]:
        """The frames computed at a node's depth before it.

        >>> route = make_route(FIGURE_2D, depth=2)
        >>> route.processed((2, 1)), route.processed((1, 2))
        ((0, 3, 5, 7), ())
        """
        before = self.nodes[: self.nodes.index(node)]
        return tuple(t for other in before if other[1] == node[1] for t in self.group(other))

    def previous(self, node: Node, *, later: bool = False) -> tuple[int, ...]:
        """Which frame each of a node's frames reads its shifted channels from; `NONE` for none."""
        return nearest_processed(self.group(node), self.processed(node), later=later)

    def previous_at(self, depth: int, *, later: bool = False) -> tuple[int, ...]:
        """The same for all T frames at a depth, `NONE` also for those never computed there."""
        found = [NONE] * self.frames
        for node in self.nodes:
            if node[1] == depth:
                for frame, source in zip(
                    self.group(node), self.previous(node, later=later), strict=True
                ):
                    found[frame] = source
        return tuple(found)


def make_route(
    groups: Groups,
    *,
    depth: int,
    scheme: Scheme = "joint",
    order: Literal["depth_first", "breadth"] = "depth_first",
    checkpoints: Sequence[Node] | None = None,
) -> Route:
    """The route of one of the paper's three schemes (Dynamic Inference, Figure 2a, b, d).

    Reconstruction: within a group, depth first, as a public reading of Figure 2d has it; the slides
    themselves do not say.

    Args:
      groups: The frames of each group.
      depth: D, how many stages the network has.
      scheme: "depth": all frames at once, a checkpoint after every stage. "input": every group
        through all stages, a checkpoint after each group. "joint": a checkpoint at every node.
      order: "depth_first" finishes a group before the next; "breadth" takes all groups through a
        stage before the next, and needs all frames from the start.
      checkpoints: Those to keep of them, the last node among them; all where None.

    Returns:
      The route.

    Raises:
      ValueError: An option is none of the above; a checkpoint is not on the route.

    >>> make_route(FIGURE_2D, depth=2).nodes
    ((1, 1), (1, 2), (2, 1), (2, 2))
    >>> make_route(FIGURE_2D, depth=2, scheme="input").checkpoints
    ((1, 2), (2, 2))
    >>> make_route(FIGURE_2D, depth=2, scheme="depth").groups
    ((0, 1, 2, 3, 4, 5, 6, 7),)
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1; got {depth}")
    if scheme == "depth":
        groups = (tuple(sorted(frame for group in groups for frame in group)),)
    elif scheme not in ("input", "joint"):
        raise ValueError(f"scheme must be 'depth', 'input' or 'joint'; got {scheme!r}")
    count, stages = range(1, len(groups) + 1), range(1, depth + 1)
    if order == "depth_first":
        nodes = tuple((g, d) for g in count for d in stages)
    elif order == "breadth":
        nodes = tuple((g, d) for d in stages for g in count)
    else:
        raise ValueError(f"order must be 'depth_first' or 'breadth'; got {order!r}")
    if checkpoints is None:
        checkpoints = [node for node in nodes if scheme != "input" or node[1] == depth]
    return Route(groups, nodes, tuple((g, d) for g, d in checkpoints))


def checkpoint_logits(
    network: ClipNetwork,
    params: Params,
    clips: jax.Array,
    route: Route,
    *,
    bidirectional: bool = False,
) -> jax.Array:
    """What every checkpoint of a route says of clips, all frames in one pass: to train, to judge.

    The masked batch form: at each depth every frame reads from the frame that the route would have
    computed before it. A checkpoint (g, d) averages the features of the frames computed at its
    depth so far and asks the head of that depth (the slides' sum over frames, divided by their
    number so that the scale is that of one frame: our choice).

    Args:
      network: The network.
      params: Its parameters.
      clips: `(S, T, H, W, C)`, frames in their order in time.
      route: The route.
      bidirectional: Whether frames also read from the nearest later frame that is there.

    Returns:
      `(S, checkpoints, classes)`.

    Raises:
      ValueError: The clips have another number of frames, or the route goes deeper than the
        network.

    Exact: equal, bit for bit on integers, to what `dynvid.systems.dynamic_inference` computes node
    by node.

    >>> class Mean:
    ...     depth = 1
    ...     def stage(self, params, depth, x, shift):
    ...         return x
    ...     def features(self, params, depth, maps):
    ...         return maps.mean((1, 2))
    ...     def head(self, params, depth, features):
    ...         return features
    >>> clips = jnp.arange(4.0).reshape(1, 4, 1, 1, 1)
    >>> route = make_route(frame_groups(4, 2), depth=1)
    >>> checkpoint_logits(Mean(), None, clips, route).tolist()
    [[[1.0], [1.5]]]
    """
    check_clips(clips.shape, network, route)
    streams, frames = clips.shape[:2]
    maps: Any = clips.reshape(-1, *clips.shape[2:])
    found: dict[Node, jax.Array] = {}
    for depth in range(1, route.depth + 1):
        previous = np.array(route.previous_at(depth))
        following = np.array(route.previous_at(depth, later=True)) if bidirectional else None

        def shift(
            x: jax.Array, *, fold: int = 8, previous=previous, following=following
        ) -> jax.Array:
            together = x.reshape(streams, frames, *x.shape[1:])
            y = online_shift(together, previous, following=following, fold=fold)
            return y.reshape(x.shape)

        maps = network.stage(params, depth, maps, shift)
        here = [node for node in route.checkpoints if node[1] == depth]
        if not here:
            continue
        features = network.features(params, depth, maps)
        features = features.reshape(streams, frames, -1)
        means = []
        for node in here:
            seen = np.array(sorted((*route.processed(node), *route.group(node))))
            means.append(jnp.sum(features[:, seen], 1) / len(seen))
        logits = network.head(params, depth, jnp.stack(means, 1))
        found |= {node: logits[:, i] for i, node in enumerate(here)}
    return jnp.stack([found[node] for node in route.checkpoints], 1)


def check_clips(shape: Sequence[int], network: ClipNetwork, route: Route) -> None:
    """Checks that clips, a network and a route fit each other.

    Args:
      shape: Of the clips.
      network: The network.
      route: The route.

    Raises:
      ValueError: They do not.
    """
    if len(shape) != 5 or shape[1] != route.frames:
        raise ValueError(
            f"clips must be (S, {route.frames}, H, W, C), {route.frames} frames as the route has; "
            f"got {tuple(shape)}"
        )
    if route.depth > network.depth:
        unknown = next(node for node in route.nodes if node[1] > network.depth)
        raise ValueError(
            f"route must have depths up to {network.depth}, the network's; got node {unknown}"
        )
