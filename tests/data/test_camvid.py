import numpy as np
import pytest
from PIL import Image

from dynvid.data.camvid import CLASS_NAMES, VOID, CamVid
from tests.data import data_path


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("test", "testannot"):
        (tmp_path / part).mkdir()
    for name in ("b_2", "a_10", "b_1"):
        write(tmp_path, "test", name, rng.integers(0, 256, (4, 6, 3), np.uint8))
        write(tmp_path, "testannot", name, rng.integers(0, 12, (4, 6), np.uint8))
    (tmp_path / "test" / "Thumbs.db").write_text("no frame")
    return tmp_path


def write(folder, part, name, pixels):
    Image.fromarray(pixels).save(folder / part / f"{name}.png")


def test_frames_come_with_their_labels_in_order(folder):
    found = list(CamVid(folder, split="test"))
    assert [f.name for f in found] == ["a_10", "b_1", "b_2"]
    for item in found:
        frame = np.asarray(Image.open(folder / "test" / f"{item.name}.png"))
        np.testing.assert_array_equal(item.frame, frame)
        labels = np.asarray(Image.open(folder / "testannot" / f"{item.name}.png"))
        np.testing.assert_array_equal(item.labels, labels)
    assert len(CamVid(folder, split="test")) == 3
    assert CamVid(folder, split="test")[-1].name == "b_2"
    with pytest.raises(IndexError):
        _ = CamVid(folder, split="test")[3]


def test_missing_folders_and_counterparts(folder):
    with pytest.raises(FileNotFoundError, match="val"):
        CamVid(folder)
    (folder / "test" / "b_1.png").unlink()
    with pytest.raises(ValueError, match=r"test must have b_1.png as its counterpart has"):
        CamVid(folder, split="test")
    (folder / "testannot" / "b_1.png").unlink()
    (folder / "testannot" / "b_2.png").unlink()
    with pytest.raises(ValueError, match=r"testannot must have b_2.png"):
        CamVid(folder, split="test")
    for part in ("test", "testannot"):
        for path in (folder / part).glob("*.png"):
            path.unlink()
    with pytest.raises(ValueError, match="must have frames"):
        CamVid(folder, split="test")


@pytest.mark.parametrize(
    ("part", "pixels", "message"),
    [
        ("testannot", np.zeros((4, 5), np.uint8), r"size of the frame, \(4, 6\); got \(4, 5\)"),
        ("testannot", np.full((4, 6), VOID + 1, np.uint8), "labels must be at most 11; got 12"),
        ("testannot", np.zeros((4, 6, 3), np.uint8), "pixels must be L; got RGB"),
        ("test", np.zeros((4, 6), np.uint8), "pixels must be RGB; got L"),
    ],
)
def test_files_that_do_not_fit_are_named(folder, part, pixels, message):
    write(folder, part, "b_1", pixels)
    drive = CamVid(folder, split="test")
    assert drive[0].name == "a_10"  # others stay readable
    with pytest.raises(ValueError, match=rf"{part}/b_1.png: .*{message}"):
        _ = drive[1]


@pytest.mark.parametrize("damage", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_damaged_files_are_named(folder, damage):
    path = folder / "test" / "b_1.png"
    whole = path.read_bytes()
    for data in (damage, whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"test/b_1.png: not an image of CamVid"):
            _ = CamVid(folder, split="test")[1]


def test_a_picture_that_would_fill_the_memory_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(ValueError, match=r"test/a_10.png: not an image of CamVid"):
        _ = CamVid(folder, split="test")[0]


def test_the_drive_is_there():
    drive = CamVid(data_path("camvid"))
    assert len(drive) == 101
    assert (drive.names[0], drive.names[-1]) == ("0016E5_07959", "0016E5_08159")
    labels = [drive[i].labels for i in (0, 50, 100)]
    assert all(x.shape == (360, 480) for x in labels)
    share = np.bincount(np.ravel(labels), minlength=12) / np.size(labels)
    assert [CLASS_NAMES[c] for c in share.argsort()[:-3:-1]] == ["road", "building"]
