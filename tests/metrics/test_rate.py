import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.metrics.rate import (
    accuracy_loss_decibels,
    bits_per_pixel,
    bjontegaard_delta_quality,
    bjontegaard_delta_rate,
    compression_ratio,
    rate_at_loss,
)

RATE = np.array([0.05, 0.1, 0.25, 0.4, 0.9])
QUALITY = np.array([0.31, 0.55, 0.7, 0.74, 0.8])

# Two pairs of curves in wide use as examples, and what the package bjontegaard 1.3.0 gives on them.
PUBLISHED = {
    "x265 presets": (
        [9487.76, 4593.60, 2486.44, 1358.24],
        [40.037, 38.615, 36.845, 34.851],
        [9787.80, 4469.00, 2451.52, 1356.24],
        [40.121, 38.651, 36.970, 34.987],
        {"cubic": (-4.420462706155115, 0.1204094191148477)},
        {"pchip": (-4.417485350589045, 0.11969278542479489)},
    ),
    "four rates": (
        [686.76, 309.58, 157.11, 85.95],
        [40.28, 37.18, 34.24, 31.42],
        [893.34, 407.8, 204.93, 112.75],
        [40.39, 37.21, 34.17, 31.24],
        {"cubic": (31.397374054908656, -1.1848979217703641)},
        {"pchip": (31.379878202397627, -1.1834724046224592)},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_curves(name):
    *curves, cubic, pchip = PUBLISHED[name]
    for interpolation, (rate, quality) in {**cubic, **pchip}.items():
        # Both fit polynomials whose values reach 1e4 times the difference: eps * 1e4 = 2e-12,
        # times the conditioning of a cubic in unscaled PSNR (1e4) on the other side.
        found = bjontegaard_delta_rate(*curves, interpolation=interpolation)
        assert found == pytest.approx(rate, abs=1e-6)
        found = bjontegaard_delta_quality(*curves, interpolation=interpolation)
        assert found == pytest.approx(quality, abs=1e-6)


@pytest.mark.parametrize("interpolation", ["pchip", "cubic"])
@pytest.mark.parametrize(("factor", "percent"), [(2, 100), (0.5, -50), (1, 0), (1.3, 30)])
def test_a_scaled_rate_is_that_many_percent(interpolation, factor, percent):
    found = bjontegaard_delta_rate(
        RATE, QUALITY, factor * RATE, QUALITY, interpolation=interpolation
    )
    assert found == pytest.approx(percent, abs=1e-9)


@pytest.mark.parametrize("interpolation", ["pchip", "cubic"])
def test_a_shifted_quality_is_that_shift(interpolation):
    found = bjontegaard_delta_quality(
        RATE, QUALITY, RATE, QUALITY - 0.03, interpolation=interpolation
    )
    assert found == pytest.approx(-0.03, abs=1e-12)


def test_straight_curves_by_hand():
    # Quality q of 0 .. 3 at rate e^q against the same at e^2q: ln R differs by q, on average 1.5.
    quality = np.arange(4.0)
    found = bjontegaard_delta_rate(np.exp(quality), quality, np.exp(2 * quality), quality)
    assert found == pytest.approx(100 * (np.exp(1.5) - 1), rel=1e-12)
    # Over ln R = 0 .. 3 the second has quality ln R / 2: half of ln R less, on average 0.75.
    found = bjontegaard_delta_quality(np.exp(quality), quality, np.exp(2 * quality), quality)
    assert found == pytest.approx(-0.75, rel=1e-12)


def test_only_the_shared_range_counts():
    quality = np.arange(8.0)
    rate = np.exp(quality)
    found = bjontegaard_delta_rate(rate[:5], quality[:5], 2 * rate[3:], quality[3:])
    assert found == pytest.approx(100)
    assert np.isnan(bjontegaard_delta_rate(rate[:4], quality[:4], rate[4:], quality[4:]))
    assert np.isnan(bjontegaard_delta_quality(rate[:4], quality[:4], rate[4:], quality[4:]))
    # they touch in one point, which is no range
    assert np.isnan(bjontegaard_delta_rate(rate[:5], quality[:5], rate[4:], quality[4:]))


def test_dearer_and_worse_points_do_not_count():
    rate, quality = np.append(RATE, [0.3, 1.5]), np.append(QUALITY, [0.6, 0.79])
    assert bjontegaard_delta_rate(RATE, QUALITY, rate, quality) == pytest.approx(0, abs=1e-9)
    assert rate_at_loss(rate, quality, reference=0.8) == rate_at_loss(RATE, QUALITY, reference=0.8)
    # raised to 0.8, the best up to rate 1.5: a curve that goes on flat
    flat = bjontegaard_delta_quality([*RATE, 1.5], [*QUALITY, 0.8], rate, quality)
    # the other point, raised to 0.7 at rate 0.3, only bends the curve between 0.25 and 0.4
    assert 0 < abs(flat) < 0.01


def test_a_dip_counts_as_the_best_before_it():
    dip, raised = [0.31, 0.55, 0.4, 0.74, 0.8], [0.31, 0.55, 0.55, 0.74, 0.8]
    found = bjontegaard_delta_quality(RATE, QUALITY, RATE, dip)
    assert found == bjontegaard_delta_quality(RATE, QUALITY, RATE, raised) < 0


@pytest.mark.parametrize("delta", [bjontegaard_delta_rate, bjontegaard_delta_quality])
def test_of_equal_rates_the_best_counts(delta):
    rate, quality = np.append(0.25, RATE), np.append(0.6, QUALITY)
    assert delta(RATE, QUALITY, rate, quality) == 0


def test_quality_that_never_grows_has_no_delta_rate():
    assert np.isnan(bjontegaard_delta_rate(RATE, QUALITY, RATE, [0.7] * 5))
    assert bjontegaard_delta_quality(RATE, [0.7] * 5, RATE, [0.6] * 5) == pytest.approx(-0.1)
    few = [0.31, 0.55, 0.7, 0.7, 0.7]
    assert np.isnan(bjontegaard_delta_rate(RATE, QUALITY, RATE, few, interpolation="cubic"))
    assert np.isfinite(bjontegaard_delta_rate(RATE, QUALITY, RATE, few))


@st.composite
def _curve(draw):
    # Multiples of 1/1000 keep slopes far from overflow, as measured rates and APs do.
    points = st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=4, max_size=8)
    rate, quality = np.transpose(draw(points)) / 1000
    return rate, quality


@settings(max_examples=100, deadline=None)
@given(_curve(), _curve(), st.randoms(use_true_random=False))
def test_invariants(anchor, other, random):
    # Sums of at most 8 integrals of values under ln 1000 = 7 in float64, over a range of at least
    # 1/1000: 8 * 7 * 2e-16 * 1e3 = 1e-11, absolute in the logarithm of the ratio of rates; less in
    # BD-AP, whose values are under 1.
    def log_ratio(*curves):
        return np.log1p(bjontegaard_delta_rate(*curves) / 100)

    def close(found, wanted):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)  # NaN equals NaN

    there = log_ratio(*anchor, *other)
    gain = bjontegaard_delta_quality(*anchor, *other)
    close(log_ratio(*other, *anchor), -there)
    close(bjontegaard_delta_quality(*other, *anchor), -gain)
    close(log_ratio(*anchor, *anchor), 0 * log_ratio(*anchor, *anchor))
    # the order of the points does not count
    order = random.sample(range(len(other[0])), len(other[0]))
    shuffled = other[0][order], other[1][order]
    close(log_ratio(*anchor, *shuffled), there)
    close(bjontegaard_delta_quality(*anchor, *shuffled), gain)
    # nor the units
    close(log_ratio(3 * anchor[0], 100 * anchor[1], 3 * other[0], 100 * other[1]), there)
    # three times the rate
    close(log_ratio(*anchor, 3 * other[0], other[1]), there + np.log(3))


