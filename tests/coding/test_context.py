import copy
import io

import numpy as np
import pytest

from dynvid.coding.container import BitstreamReader, BitstreamWriter, Header
from dynvid.coding.context import (
    ContextCoder,
    _Bits,
    _Models,
    _RangeEncoder,
    _residual_prior,
    _Shares,
)
from dynvid.coding.entropy import zero_order_entropy
from dynvid.coding.errors import BitstreamError


def blobs(shape, *, frames, levels, key_levels, seed=0):
    """Labels as a moving object makes them: changes together in space, across channels."""
    rng = np.random.default_rng(seed)
    streams, height, width, channels = shape
    y, x = np.mgrid[:height, :width]
    weight = rng.normal(size=(streams, 1, 1, channels))
    for n in range(frames):
        if n == 0:
            smooth = np.sin(x / 3)[None, :, :, None] * weight + rng.normal(0, 0.1, shape)
            labels = key_levels / 2 + smooth * key_levels / 8
            yield True, np.clip(np.round(labels), 0, key_levels - 1).astype(np.int16)
        else:
            near = np.exp(-((y - height / 2) ** 2 + (x - 2 - n) ** 2) / 8)
            change = near[None, :, :, None] * weight * levels / 4
            labels = levels // 2 + np.round(change + rng.normal(0, 0.15, shape))
            yield False, np.clip(labels, 0, levels - 1).astype(np.int16)


@pytest.mark.parametrize(
    ("shape", "levels", "key_levels", "block"),
    [
        ((1, 1, 1, 1), 3, 2, 1),
        ((1, 1, 7, 2), 9, 9, 1),
        ((1, 7, 1, 2), 9, 9, 1),
        ((2, 5, 6, 3), 9, 257, 1),
        ((1, 6, 5, 20), 33, 32, 1),
        ((3, 8, 8, 9), 301, 300, 1),
        ((1, 1, 1, 4), 3, 3, 2),
        ((1, 1, 1, 16), 9, 3, 4),
        ((1, 1, 5, 8), 3, 9, 2),
        ((2, 5, 1, 16), 33, 33, 4),
        ((2, 4, 5, 12), 9, 257, 2),
        ((3, 4, 3, 32), 4097, 4097, 4),
        ((1, 2, 2, 256), 9, 9, 16),
    ],
)
def test_frames_come_back(shape, levels, key_levels, block):
    options = {"levels": levels, "key_levels": key_levels, "block": block}
    near, far = (ContextCoder(shape, **options) for _ in range(2))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        for is_key, labels in blobs(
            shape, frames=4, levels=levels, key_levels=key_levels, seed=seed
        ):
            if rng.random() < 0.3:  # the ends of the alphabet, too
                labels = rng.integers(0, key_levels if is_key else levels, shape).astype(np.int16)
            data = near.encode(labels, is_key=is_key)
            back = far.decode(data, is_key=is_key)
            np.testing.assert_array_equal(back, labels)
            assert back.dtype == np.int16


def test_contexts_take_fewer_bits_than_the_entropy_of_labels_alone():
    shape = (1, 24, 24, 32)
    coder = ContextCoder(shape, levels=9, key_levels=65)
    ratios = []
    for is_key, labels in blobs(shape, frames=6, levels=9, key_levels=65):
        bits = 8 * len(coder.encode(labels, is_key=is_key))
        ratios.append(bits / zero_order_entropy(labels))
    assert ratios[0] < 0.9
    assert max(ratios[1:]) < 0.75


