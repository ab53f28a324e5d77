"""Algorithm 1: the rows of Table 1, what runs, and what partial update makes of features."""

import functools
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

import dynvid
from dynvid.graph import count_macs
from dynvid.ops.aggregate import dense_aggregation, recursive_aggregation
from dynvid.ops.masks import resize_mask
from dynvid.ops.refresh import refreshed
from dynvid.ops.warp import Motion, resize_flow, warp
from dynvid.systems.flow_detection import TABLE_1, FlowDetectionParams, flow_detection

SIZE = (16, 24)
GRID = (4, 6)
STRIDES = (2, 1, 2, 1)
DEPTHS = (3, 4, 4, 6, 4)


def kernels(seed=0, *, integer=True):
    rng = np.random.default_rng(seed)
    shapes = [(3, 3, a, b) for a, b in itertools.pairwise(DEPTHS)]
    if integer:
        return [rng.integers(-1, 2, shape).astype("f") for shape in shapes]
    return [(rng.normal(size=s) / np.sqrt(9 * s[2])).astype("f") for s in shapes]


def layer(x, kernel, stride):
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y)


def backbone(params, images):
    """Four convolutions to a quarter of the resolution; integers stay integers."""
    x = images.astype(jnp.float32)
    for kernel, stride in zip(params, STRIDES, strict=True):
        x = layer(x, kernel, stride)
    return x


def detect(params, features):
    return {"map": features * params, "sum": features.sum((1, 2, 3))}


def told(params, current, key):
    """A motion that is the parameter everywhere, with the quality map that the parameters hold."""
    del key
    flow = jnp.broadcast_to(params["flow"], (len(current), *GRID, 2)).astype(jnp.float32)
    return Motion(flow), jnp.broadcast_to(params["quality"], (len(current), *GRID))


def by_brightness(params, current, key):
    """No motion; the more the mean grey level moved, the poorer the quality, alike everywhere."""
    del params
    moved = jnp.abs(jnp.mean(current.astype(jnp.float32) - key.astype(jnp.float32), (1, 2, 3)))
    quality = jnp.broadcast_to(4 - moved[:, None, None], (len(current), *GRID))
    return Motion(jnp.zeros((len(current), *GRID, 2))), quality


def embed(params, features):
    return features * params


GOOD, POOR = np.ones(GRID, "f"), -np.ones(GRID, "f")


def networks(*, flow=(0.0, 0.0), quality=GOOD, integer=True):
    return FlowDetectionParams(
        features=kernels(integer=integer),
        detection=jnp.float32(2),
        flow={"flow": jnp.array(flow, jnp.float32), "quality": jnp.asarray(quality)},
        embedding=jnp.arange(1.0, 5.0),
    )


def system(flow=told, **options):
    return flow_detection(backbone, detect, flow=flow, embed=embed, **options)


def clip(frames, *, streams=1, seed=1, size=SIZE):
    key = jax.random.key(seed)
    return jax.random.randint(key, (frames, streams, *size, 3), 0, 8).astype(jnp.uint8)


def run(video, params, frames, **arguments):
    """The outputs of all frames, and the states after them."""
    state, found = video.init(params, frames[0])
    states, outputs = [state], [found]
    for frame in frames[1:]:
        state, found = video.step(params, state, frame, **arguments)
        states.append(state)
        outputs.append(found)
    return outputs, states


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


# A mix of two maps that are not negative: two weights, each an exponential of a cosine of four
# channels over a sum, two products and their sum, all of which compilers may fuse.
ROUNDING = 32 * np.finfo("f").eps


def near(left, right):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=4 * ROUNDING), left, right)


def per_frame(params, frames):
    return [detect(params.detection, backbone(params.features, frame)) for frame in frames]


# The rows of Table 1, where two of them are one.


def test_per_frame_detection_is_the_detector():
    frames, params = clip(3, streams=2), networks()
    outputs, states = run(system(**TABLE_1["per-frame"]), params, frames)
    same(outputs, per_frame(params, frames))
    assert all(state.work.mac_fraction == 1 for state in states)


