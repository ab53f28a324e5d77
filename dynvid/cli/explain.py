"""`dynvid explain`: what of a network runs incrementally."""

import re
import sys
from typing import Annotated

import jax
import jax.numpy as jnp
from rich.console import Console

import dynvid
from dynvid.cli.common import (
    HeadOption,
    LimitsOption,
    ModelOption,
    PixelsOption,
    SyntheticSource,
    TaskOption,
    option,
    parse_limits,
)
from dynvid.errors import UsageError
from dynvid.models.zoo import Model, load_model
from dynvid.tasks import Measuring


def explain(
    *,
    model: ModelOption = None,
    task: TaskOption = None,
    head: HeadOption = None,
    pixels: PixelsOption = None,
    size: Annotated[
        str | None,
        option(
            "Width and height of the frames in pixels, such as 768x576.",
            metavar="WxH",
            default="those of the network's input",
        ),
    ] = None,
    limits: LimitsOption = 1.0,
) -> int:
    """Print, operation by operation, what of a network runs incrementally, and what not and why.

    Try:

    dynvid explain

    dynvid explain --model yolox_nano.onnx --size 1920x1080
    """
    frame_size = None if size is None else parse_size(size)
    most = parse_limits(limits)

    def load(task: str | None) -> Model:
        return load_model(
            model,
            frame_size=frame_size or SyntheticSource.size,
            task=task,
            head=head,
            pixels=pixels,
            limits=most,
        )

    try:
        loaded = load(task)
    except UsageError:
        if task is not None or head is not None:
            raise
        loaded = load(Measuring.name)  # what its outputs are for does not matter here
    if frame_size is None:
        side = loaded.task.preprocessing.longest_side
        frame_size = loaded.task.preprocessing.size or (side, side)
        loaded.check(frame_size)
        loaded.check_cost(frame_size, most)
    frames = jax.ShapeDtypeStruct((1, *frame_size, 3), jnp.uint8)
    explanation = dynvid.explain(loaded.on_frames, loaded.params, frames)
    # A file or a pipe has no width of its own, and rich would cut the table to 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(explanation.table())
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """`(height, width)` of "WIDTHxHEIGHT".

    Raises:
      UsageError: It is not that.

    >>> parse_size("768x576")
    (576, 768)
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or int(match[1]) < 1 or int(match[2]) < 1:
        raise UsageError(f"--size must be WIDTHxHEIGHT in pixels, such as 768x576; got {text!r}")
    return int(match[2]), int(match[1])
