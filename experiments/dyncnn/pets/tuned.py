"""Theta and a truncation for each layer, tuned on some frames and judged on others."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import dynvid
from dynvid.incremental.tune import Trial, Tuning, tune
from dynvid.metrics.pseudo_ground_truth import GroundTruth
from dynvid.models.detection import Detections
from experiments.dyncnn.pets.evaluate import (
    TRUNCATION,
    Contest,
    Detector,
    drawn_truth,
    judge,
    score_agreement,
)
from experiments.dyncnn.pets.videos import pets
from experiments.incremental_speed.run import console

CALIBRATION = 50
"""How many frames of PETS are tuned on: the first ones. The rest is held out."""

THRESHOLDS = (10, 15, 20)
"""Of 255."""

TRUNCATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.8)
"""To choose from, relative to a layer's root mean square."""

LOSS = 0.2
"""Points of AP50 that may be lost against the boxes drawn on the calibration frames."""

TRIALS = 192
"""How many settings are tried."""

SETTINGS = pathlib.Path(__file__).parent / "settings.json"
"""What was chosen for YOLOv5n: theta of 255, and the truncations by layer."""


def load_settings(detector: Detector) -> dict[str, Any]:
    """The tuned settings of a detector, or the same truncation for all layers where it has none."""
    if SETTINGS.exists():
        settings = json.loads(SETTINGS.read_text())
        if settings["detector"] == detector.name:
            return settings
    return {
        "detector": detector.name, "name": f"{TRUNCATION} in all layers", "threshold": 15,
        "truncation": TRUNCATION,
    }  # fmt: skip


class Calibration:
    """The frames to tune on, and a metric that notes AP50 beside the agreement that it returns.

    Attributes:
      aps: Person AP50 of each trial against the drawn boxes, in the order of the trials.
    """

    def __init__(self, detector: Detector, frames: list[np.ndarray], truth: GroundTruth, scale):
        self.detector, self.frames, self.truth, self.scale = detector, frames, truth, scale
        self.aps: list[float] = []

    def fn(self, params: Any, frames: jax.Array) -> tuple[Detections, jax.Array]:
        """The detections and how likely each place is to hold a person."""
        detections, scores = self.detector.detect(self.detector.fn(params, frames))
        return detections, scores[..., 0]

    def metric(self, expected: Any, found: Any) -> float:
        """The agreement of the score maps with dense."""
        detections = Detections(*(x[:, 0] for x in found[0]))
        detections = detections._replace(boxes=detections.boxes * self.scale)
        self.aps.append(judge(detections, self.truth)["person"]["ap50"])
        return score_agreement(expected[1], found[1])

    def tune(self, target: float, thresholds: tuple[int, ...], trials: int) -> Tuning:
        """Tunes on the frames."""
        self.aps = []
        return tune(
            self.fn, self.detector.params, self.frames, target=target, metric=self.metric,
            thresholds=thresholds, truncations=TRUNCATIONS, trials=trials,
        )  # fmt: skip


def choose_target(walk: list[tuple[Trial, float]]) -> tuple[float, float]:
    """The agreement to tune for: one step before average precision falls for good.

    On so few frames AP50 scatters by more than a point between settings that agree with dense
    equally well, so that the first loss says little; the step back is the margin.

    Args:
      walk: One truncation for all layers, rising, with AP50; the exact setting first.

    Returns:
      The truncation and the agreement.
    """
    dense = walk[0][1]
    last = max(i for i, (_, ap) in enumerate(walk) if ap >= dense - LOSS)
    trial, _ = walk[max(last - 1, 0)]
    return max(trial.truncation.values(), default=0.0), trial.agreement


