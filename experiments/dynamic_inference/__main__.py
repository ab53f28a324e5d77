"""Dynamic Inference measured: what stopping early costs in accuracy and saves in work and time.

uv run --extra test --extra train python -m experiments.dynamic_inference [CASE ...]
"""

import dataclasses
import itertools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from dynvid.data.action_clips import KINDS, action_clips
from dynvid.models import lrcn
from dynvid.models.actions import CLASS_NAMES, FRAMES, GROUPS, SIZE, action_network, normalise_clips
from dynvid.models.clip_network import StagedNetwork, staged
from dynvid.models.driving import named_leaves
from dynvid.models.msdnet import MSDNet
from dynvid.models.resnet import RESNET50, RESNET101
from dynvid.models.temporal_shift_resnet import TemporalShiftResNet
from dynvid.ops.early_exit import confidence, exit_of
from dynvid.ops.progressive import Route, frame_groups, make_route
from dynvid.systems.dynamic_inference import (
    dynamic_inference,
    expected,
    for_budget,
    recurrent_inference,
    route_macs,
    shared_thresholds,
)
from dynvid.systems.dynamic_inference.thresholds import sweep
from dynvid.video.reader import VideoSource
from dynvid.weights.lrcn import load_lrcn
from experiments.bench import DATA, console
from experiments.bench.results import machine, read_json, write_json
from experiments.dynamic_inference.pictures import (
    draw_curves,
    draw_exits_by_class,
    draw_extremes,
)
from experiments.dynamic_inference.train import (
    CONSECUTIVE,
    FOLDER,
    JOINT,
    RESULTS,
    WEIGHTS,
    logits_of,
)

