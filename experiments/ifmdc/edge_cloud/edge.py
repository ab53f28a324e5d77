"""The edge: runs the front of the network on a camera's frames and sends coded features."""

import collections
import dataclasses
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dynvid
from dynvid.coding.container import BitstreamWriter, Stage
from dynvid.coding.errors import BitstreamError
from dynvid.systems.ifmdc import Settings, clip_range, header_of, ifmdc, settings_for
from dynvid.types import VideoFunction
from experiments.ifmdc.edge_cloud.network import SplitNetwork
from experiments.ifmdc.edge_cloud.wire import (
    Answer,
    Connection,
    IdleError,
    Kind,
    WireError,
    one_line,
    parse,
    printable,
)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # between attempts to connect, in seconds


class EdgeError(Exception):
    """What trying again does not help; one line says what it is."""


class Seconds(NamedTuple):
    """Where an edge's time for one frame went, in seconds.

    Attributes:
      front: of the network, up to the feature map.
      coding: quantising and entropy coding.
      sending: writing to the socket, which also waits while a slow network takes nothing.
    """

    front: float
    coding: float
    sending: float


class Result(NamedTuple):
    """One frame's way to the cloud and back.

    Attributes:
      connection: which connection of this edge, from 0.
      number: of the frame in that connection's bitstream, from 0.
      frame: of the frame in the video, from 0.
      is_key: whether it was sent as a key frame.
      bits: of its packet.
      edge: what the edge's own time went into.
      latency: from capture to the detections' arrival here, in seconds.
      arrived: when these came, of `time.monotonic`.
      answer: the detections.
    """

    connection: int
    number: int
    frame: int
    is_key: bool
    bits: int
    edge: Seconds
    latency: float
    arrived: float
    answer: Answer


@dataclasses.dataclass
class Counts:
    """What became of the frames.

    Attributes:
      captured: they came from the video.
      dropped: there was no time for them: discarded before they were encoded.
      sent: encoded and written.
      answered: their detections came.
      connections: how often the edge connected.
      bytes_sent: all that was written, messages included.
      started: when the first frame was taken to be sent, of `time.monotonic`.
      most_waiting: the most frames that ever waited at once.
      most_in_flight: the most packets that were ever sent and not yet answered.
    """

    captured: int = 0
    dropped: int = 0
    sent: int = 0
    answered: int = 0
    connections: int = 0
    bytes_sent: int = 0
    started: float | None = None
    most_waiting: int = 0
    most_in_flight: int = 0


class _Captured(NamedTuple):
    number: int
    at: float
    frame: np.ndarray


class _Flight(NamedTuple):
    number: int
    captured: _Captured  # without the picture
    sent: float
    is_key: bool
    bits: int
    edge: Seconds


def calibrated(
    network: SplitNetwork,
    frames: Iterable[np.ndarray],
    *,
    levels: int,
    block: int,
    group_of_pictures: int,
) -> Settings:
    """Settings with the clip range of some frames' features (percentiles 1 and 99).

    Raises:
      EdgeError: the features are constant.
      ValueError: the options do not fit each other, or the features.
    """
    height, width = network.feature.shape[1:3]
    if block < 1 or height % block or width % block:
        raise ValueError(f"block must divide the features' {height} x {width}, got {block}")
    front = jax.jit(network.front)
    features = [np.asarray(front(network.params, jnp.asarray(x)[None])) for x in frames]
    try:
        low, high = clip_range(np.concatenate(features), percentiles=(1.0, 99.0))
    except ValueError as error:
        raise EdgeError(f"cannot choose a clip range: {one_line(error)}") from error
    return settings_for(low, high, levels=levels, block=block, group_of_pictures=group_of_pictures)


class Encoded(NamedTuple):
    """One frame, quantised.

    Attributes:
      labels: `int16[1, h, w, c]`, of blocks where the settings have them.
      is_key: whether it stands for itself.
      front_seconds: what the front of the network took.
      quantise_seconds: what the codec took, up to these labels.
    """

    labels: np.ndarray
    is_key: bool
    front_seconds: float
    quantise_seconds: float


