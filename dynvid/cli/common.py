"""What commands share: options, sources, progress, warnings."""

import contextlib
import math
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Protocol

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynvid.data.action_clips import action_clips
from dynvid.data.driving import driving_scene, render_drive
from dynvid.data.moving_objects import object_scene, render_objects
from dynvid.data.synthetic import render, synthetic_scene
from dynvid.errors import UsageError, reason
from dynvid.incremental import TuningWarning
from dynvid.measures import Measures
from dynvid.models.actions import CLASS_NAMES, FRAMES, SIZE
from dynvid.models.zoo import HEADS, PIXELS, TASKS
from dynvid.tasks import ActionRecognition, Segmentation
from dynvid.types import Limits
from dynvid.video.reader import IMAGE_SUFFIXES, VideoSource, VideoWarning

_TOLD = (VideoWarning, TuningWarning)  # warnings that are said in one line

FPS = 25.0
"""Frames per second of what is written, where the source does not say."""


def option(text: str, *, default: str, metavar: str | None = None) -> Any:
    """Help for an option, with its default in words."""
    return tyro.conf.arg(help=text, metavar=metavar, help_behavior_hint=f"(default: {default})")


SourcesArgument = Annotated[
    tyro.conf.Positional[tuple[str, ...]],
    option(
        "A video file, a folder of images or of videos, one image, a camera ('0' is the first) or "
        "a stream (rtsp://, http://). Several are run one after the other, each into a folder of "
        "its own.",
        metavar="[SOURCE ...]",
        default="a synthetic scene of 100 frames, seen by a fixed camera; for segmentation, by one "
        "that drives; for action recognition, a short action",
    ),
]
SourceArgument = Annotated[
    tyro.conf.Positional[str | None],
    option(
        "A video file, a folder of images, one image, a camera ('0' is the first) or a stream "
        "(rtsp://, http://).",
        metavar="[SOURCE]",
        default="a synthetic scene of 100 frames, seen by a fixed camera; for segmentation, by one "
        "that drives; for action recognition, a short action",
    ),
]
ModelOption = Annotated[
    pathlib.Path | None,
    option(
        "The network: .onnx, .pt (YOLOv5), .cfg (Darknet, its .weights beside it), .caffemodel "
        "(SSD512) or .pth (ESPNet).",
        metavar="PATH",
        default="the detector of discs, squares and triangles that comes with the package; for "
        "segmentation, its network of street scenes",
    ),
]
TaskOption = Annotated[
    str | None,
    option(
        f"What the network is for: {', '.join(TASKS)}.",
        metavar="NAME",
        default="told from the model's outputs, or from a system that serves one only",
    ),
]
HeadOption = Annotated[
    str | None,
    option(
        "How frames go into a detector and boxes come out: " + ", ".join(sorted(HEADS)) + ".",
        metavar="NAME",
        default="told from the model",
    ),
]
PixelsOption = Annotated[
    str | None,
    option(
        "What the network takes for pixels, if it is no detector: " + ", ".join(PIXELS) + " (less "
        "the mean of ImageNet and in its deviations; 0 to 1; 0 to 255).",
        metavar="NAME",
        default="imagenet",
    ),
]
NamesOption = Annotated[
    pathlib.Path | None,
    option(
        "A text file with the name of a class a line, in the order of the network's outputs.",
        metavar="PATH",
        default="what the model's family has, else numbers",
    ),
]
LimitsOption = Annotated[
    float,
    option(
        "How many times as large as usual a network may be: what a file asks for is estimated "
        "first, and refused where that is gigabytes or minutes.",
        metavar="TIMES",
        default="1",
    ),
]
MaxFramesOption = Annotated[
    int | None,
    option("Stop after this many frames.", metavar="N", default="all there are"),
]


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
    fps: float | None = FPS

    def __init__(self, *, max_frames: int | None):
        self.length: int | None = 100 if max_frames is None else max_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        scene = synthetic_scene(
            jax.random.key(4), size=self.size, objects=8, object_size=(24.0, 56.0)
        )
        for t in range(self.length or 0):
            yield np.asarray(render(scene, t).frame)


class SyntheticDrive(SyntheticSource):
    """The default for segmentation: a drive through a street."""

    name = "synthetic_drive"
    size = (240, 320)
    fps = 15.0  # 16 km/h, and the others at their own pace

    def __iter__(self) -> Iterator[np.ndarray]:
        drive = driving_scene(jax.random.key(4), size=self.size, speed=0.3)
        for t in range(self.length or 0):
            yield np.asarray(render_drive(drive, t).frame)


