"""How fast IFMDC encodes, against x265 on the tiled map: the same frames, in turns."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dynvid.coding.context import ContextCoder
from dynvid.coding.hevc import encode_hevc, tile
from dynvid.coding.runs import encode_fixed, encode_huffman
from dynvid.systems.ifmdc import Settings, ifmdc
from experiments.ifmdc.rate_accuracy.methods import GOP, Range
from experiments.ifmdc.rate_accuracy.results import Results
from experiments.ifmdc.rate_accuracy.subjects import Subject
from experiments.incremental_speed.run import console

ROUNDS = 5
"""Each of one GOP; the first of a contestant is not counted."""

CASES = {
    "paper, k=9": {"levels": 9},
    "paper, k=17": {"levels": 17},
    "tuned": {"levels": 33, "dead_zone": 4.0},
}
QPS = (27, 37)


def measure(subject: Subject, results: Results) -> None:
    """Times quantiser, tokens and packing by GOPs; x265 with all threads, conversion not counted.

    Run it alone on the machine.
    """
    entry = results.subject(subject.name, frames=len(subject.clip.frames))
    clip = Range(*entry["clip"])
    contestants: dict[str, Callable[[np.ndarray, np.ndarray], int]] = {
        f"x265 medium, QP {qp}": _x265(qp) for qp in QPS
    }
    for name, options in CASES.items():
        settings = Settings(low=clip.low, high=clip.high, group_of_pictures=GOP, **options)
        for stage in ("R1", "R2", "R3"):
            contestants[f"IFMDC {stage}, {name}"] = _ifmdc(settings, subject, stage)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    sizes: dict[str, list[int]] = {name: [] for name in contestants}
    for number in range(ROUNDS):
        features = subject.features[number * GOP : (number + 1) * GOP]
        pictures = tile(clip.to_bytes(features))
        for name, run in contestants.items():
            start = time.perf_counter()
            size = run(features, pictures)
            times[name].append((time.perf_counter() - start) / GOP)
            sizes[name].append(size)
    found = {
        name: {
            "ms": 1e3 * float(np.median(times[name][1:])),
            "bytes": float(np.mean(sizes[name][1:])) / GOP,
        }
        for name in contestants
    }
    entry["throughput"] = found
    console.print_json(data=found)
    results.save(subject.name, entry)


def _x265(qp: int) -> Callable[[np.ndarray, np.ndarray], int]:
    def run(features: np.ndarray, pictures: np.ndarray) -> int:
        packets = encode_hevc(pictures, qp=qp, gop=GOP, ctu=16, pixel_format="gray")
        return sum(len(packet.data) for packet in packets)

    return run


def _ifmdc(
    settings: Settings, subject: Subject, stage: str
) -> Callable[[np.ndarray, np.ndarray], int]:
    codec, shape = ifmdc(settings), (1, *subject.features.shape[1:])
    encode = jax.jit(codec.encode)
    context = ContextCoder(shape, levels=settings.levels, key_levels=settings.labels_of_key)

    def run(features: np.ndarray, pictures: np.ndarray) -> int:
        state: Any = codec.init(shape)
        total = 0
        for feature in features:
            state, symbols = encode(state, feature[None])
            labels, is_key = np.asarray(symbols.labels), bool(symbols.is_key)
            if stage == "R3":
                total += len(context.encode(labels, is_key=is_key))
                continue
            flat = labels.transpose(0, 3, 1, 2).ravel()
            run_label, levels = settings.run_label, settings.levels
            if is_key:
                run_label, levels = int(np.argmax(np.bincount(flat))), settings.labels_of_key
            fields = encode_fixed if stage == "R1" else encode_huffman
            total += len(fields(flat, run_label=run_label, levels=levels))
        return total

    return run
