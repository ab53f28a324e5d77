"""Theta and a truncation for each layer, tuned on some frames and judged on others."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import dynvid
from dynvid.incremental.tune import Trial, Tuning, tune
from dynvid.types import Agreement, VideoFunction
from experiments.bench import console
from experiments.bench.accuracy import drawn_truth, judge
from experiments.bench.results import read_json, write_json
from experiments.bench.videos import Clip, pets, tud
from experiments.dyncnn.pets.evaluate import TRUNCATION, Contest, Detector, Found, score_agreement

CALIBRATION = 50
"""How many frames of PETS are tuned on: the first ones. The rest is held out."""

THRESHOLDS = (10, 15, 20)
"""Of 255."""

TRUNCATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.8)
"""To choose from, relative to a layer's root mean square."""

SCALES = (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.45, 1.5)
"""What all truncations together may be multiplied by in the end."""

LOSS = 0.2
"""Points of AP50 that may be lost against the boxes drawn on the calibration frames."""

TRIALS = 256
"""How many settings are tried."""

SETTINGS = pathlib.Path(__file__).parent / "settings.json"
"""What was chosen for YOLOv5n: theta of 255, and the truncations by layer."""


def load_settings(detector: Detector) -> dict[str, Any]:
    """The tuned settings of a detector, or the same truncation for all layers where it has none."""
    settings = read_json(SETTINGS)
    if settings.get("detector") == detector.name:
        return settings
    return {
        "detector": detector.name, "name": f"{TRUNCATION} in all layers", "threshold": 15,
        "truncation": TRUNCATION,
    }  # fmt: skip


class Calibration:
    """The frames to tune on, and what their AP50 is with any settings.

    Args:
      contest: What runs them.
      clip: The frames, with ground truth.
    """

    def __init__(self, contest: Contest, clip: Clip):
        self.contest, self.clip = contest, clip
        self.truth = drawn_truth(clip)
        self.shape = dynvid.incremental(contest.detector.fn, truncation=1.0)

    def scores(self, params: Any, outputs: Any) -> jax.Array:
        """How likely each place is to hold a person."""
        return self.contest.detector.scores(outputs)[..., 0]

    def metric(self, expected: jax.Array, found: jax.Array) -> Agreement:
        """The agreement of the score maps: `score_agreement` of a frame, as a share.

        Weighted by what it is relative to, so that the mean is that of all frames together.
        """
        larger = jnp.sum(jnp.maximum(expected, found), 1)
        error = jnp.sum(jnp.abs(expected - found), 1)
        return Agreement(1 - error / jnp.maximum(larger, 1e-9), larger)

    def tune(
        self, target: float, thresholds: tuple[int, ...], trials: int
    ) -> tuple[Tuning, list[tuple[Trial, float]]]:
        """Tunes on the frames; the settings, and those that were the best for a while, with AP50.

        Args:
          target: The agreement, in percent.
          thresholds: To choose from.
          trials: How many settings are tried.
        """
        tuning = tune(
            self.contest.detector.fn, self.contest.detector.params, self.clip.frames,
            target=target / 100, decode=self.scores, metric=self.metric, thresholds=thresholds,
            truncations=TRUNCATIONS, trials=trials,
        )  # fmt: skip
        best = (trial for trial in tuning.curve if trial.accepted)
        return tuning, [
            (trial._replace(agreement=100 * trial.agreement), self.ap50(trial)) for trial in best
        ]

    def ap50(self, trial: Trial) -> float:
        """Person AP50 against the drawn boxes."""
        shape = dynvid.incremental(self.contest.detector.fn, truncation=trial.truncation)
        found = self.contest.run(self.clip, shape, trial.threshold)
        return judge(found.detections, self.truth)["person"]["ap50"]

    def walk(self) -> list[tuple[Trial, float]]:
        """One truncation for all layers, rising, with AP50; the exact setting first."""
        dense = self.contest.dense(self.clip)
        found = []
        for tau in (0.0, *TRUNCATIONS):
            run = self.contest.run(self.clip, self.shape, THRESHOLDS[1] if tau else 0, scale=tau)
            near = score_agreement(dense.scores[..., 0], run.scores[..., 0])
            trial = Trial(
                THRESHOLDS[1], {"all": tau}, near, near, float(np.mean(run.macs)),
                len(self.clip.frames), False,
            )  # fmt: skip
            found.append((trial, judge(run.detections, self.truth)["person"]["ap50"]))
        return found


def choose_targets(walk: list[tuple[Trial, float]]) -> tuple[float, float]:
    """The agreements to tune for, from what average precision does on the calibration frames.

    On so few frames AP50 scatters by more than a point between settings that agree with dense
    equally well. So two are taken: where it first falls by more than `LOSS`, and where it falls for
    good, each with the step before it as a margin.

    Args:
      walk: One truncation for all layers, rising, with AP50; the exact setting first.

    Returns:
      The agreement before the first loss, and the one a step before the last setting without.
    """
    kept = [ap >= walk[0][1] - LOSS for _, ap in walk]
    first = kept.index(False) - 1 if False in kept else len(kept) - 1
    last = max(i for i, fine in enumerate(kept) if fine)
    return tuple(walk[i][0].agreement for i in (first, max(last - 1, 0)))  # type: ignore[return-value]


def choose_scale(
    contest: Contest, clip: Clip, dense: Found, video: VideoFunction, target: float
) -> tuple[float, float, list[dict[str, float]]]:
    """Theta, and a factor for all truncations, that take least work and reach the target.

    Returns:
      Both, and all that was tried.
    """
    tried = []
    for theta in THRESHOLDS:
        for scale in SCALES:
            found = contest.run(clip, video, theta, scale=scale)
            near = score_agreement(dense.scores[..., 0], found.scores[..., 0])
            row = {"threshold": float(theta), "scale": scale, "agreement": near}
            tried.append(row | {"macs": float(np.mean(found.macs))})
    reached = [row for row in tried if row["agreement"] >= target] or tried[:1]
    best = min(reached, key=lambda row: row["macs"])
    return best["threshold"], best["scale"], tried


