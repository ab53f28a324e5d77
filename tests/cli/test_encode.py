"""`dynvid encode`, `decode` and `bitstream`, one after the other."""

import re

import numpy as np
import pytest

import dynvid
from dynvid.cli import main
from dynvid.models.zoo import load_model
from tests.cli.helpers import SIDE, moving_square, refused


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
    model = load_model(darknet, frame_size=(SIDE, SIDE))
    front = dynvid.split(model.on_frames, at="layer_0").front
    for t, frame in enumerate(moving_square(5)):
        feature = np.asarray(front(model.params, frame[None])["layer_0"])
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
