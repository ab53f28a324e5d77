"""Trains the networks that `dynvid run --system dvsnet` runs, on synthetic drives.

    uv run --extra train python -m experiments.dvsnet.train

The order of DVSNet 3.3: segmentation; flow; flow and scale field together with segmentation frozen;
pairs of features and confidence scores; the decision network. A training that was killed goes on
where it was with `--checkpoints FOLDER`. See README.md for the time it took and what it reached.
"""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.progress import track

from dynvid.data.driving import drive_pairs
from dynvid.files import part_file
from dynvid.metrics.segmentation import confusion_matrix, mean_intersection_over_union
from dynvid.models.decision_network import DecisionNetwork
from dynvid.models.driving import (
    CLASS_NAMES,
    DrivingNetworks,
    decision_network,
    driving_networks,
    named_leaves,
)
from dynvid.models.spynet import spynet_motion
from dynvid.ops.labels import best_classes
from dynvid.ops.regions import divide_frame
from dynvid.ops.warp import resize_flow, warp_by
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.dvsnet import (
    confidence_scores,
    cross_entropy,
    pyramid_loss,
    train_decision,
    warped_loss,
)
from dynvid.training.loop import fit, start, update_step
from experiments.bench import console
from experiments.bench.results import machine, read_json, write_json

WEIGHTS = pathlib.Path(__file__).parents[2] / "dynvid/models/data/driving.npz"
RESULTS = pathlib.Path(__file__).parent / "results.json"
SIZE = (240, 320)
FAR = 100.0  # pixels; no motion that a region could show is longer
REGIONS = divide_frame(SIZE, overlap=16, multiple=8)


@dataclasses.dataclass(frozen=True)
class Config:
    """How to train."""

    pairs: int = 1536  # of drives, each of its own; drawn first
    held_out: int = 192  # more pairs, to judge by
    segmentation_steps: int = 1600
    flow_steps: int = 6000
    fine_tuning_steps: int = 1200
    epochs: int = 100  # of the decision network
    batch: int = 8
    seed: int = 0
    output: pathlib.Path = WEIGHTS
    checkpoints: pathlib.Path | None = None  # a folder: a killed training goes on from it

    def folder(self, stage: str) -> Checkpoints | None:
        """Where the checkpoints of a stage lie."""
        return None if self.checkpoints is None else Checkpoints(self.checkpoints / stage)


def draw_drives(key: jax.Array, count: int, *, chunk: int = 16) -> dict[str, jax.Array]:
    """Pairs of frames of as many drives: frames, labels, and motion from the later to the key."""

    def one(key: jax.Array) -> Any:
        speed_key, key = jax.random.split(key)
        speed = jax.random.uniform(speed_key, minval=0.1, maxval=0.9)
        drawn = drive_pairs(key, pairs=1, size=SIZE, speed=speed, noise=3.0)
        return jax.tree.map(lambda x: x[0], drawn)

    draw = jax.jit(lambda key: jax.vmap(one)(jax.random.split(key, chunk)))
    parts = []
    for i in track(range(-(-count // chunk)), "drawing drives", console=console, transient=True):
        pairs = draw(jax.random.fold_in(key, i))
        part = {
            "key": pairs.key.frame,
            "current": pairs.current.frame,
            "key_labels": pairs.key.labels,
            "labels": pairs.current.labels,
            # What is passed between both frames was behind the camera or beside it: far away.
            "motion": jnp.clip(pairs.current.motion, -FAR, FAR).astype(jnp.float16),
            "gap": pairs.gap,
        }
        parts.append(jax.tree.map(np.asarray, part))
    return jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)[:count]), *parts)


def crops(key: jax.Array, drives: dict[str, jax.Array], batch: int) -> dict[str, jax.Array]:
    """Parts of some pairs as large as a region, half of them mirrored."""
    height, width = REGIONS.size

    def cut(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, 4)
        i = jax.random.randint(keys[0], (), 0, len(drives["gap"]))
        y = jax.random.randint(keys[1], (), 0, SIZE[0] - height + 1)
        x = jax.random.randint(keys[2], (), 0, SIZE[1] - width + 1)
        mirrored = jax.random.bernoulli(keys[3])
        found = {}
        for name in ("key", "current", "key_labels", "labels", "motion"):
            array = drives[name]
            begin = (i, y, x, *(0,) * (array.ndim - 3))
            part = jax.lax.dynamic_slice(array, begin, (1, height, width, *array.shape[3:]))[0]
            turned = part[:, ::-1]
            if name == "motion":
                part, turned = part.astype(jnp.float32), turned * jnp.array([-1.0, 1.0])
            found[name] = jnp.where(mirrored, turned, part)
        return found

    return jax.vmap(cut)(jax.random.split(key, batch))


