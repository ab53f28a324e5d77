"""`dynvid tune`: what it writes, runs, and agrees as well as it says."""

import json
import shlex
import warnings

import numpy as np
import pytest

import dynvid
from dynvid.cli import main
from dynvid.incremental import TuningWarning
from dynvid.systems.registry import SYSTEMS
from tests.cli.helpers import refused
from tests.weights.test_onnx import Graph


@pytest.fixture
def model(tmp_path):
    """Two convolutions that label pixels, with weights that let noise through."""
    rng = np.random.default_rng(2)
    graph = Graph(shape=(1, 3, None, None))
    x = graph.node("Conv", "x", rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
                   np.zeros(4, np.float32), strides=[2, 2], pads=[1, 1, 1, 1])  # fmt: skip
    x = graph.node("Relu", x)
    x = graph.node("Conv", x, rng.normal(0, 0.3, (3, 4, 3, 3)).astype(np.float32),
                   np.zeros(3, np.float32), pads=[1, 1, 1, 1])  # fmt: skip
    path = tmp_path / "labels.onnx"
    graph.save(path, x)
    return path


def test_what_is_tuned_runs_and_agrees_as_well(folder, model, tmp_path, capsys):
    out = tmp_path / "tuned.json"
    arguments = ["tune", folder, "--model", model, "--out", out, "--target", "0.95"]
    assert main([str(a) for a in [*arguments, "--trials", "24", "--frames", "5"]]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1  # five frames are few
    assert "something happens in" in printed.err
    assert "agreement of label maps" in printed.out
    settings = json.loads(out.read_text())
    assert settings["system"] == "incremental"
    assert (settings["model"], settings["frame_size"]) == ("labels.onnx", [96, 96])
    assert settings["task"] == "segmentation"
    assert settings["dynvid"] == dynvid.__version__
    tuning = settings["tuning"]
    assert tuning["target"] == 0.95 <= tuning["agreement_at_least"] <= tuning["agreement"] <= 1
    assert tuning["agreement_of_first_output"] < tuning["agreement"]
    assert 0 < tuning["mac_fraction"] < 1
    assert tuning["frames"] == 5
    assert 0 < tuning["trials"] <= 24
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "labels.onnx", "street", "tuned.json",
    ]  # fmt: skip

    command = shlex.split(printed.out.strip().splitlines()[-1])
    assert command[:2] == ["dynvid", "run"]
    run = [*command[1:], "--compare-dense", "--out", str(tmp_path / "out")]
    assert main(run) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["truncation"] == settings["options"]["truncation"]
    # The frames weigh alike here, as much happens from one to the next.
    assert report["segmentation_agreement"] == pytest.approx(tuning["agreement"], abs=0.03)


def test_the_shipped_detector_is_tuned_on_its_boxes(monkeypatch, tmp_path, capsys):
    """By the F1 score of what is drawn, not by the error of raw outputs."""
    asked = {}

    def stand_in(fn, params, frames, **options):
        def agreement(found):
            results = (options["decode"](params, outputs) for outputs in (expected, found))
            return options["metric"](*results).score.item()

        expected = fn(params, frames[0])
        asked.update(options, same=agreement(expected))
        # Far from all boxes nothing is drawn, whatever it does to the error of raw outputs.
        quiet = np.where(expected.heatmap < -3, expected.heatmap - 50, expected.heatmap)
        asked["quiet"] = agreement(expected._replace(heatmap=quiet))
        asked["none"] = agreement(expected._replace(heatmap=expected.heatmap * 0 - 9))
        warnings.warn("little happens", TuningWarning, stacklevel=2)
        return dynvid.Tuning(10.0, {"conv_1": 0.5}, 0.93, 0.91, 0.2, 0.2, ())

    monkeypatch.setattr(dynvid, "tune", stand_in)
    out = tmp_path / "tuned.json"
    assert main(["tune", "--frames", "2", "--seed", "3", "--out", str(out)]) == 0
    assert (asked["same"], asked["quiet"], asked["none"]) == (1, 1, 0)
    assert (asked["target"], asked["seed"], asked["progress"]) == (0.9, 3, False)
    usual = SYSTEMS["incremental"].settings({})
    tuned = {"threshold": 10.0, "truncation": {"conv_1": 0.5}}
    assert json.loads(out.read_text())["options"] == usual | tuned
    printed = capsys.readouterr()
    assert "dynvid run --settings" in printed.out
    assert printed.err == "dynvid: warning: little happens\n"


def test_an_interrupt_writes_nothing(folder, model, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(dynvid, "tune", interrupted)
    out = tmp_path / "tuned.json"
    out.write_text("old")
    assert main(["tune", str(folder), "--model", str(model), "--out", str(out)]) == 130
    printed = capsys.readouterr().err
    assert printed == "dynvid: interrupted; nothing was written\n"
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("options", "words"), [
    (["--target", "1.1"], ["--target must be between 0 and 1; got 1.1"]),
    (["--target", "nan"], ["--target"]),
    (["--frames", "1"], ["--frames must be at least 2; got 1"]),
    (["--trials", "0"], ["--trials"]),
    (["--seed", "-1"], ["--seed"]),
    (["--out", "/nowhere/at/all.json"], ["there is no folder"]),
    (["--out", "."], ["is a folder"]),
    (["--model", "missing.onnx"], ["no such file"]),
])  # fmt: skip
def test_what_cannot_be_tuned_is_refused(folder, model, tmp_path, capsys, options, words):
    given = {"--model": str(model), "--out": str(tmp_path / "x.json")}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    refused(capsys, ["tune", folder, *(x for pair in given.items() for x in pair)], *words)
    assert not (tmp_path / "x.json").exists()


def test_one_image_is_too_little(folder, model, tmp_path, capsys):
    arguments = ["tune", folder / "0.png", "--model", model, "--out", tmp_path / "x.json"]
    refused(capsys, arguments, "has 1 frame; tuning takes at least 2")
