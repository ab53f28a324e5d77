"""`dynvid decode`: a bitstream back to feature maps."""

import pathlib
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console

from dynvid.cli.common import option, shape_text
from dynvid.files import output_file
from dynvid.systems.ifmdc import FeatureReader


def decode(
    file: Annotated[
        tyro.conf.Positional[pathlib.Path],
        tyro.conf.arg(help="What dynvid encode wrote.", metavar="FILE"),
    ],
    *,
    out: Annotated[
        pathlib.Path | None,
        option("The file to write.", metavar="FILE", default="the same name with .npy"),
    ] = None,
    skip_damaged: Annotated[
        bool,
        option(
            "Leave out damaged frames and go on at the next key frame, instead of giving up.",
            default="off",
        ),
    ] = False,
) -> int:
    """Write the feature maps that a file holds, as a NumPy array (frames, streams, h, w, c).

    Try:

    dynvid decode street.ifm

    dynvid decode received.ifm --skip-damaged --out features.npy
    """
    out = file.with_suffix(".npy") if out is None else out
    with open(file, "rb") as source, output_file(out) as target:
        reader = FeatureReader(source, skip_damaged=skip_damaged)
        shape = reader.header.shape

        def head(count: int) -> None:
            # NumPy pads this header so that it does not grow with the first axis.
            np.lib.format.write_array_header_1_0(
                target, {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
            )

        head(0)
        numbers = []
        for features in reader:
            target.write(np.asarray(features.map, "<f4").tobytes())
            numbers.append(features.number)
        target.seek(0)
        head(len(numbers))
    missing = numbers[-1] + 1 - len(numbers) if numbers else 0
    Console(highlight=False).print(
        f"{len(numbers)} frames of {shape_text(shape)}"
        + (f", {missing} left out" if missing else "")
        + f"; in {out}",
        soft_wrap=True,
    )
    return 0