def test_rate_at_loss():
    assert rate_at_loss(RATE, QUALITY, reference=0.8, loss=0) == pytest.approx(0.9)
    assert rate_at_loss(RATE, QUALITY, reference=0.74 / 0.98) == pytest.approx(0.4)
    between = rate_at_loss(RATE, QUALITY, reference=0.8, loss=0.05)
    assert 0.4 < between < 0.9
    assert np.isnan(rate_at_loss(RATE, QUALITY, reference=0.9))
    # all are good enough: the lowest that was measured
    assert rate_at_loss(RATE, QUALITY, reference=0.3) == pytest.approx(0.05)
    assert rate_at_loss([0.2], [0.9], reference=0.9) == pytest.approx(0.2)


@settings(max_examples=60, deadline=None)
@given(_curve(), st.floats(0.1, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_less_loss_needs_more_rate(curve, reference, loss, more):
    tight = rate_at_loss(*curve, reference=reference, loss=loss)
    loose = rate_at_loss(*curve, reference=reference, loss=loss + more)
    assert np.isnan(tight) or loose <= tight * (1 + 1e-12)


def test_bits_per_pixel():
    found = bits_per_pixel([1000, 10, 20, 900, 30], [0, 1, 1, 0, 1], pixels=416 * 416)
    assert found.predicted == 8 * 20 / 173_056
    assert found.all_frames == 8 * 392 / 173_056
    only_key = bits_per_pixel([5], [False], pixels=10)
    assert np.isnan(only_key.predicted)
    assert only_key.all_frames == 4
    assert np.isnan(bits_per_pixel([], [], pixels=10)).all()


def test_figures_of_merit():
    assert compression_ratio(24) == 1
    np.testing.assert_allclose(compression_ratio([1, 2], before=8), [0.125, 0.25])
    found = accuracy_loss_decibels(0.8, [0.72, 0.784, 0.8, 0.9])
    np.testing.assert_allclose(found, [-10, 10 * np.log10(0.02), np.nan, np.nan])
    assert isinstance(accuracy_loss_decibels(0.8, 0.72), float)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bits_per_pixel([1, 2], [True], pixels=4),
            r"sizes and predicted must both be .*; got \(2,\) and \(1,\)",
        ),
        (lambda: bits_per_pixel([1, -2], [True] * 2, pixels=4), r"sizes .* got -2\.0"),
        (lambda: bits_per_pixel([1], [True], pixels=0), "pixels must be at least 1; got 0"),
        (lambda: compression_ratio(1, before=0), "before must be above 0 bits per pixel; got 0"),
        (lambda: accuracy_loss_decibels([0.5, 0], 0.1), r"before must be above 0; got 0\.0"),
        (
            lambda: bjontegaard_delta_rate(RATE, QUALITY, RATE[:3], QUALITY[:3]),
            r"^rate and quality must be .* at least 4 points.* got \(3,\) and \(3,\)",
        ),
        (
            lambda: bjontegaard_delta_quality(RATE, QUALITY[:4], RATE, QUALITY),
            r"^anchor_rate and anchor_quality .* got \(5,\) and \(4,\)",
        ),
        (lambda: bjontegaard_delta_rate(RATE, QUALITY, RATE - 0.05, QUALITY), "^rate must be fin"),
        (lambda: bjontegaard_delta_rate(RATE, RATE * np.nan, RATE, RATE), "^anchor_quality must"),
        (
            lambda: bjontegaard_delta_rate(RATE, RATE, RATE, RATE, interpolation="akima"),  # type: ignore
            "interpolation must be 'pchip' or 'cubic'; got 'akima'",
        ),
        (lambda: rate_at_loss(RATE, QUALITY, reference=0), "reference must be above 0; got 0"),
        (lambda: rate_at_loss([], [], reference=1), "at least 1 points"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
