import functools
import http.server
import itertools
import os
import threading
import warnings

import av
import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from dynvid.ops.letterbox import letterbox
from dynvid.video import reader
from dynvid.video.reader import VideoError, VideoSource, VideoWarning, resize_frame
from tests.data import data_path

SIZE = (48, 64)


def flat(level: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def write_video(path, frames, *, fps: int = 25, faststart: bool = True, codec: str = "libx264"):
    options = {"movflags": "faststart"} if faststart and path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def noise(count: int) -> list[np.ndarray]:
    """Frames that do not compress, so that half of the file holds about half of them."""
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_video_files(tmp_path, name):
    write_video(tmp_path / name, [flat(10 * i) for i in range(20)])
    source = VideoSource(tmp_path / name)
    assert (source.size, source.fps, source.length) == (SIZE, 25.0, 20)
    for _ in range(2):  # a file can be read again
        frames = list(source)
        assert all(f.shape == (*SIZE, 3) and f.dtype == np.uint8 for f in frames)
        # yuv420p of limited range keeps grey levels within 1 of 255 / 219 of a level and rounding.
        np.testing.assert_allclose([f.mean() for f in frames], np.arange(20) * 10, atol=3)


def test_colours_are_rgb(tmp_path):
    red = np.zeros((*SIZE, 3), np.uint8)
    red[..., 0] = 200
    write_video(tmp_path / "red.mp4", [red] * 3)
    iio.imwrite(tmp_path / "red.png", red)
    for name in ("red.mp4", "red.png"):
        mean = next(iter(VideoSource(tmp_path / name))).mean(axis=(0, 1))
        np.testing.assert_allclose(mean, [200, 0, 0], atol=6)


def test_max_frames_ends_without_a_warning(tmp_path):
    write_video(tmp_path / "clip.mp4", [flat(i) for i in range(20)])
    source = VideoSource(tmp_path / "clip.mp4", max_frames=3)
    assert source.length == 3
    assert len(list(source)) == 3
    assert len(list(itertools.islice(source, 2))) == 2


def test_a_clip_is_never_all_in_memory(tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", [flat(i) for i in range(30)])
    decoded = []
    to_array = av.VideoFrame.to_ndarray
    monkeypatch.setattr(
        "dynvid.video.reader._frame_array",
        lambda frame: decoded.append(1) or to_array(frame, format="rgb24"),
    )
    source = VideoSource(tmp_path / "clip.mp4")
    for i, _ in enumerate(source, start=1):
        assert len(decoded) == i


def test_rotated_video(tmp_path):
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:24] = 255  # white on top
    assert _rotated(picture, 0).shape == (48, 64, 3)
    turned = _rotated(picture, 90)  # counter-clockwise: what was on top is on the left
    assert turned.shape == (64, 48, 3)
    assert turned[:, 0].min() == 255
    assert turned[:, -1].max() == 0


def _rotated(picture, rotation):
    class Frame:
        def __init__(self):
            self.rotation = rotation

        def to_ndarray(self, *, format):
            assert format == "rgb24"
            return picture

    return reader._frame_array(Frame())


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_truncated_video_gives_what_decodes_and_warns(tmp_path, name):
    whole = tmp_path / name
    write_video(whole, noise(60))
    data = whole.read_bytes()
    short = tmp_path / f"short_{name}"
    short.write_bytes(data[: len(data) // 2])
    source = VideoSource(short)
    with pytest.warns(VideoWarning, match=rf"short_{name}: .* truncated; stopped after \d+ of 60"):
        frames = list(source)
    assert 15 <= len(frames) <= 45
    for frame, expected in zip(frames[:15], VideoSource(whole), strict=False):
        np.testing.assert_array_equal(frame, expected)


def test_damage_in_the_middle_costs_only_what_is_damaged(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, noise(40))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        assert len(list(VideoSource(path))) >= 30


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.mp4", b"not a video\n" * 1000),
        ("text.txt", b"not a video\n" * 1000),
        ("empty.mp4", b""),
        ("text.png", b"not an image\n" * 1000),
    ],
)
def test_unreadable_file_is_one_clear_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=rf"^cannot read .*{name}: .+$") as caught:
        VideoSource(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_index_at_the_end_and_cut_off_cannot_be_read(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, noise(20), faststart=False)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(VideoError, match=r"cannot read .*clip.mp4: Invalid data"):
        VideoSource(path)


def test_sound_without_pictures(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="there is no video in it"):
        VideoSource(path)


@pytest.mark.parametrize("source", ["nowhere.mp4", "nowhere", "rtsp://127.0.0.1:1/x", "987"])
def test_missing_source_is_one_clear_line(source):
    with pytest.raises(VideoError, match=rf"^cannot read {source}: .+$") as caught:
        VideoSource(source)
    assert "\n" not in str(caught.value)


def test_stream_over_http(tmp_path):
    write_video(tmp_path / "clip.mp4", [flat(10 * i) for i in range(5)])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = VideoSource(f"http://127.0.0.1:{server.server_address[1]}/clip.mp4")
        assert len(list(source)) == 5
        assert source.length is None  # it might be live
        server.shutdown()


def test_folder_is_read_in_natural_order(tmp_path):
    for i in (10, 2, 1, 33):
        iio.imwrite(tmp_path / f"frame{i}.png", flat(i))
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "sub").mkdir()
    source = VideoSource(tmp_path)
    assert (source.size, source.fps, source.length) == (SIZE, None, 4)
    for _ in range(2):
        assert [int(f.max()) for f in source] == [1, 2, 10, 33]


