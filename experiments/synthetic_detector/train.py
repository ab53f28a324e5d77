"""Trains the detector that dynvid ships, on synthetic scenes drawn as it goes.

    python experiments/synthetic_detector/train.py

AdamW with a cosine schedule, 16 frames of 128 x 128 a step, half of them from a panning camera,
sensor noise of 0 to 5 grey levels. See README.md for the time it took and what it reached.
"""

import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from dynvid.data.synthetic import CLASS_NAMES, SceneFrame, render, synthetic_scene
from dynvid.files import part_file
from dynvid.models.synthetic_detector import (
    STRIDE,
    init_synthetic_detector,
    synthetic_detector,
)
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.loop import fit, start, update_step

WEIGHTS = pathlib.Path(__file__).parents[2] / "dynvid/models/data/synthetic_detector.npz"
LEAST_VISIBILITY = 0.25  # objects that show less of themselves are neither wanted nor wrong


@dataclasses.dataclass(frozen=True)
class Config:
    """How to train."""

    steps: int = 3500
    batch: int = 16
    size: int = 128
    objects: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0
    output: pathlib.Path = WEIGHTS
    checkpoints: pathlib.Path | None = None  # a folder: a killed training goes on from it


def draw_batch(key: jax.Array, config: Config) -> SceneFrame:
    """One frame of each of `batch` scenes, half of them panning."""

    def draw(key, camera):
        scene_key, noise_key, time_key = jax.random.split(key, 3)
        scene = synthetic_scene(
            scene_key,
            size=(config.size, config.size),
            objects=config.objects,
            camera=camera,
            noise=jax.random.uniform(noise_key, maxval=5.0),
            object_size=(12.0, 56.0),
        )
        return render(scene, jax.random.randint(time_key, (), 0, 1000))

    keys = jax.random.split(key, config.batch)
    half = config.batch // 2
    parts = [
        jax.vmap(functools.partial(draw, camera=camera))(some)
        for camera, some in (("fixed", keys[:half]), ("panning", keys[half:]))
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def targets(frame: SceneFrame, cells: int):
    """The heat map wanted of one frame, and per object its cell, size, offset and weight."""
    low, high = frame.boxes[:, :2], frame.boxes[:, 2:]
    centre, side = (low + high) / 2 / STRIDE, jnp.maximum(high - low, 1.0)
    cell = jnp.clip(jnp.floor(centre), 0, cells - 1)
    wanted = frame.visibility >= LEAST_VISIBILITY
    spread = 0.3 + 0.1 * side / STRIDE
    grid = jnp.arange(cells, dtype=jnp.float32)
    bell = jnp.exp(
        -0.5 * ((grid[None, None, :] - cell[:, 0, None, None]) / spread[:, 0, None, None]) ** 2
        - 0.5 * ((grid[None, :, None] - cell[:, 1, None, None]) / spread[:, 1, None, None]) ** 2
    )
    # An object that hardly shows: no centre is asked for, and little is said against one.
    bell = bell * jnp.where(wanted, 1.0, 0.95)[:, None, None] * frame.visible[:, None, None]
    one_hot = jax.nn.one_hot(frame.classes, len(CLASS_NAMES))
    heat = jnp.max(bell[..., None] * one_hot[:, None, None, :], axis=0)
    return heat, cell.astype(jnp.int32), jnp.log(side / 32.0), centre - cell, wanted


def loss_of(params, frames: SceneFrame):
    """Zhou et al. (2019), Eq. 1 with alpha 2 and beta 4, plus L1 on sizes and offsets."""
    outputs = synthetic_detector(params, frames.frame)
    cells = outputs.heatmap.shape[1]
    heat, cell, size, offset, wanted = jax.vmap(lambda f: targets(f, cells))(frames)
    log_p = jax.nn.log_sigmoid(outputs.heatmap)
    log_not_p = jax.nn.log_sigmoid(-outputs.heatmap)
    p = jnp.exp(log_p)
    focal = jnp.where(heat == 1.0, (1 - p) ** 2 * log_p, (1 - heat) ** 4 * p**2 * log_not_p)
    count = jnp.maximum(wanted.sum(), 1)
    stream = jnp.arange(len(cell))[:, None]
    weight = wanted[..., None]

    def l1(values, wanted_values):
        here = values[stream, cell[..., 1], cell[..., 0]]
        return jnp.sum(weight * jnp.abs(here - wanted_values)) / count

    return -focal.sum() / count + l1(outputs.size, size) + 0.5 * l1(outputs.offset, offset)


def train(config: Config) -> dict[str, jax.Array]:
    """Trains from scratch, or from the latest checkpoint, and returns the weights."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.steps // 20, config.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=config.weight_decay)
    )
    update = update_step(lambda params, key: loss_of(params, draw_batch(key, config)), optimizer)
    key = jax.random.key(config.seed + 1)
    state = fit(
        update,
        start(init_synthetic_detector(jax.random.key(config.seed)), optimizer),
        lambda step: jax.random.fold_in(key, step),
        steps=config.steps,
        checkpoints=Checkpoints(config.checkpoints) if config.checkpoints else None,
    )
    return state.params


def save(params: dict[str, jax.Array], path: pathlib.Path) -> None:
    """Writes the weights as float16, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with part_file(path) as part, part.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            **{name: np.asarray(p, np.float16) for name, p in params.items()},
        )


def main(config: Config) -> None:
    started = time.perf_counter()
    params = train(config)
    seconds = time.perf_counter() - started
    save(params, config.output)
    print(json.dumps({"seconds": round(seconds), "bytes": config.output.stat().st_size}))


if __name__ == "__main__":
    main(tyro.cli(Config))
