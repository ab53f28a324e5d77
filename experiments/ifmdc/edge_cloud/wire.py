"""What travels over TCP besides the bitstream: messages, checked and bounded, with timeouts.

    edge -> cloud   HELLO, then a bitstream of `dynvid.coding.container`: header, packets, end
    cloud -> edge   WELCOME or REFUSAL, then DETECTIONS, one for each packet, in order

    message   "IFMW", kind (u8), number (u32), payload length (u32), CRC-32 of these 13 bytes,
              payload, CRC-32 of all that precedes

Numbers are little-endian. Every connection begins a bitstream of its own, and so with a key frame.
"""

import contextlib
import enum
import json
import socket
import struct
import time
import zlib
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

_MAGIC = b"IFMW"
_HEAD = struct.Struct("<4sBII")
_CRC32 = struct.Struct("<I")
_COUNTS = struct.Struct("<III")
_BYTES_OF_BOX = 4 * 4 + 4 + 4


class Kind(enum.IntEnum):
    """What a message is."""

    HELLO = 1
    WELCOME = 2
    DETECTIONS = 3
    REFUSAL = 4


_LONGEST = {Kind.HELLO: 4096, Kind.WELCOME: 0, Kind.DETECTIONS: 1 << 16, Kind.REFUSAL: 1024}


class WireError(Exception):
    """What came over the wire cannot be used; one line says why."""


class IdleError(WireError):
    """Nothing at all came for as long as a read may wait."""


class Message(NamedTuple):
    """One message: its kind, the frame that it is about and its bytes."""

    kind: Kind
    number: int
    payload: bytes


