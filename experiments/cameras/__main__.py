"""The command line: python -m experiments.cameras --help."""

import itertools
import pathlib
import tempfile
from typing import Annotated, Any

import jax
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynvid.cli.settings import parse_options
from dynvid.errors import UsageError
from dynvid.systems.registry import SYSTEMS
from experiments.bench import console
from experiments.bench.results import machine, read_json, write_json
from experiments.cameras.clips import CAMERAS, DISTURBANCES
from experiments.cameras.measure import MODELS, Case, Suite
from experiments.cameras.pictures import plot, table, totals

HERE = pathlib.Path(__file__).parent
DEFAULTS = "defaults"
CACHE = pathlib.Path(tempfile.gettempdir(), "dynvid-cameras")


def main(
    *,
    models: tuple[str, ...] = tuple(MODELS),
    clips: tuple[str, ...] = tuple(CAMERAS),
    disturbances: tuple[str, ...] = ("plain",),
    frames: int = 150,
    all_frames: bool = False,
    options: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE")] = (),
    target: float | None = None,
    label: str | None = None,
    beside: tuple[str, ...] = (),
    time_every: int = 5,
    out: pathlib.Path = HERE,
    cache: pathlib.Path = CACHE,
) -> None:
    """Measures the transformation against dense inference on fixed cameras of every kind.

    Reads videos and weights from DYNVID_DATA (by default ../shared/data). Writes results.json,
    table.md and cameras.png. What ran already with the same code and settings is not run again, so
    that one that is killed goes on where it was. A model takes a few minutes for all clips.

    Try:

    python -m experiments.cameras --models yolov5n --clips highway tud

    python -m experiments.cameras --disturbances all

    python -m experiments.cameras --set threshold=10 truncation=0.3 --out /tmp/sweep

    Args:
      models: Which detectors.
      clips: Which clips.
      disturbances: What happens to the camera; "all" for everything.
      frames: How many frames of each clip at most.
      all_frames: All frames of each clip, from the very first.
      options: Settings of the system beside its defaults, as for dynvid run.
      target: Tune threshold and truncation for this agreement on the first 40 frames of each clip,
        and judge on those after them.
      label: What these settings are called; by default what --set and --target say.
      beside: Labels of earlier runs of the same cases, to be drawn hollow.
      time_every: Time dense inference on every so many frames; 0 for never.
      out: Where figures and pictures go.
      cache: Where detections are kept.
    """
    if disturbances == ("all",):
        disturbances = tuple(DISTURBANCES)
    for name, chosen, known in (
        ("--models", models, MODELS), ("--clips", clips, CAMERAS),
        ("--disturbances", disturbances, DISTURBANCES),
    ):  # fmt: skip
        if unknown := [value for value in chosen if value not in known]:
            raise SystemExit(f"{name} must be of {', '.join(known)}; got {', '.join(unknown)}")
    try:
        settings = SYSTEMS["incremental"].settings(parse_options(options))
    except (UsageError, ValueError) as error:
        raise SystemExit(str(error)) from error
    said = [*options, *([] if target is None else [f"target={target:g}"])]
    label = label or " ".join(said) or DEFAULTS
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    suite = Suite(cache, time_every=time_every)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    results: dict[str, Any] = read_json(path)
    runs = results.setdefault("runs", {})
    results["machine"] = machine()
    cases = [
        Case(*names, None if all_frames else frames)
        for names in itertools.product(models, clips, disturbances)
    ]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        total = progress.add_task("runs", total=len(cases))
        for case in cases:
            if target is None:
                one = suite.figures(case, settings, progress) | {"settings": settings}
            else:
                tuning = suite.tuned(case, settings, target)
                one = suite.figures(case, tuning["options"], progress, start=tuning["frames"])
                one |= {"tuning": tuning}
            runs[f"{label}: {case.key}"] = one
            write_json(path, results)
            progress.console.print(
                f"{case.key}: F1 {one['f1']:.3f} of {one['ceiling']['f1']:.3f}, MACs "
                f"{one['mac_fraction']:.3f}, misses {one['misses']:.1%}, ghosts "
                f"{one['ghosts']:.1%}, oldest {one['oldest_ghost']}, time "
                f"{one.get('time_ratio', float('nan')):.2f}",
                soft_wrap=True,
            )
            progress.advance(total)
    keys = [f"{label}: {case.key}" for case in cases]
    chosen = [runs[key] for key in keys]
    text = table(chosen)
    (out / "table.md").write_text(text)
    others = [f"{other}: {case.key}" for other in beside for case in cases]
    others = [runs[key] for key in others if key in runs]
    plot(chosen, out / "cameras.png", beside=others)
    console.print(text, markup=False, soft_wrap=True)
    console.print_json(data=totals(chosen))


if __name__ == "__main__":
    tyro.cli(main)
