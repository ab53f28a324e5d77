"""What is kept of a run: figures against NumPy's, and memory that does not grow."""

import math

import pytest

from dynvid.measures import Measures, RunMeasures


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
