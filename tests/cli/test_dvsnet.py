"""`dynvid run --system dvsnet`: what it runs on, what it writes, what it refuses."""

import importlib
import json

import imageio.v3 as iio
import numpy as np
import pytest

from dynvid.cli import main
from dynvid.models.zoo import load_model
from dynvid.video.reader import VideoSource
from tests.cli.helpers import FILES, moving_square, refused
from tests.cli.test_tasks import brightness, colours
from tests.data import data_path

common = importlib.import_module("dynvid.cli.common")

DVSNET = ["--system", "dvsnet"]


def report_of(folder, tmp_path, *options):
    out = tmp_path / "results"
    assert main([str(a) for a in ["run", folder, *DVSNET, "--out", out, *options]]) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    return json.loads((out / "report.json").read_text())


def test_without_arguments_it_drives_with_the_shipped_networks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common.SyntheticDrive, "size", (48, 64))
    assert main(["run", *DVSNET, "--max-frames", "3", "--set", "overlap=8"]) == 0
    out = tmp_path / "runs" / "synthetic_drive"
    assert sorted(path.name for path in out.iterdir()) == FILES
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "shipped segmenter (segmentation) by dvsnet" in printed.out
    assert "of the regions warped" in printed.out
    report = json.loads((out / "report.json").read_text())
    assert (report["task"], report["options"]["policy"]) == ("segmentation", "decision_network")
    assert report["threshold"] == report["options"]["threshold"] == 92  # the policy's own
    assert 0 <= report["segmented"] <= 1
    assert np.isfinite(report["score"])
    series = report["per_frame"]
    assert series["segmented"][0] == 1
    assert np.mean(series["segmented"][1:]) == pytest.approx(report["segmented"])
    assert series["score"][0] is None  # the first frame is segmented, whatever it shows
    assert np.mean(series["score"][1:]) == pytest.approx(report["score"])
    assert sum(1 for _ in VideoSource(out / "annotated.mp4")) == 3


def test_a_period_segments_every_so_many_frames(folder, tmp_path, capsys):
    model = colours(tmp_path / "maps.onnx", free=True)
    options = ["--model", model, "--pixels", "unit", "--set", "policy=fixed_period"]
    report = report_of(folder, tmp_path, *options, "--threshold", 2, "--compare-dense")
    assert report["per_frame"]["segmented"] == [1, 0, 1, 0, 1]
    assert report["per_frame"]["score"] == [None, 1, 2, 1, 2]
    assert report["threshold"] == 2
    assert 0 < report["segmentation_agreement"] <= 1
    assert "1.5 frames mean score" in capsys.readouterr().out


def test_one_frame_of_an_odd_size_is_a_video(tmp_path):
    picture = tmp_path / "one.png"
    iio.imwrite(picture, moving_square(1, side=71)[0][:49])
    report = report_of(picture, tmp_path, "--set", "overlap=8")
    assert (report["frame_size"], report["network_size"]) == ([49, 71], [56, 72])
    assert (report["frames"], report["mac_fraction"]) == (1, None)
    assert "segmented" not in report  # nothing but the first frame


def test_a_frame_of_another_size_ends_the_run_and_keeps_what_came_before(folder, tmp_path):
    iio.imwrite(folder / "2.png", np.zeros((64, 80, 3), np.uint8))
    report = report_of(folder, tmp_path)
    assert report["frames"] == 2
    assert "80x64" in report["warnings"][0]


@pytest.mark.parametrize(("options", "words"), [
    (["--threshold", 400], ["threshold must be between 0 and 100; got 400"]),
    (["--threshold", -1], ["--threshold must be at least 0", "-1"]),
    (["--set", "policy=guess"], ["policy must be", "'decision_network'", "'guess'"]),
    (["--set", "overlap=7"], ["overlap must be a multiple of 8 pixels", "7"]),
    (["--set", "overlap=64"], ["2 regions of 48 pixels", "overlap of 64", "frames 96 high"]),
    (["--set", "rows=97"], ["97 regions", "96 high"]),
    (["--set", "columns=0"], ["columns must be a positive number; got 0"]),
    (["--truncation", 1], ["truncation is for incremental=true"]),
    (["--set", "grid=2"], ["dvsnet has no option grid; it has policy, threshold, rows"]),
    (["--task", "detection"], ["--system dvsnet is for segmentation; got --task detection"]),
    (["--head", "yolox"], ["--system dvsnet is for segmentation; got --head yolox"]),
    (["--pixels", "unit"], ["--pixels", "shipped segmenter"]),
    (["--model", "scores.onnx"], ["segmentation does not fit scores.onnx"]),
    (["--model", "fixed.onnx", "--set", "overlap=0"],
     ["regions of 64x32", "frames must be (S, 64, 96, 3)", "rows=1"]),
    (["--model", "other.pth"], ["other.pth"]),
])  # fmt: skip
def test_what_cannot_be_run_is_refused(folder, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    brightness(tmp_path / "scores.onnx")
    colours(tmp_path / "fixed.onnx", free=False)
    (tmp_path / "other.pth").write_bytes(b"PK\x03\x04 not these weights\n" * 9)
    refused(capsys, ["run", folder, *DVSNET, *options], *words)
    assert not (tmp_path / "runs").exists()


def test_a_video_smaller_than_its_regions_says_so(tmp_path, capsys):
    iio.imwrite(tmp_path / "tiny.png", np.zeros((16, 16, 3), np.uint8))
    arguments = ["run", tmp_path / "tiny.png", *DVSNET, "--out", tmp_path / "out"]
    refused(capsys, arguments, "2 regions of 8 pixels", "overlap of 16", "frames 16 high")
    assert report_of(tmp_path / "tiny.png", tmp_path, "--set", "rows=1", "columns=1")["frames"] == 1


def test_a_network_of_one_size_runs_on_whole_frames(folder, tmp_path):
    model = colours(tmp_path / "fixed.onnx", free=False)
    options = ["--model", model, "--pixels", "unit", "--max-frames", 2, "--compare-dense"]
    given = ["--set", "rows=1", "columns=1", "policy=fixed_period", "threshold=1"]
    report = report_of(folder, tmp_path, *options, *given)
    assert report["network_size"] == [64, 96]
    # Labels of the network's input by the nearest pixel, and scores resized: edges may differ.
    assert report["segmentation_agreement"] > 0.9


def test_espnet_is_known_by_its_file(tmp_path):
    path = data_path("weights/espnet/espnet_p_2_q_8_camvid.pth")
    model = load_model(path, frame_size=(360, 480))
    assert (model.kind, model.network_size((360, 480))) == ("segmentation", (360, 480))
    assert model.task.class_names[8:] == ("car", "pedestrian", "bicyclist", "void")
    assert model.network_size((1080, 1920)) == (272, 480)  # of frames that it was not loaded for
    assert load_model(path, frame_size=(1080, 1920)).network_size((1080, 1920)) == (360, 640)
