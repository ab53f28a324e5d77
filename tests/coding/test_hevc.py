import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.coding.hevc import (
    HevcPacket,
    decode_hevc,
    encode_hevc,
    quilt,
    tile,
    unquilt,
    untile,
)

RNG = np.random.default_rng(0)


def _moving(height: int, width: int, frames: int) -> list[np.ndarray]:
    """A random texture of 4x4 blocks that moves down by one pixel a frame."""
    blocks = RNG.integers(0, 256, (height // 4 + 1, width // 4 + 1), np.uint8)
    picture = blocks.repeat(4, 0).repeat(4, 1)[:height, :width]
    return [np.roll(picture, n, 0) for n in range(frames)]


def _nal_types(data: bytes) -> list[int]:
    starts = [i + 3 for i in range(len(data) - 3) if data[i : i + 3] == b"\0\0\1"]
    return [(data[start] >> 1) & 63 for start in starts]


@pytest.fixture(scope="module")
def gray() -> tuple[list[np.ndarray], list[HevcPacket]]:
    frames = _moving(131, 203, 33)
    return frames, list(encode_hevc(frames, qp=22, pixel_format="gray"))


def test_one_packet_a_frame_and_one_i_picture_a_gop(gray):
    _, packets = gray
    assert [p.frame for p in packets] == list(range(33))
    assert [p.kind for p in packets] == [*"IPPPPPPPPPPPPPP"] * 2 + [*"IPP"]


def test_i_pictures_carry_the_parameter_sets_and_nothing_carries_sei(gray):
    _, packets = gray
    # H.265, table 7-1: 32 VPS, 33 SPS, 34 PPS, 19/20 IDR, 1 trailing picture, 39/40 SEI
    for packet in packets:
        types = _nal_types(packet.data)
        if packet.kind == "I":
            assert types[:3] == [32, 33, 34]
            assert set(types[3:]) <= {19, 20}
        else:
            assert types == [1]


def test_decoding_gives_the_frames_about_again(gray):
    frames, packets = gray
    decoded = list(decode_hevc(packets, pixel_format="gray", size=(131, 203)))
    assert len(decoded) == 33
    for frame, original in zip(decoded, frames, strict=True):
        assert frame.dtype == np.uint8
        # At QP 22 the quantiser's step is 2^((22 - 4) / 6) = 8: an error of a quarter step in the
        # mean is a uniform quantiser's, in I pictures; P pictures' dead zone adds to it.
        assert np.abs(frame.astype(int) - original).mean() < 2


def test_decoding_begins_at_any_i_picture(gray):
    _, packets = gray
    whole = list(decode_hevc(packets, pixel_format="gray"))
    late = list(decode_hevc(packets[15:], pixel_format="gray"))
    np.testing.assert_array_equal(late, whole[15:])


def test_the_bits_do_not_depend_on_threads(gray):
    frames, packets = gray
    for threads in (1, 3):
        assert list(encode_hevc(frames, qp=22, pixel_format="gray", threads=threads)) == packets


def test_all_grey_values_come_back_at_the_finest_qp():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(4, 0).repeat(4, 1)
    (frame,) = decode_hevc(encode_hevc([ramp], qp=0, pixel_format="gray"), pixel_format="gray")
    assert np.abs(frame.astype(int) - ramp).max() <= 1


def test_rate_falls_with_qp_and_error_rises():
    frames = _moving(96, 96, 3)
    sizes, errors = [], []
    for qp in (22, 27, 32, 37, 42, 47):
        packets = list(encode_hevc(frames, qp=qp, pixel_format="gray"))
        decoded = list(decode_hevc(packets, pixel_format="gray"))
        sizes.append(sum(len(p.data) for p in packets))
        errors.append(np.square(np.subtract(decoded, frames, dtype=float)).mean())
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 6
    assert errors == sorted(errors)


def test_colour_keeps_its_channels():
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[:32, :32, 0], colours[:32, 32:, 1], colours[32:, :32, 2] = 200, 200, 200
    (frame,) = decode_hevc(encode_hevc([colours], qp=10))
    # Centres of the quadrants, away from where halved chroma blurs; limited range loses 1-2 levels
    # for each of three channels, and QP 10 has a step of 2.
    at = np.ix_([16, 48], [16, 48])
    assert np.abs(frame[at].astype(int) - colours[at]).max() <= 6


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (15, 33), (17, 16), (64, 65)])
def test_any_size_is_padded_and_cut(shape):
    frames = [RNG.integers(0, 256, shape, np.uint8)] * 2
    packets = encode_hevc(frames, qp=0, pixel_format="gray")
    decoded = list(decode_hevc(packets, pixel_format="gray", size=shape))
    assert [f.shape for f in decoded] == [shape] * 2
    # QP 0: a step of 2^(-4/6) = 0.63, so an I picture's error stays within a few levels even where
    # rounding errors of a 32x32 transform add up.
    assert np.abs(decoded[0].astype(int) - frames[0]).max() <= 3


