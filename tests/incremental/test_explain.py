import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from tests.contract.zoo import BY_NAME, ZOO, clip, conv


def table(name):
    network = BY_NAME[name]
    params = network.params(integer=True)
    return dynvid.explain(network.fn, params, clip(network, integer=True)[0])


@pytest.mark.parametrize("network", ZOO, ids=lambda n: n.name)
def test_every_operation_has_a_mode_and_dense_ones_a_reason(network):
    params = jax.eval_shape(lambda: network.params(integer=network.integer))
    frames = jax.ShapeDtypeStruct((2, *network.frame), network.dtype)
    explained = dynvid.explain(network.fn, params, frames)
    text = str(explained)
    for row in explained.rows:
        assert row.mode in ("incremental", "deferred", "dense", "fixed")
        assert row.operation in text
        assert row.note or row.mode not in ("dense", "incremental")
        assert not row.layer or row.layer in explained.layers
    # Each layer is somewhere in the table, and truncation takes its name.
    assert {row.layer for row in explained.rows} - {""} == set(explained.layers)
    video = dynvid.incremental(network.fn, truncation=dict.fromkeys(explained.layers, 0.1))
    jax.eval_shape(video.init, params, frames)


@pytest.mark.parametrize(
    "name",
    [
        *("chain", "vgg", "residual", "dilated", "inception", "unet_repeat", "unet_nearest"),
        *("unet_bilinear", "nchw", "focus", "space_to_depth", "shuffle", "sums"),
        *("even_kernels", "crops", "positions", "camera", "nested", "wrapped", "bytes"),
        *("letterbox", "averages", "flax", "inverted_residual", "pyramid"),
    ],
)
def test_all_arithmetic_of_these_networks_runs_on_cells(name):
    network = BY_NAME[name]
    params = network.params(integer=False)
    frames = jax.ShapeDtypeStruct((2, 64, 96, network.frame[2]), network.dtype)
    explained = dynvid.explain(network.fn, params, frames)
    dense = [row for row in explained.rows if row.mode == "dense" and row.macs]
    # All but the squeeze and excitation of pooled vectors.
    assert all(len(row.shape) == 2 for row in dense), explained
    heavy = ("conv_general_dilated", "reduce_window_max", "reduce_window_sum")
    assert all(row.mode != "dense" for row in explained.rows if row.operation in heavy), explained


def test_the_reasons_say_what_is_the_matter():
    def fn(p, x):
        kernel = x[:1, :3, :3, :, None] * jnp.ones(3)
        y = jax.lax.conv_general_dilated(
            x, kernel[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y[:, ::-1], jnp.sort(x, 1), x.mean((1, 2)), jnp.fft.fft(x[..., 0].astype("c8"))

    rows = dynvid.explain(fn, (), np.zeros((1, 8, 8, 3), "f")).rows
    notes = {row.operation: row.note for row in rows if row.mode == "dense"}
    assert notes["conv_general_dilated"] == "its kernel depends on the frames"
    assert "rows or columns" in notes["rev"]
    assert "rows or columns" in notes["sort"]
    assert "rows or columns" in notes["reduce_sum"]
    assert notes["fft"] == "there is no rule for this primitive"


def test_the_table_sums_up():
    explained = table("vgg")
    assert explained.macs == sum(row.macs for row in explained.rows)
    assert "100.0% of them incremental" in str(explained)
    assert str(explained) == repr(explained)
    attention = table("attention")
    assert 0 < attention.incremental_macs < attention.macs


def test_what_comes_after_a_statistic_of_the_whole_picture_is_marked():
    """A gate by a mean: what it scales runs on cells, and wherever the mean moves, on all."""

    def fn(p, x):
        before = conv(x, p)
        return conv(before * before.mean((1, 2), keepdims=True), p), conv(before, p)

    table = dynvid.explain(fn, jnp.ones((3, 3, 3, 3)), jnp.ones((1, 16, 16, 3)))
    one = 16 * 16 * 9 * 9
    assert (table.macs, table.incremental_macs, table.everywhere_macs) == (3 * one, 3 * one, one)
    assert "33.3% come after a statistic of the whole picture" in " ".join(str(table).split())
    plain = dynvid.explain(lambda p, x: conv(x, p), jnp.ones((3, 3, 3, 3)), jnp.ones((1, 9, 9, 3)))
    assert plain.everywhere_macs == 0
    assert "statistic" not in str(plain)
