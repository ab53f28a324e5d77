import numpy as np
import pytest

from dynvid.ops.regions import RegionPaths, divide_frame
from dynvid.video.draw import (
    annotate_frame,
    draw_boxes,
    draw_labels,
    draw_mask_inset,
    draw_work_bar,
    overlay_mask,
)

FRAME = np.full((240, 320, 3), 100, np.uint8)
BOXES = np.array([[50.0, 80.0, 120.0, 200.0], [200.0, 90.0, 280.0, 150.0]])


def test_boxes_are_drawn_where_they_are():
    drawn = draw_boxes(FRAME, BOXES)
    changed = (drawn != FRAME).any(axis=-1)
    rows, columns = np.nonzero(changed)
    # A box covers pixels from its left edge up to, not including, its right edge.
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (50, 80, 279, 199)
    assert not changed[100:180, 60:110].any(), "the inside is left as it was"
    assert changed[140, 50]
    assert changed[140, 119]
    np.testing.assert_array_equal(FRAME, 100)


def test_classes_choose_the_colour_and_repeat():
    first, second, again = (draw_boxes(FRAME, BOXES[:1], classes=[c])[140, 50] for c in (0, 1, 7))
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)


def test_labels_stay_in_the_frame_and_apart():
    corners = np.array(
        [[-20, -20, 30, 30], [300, 220, 340, 260], [0, 0, 320, 240], [0, 0, 320, 240]]
    )
    drawn = draw_boxes(FRAME, corners, labels=["upper left", "lower right", "all", "again"])
    assert drawn.shape == FRAME.shape
    text_size = (draw_boxes(FRAME, BOXES[:1], labels=["square 0.93"]) != FRAME).any(axis=-1)
    assert np.nonzero(text_size)[0].min() < 80 - 8, "the label is above its box"
    one = draw_boxes(FRAME, BOXES[[0]], labels=["a"])
    two = draw_boxes(FRAME, BOXES[[0, 0]], labels=["a", "b"], classes=[0, 0])
    moved = (one != two).any(axis=-1)
    assert moved[195:225].any(), "the second label of one place goes below the box"
    assert not moved[:79].any(), "and leaves the first as it was"


def test_boxes_that_are_not_finite_or_far_away_are_left_out():
    boxes = np.array([[np.nan, 0, 1, 1], [0, 0, np.inf, 10], [1e9, 1e9, 2e9, 2e9]])
    drawn = draw_boxes(FRAME, boxes, labels=["a", "b", "c"])
    np.testing.assert_array_equal(drawn, FRAME)
    np.testing.assert_array_equal(draw_boxes(FRAME, np.zeros((0, 4))), FRAME)


def test_lengths_that_differ_are_named():
    with pytest.raises(ValueError, match="labels must have one entry a box; got 1 of 2"):
        draw_boxes(FRAME, BOXES, labels=["a"])
    with pytest.raises(ValueError, match="classes must have one entry a box; got 3 of 2"):
        draw_boxes(FRAME, BOXES, classes=[1, 2, 3])


def test_overlay_tints_only_the_mask():
    mask = np.zeros((24, 32), bool)
    mask[3, 5] = True
    tinted = overlay_mask(FRAME, mask, color=(200, 0, 100), alpha=0.5)
    expected = FRAME.copy()
    expected[30:40, 50:60] = (150, 50, 100)
    np.testing.assert_array_equal(tinted, expected)


def test_inset_shows_a_single_changed_pixel():
    mask = np.zeros((240, 320), bool)
    empty = draw_mask_inset(FRAME, mask)
    mask[120, 160] = True
    one = draw_mask_inset(FRAME, mask)
    brighter = one.astype(int).sum(axis=-1) - empty.astype(int).sum(axis=-1)
    assert brighter.max() > 120
    assert (one[:, :200] == FRAME[:, :200]).all(), "it stays in its corner"


def test_work_bar_is_as_high_as_the_work():
    bar = draw_work_bar(FRAME, [1.0, 0.5, 0.0, 1.7])
    np.testing.assert_array_equal(bar[:240], FRAME)
    strip = bar[240:]
    blue = (strip == (86, 180, 233)).all(axis=-1)
    heights = blue[:, blue.any(axis=0).nonzero()[0].max() - 12 :].sum(axis=0)
    full, half = blue.sum(axis=0).max(), blue.sum(axis=0)
    assert abs(sorted(set(half.tolist()))[-2] - full / 2) <= 1
    assert 0 in heights
    long = draw_work_bar(FRAME, [0.2] * 5000)
    assert long.shape == bar.shape
    with pytest.raises(ValueError, match="work must have at least one entry"):
        draw_work_bar(FRAME, [])


