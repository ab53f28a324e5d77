"""Feature maps as key frames and quantised differences, in a closed loop on integers.

IFMDC, section III: clip (Eq. 1, 2), predict from the last reconstruction (Eq. 3), quantise (Eq. 5).

One grid of integers serves key frames and residuals: level m of 0 .. M stands for `low + m A / M`,
`A = high - low`. M is the smallest number that makes both the step of key frames, `A / (k_key -
1)`, and that of residuals, `2 B / (k - 1)` with `B = A / residual_divisor`, whole numbers of
levels. The decoder only ever adds integers, so it holds what the encoder holds on any device.

Beyond the paper, `block` codes the differences of a transform's coefficients instead of values:
what changes in a feature map is smooth, and few coefficients hold most of it. All else is the same.
"""

import functools
import math
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
from dynvid.types import Params, VideoFunction, Work

_CHUNK = 128  # positions that are coded at once where a mask says which


class CodecState(NamedTuple):
    """What either end keeps between frames: a pytree of arrays.

    Attributes:
      level: The reconstruction on the integer grid, `int32[streams, h, w, c]`; with blocks, of
        their coefficients, `(streams, h / b, w / b, b * b * c)`.
      frame: The number of the next frame, `uint32[]`, modulo 2^32.
      intact: Whether `level` is what the other end holds, `bool[]`: False before the first key
        frame, at a decoder from a lost frame to the next key frame, and once a stream has been
        replaced. While it is False an encoder makes key frames, and a decoder waits for one.
      work: What the last step executed. `macs` are the block transform's, none where `block` is 1;
        `changed` is the share of positions, of blocks where there are any, with a label other than
        that of a zero residual, all of them in a key frame. Its details are `is_key`, `bool[]`, and
        `nonzero`, `int32[streams]`: how many labels are not that of a zero residual; in a key frame
        all.
    """

    level: jax.Array
    frame: jax.Array
    intact: jax.Array
    work: Work

    def stream_axes(self) -> "CodecState":
        """The same pytree with the stream axis of each leaf; -1 where it is of all streams."""
        axes = jax.tree.map(lambda _: 0, self)
        work = axes.work._replace(details={**axes.work.details, "is_key": -1})
        return axes._replace(frame=-1, intact=-1, work=work)

    def restarted(self, which: jax.Array) -> "CodecState":
        """The state once some of its streams have been replaced; see `dynvid.replace_streams`.

        Key frames are of all streams together: where any was replaced, the next frame of an encoder
        is a key frame, and a decoder waits for that.
        """
        return self._replace(intact=self.intact & ~jnp.any(which))


class Symbols(NamedTuple):
    """One frame as it is sent.

    Attributes:
      labels: `int16[streams, h, w, c]`, or as `CodecState.level` with blocks.
      is_key: Whether it stands for itself, `bool[]`.
      frame: Its number, `uint32[]`, modulo 2^32.
    """

    labels: jax.Array
    is_key: jax.Array
    frame: jax.Array


class FeatureCodec(NamedTuple):
    """The two ends of the channel, each a `VideoFunction` without parameters: these are `()`.

    Attributes:
      settings: What it was built from.
      encoder: From features, `float[streams, h, w, c]`, to `Symbols`. The mask of its step is
        `bool[streams, h, w]`.
      decoder: From `Symbols` to the reconstruction, `float32[streams, h, w, c]`. Its step takes no
        mask.
      blank: `blank(shape) -> CodecState` for features `(streams, h, w, c)`: either end before its
        first frame. `init` is a step from there.
    """

    settings: Settings
    encoder: VideoFunction
    decoder: VideoFunction
    blank: Callable[[tuple[int, ...]], CodecState]