def test_dff_with_a_key_frame_every_frame_is_per_frame_detection():
    frames, params = clip(4), networks(flow=(1.5, 0.5))
    outputs, states = run(system(**TABLE_1["DFF"], threshold=1), params, frames)
    same(outputs, per_frame(params, frames))
    assert all(state.work.mac_fraction == 1 for state in states)


def test_dff_warps_the_last_key_frame():
    frames, params = clip(6), networks(flow=(1.5, -0.5))
    outputs, states = run(system(**TABLE_1["DFF"], threshold=3), params, frames)
    assert [bool(s.work.details["key"][0]) for s in states] == [True, False, False] * 2
    flow = jnp.broadcast_to(params.flow["flow"], (1, *GRID, 2))
    for i, found in enumerate(outputs):
        features = backbone(params.features, frames[i - i % 3])
        expected = features if i % 3 == 0 else warp(features, flow)
        same(found, detect(params.detection, expected))


def test_c1_without_aggregation_is_dff():
    frames, params = clip(7), networks(flow=(1.0, 0.25))
    options = TABLE_1["c1"] | {"aggregate": "none"}
    left, _ = run(system(**options, threshold=3), params, frames)
    right, _ = run(system(**TABLE_1["DFF"], threshold=3), params, frames)
    same(left, right)


def test_c2_where_everything_is_consistent_is_c1():
    frames, params = clip(7), networks(flow=(1.0, 0.25), quality=GOOD)
    left, _ = run(system(**TABLE_1["c2"], threshold=3), params, frames)
    right, _ = run(system(**TABLE_1["c1"], threshold=3), params, frames)
    same(left, right)


def test_c2_without_aggregation_where_nothing_is_consistent_is_per_frame_detection():
    frames, params = clip(5), networks(flow=(1.0, 0.25), quality=POOR)
    options = TABLE_1["c2"] | {"aggregate": "none"}
    outputs, states = run(system(**options, threshold=4), params, frames)
    same(outputs, per_frame(params, frames))
    assert [bool(s.work.details["key"][0]) for s in states] == [True, False, False, False, True]


def test_c3_where_every_frame_is_inconsistent_enough_is_per_frame_with_aggregation():
    frames, params = clip(4), networks(flow=(1.0, 0.25))
    left, states = run(system(**TABLE_1["c3"], threshold=-1), params, frames)
    right, _ = run(system(**TABLE_1["per-frame"], aggregate="recursive"), params, frames)
    same(left, right)
    assert all(state.work.details["key"].all() for state in states)


def test_c3_that_never_finds_a_key_frame_is_c2_that_never_comes_to_one():
    quality = GOOD.copy()
    quality[1:3, 2] = -1
    frames, params = clip(5), networks(flow=(1.0, 0.25), quality=quality)
    left, _ = run(system(**TABLE_1["c3"], threshold=1), params, frames)
    right, _ = run(system(**TABLE_1["c2"], threshold=np.inf), params, frames)
    same(left, right)


def test_recursive_aggregation_follows_algorithm_1():
    frames, params = clip(6), networks(flow=(0.5, 0.25))
    outputs, _ = run(system(**TABLE_1["c1"], threshold=2), params, frames)
    flow = jnp.broadcast_to(params.flow["flow"], (1, *GRID, 2))
    kept = memory = backbone(params.features, frames[0])
    for i, found in enumerate(outputs[1:], 1):
        current = backbone(params.features, frames[i]) if i % 2 == 0 else warp(kept, flow)
        before = warp(memory, flow)
        mixed = recursive_aggregation(
            before, current, embed(params.embedding, before), embed(params.embedding, current)
        )
        np.testing.assert_allclose(found["map"], 2 * mixed, rtol=ROUNDING)
        if i % 2 == 0:
            kept, memory = current, mixed


