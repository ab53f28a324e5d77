"""What both ends of the codec agree on, and how the clip range is chosen."""

import dataclasses
import math
from typing import Literal

import jax
import numpy as np

from dynvid.ops.block_transform import frequency_order

_MOST_LEVELS = (1 << 12) + 1  # what the bitstream takes
_FINEST_GRID = 1 << 20  # float32 still tells a sixteenth of a level
_MOST_BLOCK = 16
# Steps of a block's coefficients by their frequency, row + column: of the mean, of the first
# diagonal, of all others. Measured on detectors, where finer means save boxes.
_COARSENESS = (3, 4, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What encoder and decoder agree on, and how the encoder chooses.

    Attributes:
      low: The least feature value that is kept; one number, or one a channel.
      high: The largest; A is `high - low`.
      levels: k, the labels of a residual: odd, 3 or more.
      key_levels: k_key, the labels of a key frame; None takes `levels`.
      group_of_pictures: T, from key frame to key frame.
      scan: The order of labels in run-length tokens: channel by channel as in Darknet, or
        position by position.
      residual_divisor: Residuals are quantised over `-B .. B`, `B = A / residual_divisor`; 1 is the
        paper's. More makes steps finer at equal k; what exceeds B waits for the next frame, and
        where a mask says what changed, until the position is marked again or for a key frame.
      dead_zone: In residual steps, 0.5 or more: what moved by less counts as unchanged. 0.5 is the
        paper's quantiser. The decoder need not know.
      block: Side of the square blocks whose discrete cosine transform is coded, a divisor of the
        map's height and width; 1 codes values, as the paper does. With more, `A = 2 b max |f - z|`
        of the clipped features is what coefficients of `f - z` span, all of them around zero, z
        being the kept value that is nearest to zero; k and k_key count steps of a block's mean,
        those of the first other frequencies are 4/3 of it, of all higher ones 5/3; and k_key must
        be odd.
      key_dead_zone: As `dead_zone`, of coefficients in key frames other than a block's mean.

    Raises:
      ValueError: An option is not what it has to be.

    >>> settings = Settings(low=-1.0, high=3.0, levels=9)
    >>> settings.grid, settings.residual_step, settings.key_step
    (8, 2, 1)
    >>> Settings(low=-1.0, high=3.0, levels=8)
    Traceback (most recent call last):
    ...
    ValueError: levels must be odd and of 3 .. 4097; got 8: an even number has no label for a
    residual of zero, and a still feature map would flicker by a whole step
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    levels: int = 9
    key_levels: int | None = None
    group_of_pictures: int = 15
    scan: Literal["chw", "hwc"] = "chw"
    residual_divisor: int = 1
    dead_zone: float = 0.5
    block: int = 1
    key_dead_zone: float = 0.5

    def __post_init__(self):
        if self.levels % 2 == 0 or not 3 <= self.levels <= _MOST_LEVELS:
            raise ValueError(
                f"levels must be odd and of 3 .. {_MOST_LEVELS}; got {self.levels}"
                + (
                    ": an even number has no label for a residual of zero, and a still feature map "
                    "would flicker by a whole step"
                    if self.levels % 2 == 0
                    else ""
                )
            )
        if self.key_levels is not None and not 2 <= self.key_levels <= _MOST_LEVELS:
            raise ValueError(f"key_levels must be of 2 .. {_MOST_LEVELS}; got {self.key_levels}")
        if not 1 <= self.group_of_pictures < 1 << 32:
            raise ValueError(
                f"group_of_pictures must be of 1 .. 2^32 - 1; got {self.group_of_pictures}"
            )
        if self.scan not in ("chw", "hwc"):
            raise ValueError(f"scan must be 'chw' or 'hwc'; got {self.scan!r}")
        if self.residual_divisor < 1:
            raise ValueError(f"residual_divisor must be at least 1; got {self.residual_divisor}")
        for name in ("dead_zone", "key_dead_zone"):
            if not 0.5 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0.5 steps or more; got {getattr(self, name)}")
        if not 1 <= self.block <= _MOST_BLOCK:
            raise ValueError(f"block must be of 1 .. {_MOST_BLOCK}; got {self.block}")
        if self.block > 1 and self.labels_of_key % 2 == 0:
            raise ValueError(
                f"key_levels must be odd where block is more than 1; got {self.labels_of_key}: "
                "most coefficients are zero, for which an even number has no label"
            )
        # As the file stores them, so that both ends compute with the same numbers.
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        if low.shape != high.shape or low.ndim > 1:
            raise ValueError(
                f"low and high must both be numbers or one a channel; got shapes {low.shape} and "
                f"{high.shape}"
            )
        # Beyond, the grid levels of a unit, or what coefficients span, are no float32 any more.
        width = high.astype(np.float64) - low
        if not np.all((low < high) & (width > 2.0**-100) & (width < 2.0**120)):
            raise ValueError(
                "low must be below high and both finite, 2^-100 to 2^120 apart; got "
                f"{self.low}, {self.high}"
            )
        for name, value in (("low", low), ("high", high)):
            exact = float(value) if value.ndim == 0 else tuple(map(float, value))
            object.__setattr__(self, name, exact)
        if self.grid > _FINEST_GRID:
            raise ValueError(
                f"key_levels={self.key_levels}, levels={self.levels} and residual_divisor="
                f"{self.residual_divisor} have no common grid of {_FINEST_GRID} levels or fewer; "
                "make key_levels - 1 a multiple or a divisor of (levels - 1) / 2 * residual_divisor"
            )

    @property
    def labels_of_key(self) -> int:
        """k_key."""
        return self.levels if self.key_levels is None else self.key_levels

    @property
    def grid(self) -> int:
        """M, the last level of the common grid."""
        steps = math.lcm(self.labels_of_key - 1, (self.levels - 1) // 2 * self.residual_divisor)
        return steps * self.coarseness[0]

    @property
    def coarseness(self) -> tuple[int, ...]:
        """Of each coefficient of a block, how its step compares to those of the others."""
        if self.block == 1:
            return (1,)
        orders = frequency_order(self.block).sum(-1)
        return tuple(_COARSENESS[min(order, len(_COARSENESS) - 1)] for order in orders.tolist())

    @property
    def key_step(self) -> int:
        """Grid levels from label to label of a key frame; with blocks, of their means."""
        return self.grid // (self.labels_of_key - 1)

    @property
    def residual_step(self) -> int:
        """Grid levels from label to label of a residual; with blocks, of their means."""
        return self.grid // ((self.levels - 1) // 2 * self.residual_divisor)

    @property
    def run_label(self) -> int:
        """N, the label of a residual of zero."""
        return (self.levels - 1) // 2


def clip_range(
    features: np.ndarray | jax.Array,
    *,
    percentiles: tuple[float, float] = (0.1, 99.9),
    by_channel: bool = False,
) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
    """Chooses `low` and `high` from calibration features: two percentiles of their values.

    Args:
      features: `(..., c)`, floating.
      percentiles: Of the lower and the upper end, in percent.
      by_channel: A range for each channel instead of one for all.

    Returns:
      `low` and `high`: numbers, or one number a channel.

    Raises:
      ValueError: The range is empty, as of a feature map (or a channel) that is constant.

    >>> clip_range(np.arange(1001.0)[:, None])
    (1.0, 999.0)
    """
    values = np.asarray(features, np.float32)
    if by_channel:
        ends = np.percentile(values.reshape(-1, values.shape[-1]), percentiles, axis=0)
        # A channel that never moves still needs a range: that of the narrowest that does.
        width = ends[1] - ends[0]
        if np.any(width > 0):
            ends[1] = np.where(width > 0, ends[1], ends[0] + width[width > 0].min())
        low, high = (tuple(end.tolist()) for end in ends.astype(np.float32))
    else:
        low, high = np.percentile(values, percentiles).astype(np.float32).tolist()
    if not np.all(np.less(low, high)):
        raise ValueError(
            f"features must have a range at percentiles {percentiles}; got {low}, {high}"
        )
    return low, high


def settings_for(
    low: float | tuple[float, ...],
    high: float | tuple[float, ...],
    *,
    levels: int = 9,
    block: int = 1,
    group_of_pictures: int = 15,
) -> Settings:
    """Makes settings of a clip range, with what has been measured to go well with blocks.

    With them, key frames have about the steps of residuals, and coefficients have dead zones, as in
    `experiments/ifmdc/rate_accuracy`. Without, all else is the paper's.

    Args:
      low: The least feature value that is kept; one number, or one a channel.
      high: The largest.
      levels: k, the labels of a residual.
      block: Side of the blocks whose transform is coded, 1 for values.
      group_of_pictures: T, from key frame to key frame.

    Returns:
      The settings; `dataclasses.replace` changes what else they hold.

    Raises:
      ValueError: An option is not what it has to be.

    >>> settings = settings_for(0.0, 4.0, levels=45, block=4)
    >>> settings.key_levels, settings.dead_zone, settings.key_dead_zone
    (23, 0.7, 0.6)
    """
    settings = Settings(low=low, high=high, levels=levels, group_of_pictures=group_of_pictures)
    if block == 1:
        return settings
    return dataclasses.replace(
        settings, block=block, key_levels=(levels + 1) // 2 | 1, dead_zone=0.7, key_dead_zone=0.6
    )