def ifmdc(settings: Settings) -> FeatureCodec:
    """Builds the codec of feature maps.

    Key frames, `n mod T = 0`: `q = round((f - low) / A (k_key - 1))`. All others:
    `q = clip(round((f - rec + B) / 2B (k - 1)), 0, k - 1)`,
    `rec <- clip(rec + 2B q / (k - 1) - B, low, high)` (IFMDC, Eq. 3 and 5, closed loop).

    - `encoder.step(params, state, features, mask=None) -> (state, symbols)`. The mask says which
      positions may have changed since the last frame: those outside of it have a residual of zero
      and are neither read nor compared (a key frame is whole all the same). A block is coded where
      any position of it may have changed.
    - `decoder.step(params, state, symbols) -> (state, reconstruction)`. A frame whose predecessor
      is missing leaves the state as it was, with `intact` False, up to the next key frame.
    - Both `init(params, ...)` do the same for the first frame. All four are jitted; equal settings
      share their executables. Wrap steps in `jax.jit(..., donate_argnums=1)` so that the state is
      updated in place.
    - Where streams of the encoder's state are replaced (`dynvid.replace_streams`, by those of
      `blank`, say), its next frame is a key frame of all streams, whatever its number; the decoder
      need not be told.
    - Frames are numbered modulo 2^32. Number 0 is a key frame, as always: the frames before it may
      be fewer than T.

    Args:
      settings: What both ends agree on.

    Returns:
      The codec.

    Raises:
      ValueError: By `init` and `step` for features, symbols or masks of another shape or dtype than
        the state's or the settings', and for a decoder's mask.

    Approximate because it rounds: `|clip(f) - rec| <= A / (k - 1)` at every frame where
    `residual_divisor = 1`, `dead_zone = 0.5` and `block = 1`, nothing is masked, and
    `k_key >= (k + 1) / 2`. With blocks the same holds for coefficients (`key_dead_zone = 0.5`),
    with their A, times 1, 4/3 or 5/3 by frequency.
    Exact between the ends: both hold the same integers, for ever.

    >>> codec = ifmdc(Settings(low=0.0, high=4.0, levels=5, group_of_pictures=2))
    >>> near, symbols = codec.encoder.init((), jnp.array([[[[1.2], [9.0]]]]))
    >>> symbols.labels.ravel(), symbols.is_key.item()
    (Array([1, 4], dtype=int16), True)
    >>> far, reconstruction = codec.decoder.init((), symbols)
    >>> near, symbols = codec.encoder.step((), near, jnp.array([[[[3.2], [4.0]]]]))
    >>> symbols.labels.ravel(), symbols.is_key.item()
    (Array([3, 2], dtype=int16), False)
    >>> codec.decoder.step((), far, symbols)[1].ravel()
    Array([3., 4.], dtype=float32)
    """
    return _build(settings)


