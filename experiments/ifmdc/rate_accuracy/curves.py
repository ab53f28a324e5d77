"""Person AP50 against bits per pixel, every method at six rates or more: Figures 6 to 9."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dynvid.metrics.rate import bits_per_pixel
from dynvid.systems.ifmdc import Settings, clip_range
from experiments.bench import console
from experiments.ifmdc.rate_accuracy.methods import (
    GOP,
    QPS,
    Coded,
    Range,
    code_features,
    code_ifmdc,
    code_lightweight,
    code_video,
)
from experiments.ifmdc.rate_accuracy.results import Results
from experiments.ifmdc.rate_accuracy.subjects import EVERY, PIXELS, Subject

CALIBRATION = 30
"""Frames that the clip range is chosen on."""

PERCENTILES = ((0.1, 99.9), (0.01, 99.99), (0.0, 99.99), (0.5, 99.5), (1.0, 99.0))

PAPER = {f"k={k}": {"levels": k} for k in (3, 5, 9, 17, 33, 65)}
"""The paper's quantiser, k_key = k."""


ZONED = {
    f"k={k}, k_key={(k + 1) // 2}, dead zone {zone:g}, skip {skip:g}": (
        {"levels": k, "key_levels": (k + 1) // 2, "dead_zone": zone},
        skip,
    )
    for k, zone, skip in (
        (9, 2, 0.25),
        (9, 2, 0.15),
        (9, 1.5, 0.15),
        (17, 4, 0.15),
        (17, 3, 0.15),
        (17, 2, 0.1),
    )
}
"""With a dead zone, positions skipped where little moved, and key frames of fewer levels."""

BLOCKS = {
    f"k={k}": {
        "levels": k,
        "key_levels": (k + 1) // 2,
        "block": 4,
        "dead_zone": 0.7,
        "key_dead_zone": 0.6,
    }
    for k in (9, 13, 17, 21, 25, 29, 37, 49, 65)
}
"""Coefficients of blocks of 4x4; key frames with the same steps as residuals."""


def measure(subject: Subject, results: Results) -> None:
    """Runs what is not in the results yet."""
    count = len(subject.clip.frames)
    entry = results.subject(subject.name, frames=count)
    if "clip" not in entry:
        entry |= {"dense": subject.dense} | _calibrate(subject)
        results.save(subject.name, entry)
    clip = Range(*entry["clip"])
    for method, setting, code in _runs(subject, clip):
        rows = entry["methods"].setdefault(method, {})
        if setting in rows:
            continue
        rows[setting] = row_of(subject, code(), f"{method}, {setting}")
        console.print(f"{subject.name}: {method}, {setting}: {short(rows[setting])}")
        results.save(subject.name, entry)


def _runs(subject: Subject, clip: Range) -> Iterator[tuple[str, str, Callable[[], Coded]]]:
    def settings(options: dict[str, Any]) -> Settings:
        return Settings(low=clip.low, high=clip.high, group_of_pictures=GOP, **options)

    for method, cases in (("IFMDC + DCT", BLOCKS), ("IFMDC", PAPER)):
        for name, options in cases.items():
            chosen = settings(options)
            yield method, name, lambda chosen=chosen: code_ifmdc(subject, chosen)
    for qp in QPS:
        yield from _hevc(subject, clip, qp)
    for name, (options, skip) in ZONED.items():
        chosen = settings(options)
        yield (
            "IFMDC + dead zone",
            name,
            lambda chosen=chosen, skip=skip: code_ifmdc(subject, chosen, skip=skip),
        )
    for name in ("k=3", "k=5", "k=9", "k=17"):
        chosen = settings(PAPER[name] | {"scan": "hwc"})
        yield (
            "IFMDC, HWC scan",
            name,
            lambda chosen=chosen: code_ifmdc(subject, chosen, stages=("R1", "R2")),
        )
    for levels in (2, 3, 4, 6, 9, 17):
        yield (
            "lightweight",
            f"N={levels}",
            lambda n=levels: code_lightweight(subject, clip, levels=n),
        )


def _hevc(subject: Subject, clip: Range, qp: int) -> Iterator[tuple[str, str, Callable[[], Coded]]]:
    for method, code in (
        ("HEVC tiling", lambda: code_features(subject, clip, qp=qp, quilted=False)),
        ("HEVC quilting", lambda: code_features(subject, clip, qp=qp, quilted=True)),
        ("HEVC video", lambda: code_video(subject, clip, qp=qp)),
    ):
        yield method, f"QP {qp}", code


def clip_of(subject: Subject, entry: dict[str, Any]) -> Range:
    """The range that was chosen for a subject, which `curves` does first."""
    if "clip" not in entry:
        raise SystemExit(
            f"{subject.name}: the results hold no clip range for {len(subject.clip.frames)} "
            "frames; run curves first"
        )
    return Range(*entry["clip"])


def _calibrate(subject: Subject) -> dict[str, Any]:
    """The narrowest range that costs no more than a percent of AP on the first frames."""
    features = subject.features[:CALIBRATION]
    dense = subject.average_precision(features, "calibration")
    tried = []
    for ends in PERCENTILES:
        clip = Range(*clip_range(features, percentiles=ends))
        coded = clip.from_bytes(clip.to_bytes(features))
        found = subject.average_precision(coded, f"percentiles {ends}")
        tried.append({"percentiles": ends, "clip": [clip.low, clip.high], "ap50": found})
    good = [row for row in tried if row["ap50"] >= 0.99 * dense] or tried
    best = min(good, key=lambda row: row["clip"][1] - row["clip"][0])
    return {"clip": best["clip"], "calibration": {"dense": dense, "tried": tried}, "methods": {}}


def row_of(subject: Subject, coded: Coded, what: str) -> dict[str, Any]:
    """What the results hold of a coded sequence."""
    rates = {
        stage: bits_per_pixel(sizes, coded.predicted, pixels=PIXELS)._asdict()
        for stage, sizes in coded.sizes.items()
    }
    judged = slice(0, len(coded.features), EVERY)
    error = np.mean((coded.features - subject.features)[judged] ** 2, dtype=np.float64)
    return {
        "ap50": subject.average_precision(coded.features, what), "bpp": rates,
        "rms_error": float(np.sqrt(error)),
    } | coded.details  # fmt: skip


def short(row: dict[str, Any]) -> str:
    """The row in one line."""
    rates = ", ".join(
        f"{stage} {r['predicted']:.4f} / {r['all_frames']:.4f}" for stage, r in row["bpp"].items()
    )
    return f"AP50 {row['ap50']:.2f}, bpp of P / all frames: {rates}"
