"""Cameras that join, leave and start again; settings and parameters that change in between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.incremental.transform import plan_for
from tests.contract.caches import excesses
from tests.contract.test_exact import assert_identical
from tests.contract.test_static import compilations
from tests.contract.zoo import BY_NAME, Network, act, clip, conv
from tests.kernels.test_masked_conv import reversed_writes

NAMES = ["vgg", "inverted_residual", "nchw", "boundaries", "dense_head"]


def rows(tree, which):
    return [leaf[which] for leaf in jax.tree.leaves(tree) if leaf.ndim]


@pytest.mark.parametrize("options", [{}, {"threshold": 2, "truncation": 0.5}], ids=["exact", "tau"])
@pytest.mark.parametrize("name", NAMES)
def test_a_stream_that_starts_again_disturbs_no_other(name, options):
    network = BY_NAME[name]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    others = clip(network, integer=True, seed=1)
    # Without whole frames: whether they pay is decided for all streams together.
    video = dynvid.incremental(network.fn, break_even=1.0, **options)
    undisturbed, _ = video.init(params, frames[0])
    alone, _ = video.init(params, others[4][1:])
    state, _ = video.init(params, frames[0])
    for t in range(1, 9):
        if t == 5:
            state = dynvid.replace_streams(state, alone, jnp.array([False, True]))
        mixed = np.concatenate([frames[t][:1], (others if t >= 5 else frames)[t][1:]])
        state, out = video.step(params, state, mixed)
        undisturbed, expected = video.step(params, undisturbed, frames[t])
        assert_identical(rows(out, np.array([0])), rows(expected, np.array([0])))
        if name in ("vgg", "nchw"):  # a dense boundary runs for all streams or for none
            assert state.work.macs[0] == undisturbed.work.macs[0]
        if t >= 5:
            alone, expected = video.step(params, alone, others[t][1:])
            assert_identical(rows(out, np.array([1])), rows(expected, np.array([0])))
            if name in ("vgg", "nchw"):
                assert state.work.macs[1] == alone.work.macs[0]


def test_streams_are_replaced_without_compiling():
    network = BY_NAME["chain"]
    params = jax.device_put(network.params(integer=True))
    frames = [jax.device_put(frame) for frame in clip(network, integer=True)]
    video = dynvid.incremental(network.fn, truncation=0.5)
    replace = jax.jit(dynvid.replace_streams)
    state, _ = video.init(params, frames[0])
    other, _ = video.init(params, frames[5])
    first, both = jnp.array([True, False]), jnp.array([True, True])
    state, _ = video.step(params, replace(state, other, first), frames[1])
    with compilations() as seen:
        state, _ = video.step(params, replace(state, other, both), frames[2])
    assert not seen


def mixing(p, x):
    x = act(conv(x, p[0]))
    everywhere = jnp.clip(x.sum((0, 1, 2)), 0, 7)  # of all streams together
    neighbour = jnp.roll(x, 1, axis=0)
    return act(conv(x + neighbour + everywhere, p[1]))


@pytest.mark.parametrize("truncation", [0.0, 0.5])
def test_what_mixes_the_streams_is_made_anew(truncation):
    network = Network("mixing", mixing, [(3, 3, 3, 4), (3, 3, 4, 4)], frame=(17, 22, 3))
    params = network.params(integer=True)
    frames, others = clip(network, integer=True), clip(network, integer=True, seed=1)
    video = dynvid.incremental(mixing, truncation=truncation)
    state, _ = video.init(params, frames[0])
    other, _ = video.init(params, others[0])
    state = dynvid.replace_streams(state, other, jnp.array([False, True]))
    still = np.concatenate([frames[0][:1], others[0][1:]])
    state, out = video.step(params, state, still)
    if not truncation:
        assert_identical(out, jax.jit(mixing)(params, still))
    plan = plan_for(mixing, params, frames[0], compares=truncation > 0)
    assert excesses(plan)(params, state).max() <= 0
    # Once is enough.
    state, _ = video.step(params, state, still)
    assert state.work.mac_fraction == 0


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (np.array([True]), r"which must be bool\[2\]; got bool\[1\]"),
        (np.array([0, 1]), r"which must be bool\[2\]; got int"),
    ],
)
def test_streams_that_are_not_there(which, message):
    video = dynvid.incremental(lambda p, x: x * p)
    state, _ = video.init(1.0, np.ones((2, 4, 4, 1), "f"))
    with pytest.raises(ValueError, match=message):
        dynvid.replace_streams(state, state, which)


def test_states_of_other_functions_are_refused():
    video = dynvid.incremental(lambda p, x: x * p)
    state, _ = video.init(1.0, np.ones((2, 4, 4, 1), "f"))
    other, _ = dynvid.incremental(lambda p, x: (x * p).sum((1, 2))).init(1.0, state.reference)
    three, _ = video.init(1.0, np.ones((3, 4, 4, 1), "f"))
    for wrong in (other, three):
        with pytest.raises(ValueError, match="other must be a state of the same function"):
            dynvid.replace_streams(state, wrong, jnp.array([True, False]))


# Settings.


@pytest.mark.parametrize("name", ["vgg", "boundaries"])
def test_settings_put_into_a_state_are_those_it_was_made_with(name):
    network = BY_NAME[name]
    params = jax.device_put(network.params(integer=True))
    frames = [jax.device_put(frame) for frame in clip(network, integer=True)]
    layers = dynvid.explain(network.fn, params, frames[0]).layers
    by_layer = {layers[0]: 0.4, layers[1]: [0.3, 1.2]}
    general = dynvid.incremental(network.fn, truncation=1.0)
    made, _ = general.init(params, frames[0])
    made, _ = general.step(params, made, frames[0])
    for threshold, truncation in ((2.0, 0.7), ([1, 5], by_layer), (0, 0)):
        special = dynvid.incremental(network.fn, threshold=threshold, truncation=truncation)
        expected, _ = special.init(params, frames[0])
        state, _ = general.init(params, frames[0])
        state = state.with_settings(threshold=threshold, truncation=truncation)
        for frame in frames[1:6]:
            expected, want = special.step(params, expected, frame)
            with compilations() as seen:
                state, out = general.step(params, state, frame)
            assert not seen
            assert_identical(out, want)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": -1}, "threshold must be a number of at least 0.*-1"),
        ({"threshold": [1, 2, 3]}, r"threshold must be .* 2 streams; got shape \[3\]"),
        ({"truncation": float("nan")}, "truncation.*nan"),
        ({"truncation": {"conv_9": 1.0}}, r"truncation must name layers.*\['conv_9'\]"),
        ({"truncation": {"conv_1": [-1.0, 1.0]}}, "truncation.*conv_1.*-1.0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    network = BY_NAME["chain"]
    params = network.params(integer=True)
    state, _ = dynvid.incremental(network.fn, truncation=1.0).init(
        params, clip(network, integer=True)[0]
    )
    with pytest.raises(ValueError, match=message):
        state.with_settings(**settings)


def test_an_exact_function_has_no_truncation_to_set():
    network = BY_NAME["chain"]
    params = network.params(integer=True)
    state, _ = dynvid.incremental(network.fn).init(params, clip(network, integer=True)[0])
    assert state.with_settings(truncation=0).truncation.shape == (0, 2)
    with pytest.raises(ValueError, match="truncation must be 0 in a function that was made with"):
        state.with_settings(truncation=0.5)


# Scales.


def test_recalibrating_measures_anew_and_keeps_the_settings():
    network = BY_NAME["chain"]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    video = dynvid.incremental(network.fn, threshold=3, truncation=0.5)
    state, _ = video.init(params, 0 * frames[0])
    state = state.with_settings(threshold=1)
    assert float(state.tolerances.max()) < float(video.init(params, frames[0])[0].tolerances.max())
    state = video.recalibrate(params, state, frames[3])
    fresh, expected = video.init(params, frames[3])
    np.testing.assert_array_equal(state.tolerances, fresh.tolerances)
    np.testing.assert_array_equal(state.threshold, 1)
    state, out = video.step(params, state, frames[3])
    assert_identical(out, expected)


def test_an_infinite_truncation_holds_back_everything_also_over_a_black_frame():
    network = BY_NAME["chain"]
    params = [(w, 0 * b) for w, b in network.params(integer=True)[:2]]
    frames = clip(network, integer=True)
    video = dynvid.incremental(network.fn, truncation=float("inf"))
    state, _ = video.init(params, 0 * frames[0])
    assert not np.isnan(np.asarray(state.tolerances)).any()
    state, _ = video.step(params, state, frames[1])
    for cache, row in zip(state.caches, state.rows, strict=True):
        if row >= 0:
            np.testing.assert_array_equal(cache, 0)


# Parameters.


@pytest.mark.parametrize("options", [{}, {"threshold": 3, "truncation": 0.5}], ids=["exact", "tau"])
@pytest.mark.parametrize("name", ["vgg", "inverted_residual", "boundaries", "positions", "nchw"])
def test_other_parameters_give_the_other_network(name, options):
    network = BY_NAME[name]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    other = jax.tree.map(lambda w: -w[::-1], params)
    video = dynvid.incremental(network.fn, **options)
    state, _ = video.init(params, frames[0])
    state, _ = video.step(params, state, frames[1])
    for frame in (frames[1], frames[2]):
        state, out = video.step(other, state, frame)
        if frame is frames[1] or not options:
            assert_identical(out, jax.jit(network.fn)(other, frame))
            np.testing.assert_array_equal(state.reference, frame)
    assert all(np.asarray(mask).all() for mask in video.step(params, state, frame)[0].changes)


def test_parameters_that_are_not_numbers_are_the_same_parameters():
    network = BY_NAME["chain"]
    params = jax.tree.map(lambda w: w * np.nan, network.params(integer=True))
    frames = clip(network, integer=True)
    video = dynvid.incremental(network.fn)
    state, _ = video.init(params, frames[0])
    state, _ = video.step(params, state, frames[0])
    assert state.work.changed.max() == 0


# What does not fit.


def test_the_state_of_other_cells_is_refused():
    network = BY_NAME["vgg"]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    state, _ = dynvid.incremental(network.fn, cell=4).init(params, frames[0])
    for options in ({"cell": 7}, {"cell": 4, "truncation": 0.5}):
        with pytest.raises(ValueError, match=r"state must be of this very function.*same cell"):
            dynvid.incremental(network.fn, **options).step(params, state, frames[1])


@pytest.mark.parametrize(
    "shape", [(0, 8, 8, 3), (1, 0, 8, 3), (1, 8, 0, 3), (1, 8, 8, 0), (8, 8, 3)]
)
def test_frames_without_streams_rows_or_columns_are_refused(shape):
    video = dynvid.incremental(lambda p, x: x * p)
    with pytest.raises(ValueError, match=r"frames must be \(streams, H, W, C\), each at least 1"):
        video.init(1.0, np.ones(shape, "f"))
    with pytest.raises(ValueError, match=r"frames must be \(streams, H, W, C\), each at least 1"):
        dynvid.explain(lambda p, x: x * p, 1.0, np.ones(shape, "f"))


def test_a_feature_map_may_be_empty():
    def fn(p, x):
        empty = conv(x, p, padding="VALID")
        return conv(x, p), empty, jnp.tanh(empty).sum((1, 2))

    kernel = np.ones((3, 3, 3, 2), "f")
    video = dynvid.incremental(fn)
    frame = np.ones((1, 2, 9, 3), "f")
    state, out = video.init(kernel, frame)
    assert_identical(out, jax.jit(fn)(kernel, frame))
    state, out = video.step(kernel, state, frame + 1)
    assert_identical(out, jax.jit(fn)(kernel, frame + 1))
    assert "0x7" in str(dynvid.explain(fn, kernel, frame))


# The order in which a device writes.


@pytest.mark.parametrize("name", ["chain", "vgg", "residual"])
def test_overlapping_cells_may_be_written_in_any_order(name, monkeypatch):
    network = BY_NAME[name]
    params = network.params(integer=True)
    frames = clip(network, integer=True)

    def run():
        video = dynvid.incremental(network.fn, truncation=0.7, cell=4)
        state, out = video.init(params, frames[0])
        outputs = [out]
        for frame in frames[1:]:
            state, out = video.step(params, state, frame)
            outputs.append((out, state.caches, state.changes))
        return outputs

    expected = run()
    reversed_writes(monkeypatch)
    assert_identical(run(), expected)
