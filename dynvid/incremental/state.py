"""What an incremental function keeps between frames."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from dynvid.incremental.rules import Layout
from dynvid.types import Params, Work

Halo = tuple[tuple[int, int], tuple[int, int]]
"""How many positions surround a map: `((above, left), (below, right))`."""

_SAMPLES = 8  # of each array of the parameters


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "frames",
        "caches",
        "threshold",
        "truncation",
        "scales",
        "weights",
        "parameters",
        "joined",
        "held",
        "quiet",
        "still",
        "turn",
        "stale",
        "calm",
        "seen",
        "work",
        "changes",
    ],
    meta_fields=[
        "names",
        "layers",
        "rows",
        "halos",
        "layouts",
        "axes",
        "compares",
        "parameter_shapes",
    ],
)
@dataclasses.dataclass(frozen=True)
class State:
    """What an incremental function keeps between frames: a pytree of arrays, to donate or save.

    Attributes:
      frames: The reference frames with their halo of zeros, `(streams, H', W', C)`.
      caches: What each unit keeps: maps with their halo, `(streams, h', w', ...)`, or vectors.
      threshold: What a pixel must differ by to count as changed, in the frames' unit,
        `float32[streams]`.
      truncation: Of each of `layers`, relative to its scale, `float32[layers, streams]`.
      scales: The root mean square of each cache on the frames of `init` or of the last
        `recalibrate`, `float32[caches, streams]`.
      weights: Kernels in the form that the cells read, made from the parameters.
      parameters: Some values of each array of the parameters that all this was computed with, to
        tell when a step comes with others.
      joined: Which streams were put in since the last step, `bool[streams]`.
      held: Where each cache may be held back by its truncation: what was computed there last did
        not replace it. `bool[streams, h, w]` of maps, `bool[streams]` of others, None of those that
        are never held back, and of all where nothing ever settles.
      quiet: For how many frames nothing has moved in each block of `dynvid.ops.refresh.BLOCK`
        pixels, `int32[streams, rows, columns]`; None where nothing ever settles.
      still: For how many frames nothing at all has changed, `int32[streams]`.
      turn: How many steps there were, `int32[streams]`: whose turn it is in the rotation.
      stale: Whether the last step was the function itself and left the caches as they were,
        `bool[streams]`, the same for all streams.
      calm: For how many frames no more changed than `dense_above` allows, `int32[streams]`.
      seen: What the rule of change keeps, a pytree of arrays; None of a plain threshold.
      work: What the last step executed; its details are the active `cells` of each segment, all
        streams together, `int32[segments]`, which segments ran on whole frames, `dense`,
        `bool[segments]`, how many positions of all layers and streams were computed again to be
        exact, `settled`, `int32[]`, and whether all of it was the function itself, `whole`,
        `bool[]`.
      changes: Where each leaf of the output may differ from what it was before the last step, in
        the order of `jax.tree.leaves`: `bool[streams, h, w]` for maps, whatever the model's own
        axis order, `bool[streams]` for everything else. All True after `init`; all False after
        every step for what does not depend on the frames. How the same the rest is, `incremental`
        says.
      names: The unit that each cache belongs to.
      layers: The units that truncation applies to; none in an exact function.
      rows: Of each cache, its row of `truncation`; -1 where it is never held back.
      halos: The halo of the frames and of each cache, None for vectors.
      layouts: The model's own axis order of each cached map, None for vectors.
      axes: The stream axis of each cache as it is stored, -1 where it is of all streams together.
      compares: Whether the function compares new values with old ones at all: False where it was
        made with a truncation of 0.
      parameter_shapes: Of each array of the parameters, for a step that comes with others.
    """

    frames: jax.Array
    caches: tuple[jax.Array, ...]
    threshold: jax.Array
    truncation: jax.Array
    scales: jax.Array
    weights: tuple[jax.Array, ...]
    parameters: jax.Array
    joined: jax.Array
    held: tuple[jax.Array | None, ...]
    quiet: jax.Array | None
    still: jax.Array
    turn: jax.Array
    stale: jax.Array
    calm: jax.Array
    seen: Any
    work: Work
    changes: tuple[jax.Array, ...]
    names: tuple[str, ...]
    layers: tuple[str, ...]
    rows: tuple[int, ...]
    halos: tuple[Halo | None, ...]
    layouts: tuple[Layout | None, ...]
    axes: tuple[int, ...]
    compares: bool
    parameter_shapes: tuple[tuple[int, ...], ...]

    @property
    def reference(self) -> jax.Array:
        """The frames that the outputs belong to, `(streams, H, W, C)`."""
        halo = self.halos[0]
        assert halo is not None
        return interior(self.frames, halo)

    @property
    def tolerances(self) -> jax.Array:
        """The truncation of each cache in its own unit, `float32[caches, streams]`."""
        none = jnp.zeros((1, len(self.threshold)), jnp.float32)
        relative = jnp.concatenate([self.truncation, none])[np.array(self.rows, np.int32)]
        # An infinite one holds back everything, also what was zero everywhere.
        return jnp.where(jnp.isinf(relative), jnp.inf, relative * self.scales)

    def with_settings(
        self,
        *,
        threshold: ArrayLike | None = None,
        truncation: ArrayLike | Mapping[str, ArrayLike] | None = None,
    ) -> "State":
        """The state with other settings, from the next step on; nothing is compiled again for it.

        Args:
          threshold: As in `incremental`: a number, or one a stream. None leaves it as it is.
          truncation: Likewise, for all layers or by layer; layers left out of a mapping are exact.

        Returns:
          The state. What is kept stays as it is: where a truncation becomes smaller, it was held
          back by the larger one until something changes there again.

        Raises:
          ValueError: Settings below zero or not one a stream, layers that do not exist, or a
            truncation for a function that was made with a truncation of 0, which compares nothing.

        >>> import dynvid
        >>> video = dynvid.incremental(lambda gain, x: x * gain, threshold=15)
        >>> state, _ = video.init(jnp.ones(()), jnp.zeros((2, 4, 4, 1)))
        >>> state.with_settings(threshold=[10, 20]).threshold.tolist()
        [10.0, 20.0]
        """
        new: dict[str, Any] = {}
        streams = len(self.threshold)
        if threshold is not None:
            new["threshold"] = by_stream("threshold", threshold, streams)
        if truncation is not None:
            given = truncation
            if not isinstance(given, Mapping):
                given = dict.fromkeys(self.layers or self.names, given)
            if unknown := sorted(set(given) - set(self.names)):
                known = list(dict.fromkeys(self.names))
                raise ValueError(f"truncation must name layers of {known}; got {unknown}")
            taus = {
                name: by_stream(f"truncation[{name!r}]", tau, streams)
                for name, tau in given.items()
            }
            if not self.compares and not all(map(is_zero, given.values())):
                raise ValueError(
                    "truncation must be 0 in a function that was made with a truncation of 0; "
                    f"got {truncation!r}"
                )
            none = jnp.zeros(streams, jnp.float32)
            rows = [taus.get(name, none) for name in self.layers]
            new["truncation"] = jnp.stack(rows) if rows else self.truncation
        return dataclasses.replace(self, **new)

    def stream_axes(self) -> "State":
        """The same pytree with the stream axis of each leaf; -1 where it is of all streams."""
        first = jax.tree.map(lambda _: 0, self)
        work = first.work._replace(details=jax.tree.map(lambda _: -1, first.work.details))
        return dataclasses.replace(
            first,
            caches=self.axes,
            truncation=1,
            scales=1,
            weights=tuple(-1 for _ in self.weights),
            parameters=-1,
            work=work,
        )

    def restarted(self, which: jax.Array) -> "State":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`."""
        return dataclasses.replace(self, joined=self.joined | which)


