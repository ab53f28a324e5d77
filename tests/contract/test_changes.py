"""Contract, "changes": the state tells where each output may differ from the one before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.incremental import execute
from dynvid.incremental.transform import plan_for
from tests.contract.changes import Watch
from tests.contract.zoo import BY_NAME, Network, act, clip, conv, pool, upsample


def _leaves(p, x):
    """Outputs of every kind: frames, maps kept and lazy, vectors, a constant; some twice."""
    y = act(conv(x, p["a"]))
    z = conv(pool(y), p["b"])
    flipped = jnp.sort(y, axis=2)
    return {
        "frames": x,
        "bytes": x.astype(jnp.uint8),
        "map": y,
        "again": (y, x),
        "slice": z[:, 1:-2, ::2],
        "upsampled": upsample(z),
        "sideways": jnp.moveaxis(z, -1, 1),
        "boundary": flipped,
        "behind": conv(flipped, p["b"]),
        "vector": z.sum((1, 2)),
        "repeated": jnp.broadcast_to(z.max((1, 2), keepdims=True), z.shape),
        "number": y.sum(),
        "constant": p["b"] + 1,
    }


LEAVES = Network("leaves", _leaves, {"a": (3, 3, 3, 4), "b": (3, 3, 4, 4)}, frame=(18, 22, 3))


def watched(network: Network, *, streams: int = 2, **options) -> Watch:
    """Runs a clip through a network under a watch."""
    params = network.params(integer=True)
    frames = [jnp.asarray(x) for x in clip(network, integer=True, streams=streams)]
    tau = options.get("truncation", 0.0)
    plan = plan_for(network.fn, params, frames[0], compares=tau > 0, cell=options.get("cell"))
    video = dynvid.incremental(network.fn, **options)
    state, out = video.init(params, frames[0])
    watch = Watch(plan, out, state)
    for frame in frames[1:]:
        state, out = video.step(params, state, frame)
        watch(out, state)
    return watch


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("options", [{}, {"truncation": 0.7}, {"threshold": 2, "cell": 3}])
def test_an_output_is_what_it_was_where_it_is_not_marked(options, streams):
    watch = watched(LEAVES, streams=streams, **options)
    assert watch.marked > 0
    assert watch.spared > 0


def test_with_the_previous_frame_as_reference():
    watched(LEAVES, reference="previous")


def test_nothing_is_marked_on_a_still_input():
    params = LEAVES.params(integer=True)
    frame = clip(LEAVES, integer=True)[0]
    video = dynvid.incremental(LEAVES.fn)
    state, out = video.init(params, frame)
    assert len(state.changes) == len(jax.tree.leaves(out))
    for new in (frame, np.roll(frame, 3, 2), np.roll(frame, 3, 2)):
        state, _ = video.step(params, state, new)
    assert not any(mask.any() for mask in state.changes)


def test_one_pixel_marks_its_receptive_field_in_its_stream_alone():
    params = LEAVES.params(integer=True)
    first = np.zeros((2, *LEAVES.frame), np.float32)
    second = first.copy()
    second[1, 8, 10] = 1
    video = dynvid.incremental(LEAVES.fn)
    state, out = video.step(params, video.init(params, first)[0], second)
    changes = jax.tree.unflatten(jax.tree.structure(out), state.changes)
    expected = np.zeros((2, *LEAVES.frame[:2]), bool)
    expected[1, 8, 10] = True
    np.testing.assert_array_equal(changes["frames"], expected)
    np.testing.assert_array_equal(changes["again"][1], expected)
    expected[1, 7:10, 9:12] = True
    np.testing.assert_array_equal(changes["map"], expected)
    # Pooled by two: rows 3 and 4, columns 4 and 5; then one more on each side.
    expected = np.zeros((2, 9, 11), bool)
    expected[1, 2:6, 3:7] = True
    np.testing.assert_array_equal(changes["sideways"], expected)
    np.testing.assert_array_equal(changes["slice"], expected[:, 1:-2, ::2])
    np.testing.assert_array_equal(changes["upsampled"], expected.repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(changes["vector"], [False, True])
    np.testing.assert_array_equal(changes["constant"], [False, False])


def test_what_truncation_holds_back_is_not_marked():
    """The masks are those after truncation: what a layer holds back stops what follows."""
    network = BY_NAME["chain"]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    video = dynvid.incremental(network.fn, truncation=1e9)
    state, out = video.init(params, frames[0])
    for frame in frames[1:]:
        state, new = video.step(params, state, frame)
        assert not any(mask.any() for mask in state.changes)
        np.testing.assert_array_equal(new, out)


def test_a_mask_that_is_an_output_may_be_kept_when_the_state_is_donated():
    """The frames' changes are the mask that was given: never the same memory."""
    step = jax.jit((video := dynvid.incremental(lambda p, x: (x, x, x + p))).step, donate_argnums=1)
    frames = [jnp.full((1, 4, 4, 1), t, jnp.float32) for t in range(4)]
    mask = jnp.zeros((1, 4, 4), bool).at[0, 1].set(True)
    state, _ = video.init(1.0, frames[0])
    for frame in frames[1:]:
        state, _ = step(1.0, state, frame, mask)
        for changes in state.changes:
            np.testing.assert_array_equal(changes, mask)
    assert mask.sum() == 4


# Planted bugs: the tests above must see each of them.


def test_inverted_masks_are_seen(monkeypatch):
    output_mask = execute.Runner._output_mask
    monkeypatch.setattr(execute.Runner, "_output_mask", lambda self, v: ~output_mask(self, v))
    with pytest.raises(AssertionError, match="changed unmarked"):
        watched(LEAVES, truncation=0.7)


def test_masks_that_are_never_renewed_are_seen(monkeypatch):
    step = execute.Runner.step

    def kept(self, state, *args, **options):
        return dataclasses.replace(step(self, state, *args, **options), changes=state.changes)

    monkeypatch.setattr(execute.Runner, "step", kept)
    with pytest.raises(AssertionError):
        test_nothing_is_marked_on_a_still_input()


def test_masks_of_the_step_before_are_seen():
    params = LEAVES.params(integer=True)
    frames = clip(LEAVES, integer=True)
    video = dynvid.incremental(LEAVES.fn)
    state, out = video.init(params, frames[0])
    watch = Watch(plan_for(LEAVES.fn, params, jnp.asarray(frames[0])), out, state)
    older, _ = video.step(params, state, frames[1])  # the first pixel changes with the second
    newer, out = video.step(params, older, frames[2])
    with pytest.raises(AssertionError, match="changed unmarked"):
        watch(out, dataclasses.replace(newer, changes=older.changes))


def test_masks_before_truncation_are_seen(monkeypatch):
    segment = execute.Runner._segment

    def early(self, part):
        marked = {value: self.mask(value) for value in part.outputs}
        found = segment(self, part)
        self.change.update(marked)
        return found

    monkeypatch.setattr(execute.Runner, "_segment", early)
    with pytest.raises(AssertionError):
        test_what_truncation_holds_back_is_not_marked()
