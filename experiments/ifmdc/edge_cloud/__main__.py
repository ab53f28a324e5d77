"""The command line: python -m experiments.ifmdc.edge_cloud --help."""

import itertools
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from dynvid.video.reader import VideoError
from experiments.bench import DATA
from experiments.ifmdc.edge_cloud import report
from experiments.ifmdc.edge_cloud.cloud import Cloud
from experiments.ifmdc.edge_cloud.edge import Edge, EdgeError, Encoder, Result, calibrated
from experiments.ifmdc.edge_cloud.judge import drawn_boxes, judge
from experiments.ifmdc.edge_cloud.models import TRUTH, Scene, load, open_video
from experiments.ifmdc.edge_cloud.network import SplitNetwork
from experiments.ifmdc.edge_cloud.wire import one_line

_CALIBRATION = 4  # frames whose features choose the clip range
_START_UP = 300.0  # the longest that the demo waits for its cloud, in seconds
_INTERRUPTED = 130

console = Console(highlight=False, soft_wrap=True)


class UsageError(Exception):
    """What was asked for cannot be done; one line says why."""


def say(line: str) -> None:
    """Prints one line at once, whoever reads it."""
    print(line, flush=True)


def cloud(
    *,
    model: str | None = None,
    cut: str | None = None,
    size: str = "640x480",
    host: str = "127.0.0.1",
    port: int = 4567,
    timeout: float = 10.0,
) -> int:
    """Serve edges: decode their features, run the back of the network, send detections.

    Give it the same --model, --cut and --size as the edge; a difference is told to both. Ends with
    Ctrl-C. There is no encryption and no password: beyond localhost, use a trusted network or a
    tunnel (ssh -L 4567:localhost:4567 CLOUD).

    Args:
      model: synthetic, yolov5n, yolo-fastest, yolo-fastest-xl, a .pt (YOLOv5) or a .cfg (Darknet)
        file. By default YOLOv5n where DYNVID_DATA has it, otherwise the detector of synthetic
        scenes that comes with the package.
      cut: Where the network is cut: layer_N in Darknet networks, model.N after a stage of YOLOv5,
        or convolution_N, what the Nth convolution reads, from 0. By default at stride 8: layer_24
        (Darknet), model.4 (YOLOv5), convolution_3 (synthetic).
      size: Width and height of the network's input in pixels; frames are letterboxed into it.
      host: The address to listen on; 0.0.0.0 for all of this machine's.
      port: The port to listen on; 0 takes a free one and says which.
      timeout: The longest that an edge may be silent, in seconds.
    """
    network = _load(model, cut, size)
    _check(timeout > 0, f"--timeout must be above 0, got {timeout:g}")
    _check(0 <= port < 1 << 16, f"--port must be of 0 .. 65535, got {port}")
    try:
        server = Cloud(network, host=host, port=port, timeout=timeout, log=say)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {one_line(error)}") from error
    say(f"listening on {server.address[0]}:{server.address[1]}: {network.identity['network']}")
    try:
        server.serve()
    except KeyboardInterrupt:
        say("ended")
        return _INTERRUPTED
    return 0


