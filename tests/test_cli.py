"""The command line, run in this process on small inputs."""

import json
import math
import pathlib
import re

import imageio.v3 as iio
import numpy as np
import pytest

import dynvid.__main__
import dynvid.cli
from dynvid.cli import main
from dynvid.runner import FrameResult, Measures, summarize
from dynvid.video.reader import VideoSource
from dynvid.video.writer import VideoWriter

FILES = ["annotated.mp4", "report.json", "report.png"]
SIDE = 96


def moving_square(count: int, *, side: int = SIDE) -> list[np.ndarray]:
    """Still grey frames over which a striped square moves two pixels a frame."""
    frames = []
    for t in range(count):
        frame = np.full((side, side, 3), 120, np.uint8)
        frame[30:54, 20 + 2 * t : 44 + 2 * t] = (200, 80, 60)
        frame[30:54:6, 20 + 2 * t : 44 + 2 * t] = (170, 60, 50)
        frames.append(frame)
    return frames


@pytest.fixture
def folder(tmp_path):
    """A folder of five images."""
    images = tmp_path / "street"
    images.mkdir()
    for t, frame in enumerate(moving_square(5)):
        iio.imwrite(images / f"{t}.png", frame)
    return images


@pytest.fixture
def no_network(monkeypatch):
    """Puts a stand-in in the network's place, for tests of what is around it."""

    def detect(detector, frames, **options):
        for t, frame in enumerate(frames):
            measures = Measures(1.0 if t == 0 else 0.25, *[math.nan] * 6)
            nothing = np.zeros(0, np.int32)
            yield FrameResult(
                frame, frame[..., 0] > 0, np.zeros((0, 4)), nothing, nothing, measures
            )

    monkeypatch.setattr(dynvid.cli, "detect_video", detect)


def refused(capsys, arguments, *words):
    """Asserts that a command says in one line why it cannot run."""
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("dynvid: error: ")
    for word in words:
        assert word in printed.err
    assert "Traceback" not in printed.err + printed.out


def test_run_writes_video_picture_and_report(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "results"
    assert main(["run", str(folder), "--compare-dense", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
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
    assert (report["threshold"], report["truncation"]) == (15, 0.5)
    assert not report["interrupted"]
    series = report["per_frame"]
    assert series["mac_fraction"][0] == 1
    assert series["seconds"][0] is None
    assert np.mean(series["mac_fraction"][1:]) == pytest.approx(report["mac_fraction"])

    video = VideoSource(out / "annotated.mp4")
    assert sum(1 for _ in video) == 5
    assert iio.imread(out / "report.png").shape[0] > 300


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
    assert main(["run", str(folder), "--threshold", "81", "--out", str(out)]) == 0
    assert json.loads((out / "report.json").read_text())["mac_fraction"] == 0


def test_default_is_the_synthetic_scene(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--max-frames", "3"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs" / "synthetic").iterdir()) == FILES
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
    assert sorted(path.name for path in out.iterdir()) == FILES


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
def test_interrupt_keeps_what_was_done(folder, tmp_path, monkeypatch):
    annotate = dynvid.cli.annotate_frame
    calls = []

    def interrupted(*arguments, **options):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return annotate(*arguments, **options)

    monkeypatch.setattr(dynvid.cli, "annotate_frame", interrupted)
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

    monkeypatch.setattr(dynvid.cli, "annotate_frame", interrupted)
    assert main(["run", str(folder), "--out", str(tmp_path / "a" / "b")]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("no_network")
def test_frames_that_change_size_leave_nothing(folder, tmp_path, capsys):
    iio.imwrite(folder / "3.png", np.zeros((64, 80, 3), np.uint8))
    out = tmp_path / "a" / "b"
    refused(capsys, ["run", folder, "--out", out], "frame 3 is 80x64", "96x96")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["street"]


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
        (["street", "--threshold", "256"], ["--threshold", "256"]),
        (["street", "--threshold", "nan"], ["--threshold", "nan"]),
        (["street", "--truncation", "-0.5"], ["--truncation", "-0.5"]),
        (["street", "--truncation", "inf"], ["--truncation", "inf"]),
        (["street", "--max-frames", "0"], ["--max-frames", "0"]),
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


def test_unknown_options_are_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["run", "--nonsense"])
    assert exit_.value.code == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "run",
            "--model --head --threshold --truncation --max-frames --compare-dense --out SOURCE",
        ),
        ("explain", "--model --head --size"),
        (
            "encode",
            "--levels --key-levels --group-of-pictures --block --dead-zone --key-dead-zone --stage "
            "--calibrate --max-frames",
        ),
    ],
)
def test_help_names_every_option_and_gives_an_example(capsys, command, options):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for option in options.split():
        assert option in text
    assert f"\ndynvid {command} " in text
    assert text.count("(default: ") == len(options.split())


