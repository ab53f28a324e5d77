"""The arithmetic of DynCNN's Tables 6 and 9-11, and which printed cells do not follow from it.

All in multiply-accumulates, which the paper calls FLOPs.
"""

import csv
from decimal import ROUND_DOWN, ROUND_HALF_UP, Context, Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

PRINTED = Path(__file__).with_name("printed.csv")

PAPER_TAIL = 1.3e8 + 1.07e10  # the two last rows of every table of the paper, never pruned

# Side of the output and taps (kernel area x input x output channels) of what follows conv5_3 in
# SSD512 with 21 classes.
TAIL = {
    "fc6, fc7": [(32, 9 * 512 * 1024), (32, 1024 * 1024)],
    "extras": [
        (32, 1024 * 256), (16, 9 * 256 * 512), (16, 512 * 128), (8, 9 * 128 * 256),
        (8, 256 * 128), (4, 9 * 128 * 256), (4, 256 * 128), (2, 9 * 128 * 256),
        (2, 256 * 128), (1, 16 * 128 * 256),
    ],
    "heads": [
        (side, 9 * channels * boxes * (21 + 4))
        for side, channels, boxes in (
            (64, 512, 4), (32, 1024, 6), (16, 512, 6), (8, 256, 6), (4, 256, 6), (2, 256, 4),
            (1, 256, 4),
        )
    ],
}  # fmt: skip


class Layer(NamedTuple):
    """A convolution of VGG16 at 512 x 512, and the heights of the array that DynCNN gathers."""

    name: str
    side: int
    taps: int
    heights: dict[str, int]


def _layers() -> dict[str, Layer]:
    groups = ((2, 64, 14), (2, 128, 6), (3, 256, 6), (3, 512, 6), (3, 512, 6))
    layers, channels = {}, 3
    for group, (count, outputs, cell) in enumerate(groups):
        for index in range(count):
            name = f"conv{group + 1}_{index + 1}"
            # A cell and its halo: one convolution's, or that of all that are still to come.
            heights = {"without": cell + 2, "with": cell + 2 * (count - index)}
            layers[name] = Layer(name, 512 >> group, 9 * channels * outputs, heights)
            channels = outputs
    return layers


LAYERS = _layers()


class Row(NamedTuple):
    """A row of a printed table; dense rows have no size and no share, totals no size."""

    dataset: str
    column: str
    layer: str
    width: Decimal | None
    height: Decimal | None
    macs: Decimal
    pruned: Decimal | None


def read_printed(path: Path = PRINTED) -> list[Row]:
    """All rows of a file like `printed.csv`.

    Raises:
      ValueError: a row names a column or layer that there is not, or lacks a cell that the rows of
        its kind have, or has one that they have not or that is no number; the row is named.
    """
    lines = [x for x in path.read_text(encoding="utf-8").splitlines() if not x.startswith("#")]
    rows = []
    for fields in csv.reader(lines[1:]):
        try:
            dataset, column, layer, *cells = fields
            row = Row(dataset, column, layer, *(Decimal(c) if c else None for c in cells))
        except (ValueError, TypeError, InvalidOperation):
            row = None
        if row is None or not _is_whole(row):
            raise ValueError(
                f"{path.name}: {','.join(fields)!r}, expected {','.join(Row._fields)} with column "
                "dense, without or with, layer conv1_1 to conv5_3 or total, and numbers: a size "
                "for layers that are not dense, macs, a share where not dense"
            )
        rows.append(row)
    return rows


def _is_whole(row: Row) -> bool:
    if row.column not in ("dense", "without", "with") or row.layer not in (*LAYERS, "total"):
        return False
    is_dense = row.column == "dense"
    has_size = not is_dense and row.layer != "total"
    wanted = (has_size, has_size, True, not is_dense)
    return tuple(cell is not None for cell in row[3:]) == wanted


def dense_macs(layer: Layer) -> int:
    """S^2 Cin Cout 9."""
    return layer.side**2 * layer.taps


def strip_macs(layer: Layer, width: float, height: float) -> float:
    """K (W - 2) H with K = Cin Cout 9, as the paper counts: output width times input height."""
    return layer.taps * (width - 2) * height


def valid_macs(layer: Layer, width: float, height: float) -> float:
    """K (W - 2) (H - 2), what a convolution without padding takes on an array of W x H."""
    return layer.taps * (width - 2) * (height - 2)


def pruned_percent(layer: Layer, macs: float) -> float:
    """The share of the dense layer that is saved, 100 (1 - macs / dense)."""
    return 100 * (1 - macs / dense_macs(layer))


def tail_macs() -> dict[str, int]:
    """What follows conv5_3 in SSD512, part by part."""
    return {name: sum(side**2 * taps for side, taps in part) for name, part in TAIL.items()}


def size_of(row: Row) -> tuple[float, float]:
    """Width and height of a layer row's array.

    Raises:
      ValueError: the row is dense or a total.
    """
    if row.width is None or row.height is None:
        raise ValueError(f"dense rows and totals have no size; got {row}")
    return float(row.width), float(row.height)


def truncated(value: float | Decimal, digits: int = 2) -> Decimal:
    """The value's first digits."""
    return Context(prec=digits, rounding=ROUND_DOWN).create_decimal(value)


def readings(row: Row) -> list[float]:
    """The multiply-accumulates that a row's size can mean, the paper's own formula first.

    Without continuous convolution that is `strip_macs`; with it the paper's rows follow K W H as
    well as K (W - 2) H. Of a dense row: the dense layer's.
    """
    layer = LAYERS[row.layer]
    if row.column == "dense":
        return [dense_macs(layer)]
    width, height = size_of(row)
    values = [strip_macs(layer, width, height)]
    if row.column == "with":
        values.append(layer.taps * width * height)
    return values


def marks(row: Row) -> set[str]:
    """Which of a layer's printed figures, `macs` and `pruned`, do not follow from its own size.

    Multiply-accumulates follow where they are the reading truncated or rounded to as many digits
    as are printed, pruned percentages within half a point of it: the specification's measure, and
    more than what W, rounded, can move a share by (50 H / S^2 points) but in conv5_1 and conv5_2
    with continuous convolution (0.59 and 0.49). Where a size has two readings, one of them has to
    explain both figures; the one that explains more is taken, the paper's formula among equals.
    """
    return min((_unexplained(row, value) for value in readings(row)), key=len)


def _unexplained(row: Row, macs: float) -> set[str]:
    digits = len(row.macs.as_tuple().digits)
    rounded = Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal(macs)
    found = set()
    if row.macs not in {truncated(macs, digits), rounded}:
        found.add("macs")
    if row.pruned is not None:
        share = pruned_percent(LAYERS[row.layer], macs)
        found |= {"pruned"} if abs(float(row.pruned) - share) > 0.5 else set()
    return found


def implied_size(row: Row, figure: str) -> tuple[float, float]:
    """The size that a printed figure follows from by K (W - 2) H.

    Args:
      row: Of a layer that is not dense.
      figure: "macs" or "pruned".

    Returns:
      W at the printed H, and H at the printed W.
    """
    layer, (width, height) = LAYERS[row.layer], size_of(row)
    macs = float(row.macs)
    if figure == "pruned":
        macs = dense_macs(layer) * (1 - float(row.pruned) / 100)
    return macs / (layer.taps * height) + 2, macs / (layer.taps * (width - 2))