def test_single_image(tmp_path):
    iio.imwrite(tmp_path / "one.bmp", flat(9))
    source = VideoSource(tmp_path / "one.bmp")
    assert source.length == 1
    np.testing.assert_array_equal(next(iter(source)), flat(9))


def test_empty_folder_says_what_it_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("not a frame")
    with pytest.raises(VideoError, match=r"the folder has no images \(.*\.jpg.*\)"):
        VideoSource(tmp_path)


def test_a_frame_of_another_size_ends_the_source_with_a_warning(tmp_path):
    for i, size in enumerate([SIZE, SIZE, (24, 32)]):
        iio.imwrite(tmp_path / f"{i}.png", flat(i, size))
    for options in ({}, {"size": (30, 40)}):
        source = VideoSource(tmp_path, **options)
        with pytest.warns(VideoWarning, match="frame 2 is 32x24 where those before are 64x48"):
            assert len(list(source)) == 2
    assert len(list(VideoSource(tmp_path, max_frames=2))) == 2


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_an_animation_is_a_video(suffix, tmp_path):
    pictures = [Image.fromarray(flat(60 * k)) for k in range(4)]
    path = tmp_path / f"animated.{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], lossless=True)
    source = VideoSource(path)
    levels = [int(frame.mean()) for frame in source]
    assert len(levels) == source.length == 4
    np.testing.assert_allclose(levels, [0, 60, 120, 180], atol=2)
    if suffix != "gif":  # gif is read as a video, in a folder too
        iio.imwrite(tmp_path / "still.png", flat(7))
        with pytest.warns(VideoWarning, match="only the first picture is read"):
            assert len(list(VideoSource(tmp_path))) == 2


def test_what_is_no_picture_is_told_in_plain_words(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(VideoError, match=r"empty.png: it is empty$"):
        VideoSource(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(VideoError, match=r"text.png: it is no image that is known, or damaged$"):
        VideoSource(tmp_path / "text.png")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"pipe.mp4: it is a pipe, no file$"):
        VideoSource(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"cannot read 987: there is no camera 987 \("):
        VideoSource("987")


def test_damaged_image_ends_the_folder_with_a_warning(tmp_path):
    for i in range(4):
        iio.imwrite(tmp_path / f"{i}.png", flat(i))
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    source = VideoSource(tmp_path)
    frames = []
    with pytest.warns(VideoWarning, match=r"2\.png cannot be read; stopped after 2 of 4 frames"):
        frames.extend(source)
    assert len(frames) == 2
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(VideoError, match=r"cannot read .*0\.png"):
        VideoSource(tmp_path)


GREY = np.arange(48 * 64, dtype=np.uint8).reshape(SIZE)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (GREY, np.repeat(GREY[..., None], 3, axis=-1)),
        (GREY.astype(np.uint16) * 256 + 77, np.repeat(GREY[..., None], 3, axis=-1)),
        (GREY > 100, np.repeat((GREY > 100)[..., None] * np.uint8(255), 3, axis=-1)),
        (np.stack([GREY, 255 - GREY, GREY, GREY], axis=-1), np.stack([GREY, 255 - GREY, GREY], -1)),
        (np.stack([GREY, 255 - GREY], axis=-1), np.repeat(GREY[..., None], 3, axis=-1)),
    ],
    ids=["grey", "grey16", "black and white", "rgba", "grey with transparency"],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    frame = next(iter(VideoSource(tmp_path / "a.png")))
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, expected)


