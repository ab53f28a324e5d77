"""Flax modules as plain functions of their parameters and of frames."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from dynvid.types import Frames, Output, Params


def unit_frames(frames: Frames) -> jax.Array:
    """Frames as floating point in [0, 1], which most networks begin with.

    Args:
      frames: `(S, H, W, C)`, integers of 0..255 or floating in [0, 1], which stay as they are.

    Returns:
      `(S, H, W, C)`, float32 of integers: `x / 255`.

    >>> unit_frames(jnp.array([[[[0, 255]]]], jnp.uint8)).ravel()
    Array([0., 1.], dtype=float32)
    """
    return frames.astype(jnp.float32) / 255 if jnp.issubdtype(frames.dtype, jnp.integer) else frames


def from_nnx(module: nnx.Module) -> tuple[Callable[[Params, Frames], Output], Params]:
    """Makes of a flax module the function that `dynvid.incremental` and the rest take.

    The function runs the module in evaluation mode, as after `module.eval()`: batch normalisation
    with its stored statistics, no dropout. The given module stays in the mode that it is in.

    Args:
      module: An `nnx.Module` that maps frames `(S, H, W, C)` to any pytree. It may hold
        shapes instead of arrays, as `nnx.eval_shape` makes them; `params` are shapes then.

    Returns:
      `(fn, params)`: `fn(params, frames) -> outputs`, pure, and the values of the module's
      variables (weights, batch statistics and whatever else it keeps), an `nnx.State` of arrays.
      They are the module's own arrays: donating `params` takes them from the module too. Random
      number generators stay inside `fn`. Whatever a call writes into a variable or a generator is
      dropped with it: every call starts from `params` and from the generators as they are now, so
      that a module that means to remember earlier frames does not.

    Raises:
      TypeError: For what is not an instance of `nnx.Module`, or cannot be called. A linen module
        needs nothing of this: `dynvid.incremental(module.apply)`, with what `module.init` returns
        as parameters.

    Exact: the output is the module's own in evaluation mode.

    >>> import jax
    >>> fn, params = from_nnx(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)))
    >>> jax.eval_shape(fn, params, jax.ShapeDtypeStruct((2, 16, 16, 3), "float32")).shape
    (2, 16, 16, 8)
    >>> params["kernel"].shape
    (3, 3, 3, 8)
    """
    if not isinstance(module, nnx.Module) or not callable(module):
        raise TypeError(f"module must be a callable instance of nnx.Module; got {_named(module)}")
    copy: Any = nnx.clone(module)
    copy.eval()
    graph, generators, variables = nnx.split(copy, nnx.RngState, ...)
    # Values instead of variables: these belong to the trace that made them.
    generators, params = nnx.as_pure(generators), nnx.as_pure(variables)

    def fn(params: Params, frames: Frames) -> Output:
        return nnx.merge(graph, generators, params)(frames)

    return fn, params


def _named(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    name = type(given).__name__
    if isinstance(given, linen.Module):
        return (
            f"the linen module {name}, whose `apply` is such a function already: "
            "dynvid.incremental(module.apply), with what module.init returns as parameters"
        )
    return name
