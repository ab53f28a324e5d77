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

from typing import Any

import constriction
import numpy as np

from dynvid.coding.errors import BitstreamError

# Its submodules are attributes only: they cannot be imported from.
_Categorical = constriction.stream.model.Categorical
_RangeEncoder = constriction.stream.queue.RangeEncoder
_RangeDecoder = constriction.stream.queue.RangeDecoder

_GROUPS = 8  # of channels, in residual frames
_AROUND = np.array([1, 3, 6, 12, 24, 48, 96])  # per mille of what may have changed
_SPREAD = np.array([1, 2, 4, 8, 16, 32, 64])  # of neighbours in key frames, in labels
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
        self._before = _Before(shape)
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
            self._before = _Before(self._shape)
            return self._key(code, labels)
        return self._residual(code, labels)

    def _residual(self, code, labels: np.ndarray | None) -> np.ndarray:
        """One frame of residuals, in groups of channels and halves of a chessboard."""
        streams, height, width, channels = self._shape
        half_levels = self._levels // 2
        out = np.empty((streams, height, width, channels), np.int16)
        # Signs and sizes with a border, so that each position has four neighbours.
        signed = np.zeros((streams, height + 2, width + 2, channels), np.int8)
        changes = np.zeros((streams, height + 2, width + 2), np.int32)
        black = np.indices((height, width)).sum(0) % 2 == 0
        coded = 0
        for group in np.array_split(np.arange(channels), min(_GROUPS, channels)):
            first, last = int(group[0]), int(group[-1]) + 1
            around = self._around(changes, coded)
            for half, field in enumerate((black, ~black)):
                rows, columns = np.nonzero(field)
                if not len(rows):
                    continue
                at = (slice(None), rows + 1, columns + 1, slice(first, last))
                contexts = np.empty((streams, len(rows), last - first), np.int16)
                contexts[:] = around[:, rows, columns, None]
                before = self._before.signed[:, rows, columns, first:last]
                if half:
                    lean = (
                        signed[:, rows, columns + 1, first:last]
                        + signed[:, rows + 2, columns + 1, first:last]
                        + signed[:, rows + 1, columns, first:last]
                        + signed[:, rows + 1, columns + 2, first:last]
                    )
                    contexts += 9 * (1 + np.minimum(np.abs(lean), 2).astype(np.int16))
                else:
                    lean = before
                flip = np.sign(lean)
                flip[flip == 0] = 1
                contexts += 36 * (1 + before * flip).astype(np.int16)
                here = (slice(None), rows, columns, slice(first, last))
                symbols = None
                if labels is not None:
                    values = labels[here] - half_levels
                    symbols = (values * flip + half_levels).ravel()
                coded_symbols = code(contexts.ravel(), self._models, symbols)
                values = (coded_symbols.reshape(contexts.shape) - half_levels) * flip
                out[here] = values + half_levels
                signed[at] = np.clip(values, -1, 1)
            changes[:, 1:-1, 1:-1] += np.count_nonzero(
                signed[:, 1:-1, 1:-1, first:last], axis=-1
            ).astype(np.int32)
            coded = last
        self._before = _Before(self._shape, signed[:, 1:-1, 1:-1], changes[:, 1:-1, 1:-1])
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
        return np.searchsorted(_AROUND, share // (8 * (coded + weight)), side="right").astype(
            np.int16
        )

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


class _Before:
    """Of the last residual frame, what the next one's contexts look at."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        signed: np.ndarray | None = None,
        changes: np.ndarray | None = None,
    ):
        self.signed = np.zeros(shape, np.int8) if signed is None else signed
        self.changes = np.zeros(shape[:3], np.int32) if changes is None else changes


class _Models:
    """Counts of symbols in each context; both ends keep the same."""

    def __init__(self, contexts: int, levels: int, *, centre: int | None = None):
        centre = levels // 2 if centre is None else centre
        apart = np.abs(np.arange(levels) - centre)
        apart = np.minimum(apart, levels - apart) if centre == 0 else apart
        prior = _PRIOR[np.minimum(apart, len(_PRIOR) - 1)]
        self._counts = np.tile(prior.astype(np.int64), (contexts, 1))

    def encode(self, coder: Any, contexts: np.ndarray, symbols: np.ndarray) -> None:
        order, runs = _sorted(contexts, len(self._counts))
        arranged = symbols.astype(np.int32)[order]
        for context, start, end in runs:
            coder.encode(arranged[start:end], self._model(context))
            self._count(context, arranged[start:end])

    def decode(self, coder: Any, contexts: np.ndarray) -> np.ndarray:
        order, runs = _sorted(contexts, len(self._counts))
        symbols = np.empty(len(contexts), np.int32)
        for context, start, end in runs:
            try:
                found = coder.decode(self._model(context), end - start)
            except AssertionError as error:  # what constriction raises
                raise BitstreamError("the bytes are no arithmetic code") from error
            symbols[order[start:end]] = found
            self._count(context, found)
        return symbols

    def _model(self, context: int) -> Any:
        counts = self._counts[context]
        return _Categorical(counts / counts.sum(), perfect=False)

    def _count(self, context: int, symbols: np.ndarray) -> None:
        counts = self._counts[context]
        counts += 32 * np.bincount(symbols, minlength=len(counts))
        while counts.sum() > _MOST:
            counts -= counts >> 1


def _sorted(contexts: np.ndarray, count: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """An order that brings equal contexts together, and (context, start, end) of each."""
    order = np.argsort(contexts.astype(np.uint8), kind="stable")
    ends = np.cumsum(np.bincount(contexts, minlength=count))
    starts = np.concatenate([[0], ends[:-1]])
    there = np.flatnonzero(ends > starts)
    return order, [(int(c), int(starts[c]), int(ends[c])) for c in there]
