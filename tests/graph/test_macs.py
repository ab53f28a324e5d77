"""Multiply-accumulates against arithmetic on paper."""

import jax
import jax.numpy as jnp
from jax import lax

from dynvid.graph import count_macs

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def test_convolutions_products_and_nested_calls():
    def network(params, x):
        x = jax.jit(
            lambda x: lax.conv_general_dilated(
                x, params["conv"], (2, 2), "SAME", dimension_numbers=CHANNELS_LAST
            )
        )(x)
        return jax.nn.relu(x).mean((1, 2)) @ params["fc"]

    params = {"conv": jnp.zeros((3, 3, 3, 8)), "fc": jnp.zeros((8, 10))}
    assert count_macs(network, params, jnp.zeros((2, 8, 8, 3))) == 2 * (4 * 4 * 8 * 27 + 80)
    shapes = jax.eval_shape(lambda: params)
    frames = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
    assert count_macs(lambda p, x: network(p, x * 1.0), shapes, frames) == 2 * (16 * 216 + 80)


def test_groups_and_transposed_convolutions():
    x = jnp.zeros((1, 4, 4, 6))
    depthwise = lambda x, k: lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST, feature_group_count=6
    )
    assert count_macs(depthwise, x, jnp.zeros((3, 3, 1, 6))) == 16 * 6 * 9
    up = lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME")  # noqa: E731
    # 4x4 kernel, stride 2: each of the 8x8 outputs meets a quarter of the taps with an input.
    assert count_macs(up, x, jnp.zeros((4, 4, 6, 5))) == 64 * 5 * 16 * 6 // 4


def test_loops_and_conditionals_count():
    a, b = jnp.zeros((2, 3)), jnp.zeros((3, 3))
    turn = lambda x: x @ b  # noqa: E731
    assert count_macs(lambda x: lax.fori_loop(0, 7, lambda _, x: turn(x), x), a) == 7 * 18
    nested = lambda x: lax.scan(lambda x, _: (turn(turn(x)), x), x, None, length=4)[0]  # noqa: E731
    assert count_macs(lambda x: lax.scan(lambda x, _: (nested(x), x), x, None, length=5), a) == (
        5 * 4 * 2 * 18
    )
    branches = [lambda x: x, lambda x: turn(turn(x)), turn]
    assert count_macs(lambda i, x: lax.switch(i, branches, x), jnp.int32(0), a) == 36
    # Nobody knows how often: once.
    assert count_macs(lambda x: lax.while_loop(lambda x: x.sum() < 9, turn, x), a) == 18


def test_zeros_beside_the_band_of_a_constant_matrix_do_not_count():
    x = jnp.zeros((1, 40, 60, 3))
    assert count_macs(lambda x: jax.image.resize(x, (1, 40, 30, 3), "linear"), x) == (
        40 * 30 * 3 * 4  # halving reads four columns, the outer two of them at a quarter
    )
    full = lambda m: count_macs(lambda m, x: jnp.einsum("nhwc,wv->nhvc", x, m), m, x)  # noqa: E731
    assert full(jnp.eye(60)) == 40 * 60 * 3 * 60  # an argument may be any matrix
