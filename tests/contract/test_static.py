"""Contract, "static": one executable for `init`, one for `step`, whatever the frames show."""

import contextlib
import io

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from tests.contract.test_exact import assert_identical
from tests.contract.zoo import BY_NAME, clip

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """Counts the executables that XLA makes inside the block."""
    seen = []

    def listen(event, duration_secs, **_):
        del duration_secs
        if event == COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def vgg():
    network = BY_NAME["vgg"]
    video = dynvid.incremental(network.fn)
    params = jax.device_put(network.params(integer=True))
    return video, params, [jax.device_put(frame) for frame in clip(network, integer=True)]


def run(video, params, frames):
    state, _ = video.init(params, frames[0])
    outputs = []
    for frame in frames[1:]:
        state, out = video.step(params, state, frame)
        outputs.append(out)
    return state, outputs


def test_nothing_compiles_after_the_first_step(vgg):
    video, params, frames = vgg
    with compilations() as seen:
        state, _ = video.init(params, frames[0])
        state, _ = video.step(params, state, frames[1])
    assert seen, "the counter counts nothing"
    with compilations() as seen:
        state, _ = video.init(params, frames[3])
        for frame in frames[2:]:
            state, _ = video.step(params, state, frame)
    assert not seen


def test_scan_over_a_clip_equals_a_loop(vgg):
    video, params, frames = vgg
    _, expected = run(video, params, frames)

    @jax.jit
    def scan(params, frames):
        state, _ = video.init(params, frames[0])
        step = lambda state, frame: video.step(params, state, frame)  # noqa: E731
        return jax.lax.scan(step, state, frames[1:])

    _, outputs = scan(params, jnp.stack(frames))
    assert_identical(list(outputs), expected)


def test_donated_states_are_reused_and_change_nothing(vgg):
    video, params, frames = vgg
    _, expected = run(video, params, frames)
    step = jax.jit(video.step, donate_argnums=1)
    state, _ = video.init(params, frames[0])
    for frame, out in zip(frames[1:], expected, strict=True):
        old = state
        state, actual = step(params, old, frame)
        assert_identical(actual, out)
    assert all(cache.is_deleted() for cache in old.caches)
    assert old.frames.is_deleted()


def test_a_saved_state_resumes_bit_for_bit(vgg):
    video, params, frames = vgg
    state, _ = run(video, params, frames[:6])
    file = io.BytesIO()
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    np.savez(file, *leaves)
    file.seek(0)
    with np.load(file) as stored:
        again = jax.tree.unflatten(structure, [stored[name] for name in stored.files])
    for frame in frames[6:]:
        state, expected = video.step(params, state, frame)
        again, actual = video.step(params, again, frame)
        assert_identical(actual, expected)
        assert_identical(again, state)


def test_the_structure_of_a_new_state_takes_saved_arrays(vgg):
    """What a program does that was started again: `init` on any frame gives the structure."""
    video, params, frames = vgg
    state, _ = run(video, params, frames[:6])
    other, _ = dynvid.incremental(BY_NAME["vgg"].fn).init(params, frames[2])
    again = jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(state))
    assert_identical(
        video.step(params, again, frames[6])[1], video.step(params, state, frames[6])[1]
    )


def test_streams_do_not_feel_their_neighbours(vgg):
    video, params, frames = vgg
    _, together = run(video, params, frames)
    for stream in (0, 1):
        _, alone = run(video, params, [frame[stream : stream + 1] for frame in frames])
        for both, one in zip(together, alone, strict=True):
            assert_identical(both[stream : stream + 1], one)


def test_a_mask_says_what_to_update(vgg):
    video, params, frames = vgg
    network = BY_NAME["vgg"]
    state, _ = video.init(params, frames[0])
    mask = np.zeros(frames[0].shape[:3], bool)
    mask[0, 5:9, 30:34] = mask[1, -1] = True
    state, out = video.step(params, state, frames[12], mask)
    expected = np.where(mask[..., None], frames[12], frames[0])
    np.testing.assert_array_equal(state.reference, expected)
    assert_identical(out, jax.jit(network.fn)(params, expected))
    np.testing.assert_allclose(state.work.changed, mask.mean((1, 2)), rtol=1e-6)
    # An empty mask: nothing is looked at.
    state, same = video.step(params, state, frames[3], mask=jnp.zeros_like(mask))
    assert_identical(same, out)
    np.testing.assert_array_equal(state.reference, expected)
    assert state.work.mac_fraction == 0


def test_parameters_may_be_closed_over():
    network = BY_NAME["chain"]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    video = dynvid.incremental(lambda _, x: network.fn(params, x))
    state, _ = video.init((), frames[0])
    for frame in frames[1:6]:
        state, out = video.step((), state, frame)
        assert_identical(out, jax.jit(network.fn)(params, frame))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_frames(dtype):
    network = BY_NAME["chain"]
    # Sums of this network stay below 256, which either type holds exactly.
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), network.params(integer=True))
    frames = [jnp.asarray(frame, dtype) for frame in clip(network, integer=True)]
    video = dynvid.incremental(network.fn)
    state, _ = video.init(params, frames[0])
    for frame in frames[1:7]:
        state, out = video.step(params, state, frame)
        assert_identical(out, jax.jit(network.fn)(params, frame))