def test_propagating_what_is_aggregated():
    """Between key frames the aggregated features alone, without an embedding (5.1 and 5.2)."""
    frames, params = clip(4), networks(flow=(0.5, 0.25))
    video = system(**TABLE_1["c1"], threshold=2, propagate="aggregated")
    outputs, states = run(video, params, frames)
    flow = jnp.broadcast_to(params.flow["flow"], (1, *GRID, 2))
    same(outputs[1], detect(params.detection, warp(states[0].memory, flow)))
    near(outputs[3], detect(params.detection, warp(states[2].memory, flow)))
    mixed, _ = run(system(**TABLE_1["c1"], threshold=2), params, frames)
    near(outputs[2], mixed[2])
    assert (np.asarray(outputs[3]["map"]) != np.asarray(mixed[3]["map"])).any()


def test_propagating_what_is_aggregated_position_by_position():
    quality = GOOD.copy()
    quality[1, 2] = -1
    frames, params = clip(2), networks(flow=(0.5, 0.25), quality=quality)
    options = TABLE_1["c2"] | {"threshold": 5}
    first, states = run(system(**options, propagate="aggregated"), params, frames)
    mixed, _ = run(system(**options), params, frames)
    flow = jnp.broadcast_to(params.flow["flow"], (1, *GRID, 2))
    carried = warp(states[0].memory, flow)
    expected = refreshed(quality[None] <= 0, mixed[1]["map"], 2 * carried)
    np.testing.assert_allclose(first[1]["map"], expected, rtol=ROUNDING)


def test_fgfa_aggregates_a_window_and_is_late_by_it():
    frames, params = clip(6), networks(flow=(0.5, 0.25))
    video = system(**TABLE_1["FGFA"], window=(2, 1))
    outputs, states = run(video, params, frames)
    flow = jnp.broadcast_to(params.flow["flow"], (1, *GRID, 2))
    features = [backbone(params.features, frame) for frame in frames]
    same(outputs[0], detect(params.detection, features[0]))
    for i, found in enumerate(outputs[1:], 1):
        middle = max(0, i - 1)
        numbers = [max(0, n) for n in range(i - 3, i + 1)]
        numbers.remove(middle)
        warped = jnp.stack([warp(features[n], flow) for n in numbers])
        expected = dense_aggregation(
            warped,
            features[middle],
            embed(params.embedding, warped),
            embed(params.embedding, features[middle]),
        )
        np.testing.assert_allclose(found["map"], 2 * expected, rtol=ROUNDING)
        assert states[i].work.details["key"].all()


# What runs.


def counted(calls):
    """The feature network, with a note of every image that it really runs on."""

    def fn(params, images):
        def note(x):
            calls.append(len(x))
            return np.zeros((), np.float32)

        return backbone(params, images) + jax.pure_callback(
            note, jax.ShapeDtypeStruct((), jnp.float32), images
        )

    return fn


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("row", ["DFF", "c1"])
def test_the_feature_network_runs_on_key_frames_and_on_nothing_else(row, streams):
    calls = []
    video = flow_detection(
        counted(calls), detect, flow=told, embed=embed, **TABLE_1[row], threshold=3
    )
    frames, params = clip(7, streams=streams), networks()
    state, _ = jax.block_until_ready(video.init(params, frames[0]))
    assert calls == [1] * streams

    def body(state, frame):
        state, _ = video.step(params, state, frame)
        return state, (state.work.details["key"], state.work.macs)

    calls.clear()
    _, (keys, macs) = jax.block_until_ready(
        jax.jit(lambda s, f: lax.scan(body, s, f))(state, frames[1:])
    )
    assert keys.tolist() == [[i % 3 == 0] * streams for i in range(1, 7)]
    assert calls == [1] * (2 * streams)
    backbone_macs = count_macs(backbone, params.features, frames[0, :1])
    assert (macs == np.where(keys, backbone_macs, 0)).all()  # nothing else here multiplies


