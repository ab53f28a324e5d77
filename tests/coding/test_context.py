import numpy as np
import pytest

from dynvid.coding.context import ContextCoder
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
    ("shape", "levels", "key_levels"),
    [
        ((1, 1, 1, 1), 3, 2),
        ((1, 1, 7, 2), 9, 9),
        ((1, 7, 1, 2), 9, 9),
        ((2, 5, 6, 3), 9, 257),
        ((1, 6, 5, 20), 33, 32),
        ((3, 8, 8, 9), 301, 300),
    ],
)
def test_frames_come_back(shape, levels, key_levels):
    near, far = (ContextCoder(shape, levels=levels, key_levels=key_levels) for _ in range(2))
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


def test_a_still_frame_takes_next_to_nothing():
    coder = ContextCoder((1, 26, 26, 64), levels=9, key_levels=9)
    coder.encode(np.zeros((1, 26, 26, 64), np.int16), is_key=True)
    sizes = [
        len(coder.encode(np.full((1, 26, 26, 64), 4, np.int16), is_key=False)) for _ in range(4)
    ]
    assert sizes[0] < 100
    assert sizes[-1] < 30


def test_a_key_frame_starts_anew():
    shape = (1, 6, 6, 8)
    frames = list(blobs(shape, frames=4, levels=9, key_levels=17))
    used, fresh = (ContextCoder(shape, levels=9, key_levels=17) for _ in range(2))
    for is_key, labels in frames:
        used.encode(labels, is_key=is_key)
    for is_key, labels in frames:
        data = used.encode(labels, is_key=is_key)
        np.testing.assert_array_equal(fresh.decode(data, is_key=is_key), labels)


def test_damage_is_an_error_or_other_labels_of_the_same_kind():
    """Checksums are the container's; here nothing may crash, hang or leave the alphabet."""
    shape = (1, 6, 6, 8)
    rng = np.random.default_rng(0)
    for is_key in (True, False):
        coder = ContextCoder(shape, levels=9, key_levels=17)
        key, residual = list(blobs(shape, frames=2, levels=9, key_levels=17))
        first = coder.encode(key[1], is_key=True)
        data = first if is_key else coder.encode(residual[1], is_key=False)
        for _ in range(150):
            far = ContextCoder(shape, levels=9, key_levels=17)
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
