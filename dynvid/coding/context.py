"""Arithmetic coding of labels under models that adapt to what lies around them: rate R3.

The range coder is `constriction`'s. A frame is coded in passes; within one, every label's context
is known before the first of them is decoded, so that whole arrays are coded at once, one context
after the other. Nothing about the models is sent: both ends count what they have seen, in integers.

Residual frames: the channels of a position fall into bands, and a band of a position is a row.
Bands are coded one pass after the other, in each first which rows hold anything but zero, then the
labels of these rows: what is still costs next to nothing, neither bits nor time. Positions are
coded in two halves, like the fields of a chessboard.
- The context of a row: how much changed here and next to it in the bands coded before, here and
  next to it in the frame before, the same row in the frame before, and (second half) the same rows
  next to it.
- The context of a label: how often its channel changed in rows like this one; the label at the same
  place of the frame before; its neighbours in its own channel: the four next to it (second half)
  and, after a transform, the lower frequencies. Where they lean to one sign, labels are counted
  relative to it.

Key frames: row after row of the picture, each in two halves. The residual from the mean of known
neighbours is coded in the context of how far these differ. After a transform this holds for the
blocks' means; the other coefficients are coded as in residual frames.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import constriction
import numpy as np

from dynvid.coding.errors import BitstreamError

# Its submodules are attributes that no import and no type checker sees.
_stream: Any = vars(constriction)["stream"]
_Bernoulli = _stream.model.Bernoulli(perfect=False)
_Categorical = _stream.model.Categorical
_RangeEncoder = _stream.queue.RangeEncoder
_RangeDecoder = _stream.queue.RangeDecoder

_MOST_BANDS = 4  # of channels that no transform has ordered
_SHARES = np.array([20, 40, 80, 160])  # per mille of rows in which a channel changed
_FEW_ROWS = 16 * 14
_SPREAD = np.array([1, 2, 4, 8, 16, 32, 64])  # of neighbours in key frames, in labels
_FIRST_PIECE = 128  # labels that are coded before their counts are heeded
_STEP = 32  # what a label adds to its count
_MOST = 1 << 20  # counts are halved above
_PRIOR = np.array([256, 24, 6, 2, 1])  # counts of residuals 0, 1, 2, ... before anything was seen
_SCORES = 32  # classes of rows
# Counts by size, finer the smaller they are.
_EDGES = (
    1, 2, 3, 4, 5, 7, 9, 11, 13, 16, 19, 22, 27, 31, 38, 45, 53, 63, 76, 90, 107, 127, 152, 181
)  # fmt: skip
_SIZES = np.searchsorted(_EDGES, np.arange(_EDGES[-1] + 1), side="right")
# What is expected before anything was seen, per mille, about as measured on detectors' features.
_ROWS = np.repeat(  # of the first band and of all others, by score: how many are not zero
    [150, 310, 530, 740, 880, 940, 970, 980, 14, 35, 85, 190, 370, 590, 780, 900], _SCORES // 8
)
_NEAR = np.array([4, 4, 5, 8])[:, None]  # quarters, by what the neighbours show
_CHANGES = np.stack(  # by the label of the frame before, neighbours and channel
    [
        np.array([150] * 5) * _NEAR // 4,
        np.array([12, 30, 55, 100, 180]) * _NEAR // 4,
        np.array([200] * 5) * _NEAR // 4,
    ]
).ravel()


class ContextCoder:
    """Codes the labels of frame after frame; one for each end, fed the same frames in order.

    Args:
      shape: `(streams, h, w, c)` of every frame.
      levels: k of residual frames, odd.
      key_levels: k_key; odd where `block` is more than 1.
      block: Side of the blocks that were transformed, 1 where none was: channels are then `block^2`
        bands of equally many, by rising frequency, as `dynvid.ops.block_transform` orders them.

    Exact: `decode` gives back what `encode` was given, where both ends have seen the same frames
    since the last key frame.

    >>> labels = np.full((1, 4, 4, 2), 4, np.int16)
    >>> near, far = (ContextCoder((1, 4, 4, 2), levels=9, key_levels=9) for _ in range(2))
    >>> data = near.encode(labels, is_key=True)
    >>> bool(np.all(far.decode(data, is_key=True) == labels))
    True
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        levels: int,
        key_levels: int,
        block: int = 1,
    ):
        streams, height, width, channels = shape
        self._shape = shape
        self._levels = levels
        self._key_levels = key_levels
        self._block = block
        if block > 1:
            self._bands = block * block
            self._passes = _passes(block)
        else:
            self._bands = max(n for n in range(1, _MOST_BANDS + 1) if channels % n == 0)
            self._passes = [(band, band + 1) for band in range(self._bands)]
        # Maps have a border, so that every position has four neighbours.
        index = np.arange(streams * (height + 2) * (width + 2))
        index = index.reshape(streams, height + 2, width + 2)
        self._padded = index.size
        self._places = index[:, 1:-1, 1:-1].ravel()
        self._around = (-1, 1, -(width + 2), width + 2)
        black = np.indices((height, width)).sum(0) % 2
        self._halves = [
            np.flatnonzero(np.broadcast_to(black == half, shape[:3])) for half in (0, 1)
        ]
        self._start()

    def _start(self) -> None:
        """Forgets what was seen, as at a key frame."""
        self._models = _SparseModels(self._levels)
        rows = (len(self._places), self._bands, self._shape[3] // self._bands)
        self._before = _Before(np.zeros(rows, np.int8), np.zeros(rows[:2], bool))
        self._shares = _Shares(rows[1:])

    def encode(self, labels: np.ndarray, *, is_key: bool) -> bytes:
        """Codes one frame.

        Args:
          labels: `int16[streams, h, w, c]`.
          is_key: Whether it is a key frame.

        Returns:
          The bytes.
        """
        coder = _RangeEncoder()

        def code(contexts: np.ndarray, models: _Bits | _Models, symbols: Any) -> np.ndarray:
            models.encode(coder, contexts, symbols)
            return symbols

        self._frame(code, labels, is_key)
        return coder.get_compressed().astype("<u4").tobytes()

    def decode(self, data: bytes, *, is_key: bool) -> np.ndarray:
        """Decodes one frame.

        Args:
          data: What `encode` returned.
          is_key: Whether it is a key frame.

        Returns:
          `int16[streams, h, w, c]`.

        Raises:
          BitstreamError: The bytes are no arithmetic code.
        """
        if len(data) % 4:
            raise BitstreamError(f"arithmetic code comes in words of 4 bytes; got {len(data)}")
        coder = _RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

        def code(contexts: np.ndarray, models: _Bits | _Models, symbols: Any) -> np.ndarray:
            return models.decode(coder, contexts)

        labels = self._frame(code, None, is_key)
        if not coder.maybe_exhausted():
            raise BitstreamError("words are left after the last label")
        return labels

    def _frame(self, code: "_Code", labels: np.ndarray | None, is_key: bool) -> np.ndarray:
        rows = self._before.signs.shape
        if not is_key:
            given = None if labels is None else labels.reshape(rows)
            found = _Found(rows, self._padded, self._levels // 2)
            self._sparse(code, given, found, self._models, self._passes)
            signs = found.signs[self._places]
            self._before = _Before(signs, found.active[self._places])
            self._shares.add(signs, self._before.active)
            return found.labels.reshape(self._shape)
        self._start()
        if self._block == 1:
            return self._key(code, labels)
        channels = rows[2]
        out = np.empty(self._shape, np.int16)
        out[..., :channels] = self._key(code, None if labels is None else labels[..., :channels])
        found = _Found(rows, self._padded, self._key_levels // 2)
        given = None if labels is None else labels.reshape(rows)
        models = _SparseModels(self._key_levels)
        self._sparse(code, given, found, models, self._passes[1:])
        out[..., channels:] = found.labels.reshape(self._shape)[..., channels:]
        return out

    def _sparse(
        self,
        code: "_Code",
        given: np.ndarray | None,
        found: "_Found",
        models: "_SparseModels",
        passes: list[tuple[int, int]],
    ) -> None:
        """Codes bands of rows of which most are zero."""
        places, centre = self._places, found.centre
        counts = np.zeros(self._padded, np.int64)  # labels that are not zero, by position
        lower = np.zeros((len(places), found.signs.shape[2]), np.int8)
        before = np.zeros(self._padded, np.int64)
        before[places] = np.count_nonzero(self._before.signs, axis=(1, 2))
        past_score = 3 * _size(2 * before[places] + self._next_to(before, places) // 2)
        holds = None if given is None else (given != centre).any(-1)
        shares = self._shares.classes()
        for number, (first, last) in enumerate(passes):
            score = 4 * _size(2 * counts[places] + self._next_to(counts, places) // 2)
            score = (score + past_score) // 4
            score = score[:, None] + 3 * self._before.active[:, first:last]
            active = found.active[:, first:last]
            for half, field in enumerate(self._halves):
                contexts = score[field]
                if half:
                    beside = self._next_to(active.view(np.int8), places[field])
                    contexts += 3 * np.minimum(beside, 3)
                contexts = np.minimum(contexts // 2, _SCORES - 1) + _SCORES * min(number, 1)
                symbols = None if holds is None else holds[field, first:last].ravel()
                coded = code(contexts.ravel(), models.rows, symbols)
                active[places[field]] = coded.reshape(contexts.shape)
            for half, field in enumerate(self._halves):
                at, band = np.nonzero(active[places[field]])
                at, band = field[at], band + first
                if not len(at):
                    continue
                past = self._before.signs[at, band]
                lean, near = past, lower[at]
                if half:
                    lean = self._next_to(found.signs, places[at], band)
                    near = np.minimum(near + np.abs(lean), 2) + np.int8(1)
                flip = (lean >> 7) | np.int8(1)  # the sign, that of zero being 1
                # Of 5 classes of channels, 4 of neighbours, 3 of the frame before.
                contexts = shares[band] + np.int8(5) * near
                contexts += np.int8(20) * (past * flip + np.int8(1))
                values = None if given is None else (given[at, band] - np.int16(centre)) * flip
                values = models.code(code, contexts.ravel(), values) * flip.ravel()
                values = values.reshape(contexts.shape)
                found.labels[at, band] = values + np.int16(centre)
                signs = np.clip(values, -1, 1).astype(np.int8)
                found.signs[places[at], band] = signs
                changed = np.count_nonzero(signs, axis=1)
                counts += np.bincount(places[at], changed, self._padded).astype(np.int64)
            if self._block > 1:
                here = found.signs[places, first:last] != 0
                lower = np.minimum(lower + here.sum(1, dtype=np.int8), 2)

    def _next_to(self, values: np.ndarray, places: np.ndarray, *others: np.ndarray) -> np.ndarray:
        """The sum of the four neighbours, of a map with a border."""
        left, right, above, below = (places + step for step in self._around)
        total = values[(left, *others)] + values[(right, *others)]
        total += values[(above, *others)]
        total += values[(below, *others)]
        return total

    def _key(self, code, labels: np.ndarray | None) -> np.ndarray:
        """A key frame, row after row, even columns before odd ones."""
        streams, height, width, channels = self._shape
        channels //= self._bands if self._block > 1 else 1
        levels = self._key_levels
        models = _Models(_residual_prior(levels, contexts=2 * 8))
        # With a border that repeats what is known.
        known = np.full((streams, height + 1, width + 2, channels), levels // 4, np.int32)
        for row in range(height):
            above = known[:, row]
            if row:
                above[:, 0], above[:, -1] = above[:, 1], above[:, -2]
            here = known[:, row + 1]
            for start in (0, 1):
                columns = np.arange(start + 1, width + 1, 2)
                if not len(columns):
                    continue
                north = above[:, columns]
                west, east = above[:, columns - 1], above[:, columns + 1]
                if start == 0:
                    guess = (2 * north + west + east + 2) // 4
                    spread = np.abs(north - west) + np.abs(north - east)
                else:
                    left = here[:, columns - 1]
                    right = (
                        here[:, columns + 1]
                        if width % 2
                        else np.where(
                            (columns < width)[None, :, None],
                            here[:, np.minimum(columns + 1, width)],
                            left,
                        )
                    )
                    guess = (3 * (left + right) + 2 * north + 4) // 8
                    spread = np.abs(left - right) + np.abs(left + right - 2 * north) // 2
                contexts = 8 * start + np.searchsorted(_SPREAD, spread, side="right")
                symbols = None
                if labels is not None:
                    symbols = ((labels[:, row, columns - 1] - guess) % levels).ravel()
                coded = code(contexts.ravel(), models, symbols)
                here[:, columns] = (coded.reshape(guess.shape) + guess) % levels
        return known[:, 1:, 1:-1].astype(np.int16)


class _Before(NamedTuple):
    """Of the last residual frame, what the next one's contexts look at."""

    signs: np.ndarray  # int8[positions, bands, channels]
    active: np.ndarray  # which rows are not zero, bool[positions, bands]


class _Found:
    """A frame as far as it is coded."""

    def __init__(self, rows: tuple[int, ...], padded: int, centre: int):
        self.centre = centre
        self.labels = np.full(rows, centre, np.int16)
        self.signs = np.zeros((padded, *rows[1:]), np.int8)
        self.active = np.zeros((padded, rows[1]), bool)


class _Shares:
    """How often each channel of each band changed in rows where something did, of late."""

    def __init__(self, shape: tuple[int, ...]):
        # Rows count 16: as if 96 had been seen, and each channel had changed in six of them.
        self._changed = np.full(shape, 16 * 6, np.int64)
        self._rows = np.full((shape[0], 1), 16 * 96, np.int64)

    def add(self, signs: np.ndarray, active: np.ndarray) -> None:
        # Where rows are few, what is known is kept: rounding would make all of nothing.
        old = self._rows > _FEW_ROWS
        self._changed -= np.where(old, self._changed >> 3, 0)
        self._rows -= np.where(old, self._rows >> 3, 0)
        self._changed += 16 * np.count_nonzero(signs, axis=0)
        self._rows += 16 * active.sum(0)[:, None]

    def classes(self) -> np.ndarray:
        return np.searchsorted(_SHARES, 1000 * self._changed // self._rows, side="right").astype(
            np.int8
        )


class _SparseModels:
    """Of rows, and of the labels in them: whether one is zero, its sign, its size."""

    def __init__(self, levels: int):
        self.rows = _Bits(_ROWS, weight=8)
        self._changes = _Bits(_CHANGES, weight=64)
        self._signs = _Bits(np.full_like(_CHANGES, 500), weight=64)
        self._most = levels // 2
        sizes = np.maximum(_PRIOR[1] >> (2 * np.arange(levels // 2)), 1)
        self._sizes = _Models(sizes.astype(np.int64)[None])

    def code(self, code: "_Code", contexts: np.ndarray, values: np.ndarray | None) -> np.ndarray:
        """Codes labels relative to that of zero."""
        given = (None, None, None)
        if values is not None:
            values = values.ravel()
            where = np.flatnonzero(values)
            given = values != 0, values[where] < 0, np.abs(values[where]) - 1
        where = np.flatnonzero(code(contexts, self._changes, given[0]))
        negative = code(contexts[where], self._signs, given[1])
        sizes = np.ones(len(where), np.int16)
        if self._most > 1:
            sizes += code(np.zeros(len(where), np.int8), self._sizes, given[2])
        out = np.zeros(len(contexts), np.int16)
        out[where] = np.where(negative, -sizes, sizes)
        return out


class _Bits:
    """How often a bit was set in each context."""

    def __init__(self, prior: np.ndarray, *, weight: int):
        """Starts as if `weight` bits had been seen, of which `prior` per mille were set."""
        ones = weight * _STEP * prior // 1000
        self._counts = np.stack([weight * _STEP - ones, ones], -1)

    def encode(self, coder: Any, contexts: np.ndarray, bits: np.ndarray) -> None:
        if len(contexts):
            coder.encode(bits.astype(np.int32), _Bernoulli, self._probabilities()[contexts])
            self._count(contexts, bits)

    def decode(self, coder: Any, contexts: np.ndarray) -> np.ndarray:
        if not len(contexts):
            return np.zeros(0, bool)
        try:
            bits = coder.decode(_Bernoulli, self._probabilities()[contexts]).astype(bool)
        except AssertionError as error:  # what constriction raises
            raise BitstreamError("the bytes are no arithmetic code") from error
        self._count(contexts, bits)
        return bits

    def _probabilities(self) -> np.ndarray:
        return self._counts[:, 1] / self._counts.sum(-1)

    def _count(self, contexts: np.ndarray, bits: np.ndarray) -> None:
        seen = np.bincount(2 * contexts.astype(np.intp) + bits, minlength=self._counts.size)
        self._counts += _STEP * seen.reshape(self._counts.shape)
        while self._counts.sum(-1).max() > _MOST:
            self._counts -= self._counts >> 1


def _residual_prior(levels: int, *, contexts: int) -> np.ndarray:
    """Counts before anything was seen of residuals modulo `levels`, `int64[contexts, levels]`."""
    apart = np.arange(levels)
    apart = np.minimum(apart, levels - apart)
    prior = _PRIOR[np.minimum(apart, len(_PRIOR) - 1)]
    return np.tile(prior.astype(np.int64), (contexts, 1))


class _Models:
    """Counts of symbols in each context; both ends keep the same."""

    def __init__(self, prior: np.ndarray):
        self._counts = prior
        self._totals = prior.sum(-1).tolist()

    def encode(self, coder: Any, contexts: np.ndarray, symbols: np.ndarray) -> None:
        for context, places in _by_context(contexts):
            arranged = symbols[places].astype(np.int32)
            for start, end in _pieces(len(arranged)):
                coder.encode(arranged[start:end], self._model(context))
                self._count(context, arranged[start:end])

    def decode(self, coder: Any, contexts: np.ndarray) -> np.ndarray:
        symbols = np.empty(len(contexts), np.int16)
        for context, places in _by_context(contexts):
            found = []
            for start, end in _pieces(len(places)):
                try:
                    found.append(coder.decode(self._model(context), end - start))
                except AssertionError as error:  # what constriction raises
                    raise BitstreamError("the bytes are no arithmetic code") from error
                self._count(context, found[-1])
            symbols[places] = np.concatenate(found)
        return symbols

    def _model(self, context: int) -> Any:
        return _Categorical(self._counts[context] / self._totals[context], perfect=False)

    def _count(self, context: int, symbols: np.ndarray) -> None:
        counts = self._counts[context]
        counts += _STEP * np.bincount(symbols, minlength=len(counts))
        self._totals[context] += _STEP * len(symbols)
        while self._totals[context] > _MOST:
            counts -= counts >> 1
            self._totals[context] = int(counts.sum())


def _by_context(contexts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each context there is, and where; the most frequent first, the others ascending."""
    if not len(contexts):  # the second half of a single position
        return
    counts = np.bincount(contexts)
    most = int(np.argmax(counts))
    yield most, np.flatnonzero(contexts == most)
    # Sorting is what costs: only what is not in the most frequent context is sorted.
    others = np.flatnonzero(contexts != most)
    order = others[np.argsort(contexts[others].astype(np.uint8), kind="stable")]
    counts[most] = 0
    ends = np.cumsum(counts)
    for context in np.flatnonzero(counts):
        yield int(context), order[ends[context] - counts[context] : ends[context]]


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    """Parts of growing length: what the first show, the next are coded with."""
    start, size = 0, _FIRST_PIECE
    while start < count:
        end = min(start + size, count)
        yield start, end
        start, size = end, 4 * size


_Code = Callable[[np.ndarray, _Bits | _Models, Any], np.ndarray]


def _passes(block: int) -> list[tuple[int, int]]:
    """Bands that are coded together: those of one diagonal, the highest frequencies all at once."""
    orders = sorted(i + j for i in range(block) for j in range(block))
    starts = [orders.index(order) for order in range(min(5, 2 * block - 1))]
    return list(zip(starts, [*starts[1:], block * block], strict=True))


def _size(counts: np.ndarray) -> np.ndarray:
    """The class of each count."""
    return _SIZES[np.minimum(counts, len(_SIZES) - 1)]