def is_zero(setting: ArrayLike) -> bool:
    """Whether a setting is known to be zero for every stream.

    >>> is_zero(0.0), is_zero([0.0, 0.5])
    (True, False)
    """
    return not isinstance(setting, Tracer) and not np.any(np.asarray(setting))


def check_setting(name: str, given: ArrayLike) -> None:
    """Checks a threshold or truncation, as far as it is known.

    Raises:
      ValueError: Where it is not numbers of at least 0.

    >>> check_setting("threshold", -1)
    Traceback (most recent call last):
    ...
    ValueError: threshold must be a number of at least 0, or one a stream; got -1
    """
    if not isinstance(given, Tracer):
        numbers = np.asarray(given)
        if numbers.dtype.kind not in "fiu" or numbers.ndim > 1 or not (numbers >= 0).all():
            raise ValueError(
                f"{name} must be a number of at least 0, or one a stream; got {given!r}"
            )


def by_stream(name: str, given: ArrayLike, streams: int) -> jax.Array:
    """A setting for each stream, `float32[streams]`.

    Args:
      name: What errors call it.
      given: A number, or one a stream.
      streams: How many there are.

    Raises:
      ValueError: It is neither, or below zero.

    >>> by_stream("threshold", 15, 2).tolist()
    [15.0, 15.0]
    """
    check_setting(name, given)
    array = jnp.asarray(given, jnp.float32)
    if array.shape not in ((), (streams,)):
        raise ValueError(
            f"{name} must be a number or one for each of {streams} streams; "
            f"got shape {list(array.shape)}"
        )
    return jnp.broadcast_to(array, (streams,))


def interior(padded: jax.Array, halo: Halo) -> jax.Array:
    """A map without its halo.

    >>> interior(jnp.arange(9).reshape(1, 3, 3), ((1, 0), (1, 1))).tolist()
    [[[3, 4]]]
    """
    (top, left), (bottom, right) = halo
    return padded[:, top : padded.shape[1] - bottom, left : padded.shape[2] - right]


def write_interior(padded: jax.Array, values: jax.Array, halo: Halo) -> jax.Array:
    """Writes a map into the inside of its halo.

    >>> write_interior(jnp.zeros((1, 2, 2)), jnp.ones((1, 1, 1)), ((1, 0), (0, 1))).tolist()
    [[[0.0, 0.0], [1.0, 0.0]]]
    """
    start = (0, *halo[0], *(0,) * (padded.ndim - 3))
    return lax.dynamic_update_slice(padded, values.astype(padded.dtype), start)


def sample(params: Params) -> jax.Array:
    """Some values of each array of the parameters, to tell others from them at next to no cost.

    >>> sample({"bias": jnp.arange(20.0)}).tolist()
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]
    """
    parts = [jnp.zeros(0, jnp.float32)]
    for leaf in map(jnp.asarray, jax.tree.leaves(params)):
        if leaf.size and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            stride = max(1, leaf.size // _SAMPLES)
            parts.append(leaf.reshape(-1)[::stride][:_SAMPLES].astype(jnp.float32))
    return jnp.concatenate(parts)


def shapes_of(params: Params) -> tuple[tuple[int, ...], ...]:
    """The shape of each array of the parameters.

    >>> shapes_of({"bias": jnp.zeros(3), "gain": 1.0})
    ((3,), ())
    """
    return tuple(tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def same_sample(a: jax.Array, b: jax.Array) -> jax.Array:
    """Whether two samples are of the same parameters, as far as they tell; NaN equals NaN.

    >>> same_sample(jnp.array([1.0, jnp.nan]), jnp.array([1.0, jnp.nan])).item()
    True
    """
    return jnp.all((a == b) | (jnp.isnan(a) & jnp.isnan(b)))
