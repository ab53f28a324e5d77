"""The wire: whatever happens to it, what is answered is right and memory is bounded."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import dynvid
from dynvid.ops.boxes import Detections
from dynvid.systems.ifmdc import Settings, ifmdc
from experiments.ifmdc.edge_cloud import __main__ as command
from experiments.ifmdc.edge_cloud import report
from experiments.ifmdc.edge_cloud.cloud import Cloud
from experiments.ifmdc.edge_cloud.edge import Edge, EdgeError, Encoder, Result, Seconds
from experiments.ifmdc.edge_cloud.judge import drawn_boxes, judge
from experiments.ifmdc.edge_cloud.models import Scene, load
from experiments.ifmdc.edge_cloud.network import split_network
from experiments.ifmdc.edge_cloud.wire import Answer, Connection, Kind, WireError

PATIENCE = 120.0  # seconds until a test that hangs fails
ROOT = pathlib.Path(__file__).parents[2]
# Powers of two all over: the codec's arithmetic is exact.
SETTINGS = Settings(low=0.0, high=64.0, levels=9, group_of_pictures=5)
# Whoever goes on where the last connection ended sends no key frame by accident.
LONG = dataclasses.replace(SETTINGS, group_of_pictures=40)


def convolve(kernel, x, stride):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def network(params, frames):
    x = convolve(params["front"], frames.astype(jnp.float32), 2)
    x = checkpoint_name(jax.nn.relu(x), "cut")
    return convolve(params["back"], x, 1)


def decode(params, outputs):
    """The ten best cells, a box of its channels each."""
    scores, cells = jax.lax.top_k(outputs.sum(-1).reshape(1, -1), 10)
    boxes = jnp.take_along_axis(outputs.reshape(1, -1, 4), cells[..., None], 1)
    return Detections(boxes, scores, cells.astype(jnp.int32), scores > 0)


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "front": jnp.asarray(rng.integers(-1, 2, (3, 3, 3, 4)), jnp.float32),
        "back": jnp.asarray(rng.integers(-4, 5, (3, 3, 4, 4)), jnp.float32),
    }


@pytest.fixture(scope="module")
def small():
    return split_network("small", network, decode, parameters(), cut="cut", size=(16, 24))


def video(count):
    rng = np.random.default_rng(1)
    frames = np.repeat(rng.integers(0, 6, (1, 16, 24, 3)), count, 0).astype(np.uint8)
    for t in range(count):  # something moves, some of it stays
        frames[t, 4:9, t % 18 : t % 18 + 6] = rng.integers(0, 6, (5, 6, 3))
    return frames


@functools.cache
def reference(net):
    return jax.jit(net.front)


@functools.cache
def incremental_front(net):
    return dynvid.incremental(net.front)


def expected(net, settings, frames, results, *, incremental=False):
    """back(decode(encode(front(x)))) of every result, computed here, connection by connection."""
    codec, front = ifmdc(settings), reference(net)
    video = incremental_front(net) if incremental else None
    for connection in sorted({r.connection for r in results}):
        own = [r for r in results if r.connection == connection]
        # In order from the first on: none is missing in between.
        assert [r.number for r in own] == list(range(len(own)))
        assert [r.is_key for r in own] == [
            n % settings.group_of_pictures == 0 for n in range(len(own))
        ]
        near, far = codec.blank(net.feature.shape), codec.blank(net.feature.shape)
        for result in own:
            frame = frames[result.frame][None]
            feature = front(net.params, frame)
            change = None
            if video is not None:
                # What the mask of the connection's first frame is does not matter: a key frame.
                if result.number == 0:
                    state, own_feature = video.init(net.params, frame)
                else:
                    state, own_feature = video.step(net.params, state, frame)
                assert np.array_equal(own_feature, feature)
                (change,) = state.changes
            near, symbols = codec.encoder.step((), near, feature, change)
            far, reconstruction = codec.decoder.step((), far, symbols)
            yield result, net.back(net.params, reconstruction)


def check(net, settings, frames, results, **options):
    some = False
    for result, found in expected(net, settings, frames, results, **options):
        boxes, scores, classes, valid = (np.asarray(part)[0] for part in found)
        assert np.array_equal(result.answer.boxes, boxes[valid])
        assert np.array_equal(result.answer.scores, scores[valid])
        assert np.array_equal(result.answer.classes, classes[valid])
        some |= len(result.answer.scores) > 0
    assert some
    shown = [r.frame for r in results]
    assert shown == sorted(set(shown))


class Log(list):
    """Lines, and waiting for one."""

    def __init__(self):
        super().__init__()
        self._changed = threading.Condition()

    def __call__(self, line):
        assert "\n" not in line
        with self._changed:
            self.append(line)
            self._changed.notify_all()

    def wait_for(self, part):
        with self._changed:
            assert self._changed.wait_for(lambda: any(part in line for line in self), PATIENCE), (
                self
            )


@contextlib.contextmanager
def serving(net, **options):
    options.setdefault("log", Log())
    cloud = Cloud(net, **options)
    thread = threading.Thread(target=cloud.serve)
    thread.start()
    try:
        yield cloud
    finally:
        cloud.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@functools.cache
def encoder_of(net, settings, incremental):
    """Compiled once, before anyone waits for it; every connection starts it anew."""
    encoder = Encoder(net, settings, incremental=incremental, threshold=0, truncation=0)
    encoder.warm_up(np.zeros(net.frames.shape[1:], np.uint8))
    return encoder


class Runner:
    """An edge in a thread."""

    def __init__(self, net, frames, address, *, settings=SETTINGS, fps=None, each=None, **options):
        self.results = []
        self.log = Log()
        self.error = None
        incremental = options.pop("incremental", False)
        encoder = encoder_of(net, settings, incremental)

        def on_result(result):
            self.results.append(result)
            if each:
                each(result)

        self.edge = Edge(net, encoder, settings, on_result=on_result, log=self.log, **options)

        def run():
            try:
                self.edge.run(frames, address, fps=fps)
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def join(self):
        self.thread.join(PATIENCE)
        alive = self.thread.is_alive()
        self.edge.stop()
        self.thread.join(PATIENCE)
        assert not alive, self.log
        if self.error:
            raise self.error
        return self.results


class Proxy:
    """A wire that does to the bytes what it is told to."""

    def __init__(self, upstream, *, upwards=lambda data, at: data, downwards=lambda data, at: data):
        self._upstream = upstream
        self._mangle = [upwards, downwards]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection(self._upstream)
            pair = _Pair(near, far)
            for source, target, mangle in ((near, far, 0), (far, near, 1)):
                arguments = source, target, self._mangle[mangle]
                thread = threading.Thread(target=pair.pump, args=arguments)
                thread.start()
                self._threads.append(thread)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


class _Pair:
    def __init__(self, near, far):
        self._both = near, far
        self._open = 2
        self._lock = threading.Lock()

    def pump(self, source, target, mangle):
        at = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 12):
                changed = mangle(data, at)
                at += len(data)
                if changed is None:  # a reset, as of a process that is killed
                    for sock in self._both:
                        sock.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
                        sock.shutdown(socket.SHUT_RDWR)
                    break
                target.sendall(changed)
            target.shutdown(socket.SHUT_WR)
        with self._lock:
            self._open -= 1
            if not self._open:
                for sock in self._both:
                    sock.close()


@contextlib.contextmanager
def through(cloud, **mangle):
    proxy = Proxy(cloud.address, **mangle)
    try:
        yield proxy.address
    finally:
        proxy.close()


@pytest.mark.parametrize("stage", ["fixed", "huffman", "arithmetic"])
@pytest.mark.parametrize("incremental", [False, True])
def test_detections_are_those_of_the_decoded_features(small, stage, incremental):
    frames = video(12)
    with serving(small) as cloud:
        runner = Runner(small, frames, cloud.address, stage=stage, incremental=incremental)
        results = runner.join()
    assert [r.frame for r in results] == list(range(12))
    assert runner.edge.counts.dropped == 0
    assert runner.edge.counts.connections == 1
    check(small, SETTINGS, frames, results, incremental=incremental)


def test_a_cloud_that_goes_and_comes_back(small):
    frames = video(30)
    gone, back = threading.Event(), threading.Event()

    def source():
        yield from frames[:15]
        assert gone.wait(PATIENCE)
        yield from frames[15:20]
        assert back.wait(PATIENCE)
        yield from frames[20:]

    enough = threading.Event()
    with serving(small) as first:
        runner = Runner(
            small,
            source(),
            first.address,
            settings=LONG,
            each=lambda r: enough.set() if r.frame == 9 else None,
        )
        assert enough.wait(PATIENCE)
    gone.set()
    runner.log.wait_for("trying again")
    with serving(small, port=first.address[1]):
        back.set()
        results = runner.join()
    assert runner.edge.counts.connections == 2
    assert results[-1].frame == 29
    lost = runner.edge.counts.sent - runner.edge.counts.answered
    assert 0 <= lost <= 2
    check(small, LONG, frames, results)


def test_an_edge_that_goes_and_comes_back(small):
    frames = video(12)
    enough = threading.Event()
    with serving(small) as cloud:
        hold = threading.Event()

        def source():
            yield from frames[:8]
            hold.wait(PATIENCE)

        first = Runner(
            small,
            source(),
            cloud.address,
            settings=LONG,
            each=lambda r: enough.set() if r.frame == 3 else None,
        )
        assert enough.wait(PATIENCE)
        first.edge.stop()
        hold.set()
        before = first.join()
        cloud._log.wait_for("closed after")
        results = Runner(small, frames[8:], cloud.address, settings=LONG).join()
    assert [r.number for r in results] == [0, 1, 2, 3]
    assert results[0].is_key
    check(small, LONG, frames, before)
    check(small, LONG, frames[8:], results)


@pytest.mark.parametrize(
    ("damage", "at"),
    [*(("flip", at) for at in (20, 300, 500, 1100)), ("reset", 20), ("reset", 500), ("lose", 500)],
)
@pytest.mark.parametrize("direction", ["upwards", "downwards"])
def test_damage_on_the_wire_is_found_and_repaired(small, at, direction, damage):
    frames = video(16)
    hit = threading.Event()

    def mangle(data, start):
        if hit.is_set() or not start <= at < start + len(data):
            return data
        hit.set()
        if damage == "reset":
            return None
        here = at - start
        middle = b"" if damage == "lose" else bytes([data[here] ^ 0x10])
        return data[:here] + middle + data[here + 1 :]

    with serving(small, timeout=3) as cloud, through(cloud, **{direction: mangle}) as address:
        runner = Runner(small, frames, address, stage="fixed", timeout=3)
        results = runner.join()
    assert hit.is_set()
    assert any("trying again" in line for line in runner.log)
    # What was sent and not answered is lost, never wrong; all that came later is there.
    counts = runner.edge.counts
    assert counts.sent - len(results) <= 2 * counts.connections
    assert results[-1].frame == 15
    assert results[-1].connection == counts.connections - 1
    check(small, SETTINGS, frames, results)


def test_no_damaged_packet_is_decoded(small):
    """Whatever byte of a packet is another: what came before it is answered, and nothing else."""
    sent = bytearray()

    def record(data, start):
        sent.extend(data)
        return data

    def replies(data):
        with socket.create_connection(cloud.address, timeout=PATIENCE) as sock:
            connection = Connection(sock, timeout=PATIENCE)
            connection.write(bytes(data))
            connection.end()
            while message := connection.receive({Kind.WELCOME, Kind.DETECTIONS, Kind.REFUSAL}):
                yield message.kind, message.number

    with serving(small) as cloud:
        with through(cloud, upwards=record) as address:
            results = Runner(small, video(4), address, stage="arithmetic").join()
        answers = [(Kind.WELCOME, 0), *((Kind.DETECTIONS, n) for n in range(4))]
        assert list(replies(sent)) == answers
        sizes = [r.bits // 8 for r in results]
        end = len(sent) - 15 - sizes[3]  # the last packet has no payload
        for place in range(end - sizes[2], end):
            damaged = sent.copy()
            damaged[place] ^= 1 << place % 8
            assert list(replies(damaged)) == [*answers[:3], (Kind.REFUSAL, 0)]


def test_a_slow_cloud_costs_frames_and_no_memory(small):
    count, waiting, window = 300, 2, 2
    frames = video(count)
    busy, may_answer = threading.Event(), threading.Event()

    def slow(params, feature):
        busy.set()
        assert may_answer.wait(PATIENCE)
        return small.back(params, feature)

    alive, most = weakref.WeakValueDictionary(), 0

    def source():
        nonlocal most
        for number in range(count):
            if number == 4:
                assert busy.wait(PATIENCE)
            frame = frames[number].copy()
            alive[number] = frame
            most = max(most, len(alive))
            yield frame
            del frame
        may_answer.set()

    with serving(small) as cloud:
        cloud._network = dataclasses.replace(small, back=slow)
        runner = Runner(
            small, source(), cloud.address, fps=math.inf, waiting=waiting, window=window
        )
        results = runner.join()
    counts = runner.edge.counts
    assert counts.captured == count
    assert counts.sent == counts.answered == len(results)
    assert counts.dropped == count - counts.sent
    # The first that were sent, and those that waited at the end.
    assert len(results) <= window + waiting
    assert counts.most_waiting <= waiting
    assert counts.most_in_flight <= window
    # Those that wait, the one in the camera's hands and the one being encoded.
    assert most <= waiting + 3
    assert results[-1].frame == count - 1
    check(small, SETTINGS, frames, results)


GARBAGE = {
    "a browser": b"GET / HTTP/1.1\r\nHost: cloud\r\n\r\n",
    "nothing": b"",
    "zeros": bytes(100),
    "a long message": b"IFMW" + bytes([1]) + b"\xff" * 8 + bytes(4),
    "a part of a message": b"IFMW\1",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_gives_one_line_and_the_cloud_goes_on(small, name):
    frames = video(4)
    with serving(small) as cloud:
        with socket.create_connection(cloud.address, timeout=PATIENCE) as sock:
            sock.sendall(GARBAGE[name])
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while sock.recv(1 << 10):
                    pass
        cloud._log.wait_for("ended" if name == "nothing" else "closed after 0 frames")
        assert len(cloud._log) == 1
        results = Runner(small, frames, cloud.address).join()
    check(small, SETTINGS, frames, results)


def test_who_says_nothing_is_not_waited_for(small):
    with (
        serving(small, timeout=0.2, most_edges=1) as cloud,
        socket.create_connection(cloud.address, timeout=PATIENCE),
    ):
        cloud._log.wait_for("nothing came for 0.2 s")
        frames = video(4)
        check(small, SETTINGS, frames, Runner(small, frames, cloud.address).join())


def test_a_drip_of_bytes_is_not_waited_for():
    near, far = socket.socketpair()
    stop = threading.Event()

    def drip():
        while not stop.wait(0.02):
            far.sendall(b"I")

    thread = threading.Thread(target=drip)
    connection = Connection(near, timeout=0.2)
    thread.start()
    try:
        with pytest.raises(WireError, match="too slowly"):
            connection.read(1000)
    finally:
        stop.set()
        thread.join()
        connection.close()
        far.close()


def test_a_cloud_that_is_full_says_so(small):
    frames = video(4)
    with serving(small, most_edges=1) as cloud:
        with socket.create_connection(cloud.address, timeout=PATIENCE):
            runner = Runner(small, frames, cloud.address)
            cloud._log.wait_for("all places are taken")
        results = runner.join()
    check(small, SETTINGS, frames, results)


@pytest.mark.parametrize("what", ["parameters", "program", "cut", "size"])
def test_another_network_is_one_clear_error(small, what):
    size = (16, 32) if what == "size" else (16, 24)
    params = parameters(1) if what == "parameters" else parameters()

    def twice(params, outputs):
        return decode(params, 2 * outputs)

    other = split_network(
        "small",
        network,
        twice if what == "program" else decode,
        params,
        cut="convolution_1" if what == "cut" else "cut",
        size=size,
    )
    expected_line = {
        "parameters": "both run small cut at cut, with other parameters",
        "program": "as other programs",
        "cut": "small cut at convolution_1 here small cut at cut",
        "size": "frames 16x32 here 16x24",
    }[what]
    frames = np.zeros((3, *size, 3), np.uint8)
    with serving(small) as cloud:
        runner = Runner(other, frames, cloud.address)
        with pytest.raises(EdgeError, match=expected_line):
            runner.join()
        cloud._log.wait_for(expected_line)
        assert len(cloud._log) == 1


def test_a_cut_that_more_crosses_is_refused():
    def skip(params, frames):
        x = frames.astype(jnp.float32)
        early = convolve(params["front"], x, 2)
        late = checkpoint_name(jax.nn.relu(early), "cut")
        return convolve(params["back"], late, 1) + early

    with pytest.raises(ValueError, match="one feature map must cross the cut"):
        split_network("skip", skip, decode, parameters(), cut="cut", size=(16, 24))


def test_a_port_in_use_is_one_line(small):
    with serving(small) as cloud, pytest.raises(command.UsageError, match="cannot listen on"):
        command.cloud(model="synthetic", size="32x32", port=cloud.address[1])


def test_answers_round_trip():
    answer = Answer(np.float32([[1, 2, 3, 4.5]]), np.float32([0.5]), np.int32([7]), 0.25, 0.5)
    data = answer.to_bytes()
    again = Answer.from_bytes(data)
    assert all(np.array_equal(a, b) for a, b in zip(answer, again, strict=True))
    for damaged in (data[:-1], data + b"\0", data[:5], b""):
        with pytest.raises(WireError):
            Answer.from_bytes(damaged)


def test_messages_survive_no_change_of_any_byte():
    near, far = socket.socketpair()
    writer, reader = Connection(near, timeout=5), Connection(far, timeout=5)
    writer.send(Kind.REFUSAL, b"{}", number=3)
    data = reader.read(23)
    try:
        for place in range(len(data)):
            writer.write(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(WireError):
                reader.receive({Kind.REFUSAL})
            if place < 17:  # its head was refused: what follows was not read
                reader.read(6)
        writer.write(data)
        assert reader.receive({Kind.REFUSAL}).number == 3
    finally:
        writer.close()
        reader.close()


def test_the_report_is_whole_and_readable(small, tmp_path):
    frames = video(7)
    with serving(small) as cloud:
        runner = Runner(small, frames, cloud.address)
        results = runner.join()
    figures = report.summarize(small, runner.edge.counts, results)
    report.table(figures)
    report.write(tmp_path / "new" / "out.json", figures, results)
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert os.listdir(tmp_path / "new") == ["out.json"]
    assert written["frames_answered"] == 7
    # The hello and the bitstream's header and end are all that is sent beside packets.
    overhead = 8 * written["bytes_sent"] - sum(f["bits"] for f in written["per_frame"])
    assert 0 < overhead < 8 * 600
    latency = written["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    for frame, result in zip(written["per_frame"], results, strict=True):
        parts = [frame[f"{part}_ms"] for part in ("front", "coding", "sending")]
        assert parts == [1e3 * seconds for seconds in result.edge]
        assert all(part > 0 for part in parts)
        assert sum(parts) < frame["latency_ms"]
    nothing = report.summarize(small, type(runner.edge.counts)(), [])
    report.table(nothing)
    json.dumps(nothing, allow_nan=False)


def test_unchanged_positions_are_neither_quantised_nor_compared(small):
    encoder = Encoder(small, SETTINGS, incremental=True, threshold=0, truncation=0)
    frames = video(3)
    encoder(frames[0])
    # As if the reconstruction had drifted everywhere: a comparison would find that.
    state = encoder._codec_state
    encoder._codec_state = state._replace(level=(state.level + 4) % 8)
    still = encoder(frames[0])
    assert not still.is_key
    assert (still.labels == SETTINGS.run_label).all()
    moved = encoder(frames[1]).labels != SETTINGS.run_label
    assert moved.any()
    changed = (frames[0] != frames[1]).any(-1)
    rows, columns = np.nonzero(changed)
    # The front's kernel of 3x3 at stride 2 reaches one pixel further.
    assert not moved[0, (rows.max() + 1) // 2 + 1 :].any()
    assert not moved[0, :, : max(0, (columns.min() - 2) // 2)].any()
    assert not moved[0, :, (columns.max() + 1) // 2 + 1 :].any()


def people(net):
    return dataclasses.replace(net, class_names=("person", "car"))


def answered(number, frame, boxes, scores, classes):
    answer = Answer(boxes, scores, classes, 0.0, 0.0)
    return Result(0, number, frame, number == 0, 8, Seconds(0.0, 0.0, 0.0), 0.1, 1.0, answer)


def judged(net, frames, boxes, **options):
    """What `judge` says of answers that hold these boxes."""
    results = []
    for number, found in enumerate(boxes):
        array = np.array(found, np.float32).reshape(-1, 4)
        scores = np.linspace(0.9, 0.8, len(array), dtype=np.float32)
        results.append(answered(number, 2 * number, array, scores, np.zeros(len(array), np.int32)))
    return judge(net, frames, results, **options)


def test_answers_are_judged_by_drawn_boxes(small):
    frames = video(6)  # every second one was answered
    right, wrong = [[2.0, 2.0, 10.0, 12.0]], [[12.0, 2.0, 20.0, 12.0]]
    persons = {0: np.array(right), 1: np.array(wrong), 2: np.array(right), 4: np.array(right)}
    for boxes, expected_value in (
        ([right] * 3, 100.0),
        ([wrong] * 3, 0.0),
        ([right, right, []], 200 / 3),
    ):
        found = judged(people(small), frames, boxes, persons=persons)
        assert found["ap50"] == pytest.approx(expected_value, abs=1e-4)  # float32, in percent
        assert found["ap50_of"] == "persons, drawn boxes"
        assert 0 <= found["ap50_uncut"] <= 100
    with pytest.raises(ValueError, match="knows no persons"):
        judged(small, frames, [right] * 3, persons=persons)
    assert judged(people(small), frames, [], persons=persons)["ap50"] is None


def test_answers_are_judged_by_the_detector_in_one_piece(small):
    """What it is sure of is there to be found: its own answers find it all, and no others."""

    def cells(params, outputs):
        found = decode(params, outputs)
        row, column = jnp.divmod(found.classes, 12)
        corner = jnp.stack([column, row], -1).astype(jnp.float32)
        scores = jnp.where(found.valid, 1 - 0.05 * jnp.arange(10.0), 0)
        boxes = jnp.concatenate([corner, corner + 1], -1)
        return found._replace(boxes=boxes, scores=scores, classes=found.classes % 2)

    net = people(split_network("cells", network, cells, parameters(), cut="cut", size=(16, 24)))
    frames = video(6)
    halves = [net.back(net.params, net.front(net.params, frame[None])) for frame in frames]
    answers = [[np.asarray(part)[0, np.asarray(x.valid)[0]] for part in x[:3]] for x in halves]
    figures = []
    for count in (10, 3, 0):
        results = [
            answered(n, n, *(part[:count] for part in answer)) for n, answer in enumerate(answers)
        ]
        figures.append(judge(net, frames, results, persons=None))
    assert figures[0]["ap50"] == 100
    assert 0 < figures[1]["ap50"] < 100
    assert figures[2]["ap50"] == 0
    assert all(found["ap50_uncut"] is None for found in figures)


def test_drawn_boxes_follow_the_letterbox(tmp_path):
    iio.imwrite(tmp_path / "0.png", np.zeros((20, 40, 3), np.uint8))
    truth = tmp_path / "gt.txt"
    truth.write_text("1,1,4,2,8,6,1,-1,-1,-1\n")
    # 40x20 into 20x20: half as large, five rows of grey above.
    boxes = drawn_boxes(truth, str(tmp_path / "0.png"), size=(20, 20))
    assert {frame: found.tolist() for frame, found in boxes.items()} == {0: [[2, 6, 6, 9]]}


# What a shell starts in the background ignores SIGINT, and so would its children.
START = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("experiments.ifmdc.edge_cloud", run_name="__main__")
"""