def test_explain_prints_every_operation(capsys):
    assert main(["explain", "--size", "64x48"]) == 0
    text = capsys.readouterr().out
    assert text.count("conv_general_dilated") == 6
    assert "1x24x32x32" in text
    assert "conv_6" in text
    assert "incremental" in text


@pytest.mark.parametrize("size", ["64", "0x48", "64x48x3", "axb", "-64x48"])
def test_explain_refuses_a_bad_size(capsys, size):
    refused(capsys, ["explain", f"--size={size}"], "--size", size)


def test_summary_leaves_out_the_first_frame_and_takes_medians():
    nan = math.nan
    first = Measures(1.0, *[nan] * 6)
    rest = [
        Measures(0.1, 0.9, 0.01, 0.04, 0.5, 8.0, 1.0),
        Measures(0.2, 0.8, 0.02, 0.05, 0.1, 9.0, 0.5),
        Measures(0.6, 0.7, 0.90, 0.99, 0.2, 7.0, 0.0),
    ]
    report = summarize([first, *rest])
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


def test_module_runs_as_the_command():
    """`python -m dynvid` and the console script are the same function."""
    assert dynvid.__main__.main is main


def readme(pattern: str) -> list[str]:
    text = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    return re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE)


def test_readme_examples_run():
    """The Python blocks of README are what a newcomer pastes first, one after the other."""
    names: dict = {}
    for block in readme(r"^```python\n(.*?)^```"):
        exec(compile(block, "README.md", "exec"), names)


def test_readme_first_block_is_two_commands():
    lines = [
        line
        for line in readme(r"^```sh\n(.*?)^```")[0].splitlines()
        if line and not line.startswith("#")
    ]
    assert len(lines) == 2
    assert lines[0].endswith("dynvid run")
    assert "pytest" in lines[1]


# ---- encode, decode, bitstream

CFG = """[net]
width=64
height=64
channels=3

[convolutional]
filters=4
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=18
size=1
stride=1
pad=0
activation=linear

[yolo]
mask=0,1,2
anchors=8,8, 16,16, 32,32
classes=1
num=3
"""


@pytest.fixture
def darknet(tmp_path):
    """A small Darknet network with random weights."""
    path = tmp_path / "small.cfg"
    path.write_text(CFG)
    count = (3 * 3 * 3 * 4 + 4) + (4 * 18 + 18)
    weights = np.random.default_rng(0).normal(0, 0.3, count).astype("<f4")
    header = np.array([0, 2, 0], "<i4").tobytes() + np.zeros(1, "<i8").tobytes()
    path.with_suffix(".weights").write_bytes(header + weights.tobytes())
    return path


