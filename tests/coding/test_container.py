import contextlib
import io
import math
import struct
import zlib

import numpy as np
import pytest

from dynvid.coding.container import (
    MAGIC,
    MOST_VALUES,
    VERSION,
    BitstreamReader,
    BitstreamWriter,
    Header,
    LabelCoder,
)
from dynvid.coding.errors import BitstreamError

SHAPE = (2, 4, 5, 3)
STAGES = ("fixed", "huffman", "arithmetic")
BLOCKS = {  # options of headers, by the side of blocks
    1: {},
    2: {"shape": (2, 4, 6, 3), "block": 2},
    4: {"shape": (1, 4, 8, 2), "block": 4},
}


def header_of(**options):
    return Header(
        **(
            {
                "shape": SHAPE,
                "low": -0.25,
                "high": 2.0,
                "levels": 9,
                "key_levels": 17,
                "group_of_pictures": 4,
            }
            | options
        )
    )


def frames_of(header, count, *, seed=0):
    rng = np.random.default_rng(seed)
    for n in range(count):
        if n % header.group_of_pictures == 0:
            yield rng.integers(0, header.key_levels, header.coded_shape)
        else:
            quiet = rng.random(header.coded_shape) < 0.8
            changes = rng.integers(0, header.levels, header.coded_shape)
            yield np.where(quiet, header.levels // 2, changes)


def written(header, frames, **options):
    file = io.BytesIO()
    writer = BitstreamWriter(file, header, **options)
    sizes = [writer.write(labels) for labels in frames]
    writer.close()
    return file.getvalue(), sizes


def read(data, **options):
    return list(BitstreamReader(io.BytesIO(data), **options))


@pytest.mark.parametrize("scan", ["chw", "hwc"])
@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_what_was_written_is_read(stage, block, scan):
    header = header_of(stage=stage, scan=scan, **BLOCKS[block])
    assert math.prod(header.coded_shape) == math.prod(header.shape)
    labels = list(frames_of(header, 10))
    data, sizes = written(header, labels)
    reader = BitstreamReader(io.BytesIO(data))
    assert reader.header == header
    frames = list(reader)
    assert [f.number for f in frames] == list(range(10))
    assert [f.is_key for f in frames] == [n % 4 == 0 for n in range(10)]
    assert [(f.bits // 8, f.payload_bits // 8) for f in frames] == sizes
    for frame, expected in zip(frames, labels, strict=True):
        np.testing.assert_array_equal(frame.labels, expected)
    assert len(data) == len(header.to_bytes()) + sum(size for size, _ in sizes) + 15


def test_every_field_of_the_header_comes_back():
    header = header_of(
        low=(0.1, -1.0, 0.0),
        high=(1.0, 2.5, 3.0),
        levels=33,
        key_levels=257,
        group_of_pictures=7,
        residual_divisor=4,
        shape=(2, 6, 9, 3),
        block=3,
        scan="hwc",
        stage="huffman",
        dtype="bfloat16",
    )
    back = BitstreamReader(io.BytesIO(header.to_bytes())).header
    assert back.low == tuple(np.float32(header.low).tolist())
    assert (back.shape, back.block) == ((2, 6, 9, 3), 3)
    assert back.coded_shape == (2, 2, 3, 27)
    assert back.to_bytes() == header.to_bytes()


def test_a_frame_can_be_read_before_the_next_is_there():
    """As from a socket: never asks for more than the packet that is due."""
    header = header_of()
    data, sizes = written(header, frames_of(header, 3))

    class Growing(io.RawIOBase):
        position = 0
        there = len(header.to_bytes())

        def read(self, count=-1):
            assert self.position + count <= self.there, "asked for bytes that are not there yet"
            self.position += count
            return data[self.position - count : self.position]

    file = Growing()
    frames = iter(BitstreamReader(file))
    for size, _ in sizes:
        file.there += size
        next(frames)


def test_an_empty_bitstream():
    data, _ = written(header_of(), [])
    assert read(data) == []


@pytest.mark.parametrize(("stage", "block"), [*((s, 1) for s in STAGES), ("fixed", 4)])
def test_every_truncation_is_an_error(stage, block):
    header = header_of(stage=stage, **BLOCKS[block])
    data, _ = written(header, frames_of(header, 6))
    for end in range(len(data)):
        for skip in (False, True):
            with pytest.raises(BitstreamError, match="the data end before"):
                read(data[:end], skip_damaged=skip)


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_no_mutation_is_silently_wrong(stage, block):
    """Three thousand mutated streams: refused, or (where skipped) only true frames."""
    header = header_of(stage=stage, **BLOCKS[block])
    labels = list(frames_of(header, 9))
    data, _ = written(header, labels)
    other, _ = written(header, frames_of(header, 9, seed=1))
    stranger = header_of(stage=stage, group_of_pictures=5, **BLOCKS[block])
    foreign, _ = written(stranger, frames_of(stranger, 9))
    rng = np.random.default_rng(3 * block + STAGES.index(stage))
    for _ in range(450 if stage != "arithmetic" else 150):
        damaged = bytearray(data)
        kind = rng.integers(7)
        at, size = int(rng.integers(len(data))), int(rng.integers(1, 40))
        if kind == 0:
            damaged[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            damaged[at : at + size] = rng.bytes(size)
        elif kind == 2:
            del damaged[at : at + size]
        elif kind == 3:
            damaged[at:at] = rng.bytes(size)
        elif kind == 4:
            damaged[at:at] = data[: int(rng.integers(1, len(data)))]
        elif kind == 5:
            damaged[at:] = foreign[at:]
        else:
            damaged[at:] = other[at:]
        damaged = bytes(damaged)
        if damaged in (data, foreign, other):
            continue
        with pytest.raises(BitstreamError):
            read(damaged)
        try:
            for frame in BitstreamReader(io.BytesIO(damaged), skip_damaged=True):
                np.testing.assert_array_equal(frame.labels, labels[frame.number])
        except BitstreamError:
            pass
    assert read(other)  # another stream of the same header is as good as this one


@pytest.mark.parametrize(("stage", "block"), [*((s, 1) for s in STAGES), ("arithmetic", 2)])
def test_damaged_packets_are_skipped_up_to_the_next_key_frame(stage, block):
    header = header_of(stage=stage, **BLOCKS[block])
    labels = list(frames_of(header, 12))
    data, sizes = written(header, labels)
    starts = len(header.to_bytes()) + np.cumsum([0] + [size for size, _ in sizes])
    for n in range(12):
        until = 4 * (n // 4 + 1)
        expected = [k for k in range(12) if k < n or k >= until]
        for where in (0, 3, 7, 10, 12, sizes[n][0] - 1):  # kind, number, length, checksums, payload
            damaged = bytearray(data)
            damaged[starts[n] + where] ^= 0x40
            seen = read(bytes(damaged), skip_damaged=True)
            assert [frame.number for frame in seen] == expected
            for frame in seen:
                np.testing.assert_array_equal(frame.labels, labels[frame.number])
        cut = data[: starts[n]] + data[starts[n + 1] :]
        assert [frame.number for frame in read(cut, skip_damaged=True)] == expected
        with pytest.raises(BitstreamError):
            read(cut)


@pytest.mark.parametrize("stage", STAGES)
def test_no_packet_passes_in_another_bitstream_of_the_same_header(stage):
    header = header_of(stage=stage)
    labels = list(frames_of(header, 9))
    mine, sizes = written(header, labels)
    theirs, their_sizes = written(header, frames_of(header, 9, seed=1))
    start = len(header.to_bytes())
    at, there = (start + np.cumsum([0] + [n for n, _ in s]) for s in (sizes, their_sizes))
    for n in range(9):
        # One packet in the place of its counterpart, and all from there on.
        one = mine[: at[n]] + theirs[there[n] : there[n + 1]] + mine[at[n + 1] :]
        rest = mine[: at[n]] + theirs[there[n] :]
        for spliced in (one, rest):
            with pytest.raises(BitstreamError, match=f"packet {n} is damaged: the checksum of its"):
                read(spliced)
            with contextlib.suppress(BitstreamError):
                for frame in BitstreamReader(io.BytesIO(spliced), skip_damaged=True):
                    np.testing.assert_array_equal(frame.labels, labels[frame.number])


def test_a_residual_frame_passes_after_its_own_frame_alone():
    """Even in a bitstream of the same identity: as of an encoder that sends a frame twice over."""
    header = header_of()
    labels = list(frames_of(header, 3))
    others = [labels[0], *list(frames_of(header, 3, seed=1))[1:]]
    mine, sizes = written(header, labels, identity=5)
    theirs, their_sizes = written(header, others, identity=5)
    start = len(header.to_bytes())
    assert mine[: start + sizes[0][0]] == theirs[: start + sizes[0][0]]  # up to frame 1
    mixed = mine[: start + sum(n for n, _ in sizes[:2])]
    mixed += theirs[start + sum(n for n, _ in their_sizes[:2]) :]
    with pytest.raises(BitstreamError, match="packet 2 is damaged, or not of this place"):
        read(mixed)
    assert [frame.number for frame in read(mixed, skip_damaged=True)] == [0, 1]


@pytest.mark.parametrize(
    "options", [{"low": -0.5}, {"group_of_pictures": 5}, {"levels": 11}, {"dtype": "float16"}]
)
def test_no_packet_passes_under_another_header(options):
    header = header_of()
    data, _ = written(header, frames_of(header, 3))
    other = header_of(**options).to_bytes()
    swapped = other + data[len(other) :]
    with pytest.raises(BitstreamError, match="packet 0 is damaged: the checksum of its head"):
        read(swapped)
    # Sixteen bits tell the head, which some 1 in 2^16 bytes pass, and 32 more the rest.
    with pytest.raises(BitstreamError, match="the data end before"):
        read(swapped, skip_damaged=True)


def test_key_frames_may_come_before_they_are_due():
    header = header_of()
    rng = np.random.default_rng(0)
    are_key = [True, False, True, False, True, True, False, False, True, False]
    labels = [
        rng.integers(0, header.key_levels if is_key else header.levels, SHAPE) for is_key in are_key
    ]
    file = io.BytesIO()
    writer = BitstreamWriter(file, header)
    sizes = [
        writer.write(frame, is_key=is_key)[0] for frame, is_key in zip(labels, are_key, strict=True)
    ]
    writer.close()
    data = file.getvalue()
    for skip in (False, True):
        seen = read(data, skip_damaged=skip)
        assert [frame.is_key for frame in seen] == are_key
        for frame, expected in zip(seen, labels, strict=True):
            np.testing.assert_array_equal(frame.labels, expected)
    # One of them repairs what was lost before it.
    start = len(header.to_bytes()) + sizes[0]
    cut = data[:start] + data[start + sizes[1] :]
    assert [frame.number for frame in read(cut, skip_damaged=True)] == [0, *range(2, 10)]


def test_a_key_frame_that_is_due_has_to_come():
    header = header_of()
    writer = BitstreamWriter(io.BytesIO(), header)
    with pytest.raises(ValueError, match="is_key must be True for frame 0; got False"):
        writer.write(np.zeros(SHAPE, int), is_key=False)
    frames = [labels % header.levels for labels in frames_of(header, 6)]
    longer = header_of(group_of_pictures=8)
    # As a writer of longer groups would send it, with the header's own checksums.
    data = numbered(header, [(n, n % 8 == 0) for n in range(6)], frames)
    with pytest.raises(BitstreamError, match="packet holds frame 4, of the wrong kind"):
        read(data)
    assert [frame.number for frame in read(data, skip_damaged=True)] == [0, 1, 2, 3]
    assert len(read(numbered(longer, [(n, n % 8 == 0) for n in range(6)], frames))) == 6


def numbered(header, kinds, frames):
    """A bitstream of frames with these numbers, key or not, and its end."""
    coder = LabelCoder(header)
    data = header.to_bytes()
    seed = zlib.crc32(data[:-4])

    def packet(kind, number, payload=b""):
        head = struct.pack("<BII", kind, number, len(payload))
        head += struct.pack("<H", zlib.crc32(head, seed) & 0xFFFF)
        before = zlib.crc32(data[-4:], seed) if kind == 0xB1 else seed
        return head + payload + struct.pack("<I", zlib.crc32(head + payload, before))

    for (number, is_key), labels in zip(kinds, frames, strict=True):
        payload = coder.encode(np.asarray(labels, np.int16), is_key=is_key)
        data += packet(0xB0 if is_key else 0xB1, number, payload)
    return data + packet(0xBF, min(kinds[-1][0] + 1, 2**32 - 1))


def test_numbers_have_thirty_two_bits():
    header = header_of()
    frames = list(frames_of(header, 8))
    for first in (2**31 - 4, 2**32 - 8):
        data = numbered(header, [(first + n, n % 4 == 0) for n in range(8)], frames)
        seen = read(data, skip_damaged=True)
        assert [frame.number for frame in seen] == list(range(first, first + 8))
        for frame, expected in zip(seen, frames, strict=True):
            np.testing.assert_array_equal(frame.labels, expected)
        with pytest.raises(
            BitstreamError, match=f"frame 0 was to come, packet holds frame {first}"
        ):
            read(data)


def test_a_full_bitstream_takes_no_more():
    file = io.BytesIO()
    header = header_of(group_of_pictures=1)
    writer = BitstreamWriter(file, header)
    writer._frames = 2**32 - 2
    labels = np.full(SHAPE, 3)
    writer.write(labels)
    before = file.getvalue()
    with pytest.raises(ValueError, match="frames must be 4294967295 at most; got one more"):
        writer.write(labels)
    assert file.getvalue() == before
    writer.close()
    (frame,) = read(file.getvalue(), skip_damaged=True)
    assert frame.number == 2**32 - 2


def test_the_reason_is_told():
    header = header_of()
    data, sizes = written(header, frames_of(header, 3))
    start = len(header.to_bytes())
    second = start + sizes[0][0]

    def error(changed):
        with pytest.raises(BitstreamError) as info:
            read(bytes(changed))
        assert "\n" not in str(info.value)
        return str(info.value)

    assert "its first bytes differ" in error(b"RIFF" + data[4:])
    assert f"version 258 is not known, only {VERSION} is" in error(
        data[:8] + struct.pack("<H", 258) + data[10:]
    )
    assert "header is damaged" in error(data[:20] + b"\xff" + data[21:])
    assert "packet 1 is damaged, or not of this place: its checksum differs" in error(
        data[: second + 12] + bytes([data[second + 12] ^ 1]) + data[second + 13 :]
    )
    assert "packet 0 is damaged: the checksum of its head" in error(
        data[: start + 5] + b"\x7f" + data[start + 6 :]
    )
    assert "frame 1 was to come, packet holds frame 2" in error(
        data[:second] + data[second + sizes[1][0] :]
    )
    assert "bytes follow the end" in error(data + b"x")
    assert "the end announces 3 frames, 0 were read" in error(data[:start] + data[-15:])
    assert "end before the header" in error(b"")


def with_checksum(start):
    return start + struct.pack("<I", zlib.crc32(start))


def test_headers_that_lie_are_refused_whatever_their_checksum():
    """Nothing is allocated for them: each is refused in far less memory than it asks for."""
    good = header_of().to_bytes()[:-4]
    fields = len(MAGIC) + 4
    for offset, packed, message in [
        (0, struct.pack("<I", 1 << 31), "shape must be"),
        (4, struct.pack("<I", 0), "shape must be"),
        (12, struct.pack("<I", MOST_VALUES), "shape must be"),
        (16, b"\x09", "makes no sense"),
        (18, b"\x03", "makes no sense"),
        (19, b"\x00", "block must be of 1 .. 16 and divide 4 x 5; got 0"),
        (19, b"\x02", "block must be of 1 .. 16 and divide 4 x 5; got 2"),
        (19, b"\xff", "block must be of 1 .. 16 and divide 4 x 5; got 255"),
        (20, struct.pack("<H", 8), "levels must be odd"),
        (22, struct.pack("<H", 1), "key_levels must be"),
        (24, struct.pack("<I", 0), "group_of_pictures must be"),
        (28, struct.pack("<I", 0), "residual_divisor must be"),
        (32, struct.pack("<f", float("nan")), "low must be below high"),
        (32, struct.pack("<f", 3.0), "low must be below high"),
    ]:
        changed = good[: fields + offset] + packed + good[fields + offset + len(packed) :]
        with pytest.raises(BitstreamError, match=message):
            BitstreamReader(io.BytesIO(with_checksum(changed)))
    absurd = MAGIC + struct.pack("<HH", VERSION, 65535)
    with pytest.raises(BitstreamError, match="clip ranges for 65535 channels"):
        BitstreamReader(io.BytesIO(absurd + bytes(10)))


def test_an_absurd_length_is_refused_before_anything_is_read():
    header = header_of().to_bytes()
    head = struct.pack("<BII", 0xB0, 0, 1 << 31)
    head += struct.pack("<H", zlib.crc32(head, zlib.crc32(header[:-4])) & 0xFFFF)
    with pytest.raises(BitstreamError, match="packet 0 announces 2147483648 bytes, more than any"):
        read(header + head + bytes(100))


def test_what_does_not_fit_the_header_is_not_written():
    file = io.BytesIO()
    writer = BitstreamWriter(file, header_of())
    before = file.getvalue()
    for labels, message in [
        (np.zeros((1, 4, 5, 3), int), "labels must be integers"),
        (np.zeros(SHAPE), "labels must be integers"),
        (np.full(SHAPE, 17), "labels must be of 0 .. 16; got 17"),
        (np.full(SHAPE, -1), "labels must be of 0 .. 16; got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            writer.write(labels)
    assert file.getvalue() == before
    writer.write(np.full(SHAPE, 16))
    with pytest.raises(ValueError, match=r"labels must be of 0 .. 8"):
        writer.write(np.full(SHAPE, 16))
    blocks = BitstreamWriter(file, header_of(**BLOCKS[2]))
    with pytest.raises(ValueError, match=r"labels must be integers \(2, 2, 3, 12\)"):
        blocks.write(np.zeros((2, 4, 6, 3), int))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (1, 2, 3)}, "shape must be"),
        ({"levels": 8}, "levels must be odd"),
        ({"key_levels": 40_000}, "key_levels must be"),
        ({"residual_divisor": 0}, "residual_divisor must be"),
        ({"stage": "zip"}, "stage must be one of"),
        ({"low": (0.0, 1.0)}, "one for each of 3 channels"),
        ({"high": -1.0}, "low must be below high"),
        ({"shape": (1, 1, 1, 20_000)}, "16384 channels at most"),
        ({"block": 0}, "block must be of 1 .. 16 and divide 4 x 5; got 0"),
        ({"block": 4}, "block must be of 1 .. 16 and divide 4 x 5; got 4"),
        ({"shape": (1, 17, 17, 1), "block": 17}, "block must be of 1 .. 16"),
        ({**BLOCKS[2], "key_levels": 16}, "key_levels must be odd with blocks; got 16"),
    ],
)
def test_headers_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        header_of(**options)


@pytest.mark.parametrize("shape", [(1 << 24, 1, 1, 1), (1, 1 << 14, 1, 1), (1, 1, 1 << 14, 1)])
def test_shapes_that_cost_more_than_their_values_are_refused(shape):
    """A border around every stream, a turn of a loop for every row."""
    with pytest.raises(ValueError, match="positions with their borders"):
        Header(
            shape=shape, low=0.0, high=1.0, levels=9, key_levels=9, group_of_pictures=15
        )  # fmt: skip
