"""DVSNet's step: which regions run, what they say, and that nothing else runs."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

import dynvid
from dynvid.graph import count_macs
from dynvid.ops.labels import best_classes
from dynvid.ops.regions import divide_frame
from dynvid.ops.warp import Motion, warp
from dynvid.systems.dvsnet import DVSNetParams, dvsnet

CLASSES = 5
SIZE = (24, 40)
REGIONS = divide_frame(SIZE, overlap=4, multiple=2)
KERNEL = jax.random.randint(jax.random.key(0), (4, 4, 3, CLASSES), -4, 5).astype(jnp.float32)
PARAMS = DVSNetParams(KERNEL, jnp.zeros(()), jnp.zeros(()))


def segment(kernel, images):
    """Integer logits at half the resolution."""
    return lax.conv_general_dilated(
        images.astype(jnp.float32), kernel, (2, 2), [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def still(params, current, key):
    """No motion, and the mean grey level of each image as its features."""
    del params, key
    rows, columns = current.shape[1] // 2, current.shape[2] // 2
    flow = jnp.zeros((current.shape[0], rows, columns, 2))
    return Motion(flow, features=jnp.mean(current.astype(jnp.float32), (1, 2, 3))[:, None])


def moving(params, current, key):
    """A motion that is the parameter everywhere, and a scale of 1.5 on the first class."""
    motion = still(params, current, key)
    scale = jnp.ones((*motion.flow.shape[:3], CLASSES)).at[..., 0].set(1.5)
    return motion._replace(flow=motion.flow + params, scale=scale)


def brightness(params, features):
    """A score in 0..100: what is dark is trusted less."""
    return features[:, 0] * (100 / 255) + params


def clip(frames, *, streams=1, seed=1, size=SIZE):
    key = jax.random.key(seed)
    return jax.random.randint(key, (frames, streams, *size, 3), 0, 256).astype(jnp.uint8)


def system(flow=still, **options):
    options = {"overlap": 4, "multiple": 2} | options
    return dvsnet(segment, flow, decide=brightness, **options)


def by_region(frame, regions=REGIONS):
    """Per-frame segmentation of every region by itself, stitched: the reference."""
    parts = regions.divide(frame)
    images = parts.reshape(-1, *parts.shape[2:])
    labels, winning = best_classes(segment(KERNEL, images), regions.size)
    shape = (frame.shape[0], len(regions), *regions.size)
    return regions.stitch(labels.reshape(shape), winning.reshape(shape))


def test_above_every_score_each_frame_is_segmented():
    video = system(threshold=100)
    frames = clip(4)
    state, found = video.init(PARAMS, frames[0])
    np.testing.assert_array_equal(found.labels, by_region(frames[0]))
    for frame in frames[1:]:
        state, found = video.step(PARAMS, state, frame)
        np.testing.assert_array_equal(found.labels, by_region(frame))
        assert found.paths.segmented.all()
        assert (state.age == 0).all()


def test_one_region_without_overlap_is_the_network():
    video = system(grid=(1, 1), overlap=0, threshold=100)
    frames = clip(3, streams=2)
    state, _ = video.init(PARAMS, frames[0])
    for frame in frames[1:]:
        state, found = video.step(PARAMS, state, frame)
        np.testing.assert_array_equal(found.labels, best_classes(segment(KERNEL, frame), SIZE)[0])
        # The decision costs nothing here, the flow network has no product: only segmentation.
        assert state.work.mac_fraction == 1
    np.testing.assert_array_equal(
        found.counts, [np.bincount(np.ravel(x), minlength=CLASSES) for x in found.labels]
    )


def test_below_every_score_there_is_one_key_only():
    video = system(threshold=0)
    frames = clip(5)
    state, _ = video.init(PARAMS, frames[0])
    first = state
    for i, frame in enumerate(frames[1:], 1):
        state, found = video.step(PARAMS, state, frame)
        assert not found.paths.segmented.any()
        assert (state.age == i).all()
        assert state.work.macs.sum() == 0
    np.testing.assert_array_equal(state.key_images, first.key_images)
    np.testing.assert_array_equal(state.key_logits, first.key_logits)


def test_without_motion_the_key_is_said_again():
    # The flow's grid is that of the logits here: nothing is resized, nothing is lost.
    video = system(threshold=0)
    frame = clip(1)[0]
    state, first = video.init(PARAMS, frame)
    _, again = video.step(PARAMS, state, frame)
    np.testing.assert_array_equal(again.labels, first.labels)


def test_a_coarser_flow_costs_what_resizing_down_and_up_costs():
    def coarse(params, current, key):
        motion = still(params, current, key)
        return motion._replace(flow=motion.flow[:, ::2, ::2])

    video = system(coarse, grid=(1, 1), overlap=0, threshold=0)
    frame = clip(1)[0]
    state, _ = video.init(PARAMS, frame)
    _, found = video.step(PARAMS, state, frame)
    logits = segment(KERNEL, frame)
    small = jax.image.resize(logits, (1, 6, 10, CLASSES), "bilinear", antialias=False)
    np.testing.assert_array_equal(found.labels, best_classes(small, SIZE)[0])


def test_key_logits_are_warped_times_scale_and_never_replaced():
    video = system(moving, threshold=0)
    frames = clip(3)
    params = PARAMS._replace(flow=jnp.array([2.0, -1.0]))
    state, _ = video.init(params, frames[0])
    keys = REGIONS.divide(frames[0])[0]
    logits = segment(KERNEL, keys)
    flow = jnp.broadcast_to(params.flow, (*logits.shape[:3], 2))
    scale = jnp.ones(CLASSES).at[0].set(1.5)
    labels, winning = best_classes(warp(logits, flow, border="edge") * scale, REGIONS.size)
    expected = REGIONS.stitch(labels[None], winning[None])
    for frame in frames[1:]:  # against the key, not against the frame before
        state, found = video.step(params, state, frame)
        np.testing.assert_array_equal(found.labels, expected)


@settings(max_examples=25, deadline=None)
@given(
    levels=st.lists(st.integers(0, 255), min_size=4, max_size=4),
    low=st.integers(0, 100),
    high=st.integers(0, 100),
)
def test_a_higher_target_segments_more_and_agrees_more(levels, low, high):
    low, high = sorted((low, high))
    video, first, frame = _shared()
    frame = frame.at[:].set(0)
    for level, (x0, y0, x1, y1) in zip(levels, NO_OVERLAP.parts, strict=True):
        frame = frame.at[:, y0:y1, x0:x1].set(level)
    found = {}
    for t in (low, high):
        _, labels = video.step(PARAMS, first.with_settings(threshold=t), frame)
        found[t] = labels
        expected = jnp.array([brightness(0.0, jnp.array([[v]]))[0] < t for v in levels])
        np.testing.assert_array_equal(labels.paths.segmented[0], expected)
    assert not (found[low].paths.segmented & ~found[high].paths.segmented).any()
    truth = by_region(frame, NO_OVERLAP)
    assert (found[low].labels == truth).sum() <= (found[high].labels == truth).sum()


NO_OVERLAP = divide_frame(SIZE, multiple=2)


@functools.cache
def _shared():
    video = system(overlap=0)
    frames = clip(2, seed=4)
    state, _ = video.init(PARAMS, frames[0])
    return video, state, frames[1]


def test_only_what_is_sent_runs():
    """The segmentation network is really called as often as regions are sent, one by one."""
    calls = []

    def counted(kernel, images):
        def note(x):
            calls.append(len(x))
            return np.zeros((), np.float32)

        return segment(kernel, images) + jax.pure_callback(
            note, jax.ShapeDtypeStruct((), jnp.float32), images
        )

    video = dvsnet(counted, still, decide=brightness, overlap=4, multiple=2, threshold=50)
    frames = clip(1, streams=3)[0]
    state, _ = video.init(PARAMS, frames)
    jax.block_until_ready(state)
    assert sum(calls) == 12
    dark = frames.at[:].set(200).at[0, :8, :8].set(0).at[2].set(0).at[0, 16:, 30:].set(0)
    calls.clear()
    state, found = jax.block_until_ready(video.step(PARAMS, state, dark))
    sent = np.array([[False] * 4, [False] * 4, [True] * 4])
    np.testing.assert_array_equal(found.paths.segmented, sent)
    assert calls == [1] * 4
    one = count_macs(segment, KERNEL, jnp.zeros((1, *REGIONS.size, 3)))
    np.testing.assert_array_equal(state.work.macs, [0, 0, 4 * one])
    np.testing.assert_array_equal(state.work.dense_macs, count_macs(segment, KERNEL, dark[:1]))
    calls.clear()
    jax.block_until_ready(video.step(PARAMS, state.with_settings(threshold=0), dark))
    assert calls == []


def between(params, current, key):
    """A motion to the right as long as the current image is brighter; one product."""
    motion = still(params, current, key)
    brighter = (jnp.mean(current.astype(jnp.float32) - key, (1, 2, 3)) / 16) @ jnp.eye(len(key))
    return motion._replace(flow=motion.flow.at[..., 0].set(brighter[:, None, None]))


def judged(params, features):
    """The mean grey level in percent, by one product."""
    return (features @ jnp.ones((1, 2)))[:, 0] * (100 / 255) + params


@pytest.mark.parametrize("policy", ["decision_network", "fixed_period", "frame_difference"])
def test_every_path_asks_for_the_motion_from_now_to_the_key(policy):
    video = dvsnet(
        segment, between, decide=judged, policy=policy, threshold={"fixed_period": 9}.get(policy, 0)
        if policy != "frame_difference" else 255, overlap=0, multiple=2,
    )  # fmt: skip
    key = clip(1)[0] // 2
    state, _ = video.init(PARAMS, key)
    _, found = video.step(PARAMS, state, key + 32)  # two pixels of the logits' grid
    logits = segment(KERNEL, NO_OVERLAP.divide(key)[0])
    flow = jnp.zeros((*logits.shape[:3], 2)).at[..., 0].set(2.0)
    labels, winning = best_classes(warp(logits, flow, border="edge"), NO_OVERLAP.size)
    assert not found.paths.segmented.any()
    np.testing.assert_array_equal(found.labels, NO_OVERLAP.stitch(labels[None], winning[None]))


@pytest.mark.parametrize(
    ("policy", "mask", "flows", "decisions"),
    [
        ("decision_network", False, 4, 4),
        ("flow_magnitude", False, 4, 0),
        ("fixed_period", False, 4, 0),  # all of them are warped
        ("decision_network", True, 3, 0),
    ],
)
def test_work_is_counted_by_network(policy, mask, flows, decisions):
    threshold = {"decision_network": 0, "flow_magnitude": 99, "fixed_period": 99}[policy]
    video = dvsnet(
        segment, between, decide=judged, policy=policy, threshold=threshold, overlap=0, multiple=2
    )
    frame = clip(1)[0]
    state, _ = video.init(PARAMS, frame)
    given = jnp.zeros((1, *SIZE), bool).at[0, 0, 0].set(True) if mask else None
    state, _ = video.step(PARAMS, state, frame, given)
    image = jnp.zeros((1, *NO_OVERLAP.size, 3))
    one = count_macs(segment, KERNEL, image) if mask else 0
    # `between` multiplies by a matrix of one number for one image, `judged` by a row of two.
    assert state.work.details["segmentation_macs"].tolist() == [one]
    assert state.work.details["flow_macs"].tolist() == [flows]
    assert state.work.details["decision_macs"].tolist() == [2 * decisions]
    assert state.work.macs.tolist() == [one + flows + 2 * decisions]


def test_networks_of_any_size_are_counted():
    def heavy(kernel, images):
        return images.astype(jnp.float32) @ jnp.ones((3, 1 << 20)) @ jnp.ones((1 << 20, CLASSES))

    def heavy_flow(params, current, key):
        motion = still(params, current, key)
        return motion._replace(flow=motion.flow + 0 * jnp.sum(heavy(None, current)))

    video = dvsnet(heavy, heavy_flow, policy="fixed_period", threshold=2, grid=(1, 1), overlap=0)
    frame = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.uint8)
    state, _ = jax.eval_shape(video.init, PARAMS, frame)
    jax.eval_shape(video.step, PARAMS, state, frame)
    assert count_macs(heavy, None, frame) > 1 << 32


@pytest.mark.parametrize("chunk", [2, 3, 8, 1 << 40])
def test_chunks_change_nothing(chunk):
    frames = clip(4, streams=2, seed=9)
    params = PARAMS._replace(flow=jnp.array([1.5, 0.0]))
    one, many = system(moving, threshold=50), system(moving, threshold=50, chunk=chunk)
    a, b = one.init(params, frames[0]), many.init(params, frames[0])
    for frame in frames[1:]:
        chosen = frame.at[:, :, ::2].set(frame[0, 0, 0, 0])  # some dark, some bright
        chosen = chosen.at[0, :12].set(0).at[1, :, 20:].set(255)
        a, b = one.step(params, a[0], chosen), many.step(params, b[0], chosen)
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("policy", "threshold"),
    [("frame_difference", 10), ("flow_magnitude", 2), ("fixed_period", 2)],
)
def test_other_policies(policy, threshold):
    frames = clip(1).repeat(4, 0)
    frames = frames.at[2, :, :12, :20].set(255 - frames[2, :, :12, :20])
    video = dvsnet(
        segment, moving, policy=policy, threshold=threshold, overlap=0, multiple=2
    )  # no decision network
    slow, fast = PARAMS._replace(flow=jnp.array([2.0, 0])), PARAMS._replace(flow=jnp.ones(2) * 2)
    state, _ = video.init(slow, frames[0])
    seen = []
    for i, frame in enumerate(frames[1:], 1):
        params = fast if i == 3 else slow
        state, found = video.step(params, state, frame)
        seen.append(found.paths.segmented[0].tolist())
    everything, nothing, first = [True] * 4, [False] * 4, [True, False, False, False]
    expected = {
        "frame_difference": [nothing, first, first],  # changed, and changed back
        "flow_magnitude": [nothing, nothing, everything],
        "fixed_period": [nothing, everything, nothing],
    }
    assert seen == expected[policy]


def test_the_adaptive_target_moves_by_region():
    video = system(threshold=50, adaptive=True)
    frame = jnp.full((1, *SIZE, 3), 255, jnp.uint8).at[:, :6, :10].set(0).at[:, :12, :20].set(0)
    state, _ = video.init(PARAMS, frame)
    state, found = video.step(PARAMS, state, frame)
    moved = np.where(found.paths.segmented, 49.0, np.float32(50.1))
    np.testing.assert_array_equal(state.threshold, moved)
    assert found.paths.segmented.tolist() == [[True, False, False, False]]


def test_a_mask_decides_in_the_policys_place():
    video = system(threshold=100)
    frames = clip(2)
    state, _ = video.init(PARAMS, frames[0])
    mask = jnp.zeros((1, *SIZE), bool).at[0, 23, 0].set(True)
    state, found = video.step(PARAMS, state, frames[1], mask)
    assert found.paths.segmented.tolist() == [[False, False, True, False]]
    assert jnp.isnan(found.paths.scores).all()


# As a VideoFunction.


def test_streams_are_apart_and_can_be_replaced():
    video = system(moving, threshold=45)
    frames = clip(5, streams=3, seed=3)
    params = PARAMS._replace(flow=jnp.array([0.5, 0.25]))
    together, _ = video.init(params, frames[0])
    alone = [video.init(params, frames[0, s : s + 1])[0] for s in range(3)]
    for i, frame in enumerate(frames[1:]):
        if i == 2:  # a camera is replaced
            new, _ = video.init(params, frame[1:2] // 2)
            alone[1] = new
            together = dynvid.replace_streams(together, new, jnp.array([False, True, False]))
        together, found = video.step(params, together, frame)
        for s in range(3):
            alone[s], one = video.step(params, alone[s], frame[s : s + 1])
            jax.tree.map(
                lambda a, b, s=s: np.testing.assert_array_equal(a[s : s + 1], b), found, one
            )


@pytest.mark.parametrize("incremental", [None, {}])
def test_nothing_compiles_again_and_scan_agrees(incremental):
    video = system(moving, incremental=incremental)
    frames = clip(6, seed=8)
    params = PARAMS._replace(flow=jnp.array([0.5, 0.25]))
    first, _ = video.init(params, frames[0])
    step = jax.jit(video.step)
    state, labels = first, []
    for t, frame in zip((0, 40, 50, 60, 100), frames[1:], strict=True):
        state, found = step(params, state.with_settings(threshold=t), frame)
        labels.append(found.labels)
    assert step._cache_size() == 1

    def body(state, given):
        t, frame = given
        state, found = video.step(params, state.with_settings(threshold=t), frame)
        return state, found.labels

    last, scanned = lax.scan(body, first, (jnp.array([0, 40, 50, 60, 100.0]), frames[1:]))
    np.testing.assert_array_equal(scanned, labels)
    jax.tree.map(np.testing.assert_array_equal, last.age, state.age)


def test_an_incremental_region_is_exact_and_pays_for_what_changed():
    plain, lean = system(threshold=50), system(threshold=50, incremental={"threshold": 0})
    frames = clip(1, streams=2)[0].at[:].set(120)
    a, b = plain.init(PARAMS, frames), lean.init(PARAMS, frames)
    jax.tree.map(np.testing.assert_array_equal, a[1], b[1])
    frame, half = frames, float(a[0].work.dense_macs[0]) / 2
    for seed in range(4):  # a patch in a dark region, another in a bright one that is not sent
        rng = np.random.default_rng(seed)
        frame = frame.at[:, 2:5, 3:6].set(jnp.asarray(rng.integers(0, 9, (2, 3, 3, 3)), jnp.uint8))
        frame = frame.at[0, :, 30:].set(250)
        frame = frame.at[0, 20, 35].set(seed)
        a, b = plain.step(PARAMS, a[0], frame), lean.step(PARAMS, b[0], frame)
        jax.tree.map(np.testing.assert_array_equal, a[1], b[1])
        np.testing.assert_array_equal(a[0].key_logits, b[0].key_logits)
        assert 0 < a[1].paths.segmented.mean() < 1
        assert (b[0].work.macs < jnp.minimum(half, a[0].work.macs)).all()


def test_an_incremental_regions_streams_can_be_replaced():
    video = system(threshold=50, incremental={"threshold": 0})
    frames = clip(4, streams=2, seed=6)
    together, _ = video.init(PARAMS, frames[0])
    together, _ = video.step(PARAMS, together, frames[1])
    new, _ = video.init(PARAMS, frames[2, :1])
    axes = together.stream_axes()
    assert all(
        axis < 0 or x.shape[axis] == 2
        for x, axis in zip(jax.tree.leaves(together), jax.tree.leaves(axes), strict=True)
    )
    joined = dynvid.replace_streams(together, new, jnp.array([True, False]))
    _, found = video.step(PARAMS, joined, frames[3])
    _, alone = video.step(PARAMS, new, frames[3, :1])
    np.testing.assert_array_equal(found.labels[:1], alone.labels)
    _, kept = video.step(PARAMS, together, frames[3])
    np.testing.assert_array_equal(found.labels[1], kept.labels[1])


def test_a_donated_state_is_used_in_place():
    video = system(threshold=50)
    frames = clip(2)
    state, _ = video.init(PARAMS, frames[0])
    step = jax.jit(video.step, donate_argnums=1)
    after, _ = step(PARAMS, state, frames[1])
    assert state.key_logits.is_deleted()
    assert not after.key_logits.is_deleted()


# What does not fit.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "oracle"}, "policy must be one of decision_network, .* got 'oracle'"),
        ({"threshold": 101}, "threshold must be between 0 and 100; got 101"),
        ({"threshold": -1}, "threshold must be between 0 and 100; got -1"),
        ({"threshold": float("nan")}, "threshold must be between 0 and 100; got nan"),
        ({"policy": "fixed_period", "threshold": 0}, "threshold must be at least 1; got 0"),
        ({"policy": "flow_magnitude", "threshold": -2}, "threshold must be at least 0; got -2"),
        ({"policy": "flow_magnitude", "adaptive": True}, "adaptive is for the policy"),
        ({"chunk": 0}, "chunk must be at least 1; got 0"),
    ],
)
def test_says_which_option_is_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        system(**options)


def test_a_policy_needs_its_network():
    with pytest.raises(ValueError, match="decide must be a decision network"):
        dvsnet(segment, still)
    video = dvsnet(
        segment,
        lambda *a: still(*a)._replace(features=None),
        decide=brightness,
        overlap=0,
        multiple=2,
    )
    state, _ = video.init(PARAMS, clip(1)[0])
    with pytest.raises(ValueError, match="flow must return features"):
        video.step(PARAMS, state, clip(1)[0])


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((10, 40), {"overlap": 6}, "room for 2 regions of 5 pixels and an overlap of 6; got frames "
         "10 high"),
        ((24, 40), {"overlap": 3}, "overlap must be a multiple of 2 pixels, at least 0; got 3"),
        ((1, 40), {"overlap": 0}, "got frames 1 high"),
    ],
)  # fmt: skip
def test_says_that_regions_do_not_fit_the_frame(size, options, message):
    with pytest.raises(ValueError, match=message):
        system(**options).init(PARAMS, clip(1, size=size)[0])


def test_says_that_frames_have_another_size_mid_stream():
    video = system()
    state, _ = video.init(PARAMS, clip(1)[0])
    with pytest.raises(ValueError, match=r"frames must be uint8\[1, 24, 40, 3\] as those of init; "
                       r"got uint8\[1, 24, 42, 3\]"):  # fmt: skip
        video.step(PARAMS, state, clip(1, size=(24, 42))[0])
    with pytest.raises(ValueError, match=r"got float32\[1, 24, 40, 3\]"):
        video.step(PARAMS, state, clip(1)[0].astype(jnp.float32))
    with pytest.raises(ValueError, match="threshold must be between 0 and 100; got 400"):
        state.with_settings(threshold=400)


def test_says_that_a_network_returns_something_else():
    video = dvsnet(lambda p, x: x.mean((1, 2)), still, decide=brightness, overlap=0)
    with pytest.raises(ValueError, match="segment must return floating logits"):
        video.init(PARAMS, clip(1)[0])
    video = dvsnet(lambda p, x: x.astype(int), still, decide=brightness, overlap=0)
    with pytest.raises(ValueError, match=r"floating logits .* got int32\[1, 16, 24, 3\]"):
        video.init(PARAMS, clip(1)[0])


def test_says_that_a_mask_is_of_another_size():
    video = system()
    state, _ = video.init(PARAMS, clip(1)[0])
    with pytest.raises(ValueError, match=r"mask must be bool\[1, 24, 40\]; got bool\[2, 24, 40\]"):
        video.step(PARAMS, state, clip(1)[0], jnp.zeros((2, 24, 40), bool))
