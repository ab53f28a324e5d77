"""Contract, "exact" and "reference": the output is `fn(params, state.reference)`."""

import jax
import numpy as np
import pytest

import dynvid
from dynvid.incremental.transform import plan_for
from tests.contract.changes import Watch
from tests.contract.rounding import rounding_bounds
from tests.contract.zoo import BY_NAME, ZOO, Network, clip


def run(network: Network, *, integer: bool, check, **options) -> None:
    """Runs a clip through a network; `check(frame, state, out, expected)` after every frame."""
    params = network.params(integer=integer)
    video = dynvid.incremental(network.fn, **options)
    dense = jax.jit(network.fn)
    state = None
    for frame in clip(network, integer=integer):
        if state is None:
            state, out = video.init(params, frame)
        else:
            state, out = video.step(params, state, frame)
        check(frame, state, out, dense(params, state.reference))


def assert_identical(actual, expected) -> None:
    """Compares two pytrees bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, strict=True)


def assert_close(actual, expected, bounds) -> None:
    """Compares two pytrees with one absolute tolerance for each leaf."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for (a, b), bound in zip(pairs, bounds, strict=True):
        if np.isfinite(bound):
            np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def ids(network: Network) -> str:
    return network.name


@pytest.mark.parametrize("network", [n for n in ZOO if n.integer], ids=ids)
def test_integer_networks_are_exact_bit_for_bit(network):
    watch = None

    def check(frame, state, out, expected):
        nonlocal watch
        if watch is None:
            watch = Watch(plan_for(network.fn, network.params(integer=True), frame), out, state)
        else:
            watch(out, state)
        # With a threshold of zero, nothing but the new frame is a good reference.
        np.testing.assert_array_equal(state.reference, frame, strict=True)
        assert_identical(out, expected)

    run(network, integer=True, check=check)


REAL = ["vgg", "pyramid", "letterbox", "activations", "attention", "averages", "flax"]


@pytest.mark.parametrize("network", [BY_NAME[name] for name in REAL], ids=ids)
def test_real_networks_are_exact_within_rounding(network):
    params = network.params(integer=False)
    frames = clip(network, integer=False)
    bounds = np.max([rounding_bounds(network.fn, params, frame) for frame in frames], axis=0)
    assert np.isfinite(bounds).any()

    def check(frame, state, out, expected):
        np.testing.assert_array_equal(state.reference, frame, strict=True)
        assert_close(out, expected, bounds)

    run(network, integer=False, check=check)


@pytest.mark.parametrize(("name", "theta"), [("vgg", 2), ("camera", 19.5), ("nested", 7)])
def test_a_threshold_keeps_the_reference_close_and_the_output_exact(name, theta):
    skipped = []

    def check(frame, state, out, expected):
        distance = np.abs(frame.astype(np.float32) - np.asarray(state.reference, np.float32))
        assert distance.max() < theta
        skipped.append((distance > 0).any())
        assert_identical(out, expected)

    run(BY_NAME[name], integer=True, check=check, threshold=theta)
    assert sum(skipped) >= 3


@pytest.mark.parametrize("channels", ["gray", "mean"])
def test_channels_may_be_joined_before_they_are_compared(channels):
    from dynvid.ops.difference import frame_difference

    def check(frame, state, out, expected):
        distance = frame_difference(frame, state.reference, channels=channels)
        assert distance.max() < 2
        assert_identical(out, expected)

    run(BY_NAME["chain"], integer=True, check=check, threshold=2, channels=channels)


@pytest.mark.parametrize("cell", [1, 3, 8, 64])
def test_every_size_of_cell_is_exact(cell):
    def check(frame, state, out, expected):
        del frame, state
        assert_identical(out, expected)

    run(BY_NAME["pyramid"], integer=True, check=check, cell=cell)


def test_one_stream_and_many_streams():
    network = BY_NAME["inverted_residual"]
    params = network.params(integer=True)
    dense = jax.jit(network.fn)
    video = dynvid.incremental(network.fn)
    for streams in (1, 5):
        frames = clip(network, integer=True, streams=streams)
        state, _ = video.init(params, frames[0])
        for frame in frames[1:8]:
            state, out = video.step(params, state, frame)
            assert_identical(out, dense(params, frame))


def test_the_previous_frame_as_reference_drifts_as_the_paper_does():
    network = BY_NAME["chain"]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    for theta, drifts in ((0, False), (3, True)):
        video = dynvid.incremental(network.fn, threshold=theta, reference="previous")
        state, _ = video.init(params, frames[0])
        off = 0.0
        for frame in frames[1:]:
            state, out = video.step(params, state, frame)
            np.testing.assert_array_equal(state.reference, frame)
            off = max(off, float(np.abs(out - network.fn(params, frame)).max()))
        assert (off > 0) == drifts