ROUTES: dict[str, Route] = {
    "joint": JOINT,
    "depth": make_route(GROUPS, depth=3, scheme="depth"),
    "input": make_route(GROUPS, depth=3, scheme="input"),
    "joint, no permutation": CONSECUTIVE,
    "input, no permutation": make_route(CONSECUTIVE.groups, depth=3, scheme="input"),
}
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.8)
CALIBRATION, TEST = 1234, 4321  # keys; no clip of either was trained on


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and with which weights."""

    cases: tyro.conf.Positional[tuple[str, ...]] = (
        "accuracy", "latency", "classes", "tables", "lrcn",
    )  # fmt: skip
    weights: tuple[pathlib.Path, ...] = (WEIGHTS,)  # one file a seed
    calibration: int = 600
    test: int = 1200


def load(path: pathlib.Path) -> tuple[StagedNetwork, Any]:
    """Weights of one seed."""
    module = nnx.eval_shape(lambda: action_network(rngs=nnx.Rngs(0)))
    network, shapes = staged(module, normalise=normalise_clips)
    with np.load(path) as arrays:
        params = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in named_leaves(shapes)]
    return network, jax.tree.unflatten(jax.tree.structure(shapes), params)


CLIP = jax.ShapeDtypeStruct((FRAMES, *SIZE, 3), jnp.uint8)


def accuracy(options: Options) -> dict[str, Any]:
    """Accuracy against average MACs: thresholds from one set, measured on another."""
    results: dict[str, Any] = {}
    for seed, path in enumerate(options.weights):
        network, params = load(path)
        full = route_macs(network, params, CLIP, JOINT)[-1]
        for name, route in ROUTES.items():
            macs = route_macs(network, params, CLIP, route)
            logits, labels = logits_of(
                network, params, route, jax.random.key(CALIBRATION), options.calibration
            )
            sure = np.asarray(confidence(jnp.asarray(logits)))
            right = logits.argmax(2) == labels[:, None]
            logits, labels = logits_of(network, params, route, jax.random.key(TEST), options.test)
            test_sure = np.asarray(confidence(jnp.asarray(logits)))
            test_right = logits.argmax(2) == labels[:, None]
            found: dict[str, Any] = {
                "full": round(100 * float(test_right[:, -1].mean()), 2),
                "checkpoints": [round(100 * float(a), 2) for a in test_right.mean(0)],
                "mac_fractions": [round(m / full, 4) for m in macs],
            }
            for method in ("budgeted", "shared"):
                rows = []
                for budget in BUDGETS:
                    try:
                        chosen = for_budget(sure, right, macs, budget=budget * full, method=method)
                    except ValueError:
                        continue
                    then = expected(test_sure, test_right, macs, chosen.thresholds)
                    rows.append(
                        {
                            "budget": budget,
                            "expected_macs": round(chosen.macs / full, 4),
                            "macs": round(then.macs / full, 4),
                            "expected_accuracy": round(100 * chosen.accuracy, 2),
                            "accuracy": round(100 * then.accuracy, 2),
                            "shares": [round(float(s), 3) for s in then.shares],
                        }
                    )
                found[method] = rows
            found["curve"] = [
                (round(s.macs / full, 4), round(100 * s.accuracy, 2))
                for s in sweep(test_sure, test_right, macs, method="shared")[::8]
            ]
            results.setdefault(name, []).append(found)
        console.print(f"seed {seed}: done")
    draw_curves(results, FOLDER / "curves.png")
    return results


def timed(function: Any, *arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def latency(options: Options) -> dict[str, Any]:
    """Measured time against counted MACs, at batch 1 and 32, at each exit and at a mixture."""
    module = TemporalShiftResNet(depths=RESNET50, width=32, classes=12, rngs=nnx.Rngs(0))
    subjects = {
        "shipped network, 64x64": (*load(options.weights[0]), 40),
        "ResNet-50 of half the width, random weights, 96x96": (*staged(module), 8),
    }
    results: dict[str, Any] = {}
    for subject, (network, params, turns) in subjects.items():
        shipped = turns == 40
        for batch in (1, 32):
            drawn = action_clips(
                jax.random.key(TEST), count=batch, size=SIZE if shipped else (96, 96)
            )
            clips = drawn.frames if shipped else drawn.frames / 255
            found = _latency_of(network, params, clips, turns=turns, mixed=shipped)
            results.setdefault(subject, {})[f"batch {batch}"] = found
            console.print(subject, batch, found)
    return results


def _latency_of(
    network: Any, params: Any, clips: jax.Array, *, turns: int, mixed: bool
) -> dict[str, Any]:
    decide = dynamic_inference(network, JOINT)
    macs = np.array(route_macs(network, params, clips[0], JOINT))
    count, batch = len(macs), len(clips)
    cases = {
        f"all stop at {node}": np.where(np.arange(count) == k, -np.inf, np.inf)
        for k, node in enumerate(JOINT.checkpoints)
    }
    # A sixth of the batch stops at each checkpoint.
    spread = np.where(np.arange(count) == (np.arange(batch) * count // batch)[:, None], -1.0, 2.0)
    if batch > 1:
        cases["as many stop at each"] = spread
    if mixed:
        cases["threshold 0.9"] = shared_thresholds(0.9, count)
    cases = {
        name: jnp.broadcast_to(jnp.asarray(x, jnp.float32), (batch, count))
        for name, x in cases.items()
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    works = {}
    for name, thresholds in cases.items():
        _, work = decide(params, clips, thresholds)
        works[name] = float(work.macs.sum() / work.dense_macs.sum())
    for _ in range(turns):  # in turns
        for name, thresholds in cases.items():
            times[name].append(timed(decide, params, clips, thresholds))
    # The quickest of all turns: others share the machine.
    best = {name: min(values) for name, values in times.items()}
    full = best[f"all stop at {JOINT.checkpoints[-1]}"]
    return {
        name: {
            "milliseconds": round(1e3 * best[name], 2),
            "time_fraction": round(best[name] / full, 3),
            "mac_fraction": round(works[name], 3),
            "ratio": round(best[name] / full / works[name], 3),
        }
        for name in cases
    }


def classes(options: Options) -> dict[str, Any]:
    """Which classes stop early, and clips that stop first and last."""
    network, params = load(options.weights[0])
    logits, labels = logits_of(network, params, JOINT, jax.random.key(TEST), options.test)
    sure = confidence(jnp.asarray(logits))
    exits = np.asarray(exit_of(sure, jnp.full(len(JOINT.checkpoints), 0.9)))
    shares = np.array(
        [np.bincount(exits[labels == c], minlength=6) / max(1, (labels == c).sum())
         for c in range(len(CLASS_NAMES))]
    )  # fmt: skip
    right = logits[np.arange(len(exits)), exits].argmax(1) == labels
    draw_exits_by_class(shares, FOLDER / "exits.png")
    draw_extremes(exits, labels, jax.random.key(TEST), FOLDER / "early_and_late.png")
    return {
        "threshold": 0.9,
        "by_class": {
            name: {
                "kind": KINDS[c],
                "shares": [round(float(x), 3) for x in shares[c]],
                "accuracy": round(100 * float(right[labels == c].mean()), 1),
            }
            for c, name in enumerate(CLASS_NAMES)
        },
    }


PRINTED = {
    "MSDNet-38": {"parameters": 62.31, "full": 52.0, "kinetics": (71.20, 26.5)},
    "ResNet-50": {"parameters": 29.12, "full": 65.4, "kinetics": (72.57, 35.0)},
    "ResNet-101": {"parameters": 48.12, "full": 124.8, "kinetics": (74.70, 66.0)},
}


def tables(options: Options) -> dict[str, Any]:
    """The paper's networks: our parameters and MACs beside the printed ones; none is trained."""
    del options
    makers = {
        "MSDNet-38": lambda: MSDNet(classes=400, rngs=nnx.Rngs(0)),
        "ResNet-50": lambda: TemporalShiftResNet(depths=RESNET50, classes=400, rngs=nnx.Rngs(0)),
        "ResNet-101": lambda: TemporalShiftResNet(depths=RESNET101, classes=400, rngs=nnx.Rngs(0)),
    }
    clip = jax.ShapeDtypeStruct((16, 224, 224, 3), jnp.float32)
    results = {}
    for name, make in makers.items():
        module = nnx.eval_shape(make)
        network, params = staged(module)
        count = sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
        route = make_route(frame_groups(16, 2), depth=network.depth)
        macs = route_macs(network, params, clip, route)
        results[name] = {
            "printed": PRINTED[name],
            "parameters": round(count / 1e6, 2),
            "gmacs": {
                str(n): round(m / 1e9, 2) for n, m in zip(route.checkpoints, macs, strict=True)
            },
        }
    return results


