"""What a step executed, and what it did not need to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.incremental.transform import plan_for
from tests.contract.zoo import BY_NAME, ZOO, act, clip, conv

VGG16 = (64, 64, "pool", 128, 128, "pool", *(256,) * 3, "pool", *(512,) * 3, "pool", *(512,) * 3)


def vgg16(p, x):
    layers = iter(p)
    for layer in VGG16:
        if layer == "pool":
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        else:
            x = jax.nn.relu(conv(x, next(layers)))
    return x


def test_dense_macs_are_those_of_the_layers():
    depth, shapes, macs, side = 3, [], 0, 512
    for layer in VGG16:
        if isinstance(layer, int):
            shapes.append(jax.ShapeDtypeStruct((3, 3, depth, layer), jnp.float32))
            macs += side**2 * 9 * depth * layer
            depth = layer
        else:
            side //= 2
    assert macs == 80_178_315_264  # 80.2 GMACs: 15.35 at 224, 5.22 times as many pixels
    for streams in (1, 3):
        frames = jax.ShapeDtypeStruct((streams, 512, 512, 3), jnp.float32)
        table = dynvid.explain(vgg16, shapes, frames)
        assert table.macs == table.incremental_macs == macs
        assert plan_for(vgg16, shapes, frames).dense_macs == macs


def test_macs_of_other_products():
    frames = jax.ShapeDtypeStruct((2, 20, 30, 4), jnp.float32)

    def count(fn, *shapes):
        params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return dynvid.explain(fn, params, frames).macs

    assert count(lambda p, x: x @ p[0], (4, 7)) == 600 * 4 * 7
    assert count(lambda p, x: conv(x, p[0], 2, groups=4), (3, 3, 1, 8)) == 150 * 9 * 8
    assert count(lambda p, x: conv(x, p[0], groups=2), (5, 3, 2, 6)) == 600 * 15 * 2 * 6
    # Every input meets every tap once, whatever the stride of a transposed convolution.
    transposed = lambda p, x: jax.lax.conv_transpose(x, p[0], (2, 2), "SAME")  # noqa: E731
    assert count(transposed, (4, 4, 4, 6)) == 600 * 16 * 4 * 6
    assert count(lambda p, x: x.mean((1, 2)) @ p[0], (4, 7)) == 4 * 7


def test_explain_counts_what_the_work_is_measured_by():
    """Resizing by a matrix, a loop over layers, a conditional: one number everywhere."""

    def fn(p, x):
        x = jax.image.resize(x, (x.shape[0], 12, 20, x.shape[3]), "linear")
        x = jax.lax.fori_loop(0, 10, lambda _, x: act(conv(x, p)), x)
        return jax.lax.cond(x.sum() > 3, lambda x: conv(x, p), lambda x: x, x)

    kernel = jnp.zeros((3, 3, 4, 4))
    frames = jnp.zeros((2, 24, 40, 4))
    table = dynvid.explain(fn, kernel, frames)
    in_loop = 11 * 12 * 20 * 9 * 16
    assert in_loop < table.macs < 1.1 * in_loop
    state, _ = dynvid.incremental(fn).init(kernel, frames)
    assert state.work.dense_macs[0] == plan_for(fn, kernel, frames).dense_macs == table.macs
    assert table.incremental_macs < 0.1 * table.macs
    # A changed pixel makes the loop run as a whole.
    state, _ = dynvid.incremental(fn).step(kernel, state, frames.at[0, 3, 3].set(1))
    assert state.work.macs[0] >= in_loop


@pytest.mark.parametrize("name", ["vgg", "inverted_residual", "boundaries", "letterbox"])
def test_a_still_frame_costs_nothing(name):
    network = BY_NAME[name]
    params = network.params(integer=True)
    video = dynvid.incremental(network.fn)
    frame = clip(network, integer=True)[0]
    state, first = video.init(params, frame)
    np.testing.assert_array_equal(state.work.macs, state.work.dense_macs)
    np.testing.assert_array_equal(state.work.changed, 1)
    assert state.work.mac_fraction == 1
    state, again = video.step(params, state, frame)
    np.testing.assert_array_equal(state.work.macs, 0)
    np.testing.assert_array_equal(state.work.changed, 0)
    np.testing.assert_array_equal(state.work.details["cells"], 0)
    np.testing.assert_array_equal(state.work.details["dense"], False)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["vgg", "residual", "pyramid", "transposed"])
def test_work_grows_with_the_change(name):
    network = BY_NAME[name]
    params = network.params(integer=True)
    height, width, _ = network.frame
    video = dynvid.incremental(network.fn)
    frame = clip(network, integer=True)[0]
    start, _ = video.init(params, frame)
    before = 0.0
    for size in (1, 4, 12, max(height, width)):
        moved = frame.copy()
        moved[0, :size, :size] = 7 - moved[0, :size, :size]  # every pixel differs: 7 is odd
        state, _ = video.step(params, start, moved)
        work = state.work
        changed = min(size, height) * min(size, width) / (height * width)
        np.testing.assert_allclose(work.changed, [changed, 0], rtol=1e-6)
        assert before < work.macs[0] <= 1.3 * work.dense_macs[0]
        assert size > 1 or work.macs[0] < 0.25 * work.dense_macs[0]
        before = float(work.macs[0])
    assert work.macs[0] >= 0.99 * work.dense_macs[0]


def test_a_still_stream_is_not_charged_for_its_neighbour():
    network = BY_NAME["vgg"]
    params = network.params(integer=True)
    video = dynvid.incremental(network.fn)
    frame = clip(network, integer=True)[0]
    state, _ = video.init(params, frame)
    moved = frame.copy()
    moved[1, 4:8, 4:8] = 7 - moved[1, 4:8, 4:8]
    state, _ = video.step(params, state, moved)
    assert state.work.macs[0] == 0
    assert state.work.macs[1] > 0


def gated(p, x):
    """A gate that only tells whether anything in the stream is 100 or more."""
    x = act(conv(x, p[0]))
    gate = jnp.where(x.max((1, 2)) > 6, 1.0, 2.0)
    return conv(x * gate[:, None, None], p[1])


def test_a_gate_that_keeps_its_value_does_not_wake_the_map():
    params = [np.eye(4, dtype="f")[None, None], np.ones((3, 3, 4, 4), "f")]
    frame = np.ones((2, 24, 28, 4), "f")
    video = dynvid.incremental(gated)
    start, _ = video.init(params, frame)

    low = frame.copy()
    low[0, 10, 10] = 3  # below the gate's level: it keeps its value
    state, out = video.step(params, start, low)
    np.testing.assert_array_equal(out, gated(params, low))
    assert 0 < state.work.macs[0] < 0.2 * state.work.dense_macs[0]

    high = low.copy()
    high[0, 3, 3] = 7  # opens the gate of stream 0, and of no other
    state, out = video.step(params, state, high)
    np.testing.assert_array_equal(out, gated(params, high))
    second = 24 * 28 * 9 * 4 * 4
    assert state.work.macs[0] >= second
    assert state.work.macs[1] < 0.2 * second or state.work.details["dense"][-1]

    higher = high.copy()
    higher[0, 15, 15] = 7  # the gate is open already
    state, out = video.step(params, state, higher)
    np.testing.assert_array_equal(out, gated(params, higher))
    assert 0 < state.work.macs[0] < 0.2 * state.work.dense_macs[0]


def test_truncation_holds_gates_that_move_a_little():
    def fn(p, x):
        x = conv(x, p)
        return conv(x * (1 + x.mean((1, 2), keepdims=True)), p)

    params = np.eye(4, dtype="f")[None, None] * np.ones((3, 3, 1, 1), "f")
    frame = np.random.default_rng(0).random((1, 24, 28, 4), np.float32)
    moved = frame.copy()
    moved[0, 10, 10] += 1
    spent = []
    for tau in (0.0, 0.1):
        video = dynvid.incremental(fn, truncation=tau)
        state, _ = video.init(params, frame)
        state, _ = video.step(params, state, moved)
        spent.append(float(state.work.mac_fraction))
    assert spent[0] > 0.5
    assert spent[1] < 0.1


def test_a_boundary_is_skipped_while_nothing_it_reads_changed():
    network = BY_NAME["dense_head"]
    params = network.params(integer=True)
    frame = np.full((1, *network.frame), 7, "f")
    moved = frame.copy()
    moved[0, 4, 4] = 0
    spent = []
    for tau in (0, 1e6):
        video = dynvid.incremental(network.fn, truncation=tau)
        state, _ = video.init(params, frame)
        state, _ = video.step(params, state, moved)
        spent.append(int(state.work.macs[0]))
    assert spent[0] - spent[1] == params[1].size


@pytest.mark.parametrize("network", [n for n in ZOO if n.integer], ids=lambda n: n.name)
def test_segments_are_named_once(network):
    params = network.params(integer=True)
    layers = dynvid.explain(network.fn, params, clip(network, integer=True)[0]).layers
    assert len(set(layers)) == len(layers)