def test_only_streams_with_a_key_frame_run():
    calls = []
    video = flow_detection(
        counted(calls), detect, flow=by_brightness, key="feature_consistency", threshold=0.5
    )
    frames, params = clip(3, streams=3), networks()
    state, _ = jax.block_until_ready(video.init(params, frames[0]))
    calls.clear()
    changed = frames[0].at[1].set(255)
    state, found = jax.block_until_ready(video.step(params, state, changed))
    assert calls == [1]
    assert state.work.details["key"].tolist() == [False, True, False]
    assert state.age.tolist() == [1, 0, 1]
    same(found, detect(params.detection, backbone(params.features, changed)))
    # Each stream is compared with its own key.
    calls.clear()
    state, _ = jax.block_until_ready(video.step(params, state, changed))
    assert calls == []
    assert state.age.tolist() == [2, 1, 2]


def test_a_flow_network_runs_where_its_motion_is_read():
    calls = []

    def flow(params, current, key):
        def note(x):
            calls.append(len(x))
            return np.zeros((), np.float32)

        motion, quality = told(params, current, key)
        none = jax.pure_callback(note, jax.ShapeDtypeStruct((), jnp.float32), current)
        return Motion(motion.flow + none), quality

    frames, params = clip(4), networks()
    expected = {"per-frame": 0, "DFF": 2, "c1": 3, "c3": 3}
    for row, count in expected.items():
        calls.clear()
        threshold = 2 if TABLE_1[row]["key"] == "every" else None
        jax.block_until_ready(
            run(system(flow, **TABLE_1[row], threshold=threshold), params, frames)
        )
        assert len(calls) == count, row


# Partial update.


def layer_by_layer(params, kept, image, flow, update):
    """Eq. 6 and 10, densely: every layer computed everywhere and blended by U^(n) (reading R1)."""
    x = image.astype(jnp.float32)
    old = kept.astype(jnp.float32)
    for kernel, stride in zip(params, STRIDES, strict=True):
        old = layer(old, kernel, stride)
        grid = old.shape[1:3]
        x = layer(x, kernel, stride)
        x = refreshed(resize_mask(update, grid), x, warp(old, resize_flow(flow, grid)))
    return x


@functools.cache
def partial():
    return flow_detection(backbone, detect, flow=told, key="every", threshold=np.inf, spatial=True)


masks = st.lists(st.booleans(), min_size=24, max_size=24)


@settings(max_examples=20, deadline=None)
@given(update=masks, seed=st.integers(0, 99))
def test_partial_update_is_its_definition_bit_for_bit_without_motion(update, seed):
    update = np.array(update).reshape(GRID)
    frames = clip(2, seed=seed)
    params = networks(quality=np.where(update, -1.0, 1.0).astype("f"))
    (_, found), (_, state) = run(partial(), params, frames)
    flow = jnp.zeros((1, *GRID, 2))
    expected = layer_by_layer(params.features, frames[0], frames[1], flow, update[None])
    same(found, detect(params.detection, expected))
    np.testing.assert_array_equal(state.work.details["update_mask"][0], update)
    np.testing.assert_allclose(state.work.changed, update.mean(), rtol=np.finfo("f").eps)
    if not update.any():
        assert state.work.macs == 0


@settings(max_examples=10, deadline=None)
@given(update=masks, dx=st.sampled_from([-1.5, 0.25, 2.0]), dy=st.sampled_from([-0.75, 0.0, 1.0]))
def test_partial_update_is_its_definition_with_motion(update, dx, dy):
    """On integers and motions of quarters of a position all is exact: eighths on finer grids."""
    update = np.array(update).reshape(GRID)
    frames = clip(2)
    params = networks(flow=(dx, dy), quality=np.where(update, -1.0, 1.0).astype("f"))
    (_, found), _ = run(partial(), params, frames)
    flow = jnp.broadcast_to(jnp.array([dx, dy]), (1, *GRID, 2))
    expected = layer_by_layer(params.features, frames[0], frames[1], flow, update[None])
    same(found, detect(params.detection, expected))


