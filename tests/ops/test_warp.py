"""Warping: against SciPy's definition, analytic shifts, and finite differences."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.scipy.ndimage import map_coordinates
from jax.test_util import check_grads

from dynvid.ops.warp import resize_flow, warp

EPS = float(jnp.finfo(jnp.float32).eps)
SIZES = st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 9), st.integers(1, 3))
BORDERS = {"zeros": "constant", "edge": "nearest"}
jitted_warp = jax.jit(warp, static_argnames="border")


def drawn(shape, seed, *, reach):
    rng = np.random.default_rng(seed)
    values, flow = rng.normal(size=shape), rng.uniform(-reach, reach, (*shape[:3], 2))
    return values.astype(np.float32), flow.astype(np.float32)


def by_map_coordinates(values, flow, border):
    rows, columns = jnp.meshgrid(*map(jnp.arange, flow.shape[1:3]), indexing="ij")

    def of_one(values, flow):
        at = [rows + flow[..., 1], columns + flow[..., 0]]
        return map_coordinates(values, at, order=1, mode=BORDERS[border])

    of_channels = jax.vmap(of_one, in_axes=(-1, None), out_axes=-1)
    return jax.vmap(of_channels)(values, flow)


# Compiled as one: operation by operation, every shape would be compiled many times over.
@functools.partial(jax.jit, static_argnames="border")
def warped_both_ways(values, flow, *, border):
    return warp(values, flow, border=border), by_map_coordinates(values, flow, border)


@settings(max_examples=10, deadline=None)
@given(shape=SIZES, seed=st.integers(0, 99), border=st.sampled_from(sorted(BORDERS)))
def test_agrees_with_map_coordinates(shape, seed, border):
    values, flow = drawn(shape, seed, reach=max(shape))
    found, expected = warped_both_ways(values, flow, border=border)
    # Both sum four products of a value and two weights: some ten roundings of the largest value.
    # Positions are equal, being computed alike.
    tolerance = 10 * EPS * float(np.abs(values).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@settings(max_examples=10, deadline=None)
@given(
    shape=SIZES,
    dx=st.integers(-10, 10),
    dy=st.integers(-10, 10),
    border=st.sampled_from(["zeros", "edge"]),
)
def test_whole_pixels_shift_bit_for_bit(shape, dx, dy, border):
    values, _ = drawn(shape, 3, reach=1)
    flow = np.broadcast_to(np.array([dx, dy], np.float32), (*shape[:3], 2))
    mode = {"zeros": "constant", "edge": "edge"}[border]
    padded = np.pad(values, [(0, 0), (10, 10), (10, 10), (0, 0)], mode=mode)
    expected = padded[:, 10 + dy :, 10 + dx :][:, : shape[1], : shape[2]]
    np.testing.assert_array_equal(jitted_warp(values, flow, border=border), expected)


def test_half_a_pixel_is_the_mean_of_two():
    values, _ = drawn((1, 3, 6, 2), 0, reach=1)
    flow = jnp.zeros((1, 3, 6, 2)).at[..., 0].set(0.5)
    expected = 0.5 * values[:, :, :-1] + 0.5 * values[:, :, 1:]
    np.testing.assert_array_equal(warp(values, flow)[:, :, :-1], expected)


@pytest.mark.parametrize("border", ["zeros", "edge"])
def test_motion_beyond_every_integer(border):
    values = jnp.ones((1, 2, 2, 1))
    for far in (1e20, -1e20, jnp.inf, -jnp.inf):
        out = warp(values, jnp.full((1, 2, 2, 2), far), border=border)
        # Infinity less infinity has no weight to give: only finite motions are promised a value.
        if np.isfinite(far):
            assert (out == (0 if border == "zeros" else 1)).all()


def test_weights_follow_the_dtype_of_the_values():
    half = jnp.ones((1, 300, 2, 1), jnp.bfloat16)
    flow = jnp.zeros((1, 300, 2, 2), jnp.bfloat16)
    # bfloat16 cannot tell row 257 from row 256: positions are computed in float32.
    rows = half * jnp.arange(300.0)[:, None, None].astype(jnp.bfloat16)
    out = warp(rows, flow)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, rows)
    assert warp(jnp.ones((1, 2, 2, 1), jnp.uint8), jnp.zeros((1, 2, 2, 2))).dtype == jnp.float32


@pytest.mark.parametrize("border", ["zeros", "edge"])
def test_gradients_are_those_of_finite_differences(border):
    values, flow = drawn((1, 4, 5, 2), 1, reach=2.0)
    # Between whole pixels the result is a polynomial of each motion: central differences are exact
    # but for rounding, if no step crosses a whole pixel.
    flow = np.floor(flow) + 0.25 + 0.5 * (flow - np.floor(flow))
    with jax.enable_x64(True):
        check_grads(
            jax.jit(lambda v, f: warp(v, f, border=border)),
            (np.asarray(values, np.float64), np.asarray(flow, np.float64)),
            order=1,
            modes=["fwd", "rev"],
            eps=1e-4,
        )


@settings(max_examples=10, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    to=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_uniform_motion_keeps_its_share_of_the_frame(size, to):
    flow = np.broadcast_to(np.float32([3, -2]), (1, *size, 2))
    expected = np.float32([3 * to[1] / size[1], -2 * to[0] / size[0]])
    # Interpolation weights sum to one within a few roundings along each axis.
    found = jax.jit(resize_flow, static_argnums=1)(flow, to)
    np.testing.assert_allclose(found, np.broadcast_to(expected, (1, *to, 2)), rtol=8 * EPS)


def test_a_resized_field_moves_a_resized_picture_alike():
    # A ramp is interpolated exactly, so that resizing before and after warping commute inside.
    ramp = jnp.broadcast_to(jnp.arange(16.0)[None, None, :, None], (1, 8, 16, 1))
    flow = jnp.zeros((1, 8, 16, 2)).at[..., 0].set(2.0)

    @jax.jit
    def both_ways(ramp, flow):
        large, expected = (
            jax.image.resize(x, (1, 16, 32, 1), "bilinear", antialias=False)
            for x in (ramp, warp(ramp, flow))
        )
        return warp(large, resize_flow(flow, (16, 32))), expected

    found, expected = both_ways(ramp, flow)
    np.testing.assert_allclose(found[:, :, 2:24], expected[:, :, 2:24], rtol=0, atol=16 * 8 * EPS)


@pytest.mark.parametrize(
    ("values", "flow", "options", "message"),
    [
        ((1, 2, 3, 4), (1, 2, 2, 2), {}, r"flow must be .* got \(1, 2, 2, 2\) for \(1, 2, 3, 4\)"),
        ((1, 2, 3), (1, 2, 3, 2), {}, "flow must be"),
        ((1, 2, 3, 4), (1, 2, 3, 2), {"border": "wrap"}, "border must be 'zeros' or 'edge'; got"),
    ],
)
def test_says_what_does_not_fit(values, flow, options, message):
    with pytest.raises(ValueError, match=message):
        warp(jnp.zeros(values), jnp.zeros(flow), **options)


def test_says_that_motions_are_no_integers():
    with pytest.raises(ValueError, match="flow must be floating; got int32"):
        warp(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 2), jnp.int32))
    with pytest.raises(ValueError, match="flow must be floating"):
        resize_flow(jnp.zeros((1, 2, 2, 2), jnp.int32), (2, 2))
    with pytest.raises(ValueError, match="size must be"):
        resize_flow(jnp.zeros((1, 2, 2, 2)), (0, 2))
