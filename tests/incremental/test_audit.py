"""Audits: what they log is so, settings follow it between bounds, and nothing is compiled again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.incremental import relative_agreement
from dynvid.types import Agreement

EVERY = 4


def fn(kernel, x):
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.lax.conv_general_dilated(
        jax.nn.relu(y), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


KERNEL = jnp.ones((3, 3, 1, 1))


@pytest.fixture(scope="module")
def clip():
    """Two cameras: one looks at a square that moves, the other at a wall."""
    frames = np.full((33, 2, 24, 24, 1), 8.0, np.float32)
    for t in range(33):
        left = t % 16
        frames[t, 0, 6:12, left : left + 6] += 8
    return jnp.asarray(frames)


def scanned(video, clip):
    """Everything that a scan over the clip gives: outputs, and what each step logged."""
    state, first = video.init(KERNEL, clip[0])

    def body(state, frames):
        state, outputs = video.step(KERNEL, state, frames)
        return state, (outputs, state.work, state.threshold, state.truncation)

    state, found = jax.lax.scan(body, state, clip[1:])
    return state, first, found


@functools.cache
def incremental(threshold, truncation):
    return dynvid.incremental(fn, threshold=threshold, truncation=truncation)


@pytest.fixture(scope="module")
def coarse(clip):
    """Settings that are far too loose, audited."""
    video = dynvid.audited(incremental(6, 4.0), every=EVERY, target=0.95)
    return scanned(video, clip)


def test_between_audits_nothing_changes_and_audits_are_dense(clip):
    plain = incremental(6, 4.0)
    video = dynvid.audited(plain, every=EVERY, bounds=(1, 1))
    _, _, (outputs, work, threshold, _) = scanned(video, clip[:9])
    assert set(threshold.ravel().tolist()) == {6}
    for start in (0, EVERY):
        # From its dense frame on each stretch is the function by itself.
        _, _, (expected, alone, _, _) = scanned(plain, clip[start : start + EVERY + 1])
        np.testing.assert_array_equal(outputs[start : start + EVERY - 1], expected[:-1])
        np.testing.assert_array_equal(work.macs[start : start + EVERY - 1], alone.macs[:-1])
        last = start + EVERY - 1
        np.testing.assert_array_equal(outputs[last], fn(KERNEL, clip[last + 1]))
        np.testing.assert_array_equal(work.macs[last], alone.macs[-1] + alone.dense_macs[-1])


def test_what_is_logged_is_what_agreed_before_the_audit(clip):
    plain = incremental(6, 4.0)
    video = dynvid.audited(plain, every=EVERY, bounds=(1, 1))
    _, _, (_, work, _, _) = scanned(video, clip[:9])
    for start in (0, EVERY):
        _, _, (outputs, _, _, _) = scanned(plain, clip[start : start + EVERY + 1])
        last = start + EVERY - 1
        expected = relative_agreement(fn(KERNEL, clip[last + 1]), outputs[-1])
        np.testing.assert_allclose(work.details["audit"][last], expected.score, rtol=1e-6)
        assert work.details["audit_weight"][last].tolist() == [1, 1]
        assert np.isnan(work.details["audit"][start:last]).all()
        assert not work.details["audit_weight"][start:last].any()


def test_below_the_target_settings_become_tighter_until_it_is_kept(coarse):
    _, _, (_, work, threshold, truncation) = coarse
    audits, factor = work.details["audit"][:, 0], np.asarray(work.details["factor"][:, 0])
    assert audits[EVERY - 1] < 0.95
    assert factor[EVERY - 1] == 1 / 4  # at most four steps at once
    assert factor[2 * EVERY - 1] < 1 / 4
    # What was held back before is gone with the audit.
    assert (audits[3 * EVERY - 1 : 5 * EVERY : EVERY] >= 0.95).all()
    # They take effect in the state that the step returns.
    np.testing.assert_allclose(threshold[:, 0], 6 * factor, rtol=1e-6)
    np.testing.assert_allclose(truncation[:, 0, 0], 4 * factor, rtol=1e-6)


def test_each_stream_has_its_own_factor_and_a_quiet_one_becomes_looser(coarse):
    _, _, (_, work, _, _) = coarse
    quiet = np.asarray(work.details["factor"][:, 1])
    assert quiet[3 * EVERY - 2] == 1  # three audits first
    assert quiet[3 * EVERY - 1] == pytest.approx(2**0.5)
    assert quiet[-1] == 2  # the bound


def test_what_did_not_hold_is_tried_again_ever_later(clip):
    """Any factor above zero misses the target here: the audits must not seesaw."""

    def same(expected, found):
        score = jnp.all(expected == found, (1, 2, 3)).astype(jnp.float32)
        return Agreement(score, jnp.ones(len(score)))

    video = dynvid.audited(incremental(0, 4.0), every=1, metric=same, target=0.5)
    _, _, (_, work, _, _) = scanned(video, clip)
    factor = np.asarray(work.details["factor"][:, 0])
    raised = np.flatnonzero(np.diff(factor) > 0)
    assert len(raised) >= 2
    assert np.diff(raised).min() > 2 * 3
    assert (np.diff(raised, 2) > 0).all()


def test_between_target_and_safety_nothing_moves(clip):
    def as_told(expected, found):
        # Half way from the target of 0.9 to where 1 - A is half of 1 - T.
        return Agreement(jnp.full(len(found), 0.93), jnp.ones(len(found)))

    video = dynvid.audited(incremental(6, 4.0), every=1, metric=as_told, target=0.9)
    _, _, (_, work, _, _) = scanned(video, clip)
    assert set(work.details["factor"].ravel().tolist()) == {1}


def test_an_audit_of_no_weight_moves_nothing(clip):
    def nothing(expected, found):
        return Agreement(jnp.zeros(len(found)), jnp.zeros(len(found)))

    video = dynvid.audited(incremental(6, 4.0), every=1, metric=nothing, target=0.9)
    _, _, (_, work, _, _) = scanned(video, clip)
    assert set(work.details["factor"].ravel().tolist()) == {1}


def test_what_is_compared_is_what_is_decoded(clip):
    def sums(kernel, outputs):
        return jnp.sum(outputs * kernel.sum(), (1, 2, 3))

    def same(expected, found):
        assert expected.shape == found.shape == (2,)
        return Agreement((expected == found).astype(jnp.float32), jnp.ones(2))

    video = dynvid.audited(incremental(6, 4.0), every=EVERY, decode=sums, metric=same)
    _, _, (_, work, _, _) = scanned(video, clip)
    assert work.details["audit"][EVERY - 1].tolist() == [0, 1]


def test_nothing_is_compiled_again_when_settings_move(clip):
    video = dynvid.audited(incremental(6, 4.0), every=2, target=0.95)
    state, _ = video.init(KERNEL, clip[0])
    step = jax.jit(video.step, donate_argnums=1)
    factors = set()
    for frames in clip[1:17]:
        state, _ = step(KERNEL, state, frames)
        factors.add(float(state.work.details["factor"][0]))
    assert len(factors) >= 3
    assert step._cache_size() == 1


def test_streams_are_replaced_with_their_factor(clip):
    video = dynvid.audited(incremental(6, 4.0), every=1, target=0.95)
    state, _ = video.init(KERNEL, clip[0])
    fresh = state
    for frames in clip[1:5]:
        state, _ = video.step(KERNEL, state, frames)
    assert state.threshold[0] < 6
    new = dynvid.replace_streams(state, fresh, jnp.array([True, False]))
    assert new.threshold[0] == 6
    assert new.threshold[1] == state.threshold[1]
    new, _ = video.step(KERNEL, new, clip[5])
    again = new.with_settings(threshold=10)
    assert again.threshold.tolist() == [10, 10]
    kept = video.recalibrate(KERNEL, new, clip[6])
    assert kept.threshold.tolist() == new.threshold.tolist()


def test_an_exact_function_has_its_threshold_moved(clip):
    video = dynvid.audited(incremental(6, 0.0), every=EVERY, target=0.99)
    _, _, (_, _, threshold, truncation) = scanned(video, clip)
    assert threshold[-1, 0] < 6
    assert truncation.shape[1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"every.*got 0"),
        ({"target": 1.0}, r"target.*got 1\.0"),
        ({"bounds": (1.5, 2)}, r"bounds.*\(1\.5, 2\)"),
        ({"bounds": (0, float("inf"))}, r"bounds"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dynvid.audited(incremental(6, 4.0), **options)


def test_a_function_without_settings_is_refused(clip):
    video = dynvid.audited(dynvid.systems.dense.dense(fn))
    with pytest.raises(ValueError, match=r"video_function must have settings.*State"):
        video.init(KERNEL, clip[0])
