"""A small training, in the tests' own process and in one that is killed."""

import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from dynvid.training.checkpoints import Checkpoints
from dynvid.training.loop import TrainState, fit, start, update_step

OPTIMIZER = optax.adamw(optax.cosine_decay_schedule(0.05, 30))
STEPS, EVERY = 17, 5


def loss(params, key):
    x = jax.random.normal(key, (8, 3))
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - jnp.sin(x).sum(1)) ** 2)


UPDATE = update_step(loss, OPTIMIZER)


def begin(width: int = 4) -> TrainState:
    rng = np.random.default_rng(0)
    shapes = {"in": (3, width), "out": (width,)}
    params = {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}
    return start(jax.tree.map(jnp.asarray, params), OPTIMIZER)


def train(folder=None, *, batch_at=jax.random.key, steps=STEPS, width=4) -> TrainState:
    return fit(
        UPDATE,
        begin(width),
        batch_at,
        steps=steps,
        checkpoints=None if folder is None else Checkpoints(folder, keep=2),
        every=EVERY,
        console=Console(quiet=True),
    )


def die(event: str, arguments: tuple) -> None:
    """Kills this process when the second checkpoint, all written, is to get its name."""
    if event == "os.rename" and str(arguments[1]).endswith(f"{os.sep}{2 * EVERY}"):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.addaudithook(die)
    train(sys.argv[1])