def test_partial_update_on_real_values_is_its_definition_within_rounding():
    rng = np.random.default_rng(0)
    flow = jnp.asarray(rng.normal(size=(1, *GRID, 2)).astype("f"))
    update = rng.random((1, *GRID)) < 0.4
    params = networks(integer=False, quality=np.where(update[0], -1.0, 1.0).astype("f"))
    params = params._replace(flow=params.flow | {"flow": flow})
    frames = clip(2) / 8
    (_, found), _ = run(partial(), params, frames)
    expected = layer_by_layer(params.features, frames[0], frames[1], flow, update)
    # Each layer sums at most 54 products of what the layer before was off by at most, in float32;
    # the gain of a layer, its largest row of absolute weights, carries an error on to the next.
    eps, error, size = np.finfo("f").eps, 0.0, 1.0
    for kernel in params.features:
        gain = np.abs(kernel).sum((0, 1, 2)).max()
        # The rounding of the sum and, beside the mask, of the four weights and their positions.
        error = gain * error + (kernel[..., 0].size + 4 + 4 * max(SIZE)) * eps * gain * size
        size = gain * size
    np.testing.assert_allclose(found["map"], 2 * expected, rtol=0, atol=2 * error)


@pytest.mark.parametrize("reach", ["mask", "cover", "geometry"])
def test_the_limits_of_partial_update(reach):
    frames = clip(2)
    flow = (0.75, -0.5)
    video = flow_detection(
        backbone, detect, flow=told, key="every", threshold=9, spatial=True, reach=reach
    )
    everywhere, nowhere = (networks(flow=flow, quality=q) for q in (POOR, GOOD))
    (_, found), _ = run(video, everywhere, frames)
    same(found, detect(everywhere.detection, backbone(everywhere.features, frames[1])))
    (first, found), _ = run(video, nowhere, frames)
    carried = warp(first["map"], jnp.broadcast_to(jnp.array(flow), (1, *GRID, 2)))
    same(found["map"], carried)


def test_a_margin_is_updated_with_what_is_poor_but_makes_no_key_frame():
    frames, quality = clip(2), GOOD.copy()
    quality[0, 2] = -1
    params = networks(quality=quality)
    video = system(
        key="feature_consistency", threshold=0.1, spatial=True, consistency="quality", margin=1
    )
    _, (_, state) = run(video, params, frames)
    expected = np.zeros(GRID, bool)
    expected[:2, 1:4] = True
    np.testing.assert_array_equal(state.work.details["update_mask"][0], expected)
    assert not state.work.details["key"][0]
    np.testing.assert_allclose(state.work.details["score"], 1 / 24, rtol=np.finfo("f").eps)


def test_what_is_small_is_updated_on_coarse_grids_too():
    """One fine position under U: the nearest neighbour of a grid four times coarser misses it."""

    def pyramid(params, images):
        fine = images.astype(jnp.float32).sum(3, keepdims=True) * params
        window = (1, 4, 4, 1)
        return {
            "fine": fine,
            "coarse": lax.reduce_window(fine, 0.0, lax.add, window, window, "VALID"),
        }

    frames = clip(1)
    second = frames[0].at[0, 0, 0].add(1)
    mask = np.zeros((1, *SIZE), bool)
    mask[0, 0, 0] = True
    params = FlowDetectionParams(jnp.float32(1), ())
    for reach, right in (("cover", True), ("mask", False)):
        video = flow_detection(
            pyramid, lambda params, maps: maps, key="every", threshold=9, spatial=True, reach=reach,
            flow=lambda params, current, key: Motion(jnp.zeros((1, 1, 1, 2))),
        )  # fmt: skip
        state, _ = video.init(params, frames[0])
        _, found = video.step(params, state, second, mask)
        expected = pyramid(params.features, second)
        np.testing.assert_array_equal(found["fine"], expected["fine"])
        assert np.array_equal(found["coarse"], expected["coarse"]) == right


def test_updating_along_the_geometry_is_exact_where_the_scene_stood_still():
    """A changed patch under U: what reads it is computed too, and all is as if computed anew."""
    frames = clip(2)
    second = frames[0].at[:, 4:8, 8:12].set(frames[1][:, 4:8, 8:12])
    quality = GOOD.copy()
    quality[1, 2] = -1
    params = networks(quality=quality)
    found = {}
    for reach in ("mask", "geometry"):
        video = flow_detection(
            backbone, detect, flow=told, key="every", threshold=9, spatial=True, reach=reach
        )
        (_, found[reach]), _ = run(video, params, [frames[0], second])
    expected = detect(params.detection, backbone(params.features, second))
    same(found["geometry"], expected)
    assert (np.asarray(found["mask"]["map"]) != np.asarray(expected["map"])).any()


