"""What an incremental function keeps, beside what its layers make of what they read."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynvid.graph.trace import Value
from dynvid.incremental.plan import Plan
from dynvid.incremental.state import State, interior


def held(plan: Plan, state: State) -> dict[Value, jax.Array]:
    """The reference frames and every cache, as the model sees them."""
    values = (plan.graph.frames, *plan.kept)
    arrays = (state.frames, *state.caches)
    found = {}
    for value, array, halo, layout in zip(values, arrays, state.halos, state.layouts, strict=True):
        if halo is not None and layout is not None:
            order = layout.order(value.ndim)
            array = jnp.transpose(
                interior(array, halo), [order.index(a) for a in range(array.ndim)]
            )
        found[value] = array
    return found


def recomputed(plan: Plan, params: Any, state: State) -> dict[Value, jax.Array]:
    """Every cache as its own operations make it, densely, from the caches that they read."""
    cached = held(plan, state)
    leaves = jax.tree.leaves(params)
    found = {}
    for unit in plan.units:
        own = {value for node in unit.nodes for value in node.outputs}
        made: dict[Value, jax.Array] = {}

        def read(value: Value, own=own, made=made) -> jax.Array:
            if value in made:
                return made[value]
            if value in cached and value not in own:
                return cached[value]
            if value.constant is not None:
                return jnp.asarray(value.constant, value.dtype)
            if value.node is None:
                return leaves[value.argument]
            outputs = value.node.bind(*(read(v) for v in value.node.inputs))
            made.update(zip(value.node.outputs, outputs, strict=True))
            return made[value]

        found.update({value: read(value) for value in unit.outputs})
    return found


def excesses(plan: Plan) -> Callable[[Any, State], jax.Array]:
    """A function of parameters and state: by how much each cache is off by more than allowed.

    Returns:
      `excess(params, state) -> float32[caches]`: the distance of a cache from its recomputed value
      minus its tolerance, the largest over positions and streams. Where both are equal it is minus
      the tolerance; a distance equal to the tolerance is already too much.
    """

    def excess(params: Any, state: State) -> jax.Array:
        cached, fresh = held(plan, state), recomputed(plan, params, state)
        worst = []
        for value, tolerance in zip(plan.kept, state.tolerances, strict=True):
            axis = plan.layouts[value].stream if value in plan.layouts else plan.streams.get(value)
            distance = jnp.where(
                cached[value] == fresh[value],
                -jnp.inf,
                jnp.abs(cached[value].astype(jnp.float32) - fresh[value].astype(jnp.float32)),
            )
            others = tuple(a for a in range(distance.ndim) if a != axis)
            worst.append(jnp.max(jnp.max(distance, others) - tolerance, initial=-jnp.inf))
        return jnp.stack(worst)

    return jax.jit(excess)
