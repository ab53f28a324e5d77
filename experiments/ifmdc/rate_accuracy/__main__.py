"""The command line: python -m experiments.ifmdc.rate_accuracy --help."""

import pathlib
from typing import Annotated, Literal

import tyro

from experiments.bench import console
from experiments.ifmdc.rate_accuracy import curves, incremental, throughput
from experiments.ifmdc.rate_accuracy.results import Results
from experiments.ifmdc.rate_accuracy.subjects import MODELS, Subject
from experiments.ifmdc.rate_accuracy.summary import summarise

HERE = pathlib.Path(__file__).parent
PARTS = {
    "curves": curves.measure,
    "incremental": incremental.measure,
    "times": incremental.measure_times,
    "throughput": throughput.measure,
}


def main(
    parts: Annotated[
        tuple[Literal["curves", "incremental", "times", "throughput", "summary"], ...],
        tyro.conf.Positional,
    ] = (),
    /,
    *,
    models: tuple[Literal["yolov5n", "yolo_fastest_xl"], ...] = ("yolov5n", "yolo_fastest_xl"),
    sequences: tuple[Literal["PETS", "TUD-Stadtmitte"], ...] = ("PETS", "TUD-Stadtmitte"),
    frames: int = 250,
    folder: pathlib.Path = HERE,
) -> None:
    """Measures IFMDC against HEVC and a lightweight intra codec on real video with ground truth.

    A detector is cut in two where one tensor crosses. What crosses is coded, and person AP50 is
    judged on what the other end makes of it. Bits are by pixel of the model's input, 640x480.

    Reads PETS, TUD-Stadtmitte and the detectors' weights from the folder DYNVID_DATA (by default
    ../shared/data). Writes results.json after every row: a run that is broken off goes on where it
    was. To measure a row again, delete it there.

    The parts, with the time they take on two cores that nothing else uses; curves comes first:

    curves: AP against rate, IFMDC, HEVC (video, tiling, quilting) and the lightweight codec (8 to
    12 minutes a sequence and model).

    incremental: the same with a front that recomputes only what changed, whose change mask the
    codec takes (4 minutes each).

    times: what the edge does for a P frame, in milliseconds, with either front (half a minute).

    throughput: encoding time against x265 (1 minute each). Run these two while nothing else runs.

    summary: tables and pictures from the results; needs nothing but results.json.

    Args:
      parts: Which parts to run; all where none is named.
      models: Which detectors.
      sequences: Which sequences.
      frames: How many frames of each sequence. Other numbers are measured anew.
      folder: Where results and pictures go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder / "results.json")
    chosen = parts or (*PARTS, "summary")
    measured = [part for part in chosen if part in PARTS]
    for name in models if measured else ():
        model = MODELS[name]()
        for sequence in sequences:
            subject = Subject(model, sequence, frames)
            for part in measured:
                console.rule(f"{part}: {subject.name}")
                PARTS[part](subject, results)
    if "summary" in chosen:
        summarise(results, folder)


if __name__ == "__main__":
    tyro.cli(main)
