"""Temporal shift: some channels of a frame's map are taken from its neighbours in time.

A shift costs no multiply-accumulates. Offline it reads both neighbours (Lin et al., TSM, ICCV 2019,
section 3); online only what has been computed already (their section 4.2, and Dynamic Inference,
arXiv 2002.03342, where frames are computed out of order).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

NONE = -1
"""The index of the frame that is not there: zeros are taken from it."""


def offline_shift(x: jax.Array, *, fold: int = 8) -> jax.Array:
    """Takes the first C / fold channels from the next frame and as many from the one before.

    `y[t] = [x[t + 1][:f], x[t - 1][f:2f], x[t][2f:]]` with f = C // fold and zeros beyond both ends
    (TSM, section 3.2).

    Args:
      x: `(S, T, ..., C)`, frames in their order in time.
      fold: Which part of the channels is shifted each way.

    Returns:
      Same shape and dtype.

    Exact.

    >>> x = jnp.arange(1, 7).reshape(1, 3, 2)
    >>> offline_shift(x, fold=2)[0].tolist()
    [[3, 0], [5, 2], [0, 4]]
    """
    frames = np.arange(x.shape[1])
    following = np.where(frames + 1 < len(frames), frames + 1, NONE)
    return _joined(x, [_taken(x, following, 0, fold), _taken(x, frames - 1, 1, fold)])


def online_shift(
    x: jax.Array, previous: ArrayLike, *, following: ArrayLike | None = None, fold: int = 8
) -> jax.Array:
    """Takes the first C / fold channels of every frame from one computed before it.

    `y[t] = [x[previous[t]][:f], x[t][f:]]`, zeros where there is no such frame: the masked batch
    form of the online shift (TSM, section 4.2), for all frames of a clip at once. Which frame is
    the previous one where frames are computed out of order is our reconstruction (the slides do not
    say): `nearest_processed`.

    Args:
      x: `(S, T, ..., C)`.
      previous: `int[T]`, the frame that each one reads from; `NONE` for zeros.
      following: Likewise, for the next C / fold channels; None leaves them as they are.
      fold: Which part of the channels is shifted.

    Returns:
      Same shape and dtype.

    Exact.

    >>> x = jnp.arange(1, 7).reshape(1, 3, 2)
    >>> online_shift(x, (NONE, 0, 0), fold=2)[0].tolist()
    [[0, 2], [1, 4], [1, 6]]
    """
    parts = [_taken(x, previous, 0, fold)]
    if following is not None:
        parts.append(_taken(x, following, 1, fold))
    return _joined(x, parts)


def online_shift_step(
    x: jax.Array,
    cache: jax.Array,
    frames: ArrayLike,
    previous: ArrayLike,
    *,
    following: ArrayLike | None = None,
    fold: int = 8,
) -> tuple[jax.Array, jax.Array]:
    """The online shift of some frames, reading what earlier calls have left in a cache.

    Frames of one call see each other: their own channels go into the cache before it is read, since
    what is shifted is the input of a layer, which is there for all of them.

    Args:
      x: `(S, n, ..., C)`, the maps of n frames.
      cache: `(S, slots, ..., f)`, the channels of frames that others may read: f = C // fold, twice
        as many with `following`. Zeros at first; `shift_cache` makes one.
      frames: Where those n frames go in the cache, `int[n]`, or `int[S, n]` where streams differ.
      previous: Where each of them reads its first C // fold channels, likewise; `NONE` for zeros.
      following: Likewise, for the next C // fold; None leaves them as they are.
      fold: Which part of the channels is shifted.

    Returns:
      `(y, cache)`, of the same shapes.

    Exact: equal to `online_shift` on all frames, bit for bit, whatever the order of the calls,
    where each frame reads from those that were in an earlier call or are in the same.

    >>> x = jnp.arange(1, 7).reshape(1, 3, 2)
    >>> first, cache = online_shift_step(x[:, ::2], jnp.zeros((1, 3, 1), int), (0, 2), (NONE, 0),
    ...                                  fold=2)
    >>> second, cache = online_shift_step(x[:, 1:2], cache, (1,), (0,), fold=2)
    >>> first[0].tolist(), second[0].tolist()
    ([[0, 2], [1, 6]], [[1, 4]])
    """
    depth = x.shape[-1] // fold
    own = x[..., : cache.shape[-1]]

    def one(cache: jax.Array, own: jax.Array, frames: jax.Array) -> jax.Array:
        return cache.at[frames].set(own)

    place = jnp.asarray(frames)
    cache = jax.vmap(one, in_axes=(0, 0, None if place.ndim == 1 else 0))(cache, own, place)
    parts = [_read(cache[..., :depth], previous)]
    if following is not None:
        parts.append(_read(cache[..., depth : 2 * depth], following))
    return _joined(x, parts), cache


def shift_cache(
    x: jax.Array | jax.ShapeDtypeStruct, slots: int, *, fold: int = 8, both: bool = False
) -> jax.Array:
    """An empty cache of `online_shift_step` for maps like x.

    Args:
      x: `(S, n, ..., C)`, or its shape.
      slots: How many frames it keeps.
      fold: Which part of the channels is shifted.
      both: Whether frames read from later ones too.

    >>> shift_cache(jnp.zeros((2, 4, 7, 7, 64)), 16).shape
    (2, 16, 7, 7, 8)
    """
    depth = x.shape[-1] // fold * (2 if both else 1)
    return jnp.zeros((x.shape[0], slots, *x.shape[2:-1], depth), x.dtype)


def nearest_processed(
    frames: Sequence[int], processed: Sequence[int], *, later: bool = False
) -> tuple[int, ...]:
    """The frame that each one reads from: of those computed already, the nearest before it in time.

    Reconstruction: the slides do not say what "previous" means once frames are permuted. Nearest in
    time is causal and gives most frames of a later group their true predecessor; the previous one
    in the order of processing would lead backwards in time.

    Args:
      frames: The frames that are computed now; they read from each other too.
      processed: Those computed before.
      later: Whether to take the nearest one after it in time instead.

    Returns:
      An index a frame, `NONE` where there is no such frame.

    >>> nearest_processed((1, 2, 4, 6), (0, 3, 5, 7))
    (0, 1, 3, 5)
    >>> nearest_processed((0, 3, 5, 7), (), later=True)
    (3, 5, 7, -1)
    """
    known = {*frames, *processed}
    if later:
        return tuple(min((k for k in known if k > t), default=NONE) for t in frames)
    return tuple(max((k for k in known if k < t), default=NONE) for t in frames)


def _taken(x: jax.Array, frames: ArrayLike, part: int, fold: int) -> jax.Array:
    depth = x.shape[-1] // fold
    return _read(x[..., part * depth : (part + 1) * depth], frames)


def _read(x: jax.Array, frames: ArrayLike) -> jax.Array:
    """Frames `int[n]` or `int[S, n]` of `(S, slots, ...)`; zeros where there is none."""
    index = jnp.asarray(frames)
    axes = (0, None if index.ndim == 1 else 0)
    found = jax.vmap(lambda x, index: x[jnp.maximum(index, 0)], in_axes=axes)(x, index)
    there = (index != NONE).reshape(*index.shape, *(1,) * (x.ndim - 2))
    return jnp.where(there, found, 0)


def _joined(x: jax.Array, parts: list[jax.Array]) -> jax.Array:
    depth = sum(part.shape[-1] for part in parts)
    return jnp.concatenate([*parts, x[..., depth:]], axis=-1)
