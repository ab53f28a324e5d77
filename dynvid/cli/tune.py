"""`dynvid tune`: settings that keep a network's results on a video as they are, for less work."""

import itertools
import math
import pathlib
import shlex
import sys
from typing import Annotated, Any

import jax
import jax.numpy as jnp
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
from dynvid.types import Frames, Output, Params

_BATCH = 8  # settings that are tried at once
_BYTES = 1 << 30  # that their outputs may take together
_MOST_BYTES = 2 << 30  # that the outputs of one may take


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
            "same best one.",
            metavar="SHARE",
            default="0.9",
        ),
    ] = 0.9,
    frames: Annotated[
        int,
        option(
            "How many frames to tune on, from the first. The target holds on these only.",
            metavar="N",
            default="40",
        ),
    ] = 40,
    trials: Annotated[
        int,
        option("How many settings to try at most.", metavar="N", default="128"),
    ] = 128,
    seed: Annotated[
        int,
        option("Of what is tried at random: the same seed finds the same.", default="0"),
    ] = 0,
    limits: LimitsOption = 1.0,
) -> int:
    """Choose how much to leave out, so that results stay as they are: a threshold and layers' own.

    Runs a network on the first frames of a video under many settings of dynvid run, and writes the
    one that takes least work among those whose results agree well enough with the whole network's.

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
        clip = [jnp.asarray(frame)[None] for frame in itertools.islice(video, frames)]
        if len(clip) < 2:
            raise UsageError(f"{video.name} has {len(clip)} frame; tuning takes at least 2")
        console.print(
            f"{video.name}, {len(clip)} frames of {size_text(video.size)}; {loaded.name} "
            f"({loaded.kind}); compiling ...",
            soft_wrap=True,
        )
        tuning = _tune(loaded, clip, target=target, trials=trials, seed=seed)
        found = {
            "target": target,
            "agreement": tuning.agreement,
            "agreement_of": f"{loaded.task.results}: {loaded.task.agreement}",
            "mac_fraction": tuning.mac_fraction,
            "source": video.name,
            "frames": len(clip),
            "trials": len(tuning.curve),
            "seed": seed,
        }
        text = settings_text(
            system="incremental",
            options=tuning.options,
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


def _tune(
    model: Model, clip: list[Frames], *, target: float, trials: int, seed: int
) -> dynvid.Tuning:
    """Tunes the network by how far results agree that its outputs are decoded to.

    It is the network alone that is tuned, as `dynvid run` runs it: were decoding part of the
    function, the arithmetic in it would let the outputs themselves be truncated.
    """
    size = (clip[0].shape[1], clip[0].shape[2])

    @jax.jit
    def by_frame(params: Params, expected: Output, found: Output) -> jax.Array:
        def one(pair: tuple[Output, Output]) -> jax.Array:
            a, b = (model.task.decode(params, outputs, frame_size=size) for outputs in pair)
            return model.task.compare(a, b)[0]

        return jax.lax.map(one, (expected, found))

    def agreement(expected: Output, found: Output) -> float:
        return float(jnp.mean(by_frame(model.params, expected, found)))

    shapes: Any = jax.eval_shape(model.on_frames, model.params, clip[0])
    taken = len(clip) * sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    if taken > _MOST_BYTES:
        raise UsageError(
            f"the outputs of {len(clip)} frames take {taken / 1e9:.1f} GB of at most "
            f"{_MOST_BYTES / 1e9:.1f}; give fewer --frames"
        )
    try:
        return dynvid.tune(
            model.on_frames,
            model.params,
            clip,
            target=target,
            metric=agreement,
            trials=trials,
            seed=seed,
            batch=min(_BATCH, max(1, _BYTES // taken)),
            progress=sys.stdout.isatty(),
        )
    except (ValueError, TypeError) as error:
        raise UsageError(one_line(error)) from error


def _summary(found: dict[str, Any], tuning: dynvid.Tuning, model: Model) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        f"{found['mac_fraction']:.1%} of the multiply-accumulates", "after the first frame"
    )
    table.add_row(
        f"{found['agreement']:.3f} agreement of {model.task.results}",
        f"{model.task.agreement}; asked for {found['target']:g}",
    )
    table.add_row(f"threshold {tuning.threshold:g}", "grey levels of 0..255")
    table.add_row(
        f"truncation in {len(tuning.truncation)} layers",
        "in units of each layer's root mean square",
    )
    table.add_row(f"{found['trials']} settings tried", "these take least work")
    return table
