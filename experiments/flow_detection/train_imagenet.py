"""Trains the networks of the paper on ImageNet VID and DET, as Zhu et al. (2018), section 5.

    uv run --extra train python -m experiments.flow_detection.train_imagenet FOLDER --output F.npz

FOLDER has Annotations, Data and ImageSets, as ImageNet's archives unpack. The losses are those of
`train`; networks, optimiser and sizes are the papers'. It was run on a tiny folder in this layout
only (tests/training/test_imagenet.py). A killed training goes on with `--checkpoints FOLDER`.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from dynvid.data.imagenet_vid import CLASS_NAMES, ImageNetDET, ImageNetVID
from dynvid.models.flow_detection import STRIDE, FlowDetector, flow_detector
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.flow_detection import (
    CASES,
    DetectionPairs,
    case_at,
    module_update,
    pair_loss,
    put_back,
    staged_sgd,
    start_module,
)
from dynvid.training.imagenet import ImageNetPairs, read_ahead
from dynvid.training.loop import fit
from experiments.bench import console
from experiments.flow_detection.train import load, save


@dataclasses.dataclass(frozen=True)
class Config:
    """How to train; the defaults are the paper's, all on one device."""

    folder: tyro.conf.Positional[pathlib.Path]
    output: pathlib.Path
    steps: int = 120_000
    batch: int = 4  # one on each of four GPUs there
    rate: float = 1e-3
    short: int = 600  # pixels
    long: int = 1000
    anchors: int = 256
    hard: int = 128
    penalty_weight: float = 2.0  # lambda
    penalty: Literal["mean", "sum"] = "mean"
    deformable: bool = False
    det_lists: tuple[str, ...] | None = None  # in ImageSets/DET, those of VID's classes
    start: pathlib.Path | None = None  # weights to begin with, as this writes them
    seed: int = 0
    checkpoints: pathlib.Path | None = None


def train(network: FlowDetector, config: Config) -> None:
    """Trains a network in place: pairs of VID and images of DET in turns, SGD in two stages."""
    pairs = ImageNetPairs(
        ImageNetVID(config.folder, split="train"),
        ImageNetDET(config.folder, lists=config.det_lists),
        steps=config.steps, batch=config.batch, short=config.short, long=config.long,
        multiple=STRIDE, seed=config.seed,
    )  # fmt: skip
    optimizer = staged_sgd(config.steps, rate=config.rate)

    def loss_of(case: Any) -> Any:
        def loss(module: FlowDetector, given: tuple[DetectionPairs, jax.Array]) -> jax.Array:
            return pair_loss(
                module, *given, case=case, penalty_weight=config.penalty_weight,
                penalty=config.penalty, anchors=config.anchors, hard=config.hard,
            ).loss  # fmt: skip

        return loss

    network.eval()  # batch normalisation is frozen, as in the papers
    updates = {case: module_update(network, loss_of(case), optimizer) for case in CASES}
    batch_at = read_ahead(pairs)
    key = jax.random.key(config.seed)

    def update(state: Any, step: int) -> Any:
        batch = jax.tree.map(jnp.asarray, batch_at(step))
        given = batch, jax.random.fold_in(key, step)
        return updates[case_at(config.seed, step)](state, given)

    folder = None if config.checkpoints is None else Checkpoints(config.checkpoints, keep=1)
    state = fit(
        update, start_module(network, optimizer), lambda step: step,
        steps=config.steps, checkpoints=folder, name="pairs", console=console,
    )  # fmt: skip
    put_back(network, state)


def main(config: Config) -> None:
    network = flow_detector(
        classes=len(CLASS_NAMES), deformable=config.deformable, rngs=nnx.Rngs(config.seed)
    )
    if config.start is not None:
        load(network, config.start)
    train(network, config)
    save(network, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config))