def test_palette_and_orientation(tmp_path):
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:, :10, 0] = 255
    Image.fromarray(picture).quantize(4).save(tmp_path / "palette.png")
    frame = next(iter(VideoSource(tmp_path / "palette.png")))
    np.testing.assert_allclose(frame.astype(int), picture, atol=8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    frame = next(iter(VideoSource(tmp_path / "phone.jpg")))
    assert frame.shape == (64, 48, 3)
    assert frame[2, :, 0].min() > 200, "the left columns are on top now"


def test_resize_and_letterbox(tmp_path):
    iio.imwrite(tmp_path / "a.png", flat(200))
    source = VideoSource(tmp_path, size=(100, 100))
    np.testing.assert_array_equal(next(iter(source)), flat(200, (100, 100)))
    source = VideoSource(tmp_path, size=(100, 100), letterbox=True)
    assert source.size == (100, 100)
    frame = next(iter(source))
    # 48 x 64 fits as 75 x 100: bars of 12 and 13 rows.
    np.testing.assert_array_equal(frame[12:87], flat(200, (75, 100)))
    np.testing.assert_array_equal(frame[:12], flat(114, (12, 100)))
    np.testing.assert_array_equal(frame[87:], flat(114, (13, 100)))
    tall = resize_frame(flat(7, (50, 10)), (20, 20), letterbox=True)
    np.testing.assert_array_equal(tall[:, 8:12], flat(7, (20, 4)))
    assert (tall[:, :8] == 114).all()
    assert (tall[:, 12:] == 114).all()


@pytest.mark.parametrize("frame_size", [(48, 64), (100, 37), (61, 97), (7, 90), (33, 20)])
@pytest.mark.parametrize("size", [(100, 100), (41, 64), (20, 33)])
def test_bars_are_where_boxes_are_looked_for(frame_size, size):
    """A letterboxed frame and the geometry that brings boxes back to it are one thing."""
    frame = resize_frame(flat(200, frame_size), size, letterbox=True)
    place = letterbox(frame_size, size, placement="centre")
    rows, columns = np.nonzero((frame == 200).all(-1))
    assert (rows.min(), columns.min()) == (place.top, place.left)
    extent = (rows.max() + 1 - place.top, columns.max() + 1 - place.left)
    assert extent == place.resized


def test_options_out_of_range():
    with pytest.raises(VideoError, match="max_frames must be at least 1; got 0"):
        VideoSource("x", max_frames=0)
    with pytest.raises(VideoError, match="size must be given with letterbox; got None"):
        VideoSource("x", letterbox=True)
    with pytest.raises(VideoError, match=r"size must be .* got \(0, 5\)"):
        VideoSource("x", size=(0, 5))


def test_real_sequence():
    source = VideoSource(data_path("pets09_s2l1/img1"), max_frames=3)
    assert (source.size, source.length) == ((576, 768), 3)
    frames = list(source)
    assert len(frames) == 3
    assert 50 < frames[0].mean() < 200


def test_real_video():
    source = VideoSource(data_path("intel/car-detection.mp4"), size=(216, 384))
    assert source.length == 377
    frames = list(itertools.islice(source, 20))
    assert frames[0].shape == (216, 384, 3)
    assert frames[0].std() > 10
