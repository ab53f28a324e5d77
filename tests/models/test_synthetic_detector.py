import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.data.synthetic import CLASS_NAMES, render, synthetic_scene
from dynvid.models import synthetic_detector as module
from dynvid.models.synthetic_detector import (
    SyntheticOutputs,
    decode_synthetic,
    init_synthetic_detector,
    load_synthetic_detector,
    synthetic_detector,
)
from dynvid.models.zoo import HEADS
from dynvid.ops.boxes import intersection_over_union


def outputs_with(peaks, *, shape=(2, 6, 8)) -> SyntheticOutputs:
    """Output maps that are silent but for `peaks`: (stream, row, column, class, logit)."""
    heatmap = np.full((*shape, 3), -8.0, np.float32)
    for stream, row, column, label, logit in peaks:
        heatmap[stream, row, column, label] = logit
    size = np.zeros((*shape, 2), np.float32)
    offset = np.full((*shape, 2), 0.5, np.float32)
    return SyntheticOutputs(*map(jnp.asarray, (heatmap, size, offset)))


def test_decoding_reads_boxes_at_the_peaks():
    outputs = outputs_with([(0, 2, 3, 1, 2.0), (0, 4, 6, 0, 4.0), (1, 0, 0, 2, 1.0)])
    outputs = outputs._replace(
        size=outputs.size.at[0, 2, 3].set(jnp.log(jnp.array([0.5, 2.0]))),
        offset=outputs.offset.at[0, 2, 3].set(jnp.array([0.25, 0.75])),
    )
    found = jax.jit(lambda o: decode_synthetic(o, max_detections=5))(outputs)
    assert found.boxes.shape == (2, 5, 4)
    np.testing.assert_array_equal(found.valid.sum(axis=1), [2, 1])
    np.testing.assert_array_equal(found.classes[0, :2], [0, 1])
    assert found.classes.dtype == jnp.int32
    # Sums of numbers below 64 with exp and log on the way: a few units in the last place of 64.
    tolerance = 8 * 64 * np.finfo(np.float32).eps
    np.testing.assert_allclose(
        found.boxes[0, :2],
        [
            [6.5 * 8 - 16, 4.5 * 8 - 16, 6.5 * 8 + 16, 4.5 * 8 + 16],
            [3.25 * 8 - 8, 2.75 * 8 - 32, 3.25 * 8 + 8, 2.75 * 8 + 32],
        ],
        atol=tolerance,
    )
    np.testing.assert_allclose(found.scores[0, :2], jax.nn.sigmoid(jnp.array([4.0, 2.0])))
    np.testing.assert_allclose(found.boxes[1, 0], [-12, -12, 20, 20], atol=tolerance)


def test_only_the_highest_of_neighbours_is_a_peak_and_classes_do_not_compete():
    outputs = outputs_with([(0, 2, 3, 1, 2.0), (0, 3, 4, 1, 3.0), (0, 2, 4, 0, 1.0)])
    found = decode_synthetic(outputs)
    np.testing.assert_array_equal(found.classes[0][found.valid[0]], [1, 0])


def test_threshold_and_capacity():
    outputs = outputs_with([(0, 1, 1, 0, 1.0), (0, 1, 5, 0, 2.0), (0, 4, 1, 0, -1.0)])
    assert int(decode_synthetic(outputs).valid[0].sum()) == 2
    assert int(decode_synthetic(outputs, score_threshold=0.2).valid[0].sum()) == 3
    assert int(decode_synthetic(outputs, max_detections=1).valid[0].sum()) == 1
    assert decode_synthetic(outputs, max_detections=999).scores.shape == (2, 999)
    lost = decode_synthetic(outputs, max_candidates=1)
    np.testing.assert_array_equal(lost.valid.sum(axis=1), [1, 0])


