"""Label maps against NumPy: where pixels come from, how far two maps agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.ops.labels import LabelMap
from dynvid.ops.regions import RegionPaths
from dynvid.tasks import Segmentation
from dynvid.tasks.preprocessing import Preprocessing


def task(size=None, *, placement="stretch", **options) -> Segmentation:
    return Segmentation(
        preprocessing=Preprocessing(placement=placement, white=1, size=size), **options
    )


def scores(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("frame_size", [(24, 40), (17, 29), (9, 15), (12, 20)])
def test_scores_are_resized_and_the_best_class_is_taken(frame_size):
    logits = scores((2, 12, 20, 5))
    found = task((24, 40)).decode(None, jnp.asarray(logits), frame_size=frame_size)
    resized = jax.image.resize(logits, (2, *frame_size, 5), "bilinear", antialias=False)
    np.testing.assert_array_equal(found.labels, np.argmax(resized, -1))
    assert found.labels.dtype == np.uint8
    for labels, counts in zip(found.labels, found.counts, strict=True):
        np.testing.assert_array_equal(counts, np.bincount(np.ravel(labels), minlength=5))


def test_classes_before_rows_are_told_from_the_shape():
    logits = scores((1, 6, 8, 10))  # 8 x 10 positions of a 32 x 40 input, or 6 x 8 of 10 classes
    first = task((32, 40)).decode(None, jnp.asarray(logits), frame_size=(8, 10))
    np.testing.assert_array_equal(first.labels, logits.argmax(1))
    last = task((24, 32)).decode(None, jnp.asarray(logits), frame_size=(6, 8))
    np.testing.assert_array_equal(last.labels, logits.argmax(3))
    # A cube of a square input may be either.
    cube = scores((1, 8, 8, 8))
    for channels_first in (True, False):
        found = task((16, 16), channels_first=channels_first).decode(
            None, jnp.asarray(cube), frame_size=(8, 8)
        )
        np.testing.assert_array_equal(found.labels, cube.argmax(1 if channels_first else 3))


@pytest.mark.parametrize(("placement", "top"), [("centre", 2), ("top_left", 0)])
def test_bars_of_a_letterbox_are_cut_off(placement, top):
    logits = scores((1, 8, 8, 3))
    found = task((8, 8), placement=placement).decode(None, jnp.asarray(logits), frame_size=(4, 8))
    np.testing.assert_array_equal(found.labels[0], logits[0, top : top + 4].argmax(-1))


def test_many_classes_keep_their_numbers():
    logits = np.zeros((1, 2, 2, 300), np.float32)
    logits[..., 299] = 1
    found = task((2, 2)).decode(None, jnp.asarray(logits), frame_size=(2, 2))
    np.testing.assert_array_equal(found.labels, np.full((1, 2, 2), 299))
    found = task((2, 2)).decode(None, jnp.zeros((1, 2, 2, 3)), frame_size=(4, 4))
    assert not found.labels.any(), "of equal scores the first is taken, as by argmax"


@pytest.mark.parametrize("outputs", [
    np.zeros((1, 8, 8)), np.zeros((1, 8, 8, 1)), (np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 3))),
])  # fmt: skip
def test_other_outputs_are_refused(outputs):
    with pytest.raises(ValueError, match="outputs must"):
        task((8, 8)).decode(None, outputs, frame_size=(8, 8))


def test_agreement_is_the_mean_intersection_over_union():
    rng = np.random.default_rng(3)
    maps = rng.integers(0, 4, (2, 3, 9, 11)).astype(np.uint8)
    maps[1, 1] = maps[0, 1]  # one that agrees
    maps[:, 2] = [[[1]], [[3]]]  # and one that does not at all

    def label_map(labels):
        counts = np.stack([np.bincount(x.ravel(), minlength=6) for x in labels])
        return LabelMap(jnp.asarray(labels), jnp.asarray(counts, jnp.int32))

    agreement = task().compare(label_map(maps[0]), label_map(maps[1])).score
    overlaps = []
    for a, b in zip(maps[0], maps[1], strict=True):
        here = [c for c in range(6) if (a == c).any() or (b == c).any()]
        overlaps.append(
            np.mean([((a == c) & (b == c)).sum() / ((a == c) | (b == c)).sum() for c in here])
        )
    assert overlaps[1:] == [1, 0]
    # Four quotients and their mean, each rounded once.
    np.testing.assert_allclose(agreement, overlaps, rtol=8 * 2**-24)


def test_classes_are_tinted_and_named():
    frame = np.full((480, 640, 3), 100, np.uint8)
    labels = np.zeros((480, 640), np.uint8)
    labels[:, 400:] = 2
    result = LabelMap(labels, np.array([480 * 400, 0, 480 * 240]))
    plain = task(class_names=("background", "car", "road"))
    picture = plain.draw(frame, result)
    np.testing.assert_array_equal(picture[400, 200], [100] * 3)  # what is called background
    assert (picture[400, 600] != 100).all()
    other = task(class_names=("background", "road", "road")).draw(frame, result)
    np.testing.assert_array_equal(picture, other)  # only classes that are there are in the legend
    other = task(class_names=("background", "car", "street")).draw(frame, result)
    assert (picture != other).any()
    small = plain.draw(frame[:100, :100], LabelMap(labels[:100, :100], np.array([10000, 0, 0])))
    assert small.shape == (500, 500, 3)


def test_regions_are_drawn_as_percentages_where_they_are():
    frame = np.full((480, 640, 3), 100, np.uint8)
    boxes = np.array([[0, 0, 320, 480], [320, 0, 640, 480]], np.float32)
    paths = RegionPaths(boxes, np.array([93.0, 88.0]), np.array([False, True]))
    counts = np.array([480 * 640, 0])
    plain = LabelMap(np.zeros((480, 640), np.uint8), counts)
    pictures = [
        task(percent=percent).draw(frame, plain._replace(paths=given))
        for percent, given in ((False, None), (False, paths), (True, paths))
    ]
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] != pictures[2]).any(), "a number and a percentage"
