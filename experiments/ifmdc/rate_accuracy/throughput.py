"""How fast IFMDC encodes, against x265 on the tiled map: the same frames, in turns."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.coding.container import LabelCoder
from dynvid.coding.hevc import encode_hevc, tile
from dynvid.systems.ifmdc import Settings, header_of, ifmdc
from experiments.bench import console
from experiments.ifmdc.rate_accuracy.curves import BLOCKS, clip_of
from experiments.ifmdc.rate_accuracy.methods import GOP, STAGES, Range
from experiments.ifmdc.rate_accuracy.results import Results
from experiments.ifmdc.rate_accuracy.subjects import Subject

ROUNDS = 5
"""Each of one GOP; the first of a contestant is not counted."""

CASES = {
    "k=9": {"levels": 9},
    "k=17": {"levels": 17},
    "k=9, dead zone 2": {"levels": 9, "key_levels": 5, "dead_zone": 2.0},
    "DCT, k=17": BLOCKS["k=17"],
    "DCT, k=29": BLOCKS["k=29"],
    "DCT, k=65": BLOCKS["k=65"],
}
QPS = (22, 27, 37, 43, 47)


def measure(subject: Subject, results: Results) -> None:
    """Times the encoders on the subject's features. Run it alone on the machine."""
    entry = results.subject(subject.name, frames=len(subject.clip.frames))
    entry["throughput"] = race(subject.features[: ROUNDS * GOP], clip_of(subject, entry))
    console.print_json(data=entry["throughput"])
    results.save(subject.name, entry)


def race(features: np.ndarray, clip: Range) -> dict[str, dict[str, float]]:
    """Quantiser, tokens and packing of a GOP, against x265 with all threads on the tiled map.

    Args:
      features: `float32[frames, h, w, c]`, whole GOPs, two or more.
      clip: where they are clipped. Clipping to 8 bits and tiling are not counted for x265.

    Returns:
      Milliseconds and bytes of a frame, medians over GOPs after the first, by contestant.
    """
    contestants: dict[str, Callable[[list[jax.Array], np.ndarray], int]] = {
        f"x265 medium, QP {qp}": _x265(qp) for qp in QPS
    }
    for name, options in CASES.items():
        settings = Settings(low=clip.low, high=clip.high, group_of_pictures=GOP, **options)
        for stage in STAGES:
            contestants[f"IFMDC {stage}, {name}"] = _ifmdc(settings, features.shape[1:], stage)
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in contestants}
    for start in range(0, len(features), GOP):
        # As either encoder gets them: from the front, on the device, and as bytes.
        group = [jnp.asarray(feature[None]) for feature in features[start : start + GOP]]
        pictures = tile(clip.to_bytes(features[start : start + GOP]))
        for name, run in contestants.items():
            begin = time.perf_counter()
            size = run(group, pictures)
            found[name].append((1e3 * (time.perf_counter() - begin) / GOP, size / GOP))
    medians = {name: np.median(pairs[1:], axis=0).tolist() for name, pairs in found.items()}
    return {name: {"ms": ms, "bytes": size} for name, (ms, size) in medians.items()}


def _x265(qp: int) -> Callable[[list[jax.Array], np.ndarray], int]:
    def run(features: list[jax.Array], pictures: np.ndarray) -> int:
        packets = encode_hevc(pictures, qp=qp, gop=GOP, ctu=16, pixel_format="gray")
        return sum(len(packet.data) for packet in packets)

    return run


def _ifmdc(
    settings: Settings, shape: tuple[int, ...], stage: str
) -> Callable[[list[jax.Array], np.ndarray], int]:
    height, width, channels = shape
    whole = (1, height, width, channels)
    codec, header = ifmdc(settings), header_of(settings, shape=whole, stage=STAGES[stage])
    encode, coder = jax.jit(codec.encoder.step, donate_argnums=1), LabelCoder(header)

    def run(features: list[jax.Array], pictures: np.ndarray) -> int:
        state: Any = codec.blank(whole)
        total = 0
        for feature in features:
            state, symbols = encode((), state, feature)
            labels, is_key = np.asarray(symbols.labels), bool(symbols.is_key)
            total += len(coder.encode(labels, is_key=is_key))
        return total

    return run