def optimizer_of(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with a short warm-up and a cosine to zero."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 20), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def train_stage(
    config: Config, name: str, loss: Any, params: Any, drives: Any, *, steps: int, rate: float
) -> Any:
    """One stage: `loss(params, crops)` on crops of the drives."""
    optimizer = optimizer_of(rate, steps)
    update = update_step(
        lambda params, given: loss(params, crops(given[0], given[1], config.batch)), optimizer
    )
    key = jax.random.fold_in(jax.random.key(config.seed), len(name))
    state = fit(
        update,
        start(params, optimizer),
        lambda step: (jax.random.fold_in(key, step), drives),
        steps=steps,
        checkpoints=config.folder(name),
        name=name,
        console=console,
    )
    return state.params


def scored(
    networks: DrivingNetworks, params: Any, drives: dict[str, jax.Array]
) -> tuple[np.ndarray, np.ndarray]:
    """Features and confidence scores of all regions of the pairs."""

    @jax.jit
    def score(params: Any, current: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        parts = (REGIONS.divide(frames).reshape(-1, *REGIONS.size, 3) for frames in (current, key))
        return confidence_scores(networks.segment, networks.flow, params, *parts)

    found = []
    count = len(drives["gap"])
    for i in track(range(0, count, 8), "scoring pairs", console=console, transient=True):
        j = min(i, count - 8)  # the last eight where the rest is less: nothing compiles again
        new = score(params, drives["current"][j : j + 8], drives["key"][j : j + 8])
        found.append(jax.tree.map(lambda x, skip=i - j: np.asarray(x)[4 * skip :], new))
    features, scores = zip(*found, strict=True)
    return np.concatenate(features), np.concatenate(scores)


def judge(networks: DrivingNetworks, drives: dict[str, jax.Array]) -> dict[str, Any]:
    """What the networks reach on pairs that they were not trained on."""
    classes = len(CLASS_NAMES)
    segmentation, flow, _ = networks.params

    @jax.jit
    def one(pair: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        current, key, truth, labels = (
            REGIONS.divide(pair[name][None])[0] for name in ("current", "key", "motion", "labels")
        )
        truth = truth.astype(jnp.float32)
        motion = networks.flow(flow, current, key)
        found = resize_flow(motion.flow, REGIONS.size)
        rows, columns = (jnp.arange(side)[:, None] for side in REGIONS.size)
        y, x = rows + truth[..., 1], columns.T + truth[..., 0]
        # What can be found at all: what lies in the region of the key frame too.
        seen = (y >= 0) & (y < REGIONS.size[0]) & (x >= 0) & (x < REGIONS.size[1])
        error = jnp.sum(jnp.where(seen, jnp.linalg.norm(found - truth, axis=-1), 0))
        still = jnp.sum(jnp.where(seen, jnp.linalg.norm(truth, axis=-1), 0))
        logits = networks.segment(segmentation, key)
        moved = warp_by(logits, motion, border="edge")
        now = networks.segment(segmentation, current)
        tables = [
            confusion_matrix(labels, best_classes(x, REGIONS.size)[0], classes=classes)
            for x in (now, moved, logits)
        ]
        return jnp.sum(seen), still, error, *tables

    total: dict[int, Any] = {}
    for i in track(range(len(drives["gap"])), "judging", console=console, transient=True):
        pair = {name: array[i] for name, array in drives.items()}
        gap = int(pair.pop("gap"))
        found = jax.tree.map(np.asarray, one(pair))
        old = total.get(gap, (0,) * 7)
        total[gap] = tuple(a + b for a, b in zip(old, (1, *found), strict=True))

    def miou(table: Any) -> float:
        return round(100 * float(mean_intersection_over_union(jnp.asarray(table))), 2)

    by_gap = {
        gap: {
            "pairs": n,
            "mean_motion_pixels": round(float(still / seen), 2),
            "endpoint_error_pixels": round(float(error / seen), 2),
            "miou_segmented": miou(now),
            "miou_warped": miou(moved),
            "miou_copied": miou(kept),
        }
        for gap, (n, seen, still, error, now, moved, kept) in sorted(total.items())
    }
    every = sum(t[4] for t in total.values())
    return {"miou": miou(every), "by_gap": by_gap}


def train(config: Config) -> tuple[DrivingNetworks, dict[str, Any]]:
    """The whole recipe; returns the networks and what there is to say of them."""
    seconds: dict[str, float] = {}

    def timed(name: str, what: Any) -> Any:
        started = time.perf_counter()
        result = what()
        seconds[name] = round(time.perf_counter() - started, 1)
        return result

    key = jax.random.key(config.seed)
    drives = timed("drawing", lambda: draw_drives(jax.random.fold_in(key, 1), config.pairs))
    held = timed(
        "drawing held-out", lambda: draw_drives(jax.random.fold_in(key, 2), config.held_out)
    )
    networks = driving_networks(rngs=nnx.Rngs(config.seed))
    segmentation, flow, _ = networks.params

    def segmentation_loss(params: Any, x: dict[str, jax.Array]) -> jax.Array:
        return cross_entropy(networks.segment(params, x["current"]), x["labels"])

    segmentation = timed(
        "segmentation",
        lambda: train_stage(
            config, "segmentation", segmentation_loss, segmentation, drives,
            steps=config.segmentation_steps, rate=2e-3,
        ),
    )  # fmt: skip

    def flow_loss(params: Any, x: dict[str, jax.Array]) -> jax.Array:
        levels = range(1, len(params["levels"]) + 1)
        flows = [
            spynet_motion(params["levels"], x["current"], x["key"], levels=n).flow for n in levels
        ]
        return pyramid_loss(flows, x["motion"])

    flow = timed(
        "flow",
        lambda: train_stage(
            config, "flow", flow_loss, flow, drives, steps=config.flow_steps, rate=2e-3
        ),
    )

    def fine_tuning_loss(params: Any, given: dict[str, jax.Array]) -> jax.Array:
        motion = networks.flow(params, given["current"], given["key"])
        logits = networks.segment(segmentation, given["key"])
        return warped_loss(motion, logits, given["labels"])

    flow = timed(
        "fine-tuning",
        lambda: train_stage(
            config, "fine-tuning", fine_tuning_loss, flow, drives,
            steps=config.fine_tuning_steps, rate=3e-4,
        ),
    )  # fmt: skip
    frozen = (segmentation, flow)
    half = {name: array[: config.pairs // 2] for name, array in drives.items()}
    training = timed("scores", lambda: scored(networks, frozen, half))
    validation = timed("scores held-out", lambda: scored(networks, frozen, held))
    decision: DecisionNetwork = decision_network(rngs=nnx.Rngs(config.seed))
    trained = timed(
        "decision",
        lambda: train_decision(
            decision, training, validation, epochs=config.epochs,
            checkpoints=config.folder("decision"), console=console,
        ),
    )  # fmt: skip
    networks = networks._replace(params=(segmentation, flow, trained.best))
    spread = float(np.abs(validation[1] - np.median(training[1])).mean())
    figures = judge(networks, held) | {
        "decision_error_percent": round(float(trained.error), 2),
        "error_of_the_median_percent": round(spread, 2),
        "mean_score_percent": round(float(np.mean(validation[1])), 2),
        "seconds": seconds,
        "seconds_together": round(sum(seconds.values()), 1),
        "config": {k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, int)},
    }
    return networks, figures


def save(params: Any, path: pathlib.Path) -> None:
    """Writes the weights as float16, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in named_leaves(params)}
    with part_file(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def main(config: Config) -> None:
    networks, figures = train(config)
    save(networks.params, config.output)
    figures["bytes"] = config.output.stat().st_size
    results = read_json(RESULTS)
    results["training, synthetic drives"] = machine() | figures
    write_json(RESULTS, results)
    console.print_json(json.dumps(figures))


if __name__ == "__main__":
    main(tyro.cli(Config))
