"""Warping: against SciPy's definition, analytic shifts, and finite differences."""

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


def drawn(shape, seed, *, reach):
    values, flow = jax.random.split(jax.random.key(seed))
    return (
        jax.random.normal(values, shape),
        jax.random.uniform(flow, (*shape[:3], 2), minval=-reach, maxval=reach),
    )


@settings(max_examples=10, deadline=None)
@given(shape=SIZES, seed=st.integers(0, 99), border=st.sampled_from(sorted(BORDERS)))
def test_agrees_with_map_coordinates(shape, seed, border):
    values, flow = drawn(shape, seed, reach=max(shape))
    rows, columns = jnp.meshgrid(jnp.arange(shape[1]), jnp.arange(shape[2]), indexing="ij")
    expected = jnp.stack(
        [
            jnp.stack(
                [
                    map_coordinates(
                        values[s, ..., c],
                        [rows + flow[s, ..., 1], columns + flow[s, ..., 0]],
                        order=1,
                        mode=BORDERS[border],
                    )
                    for c in range(shape[3])
                ],
                -1,
            )
            for s in range(shape[0])
        ]
    )
    # Both sum four products of a value and two weights: some ten roundings of the largest value.
    # Positions are equal, being computed alike.
    tolerance = 10 * EPS * float(jnp.max(jnp.abs(values)))
    np.testing.assert_allclose(warp(values, flow, border=border), expected, rtol=0, atol=tolerance)


@settings(max_examples=10, deadline=None)
@given(
    shape=SIZES,
    dx=st.integers(-10, 10),
    dy=st.integers(-10, 10),
    border=st.sampled_from(["zeros", "edge"]),
)
def test_whole_pixels_shift_bit_for_bit(shape, dx, dy, border):
    values, _ = drawn(shape, 3, reach=1)
    flow = jnp.broadcast_to(jnp.array([dx, dy], jnp.float32), (*shape[:3], 2))
    mode = {"zeros": "constant", "edge": "edge"}[border]
    padded = np.pad(values, [(0, 0), (10, 10), (10, 10), (0, 0)], mode=mode)
    expected = padded[:, 10 + dy :, 10 + dx :][:, : shape[1], : shape[2]]
    np.testing.assert_array_equal(warp(values, flow, border=border), expected)


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
    flow = jnp.floor(flow) + 0.25 + 0.5 * (flow - jnp.floor(flow))
    with jax.enable_x64(True):
        check_grads(
            lambda v, f: warp(v, f, border=border),
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
    flow = jnp.broadcast_to(jnp.array([3.0, -2.0]), (1, *size, 2))
    expected = jnp.array([3.0 * to[1] / size[1], -2.0 * to[0] / size[0]])
    # Interpolation weights sum to one within a few roundings along each axis.
    np.testing.assert_allclose(
        resize_flow(flow, to), jnp.broadcast_to(expected, (1, *to, 2)), rtol=8 * EPS
    )


def test_a_resized_field_moves_a_resized_picture_alike():
    # A ramp is interpolated exactly, so that resizing before and after warping commute inside.
    ramp = jnp.broadcast_to(jnp.arange(16.0)[None, None, :, None], (1, 8, 16, 1))
    flow = jnp.zeros((1, 8, 16, 2)).at[..., 0].set(2.0)
    moved = warp(ramp, flow)
    large = jax.image.resize(ramp, (1, 16, 32, 1), "bilinear", antialias=False)
    expected = jax.image.resize(moved, (1, 16, 32, 1), "bilinear", antialias=False)
    found = warp(large, resize_flow(flow, (16, 32)))
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