def test_a_ctu_of_16_is_another_stream():
    frames = _moving(128, 128, 2)
    small = list(encode_hevc(frames, qp=32, ctu=16, pixel_format="gray"))
    assert small != list(encode_hevc(frames, qp=32, pixel_format="gray"))
    assert len(list(decode_hevc(small, pixel_format="gray"))) == 2


def test_encoding_and_decoding_stream():
    frames = iter([np.zeros((32, 32), np.uint8)] * 100)
    next(decode_hevc(encode_hevc(frames, qp=32, pixel_format="gray"), pixel_format="gray"))
    assert len(list(frames)) > 40


def test_no_frames_no_packets():
    assert list(encode_hevc([], qp=32)) == []
    assert list(decode_hevc([])) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qp": 52}, "qp must be 0 .. 51; got 52"),
        ({"qp": -1}, "qp must be"),
        ({"gop": 0}, "gop must be at least 1 picture; got 0"),
        ({"ctu": 8}, "ctu must be 16, 32, 64 or None; got 8"),
        ({"threads": 0}, "threads must be at least 1; got 0"),
        ({"pixel_format": "rgb24"}, "pixel_format must be 'gray' or 'yuv420p'; got 'rgb24'"),
    ],
)
def test_options_are_refused_before_any_frame_is_taken(options, message):
    with pytest.raises(ValueError, match=message):
        encode_hevc([], **{"qp": 32, **options})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((8, 8), np.float32), r"frame 1 must be uint8\(H, W\) for gray; got float32"),
        (np.zeros((8, 8, 3), np.uint8), r"frame 1 must be uint8\(H, W\) for gray"),
        (np.zeros((8, 9), np.uint8), r"frame 1 must be \(8, 8\) as the first; got \(8, 9\)"),
    ],
)
def test_frames_are_checked(frame, message):
    with pytest.raises(ValueError, match=message):
        list(encode_hevc([np.zeros((8, 8), np.uint8), frame], qp=32, pixel_format="gray"))


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"libx265 refuses .*'preset': 'hasty'"):
        list(encode_hevc([np.zeros((8, 8, 3), np.uint8)], qp=32, preset="hasty"))  # type: ignore


def test_what_cannot_be_decoded_is_named(gray):
    _, packets = gray
    broken = packets[0]._replace(data=b"no picture")
    for wrong, message in [
        (packets[1:], "packet of frame 1 has 0 pictures"),
        ([packets[0], packets[2]], "packet of frame 2 has 0 pictures"),
        ([broken], "packet of frame 0 is no HEVC picture"),
        ([packets[0]._replace(data=b"")], "packet of frame 0 has 0 pictures"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(decode_hevc(wrong, pixel_format="gray"))
    with pytest.raises(ValueError, match="frame 0 is gray, pixel_format says yuv420p"):
        list(decode_hevc(packets))
    with pytest.raises(ValueError, match=r"\(132, 204\), smaller than size=\(133, 10\)"):
        list(decode_hevc(packets, pixel_format="gray", size=(133, 10)))


FEATURES = st.tuples(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 70), st.booleans()
).flatmap(
    lambda s: npst.arrays(np.uint8, (2, *s[:3]) if s[3] else s[:3], elements=st.integers(0, 255))
)


@settings(max_examples=60, deadline=None)
@given(FEATURES)
def test_tiling_and_quilting_are_undone(features):
    channels = features.shape[-1]
    np.testing.assert_array_equal(untile(tile(features), channels=channels), features)
    np.testing.assert_array_equal(unquilt(quilt(features), channels=channels), features)


def test_each_channel_of_256_is_where_the_paper_has_it():
    features = RNG.integers(0, 256, (3, 5, 256), np.uint8)
    tiled, quilted = tile(features), quilt(features)
    assert tiled.shape == quilted.shape == (48, 80)
    for a in range(16):
        for b in range(16):
            channel = features[:, :, 16 * a + b]
            np.testing.assert_array_equal(tiled[3 * a : 3 * a + 3, 5 * b : 5 * b + 5], channel)
            np.testing.assert_array_equal(quilted[a::16, b::16], channel)


@pytest.mark.parametrize(
    ("channels", "grid"), [(1, (1, 1)), (2, (1, 2)), (12, (4, 4)), (128, (8, 16)), (129, (16, 16))]
)
def test_the_grid_is_the_next_power_of_two_and_no_taller_than_wide(channels, grid):
    features = np.ones((1, 1, channels), np.uint8)
    assert tile(features).shape == quilt(features).shape == grid
    assert tile(features).sum() == channels
    assert quilt(features).all()


def test_what_is_no_feature_map_is_refused():
    for lay_out in (tile, quilt):
        with pytest.raises(ValueError, match=r"features must be \(..., h, w, C\).*got \(3, 0, 4\)"):
            lay_out(np.zeros((3, 0, 4)))
    for undo in (untile, unquilt):
        message = r"picture must be \(..., 16 h, 16 w\) for 256 channels; got \(832, 830\)"
        with pytest.raises(ValueError, match=message):
            undo(np.zeros((832, 830)), channels=256)
        with pytest.raises(ValueError, match="channels must be at least 1; got 0"):
            undo(np.zeros((4, 4)), channels=0)