@pytest.mark.parametrize("size", [(64, 64), (255, 333), (481, 641), (576, 768)])
def test_annotated_frames_can_be_encoded_and_read(size):
    frame = np.full((*size, 3), 90, np.uint8)
    annotated = annotate_frame(
        frame,
        boxes=BOXES,
        labels=["disc 0.9", "square 0.8"],
        classes=np.array([0, 1]),
        changed=np.ones(size, bool),
        work=[1.0, 0.1],
    )
    assert annotated.dtype == np.uint8
    assert annotated.shape[0] >= 480
    assert annotated.shape[0] % 2 == annotated.shape[1] % 2 == 0
    assert annotate_frame(frame).shape[0] >= 480


def test_boxes_are_enlarged_with_the_frame():
    annotated = annotate_frame(FRAME, boxes=BOXES[:1])
    rows, columns = np.nonzero((annotated != 100).any(axis=-1))
    assert annotated.shape == (480, 640, 3)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (100, 160, 239, 399)


# Regions.

ORANGE, WHITE = (255, 106, 0), (255, 255, 255)
LABELS = np.zeros((480, 640), np.uint8)


def divided(grid, scores, segmented, *, labels=LABELS, frame=None, **options):
    """A grey picture whose regions went these paths."""
    height, width = labels.shape
    boxes = divide_frame((height, width), grid=grid).parts
    paths = RegionPaths(np.array(boxes, np.float32), np.array(scores), np.array(segmented))
    frame = np.full((height, width, 3), 100, np.uint8) if frame is None else frame
    return draw_labels(frame, labels, names=["background", "road"], paths=paths, **options)


def colored(picture, color):
    return (picture == color).all(-1)


@pytest.mark.parametrize("size", [(480, 640), (97, 131)])
def test_borders_are_coloured_by_path(size):
    labels = np.zeros(size, np.uint8)
    picture = divided((2, 2), [np.nan] * 4, [True, False, False, True], labels=labels)
    height, width = picture.shape[:2]
    for row, column, color in ((0, 1, WHITE), (1, 0, WHITE), (1, 1, ORANGE)):
        part = picture[row * height // 2 :, column * width // 2 :]
        part = part[: height // 2, : width // 2]
        other = ORANGE if color is WHITE else WHITE
        assert colored(part, color).sum() > height + width, "all around"
        assert not colored(part[4:-8, 4:-8], other).any()
        assert (part[height // 4, width // 4] == 100).all(), "the inside is left as it was"


def test_scores_are_written_where_the_legend_is_not():
    nan = float("nan")
    for grid in ((1, 1), (2, 2), (3, 3)):
        count = grid[0] * grid[1]
        plain = divided(grid, [nan] * count, [False] * count)
        written = divided(grid, [93.4] * count, [False] * count, percent=True)
        changed = (plain != written).any(-1)
        assert not changed[:90, :200].any(), "the legend is as it was"
        for x0, y0, x1, y1 in divide_frame((480, 640), grid=grid).parts:
            assert changed[y0:y1, x0:x1].any(), "every region has its score"
    plain = divided((8, 5), [nan] * 40, [False] * 40)
    written = divided((8, 5), [93.4] * 40, [False] * 40, percent=True)
    hidden = (plain != written).any(-1)[:60, :128]
    assert not hidden.any(), "the legend hides all of the first region, and its score"
    numbers = divided((1, 1), [93.4], [False])
    assert (numbers != divided((1, 1), [93.4], [False], percent=True)).any()
    same = divided((1, 1), [93.0], [False], percent=True)
    np.testing.assert_array_equal(same, divided((1, 1), [93.4], [False], percent=True))
    zero = divided((1, 1), [-0.004], [False], percent=True)
    np.testing.assert_array_equal(zero, divided((1, 1), [0.0], [False], percent=True))


def test_regions_without_room_go_without():
    crowd = divided((40, 60), [50.0] * 2400, [True, False] * 1200, percent=True)
    assert crowd.shape == (480, 640, 3)
    tiny = np.zeros((1, 1), np.uint8)
    assert divided((1, 1), [1e9], [True], labels=tiny).shape == (480, 480, 3)
