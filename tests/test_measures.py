"""What is kept of a run: figures against NumPy's, and memory that does not grow."""

import math
import pickle

import numpy as np
import pytest

from dynvid.measures import POINTS, WINDOW, Audits, Measures, RunMeasures, Series


def test_summary_leaves_out_the_first_frame_and_takes_medians():
    nan = math.nan
    first = Measures(1.0, *[nan] * 6)
    rest = [
        Measures(0.1, 0.9, 0.01, 0.04, 0.5, 8.0, 1.0),
        Measures(0.2, 0.8, 0.02, 0.05, 0.1, 9.0, 0.5),
        Measures(0.6, 0.7, 0.90, 0.99, 0.2, 7.0, 0.0),
    ]
    run = RunMeasures()
    for measures in (first, *rest):
        run.add(measures)
    report = run.summary(agreement="detection_agreement")
    assert report["frames"] == 4
    assert report["mac_fraction"] == pytest.approx(0.3)
    assert report["scene_similarity"] == pytest.approx(0.8)
    assert report["seconds_per_frame"] == 0.02
    assert report["dense_seconds_per_frame"] == 0.05
    assert report["speedup"] == pytest.approx(2.5)
    assert report["fraction_of_ideal"] == pytest.approx(0.75)
    assert report["max_abs_difference_at_reference"] == 0.5
    assert report["max_abs_output_at_reference"] == 9.0
    assert report["detection_agreement"] == pytest.approx(0.5)


def run_of(values) -> RunMeasures:
    """A run whose later frames have these shares of work, and times of a tenth of them."""
    nan = math.nan
    run = RunMeasures()
    run.add(Measures(1.0, *[nan] * 6))
    for value in values:
        run.add(Measures(value, 1 - value, value / 10, nan, nan, nan, nan))
    return run


@pytest.mark.parametrize("count", [1, POINTS - 1, POINTS])
def test_a_run_of_moderate_length_is_kept_frame_by_frame(count):
    values = np.random.default_rng(0).uniform(0, 1, count).tolist()
    run = run_of(values)
    assert (run.frames_per_point, run.median_of) == (1, count)
    series = run.series()
    assert series["mac_fraction"] == [1.0, *values]
    assert math.isnan(series["seconds"][0])
    report = run.summary(agreement="x")
    assert report["mac_fraction"] == pytest.approx(np.mean(values))
    assert report["seconds_per_frame"] == pytest.approx(np.median(values) / 10)


def test_a_longer_run_is_kept_in_means():
    values = np.random.default_rng(1).uniform(0, 1, 2 * POINTS + 3).tolist()
    run = run_of(values)
    assert run.frames_per_point == 4
    series = run.series()
    assert len(series["similarity"]) == 1 + -(-len(values) // 4)
    expected = [np.mean(values[i : i + 4]) for i in range(0, len(values), 4)]
    np.testing.assert_allclose(series["mac_fraction"], [1.0, *expected], rtol=1e-12)
    assert run.summary(agreement="x")["mac_fraction"] == pytest.approx(np.mean(values))
    assert run.frames == 1 + len(values)


def test_a_hundred_thousand_frames_take_no_more_memory_than_ten_thousand():
    """Nor do their figures suffer."""
    rng = np.random.default_rng(2)
    values = np.sort(rng.gamma(2.0, 0.1, 100_000))  # a machine that grows hot: no late sample
    nan = math.nan

    def feed(run: RunMeasures, some: np.ndarray) -> None:
        for value in some.tolist():
            run.add(Measures(value, 1 - value, value / 10, value, value, value, value))

    run = RunMeasures()
    run.add(Measures(1.0, *[nan] * 6))
    feed(run, values[:10_000])
    before = len(pickle.dumps(run))
    feed(run, values[10_000:])
    # A pickled float takes 9 bytes, a count up to 3: 90,000 of each measure would be 5.7 MB.
    # Series are between half full and full: of 7 measures, and a share of their counts.
    assert len(pickle.dumps(run)) - before < 7 * 2048 * 12
    report = run.summary(agreement="x")
    assert report["mac_fraction"] == pytest.approx(values.mean())
    assert report["max_abs_difference_at_reference"] == values.max()
    assert run.median_of == POINTS
    assert len(run.series()["seconds"]) <= POINTS + 1
    # The sample's median has a rank within 4 standard deviations, 2 / sqrt(POINTS) of all.
    low, high = np.quantile(values / 10, [0.5 - 2 / POINTS**0.5, 0.5 + 2 / POINTS**0.5])
    assert low < report["seconds_per_frame"] < high


def test_values_that_were_not_measured_are_left_out():
    series = Series(points=2)
    for value in (math.nan, 2.0, math.nan, math.nan, 5.0):
        series.add(value)
    assert series.frames_per_point == 4
    assert series.points == [2.0, 5.0]


def test_regions_are_in_the_summary_where_there_are_any():
    nan = math.nan
    run = RunMeasures()
    run.add(Measures(1.0, *[nan] * 6, 1.0, nan))
    for segmented, score in ((0.25, 90.0), (0.75, nan)):
        run.add(Measures(0.5, 1 - segmented, 0.1, *[nan] * 4, segmented, score))
    summary = run.summary(agreement="segmentation_agreement")
    assert (summary["segmented"], summary["score"]) == (0.5, 90)
    assert run.series()["segmented"] == [1, 0.25, 0.75]


def test_audits_are_pooled_and_their_worst_window_is_kept():
    nan = math.nan
    rng = np.random.default_rng(4)
    scores, weights = rng.uniform(0, 1, 40), rng.integers(1, 9, 40)
    audits = Audits()
    for t, (score, weight) in enumerate(zip(scores, weights, strict=True)):
        audits.add(Measures(0.2, 0.9, 0.1, *[nan] * 4))  # in between there is none
        audits.add(
            Measures(1.2, 0.9, 0.4, *[nan] * 4, audit=score, audit_weight=weight, factor=1 + t)
        )
    found = audits.summary()
    assert found["audits"] == 40
    assert found["agreement"] == pytest.approx(np.average(scores, weights=weights))
    windows = [slice(i, i + WINDOW) for i in range(40 - WINDOW + 1)]
    worst = min(np.average(scores[w], weights=weights[w]) for w in windows)
    assert found["worst_window"] == pytest.approx(worst)
    assert found["factor"] == {"last": 40, "least": 1, "most": 40}
    assert found["mac_fraction"] == 0.5
    assert found["seconds"] == pytest.approx(0.3)


def test_without_audits_there_is_nothing_to_say_of_them():
    assert Audits().summary() == {}
    empty = Audits()
    empty.add(Measures(0.2, *[math.nan] * 6, audit=1.0, audit_weight=0.0))
    assert empty.summary()["agreement"] is None
    assert empty.summary()["worst_window"] is None
