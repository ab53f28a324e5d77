"""Trains the network of short actions that comes with the package.

uv run --extra train python -m experiments.dynamic_inference.train
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

from dynvid.data.action_clips import action_clips
from dynvid.files import part_file
from dynvid.models.actions import FRAMES, GROUPS, action_network, normalise_clips
from dynvid.models.clip_network import StagedNetwork, staged
from dynvid.models.driving import named_leaves
from dynvid.ops.progressive import Route, checkpoint_logits, frame_groups, make_route
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.dynamic_inference import train_clips, trained
from experiments.bench import console
from experiments.bench.results import machine, read_json, write_json

FOLDER = pathlib.Path(__file__).parent
WEIGHTS = pathlib.Path("dynvid/models/data/actions.npz")
RESULTS = FOLDER / "results.json"

JOINT = make_route(GROUPS, depth=3)
STREAM = make_route(
    frame_groups(FRAMES, FRAMES),
    depth=3,
    checkpoints=[(g, d) for g in (4, 8, 16) for d in (1, 2, 3)],
)
"""Frames in their order in time, one by one: what makes the network good on streams too."""

CONSECUTIVE = make_route(frame_groups(FRAMES, 2, permutation="identity"), depth=3)
"""Two groups without permutation, for the ablation: frames see each other as in `STREAM`."""

HELD_OUT = 777  # the key of the clips to judge by


@dataclasses.dataclass(frozen=True)
class Config:
    """The recipe; the defaults are those of the shipped weights."""

    steps: int = 800
    batch: int = 16
    rate: float = 4e-3
    held_out: int = 1200  # clips to judge by
    seed: int = 0
    output: pathlib.Path = WEIGHTS
    checkpoints: pathlib.Path | None = None  # a folder: a killed training goes on from it
    keep: bool = True  # whether the figures go into results.json


def train(config: Config) -> tuple[StagedNetwork, Any]:
    """The whole recipe: clips are drawn as they are needed, none is seen twice."""
    key = jax.random.key(config.seed)

    def batch_at(step: int) -> tuple[jax.Array, jax.Array]:
        clips = action_clips(jax.random.fold_in(key, step), count=config.batch)
        return clips.frames, clips.labels

    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.rate, max(1, min(60, config.steps // 4)), config.steps
    )
    module = action_network(rngs=nnx.Rngs(config.seed))
    state = train_clips(
        module,
        [JOINT, STREAM],
        batch_at,
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4)
        ),
        steps=config.steps,
        normalise=normalise_clips,
        seed=config.seed,
        checkpoints=None if config.checkpoints is None else Checkpoints(config.checkpoints),
        every=100,
        console=console,
    )
    network, params = staged(trained(module, state), normalise=normalise_clips)
    # What is shipped is float16: judged as it is.
    return network, jax.tree.map(lambda x: x.astype(jnp.float16).astype(x.dtype), params)


def logits_of(
    network: StagedNetwork, params: Any, route: Route, key: jax.Array, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """What every checkpoint says of `count` clips, and what is right."""
    run = jax.jit(lambda params, clips: checkpoint_logits(network, params, clips, route))
    found, labels = [], []
    for i in range(-(-count // 50)):
        clips = action_clips(jax.random.fold_in(key, i), count=50)
        found.append(np.asarray(run(params, clips.frames)))
        labels.append(np.asarray(clips.labels))
    return np.concatenate(found)[:count], np.concatenate(labels)[:count]


def save(params: Any, path: pathlib.Path) -> None:
    """Writes the weights as float16, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in named_leaves(params)}
    with part_file(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def main(config: Config) -> None:
    started = time.perf_counter()
    used = time.process_time()
    network, params = train(config)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    save(params, config.output)
    logits, labels = logits_of(network, params, JOINT, jax.random.key(HELD_OUT), config.held_out)
    right = logits.argmax(2) == labels[:, None]
    figures = {
        "accuracy_percent": {
            str(node): round(100 * float(value), 2)
            for node, value in zip(JOINT.checkpoints, right.mean(0), strict=True)
        },
        "seconds": round(seconds),
        "processor_seconds": round(used),
        "bytes": config.output.stat().st_size,
        "config": {
            k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, int | float)
        },
    }
    if config.keep:
        results = read_json(RESULTS)
        results.setdefault("training", {})[f"seed {config.seed}"] = machine() | figures
        write_json(RESULTS, results)
    console.print_json(json.dumps(figures))


if __name__ == "__main__":
    main(tyro.cli(Config))
