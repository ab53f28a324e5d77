"""`dynvid encode`: the feature maps of a video, as a bitstream."""

import dataclasses
import itertools
import math
import pathlib
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

import dynvid
from dynvid.cli.common import (
    LimitsOption,
    MaxFramesOption,
    check_count,
    option,
    parse_limits,
    shape_text,
    warn,
)
from dynvid.errors import UsageError, one_line
from dynvid.files import output_file
from dynvid.models.zoo import load_model
from dynvid.systems.ifmdc import FeatureWriter, Settings, clip_range
from dynvid.video.reader import VideoSource


def encode(
    source: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(help="A video file, a folder of images, a camera or a stream."),
    ],
    *,
    model: Annotated[
        pathlib.Path,
        tyro.conf.arg(
            help="The network: .pt (YOLOv5), .cfg (Darknet, its .weights beside it) or another "
            "that dynvid run takes.",
            metavar="PATH",
        ),
    ],
    at: Annotated[
        str,
        tyro.conf.arg(
            help="Where to cut the network: a name that it gives to one of its feature maps, such "
            "as layer_12 (Darknet) or model.4 (YOLOv5).",
            metavar="NAME",
        ),
    ],
    out: Annotated[
        pathlib.Path,
        tyro.conf.arg(help="The file to write, such as street.ifm.", metavar="FILE"),
    ],
    levels: Annotated[
        int,
        option(
            "The labels of a residual, an odd number: more are finer and take more bits.",
            metavar="K",
            default="9",
        ),
    ] = 9,
    key_levels: Annotated[
        int | None,
        option("The labels of a key frame.", metavar="K", default="as --levels"),
    ] = None,
    group_of_pictures: Annotated[
        int,
        option("Frames from key frame to key frame.", metavar="T", default="15"),
    ] = 15,
    block: Annotated[
        int,
        option(
            "Side of the blocks whose cosine transform is coded instead of values; it must divide "
            "the map's height and width. 4 takes half the bits or less for the same detections, "
            "with --levels of about 45 and half as many --key-levels; the price is that single "
            "values may be off by more.",
            metavar="B",
            default="1, values as in the paper",
        ),
    ] = 1,
    dead_zone: Annotated[
        float,
        option(
            "What moved by less than this many steps of a residual counts as unchanged, 0.5 or "
            "more: more takes fewer bits and follows small changes less. 0.7 goes well with "
            "--block 4.",
            metavar="STEPS",
            default="0.5, the nearest label as in the paper",
        ),
    ] = 0.5,
    key_dead_zone: Annotated[
        float,
        option(
            "The same in key frames, for what differs from the mean of a block; without --block "
            "nothing does.",
            metavar="STEPS",
            default="0.5",
        ),
    ] = 0.5,
    stage: Annotated[
        Literal["fixed", "huffman", "arithmetic"],
        option(
            "How labels become bits: run-length tokens of fixed fields, the same in a Huffman "
            "code, or arithmetic coding in context.",
            default="arithmetic",
        ),
    ] = "arithmetic",
    calibrate: Annotated[
        int,
        option(
            "How many frames, from the first, the clip range is taken from (percentiles 0.1 and "
            "99.9).",
            metavar="N",
            default="8",
        ),
    ] = 8,
    max_frames: MaxFramesOption = None,
    limits: LimitsOption = 1.0,
) -> int:
    """Write the feature maps that a network has at a cut, as key frames and differences (IFMDC).

    Try:

    dynvid encode street.mp4 --model yolov3.cfg --at layer_12 --out street.ifm

    dynvid encode street.mp4 --model yolov5n.pt --at model.4 --levels 5 --out street.ifm

    dynvid encode street.mp4 --model yolov5n.pt --at model.4 --block 4 --levels 45
    --key-levels 23 --dead-zone 0.7 --key-dead-zone 0.6 --out street.ifm
    """
    check_count("--calibrate", calibrate)
    check_count("--max-frames", max_frames)
    video = VideoSource(source, max_frames=max_frames)
    loaded = load_model(model, frame_size=video.size, limits=parse_limits(limits))
    try:
        front = jax.jit(dynvid.split(loaded.on_frames, at=at).front)
        shapes = jax.eval_shape(
            front, loaded.params, jax.ShapeDtypeStruct((1, *video.size, 3), jnp.uint8)
        )
        settings = Settings(
            low=0.0,
            high=1.0,
            levels=levels,
            key_levels=key_levels,
            group_of_pictures=group_of_pictures,
            block=block,
            dead_zone=dead_zone,
            key_dead_zone=key_dead_zone,
        )
    except (ValueError, TypeError) as error:
        raise UsageError(one_line(error)) from error
    cut = shapes[at]
    if isinstance(cut, tuple) or len(cut.shape) != 4:
        raise UsageError(f"--at must name a feature map (S, h, w, c); got {at}")
    height, width = cut.shape[1:3]
    if height % block or width % block:
        raise UsageError(
            f"--block must divide the map's height and width, {height} x {width} at {at}; got "
            f"{block}"
        )
    if shapes.others:
        warn(
            f"the file holds {at} alone, but the rest of the network also needs "
            f"{', '.join(shapes.others)}"
        )

    features = (
        front(loaded.params, jnp.asarray(frame)[None])[at].astype(jnp.float32) for frame in video
    )
    first = list(itertools.islice(features, calibrate))
    if not first:
        raise UsageError(f"{video.name} has no frames")
    try:
        low, high = clip_range(np.stack(first))
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    settings = dataclasses.replace(settings, low=low, high=high)
    frames = size = 0
    with output_file(out) as file:
        try:
            writer = FeatureWriter(file, settings, shape=cut.shape, stage=stage)
        except ValueError as error:
            raise UsageError(one_line(error)) from error
        for feature in itertools.chain(first, features):
            packet, _ = writer.write(feature)
            frames, size = frames + 1, size + packet
        writer.close()
    Console(highlight=False).print(
        f"{frames} frames of {at}, {shape_text(cut.shape)}: {size} bytes, "
        f"{8 * size / frames / math.prod(cut.shape):.4f} bits a value; in {out}",
        soft_wrap=True,
    )
    return 0
