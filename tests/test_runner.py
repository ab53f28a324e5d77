"""One runner for any system and any task, by the protocol alone."""

import itertools
import tracemalloc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.ops.difference import changed_pixels
from dynvid.runner import run_video
from dynvid.tasks import ActionRecognition
from dynvid.tasks.preprocessing import Preprocessing
from dynvid.types import VideoFunction, Work

TASK = ActionRecognition(preprocessing=Preprocessing(placement="stretch", white=255, size=(4, 4)))
SIZE = (12, 16)


def network(params, images):
    """Scores of four classes, from the mean of each quarter of the image."""
    quarters = images.reshape(len(images), 2, 2, 2, 2, 3).mean((2, 4, 5))
    return quarters.reshape(len(images), 4) * params


FN = TASK.preprocess(network)


def clip(count, *, seed=0, size=SIZE):
    return list(np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype(np.uint8))


class Counter(NamedTuple):
    """The state of a system that knows no reference: how many frames it has seen."""

    count: jax.Array
    work: Work


def counting() -> VideoFunction:
    def work(frames):
        ones = jnp.ones(len(frames))
        return Work(ones, 4 * ones, 0.5 * ones, {})

    def init(params, frames):
        return Counter(jnp.ones((), jnp.int32), work(frames)), jnp.full((1, 4), 1.0)

    def step(params, state, frames, mask=None):
        scores = jax.nn.one_hot(jnp.array([state.count % 4]), 4) * 9
        return Counter(state.count + 1, work(frames)), scores

    return VideoFunction(jax.jit(init), jax.jit(step))


def test_every_frame_is_seen_once_whatever_compiles():
    results = list(run_video(TASK, counting(), clip(6), params=None))
    assert [int(r.result.classes[0]) for r in results[1:]] == [1, 2, 3, 0, 1]
    assert [r.changed for r in results] == [None] * 6
    assert [r.measures.mac_fraction for r in results] == [1] + [0.25] * 5
    assert [r.measures.similarity for r in results[1:]] == [0.5] * 5
    assert np.isnan(results[0].measures.seconds)
    assert all(r.measures.seconds > 0 for r in results[1:])
    assert all(np.isnan(r.measures.agreement) for r in results)


@pytest.mark.parametrize("reference", ["last_used", "previous"])
def test_the_mask_is_what_the_system_took_as_changed(reference):
    threshold = 165  # fewer than half of the pixels: no change of scene
    video = dynvid.incremental(FN, threshold=threshold, reference=reference)
    frames = clip(5, seed=3)
    kept = frames[0]
    results = list(run_video(TASK, video, frames, params=jnp.ones(4)))
    assert results[0].changed.all()
    for frame, result in zip(frames[1:], results[1:], strict=True):
        expected = np.asarray(changed_pixels(frame[None], kept[None], threshold=threshold))[0]
        kept = np.where(expected[..., None], frame, kept) if reference == "last_used" else frame
        assert 0.2 < expected.mean() < 0.5
        np.testing.assert_array_equal(result.changed, expected)
        assert result.measures.similarity == pytest.approx(1 - expected.mean(), abs=1e-6)


def test_a_dense_network_is_compared_on_the_same_frame_and_on_the_reference():
    video = dynvid.incremental(FN, threshold=120)
    frames = clip(7, seed=5)
    params = jnp.array([1.0, 2.0, 3.0, 4.0])
    results = list(run_video(TASK, video, frames, params=params, dense=FN))
    reference = frames[0]
    for frame, result in zip(frames[1:], results[1:], strict=True):
        changed = (np.abs(frame.astype(int) - reference) >= 120).any(-1)
        reference = np.where(changed[..., None], frame, reference)
        dense, there = (np.asarray(FN(params, x[None])) for x in (frame, reference))
        same = int(np.argmax(dense)) == int(result.result.classes[0])
        assert result.measures.agreement == same
        # Sums of 12 products and a resize of values up to 255, times 4.
        assert result.measures.difference <= 64 * 2**-24 * 255 * 4
        assert result.measures.magnitude == pytest.approx(np.abs(there).max(), rel=1e-6)
        assert result.measures.dense_seconds > 0
    blind = dynvid.incremental(FN, threshold=255)
    found = list(run_video(TASK, blind, [frames[0] * 0, *frames[1:]], params=params, dense=FN))
    assert min(r.measures.agreement for r in found[1:]) == 0


