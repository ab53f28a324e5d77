"""`dynvid tune`: settings that keep a network's results on a video as they are, for less work."""

import itertools
import math
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import dynvid
from dynvid.cli.common import (
    HeadOption,
    LimitsOption,
    ModelOption,
    PixelsOption,
    SourceArgument,
    TaskOption,
    check_count,
    check_number,
    open_source,
    option,
    parse_limits,
    recorded_warnings,
    size_text,
)
from dynvid.cli.settings import settings_text
from dynvid.errors import UsageError, one_line
from dynvid.files import output_file
from dynvid.models.zoo import Model, load_model
from dynvid.systems.registry import SYSTEMS, incremental_options
from dynvid.tasks.task import Result
from dynvid.types import Output, Params

FRAMES = 40
"""How many frames are tuned on."""

TRIALS = 32
"""How many settings are tried."""

_MOST_BYTES = 2 << 30  # that the results of all frames may take


def tune(
    source: SourceArgument = None,
    *,
    out: Annotated[
        pathlib.Path,
        tyro.conf.arg(help="The settings file to write, such as tuned.json.", metavar="FILE"),
    ],
    model: ModelOption = None,
    task: TaskOption = None,
    head: HeadOption = None,
    pixels: PixelsOption = None,
    target: Annotated[
        float,
        option(
            "How far the results are to agree with those of the whole network, of 0..1: for boxes "
            "the F1 score, for label maps the mean IoU, for classes the share of frames with the "
            "same best one. Frames weigh by how much happens in them, and the settings keep it 9 "
            "times in 10; in any case they make half of the way from the first frame's results for "
            "ever to those of the whole network.",
            metavar="SHARE",
            default="0.9",
        ),
    ] = 0.9,
    frames: Annotated[
        int,
        option(
            "How many frames to tune on, from the first: such in which a lot happens. The target "
            "holds for frames like these; dynvid run --audit keeps watch over it on others.",
            metavar="N",
            default=str(FRAMES),
        ),
    ] = FRAMES,
    trials: Annotated[
        int,
        option("How many settings to try at most.", metavar="N", default=str(TRIALS)),
    ] = TRIALS,
    seed: Annotated[
        int,
        option("Of what is tried at random: the same seed finds the same.", default="0"),
    ] = 0,
    limits: LimitsOption = 1.0,
) -> int:
    """Choose how much to leave out, so that results stay as they are: a threshold and layers' own.

    Runs a network on the first frames of a video under many settings of dynvid run, and writes the
    one that takes least work among those whose results agree well enough with the whole network's.
    One for all layers is tried first, then groups of layers, ever smaller.

    Try:

    dynvid tune street.mp4 --model yolov5n.pt --out tuned.json

    dynvid tune street.mp4 --model yolov5n.pt --target 0.95 --frames 80 --out tuned.json
    """
    check_number("--target", target, most=1)
    check_count("--frames", frames, least=2)
    check_count("--trials", trials)
    check_count("--seed", seed, least=0)
    video = open_source(source, max_frames=frames, task=task)
    loaded = load_model(
        model,
        frame_size=video.size,
        task=task,
        head=head,
        pixels=pixels,
        limits=parse_limits(limits),
    )
    console = Console(highlight=False)
    with output_file(out) as file, recorded_warnings():
        clip = list(itertools.islice(video, frames))
        console.print(
            f"{video.name}, {len(clip)} frames of {size_text(video.size)}; {loaded.name} "
            f"({loaded.kind}); compiling ...",
            soft_wrap=True,
        )
        usual = SYSTEMS["incremental"].settings({})
        tuning = tune_model(loaded, clip, target=target, trials=trials, seed=seed, options=usual)
        found = promise(tuning, target=target, frames=len(clip)) | {
            "agreement_of": f"{loaded.task.results}: {loaded.task.agreement}",
            "source": video.name,
            "seed": seed,
        }
        text = settings_text(
            system="incremental",
            options=usual | chosen_settings(tuning),
            model=loaded,
            frame_size=video.size,
            tuning=found,
        )
        file.write(text.encode())
    console.print(_summary(found, tuning, loaded))
    command = ["dynvid", "run", *([] if source is None else [source])]
    for name, value in (("--model", model), ("--task", task), ("--head", head),
                        ("--pixels", pixels), ("--settings", out)):  # fmt: skip
        command += [] if value is None else [name, str(value)]
    console.print(f"{out} is written. To use it:", soft_wrap=True)
    console.print(shlex.join(command), soft_wrap=True, markup=False)
    return 0


