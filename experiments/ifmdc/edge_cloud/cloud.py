"""The cloud: takes coded feature maps from edges, runs the back of the network, answers."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.coding.container import BitstreamReader
from dynvid.coding.errors import BitstreamError
from dynvid.systems.ifmdc import Symbols, ifmdc, settings_of
from experiments.ifmdc.edge_cloud.network import (
    SplitNetwork,
    differences,
)
from experiments.ifmdc.edge_cloud.wire import (
    Answer,
    Connection,
    IdleError,
    Kind,
    WireError,
    one_line,
    parse,
    printable,
    refusal,
)


class _RefusedError(Exception):
    """An edge that cannot be served, and never will be."""


class Cloud:
    """A server for edges that run the front of the same network.

    Each connection is a bitstream of its own, decoded strictly in order from its first frame, a key
    frame, on. Whatever is wrong with it ends it, with one line in the log and one to the edge; the
    edge connects again and begins with a key frame. Nothing is ever decoded on top of a gap.

    Args:
      network: what is run.
      host: the address to listen on; "0.0.0.0" for all of the machine's.
      port: to listen on; 0 takes a free one, see `address`.
      timeout: the longest that an edge may be silent or busy reading, in seconds.
      most_edges: how many are served at once; more are told to come back.
      log: is given one line of text at a time.

    Raises:
      OSError: the port cannot be listened on.

    Attributes:
      address: (host, port) that it listens on.
    """

    def __init__(
        self,
        network: SplitNetwork,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout: float = 10.0,
        most_edges: int = 4,
        log: Callable[[str], None] = print,
    ):
        self._network = network
        self._timeout = timeout
        self._log = log
        self._places = threading.BoundedSemaphore(most_edges)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._serving: dict[Connection, threading.Thread] = {}
        # Before anyone connects: the first frame is not to wait for the compiler.
        feature = jnp.zeros(network.feature.shape, network.feature.dtype)
        jax.block_until_ready(network.back(network.params, feature))
        self._listener = socket.create_server((host, port))
        self._listener.settimeout(0.1)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def serve(self) -> None:
        """Serves edges until `stop` is called, from another thread or a signal handler."""
        try:
            while not self._stopping.is_set():
                try:
                    sock, peer = self._listener.accept()
                except TimeoutError:
                    continue
                except OSError as error:  # such as too many open files: no reason to end
                    self._log(f"cannot accept a connection: {one_line(error)}")
                    self._stopping.wait(0.1)
                    continue
                connection = Connection(sock, timeout=self._timeout)
                name = f"{peer[0]}:{peer[1]}"
                thread = threading.Thread(
                    target=self._serve_one, args=(connection, name), daemon=True
                )
                if not self._places.acquire(blocking=False):
                    self._log(f"{name}: refused, all places are taken")
                    # Without waiting that it arrives: others are to be accepted.
                    self._refuse(connection, "the cloud is busy with other edges", final=False)
                    connection.close()
                    continue
                with self._lock:
                    self._serving[connection] = thread
                thread.start()
        finally:
            self._listener.close()
            with self._lock:
                serving = dict(self._serving)
            for connection in serving:
                connection.interrupt()
            for thread in serving.values():
                thread.join()

    def stop(self) -> None:
        """Ends `serve` and all connections."""
        self._stopping.set()

    def _serve_one(self, connection: Connection, name: str) -> None:
        frames = 0
        try:
            hello = connection.receive({Kind.HELLO})
            if hello is not None:
                for answer in self._answers(connection, parse(hello.payload), name):
                    connection.send(Kind.DETECTIONS, answer.to_bytes(), number=frames)
                    frames += 1
            self._log(f"{name}: ended after {frames} frames")
        except _RefusedError as error:
            self._log(f"{name}: refused: {error}")
            self._refuse(connection, str(error), final=True)
            connection.part()
        except (WireError, BitstreamError, OSError) as error:
            if not self._stopping.is_set():
                self._log(f"{name}: closed after {frames} frames: {one_line(error)}")
                if not isinstance(error, OSError):
                    self._refuse(connection, one_line(error), final=False)
                    connection.part()
        finally:
            connection.close()
            with self._lock:
                del self._serving[connection]
            self._places.release()

    def _answers(self, connection: Connection, hello: dict, name: str) -> Iterator[Answer]:
        """Yields what is found in one frame after the other."""
        network = self._network
        if difference := differences(network.identity, hello):
            raise _RefusedError(printable(f"not the same network: {difference}"))
        reader = BitstreamReader(connection)  # type: ignore[arg-type]  # it reads, that is all
        header = reader.header
        if header.shape != network.feature.shape:
            raise _RefusedError(
                f"features must be {network.feature.shape}, the header says {header.shape}"
            )
        try:
            codec = ifmdc(settings_of(header))
        except ValueError as error:
            raise _RefusedError(printable(str(error))) from error
        # Compiled before the edge is let in: its first frame is not to wait for that.
        decode, state = codec.decoder.step, codec.blank(header.shape)
        still = jnp.zeros(header.coded_shape, jnp.int16)
        jax.block_until_ready(decode((), state, Symbols(still, jnp.asarray(True), jnp.uint32(0))))
        connection.send(Kind.WELCOME)
        self._log(f"{name}: an edge, {header.stage} coding, {header.levels} levels")
        try:
            for frame in reader:
                came = connection.last_read
                symbols = Symbols(
                    jnp.asarray(frame.labels), jnp.asarray(frame.is_key), jnp.uint32(frame.number)
                )
                state, feature = jax.block_until_ready(decode((), state, symbols))
                if not state.intact:
                    raise WireError(f"frame {frame.number} lacks the frame before it")
                decoded = time.monotonic()
                found = jax.block_until_ready(network.back(network.params, feature))
                boxes, scores, classes, valid = (np.asarray(part)[0] for part in found)
                yield Answer(
                    boxes[valid],
                    scores[valid],
                    classes[valid],
                    decoded - came,
                    time.monotonic() - decoded,
                )
        except IdleError as error:
            raise WireError(f"the edge is silent: {error}") from error

    @staticmethod
    def _refuse(connection: Connection, reason: str, *, final: bool) -> None:
        with contextlib.suppress(OSError):  # it may have gone; the log says why
            connection.send(Kind.REFUSAL, refusal(reason, final=final))
