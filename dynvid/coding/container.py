"""The file and wire format of coded feature maps, versioned, written and read frame by frame.

A header, then packets. Numbers are little-endian.

    header   magic (8), version (u16), channels with a clip range of their own (u16, 0: one range
             for all), fields, ranges, identity of the bitstream (u64), CRC-32 of all that precedes
    packet   kind (u8), frame number (u32), payload length (u32), CRC-16 of these nine bytes,
             payload, CRC-32 of all that precedes in the packet
    kinds    0xB0 key frame, 0xB1 residual frame, 0xBF end: the number of frames, no payload

Both checksums of a packet begin with the header's, and that of a residual frame's whole packet with
the checksum of the packet before it: nothing passes under another header, in another bitstream of
the same header, whose identity is another, or after another frame than the one it was made for. A
reader allocates nothing that the bytes have not paid for, beyond what one frame of the header's
shape takes, and that shape is limited.
"""

import dataclasses
import math
import re
import secrets
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from dynvid.coding.context import ContextCoder
from dynvid.coding.errors import BitstreamError
from dynvid.coding.runs import decode_fixed, decode_huffman, encode_fixed, encode_huffman

MAGIC = b"\x89IFM\r\n\x1a\n"
"""How every file begins; line ends and a non-text byte, so that a mangled transfer shows."""

VERSION = 4
MOST_VALUES = 1 << 24
"""The most values of one frame: 24 streams of YOLOv3's 52x52x256."""

_MOST_CHANNELS = 1 << 14
_MOST_BLOCK = 16
_MOST_SIDE = 1 << 13
_MOST_PLACES = 1 << 22
_MOST_LABELS = (1 << 12) + 1  # their Huffman words fit in 15 bits
_PREFIX = struct.Struct("<HH")
_FIELDS = struct.Struct("<IIIIBBBBHHII")
_IDENTITY = struct.Struct("<Q")
_HEAD = struct.Struct("<BII")
_CRC16 = struct.Struct("<H")
_CRC32 = struct.Struct("<I")
_KEY, _RESIDUAL, _END = 0xB0, 0xB1, 0xBF
_ANY_KIND = re.compile(rb"[\xb0\xb1\xbf]")
_DTYPES = ("float32", "float16", "bfloat16")
_SCANS = ("chw", "hwc")
_STAGES = ("fixed", "huffman", "arithmetic")
_MOST_FRAMES = (1 << 32) - 1  # the end holds their number
_PIECE = 1 << 16  # what is read at once