def test_an_object_with_two_peaks_is_found_once():
    outputs = outputs_with([(0, 2, 2, 1, 2.0), (0, 2, 4, 1, 3.0), (0, 2, 4, 0, 2.5)])
    outputs = outputs._replace(
        offset=outputs.offset.at[0, 2, 4, 0].set(-0.5), size=outputs.size + jnp.log(2.0)
    )
    found = decode_synthetic(outputs)
    np.testing.assert_array_equal(found.classes[0][found.valid[0]], [1, 0])
    assert float(found.scores[0, 0]) == pytest.approx(float(jax.nn.sigmoid(3.0)))
    assert int(decode_synthetic(outputs, iou_threshold=0.9).valid[0].sum()) == 3


def test_the_head_takes_frames_of_any_size():
    fn, params = load_synthetic_detector()
    scene = synthetic_scene(jax.random.key(2), size=(256, 256), objects=3, noise=0.0)
    frames = render(scene, 0).frame[None]
    head = HEADS["synthetic"]
    np.testing.assert_array_equal(head.preprocessing.network_size((256, 256)), (256, 256))
    plain = decode_synthetic(fn(params, frames))
    for frame_size in ((256, 256), (243, 250)):
        preprocessing = dataclasses.replace(head.preprocessing, size=(256, 256))
        geometry = preprocessing.letterbox(frame_size)
        cut = frames[:, : frame_size[0], : frame_size[1]]
        outputs = preprocessing.on_frames(fn)(params, cut)
        found = geometry.to_frame(
            head.decode(params, outputs, size=(256, 256), score_threshold=0.3, iou_threshold=0.5)
        )
        assert int(found.valid.sum()) >= 2
        if frame_size == (256, 256):
            np.testing.assert_array_equal(found.classes, plain.classes)


def test_shipped_weights_load_quietly_and_are_small():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fn, params = load_synthetic_detector()
    assert fn is synthetic_detector
    expected = init_synthetic_detector(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    assert {p.dtype for p in params.values()} == {jnp.dtype("float32")}
    path = module.importlib.resources.files("dynvid.models") / "data/synthetic_detector.npz"
    assert len(path.read_bytes()) <= 1_000_000


@pytest.mark.parametrize("size", [(64, 64), (72, 136)])
def test_any_multiple_of_eight_and_both_kinds_of_frames(size):
    fn, params = load_synthetic_detector()
    frames = jax.random.randint(jax.random.key(0), (2, *size, 3), 0, 256).astype(jnp.uint8)
    whole = fn(params, frames)
    assert whole.heatmap.shape == (2, size[0] // 8, size[1] // 8, 3)
    floating = fn(params, frames.astype(jnp.float32) / 255)
    for a, b in zip(whole, floating, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(1, 60, 64, 3), (1, 64, 60, 3), (64, 64, 3), (1, 64, 64, 1)])
def test_frames_that_do_not_fit_are_named(shape):
    fn, params = load_synthetic_detector()
    message = rf"multiples of 8; got shape \({', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=message):
        fn(params, jnp.zeros(shape, jnp.uint8))


@pytest.mark.parametrize("camera", ["fixed", "panning"])
def test_it_finds_the_objects_of_scenes_it_was_not_trained_on(camera):
    assert module.CLASS_NAMES == CLASS_NAMES
    fn, params = load_synthetic_detector()
    keys = jax.random.split(jax.random.key(123_456), 24)
    frames = jax.jit(
        jax.vmap(lambda key: render(synthetic_scene(key, size=(128, 128), camera=camera), 3))
    )(keys)
    found = jax.jit(lambda f: decode_synthetic(fn(params, f)))(frames.frame)
    found, frames = jax.tree.map(np.asarray, (found, frames))
    hits = wanted = right = 0
    for i in range(len(keys)):
        seen, valid = frames.visible[i], found.valid[i]
        clear = frames.visibility[i][seen] >= 0.5
        match = intersection_over_union(frames.boxes[i][seen], found.boxes[i][valid]) >= 0.5
        match &= frames.classes[i][seen][:, None] == found.classes[i][valid][None]
        hits += (match.any(axis=1) & clear).sum()
        wanted += clear.sum()
        right += match.any(axis=0).sum()
    assert hits / wanted > 0.9
    assert right / found.valid.sum() > 0.9
