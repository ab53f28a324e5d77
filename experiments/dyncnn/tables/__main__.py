"""Prints the tables of the paper beside what they should say.

python -m experiments.dyncnn.tables
"""

import tyro
from rich.console import Console
from rich.table import Table

from experiments.dyncnn.tables import recompute
from experiments.dyncnn.tables.recompute import LAYERS, PAPER_TAIL, Row


def figure(value: object, *, marked: bool = False, form: str = "{:.2e}") -> str:
    """A cell, starred and red where it does not follow."""
    text = form.format(value).lower().replace("e+", "e").replace("e0", "e")
    return f"[red]{text}*[/red]" if marked else text


def baseline(rows: list[Row]) -> Table:
    """The dense network: VGG16's convolutions, then the tail that the paper gives and the real."""
    table = _table("Dense SSD512, MACs", "layer", "paper", "ours")
    dense = [row for row in rows if row.column == "dense"]
    for row in dense:
        if row.layer != "total":
            value = recompute.dense_macs(LAYERS[row.layer])
            marked = "macs" in recompute.marks(row)
            table.add_row(row.layer, figure(row.macs, marked=marked, form="{}"), figure(value))
    table.add_section()
    tail = recompute.tail_macs()
    for name, value in tail.items():
        table.add_row(name, "-", figure(value, form="{:.3e}"))
    table.add_row(
        "after conv5_3",
        figure(PAPER_TAIL, form="{:.3e}"),
        figure(sum(tail.values()), form="{:.3e}"),
    )
    total = sum(map(recompute.dense_macs, LAYERS.values())) + sum(tail.values())
    (printed,) = (row.macs for row in dense if row.layer == "total")
    table.add_row("total", figure(printed, form="{}"), figure(total, form="{:.3e}"))
    return table


def of_dataset(rows: list[Row], dataset: str, column: str) -> Table:
    """The layers of one video set, without or with continuous convolution."""
    readings = ("K(W-2)H", "KWH")[: 2 if column == "with" else 1]
    table = _table(
        f"{dataset}, {column} continuous convolution", "layer", "W x H", "MACs", *readings,
        "K(W-2)(H-2)", "pruned, %", *readings, "starred: implied",
    )  # fmt: skip
    for row in rows:
        if (row.dataset, row.column) != (dataset, column) or row.layer == "total":
            continue
        layer, size, marked = LAYERS[row.layer], recompute.size_of(row), recompute.marks(row)
        macs = recompute.readings(row)
        table.add_row(
            row.layer,
            "{:g} x {:g}".format(*size),
            figure(row.macs, marked="macs" in marked, form="{}"),
            *map(figure, macs),
            figure(recompute.valid_macs(layer, *size)),
            figure(row.pruned, marked="pruned" in marked, form="{}"),
            *(figure(recompute.pruned_percent(layer, value), form="{:.1f}") for value in macs),
            implied(row, marked),
        )
    return table


def implied(row: Row, marked: set[str]) -> str:
    """The size that a row's starred figure follows from; of two figures, the share's."""
    if not marked:
        return ""
    return "W {:.0f} or H {:.1f}".format(*recompute.implied_size(row, max(marked)))


def cells(rows: list[Row]) -> Table:
    """How many cells lie side by side in the arrays of each group.

    Both ways compute the cells that the group's last layer needs, so that the last layer without
    continuous convolution and the first with it should have the same number.
    """
    sets = _sets(rows)
    table = _table("Cells without and with continuous convolution", "group", *sets)
    found = {(r.dataset, r.column, r.layer): r for r in rows if r.width is not None}
    names = list(LAYERS)
    for group in range(1, 6):
        of_group = [name for name in names if name.startswith(f"conv{group}_")]
        shown = []
        for dataset in sets:
            ends = (("without", of_group[-1]), ("with", of_group[0]))
            counts = [
                width / height
                for width, height in (recompute.size_of(found[dataset, *end]) for end in ends)
            ]
            shown.append("{:.1f}, {:.1f} ({:+.0%})".format(*counts, counts[1] / counts[0] - 1))
        table.add_row(f"gp{group}", *shown)
    return table


def totals(rows: list[Row]) -> Table:
    """Whole networks, with the paper's tail: whether they follow from their layers."""
    table = _table(
        "Whole network, the paper's MACs", "set", "continuous", "paper", "its rows and tail",
        "K(W-2)H and tail", "pruned, %", "from its totals",
    )  # fmt: skip
    (dense,) = (float(r.macs) for r in rows if (r.column, r.layer) == ("dense", "total"))
    for row, layers in _networks(rows):
        table.add_row(
            row.dataset,
            row.column,
            figure(row.macs, form="{}"),
            figure(sum(float(r.macs) for r in layers) + PAPER_TAIL),
            figure(sum(recompute.readings(r)[0] for r in layers) + PAPER_TAIL),
            figure(row.pruned, form="{}"),
            f"{100 * (1 - float(row.macs) / dense):.1f}",
        )
    return table


def real_totals(rows: list[Row]) -> Table:
    """Whole networks, with what follows conv5_3 in SSD512, and the convolutions alone."""
    table = _table(
        "The same with SSD512's own tail, and conv1_1 to conv5_3 alone", "set", "continuous",
        "whole", "pruned, %", "conv1-5, paper", "pruned, %", "K(W-2)(H-2)", "pruned, %",
    )  # fmt: skip
    convolutions = sum(map(recompute.dense_macs, LAYERS.values()))
    tail = sum(recompute.tail_macs().values())
    for row, layers in _networks(rows):
        executed = float(row.macs) - PAPER_TAIL
        valid = sum(recompute.valid_macs(LAYERS[r.layer], *recompute.size_of(r)) for r in layers)
        table.add_row(
            row.dataset,
            row.column,
            figure(executed + tail),
            f"{100 * (1 - (executed + tail) / (convolutions + tail)):.1f}",
            figure(executed),
            f"{100 * (1 - executed / convolutions):.1f}",
            figure(valid),
            f"{100 * (1 - valid / convolutions):.1f}",
        )
    return table


def _networks(rows: list[Row]) -> list[tuple[Row, list[Row]]]:
    """The totals that are not dense, each with its layers."""
    return [
        (total, [row for row in rows if row[:2] == total[:2] and row.layer != "total"])
        for total in rows
        if total.layer == "total" and total.column != "dense"
    ]


def _table(title: str, *headers: str) -> Table:
    table = Table(*headers, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _sets(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.dataset for row in rows if row.column != "dense"))


def main() -> None:
    """Prints DynCNN's Tables 6 and 9-11 beside what their own array sizes give."""
    rows = recompute.read_printed()
    console = Console()
    console.print(baseline(rows))
    for dataset in _sets(rows):
        for column in ("without", "with"):
            console.print(of_dataset(rows, dataset, column))
    console.print(cells(rows))
    console.print(totals(rows))
    console.print(real_totals(rows))
    layers = [row for row in rows if row.column != "dense" and row.layer != "total"]
    for column in ("without", "with"):
        marks = [recompute.marks(row) for row in layers if row.column == column]
        following = [sum(name not in found for found in marks) for name in ("macs", "pruned")]
        console.print(
            f"{column} continuous convolution: MACs of {following[0]} of {len(marks)} layers "
            f"follow from the row's own size, shares of {following[1]}"
        )
    console.print("* does not follow from the row's own size")


if __name__ == "__main__":
    tyro.cli(main)
