"""HEVC as a baseline: libx265 on video frames, or on a feature map laid out as one grey picture.

IFMDC (arXiv 2411.00984), section IV, compares with HEVC on the input video, on a feature map tiled
as in Choi and Bajic, Deep feature compression for collaborative object detection (ICIP 2018), and
on one quilted.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Literal, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Colorspace

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"]

_SMALLEST = 16  # pixels: libx265 refuses a picture that is smaller than its smallest CTU


class HevcPacket(NamedTuple):
    """One coded picture.

    Attributes:
      data: Its NAL units with start codes (Annex B). Those of an I picture include the parameter
        sets (VPS, SPS, PPS: some 80 bytes), so decoding can begin at any of them.
      frame: Its number, from 0.
      kind: "I" (an IDR picture: nothing before it is needed) or "P".
    """

    data: bytes
    frame: int
    kind: Literal["I", "P"]


def encode_hevc(
    frames: Iterable[np.ndarray],
    *,
    qp: int,
    gop: int = 15,
    ctu: Literal[16, 32, 64] | None = None,
    pixel_format: Literal["gray", "yuv420p"] = "yuv420p",
    preset: Preset = "medium",
    threads: int | None = None,
) -> Iterator[HevcPacket]:
    """Codes pictures with libx265 at a constant QP, each GOP one I picture and then P pictures.

    The settings of `ffmpeg -c:v libx265 -qp Q -preset P -x265-params
    keyint=G:min-keyint=G:scenecut=0:open-gop=0:bframes=0`. As there, Q is the QP of P pictures;
    x265 gives I pictures Q - 3 (its `ipratio` of 1.4 is 2.9 QP steps). Adaptive quantisation and
    rate control are off at a constant QP.

    Args:
      frames: Pictures of one size, uint8: `(H, W)` for "gray", `(H, W, 3)` RGB for "yuv420p". What
        is not a multiple of 2, or is under 16 pixels, is padded by repeating its edge.
      qp: 0 .. 51.
      gop: Pictures from one I picture to the next.
      ctu: Largest coding unit in pixels; None for x265's own, 64. IFMDC takes 16 for feature maps.
      pixel_format: "gray" codes no chroma (4:0:0); "yuv420p" BT.601 of limited range.
      preset: That of x265.
      threads: Size of x265's thread pool, None for as many as the machine has processors. Pictures
        are coded one at a time whatever it is, so it does not change a bit.

    Returns:
      Packets in the order of the frames. x265 looks some 20 pictures ahead, so packets begin to
      come when as many frames have been taken.

    Raises:
      ValueError: An option, a frame's shape or its dtype is not as above.

    Approximate because HEVC is lossy: chroma is halved, and coefficients are quantised.

    >>> still = np.full((32, 48), 7, np.uint8)
    >>> [p.kind for p in encode_hevc([still] * 4, qp=32, gop=3, pixel_format="gray")]
    ['I', 'P', 'P', 'I']
    """
    if not 0 <= qp <= 51:
        raise ValueError(f"qp must be 0 .. 51; got {qp}")
    if gop < 1:
        raise ValueError(f"gop must be at least 1 picture; got {gop}")
    if ctu not in (None, 16, 32, 64):
        raise ValueError(f"ctu must be 16, 32, 64 or None; got {ctu}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1; got {threads}")
    _check_pixel_format(pixel_format)
    parameters = {
        "keyint": gop,
        "min-keyint": gop,
        "scenecut": 0,
        "open-gop": 0,
        "bframes": 0,
        # More of them limit motion vectors, so that the bits would depend on the machine.
        "frame-threads": 1,
        "pools": threads or os.cpu_count() or 1,
        "info": 0,  # no SEI with x265's version and settings: 2 kB that nobody decodes
        "log-level": "none",
    }
    if ctu is not None:
        parameters["ctu"] = ctu
    options = {
        "preset": preset,
        "qp": str(qp),
        "x265-params": ":".join(f"{key}={value}" for key, value in parameters.items()),
    }
    return _encode(frames, options, pixel_format)


def decode_hevc(
    packets: Iterable[HevcPacket],
    *,
    pixel_format: Literal["gray", "yuv420p"] = "yuv420p",
    size: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Decodes what `encode_hevc` coded.

    Args:
      packets: From an I picture on, without a gap.
      pixel_format: What they were coded with.
      size: `(height, width)` of the frames that were coded; what was padded is cut off. None leaves
        the padding.

    Returns:
      Frames in order, uint8: `(H, W)` for "gray", `(H, W, 3)` RGB for "yuv420p".

    Raises:
      ValueError: A packet is no decodable picture, was coded in another pixel format or is smaller
        than `size`. Damage within a picture's data is concealed, not noticed: it has no checksum.

    Exact: gives the encoder's own reconstruction, on any machine (RGB: up to the conversion).

    >>> still = np.full((31, 48), 7, np.uint8)
    >>> packets = encode_hevc([still] * 2, qp=22, pixel_format="gray")
    >>> frames = list(decode_hevc(packets, pixel_format="gray", size=(31, 48)))
    >>> [(frame.shape, int(frame.min()), int(frame.max())) for frame in frames]
    [((31, 48), 7, 7), ((31, 48), 7, 7)]
    """
    _check_pixel_format(pixel_format)
    return _decode(packets, pixel_format, size)


