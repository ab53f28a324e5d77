"""DVSNet's figures and tables, on synthetic drives and on CamVid.

DYNVID_DATA=... uv run --extra test --extra train python -m experiments.dvsnet [CASE ...]
"""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

from dynvid.data.driving import drive_pairs
from dynvid.models.decision_network import DecisionNetwork
from dynvid.models.spynet import spynet_motion
from dynvid.ops.regions import divide_frame
from dynvid.systems.dvsnet import DVSNetParams
from dynvid.training.dvsnet import confidence_scores, train_decision
from experiments.bench import DATA, cases, console
from experiments.dvsnet import limits, pictures
from experiments.dvsnet.evaluate import Judge, parts_times, run, time_against, video_of
from experiments.dvsnet.subjects import (
    CALIBRATION,
    SPEED,
    Subject,
    camvid,
    decision_pairs,
    drives,
    pair_scores,
    read_camvid,
    regions_of,
    two_number_errors,
)

FOLDER = pathlib.Path(__file__).parent
TARGETS = (0, 70, 80, 84, 88, 90, 92, 94, 96, 98, 100)
BALANCED = 92.0
"""Percent: the paper's t for DeepLab-Fast in balanced mode; its division table uses it too."""

SWEEPS: dict[str, tuple[float, ...]] = {
    "decision_network": TARGETS,
    "frame_difference": (2, 4, 7, 10, 14, 20, 28),
    "flow_magnitude": (0.25, 0.5, 1, 2, 4, 7),
    "fixed_period": (2, 3, 4, 5, 7, 10, 19),
}


@functools.cache
def subjects() -> dict[str, tuple[Subject, Judge]]:
    """Whatever there is data for."""
    found = [drives()]
    if (DATA / "camvid").is_dir():
        found.append(camvid())
    else:
        console.print(f"[yellow]no CamVid in {DATA}: synthetic drives only")
    return {subject.name: (subject, Judge(subject)) for subject in found}


def times() -> dict[str, Any]:
    """What each network takes by itself, and frame-by-frame segmentation."""
    return {
        name: {
            "milliseconds": parts_times(subject, video_of(subject)),
            "miou_per_frame": judge.miou,
            "last_miou_per_frame": judge.last_miou,
        }
        for name, (subject, judge) in subjects().items()
    }


def figure8() -> dict[str, Any]:
    """Accuracy against speed as t is raised (the paper's Figure 8)."""
    results = {}
    for name, (subject, judge) in subjects().items():
        video = video_of(subject)
        rows = [run(subject, judge, video, threshold=t) for t in TARGETS]
        timed = time_against(subject, judge, {str(t): (video, t) for t in TARGETS})
        for row in rows:
            row |= timed[str(row["threshold"])]
        results[name] = {"per_frame": timed["per frame"] | {"miou": judge.miou}, "rows": rows}
    return results


def figure9() -> dict[str, Any]:
    """The four policies (the paper's Figure 9)."""
    results: dict[str, Any] = {}
    for name, (subject, judge) in subjects().items():
        results[name] = {}
        for policy, thresholds in SWEEPS.items():
            video = video_of(subject, policy=policy)
            rows = [run(subject, judge, video, threshold=t) for t in thresholds]
            results[name][policy] = rows
    return results


def decision_error() -> dict[str, Any]:
    """How wrong the decision network of CamVid is on the second half of the drive."""
    results: dict[str, Any] = {}
    for name, (subject, _) in subjects().items():
        if name != "CamVid, ESPNet":
            continue
        frames, _ = read_camvid()
        features, scores, gaps = pair_scores(
            subject, frames[CALIBRATION:], regions_of(subject), most=9
        )
        found = np.asarray(jax.jit(subject.decide)(subject.params.decision, jnp.asarray(features)))
        error = np.abs(found - scores)
        results[name] = {
            "pairs": len(scores),
            "mean_absolute_error_percent": float(error.mean()),
            "worst_tenth_percent": float(np.quantile(error, 0.9)),
            "error_of_the_mean_percent": float(np.abs(scores - scores.mean()).mean()),
            "by_gap": {int(g): float(error[gaps == g].mean()) for g in np.unique(gaps)},
        }
    return results


def two_numbers() -> dict[str, Any]:
    """How wrong a line in one number is, in the place of the decision network of CamVid."""
    if not (DATA / "camvid").is_dir():
        return {}
    subject = camvid(decisions=False)
    frames, _ = read_camvid()
    training, validation = decision_pairs(subject, frames[:CALIBRATION])
    test = pair_scores(subject, frames[CALIBRATION:], regions_of(subject))[:2]
    judged = {"calibration, last ten frames": validation, "test": test}
    return {subject.name: two_number_errors(training, judged)}