def test_work_is_in_proportion_to_what_is_updated():
    """Strips of a larger frame, on the cells of its network: counted in multiply-accumulates."""
    frames = clip(2, size=(64, 96))
    dense = count_macs(backbone, networks().features, frames[0])

    def flow(params, current, key):
        del key
        return Motion(jnp.zeros((1, 16, 24, 2))), params[None]

    video = flow_detection(backbone, detect, flow=flow, key="every", threshold=99, spatial=True)
    for rows in (0, 2, 4, 8):
        quality = jnp.ones((16, 24)).at[:rows].set(-1)
        _, (_, after) = run(video, networks()._replace(flow=quality), frames)
        share = after.work.details["feature_macs"] / dense
        # Cells of two positions hold at most a row more at each of the four layers.
        assert rows / 16 <= share <= (rows + 1) / 16 if rows else share == 0


def test_a_mask_is_the_update_mask():
    frames = clip(2)
    mask = np.zeros((1, *SIZE), bool)
    mask[:, 4:8, 12:20] = True
    params = networks(quality=POOR)  # which nobody asks
    video = flow_detection(backbone, detect, flow=told, key="every", threshold=9, spatial=True)
    state, _ = video.init(params, frames[0])
    state, found = video.step(params, state, frames[1], mask)
    update = resize_mask(jnp.asarray(mask), GRID)
    expected = layer_by_layer(params.features, frames[0], frames[1], jnp.zeros((1, *GRID, 2)), mask)
    same(found, detect(params.detection, expected))
    np.testing.assert_array_equal(state.work.details["update_mask"], update)
    # It is what the key rule sees too.
    video = flow_detection(backbone, detect, flow=told, threshold=0.5, spatial=True)
    state, _ = video.init(params, frames[0])
    _, found = video.step(params, state, frames[1], np.ones((1, *SIZE), bool))
    same(found, detect(params.detection, backbone(params.features, frames[1])))


# Beyond the paper.


def test_what_the_warp_explains_costs_nothing():
    """A panning camera: the residual marks what came in and what changed, and nothing else."""
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (1, 32, 64, 3)).astype(np.uint8)
    first, second = wide[:, :, :48], wide[:, :, 8:56].copy()
    second[:, 8:12, 12:16] = 255 - second[:, 8:12, 12:16]
    pan = Motion(jnp.full((1, 8, 12, 2), jnp.array([2.0, 0.0])))  # positions of four pixels
    video = flow_detection(
        backbone, detect, flow=lambda params, current, key: pan, key="feature_consistency",
        threshold=0.5, spatial=True, consistency="residual",
    )  # fmt: skip
    params = networks()
    state, _ = video.init(params, jnp.asarray(first))
    state, _ = video.step(params, state, jnp.asarray(second))
    expected = np.zeros((8, 12), bool)
    expected[:, 10:] = True  # came in
    expected[2, 3] = True  # changed
    np.testing.assert_array_equal(state.work.details["update_mask"][0], expected)
    np.testing.assert_allclose(state.work.details["score"], 17 / 96, rtol=np.finfo("f").eps)
    assert state.work.mac_fraction < 0.5
    _, found = video.step(params, state.with_settings(threshold=0.1), jnp.asarray(second))
    same(found, detect(params.detection, backbone(params.features, jnp.asarray(second))))


