"""The command line: `dynvid run`, `explain`, `encode`, `decode` and `bitstream`."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, BinaryIO, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import dynvid
from dynvid.coding.container import BitstreamReader
from dynvid.coding.entropy import zero_order_entropy
from dynvid.coding.errors import BitstreamError
from dynvid.data.synthetic import render, synthetic_scene
from dynvid.models import ssd, synthetic_detector
from dynvid.models.detection import HEADS, Head
from dynvid.models.synthetic_detector import STRIDE, load_synthetic_detector
from dynvid.runner import Detector, FrameResult, Measures, detect_video, summarize
from dynvid.systems.ifmdc import FeatureReader, FeatureWriter, Settings, clip_range
from dynvid.video.draw import annotate_frame
from dynvid.video.reader import VideoError, VideoSource, VideoWarning
from dynvid.video.report import plot_report
from dynvid.video.writer import VideoWriter
from dynvid.weights.caffe import load_ssd512
from dynvid.weights.darknet import load_darknet
from dynvid.weights.onnx import load_onnx
from dynvid.weights.yolov5 import load_yolov5

_HEADS: dict[str, Head] = {"synthetic": synthetic_detector.HEAD, "ssd": ssd.HEAD, **HEADS}
_HEAD_OF_SUFFIX = {".pt": "yolov5", ".caffemodel": "ssd", ".cfg": "yolov3"}
_FPS = 25.0  # of what is written, where the source does not say


class UsageError(Exception):
    """What was asked for cannot be done; one line says why."""


class Source(Protocol):
    """Frames `(H, W, 3)` uint8 of one size, and what is known of them."""

    name: str
    size: tuple[int, int]
    fps: float | None
    length: int | None

    def __iter__(self) -> Iterator[np.ndarray]: ...


class SyntheticSource:
    """The embedded default: objects that cross the view of a fixed camera."""

    name = "synthetic"
    size: tuple[int, int] = (480, 640)
    fps: float | None = _FPS

    def __init__(self, *, max_frames: int | None):
        self.length: int | None = 100 if max_frames is None else max_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        scene = synthetic_scene(
            jax.random.key(4), size=self.size, objects=8, object_size=(24.0, 56.0)
        )
        for t in range(self.length or 0):
            yield np.asarray(render(scene, t).frame)


def _option(text: str, *, default: str, metavar: str | None = None) -> Any:
    """Help for an option, with its default in words."""
    return tyro.conf.arg(help=text, metavar=metavar, help_behavior_hint=f"(default: {default})")


def run(
    source: Annotated[
        tyro.conf.Positional[str | None],
        _option(
            "A video file, a folder of images, one image, a camera ('0' is the first) or a stream "
            "(rtsp://, http://).",
            metavar="[SOURCE]",
            default="a synthetic scene of 100 frames, seen by a fixed camera",
        ),
    ] = None,
    *,
    model: Annotated[
        pathlib.Path | None,
        _option(
            "The network's weights: .onnx (YOLOX), .pt (YOLOv5) or .caffemodel (SSD512).",
            metavar="PATH",
            default="the detector of discs, squares and triangles that comes with the package",
        ),
    ] = None,
    head: Annotated[
        str | None,
        _option(
            "How frames go into the network and boxes come out: synthetic, yolov5 or yolox.",
            metavar="NAME",
            default="told from the model",
        ),
    ] = None,
    threshold: Annotated[
        float,
        _option(
            "How much a pixel must differ from the one that the caches were computed from to count "
            "as changed, in grey levels of 0..255. 0 recomputes all that differs at all.",
            metavar="LEVELS",
            default="15",
        ),
    ] = 15.0,
    truncation: Annotated[
        float,
        _option(
            "A value that was computed again replaces the kept one only where it moved by at least "
            "this much, in units of its layer's root mean square on the first frame. 0 is exact; "
            "more saves more.",
            metavar="RMS",
            default="0.5",
        ),
    ] = 0.5,
    max_frames: Annotated[
        int | None,
        _option("Stop after this many frames.", metavar="N", default="all there are"),
    ] = None,
    compare_dense: Annotated[
        bool,
        _option(
            "Also run the whole network on every frame, in turns, and report the speed-up, the "
            "difference in the outputs and how far the detections agree. Takes longer.",
            default="off",
        ),
    ] = False,
    out: Annotated[
        pathlib.Path | None,
        _option(
            "The folder to write into; made if missing. Results of an earlier run are replaced.",
            metavar="DIR",
            default="runs/ and the source's name",
        ),
    ] = None,
) -> int:
    """Detect objects in a video, computing only what changed.

    Writes annotated.mp4 (boxes, the mask of changed pixels, the work of every frame), report.png
    (work, time and similarity of every frame) and report.json (the same in numbers).

    Try:

    dynvid run

    dynvid run street.mp4 --model yolox_nano.onnx --compare-dense

    dynvid run rtsp://camera/1 --model yolov5n.pt --max-frames 500 --out runs/door
    """
    _check_number("--threshold", threshold, 255)
    _check_number("--truncation", truncation, math.inf)
    if max_frames is not None and max_frames < 1:
        raise UsageError(f"--max-frames must be at least 1, got {max_frames}")
    video: Source = (
        SyntheticSource(max_frames=max_frames)
        if source is None
        else VideoSource(source, max_frames=max_frames)
    )
    detector = load_detector(model, head, frame_size=video.size)
    check_detector(detector, video.size)
    out = pathlib.Path("runs", source_name(video.name)) if out is None else out

    console = Console(highlight=False)
    console.print(
        f"{video.name}, {_size(video.size)}; {detector.name} ({detector.head_name} head) at "
        f"{_size(detector.geometry(video.size).network_size)}; compiling ...",
        soft_wrap=True,
    )
    measures: list[Measures] = []
    interrupted = False
    with output_folder(out) as folder, _recorded_warnings() as messages:
        results = detect_video(
            detector,
            video,
            threshold=threshold,
            truncation=truncation,
            compare_dense=compare_dense,
        )
        with VideoWriter(folder / "annotated.mp4", fps=video.fps or _FPS) as writer:
            try:
                with contextlib.closing(results), _progress(video.length) as advance:  # type: ignore[arg-type]
                    for result in results:
                        writer.write(_annotate(detector, result, measures))
                        measures.append(result.measures)
                        advance(measures)
            except KeyboardInterrupt:
                if not measures:
                    raise
                interrupted = True
        report = summarize(measures) | {
            "source": video.name,
            "frame_size": list(video.size),
            "model": detector.name,
            "head": detector.head_name,
            "network_size": list(detector.geometry(video.size).network_size),
            "threshold": threshold,
            "truncation": truncation,
            "device": f"{jax.devices()[0].device_kind}, {platform.machine()}",
            "jax": jax.__version__,
            "dynvid": dynvid.__version__,
            "interrupted": interrupted,
            "warnings": messages,
            "per_frame": _per_frame(measures),
        }
        (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        _plot(folder / "report.png", measures, title=f"{video.name}: {detector.name}")
    console.print(_summary(report))
    console.print(f"annotated.mp4, report.png and report.json are in {out}", soft_wrap=True)
    return 130 if interrupted else 0


def explain(
    *,
    model: Annotated[
        pathlib.Path | None,
        _option(
            "The network's weights: .onnx, .pt or .caffemodel.",
            metavar="PATH",
            default="the detector that comes with the package",
        ),
    ] = None,
    head: Annotated[
        str | None,
        _option(
            "As for dynvid run: synthetic, yolov5 or yolox.",
            metavar="NAME",
            default="told from the model",
        ),
    ] = None,
    size: Annotated[
        str | None,
        _option(
            "Width and height of the frames in pixels, such as 768x576.",
            metavar="WxH",
            default="those of the network's input",
        ),
    ] = None,
) -> int:
    """Print, operation by operation, what of a network runs incrementally, and what not and why.

    Try:

    dynvid explain

    dynvid explain --model yolox_nano.onnx --size 1920x1080
    """
    frame_size = None if size is None else parse_size(size)
    detector = load_detector(model, head, frame_size=frame_size or SyntheticSource.size)
    if frame_size is None:
        frame_size = detector.network_size or _square(detector.head)
    check_detector(detector, frame_size)
    frames = jnp.zeros((1, *frame_size, 3), jnp.uint8)
    explanation = dynvid.explain(detector.on_frames(frame_size), detector.params, frames)
    # A file or a pipe has no width of its own, and rich would cut the table to 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(explanation.table())
    return 0


def encode(
    source: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(help="A video file, a folder of images, a camera or a stream."),
    ],
    *,
    model: Annotated[
        pathlib.Path,
        tyro.conf.arg(
            help="The network: .pt (YOLOv5), .cfg (Darknet, its .weights beside it) or another "
            "that dynvid run takes.",
            metavar="PATH",
        ),
    ],
    at: Annotated[
        str,
        tyro.conf.arg(
            help="Where to cut the network: a name that it gives to one of its feature maps, such "
            "as layer_12 (Darknet) or model.4 (YOLOv5).",
            metavar="NAME",
        ),
    ],
    out: Annotated[
        pathlib.Path,
        tyro.conf.arg(help="The file to write, such as street.ifm.", metavar="FILE"),
    ],
    levels: Annotated[
        int,
        _option(
            "The labels of a residual, an odd number: more are finer and take more bits.",
            metavar="K",
            default="9",
        ),
    ] = 9,
    key_levels: Annotated[
        int | None,
        _option("The labels of a key frame.", metavar="K", default="as --levels"),
    ] = None,
    group_of_pictures: Annotated[
        int,
        _option("Frames from key frame to key frame.", metavar="T", default="15"),
    ] = 15,
    block: Annotated[
        int,
        _option(
            "Side of the blocks whose cosine transform is coded instead of values; it must divide "
            "the map's height and width. 4 takes half the bits or less for the same detections, "
            "with --levels of about 45 and half as many --key-levels; the price is that single "
            "values may be off by more.",
            metavar="B",
            default="1, values as in the paper",
        ),
    ] = 1,
    dead_zone: Annotated[
        float,
        _option(
            "What moved by less than this many steps of a residual counts as unchanged, 0.5 or "
            "more: more takes fewer bits and follows small changes less. 0.7 goes well with "
            "--block 4.",
            metavar="STEPS",
            default="0.5, the nearest label as in the paper",
        ),
    ] = 0.5,
    key_dead_zone: Annotated[
        float,
        _option(
            "The same in key frames, for what differs from the mean of a block; without --block "
            "nothing does.",
            metavar="STEPS",
            default="0.5",
        ),
    ] = 0.5,
    stage: Annotated[
        Literal["fixed", "huffman", "arithmetic"],
        _option(
            "How labels become bits: run-length tokens of fixed fields, the same in a Huffman "
            "code, or arithmetic coding in context.",
            default="arithmetic",
        ),
    ] = "arithmetic",
    calibrate: Annotated[
        int,
        _option(
            "How many frames, from the first, the clip range is taken from (percentiles 0.1 and "
            "99.9).",
            metavar="N",
            default="8",
        ),
    ] = 8,
    max_frames: Annotated[
        int | None,
        _option("Stop after this many frames.", metavar="N", default="all there are"),
    ] = None,
) -> int:
    """Write the feature maps that a network has at a cut, as key frames and differences (IFMDC).

    Try:

    dynvid encode street.mp4 --model yolov3.cfg --at layer_12 --out street.ifm

    dynvid encode street.mp4 --model yolov5n.pt --at model.4 --levels 5 --out street.ifm

    dynvid encode street.mp4 --model yolov5n.pt --at model.4 --block 4 --levels 45
    --key-levels 23 --dead-zone 0.7 --key-dead-zone 0.6 --out street.ifm
    """
    for name, value in (("--calibrate", calibrate), ("--max-frames", max_frames)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    video = VideoSource(source, max_frames=max_frames)
    detector = load_detector(model, None, frame_size=video.size)
    try:
        front = jax.jit(dynvid.split(detector.on_frames(video.size), at=at).front)
        shapes = jax.eval_shape(
            front, detector.params, jax.ShapeDtypeStruct((1, *video.size, 3), jnp.uint8)
        )
        settings = Settings(
            low=0.0,
            high=1.0,
            levels=levels,
            key_levels=key_levels,
            group_of_pictures=group_of_pictures,
            block=block,
            dead_zone=dead_zone,
            key_dead_zone=key_dead_zone,
        )
    except (ValueError, TypeError) as error:
        raise UsageError(_one_line(error)) from error
    cut = shapes[at]
    if isinstance(cut, tuple) or len(cut.shape) != 4:
        raise UsageError(f"--at {at} is no feature map (streams, h, w, c)")
    height, width = cut.shape[1:3]
    if height % block or width % block:
        raise UsageError(
            f"--block must divide the map's height and width, {height} x {width} at {at}, got "
            f"{block}"
        )
    if shapes.others:
        print(
            f"dynvid: warning: the file holds {at} alone, but the rest of the network also needs "
            f"{', '.join(shapes.others)}",
            file=sys.stderr,
        )

    features = (
        front(detector.params, jnp.asarray(frame)[None])[at].astype(jnp.float32) for frame in video
    )
    first = list(itertools.islice(features, calibrate))
    if not first:
        raise UsageError(f"{video.name} has no frames")
    try:
        low, high = clip_range(np.stack(first))
    except ValueError as error:
        raise UsageError(_one_line(error)) from error
    settings = dataclasses.replace(settings, low=low, high=high)
    frames = size = 0
    with output_file(out) as file:
        try:
            writer = FeatureWriter(file, settings, shape=cut.shape, stage=stage)
        except ValueError as error:
            raise UsageError(_one_line(error)) from error
        for feature in itertools.chain(first, features):
            packet, _ = writer.write(feature)
            frames, size = frames + 1, size + packet
        writer.close()
    Console(highlight=False).print(
        f"{frames} frames of {at}, {_shape(cut.shape)}: {size} bytes, "
        f"{8 * size / frames / math.prod(cut.shape):.4f} bits a value; in {out}",
        soft_wrap=True,
    )
    return 0


def decode(
    file: Annotated[
        tyro.conf.Positional[pathlib.Path],
        tyro.conf.arg(help="What dynvid encode wrote.", metavar="FILE"),
    ],
    *,
    out: Annotated[
        pathlib.Path | None,
        _option("The file to write.", metavar="FILE", default="the same name with .npy"),
    ] = None,
    skip_damaged: Annotated[
        bool,
        _option(
            "Leave out damaged frames and go on at the next key frame, instead of giving up.",
            default="off",
        ),
    ] = False,
) -> int:
    """Write the feature maps that a file holds, as a NumPy array (frames, streams, h, w, c).

    Try:

    dynvid decode street.ifm

    dynvid decode received.ifm --skip-damaged --out features.npy
    """
    out = file.with_suffix(".npy") if out is None else out
    with open(file, "rb") as source, output_file(out) as target:
        reader = FeatureReader(source, skip_damaged=skip_damaged)
        shape = reader.header.shape

        def head(count: int) -> None:
            # NumPy pads this header so that it does not grow with the first axis.
            np.lib.format.write_array_header_1_0(
                target, {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
            )

        head(0)
        numbers = []
        for features in reader:
            target.write(np.asarray(features.map, "<f4").tobytes())
            numbers.append(features.number)
        target.seek(0)
        head(len(numbers))
    missing = numbers[-1] + 1 - len(numbers) if numbers else 0
    Console(highlight=False).print(
        f"{len(numbers)} frames of {_shape(shape)}"
        + (f", {missing} left out" if missing else "")
        + f"; in {out}",
        soft_wrap=True,
    )
    return 0


def bitstream(
    file: Annotated[
        tyro.conf.Positional[pathlib.Path],
        tyro.conf.arg(help="What dynvid encode wrote.", metavar="FILE"),
    ],
) -> int:
    """Print what a file of feature maps holds: its header, its bits by part and by frame.

    Try:

    dynvid bitstream street.ifm
    """
    # A file or a pipe has no width of its own, and rich would cut the tables to 80 columns.
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=140, highlight=False)
    with open(file, "rb") as source:
        reader = BitstreamReader(source)
        header = reader.header
        by_frame = Table("frame", "kind", "bits", "labels", "bits a value", "entropy a value")
        for column in by_frame.columns[2:]:
            column.justify = "right"
        values = math.prod(header.shape)
        labels = {True: 0, False: 0}
        frames = {True: 0, False: 0}
        packets = 0
        for frame in reader:
            frames[frame.is_key] += 1
            labels[frame.is_key] += frame.payload_bits
            packets += frame.bits - frame.payload_bits
            by_frame.add_row(
                str(frame.number),
                "key" if frame.is_key else "residual",
                str(frame.bits),
                str(frame.payload_bits),
                f"{frame.bits / values:.4f}",
                f"{zero_order_entropy(frame.labels) / values:.4f}",
            )
        total = 8 * source.tell()

    streams, height, width, channels = header.shape
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row("features", f"{streams} streams of {height}x{width}x{channels}, {header.dtype}")
    if isinstance(header.low, tuple):
        facts.add_row("clip range", f"one for each of {channels} channels")
    else:
        facts.add_row("clip range", f"{header.low:.6g} .. {header.high:.6g}")
    facts.add_row(
        "what is coded",
        "values"
        if header.block == 1
        else f"cosine transform of blocks of {header.block}x{header.block}",
    )
    facts.add_row("levels", f"{header.levels} of residuals, {header.key_levels} of key frames")
    whole = "the clip range" if header.block == 1 else "what coefficients span"
    facts.add_row("residuals span", f"1/{header.residual_divisor} of {whole} to each side")
    facts.add_row("key frames", f"every {header.group_of_pictures} frames")
    facts.add_row("entropy stage", f"{header.stage}, scan {header.scan}")
    console.print(facts)

    parts = Table("part", "frames", "bits", "share", "bits a frame", "bits a value")
    for column in parts.columns[1:]:
        column.justify = "right"
    rows = [
        ("labels of key frames", frames[True], labels[True]),
        ("labels of residual frames", frames[False], labels[False]),
        ("packet heads and checksums", sum(frames.values()), packets),
        ("header and end", 0, total - packets - sum(labels.values())),
    ]
    for name, count, bits in [*rows, ("all", sum(frames.values()), total)]:
        each = bits / count if count else math.nan
        parts.add_row(
            name,
            str(count) if count else "",
            str(bits),
            f"{bits / total:.1%}",
            f"{each:.0f}" if count else "",
            f"{each / values:.4f}" if count else "",
        )
    console.print(parts)
    console.print(by_frame)
    console.print("Entropy: of each frame's labels taken one by one, a reference and no rate.")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: those after the program's name; None takes the process's own.

    Returns:
      The exit code: 0, 2 where what was asked for cannot be done, 130 where it was interrupted.
    """
    try:
        return tyro.extras.subcommand_cli_from_dict(
            {
                "run": run,
                "explain": explain,
                "encode": encode,
                "decode": decode,
                "bitstream": bitstream,
            },
            prog="dynvid",
            description="Dynamic video inference: run a vision network on a video, computing only "
            "what changed.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; nor may Python's own last flush fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, VideoError, BitstreamError, OSError) as error:
        print(f"dynvid: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dynvid: interrupted before the first frame; nothing was written", file=sys.stderr)
        return 130


def load_detector(
    model: pathlib.Path | None, head: str | None, *, frame_size: tuple[int, int]
) -> Detector:
    """Loads a network for frames of a size and tells its head from it, unless the head is given.

    Raises:
      UsageError: the file or the head cannot be used.
    """
    if head is not None and head not in _HEADS:
        raise UsageError(f"--head must be one of {', '.join(sorted(_HEADS))}, got {head!r}")
    if model is None:
        network, params = load_synthetic_detector()
        name = head or "synthetic"
        # It knows objects by their size in pixels: frames are padded, never resized.
        height, width = frame_size
        size = (-(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE)
        return Detector("shipped detector", network, params, _HEADS[name], name, size)
    if not model.is_file():
        raise UsageError(f"cannot read the model {model}: no such file")
    size = None
    try:
        if model.suffix == ".onnx":
            network, params = load_onnx(model)
            height, width = network.frame_shape[:2]
            if height is not None and width is not None:
                size = (height, width)
        elif model.suffix == ".pt":
            network, params = load_yolov5(model)
        elif model.suffix == ".caffemodel":
            network, params = load_ssd512(model)
            size = (ssd.SIZE, ssd.SIZE)
        elif model.suffix == ".cfg":
            network, params = load_darknet(model, weights=model.with_suffix(".weights"))
            size = network.size
        else:
            raise UsageError(
                f"cannot read the model {model}: expected a .onnx, .pt, .cfg or .caffemodel file"
            )
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"cannot read the model: {_one_line(error)}") from error
    name = head or _guess_head(model, network, params, size)
    return Detector(model.name, network, params, _HEADS[name], name, size)


def _guess_head(
    model: pathlib.Path, network: Any, params: Any, size: tuple[int, int] | None
) -> str:
    if model.suffix in _HEAD_OF_SUFFIX:
        return _HEAD_OF_SUFFIX[model.suffix]
    size = size or _square(HEADS["yolox"])
    candidate = Detector(model.name, network, params, HEADS["yolox"], "yolox", size)
    try:
        check_detector(candidate, size)
    except UsageError as error:
        known = ", ".join(sorted(_HEADS))
        raise UsageError(
            f"cannot tell the head of {model}, give --head ({known}): {error}"
        ) from None
    return "yolox"


def check_detector(detector: Detector, frame_size: tuple[int, int]) -> None:
    """Traces the network and its head on frames of a size, without computing anything.

    Raises:
      UsageError: they do not fit each other, or not the frames.
    """
    frames = jax.ShapeDtypeStruct((1, *frame_size, 3), jnp.uint8)
    try:
        outputs = jax.eval_shape(detector.on_frames(frame_size), detector.params, frames)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{detector.name} cannot run on frames of {_size(frame_size)}: {_one_line(error)}"
        ) from error
    try:
        jax.eval_shape(
            lambda params, outputs: detector.decode(params, outputs, frame_size=frame_size),
            detector.params,
            outputs,
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in jax.tree.leaves(outputs))
        raise UsageError(
            f"the {detector.head_name} head does not fit {detector.name}, whose outputs have "
            f"shape {shapes}"
        ) from error


