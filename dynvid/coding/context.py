"""Arithmetic coding of labels under models that adapt to what lies around them: rate R3.

The range coder is `constriction`'s. A frame is coded in passes; within one, every label's context
is known before the first of them is decoded, so that whole arrays are coded at once, one context
after the other. Nothing about the models is sent: both ends count what they have seen, in integers.

Residual frames: groups of channels one after the other, each in two halves like the fields of a
chessboard. The context of a label joins
- how much changed around its position: in the channels coded before, at the position itself and
  next to it, and in the frame before;
- its neighbours in its own channel: the four next to it (second half), or none (first half); and
  the label at the same place of the frame before.
Where its neighbours lean to one sign, labels are counted relative to it.

Key frames: row after row, each in two halves. The residual from the mean of known neighbours is
coded in the context of how far these differ.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import constriction
import numpy as np

from dynvid.coding.errors import BitstreamError

# Its submodules are attributes that no import and no type checker sees.
_stream: Any = vars(constriction)["stream"]
_Categorical = _stream.model.Categorical
_RangeEncoder = _stream.queue.RangeEncoder
_RangeDecoder = _stream.queue.RangeDecoder

_GROUPS = 4  # of channels, in residual frames; 8 save 1% of the bits and take half as long again
_AROUND = np.array([1, 3, 6, 12, 24, 48, 96])  # per mille of what may have changed
_SPREAD = np.array([1, 2, 4, 8, 16, 32, 64])  # of neighbours in key frames, in labels
_FIRST_PIECE = 256  # labels that are coded before their counts are heeded
_STEP = 32  # what a label adds to its count
_MOST = 1 << 20  # counts are halved above
_PRIOR = np.array([256, 24, 6, 2, 1])  # counts of residuals 0, 1, 2, ... before anything was seen


class ContextCoder:
    """Codes the labels of frame after frame; one for each end, fed the same frames in order.

    Args:
      shape: `(streams, h, w, c)` of every frame.
      levels: k of residual frames, odd.
      key_levels: k_key.

    Exact: `decode` gives back what `encode` was given, where both ends have seen the same frames
    since the last key frame.

    >>> labels = np.full((1, 4, 4, 2), 4, np.int16)
    >>> near, far = (ContextCoder((1, 4, 4, 2), levels=9, key_levels=9) for _ in range(2))
    >>> data = near.encode(labels, is_key=True)
    >>> bool(np.all(far.decode(data, is_key=True) == labels))
    True
    """

    def __init__(self, shape: tuple[int, int, int, int], *, levels: int, key_levels: int):
        self._shape = shape
        self._levels = levels
        self._key_levels = key_levels
        self._before = _Before([], 0)
        self._models = _Models(0, levels)

    def encode(self, labels: np.ndarray, *, is_key: bool) -> bytes:
        """Codes one frame.

        Args:
          labels: `int16[streams, h, w, c]`.
          is_key: whether it is a key frame.

        Returns:
          The bytes.
        """
        coder = _RangeEncoder()

        def code(contexts: np.ndarray, models: _Models, symbols: np.ndarray) -> np.ndarray:
            models.encode(coder, contexts, symbols)
            return symbols

        self._frame(code, labels, is_key)
        return coder.get_compressed().astype("<u4").tobytes()

    def decode(self, data: bytes, *, is_key: bool) -> np.ndarray:
        """Decodes one frame.

        Args:
          data: what `encode` returned.
          is_key: whether it is a key frame.

        Returns:
          `int16[streams, h, w, c]`.

        Raises:
          BitstreamError: the bytes are no arithmetic code.
        """
        if len(data) % 4:
            raise BitstreamError(f"arithmetic code comes in words of 4 bytes, got {len(data)}")
        coder = _RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

        def code(contexts: np.ndarray, models: _Models, symbols: None) -> np.ndarray:
            return models.decode(coder, contexts)

        labels = self._frame(code, None, is_key)
        if not coder.maybe_exhausted():
            raise BitstreamError("words are left after the last label")
        return labels

    def _frame(self, code, labels, is_key):
        if is_key:
            self._models = _Models(2 * 9 * 4 * 3, self._levels)
            self._before = _Before([], 0)
            return self._key(code, labels)
        return self._residual(code, labels)

    def _residual(self, code, labels: np.ndarray | None) -> np.ndarray:
        """One frame of residuals, in groups of channels and halves of a chessboard."""
        streams, height, width, channels = self._shape
        centre = self._levels // 2
        black = (
            np.indices((streams, height, width)).sum(0) - np.arange(streams)[:, None, None]
        ) % 2
        fields = [np.flatnonzero(black == half) for half in (0, 1)]
        out = np.empty((streams, height, width, channels), np.int16)
        # How many changed at each position, with a border so that each has four neighbours.
        changes = np.zeros((streams, height + 2, width + 2), np.int32)
        before, signs = self._before.signs, []
        ends = np.linspace(0, channels, min(_GROUPS, channels) + 1).astype(int).tolist()
        for group, (first, last) in enumerate(itertools.pairwise(ends)):
            around = self._around(changes, first)[..., None]
            size = (streams, height, width, last - first)
            rows = (-1, last - first)  # one a position
            past = before[group] if before else np.zeros(size, np.int8)
            signed = np.zeros((streams, height + 2, width + 2, last - first), np.int8)
            found = np.empty((streams * height * width, last - first), np.int16)
            if labels is not None:
                given = labels[..., first:last].reshape(rows) - np.int16(centre)
            for half, field in enumerate(fields):
                if half:
                    lean = signed[:, :-2, 1:-1] + signed[:, 2:, 1:-1]
                    lean += signed[:, 1:-1, :-2]
                    lean += signed[:, 1:-1, 2:]
                    near = np.minimum(np.abs(lean), 2) + np.int8(1)
                else:
                    lean, near = past, np.int8(0)
                flip = (lean >> 7) | np.int8(1)  # the sign, that of zero being 1
                contexts = around + np.int8(9) * near + np.int8(36) * (past * flip + np.int8(1))
                contexts = contexts.reshape(rows)[field]
                flip = flip.reshape(rows)[field]
                symbols = None
                if labels is not None:
                    symbols = (given[field] * flip + np.int16(centre)).ravel()
                coded = code(contexts.ravel(), self._models, symbols)
                found[field] = (coded.reshape(contexts.shape) - centre) * flip
                signed[:, 1:-1, 1:-1] = np.clip(found, -1, 1).reshape(size) if half else 0
                if not half:
                    inner = np.zeros((streams * height * width, last - first), np.int8)
                    inner[field] = np.clip(found[field], -1, 1)
                    signed[:, 1:-1, 1:-1] = inner.reshape(size)
            out[..., first:last] = found.reshape(size) + np.int16(centre)
            inner = signed[:, 1:-1, 1:-1]
            changes[:, 1:-1, 1:-1] += (inner != 0).sum(-1, dtype=np.int32)
            signs.append(np.ascontiguousarray(inner))
        self._before = _Before(signs, changes[:, 1:-1, 1:-1])
        return out

    def _around(self, changes: np.ndarray, coded: int) -> np.ndarray:
        """The class of how much changed around each position, 0 .. 8, `int16[streams, h, w]`."""
        channels = self._shape[3]
        own = 4 * changes[:, 1:-1, 1:-1]
        near = changes[:, :-2, 1:-1] + changes[:, 2:, 1:-1]
        near = near + changes[:, 1:-1, :-2] + changes[:, 1:-1, 2:]
        now = own + near
        # The frame before counts as a few channels more.
        weight = 4
        share = now * 1000 + self._before.changes * (1000 * 8 * weight // channels)
        share //= 8 * (coded + weight)
        return np.searchsorted(_AROUND, share, side="right").astype(np.uint8)

    def _key(self, code, labels: np.ndarray | None) -> np.ndarray:
        """A key frame, row after row, even columns before odd ones."""
        streams, height, width, channels = self._shape
        levels = self._key_levels
        models = _Models(2 * 8, levels, centre=0)
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

    signs: list[np.ndarray]  # of each group of channels, int8; empty after a key frame
    changes: np.ndarray | int


class _Models:
    """Counts of symbols in each context; both ends keep the same."""

    def __init__(self, contexts: int, levels: int, *, centre: int | None = None):
        centre = levels // 2 if centre is None else centre
        apart = np.abs(np.arange(levels) - centre)
        apart = np.minimum(apart, levels - apart) if centre == 0 else apart
        prior = _PRIOR[np.minimum(apart, len(_PRIOR) - 1)]
        self._counts = np.tile(prior.astype(np.int64), (contexts, 1))
        self._totals = [int(prior.sum())] * contexts

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
