"""Trains the networks that `dynvid run --system flow-detection` runs, on synthetic videos.

    uv run --extra train python -m experiments.flow_detection.train

The flow network on true motion; features on crops of objects, for want of ImageNet; features and
detector on single frames, with batch normalisation that learns; the quality branch on how far
warped features are from computed ones; then everything together on pairs as Zhu et al. (2018), 3.4,
and the quality branch once more.
A training that was killed goes on where it was with `--checkpoints FOLDER`. See README.md for the
time it took and what it reached.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.progress import track

from dynvid.data.moving_objects import object_pairs
from dynvid.files import part_file
from dynvid.metrics.imagenet_vid import vid_average_precision
from dynvid.models.driving import named_leaves
from dynvid.models.flow_detection import (
    CLASS_NAMES,
    STRIDE,
    FlowDetector,
    detection_networks,
    small_flow_detector,
)
from dynvid.models.resnet import start_as_shortcuts
from dynvid.ops.aggregate import recursive_aggregation
from dynvid.ops.boxes import Detections
from dynvid.ops.schedule import update_mask
from dynvid.ops.warp import warp
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.flow_detection import (
    DetectionPairs,
    DetectionTruth,
    case_at,
    consistency_loss,
    detection_loss,
    module_update,
    pair_loss,
    partial_features,
    put_back,
    start_module,
)
from dynvid.training.loop import fit
from experiments.bench import console
from experiments.bench.results import machine, read_json, write_json

WEIGHTS = pathlib.Path(__file__).parents[2] / "dynvid/models/data/flow_detection.npz"
RESULTS = pathlib.Path(__file__).parent / "results.json"
SIZE = (256, 256)
CROP, CROPS = 80, 64  # pixels each way, and how many in a batch
FRAMES, PAIRS = 8, 16  # in a batch of single frames, and of pairs for the flow network
COARSE = 8  # pixels per position of the true motion that is kept
# Of 128 and 256 in the papers, for 300 proposals of larger images.
LOSSES: dict[str, Any] = {"anchors": 64, "hard": 24, "border": float("inf")}
# At first all regions count: the hardest are those that blur has taken the pattern from.
FRAME_LOSSES = LOSSES | {"hard": 48, "jittered": 3}
ORDERS = np.array(list(itertools.permutations(range(3))))


@dataclasses.dataclass(frozen=True)
class Config:
    """How to train."""

    pairs: int = 3600  # of frames, each of a scene of its own; drawn first
    held_out: int = 256  # more pairs, to judge by
    flow_steps: int = 2400
    classification_steps: int = 300
    detection_steps: int = 2400
    consistency_steps: int = 250
    joint_steps: int = 450
    penalty_weight: float = 2.0  # lambda
    penalty: Literal["mean", "sum"] = "mean"
    seed: int = 0
    output: pathlib.Path = WEIGHTS
    checkpoints: pathlib.Path | None = None  # a folder: a killed training goes on from it
    results: pathlib.Path = RESULTS

    def folder(self, stage: str) -> Checkpoints | None:
        """Where the checkpoints of a stage lie."""
        return None if self.checkpoints is None else Checkpoints(self.checkpoints / stage, keep=1)


def draw(key: jax.Array, count: int, *, chunk: int = 16) -> dict[str, jax.Array]:
    """Pairs of frames: those, the objects of both, and the motion from the later to the key."""
    height, width = SIZE

    @jax.jit
    def some(key: jax.Array) -> dict[str, jax.Array]:
        pairs = object_pairs(key, pairs=chunk, size=SIZE)
        motion = pairs.current.motion.reshape(
            chunk, height // COARSE, COARSE, width // COARSE, COARSE, 2
        )
        both = jax.tree.map(lambda *x: jnp.stack(x, 1), pairs.key, pairs.current)
        return {
            "frames": both.frame,  # the key first
            "boxes": both.boxes,
            "classes": both.classes,
            "present": both.present,
            "clear": (both.visibility >= 0.6) & (both.blur < 1),
            "motion": jnp.mean(motion, (2, 4)).astype(jnp.float16),
            "gap": pairs.gap,
        }

    chunks = range(-(-count // chunk))
    # Drawing keeps one core busy: some chunks at a time, of no more memory than they need.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(
            lambda i: jax.tree.map(np.asarray, some(jax.random.fold_in(key, i))), chunks
        )
        parts = list(track(drawn, "drawing", len(chunks), console=console, transient=True))
    return jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)[:count]), *parts)


def drawn(config: Config, name: str, key: jax.Array, count: int) -> dict[str, jax.Array]:
    """What `draw` draws, from the folder of the checkpoints where it lies there."""
    if config.checkpoints is None:
        return draw(key, count)
    path = config.checkpoints / f"{name}.npz"
    if not path.exists():
        arrays: Any = draw(key, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        with part_file(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    with np.load(path) as arrays:
        return {name: jnp.asarray(array) for name, array in arrays.items()}


def batch_of(key: jax.Array, data: dict[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """Some pairs, half of them mirrored, their colours swapped and dimmed."""

    def one(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, 4)
        i = jax.random.randint(keys[0], (), 0, len(data["gap"]))
        found = {name: array[i] for name, array in data.items()}
        mirrored = jax.random.bernoulli(keys[1])
        order = jnp.array(ORDERS)[jax.random.randint(keys[2], (), 0, len(ORDERS))]
        gain = jax.random.uniform(keys[3], (), minval=0.7, maxval=1.2)
        frames = found["frames"][..., order].astype(jnp.float32) * gain
        frames = jnp.clip(jnp.round(frames), 0, 255).astype(jnp.uint8)
        boxes, motion = found["boxes"], found["motion"].astype(jnp.float32)
        turned = boxes[..., jnp.array([2, 1, 0, 3])] * jnp.array([-1.0, 1.0, -1.0, 1.0])
        turned = turned + SIZE[1] * jnp.array([1.0, 0.0, 1.0, 0.0])
        return found | {
            "frames": jnp.where(mirrored, frames[:, :, ::-1], frames),
            "boxes": jnp.where(mirrored, turned, boxes),
            "motion": jnp.where(mirrored, motion[:, ::-1] * jnp.array([-1.0, 1.0]), motion),
        }

    return jax.vmap(one)(jax.random.split(key, count))


def pairs_of(key: jax.Array, data: dict[str, jax.Array], count: int) -> DetectionPairs:
    """Some pairs, in half of which both frames are the same, as the papers take still images."""
    some = batch_of(key, data, count)
    frames, still = some["frames"], jnp.arange(count) % 2 == 1
    truth = DetectionTruth(some["boxes"][:, 1], some["classes"][:, 1], some["present"][:, 1])
    return DetectionPairs(
        key=jnp.where(still[:, None, None, None], frames[:, 1], frames[:, 0]),
        current=frames[:, 1],
        truth=truth,
        gap=jnp.where(still, 0, some["gap"]),
    )


def train_stage(
    config: Config,
    name: str,
    module: Any,
    losses: dict[Any, Any],
    data: dict[str, jax.Array],
    *,
    steps: int,
    rate: float,
    case: Any = lambda step: None,
) -> None:
    """One stage: `losses[case(step)](module, key, data)`, Adam with a warm-up and a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 20), steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=1e-4)
    )
    updates = {
        kind: module_update(module, lambda m, given, loss=loss: loss(m, *given), optimizer)
        for kind, loss in losses.items()
    }
    key = jax.random.fold_in(jax.random.key(config.seed), sum(map(ord, name)))
    state = fit(
        lambda state, step: updates[case(step)](state, (jax.random.fold_in(key, step), data)),
        start_module(module, optimizer),
        lambda step: step,
        steps=steps,
        checkpoints=config.folder(name),
        every=250,
        name=name,
        console=console,
    )
    put_back(module, state)


