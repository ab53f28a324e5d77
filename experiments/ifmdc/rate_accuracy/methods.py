"""The codecs on the features of a sequence: sizes of all packets, and what the other end has."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from dynvid.coding.container import LabelCoder, Stage
from dynvid.coding.entropy import zero_order_entropy
from dynvid.coding.hevc import HevcPacket, decode_hevc, encode_hevc, quilt, tile, unquilt, untile
from dynvid.coding.lightweight import encode_lightweight
from dynvid.ops.quantize import uniform_dequantize, uniform_quantize
from dynvid.systems.ifmdc import Settings, header_of, ifmdc
from experiments.bench import console
from experiments.ifmdc.rate_accuracy.subjects import EVERY, Subject

GOP = 15
STAGES: dict[str, Stage] = {"R1": "fixed", "R2": "huffman", "R3": "arithmetic"}
QPS = (51, 47, 45, 43, 41, 39, 35, 31, 27, 22)


class Coded(NamedTuple):
    """A coded sequence.

    Attributes:
      sizes: bytes of each frame, by entropy stage ("" where a method has only one).
      predicted: which frames are P frames.
      features: what the back half gets, `float32[frames, h, w, c]`.
      details: what else was measured.
    """

    sizes: dict[str, np.ndarray]
    predicted: np.ndarray
    features: np.ndarray
    details: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Range:
    """Where features are clipped, the same for every method.

    Attributes:
      low: c_min.
      high: c_max.
    """

    low: float
    high: float

    def to_bytes(self, features: np.ndarray) -> np.ndarray:
        """Clips to 8 bits: `round((f - low) / A * 255)`."""
        scaled = (np.clip(features, self.low, self.high) - self.low) * (255 / self.width)
        return np.round(scaled).astype(np.uint8)

    def from_bytes(self, labels: np.ndarray) -> np.ndarray:
        """The middle of each of the 256 levels."""
        return (self.low + labels * np.float32(self.width / 255)).astype(np.float32)

    @property
    def width(self) -> float:
        """A."""
        return self.high - self.low


def code_ifmdc(
    subject: Subject, settings: Settings, *, stages: tuple[str, ...] = ("R1", "R2", "R3"),
    changes: np.ndarray | None = None, features: np.ndarray | None = None, skip: float = 0.0,
) -> Coded:  # fmt: skip
    """IFMDC: what is decoded is what a decoder's own state gives, packet by packet.

    Args:
      subject: What is coded.
      settings: The codec's.
      stages: Which entropy stages are run on the same labels: they do not change what is decoded.
      changes: The masks of an incremental front, `bool[frames, h, w]`.
      features: What is coded instead of the subject's own.
      skip: Positions whose channels differ from the reconstruction by a root mean square of less
        than this share of A are not sent: noise is everywhere, things that move are somewhere.
    """
    features = subject.features if features is None else features
    codec, shape = ifmdc(settings), (1, *features.shape[1:])
    # One program for both ends: the decoder's state is a copy of its own.
    encode, decode = codec.encoder.step, codec.decoder.step
    near = far = codec.blank(shape)
    coders = {
        stage: LabelCoder(header_of(settings, shape=shape, stage=STAGES[stage])) for stage in stages
    }
    sizes: dict[str, list[int]] = {stage: [] for stage in stages}
    bound, found, predicted = [], np.empty_like(features), []
    histogram = np.zeros(settings.levels, np.int64)
    what = f"{subject.name}: IFMDC k={settings.levels}"
    last, width = None, np.subtract(settings.high, settings.low)
    for i, feature in enumerate(track(features, what, console=console, transient=True)):
        mask = () if changes is None else (changes[i][None],)
        if skip:
            clipped = np.clip(feature, settings.low, settings.high)
            # Key frames are whole whatever the mask is.
            moved = clipped if last is None else clipped - last
            mask = (np.sqrt(np.mean(np.square(moved / width), -1))[None] >= skip,)
        near, symbols = encode((), near, feature[None], *mask)
        far, decoded = decode((), far, symbols)
        last = found[i] = np.asarray(decoded[0])
        labels, is_key = np.asarray(symbols.labels), bool(symbols.is_key)
        predicted.append(not is_key)
        bound.append(zero_order_entropy(labels) / 8)
        if not is_key:
            histogram += np.bincount(labels.ravel(), minlength=settings.levels)
        for stage, coder in coders.items():
            sizes[stage].append(len(coder.encode(labels, is_key=is_key)))
    every = {"R0": bound} | sizes
    return Coded(
        {stage: np.array(found) for stage, found in every.items()}, np.array(predicted), found,
        {"histogram": histogram.tolist()},
    )  # fmt: skip


def code_features(subject: Subject, clip: Range, *, qp: int, quilted: bool) -> Coded:
    """HEVC on the feature map as one grey picture, tiled or quilted."""
    channels = subject.features.shape[-1]
    lay, unlay = (quilt, unquilt) if quilted else (tile, untile)
    what = f"{subject.name}: HEVC {'quilting' if quilted else 'tiling'}, QP {qp}"
    shown = track(subject.features, what, console=console, transient=True)
    pictures = (lay(clip.to_bytes(x)) for x in shown)
    shape = lay(np.zeros(subject.features.shape[1:], np.uint8)).shape
    packets = list(
        encode_hevc(pictures, qp=qp, gop=GOP, ctu=16, pixel_format="gray", threads=1)
    )  # fmt: skip
    decoded = decode_hevc(packets, pixel_format="gray", size=(shape[0], shape[1]))
    features = np.stack([clip.from_bytes(unlay(x, channels=channels)) for x in decoded])
    return _hevc(packets, features)


def code_video(subject: Subject, clip: Range, *, qp: int) -> Coded:
    """HEVC on the input frames; the front half runs on what is decoded, clipped and quantised."""
    what = f"{subject.name}: HEVC video, QP {qp}"
    shown = track(subject.clip.frames, what, console=console, transient=True)
    packets = list(encode_hevc((x[0] for x in shown), qp=qp, gop=GOP, threads=1))
    decoded = decode_hevc(packets, size=subject.clip.frames[0].shape[1:3])
    features = np.zeros_like(subject.features)
    for i, frame in enumerate(decoded):
        if i % EVERY == 0:  # no other is judged
            features[i] = clip.from_bytes(clip.to_bytes(np.asarray(subject.front(frame[None]))[0]))
    return _hevc(packets, features)


def code_lightweight(subject: Subject, clip: Range, *, levels: int) -> Coded:
    """Cohen et al.'s codec, every frame by itself: counted as P frames, for it knows no other."""
    found, sizes = np.empty_like(subject.features), []
    ends = {"low": clip.low, "high": clip.high, "levels": levels}
    what = f"{subject.name}: lightweight, N={levels}"
    for i, feature in enumerate(track(subject.features, what, console=console, transient=True)):
        labels = uniform_quantize(feature, **ends)
        found[i] = uniform_dequantize(labels, **ends)
        flat = np.asarray(labels).transpose(2, 0, 1).ravel()
        sizes.append(len(encode_lightweight(flat, levels=levels)))
    return Coded({"": np.array(sizes)}, np.ones(len(sizes), bool), found, {})


def _hevc(packets: list[HevcPacket], features: np.ndarray) -> Coded:
    packets = sorted(packets, key=lambda packet: packet.frame)
    sizes = np.array([len(packet.data) for packet in packets])
    return Coded({"": sizes}, np.array([p.kind == "P" for p in packets]), features, {})
