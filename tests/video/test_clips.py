"""A video as one clip."""

import numpy as np
import pytest

from dynvid.video.clips import clip_frames
from dynvid.video.reader import VideoError


@pytest.mark.parametrize("count", [4, 5, 9, 31, 32])
def test_short_videos_give_the_middle_of_each_part(count):
    found = clip_frames(iter(np.arange(count)), range(4), name="x")
    assert [int(t) for t in found] == [(2 * i + 1) * count // 8 for i in range(4)]


@pytest.mark.parametrize("count", [33, 100, 1000, 4097])
def test_long_videos_are_off_by_a_quarter_of_a_part_at_most(count):
    found = clip_frames(iter(np.arange(count)), range(4), name="x")
    exact = np.array([(2 * i + 1) * count // 8 for i in range(4)])
    assert (np.abs(np.array(found) - exact) <= count / 4 / 4).all()
    assert (np.diff(found) > 0).all()


def test_frames_come_in_the_order_that_is_wanted():
    assert [int(t) for t in clip_frames(np.arange(4), (2, 0, 3, 1), name="x")] == [2, 0, 3, 1]


def test_a_short_clip_is_refused():
    with pytest.raises(VideoError, match=r"x\.mp4: a clip must have at least 4 frames; got 3"):
        clip_frames(np.arange(3), range(4), name="x.mp4")