def test_no_frames_no_results():
    assert list(run_video(TASK, counting(), [], params=None)) == []


def test_a_run_without_end_takes_no_more_memory():
    frame = np.zeros((4, 4, 3), np.uint8)
    results = run_video(TASK, counting(), itertools.repeat(frame, 2501), params=None)
    tracemalloc.start()
    try:
        for _ in itertools.islice(results, 500):
            pass
        before = tracemalloc.get_traced_memory()[0]
        for _ in results:
            pass
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # 2,000 frames: one float kept of each would be 64,000 bytes with its place in a list.
    assert after - before < 20_000


@pytest.mark.parametrize(
    ("shares", "whole", "times"),
    [
        ([0.0, 0.1, 0.4, 0.0], False, []),
        ([0.0, 0.5, 0.0, 0.0], False, [2]),  # a cut
        ([0.0, 0.5, 0.0, 0.0], True, []),  # the system sees to it itself
        ([0.9, 0.9, 0.9, 0.6, 0.3, 0.9], False, [1]),  # a camera that moves on
        ([0.9, 0.2, 0.9, 0.9], False, [1, 3]),  # two cuts
    ],
)
def test_scales_are_measured_anew_where_the_scene_changes(shares, whole, times):
    system, seen = counting(), []

    def step(params, state, frames, mask=None):
        state, scores = system.step(params, state, frames)
        share = jnp.asarray([0.0, *shares])[state.count - 1][None]
        work = state.work._replace(changed=share, details={"whole": (share[0] > 0) & whole})
        return state._replace(work=work), scores

    def recalibrate(params, state, frames):
        seen.append(int(state.count) - 1)
        return state._replace(count=state.count + 0)

    video = VideoFunction(system.init, step, recalibrate)
    results = list(run_video(TASK, video, clip(len(shares) + 1), params=None))
    assert seen == times
    for number, result in enumerate(results[1:], 1):
        assert result.measures.mac_fraction == 0.25 + (number in times)


def test_regions_are_measured_where_a_system_has_them():
    system = counting()

    def with_regions(state):
        details = {"segmented": jnp.array([[True, False]]), "scores": jnp.array([[80.0, 95.0]])}
        return state._replace(work=state.work._replace(details=details))

    def init(params, frames):
        state, scores = system.init(params, frames)
        return with_regions(state), scores

    def step(params, state, frames, mask=None):
        state, scores = system.step(params, state, frames)
        return with_regions(state), scores

    for result in run_video(TASK, VideoFunction(init, step), clip(2), params=None):
        assert (result.measures.segmented, result.measures.score) == (0.5, 87.5)
    assert np.isnan(list(run_video(TASK, system, clip(2), params=None))[1].measures.segmented)


def test_audits_are_measured_where_a_system_makes_them():
    video = dynvid.audited(
        dynvid.incremental(FN, threshold=300.0), every=2, metric=TASK.compare, decode=decode
    )
    results = list(run_video(TASK, video, clip(5), params=jnp.ones(4)))
    audits = [found.measures.audit for found in results]
    assert np.isfinite(audits).tolist() == [False, False, True, False, True]
    assert [found.measures.audit_weight for found in results][2:] == [1, 0, 1]
    assert all(np.isfinite(found.measures.factor) for found in results)
    assert results[2].measures.mac_fraction == 1 + results[1].measures.mac_fraction


def decode(params, outputs):
    return TASK.decode(params, outputs, frame_size=SIZE)
