"""What a codec costs, and how two codecs compare: bits per pixel, BD-rate, loss of accuracy.

A handful of numbers a curve, after everything has run: on the host, in float64.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

Interpolation = Literal["pchip", "cubic"]


class BitsPerPixel(NamedTuple):
    """Mean bits per pixel.

    Attributes:
      predicted: Of predicted (P) frames only, what IFMDC plots; NaN where there is none.
      all_frames: Of all of them, key frames included; NaN where there is none.
    """

    predicted: float
    all_frames: float


def bits_per_pixel(sizes: ArrayLike, predicted: ArrayLike, *, pixels: int) -> BitsPerPixel:
    """Averages the sizes of coded frames, P frames apart.

    `bpp = 8 * mean(bytes) / pixels`. IFMDC (arXiv 2411.00984), section IV, reports P frames.

    Args:
      sizes: `(frames,)`, bytes.
      predicted: `(frames,)`, bool: True where the frame is a P frame.
      pixels: Of one frame of the *model's input*, whatever is coded, so that methods compare: 416 *
        416 = 173 056 for YOLOv3, not the 832 * 832 of its tiled feature map.

    Returns:
      Both means.

    Raises:
      ValueError: The two differ in length, a size is negative, or `pixels` is not positive.

    Exact.

    >>> bits_per_pixel([600, 100, 200], [False, True, True], pixels=400)
    BitsPerPixel(predicted=3.0, all_frames=6.0)
    """
    found, mask = np.asarray(sizes, np.float64), np.asarray(predicted, bool)
    if found.ndim != 1 or found.shape != mask.shape:
        raise ValueError(
            f"sizes and predicted must both be (frames,); got {found.shape} and {mask.shape}"
        )
    if not np.all(found >= 0):
        raise ValueError(f"sizes must be at least 0 bytes; got {found.min()}")
    if pixels < 1:
        raise ValueError(f"pixels must be at least 1; got {pixels}")
    means = [
        8 * some.mean().item() / pixels if some.size else np.nan for some in (found[mask], found)
    ]
    return BitsPerPixel(*means)


def compression_ratio(after: ArrayLike, *, before: float = 24.0) -> np.ndarray | float:
    """Relates the information after coding to that before, so that less is better.

    `I_after / I_before`: IFMDC (arXiv 2411.00984), Eq. 6.

    Args:
      after: `[...]`, bits per pixel.
      before: Bits per pixel; 24 is 8-bit RGB, which the paper leaves open.

    Returns:
      `[...]`, float64.

    Raises:
      ValueError: `before` is not positive.

    >>> float(compression_ratio(1.5))
    0.0625
    """
    if not before > 0:
        raise ValueError(f"before must be above 0 bits per pixel; got {before}")
    return np.asarray(after, np.float64)[()] / before


def accuracy_loss_decibels(before: ArrayLike, after: ArrayLike) -> np.ndarray | float:
    """Measures the loss of average precision in decibels, so that less is better.

    `10 log10((AP_b - AP_a) / AP_b)`: IFMDC (arXiv 2411.00984), Eq. 7. A loss of 2% is -17 dB.

    Args:
      before: AP_b `[...]`, above 0, without coding.
      after: AP_a `[...]`, with it, broadcastable.

    Returns:
      `[...]`, float64; NaN, which is *missing* and not minus infinity, where nothing was lost:
      AP_a >= AP_b. Averages over videos must say how many are missing.

    Raises:
      ValueError: `before` is not positive.

    >>> accuracy_loss_decibels([0.5, 0.5], [0.45, 0.6])
    array([-10.,  nan])
    """
    reference = np.asarray(before, np.float64)
    if not np.all(reference > 0):
        raise ValueError(f"before must be above 0; got {reference.min()}")
    loss = (reference - np.asarray(after, np.float64)) / reference
    return 10 * np.log10(np.where(loss > 0, loss, np.nan))[()]


def bjontegaard_delta_rate(
    anchor_rate: ArrayLike,
    anchor_quality: ArrayLike,
    rate: ArrayLike,
    quality: ArrayLike,
    *,
    interpolation: Interpolation = "pchip",
) -> float:
    """Averages how much more rate than an anchor a codec needs for the same quality, in percent.

    `100 * (exp(mean over quality of (ln R(quality) - ln R_anchor(quality))) - 1)`, over the
    qualities that both reach: Bjontegaard, VCEG-M33 (2001).

    Average precision need not grow with rate. Taken is the *upper envelope*, the best quality that
    any rate up to this one gives: points that a cheaper one equals or beats are left out.

    Args:
      anchor_rate: `(n,)` of at least 4 points in any order, above 0, in the unit of `rate`.
      anchor_quality: `(n,)`, in the unit of `quality`; more is better.
      rate: `(m,)`, at least 4, above 0.
      quality: `(m,)`.
      interpolation: "pchip", monotone piecewise cubic through the points, is today's practice
        (JCTVC-L1100); "cubic" is the original, one polynomial fitted to all of them.

    Returns:
      Percent, -50 for half the rate; NaN where the envelopes share no range of quality, or are of
      fewer than 2 points ("cubic": 4), as where quality is the same at every rate.

    Raises:
      ValueError: A curve has fewer than 4 points, its arrays differ in length, a rate is not
        positive, or a quality is not finite.

    Approximate because curves are interpolated.

    >>> rate, quality = [0.1, 0.2, 0.4, 0.8], [0.5, 0.7, 0.8, 0.85]
    >>> round(bjontegaard_delta_rate(rate, quality, [0.05, 0.1, 0.2, 0.4], quality), 6)
    -50.0
    """
    anchor = upper_envelope(*_curve(anchor_rate, anchor_quality, "anchor_"))
    other = upper_envelope(*_curve(rate, quality, ""))
    (anchor_log, anchor_level), (other_log, other_level) = anchor, other
    difference = _mean_difference(anchor_level, anchor_log, other_level, other_log, interpolation)
    return float(100 * np.expm1(difference))


def bjontegaard_delta_quality(
    anchor_rate: ArrayLike,
    anchor_quality: ArrayLike,
    rate: ArrayLike,
    quality: ArrayLike,
    *,
    interpolation: Interpolation = "pchip",
) -> float:
    """Averages how much better than an anchor a codec is at the same rate: BD-AP.

    `mean over ln R of (Q(ln R) - Q_anchor(ln R))`, over the rates that both have: Bjontegaard,
    VCEG-M33 (2001), there BD-PSNR.

    As in `bjontegaard_delta_rate` the best quality up to each rate is taken. Here points off the
    envelope stay and are raised to it, so that a curve covers all of its rates.

    Args:
      anchor_rate: `(n,)` of at least 4 points in any order, above 0, in the unit of `rate`.
      anchor_quality: `(n,)`, in the unit of `quality`; more is better.
      rate: `(m,)`, at least 4, above 0.
      quality: `(m,)`.
      interpolation: See `bjontegaard_delta_rate`.

    Returns:
      In the unit of quality, above 0 where the codec is better; NaN where the curves share no range
      of rate, or have fewer than 2 ("cubic": 4) different rates.

    Raises:
      ValueError: As `bjontegaard_delta_rate`.

    Approximate because curves are interpolated.

    >>> rate = [0.1, 0.2, 0.4, 0.8]
    >>> delta = bjontegaard_delta_quality(rate, [0.5, 0.7, 0.8, 0.9], rate, [0.6, 0.8, 0.9, 1.0])
    >>> round(delta, 6)
    0.1
    """
    anchor = _running_best(*_curve(anchor_rate, anchor_quality, "anchor_"))
    other = _running_best(*_curve(rate, quality, ""))
    return float(_mean_difference(*anchor, *other, interpolation))


def rate_at_loss(
    rate: ArrayLike, quality: ArrayLike, *, reference: float, loss: float = 0.02
) -> float:
    """Interpolates the lowest rate whose relative loss of quality is no more than `loss`.

    IFMDC's statement is of the rate "for AP loss under 2%": `(AP_b - AP_a) / AP_b` of Eq. 7.

    Args:
      rate: `(n,)`, above 0.
      quality: `(n,)`, in any order.
      reference: AP_b, the quality without coding, above 0.
      loss: Relative, 0.02 for 2%.

    Returns:
      In the unit of `rate`, from the upper envelope as in `bjontegaard_delta_rate`, monotone
      piecewise cubic in the logarithm of the rate. NaN where no point is good enough. The lowest
      rate where that is already good enough: nothing is extrapolated, so it is an upper bound.

    Raises:
      ValueError: There is no point, the arrays differ in length, a rate is not positive, a quality
        is not finite, or `reference` is not above 0.

    Approximate because the curve is interpolated.

    >>> round(rate_at_loss([0.1, 0.4], [0.7, 0.9], reference=1.0, loss=0.2), 6)
    0.2
    """
    if not 0 < reference < np.inf:
        raise ValueError(f"reference must be above 0; got {reference}")
    log_rate, level = upper_envelope(*_curve(rate, quality, "", least=1))
    wanted = reference * (1 - loss)
    if wanted > level[-1]:
        return float(np.nan)
    if wanted <= level[0]:
        return float(np.exp(log_rate[0]))
    return float(np.exp(PchipInterpolator(level, log_rate)(wanted)))


def _curve(
    rate: ArrayLike, quality: ArrayLike, name: str, *, least: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the rates, ascending, and qualities; the better first at equal rates."""
    rates, levels = np.asarray(rate, np.float64), np.asarray(quality, np.float64)
    if rates.ndim != 1 or rates.shape != levels.shape or rates.size < least:
        expected = f"one-dimensional, of at least {least} points, equally long"
        found = f"{rates.shape} and {levels.shape}"
        raise ValueError(f"{name}rate and {name}quality must be {expected}; got {found}")
    if not (np.all(rates > 0) and np.all(np.isfinite(rates))):
        raise ValueError(f"{name}rate must be finite and above 0; got {rates.tolist()}")
    if not np.all(np.isfinite(levels)):
        raise ValueError(f"{name}quality must be finite; got {levels.tolist()}")
    order = np.lexsort((-levels, rates))
    return np.log(rates[order]), levels[order]


