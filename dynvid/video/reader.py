"""Reading frames, one at a time, from video files, folders of images, cameras and streams."""

import contextlib
import pathlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
from av.error import ExitError, FFmpegError
from PIL import Image, UnidentifiedImageError

from dynvid.errors import UsageError, reason
from dynvid.ops.letterbox import letterbox as letterbox_geometry

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""The file name endings that are read as images."""

_LIVE_TIMEOUT = 10.0  # seconds to wait for a network stream to open or to send


class VideoError(UsageError):
    """A source that cannot be read, or a video that cannot be written; one line says why."""


class VideoWarning(UserWarning):
    """A source that ended early: what could be read was read."""


class VideoSource:
    """The frames of a video file, a folder of images, one image, a camera or a stream.

    A source is iterated, as often as wanted; only one frame is in memory at a time. Frames are
    `(H, W, 3)` uint8, RGB: grey is repeated, transparency dropped, 16 bits are cut to 8, and the
    rotation that cameras note beside the pixels is applied. Opening reads the first frame, so that
    a bad source fails at once.

    Args:
      source: A path, a URL (`"rtsp://..."`, `"http://..."`), or a camera: `"0"` or `"<video0>"` is
        the first. A folder's images are read in natural order (`2.png` before `10.png`).
      size: `(height, width)` to resize frames to, bilinear; None leaves them as they are.
      letterbox: Keep the picture's proportions when resizing and fill the rest with grey, equally
        on both sides.
      max_frames: How many frames to read at most; None for all.

    Attributes:
      name: The source as it was given.
      size: `(height, width)` of the frames it yields.
      fps: Frames per second, None where the source does not say.
      length: How many frames it announces, None where it does not say; a live source never does.

    Raises:
      VideoError: Nothing can be read from the source.

    Warns:
      VideoWarning: While iterating, a damaged or truncated source, or a frame of another size than
        the first; what comes before is yielded.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i in range(3):
    ...         iio.imwrite(f"{folder}/{i}.png", np.full((4, 6, 3), i, np.uint8))
    ...     source = VideoSource(folder, max_frames=2)
    ...     source.size, source.length, [int(frame.max()) for frame in source]
    ((4, 6), 2, [0, 1])
    """

    name: str
    size: tuple[int, int]
    fps: float | None
    length: int | None

    def __init__(
        self,
        source: str | pathlib.Path,
        *,
        size: tuple[int, int] | None = None,
        letterbox: bool = False,
        max_frames: int | None = None,
    ):
        if max_frames is not None and max_frames < 1:
            raise VideoError(f"max_frames must be at least 1; got {max_frames}")
        if size is not None and min(size) < 1:
            raise VideoError(f"size must be (height, width) of at least 1 pixel; got {size}")
        if letterbox and size is None:
            raise VideoError("size must be given with letterbox; got None")
        self.name = str(source)
        self.fps = self.length = None
        self._target = size
        self._letterbox = letterbox
        self._max_frames = max_frames
        self._images: list[pathlib.Path] | None = None
        self._camera = self._camera_index()
        self._live = self._camera is not None or "://" in self.name

        if not self._live:
            self._find_files()
        # The stream that opening starts is the one that the first iteration goes on with: a camera
        # cannot be opened twice.
        self._started: Iterator[np.ndarray] | None = self._read()
        try:
            self._first = next(self._started)
        except StopIteration:
            raise VideoError(f"cannot read {self.name}: no frame in it can be decoded") from None
        self.size = self._first.shape[:2]
        if self._images is not None and len(self._images) > 1:
            self.length = len(self._images)
        if self.length is not None and max_frames is not None:
            self.length = min(self.length, max_frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        started, self._started = self._started, None
        if started is None:
            yield from self._read()
        else:
            with contextlib.closing(started):  # type: ignore[arg-type]
                yield self._first
                yield from started

    def _camera_index(self) -> int | None:
        if pathlib.Path(self.name).exists():
            return None
        match = re.fullmatch(r"(\d{1,3})|<video(\d{1,3})>", self.name)
        return int(match[1] or match[2]) if match else None

    def _find_files(self) -> None:
        path = pathlib.Path(self.name)
        if not path.exists():
            raise VideoError(f"cannot read {self.name}: no such file or folder")
        if path.is_fifo() or path.is_socket():
            raise VideoError(f"cannot read {self.name}: it is a pipe, no file")
        if path.is_dir():
            self._images = sorted(
                (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=_natural
            )
            if not self._images:
                raise VideoError(
                    f"cannot read {self.name}: the folder has no images "
                    f"({', '.join(IMAGE_SUFFIXES)})"
                )
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            self._images = [path]

    def _read(self) -> Iterator[np.ndarray]:
        """Frames as they are asked for: checked, counted and resized."""
        native = None
        frames = self._read_video() if self._images is None else self._read_images(self._images)
        with contextlib.closing(frames):
            for index, frame in enumerate(frames):
                if native is None:
                    native = frame.shape[:2]
                elif frame.shape[:2] != native:
                    what = f"frame {index} is {_size(frame.shape)} where those before are "
                    self._warn(what + _size(native), index, self.length)
                    return
                if self._target is not None:
                    frame = resize_frame(frame, self._target, letterbox=self._letterbox)
                yield frame
                if index + 1 == self._max_frames:
                    return

    def _read_images(self, paths: list[pathlib.Path]):
        animated = []
        for index, path in enumerate(paths):
            try:
                with contextlib.closing(_pictures(path)) as pictures:  # type: ignore[arg-type]
                    count = next(pictures)
                    if len(paths) == 1:  # an animation is a video
                        self.length = count
                        yield from pictures
                        return
                    frame = next(pictures)
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on bad files
                if index == 0:
                    raise VideoError(f"cannot read {path}: {_why_no_image(path, error)}") from None
                self._warn(f"{path.name} cannot be read", index, len(paths))
                return
            animated += [path.name] if count > 1 else []
            yield frame
        if animated:
            text = f"{self.name}: of {', '.join(animated)} only the first picture is read"
            warnings.warn(text, VideoWarning, stacklevel=2)

    def _read_video(self):
        container = self._open()
        with contextlib.closing(container):
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else None
            announced, slack = (None, 0) if self._live else _announced(container)
            self.length = announced
            count, damage = 0, None
            packets = container.demux(stream)
            while True:
                # A damaged packet costs its own frames only, a damaged container all that follow.
                try:
                    packet = next(packets, None)
                except FFmpegError as error:
                    damage = error
                    break
                if packet is None:
                    break
                try:
                    frames = packet.decode()
                except FFmpegError as error:
                    damage = error
                    continue
                for frame in frames:
                    yield _frame_array(frame)
                    count += 1
            if count == 0:
                why = reason(damage) if damage else "it has no frames"
                raise VideoError(f"cannot read {self.name}: {why}")
            if damage is not None or (announced and count < announced - slack):
                self._warn("the video is damaged or truncated", count, announced)

    def _open(self):
        where, form, options = self.name, None, {}
        if self._camera is not None:
            where, form = _camera_device(self._camera)
        elif where.startswith("rtsp://"):
            options = {"rtsp_transport": "tcp"}  # without it lost packets show as torn pictures
        try:
            container = av.open(
                where,
                format=form,
                options=options,
                timeout=_LIVE_TIMEOUT if self._live else None,
            )
        except (FFmpegError, ValueError, OSError) as error:
            raise VideoError(f"cannot read {self.name}: {self._why(error)}") from None
        # FFmpeg shows any text file as a terminal's screen; nobody means that.
        if not container.streams.video or container.format.name == "tty":
            container.close()
            raise VideoError(f"cannot read {self.name}: there is no video in it")
        return container

    def _why(self, error: BaseException) -> str:
        """What the system says of a source that cannot be opened, in a user's words."""
        if self._camera is not None and isinstance(error, FileNotFoundError):
            return f"there is no camera {self._camera} ({_camera_device(self._camera)[0]})"
        if self._live and isinstance(error, ExitError):  # FFmpeg's word for its time-out
            return f"no answer within {_LIVE_TIMEOUT:.0f} seconds"
        return reason(error)

    def _warn(self, what: str, count: int, announced: int | None) -> None:
        of = f" of {announced}" if announced else ""
        warnings.warn(
            f"{self.name}: {what}; stopped after {count}{of} frames", VideoWarning, stacklevel=2
        )


