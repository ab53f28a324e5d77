"""Detections dense and dynamic side by side, and the change masks at three depths of the network.

A mask shows what the layers after it have to look at: by geometry alone, every position that a
changed pixel reaches; with refresh, the positions of the cache that were replaced.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

import dynvid
from dynvid.graph.trace import Value
from dynvid.incremental.execute import Runner
from dynvid.incremental.plan import Plan
from dynvid.incremental.state import State, interior
from dynvid.incremental.transform import plan_for
from dynvid.ops.boxes import Detections
from dynvid.ops.difference import changed_pixels
from dynvid.video.draw import draw_boxes, overlay_mask
from experiments.bench import console
from experiments.bench.accuracy import CLASSES, SCORE
from experiments.bench.figures import save_figure
from experiments.bench.videos import pets
from experiments.dyncnn.pets.evaluate import Contest, agreement
from experiments.dyncnn.pets.tuned import load_settings

FRAMES = (60, 130, 200)
"""Which frames are shown, counted from 0."""

STRIDES = (2, 8, 32)
"""The depths: pixels of the frame to a position of the map."""


def measure(contest: Contest, folder: pathlib.Path) -> dict[str, Any]:
    """Draws the pictures; returns how much of each map was marked."""
    detector, settings = contest.detector, load_settings(contest.detector)
    clip = pets(detector.size, most=max(FRAMES) + 1)
    video = dynvid.incremental(detector.fn, truncation=settings["truncation"])
    dense = contest.dense(clip)
    found = contest.run(clip, video, settings["threshold"])

    params, plan = detector.params, plan_for(detector.fn, detector.params, clip.frames[0])
    levels = {stride: _first_map(plan, stride) for stride in STRIDES}
    step = jax.jit(video.step)
    state, _ = video.init(params, clip.frames[0])
    rows = []
    shown = track(clip.frames[1:], "masks", console=console, transient=True)
    for index, frame in enumerate(shown, 1):
        old, changed = (
            state,
            changed_pixels(frame, state.reference, threshold=settings["threshold"]),
        )
        state, _ = step(params, old, frame, changed)
        if index in FRAMES:
            geometry = _by_geometry(plan, params, changed, levels)
            refresh = {
                stride: _replaced(old, state, plan.kept.index(value))
                for stride, value in levels.items()
            }
            for stride in STRIDES:
                parts = (("geometry", geometry[stride]), ("refresh", refresh[stride]))
                level = {"frame": index, "level": f"stride {stride}"}
                rows.append(level | {name: float(mask.mean()) for name, mask in parts})
            _draw_masks(frame[0], geometry, refresh, folder / f"masks_{index}.png")
            pair = [jax.tree.map(lambda x, i=index: x[i], x.detections) for x in (dense, found)]
            _draw_pair(frame[0], pair, clip.scale, folder / f"detections_{index}.png")
    return {"settings": settings["name"], "agreement": agreement(dense, found), "masks": rows}


def _first_map(plan: Plan, stride: int) -> Value:
    """The first kept map of a stride, in the order of execution."""
    height = plan.graph.frames.shape[1]
    return next(
        value
        for value in plan.kept
        if (layout := plan.layouts.get(value)) and value.shape[layout.row] * stride == height
    )


def _by_geometry(
    plan: Plan, params: Any, changed: jax.Array, levels: dict[int, Value]
) -> dict[int, np.ndarray]:
    """Where changed pixels reach, with nothing held back on the way."""
    runner = Runner(plan, params)
    runner.change[plan.graph.frames] = changed
    return {stride: np.asarray(runner.mask(value))[0] for stride, value in levels.items()}


def _replaced(old: State, new: State, cache: int) -> np.ndarray:
    """Which positions of a cache differ between two states."""
    halo = new.halos[cache + 1]
    assert halo is not None
    differs = jnp.any(old.caches[cache] != new.caches[cache], axis=-1)
    return np.asarray(interior(differs, halo))[0]


def _grey(frame: np.ndarray) -> np.ndarray:
    return np.repeat(frame.mean(-1, keepdims=True).astype(np.uint8), 3, -1)


def _draw_pair(
    frame: np.ndarray, pair: list[Detections], scale: np.ndarray, path: pathlib.Path
) -> None:
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    for axes, name, found in zip(figure.subplots(1, 2), ("dense", "dynamic"), pair, strict=True):
        kept = np.asarray(found.valid & (found.scores >= SCORE))
        labels = [f"{score:.2f}" for score in found.scores[kept]]
        picture = draw_boxes(
            _grey(frame), found.boxes[kept] / scale, labels=labels, classes=found.classes[kept]
        )
        axes.imshow(picture)
        counted = [f"{np.sum(found.classes[kept] == i)} {label}" for i, label in enumerate(CLASSES)]
        axes.set_title(f"{name}: {', '.join(counted)}", fontsize=10)
        axes.set_axis_off()
    save_figure(figure, path)


def _draw_masks(
    frame: np.ndarray,
    geometry: dict[int, np.ndarray],
    refresh: dict[int, np.ndarray],
    path: pathlib.Path,
) -> None:
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    for row, (name, masks) in zip(
        figure.subplots(2, 3), (("geometry only", geometry), ("with refresh", refresh)), strict=True
    ):
        for axes, (stride, mask) in zip(row, masks.items(), strict=True):
            axes.imshow(overlay_mask(_grey(frame), mask))
            axes.set_title(f"{name}, stride {stride}: {mask.mean():.1%}", fontsize=10)
            axes.set_axis_off()
    save_figure(figure, path)
