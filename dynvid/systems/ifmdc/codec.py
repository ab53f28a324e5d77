"""Feature maps as key frames and quantised differences, in a closed loop on integers.

IFMDC, section III: clip (Eq. 1, 2), predict from the last reconstruction (Eq. 3), quantise (Eq. 5).

One grid of integers serves key frames and residuals: level m of 0 .. M stands for `low + m A / M`,
`A = high - low`. M is the smallest number that makes both the step of key frames, `A / (k_key -
1)`, and that of residuals, `2 B / (k - 1)` with `B = A / residual_divisor`, whole numbers of
levels. The decoder only ever adds integers, so it holds what the encoder holds on any device.

Beyond the paper, `block` codes the differences of a transform's coefficients instead of values:
what changes in a feature map is smooth, and few coefficients hold most of it. All else is the same.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.ops.block_transform import (
    block_transform,
    from_blocks,
    inverse_block_transform,
    to_blocks,
)
from dynvid.ops.quantize import integrate_residual, quantize_residual
from dynvid.systems.ifmdc.settings import Settings

_CHUNK = 128  # positions that are coded at once where a mask says which


class CodecState(NamedTuple):
    """What both ends keep between frames.

    Attributes:
      level: the reconstruction on the integer grid, `int32[streams, h, w, c]`; with blocks, of
        their coefficients, `[streams, h / b, w / b, b * b * c]`.
      frame: the number of the next frame, `int32[]`.
      intact: whether `level` is what the encoder holds, `bool[]`: False before the first key frame
        and from a lost frame to the next key frame.
    """

    level: jax.Array
    frame: jax.Array
    intact: jax.Array


class Symbols(NamedTuple):
    """One frame as it is sent.

    Attributes:
      labels: `int16[streams, h, w, c]`, or as `CodecState.level` with blocks.
      is_key: whether it stands for itself, `bool[]`.
      frame: its number, `int32[]`.
    """

    labels: jax.Array
    is_key: jax.Array
    frame: jax.Array


class FeatureCodec(NamedTuple):
    """The two ends of the channel, pure and jittable.

    Attributes:
      settings: what it was built from.
      init: `init(shape) -> state` for features `(streams, h, w, c)`, on either end.
      encode: `encode(state, feature, change=None) -> (state, symbols)`.
      decode: `decode(state, symbols) -> (state, reconstruction)`.
    """

    settings: Settings
    init: Callable[..., CodecState]
    encode: Callable[..., tuple[CodecState, Symbols]]
    decode: Callable[..., tuple[CodecState, jax.Array]]


def ifmdc(settings: Settings) -> FeatureCodec:
    """Builds the codec of feature maps.

    Key frames, `n mod T = 0`: `q = round((f - low) / A (k_key - 1))`. All others:
    `q = clip(round((f - rec + B) / 2B (k - 1)), 0, k - 1)`,
    `rec <- clip(rec + 2B q / (k - 1) - B, low, high)` (IFMDC, Eq. 3 and 5, closed loop).

    - `encode` takes features `float[streams, h, w, c]` and, where it is known, a mask of what may
      have changed since the last frame, `bool[streams, h, w]`: positions outside of it have a
      residual of zero and are neither read nor compared (a key frame is whole all the same). A
      block is coded where any position of it may have changed.
    - `decode` returns the reconstruction, `float32[streams, h, w, c]`. A frame whose predecessor is
      missing leaves the state as it was, with `intact` False, up to the next key frame.

    Args:
      settings: what both ends agree on.

    Returns:
      The codec.

    Approximate because it rounds: `|clip(f) - rec| <= A / (k - 1)` at every frame where
    `residual_divisor = 1`, `dead_zone = 0.5` and `block = 1`, nothing is masked, and
    `k_key >= (k + 1) / 2`. With blocks the same holds for coefficients (`key_dead_zone = 0.5`),
    with their A, times 1, 4/3 or 5/3 by frequency.
    Exact between the ends: both hold the same integers, for ever.

    >>> codec = ifmdc(Settings(low=0.0, high=4.0, levels=5, group_of_pictures=2))
    >>> state = codec.init((1, 1, 2, 1))
    >>> state, symbols = codec.encode(state, jnp.array([[[[1.2], [9.0]]]]))
    >>> symbols.labels.ravel(), symbols.is_key.item()
    (Array([1, 4], dtype=int16), True)
    >>> state, symbols = codec.encode(state, jnp.array([[[[3.2], [4.0]]]]))
    >>> symbols.labels.ravel(), symbols.is_key.item()
    (Array([3, 2], dtype=int16), False)
    """
    low = np.asarray(settings.low, np.float32)
    space = _Space(settings)
    key_levels = settings.labels_of_key

    def init(shape: tuple[int, int, int, int]) -> CodecState:
        if len(shape) != 4 or (low.ndim and low.shape[0] != shape[3]):
            expected = low.shape[0] if low.ndim else "c"
            raise ValueError(f"shape must be (streams, h, w, {expected}), got {tuple(shape)}")
        return CodecState(
            jnp.zeros(space.shape(shape), jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), bool),
        )

    def key(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        steps = space.steps(settings.key_step, values)
        target = (space.to_grid(values) - space.zero) / steps
        # Of means every step counts: what is around them is guessed from them.
        zone = np.where(steps == settings.key_step, 0.5, settings.key_dead_zone).astype(np.float32)
        nearest = jnp.where(jnp.abs(target) < zone, 0, jnp.round(target).astype(jnp.int32))
        labels = jnp.clip(nearest + space.key_zero, 0, key_levels - 1)
        return labels.astype(jnp.int16), from_key(labels)

    def from_key(labels: jax.Array) -> jax.Array:
        steps = space.steps(settings.key_step, labels)
        return jnp.clip(space.zero + (labels - space.key_zero) * steps, 0, settings.grid)

    def residual(values: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        labels = quantize_residual(
            space.to_grid(values),
            level,
            step=space.steps(settings.residual_step, values),
            levels=settings.levels,
            dead_zone=settings.dead_zone,
        )
        return labels.astype(jnp.int16), add(level, labels)

    def add(level: jax.Array, labels: jax.Array) -> jax.Array:
        return integrate_residual(
            level,
            labels.astype(jnp.int32),
            step=space.steps(settings.residual_step, level),
            levels=settings.levels,
            top=settings.grid,
        )

    def encode(
        state: CodecState, feature: jax.Array, change: jax.Array | None = None
    ) -> tuple[CodecState, Symbols]:
        _check(feature, space.features_of(state.level.shape), change)
        feature = to_blocks(feature, block=settings.block)
        if change is not None:
            change = to_blocks(change[..., None], block=settings.block).any(-1)
        is_key = state.frame % settings.group_of_pictures == 0
        if change is None:
            labels, level = lax.cond(is_key, lambda x, m: key(x), residual, feature, state.level)
        else:
            labels, level = lax.cond(
                is_key,
                lambda x, m, mask: key(x),
                lambda x, m, mask: _where_changed(residual, x, m, mask, settings.run_label),
                feature,
                state.level,
                change,
            )
        symbols = Symbols(labels, is_key, state.frame)
        return CodecState(level, state.frame + 1, jnp.ones((), bool)), symbols

    def decode(state: CodecState, symbols: Symbols) -> tuple[CodecState, jax.Array]:
        follows = state.intact & (symbols.frame == state.frame)
        labels = symbols.labels.astype(jnp.int32)
        level = jnp.where(
            symbols.is_key,
            from_key(jnp.clip(labels, 0, key_levels - 1)),
            jnp.where(follows, add(state.level, labels), state.level),
        )
        return CodecState(level, symbols.frame + 1, symbols.is_key | follows), space.values(level)

    return FeatureCodec(settings, init, encode, decode)


class _Space:
    """Between features and the integer grid that their values, or coefficients, are coded on."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._low, self._high = (np.asarray(x, np.float32) for x in (settings.low, settings.high))
        self._block = settings.block
        if self._block == 1:
            self._origin, reach = self._low, self._high - self._low
            self.zero, self.key_zero = 0, 0
        else:
            # What is nearest to nothing: most features are, and it must not cost a label.
            self._origin = np.clip(np.float32(0), self._low, self._high)
            farthest = np.maximum(self._high - self._origin, self._origin - self._low)
            reach = 2 * self._block * farthest
            self.zero, self.key_zero = settings.grid // 2, settings.labels_of_key // 2
        self._to_grid = np.float32(settings.grid) / reach
        self._from_grid = reach / np.float32(settings.grid)

    def shape(self, features: tuple[int, ...]) -> tuple[int, ...]:
        """Of what is coded, from that of features."""
        found = jax.eval_shape(
            lambda x: to_blocks(x, block=self._block), jax.ShapeDtypeStruct(features, np.float32)
        )
        return found.shape

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of features, from that of what is coded."""
        streams, height, width, channels = shape
        block = self._block
        return streams, height * block, width * block, channels // block**2

    def steps(self, step: int, values: jax.Array) -> np.ndarray:
        """The grid levels of a label of each channel, from those of a mean: `int32[b * b * c]`."""
        table = np.array(self._settings.coarseness, np.int32)
        return np.repeat(step // table[0] * table, values.shape[-1] // len(table))

    def to_grid(self, values: jax.Array) -> jax.Array:
        """Features in blocks to grid levels, not yet rounded."""
        parts = values.reshape(*values.shape[:-1], self._block**2, -1)
        parts = jnp.clip(parts, self._low, self._high) - self._origin
        values = parts.reshape(values.shape)
        if self._block > 1:
            values = block_transform(values, block=self._block)
        parts = values.reshape(parts.shape) * self._to_grid
        return parts.reshape(values.shape) + self.zero

    def values(self, level: jax.Array) -> jax.Array:
        """Grid levels to features, `float32[streams, h, w, c]`."""
        parts = (level - self.zero).astype(jnp.float32)
        parts = parts.reshape(*level.shape[:-1], self._block**2, -1) * self._from_grid
        values = parts.reshape(level.shape)
        if self._block == 1:
            return jnp.asarray(self._origin) + values
        values = inverse_block_transform(values, block=self._block)
        features = self._origin + from_blocks(values, block=self._block)
        return jnp.clip(features, self._low, self._high)


def _where_changed(
    residual: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    feature: jax.Array,
    level: jax.Array,
    change: jax.Array,
    run_label: int,
) -> tuple[jax.Array, jax.Array]:
    """Runs `residual` on the marked positions alone, a chunk at a time; the rest is zero."""
    channels = level.shape[-1]
    positions = change.size
    chunk = min(_CHUNK, positions)
    # Filled up with positions beyond the last: gathers clip them, scatters drop them.
    room = -(-positions // chunk) * chunk
    marked = jnp.nonzero(change.reshape(-1), size=room, fill_value=positions)[0]
    rows = feature.reshape(positions, channels)

    def code(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        labels, levels = carry
        here = lax.dynamic_slice(marked, (i * chunk,), (chunk,))
        new = residual(
            rows.at[here].get(mode="clip"),
            levels.at[here].get(mode="clip"),
        )
        return (
            labels.at[here].set(new[0], mode="drop"),
            levels.at[here].set(new[1], mode="drop"),
        )

    chunks = -(-jnp.sum(change, dtype=jnp.int32) // chunk)
    still = jnp.full((positions, channels), run_label, jnp.int16)
    labels, levels = lax.fori_loop(0, chunks, code, (still, level.reshape(positions, channels)))
    return labels.reshape(level.shape), levels.reshape(level.shape)


def _check(feature: jax.Array, shape: tuple[int, ...], change: jax.Array | None) -> None:
    if feature.shape != shape or not jnp.issubdtype(feature.dtype, jnp.floating):
        raise ValueError(
            f"feature must be floating {shape}, as init was told, got {feature.dtype} "
            f"{feature.shape}"
        )
    if change is not None and (change.shape != shape[:3] or change.dtype != bool):
        raise ValueError(f"change must be bool {shape[:3]}, got {change.dtype} {change.shape}")