def tile(features: np.ndarray) -> np.ndarray:
    """Lays the channels of a feature map out as tiles of one picture, in raster order.

    A grid of `2^ceil(b / 2)` columns and `2^floor(b / 2)` rows, `b = ceil(log2(C))`: Choi and Bajic
    (ICIP 2018), section 3, where C is a power of two and `b = log2(C)`.

    Args:
      features: `(..., h, w, C)`, any dtype.

    Returns:
      `(..., rows * h, columns * w)`; tiles without a channel are zero.

    Raises:
      ValueError: No height, width or channels.

    Exact: `untile` gives the feature map again.

    >>> tile(np.arange(8).reshape(1, 2, 4))
    array([[0, 4, 1, 5],
           [2, 6, 3, 7]])
    >>> tile(np.zeros((52, 52, 256), np.uint8)).shape
    (832, 832)
    """
    height, width, channels = _map_shape(features)
    rows, columns = _grid(channels)
    missing = [(0, 0)] * (features.ndim - 1) + [(0, rows * columns - channels)]
    grid = np.pad(features, missing).reshape(*features.shape[:-1], rows, columns)
    # (..., h, w, rows, columns) -> (..., rows, h, columns, w)
    picture = np.moveaxis(grid, (-2, -1), (-4, -2))
    return np.ascontiguousarray(picture).reshape(
        *features.shape[:-3], rows * height, columns * width
    )


def untile(picture: np.ndarray, *, channels: int) -> np.ndarray:
    """Gives the feature map that `tile` laid out.

    Args:
      picture: `(..., rows * h, columns * w)`, any dtype.
      channels: C, of which the grid follows as in `tile`.

    Returns:
      `(..., h, w, C)`.

    Raises:
      ValueError: The picture is not a whole number of tiles in height and width.

    Exact.

    >>> untile(np.array([[0, 4, 1, 5], [2, 6, 3, 7]]), channels=4)
    array([[[0, 1, 2, 3],
            [4, 5, 6, 7]]])
    """
    rows, columns, height, width = _cut(picture, channels)
    grid = picture.reshape(*picture.shape[:-2], rows, height, columns, width)
    features = np.moveaxis(grid, (-4, -2), (-2, -1))
    flat = np.ascontiguousarray(features).reshape(*features.shape[:-2], rows * columns)
    return flat[..., :channels]


def quilt(features: np.ndarray) -> np.ndarray:
    """Interleaves the channels of a feature map: neighbouring pixels are of different channels.

    Pixel `(rows * i + a, columns * j + b)` is channel `columns * a + b` at `(i, j)`, with the grid
    of `tile`: IFMDC (arXiv 2411.00984), section IV.

    Args:
      features: `(..., h, w, C)`, any dtype.

    Returns:
      `(..., rows * h, columns * w)`; places without a channel repeat the last one.

    Raises:
      ValueError: No height, width or channels.

    Exact: `unquilt` gives the feature map again.

    >>> quilt(np.arange(8).reshape(1, 2, 4))
    array([[0, 1, 4, 5],
           [2, 3, 6, 7]])
    """
    height, width, channels = _map_shape(features)
    rows, columns = _grid(channels)
    missing = [(0, 0)] * (features.ndim - 1) + [(0, rows * columns - channels)]
    grid = np.pad(features, missing, mode="edge").reshape(*features.shape[:-1], rows, columns)
    # (..., h, w, rows, columns) -> (..., h, rows, w, columns)
    picture = np.swapaxes(grid, -3, -2)
    return np.ascontiguousarray(picture).reshape(
        *features.shape[:-3], rows * height, columns * width
    )


def unquilt(picture: np.ndarray, *, channels: int) -> np.ndarray:
    """Gives the feature map that `quilt` interleaved.

    Args:
      picture: `(..., rows * h, columns * w)`, any dtype.
      channels: C, of which the grid follows as in `tile`.

    Returns:
      `(..., h, w, C)`.

    Raises:
      ValueError: The picture is not a whole number of patches in height and width.

    Exact.

    >>> unquilt(np.array([[0, 1, 4, 5], [2, 3, 6, 7]]), channels=4)
    array([[[0, 1, 2, 3],
            [4, 5, 6, 7]]])
    """
    rows, columns, height, width = _cut(picture, channels)
    grid = picture.reshape(*picture.shape[:-2], height, rows, width, columns)
    features = np.ascontiguousarray(np.swapaxes(grid, -3, -2))
    return features.reshape(*features.shape[:-2], rows * columns)[..., :channels]


