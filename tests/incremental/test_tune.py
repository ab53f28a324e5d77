"""Tuning: the settings it returns do what it says they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.incremental import TuningWarning, relative_agreement
from dynvid.incremental.transform import plan_for
from dynvid.types import Agreement

pytestmark = pytest.mark.filterwarnings("ignore:something happens in")


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


TUNED = {
    "target": 0.75, "thresholds": (2, 5, 10), "truncations": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5),
    "trials": 80, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def tuning(params, clip):
    return dynvid.tune(network, params, clip, **TUNED)


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


def busy_agreement(expected, found):
    """As of `tune`: frames weigh by how far the first output is from their own."""
    scores = [relative_agreement(*pair).score for pair in zip(expected, found, strict=True)]
    frozen = [relative_agreement(output, expected[0]).score for output in expected]
    return np.average(scores, weights=1 - np.array(frozen)), np.average(
        frozen, weights=1 - np.array(frozen)
    )


def test_incremental_with_the_settings_agrees_as_promised(params, clip, tuning):
    expected = np.stack([network(params, frame) for frame in clip])
    found, fraction = run(params, clip, **tuning.options)
    agreement, frozen = busy_agreement(expected, found)
    assert agreement == pytest.approx(tuning.agreement, rel=1e-5)
    assert frozen == pytest.approx(tuning.frozen, rel=1e-5)
    assert tuning.agreement >= tuning.lower >= 0.75
    assert fraction == pytest.approx(tuning.mac_fraction, rel=1e-6)


def test_tuning_saves_more_than_one_truncation_for_all(tuning):
    uniform = [
        trial.mac_fraction
        for trial in tuning.curve
        if trial.lower >= 0.75 and trial.frames == 6 and len(set(trial.truncation.values())) == 1
    ]
    assert len(set(tuning.truncation.values())) > 1
    assert tuning.mac_fraction < min(uniform)


def test_the_curve_goes_down_among_settings_that_reach_the_target(tuning):
    accepted = [trial for trial in tuning.curve if trial.accepted]
    fractions = [trial.mac_fraction for trial in accepted]
    assert fractions == sorted(fractions, reverse=True)
    assert all(trial.lower >= 0.75 and trial.frames == 6 for trial in accepted)
    last = accepted[-1]
    assert (last.threshold, last.truncation) == (tuning.threshold, tuning.truncation)
    assert len(tuning.curve) <= 80


def test_what_fails_or_costs_more_is_stopped_early(tuning):
    stopped = [trial for trial in tuning.curve if trial.frames < 6]
    assert stopped
    assert not any(trial.accepted for trial in stopped)


def test_the_same_seed_gives_the_same_answer(params, clip, tuning):
    assert dynvid.tune(network, params, clip, **TUNED) == tuning
    other = dynvid.tune(network, params, clip, seed=1, **TUNED)
    assert other.curve != tuning.curve


def test_settings_that_share_a_step_do_not_sway_one_another(params, clip, tuning):
    alone = dynvid.tune(network, params, clip, **(TUNED | {"trials": 20, "batch": 1}))
    shared = {(t.threshold, tuple(t.truncation.items())): t for t in tuning.curve}
    both = [
        (t, other)
        for t in alone.curve
        if (other := shared.get((t.threshold, tuple(t.truncation.items()))))
        and t.frames == other.frames
    ]
    assert len(both) >= 10
    for one, other in both:
        assert one.agreement == pytest.approx(other.agreement, rel=1e-6)
        assert one.mac_fraction == pytest.approx(other.mac_fraction, rel=1e-6)


def test_layers_are_those_of_the_plan(params, clip, tuning):
    plan = plan_for(network, params, jnp.asarray(clip[0]))
    assert set(tuning.truncation) <= {unit.name for unit in plan.units}


def test_where_no_truncation_for_all_is_good_enough_single_layers_are(params, clip):
    """The search goes on by layer from the exact setting."""
    options = TUNED | {"thresholds": (0,), "target": 0.92, "trials": 24, "truncations": (0.5, 2.0)}
    found = dynvid.tune(network, params, clip, **options)
    uniform = [trial for trial in found.curve if len(trial.truncation) == 4]
    assert not any(trial.accepted for trial in uniform)
    assert 0 < len(found.truncation) < 4
    exact = next(trial for trial in found.curve if not trial.truncation and trial.accepted)
    assert found.mac_fraction < exact.mac_fraction


def test_a_metric_of_the_user_decides_on_what_is_decoded(params, clip):
    def largest(params, outputs):
        return jnp.max(outputs, (1, 2, 3))

    def same(expected, found):
        assert expected.shape == found.shape == (len(expected),)
        return Agreement((expected == found).astype(jnp.float32), jnp.ones(len(expected)))

    found = dynvid.tune(
        network, params, clip, decode=largest, metric=same, **(TUNED | {"target": 1})
    )
    assert found.agreement == found.lower == 1
    assert found.frozen < 1


def test_other_options_are_those_of_incremental(params, clip):
    found = dynvid.tune(network, params, clip, settle=2, **(TUNED | {"trials": 12}))
    assert found.options["settle"] == 2
    assert found.options["truncation"] == found.truncation


def test_frames_of_whole_numbers_have_thresholds_of_whole_numbers(params, clip):
    def from_bytes(params, x):
        return network(params, x.astype(jnp.float32))

    frames = [frame.astype(np.uint8) for frame in clip]
    found = dynvid.tune(from_bytes, params, frames, target=0.8, trials=20, progress=False)
    assert found.threshold in (4, 6, 8, 12, 20)


# A detector whose raw output is mostly background.


def background_detector(kernels, x):
    """How likely each place is to hold the square, beside four channels that nothing changes."""
    for kernel in kernels:
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
    return jnp.concatenate([x, jnp.full((*x.shape[:3], 4), 40.0)], -1)


KERNELS = [jnp.ones((3, 3, 1, 1)) / 9] * 3


def places(kernels, outputs):
    """Where it finds the square, `(streams, 2)`."""
    heat = outputs[..., 0].reshape(outputs.shape[0], -1)
    return jnp.stack(jnp.divmod(jnp.argmax(heat, 1), outputs.shape[2]), -1)


def near(expected, found):
    close = jnp.max(jnp.abs(expected - found), -1) <= 2
    return Agreement(close.astype(jnp.float32), jnp.ones(len(close)))


@pytest.fixture(scope="module")
def street():
    """A bright square that crosses the view to and fro, on noise."""
    draw = np.random.default_rng(3)
    frames = []
    for t in range(36):
        frame = draw.integers(0, 4, (1, 24, 48, 1)).astype(np.float32)
        left = 4 + 2 * (t if t < 18 else 36 - t)
        frame[0, 8:14, left : left + 6] = 60
        frames.append(frame)
    return frames


def found_again(street, options):
    """The share of frames after those it was tuned on in which the square is where dense has it."""
    video = dynvid.incremental(background_detector, **options)
    state, _ = video.init(KERNELS, street[0])
    hits = []
    for t, frame in enumerate(street[1:], 1):
        state, output = video.step(KERNELS, state, frame)
        want = places(None, background_detector(KERNELS, frame))
        if t >= 12:
            hits.append(float(near(want, places(None, output)).score[0]))
    return float(np.mean(hits))


def test_background_does_not_switch_a_detector_off(street):
    """The first output for ever agrees by more than the target: that is no leave to freeze."""
    outputs = [background_detector(KERNELS, frame) for frame in street[:12]]
    assert all(relative_agreement(x, outputs[0]).score.item() > 0.8 for x in outputs)
    with pytest.warns(TuningWarning, match=r"target of 0\.8.*agrees by 0\.8.*tuned for 0\.9"):
        tuning = dynvid.tune(
            background_detector, KERNELS, street[:12], target=0.8, thresholds=(5, 15), trials=24,
            progress=False,
        )  # fmt: skip
    assert tuning.frozen > 0.8
    assert tuning.lower >= (1 + tuning.frozen) / 2
    assert found_again(street, tuning.options) >= 0.9


def test_a_metric_by_task_keeps_its_target_on_later_frames(street):
    tuning = dynvid.tune(
        background_detector, KERNELS, street[:12], target=0.9, decode=places, metric=near,
        thresholds=(5, 15), trials=24, progress=False,
    )  # fmt: skip
    assert tuning.mac_fraction < 0.6
    assert tuning.frozen < 0.5
    assert found_again(street, tuning.options) >= 0.9


def test_frames_in_which_nothing_happens_are_refused(street):
    with pytest.raises(ValueError, match=r"frames must show something that happens"):
        dynvid.tune(background_detector, KERNELS, street[:1] * 5, target=0.9, progress=False)


def test_few_busy_frames_are_warned_of(street):
    still = street[:1] * 9 + street[4:6]
    with pytest.warns(TuningWarning, match=r"in 2\.0 of 10 frames only"):
        dynvid.tune(
            background_detector, KERNELS, still, target=0.9, decode=places, metric=near, trials=8,
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 2.0}, r"target must be at most 1.*; got 2\.0"),
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
    expected = {"a": np.array([[3.0], [0.0]]), "b": np.array([[[4.0]], [[0.0]]])}
    found = {"a": np.array([[3.0], [0.0]]), "b": np.array([[[4.5]], [[2.0]]])}
    assert relative_agreement(expected, found).score.tolist() == [pytest.approx(0.9), -1]
    assert relative_agreement(expected, expected).score.tolist() == [1, 1]