class Encoder:
    """The front and the codec, dense or incremental; what becomes of pictures is labels.

    An incremental front tells by itself where its output may have changed. The codec takes that
    mask: all other positions are zero residual, neither computed nor compared with anything.

    Args:
      network: whose front it runs.
      settings: of the codec.
      incremental: whether the front computes only what changed.
      threshold: as in `dynvid.incremental`, in grey levels.
      truncation: likewise, in root mean squares.
    """

    def __init__(
        self,
        network: SplitNetwork,
        settings: Settings,
        *,
        incremental: bool = False,
        threshold: float = 15.0,
        truncation: float = 0.5,
    ):
        codec = ifmdc(settings)
        self._network = network
        self._codec = codec
        self._video: VideoFunction | None = None
        self._video_state: Any = None
        self._codec_state = codec.blank(network.feature.shape)
        # Two programs, so that each can be timed.
        self._quantise = jax.jit(codec.encoder.step, donate_argnums=1)
        if incremental:
            video = dynvid.incremental(network.front, threshold=threshold, truncation=truncation)
            self._video = video._replace(step=jax.jit(video.step, donate_argnums=1))
        else:
            self._front = jax.jit(network.front)

    def restart(self) -> None:
        """Makes the next frame a key frame, number 0; an incremental front keeps its caches."""
        self._codec_state = self._codec.blank(self._network.feature.shape)

    def warm_up(self, frame: np.ndarray) -> None:
        """Compiles for frames of this size."""
        for _ in range(2):
            self(frame)
        self.restart()

    def __call__(self, frame: np.ndarray) -> Encoded:
        start = time.monotonic()
        feature, change = jax.block_until_ready(self._features(jnp.asarray(frame)[None]))
        reached = time.monotonic()
        self._codec_state, symbols = self._quantise((), self._codec_state, feature, change)
        labels, is_key = np.asarray(symbols.labels), bool(symbols.is_key)
        return Encoded(labels, is_key, reached - start, time.monotonic() - reached)

    def _features(self, frames: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The feature map and, of an incremental front, where it may have changed."""
        params = self._network.params
        if self._video is None:
            return self._front(params, frames), None
        if self._video_state is None:
            self._video_state, feature = self._video.init(params, frames)
        else:
            self._video_state, feature = self._video.step(params, self._video_state, frames)
        return feature, self._video_state.changes[0]


class Edge:
    """Sends a video to a cloud, for as long as either lives.

    Memory is bounded by refusing work, never by throwing away what was encoded: frames wait in a
    queue of `waiting`, from which the oldest is dropped for a new one, and one is encoded only when
    fewer than `window` packets are unanswered. The encoder is so never ahead of what was sent.

    Every connection begins with a key frame at once.

    Args:
      network: whose front it runs.
      encoder: front and codec, of `settings`.
      settings: of the codec.
      stage: how labels become bits.
      waiting: how many frames may wait.
      window: how many packets may be unanswered.
      timeout: the longest that reading, writing or an answer may take, in seconds.
      on_result: is given every frame that was answered, from a thread of its own.
      log: is given one line of text at a time.
    """

    def __init__(
        self,
        network: SplitNetwork,
        encoder: Encoder,
        settings: Settings,
        *,
        stage: Stage = "arithmetic",
        waiting: int = 2,
        window: int = 2,
        timeout: float = 10.0,
        on_result: Callable[[Result], None] = lambda result: None,
        log: Callable[[str], None] = print,
    ):
        self._network = network
        self._encoder = encoder
        self._header = header_of(settings, shape=network.feature.shape, stage=stage)
        self._most_waiting = waiting
        self._window = window
        self._timeout = timeout
        self._on_result = on_result
        self._log = log
        # One lock for all that the threads share; its condition tells of any change of it.
        self._changed = threading.Condition()
        self._waiting: collections.deque[_Captured] = collections.deque()
        self._capturing = True
        self._capture_error: BaseException | None = None
        self._stopped = False
        self._flights: collections.deque[_Flight] = collections.deque()
        self._fault: BaseException | None = None
        self._pause = _FIRST_PAUSE
        self.counts = Counts()

    def run(
        self, frames: Iterable[np.ndarray], address: tuple[str, int], *, fps: float | None
    ) -> None:
        """Sends frames until they end, `stop` is called, or the cloud refuses for good.

        After the last frame, a cloud that cannot be reached is waited for no longer than the
        timeout.

        Args:
          frames: `uint8[H, W, 3]` of the network's size; read in a thread of its own.
          address: (host, port) of the cloud.
          fps: how many frames the camera takes a second: they come at that pace, whether there is
            time for them or not. None takes the next one when there is room for it.

        Raises:
          EdgeError: the cloud runs another network.
          Exception: whatever reading the frames raises.
        """
        capture = threading.Thread(target=self._capture, args=(frames, fps), daemon=True)
        capture.start()
        try:
            self._connect_again_and_again(address)
        finally:
            self.stop()
            capture.join(self._timeout)
        if self._capture_error is not None:
            raise self._capture_error

    def stop(self) -> None:
        """Ends `run` soon."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _capture(self, frames: Iterable[np.ndarray], fps: float | None) -> None:
        start = time.monotonic()
        try:
            for number, frame in enumerate(frames):
                with self._changed:
                    if fps is None:
                        self._changed.wait_for(
                            lambda: self._stopped or len(self._waiting) < self._most_waiting
                        )
                    else:
                        due = start + number / fps
                        self._changed.wait_for(lambda: self._stopped, due - time.monotonic())
                    if self._stopped:
                        return
                    if len(self._waiting) == self._most_waiting:
                        self._waiting.popleft()
                        self.counts.dropped += 1
                    self._waiting.append(_Captured(number, time.monotonic(), frame))
                    self.counts.captured += 1
                    self.counts.most_waiting = max(self.counts.most_waiting, len(self._waiting))
                    self._changed.notify_all()
        except Exception as error:
            self._capture_error = error
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()

    def _connect_again_and_again(self, address: tuple[str, int]) -> None:
        place = f"{address[0]}:{address[1]}"
        said = None
        ended = None  # since when there is nothing more to capture and no cloud
        while True:
            try:
                sock = socket.create_connection(address, timeout=self._timeout)
                with_cloud = Connection(sock, timeout=self._timeout)
                try:
                    if self._stream(with_cloud, place):
                        return
                finally:
                    self.counts.bytes_sent += with_cloud.bytes_sent
                    with_cloud.close()
            except (OSError, WireError, BitstreamError) as error:
                line = f"{place}: {one_line(error)}; trying again"
                if line != said:
                    self._log(line)
                said = line
            with self._changed:
                if self._stopped or not (self._capturing or self._waiting):
                    return
                if not self._capturing:
                    ended = ended or time.monotonic()
                    if time.monotonic() - ended > self._timeout:
                        self._log(f"{place}: no cloud; giving up on the last frames")
                        return
                self._changed.wait_for(lambda: self._stopped, self._pause)
                if self._stopped:
                    return
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _stream(self, connection: Connection, place: str) -> bool:
        """Sends frames over one connection; returns whether there is nothing more to do."""
        connection.send(Kind.HELLO, json.dumps(self._network.identity).encode())
        writer = BitstreamWriter(connection, self._header)  # type: ignore[arg-type]  # it writes
        self._expect_welcome(connection)
        self._log(f"{place}: connected")
        self._encoder.restart()
        self._flights.clear()
        self._fault = None
        index = self.counts.connections
        self.counts.connections += 1
        receiver = threading.Thread(target=self._receive, args=(connection, index), daemon=True)
        receiver.start()
        try:
            for number in itertools.count():
                captured = self._next()
                if captured is None:
                    break
                self._send(connection, writer, captured, number)
            if self._stopped:
                connection.interrupt()
            else:
                writer.close()
                connection.end()
        except BaseException:
            connection.interrupt()
            raise
        finally:
            receiver.join()
        if self._fault is not None and not self._stopped:
            raise self._fault
        return True

    def _expect_welcome(self, connection: Connection) -> None:
        message = connection.receive({Kind.WELCOME, Kind.REFUSAL})
        if message is None:
            raise WireError("the cloud closed the connection")
        if message.kind == Kind.REFUSAL:
            said = parse(message.payload)
            reason = f"the cloud refuses: {printable(said.get('reason', 'it does not say why'))}"
            raise EdgeError(reason) if said.get("final") is True else WireError(reason)

    def _next(self) -> _Captured | None:
        """Waits until a frame may be encoded; None where there is none any more."""
        with self._changed:
            while True:
                if self._stopped:
                    return None
                if self._fault is not None:
                    raise self._fault
                if len(self._flights) < self._window:
                    if self._waiting:
                        captured = self._waiting.popleft()
                        self._changed.notify_all()
                        if self.counts.started is None:
                            self.counts.started = time.monotonic()
                        return captured
                    if not self._capturing:
                        return None
                self._changed.wait()

    def _send(
        self, connection: Connection, writer: BitstreamWriter, captured: _Captured, number: int
    ) -> None:
        encoded = self._encoder(captured.frame)
        # Known to the receiver before the answer can come; its size follows.
        times = Seconds(encoded.front_seconds, encoded.quantise_seconds, 0.0)
        start = time.monotonic()
        without_picture = captured._replace(frame=None)  # type: ignore[arg-type]
        flight = _Flight(number, without_picture, start, encoded.is_key, 0, times)
        with self._changed:
            self._flights.append(flight)
            self.counts.most_in_flight = max(self.counts.most_in_flight, len(self._flights))
        before = connection.write_seconds
        size, _ = writer.write(encoded.labels)
        sent = time.monotonic()
        sending = connection.write_seconds - before
        times = times._replace(coding=times.coding + sent - start - sending, sending=sending)
        with self._changed:
            self.counts.sent += 1
            for place, known in enumerate(self._flights):
                if known.number == number:
                    self._flights[place] = known._replace(sent=sent, bits=8 * size, edge=times)
            self._changed.notify_all()

    def _receive(self, connection: Connection, index: int) -> None:
        try:
            while True:
                try:
                    message = connection.receive({Kind.DETECTIONS, Kind.REFUSAL})
                except IdleError:
                    with self._changed:
                        oldest = self._flights[0].sent if self._flights else time.monotonic()
                    if time.monotonic() - oldest > self._timeout:
                        raise
                    continue
                if message is None:
                    with self._changed:
                        if self._flights or self._capturing or self._waiting:
                            raise WireError("the cloud closed the connection")
                    return
                if message.kind == Kind.REFUSAL:
                    said = parse(message.payload)
                    raise WireError(f"the cloud says: {printable(said.get('reason', ''))}")
                self._on_result(self._result(message.number, message.payload, index))
        except Exception as error:
            with self._changed:
                self._fault = error
                self._changed.notify_all()
            connection.interrupt()  # the sender may be writing

    def _result(self, number: int, payload: bytes, index: int) -> Result:
        arrived = time.monotonic()
        answer = Answer.from_bytes(payload)
        with self._changed:
            if not self._flights or self._flights[0].number != number:
                raise WireError(f"an answer to frame {number} came where none was due")
            # The answer may be here before `write` has returned.
            self._changed.wait_for(lambda: self._flights[0].bits, self._timeout)
            flight = self._flights.popleft()
            self._pause = _FIRST_PAUSE
            self.counts.answered += 1
            self._changed.notify_all()
        return Result(
            index,
            number,
            flight.captured.number,
            flight.is_key,
            flight.bits,
            flight.edge,
            arrived - flight.captured.at,
            arrived,
            answer,
        )