def _running_best(log_rate: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best quality up to each rate, one point a rate."""
    first = np.append(True, np.diff(log_rate) > 0)
    return log_rate[first], np.maximum.accumulate(level)[first]


def upper_envelope(rate: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picks the points that are better than all cheaper ones.

    Args:
      rate: `(n,)`, ascending, in any unit or its logarithm.
      quality: `(n,)`.

    Returns:
      Their rates and qualities, both ascending.

    >>> upper_envelope(np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, 6.0]))
    (array([1., 3.]), array([5., 6.]))
    """
    best = np.maximum.accumulate(quality)
    better = np.append(True, np.diff(best) > 0)
    return rate[better], quality[better]


def _mean_difference(
    anchor_x: np.ndarray,
    anchor_y: np.ndarray,
    other_x: np.ndarray,
    other_y: np.ndarray,
    interpolation: Interpolation,
) -> float:
    """The mean of `other_y - anchor_y` over the range of x that both have."""
    low, high = max(anchor_x[0], other_x[0]), min(anchor_x[-1], other_x[-1])
    if interpolation not in ("pchip", "cubic"):
        raise ValueError(f"interpolation must be 'pchip' or 'cubic'; got {interpolation!r}")
    least = 2 if interpolation == "pchip" else 4
    if min(anchor_x.size, other_x.size) < least or not low < high:
        return np.nan
    integral = _integral_pchip if interpolation == "pchip" else _integral_cubic
    difference = integral(other_x, other_y, low, high) - integral(anchor_x, anchor_y, low, high)
    return difference / (high - low)


def _integral_pchip(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    return float(PchipInterpolator(x, y).integrate(low, high))


def _integral_cubic(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    whole = np.polynomial.Polynomial.fit(x, y, 3).integ()
    return whole(high) - whole(low)
