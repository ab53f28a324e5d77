"""`dynvid run` on any network that scores classes, on a map or as a whole."""

import json

import imageio.v3 as iio
import numpy as np
import pytest

from dynvid.cli import main
from dynvid.video.reader import VideoSource
from tests.cli.helpers import FILES, refused
from tests.weights.test_onnx import Graph

RED = np.array([200, 80, 60]) / 255


def colours(path, *, free, extra=False):
    """Two classes by colour, at a quarter of the size: what is red, and what is not."""
    kernel = np.zeros((2, 3, 4, 4), np.float32)
    kernel[1] = (np.array([1, -0.5, -0.5]) / 16)[:, None, None]
    graph = Graph(shape=(1, 3, None, None) if free else (1, 3, 64, 96))
    scores = graph.node("Conv", "x", kernel, np.array([0.1, 0], np.float32), strides=[4, 4])
    graph.save(path, scores, *([graph.node("Relu", scores)] if extra else []))
    return path


def brightness(path):
    """Three classes by how bright the picture is."""
    graph = Graph(shape=(1, 3, 32, 32))
    mean = graph.node("Flatten", graph.node("GlobalAveragePool", "x"), axis=1)
    weights = np.array([[-3, 0, 3]] * 3, np.float32)
    graph.save(path, graph.node("Gemm", mean, weights, np.array([3.0, 0, -3], np.float32)))
    return path


def run(folder, tmp_path, model, *options):
    """The report of a run, which is compared with dense."""
    out = tmp_path / "results"
    arguments = ["run", folder, "--model", model, "--compare-dense", "--out", out, *options]
    assert main([str(a) for a in arguments]) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert sum(1 for _ in VideoSource(out / "annotated.mp4")) == 5
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("options", [[], ["--task", "segmentation"]])
def test_a_network_of_maps_labels_pixels(folder, tmp_path, capsys, options):
    model = colours(tmp_path / "maps.onnx", free=bool(options), extra=bool(options))
    names = tmp_path / "names.txt"
    names.write_text("background\nred thing\n")
    options = [*options, "--pixels", "unit", "--truncation", "0", "--names", names]
    report = run(folder, tmp_path, model, *options)
    assert (report["task"], report["head"]) == ("segmentation", None)
    assert report["segmentation_agreement"] > 0.95
    assert 0 < report["mac_fraction"] < 1
    assert "agreement of label maps" in capsys.readouterr().out
    # The square is tinted, and nothing else is; frames are shown at five times their size.
    picture = iio.imread(tmp_path / "results" / "annotated.mp4", index=0)[:480].astype(int)
    assert np.abs(picture[5 * 42, 5 * 32] - 255 * RED).max() > 30
    assert np.abs(picture[5 * 85, 5 * 10] - 120).max() < 12


def test_a_network_of_scores_recognises_what_goes_on(folder, tmp_path, capsys):
    model = brightness(tmp_path / "scores.onnx")
    report = run(folder, tmp_path, model, "--pixels", "unit", "--threshold", "0")
    assert report["task"] == "classification"
    assert report["classification_agreement"] == 1
    assert "agreement of top classes" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "words"), [
    (["--task", "segmentation"], ["segmentation does not fit scores.onnx", "[1, 3]"]),
    (["--task", "nonsense"], ["--task must be one of", "segmentation", "'nonsense'"]),
    (["--task", "detection"], ["cannot tell the head of scores.onnx", "yolox"]),
    (["--task", "segmentation", "--head", "yolox"], ["--head is for detectors"]),
    (["--pixels", "nonsense"], ["--pixels must be one of", "imagenet"]),
    (["--pixels", "unit", "--head", "yolox"], ["--pixels", "a head knows its own"]),
    (["--names", "missing.txt"], ["missing.txt", "No such file"]),
    (["--names", "scores.onnx"], ["names of classes in scores.onnx"]),
])  # fmt: skip
def test_what_does_not_fit_is_refused(folder, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    brightness(tmp_path / "scores.onnx")
    refused(capsys, ["run", folder, "--model", "scores.onnx", *options], *words)
    assert not (tmp_path / "runs").exists()


def test_a_detector_is_no_other_task(folder, darknet, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    other = ["--model", darknet, "--task", "action-recognition"]
    refused(capsys, ["run", folder, *other, *out], "is a detector")
    refused(capsys, ["run", folder, "--pixels", "unit", *out], "--pixels", "shipped detector")
