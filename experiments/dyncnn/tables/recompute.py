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
    """A row of a printed table; None where a cell is not known (see `printed.csv`)."""

    dataset: str
    column: str
    layer: str
    width: Decimal | None
    height: Decimal | None
    macs: Decimal | None
    pruned: Decimal | None
    formula_macs: Decimal | None
    formula_pruned: Decimal | None
    implied_width: Decimal | None
    implied_height: Decimal | None


def read_printed(path: Path = PRINTED) -> list[Row]:
    """All rows of a file like `printed.csv`.

    Raises:
      ValueError: a row has not 11 fields, names a column or layer that there is not, or has a cell
        that is no number; the row is named.
    """
    lines = [x for x in path.read_text(encoding="utf-8").splitlines() if not x.startswith("#")]
    rows = []
    for fields in csv.reader(lines[1:]):
        try:
            dataset, column, layer, *cells = fields
            row = Row(dataset, column, layer, *(Decimal(c) if c else None for c in cells))
        except (ValueError, TypeError, InvalidOperation):
            row = None
        if (
            row is None
            or row.column not in ("dense", "without", "with")
            or row.layer not in (*LAYERS, "total")
        ):
            raise ValueError(
                f"{path.name}: {','.join(fields)!r}, expected {','.join(Row._fields)} with column "
                "dense, without or with, layer conv1_1 to conv5_3 or total, and numbers"
            )
        rows.append(row)
    return rows


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


def size_of(row: Row) -> tuple[float, float] | None:
    """Width and height of the row's array; the layout's height where the printed one is unknown."""
    if row.width is None:
        return None
    return float(row.width), float(row.height or LAYERS[row.layer].heights[row.column])


def truncated(value: float | Decimal) -> Decimal:
    """The value's first two digits, as the paper prints them."""
    return Context(prec=2, rounding=ROUND_DOWN).create_decimal(value)


def readings(row: Row) -> list[float]:
    """The multiply-accumulates that a row's size can mean, the paper's own formula first.

    Without continuous convolution that is `strip_macs`; with it the paper's rows follow K W H as
    well as K (W - 2) H. Where the size is not known: what the specification states, if anything.
    """
    size = size_of(row)
    if size is None:
        return [] if row.formula_macs is None else [float(row.formula_macs)]
    layer, (width, height) = LAYERS[row.layer], size
    values = [strip_macs(layer, width, height)]
    if row.column == "with":
        values.append(layer.taps * width * height)
    return values


def marks(row: Row) -> set[str]:
    """Which of a layer's printed figures, `macs` and `pruned`, do not follow from its own size.

    Multiply-accumulates follow where they are a reading truncated or rounded to two digits, pruned
    percentages within half a point of one. Where the specification says that the printed figures
    imply another size than the printed one, neither follows.
    """
    if row.implied_width is not None or row.implied_height is not None:
        return {"macs", "pruned"}
    values = [float(dense_macs(LAYERS[row.layer]))] if row.column == "dense" else readings(row)
    found = set()
    if row.macs is not None and values:
        rounded = Context(prec=2, rounding=ROUND_HALF_UP)
        if row.macs not in {f(v) for v in values for f in (truncated, rounded.create_decimal)}:
            found.add("macs")
    if row.formula_pruned is not None:
        shares = [float(row.formula_pruned)]
    else:
        shares = [pruned_percent(LAYERS[row.layer], v) for v in values]
    # Sizes and shares are printed rounded; half a point covers both at every layer.
    if row.pruned is not None and shares:
        distance = min(abs(float(row.pruned) - share) for share in shares)
        found |= {"pruned"} if distance > 0.5 else set()
    return found
