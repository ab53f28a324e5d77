"""The command line: python -m experiments.dyncnn.pets --help."""

import pathlib
from typing import Annotated, Literal

import tyro

from experiments.bench import console
from experiments.bench.results import machine, read_json, write_json
from experiments.dyncnn.pets import pictures, similarity, theta, tuned
from experiments.dyncnn.pets.evaluate import Contest, ssd512, yolov5n
from experiments.dyncnn.pets.tables import show

HERE = pathlib.Path(__file__).parent
PARTS = {
    "theta": theta.measure,
    "videos": similarity.measure,
    "tuned": tuned.measure,
    "pictures": pictures.measure,
}


def main(
    parts: Annotated[
        tuple[Literal["theta", "videos", "tuned", "pictures"], ...], tyro.conf.Positional
    ] = (),
    /,
    *,
    weights: pathlib.Path | None = None,
    folder: pathlib.Path = HERE,
) -> None:
    """Measures DynCNN's three schemes and the transformation on real video.

    Reads the videos, the ground truth and YOLOv5n's weights from the folder DYNVID_DATA (by default
    ../shared/data). Writes results.json and a picture for each part; a part that is run again
    replaces only its own figures. Times are not measured here: see experiments/dyncnn/speed.

    The parts, with the time they take on two cores:

    theta: person AP50 and work against theta on PETS, the paper's Figure 4 (30 minutes).

    videos: work against scene similarity, and counts of detections, Figure 5 (20 minutes).

    tuned: thresholds tuned by layer, judged on frames they were not tuned on (15 minutes).

    pictures: detections and change masks to look at (2 minutes).

    Args:
      parts: Which parts to run; all where none is named.
      weights: The released SSD512 (.caffemodel), to judge it instead of YOLOv5n.
      folder: Where results and pictures go.
    """
    contest = Contest(yolov5n() if weights is None else ssd512(weights))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    for part in parts or PARTS:
        console.rule(part)
        result = PARTS[part](contest, folder)
        # Read again each time: another part may have been run in the meantime.
        results = read_json(path)
        results[part] = {"detector": contest.detector.name, "machine": machine()} | result
        show(part, results[part])
        write_json(path, results)


if __name__ == "__main__":
    tyro.cli(main)
