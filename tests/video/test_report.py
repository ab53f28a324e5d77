import imageio.v3 as iio
import matplotlib as mpl
import numpy as np
import pytest

from dynvid.video import report
from dynvid.video.report import plot_report

NAN = float("nan")


def series(count: int, **changes):
    rng = np.random.default_rng(0)
    similarity = np.concatenate([[NAN], rng.uniform(0.9, 1.0, count - 1)])
    return {
        "mac_fraction": np.concatenate([[1.0], rng.uniform(0.1, 0.4, count - 1)]),
        "seconds": rng.uniform(0.01, 0.02, count),
        "similarity": similarity,
    } | changes


@pytest.mark.parametrize("count", [1, 2, 300])
@pytest.mark.parametrize("dense", [False, True])
def test_report_is_drawn(tmp_path, count, dense):
    path = tmp_path / "report.png"
    plot_report(
        path, **series(count), dense_seconds=[0.05] * count if dense else None, title="a clip"
    )
    picture = iio.imread(path)
    assert picture.shape[0] > 700
    assert picture.shape[1] > 900
    # Each of the curves' colours is in it.
    for color in (report._INCREMENTAL, *([report._SCENE] if count > 1 else [])):
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(picture[..., :3].astype(int) - wanted).max(axis=-1) < 8).sum() > 20
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]


def test_agreement_gets_a_panel_of_its_own(tmp_path):
    scores, factors = [NAN] * 60, [NAN, *[1.0] * 30, *[0.5] * 29]
    scores[20], scores[40] = 0.8, 0.95
    plot_report(tmp_path / "report.png", **series(60), agreement=scores, factor=factors, target=0.9)
    plot_report(tmp_path / "plain.png", **series(60))
    with_panel, without = (iio.imread(tmp_path / f"{n}.png") for n in ("report", "plain"))
    assert with_panel.shape[0] == without.shape[0] * 4 // 3

    def count(picture, color):
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        return (np.abs(picture[..., :3].astype(int) - wanted).max(axis=-1) < 8).sum()

    assert count(with_panel, report._TARGET) > 20 > count(without, report._TARGET)
    # Nothing to agree on yet is no warning.
    plot_report(tmp_path / "report.png", **series(3), agreement=[NAN] * 3, factor=[NAN] * 3)


def test_values_that_were_not_measured_are_no_warning(tmp_path):
    plot_report(
        tmp_path / "report.png",
        mac_fraction=[NAN, 0.5],
        seconds=[NAN, 0.1],
        similarity=[NAN, NAN],
        dense_seconds=[NAN, 0.2],
    )
    assert (tmp_path / "report.png").exists()


def test_still_scene(tmp_path):
    plot_report(
        tmp_path / "report.png", mac_fraction=[1, 0, 0], seconds=[0, 0, 0], similarity=[1, 1, 1]
    )
    assert (tmp_path / "report.png").exists()


def test_no_global_state_is_touched(tmp_path):
    before = dict(mpl.rcParams)
    plot_report(tmp_path / "report.png", **series(5))
    assert dict(mpl.rcParams) == before


def test_series_that_differ_in_length_are_named(tmp_path):
    with pytest.raises(ValueError, match="seconds must have 3 entries as mac_fraction; got 2"):
        plot_report(tmp_path / "report.png", **series(3, seconds=[1, 2]))
    with pytest.raises(ValueError, match="agreement must have 3 entries as mac_fraction; got 1"):
        plot_report(tmp_path / "report.png", **series(3), agreement=[1])
    with pytest.raises(ValueError, match="at least one entry; got none"):
        plot_report(tmp_path / "report.png", mac_fraction=[], seconds=[], similarity=[])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_writing_fails(tmp_path, monkeypatch):
    def fail(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_report(tmp_path / "report.png", **series(3))
    assert list(tmp_path.iterdir()) == []
