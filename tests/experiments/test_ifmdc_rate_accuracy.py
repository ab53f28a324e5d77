"""What the figures of IFMDC rest on: ranges, what each codec hands on, the results file."""

import types

import numpy as np
import pytest

from dynvid.coding.entropy import zero_order_entropy
from dynvid.systems.ifmdc import Settings
from experiments.ifmdc.rate_accuracy.methods import (
    GOP,
    Range,
    code_features,
    code_ifmdc,
    code_lightweight,
)
from experiments.ifmdc.rate_accuracy.results import Results
from experiments.ifmdc.rate_accuracy.summary import curves_of

CLIP = Range(-0.25, 1.75)


@pytest.fixture(scope="module")
def subject():
    """A map in which something moves, a little longer than a GOP."""
    rng = np.random.default_rng(0)
    still = rng.normal(0.5, 0.7, (16, 16, 4)).astype(np.float32)
    features = np.stack([still] * (GOP + 3))
    for i, frame in enumerate(features):
        frame[i % 12 : i % 12 + 4, 3:8] += 1
    return types.SimpleNamespace(name="test", features=features)


def test_eight_bits_are_within_half_a_step():
    values = np.linspace(-1, 3, 1001, dtype=np.float32)
    labels = CLIP.to_bytes(values)
    assert (labels.min(), labels.max()) == (0, 255)
    error = np.abs(CLIP.from_bytes(labels) - np.clip(values, CLIP.low, CLIP.high))
    # Half a step of A / 255, and roundings of values up to 2 in float32.
    assert error.max() <= CLIP.width / 255 / 2 + 4 * np.finfo(np.float32).eps * CLIP.width


def test_ifmdc_hands_on_what_a_decoder_has(subject):
    coded = code_ifmdc(subject, Settings(low=CLIP.low, high=CLIP.high, levels=17))
    assert (~coded.predicted).nonzero()[0].tolist() == [0, GOP]
    error = np.abs(coded.features - np.clip(subject.features, CLIP.low, CLIP.high))
    assert error.max() <= CLIP.width / 16 * (1 + 1e-5)  # the bound of the codec, A / (k - 1)
    assert set(coded.sizes) == {"R0", "R1", "R2", "R3"}
    assert all(len(found) == GOP + 3 for found in coded.sizes.values())
    p_frames = coded.predicted.sum()
    assert sum(coded.details["histogram"]) == subject.features[0].size * p_frames


def test_a_mask_of_nothing_sends_nothing(subject):
    settings = Settings(low=CLIP.low, high=CLIP.high, levels=17)
    changes = np.zeros((GOP + 3, 16, 16), bool)
    coded = code_ifmdc(subject, settings, changes=changes)
    assert np.all(coded.sizes["R0"][coded.predicted] == 0)
    assert np.array_equal(coded.features[1], coded.features[0])


@pytest.mark.parametrize("quilted", [False, True])
def test_hevc_of_a_map_comes_back_in_its_places(subject, quilted):
    fine = code_features(subject, CLIP, qp=4, quilted=quilted)
    clipped = np.clip(subject.features, CLIP.low, CLIP.high)
    # Channels in wrong places would be off by their own spread, 0.6.
    assert np.abs(fine.features - clipped).mean() < 0.02
    assert (~fine.predicted).nonzero()[0].tolist() == [0, GOP]


def test_the_lightweight_codec_takes_about_the_entropy(subject):
    coded = code_lightweight(subject, CLIP, levels=3)
    step = CLIP.width / 2
    clipped = np.clip(subject.features, CLIP.low, CLIP.high)
    assert np.abs(coded.features - clipped).max() <= step / 2 * (1 + 1e-5)
    labels = np.round((coded.features[0] - CLIP.low) / step).astype(int)
    # Whole words of 32 bits, and two contexts to be learnt, the first 64 labels at even odds.
    assert coded.sizes[""][0] * 8 <= zero_order_entropy(labels) + 32 + 2 * 64 + 64


def test_results_keep_what_another_run_wrote(tmp_path):
    one, other = (Results(tmp_path / "results.json") for _ in range(2))
    entry = one.subject("a", frames=9) | {"dense": 1.0}
    other.save("b", other.subject("b", frames=9))
    one.save("a", entry)
    assert set(one.read()["subjects"]) == {"a", "b"}
    assert one.subject("a", frames=9)["dense"] == 1.0
    assert "dense" not in one.subject("a", frames=10)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_curves_are_sorted_by_rate_and_named_by_stage():
    def row(rate, ap):
        return {"ap50": ap, "bpp": {"R1": {"predicted": rate, "all_frames": 2 * rate}}}

    entry = {"methods": {"IFMDC": {"k=9": row(0.4, 80.0), "k=3": row(0.1, 60.0)}}}
    assert curves_of(entry, "predicted") == {"IFMDC R1": ([0.1, 0.4], [60.0, 80.0])}
    assert curves_of(entry, "all_frames") == {"IFMDC R1": ([0.2, 0.8], [60.0, 80.0])}