@pytest.fixture
def encoded(folder, darknet, tmp_path, capsys):
    out = tmp_path / "street.ifm"
    arguments = ["encode", folder, "--model", darknet, "--at", "layer_0", "--out", out]
    options = ["--levels", "33", "--group-of-pictures", "3"]
    assert main([*map(str, arguments), *options]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "5 frames of layer_0, 1x32x32x4" in printed.out
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    return out


def test_features_are_encoded_and_decoded(encoded, folder, darknet, capsys):
    assert main(["decode", str(encoded)]) == 0
    assert "5 frames of 1x32x32x4; in" in capsys.readouterr().out
    decoded = np.load(encoded.with_suffix(".npy"))
    assert decoded.shape == (5, 1, 32, 32, 4)
    assert decoded.dtype == np.float32
    detector = dynvid.cli.load_detector(darknet, None, frame_size=(SIDE, SIDE))
    front = dynvid.split(detector.on_frames((SIDE, SIDE)), at="layer_0").front
    for t, frame in enumerate(moving_square(5)):
        feature = np.asarray(front(detector.params, frame[None])["layer_0"])
        # Percentiles clip a few values in a thousand; all others are within half a step.
        low, high = decoded.min(), decoded.max()
        error = np.abs(np.clip(feature, low, high) - decoded[t])
        assert error.max() <= (high - low) / 32 * 1.01


def test_a_bitstream_is_laid_open(encoded, capsys):
    assert main(["bitstream", str(encoded)]) == 0
    printed = capsys.readouterr().out
    assert "1 streams of 32x32x4, float32" in printed
    assert "33 of residuals, 33 of key frames" in printed
    assert "what is coded   values" in printed
    assert printed.count("│ key ") == 2  # rows of the table: frames 0 and 3
    assert f"│ {8 * encoded.stat().st_size} │ 100.0% │" in re.sub(r" +", " ", printed)


def test_blocks_are_encoded_shown_and_decoded(encoded, folder, darknet, tmp_path, capsys):
    sizes = {}
    for name, options in (
        ("plain", []),
        ("zones", ["--dead-zone", "1.0", "--key-dead-zone", "2.0"]),
    ):
        out = tmp_path / f"{name}.ifm"
        arguments = ["encode", folder, "--model", darknet, "--at", "layer_0", "--out", out]
        arguments += ["--levels", "33", "--group-of-pictures", "3", "--block", "4", *options]
        assert main([*map(str, arguments)]) == 0
        assert capsys.readouterr().err == ""
        sizes[name] = out.stat().st_size
        assert main(["bitstream", str(out)]) == 0
        printed = capsys.readouterr().out
        assert "1 streams of 32x32x4, float32" in printed
        assert "cosine transform of blocks of 4x4" in printed
        assert "1/1 of what coefficients span" in printed
        assert main(["decode", str(out)]) == 0
        assert "5 frames of 1x32x32x4; in" in capsys.readouterr().out
    assert sizes["zones"] < sizes["plain"] < encoded.stat().st_size
    assert main(["decode", str(encoded)]) == 0
    values, blocks = (np.load(tmp_path / name) for name in ("street.npy", "plain.npy"))
    # Bounds are tested with the codec; a block in the wrong place or order would be off by this.
    assert np.sqrt(np.mean((values - blocks) ** 2)) < 0.2 * np.std(values)


def test_a_damaged_bitstream_is_refused_or_skipped(encoded, capsys):
    data = bytearray(encoded.read_bytes())
    data[-40] ^= 1  # in the last frame
    encoded.write_bytes(bytes(data))
    refused(capsys, ["bitstream", encoded], "packet 4 is damaged")
    refused(capsys, ["decode", encoded], "packet 4 is damaged")
    assert not encoded.with_suffix(".npy").exists()
    assert main(["decode", str(encoded), "--skip-damaged"]) == 0
    assert len(np.load(encoded.with_suffix(".npy"))) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--at", "layer_7"], ["layer_7", "layer_0"]),
        (["--levels", "8"], ["levels must be odd"]),
        (["--block", "5"], ["--block must divide", "32 x 32 at layer_0", "got 5"]),
        (["--block", "17"], ["block must be of 1 .. 16; got 17"]),
        (["--block", "0"], ["block must be of 1 .. 16; got 0"]),
        (["--block", "4", "--key-levels", "8"], ["key_levels must be odd"]),
        (["--dead-zone", "0.4"], ["dead_zone must be 0.5 steps or more"]),
        (["--key-dead-zone", "nan"], ["key_dead_zone must be 0.5 steps or more"]),
        (["--calibrate", "0"], ["--calibrate must be at least 1"]),
        (["--out", "/nowhere/at/all.ifm"], ["there is no folder"]),
        (["--model", "missing.cfg"], ["no such file"]),
    ],
)
def test_what_cannot_be_encoded(folder, darknet, tmp_path, capsys, options, words):
    given = {"--model": str(darknet), "--at": "layer_0", "--out": str(tmp_path / "x.ifm")}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    refused(capsys, ["encode", folder, *(x for pair in given.items() for x in pair)], *words)
    assert not (tmp_path / "x.ifm").exists()


def test_what_is_no_bitstream(tmp_path, capsys):
    refused(capsys, ["bitstream", tmp_path / "missing.ifm"], "missing.ifm")
    other = tmp_path / "video.mp4"
    other.write_bytes(bytes(1000))
    refused(capsys, ["decode", other], "no file of coded feature maps")
