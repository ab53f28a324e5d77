"""What the figures of `experiments/cameras` rest on."""

import numpy as np
import pytest

from dynvid.ops.boxes import Detections
from dynvid.video.writer import VideoWriter
from experiments.cameras.clips import DISTURBANCES, Camera, disturbed, one_level
from experiments.cameras.judge import SURE, agree, windows
from experiments.cameras.pictures import plot, table, totals


def boxes(*frames):
    """Detections of each frame, given as (left, score) of boxes of 10x10 and class 0."""
    count = max(map(len, frames))
    found = Detections(
        np.zeros((len(frames), count, 4), np.float32), np.zeros((len(frames), count), np.float32),
        np.full((len(frames), count), -1, np.int32), np.zeros((len(frames), count), bool),
    )  # fmt: skip
    for t, frame in enumerate(frames):
        for i, (left, score) in enumerate(frame):
            found.boxes[t, i] = (left, 0, left + 10, 10)
            found.scores[t, i], found.classes[t, i], found.valid[t, i] = score, 0, True
    return found


def test_f1_is_that_of_all_frames_but_the_first_together():
    dense = boxes([(0, 0.9)], [(0, 0.9), (20, 0.9)], [(0, 0.9)], [])
    found = boxes([(90, 0.9)], [(0, 0.8)], [(1, 0.35), (50, 0.4)], [])
    agreement = agree(dense, found)
    # Two pairs of three and three detections.
    assert agreement.f1 == pytest.approx(2 * 2 / 6)
    assert agree(dense, found, start=2).f1 == pytest.approx(2 * 1 / 3)
    assert agree(dense, dense).f1 == 1


def test_what_is_faint_on_the_other_side_is_no_sure_error():
    dense = boxes([], [(0, 0.9), (20, 0.9), (40, 0.4)])
    found = boxes([], [(0, 0.3), (21, 0.29), (60, 0.9), (80, SURE - 0.01)])
    agreement = agree(dense, found)
    assert (agreement.sure, agreement.misses, agreement.ghosts) == (2, 0.5, 0.5)
    assert agreement.oldest_ghost == 0  # it follows nothing real


def test_a_ghost_is_as_old_as_what_it_was_is_gone():
    dense = boxes([(0, 0.9)], [(0, 0.9)], *[[(40, 0.9)]] * 12)
    found = boxes([(0, 0.9)], [(0, 0.9)], *[[(40, 0.9), (1, 0.8)]] * 12)
    agreement = agree(dense, found)
    assert agreement.oldest_ghost == 12
    assert agreement.old_ghosts == 3  # of 10, 11 and 12 frames
    assert agreement.ghosts == pytest.approx(12 / 13)


def test_the_worst_window_is_found():
    dense = boxes([], *[[(0, 0.9)]] * 200)
    found = boxes([], *[[(0, 0.9)]] * 100, *[[(0, 0.9)]] * 50, *[[]] * 50)
    agreement = agree(dense, found)
    assert agreement.f1 == pytest.approx(2 * 150 / 350)
    assert agreement.worst_window == pytest.approx(2 * 50 / 150)
    assert [s.stop for s in windows(149)] == [149]
    assert [s.stop for s in windows(151)] == [100, 151]


@pytest.fixture
def camera(tmp_path, monkeypatch):
    """A clip of a grey wall with a bright stripe that moves."""
    monkeypatch.setattr("experiments.cameras.clips.DATA", tmp_path)
    with VideoWriter(tmp_path / "wall.mp4", fps=25) as writer:
        for t in range(12):
            frame = np.full((48, 64, 3), 100, np.uint8)
            frame[:, 4 * t : 4 * t + 8] = 180
            writer.write(frame)
    return Camera("wall", "wall.mp4")


def test_disturbances_are_what_they_say(camera, tmp_path):
    plain = np.stack(list(camera.frames(None))).astype(float)

    def of(name):
        return np.stack(list(disturbed(camera, name, None, 12, tmp_path))).astype(float)

    def gains(name):
        return of(name).mean((1, 2, 3)) / plain.mean((1, 2, 3))

    np.testing.assert_array_equal(of("plain"), plain)
    assert gains("gain_step") == pytest.approx([1] * 4 + [1.25] * 4 + [1] * 4, abs=0.01)
    for share in (2, 5):
        found = gains(f"flicker_{share}") - 1
        assert share / 100 == pytest.approx(np.abs(found).max(), rel=0.15)
    assert (np.diff(gains("ramp")) < 0).all()
    for level in (2, 4):
        assert np.std(of(f"noise_{level}") - plain) == pytest.approx(level, rel=0.05)
    assert np.std(np.stack(list(one_level(camera.frames(None), 0))) - plain) == pytest.approx(
        np.sqrt(1 + 1 / 12), rel=0.05
    )
    black = of("black_first")
    assert not black[0].any()
    np.testing.assert_array_equal(black[1:], plain[1:])
    moved = of("shake")
    for frame, still in zip(moved, plain, strict=True):
        shifts = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
        inner = [np.roll(still, s, (0, 1))[4:-4, 4:-4] for s in shifts]
        assert any((frame[4:-4, 4:-4] == i).all() for i in inner)
    assert set(DISTURBANCES) >= {"h264"}
    assert len(of("h264")) == 12
    assert (tmp_path / "wall-all.mp4").exists()


def test_a_camera_starts_where_it_is_told_and_takes_every_so_many_frames(camera):
    every = Camera("wall", "wall.mp4", start=2, every=3)
    all_frames = list(camera.frames(None))
    for frame, t in zip(every.frames(3), (2, 5, 8), strict=True):
        np.testing.assert_array_equal(frame, all_frames[t])
    assert len(list(every.frames(None))) == 4


def test_results_are_tabled_drawn_and_summed_up(tmp_path):
    ceiling = {"f1": 0.95, "worst_window": 0.9}
    runs = [
        {
            "model": "yolov5n", "camera": camera, "disturbance": "plain", "f1": f1, "misses": 0.01,
            "worst_window": f1, "ghosts": 0.0, "oldest_ghost": 3, "old_ghosts": 0,
            "ceiling": ceiling, "mac_fraction": 0.2,
        }
        for camera, f1 in (("pets", 0.9), ("highway", 0.94))
    ]  # fmt: skip
    assert table(runs).count("\n") == 4
    found = totals(runs)
    assert found["worst_gap_to_ceiling"] == [pytest.approx(0.05), "yolov5n pets plain"]
    assert found["runs_within_0.03"] == 1
    plot(runs, tmp_path / "cameras.png", beside=runs[:1])
    assert (tmp_path / "cameras.png").stat().st_size > 5000
