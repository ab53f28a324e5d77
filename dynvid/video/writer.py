"""Writing videos."""

import contextlib
import fractions
import pathlib
from typing import Any

import av
import av.container
import numpy as np
from av.error import FFmpegError

from dynvid.files import part_file
from dynvid.video.reader import VideoError


class VideoWriter:
    """A context manager that writes H.264 in an mp4 file, playable everywhere (yuv420p).

    The file gets its name when all went well; until then it is written beside it as
    `<name>.part`, which is removed on any error. An odd height or width is made even by repeating
    the last row or column. Without any frame no file is written.

    Args:
      path: The file to write, ending in `.mp4`; one of that name is replaced.
      fps: Frames per second.

    Raises:
      VideoError: The path cannot be written, or a frame is not like the first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with VideoWriter(f"{folder}/grey.mp4", fps=25) as writer:
    ...         for level in range(3):
    ...             writer.write(np.full((32, 48, 3), level, np.uint8))
    ...     [path.name for path in pathlib.Path(folder).iterdir()]
    ['grey.mp4']
    """

    def __init__(self, path: str | pathlib.Path, *, fps: float):
        self.path = pathlib.Path(path)
        if not fps > 0:
            raise VideoError(f"fps must be greater than zero; got {fps}")
        if self.path.suffix.lower() != ".mp4":
            raise VideoError(f"cannot write {self.path}: its name must end in .mp4")
        if not self.path.parent.is_dir():
            raise VideoError(f"cannot write {self.path}: no folder {self.path.parent}")
        self._fps = fractions.Fraction(fps).limit_denominator(1001)
        self._exits = contextlib.ExitStack()
        self._temporary: pathlib.Path | None = None
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None
        self._shape: tuple[int, ...] | None = None

    def __enter__(self) -> "VideoWriter":
        self._temporary = self._exits.enter_context(part_file(self.path))
        self._exits.push(self._finish)
        return self

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame.

        Args:
          frame: `(H, W, 3)` uint8, RGB; the same size as those before.

        Raises:
          VideoError: The frame is of another shape or dtype.
        """
        frame = np.asarray(frame)
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
            raise VideoError(f"frame must be (H, W, 3) uint8; got {frame.shape} {frame.dtype}")
        if self._shape is None:
            self._open(frame.shape)
        elif frame.shape != self._shape:
            raise VideoError(f"frame must be {self._shape} as those before; got {frame.shape}")
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))

    def __exit__(self, *error: Any) -> None:
        self._exits.__exit__(*error)

    def _finish(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._container is not None:
            if kind is None:
                self._encode(None)
            self._container.close()

    def _encode(self, picture: av.VideoFrame | None) -> None:
        """Writes what the encoder gives for a picture; None asks for what it still holds."""
        assert self._container is not None
        try:
            self._container.mux(self._stream.encode(picture))
        except FFmpegError as error:
            raise VideoError(f"cannot write {self.path}: {error.strerror}") from None

    def _open(self, shape: tuple[int, ...]) -> None:
        # The index goes to the front, so that a truncated copy can still be played.
        options = {"movflags": "faststart"}
        assert self._temporary is not None, "a VideoWriter is a context manager"
        container = av.open(str(self._temporary), "w", format="mp4", options=options)
        stream: Any = container.add_stream("libx264", rate=self._fps)
        stream.height, stream.width = (side + side % 2 for side in shape[:2])
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        try:
            container.start_encoding()
        except FFmpegError as error:
            raise VideoError(f"cannot write {self.path}: {error.strerror}") from None
        self._container, self._stream, self._shape = container, stream, shape
