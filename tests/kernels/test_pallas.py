"""Pallas kernels without their devices: simulated with what memory does there, and lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dynvid.kernels.masked_conv import masked_conv, pallas_gpu, pallas_tpu
from tests.ops.test_sparse_conv import SAME, mask_of, options, whole_numbers

NAN_FILLED = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
INTERPRETERS = pytest.mark.parametrize("interpret", [True, NAN_FILLED], ids=["plain", "simulated"])


def problem(which, *, size=(8, 16), streams=2):
    generator = np.random.default_rng(0)
    x = jnp.asarray(whole_numbers(generator, streams, *size, 3))
    kernel = jnp.asarray(whole_numbers(generator, 3, 3, 3, 8))
    bias = jnp.asarray(whole_numbers(generator, 8))
    previous = jnp.asarray(whole_numbers(generator, streams, *size, 8)) + 0.5
    dense = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return x, kernel, bias, previous, mask_of(which, size, 1, streams), jnp.maximum(dense + bias, 0)


def convolve(x, kernel, bias, previous, marked, **more):
    return pallas_tpu.convolve_tiles(
        x,
        kernel,
        previous,
        marked,
        padding=((1, 1), (1, 1)),
        epilogue=lambda sums, bias: jnp.maximum(sums + bias, 0),
        vectors=[bias],
        **more,
    )


@INTERPRETERS
@pytest.mark.parametrize("which", ["empty", "pixel"])
def test_tiles_hold_the_convolution_where_it_is_marked(which, interpret):
    x, kernel, bias, previous, marked, dense = problem(which)
    out, moved = convolve(x, kernel, bias, previous, marked, interpret=interpret)
    np.testing.assert_array_equal(out, np.where(marked[..., None], dense, previous))
    np.testing.assert_array_equal(moved, marked)


def test_tiles_keep_what_moves_by_less_than_the_tolerance():
    x, kernel, bias, previous, marked, dense = problem("full", size=(8, 8))
    tolerances = jnp.array([150.0, 0.0])
    out, moved = convolve(x, kernel, bias, previous, marked, tolerances=tolerances, interpret=True)
    far = (np.abs(dense - previous) >= tolerances[:, None, None, None]).any(-1)
    assert 0 < far[0].mean() < 1
    np.testing.assert_array_equal(moved, far)
    np.testing.assert_array_equal(out, np.where(far[..., None], dense, previous))


def test_a_single_convolution_runs_by_tiles_where_asked():
    x, kernel, _, previous, marked, _ = problem("pixel", size=(7, 9), streams=1)
    expected = masked_conv(x, kernel, previous, marked, implementation="xla", **options(SAME))
    with pltpu.force_tpu_interpret_mode():
        found = masked_conv(
            x, kernel, previous, marked, implementation="pallas_tpu", **options(SAME)
        )
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"'pallas_tpu' does not serve .* strides of \(2, 2\)"):
        masked_conv(
            x,
            kernel,
            jnp.zeros((1, 4, 5, 8)),
            marked,
            strides=(2, 2),
            padding=((1, 1), (1, 1)),
            implementation="pallas_tpu",
        )


def test_a_planted_tile_that_is_never_written_is_found(monkeypatch):
    """As where a grid visits a tile but its body does not: plain interpretation says nothing."""
    when = pl.when
    x, kernel, bias, previous, marked, dense = problem("pixel", size=(8, 8), streams=1)
    original = pl.pallas_call

    def forgetful(body, **options):
        def half(*refs):
            # The results are only written where the first prefetched scalar is not zero: never.
            when(refs[0][0] != 0)(lambda: body(*refs))

        return original(half, **options)

    monkeypatch.setattr(pl, "pallas_call", forgetful)
    out, _ = convolve(x, kernel, bias, previous, marked, interpret=NAN_FILLED)
    assert not np.array_equal(out, np.where(marked[..., None], dense, previous))


def test_a_planted_wrong_tap_is_found(monkeypatch):
    x, kernel, bias, previous, marked, dense = problem("pixel", size=(8, 8), streams=1)
    turned = kernel[:, ::-1]
    out, _ = convolve(x, turned, bias, previous, marked, interpret=True)
    assert not np.array_equal(out, np.where(marked[..., None], dense, previous))


def lowered(function, platform, device, *shapes):
    """The program for a device that is not here."""
    kind = jax.sharding.AbstractDevice(*device)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=kind)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(function).trace(*(jax.ShapeDtypeStruct(*s) for s in shapes))
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("channels", [3, 64])
def test_tiles_lower_for_a_tpu(channels, dtype):
    shapes = (
        ((2, 32, 32, channels), dtype),
        ((3, 3, channels, 64), dtype),
        ((64,), jnp.float32),
        ((2, 32, 32, 64), dtype),
        ((2, 32, 32), jnp.bool_),
    )
    text = lowered(convolve, "tpu", ("TPU v5 lite", 1, "tpu"), *shapes)
    assert "tpu_custom_call" in text


def test_strips_lower_for_hopper():
    def run(x, kernel, bias, previous, marked):
        return pallas_gpu.convolve_strips(
            x,
            kernel,
            previous,
            marked,
            padding=((1, 1), (1, 1)),
            epilogue=lambda sums, bias: jnp.maximum(sums + bias, 0),
            vectors=[bias],
        )

    shapes = (
        ((2, 16, 24, 64), jnp.bfloat16),
        ((3, 3, 64, 128), jnp.bfloat16),
        ((128,), jnp.float32),
        ((2, 16, 24, 128), jnp.bfloat16),
        ((2, 16, 24), jnp.bool_),
    )
    assert "mosaic_gpu" in lowered(run, "cuda", ("NVIDIA H100 80GB HBM3", 132, "gpu"), *shapes)


def test_strips_refuse_what_tensor_cores_do_not_take():
    x, kernel, _, previous, marked, _ = problem("pixel")
    with pytest.raises(ValueError, match=r"channels must be multiples of 64 .* got 3 and 8"):
        pallas_gpu.convolve_strips(x, kernel, previous, marked, padding=((1, 1), (1, 1)))


def test_tiles_compile_for_a_tpu():
    """Ahead of time, where the `libtpu` wheel is."""
    pytest.importorskip("libtpu")
    topologies = pytest.importorskip("jax.experimental.topologies")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    device = topology.devices[0]
    here = jax.sharding.SingleDeviceSharding(device)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=here)
        for shape, dtype in (
            ((1, 32, 32, 64), jnp.float32),
            ((3, 3, 64, 64), jnp.float32),
            ((64,), jnp.float32),
            ((1, 32, 32, 64), jnp.float32),
            ((1, 32, 32), jnp.bool_),
        )
    ]
    kind = jax.sharding.AbstractDevice(device.device_kind, 1, "tpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=kind)
    with jax.sharding.use_abstract_mesh(mesh):
        jax.jit(convolve).trace(*shapes).lower().compile()