def table2(pairs: int = 640, held_out: int = 192) -> dict[str, float]:
    """What the decision network reads (the paper's Table 2): errors of networks trained alike."""
    subject = subjects()["synthetic drives"][0]
    regions = divide_frame((240, 320), overlap=16, multiple=8)

    def averaged(x: jax.Array) -> jax.Array:
        return jax.image.resize(x, (len(x), 8, 10, x.shape[3]), "linear", antialias=True)

    @jax.jit
    def maps(params: DVSNetParams, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        speed_key, key = jax.random.split(key)
        speed = jax.random.uniform(speed_key, minval=0.1, maxval=0.9)
        drawn = drive_pairs(key, pairs=4, speed=speed, noise=3.0)
        current, before = (
            regions.divide(frames).reshape(-1, *regions.size, 3)
            for frames in (drawn.current.frame, drawn.key.frame)
        )
        levels = params.flow["levels"]
        first, last = (spynet_motion(levels, current, before, levels=n).features for n in (1, 2))
        assert first is not None
        assert last is not None
        features, scores = confidence_scores(
            subject.segment, subject.flow, params[:2], current, before
        )
        flow = last[..., -5:-3]
        images = averaged(before.astype(jnp.float32) / 255)
        return {
            "key image and flow": jnp.concatenate([images, averaged(flow)], -1),
            "first level": averaged(first),
            "last level without the difference": averaged(last[..., :-3]),
            "last level": features,
        }, scores

    key = jax.random.key(77)
    keys = [jax.random.fold_in(key, i) for i in range((pairs + held_out) // 4)]
    shown = track(keys, "drawing pairs", console=console, transient=True)
    drawn = [jax.tree.map(np.asarray, maps(subject.params, key)) for key in shown]
    scores = np.concatenate([found for _, found in drawn])
    cut = 4 * pairs
    errors = {"nothing: the median": float(np.abs(scores[cut:] - np.median(scores[:cut])).mean())}
    for name in drawn[0][0]:
        features = np.concatenate([found[name] for found, _ in drawn])
        network = DecisionNetwork(
            features.shape[3], grid=(8, 10), convolution=32, hidden=(128, 64, 10), rngs=nnx.Rngs(0)
        )
        state = train_decision(
            network, (features[:cut], scores[:cut]), (features[cut:], scores[cut:]),
            epochs=40, console=console,
        )  # fmt: skip
        errors[name] = float(state.error)
    return errors


def table3() -> dict[str, Any]:
    """Divisions into 1, 1x2, 2x2, 3x3 and 4x4 regions at one t (the paper's Table 3)."""
    results: dict[str, Any] = {}
    for name, (subject, judge) in subjects().items():
        results[name] = {}
        for grid in ((1, 1), (1, 2), (2, 2), (3, 3), (4, 4)):
            overlap = 0 if grid == (1, 1) else subject.overlap
            video = video_of(subject, grid=grid, overlap=overlap)
            row = run(subject, judge, video, threshold=BALANCED)
            frames = sum(len(clip.frames) for clip in subject.clips)
            count = frames * grid[0] * grid[1]
            later = count - len(subject.clips) * grid[0] * grid[1]
            sent = round(row["segmented_share"] * later) + count - later
            row |= {"regions": count, "segmented": sent, "warped": count - sent}
            row["warped_to_segmented"] = (count - sent) / sent
            row |= time_against(subject, judge, {"it": (video, BALANCED)}, frames=30)["it"]
            results[name][f"{grid[0]}x{grid[1]}"] = row
    return results


def figure10() -> dict[str, Any]:
    """How far regions overlap (the paper's Figure 10)."""
    results: dict[str, Any] = {}
    for name, (subject, judge) in subjects().items():
        results[name] = {}
        for overlap in (0, 8, 16, 32):
            video = video_of(subject, overlap=overlap)
            row = run(subject, judge, video, threshold=BALANCED)
            row["miou_all_segmented"] = run(subject, judge, video, threshold=100.0)["miou"]
            row |= time_against(subject, judge, {"it": (video, BALANCED)}, frames=30)["it"]
            results[name][overlap] = row
    return results


def bounds() -> dict[str, Any]:
    """Points lost by warping whole frames, with exact motion and with that of the networks."""
    results: dict[str, Any] = {}
    for name, (subject, _) in subjects().items():
        if name == "synthetic drives":
            for speed in (0.0, 0.15, 0.3, 0.6):
                results[f"{name}, {speed:g} m a frame"] = limits.on_drives(subject, speed=speed)
        else:
            results[name] = limits.on_clips(subject)
    return results


def unexplained() -> dict[str, Any]:
    """Points lost on CamVid if what the motion does not explain were segmented anew."""
    if not (DATA / "camvid").is_dir():
        return {}
    subject = camvid(decisions=False)
    return {subject.name: limits.unexplained(subject)}


def incremental(clips: int = 3, frames: int = 12) -> dict[str, Any]:
    """Beyond the paper: sent regions run incrementally against their own last key."""
    results: dict[str, Any] = {}
    for name, speed in (("the camera stands", 0.0), ("the camera drives", SPEED)):
        subject = drives(clips, frames, speed=speed)
        judge = Judge(subject)
        videos = {
            "DVSNet": video_of(subject),
            "DVSNet, incremental": video_of(
                subject, incremental={"threshold": 15, "truncation": 0.5}
            ),
        }
        found = {
            f"{kind}, t = {t:g}": run(subject, judge, video, threshold=t)
            for t in (BALANCED, 98.0, 100.0)
            for kind, video in videos.items()
        }
        timed = time_against(
            subject,
            judge,
            {f"{kind}, t = {t:g}": (v, t) for t in (BALANCED, 100.0) for kind, v in videos.items()},
            frames=clips * (frames - 1),
        )
        for row in found.keys() & timed.keys():
            found[row] |= timed[row]
        results[f"synthetic drives, {name}"] = found
    return results


CASES: dict[str, Callable[[], Any]] = {
    case.__name__: case
    for case in (
        *(times, figure8, figure9, table2, decision_error, two_numbers, table3, figure10),
        *(bounds, unexplained, incremental),
    )
}

if __name__ == "__main__":
    cases.main(sys.argv[1:], CASES, FOLDER / "results.json")
    pictures.main(FOLDER)