def test_a_scene_cut_becomes_a_key_frame():
    frames, params = clip(4), networks()
    cut = jnp.full_like(frames[0], 200)
    clips = [frames[0], frames[0], cut, cut]
    for options in (
        {"key": "feature_consistency", "flow": by_brightness},
        {"key": "every", "threshold": 9, "flow": told, "cut_threshold": 50},
    ):
        outputs, states = run(flow_detection(backbone, detect, **options), params, clips)
        assert [bool(s.work.details["key"][0]) for s in states] == [True, False, True, False]
        assert [s.age.item() for s in states] == [0, 1, 0, 1]
        same(outputs[2], detect(params.detection, backbone(params.features, cut)))


def test_features_of_several_maps_are_carried_each_on_its_own_grid():
    def pyramid(params, images):
        fine = layer(images.astype(jnp.float32), params[0], 2)
        return {"fine": fine, "coarse": layer(fine, params[1], 2)}

    frames, params = clip(3), networks(flow=(1.0, 0.0), quality=GOOD)
    video = flow_detection(
        pyramid, lambda params, f: f, flow=told, embed=lambda params, f: f,
        **TABLE_1["c2"], threshold=9,
    )  # fmt: skip
    outputs, states = run(video, params, frames[:2])
    features = pyramid(params.features, frames[0])
    assert outputs[1]["fine"].shape == features["fine"].shape
    assert states[1].work.details["update_mask"].shape == (1, 8, 12)  # on the finest
    video = flow_detection(
        pyramid, lambda params, f: f, flow=told, key="every", threshold=9, spatial=True
    )
    _, found = video.step(params, video.init(params, frames[0])[0], frames[1])
    for name, shift in (("fine", 2.0), ("coarse", 1.0)):
        x = features[name]
        flow = jnp.broadcast_to(jnp.array([shift, 0.0]), (*x.shape[:3], 2))
        np.testing.assert_array_equal(found[name], warp(x, flow))


def test_a_scale_field_multiplies_what_is_warped():
    def scaled(params, current, key):
        motion, quality = told(params, current, key)
        return motion._replace(scale=jnp.full((len(current), *GRID, 4), 3.0)), quality

    quality = GOOD.copy()
    quality[1, 2] = -1
    frames, params = clip(2), networks(quality=quality)
    (first, second), _ = run(system(scaled, **TABLE_1["DFF"]), params, frames)
    same(second["map"], 3 * first["map"])
    video = system(scaled, key="every", spatial=True)
    _, found = video.step(params, video.init(params, frames[0])[0], frames[1])
    plain, _ = run(system(key="every", spatial=True), params, frames)
    expected = refreshed(quality[None] <= 0, plain[1]["map"], 3 * first["map"])
    same(found["map"], expected)


# State, frames and settings.


