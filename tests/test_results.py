"""A detector on a video in three lines."""

import sys
import types

import imageio.v3 as iio
import numpy as np
import pytest

import dynvid
from dynvid.errors import UsageError
from dynvid.models.synthetic_detector import CLASS_NAMES
from tests.cli.helpers import SIDE, moving_square


@pytest.fixture
def folder(tmp_path):
    """A folder of five images."""
    for t, frame in enumerate(moving_square(5)):
        iio.imwrite(tmp_path / f"{t}.png", frame)
    return tmp_path


def test_a_video_is_detected_in_frame_by_frame(folder, monkeypatch):
    results = list(dynvid.detect(folder, conf=0.1, max_frames=3))
    assert [result.index for result in results] == [0, 1, 2]
    assert results[0].work == 1
    assert results[1].work < 1
    for result in results:
        assert result.frame.shape == (SIDE, SIDE, 3)
        assert len(result.boxes) == len(result.scores) == len(result.names)
        assert set(result.names) <= set(CLASS_NAMES)
    made = types.SimpleNamespace(Detections=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "supervision", made)
    fields = results[0].to_supervision()
    assert fields["xyxy"].shape == (len(results[0].boxes), 4)
    assert fields["data"]["class_name"].tolist() == results[0].names


def test_what_cannot_be_detected_is_told_at_once(folder, monkeypatch):
    with pytest.raises(UsageError, match="no such file"):
        dynvid.detect(folder / "missing.mp4")
    with pytest.raises(UsageError, match="classes must be of disc"):
        dynvid.detect(folder, classes=["lorry"])
    empty = np.zeros(0)
    monkeypatch.setitem(sys.modules, "supervision", None)
    result = dynvid.Result(empty, 0, empty, empty, empty, [], 1.0)
    with pytest.raises(ImportError, match="pip install supervision"):
        result.to_supervision()