def measure(contest: Contest, folder: pathlib.Path) -> dict[str, Any]:
    """Tunes, and judges on all frames and on those that were held out."""
    detector = contest.detector
    clip = pets(detector.size)
    early = dataclasses.replace(
        clip, frames=clip.frames[:CALIBRATION], truth=(clip.truth or [])[:CALIBRATION]
    )
    calibration = Calibration(contest, early)

    uniform = calibration.walk()
    cautious, target = choose_targets(uniform)
    console.print(f"tuning the layers for an agreement of {cautious:.2f}%")
    tuning, tried = calibration.tune(cautious, THRESHOLDS, TRIALS)
    shape = dynvid.incremental(detector.fn, truncation=tuning.truncation)
    console.print(f"scaling all of them for an agreement of {target:.2f}%")
    theta, scale, scaled = choose_scale(contest, early, contest.dense(early), shape, target)
    settings = {
        "detector": detector.name,
        "name": f"tuned on the first {CALIBRATION} frames of PETS",
        "threshold": theta,
        "truncation": {name: round(scale * tau, 4) for name, tau in tuning.truncation.items()},
    }
    write_json(SETTINGS, settings)

    rows: list[dict[str, Any]] = []
    one = dynvid.incremental(detector.fn, truncation=1.0)
    for video in (clip, tud(detector.size)):
        dense, truth = contest.dense(video), drawn_truth(video)
        held_out = slice(CALIBRATION if video is clip else 0, None)

        def add(name: str, found: Found, *, video=video, dense=dense, truth=truth, part=held_out):
            entry: dict[str, Any] = {"video": video.name, "name": name}
            entry["ap50"] = judge(found.detections, truth)["person"]["ap50"]
            entry["ap50_held_out"] = judge(found.detections, truth, part)["person"]["ap50"]
            entry["score_agreement"] = score_agreement(dense.scores[..., 0], found.scores[..., 0])
            if found is not dense:
                entry["macs"] = float(np.mean(found.macs))
                entry["macs_held_out"] = float(np.mean(found.macs[max(part.start - 1, 0) :]))
            rows.append(entry)

        add("dense", dense)
        add("continuous, theta 20", contest.run(video, "continuous", 20))
        for tau in (0.7, 0.85, 1.0, 1.1):
            add(f"{tau} everywhere, theta 15", contest.run(video, one, 15, scale=tau))
        for factor in sorted({*SCALES[::2], scale}):
            what = f"tuned, x{factor:g}, theta {theta:g}"
            chosen = ", chosen" if factor == scale else ""
            add(what + chosen, contest.run(video, shape, theta, scale=factor))

    result = {
        "calibration_frames": CALIBRATION,
        "cautious_target": cautious,
        "target": target,
        "settings": settings,
        "scale": scale,
        "rows": rows,
        "uniform": _summary(uniform),
        "tried": _summary(tried),
        "scaled": scaled,
    }
    _plot(result, folder / "tuned.png")
    return result


def _summary(pairs: list[tuple[Trial, float]]) -> list[dict[str, float | bool]]:
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


def _plot(result: dict[str, Any], path: pathlib.Path) -> None:
    def draw(axes: Any, rows: list[dict[str, Any]], key: str, style: str, label: str) -> None:
        macs = [100 * row["macs" if key != "ap50_held_out" else "macs_held_out"] for row in rows]
        axes.plot(macs, [row[key] for row in rows], style, label=label, markersize=4)

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    tried, uniform = result["tried"], result["uniform"][1:]
    accepted = [trial for trial in tried if trial["accepted"]]
    for axes, key in ((left, "agreement"), (middle, "ap50")):
        axes.plot([100 * t["macs"] for t in tried], [t[key] for t in tried], ".", color="silver")
        draw(axes, uniform, key, "s--", "one for all layers")
        draw(axes, accepted, key, "o-", "by layer, accepted")
    theta = result["settings"]["threshold"]
    scaled = [row for row in result["scaled"] if row["threshold"] == theta]
    draw(left, scaled, "agreement", "v-", f"by layer, scaled, theta {theta:g}")
    for target in (result["cautious_target"], result["target"]):
        left.axhline(target, color="grey", linewidth=1)
    middle.axhline(result["uniform"][0]["ap50"], color="grey", linewidth=1)

    rows = [row for row in result["rows"] if row["video"] == "PETS"]
    draw(right, [r for r in rows if "everywhere" in r["name"]], "ap50_held_out", "s--", "")
    draw(right, [r for r in rows if "tuned" in r["name"]], "ap50_held_out", "v-", "")
    chosen = [r for r in rows if "chosen" in r["name"]]
    draw(right, chosen, "ap50_held_out", "r*", "chosen")
    right.axhline(rows[0]["ap50_held_out"], color="grey", linewidth=1)
    dense = result["uniform"][0]["ap50"]
    left.set(title="calibration frames", ylabel="agreement of score maps, %", ylim=(70, 95))
    middle.set(title="calibration frames", ylabel="person AP50, %", ylim=(dense - 8, dense + 3))
    right.set(title="held-out frames", ylabel="person AP50, %")
    for axes in (left, middle, right):
        axes.set_xlabel("multiply-accumulates, % of dense")
        axes.grid(alpha=0.3)
    for axes in (left, middle):
        axes.set_xlim(8, 30)
    left.legend(fontsize=8, loc="lower right")
    right.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=90)