def resize_frame(
    frame: np.ndarray, size: tuple[int, int], *, letterbox: bool = False
) -> np.ndarray:
    """Resizes a frame, bilinear, averaging where it shrinks.

    Args:
      frame: `(H, W, 3)` uint8.
      size: `(height, width)` wanted.
      letterbox: Keep the proportions and fill the rest with grey, equally on both sides, as
        `ops.letterbox.letterbox` places them.

    Returns:
      `(*size, 3)` uint8.

    >>> resize_frame(np.zeros((20, 40, 3), np.uint8), (30, 30), letterbox=True)[:, 0, 0].tolist()
    [114, 114, 114, 114, 114, 114, 114, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
     114, 114, 114, 114, 114, 114, 114, 114]
    """
    height, width = size
    if frame.shape[:2] == (height, width):
        return frame
    if not letterbox:
        image = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image)
    place = letterbox_geometry(frame.shape[:2], size, placement="centre")
    (rows, columns), top, left = place.resized, place.top, place.left
    result = np.full((height, width, 3), place.fill, np.uint8)
    result[top : top + rows, left : left + columns] = resize_frame(frame, (rows, columns))
    return result


def _frame_array(frame) -> np.ndarray:
    """The picture of a decoded frame, turned as the camera was (degrees counter-clockwise)."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _announced(container) -> tuple[int | None, int]:
    """How many frames a file says it has, and how many may be missing without a word."""
    stream = container.streams.video[0]
    if stream.frames:
        return stream.frames, 0
    if not container.duration or not stream.average_rate:
        return None, 0
    # Some containers only note how long they last, rounded, and sound may outlast the picture.
    rate = float(stream.average_rate)
    return max(1, round(container.duration / av.time_base * rate)), round(rate)


def _pictures(path: pathlib.Path) -> Iterator[Any]:
    """How many pictures an image file holds, then each of them: more than one in an animation."""
    opened: Any = iio.imopen(path, "r", plugin="pillow")
    with opened as file:
        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
        yield count
        for index in range(count):
            yield _to_rgb(file.read(index=index, rotate=True))


def _why_no_image(path: pathlib.Path, error: BaseException) -> str:
    """Why an image cannot be read, without what the libraries call themselves."""
    if path.is_file() and not path.stat().st_size:
        return "it is empty"
    unknown = isinstance(error, UnidentifiedImageError) or "`pillow`" in str(error)
    return "it is no image that is known, or damaged" if unknown else reason(error)


def _natural(path: pathlib.Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _to_rgb(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    elif image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype == np.int32:  # Pillow's older way of giving 16 bits
        image = (np.clip(image, 0, 65535) >> 8).astype(np.uint8)
    elif np.issubdtype(image.dtype, np.floating):
        image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] < 3:  # grey, or grey and transparency
        image = np.repeat(image[..., :1], 3, axis=-1)
    return np.ascontiguousarray(image[..., :3])


def _camera_device(index: int) -> tuple[str, str]:
    """What FFmpeg calls the camera on this system, and the device format it is read with."""
    if sys.platform == "darwin":
        return str(index), "avfoundation"
    if sys.platform == "win32":
        return f"video={index}", "dshow"
    return f"/dev/video{index}", "v4l2"
