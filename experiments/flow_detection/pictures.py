"""The plots, from results.json, and frames with what is updated of them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullFormatter

from dynvid.models.flow_detection import CLASS_NAMES
from experiments.bench.figures import save_figure
from experiments.bench.results import read_json
from experiments.flow_detection.evaluate import Contestant, stepper
from experiments.flow_detection.subjects import Clips

COLORS = {
    "per-frame": "#000000",
    "FGFA": "#cc79a7",
    "DFF": "#e69f00",
    "c1": "#56b4e9",
    "c2": "#0072b2",
    "c3": "#d55e00",
    "c2 of tau": "#0072b2",
    "c3 of tau": "#d55e00",
    "c3 by residual": "#009e73",
    "c1 without recursion": "#999999",
    "oracle": "#cc79a7",
    "dynvid.incremental": "#0072b2",
    "refreshing": "#cc79a7",
}
SCORE = 0.3

Figures = Mapping[str, Mapping[str, Any]]


def main(folder: pathlib.Path) -> None:
    """Draws whatever there are figures for."""
    results = read_json(folder / "results.json")
    if "methods" in results:
        found = averaged(results["methods"]["seeds"])
        save_figure(speed_accuracy(found), folder / "figure3.png")
        save_figure(recursion(found), folder / "figure4.png")
        save_figure(periods(found), folder / "figure6.png")
    if "share" in results:
        save_figure(shares(averaged(results["share"]["seeds"])), folder / "figure5.png")
    if "oracle" in results:
        save_figure(schedules(averaged(results["oracle"]["seeds"])), folder / "figure7.png")
    if "adaptive" in results:
        save_figure(
            against_keys(averaged(results["adaptive"]["seeds"])), folder / "adaptive_keys.png"
        )
    if "agreement" in results:
        save_figure(agreement(results["agreement"]["seeds"]["0"]), folder / "agreement.png")
    if "pan" in results:
        save_figure(pan(averaged(results["pan"]["seeds"])), folder / "panning.png")


def averaged(seeds: Mapping[str, Figures]) -> dict[str, dict[str, Any]]:
    """The mean over seeds of every figure, with `map_seeds`, that of each."""
    result: dict[str, dict[str, Any]] = {}
    for name in next(iter(seeds.values())):
        rows = [found[name] for found in seeds.values() if name in found]
        result[name] = {
            key: np.mean([row[key] for row in rows], axis=0).tolist() for key in rows[0]
        } | {"map_seeds": [row["map"] for row in rows]}
    return result


def family(name: str) -> str:
    """The method that a row is a setting of: what comes before its setting."""
    for known in sorted(COLORS, key=len, reverse=True):
        if name.startswith(known):
            return known
    return name


def lines(found: Figures, families: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """Settings of each method, those of other options left out."""
    chosen: dict[str, list[Mapping[str, Any]]] = {name: [] for name in families}
    for name, row in found.items():
        if family(name) in chosen and "propagating" not in name and "geometry" not in name:
            chosen[family(name)].append(row | {"setting": name.split()[-1]})
    return {name: rows for name, rows in chosen.items() if rows}


def _against(
    axis: Any, chosen: Mapping[str, Sequence[Mapping[str, Any]]], x: str, *, percent: bool = False
) -> None:
    """MAP over one of the figures, a line a method, settings written beside."""
    for name, rows in chosen.items():
        rows = sorted(rows, key=lambda row: row[x])
        across = [(100 if percent else 1) * row[x] for row in rows]
        axis.plot(
            across, [row["map"] for row in rows],
            "D" if len(rows) == 1 else "s--" if "tau" in name else "o-",
            color=COLORS[name], label=name, markersize=4,
        )  # fmt: skip
        if len(rows) > 1:
            for place, row in zip(across, rows, strict=True):
                axis.annotate(
                    row["setting"], (place, row["map"]), fontsize=7, color=COLORS[name],
                    xytext=(3, 3), textcoords="offset points",
                )  # fmt: skip
    axis.set_ylabel("mAP, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def speed_accuracy(found: Figures) -> Figure:
    """All methods: mAP against speed, and against multiply-accumulates."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    families = ("per-frame", "FGFA", "DFF", "c1", "c2", "c2 of tau", "c3", "c3 of tau")
    chosen = lines(found, families)
    _against(left, chosen, "speedup")
    left.set(xlabel="times as fast as per-frame", xscale="log")
    _against(right, chosen, "macs")
    right.set(xlabel="multiply-accumulates, of per-frame", xscale="log")
    for axis in (left, right):
        axis.axhline(found["per-frame"]["map"], color="#bbbbbb", linewidth=0.8)
        axis.xaxis.set_major_locator(FixedLocator([0.2, 0.5, 1, 2, 4]))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    return figure


def recursion(found: Figures) -> Figure:
    """Recursive aggregation beside aggregation of two key frames, and none."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axis = figure.subplots()
    _against(axis, lines(found, ("DFF", "c1 without recursion", "c1")), "speedup")
    axis.set(xlabel="times as fast as per-frame (l written beside)")
    return figure


def shares(found: Figures) -> Figure:
    """How much is updated, and what it brings."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axis = figure.subplots()
    _against(axis, lines(found, ("per-frame", "c2")), "speedup")
    axis.set(xlabel="times as fast as per-frame (tau written beside)")
    return figure