def on_features(motion: jax.Array) -> jax.Array:
    """The mean motion at each position of the features, in positions."""
    pairs, height, width = motion.shape[:3]
    fold = STRIDE // COARSE
    blocks = motion.reshape(pairs, height // fold, fold, width // fold, fold, 2)
    return jnp.mean(blocks, (2, 4), dtype=jnp.float32) / STRIDE


def flow_loss(flow: Any, key: jax.Array, data: dict[str, jax.Array]) -> jax.Array:
    some = batch_of(key, data, PAIRS)
    motion, _ = flow(some["frames"][:, 1], some["frames"][:, 0])
    missed = motion.flow - on_features(some["motion"])
    return jnp.mean(jnp.sqrt(jnp.sum(missed**2, -1) + 1e-6))


def crop_loss(networks: Any, key: jax.Array, data: dict[str, jax.Array]) -> jax.Array:
    """Which class an object alone has, of those that show it: what ImageNet is to the papers."""
    keys = jax.random.split(key, 3)
    some = batch_of(keys[0], data, CROPS // 2)
    weight = jnp.log(jnp.where(some["clear"], 1.0, 1e-6))
    chosen = jax.random.categorical(keys[1], weight)[..., None]
    box = jnp.take_along_axis(some["boxes"], chosen[..., None], 2)[:, :, 0]
    label = jnp.take_along_axis(some["classes"], chosen, 2)
    counted = jnp.take_along_axis(some["clear"], chosen, 2)
    jitter = jax.random.uniform(keys[2], (*box.shape[:2], 2), minval=-10.0, maxval=10.0)
    corner = jnp.round((box[..., :2] + box[..., 2:]) / 2 + jitter).astype(jnp.int32) - CROP // 2

    def cut(frame: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(frame, (at[1], at[0], 0), (CROP, CROP, 3))

    crops = jax.vmap(jax.vmap(cut))(some["frames"], corner).reshape(CROPS, CROP, CROP, 3)
    scores = networks["classifier"](jnp.mean(networks["features"](crops), (1, 2)))
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, label.reshape(CROPS))
    return jnp.sum(loss * counted.reshape(CROPS)) / jnp.maximum(jnp.sum(counted), 1)


def frame_loss(networks: Any, key: jax.Array, data: dict[str, jax.Array]) -> jax.Array:
    keys = jax.random.split(key, 3)
    some = batch_of(keys[0], data, FRAMES)
    which = jnp.arange(FRAMES), jax.random.randint(keys[1], (FRAMES,), 0, 2)
    features = networks["features"](some["frames"][which])
    truth = DetectionTruth(*(some[name][which] for name in ("boxes", "classes", "present")))
    return detection_loss(networks["detector"], features, truth, SIZE, keys[2], **FRAME_LOSSES)


def judge(network: FlowDetector, data: dict[str, jax.Array], *, chunk: int = 8) -> dict[str, Any]:
    """What the networks reach on pairs that they were not trained on."""

    @jax.jit
    def look(frames: jax.Array) -> Any:
        key, current = frames[:, 0], frames[:, 1]
        motion, quality = network.flow(current, key)
        mask = update_mask(quality, 0.0)
        computed, kept = network.features(current), network.features(key)
        warped = warp(kept, motion.flow)
        partial, _ = partial_features(network.features, current, key, motion.flow, mask)

        def joined(features: jax.Array) -> jax.Array:
            embeddings = (network.embedding(x) for x in (warped, features))
            return recursive_aggregation(warped, features, *embeddings)

        maps = {
            "frame": computed,
            "copied": kept,
            "propagated": warped,
            "aggregated": joined(computed),
            "partial": partial,
            "partial_aggregated": joined(partial),
        }
        found = {name: network.detector(x, SIZE) for name, x in maps.items()}
        return found, motion.flow, jnp.mean(mask, (1, 2))

    parts = [
        jax.tree.map(np.asarray, look(data["frames"][i : i + chunk]))
        for i in track(
            range(0, len(data["gap"]), chunk), "judging", console=console, transient=True
        )
    ]
    found, flow, update = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    boxes, classes, present = (data[name][:, 1] for name in ("boxes", "classes", "present"))
    gap = np.asarray(data["gap"])

    def precision(detections: Detections, those: np.ndarray) -> float:
        value = vid_average_precision(
            jax.tree.map(lambda x: jnp.asarray(x[those]), detections),
            boxes[those], classes[those], present[those], class_count=len(CLASS_NAMES),
        )  # fmt: skip
        return round(100 * float(jnp.nanmean(value)), 2)

    truth = STRIDE * np.asarray(on_features(data["motion"]))
    error = np.linalg.norm(STRIDE * flow - truth, axis=-1)
    still = np.linalg.norm(truth, axis=-1)
    groups = {
        "all": gap >= 0,
        "gap 0": gap == 0,
        "gap 1-4": (gap > 0) & (gap < 5),
        "gap 5-9": gap > 4,
    }
    return {
        name: {
            "pairs": int(those.sum()),
            "map": {kind: precision(detections, those) for kind, detections in found.items()},
            "mean_motion_pixels": round(float(still[those].mean()), 2),
            "endpoint_error_pixels": round(float(error[those].mean()), 2),
            "endpoint_error_by_motion": {
                f"{low} to {high} pixels": round(float(error[those][moved].mean()), 2)
                for low, high in itertools.pairwise((0, 4, 12, 24, 99))
                if (moved := (still[those] >= low) & (still[those] < high)).any()
            },
            "mean_update": round(float(update[those].mean()), 3),
        }
        for name, those in groups.items()
    }


def train(config: Config) -> tuple[FlowDetector, dict[str, Any]]:
    """The whole recipe; returns the networks and what there is to say of them."""
    judged: dict[str, Any] = {}
    # By stage, of the clock and of all processors; those before a resumption count.
    kept = None if config.checkpoints is None else config.checkpoints / "seconds.json"
    seconds: dict[str, list[float]] = {} if kept is None else read_json(kept)

    def timed(name: str, what: Any) -> Any:
        started = time.perf_counter(), time.process_time()
        result = what()
        spent = time.perf_counter() - started[0], time.process_time() - started[1]
        before = seconds.get(name, (0, 0))
        seconds[name] = [round(a + b, 1) for a, b in zip(before, spent, strict=True)]
        if kept is not None:
            write_json(kept, seconds)
        console.print(f"{name}: {seconds[name][0]} s")
        return result

    key = jax.random.key(config.seed)
    data = timed(
        "drawing", lambda: drawn(config, "pairs", jax.random.fold_in(key, 1), config.pairs)
    )
    held = timed(
        "drawing held-out",
        lambda: drawn(config, "held_out", jax.random.fold_in(key, 2), config.held_out),
    )
    network = small_flow_detector(rngs=nnx.Rngs(config.seed))
    start_as_shortcuts(network.features)
    network.eval()

    def judge_now(name: str) -> None:
        judged[name] = timed(f"judging after {name}", lambda: judge(network, held))
        console.print_json(json.dumps(judged[name]))
        save(network, config.output)

    timed(
        "flow",
        lambda: train_stage(
            config, "flow", network.flow, {None: flow_loss}, data,
            steps=config.flow_steps, rate=3e-3,
        ),
    )  # fmt: skip
    alone = nnx.Dict(
        features=network.features,
        classifier=nnx.Linear(
            network.features.reduce.out_features, len(CLASS_NAMES), rngs=nnx.Rngs(config.seed)
        ),
    )
    alone.train()
    timed(
        "classification",
        lambda: train_stage(
            config, "classification", alone, {None: crop_loss}, data,
            steps=config.classification_steps, rate=3e-3,
        ),
    )  # fmt: skip
    single = nnx.Dict(features=network.features, detector=network.detector)
    single.train()
    timed(
        "detection",
        lambda: train_stage(
            config, "detection", single, {None: frame_loss}, data,
            steps=config.detection_steps, rate=3e-3,
        ),
    )  # fmt: skip
    network.eval()
    judge_now("single frames")

    def quality_loss(module: Any, key: jax.Array, data: dict[str, jax.Array]) -> jax.Array:
        frames = batch_of(key, data, 8)["frames"]
        # Two of them have a scene cut in between, after which nothing can be trusted.
        cut = (jnp.arange(8) < 2)[:, None, None, None]
        earlier = jnp.where(cut, jnp.roll(frames[:, 0], 1, 0), frames[:, 0])
        return consistency_loss(network.features, module, frames[:, 1], earlier, share=0.4)

    def train_quality(name: str) -> None:
        timed(
            name,
            lambda: train_stage(
                config, name, network.flow, {None: quality_loss}, data,
                steps=config.consistency_steps, rate=1e-2,
            ),
        )  # fmt: skip

    train_quality("consistency")

    def joint_loss(case: Any) -> Any:
        def loss(module: Any, key: jax.Array, data: dict[str, jax.Array]) -> jax.Array:
            keys = jax.random.split(key)
            return pair_loss(
                module, pairs_of(keys[0], data, 6), keys[1], case=case,
                penalty_weight=config.penalty_weight, penalty=config.penalty, **LOSSES,
            ).loss  # fmt: skip

        return loss

    timed(
        "joint",
        lambda: train_stage(
            config, "joint", network,
            {case: joint_loss(case) for case in ("propagated", "computed", "predicted")}, data,
            steps=config.joint_steps, rate=3e-4, case=lambda step: case_at(config.seed, step),
        ),
    )  # fmt: skip
    # The penalty has driven U to 0 everywhere, beyond where Q has a gradient: Q is set anew.
    train_quality("quality")
    judge_now("joint")
    return network, {
        "held_out": judged,
        "seconds": {name: clock for name, (clock, _) in seconds.items()},
        "processor_seconds": {name: processors for name, (_, processors) in seconds.items()},
        "seconds_together": round(sum(clock for clock, _ in seconds.values()), 1),
        "processor_seconds_together": round(sum(spent for _, spent in seconds.values()), 1),
        "config": {
            k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, int | float)
        } | {"penalty": config.penalty},
    }  # fmt: skip


def save(network: FlowDetector, path: pathlib.Path) -> None:
    """Writes the weights, kernels as float16, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    params = detection_networks(network).params
    # Variances of batch normalisation may be beyond float16.
    arrays = {
        name: np.asarray(leaf, np.float16 if leaf.ndim > 1 else np.float32)
        for name, leaf in named_leaves(params)
    }
    with part_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load(network: FlowDetector, path: pathlib.Path) -> None:
    """Gives a network the weights in a file that `save` wrote of one of its structure."""
    params = detection_networks(network).params
    with np.load(path) as file:
        arrays = [jnp.asarray(file[name], leaf.dtype) for name, leaf in named_leaves(params)]
    parts = (network.features, network.flow, network.embedding, network.detector)
    given = jax.tree.unflatten(jax.tree.structure(params), arrays)
    for part, state in zip(parts, given, strict=True):
        nnx.update(part, state)


def main(config: Config) -> None:
    _, figures = train(config)
    figures["bytes"] = config.output.stat().st_size
    results = read_json(config.results)
    seeds = results.get("training, moving objects", {})
    results["training, moving objects"] = seeds | machine() | {f"seed {config.seed}": figures}
    write_json(config.results, results)


if __name__ == "__main__":
    main(tyro.cli(Config))
