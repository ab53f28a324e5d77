"""`dynvid bitstream`: what a file of feature maps holds."""

import math
import pathlib
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from dynvid.coding.container import BitstreamReader
from dynvid.coding.entropy import zero_order_entropy


def bitstream(
    file: Annotated[
        tyro.conf.Positional[pathlib.Path],
        tyro.conf.arg(help="What dynvid encode wrote.", metavar="FILE"),
    ],
) -> int:
    """Print what a file of feature maps holds: its header, its bits by part and by frame.

    Try:

    dynvid bitstream street.ifm
    """
    # A file or a pipe has no width of its own, and rich would cut the tables to 80 columns.
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=140, highlight=False)
    with open(file, "rb") as source:
        reader = BitstreamReader(source)
        header = reader.header
        by_frame = Table("frame", "kind", "bits", "labels", "bits a value", "entropy a value")
        for column in by_frame.columns[2:]:
            column.justify = "right"
        values = math.prod(header.shape)
        labels = {True: 0, False: 0}
        frames = {True: 0, False: 0}
        packets = 0
        for frame in reader:
            frames[frame.is_key] += 1
            labels[frame.is_key] += frame.payload_bits
            packets += frame.bits - frame.payload_bits
            by_frame.add_row(
                str(frame.number),
                "key" if frame.is_key else "residual",
                str(frame.bits),
                str(frame.payload_bits),
                f"{frame.bits / values:.4f}",
                f"{zero_order_entropy(frame.labels) / values:.4f}",
            )
        total = 8 * source.tell()

    streams, height, width, channels = header.shape
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row("features", f"{streams} streams of {height}x{width}x{channels}, {header.dtype}")
    if isinstance(header.low, tuple):
        facts.add_row("clip range", f"one for each of {channels} channels")
    else:
        facts.add_row("clip range", f"{header.low:.6g} .. {header.high:.6g}")
    facts.add_row(
        "what is coded",
        "values"
        if header.block == 1
        else f"cosine transform of blocks of {header.block}x{header.block}",
    )
    facts.add_row("levels", f"{header.levels} of residuals, {header.key_levels} of key frames")
    whole = "the clip range" if header.block == 1 else "what coefficients span"
    facts.add_row("residuals span", f"1/{header.residual_divisor} of {whole} to each side")
    facts.add_row("key frames", f"every {header.group_of_pictures} frames")
    facts.add_row("entropy stage", f"{header.stage}, scan {header.scan}")
    console.print(facts)

    parts = Table("part", "frames", "bits", "share", "bits a frame", "bits a value")
    for column in parts.columns[1:]:
        column.justify = "right"
    rows = [
        ("labels of key frames", frames[True], labels[True]),
        ("labels of residual frames", frames[False], labels[False]),
        ("packet heads and checksums", sum(frames.values()), packets),
        ("header and end", 0, total - packets - sum(labels.values())),
    ]
    for name, count, bits in [*rows, ("all", sum(frames.values()), total)]:
        each = bits / count if count else math.nan
        parts.add_row(
            name,
            str(count) if count else "",
            str(bits),
            f"{bits / total:.1%}",
            f"{each:.0f}" if count else "",
            f"{each / values:.4f}" if count else "",
        )
    console.print(parts)
    console.print(by_frame)
    console.print("Entropy: of each frame's labels taken one by one, a reference and no rate.")
    return 0
