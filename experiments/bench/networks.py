"""Networks to run."""

from flax import nnx


def network(kind):
    graph, params = nnx.split(kind(rngs=nnx.Rngs(0)))
    return (lambda p, x: nnx.merge(graph, p)(x)), params