class Process:
    """One side as a process; its lines as they come."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines = queue.Queue()
        self.said = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.said.append(line)
            self.lines.put(line)

    def wait_for(self, part):
        while part not in (line := self.lines.get(timeout=PATIENCE)):
            pass
        return line

    def end(self, number):
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        self.process.stdout.close()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def shipped():
    return load("synthetic", cut=None, size=(64, 64))


def test_a_cloud_process_killed_and_started_again(shipped):
    frames = list(Scene(size=(64, 64), max_frames=30))
    settings = Settings(low=0.0, high=8.0, levels=33, group_of_pictures=40)
    options = ("cloud", "--model", "synthetic", "--size", "64x64", "--port")
    killed, enough, again = threading.Event(), threading.Event(), threading.Event()

    def source():
        yield from frames[:15]
        assert killed.wait(PATIENCE)
        yield from frames[15:20]
        assert again.wait(PATIENCE)
        yield from frames[20:]

    with Process(*options, 0) as first:
        port = int(first.wait_for("listening on").split(":")[1])
        runner = Runner(
            shipped,
            source(),
            ("127.0.0.1", port),
            settings=settings,
            each=lambda r: enough.set() if r.frame == 9 else None,
        )
        assert enough.wait(PATIENCE)
        first.end(signal.SIGKILL)
    killed.set()
    runner.log.wait_for("trying again")
    with Process(*options, port) as second:
        second.wait_for("listening on")
        again.set()
        results = runner.join()
        assert second.end(signal.SIGINT) == 130
    assert runner.edge.counts.connections == 2
    assert results[-1].frame == 29
    for result, found in expected(shipped, settings, frames, results):
        # Other processes compile the same program: the same boxes, to the bit.
        valid = np.asarray(found.valid)[0]
        assert np.array_equal(result.answer.boxes, np.asarray(found.boxes)[0][valid])


def test_an_edge_process_killed_and_started_again(shipped, tmp_path):
    out = tmp_path / "figures.json"
    with serving(shipped) as cloud:
        options = ("edge", "--model", "synthetic", "--size", "64x64", "--fps", 0, "--out", out)
        options += ("--port", cloud.address[1])
        with Process(*options) as first:
            cloud._log.wait_for("an edge")
            first.end(signal.SIGKILL)
        cloud._log.wait_for("after")
        assert not out.exists()
        del cloud._log[:]
        with Process(*options, "--max-frames", 8) as second:
            second.wait_for("answered")
            second.process.wait(PATIENCE)
            assert second.process.returncode == 0
            second.end(0)
    figures = json.loads(out.read_text())
    assert figures["frames_answered"] == 8
    assert figures["per_frame"][0]["key"]


@pytest.mark.parametrize("connected", [True, False])
def test_an_edge_process_that_is_interrupted_ends_cleanly(shipped, tmp_path, connected):
    out = tmp_path / "figures.json"
    with serving(shipped) as cloud:
        port = cloud.address[1]
        options = ("edge", "--model", "synthetic", "--size", "64x64", "--fps", 5, "--out", out)
        if not connected:
            with socket.create_server(("127.0.0.1", 0)) as closed:
                port = closed.getsockname()[1]
        with Process(*options, "--port", port) as edge:
            edge.wait_for("connected" if connected else "trying again")
            if connected:
                cloud._log.wait_for("an edge")
            assert edge.end(signal.SIGINT) == 130
        if connected:
            cloud._log.wait_for("after")
    said = "".join(edge.said)
    assert "Traceback" not in said
    assert "frames captured" in said
    figures = json.loads(out.read_text())
    assert figures["interrupted"]
    assert figures["frames_captured"] < 250
