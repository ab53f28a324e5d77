"""`dynvid run --system dynamic-inference`: what it runs on, what it writes, what it refuses."""

import importlib
import json

import imageio.v3 as iio
import numpy as np
import pytest

from dynvid.cli import main
from dynvid.video.reader import VideoSource
from tests.cli.helpers import FILES, moving_square, refused
from tests.cli.test_tasks import brightness, colours

common = importlib.import_module("dynvid.cli.common")

SYSTEM = ["--system", "dynamic-inference"]


def report_of(source, tmp_path, *options):
    out = tmp_path / "results"
    arguments = ["run", *([] if source is None else [source]), *SYSTEM, "--out", out, *options]
    assert main([str(a) for a in arguments]) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    return json.loads((out / "report.json").read_text())


def test_without_arguments_it_tells_a_synthetic_action(tmp_path, capsys):
    report = report_of(None, tmp_path)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "shipped action network (action-recognition) by dynamic-inference" in printed.out
    assert "against full inference" in printed.out
    assert (report["source"], report["class"]) == ("synthetic_action", "moves left")
    at = report["checkpoint"]
    assert at < report["checkpoints"] == 6  # it is sure before the end, and stops
    assert report["confidences"][at - 1] >= report["threshold"] == 0.9
    assert report["confidences"][at:] == [None] * (6 - at)
    assert report["frames"] in (8, 16)
    assert report["saved"] == pytest.approx(1 - report["macs"] / report["full_macs"])
    video = list(VideoSource(tmp_path / "results" / "annotated.mp4"))
    assert len(video) == report["frames"]


def test_never_sure_is_full_inference(tmp_path):
    report = report_of(None, tmp_path, "--threshold", 1, "--set", "measure=margin")
    assert (report["checkpoint"], report["frames"], report["saved"]) == (6, 16, 0)


def test_a_network_of_frames_stops_looking_early(tmp_path):
    """Any network that scores frames: their scores are averaged, until they suffice."""
    model = brightness(tmp_path / "scores.onnx")
    folder = tmp_path / "clip"
    folder.mkdir()
    for t, frame in enumerate(moving_square(20)):
        iio.imwrite(folder / f"{t:02}.png", frame)
    given = ["--model", model, "--pixels", "unit", "--set", "length=4", "groups=4"]
    full = report_of(folder, tmp_path, *given, "--threshold", 1)
    assert (full["frames"], full["checkpoint"], full["checkpoints"]) == (4, 4, 4)
    sure = min(full["confidences"])
    early = report_of(folder, tmp_path, *given, "--threshold", sure)
    assert (early["frames"], early["checkpoint"]) == (1, 1)


def test_a_stream_goes_on_with_the_next_clip(tmp_path, monkeypatch):
    given = ["--set", "clip=stream", "length=4", "--threshold", 0]
    report = report_of(None, tmp_path, *given)
    assert report["frames"] == 16
    assert report["checkpoints"] == 12
    assert report["scene_similarity"] == pytest.approx(12 / 15)  # one of four frames is looked at
    series = report["per_frame"]["mac_fraction"]
    assert [x > 0 for x in series[1:]] == [t % 4 == 0 for t in range(1, 16)]


@pytest.mark.parametrize(("options", "words"), [
    (["--max-frames", 9], ["a clip must have at least 16 frames; got 9"]),
    (["--threshold", 2], ["threshold must be a number between 0 and 1"]),
    (["--set", "threshold=[0.5,0.5]"], ["one for each of 6 checkpoints; got shape [2]"]),
    (["--set", "groups=3"], ["groups must divide the number of frames, 16; got 3"]),
    (["--set", "scheme=all"], ["scheme must be 'joint', 'depth' or 'input'", "'all'"]),
    (["--set", "measure=sure"], ["measure must be 'max_softmax', 'margin' or 'entropy'"]),
    (["--set", "tempo=2"], ["dynamic-inference has no option tempo; it has threshold, clip"]),
    (["--task", "detection"], ["--system dynamic-inference is for action-recognition"]),
    (["--compare-dense"], ["--compare-dense is for systems with a result a frame"]),
    (["--model", "maps.onnx"], ["action-recognition does not fit maps.onnx"]),
])  # fmt: skip
def test_what_cannot_be_run_is_refused(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    colours(tmp_path / "maps.onnx", free=True)
    refused(capsys, ["run", *SYSTEM, *options], *words)
    assert not (tmp_path / "runs").exists()


def test_an_unreadable_clip_is_refused(tmp_path, capsys):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"not a video" * 100)
    refused(capsys, ["run", path, *SYSTEM, "--out", tmp_path / "out"], "clip.mp4")
    iio.imwrite(tmp_path / "one.png", np.zeros((32, 32, 3), np.uint8))
    arguments = ["run", tmp_path / "one.png", *SYSTEM, "--out", tmp_path / "out"]
    refused(capsys, arguments, "one.png", "at least 16 frames; got 1")