def _encode(
    frames: Iterable[np.ndarray], options: dict[str, str], pixel_format: str
) -> Iterator[HevcPacket]:
    # A frame's number is its time, so packets name their frames themselves.
    remaining = iter(frames)
    try:
        first = next(remaining)
    except StopIteration:
        return
    _check_frame(first, 0, pixel_format, first.shape)
    context = av.CodecContext.create("libx265", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width = (_padded(side) for side in first.shape[:2])
    context.pix_fmt = pixel_format
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    context.thread_count = 1  # frame threads; see `parameters` above
    context.options = options
    try:
        for number, frame in enumerate(itertools.chain([first], remaining)):
            _check_frame(frame, number, pixel_format, first.shape)
            picture = _picture(frame, pixel_format)
            picture.pts = number
            yield from map(_packet, context.encode(picture))
        yield from map(_packet, context.encode(None))
    except FFmpegError as error:
        shape = f"frames of shape {first.shape}"
        raise ValueError(f"libx265 refuses {shape} with {options}: {error}") from error


def _packet(packet: av.Packet) -> HevcPacket:
    assert packet.pts is not None
    return HevcPacket(bytes(packet), packet.pts, "I" if packet.is_keyframe else "P")


def _picture(frame: np.ndarray, pixel_format: str) -> av.VideoFrame:
    height, width = (_padded(side) for side in frame.shape[:2])
    padding = [(0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)]
    padded = np.ascontiguousarray(np.pad(frame, padding[: frame.ndim], mode="edge"))
    if pixel_format == "gray":
        return av.VideoFrame.from_ndarray(padded, format="gray")
    picture = av.VideoFrame.from_ndarray(padded, format="rgb24")
    return picture.reformat(format=pixel_format, dst_colorspace=Colorspace.ITU601)


def _decode(
    packets: Iterable[HevcPacket], pixel_format: str, size: tuple[int, int] | None
) -> Iterator[np.ndarray]:
    context = av.CodecContext.create("hevc", "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_count = 1  # or the last pictures wait for a flush
    for packet in packets:
        try:
            pictures = context.decode(av.Packet(packet.data))
        except FFmpegError as error:
            raise ValueError(
                f"packet of frame {packet.frame} is no HEVC picture: {error}"
            ) from error
        if len(pictures) != 1:
            raise ValueError(f"packet of frame {packet.frame} has {len(pictures)} pictures, not 1")
        yield _frame(pictures[0], packet.frame, pixel_format, size)


def _frame(
    picture: av.VideoFrame, number: int, pixel_format: str, size: tuple[int, int] | None
) -> np.ndarray:
    if picture.format.name != pixel_format:
        coded = picture.format.name
        raise ValueError(f"packet of frame {number} is {coded}, pixel_format says {pixel_format}")
    if pixel_format == "gray":
        frame = picture.to_ndarray()
    else:
        frame = picture.to_ndarray(format="rgb24", src_colorspace=Colorspace.ITU601)
    if size is None:
        return frame
    if frame.shape[0] < size[0] or frame.shape[1] < size[1]:
        raise ValueError(f"packet of frame {number} is {frame.shape[:2]}, smaller than size={size}")
    return frame[: size[0], : size[1]]


def _padded(side: int) -> int:
    return max(side + side % 2, _SMALLEST)


def _check_pixel_format(pixel_format: str) -> None:
    if pixel_format not in ("gray", "yuv420p"):
        raise ValueError(f"pixel_format must be 'gray' or 'yuv420p'; got {pixel_format!r}")


def _check_frame(frame: np.ndarray, number: int, pixel_format: str, shape: tuple[int, ...]) -> None:
    expected = "(H, W)" if pixel_format == "gray" else "(H, W, 3)"
    right = frame.ndim == 2 if pixel_format == "gray" else frame.shape[2:] == (3,)
    if frame.dtype != np.uint8 or not right or 0 in frame.shape:
        found = f"{frame.dtype}{frame.shape}"
        raise ValueError(f"frame {number} must be uint8{expected} for {pixel_format}; got {found}")
    if frame.shape != shape:
        raise ValueError(f"frame {number} must be {shape} as the first; got {frame.shape}")


def _grid(channels: int) -> tuple[int, int]:
    """Rows and columns."""
    if channels < 1:
        raise ValueError(f"channels must be at least 1; got {channels}")
    bits = (channels - 1).bit_length()
    return 2 ** (bits // 2), 2 ** (bits - bits // 2)


def _map_shape(features: np.ndarray) -> tuple[int, int, int]:
    if features.ndim < 3 or 0 in features.shape[-3:]:
        raise ValueError(f"features must be (..., h, w, C), none of them 0; got {features.shape}")
    height, width, channels = features.shape[-3:]
    return height, width, channels


def _cut(picture: np.ndarray, channels: int) -> tuple[int, int, int, int]:
    """Rows and columns of the grid, height and width of the feature map."""
    rows, columns = _grid(channels)
    if picture.ndim < 2 or picture.shape[-2] % rows or picture.shape[-1] % columns:
        expected = f"(..., {rows} h, {columns} w) for {channels} channels"
        raise ValueError(f"picture must be {expected}; got {picture.shape}")
    return rows, columns, picture.shape[-2] // rows, picture.shape[-1] // columns