@pytest.mark.parametrize(("size", "dtype"), [((13, 21), "uint8"), ((1, 1), "float32")])
def test_frames_of_any_size(size, dtype):
    def flow(params, current, key):
        del params, key
        assert current.shape[1] % 8 == current.shape[2] % 8 == 0
        grid = (len(current), current.shape[1] // 8, current.shape[2] // 8)
        return Motion(jnp.zeros((*grid, 2))), jnp.ones(grid).at[:, 0, 0].set(-1)

    frames = clip(3, size=size).astype(dtype)
    video = system(flow, **TABLE_1["c3"], multiple=8)
    outputs, states = run(video, networks(), frames)
    assert states[-1].frame_size == size
    assert jnp.isfinite(outputs[-1]["map"]).all()
    assert outputs[-1]["map"].shape[1] == -(-size[0] // 8) * 2


def test_settings_move_without_compiling_again():
    frames, params = clip(4, streams=2), networks()
    video = system(**TABLE_1["DFF"], threshold=9)
    state, _ = video.init(params, frames[0])
    state, _ = video.step(params, state, frames[1])
    compiled = video.step._cache_size()
    state = state.with_settings(threshold=[2, 9])
    state, _ = video.step(params, state, frames[2])
    assert state.work.details["key"].tolist() == [True, False]
    assert video.step._cache_size() == compiled
    video = system(**TABLE_1["c3"])
    state, _ = video.init(params, frames[0])
    state, _ = video.step(params, state.with_settings(consistency_threshold=[0, 2]), frames[1])
    assert state.work.details["key"].tolist() == [False, True]


def test_a_stream_of_another_camera_goes_on_as_its_own():
    quality = GOOD.copy()
    quality[1, 2] = -1
    params = networks(flow=(0.5, 0.0), quality=quality)
    frames, others = clip(4, streams=2), clip(4, seed=7)
    video = system(**TABLE_1["c3"], threshold=0.3)
    state, _ = video.init(params, frames[0])
    state, _ = video.step(params, state, frames[1])
    other, _ = video.init(params, others[0])
    joined = dynvid.replace_streams(state, other, jnp.array([False, True]))
    mixed = frames[2].at[1].set(others[1, 0])
    joined, found = video.step(params, joined, mixed)
    _, alone = video.step(params, other, others[1])
    _, kept = video.step(params, state, frames[2])
    same(jax.tree.map(lambda x: x[1], found), jax.tree.map(lambda x: x[0], alone))
    same(jax.tree.map(lambda x: x[0], found), jax.tree.map(lambda x: x[0], kept))
    window = system(**TABLE_1["FGFA"], window=(1, 1))
    state, _ = window.init(params, frames[0])
    joined = dynvid.replace_streams(state, window.init(params, others[0])[0], jnp.array([0, 1]) > 0)
    _, found = window.step(params, joined, mixed)
    _, alone = window.step(params, window.init(params, others[0])[0], others[1])
    same(jax.tree.map(lambda x: x[1], found), jax.tree.map(lambda x: x[0], alone))


def test_options_and_what_is_wrong_with_them():
    for options, message in (
        ({"key": "some"}, "key must be one of all, every, feature_consistency; got 'some'"),
        ({"threshold": 2}, r"threshold must be a number in \[-1, 1\]; got 2"),
        ({"key": "every", "threshold": 0}, "threshold must be a number of at least 1; got 0"),
        ({"consistency": "residual", "consistency_threshold": -1}, "of at least 0; got -1"),
        ({"aggregate": "window"}, "aggregate must be 'recursive' or 'none' between key frames"),
        ({"key": "all", "aggregate": "window", "window": (0, 0)}, "window must be .* at least one"),
        ({"propagate": "aggregated"}, "propagate must be 'key' for aggregate='none'"),
        ({"cut_threshold": -1}, "cut_threshold must be at least 0 or None; got -1"),
        ({"multiple": 0}, "multiple must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            system(**options)
    with pytest.raises(ValueError, match="flow must be a flow network for key='every'"):
        flow_detection(backbone, detect, key="every")
    with pytest.raises(ValueError, match="embed must be an embedding network"):
        flow_detection(backbone, detect, flow=told, aggregate="recursive")


def test_frames_masks_and_networks_that_do_not_fit():
    frames, params = clip(2), networks()
    video = system(**TABLE_1["c2"])
    state, _ = video.init(params, frames[0])
    with pytest.raises(ValueError, match=r"uint8\[1, 16, 24, 3\].*float32\[1, 16, 24, 3\]"):
        video.step(params, state, frames[1].astype(jnp.float32))
    with pytest.raises(ValueError, match=r"mask must be bool\[1, 16, 24\]; got bool\[1, 4, 6\]"):
        video.step(params, state, frames[1], np.ones((1, *GRID), bool))
    with pytest.raises(ValueError, match="each at least 1; got uint8"):
        video.init(params, frames[:, 0, :0])
    dff = system(**TABLE_1["DFF"])
    with pytest.raises(ValueError, match="mask must be None"):
        dff.step(params, dff.init(params, frames[0])[0], frames[1], np.ones((1, *SIZE), bool))
    with pytest.raises(ValueError, match="features must return floating maps"):
        flow_detection(lambda p, x: x, detect, key="all").init(params, frames[0])
    motion = Motion(jnp.zeros((1, *GRID, 2)))
    video = flow_detection(backbone, detect, flow=lambda p, current, key: motion)
    with pytest.raises(ValueError, match=r"flow must return a pair, .*; got a motion alone"):
        video.step(params, video.init(params, frames[0])[0], frames[1])