@pytest.mark.parametrize(("shape", "block"), [((1, 26, 26, 64), 1), ((1, 13, 13, 1024), 4)])
def test_a_still_frame_takes_next_to_nothing(shape, block):
    coder = ContextCoder(shape, levels=9, key_levels=9, block=block)
    key = np.full(shape, 4, np.int16)
    key[..., : shape[-1] // block**2] = 0  # values, or means
    assert len(coder.encode(key, is_key=True)) < 1000
    sizes = [len(coder.encode(np.full(shape, 4, np.int16), is_key=False)) for _ in range(4)]
    assert sizes[0] < 100
    assert sizes[-1] < 30


@pytest.mark.parametrize("block", [1, 2])
def test_a_key_frame_starts_anew(block):
    shape = (1, 6, 6, 8)
    frames = list(blobs(shape, frames=4, levels=9, key_levels=17))
    used, fresh = (ContextCoder(shape, levels=9, key_levels=17, block=block) for _ in range(2))
    for is_key, labels in frames:
        used.encode(labels, is_key=is_key)
    for is_key, labels in frames:
        data = used.encode(labels, is_key=is_key)
        np.testing.assert_array_equal(fresh.decode(data, is_key=is_key), labels)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_damage_is_an_error_or_other_labels_of_the_same_kind(block):
    """Checksums are the container's; here nothing may crash, hang or leave the alphabet."""
    shape = (1, 6, 6, 16)
    rng = np.random.default_rng(0)
    for is_key in (True, False):
        coder = ContextCoder(shape, levels=9, key_levels=17, block=block)
        key, residual = list(blobs(shape, frames=2, levels=9, key_levels=17))
        first = coder.encode(key[1], is_key=True)
        data = first if is_key else coder.encode(residual[1], is_key=False)
        for _ in range(100):
            far = ContextCoder(shape, levels=9, key_levels=17, block=block)
            damaged = bytearray(data)
            for _ in range(rng.integers(1, 4)):
                damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            damaged = damaged[: rng.integers(len(damaged) + 1)] if rng.random() < 0.4 else damaged
            try:
                if not is_key:
                    far.decode(first, is_key=True)
                back = far.decode(bytes(damaged), is_key=is_key)
            except BitstreamError:
                continue
            assert back.shape == shape
            assert back.min() >= 0
            assert back.max() < (17 if is_key else 9)


def extremes(shape, levels, rng):
    """Frames that differ most from what came before them."""
    still = np.full(shape, levels // 2, np.int16)
    most, least = np.full(shape, levels - 1, np.int16), np.zeros(shape, np.int16)
    near = still + np.int16(1)
    anything = rng.integers(0, levels, shape).astype(np.int16)
    ends = np.where(rng.random(shape) < 0.5, most, least)
    changed = np.where(anything == still, near, anything)
    checks = np.where(np.indices(shape).sum(0) % 2 == 1, most, least)
    return [still, most, least, near, anything, ends, changed, checks]


@pytest.mark.parametrize(
    ("shape", "block", "levels"),
    [
        ((1, 1, 1, 1), 1, 3),
        ((2, 6, 5, 3), 1, 4097),
        ((1, 5, 6, 8), 1, 9),
        ((1, 4, 5, 8), 2, 9),
        ((2, 3, 4, 16), 4, 4097),
        ((1, 3, 3, 256), 16, 3),
    ],
)
def test_contexts_hold_whatever_comes(shape, block, levels):
    """Every extreme after every other, for as long as counts take to reach their ends."""
    rng = np.random.default_rng(0)
    near, far = (
        ContextCoder(shape, levels=levels, key_levels=levels, block=block) for _ in range(2)
    )
    for is_key in (True, False):
        for before in extremes(shape, levels, rng):
            for labels in extremes(shape, levels, rng):
                for frame in (before, before, labels):
                    data = near.encode(frame, is_key=is_key)
                    np.testing.assert_array_equal(far.decode(data, is_key=is_key), frame)


@pytest.mark.parametrize("quiet", ["still", "up"])
@pytest.mark.parametrize(
    ("shape", "block", "levels"),
    [((1, 128, 128, 1), 1, 4097), ((1, 26, 26, 2), 1, 33), ((1, 64, 64, 1), 4, 4097)],
)
def test_the_reader_takes_the_least_expected_frame(shape, block, levels, quiet):
    """Its limit on a packet's length is above whatever a frame may cost."""
    header = Header(
        shape=shape,
        low=0.0,
        high=1.0,
        levels=levels,
        key_levels=levels,
        group_of_pictures=1000,
        block=block,
    )
    coded = header.coded_shape
    still = np.full(coded, levels // 2 + (quiet == "up"))
    anything = np.random.default_rng(0).integers(0, levels, coded)
    frames = [np.full(coded, levels // 2), *[still] * 40, anything]
    file = io.BytesIO()
    writer = BitstreamWriter(file, header)
    sizes = [writer.write(labels)[1] for labels in frames]
    writer.close()
    assert sizes[-1] > 20 * np.mean(sizes[1:-1])
    file.seek(0)
    for frame, expected in zip(BitstreamReader(file), frames, strict=True):
        np.testing.assert_array_equal(frame.labels, expected)


def test_no_symbol_costs_more_than_the_limit_counts_with():
    """A label is four symbols at most (its row, whether, sign, size): of 24 bits each."""
    for levels in (3, 9, 4097):
        models = _Models(_residual_prior(levels, contexts=1))
        models.encode(_RangeEncoder(), np.zeros(1 << 17, np.int8), np.zeros(1 << 17, np.int32))
        bits = _Bits(np.array([500]), weight=8)
        bits.encode(_RangeEncoder(), np.zeros(1 << 17, np.int8), np.zeros(1 << 17, bool))
        for model, worst in ((models, np.array([levels - 1])), (bits, np.array([True]))):
            coder = _RangeEncoder()
            for _ in range(64):
                copy.deepcopy(model).encode(coder, np.zeros(1, np.int8), worst)
            assert coder.num_bits() / 64 <= 24 + 0.5


def test_channels_of_still_maps_are_not_taken_for_lively():
    shares = _Shares((2, 3))
    before = shares.classes()
    for _ in range(300):
        shares.add(np.zeros((5, 2, 3), np.int8), np.zeros((5, 2), bool))
    np.testing.assert_array_equal(shares.classes(), before)