SCENES = {"WalkingWithDog": 0, "HorseRace": 1, "Swing": 2, "TaiChi": 3}


def scenes_of(frames: np.ndarray) -> list[tuple[int, int]]:
    """The first and last frame of each of the four scenes of the clip: its three hardest cuts."""
    small = frames[:, ::8, ::8].astype(np.float32)
    change = np.abs(small[1:] - small[:-1]).mean((1, 2, 3))
    cuts: list[int] = []
    for t in np.argsort(-change):
        if all(abs(int(t) - other) > 60 for other in (*cuts, 0, len(frames))):
            cuts.append(int(t))
        if len(cuts) == len(SCENES) - 1:
            break
    edges = [0, *sorted(t + 1 for t in cuts), len(frames)]
    return list(itertools.pairwise(edges))


def lrcn_case(options: Options) -> dict[str, Any]:
    """UCF50's clip and its LRCN: how many frames it looks at, and what it says then."""
    del options
    folder = DATA / "lrcn_ucf50"
    if not folder.is_dir():
        return {"skipped": f"needs {folder.name} in DYNVID_DATA"}
    params = load_lrcn(folder / "LRCN_model.h5")
    frames = np.stack(list(VideoSource(str(folder / "Test_Video.mp4"))))
    shape = (len(frames), *lrcn.SIZE, 3)
    small = jax.image.resize(frames.astype(np.float32) / 255, shape, "linear", antialias=False)
    scenes = scenes_of(frames)
    windows = [
        (scene, begin)
        for scene, (first, last) in enumerate(scenes)
        for begin in range(first, last - lrcn.FRAMES + 1, 10)
    ]
    clips = jnp.stack([small[b : b + lrcn.FRAMES] for _, b in windows])
    names = list(SCENES)
    rows = []
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9, 1.1):
        video = recurrent_inference(
            lrcn.lrcn_step, lrcn.lrcn_start, length=lrcn.FRAMES, threshold=threshold
        )
        state, found = video.init(params, clips[:, 0])
        for t in range(1, lrcn.FRAMES):
            state, found = video.step(params, state, clips[:, t])
        said = np.asarray(found.logits.argmax(1))
        right = [lrcn.CLASS_NAMES[c] == names[s] for c, (s, _) in zip(said, windows, strict=True)]
        rows.append(
            {
                "threshold": threshold,
                "frames": round(float(jnp.mean(found.exits.exit + 1)), 2),
                "accuracy": round(100 * float(np.mean(right)), 1),
            }
        )
    return {"windows": len(windows), "scenes": scenes, "rows": rows}


CASES = {
    "accuracy": accuracy, "latency": latency, "classes": classes, "tables": tables,
    "lrcn": lrcn_case,
}  # fmt: skip


def main(options: Options) -> None:
    if unknown := [name for name in options.cases if name not in CASES]:
        raise SystemExit(f"cases must be of {', '.join(CASES)}; got {', '.join(unknown)}")
    for name in options.cases:
        console.rule(name)
        found = CASES[name](options)
        results = read_json(RESULTS)
        results[name] = {"machine": machine(), "figures": found}
        write_json(RESULTS, results)
        console.print(found if name != "accuracy" else "written")


if __name__ == "__main__":
    main(tyro.cli(Options))