def edge(
    source: Annotated[str | None, tyro.conf.Positional] = None,
    *,
    model: str | None = None,
    cut: str | None = None,
    size: str = "640x480",
    host: str = "127.0.0.1",
    port: int = 4567,
    timeout: float = 10.0,
    fps: float | None = None,
    max_frames: int | None = None,
    levels: int = 37,
    block: int = 4,
    group_of_pictures: int = 15,
    stage: Literal["fixed", "huffman", "arithmetic"] = "arithmetic",
    incremental: bool = False,
    threshold: float = 15.0,
    truncation: float = 0.5,
    waiting: int = 2,
    window: int = 2,
    ap: bool = False,
    truth: pathlib.Path | None = None,
    out: pathlib.Path | None = None,
) -> int:
    """Run the front of the network on a video, send coded features, measure until it ends.

    A cloud that is not there, or goes, is tried again until it is back; frames are dropped in the
    meantime. Ctrl-C ends it with the exit code 130, after the table of what was measured.

    Args:
      source: A video file, a folder of images, a camera ('0') or a stream (rtsp://, http://). By
        default PETS where DYNVID_DATA has it, otherwise a synthetic scene.
      model: As for cloud.
      cut: As for cloud.
      size: As for cloud.
      host: The cloud's address.
      port: The cloud's port.
      timeout: The longest to wait for the cloud, in seconds.
      fps: At how many frames a second a file plays, whether there is time for them or not; 0
        takes the next frame when there is room for it, and drops none. By default the file's own,
        or 25; cameras and streams have their own pace.
      max_frames: Stop after this many frames.
      levels: k, the labels of a residual, odd: more is finer and takes more bits.
      block: Side of the blocks whose cosine transform is coded, which takes half the bits or less;
        1 codes values, as the paper does.
      group_of_pictures: From key frame to key frame.
      stage: How labels become bits: fixed (R1), huffman (R2) or arithmetic (R3, the smallest).
      incremental: Whether the front computes only what changed.
      threshold: With --incremental: how much a pixel must change to count, in grey levels.
      truncation: With --incremental: how much a value must move to replace the kept one, in root
        mean squares of its layer.
      waiting: How many frames may wait; the oldest is dropped for a new one.
      window: How many packets may be unanswered.
      ap: Judge the answers afterwards, which runs the whole network here once more: average
        precision against drawn boxes, or against its own boxes where there are none.
      truth: With --ap: persons drawn in the video, as MOT Challenge has them; by default PETS's,
        where that is what is sent.
      out: A JSON file for the figures and every frame's detections.
    """
    _check(fps is None or 0 <= fps < math.inf, f"--fps must be 0 or more, got {fps}")
    _check(max_frames is None or max_frames > 0, f"--max-frames must be above 0, got {max_frames}")
    _check(waiting > 0, f"--waiting must be above 0, got {waiting}")
    _check(window > 0, f"--window must be above 0, got {window}")
    _check(timeout > 0, f"--timeout must be above 0, got {timeout:g}")
    _check(0 < port < 1 << 16, f"--port must be of 1 .. 65535, got {port}")
    live = source is not None and (
        re.fullmatch(r"\d{1,3}|<video\d{1,3}>", source) is not None or "://" in source
    )
    _check(not (ap and live), f"--ap reads the video twice, which {source} cannot be")
    network = _load(model, cut, size)
    try:
        video = open_video(source, network, max_frames=max_frames)
        frames = iter(video)
        persons = None
        if ap and not isinstance(video, Scene):
            if source is None:
                truth = truth or DATA / TRUTH
            if truth is not None:
                _check(
                    "person" in network.class_names,
                    "--ap with drawn persons needs a network that knows persons; use --no-ap",
                )
                persons = drawn_boxes(truth, video.name, size=network.size)
        first = list(itertools.islice(frames, _CALIBRATION))
        settings = calibrated(
            network, first, levels=levels, block=block, group_of_pictures=group_of_pictures
        )
    except (ValueError, OSError) as error:
        raise UsageError(one_line(error)) from error
    pace = (math.inf if live else video.fps or 25.0) if fps is None else fps or None
    encoder = Encoder(
        network, settings, incremental=incremental, threshold=threshold, truncation=truncation
    )
    encoder.warm_up(first[0])
    results: list[Result] = []
    sender = Edge(
        network,
        encoder,
        settings,
        stage=stage,
        waiting=waiting,
        window=window,
        timeout=timeout,
        on_result=results.append,
        log=say,
    )
    interrupted = False
    precision: dict[str, Any] = {}
    try:
        sender.run(itertools.chain(first, frames), (host, port), fps=pace)
        if ap:
            precision = judge(network, video, results, persons=persons)
    except KeyboardInterrupt:
        interrupted = True
    except (ValueError, OSError) as error:  # the figures are worth having without
        say(f"not judged: {one_line(error)}")
    figures = report.summarize(network, sender.counts, results) | {
        "source": video.name if isinstance(video, Scene) else pathlib.PurePath(video.name).name,
        "camera_fps": pace if pace is not None and math.isfinite(pace) else None,
        "levels": levels,
        "block": block,
        "group_of_pictures": group_of_pictures,
        "stage": stage,
        "incremental": incremental,
        "threshold": threshold if incremental else None,
        "truncation": truncation if incremental else None,
        "interrupted": interrupted,
        **precision,
    }
    console.print(report.table(figures))
    if out is not None:
        report.write(out, figures, results)
        console.print(f"written: {out}")
    return _INTERRUPTED if interrupted else 0


