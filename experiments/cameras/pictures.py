"""One table, one plot."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.bench.figures import save_figure
from experiments.cameras.clips import DISTURBANCES
from experiments.cameras.measure import MODELS

_COLORS = dict(zip(MODELS, ("#0072b2", "#d55e00", "#009e73"), strict=True))
_MARKERS = dict(zip(DISTURBANCES, "os^v<>DdPX", strict=True))

Run = dict[str, Any]


def table(runs: list[Run]) -> str:
    """A row a run, in Markdown."""
    rows = [
        "| model | clip | | F1 | ceiling | worst 100 frames (ceiling) | sure misses | sure ghosts "
        "| oldest ghost | AP50 (dense) | MACs | time |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        truth = f"{run['ap50']:.1f} ({run['ap50_dense']:.1f})" if "ap50" in run else ""
        ceiling = run["ceiling"]
        clock = f"{run['time_ratio']:.2f}" if "time_ratio" in run else ""
        cells = [
            run["model"], run["camera"], run["disturbance"], f"{run['f1']:.3f}",
            f"{ceiling['f1']:.3f}", f"{run['worst_window']:.3f} ({ceiling['worst_window']:.3f})",
            f"{run['misses']:.1%}", f"{run['ghosts']:.1%}", str(run["oldest_ghost"]), truth,
            f"{run['mac_fraction']:.3f}", clock,
        ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def totals(runs: list[Run]) -> dict[str, Any]:
    """What the targets are about: the mean of the work, and the worst of everything else."""
    gaps = {f"{r['model']} {r['camera']} {r['disturbance']}": r["ceiling"]["f1"] - r["f1"]
            for r in runs}  # fmt: skip
    found: dict[str, Any] = {
        "runs": len(runs),
        "mean_mac_fraction": _mean(runs, "mac_fraction"),
        "mean_f1": _mean(runs, "f1"),
        "mean_gap_to_ceiling": round(float(np.mean(list(gaps.values()))), 4),
        "worst_gap_to_ceiling": [round(max(gaps.values()), 4), max(gaps, key=gaps.__getitem__)],
        "runs_within_0.03": sum(gap <= 0.03 for gap in gaps.values()),
        "worst_misses": max(run["misses"] for run in runs),
        "worst_ghosts": max(run["ghosts"] for run in runs),
        "old_ghosts": sum(run["old_ghosts"] for run in runs),
        "oldest_ghost": max(run["oldest_ghost"] for run in runs),
    }
    if all("time_ratio" in run for run in runs):
        found["worst_time_ratio"] = max(run["time_ratio"] for run in runs)
    return found


def _mean(runs: list[Run], key: str) -> float:
    return round(float(np.mean([run[key] for run in runs])), 4)


def plot(runs: list[Run], path: pathlib.Path, *, beside: list[Run]) -> None:
    """F1 against arithmetic, a panel a camera, with the ceiling.

    Args:
      runs: To be drawn full.
      path: The picture.
      beside: Of other settings, to be drawn hollow.
    """
    cameras = list(dict.fromkeys(run["camera"] for run in runs))
    columns = min(4, len(cameras))
    rows = -(-len(cameras) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.6, 2.9 * rows + 0.8), layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False))
    every = [*runs, *beside]
    lowest = min(min(run["f1"], run["ceiling"]["f1"]) for run in every)
    widest = max(run["mac_fraction"] for run in every)
    for panel, camera in zip(panels, cameras, strict=False):
        for run in (run for run in runs if run["camera"] == camera):
            color, ceiling = _COLORS[run["model"]], run["ceiling"]["f1"]
            across = run["mac_fraction"]
            panel.plot([across, across], [run["f1"], ceiling], color=color, linewidth=1, alpha=0.5)
            panel.plot(across, ceiling, "_", color=color, markersize=9, markeredgewidth=1.5)
            marker = _MARKERS[run["disturbance"]]
            panel.plot(across, run["f1"], marker, color=color, markersize=5)
        for run in (run for run in beside if run["camera"] == camera):
            color, marker = _COLORS[run["model"]], _MARKERS[run["disturbance"]]
            panel.plot(run["mac_fraction"], run["f1"], marker, color=color, mfc="none")
        panel.set_title(camera, fontsize=10)
        panel.grid(alpha=0.3, linewidth=0.6)
    for panel in panels[len(cameras) :]:
        panel.set_axis_off()
    panels[0].set(ylim=(max(0, lowest - 0.05), 1.005), xlim=(0, max(0.5, 1.08 * widest)))
    panels[0].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.supxlabel("multiply-accumulates, of dense", fontsize=10)
    figure.supylabel("F1 against dense, same frame", fontsize=10)
    handles = [
        *(panels[0].plot([], [], "s", color=_COLORS[m], label=m)[0]
          for m in dict.fromkeys(run["model"] for run in runs)),
        *(panels[0].plot([], [], _MARKERS[d], color="grey", label=d)[0]
          for d in dict.fromkeys(run["disturbance"] for run in runs)),
        panels[0].plot([], [], "_", color="grey", markersize=9, label="ceiling")[0],
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=7, fontsize=8, frameon=False)
    save_figure(figure, path)
