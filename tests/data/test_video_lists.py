"""List files of the video data sets, tiny ones in the official form."""

import json

import numpy as np
import pytest

from dynvid.data.video_lists import (
    LabelledVideo,
    VideoList,
    clips_of,
    read_hmdb51,
    read_kinetics,
    read_something_something,
    read_ucf101,
    segment_frames,
)


def written(path, text):
    path.write_text(text)
    return path


def test_ucf101(tmp_path):
    classes = written(tmp_path / "classInd.txt", "1 ApplyEyeMakeup\n2 Archery\n10 Biking\r\n")
    train = written(
        tmp_path / "trainlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nBiking/v_Biking_g01_c02.avi 10\n",
    )
    found = read_ucf101(train, classes=classes)
    assert found.class_names == ("ApplyEyeMakeup", "Archery", "Biking")
    assert found.videos[1] == ("Biking/v_Biking_g01_c02.avi", 2)
    test = written(tmp_path / "testlist01.txt", "Archery/v_Archery_g01_c01.avi\n\n")
    assert read_ucf101(test, classes=classes).videos == (("Archery/v_Archery_g01_c01.avi", 1),)
    written(test, "Golf/v_Golf_g01_c01.avi\n")
    with pytest.raises(
        ValueError, match=r"testlist01.txt, entry 1: class must be one of 3.*'Golf'"
    ):
        read_ucf101(test, classes=classes)
    written(classes, "one ApplyEyeMakeup\n")
    with pytest.raises(ValueError, match=r"classInd\.txt: must be a whole number; got 'one'"):
        read_ucf101(train, classes=classes)


def test_hmdb51(tmp_path):
    written(tmp_path / "cartwheel_test_split1.txt", "a.avi 1 \nb.avi 2 \nc.avi 0 \n")
    written(tmp_path / "brush_hair_test_split1.txt", "d.avi 1 \n")
    written(tmp_path / "cartwheel_test_split2.txt", "a.avi 2 \n")
    train = read_hmdb51(tmp_path)
    assert train.class_names == ("brush_hair", "cartwheel")
    assert train.videos == (("brush_hair/d.avi", 0), ("cartwheel/a.avi", 1))
    assert read_hmdb51(tmp_path, part="test").videos == (("cartwheel/b.avi", 1),)
    assert len(read_hmdb51(tmp_path, split=2, part="test").videos) == 1
    with pytest.raises(ValueError, match="no list of split 3"):
        read_hmdb51(tmp_path, split=3)
    with pytest.raises(ValueError, match="part must be 'train' or 'test'; got 'val'"):
        read_hmdb51(tmp_path, part="val")
    written(tmp_path / "cartwheel_test_split2.txt", "a.avi 7\n")
    with pytest.raises(ValueError, match="line 1: must end in 0, 1 or 2"):
        read_hmdb51(tmp_path, split=2)


def test_kinetics(tmp_path):
    path = written(
        tmp_path / "train.csv",
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        '"passing American football (in game)",-0aXmhnbGc4,12,22,train,0\n'
        "archery,--1DO2V4K74,1,11,train,0\n",
    )
    found = read_kinetics(path)
    assert found.class_names == ("archery", "passing American football (in game)")
    assert found.videos[0] == ("-0aXmhnbGc4_000012_000022.mp4", 1)
    test = written(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\nabc,0,10,test\n")
    assert read_kinetics(test, class_names=found.class_names).videos[0].label == -1
    with pytest.raises(ValueError, match=r"columns youtube_id, .* got no youtube_id"):
        read_kinetics(written(tmp_path / "bad.csv", "a,b\n1,2\n"))
    with pytest.raises(ValueError, match="entry 2: class must be one of 1"):
        read_kinetics(path, class_names=("archery",))


def test_something_something(tmp_path):
    classes = written(tmp_path / "labels.csv", "Holding something\nTurning something upside down\n")
    path = written(tmp_path / "train.csv", "100218;Turning something upside down\n24413;\n")
    found = read_something_something(path, classes=classes)
    assert found.videos == (("100218", 1), ("24413", -1))
    classes = written(
        tmp_path / "labels.json", json.dumps({"Holding something": "1", "Moving something up": "0"})
    )
    entries = [
        {"id": "78687", "label": "holding a cup", "template": "Holding [something]",
         "placeholders": ["a cup"]},
        {"id": "5"},
    ]  # fmt: skip
    path = written(tmp_path / "train.json", json.dumps(entries))
    found = read_something_something(path, classes=classes)
    assert found == VideoList(
        (("78687", 1), ("5", -1)), ("Moving something up", "Holding something")
    )
    with pytest.raises(ValueError, match=r'entries must be objects with "id"'):
        read_something_something(written(path, "[3]"), classes=classes)
    with pytest.raises(ValueError, match="must be a JSON list; got dict"):
        read_something_something(written(path, "{}"), classes=classes)
    with pytest.raises(ValueError, match="must be JSON"):
        read_something_something(written(path, "{"), classes=classes)


def test_segments_have_a_frame_each():
    assert segment_frames(16, 16).tolist() == list(range(16))
    for seed in range(5):
        drawn = segment_frames(100, 8, key=seed)
        assert (drawn // 12.5 == np.arange(8)).all() or (np.diff(drawn) > 0).all()
        assert drawn.min() >= 0
        assert drawn.max() < 100
    with pytest.raises(ValueError, match="at least 16 frames; got 15"):
        segment_frames(15, 16)


def test_clips_feed_grain():
    grain = pytest.importorskip("grain", reason="needs grain, of the extra train")
    videos = VideoList(tuple(LabelledVideo(str(i), i) for i in range(6)), ())

    def read(name):
        return np.full((20, 8, 10, 3), int(name), np.uint8)

    data = grain.MapDataset.source(clips_of(videos, read, frames=4, size=7, seed=0))
    batch = data.seed(1).shuffle().repeat().batch(3)[0]
    clips, labels = batch
    assert clips.shape == (3, 4, 7, 7, 3)
    np.testing.assert_array_equal(clips[:, 0, 0, 0, 0], labels)
