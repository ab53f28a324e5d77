"""The lightweight codec of Cohen, Choi and Bajic, a baseline: intra only, a few operations a value.

Lightweight compression of neural network feature tensors for collaborative intelligence (ICME
2020): clip, quantise uniformly (`dynvid.ops.quantize.uniform_quantize` does both), write labels in
truncated unary, code its bins by an adaptive binary arithmetic coder with a context per position.
`dynvid.ops.quantize.uniform_dequantize` makes values of the decoded labels.
"""

from typing import Any

import constriction
import numpy as np
from numpy.typing import ArrayLike

from dynvid.coding.errors import BitstreamError

_stream: Any = vars(constriction)["stream"]  # a submodule that cannot be imported from
_MODEL = _stream.model.Bernoulli(perfect=False)
_RangeEncoder = _stream.queue.RangeEncoder
_RangeDecoder = _stream.queue.RangeDecoder

_ONE = 1 << 16  # probabilities are integers: equal at both ends, on any machine
_SHIFT = 5  # a bin moves its context's probability by 1 / 2^5 of the way: some 32 bins of memory


def encode_lightweight(labels: np.ndarray, *, levels: int) -> bytes:
    """Codes labels in truncated unary by adaptive binary arithmetic coding.

    Label n is n ones and a zero; the last label, N - 1, goes without its zero. Bin i of every label
    is coded in context i, whose probability of a one moves by 1/32 of the way to each bin that it
    has seen (Cohen et al., ICME 2020, section III; in CABAC, their coder, it is about 1/20).

    Each channel has contexts of its own, and channels advance side by side, so that an array of
    bins is coded at a time. As contexts forget in some 32 bins, that is what coding channel after
    channel in one set of contexts costs, but for the first bins of each channel.

    Args:
      labels: `int[..., C]` of 0 .. `levels - 1`, as `(h, w, C)`; time goes by the number of values
        of one channel.
      levels: N, at least 2.

    Returns:
      The bytes, a whole number of 32-bit words. Neither the shape nor N is in them.

    Raises:
      ValueError: Fewer than 2 levels, or labels that are no integers or out of range.

    Exact: `decode_lightweight` gives the labels back.

    >>> len(encode_lightweight(np.zeros((52, 52, 256), np.int32), levels=5))
    924
    """
    _check_levels(levels)
    if not np.issubdtype(labels.dtype, np.integer) or not labels.ndim:
        raise ValueError(
            f"labels must be integers (..., C); got {labels.dtype}{list(labels.shape)}"
        )
    if labels.size and (labels.min() < 0 or labels.max() >= levels):
        found = f"{labels.min()} .. {labels.max()}"
        raise ValueError(f"labels must be 0 .. {levels - 1} for {levels} levels; got {found}")
    coder = _RangeEncoder()
    contexts = _Contexts(labels.shape[-1], levels)
    for row in labels.reshape(-1, labels.shape[-1]) if labels.size else ():
        # Channels whose label has come to this bin; those with a one go on to the next.
        alive = np.arange(row.size)
        for position in range(levels - 1):
            bins = row[alive] > position
            coder.encode(bins.astype(np.int32), _MODEL, contexts.probability(position, alive))
            contexts.update(position, alive, bins)
            alive = alive[bins]
            if not alive.size:
                break
    return coder.get_compressed().astype("<u4").tobytes()


