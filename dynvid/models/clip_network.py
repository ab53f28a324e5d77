"""Flax modules that are computed stage by stage, as pure functions of their parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from dynvid.ops.progressive import ShiftFn
from dynvid.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class StagedNetwork:
    """A `dynvid.ops.progressive.ClipNetwork` made of a module; `staged` makes one.

    Attributes:
      depth: How many stages it has.
      module: `module(params)`, the module with these parameters.
      normalise: What is done to frames before the first stage.
    """

    depth: int
    module: Callable[[Params], Any]
    normalise: Callable[[jax.Array], jax.Array]

    def stage(self, params: Params, depth: int, x: Any, shift: ShiftFn) -> Any:
        """The maps of a stage, from frames or from the maps before it."""
        return self.module(params).stage(depth, self.normalise(x) if depth == 1 else x, shift)

    def features(self, params: Params, depth: int, maps: Any) -> jax.Array:
        """What is averaged over frames: `(N, F)`."""
        return self.module(params).features(depth, maps)

    def head(self, params: Params, depth: int, features: jax.Array) -> jax.Array:
        """Logits `(..., classes)` of averaged features."""
        return self.module(params).head(depth, features)


def _as_it_is(frames: jax.Array) -> jax.Array:
    return frames


def staged(
    module: nnx.Module, *, normalise: Callable[[jax.Array], jax.Array] = _as_it_is
) -> tuple[StagedNetwork, Params]:
    """Makes of a module with stages what `dynvid.systems.dynamic_inference` takes.

    Args:
      module: With `depth`, `stage(depth, x, shift)`, `features(depth, maps)` and
        `head(depth, features)`, such as `TemporalShiftResNet` or `MSDNet`. It may hold shapes
        instead of arrays, as `nnx.eval_shape` makes them; `params` are shapes then.
      normalise: What is done to frames before the first stage.

    Returns:
      `(network, params)`: pure, in evaluation mode. The parameters are the module's own arrays, its
      batch statistics among them.

    >>> from dynvid.models.temporal_shift_resnet import TemporalShiftResNet
    >>> module = nnx.eval_shape(
    ...     lambda: TemporalShiftResNet(depths=(1, 1, 1, 1), width=4, classes=5, rngs=nnx.Rngs(0))
    ... )
    >>> staged(module)[0].depth
    3
    """
    copy: Any = nnx.clone(module)
    copy.eval()
    graph, generators, variables = nnx.split(copy, nnx.RngState, ...)
    generators, params = nnx.as_pure(generators), nnx.as_pure(variables)
    network = StagedNetwork(
        copy.depth, lambda params: nnx.merge(graph, generators, params), normalise
    )
    return network, params


def live(module: Any, *, normalise: Callable[[jax.Array], jax.Array] = _as_it_is) -> StagedNetwork:
    """The module itself as a network, in whatever mode it is: to train, with its statistics.

    Args:
      module: As `staged` takes it; the parameters that the network is given are ignored.
      normalise: What is done to frames before the first stage.

    >>> from dynvid.models.temporal_shift_resnet import TemporalShiftResNet
    >>> live(nnx.eval_shape(
    ...     lambda: TemporalShiftResNet(depths=(1, 1, 1, 1), width=4, classes=5, rngs=nnx.Rngs(0))
    ... )).depth
    3
    """
    return StagedNetwork(module.depth, lambda params: module, normalise)