def source_name(source: str) -> str:
    """A folder's name for a source.

    >>> source_name("../street 1.mp4"), source_name("rtsp://host:554/door"), source_name("0")
    ('street_1', 'door', 'camera0')
    """
    if re.fullmatch(r"\d{1,3}|<video\d{1,3}>", source):
        return f"camera{source.strip('<>').removeprefix('video')}"
    path = pathlib.Path(source if "://" in source else pathlib.Path(source).resolve())
    name = path.name if path.is_dir() else path.stem
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "video"


def parse_size(text: str) -> tuple[int, int]:
    """`(height, width)` of "WIDTHxHEIGHT".

    >>> parse_size("768x576")
    (576, 768)
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or int(match[1]) < 1 or int(match[2]) < 1:
        raise UsageError(f"--size must be WIDTHxHEIGHT in pixels, such as 768x576, got {text!r}")
    return int(match[2]), int(match[1])


@contextlib.contextmanager
def output_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into; its files appear in `out`, all of them, when all went well.

    Raises:
      UsageError: `out` is a file.
      OSError: `out` cannot be made or written to.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not a folder")
    made = [folder for folder in out.parents if not folder.exists()]  # the deepest first
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield temporary
        out.mkdir(exist_ok=True)
        for path in temporary.iterdir():
            path.replace(out / path.name)
    except BaseException:
        shutil.rmtree(temporary)
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else put something there
                folder.rmdir()
        raise
    temporary.rmdir()


@contextlib.contextmanager
def output_file(out: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write into; it appears as `out`, whole, when all went well.

    Raises:
      UsageError: `out` is a folder, or its folder is not there.
    """
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    handle, temporary = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, out)
    except BaseException:
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    """Prints what a source has to say of itself in one line each, and collects it."""
    messages: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", VideoWarning)
        show = warnings.showwarning

        def record(message, category, *arguments, **options):
            if not issubclass(category, VideoWarning):
                return show(message, category, *arguments, **options)
            messages.append(str(message))
            print(f"dynvid: warning: {message}", file=sys.stderr)

        warnings.showwarning = record
        yield messages