def decode_lightweight(data: bytes, *, levels: int, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes what `encode_lightweight` coded.

    Args:
      data: The bytes.
      levels: N, as they were coded.
      shape: `(..., C)` of the labels.

    Returns:
      `int32[..., C]`.

    Raises:
      ValueError: Fewer than 2 levels, or the shape has no or a negative side.
      BitstreamError: The bytes are no such code, or words are left. Not all damage is noticed: it
        has no checksum.

    Exact.

    >>> data = encode_lightweight(np.array([[0, 2], [1, 2]]), levels=3)
    >>> decode_lightweight(data, levels=3, shape=(2, 2))
    array([[0, 2],
           [1, 2]], dtype=int32)
    """
    _check_levels(levels)
    if not shape or min(shape) < 0:
        raise ValueError(f"shape must be (..., C), none of them negative; got {shape}")
    if len(data) % 4:
        raise BitstreamError(f"arithmetic code comes in words of 4 bytes; got {len(data)}")
    coder = _RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    contexts = _Contexts(shape[-1], levels)
    labels = np.zeros(shape, np.int32)
    for number, row in enumerate(labels.reshape(-1, shape[-1]) if labels.size else ()):
        alive = np.arange(row.size)
        for position in range(levels - 1):
            try:
                bins = coder.decode(_MODEL, contexts.probability(position, alive)).astype(bool)
            except AssertionError as error:  # what constriction raises
                raise BitstreamError(f"position {number} is no arithmetic code") from error
            contexts.update(position, alive, bins)
            alive = alive[bins]
            row[alive] += 1
            if not alive.size:
                break
    if not coder.maybe_exhausted():
        raise BitstreamError("words are left after the last label")
    return labels


def calibrate_maximum(values: ArrayLike, *, levels: int, minimum: float = 0.0) -> float:
    """Finds the upper end of the clip range that makes the error of clipping and rounding least.

    `argmin over c of mean((x - Q(clip(x, minimum, c)))^2)`, Q the uniform quantiser of N levels:
    the criterion of Cohen et al. (ICME 2020), section III. They evaluate it on an asymmetric
    Laplace density passed through the activation; here it is evaluated on the values themselves.

    Args:
      values: Finite, of any shape, of calibration frames; a sample will do.
      levels: N, at least 2.
      minimum: The lower end; the paper has it near 0 behind (leaky) ReLU.

    Returns:
      c, above `minimum`, in the unit of the values: the best of a grid of 1/256 of their range,
      then of 1/256 of its step.

    Raises:
      ValueError: Fewer than 2 levels, or no finite value above `minimum`.

    Approximate because the error has local minima between the points of the first grid.

    >>> calibrate_maximum([0.0, 1.0, 1.0, 2.0, 2.0], levels=3)
    2.0
    """
    _check_levels(levels)
    found = np.sort(np.asarray(values, np.float64), axis=None)
    if not found.size or not np.all(np.isfinite(found)) or not found[-1] > minimum:
        most = found[-1] if found.size else "none"
        raise ValueError(f"values must be finite, and some above minimum={minimum}; got {most}")
    sums = np.concatenate([[0], np.cumsum(found)])
    squares = np.concatenate([[0], np.cumsum(found**2)])

    def error(maximum: float) -> float:
        levels_at = np.linspace(minimum, maximum, levels)
        cuts = np.searchsorted(found, (levels_at[1:] + levels_at[:-1]) / 2)
        cuts = np.concatenate([[0], cuts, [found.size]])
        own = np.diff(squares[cuts]) - 2 * levels_at * np.diff(sums[cuts])
        return float(np.sum(own + levels_at**2 * np.diff(cuts)))

    step = (found[-1] - minimum) / 256
    best = min(minimum + step * np.arange(1, 257), key=error)
    near = best + step / 256 * np.arange(-255, 256)
    return float(min(near[near > minimum], key=error))


class _Contexts:
    """The probability of a one at each position of each channel's labels; both ends keep the same.

    Never within 31 / 65536 of 0 or 1, where steps round to nothing.
    """

    def __init__(self, channels: int, levels: int):
        self._ones = np.full((levels - 1, channels), _ONE // 2, np.int32)

    def probability(self, position: int, channels: np.ndarray) -> np.ndarray:
        return self._ones[position, channels] / _ONE

    def update(self, position: int, channels: np.ndarray, bins: np.ndarray) -> None:
        ones = self._ones[position, channels]
        up, down = (_ONE - ones) >> _SHIFT, ones >> _SHIFT
        self._ones[position, channels] = ones + np.where(bins, up, -down)


def _check_levels(levels: int) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2; got {levels}")
