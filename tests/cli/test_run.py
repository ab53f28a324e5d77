"""`dynvid run`, in this process on small inputs."""

import importlib
import json
import math
import signal

import imageio.v3 as iio
import jax
import numpy as np
import pytest

import dynvid
from dynvid.cli import main
from dynvid.data.synthetic import render, synthetic_scene
from dynvid.measures import Measures
from dynvid.ops.boxes import Detections
from dynvid.runner import FrameResult
from dynvid.video.reader import VideoSource
from dynvid.video.writer import VideoWriter
from tests.cli.helpers import DETECTED, SIDE, refused

run = importlib.import_module("dynvid.cli.run")


@pytest.fixture
def no_network(monkeypatch):
    """Puts a stand-in in the network's place, for tests of what is around it."""

    def detect(task, video_function, frames, **options):
        for t, frame in enumerate(frames):
            measures = Measures(1.0 if t == 0 else 0.25, *[math.nan] * 6)
            nothing = np.zeros(0, np.int32)
            found = Detections(np.zeros((0, 4)), nothing, nothing, nothing > 0)
            yield FrameResult(frame, frame[..., 0] > 0, found, measures)

    monkeypatch.setattr(run, "run_video", detect)


def test_run_writes_video_picture_and_report(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "results"
    assert main(["run", str(folder), "--compare-dense", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == DETECTED
    assert sorted(path.name for path in out.parent.iterdir()) == ["results"]
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "times as fast" in printed.out

    report = json.loads((out / "report.json").read_text())
    assert report["frames"] == 5
    assert 0 < report["mac_fraction"] < 1
    assert 0.9 < report["scene_similarity"] < 1
    assert report["seconds_per_frame"] > 0
    assert report["dense_seconds_per_frame"] > 0
    ratio = report["dense_seconds_per_frame"] / report["seconds_per_frame"]
    assert report["speedup"] == pytest.approx(ratio)
    assert report["fraction_of_ideal"] == pytest.approx(ratio * report["mac_fraction"])
    assert 0 <= report["max_abs_difference_at_reference"] < report["max_abs_output_at_reference"]
    assert 0 <= report["detection_agreement"] <= 1
    assert (report["threshold"], report["truncation"]) == (8, 0.5)
    assert not report["interrupted"]
    series = report["per_frame"]
    assert series["mac_fraction"][0] == 1
    assert series["seconds"][0] is None
    assert np.mean(series["mac_fraction"][1:]) == pytest.approx(report["mac_fraction"])

    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(5))
    for line in lines:
        assert len(line["boxes"]) == len(line["scores"]) == len(line["classes"])

    video = VideoSource(out / "annotated.mp4")
    assert sum(1 for _ in video) == 5
    assert iio.imread(out / "report.png").shape[0] > 300


def test_audits_say_what_was_promised_kept_and_spent(tmp_path, capsys):
    scene = synthetic_scene(jax.random.key(4), size=(SIDE, SIDE), objects=3)
    (tmp_path / "scene").mkdir()
    for t in range(5):
        iio.imwrite(tmp_path / "scene" / f"{t}.png", np.asarray(render(scene, t).frame))
    out = tmp_path / "audited"
    command = ["run", str(tmp_path / "scene"), "--audit", "2", "--out", str(out)]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "F1 against dense, same frame; asked for 0.9" in printed
    assert "of 2 audits in a row; 2 in all" in printed
    report = json.loads((out / "report.json").read_text())
    audit = report["audit"]
    assert (audit["every"], audit["target"], audit["audits"]) == (2, 0.9, 2)
    assert 0 <= audit["worst_window"] <= audit["agreement"] <= 1
    assert audit["mac_fraction"] == 0.5  # two of four steps
    series = report["per_frame"]
    assert [score is None for score in series["audit"]] == [True, True, False, True, False]
    least = min(x for x in series["factor"] if x is not None)
    assert audit["factor"]["least"] == pytest.approx(least)
    # The dense network on these frames is work too.
    assert all(series["mac_fraction"][t] >= 1 for t in (2, 4))
    assert iio.imread(out / "report.png").shape[0] > 900


def test_a_target_is_tuned_for_and_audited(folder, tmp_path, monkeypatch):
    asked = {}

    def stand_in(model, clip, **options):
        asked.update(options, frames=len(clip))
        return dynvid.Tuning(10.0, {}, 0.97, 0.96, 0.2, 0.3, ())

    monkeypatch.setattr(run, "tune_model", stand_in)
    out = tmp_path / "out"
    command = ["run", str(folder), "--target", "0.95", "--set", "settle=3", "--out", str(out)]
    assert main(command) == 0
    assert (asked["target"], asked["frames"], asked["options"]["settle"]) == (0.95, 5, 3)
    report = json.loads((out / "report.json").read_text())
    assert report["frames"] == 5
    assert (report["threshold"], report["truncation"], report["options"]["settle"]) == (10, {}, 3)
    assert report["tuning"]["target"] == 0.95
    assert report["tuning"]["agreement_at_least"] == 0.96
    assert "audit" not in report  # there are fewer frames than from one to the next


def test_without_truncation_and_threshold_outputs_are_dense_ones_on_the_reference(folder, tmp_path):
    out = tmp_path / "exact"
    options = ["--threshold", "0", "--truncation", "0", "--compare-dense", "--out", str(out)]
    assert main(["run", str(folder), *options]) == 0
    report = json.loads((out / "report.json").read_text())
    # Every output is a sum of products that cells and frame may add in another order: with the
    # longest sum (9 taps of 96 channels) and six layers, a relative error of 6 * 864 * 2**-24 at
    # most; the sums' terms are not much larger than the largest output.
    bound = 6 * 864 * 2**-24 * 10 * report["max_abs_output_at_reference"]
    assert report["max_abs_difference_at_reference"] <= bound
    assert report["detection_agreement"] == 1


def test_threshold_is_in_grey_levels(folder, tmp_path):
    """The square differs by 80 at most from what is beside it."""
    out = tmp_path / "blind"
    pixels = ["--set", "changes=pixels", "--set", "rotation=null"]
    assert main(["run", str(folder), "--threshold", "81", *pixels, "--out", str(out)]) == 0
    assert json.loads((out / "report.json").read_text())["mac_fraction"] == 0


def test_default_is_the_synthetic_scene(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--max-frames", "3"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs" / "synthetic").iterdir()) == DETECTED
    report = json.loads((tmp_path / "runs" / "synthetic" / "report.json").read_text())
    assert report["frames"] == 3
    assert 0 < report["mac_fraction"] < 0.5
    assert "speedup" not in report


@pytest.mark.usefixtures("no_network")
def test_results_of_an_earlier_run_are_replaced_and_other_files_kept(folder, tmp_path):
    out = tmp_path / "results"
    out.mkdir()
    (out / "report.json").write_text("old")
    (out / "notes.txt").write_text("mine")
    assert main(["run", str(folder), "--max-frames", "2", "--out", str(out)]) == 0
    assert json.loads((out / "report.json").read_text())["frames"] == 2
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("no_network")
def test_one_image_is_a_video_of_one_frame(folder, tmp_path):
    out = tmp_path / "one"
    assert main(["run", str(folder / "0.png"), "--compare-dense", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["frames"] == 1
    assert report["mac_fraction"] is None
    assert sorted(path.name for path in out.iterdir()) == DETECTED


def test_truncated_video_is_processed_as_far_as_it_decodes(tmp_path, capsys):
    whole = tmp_path / "whole.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    with VideoWriter(whole, fps=25) as writer:
        for t in range(30):
            writer.write(np.roll(noise, 3 * t, axis=1))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    out = tmp_path / "results"
    assert main(["run", str(cut), "--out", str(out)]) == 0
    errors = capsys.readouterr().err
    assert errors.startswith("dynvid: warning: ")
    assert errors.count("\n") == 1
    report = json.loads((out / "report.json").read_text())
    assert 0 < report["frames"] < 30
    assert "truncated" in report["warnings"][0]


@pytest.mark.usefixtures("no_network")
def test_what_is_written_can_be_chosen(folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--no-video", "--quiet", "--stride", "2", "--save", "mot", "csv", "coco"]
    assert main(["run", str(folder), *options, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "coco.json", "detections.csv", "detections.jsonl", "mot.txt", "report.json", "report.png",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 2, 4]
    assert json.loads((out / "coco.json").read_text()) == []
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.usefixtures("no_network")
def test_several_sources_get_a_folder_each(folder, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    with VideoWriter(videos / "door.mp4", fps=5) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
    (videos / "notes.txt").touch()
    out = tmp_path / "out"
    options = ["--no-video", "--out", str(out)]
    assert main(["run", str(folder), str(videos), str(folder), *options]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["door", "street_1", "street_2"]
    assert json.loads((out / "door" / "report.json").read_text())["frames"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--conf", "1.5"], ["conf must be between 0 and 1; got 1.5"]),
        (["--classes", "disc,lorry"], ["classes must be of disc", "got 'lorry'"]),
        (["--save", "xml"], ["--save must be of mot, coco, csv; got 'xml'"]),
        (["--size", "0x5"], ["--size must be WIDTHxHEIGHT"]),
        (["--stride", "0"], ["--stride must be at least 1"]),
        (["--limits", "-1"], ["--limits must be a number above 0"]),
        (["--task", "segmentation", "--conf", "0.5"], ["--conf is for detectors"]),
        (["--limits", "1e-6"], ["shipped detector on frames of 96x96", "where the limit is"]),
    ],
)
def test_wishes_that_cannot_be_met(folder, tmp_path, capsys, options, words):
    refused(capsys, ["run", folder, *options, "--out", tmp_path / "out"], *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_network")
def test_interrupt_keeps_what_was_done(folder, tmp_path, monkeypatch):
    annotate = run.annotate_frame
    calls = []

    def interrupted(*arguments, **options):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return annotate(*arguments, **options)

    monkeypatch.setattr(run, "annotate_frame", interrupted)
    out = tmp_path / "results"
    assert main(["run", str(folder), "--out", str(out)]) == 130
    report = json.loads((out / "report.json").read_text())
    assert report["interrupted"]
    assert report["frames"] == 3
    assert sum(1 for _ in VideoSource(out / "annotated.mp4")) == 3


@pytest.mark.usefixtures("no_network")
def test_interrupt_before_the_first_frame_leaves_nothing(folder, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "annotate_frame", interrupted)
    assert main(["run", str(folder), "--out", str(tmp_path / "a" / "b")]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("no_network")
def test_frames_before_one_of_another_size_are_kept(folder, tmp_path):
    iio.imwrite(folder / "3.png", np.zeros((64, 80, 3), np.uint8))
    assert main(["run", str(folder), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["frames"] == 3
    assert "frame 3 is 80x64 where those before are 96x96" in report["warnings"][0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("no_network")
def test_a_signal_while_a_frame_is_written_loses_nothing_of_it(
    number, folder, tmp_path, monkeypatch
):
    """Neither the packet that is written, nor, where a second one comes, what was done before."""
    write, plot = VideoWriter._encode, run.plot_report

    def interrupted(writer, picture):
        if picture is not None and picture.pts is None:
            signal.raise_signal(number)
        write(writer, picture)

    def again(*arguments, **options):
        signal.raise_signal(number)
        plot(*arguments, **options)

    monkeypatch.setattr(VideoWriter, "_encode", interrupted)
    monkeypatch.setattr(run, "plot_report", again)
    before = signal.getsignal(number)
    assert main(["run", str(folder), "--out", str(tmp_path / "out")]) == 130
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["interrupted"]
    assert report["frames"] == 1
    assert sum(1 for _ in VideoSource(tmp_path / "out" / "annotated.mp4")) == 1
    assert signal.getsignal(number) is before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "street"]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["missing.mp4"], ["missing.mp4", "no such file"]),
        (["text.mp4"], ["text.mp4"]),
        (["empty"], ["empty", "no images"]),
        (["street", "--model", "missing.onnx"], ["missing.onnx", "no such file"]),
        (["street", "--model", "text.mp4"], [".onnx", ".pt"]),
        (["street", "--model", "broken.onnx"], ["broken.onnx"]),
        (["street", "--model", "broken.pt"], ["broken.pt"]),
        (["street", "--head", "nonsense"], ["--head", "synthetic", "yolox", "nonsense"]),
        (["street", "--head", "yolox"], ["yolox", "shipped detector"]),
        (["street", "--head", "yolov5"], ["yolov5", "shipped detector"]),
        (["street", "--threshold", "-1"], ["--threshold", "-1"]),
        (["street", "--threshold", "256"], ["threshold", "between 0 and 255 grey levels", "256"]),
        (["street", "--threshold", "nan"], ["--threshold", "nan"]),
        (["street", "--truncation", "-0.5"], ["--truncation", "-0.5"]),
        (["street", "--truncation", "inf"], ["--truncation", "inf"]),
        (["street", "--max-frames", "0"], ["--max-frames", "0"]),
        (["street", "--target", "1"], ["--target must be between 0 and 0.99; got 1"]),
        (["street", "--audit", "0"], ["--audit must be at least 1; got 0"]),
        (["street", "--audit", "5", "--system", "dense"], ["--system incremental", "dense"]),
        (["street", "--target", "0.9", "--threshold", "9"], ["--target", "--threshold"]),
        (["street", "--out", "text.mp4"], ["text.mp4", "not a folder"]),
        (["street", "--out", "text.mp4/below"], ["text.mp4"]),
    ],
)
def test_what_cannot_be_run_is_refused(folder, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("text.mp4", "broken.onnx", "broken.pt"):
        (tmp_path / name).write_text("this is not it\n" * 9)
    before = sorted(tmp_path.rglob("*"))
    refused(capsys, ["run", *options], *words)
    assert sorted(tmp_path.rglob("*")) == before
