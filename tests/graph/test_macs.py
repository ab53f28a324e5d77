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
