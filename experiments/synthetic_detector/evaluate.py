"""Average precision of the shipped detector on scenes it was not trained on.

    python experiments/synthetic_detector/evaluate.py

Every visible object counts, however little of it shows.
"""

import dataclasses
from typing import Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from dynvid.data.synthetic import CLASS_NAMES, render, synthetic_scene
from dynvid.metrics.average_precision import average_precision, of_class
from dynvid.models.synthetic_detector import decode_synthetic, load_synthetic_detector

HELD_OUT = 1_000_000  # seeds from here on; training folds its steps into another key


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of scene."""

    size: tuple[int, int] = (256, 256)
    objects: int = 6
    camera: Literal["fixed", "panning"] = "fixed"
    noise: float = 2.0


CASES = (
    Case(),
    Case(noise=0.0),
    Case(noise=5.0),
    Case(camera="panning"),
    Case(objects=12),
    Case(size=(128, 128), objects=4),
)


def evaluate(case: Case, *, scenes: int = 100) -> list[float]:
    """AP50 of each class over one frame of each of so many scenes."""
    fn, params = load_synthetic_detector()

    @jax.jit
    def look(seed):
        options = dataclasses.asdict(case)
        frame = render(synthetic_scene(jax.random.key(seed), **options), seed % 1000)
        found = decode_synthetic(fn(params, frame.frame[None]), score_threshold=0.05)
        return frame, jax.tree.map(lambda x: x[0], found)

    seen = [look(HELD_OUT + i) for i in range(scenes)]
    truth, found = jax.tree.map(lambda *leaves: np.stack(leaves), *seen)
    return [
        float(
            average_precision(
                of_class(found, label), truth.boxes, truth.visible & (truth.classes == label)
            ).value
        )
        for label in range(len(CLASS_NAMES))
    ]


def main(scenes: int = 100) -> None:
    table = Table("scene", "AP50", *CLASS_NAMES)
    for case in CASES:
        values = evaluate(case, scenes=scenes)
        height, width = case.size
        name = f"{width}x{height}, {case.objects} objects, {case.camera}, noise {case.noise:g}"
        table.add_row(name, *(f"{v:.3f}" for v in (np.mean(values), *values)))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
