import pathlib

import numpy as np
import pytest

from dynvid.video.reader import VideoError, VideoSource
from dynvid.video.writer import VideoWriter


def gradient(size: tuple[int, int], shift: int) -> np.ndarray:
    """A smooth picture, which H.264 hardly changes."""
    rows, columns = np.indices(size)
    return np.stack([rows, columns, rows + columns + 4 * shift], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (63, 97), (1, 3)])
def test_what_is_written_is_read_back(tmp_path, size):
    frames = [gradient(size, shift) for shift in range(7)]
    with VideoWriter(tmp_path / "clip.mp4", fps=12.5) as writer:
        for frame in frames:
            writer.write(frame)
    source = VideoSource(tmp_path / "clip.mp4")
    height, width = size
    assert source.size == (height + height % 2, width + width % 2)
    assert source.fps == 12.5
    read = list(source)
    assert len(read) == source.length == 7
    if height > 1:
        for before, after in zip(frames, read, strict=True):
            # Half the colour's resolution and H.264 at crf 20: a mean error of a few grey levels;
            # frames exchanged, mirrored or with colours swapped would be tens apart.
            error = np.abs(after[:height, :width].astype(int) - before)
            assert error.mean() < 4


def test_the_name_appears_only_when_all_went_well(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=25) as writer:
        writer.write(gradient((32, 32), 0))
        assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4.part"]
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_an_error_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")

    def fail():
        with VideoWriter(path, fps=25) as writer:
            writer.write(gradient((32, 32), 0))
            assert (tmp_path / "clip.mp4.part").exists()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"old"


def test_no_frame_no_file(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", fps=25):
        pass
    assert list(tmp_path.iterdir()) == []


def write_all(path, *frames):
    with VideoWriter(path, fps=25) as writer:
        for frame in frames:
            writer.write(frame)


def test_bad_frames_and_paths_are_named(tmp_path):
    path = tmp_path / "clip.mp4"
    good = gradient((32, 32), 0)
    with pytest.raises(
        VideoError, match=r"must be \(32, 32, 3\) as those before; got \(16, 32, 3\)"
    ):
        write_all(path, good, good[:16])
    with pytest.raises(VideoError, match=r"must be \(H, W, 3\) uint8; got \(4, 4, 3\) float64"):
        write_all(path, np.zeros((4, 4, 3)))
    with pytest.raises(VideoError, match="no folder"):
        VideoWriter(tmp_path / "nowhere" / "clip.mp4", fps=25)
    with pytest.raises(VideoError, match=r"must end in \.mp4"):
        VideoWriter(tmp_path / "clip.avi", fps=25)
    with pytest.raises(VideoError, match="fps must be greater than zero; got 0"):
        VideoWriter(path, fps=0)
    (tmp_path / "taken.mp4.part").mkdir()
    with pytest.raises(VideoError, match=r"cannot write .*taken.mp4: Is a directory"):
        write_all(tmp_path / "taken.mp4", good)
    assert not list(tmp_path.glob("*.mp4"))


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_clear_line(tmp_path):
    (tmp_path / "clip.mp4.part").symlink_to("/dev/full")
    with pytest.raises(VideoError, match=r"cannot write .*clip.mp4: No space left on device"):
        write_all(tmp_path / "clip.mp4", gradient((32, 32), 0))
    assert list(tmp_path.iterdir()) == []