def tune_model(
    model: Model,
    clip: Sequence[np.ndarray],
    *,
    target: float,
    trials: int = TRIALS,
    seed: int = 0,
    options: Mapping[str, Any],
) -> dynvid.Tuning:
    """Tunes the network by how far results agree that its outputs are decoded to.

    Args:
      model: The network, which is tuned as `dynvid run` runs it.
      clip: Frames `(H, W, 3)`.
      target: The least agreement.
      trials: How many settings are tried at most.
      seed: Of what is tried at random.
      options: Of the incremental system.

    Raises:
      UsageError: The frames are too few, too large, or nothing happens in them.
    """
    if len(clip) < 2:
        raise UsageError(f"the video has {len(clip)} frame; tuning takes at least 2")
    frames = [jnp.asarray(frame)[None] for frame in clip]
    size = (clip[0].shape[0], clip[0].shape[1])

    def decode(params: Params, outputs: Output) -> Result:
        return model.task.decode(params, outputs, frame_size=size)

    shapes: Any = jax.eval_shape(
        lambda params, x: decode(params, model.on_frames(params, x)), model.params, frames[0]
    )
    taken = len(clip) * sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    if taken > _MOST_BYTES:
        raise UsageError(
            f"the results of {len(clip)} frames take {taken / 1e9:.1f} GB of at most "
            f"{_MOST_BYTES / 1e9:.1f}; give fewer --frames"
        )
    fixed = incremental_options(options)
    del fixed["threshold"], fixed["truncation"]
    try:
        return dynvid.tune(
            model.on_frames,
            model.params,
            frames,
            target=target,
            decode=decode,
            metric=model.task.compare,
            trials=trials,
            seed=seed,
            progress=sys.stdout.isatty(),
            **fixed,
        )
    except (ValueError, TypeError) as error:
        raise UsageError(one_line(error)) from error


def chosen_settings(tuning: dynvid.Tuning) -> dict[str, Any]:
    """What was tuned, as options of the incremental system."""
    return {"threshold": tuning.threshold, "truncation": dict(tuning.truncation)}


def promise(tuning: dynvid.Tuning, *, target: float, frames: int) -> dict[str, Any]:
    """What a tuning is to keep, for reports."""
    return {
        "target": target,
        "agreement": tuning.agreement,
        "agreement_at_least": tuning.lower,
        "agreement_of_first_output": tuning.frozen,
        "mac_fraction": tuning.mac_fraction,
        "frames": frames,
        "trials": len(tuning.curve),
    }


def _summary(found: dict[str, Any], tuning: dynvid.Tuning, model: Model) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        f"{found['mac_fraction']:.1%} of the multiply-accumulates", "after the first frame"
    )
    table.add_row(
        f"{found['agreement']:.3f} agreement of {model.task.results}",
        f"{model.task.agreement}; asked for {found['target']:g}",
    )
    table.add_row(f"{found['agreement_at_least']:.3f} or more", "9 times in 10, on such frames")
    table.add_row(f"{tuning.frozen:.3f}", "the first frame's results for ever")
    table.add_row(f"threshold {tuning.threshold:g}", "grey levels of 0..255")
    table.add_row(
        f"truncation in {len(tuning.truncation)} layers",
        "in units of each layer's root mean square",
    )
    table.add_row(f"{found['trials']} settings tried", "these take least work")
    return table
