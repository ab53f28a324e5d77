import hypothesis.extra.numpy as npst
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.coding.errors import BitstreamError
from dynvid.coding.lightweight import calibrate_maximum, decode_lightweight, encode_lightweight
from dynvid.ops.quantize import uniform_dequantize, uniform_quantize

RNG = np.random.default_rng(0)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(2, 40), st.sampled_from([np.uint8, np.int16, np.int32, np.int64]))
def test_labels_come_back(data, levels, dtype):
    shape = data.draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=20))
    labels = data.draw(npst.arrays(dtype, shape, elements=st.integers(0, levels - 1)))
    code = encode_lightweight(labels, levels=levels)
    found = decode_lightweight(code, levels=levels, shape=shape)
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("levels", [2, 3, 9, 256])
def test_many_labels_come_back(levels):
    labels = np.minimum(RNG.geometric(0.4, (100, 500)) - 1, levels - 1)
    code = encode_lightweight(labels, levels=levels)
    found = decode_lightweight(code, levels=levels, shape=labels.shape)
    np.testing.assert_array_equal(found, labels)


def _entropy(labels: np.ndarray) -> float:
    shares = np.bincount(labels) / labels.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def test_the_rate_is_near_the_entropy_of_independent_labels():
    levels, count = 5, 200_000
    labels = RNG.choice(levels, (count // 100, 100), p=[0.7, 0.15, 0.1, 0.04, 0.01])
    bits = 8 * len(encode_lightweight(labels, levels=levels))
    # An estimate that moves by a = 1/32 a bin has variance a p (1 - p) / (2 - a), which costs
    # variance / (2 ln 2 p (1 - p)) = 0.0114 bits a bin. There are 1.49 bins a label (the last two
    # positions are rare, and learn late): 0.017 bits; at most twice as much for their learning.
    entropy = _entropy(labels.ravel()) * count
    assert entropy < bits < entropy + 2 * 0.017 * count


def _one_context(labels: np.ndarray, levels: int) -> float:
    """Bits of an ideal coder with one context a position, channel after channel, bin by bin."""
    bits = 0.0
    probability = np.full(levels - 1, 0.5)
    for label in labels.reshape(-1, labels.shape[-1]).T.ravel().tolist():
        for position in range(min(label + 1, levels - 1)):
            one = label > position
            p = probability[position]
            bits -= np.log2(p if one else 1 - p)
            probability[position] += (one - p) / 32
    return bits


def test_the_rate_is_that_of_the_papers_scan():
    # Blobs, so that neighbours in a channel are alike
    noise = RNG.normal(size=(40, 40, 12)).cumsum(0).cumsum(1)
    labels = np.clip(np.round(np.abs(noise) / 12), 0, 4).astype(np.int32)
    bits = 8 * len(encode_lightweight(labels, levels=5))
    # Contexts of their own learn anew in each of 12 channels, at each of 4 positions: up to some 15
    # bits each, to which one context a position comes with what the last channel left behind.
    assert abs(bits - _one_context(labels, 5)) < 12 * 4 * 15


def test_nothing_costs_nothing():
    assert encode_lightweight(np.zeros((0, 4), np.int32), levels=3) == b""
    assert decode_lightweight(b"", levels=3, shape=(0, 4)).shape == (0, 4)
    # Zero everywhere: log2(1 / (1 - 31 / 65536)) = 0.00068 bits a label once learnt. Learning, from
    # 1/2 by 31/32 a label, sums up to 32 Li2(1/2) / ln 2 = 27 bits a channel; 40 leaves room for
    # what integers round.
    labels = np.zeros((52, 52, 64), np.uint8)
    assert 8 * len(encode_lightweight(labels, levels=9)) < 0.00069 * labels.size + 64 * 40


def test_damage_is_an_error_or_other_labels_but_never_a_crash():
    labels = RNG.integers(0, 4, (30, 100))
    code = encode_lightweight(labels, levels=4)
    for _ in range(300):
        wrong = bytearray(code[: RNG.integers(len(code) + 1)])
        for _ in range(RNG.integers(3)):
            if wrong:
                wrong[RNG.integers(len(wrong))] ^= 1 << RNG.integers(8)
        try:
            found = decode_lightweight(bytes(wrong), levels=4, shape=(30, 100))
        except BitstreamError:
            continue
        assert found.shape == (30, 100)
        assert found.min() >= 0
        assert found.max() <= 3


def test_what_is_no_code_is_refused():
    code = encode_lightweight(np.ones((10, 10), int), levels=3)
    with pytest.raises(BitstreamError, match="words of 4 bytes; got 3"):
        decode_lightweight(code[:3], levels=3, shape=(10, 10))
    with pytest.raises(BitstreamError, match="words are left after the last label"):
        decode_lightweight(code + b"\1\2\3\4" * 4, levels=3, shape=(10, 10))
    with pytest.raises(BitstreamError, match=r"position \d+ is no arithmetic code"):
        decode_lightweight(b"\xff" * 80, levels=3, shape=(50, 100))


@pytest.mark.parametrize(
    ("labels", "levels", "message"),
    [
        (np.array([0]), 1, "levels must be at least 2; got 1"),
        (np.array([0, 3]), 3, r"labels must be 0 \.\. 2 for 3 levels; got 0 \.\. 3"),
        (np.array([-1, 1]), 3, r"; got -1 \.\. 1"),
        (np.array([0.5]), 3, r"labels must be integers \(\.\.\., C\); got float64\[1\]"),
    ],
)
def test_wrong_labels_are_refused(labels, levels, message):
    with pytest.raises(ValueError, match=message):
        encode_lightweight(labels, levels=levels)


@pytest.mark.parametrize("shape", [(), (3, -1)])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"shape must be \(\.\.\., C\)"):
        decode_lightweight(b"", levels=3, shape=shape)


def _error(values: np.ndarray, minimum: float, maximum: float, levels: int) -> float:
    ends = {"low": minimum, "high": maximum, "levels": levels}
    found = uniform_dequantize(uniform_quantize(jnp.asarray(values), **ends), **ends)
    return float(np.square(np.asarray(found, np.float64) - values).mean())


@pytest.mark.parametrize("levels", [2, 4, 9, 32])
@pytest.mark.parametrize("minimum", [0.0, -0.3])
def test_no_other_maximum_is_better(levels, minimum):
    # Laplacian through leaky ReLU, as in the paper
    values = RNG.laplace(0.2, 1.0, 4000)
    values = np.where(values < 0, 0.1 * values, values).astype(np.float32)
    best = calibrate_maximum(values, levels=levels, minimum=minimum)
    least = _error(values, minimum, best, levels)
    for other in np.linspace(minimum, values.max(), 101)[1:]:
        # float32 rounds values of up to 10 by 1e-6, and their squared error by 1e-5 of itself
        assert least <= _error(values, minimum, float(other), levels) * (1 + 1e-5) + 1e-10


def test_more_levels_clip_less():
    values = RNG.exponential(1.0, 20_000)
    found = [calibrate_maximum(values, levels=levels) for levels in (2, 4, 8, 16, 64)]
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] <= values.max() * (1 + 1e-4)


def test_two_levels_split_at_the_mean_of_the_upper_half():
    # Of 0 and x for x in {1, 3}: whatever c between 2 and 6 puts the cut between them costs
    # 1 + (3 - c)^2, least at 3; below 2 both go up: (1 - c)^2 + (3 - c)^2, least 2 at c = 2.
    assert calibrate_maximum([1.0, 3.0], levels=2) == pytest.approx(3.0, abs=3 / 256**2)


@pytest.mark.parametrize("values", [[], [0.0, -1.0], [1.0, np.nan], [np.inf]])
def test_values_that_have_no_range_are_refused(values):
    with pytest.raises(
        ValueError, match=r"values must be finite, and some above minimum=0\.0; got"
    ):
        calibrate_maximum(values, levels=4)