class Answer(NamedTuple):
    """What the cloud found in one frame; boxes are in pixels of the network's input.

    Attributes:
      boxes: `float32[N, 4]`, `(x0, y0, x1, y1)`.
      scores: `float32[N]`.
      classes: `int32[N]`.
      decode_seconds: what the cloud took from the packet's last byte to the feature map.
      back_seconds: what the rest of the network took.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    decode_seconds: float
    back_seconds: float

    def to_bytes(self) -> bytes:
        """The payload of a DETECTIONS message."""
        times = [min(round(1e6 * s), 2**32 - 1) for s in (self.decode_seconds, self.back_seconds)]
        return b"".join(
            [
                _COUNTS.pack(*times, len(self.scores)),
                self.boxes.astype("<f4").tobytes(),
                self.scores.astype("<f4").tobytes(),
                self.classes.astype("<i4").tobytes(),
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Answer":
        """Reads the payload of a DETECTIONS message.

        Raises:
          WireError: its length does not fit the number of boxes in it.
        """
        if len(data) < _COUNTS.size:
            raise WireError(f"detections of {len(data)} bytes have no head")
        decode, back, count = _COUNTS.unpack_from(data)
        if len(data) != _COUNTS.size + count * _BYTES_OF_BOX:
            raise WireError(f"{len(data)} bytes do not hold {count} detections")
        numbers = np.frombuffer(data, "<f4", 5 * count, _COUNTS.size).astype(np.float32)
        classes = np.frombuffer(data, "<i4", count, _COUNTS.size + 20 * count).astype(np.int32)
        boxes, scores = numbers[: 4 * count].reshape(count, 4), numbers[4 * count :]
        return cls(boxes, scores, classes, decode / 1e6, back / 1e6)


class Connection:
    """A socket as a binary file of bounded patience: what bitstreams and messages go through.

    Args:
      sock: a connected stream socket, which the connection closes from now on.
      timeout: the longest that one read or one write may take, in seconds.

    Attributes:
      last_read: when bytes last came, of `time.monotonic`.
      bytes_sent: how many bytes were written.
      write_seconds: how long that took, waiting for a network that takes nothing included.
    """

    def __init__(self, sock: socket.socket, *, timeout: float):
        sock.settimeout(timeout)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._timeout = timeout
        self.last_read = time.monotonic()
        self.bytes_sent = 0
        self.write_seconds = 0.0

    def read(self, count: int) -> bytes:
        """Reads that many bytes; fewer only where the other side has ended.

        Raises:
          IdleError: no byte came within the timeout.
          WireError: some came, too slowly.
          OSError: the connection broke.
        """
        data = bytearray()
        deadline = time.monotonic() + self._timeout
        while len(data) < count:
            try:
                piece = self._socket.recv(count - len(data))
            except TimeoutError:
                if data:
                    raise WireError(f"nothing more came for {self._timeout:g} s") from None
                raise IdleError(f"nothing came for {self._timeout:g} s") from None
            if not piece:
                break
            self.last_read = time.monotonic()
            data += piece
            if self.last_read > deadline and len(data) < count:
                raise WireError(f"bytes come too slowly: a read took {self._timeout:g} s")
        return bytes(data)

    def write(self, data: bytes) -> int:
        """Writes all of the bytes.

        Raises:
          OSError: the connection broke, or the other side does not take them in time.
        """
        start = time.monotonic()
        self._socket.sendall(data)
        self.write_seconds += time.monotonic() - start
        self.bytes_sent += len(data)
        return len(data)

    def send(self, kind: Kind, payload: bytes = b"", *, number: int = 0) -> None:
        """Writes a message."""
        head = _HEAD.pack(_MAGIC, kind, number, len(payload))
        data = head + _CRC32.pack(zlib.crc32(head)) + payload
        self.write(data + _CRC32.pack(zlib.crc32(data)))

    def receive(self, expected: Collection[Kind]) -> Message | None:
        """Reads a message of one of some kinds; None where the other side has ended before it.

        Raises:
          WireError: it is none, it is damaged, too long, of another kind or came too slowly.
          OSError: the connection broke.
        """
        start = self.read(_HEAD.size + _CRC32.size)
        if not start:
            return None
        if not start.startswith(_MAGIC[: len(start)]):
            raise WireError("this is no message of ours: its first bytes differ")
        if len(start) < _HEAD.size + _CRC32.size:
            raise WireError("the connection ended within a message")
        _, kind, number, length = _HEAD.unpack_from(start)
        if _CRC32.pack(zlib.crc32(start[: _HEAD.size])) != start[_HEAD.size :]:
            raise WireError("a message is damaged: the checksum of its head differs")
        if kind not in expected:
            raise WireError(f"a message of kind {kind} came where none was due")
        if length > _LONGEST[Kind(kind)]:
            raise WireError(f"a message announces {length} bytes, which is too long")
        rest = self.read(length + _CRC32.size)
        if len(rest) < length + _CRC32.size:
            raise WireError("the connection ended within a message")
        if _CRC32.pack(zlib.crc32(start + rest[:length])) != rest[length:]:
            raise WireError("a message is damaged: its checksum differs")
        return Message(Kind(kind), number, rest[:length])

    def end(self) -> None:
        """Tells the other side that nothing more will come; reading goes on."""
        self._socket.shutdown(socket.SHUT_WR)

    def interrupt(self) -> None:
        """Ends both directions at once, so that whoever waits on this connection wakes up."""
        with contextlib.suppress(OSError):  # it may have ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def part(self) -> None:
        """Ends this side, and reads for a moment what the other still sends.

        Closing with bytes unread would reset the connection, and what was written last be lost.
        """
        with contextlib.suppress(OSError):  # it has gone, or has been given its time
            self.end()
            deadline = time.monotonic() + min(1.0, self._timeout)
            while (left := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv(1 << 16):
                    break

    def close(self) -> None:
        """Ends both directions and frees the socket."""
        self.interrupt()
        self._socket.close()


def refusal(reason: str, *, final: bool) -> bytes:
    """The payload of a REFUSAL: why, and whether trying again is of no use."""
    return json.dumps({"reason": reason[:200], "final": final}).encode()


def parse(payload: bytes) -> dict[str, Any]:
    """The object in the payload of a HELLO or a REFUSAL.

    Raises:
      WireError: there is none.
    """
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WireError("a message holds no JSON object")
    return found


def printable(text: object, *, most: int = 200) -> str:
    """What a stranger sent, safe to print: one line, no control characters."""
    line = "".join(c if c.isprintable() else "?" for c in str(text)[: most + 1])
    return line if len(line) <= most else line[: most - 3] + "..."


def one_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, TimeoutError):
        return "the other side took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(" ".join(str(error).split()) or type(error).__name__)