@functools.lru_cache(maxsize=8)
def _build(settings: Settings) -> FeatureCodec:
    space = _Space(settings)
    key_levels = settings.labels_of_key

    def blank(shape: tuple[int, ...]) -> CodecState:
        coded = space.shape(shape)

        def none() -> jax.Array:  # a buffer for each, so that all can be donated
            return jnp.zeros(coded[0], jnp.float32)

        details = {"is_key": jnp.zeros((), bool), "nonzero": jnp.zeros(coded[0], jnp.int32)}
        return CodecState(
            jnp.full(coded, space.zero, jnp.int32),
            jnp.zeros((), jnp.uint32),
            jnp.zeros((), bool),
            Work(none(), none(), none(), details),
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

    def work(labels: jax.Array, is_key: jax.Array, used: jax.Array | bool, done: jax.Array) -> Work:
        """Counts labels, and the transform of the positions `done`, `bool[streams, h, w]`."""
        differs = (is_key | (labels != settings.run_label)) & used
        macs = 0 if settings.block == 1 else math.prod(labels.shape[1:]) * settings.block**2
        dense = jnp.full(labels.shape[0], macs, jnp.float32)

        def share(positions: jax.Array) -> jax.Array:
            return jnp.mean(positions, axis=(1, 2), dtype=jnp.float32)

        details = {"is_key": is_key, "nonzero": jnp.sum(differs, (1, 2, 3), dtype=jnp.int32)}
        return Work(share(done) * dense, dense, share(differs.any(-1)), details)

    def encode(
        params: Params, state: CodecState, features: jax.Array, mask: jax.Array | None = None
    ) -> tuple[CodecState, Symbols]:
        del params
        _check_features(features, space.features_of(state.level.shape), mask)
        values = to_blocks(features, block=settings.block)
        period = jnp.uint32(settings.group_of_pictures)
        is_key = ~state.intact | (state.frame % period == 0)
        if mask is None:
            done = jnp.ones(values.shape[:3], bool)
            labels, level = lax.cond(is_key, lambda x, m: key(x), residual, values, state.level)
        else:
            done = to_blocks(mask[..., None], block=settings.block).any(-1)
            labels, level = lax.cond(
                is_key,
                lambda x, m, marked: key(x),
                lambda x, m, marked: _where_marked(residual, x, m, marked, settings.run_label),
                values,
                state.level,
                done,
            )
        executed = work(labels, is_key, True, done | is_key)
        after = CodecState(level, state.frame + 1, jnp.ones((), bool), executed)
        return after, Symbols(labels, is_key, state.frame)

    def decode(
        params: Params, state: CodecState, symbols: Symbols, mask: jax.Array | None = None
    ) -> tuple[CodecState, jax.Array]:
        del params
        _check_symbols(symbols, state.level.shape, mask)
        number = jnp.asarray(symbols.frame).astype(jnp.uint32)
        follows = state.intact & (number == state.frame)
        labels = symbols.labels.astype(jnp.int32)
        level = jnp.where(
            symbols.is_key,
            from_key(jnp.clip(labels, 0, key_levels - 1)),
            jnp.where(follows, add(state.level, labels), state.level),
        )
        is_key = jnp.asarray(symbols.is_key)
        intact = is_key | follows
        done = jnp.ones(level.shape[:3], bool)
        state = CodecState(level, number + 1, intact, work(labels, is_key, intact, done))
        return state, space.values(level)

    def encode_first(params: Params, features: jax.Array) -> tuple[CodecState, Symbols]:
        return encode(params, blank(features.shape), features)

    def decode_first(params: Params, symbols: Symbols) -> tuple[CodecState, jax.Array]:
        return decode(params, blank(space.features_of(symbols.labels.shape)), symbols)

    return FeatureCodec(
        settings,
        VideoFunction(init=jax.jit(encode_first), step=jax.jit(encode)),
        VideoFunction(init=jax.jit(decode_first), step=jax.jit(decode)),
        blank,
    )


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
        channels = self._low.shape[0] if self._low.ndim else "c"
        if len(features) != 4 or channels not in ("c", features[-1]):
            raise ValueError(
                f"features must be (streams, h, w, {channels}); got shape {tuple(features)}"
            )
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


def _where_marked(
    residual: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    feature: jax.Array,
    level: jax.Array,
    mask: jax.Array,
    run_label: int,
) -> tuple[jax.Array, jax.Array]:
    """Runs `residual` on the marked positions alone, a chunk at a time; the rest is zero."""
    channels = level.shape[-1]
    positions = mask.size
    chunk = min(_CHUNK, positions)
    # Filled up with positions beyond the last: gathers clip them, scatters drop them.
    room = -(-positions // chunk) * chunk
    marked = jnp.nonzero(mask.reshape(-1), size=room, fill_value=positions)[0]
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

    chunks = -(-jnp.sum(mask, dtype=jnp.int32) // chunk)
    still = jnp.full((positions, channels), run_label, jnp.int16)
    labels, levels = lax.fori_loop(0, chunks, code, (still, level.reshape(positions, channels)))
    return labels.reshape(level.shape), levels.reshape(level.shape)


def _check_features(features: jax.Array, shape: tuple[int, ...], mask: jax.Array | None) -> None:
    if features.shape != shape or not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(
            f"features must be floating as in the state, {shape}; got "
            f"{features.dtype}{list(features.shape)}"
        )
    if mask is not None and (mask.shape != shape[:3] or mask.dtype != bool):
        raise ValueError(f"mask must be bool{list(shape[:3])}; got {mask.dtype}{list(mask.shape)}")


def _check_symbols(symbols: Symbols, shape: tuple[int, ...], mask: jax.Array | None) -> None:
    labels = symbols.labels
    if labels.shape != shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"symbols.labels must be integers as in the state, {shape}; got "
            f"{labels.dtype}{list(labels.shape)}"
        )
    if mask is not None:
        raise ValueError(
            f"mask must be None, as a decoder's labels say what changed; got "
            f"{mask.dtype}{list(mask.shape)}"
        )