class SyntheticAction(SyntheticSource):
    """The default for action recognition: a disc that moves."""

    name = "synthetic_action"
    size = SIZE
    fps = 8.0

    def __init__(self, *, max_frames: int | None):
        self.length = FRAMES if max_frames is None else min(FRAMES, max_frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        clip = action_clips(jax.random.key(4), count=1, labels=CLASS_NAMES.index("moves left"))
        yield from np.asarray(clip.frames[0, : self.length])


_VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")


def expand_sources(sources: Sequence[str]) -> tuple[str, ...]:
    """The sources, with the videos of a folder that has no images in its place.

    >>> expand_sources(["a.mp4", "rtsp://camera/1"])
    ('a.mp4', 'rtsp://camera/1')
    """
    found: list[str] = []
    for source in sources:
        folder = pathlib.Path(source)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        videos = [str(file) for file in files if file.suffix.lower() in _VIDEO_SUFFIXES]
        images = any(file.suffix.lower() in IMAGE_SUFFIXES for file in files)
        found += videos if videos and not images else [source]
    return tuple(found)


class SyntheticObjects(SyntheticSource):
    """The default for flow-guided detection: objects that move, blur and hide, and a scene cut."""

    name = "synthetic_objects"
    size: tuple[int, int] = (256, 256)

    def __iter__(self) -> Iterator[np.ndarray]:
        scenes = [object_scene(jax.random.key(seed), size=self.size) for seed in (4, 5)]
        for t in range(self.length or 0):
            yield np.asarray(render_objects(scenes[t // 60 % 2], t).frame)


def open_source(
    source: str | None,
    *,
    max_frames: int | None,
    task: str | None = None,
    flow_guided: bool = False,
) -> Source:
    """The video that was asked for, or a synthetic one that suits the task.

    Args:
      source: What the command line says.
      max_frames: How many frames at most.
      task: The task that was asked for.
      flow_guided: Whether the detector may be the shipped flow-guided one.

    Raises:
      VideoError: Nothing can be read from it.
    """
    if source is not None:
        return VideoSource(source, max_frames=max_frames)
    if flow_guided:
        return SyntheticObjects(max_frames=max_frames)
    synthetic: dict[str, Any] = {
        Segmentation.name: SyntheticDrive,
        ActionRecognition.name: SyntheticAction,
    }
    return synthetic.get(task or "", SyntheticSource)(max_frames=max_frames)


def read_class_names(path: pathlib.Path | None) -> tuple[str, ...] | None:
    """The names in a text file, one a line; None where there is no file.

    Raises:
      UsageError: The file cannot be read, or has no names.
    """
    if path is None:
        return None
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the names of classes in {path}: {reason(error)}") from error
    if not any(names):
        raise UsageError(f"cannot read the names of classes in {path}: there are none")
    return names


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


def parse_limits(times: float) -> Limits:
    """The limits that `--limits` asks for.

    Raises:
      UsageError: It is no number above 0.
    """
    if not 0 < times < math.inf:
        raise UsageError(f"--limits must be a number above 0; got {times:g}")
    return Limits().times(times)


def parse_network_size(text: str) -> tuple[int, int]:
    """`(height, width)` of "WIDTHxHEIGHT", or of one number for both.

    Raises:
      UsageError: It is neither.

    >>> parse_network_size("640x384"), parse_network_size("640")
    ((384, 640), (640, 640))
    """
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if not match:
        raise UsageError(f"--size must be WIDTHxHEIGHT or a number of pixels; got {text!r}")
    return int(match[2] or match[1]), int(match[1])


def check_number(name: str, value: float, *, most: float = math.inf) -> None:
    """Checks that a number is at least 0 and finite.

    Raises:
      UsageError: It is not, or greater than `most`.
    """
    if not 0 <= value <= most or math.isinf(value):
        limits = "at least 0" if math.isinf(most) else f"between 0 and {most:g}"
        raise UsageError(f"{name} must be {limits}; got {value:g}")


def check_count(name: str, value: int | None, *, least: int = 1) -> None:
    """Checks that a count, where it is given, is large enough.

    Raises:
      UsageError: It is not.
    """
    if value is not None and value < least:
        raise UsageError(f"{name} must be at least {least}; got {value}")


def size_text(size: Sequence[int]) -> str:
    """`(height, width)` as people write it.

    >>> size_text((576, 768))
    '768x576'
    """
    return f"{size[1]}x{size[0]}"


def shape_text(shape: Sequence[int]) -> str:
    """A shape as people write it.

    >>> shape_text((1, 32, 32, 4))
    '1x32x32x4'
    """
    return "x".join(map(str, shape))


def warn(message: str) -> None:
    """Tells the user what should be known, in one line."""
    print(f"dynvid: warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Prints what a source or a tuning has to say of itself in one line each, and collects it."""
    messages: list[str] = []
    with warnings.catch_warnings():
        for kind in _TOLD:
            warnings.simplefilter("always", kind)
        show = warnings.showwarning

        def record(message, category, *arguments, **options):
            if not issubclass(category, _TOLD):
                return show(message, category, *arguments, **options)
            messages.append(str(message))
            warn(str(message))

        warnings.showwarning = record
        yield messages


@contextlib.contextmanager
def progress(length: int | None, *, quiet: bool = False) -> Iterator[Callable[[Measures], None]]:
    """A progress bar on the terminal; yields what takes each frame's measures."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("frames", total=length, figures="")

        def advance(measures: Measures) -> None:
            figures = f"{measures.mac_fraction:.0%} of MACs"
            if not math.isnan(measures.seconds):
                figures += f", {1e3 * measures.seconds:.1f} ms"
            bar.update(task, advance=1, figures=figures)

        yield advance
