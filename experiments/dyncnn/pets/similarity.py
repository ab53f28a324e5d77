"""Work and detections of every video against its scene similarity: Figure 5, Tables 3-5."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.bench.accuracy import drawn_truth, judge
from experiments.bench.videos import intel, pets, synthetic, tud
from experiments.dyncnn.pets.evaluate import Contest, agreement, score_agreement, second_detector
from experiments.dyncnn.pets.theta import STYLES

THETA = 20
"""Of 255, as in the paper."""


def measure(contest: Contest, folder: pathlib.Path) -> dict[str, Any]:
    """Runs every scheme over every video."""
    size = contest.detector.size
    videos = []
    for clip in (pets(size), tud(size), *intel(size), *synthetic(size)):
        synthesised = clip.name.startswith("synthetic")  # nothing that the network would know
        truth = drawn_truth(clip) if clip.truth else None if synthesised else second_detector(clip)
        dense = contest.dense(clip)
        video: dict[str, Any] = {"name": clip.name, "frames": len(clip.frames)}
        video["similarity"] = clip.similarity(THETA)
        video["truth"] = "drawn" if clip.truth else "YOLOX-nano" if truth else "none"
        video["schemes"] = {"dense": judge(dense.detections, truth) if truth else {}}
        for scheme in contest.schemes:
            found = contest.run(clip, scheme, THETA)
            entry: dict[str, Any] = judge(found.detections, truth) if truth else {}
            entry["macs"] = float(np.mean(found.macs))
            entry["score_agreement"] = score_agreement(dense.scores, found.scores)
            if truth:
                entry["agreement"] = agreement(dense, found)
            video["schemes"][scheme] = entry
        videos.append(video)
    _plot(videos, contest.detector.name, folder / "videos.png")
    return {"theta": THETA, "videos": videos}


def _plot(videos: list[dict[str, Any]], name: str, path: pathlib.Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    videos = sorted(videos, key=lambda video: video["similarity"])
    x = [100 * (1 - video["similarity"]) for video in videos]
    for scheme, style in STYLES.items():
        macs = [100 * video["schemes"][scheme]["macs"] for video in videos]
        axes.plot(x, macs, style, label=scheme, markersize=4)
    for i, (place, video) in enumerate(zip(x, videos, strict=True)):
        # Neighbours at two heights: several videos are nearly alike.
        axes.annotate(
            video["name"],
            (place, 1.0 if i % 2 else 0.78),
            xycoords=("data", "axes fraction"),
            rotation=90,
            fontsize=7,
            va="top",
            ha="right",
            color="grey",
        )
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set(
        xlabel=f"pixels that change from frame to frame, % (theta {THETA})",
        ylabel="multiply-accumulates, % of dense", title=name, ylim=(0, 160),
    )  # fmt: skip
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(STYLES))
    figure.savefig(path, dpi=90)
