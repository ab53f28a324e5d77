"""Tuning: the settings it returns do what it says they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.incremental import relative_agreement
from dynvid.incremental.transform import plan_for


def network(params, x):
    """Five convolutions and a pooling, integer-valued."""
    for i, kernel in enumerate(params):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.maximum(x, 0)
        if i == 0:
            window = (1, 2, 2, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    return x


@pytest.fixture(scope="module")
def params():
    draw = np.random.default_rng(0)
    shapes = [(3, 3, 3, 4)] + [(3, 3, 4, 4)] * 4
    return [jnp.array(draw.integers(-1, 2, shape), jnp.float32) for shape in shapes]


@pytest.fixture(scope="module")
def clip():
    """A square that moves over noise, two cameras, whole grey levels."""
    draw = np.random.default_rng(1)
    frames = []
    for t in range(6):
        frame = 100 + draw.integers(-3, 4, (2, 32, 32, 3))
        frame[0, 4:12, 2 + 3 * t : 10 + 3 * t] = 200
        frame[1, 10 + t : 20 + t, 12:20] = 20
        frames.append(frame.astype(np.float32))
    return frames


@pytest.fixture(scope="module")
def tuning(params, clip):
    return dynvid.tune(
        network, params, clip, target=0.9, thresholds=(2, 5, 10), trials=60, progress=False
    )


def run(params, clip, **options):
    """The outputs and MACs of `incremental`, always on cells as in the trials."""
    video = dynvid.incremental(network, **options)
    state, output = video.init(params, clip[0])
    outputs, fractions = [output], []
    for frame in clip[1:]:
        state, output = video.step(params, state, frame)
        outputs.append(output)
        assert not np.any(state.work.details["dense"])
        fractions.append(np.asarray(state.work.macs / state.work.dense_macs))
    return np.stack(outputs), float(np.mean(fractions))


def test_incremental_with_the_settings_agrees_as_promised(params, clip, tuning):
    expected = np.stack([network(params, frame) for frame in clip])
    found, fraction = run(params, clip, **tuning.options)
    assert relative_agreement(expected, found) == tuning.agreement >= 0.9
    assert fraction == pytest.approx(tuning.mac_fraction, rel=1e-6)


def test_tuning_saves_more_than_one_truncation_for_all(tuning):
    uniform = [
        trial.mac_fraction
        for trial in tuning.curve
        if trial.agreement >= 0.9 and len(set(trial.truncation.values())) == 1
    ]
    assert len(set(tuning.truncation.values())) > 1
    assert tuning.mac_fraction < min(uniform)


def test_the_curve_goes_down_among_settings_that_reach_the_target(tuning):
    accepted = [trial for trial in tuning.curve if trial.accepted]
    fractions = [trial.mac_fraction for trial in accepted]
    assert fractions == sorted(fractions, reverse=True)
    assert all(trial.agreement >= 0.9 for trial in accepted)
    assert accepted[-1][:4] == tuning[:4]
    assert len(tuning.curve) <= 60


def test_the_same_seed_gives_the_same_answer(params, clip, tuning):
    options = {"target": 0.9, "thresholds": (2, 5, 10), "trials": 60, "progress": False}
    assert dynvid.tune(network, params, clip, **options) == tuning
    other = dynvid.tune(network, params, clip, seed=1, **options)
    assert other.curve != tuning.curve


def test_settings_that_share_a_step_do_not_sway_one_another(params, clip, tuning):
    alone = dynvid.tune(
        network, params, clip, target=0.9, thresholds=(2, 5, 10), trials=20, batch=1, progress=False
    )
    shared = {(t.threshold, tuple(t.truncation.items())): t for t in tuning.curve}
    both = [
        (t, shared[key])
        for t in alone.curve
        if (key := (t.threshold, tuple(t.truncation.items()))) in shared
    ]
    assert len(both) >= 15
    for one, other in both:
        assert one.agreement == other.agreement
        assert one.mac_fraction == pytest.approx(other.mac_fraction, rel=1e-6)


def test_layers_are_those_of_the_plan(params, clip, tuning):
    plan = plan_for(network, params, jnp.asarray(clip[0]))
    assert set(tuning.truncation) <= {unit.name for unit in plan.units}


def test_a_metric_of_the_user_decides(params, clip):
    seen = []

    def largest(expected, found):
        seen.append((expected.shape, found.shape))
        return -float(np.max(np.abs(expected - found)))

    found = dynvid.tune(
        network, params, clip, target=0.0, metric=largest, trials=12, progress=False
    )
    assert set(seen) == {((6, 2, 16, 16, 4), (6, 2, 16, 16, 4))}
    assert found.agreement == 0
    assert found.options == {"threshold": 0.0, "truncation": {}}


def test_frames_of_whole_numbers_have_thresholds_of_whole_numbers(params, clip):
    def from_bytes(params, x):
        return network(params, x.astype(jnp.float32))

    frames = [frame.astype(np.uint8) for frame in clip]
    found = dynvid.tune(from_bytes, params, frames, target=0.8, trials=20, progress=False)
    assert found.threshold in (5, 10, 15, 20, 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 2.0}, r"target must be at most 1\.0.*; got 2\.0"),
        ({"target": 0.9, "thresholds": ()}, "thresholds"),
        ({"target": 0.9, "thresholds": (-1,)}, r"thresholds.*-1"),
        ({"target": 0.9, "truncations": (0.5, 0.5)}, r"truncations.*rising"),
        ({"target": 0.9, "truncations": (0.0, 0.5)}, r"truncations.*0\.0"),
        ({"target": 0.9, "trials": 0}, r"trials.*0"),
        ({"target": 0.9, "batch": 0}, r"batch.*0"),
    ],
)
def test_bad_options_are_named(params, clip, options, message):
    with pytest.raises(ValueError, match=message):
        dynvid.tune(network, params, clip[:2], progress=False, **options)


def test_one_frame_is_refused(params, clip):
    with pytest.raises(ValueError, match=r"frames.*got 1"):
        dynvid.tune(network, params, clip[:1], target=0.9, progress=False)


def test_outputs_without_a_row_for_each_stream_are_refused(params, clip):
    with pytest.raises(ValueError, match=r"one row a stream.*batch=1"):
        dynvid.tune(lambda p, x: jnp.mean(network(p, x)), params, clip, target=0.9, progress=False)


def test_relative_agreement_counts_all_leaves():
    expected = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    found = {"a": np.array([3.0]), "b": np.array([[4.5]])}
    assert relative_agreement(expected, found) == 0.9
    assert relative_agreement(expected, expected) == 1
    assert relative_agreement(np.zeros(2), np.array([0.0, 2.0])) == -1