Stage = Literal["fixed", "huffman", "arithmetic"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a decoder has to know before the first packet.

    Attributes:
      shape: `(streams, h, w, c)` of every frame; at most 2^24 values.
      low: The value of level 0, one number or one a channel, as float32 holds it.
      high: The value of the last level.
      levels: k, odd.
      key_levels: k_key.
      group_of_pictures: T: frame n is a key frame where `n mod T = 0`; others may be.
      residual_divisor: Residuals span `-A / divisor .. A / divisor`.
      block: Side of the blocks whose transform was coded, 1 where values were; it divides h and w.
      scan: The order of labels in run-length tokens.
      stage: How labels become bits: "fixed" (R1), "huffman" (R2) or "arithmetic" (R3).
      dtype: What the features were before they were coded.

    Raises:
      ValueError: A field is not what it has to be.

    >>> header = Header(
    ...     shape=(1, 4, 4, 2), low=-1.0, high=3.0, levels=9, key_levels=9, group_of_pictures=15
    ... )
    >>> len(header.to_bytes())
    64
    """

    shape: tuple[int, int, int, int]
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    levels: int
    key_levels: int
    group_of_pictures: int
    residual_divisor: int = 1
    block: int = 1
    scan: Literal["chw", "hwc"] = "chw"
    stage: Stage = "arithmetic"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def __post_init__(self):
        if len(self.shape) != 4 or min(self.shape) < 1 or math.prod(self.shape) > MOST_VALUES:
            raise ValueError(
                f"shape must be (streams, h, w, c) of 1 .. {MOST_VALUES} values; got {self.shape}"
            )
        streams, height, width = self.shape[:3]
        if max(height, width) > _MOST_SIDE or streams * (height + 2) * (width + 2) > _MOST_PLACES:
            raise ValueError(
                f"shape must have at most {_MOST_SIDE} rows and columns, and in all streams at "
                f"most {_MOST_PLACES} positions with their borders; got {self.shape}"
            )
        if self.shape[3] > _MOST_CHANNELS:
            raise ValueError(
                f"shape must have {_MOST_CHANNELS} channels at most; got {self.shape[3]}"
            )
        if self.levels % 2 == 0 or not 3 <= self.levels <= _MOST_LABELS:
            raise ValueError(f"levels must be odd and of 3 .. {_MOST_LABELS}; got {self.levels}")
        if not 2 <= self.key_levels <= _MOST_LABELS:
            raise ValueError(f"key_levels must be of 2 .. {_MOST_LABELS}; got {self.key_levels}")
        for name in ("group_of_pictures", "residual_divisor"):
            if not 1 <= getattr(self, name) < 1 << 32:
                raise ValueError(f"{name} must be of 1 .. 2^32 - 1; got {getattr(self, name)}")
        if not 1 <= self.block <= _MOST_BLOCK or height % self.block or width % self.block:
            raise ValueError(
                f"block must be of 1 .. {_MOST_BLOCK} and divide {height} x {width}; got "
                f"{self.block}"
            )
        if self.block > 1 and self.key_levels % 2 == 0:
            raise ValueError(f"key_levels must be odd with blocks; got {self.key_levels}")
        for name, known in (("scan", _SCANS), ("stage", _STAGES), ("dtype", _DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {getattr(self, name)!r}")
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        if low.shape != high.shape or low.shape not in ((), (self.shape[3],)):
            raise ValueError(
                f"low and high must be numbers or one for each of {self.shape[3]} channels; got "
                f"shapes {low.shape} and {high.shape}"
            )
        if not np.all(np.isfinite(low) & np.isfinite(high) & (low < high)):
            raise ValueError(
                f"low must be below high and both finite; got {self.low} and {self.high}"
            )

    @property
    def coded_shape(self) -> tuple[int, int, int, int]:
        """Of labels: those of a block are channels of one position."""
        streams, height, width, channels = self.shape
        return streams, height // self.block, width // self.block, channels * self.block**2

    def to_bytes(self, *, identity: int = 0) -> bytes:
        """Writes the header of one bitstream, with magic, version, its identity and checksum."""
        fields = _FIELDS.pack(
            *self.shape,
            _DTYPES.index(self.dtype),
            _SCANS.index(self.scan),
            _STAGES.index(self.stage),
            self.block,
            self.levels,
            self.key_levels,
            self.group_of_pictures,
            self.residual_divisor,
        )
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        ranges = np.stack([low.ravel(), high.ravel()]).astype("<f4").tobytes()
        start = MAGIC + _PREFIX.pack(VERSION, low.size if low.ndim else 0) + fields + ranges
        start += _IDENTITY.pack(identity)
        return start + _CRC32.pack(zlib.crc32(start))


class Frame(NamedTuple):
    """One frame of a bitstream.

    Attributes:
      number: From 0.
      is_key: Whether it stands for itself.
      labels: `int16[streams, h, w, c]`; with blocks `Header.coded_shape`.
      bits: Of its packet, all of it.
      payload_bits: Of its labels alone.
    """

    number: int
    is_key: bool
    labels: np.ndarray
    bits: int
    payload_bits: int


class BitstreamWriter:
    """Writes frames of labels to a binary file, as they come.

    The header is written at once. Each packet goes out in one `write`, so that the file may be a
    socket's; nothing is ever sought. Frames are numbered from 0 in 32 bits: a bitstream ends after
    2^32 - 1 of them at the latest.

    Args:
      file: Open for writing bytes.
      header: What is written.
      identity: A number of 64 bits that no other bitstream has, so that no packet of one passes in
        another; drawn at random where None.

    >>> import io
    >>> file = io.BytesIO()
    >>> header = Header(
    ...     shape=(1, 4, 4, 2), low=-1.0, high=3.0, levels=9, key_levels=9, group_of_pictures=15
    ... )
    >>> writer = BitstreamWriter(file, header)
    >>> writer.write(np.full((1, 4, 4, 2), 3))
    (19, 4)
    >>> writer.close()
    >>> _ = file.seek(0)
    >>> [(frame.number, frame.is_key, frame.bits) for frame in BitstreamReader(file)]
    [(0, True, 152)]
    """

    def __init__(self, file: BinaryIO, header: Header, *, identity: int | None = None):
        self._file = file
        self._header = header
        self._labels = LabelCoder(header)
        self._frames = 0
        data = header.to_bytes(identity=secrets.randbits(64) if identity is None else identity)
        self._seed = self._last = _seed(data)
        file.write(data)

    def write(self, labels: np.ndarray, *, is_key: bool | None = None) -> tuple[int, int]:
        """Writes the next frame.

        Args:
          labels: `int[streams, h, w, c]`, or the header's `coded_shape`: of 0 .. `key_levels - 1`
            in a key frame, of 0 .. `levels - 1` else.
          is_key: Whether it is a key frame; where None, every `group_of_pictures` frames, from the
            first. These have to be key frames; any other may be one.

        Returns:
          The bytes of the packet, and those of its labels alone.

        Raises:
          ValueError: The labels do not fit the header, a key frame is due, or the bitstream is
            full.
        """
        header = self._header
        labels = np.asarray(labels)
        due = self._frames % header.group_of_pictures == 0
        is_key = due if is_key is None else bool(is_key)
        if due and not is_key:
            raise ValueError(f"is_key must be True for frame {self._frames}; got False")
        if self._frames == _MOST_FRAMES:
            raise ValueError(f"frames must be {_MOST_FRAMES} at most; got one more")
        levels = header.key_levels if is_key else header.levels
        if labels.shape != header.coded_shape or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be integers {header.coded_shape}; got "
                f"{labels.dtype}{list(labels.shape)}"
            )
        if labels.min() < 0 or labels.max() >= levels:
            raise ValueError(
                f"labels must be of 0 .. {levels - 1}; got {labels.min()} .. {labels.max()}"
            )
        payload = self._labels.encode(labels.astype(np.int16, copy=False), is_key=is_key)
        size = self._packet(_KEY if is_key else _RESIDUAL, payload)
        self._frames += 1
        return size, len(payload)

    def close(self) -> None:
        """Writes the end, which tells a whole bitstream from a truncated one; leaves the file open.

        Without it, reading fails after the last frame.
        """
        self._packet(_END, b"")

    def _packet(self, kind: int, payload: bytes) -> int:
        head = _HEAD.pack(kind, self._frames, len(payload))
        head += _CRC16.pack(zlib.crc32(head, self._seed) & 0xFFFF)
        self._last = _checksum(kind, head + payload, self._seed, self._last)
        packet = head + payload + _CRC32.pack(self._last)
        self._file.write(packet)
        return len(packet)


class BitstreamReader:
    """Reads frames of labels from a binary file, one at a time.

    Iterating yields `Frame`s up to the end of the bitstream. Bytes are read as they are needed:
    the file may be a socket's.

    Args:
      file: Open for reading bytes.
      skip_damaged: False raises at the first packet that is damaged, missing or out of order. True
        leaves it out, and all that cannot be decoded without it, and goes on at the next key frame
        that is whole; the frames' numbers tell what is missing. Only a bitstream that breaks off
        then still raises, after the last frame.

    Raises:
      BitstreamError: The header is not one (at once); a packet is damaged (while iterating).

    Attributes:
      header: What the writer was given.
    """

    def __init__(self, file: BinaryIO, *, skip_damaged: bool = False):
        self._bytes = _Bytes(file)
        self._skip = skip_damaged
        self.header = self._read_header()
        self._labels = LabelCoder(self.header)

    def __iter__(self) -> Iterator[Frame]:
        expected = 0
        intact = False  # whether the next residual frame has all that it builds on
        while True:
            packet = self._next_packet(expected)
            if packet.kind == _END:
                if packet.number != expected and not self._skip:
                    raise BitstreamError(
                        f"the end announces {packet.number} frames, {expected} were read"
                    )
                if not self._bytes.at_end():
                    raise BitstreamError("bytes follow the end of the bitstream")
                return
            is_key = packet.kind == _KEY
            in_order = packet.number == expected
            # Old packets sent again, or a wrong kind: as if they were not there.
            if packet.number < expected or not self._may_be(packet.kind, packet.number):
                continue
            expected, self._last = packet.number + 1, packet.checksum
            intact = is_key or (intact and in_order)
            if not intact:
                continue
            try:
                labels = self._labels.decode(packet.payload, is_key=is_key)
            except BitstreamError as error:
                if not self._skip:
                    raise BitstreamError(f"frame {packet.number}: {error}") from error
                intact = False
                continue
            bits = 8 * (_HEAD.size + _CRC16.size + len(packet.payload) + _CRC32.size)
            yield Frame(packet.number, is_key, labels, bits, 8 * len(packet.payload))

    def _read_header(self) -> Header:
        start = self._bytes.take(len(MAGIC) + _PREFIX.size, "the header")
        if not start.startswith(MAGIC):
            raise BitstreamError("this is no file of coded feature maps: its first bytes differ")
        version, channels = _PREFIX.unpack_from(start, len(MAGIC))
        if version != VERSION:
            raise BitstreamError(f"version {version} is not known, only {VERSION} is")
        if channels > _MOST_CHANNELS:
            raise BitstreamError(f"the header announces clip ranges for {channels} channels")
        ranges = 8 * max(channels, 1)
        body = self._bytes.take(_FIELDS.size + ranges + _IDENTITY.size, "the header")
        checksum = self._bytes.take(_CRC32.size, "the header")
        if _CRC32.pack(zlib.crc32(start + body)) != checksum:
            raise BitstreamError("the header is damaged: its checksum differs")
        self._seed = self._last = _seed(start + body + checksum)
        streams, height, width, depth, dtype, scan, stage, block, *numbers = _FIELDS.unpack_from(
            body
        )
        levels, key_levels, period, divisor = numbers
        low, high = np.frombuffer(body, "<f4", ranges // 4, _FIELDS.size).reshape(2, -1)
        try:
            header = Header(
                shape=(streams, height, width, depth),
                low=tuple(low.tolist()) if channels else float(low[0]),
                high=tuple(high.tolist()) if channels else float(high[0]),
                levels=levels,
                key_levels=key_levels,
                group_of_pictures=period,
                residual_divisor=divisor,
                block=block,
                scan=_SCANS[scan],
                stage=_STAGES[stage],
                dtype=_DTYPES[dtype],
            )
        except (ValueError, IndexError) as error:
            raise BitstreamError(f"the header makes no sense: {error}") from error
        self._most = _most_bytes(header)
        return header

    def _may_be(self, kind: int, number: int) -> bool:
        """Whether a frame may be of a kind: those that begin a group are key frames."""
        return kind == _KEY or number % self.header.group_of_pictures != 0

    def _next_packet(self, expected: int) -> "_Packet":
        """The next packet, or where damage is skipped, the next that is whole."""
        while True:
            where = f"packet {expected}"
            self._bytes.need(_HEAD.size + _CRC16.size, where)
            head = self._bytes.peek(0, _HEAD.size + _CRC16.size)
            try:
                return self._parse(head, where, expected)
            except _DamagedError as error:
                if not self._skip:
                    raise BitstreamError(str(error)) from None
                self._bytes.drop_until(_ANY_KIND)

    def _parse(self, head: bytes, where: str, expected: int) -> "_Packet":
        kind, number, length = _HEAD.unpack_from(head)
        (checksum,) = _CRC16.unpack_from(head, _HEAD.size)
        if zlib.crc32(head[: _HEAD.size], self._seed) & 0xFFFF != checksum:
            raise _DamagedError(f"{where} is damaged: the checksum of its head differs")
        if kind not in (_KEY, _RESIDUAL, _END) or (kind == _END and length):
            raise _DamagedError(f"{where} is of no known kind ({kind:#x})")
        if length > self._most:
            raise _DamagedError(
                f"{where} announces {length} bytes, more than any frame of "
                f"{self.header.shape} takes"
            )
        may_be = kind == _END or self._may_be(kind, number)
        if not (self._skip or kind == _END or (number == expected and may_be)):
            raise BitstreamError(
                f"frame {expected} was to come, packet holds frame {number}"
                + ("" if may_be else ", of the wrong kind")
            )
        size = len(head) + length + _CRC32.size
        if self._skip and not self._bytes.has(size):
            raise _DamagedError(f"{where} is cut off")
        self._bytes.need(size, where)
        body = self._bytes.peek(0, size - _CRC32.size)
        (checksum,) = _CRC32.unpack(self._bytes.peek(size - _CRC32.size, size))
        if _checksum(kind, body, self._seed, self._last) != checksum:
            raise _DamagedError(f"{where} is damaged, or not of this place: its checksum differs")
        self._bytes.drop(size)
        return _Packet(kind, number, body[len(head) :], checksum)


class _DamagedError(Exception):
    """A packet that cannot be used, though the next may be."""


class _Packet(NamedTuple):
    kind: int
    number: int
    payload: bytes
    checksum: int


class LabelCoder:
    """Codes the labels of frame after frame by a header's stage; one for each end.

    Args:
      header: Of the bitstream that they are for.

    >>> header = Header(
    ...     shape=(1, 4, 4, 2), low=-1.0, high=3.0, levels=9, key_levels=9, group_of_pictures=15
    ... )
    >>> labels = np.full((1, 4, 4, 2), 3, np.int16)
    >>> data = LabelCoder(header).encode(labels, is_key=True)
    >>> bool(np.all(LabelCoder(header).decode(data, is_key=True) == labels))
    True
    """

    def __init__(self, header: Header):
        self._header = header
        self._context = None
        if header.stage == "arithmetic":
            self._context = ContextCoder(
                header.coded_shape,
                levels=header.levels,
                key_levels=header.key_levels,
                block=header.block,
            )

    def encode(self, labels: np.ndarray, *, is_key: bool) -> bytes:
        """Codes one frame, `int16` of the header's `coded_shape`."""
        header = self._header
        if self._context is not None:
            return self._context.encode(labels, is_key=is_key)
        if is_key:  # the most frequent label; residuals have N
            levels, run_label = header.key_levels, int(np.argmax(np.bincount(labels.ravel())))
        else:
            levels, run_label = header.levels, header.levels // 2
        encode = encode_fixed if header.stage == "fixed" else encode_huffman
        scanned = labels if header.scan == "chw" else labels.ravel()
        return encode(scanned, run_label=run_label, levels=levels)

    def decode(self, payload: bytes, *, is_key: bool) -> np.ndarray:
        """Decodes one frame.

        Raises:
          BitstreamError: The payload is not one of these labels.
        """
        header = self._header
        if self._context is not None:
            return self._context.decode(payload, is_key=is_key)
        decode = decode_fixed if header.stage == "fixed" else decode_huffman
        levels = header.key_levels if is_key else header.levels
        flat = decode(payload, levels=levels, size=math.prod(header.shape))
        if header.scan == "hwc":
            return flat.reshape(header.coded_shape)
        streams, height, width, channels = header.coded_shape
        planes = flat.reshape(streams, channels, height, width)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


class _Bytes:
    """A file's bytes, read as they are needed and no further than asked."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._buffer = bytearray()

    def has(self, count: int) -> bool:
        """Whether that many bytes are still there."""
        while len(self._buffer) < count:
            # Never more at once than a piece: a length that lies costs no memory.
            piece = self._file.read(min(count - len(self._buffer), _PIECE))
            if not piece:
                return False
            self._buffer += piece
        return True

    def need(self, count: int, where: str) -> None:
        if not self.has(count):
            raise BitstreamError(f"the data end before {where} does")

    def peek(self, start: int, end: int) -> bytes:
        return bytes(self._buffer[start:end])

    def drop(self, count: int) -> None:
        del self._buffer[:count]

    def take(self, count: int, where: str) -> bytes:
        self.need(count, where)
        data = self.peek(0, count)
        self.drop(count)
        return data

    def drop_until(self, pattern: re.Pattern[bytes]) -> None:
        """Drops one byte, and all further ones with which no match begins."""
        found = pattern.search(self._buffer, 1)
        self.drop(found.start() if found else len(self._buffer))

    def at_end(self) -> bool:
        return not self.has(1)


def _seed(header: bytes) -> int:
    """What checksums of packets begin with: that of the header, itself left out.

    With it they would begin alike under every header: a CRC over data and their CRC is constant.
    """
    return zlib.crc32(header[: -_CRC32.size])


def _checksum(kind: int, data: bytes, seed: int, last: int) -> int:
    """Of a packet, all of it; `last` is that of the packet before.

    A residual frame is right after that one alone. Key frames and the end stand for themselves, so
    that what follows a damaged packet can be read again.
    """
    return zlib.crc32(data, zlib.crc32(_CRC32.pack(last), seed) if kind == _RESIDUAL else seed)


def _most_bytes(header: Header) -> int:
    """More than the largest payload of any stage: of a label at most four symbols of 24 bits each,
    which is what arithmetic coding may come to, and code tables."""
    return 12 * math.prod(header.shape) + 2 * max(header.levels, header.key_levels) + 1024
