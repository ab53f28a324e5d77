"""Sparse against dense convolution: bit for bit on whole numbers, whatever the geometry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynvid.kernels.masked_conv import masked_conv
from dynvid.ops import masks
from dynvid.ops.sparse_conv import convolve_pixels, pixel_sparse_conv
from tests.ops.geometry import convolve, geometries

SAME = {
    "window": (3, 3),
    "strides": (1, 1),
    "padding": ((1, 1), (1, 1)),
    "dilation": (1, 1),
}


def options(geometry):
    return {name: geometry[name] for name in ("strides", "padding", "dilation")}


def whole_numbers(generator, *shape):
    """In [-8, 8]: sums of at most 6 * 6 * 4 products stay far below 2**24, so they are exact."""
    return generator.integers(-8, 9, shape).astype(np.float32)


def problem(geometry, size, groups, seed, streams=2):
    """An input, a kernel and what the last output holds, which is no convolution of anything."""
    generator = np.random.default_rng(seed)
    per_group, multiplier = generator.integers(1, 4, 2)
    x = whole_numbers(generator, streams, *size, groups * per_group)
    kernel = whole_numbers(generator, *geometry["window"], per_group, groups * multiplier)
    dense = jax.eval_shape(lambda x, kernel: convolve(x, kernel, geometry, groups), x, kernel)
    return x, kernel, whole_numbers(generator, *dense.shape) + 0.5


def mask_of(kind, size, seed, streams=2):
    mask = np.zeros((streams, *size), bool)
    generator = np.random.default_rng(seed)
    if kind == "pixel":
        mask[tuple(generator.integers(0, mask.shape))] = True
    elif kind == "border":
        mask[:, [0, -1]] = True
        mask[:, :, [0, -1]] = True
    elif kind == "some":
        mask = generator.random(mask.shape) < 0.2
    elif kind == "full":
        mask[:] = True
    return jnp.asarray(mask)


KINDS = ["empty", "pixel", "border", "some", "full"]


def check(geometry, size, groups, seed, capacity=None, cell=2):
    """Compares all of them with dense under every kind of mask, with one compilation."""
    x, kernel, previous = problem(geometry, size, groups, seed)

    @jax.jit
    def all_of_them(mask):
        arguments = (x, kernel, previous, mask)
        by_pixel = pixel_sparse_conv(
            *arguments, groups=groups, capacity=capacity, **options(geometry)
        )
        by_loop, by_kernel = (
            masked_conv(
                *arguments, groups=groups, cell=cell, implementation=which, **options(geometry)
            )
            for which in ("xla", None)
        )
        dense = convolve(x, kernel, geometry, groups)
        return by_pixel, by_loop, by_kernel, masks.stencil(mask, **geometry), dense

    for kind in KINDS:
        *found, impacted, dense = all_of_them(mask_of(kind, size, seed))
        expected = np.where(impacted[..., None], dense, previous)
        for name, out in zip(("pixels", "cells", "the device's kernel"), found, strict=True):
            np.testing.assert_array_equal(out, expected, err_msg=f"{name}, {kind}")


@settings(max_examples=12, deadline=None)
@given(
    geometries(),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(0, 99),
    st.sampled_from([None, 1, 20]),
    st.integers(1, 5),
)
def test_equals_the_convolution_under_the_mask(case, groups, seed, capacity, cell):
    geometry, size = case
    x = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
    kernel = jax.ShapeDtypeStruct((*geometry["window"], 1, 1), jnp.float32)
    assume(jax.eval_shape(lambda x, kernel: convolve(x, kernel, geometry), x, kernel).size > 0)
    check(geometry, size, groups, seed, capacity, cell)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"window": (1, 1), "padding": ((0, 0), (0, 0))},
        {"window": (7, 7), "strides": (2, 2), "padding": ((3, 3), (3, 3))},
        {"strides": (2, 2), "padding": ((0, 1), (0, 1))},
        {"dilation": (6, 6), "padding": ((6, 6), (6, 6))},
        {"window": (4, 2), "strides": (1, 3), "padding": ((2, 0), (-1, 4)), "dilation": (1, 2)},
    ],
    ids=["same", "1x1", "stem", "stride", "fc6", "asymmetric"],
)
def test_geometries_of_real_networks(change):
    check({**SAME, **change}, (9, 11), 1, seed=1)


@pytest.mark.parametrize(("per_group", "multiplier"), [(1, 1), (1, 3), (2, 1)])
def test_depthwise_and_grouped(per_group, multiplier):
    generator = np.random.default_rng(0)
    groups = 4
    x = whole_numbers(generator, 2, 7, 5, groups * per_group)
    kernel = whole_numbers(generator, 3, 3, per_group, groups * multiplier)
    dense = convolve(x, kernel, SAME, groups)
    result = jax.jit(functools.partial(pixel_sparse_conv, groups=groups, **options(SAME)))(
        x, kernel, jnp.full_like(dense, jnp.nan), mask_of("full", (7, 5), 0)
    )
    np.testing.assert_array_equal(result, dense)


@pytest.mark.parametrize("above", [-1, 0, 1])
def test_more_pixels_than_capacity_run_dense(above):
    # One pixel in the middle impacts nine; none may be left out whatever room there is.
    x, kernel, previous = problem(SAME, (6, 6), 1, seed=0)
    mask = jnp.zeros((2, 6, 6), bool).at[1, 3, 3].set(True)
    result = jax.jit(functools.partial(pixel_sparse_conv, capacity=9 + above, **options(SAME)))(
        x, kernel, previous, mask
    )
    impacted = np.zeros((2, 6, 6, 1), bool)
    impacted[1, 2:5, 2:5] = True
    np.testing.assert_array_equal(result, np.where(impacted, convolve(x, kernel, SAME), previous))


def test_follows_a_video():
    generator = np.random.default_rng(0)
    x = whole_numbers(generator, 2, 8, 9, 3)
    kernel = whole_numbers(generator, 3, 3, 3, 4)
    step = jax.jit(functools.partial(pixel_sparse_conv, capacity=60, **options(SAME)))
    output = convolve(x, kernel, SAME)
    for frame in range(30):
        mask = mask_of(KINDS[frame % 5], (8, 9), frame)
        x = np.where(mask[..., None], whole_numbers(generator, *x.shape), x)
        output = step(x, kernel, output, mask)
        np.testing.assert_array_equal(output, convolve(x, kernel, SAME))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_keeps_the_type(dtype):
    x, kernel, previous = problem(SAME, (5, 5), 1, seed=0)
    mask = mask_of("pixel", (5, 5), 0)
    arrays = (jnp.asarray(array, dtype) for array in (x, kernel, previous))
    assert pixel_sparse_conv(*arrays, mask, **options(SAME)).dtype == dtype


def test_nan_spreads_no_further_than_its_windows():
    x, kernel, _ = problem(SAME, (7, 7), 1, seed=0)
    dense = convolve(x, kernel, SAME)
    step = jax.jit(functools.partial(pixel_sparse_conv, **options(SAME)))
    mask = jnp.zeros((2, 7, 7), bool).at[0, 2, 2].set(True)
    bad = x.copy()
    bad[0, 2, 2] = np.nan
    spoilt = step(bad, kernel, dense, mask)
    expected = np.zeros((2, 7, 7), bool)
    expected[0, 1:4, 1:4] = True
    np.testing.assert_array_equal(np.isnan(spoilt).any(-1), expected)
    np.testing.assert_array_equal(step(x, kernel, spoilt, mask), dense)


def gradients(function, *arrays):
    """Of a sum of outputs weighted by whole numbers, with respect to every array."""

    def loss(*arrays):
        output = function(*arrays)
        weight = whole_numbers(np.random.default_rng(9), *output.shape)
        return jnp.sum(output * weight)

    return jax.jit(jax.grad(loss, argnums=tuple(range(len(arrays)))))(*arrays)


@pytest.mark.parametrize("capacity", [None, 4])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", ["empty", "some", "full"])
@pytest.mark.parametrize(
    "change",
    [{}, {"window": (3, 2), "strides": (2, 1), "padding": ((2, 0), (-1, 3)), "dilation": (2, 1)}],
    ids=["same", "asymmetric"],
)
def test_gradient_equals_the_dense_one(change, kind, groups, capacity):
    geometry = {**SAME, **change}
    x, kernel, previous = problem(geometry, (6, 5), groups, seed=2)
    mask = mask_of(kind, (6, 5), 2)
    impacted = masks.stencil(mask, **geometry)[..., None]

    def dense(x, kernel, previous):
        return jnp.where(impacted, convolve(x, kernel, geometry, groups), previous)

    def sparse(x, kernel, previous):
        return pixel_sparse_conv(
            x, kernel, previous, mask, groups=groups, capacity=capacity, **options(geometry)
        )

    for ours, theirs in zip(
        gradients(sparse, x, kernel, previous), gradients(dense, x, kernel, previous), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_real_values_within_the_bound_of_a_reordered_sum():
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, 9, 9, 16)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(3, 3, 16, 8)), jnp.float32)
    dense = convolve(x, kernel, SAME)
    result = jax.jit(functools.partial(pixel_sparse_conv, **options(SAME)))(
        x, kernel, jnp.zeros_like(dense), mask_of("full", (9, 9), 0)
    )
    # Each side sums K = 9 * 16 products with an error of at most K eps sum|x||w|, in any order;
    # sum|x||w| <= K max|x| max|w|, but its true value is the convolution of absolute values.
    magnitude = convolve(jnp.abs(x), jnp.abs(kernel), SAME)
    bound = 2 * 9 * 16 * np.finfo(np.float32).eps * magnitude
    assert (jnp.abs(result - dense) <= bound).all()


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"mask": jnp.ones((2, 5, 5), bool)}, r"mask must be \[2, 6, 5\].*\[2, 5, 5\]"),
        ({"kernel": jnp.ones((3, 3, 2, 4))}, r"kernel .*C = 3 and groups = 1.*\[3, 3, 2, 4\]"),
        ({"previous": jnp.ones((2, 6, 4, 4))}, r"previous .*\[2, 6, 5, 4\]; got \[2, 6, 4, 4\]"),
        ({"capacity": 0}, "capacity must be at least 1; got 0"),
        ({"groups": 3, "kernel": jnp.ones((3, 3, 1, 4))}, "O a multiple of groups"),
    ],
)
def test_shapes_that_do_not_fit_are_named(replace, message):
    call = {
        "x": jnp.ones((2, 6, 5, 3)),
        "kernel": jnp.ones((3, 3, 3, 4)),
        "previous": jnp.ones((2, 6, 5, 4)),
        "mask": jnp.ones((2, 6, 5), bool),
        "padding": ((1, 1), (1, 1)),
        **replace,
    }
    arrays = [call.pop(name) for name in ("x", "kernel", "previous", "mask")]
    with pytest.raises(ValueError, match=message):
        pixel_sparse_conv(*arrays, **call)


@pytest.mark.parametrize("groups", [1, 3])
def test_single_pixels_are_those_of_the_dense_convolution_in_any_order(groups):
    geometry = {
        "window": (3, 2),
        "strides": (2, 1),
        "padding": ((2, 1), (-1, 1)),
        "dilation": (1, 2),
    }
    x, kernel, _ = problem(geometry, (9, 12), groups, seed=3)
    dense = convolve(x, kernel, geometry, groups)
    generator = np.random.default_rng(0)
    at = [jnp.asarray(generator.integers(0, n, 40)) for n in dense.shape[:3]]
    at[1] = at[1].at[0].set(0)  # its window leaves the input
    result = convolve_pixels(x, kernel, *at, groups=groups, **options(geometry))
    np.testing.assert_array_equal(result, dense[tuple(at)], strict=True)