def demo(
    source: Annotated[str | None, tyro.conf.Positional] = None,
    *,
    model: str | None = None,
    cut: str | None = None,
    size: str = "640x480",
    fps: float | None = None,
    max_frames: int | None = 100,
    levels: int = 37,
    block: int = 4,
    group_of_pictures: int = 15,
    stage: Literal["fixed", "huffman", "arithmetic"] = "arithmetic",
    incremental: bool = False,
    threshold: float = 15.0,
    truncation: float = 0.5,
    waiting: int = 2,
    window: int = 2,
    ap: bool = True,
    truth: pathlib.Path | None = None,
    out: pathlib.Path | None = None,
) -> int:
    """Run both sides on this machine, as two processes, and print what was measured.

    Args:
      source: As for edge.
      model: As for cloud.
      cut: As for cloud.
      size: As for cloud.
      fps: As for edge.
      max_frames: Stop after this many frames.
      levels: As for edge.
      block: As for edge.
      group_of_pictures: As for edge.
      stage: As for edge.
      incremental: As for edge.
      threshold: As for edge.
      truncation: As for edge.
      waiting: As for edge.
      window: As for edge.
      ap: As for edge.
      truth: As for edge.
      out: As for edge.
    """
    command = [sys.executable, "-m", "experiments.ifmdc.edge_cloud", "cloud", "--port", "0"]
    command += ["--size", size]
    for option, value in (("--model", model), ("--cut", cut)):
        command += [option, value] if value is not None else []
    root = pathlib.Path(__file__).parents[3]
    # A group of its own: Ctrl-C is for the edge, which then ends the cloud.
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        port = _announced_port(process)
        return edge(
            source,
            model=model,
            cut=cut,
            size=size,
            port=port,
            fps=fps,
            max_frames=max_frames,
            levels=levels,
            block=block,
            group_of_pictures=group_of_pictures,
            stage=stage,
            incremental=incremental,
            threshold=threshold,
            truncation=truncation,
            waiting=waiting,
            window=window,
            ap=ap,
            truth=truth,
            out=out,
        )
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _announced_port(process: subprocess.Popen) -> int:
    """The port that a cloud says that it listens on; its further lines are printed as they come."""
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    found: list[int] = []
    ready = threading.Event()

    def read() -> None:
        try:
            for line in lines:
                if match := re.match(r"listening on \S+:(\d+)", line):
                    found.append(int(match[1]))
                    ready.set()
                say(f"cloud: {line.rstrip()}")
        except ValueError:
            pass  # closed by the demo, which has ended
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    ready.wait(_START_UP)
    if not found:
        raise UsageError("the cloud did not start")
    return found[0]


def _load(model: str | None, cut: str | None, size: str) -> SplitNetwork:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if not match:
        raise UsageError(f"--size must be WIDTHxHEIGHT, such as 640x480; got {size}")
    try:
        return load(model, cut=cut, size=(int(match[2]), int(match[1])))
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot load the network: {one_line(error)}") from error


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)


def main() -> int:
    """Split computing over TCP: an edge sends coded features, a cloud answers with detections."""
    try:
        return tyro.extras.subcommand_cli_from_dict(
            {"edge": edge, "cloud": cloud, "demo": demo}, description=main.__doc__
        )
    except (UsageError, EdgeError, VideoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Threads that wait in a camera's driver are not waited for.
    os._exit(status)
