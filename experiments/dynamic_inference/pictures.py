"""Pictures of where clips stop."""

import pathlib
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from dynvid.data.action_clips import action_clips
from dynvid.models.actions import CLASS_NAMES
from experiments.bench.figures import save_figure
from experiments.dynamic_inference.train import JOINT

_SHADES = ("#9ecae1", "#4292c6", "#08519c", "#fdd0a2", "#fd8d3c", "#a63603")


def draw_exits_by_class(shares: np.ndarray, path: pathlib.Path) -> None:
    """A bar a class, `(classes, checkpoints)`: which share stops at which checkpoint."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(shares))
    for k, node in enumerate(JOINT.checkpoints):
        label = f"group {node[0]}, depth {node[1]}"
        axes.barh(range(len(shares)), shares[:, k], left=left, color=_SHADES[k], label=label)
        left += shares[:, k]
    axes.set_yticks(range(len(shares)), CLASS_NAMES)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of clips that stop there (threshold 0.9)")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    save_figure(figure, path)


def draw_curves(results: dict[str, Any], path: pathlib.Path) -> None:
    """Accuracy against average MACs of every scheme, one shared threshold, mean over seeds."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for color, (name, seeds) in zip(_COLORS, results.items(), strict=True):
        budgets = np.linspace(0.24, 1, 39)
        curves = []
        for seed in seeds:
            macs, accuracy = np.array(sorted(map(tuple, seed["curve"]))).T
            curves.append(np.interp(budgets, macs, accuracy, left=np.nan))
        style = "--" if "no permutation" in name else "-"
        axes.plot(budgets, np.mean(curves, 0), style, color=color, label=name)
    full = np.mean([seed["full"] for seed in results["joint"]])
    axes.axhline(full, color="0.6", lw=1)
    axes.set_xlabel("multiply-accumulates, of full inference")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(85, 98)
    axes.legend(frameon=False)
    save_figure(figure, path)


_COLORS = ("#d55e00", "#0072b2", "#009e73", "#d55e00", "#009e73")


def draw_extremes(
    exits: np.ndarray, labels: np.ndarray, key: jax.Array, path: pathlib.Path, *, each: int = 4
) -> None:
    """Every second frame of clips that stop first, and of clips that go to the end."""
    chosen = [*np.flatnonzero(exits == 0)[:each], *np.flatnonzero(exits == exits.max())[:each]]
    figure = Figure(figsize=(8, 0.95 * len(chosen)), layout="constrained")
    all_axes = figure.subplots(len(chosen), 1)
    for axes, index in zip(all_axes, chosen, strict=True):
        # As `logits_of` draws them: fifty at a time.
        clips = action_clips(jax.random.fold_in(key, int(index) // 50), count=50)
        frames = np.asarray(clips.frames[int(index) % 50, ::2])
        axes.imshow(np.concatenate(list(frames), axis=1))
        axes.set_axis_off()
        node = JOINT.checkpoints[exits[index]]
        axes.set_title(
            f"{CLASS_NAMES[labels[index]]}: group {node[0]}, depth {node[1]}",
            fontsize=8,
            loc="left",
        )
    save_figure(figure, path)