def periods(found: Figures) -> Figure:
    """MAP against l, by how fast objects move."""
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    for axis, kind in zip(
        figure.subplots(1, 3, sharex=True), ("slow", "medium", "fast"), strict=True
    ):
        for name in ("DFF", "c1", "c2"):
            rows = lines(found, (name,))[name]
            axis.plot(
                [float(row["setting"]) for row in rows], [row[kind] for row in rows], "o-",
                color=COLORS[name], label=name, markersize=4,
            )  # fmt: skip
        for name, style in (("per-frame", "--"), ("FGFA", ":")):
            axis.axhline(found[name][kind], color=COLORS[name], linestyle=style, label=name)
        axis.set(title=f"{kind} objects", xlabel="l", ylabel="mAP, %")
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def schedules(found: Figures) -> Figure:
    """Gamma, and the oracle: mAP against key frames."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axis = figure.subplots()
    _against(axis, lines(found, ("per-frame", "c3", "oracle")), "keys", percent=True)
    axis.set(xlabel="key frames, % (gamma or margin written beside)")
    return figure


def against_keys(found: Figures) -> Figure:
    """MAP against key frames: fixed and adaptive."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    chosen = lines(found, ("c2", "c2 of tau", "c3", "c3 of tau"))
    for axis, x, label in (
        (left, "keys", "key frames, %"),
        (right, "macs", "MACs, % of per-frame"),
    ):
        _against(axis, chosen, x, percent=True)
        axis.axhline(found["per-frame"]["map"], color="#bbbbbb", linewidth=0.8)
        axis.set(xlabel=label)
    return figure


def pan(found: Figures) -> Figure:
    """MAP against speed on a panning camera."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axis = figure.subplots()
    families = ("per-frame", "c3", "c3 by residual", "dynvid.incremental", "refreshing")
    _against(axis, lines(found, families), "speedup")
    axis.set(xlabel="times as fast as per-frame")
    return figure


def agreement(videos: Mapping[str, Figures]) -> Figure:
    """F1 against speed on real frames."""
    kinds = (
        "per-frame",
        "DFF",
        "adaptive keys",
        "partial update, SPyNet",
        "partial update, shipped",
    )
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    for axis, (video, found) in zip(figure.subplots(1, len(videos)), videos.items(), strict=True):
        for kind, color in zip(
            kinds, ("k", "#e69f00", "#0072b2", "#d55e00", "#009e73"), strict=True
        ):
            rows = [row for name, row in found.items() if name.startswith(kind)]
            axis.plot(
                [row["speedup"] for row in rows], [row["f1"] for row in rows], "o-", color=color,
                label=kind, markersize=4,
            )  # fmt: skip
        axis.axvline(1, color="#bbbbbb", linewidth=0.8)
        axis.set(title=video, xlabel="times as fast as per-frame", ylabel="F1", ylim=(0.3, 1.03))
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def draw_areas(
    contestant: Contestant,
    clips: Clips,
    path: pathlib.Path,
    *,
    times: Sequence[int] = (2, 4, 6, 8, 10),
) -> dict[str, Any]:
    """Frames with what is computed anew in red, the boxes found and arrows of the motion."""
    figure = Figure(figsize=(2.3 * len(times), 2.45 * clips.frames.shape[1]), layout="constrained")
    grid = figure.subplots(clips.frames.shape[1], len(times), squeeze=False)
    shares: dict[str, Any] = {}
    for i, row in enumerate(grid):
        state, _ = contestant.start(jnp.asarray(clips.frames[:1, i]))
        for t in range(1, max(times) + 1):
            frame = clips.frames[t, i]
            state, found = stepper(contestant.video)(
                contestant.params, state, jnp.asarray(frame)[None]
            )
            if t not in times:
                continue
            details = state.work.details
            key, update = bool(details["key"][0]), np.asarray(details["update_mask"][0])
            axis = row[times.index(t)]
            axis.imshow(frame)
            if not key:
                axis.imshow(
                    np.ones((*update.shape, 3)) * (1, 0, 0), alpha=0.45 * update,
                    extent=(0, frame.shape[1], frame.shape[0], 0), interpolation="nearest",
                )  # fmt: skip
                _arrows(axis, np.asarray(details["motion"][0]), frame.shape[1] / update.shape[1])
            boxes, scores, classes, valid = (np.asarray(x[0]) for x in found)
            for box, index in zip(
                boxes[valid & (scores > SCORE)], classes[valid & (scores > SCORE)], strict=True
            ):
                x0, y0, x1, y1 = box
                axis.add_patch(
                    Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="yellow", lw=1)
                )
                axis.text(x0 + 2, y0 - 3, CLASS_NAMES[index], color="yellow", fontsize=5)
            axis.set_title("key frame" if key else f"{100 * update.mean():.0f}% anew", fontsize=8)
            axis.set_axis_off()
            shares[f"clip {i}, frame {t}"] = 1.0 if key else round(float(update.mean()), 3)
    save_figure(figure, path)
    return shares


def _arrows(axis: Any, motion: np.ndarray, stride: float, *, every: int = 2) -> None:
    """Where each position came from."""
    rows, columns = (np.arange(every // 2, n, every) for n in motion.shape[:2])
    some = motion[np.ix_(rows, columns)] * stride
    x, y = np.meshgrid((columns + 0.5) * stride, (rows + 0.5) * stride)
    axis.quiver(
        x, y, some[..., 0], some[..., 1], angles="xy", scale_units="xy", scale=1, color="cyan",
        width=0.006,
    )  # fmt: skip