@contextlib.contextmanager
def _progress(length: int | None):
    """A progress bar on the terminal; yields what takes the measures so far."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("frames", total=length, figures="")

        def advance(measures: Sequence[Measures]) -> None:
            last = measures[-1]
            figures = f"{last.mac_fraction:.0%} of MACs"
            if not math.isnan(last.seconds):
                figures += f", {1e3 * last.seconds:.1f} ms"
            bar.update(task, advance=1, figures=figures)

        yield advance


def _annotate(detector: Detector, result: FrameResult, before: Sequence[Measures]) -> np.ndarray:
    labels = [
        f"{detector.class_name(int(index))} {score:.2f}"
        for index, score in zip(result.classes, result.scores, strict=True)
    ]
    return annotate_frame(
        result.frame,
        boxes=result.boxes,
        labels=labels,
        classes=result.classes,
        changed=result.changed,
        work=[m.mac_fraction for m in before[-1000:]] + [result.measures.mac_fraction],
    )


def _per_frame(measures: Sequence[Measures]) -> dict[str, list[float | None]]:
    """Every series that was measured, by name, with None for what is missing in it."""
    series = {
        name: [None if math.isnan(value) else value for value in values]
        for name, values in zip(Measures._fields, zip(*measures, strict=True), strict=True)
    }
    return {name: values for name, values in series.items() if any(v is not None for v in values)}


def _plot(path: pathlib.Path, measures: Sequence[Measures], *, title: str) -> None:
    series = {name: [getattr(m, name) for m in measures] for name in Measures._fields}
    compared = not all(math.isnan(value) for value in series["dense_seconds"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a single frame has no times at all
        plot_report(
            path,
            mac_fraction=[float("nan"), *series["mac_fraction"][1:]],  # the first frame is dense
            seconds=series["seconds"],
            similarity=series["similarity"],
            dense_seconds=series["dense_seconds"] if compared else None,
            title=title,
        )


def _summary(report: dict[str, Any]) -> Table:
    """What the report says, for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))

    def row(key: str, text: str, note: str = "") -> None:
        if report.get(key) is not None:
            table.add_row(text.format(report[key]), note)

    row("frames", "{} frames")
    row("mac_fraction", "{:.1%} of the multiply-accumulates", "mean over all but the first frame")
    row("scene_similarity", "{:.2%} of the pixels unchanged")
    if report["seconds_per_frame"] is not None:
        table.add_row(f"{1e3 * report['seconds_per_frame']:.1f} ms a frame", "median, network only")
    if report.get("speedup") is not None:
        table.add_row(f"{1e3 * report['dense_seconds_per_frame']:.1f} ms a frame densely", "median")
        row("speedup", "{:.2f} times as fast")
        row("fraction_of_ideal", "{:.0%} of the ideal", "speed-up times share of work")
        row("detection_agreement", "{:.3f} agreement of detections", "F1 against dense, same frame")
        largest = report["max_abs_output_at_reference"]
        row(
            "max_abs_difference_at_reference",
            "{:.2g} largest difference in raw outputs",
            f"from dense on the reference frames, largest output {largest:.3g}; "
            + ("rounding only" if report["truncation"] == 0 else "what --truncation allows"),
        )
    return table


def _check_number(name: str, value: float, most: float) -> None:
    if not 0 <= value <= most or math.isinf(value):
        limits = "at least 0" if math.isinf(most) else f"between 0 and {most:g}"
        raise UsageError(f"{name} must be {limits}, got {value:g}")


def _square(head: Head) -> tuple[int, int]:
    return head.longest_side, head.longest_side


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
