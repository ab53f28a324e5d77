"""The plots, from results.json."""

import pathlib
from typing import Any

from matplotlib.figure import Figure

from experiments.bench.figures import save_figure
from experiments.bench.results import read_json

COLORS = {
    "decision_network": "#0072b2",
    "flow_magnitude": "#009e73",
    "fixed_period": "#e69f00",
    "frame_difference": "#d55e00",
}
# DeepLab-Fast with FlowNet2-s on Cityscapes (the paper's Table 1): t, speed-up, points lost.
PAPER = ((92, 19.8 / 5.6, 73.5 - 70.4), (86, 30.4 / 5.6, 73.5 - 63.2))


def main(folder: pathlib.Path) -> None:
    """Draws whatever there are figures for."""
    results = read_json(folder / "results.json")
    if "figure8" in results:
        save_figure(speed_accuracy(results["figure8"]), folder / "figure8.png")
    if "figure9" in results:
        save_figure(policies(results["figure9"]), folder / "figure9.png")
    if "figure10" in results:
        save_figure(overlaps(results["figure10"]), folder / "figure10.png")


def _grid(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2 * count, 4.2), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def speed_accuracy(figures: dict[str, Any]) -> Figure:
    """mIoU lost against speed-up as t falls, with the paper's two points."""
    figure, axes = _grid(len(figures))
    for axis, (name, found) in zip(axes, figures.items(), strict=True):
        rows = sorted(found["rows"], key=lambda row: row["threshold"])
        axis.plot(
            [row["speedup"] for row in rows], [row["miou_lost"] for row in rows], "o-",
            color=COLORS["decision_network"], label="measured, t written beside", markersize=4,
        )  # fmt: skip
        for row in rows[::2]:
            axis.annotate(
                f"{row['threshold']:g}", (row["speedup"], row["miou_lost"]), fontsize=8,
                xytext=(4, 4), textcoords="offset points",
            )  # fmt: skip
        axis.plot(
            [x for _, x, _ in PAPER], [y for _, _, y in PAPER], "s", color="#555555",
            label="paper: DeepLab-Fast, Cityscapes",
        )  # fmt: skip
        axis.axhline(0, color="#bbbbbb", linewidth=0.8)
        axis.invert_yaxis()
        axis.set(title=name, xlabel="times as fast as frame by frame", ylabel="points of mIoU lost")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    return figure


def policies(figures: dict[str, Any]) -> Figure:
    """mIoU lost against the share of regions segmented, for each policy."""
    figure, axes = _grid(len(figures))
    for axis, (name, found) in zip(axes, figures.items(), strict=True):
        for policy, rows in found.items():
            rows = sorted(rows, key=lambda row: row["segmented_share"])
            axis.plot(
                [100 * row["segmented_share"] for row in rows],
                [row["miou_lost"] for row in rows],
                "o-", color=COLORS[policy], label=policy.replace("_", " "), markersize=4,
            )  # fmt: skip
        axis.invert_yaxis()
        axis.set(title=name, xlabel="regions segmented, %", ylabel="points of mIoU lost")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    return figure


def overlaps(figures: dict[str, Any]) -> Figure:
    """mIoU against the overlap, with all regions segmented and at one t."""
    figure, axes = _grid(len(figures))
    for axis, (name, found) in zip(axes, figures.items(), strict=True):
        x = [int(overlap) for overlap in found]
        for key, label in (("miou_all_segmented", "all segmented"), ("miou", "t = 92")):
            axis.plot(x, [row[key] for row in found.values()], "o-", label=label)
        axis.set(title=name, xlabel="overlap, pixels beyond a cut", ylabel="mIoU, points")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    return figure