def measure(contest: Contest, folder: pathlib.Path) -> dict[str, Any]:
    """Tunes, and judges on all frames and on those that were held out."""
    detector = contest.detector
    clip = pets(detector.size)
    truth = drawn_truth(clip)
    first = GroundTruth(*(np.asarray(x)[:CALIBRATION] for x in truth))
    calibration = Calibration(detector, clip.frames[:CALIBRATION], first, clip.scale)

    walk = calibration.tune(-100.0, (15,), 1 + len(TRUNCATIONS))
    uniform = list(zip(walk.curve, calibration.aps, strict=True))
    truncation, target = choose_target(uniform)
    console.print(f"one truncation for all: {truncation}, agreement {target:.2f}%")
    tuning = calibration.tune(target, THRESHOLDS, TRIALS)
    tried = list(zip(tuning.curve, calibration.aps, strict=True))
    settings = {
        "detector": detector.name,
        "name": f"tuned on the first {CALIBRATION} frames of PETS",
        "threshold": tuning.threshold,
        "truncation": dict(tuning.truncation),
    }
    SETTINGS.write_text(json.dumps(settings, indent=1) + "\n")

    dense = contest.dense(clip)
    held_out = slice(CALIBRATION, None)
    rows: list[dict[str, Any]] = []

    def add(name: str, found: Any) -> None:
        rows.append(
            {
                "name": name,
                "ap50": judge(found.detections, truth)["person"]["ap50"],
                "ap50_held_out": judge(found.detections, truth, held_out)["person"]["ap50"],
                "score_agreement": score_agreement(dense.scores[..., 0], found.scores[..., 0]),
            }
        )
        if found is not dense:
            rows[-1]["macs"] = float(np.mean(found.macs))
            rows[-1]["macs_held_out"] = float(np.mean(found.macs[CALIBRATION - 1 :]))

    add("dense", dense)
    add("continuous, theta 20", contest.run(clip, "continuous", 20))
    for tau in dict.fromkeys((TRUNCATION, truncation)):
        video = dynvid.incremental(detector.fn, truncation=tau)
        add(f"{tau} in all layers, theta 15", contest.run(clip, video, 15))
    video = dynvid.incremental(detector.fn, truncation=settings["truncation"])
    add(f"tuned, theta {tuning.threshold:g}", contest.run(clip, video, tuning.threshold))

    def summary(pairs: list[tuple[Trial, float]]) -> list[dict[str, float | bool]]:
        return [
            {
                "threshold": trial.threshold,
                "agreement": trial.agreement,
                "macs": trial.mac_fraction,
                "ap50": ap,
                "accepted": trial.accepted,
            }
            for trial, ap in pairs
        ]

    result = {
        "calibration_frames": CALIBRATION,
        "target": target,
        "settings": settings,
        "rows": rows,
        "uniform": summary(uniform),
        "tried": summary(tried),
    }
    _plot(result, folder / "tuned.png")
    return result


def _plot(result: dict[str, Any], path: pathlib.Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    tried = result["tried"]
    accepted = [trial for trial in tried if trial["accepted"]]
    for axes, key in ((left, "agreement"), (right, "ap50")):

        def column(trials: list[dict[str, Any]], name: str) -> list[float]:
            return [100 * trial[name] if name == "macs" else trial[name] for trial in trials]

        axes.plot(column(tried, "macs"), column(tried, key), ".", color="silver", label="tried")
        axes.plot(column(accepted, "macs"), column(accepted, key), "o-", label="accepted")
        one = result["uniform"][1:]
        axes.plot(column(one, "macs"), column(one, key), "s--", label="one for all", markersize=4)
        axes.set(xlabel="multiply-accumulates, % of dense", xlim=(8, 30))
        axes.grid(alpha=0.3)
    left.axhline(result["target"], color="grey", linewidth=1, label="target")
    left.set(ylabel="agreement of score maps, %", ylim=(result["target"] - 15, 100))
    right.axhline(result["uniform"][0]["ap50"], color="grey", linewidth=1, label="dense")
    right.set(ylabel="person AP50 on the calibration frames, %")
    low = result["uniform"][0]["ap50"]
    right.set_ylim(low - 8, low + 3)
    left.legend(fontsize=8)
    figure.savefig(path, dpi=90)
