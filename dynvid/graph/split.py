"""Cutting a frame function in two at a named intermediate: split computing."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynvid.graph.evaluate import evaluate
from dynvid.graph.primitives import ELEMENTWISE
from dynvid.graph.trace import Graph, Node, Value, trace
from dynvid.types import Frames, Output, Params

# Operations that only arrange a value anew: cheaper to do again than to carry both.
_ARRANGEMENTS = frozenset({"broadcast_in_dim", "name", "reshape", "squeeze", "transpose"})


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["named", "others"], meta_fields=["frames"]
)
@dataclasses.dataclass(frozen=True)
class Features:
    """What crosses a cut: a pytree of arrays, the named values first.

    To hand the back what a codec made of a named value, put it in its place:
    `dataclasses.replace(features, named={"layer_12": decoded})`.

    Attributes:
      named: The value of each name; a tuple, in the order of `fn`, where `fn` gives a name to
        several.
      others: What else the back reads of what the front knows. A value that has a name itself has
        it as its key.
      frames: The shape and dtype of the frames: a constant of the pytree, no leaf.
    """

    named: Mapping[str, jax.Array | tuple[jax.Array, ...]]
    others: Mapping[str, jax.Array]
    frames: jax.ShapeDtypeStruct

    def __getitem__(self, name: str) -> jax.Array | tuple[jax.Array, ...]:
        """The value of a name."""
        return self.named[name]


class Split(NamedTuple):
    """A frame function in two parts.

    Attributes:
      front: `front(params, frames) -> Features`.
      back: `back(params, features) -> outputs`.
    """

    front: Callable[[Params, Frames], Features]
    back: Callable[[Params, Features], Output]


class _Cut(NamedTuple):
    """Where a graph is cut."""

    graph: Graph
    named: dict[str, tuple[Value, ...]]
    others: dict[str, Value]


def split(fn: Callable[[Params, Frames], Output], *, at: str | Sequence[str]) -> Split:
    """Cuts a frame function in two at an intermediate that it names: `back(front(x)) = fn(x)`.

    Names are given by `jax.ad_checkpoint.checkpoint_name(x, "name")` inside `fn`. The front
    computes what the named values need and whatever else `fn` computes before the last of them;
    the back does the rest, from the named values and all other values that are alive there (skip
    connections, outputs that are ready). Two rules keep down what crosses: what depends on the
    parameters alone is computed again in the back, and the frames themselves cross only where
    something that depends on a named value, or an output, reads them: what `fn` computes from
    them alone after the cut moves before it.

    Args:
      fn: `fn(params, frames) -> outputs`, pure, any pytree of outputs.
      at: A name, or several. Whatever reads a named value, save for what another named value
        needs, is in the back.

    Returns:
      `(front, back)`, ordinary functions to jit, to differentiate or to run elsewhere; the front
      also to run incrementally. Both trace `fn` whenever they are called outside `jit`; both take
      all of the parameters. They evaluate the operations of `fn` as they are traced, with nested
      calls inlined: a custom derivative is not kept.

    Raises:
      ValueError: For no name, or one twice; by `front` and `back` for a name that no operation of
        `fn` has that an output needs (names inside loops and branches are not seen), one that
        depends on the parameters alone, or features that belong to another function or cut.

    Exact when both are jitted into one program or both evaluated operation by operation, as
    `jax.disable_jit` does; bit for bit on integer-valued networks however they are compiled. With
    a jit for each, XLA cannot fuse arithmetic across the cut as it may in one jit of `fn` (a
    product and a sum into one rounding): a bit may then differ where the values are real.

    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def fn(gain, x):
    ...     y = checkpoint_name(x * gain, "scaled")
    ...     return y.sum(axis=(1, 2)) + x.max()
    >>> front, back = split(fn, at="scaled")
    >>> features = front(jnp.float32(3), jnp.ones((1, 4, 4, 2)))
    >>> features["scaled"].shape, {name: v.shape for name, v in features.others.items()}
    ((1, 4, 4, 2), {'reduce_max_3': ()})
    >>> back(jnp.float32(3), features)
    Array([[49., 49.]], dtype=float32)
    """
    names = (at,) if isinstance(at, str) else tuple(at)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"at must be a name or several different ones; got {at!r}")

    def cut(params: Params, frames: jax.ShapeDtypeStruct) -> _Cut:
        return _cut(trace(fn, jax.eval_shape(lambda p: p, params), frames), names)

    def front(params: Params, frames: Frames) -> Features:
        frames = jnp.asarray(frames)
        struct = jax.ShapeDtypeStruct(frames.shape, frames.dtype)
        graph, named, others = cut(params, struct)
        wanted = [*(v for values in named.values() for v in values), *others.values()]
        arrays = iter(evaluate(wanted, params=params, given={graph.frames: frames}))
        values = {name: tuple(next(arrays) for _ in marks) for name, marks in named.items()}
        return Features(
            {name: v[0] if len(v) == 1 else v for name, v in values.items()},
            dict(zip(others, arrays, strict=True)),
            struct,
        )

    def back(params: Params, features: Features) -> Output:
        if not isinstance(features, Features):
            raise ValueError(f"features must be what front returns; got {type(features).__name__}")
        graph, named, others = cut(params, features.frames)
        carried = _matched(named, features.named, "named")
        carried |= _matched({name: (v,) for name, v in others.items()}, features.others, "others")
        arrays = evaluate(graph.outputs, params=params, given=carried)
        return jax.tree.unflatten(graph.structure, arrays)

    return Split(front, back)


def _cut(graph: Graph, names: Sequence[str]) -> _Cut:
    """Works out which operations are in the front, and which of their values the back reads."""
    marks = [node for node in graph.nodes if node.primitive.name == "name"]
    named = {name: tuple(n.outputs[0] for n in marks if n.params["name"] == name) for name in names}
    if missing := [name for name, values in named.items() if not values]:
        known = dict.fromkeys(node.params["name"] for node in marks)
        raise ValueError(
            f"at must name what the outputs of fn need; got {', '.join(map(repr, missing))}, where "
            f"its names are: {', '.join(known) or 'none'}"
        )
    places = [value for values in named.values() for value in values]
    if fixed := [v.node.params["name"] for v in places if v.node and not v.frame_dependent]:
        raise ValueError(f"at must name what depends on the frames; got {fixed[0]!r}")

    cut = {_unnamed(value) for value in places}
    front = _ancestors(places)
    last = max(node.index for node in front)
    after: set[Node] = set()  # what depends on the cut
    images = {graph.frames}  # the frames, also when converted, scaled or rearranged
    late: set[Node] = set()  # what only such images reach, after the cut
    for node in graph.nodes:
        inputs = [value for value in node.inputs if value.frame_dependent]
        if not inputs:
            continue
        if node.primitive.name in ELEMENTWISE | _ARRANGEMENTS and images.issuperset(inputs):
            images.update(node.outputs)
        if node in front:
            continue
        if any(_unnamed(v) in cut or v.node in after for v in inputs):
            after.add(node)
        elif node.index < last:
            front.add(node)
        elif any(v in images or v.node in late for v in inputs):
            late.add(node)
    front |= late | _ancestors(value for node in late for value in node.inputs)

    # What the back reads of the front, backwards from the outputs.
    crossing: set[Value] = set()
    visited: set[Value] = set()
    stack = [_unnamed(value) for value in graph.outputs if value.frame_dependent]
    while stack:
        value = stack.pop()
        if value in visited or value in cut:
            continue
        visited.add(value)
        node = value.node
        if node is None or (node in front and node.primitive.name not in _ARRANGEMENTS):
            crossing.add(value)
        else:
            stack += [_unnamed(v) for v in node.inputs if v.frame_dependent]
    # Of several names of one value the first.
    labels = {_unnamed(mark.outputs[0]): mark.params["name"] for mark in reversed(marks)}
    others: dict[str, Value] = {}
    for value in sorted(crossing, key=_index):
        label = labels.get(value, _label(value))
        others[label if label not in others else f"{label}_{_index(value)}"] = value
    return _Cut(graph, named, others)


def _unnamed(value: Value) -> Value:
    """The value that a name was given to: naming makes no new one."""
    while value.node is not None and value.node.primitive.name == "name":
        (value,) = value.node.inputs
    return value


def _index(value: Value) -> int:
    return -1 if value.node is None else value.node.index


def _label(value: Value) -> str:
    if value.node is None:
        return "frames"
    number = value.node.outputs.index(value)
    return f"{value.node.primitive.name}_{value.node.index}" + (f"_{number}" if number else "")


def _ancestors(values: Iterable[Value]) -> set[Node]:
    """The operations that depend on the frames and that some values need."""
    found: set[Node] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        if value.node is not None and value.frame_dependent and value.node not in found:
            found.add(value.node)
            stack.extend(value.node.inputs)
    return found


def _matched(
    expected: Mapping[str, tuple[Value, ...]], given: Mapping[str, Any], field: str
) -> dict[Value, jax.Array]:
    """The arrays of one field of the features, by the value that each stands for."""
    if set(expected) != set(given):
        raise ValueError(
            f"features.{field} must be those of this cut, {sorted(expected)}; got {sorted(given)}"
        )
    found: dict[Value, jax.Array] = {}
    for name, values in expected.items():
        array = given[name]
        arrays = array if isinstance(array, tuple) else (array,)
        want = [(tuple(v.shape), jnp.dtype(v.dtype)) for v in values]
        have = [(tuple(jnp.shape(a)), jnp.result_type(a)) for a in arrays]
        if want != have:
            raise ValueError(f"features.{field}[{name!r}] must be {_text(want)}; got {_text(have)}")
        for value, part in zip(values, arrays, strict=True):
            found.setdefault(_unnamed(value), jnp.asarray(part))
    return found


def _text(kinds: Sequence[tuple[tuple[int, ...], Any]]) -> str:
    return " and ".join(f"{dtype}{list(shape)}" for shape, dtype in kinds)
