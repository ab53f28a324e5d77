"""Settings files: what is in them is used, and what cannot be is refused in a line."""

import json
import shutil

import pytest

from dynvid.cli import main
from tests.cli.helpers import refused
from tests.cli.test_tasks import brightness, colours


@pytest.fixture
def model(tmp_path):
    return brightness(tmp_path / "scores.onnx")


@pytest.fixture
def report(folder, tmp_path, model):
    """Runs with a settings file and returns the report."""

    def run(settings, *options):
        path = tmp_path / "settings.json"
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        out = tmp_path / "out"
        arguments = ["run", folder, "--model", model, "--settings", path, "--out", out, *options]
        assert main([str(a) for a in arguments]) == 0
        return json.loads((out / "report.json").read_text())

    return run


def test_options_of_a_file_are_used_and_flags_win(report):
    options = {"threshold": 33, "truncation": 0, "cell": 2}
    found = report({"options": options})
    assert (found["system"], found["threshold"], found["truncation"]) == ("incremental", 33, 0)
    assert found["options"].items() >= (options | {"reference": "last_used"}).items()
    found = report({"options": options}, "--threshold", "44")
    assert (found["threshold"], found["options"]["cell"]) == (44, 2)


def test_a_file_says_which_system(report, capsys):
    found = report({"system": "dense"})
    assert (found["system"], found["mac_fraction"]) == ("dense", 1)
    assert "threshold" not in found
    assert "by dense" in capsys.readouterr().out
    found = report({"system": "dyncnn", "options": {"partition": "pixel", "groups": []}})
    assert found["options"]["partition"] == "pixel"
    assert found["threshold"] == 20
    found = report("{}", "--system", "dyncnn", "--set", "partition=pixel", "groups=[]")
    assert found["options"]["groups"] == []
    assert found["system"] == "dyncnn"


def test_other_frames_are_a_warning(report, capsys):
    found = report({"frame_size": [480, 640]})
    assert capsys.readouterr().err.startswith("dynvid: warning: ")
    assert "tuned on frames of 640x480, these are 96x96" in found["warnings"][0]


@pytest.mark.parametrize(("text", "words"), [
    ("nonsense", ["cannot read the settings", "Expecting value"]),
    ("[" * 100_000, ["cannot read the settings"]),
    ("[1]", ["expected an object"]),
    ('{"option": {}}', ["unknown keys option", "options"]),
    ('{"options": []}', ["options must be an object; got []"]),
    ('{"system": "nonsense"}', ["system must be one of incremental", '"nonsense"']),
    ('{"system": ["incremental"]}', ["system must be one of"]),
    ('{"frame_size": [1]}', ["frame_size must be [height, width]"]),
    ('{"options": {"treshold": 1}}', ["has no option treshold; it has threshold, truncation"]),
    ('{"options": {"threshold": NaN}}', ["NaN is not a number"]),
    ('{"options": {"threshold": Infinity}}', ["Infinity is not a number"]),
    ('{"options": {"threshold": -1}}', ["threshold must be a number between 0 and 255", "-1"]),
    ('{"options": {"threshold": "1"}}', ["threshold must be", "'1'"]),
    ('{"options": {"threshold": true}}', ["threshold must be", "True"]),
    ('{"options": {"truncation": 1e999}}', ["truncation must be a number of at least 0"]),
    ('{"options": {"truncation": {"conv_1": -1}}}', ["truncation must be"]),
    ('{"options": {"truncation": {"conv_99": 1}}}', ["layers", "conv_99"]),
    ('{"options": {"reference": "next"}}', ["reference must be 'last_used' or 'previous'"]),
    ('{"options": {"cell": 0}}', ["cell must be a positive number of pixels or null; got 0"]),
    ('{"system": "dyncnn", "options": {"truncation": 1}}', ["dyncnn has no option truncation"]),
    ('{"system": "dyncnn", "options": {"groups": [7]}}', ["--system dyncnn", "group"]),
    ('{"system": "dense", "options": {"threshold": 1}}', ["dense has no option threshold"]),
    ('{"model": "other.onnx"}', ["was made for other.onnx; got scores.onnx"]),
    ('{"model": "scores.onnx", "model_sha256": "00"}', ["was made for other weights"]),
    ('{"task": "segmentation"}', ["segmentation does not fit"]),
])  # fmt: skip
def test_what_cannot_be_used_is_refused(folder, tmp_path, model, capsys, text, words):
    path, out = tmp_path / "settings.json", tmp_path / "deep" / "out"
    path.write_text(text)
    refused(capsys, ["run", folder, "--model", model, "--settings", path, "--out", out], *words)
    assert not out.parent.exists()


def test_flags_that_contradict_are_refused(folder, tmp_path, model, capsys):
    path = tmp_path / "settings.json"
    path.write_text('{"system": "dyncnn"}')
    start = ["run", folder, "--model", model, "--out", tmp_path / "out"]
    refused(capsys, [*start, "--settings", path, "--system", "dense"], "of dyncnn", "dense")
    refused(capsys, [*start, "--settings", path, "--truncation", "1"], "dyncnn", "truncation")
    refused(capsys, [*start, "--set", "cell"], "--set must be NAME=VALUE; got 'cell'")
    refused(capsys, [*start, "--set", "cell=-1"], "cell must be a positive number")
    refused(capsys, [*start, "--set", "threshold=NaN"], "threshold must be", "'NaN'")
    refused(capsys, [*start, "--system", "ifmdc"], "at must be the name of a feature map")
    refused(capsys, [*start, "--system", "ifmdc", "--set", "at=nowhere"], "nowhere")
    refused(capsys, [*start, "--system", "nonsense"], "--system", "incremental", "'nonsense'")
    refused(capsys, [*start, "--settings", tmp_path / "missing.json"], "missing.json")
    refused(capsys, [*start, "--settings", tmp_path], "cannot read the settings")


def test_the_same_weights_are_known_by_any_name(tmp_path, folder, capsys):
    model = colours(tmp_path / "maps.onnx", free=True)
    assert main(["tune", str(folder), "--model", str(model), "--pixels", "unit", "--trials", "1",
                 "--out", str(tmp_path / "tuned.json")]) == 0  # fmt: skip
    other = shutil.copy(model, tmp_path / "renamed.onnx")
    text = (tmp_path / "tuned.json").read_text()
    (tmp_path / "settings.json").write_text(text)
    out = tmp_path / "out"
    arguments = ["run", folder, "--model", other, "--pixels", "unit", "--max-frames", "2"]
    arguments += ["--settings", tmp_path / "settings.json", "--out", out]
    assert main([str(a) for a in arguments]) == 0
