import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.graph.evaluate import constant_fold
from dynvid.graph.trace import trace

FRAMES = jax.ShapeDtypeStruct((1, 6, 8, 3), jnp.float32)


def names(fn, *params):
    return [node.primitive.name for node in trace(fn, params, FRAMES).nodes]


def test_nested_calls_are_inlined():
    @jax.custom_vjp
    def twice(x):
        return 2 * x

    twice.defvjp(lambda x: (twice(x), None), lambda _, g: (2 * g,))

    @jax.custom_jvp
    def thrice(x):
        return 3 * x

    thrice.defjvp(lambda x, t: (thrice(x[0]), 3 * t[0]))

    def fn(_, x):
        inner = jax.checkpoint(jax.jit(lambda x: thrice(twice(x))))
        return jax.named_call(inner, name="block")(x)

    assert names(fn) == ["mul", "mul"]


def test_what_the_outputs_do_not_need_is_dropped():
    def fn(_, x):
        jnp.sin(x).sum()
        return x + 1

    assert names(fn) == ["add"]


def test_known_evaluates_what_neither_frames_nor_parameters_decide():
    table = np.arange(8.0, dtype=np.float32)

    def fn(p, x):
        return x + (jnp.sqrt(table) * 2)[:, None] + p[0]

    graph = trace(fn, (jnp.ones(()),), FRAMES)
    add, other = (node for node in graph.nodes if node.primitive.name == "add")
    sides = constant_fold(add.inputs[1])
    assert sides is not None
    np.testing.assert_allclose(sides[0, 0, :, 0], np.sqrt(table) * 2, rtol=1e-6)
    assert constant_fold(other.inputs[1]) is None
    assert constant_fold(graph.outputs[0]) is None


def test_frames_and_parameters_are_told_apart():
    graph = trace(lambda p, x: (x * p["a"], p["b"]), {"a": np.ones(3), "b": np.ones(2)}, FRAMES)
    (product,) = (node for node in graph.nodes if node.primitive.name == "mul")
    assert product.inputs[0] is graph.frames
    assert graph.outputs[1].argument == 1
    assert not graph.outputs[1].frame_dependent
    assert product.outputs[0].frame_dependent


def test_side_effects_are_refused_by_name():
    def fn(_, x):
        jax.debug.print("{}", x.sum())
        return x

    with pytest.raises(ValueError, match="debug"):
        trace(fn, (), FRAMES)
