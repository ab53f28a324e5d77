"""Average precision and work against theta: Figure 4 of the paper."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.bench.accuracy import drawn_truth, judge
from experiments.bench.videos import pets
from experiments.dyncnn.pets.evaluate import Contest, score_agreement

THETAS = (0, 2, 5, 10, 15, 20, 30, 40, 50)
"""Of 255."""

STYLES = {
    "pixel": "o-", "cell": "s-", "continuous": "D-", "transformation": "^--", "with refresh": "v-",
}  # fmt: skip
"""How each scheme is drawn."""


def measure(contest: Contest, folder: pathlib.Path) -> dict[str, Any]:
    """Runs every scheme with every theta over PETS."""
    clip = pets(contest.detector.size)
    truth, dense = drawn_truth(clip), contest.dense(clip)
    rows = []
    for scheme in contest.schemes:
        for theta in THETAS:
            found = contest.run(clip, scheme, theta)
            row = {"scheme": scheme, "theta": theta, "macs": float(np.mean(found.macs))}
            row["changed"] = float(np.mean(found.changed))
            row |= judge(found.detections, truth)["person"]
            row["score_agreement"] = score_agreement(dense.scores[..., 0], found.scores[..., 0])
            rows.append(row)
    result = {"frames": len(clip.frames), "dense": judge(dense.detections, truth)["person"]}
    result["rows"] = rows
    _plot(result, contest.detector.name, folder / "theta.png")
    return result


def _plot(result: dict[str, Any], name: str, path: pathlib.Path) -> None:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for scheme, style in STYLES.items():
        rows = [row for row in result["rows"] if row["scheme"] == scheme]
        thetas = [row["theta"] for row in rows]
        ap, macs = [row["ap50"] for row in rows], [100 * row["macs"] for row in rows]
        left.plot(thetas, ap, style, label=scheme, markersize=4)
        middle.plot(thetas, macs, style, markersize=4)
        right.plot(macs, ap, style, markersize=4)
    for axes in (left, right):
        axes.axhline(result["dense"]["ap50"], color="grey", linewidth=1, label="dense")
        axes.set_ylabel("person AP50, %")
    left.set(xlabel="theta (of 255)", title=f"{name}, PETS")
    middle.set(xlabel="theta (of 255)", ylabel="multiply-accumulates, % of dense")
    right.set(xlabel="multiply-accumulates, % of dense")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    middle.set_ylim(0, None)
    right.set_xlim(0, None)
    left.legend(fontsize=8)
    figure.savefig(path, dpi=90)
